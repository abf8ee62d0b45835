# SPDX-License-Identifier: MIT
"""Idle time, pressure and run delay, from files of any machine."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.machine import topology
from aioktask.engine.machine.load import (
    idle_ns,
    pressure_us,
    sleeping_threads,
    thread_runs,
    thread_times_ns,
)
from aioktask.engine.machine.topology import Topology, Watched, read_topology

STAT = b"""cpu  10 20 30 4000 50 0 0 0 0 0
cpu0 1 2 3 100 10 0 0 0 0 0
cpu1 1 2 3 200 20 0 0 0 0 0
cpu10 1 2 3 400 40 0 0 0 0 0
intr 123 0 0
cpu2 no line of this kind comes after others
"""
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def put(root: Path, name: str, text: bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)


def test_the_idle_time_is_that_of_the_cpus_asked_for(tmp_path: Path) -> None:
    put(tmp_path, "proc/stat", STAT)
    assert idle_ns({0, 1, 10}, tmp_path) == 770 * TICK_NS
    assert idle_ns({1}, tmp_path) == 220 * TICK_NS
    assert idle_ns({2}, tmp_path) is None


def test_the_pressure_is_that_of_some(tmp_path: Path) -> None:
    text = b"some avg10=0.00 avg60=1.50 avg300=0.20 total=3434204407\nfull avg10=0.00 total=5\n"
    put(tmp_path, "proc/pressure/cpu", text)
    assert pressure_us(tmp_path) == 3434204407


@pytest.mark.parametrize(
    "text", [b"", b"some\n", b"some total=\n", b"some total=x", b"full total=3"]
)
def test_no_pressure_is_known_where_it_is_not_told(tmp_path: Path, text: bytes) -> None:
    assert pressure_us(tmp_path) is None
    put(tmp_path, "proc/pressure/cpu", text)
    assert pressure_us(tmp_path) is None


@given(st.binary(max_size=200))
def test_nothing_that_is_read_raises(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    root = tmp_path_factory.mktemp("root")
    for name in (
        "proc/stat",
        "proc/pressure/cpu",
        "proc/self/task/7/schedstat",
        "proc/self/task/7/stat",
    ):
        put(root, name, text)
    idle_ns({0, 1}, root)
    pressure_us(root)
    thread_times_ns([7, 8], root)
    sleeping_threads([7, 8], root)


def test_threads_that_ended_are_left_out(tmp_path: Path) -> None:
    put(tmp_path, "proc/self/task/7/schedstat", b"123 45 6\n")
    assert thread_times_ns([7, 8], tmp_path) == {7: (123, 45)}


def test_a_kernel_that_does_not_count_tells_of_no_thread(tmp_path: Path) -> None:
    put(tmp_path, "proc/self/task/7/schedstat", b"0 0 0\n")
    assert thread_runs([7], tmp_path) == {}


@pytest.mark.parametrize(
    ("state", "sleeps"), [("S", True), ("D", True), ("R", False), ("T", False), ("Z", False)]
)
def test_a_thread_that_runs_or_could_run_does_not_sleep(
    tmp_path: Path, state: str, sleeps: bool
) -> None:
    put(tmp_path, "proc/self/task/7/stat", f"7 (a) S (b) {state} 1 7 7 0 -1\n".encode())
    assert sleeping_threads([7, 8], tmp_path) == ({7} if sleeps else set())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine_tells_that_this_thread_runs() -> None:
    assert sleeping_threads([threading.get_native_id()]) == set()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine_tells_of_this_thread() -> None:
    assert idle_ns(os.sched_getaffinity(0)) is not None
    native = threading.get_native_id()
    [(ran, _)] = thread_times_ns([native]).values()
    assert ran > 0


def put_machine(root: Path) -> None:
    """Four CPUs, and a cgroup `app` without a quota."""
    put(root, "proc/self/cgroup", b"0::/app\n")
    mount = b"30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    put(root, "proc/self/mountinfo", mount)
    put(root, "sys/fs/cgroup/app/cpu.max", b"max 100000\n")
    put(root, "sys/devices/system/cpu/online", b"0-3\n")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the affinity")
def test_what_the_cap_follows_from_is_watched(tmp_path: Path) -> None:
    put_machine(tmp_path)
    watched = Watched(tmp_path)
    assert watched.read() is not None
    assert watched.read() is None
    for name, text in (
        ("sys/fs/cgroup/app/cpu.max", b"150000 100000\n"),
        ("sys/fs/cgroup/cpu.max", b"200000 100000\n"),  # appears above the process's own
        ("sys/devices/system/cpu/online", b"0-2\n"),
        ("proc/self/cgroup", b"0::/other\n"),
        ("sys/fs/cgroup/other/cpu.max", b"50000 100000\n"),
    ):
        put(tmp_path, name, text)
        assert watched.read() is not None, name
        assert watched.read() is None
    before = os.sched_getaffinity(0)
    if len(before) > 1:
        try:
            os.sched_setaffinity(0, {min(before)})
            assert watched.read() is not None
        finally:
            os.sched_setaffinity(0, before)
        assert watched.read() is not None


@pytest.mark.skipif(sys.platform != "linux", reason="reads the affinity")
def test_what_changes_while_it_is_read_and_then_back_is_read_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The look says what was before, and the machine that was read is of afterwards."""
    put_machine(tmp_path)
    watched = Watched(tmp_path)
    with monkeypatch.context() as patch:

        def while_it_changes(root: Path) -> Topology:
            put(tmp_path, "sys/fs/cgroup/app/cpu.max", b"150000 100000\n")
            return read_topology(root)

        patch.setattr(topology, "read_topology", while_it_changes)
        found = watched.read()
    assert found is not None
    assert found.quota is not None
    put(tmp_path, "sys/fs/cgroup/app/cpu.max", b"max 100000\n")
    found = watched.read()
    assert found is not None
    assert found.quota is None
    assert watched.read() is None
