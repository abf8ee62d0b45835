# SPDX-License-Identifier: MIT
# The budget of declared memory, against a machine that is made up: chunks that take what they
# declared bit by bit, and give it back, beside others that take and free what they like.

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aioktask.engine.machine.available_memory import MemoryLimit
from aioktask.engine.scheduling.memory import MemoryBudget, in_units

GIB = 1 << 30


def a_budget(left: int | None = 100, held: int = 0) -> MemoryBudget:
    budget = MemoryBudget()
    look(budget, left)
    if held:
        budget.hold(held, 1)
    return budget


def look(
    budget: MemoryBudget,
    left: int | None,
    *,
    total: int = 1000,
    pressed: bool = False,
    step: int = 0,
) -> None:
    limits = [] if left is None else [MemoryLimit("memory.max", left, total)]
    budget.look(limits, pressed=pressed, step=step)


@dataclass
class Taking:
    """A chunk that runs: what it declared, and what it has taken of that by now."""

    declared: int
    taken: int = 0


@dataclass
class Machine:
    """A machine whose memory chunks and others take."""

    total: int
    others: int = 0
    chunks: list[Taking] = field(default_factory=list)

    @property
    def taken(self) -> int:
        return sum(each.taken for each in self.chunks)

    @property
    def left(self) -> int:
        return self.total - self.others - self.taken


class HonestChunks(RuleBasedStateMachine):
    """Chunks take what they declare at most, at any pace; looks come at any time."""

    others_change = False

    @initialize(total=st.integers(0, 200))
    def begin(self, total: int) -> None:
        self.machine = Machine(total)
        self.budget = MemoryBudget()
        self.look()

    @rule()
    def look(self) -> None:
        held = self.budget.held
        left = self.machine.left
        look(self.budget, left, total=self.machine.total)
        assert self.budget.room is not None
        assert left <= self.budget.room <= left + held

    @rule(declared=st.integers(1, 60))
    def a_chunk_wants_to_begin(self, declared: int) -> None:
        if self.budget.fits(declared):
            self.budget.hold(declared, 1)
            self.machine.chunks.append(Taking(declared))
            if len(self.machine.chunks) > 1 and not self.others_change:
                declared = sum(each.declared for each in self.machine.chunks)
                assert declared <= self.machine.total, "all of them may take all of it at once"

    @precondition(lambda self: hasattr(self, "machine"))
    @rule(total=st.integers(0, 200))
    def the_limit_moves(self, total: int) -> None:
        self.machine.total = total
        self.look()

    @precondition(lambda self: self.machine.chunks)
    @rule(data=st.data(), share=st.floats(0, 1))
    def a_chunk_takes_more(self, data: Any, share: float) -> None:
        chunk = data.draw(st.sampled_from(self.machine.chunks))
        chunk.taken = max(chunk.taken, int(chunk.declared * share))

    @precondition(lambda self: self.machine.chunks)
    @rule(data=st.data())
    def a_chunk_ends(self, data: Any) -> None:
        chunk = data.draw(st.sampled_from(self.machine.chunks))
        self.machine.chunks.remove(chunk)
        self.budget.hold(chunk.declared, -1)

    @invariant()
    def one_always_runs(self) -> None:
        if hasattr(self, "machine") and not self.machine.chunks:
            assert self.budget.fits(10**9)

    @invariant()
    def what_chunks_do_is_not_taken_for_what_others_do(self) -> None:
        if hasattr(self, "machine") and not self.others_change:
            assert self.budget.room == self.machine.total


class BesideOthers(HonestChunks):
    """The same beside others, who take memory and free it."""

    others_change = True

    @precondition(lambda self: hasattr(self, "machine"))
    @rule(others=st.integers(-50, 250))
    def others_take_and_free(self, others: int) -> None:
        self.machine.others = others

    @precondition(lambda self: hasattr(self, "machine"))
    @rule()
    def once_all_chunks_have_ended_all_is_known(self) -> None:
        for chunk in self.machine.chunks:
            self.budget.hold(chunk.declared, -1)
        self.machine.chunks.clear()
        self.look()
        assert self.budget.room == self.machine.left

    @precondition(lambda self: hasattr(self, "machine"))
    @rule()
    def once_all_have_taken_what_they_declared_none_begins_that_has_no_room(self) -> None:
        for chunk in self.machine.chunks:
            chunk.taken = chunk.declared
        self.look()
        if self.machine.chunks:
            assert not self.budget.fits(max(self.machine.left, 0) + 1)


