# SPDX-License-Identifier: MIT
# Runs whose owners are gone: each is found within a round of looks, which holds no run itself.

from __future__ import annotations

import gc
import weakref
from contextvars import copy_context
from time import perf_counter_ns

import pytest

from aioktask import Job
from aioktask.engine.api.process import current_pool
from aioktask.engine.scheduling.deadlines import Deadlines
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.ending import cancel, committed, leave_group
from aioktask.engine.state.group import Leaver, RunGroup
from aioktask.engine.state.recovery import ATTENDANCE_LOOKS, find_unattended
from aioktask.engine.state.run import SETTLED, SUCCESS, Run
from aioktask.engine.state.terms import Terms
from aioktask.engine.state.workers import ThreadWaiter
from tests.engine.state.turns import a_run, a_state, admit, idle_helper, outbox_of, stint_of


def nothing(start: int, stop: int) -> None: ...


@pytest.mark.parametrize(
    "count", [1, ATTENDANCE_LOOKS - 1, ATTENDANCE_LOOKS, ATTENDANCE_LOOKS + 1, 600]
)
def test_every_run_whose_owner_is_gone_is_ended_in_one_round_of_looks(count: int) -> None:
    state = a_state(1)
    runs = [
        Run(Job(nothing, 10), state.root, nice=0, context=copy_context(), owned=True)
        for _ in range(count)
    ]
    for run in runs:
        admit(state, run)
    for look in range(-(-count // ATTENDANCE_LOOKS)):
        assert not all(run.cancelled for run in runs), f"before look {look}"
        find_unattended(state, None)
    assert all(run.cancelled for run in runs)


@pytest.mark.parametrize("count", [1, ATTENDANCE_LOOKS, ATTENDANCE_LOOKS + 1])
def test_a_look_for_owners_keeps_no_run_that_ends_before_the_next_one(count: int) -> None:
    state = a_state(1)
    runs = [admit(state, a_run(Job(nothing, 10), state.root)) for _ in range(count)]
    find_unattended(state, None)
    there = [weakref.ref(run) for run in runs]
    while runs:
        assert runs[-1].cancel()
        cancel(state, runs[-1])
        assert runs.pop().over
    outbox_of(state)
    gc.collect()
    assert not any(each() for each in there)


def settled_run(state: State, group: RunGroup) -> Run:
    """A run that is all done, whose owner is there and has not taken the result."""
    job = Job(nothing, 10, chunk=10, undo=nothing)
    run = Run(job, group, nice=0, context=copy_context(), owned=True)
    assert run.attended is not None
    assert run.attended.acquire(blocking=False)
    helper = idle_helper(state)
    admit(state, run)
    stint = stint_of(helper)
    state.walked(stint, stint.stretch_stop, perf_counter_ns())
    state.reconsider(stint, perf_counter_ns())
    assert run.settled
    return run


def on_terms(run: Run) -> Deadlines[tuple[object, ...]]:
    """Have the run have an hour."""
    deadlines: Deadlines[tuple[object, ...]] = Deadlines()
    run.terms = Terms(run.group.gate, deadlines, None, None, 3600.0)
    run.terms.refuse_or_enter(run, 1, nested=False)
    deadlines.add(run.number, (), run.submitted_at + 10**12)
    return deadlines


def test_who_leaves_in_the_middle_of_an_owner_s_commit_does_not_wait_for_the_rest_of_it() -> None:
    state, group = a_state(1), RunGroup()
    run = settled_run(state, group)
    leaver = Leaver(ThreadWaiter(0), None, detects=False)
    leave_group(state, None, group, leaver, False)
    find_unattended(state, None)
    assert not leaver.gone  # the owner may still cancel
    assert run.decide(SUCCESS) is SUCCESS  # the first step of a commit
    find_unattended(state, None)
    assert leaver.gone
    assert run.over
    committed(state, run)  # the owner goes on, and does no harm
    assert state.scheduler.running == 0


def test_an_owner_that_is_struck_in_its_commit_leaves_no_deadline_and_is_counted_no_more() -> None:
    state, group = a_state(1), RunGroup()
    run = settled_run(state, group)
    deadlines = on_terms(run)
    assert run.decide(SUCCESS) is SUCCESS
    assert run.attended is not None
    run.attended.release()  # struck before the terms ended
    find_unattended(state, None)
    assert run.over
    assert not deadlines
    assert group.gate.queued(0) == 0


def test_the_same_of_a_run_that_settled_in_the_lane() -> None:
    state = a_state(1)
    run = Run(Job(nothing, 1, undo=nothing), state.root, nice=0, context=copy_context(), owned=True)
    deadlines = on_terms(run)
    run.phase = SETTLED
    state.lane.settled.append(run)
    assert run.decide(SUCCESS) is SUCCESS
    find_unattended(state, None)
    assert not state.lane.settled
    assert not deadlines


def test_what_is_due_later_holds_no_job() -> None:
    pool = current_pool()

    def done(start: int, stop: int) -> None: ...

    there = weakref.ref(done)
    job = Job(done, 1)
    run = Run(job, pool.state.root, nice=0, context=copy_context())
    run.terms = Terms(run.group.gate, pool.deadlines, None, None, 3600.0)
    pool._take_in_on_terms(run, run.terms, nested=False)
    number, gate = run.number, run.group.gate
    try:
        del run, job, done
        gc.collect()
        assert there() is None
    finally:
        pool.deadlines.drop(number)
        gate.end(number, perf_counter_ns())
