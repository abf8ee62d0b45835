# SPDX-License-Identifier: MIT
# Runs of jobs that declare memory, as turns see them: when it is looked at what is left, what
# begins by it, and who comes next when a thread lets go of some.

from __future__ import annotations

from time import perf_counter_ns

import pytest

from aioktask import Job
from aioktask.engine.machine.available_memory import AvailableMemory, MemoryLimit
from aioktask.engine.state import admission, following
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.ending import cancel
from aioktask.engine.state.recovery import rebuild
from aioktask.engine.state.run import Run
from aioktask.engine.state.workers import Caller
from tests.engine.state.turns import (
    ChunkWaits,
    a_run,
    a_state,
    admit,
    idle_helper,
    outbox_of,
    stint_of,
)


def work(start: int, stop: int) -> None:
    """A function that nobody calls."""


def job(memory: int | None, size: int = 8, **options: int) -> Job[None]:
    return Job(work, size, chunk=1, memory=memory, **options)


def see(state: State, left: int, *, pressed: bool = False) -> None:
    """What the keeper finds is left."""
    found = AvailableMemory((MemoryLimit("memory.max", left, 15),), pressed)
    following.memory_seen(state, None, found, perf_counter_ns())


def threads(*runs: Run) -> list[int]:
    return [run.entry.threads for run in runs]


@pytest.fixture
def state() -> State:
    """One with helpers for whatever comes."""
    made = a_state(8)
    for _ in range(8):
        idle_helper(made)
    return made


def test_nothing_begins_before_it_was_looked_at_which_the_first_run_asks_for(state: State) -> None:
    run = admit(state, a_run(job(10)))
    assert outbox_of(state).looks
    assert threads(run) == [0]
    see(state, 25)
    while state.scheduler.choose() is not None:  # few helpers are woken at once
        state.summon(0)
    assert threads(run) == [2]


def test_where_it_was_looked_at_lately_nobody_asks_again(state: State) -> None:
    see(state, 25)
    run = admit(state, a_run(job(10)))
    assert not outbox_of(state).looks
    assert threads(run)[0] > 0
    admit(state, a_run(job(10)))
    assert not outbox_of(state).looks


def test_what_was_seen_long_ago_is_forgotten_where_no_run_was_there(state: State) -> None:
    see(state, 25)
    state.memory_seen_at -= admission.SEEN_LATELY_NS
    run = admit(state, a_run(job(10)))
    assert outbox_of(state).looks
    assert threads(run) == [0]


def test_a_look_that_failed_lets_one_chunk_begin(state: State) -> None:
    run = admit(state, a_run(job(10)))
    following.memory_seen(state, None, None, 0)
    assert threads(run) == [1]


def test_a_run_that_ends_or_is_cancelled_asks_for_nothing_any_more(state: State) -> None:
    see(state, 5)
    first, second = (admit(state, a_run(job(10))) for _ in range(2))
    assert list(state.memory_runs) == [first, second]
    assert threads(first, second) == [1, 0]
    second.cancel()
    cancel(state, second)
    assert list(state.memory_runs) == [first]
    [helper] = [each for each in state.helpers if each.stint is not None]
    stint = stint_of(helper)
    first.cancel()
    cancel(state, first)
    state.walked(stint, stint.stretch_start + 1, 1)
    state.reconsider(stint, 1)
    assert not state.memory_runs
    assert (state.scheduler.memory.held, state.scheduler.memory.chunks) == (0, 0)


def test_the_calling_thread_that_waits_for_room_comes_when_there_is_some() -> None:
    state = a_state(8)
    see(state, 5)
    first, second = Caller(0), Caller(0)
    one = admit(state, a_run(job(10)), first, first)
    two = admit(state, a_run(job(10)), second, second)
    assert threads(one, two) == [1, 0]
    stint = stint_of(first)
    now = stint.entered_at + 20_000_000  # its slice is used up
    state.walked(stint, stint.stretch_start + 1, now)
    state.reconsider(stint, now)
    assert threads(one, two) == [0, 1]
    assert second.serving is not None


def test_a_chunk_that_waits_for_a_run_which_wants_memory_makes_room_for_it(state: State) -> None:
    see(state, 10)
    outer = admit(state, a_run(job(10)))
    inner = admit(state, a_run(job(10)))
    assert threads(outer, inner) == [1, 0]
    waits = ChunkWaits(state, outer, inner)
    assert threads(outer, inner) == [1, 0], "the chunk that waits is none that holds memory"
    waits.end()
    [helper] = [each for each in state.helpers if each.stint is not None]
    holder = stint_of(helper)
    state.waiting[holder] = 1
    state.scheduler.owe(inner.entry, 1)
    state.count_waiting_for_memory()
    state.summon(0)
    assert threads(outer, inner) == [1, 1]


def test_all_of_it_is_counted_anew_after_an_exception(state: State) -> None:
    see(state, 25)
    runs = [admit(state, a_run(job(10))), admit(state, a_run(job(4)))]
    memory = state.scheduler.memory
    before = (memory.held, memory.chunks, memory.waiting, list(state.memory_runs))
    memory.held = memory.chunks = memory.waiting = 77
    state.memory_runs = {}
    rebuild(state)
    assert (memory.held, memory.chunks, memory.waiting, list(state.memory_runs)) == before
    assert list(state.memory_runs) == runs
