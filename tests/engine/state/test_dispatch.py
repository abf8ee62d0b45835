# SPDX-License-Identifier: MIT
# The state without threads: who is given work, who is woken, who is told.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


from aioktask import Job
from aioktask.engine.learning import pacing
from aioktask.engine.learning.sizing import Sizes
from aioktask.engine.state import admission, dispatch
from aioktask.engine.state.callers import enter_caller
from aioktask.engine.state.dispatch import CROWDED_NS
from aioktask.engine.state.ending import cancel
from aioktask.engine.state.waiting import add_waiter
from aioktask.engine.state.workers import Caller
from tests.engine.state.turns import a_run, a_state, admit, idle_helper, outbox_of, stint_of
from tests.support.meanwhile import Scene, play_at_each_bytecode


class Heard(Sizes):
    """Sizes that keep what they were told of other jobs."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.alone: list[bool] = []

    def be_alone(self, alone: bool) -> None:
        self.alone.append(alone)
        super().be_alone(alone)


def test_an_idle_helper_is_woken_with_its_first_stretch_claimed() -> None:
    state = a_state(2)
    helper = idle_helper(state)
    outbox_of(state)
    admit(state, a_run(Job(print, 10, chunk=5, max_threads=1)))
    outbox = outbox_of(state)
    assert outbox.parkings == [helper.parking]
    assert not outbox.starts
    stint = stint_of(helper)
    assert (stint.chunk_start, stint.stretch_stop) == (0, 5)


def test_a_job_is_told_of_another_one_and_for_a_while_after_it_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pacing, "Sizes", Heard)
    state = a_state(1)
    helper = idle_helper(state)
    long = admit(state, a_run(Job(print, 1 << 20, remember=False)))
    stint = stint_of(helper)
    assert isinstance(long.sweep.pacing, pacing.LearnedPacing)
    sizes = long.sweep.pacing.sizes
    assert isinstance(sizes, Heard)
    assert sizes.alone == [True]
    short = admit(state, a_run(Job(print, 1, chunk=1)))
    assert short.cancel()
    cancel(state, short)
    assert short.over
    stint.slice_end = short.submitted_at + 4 * CROWDED_NS
    for later, alone in ((0.5, False), (1.5, True)):
        stint.generation = state.signals.generation
        assert state.walked(stint, stint.stretch_stop, short.submitted_at + int(later * CROWDED_NS))
        assert sizes.alone[-1] is alone


def test_without_idle_helpers_some_are_started_and_no_more_than_wanted() -> None:
    state = a_state(8)
    admit(state, a_run(Job(print, 1)))
    assert len(outbox_of(state).starts) == 1
    admit(state, a_run(Job(print, 100)))
    assert len(outbox_of(state).starts) == 1, "the rest is summoned by those that come"
    assert len(state.starting) == 2


def test_a_calling_thread_that_waits_is_woken_by_work_that_comes_back() -> None:
    state = a_state(2)
    helper = idle_helper(state)
    run = admit(state, a_run(Job(print, 10, chunk=5, max_threads=1)))
    stint = stint_of(helper)
    caller = Caller(0)
    assert not enter_caller(state, run, caller, 0), "the job's limit"
    run.caller = caller
    state.scheduler.cap = 0  # the helper has to leave
    outbox_of(state)
    state.walked(stint, stint.chunk_start, 0)
    assert state.reconsider(stint, 0) is None
    assert caller.parking in outbox_of(state).parkings
    assert stint_of(caller).run is run
    assert stint_of(caller) is caller.serving
    assert run.caller is None


def test_an_idle_helper_may_look_for_chunks_that_wait_while_a_turn_ends_their_run() -> None:
    """It looks without the lock."""

    def begin() -> Scene:
        state = a_state(2)
        helper = idle_helper(state)
        run = admit(state, a_run(Job(print, 10, chunk=1, max_threads=2)))
        stint = stint_of(helper)
        assert state.walked(stint, 1, 1)  # at once, so that it has several the next time

        def end() -> None:
            run.cancel()
            cancel(state, run)
            state.walked(stint, stint.chunk_start, 0)
            state.reconsider(stint, 0)
            assert run.over

        return Scene(state.several_chunks_wait, end)

    play_at_each_bytecode(begin, dispatch)


def test_a_later_error_does_not_take_the_place_of_the_first() -> None:
    state = a_state(2)
    helpers = [idle_helper(state), idle_helper(state)]
    run = admit(state, a_run(Job(print, 10, chunk=5, max_threads=2)))
    errors = [ValueError("first"), ValueError("second")]
    for helper, error in zip(helpers, errors, strict=True):
        stint = stint_of(helper)
        state.raised(stint, error, 0)
        state.reconsider(stint, 0)
    assert run.over
    assert run.verdict is errors[0]


def test_an_undo_runs_at_the_higher_of_the_job_s_and_the_waiter_s_priority() -> None:
    for waiters, expected in (([], 10), ([15], 10), ([-5, 3], -5)):
        state = a_state(1)
        helper = idle_helper(state)
        run = a_run(Job(print, 10, chunk=5, undo=print, max_threads=1, nice=10))
        admit(state, run)
        for nice in waiters:
            add_waiter(state, run, Caller(nice), None, False)
        stint = stint_of(helper)
        state.walked(stint, 5, 0)
        state.raised(stint, ValueError("planted"), 0)
        state.reconsider(stint, 0)
        assert run.undoing
        assert run.entry.nice == expected


def test_who_waits_for_a_run_that_was_cancelled_before_it_came_is_woken() -> None:
    """By a Ctrl-C, say, that strikes just before the run is posted."""
    state = a_state(2)
    run, waiter = a_run(Job(print, 10)), Caller(0)
    assert run.cancel()
    cancel(state, run)
    admission.admit(state, run, waiter, waiter, False, True)
    assert run.over
    assert waiter in outbox_of(state).waiters
