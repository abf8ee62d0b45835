# SPDX-License-Identifier: MIT
# The passes of a run over its range, in turns that the test takes: the work, then its undo, and
# what is let go of when both are over.

from __future__ import annotations

import gc
import weakref
from contextvars import copy_context
from typing import Any

import pytest

from aioktask import Job
from aioktask.engine.events import EventKind
from aioktask.engine.learning.pacing import LearnedPacing
from aioktask.engine.learning.scaling import Scaling
from aioktask.engine.learning.stretch import MOST_CHUNKS
from aioktask.engine.ranges.undo import merge
from aioktask.engine.state.callers import caller_walked
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.ending import cancel, committed
from aioktask.engine.state.run import OVER, Run
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.sweep import MAIN_THREAD_FACTOR, NOTHING, undo_sweep
from aioktask.engine.state.workers import Caller, Helper
from tests.engine.state.turns import a_run, a_state, admit, idle_helper, outbox_of, stint_of

MILLISECOND = 1_000_000


def work(start: int, stop: int) -> None: ...


def undo(start: int, stop: int) -> None: ...


def learning(state: State, **how: Any) -> tuple[Run, LearnedPacing]:
    """A run that learns its chunk size and the number of its threads."""
    run = admit(state, a_run(Job(work, 1 << 30, undo=undo, remember=False, **how)))
    pacing = run.sweep.pacing
    assert isinstance(pacing, LearnedPacing)
    return run, pacing


def walk(state: State, stint: Stint, ns: int) -> None:
    """The stint's thread walks its whole stretch in so long, and goes on if it may."""
    stint.generation = state.signals.generation
    stint.walked_at = stint.claimed_at
    now = stint.claimed_at + ns
    stint.slice_end = now + MILLISECOND
    if not state.walked(stint, stint.stretch_stop, now):
        state.reconsider(stint, now)


def walked(state: State) -> tuple[Helper, Run, LearnedPacing]:
    """A helper that has walked some stretches of a run that learns, and the run."""
    helper = idle_helper(state)
    run, pacing = learning(state, min_chunk=4)
    for _ in range(20):
        walk(state, stint_of(helper), MILLISECOND)
    return helper, run, pacing


def test_an_undo_is_a_sweep_of_its_own_that_begins_with_one_chunk_and_learns_nothing() -> None:
    state = a_state(2)
    helper, run, pacing = walked(state)
    done = run.done_units
    stint = stint_of(helper)
    first = run.sweep
    learned = list(pacing.sizes.curve()), pacing.sizes.rate, pacing.sizes.chunk
    assert run.cancel()
    cancel(state, run)
    state.raised(stint, RuntimeError("late"), stint.claimed_at + 1)
    state.reconsider(stint, stint.claimed_at + 1)
    assert run.undoing
    assert run.sweep is not first
    assert run.sweep.fn is undo
    assert run.sweep.pacing.scaling is None
    stint = stint_of(helper)
    chunk = run.sweep.claims.chunk
    assert stint.stretch_stop - stint.stretch_start <= chunk
    assert chunk % 4 == 0
    undone = 0
    while not run.over:
        undone += stint.stretch_stop - stint.stretch_start
        assert undone <= done
        walk(state, stint, MILLISECOND)
    assert undone == done == run.done_units
    assert (list(pacing.sizes.curve()), pacing.sizes.rate, pacing.sizes.chunk) == learned


def test_an_undo_gets_no_more_threads_than_the_work_gained_from() -> None:
    state = a_state(4)
    helper = idle_helper(state)
    run, pacing = learning(state)
    assert run.entry.limit == 4
    for _ in range(5):
        walk(state, stint_of(helper), MILLISECOND)
    assert pacing.scaling is not None
    pacing.scaling.level = 2
    walk(state, stint_of(helper), MILLISECOND)
    assert run.entry.limit == run.thread_limit == 2
    assert run.cancel()
    cancel(state, run)
    walk(state, stint_of(helper), MILLISECOND)
    assert run.undoing
    walk(state, stint_of(helper), MILLISECOND)
    assert run.entry.limit == run.thread_limit == 2


def test_the_main_thread_gets_longer_stretches() -> None:
    longest = []
    for main in (False, True):
        state = a_state(2)
        caller = Caller(0, main=main)
        run = admit(state, a_run(Job(work, 10**6, chunk=1)), caller, caller)
        while run.sweep.claims.left > 500_000:
            stint = stint_of(caller)
            stint.walked_at = stint.claimed_at
            longest.append(stint.stretch_stop - stint.stretch_start)
            now = stint.claimed_at + 10
            stint.slice_end, stint.generation = now + MILLISECOND, state.signals.generation
            caller_walked(state, run, stint, stint.stretch_stop, now)
        assert longest[-1] == MOST_CHUNKS * (MAIN_THREAD_FACTOR if main else 1)


