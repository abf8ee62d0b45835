# SPDX-License-Identifier: MIT
"""The process's cap: who decides it, and that it says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.machine.topology import Node, Quota, Topology
from aioktask.engine.scheduling.caps import (
    Cap,
    bound_to_one_cpu,
    process_cap,
    threads_within,
    within_share,
)

QUOTA_FILE = Path("/sys/fs/cgroup/app.slice/cpu.max")


def machine(cpus: int, online: int | None = None, quota: float | None = None) -> Topology:
    everything = frozenset(range(online or cpus))
    return Topology(
        cpus=frozenset(range(cpus)),
        online=everything,
        nodes=(Node(0, everything, (10,), 0),),
        quota=None if quota is None else Quota(round(quota * 100_000), 100_000, QUOTA_FILE),
    )


def test_all_cpus_are_the_cap_where_nothing_limits_them() -> None:
    assert process_cap(machine(8)) == Cap(8, "the affinity allows every CPU that is online (8)")


def test_an_affinity_below_the_machine_is_named() -> None:
    cap = process_cap(machine(2, online=8))
    assert cap == Cap(2, "the affinity allows 2 of the 8 CPUs that are online", "affinity")


@pytest.mark.parametrize(
    ("quota", "threads", "worth"),
    [(7.65, 7, "7.65"), (3, 3, "3"), (1.5, 1, "1.5"), (0.25, 1, "0.25")],
)
def test_a_quota_is_rounded_down_but_not_to_zero_and_its_file_is_named(
    quota: float, threads: int, worth: str
) -> None:
    cap = process_cap(machine(8, quota=quota))
    assert cap.threads == threads
    assert cap.decider == "quota"
    assert cap.reason == (
        f"the cgroup quota in {QUOTA_FILE} is worth {worth} of the 8 CPUs that the affinity allows"
    )


@pytest.mark.parametrize("quota", [4, 5.5, 64])
def test_a_quota_that_leaves_every_cpu_usable_does_not_decide(quota: float) -> None:
    cap = process_cap(machine(4, quota=quota))
    assert cap == process_cap(machine(4))


@pytest.mark.parametrize(
    ("threads", "effect"),
    [(2, "lowers the cap below"), (8, "keeps the cap at"), (32, "raises the cap above")],
)
def test_the_user_decides_in_both_directions(threads: int, effect: str) -> None:
    cap = process_cap(machine(8), threads, f"AIOKTASK_MAX_THREADS={threads}")
    assert cap.threads == threads
    assert cap.decider == "user"
    assert cap.reason == (
        f"AIOKTASK_MAX_THREADS={threads} {effect} the 8 that the machine gives: "
        "the affinity allows every CPU that is online (8)"
    )


def test_the_user_goes_above_a_quota_and_the_reason_still_names_the_quota() -> None:
    cap = process_cap(machine(8, quota=2), 6, "the user")
    assert cap.threads == 6
    assert cap.reason.startswith("the user raises the cap above the 2 ")
    assert str(QUOTA_FILE) in cap.reason


@given(
    cpus=st.integers(1, 64),
    quota=st.none() | st.floats(0.001, 128),
    said=st.none() | st.integers(1, 200),
)
def test_the_user_decides_else_the_machine_does(
    cpus: int, quota: float | None, said: int | None
) -> None:
    topology = machine(cpus, quota=quota)
    cap = process_cap(topology, said, "the user")
    assert cap.threads == (said or topology.cpu_limit)
    assert cap.threads >= 1


def test_a_process_that_is_bound_to_one_cpu_of_many_is_told_what_to_do() -> None:
    told = bound_to_one_cpu(machine(1, online=8))
    assert told is not None
    assert told.startswith("the main thread is bound to CPU 0 of the 8 that are online")
    for way in ("OMP_PROC_BIND", "sched_setaffinity", "AIOKTASK_MAX_THREADS"):
        assert way in told


@pytest.mark.parametrize(
    ("topology", "threads"),
    [
        (machine(1), None),  # there is no other CPU
        (machine(2, online=8), None),
        (machine(8, quota=1), None),  # the quota decides, and the cap says so
        (machine(1, online=8), 1),  # the user knows
        (machine(1, online=8), 4),
    ],
)
def test_whoever_is_not_bound_to_one_cpu_or_meant_it_is_told_nothing(
    topology: Topology, threads: int | None
) -> None:
    assert bound_to_one_cpu(topology, threads) is None


@given(threads=st.integers(1, 64), share=st.none() | st.integers(0, 64))
def test_a_share_of_the_slots_only_lowers_a_cap_and_leaves_one_thread(
    threads: int, share: int | None
) -> None:
    cap = Cap(threads, "the user says so", "user")
    left = within_share(cap, share)
    assert left.threads == threads_within(threads, share)
    assert 1 <= left.threads <= threads
    if share is None or share >= threads or threads == 1:
        assert left is cap
    else:
        assert left.threads == max(share, 1)
        assert left.decider == "slots"
