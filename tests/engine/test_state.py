# SPDX-License-Identifier: MIT
# The state without threads: who is given work, who is woken, who is told.

from __future__ import annotations

from contextvars import copy_context

from aioktask.engine.helpers import Caller, Helper

from aioktask import Job
from aioktask.engine.plan import split
from aioktask.engine.sizing import Sizes
from aioktask.engine.state.dispatch import CROWDED_NS, Outbox, State
from aioktask.engine.state.run import Run


def a_run(state: State, job: Job[None], sizes: Sizes | None = None) -> Run:
    return Run(
        job,
        split(job, 4),
        group=state.root,
        nice=0,
        context=copy_context(),
        loop=None,
        parent=None,
        hold=False,
        sizes=sizes,
    )


class Heard(Sizes):
    """Sizes that keep what they were told of other jobs."""

    def __init__(self, size: int) -> None:
        super().__init__(size, 1, 2, None)
        self.alone: list[bool] = []

    def be_alone(self, alone: bool) -> None:
        self.alone.append(alone)
        super().be_alone(alone)


def idle_helper(state: State) -> Helper:
    helper = Helper()
    state.helpers[helper] = None
    state.find_work(helper, 0, Outbox())
    return helper


def test_an_idle_helper_is_woken_with_its_first_stretch_claimed() -> None:
    state, outbox = State(cap=2), Outbox()
    helper = idle_helper(state)
    run = a_run(state, Job(print, 10, chunk=5, max_threads=1))
    state.submit(run, None, nested=False, outbox=outbox)
    assert outbox.parkings == [helper.parking]
    assert outbox.starts == 0
    assert helper.frame is not None
    assert (helper.frame.start, helper.frame.stop) == (0, 5)


def test_a_job_is_told_of_another_one_and_for_a_while_after_it_is_gone() -> None:
    state, outbox = State(cap=1), Outbox()
    helper = idle_helper(state)
    sizes = Heard(1 << 20)
    long = a_run(state, Job(print, 1 << 20), sizes)
    state.submit(long, None, nested=False, outbox=outbox)
    frame = helper.frame
    assert frame is not None
    assert sizes.alone == [True]
    short = a_run(state, Job(print, 1))
    state.submit(short, None, nested=False, outbox=outbox)
    state.cancel(short, outbox)
    assert short.over
    frame.slice_end = short.submitted_at + 4 * CROWDED_NS
    for later, alone in ((0.5, False), (1.5, True)):
        frame.generation = state.signals.generation
        state.walked(frame, frame.stop, short.submitted_at + int(later * CROWDED_NS))
        assert sizes.alone[-1] is alone


def test_without_idle_helpers_some_are_started_and_no_more_than_wanted() -> None:
    state, outbox = State(cap=8), Outbox()
    state.submit(a_run(state, Job(print, 1)), None, nested=False, outbox=outbox)
    assert outbox.starts == 1
    state.submit(a_run(state, Job(print, 100)), None, nested=False, outbox=outbox)
    assert outbox.starts == 2  # the rest is summoned by those that come


def test_a_calling_thread_that_waits_is_woken_by_work_that_comes_back() -> None:
    state, outbox = State(cap=2), Outbox()
    helper = idle_helper(state)
    run = a_run(state, Job(print, 10, chunk=5, max_threads=1))
    state.submit(run, None, nested=False, outbox=outbox)
    frame = helper.frame
    assert frame is not None
    caller = Caller(0)
    assert not state.enter_caller(run, caller, 0)  # the job's limit
    run.caller = caller
    state.scheduler.cap = 0  # the helper has to leave
    later = Outbox()
    state.walked(frame, frame.start, 0)
    assert state.reconsider(frame, 0, later) is None
    assert caller.parking in later.parkings
    assert state.enter_caller(run, caller, 0)


def test_a_later_error_does_not_take_the_place_of_the_first() -> None:
    state, outbox = State(cap=2), Outbox()
    helpers = [idle_helper(state), idle_helper(state)]
    run = a_run(state, Job(print, 10, chunk=5, max_threads=2))
    state.submit(run, None, nested=False, outbox=outbox)
    errors = [ValueError("first"), ValueError("second")]
    for helper, error in zip(helpers, errors, strict=True):
        frame = helper.frame
        assert frame is not None
        state.raised(frame, error, 0)
        state.reconsider(frame, 0, outbox)
    assert run.over
    assert run.verdict is errors[0]


def test_an_undo_runs_at_the_higher_of_the_job_s_and_the_waiter_s_priority() -> None:
    for waiters, expected in (([], 10), ([15], 10), ([-5, 3], -5)):
        state, outbox = State(cap=1), Outbox()
        helper = idle_helper(state)
        run = a_run(state, Job(print, 10, chunk=5, undo=print, max_threads=1))
        run.entry.nice = 10
        run.waiters += [Caller(nice) for nice in waiters]
        state.submit(run, None, nested=False, outbox=outbox)
        frame = helper.frame
        assert frame is not None
        state.walked(frame, 5, 0)
        state.raised(frame, ValueError("planted"), 0)
        state.reconsider(frame, 0, outbox)
        assert run.undoing
        assert run.entry.nice == expected