@pytest.mark.parametrize("ends", ["success", "undone", "broken"])
def test_a_stint_of_a_run_that_is_over_keeps_nothing_of_its_job(ends: str) -> None:
    """Its helper may look at it once more, after the waiter was woken."""

    class Work:
        def __call__(self, start: int, stop: int) -> None: ...

    def begin() -> tuple[Run, list[weakref.ref[Any]], Stint]:
        function, reverse = Work(), Work()
        kept = [weakref.ref(function), weakref.ref(reverse)]
        run = admit(state, a_run(Job(function, 100, chunk=1, undo=reverse)))
        return run, kept, stint_of(helper)

    state = a_state(1)
    helper = idle_helper(state)
    run, kept, stint = begin()
    walk(state, stint, 10)
    if ends == "undone":
        assert run.cancel()
        cancel(state, run)
    elif ends == "broken":
        run.break_down(RuntimeError("a turn failed"))
        del state.serving[stint]
        state.end(run)
    while not run.over:
        walk(state, stint, 10)
    assert run.sweep is NOTHING
    outbox_of(state)
    run.error = run.verdict = run.failure = None
    del run
    gc.collect()
    assert [each() for each in kept] == [None, None]
    assert stint.run is OVER
    stint.read_clocks(state.signals, 0)
    stint.check_cancelled()
    assert stint.walk(state.signals) == stint.stretch_stop


def test_of_an_undo_in_which_the_engine_failed_it_is_not_told_that_it_is_through() -> None:
    state = a_state(1)
    helper = idle_helper(state)
    run = admit(state, a_run(Job(work, 100, chunk=1, undo=undo)))
    walk(state, stint_of(helper), 10)
    stint = stint_of(helper)
    state.raised(stint, OSError(), stint.claimed_at + 1)
    state.reconsider(stint, stint.claimed_at + 1)
    assert run.undoing
    run.break_down(RuntimeError("a turn failed"))
    assert run.over
    assert not run.undoing
    assert run.failure is not None
    assert run.failure.unknown == (range(100),)
    assert EventKind.UNDONE not in [event.kind for event in run.news]


@pytest.mark.parametrize("cancelled", [False, True])
def test_what_was_learned_is_kept_of_a_run_that_was_committed_and_of_no_other(
    cancelled: bool,
) -> None:
    state = a_state(1)
    helper = idle_helper(state)
    job = Job(work, 1000, undo=undo)
    run = admit(state, Run(job, state.root, nice=0, context=copy_context(), owned=True))
    while not run.settled:
        walk(state, stint_of(helper), 1000)
    if cancelled:
        assert run.cancel()
        cancel(state, run)
        while not run.over:
            walk(state, stint_of(helper), 1000)
    else:
        assert run.commit()
        committed(state, run)
    assert run.over
    assert len(state.lessons) == (0 if cancelled else 1)


class Heard(Scaling):
    """Keeps what it was told of threads that waited."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.told: list[tuple[int, ...]] = []

    def served(self, *figures: int) -> None:
        self.told.append(figures)


def test_what_a_thread_waited_for_is_what_is_neither_its_work_nor_a_wait_for_a_cpu() -> None:
    state = a_state(2)
    helper = idle_helper(state)
    run, pacing = learning(state)
    scaling = pacing.scaling = Heard(2)
    stint = stint_of(helper)
    stint.look_at = 0
    for busy, cpu, system, delay in ((100, 50, 10, 20), (1000, 200, 30, 320)):
        stint.busy, stint.cpu, stint.kernel_now = busy, cpu, (system, delay)
        run.sweep.compare_clocks(stint, 2)
        assert stint.kernel_now is None
        assert stint.look_at == 2 * busy
    assert scaling.told == [(2, 900, 900 - 150 - 300, 150, 20)]
    stint.busy, stint.kernel_now = 1999, (40, 400)
    run.sweep.compare_clocks(stint, 2)
    assert len(scaling.told) == 1


def test_a_thread_goes_through_an_undo_in_no_steps_of_the_work() -> None:
    """Also where memory was short as the run went on from one to the other."""
    state = a_state(1)
    helper, run, _ = walked(state)
    stint = stint_of(helper)
    of_the_work = stint.stepper
    done = (range(3, 1_000), range(1_000_001, 1_000_007))
    sweep = undo_sweep(run.job, undo, done, 1, run.sweep.pacing.for_undo())
    taken = []
    while sweep.claims.left:
        sweep.claim(stint, 1, 1, 0)
        assert stint.stepper is not of_the_work
        assert stint.stretch_start < stint.first_chunk_stop <= stint.stretch_stop
        taken.append(range(stint.stretch_start, stint.stretch_stop))
    assert merge(taken) == done
