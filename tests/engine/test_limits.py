# SPDX-License-Identifier: MIT
"""The process's cap: who decides it, and that it says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.limits import Cap, process_cap
from aioktask.engine.topology import Node, Quota, Topology

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
    assert process_cap(machine(8), {}) == Cap(8, "the affinity allows every CPU that is online (8)")


def test_an_affinity_below_the_machine_is_named() -> None:
    cap = process_cap(machine(2, online=8), {})
    assert cap == Cap(2, "the affinity allows 2 of the 8 CPUs that are online")


@pytest.mark.parametrize(
    ("quota", "threads", "worth"),
    [(7.65, 7, "7.65"), (3, 3, "3"), (1.5, 1, "1.5"), (0.25, 1, "0.25")],
)
def test_a_quota_is_rounded_down_but_not_to_zero_and_its_file_is_named(
    quota: float, threads: int, worth: str
) -> None:
    cap = process_cap(machine(8, quota=quota), {})
    assert cap.threads == threads
    assert cap.reason == (
        f"the cgroup quota in {QUOTA_FILE} is worth {worth} of the 8 CPUs that the affinity allows"
    )


@pytest.mark.parametrize("quota", [4, 5.5, 64])
def test_a_quota_that_leaves_every_cpu_usable_does_not_decide(quota: float) -> None:
    cap = process_cap(machine(4, quota=quota), {})
    assert cap == process_cap(machine(4), {})


@pytest.mark.parametrize(
    ("text", "threads", "effect"),
    [
        ("2", 2, "lowers the cap below"),
        ("8", 8, "keeps the cap at"),
        ("32", 32, "raises the cap above"),
        (" 32\n", 32, "raises the cap above"),
    ],
)
def test_the_variable_decides_in_both_directions(text: str, threads: int, effect: str) -> None:
    cap = process_cap(machine(8), {"AIOKTASK_MAX_THREADS": text})
    assert cap.threads == threads
    assert cap.reason == (
        f"AIOKTASK_MAX_THREADS={threads} {effect} the 8 that the machine gives: "
        "the affinity allows every CPU that is online (8)"
    )


def test_the_variable_goes_above_a_quota_and_the_reason_still_names_the_quota() -> None:
    cap = process_cap(machine(8, quota=2), {"AIOKTASK_MAX_THREADS": "6"})
    assert cap.threads == 6
    assert "raises the cap above the 2 " in cap.reason
    assert str(QUOTA_FILE) in cap.reason


def test_an_empty_variable_counts_as_not_set() -> None:
    assert process_cap(machine(8), {"AIOKTASK_MAX_THREADS": ""}) == process_cap(machine(8), {})


@pytest.mark.parametrize("text", ["abc", "0", "-1", "1.5", "0x4", " ", "4 5", "9" * 5000])
def test_a_variable_that_is_no_count_is_refused_by_name_and_value(text: str) -> None:
    with pytest.raises(ValueError, match="AIOKTASK_MAX_THREADS") as refused:
        process_cap(machine(8), {"AIOKTASK_MAX_THREADS": text})
    assert str(refused.value) == (
        f"AIOKTASK_MAX_THREADS must be an integer of at least 1, got {text!r}"
    )


@pytest.mark.parametrize("variable", ["2", "64", "", "abc"])
def test_a_call_goes_before_the_variable(variable: str) -> None:
    cap = process_cap(machine(8), {"AIOKTASK_MAX_THREADS": variable}, override=16)
    assert cap.threads == 16
    assert cap.reason.startswith("set_max_threads(16) raises the cap above the 8 ")
    assert "AIOKTASK_MAX_THREADS" not in cap.reason


@given(
    cpus=st.integers(1, 64),
    quota=st.none() | st.floats(0.001, 128),
    variable=st.none() | st.integers(1, 200),
    override=st.none() | st.integers(1, 200),
)
def test_the_user_decides_else_the_machine_does(
    cpus: int, quota: float | None, variable: int | None, override: int | None
) -> None:
    topology = machine(cpus, quota=quota)
    environ = {} if variable is None else {"AIOKTASK_MAX_THREADS": str(variable)}
    cap = process_cap(topology, environ, override)
    assert cap.threads == (override or variable or topology.cpu_limit)
    assert cap.threads >= 1