TestHonestChunks = HonestChunks.TestCase
TestBesideOthers = BesideOthers.TestCase
TestHonestChunks.settings = TestBesideOthers.settings = settings(
    stateful_step_count=40, max_examples=100
)


# Pressure.


@given(
    declared=st.integers(1, 50),
    running=st.integers(0, 20),
    looks=st.lists(st.booleans(), max_size=40),
)
def test_pressure_halves_what_runs_and_each_calm_look_gives_one_chunk_more(
    declared: int, running: int, looks: list[bool]
) -> None:
    budget = a_budget(1000)
    budget.hold(declared, running)
    for pressed in looks:
        before, held = budget.limit, budget.held
        assert before is not None
        look(budget, 1000 - held, pressed=pressed, step=declared)
        after = budget.limit
        assert after is not None
        if pressed:
            assert after <= max(held // 2, budget.ceiling or 0)
            assert after <= before
        else:
            assert before <= after <= max(before + declared, 1000)
        while budget.held > after and budget.chunks > 1:  # chunks end, and none begins
            budget.hold(declared, -1)
        while budget.fits(declared) and budget.chunks < running:
            budget.hold(declared, 1)
        assert budget.chunks >= min(running, 1)
    for _ in range(1000 // declared + 1):
        look(budget, 1000 - budget.held, step=declared)
    assert budget.ceiling is None


def test_pressure_counts_once_for_chunks_that_have_not_ended_yet() -> None:
    budget = a_budget(1000)
    budget.hold(10, 8)
    look(budget, 920, pressed=True)
    assert budget.limit == 40
    look(budget, 920, pressed=True)
    assert budget.limit == 40
    budget.hold(10, -4)
    look(budget, 960, pressed=True)
    assert budget.limit == 20


# What is known.


def test_before_the_first_look_nothing_fits_and_after_one_that_failed_one_chunk_does() -> None:
    budget = MemoryBudget()
    assert not budget.fits(1)
    assert not budget.fits(1, owed=True)
    budget.look_failed()
    assert budget.fits(1)
    budget.hold(1, 1)
    assert not budget.fits(1)


def test_a_look_that_failed_changes_nothing_that_is_known() -> None:
    budget = a_budget(30, held=20)
    budget.look_failed()
    assert budget.fits(10)
    assert not budget.fits(11)


def test_without_a_limit_everything_fits() -> None:
    budget = a_budget(None, held=20)
    assert budget.fits(1 << 60)
    assert budget.left is None
    assert budget.reason(1) == ""


def test_of_several_limits_each_has_a_room_of_its_own_and_the_least_one_holds() -> None:
    budget = MemoryBudget()
    for machine, cgroup, room, source in [
        (MemoryLimit("meminfo", 100, 200), None, 100, "meminfo"),
        (MemoryLimit("meminfo", 60, 200), MemoryLimit("memory.max", 50, 70), 50, "memory.max"),
        (MemoryLimit("meminfo", 60, 200), MemoryLimit("memory.max", 50, 90), 70, "memory.max"),
        (MemoryLimit("meminfo", 60, 200), None, 100, "meminfo"),
    ]:
        budget.look([machine] if cgroup is None else [cgroup, machine], pressed=False, step=0)
        assert (budget.room, budget.source) == (room, source)
        budget.held, budget.chunks = 40, 1


def test_a_job_that_chunks_wait_for_gets_one_where_all_that_hold_memory_wait() -> None:
    budget = a_budget(10, held=10)
    assert not budget.fits(5, owed=True)
    budget.waiting = 1
    assert budget.fits(5, owed=True)
    assert not budget.fits(5)


def test_the_reason_says_what_is_left_and_what_a_chunk_takes() -> None:
    budget = a_budget(5 * GIB)
    budget.hold(2 * GIB, 2)
    assert budget.reason(3 * GIB) == "memory: 1 GiB left by memory.max, 3 GiB a chunk"
    look(budget, GIB, pressed=True)
    said = "memory: 0 bytes left while other work waits for memory, 3 GiB a chunk"
    assert budget.reason(3 * GIB) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1 << 10, "1 KiB"), (5 << 39, "2.5 TiB")],
)
def test_bytes_are_told_in_units_that_can_be_read(count: int, said: str) -> None:
    assert in_units(count) == said
