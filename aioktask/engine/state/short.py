# SPDX-License-Identifier: MIT
# The short way in of a job the size of a request.
#
# A job of one chunk that comes to an idle helper while nothing else waits needs no queue, no cut
# and no learning. `begin_at_once` leaves the state as the rest of `admission.admit` would, with
# fewer calls, or changes nothing and says so, and the long way follows. So what comes meanwhile (a
# cancel, another limit, an exception in the middle of a turn) finds nothing special about such a
# run, and it ends as any other.
#
# `adopt` and `take_in_settled` make an ordinary run of a job that passes the lane, when a turn
# comes: one with the chunk that its helper is at, or one whose chunk is done and is to be undone.
"""The beginning of jobs of one chunk."""

from __future__ import annotations

from aioktask.engine.scheduling.queue import SLICE_NS
from aioktask.engine.state import one_chunk
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.lending import can_serve_at
from aioktask.engine.state.one_chunk import TURNS
from aioktask.engine.state.run import Run, Wait
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.workers import Helper, Waiter


def adopt(state: State, run: Run, helper: Helper, now: int) -> None:
    """Make an ordinary run of a job of the lane that the helper's thread walks or is about to.

    Nothing is done where the thread is ending the job at this moment.
    """
    if run.over:
        if run.never_starts and run.lane_waiter is not None:  # it was over before it came
            state.out.waiters.append(run.lane_waiter)
        return
    if one_chunk.decide_ender(run, TURNS) is not TURNS:
        return
    stint = run.stint_of(helper)
    if run.lane_waiter is not None:
        run.waiters[run.lane_waiter] = Wait(None, detects=False)
    run.version += 1
    if helper.idle:
        helper.idle = False
        state.idle.remove(helper)
    helper.stint = stint
    _take_in(state, run, run.lane_waiter, stint, now)
    if not stint.live:
        one_chunk.enter(run, stint, run.only_chunk, now)
    run.version += 1
    run.lane_waiter = None  # it is among the waiters
    _tell_of_begin(state, run)


def begin_at_once(state: State, run: Run, waiter: Waiter | None, helper: Helper, now: int) -> bool:
    """Have the idle helper whose turn this is serve a run that was admitted.

    Returns:
        Whether it does; else nothing is changed.
    """
    group, nice, scheduler = run.group, run.nice, state.scheduler
    chunk = run.only_chunk
    if (
        not chunk
        or nice > 0  # it might give way to other processes
        or (waiter is not None and nice > waiter.nice)  # it has a loan
        or run.waiters
        or run.parent_stint is not None
        or group.leavers
        or state.advice is not None
        or not scheduler.has_room(group)
        or not can_serve_at(state, helper, nice)
        or not run.may_start()
    ):
        return False
    stint = run.stint_of(helper)
    if state.runs:
        state.expect_others(now)
    state.idle.remove(helper)
    helper.idle = False
    helper.called = True
    helper.stint = stint
    _take_in(state, run, waiter, stint, now)
    run.version += 1
    one_chunk.enter(run, stint, chunk, now)
    run.version += 1
    _tell_of_begin(state, run)
    return True


def _tell_of_begin(state: State, run: Run) -> None:
    if run.heard:
        one_chunk.tell_of_begin(run, run.threads_planned)
        state.out.tell(run)


def _take_in(state: State, run: Run, waiter: Waiter | None, stint: Stint, now: int) -> None:
    """Add to the state a run whose one chunk the stint's thread has."""
    group = run.group
    one_chunk.begin(run, run.only_chunk, state.most_threads(group))
    state.runs[run] = None
    group.runs[run] = None
    state.scheduler.enter_at_once(run.entry)
    _count_waiter(state, run, waiter)
    state.serving[stint] = None
    stint.slice_end = now + SLICE_NS
    stint.generation = state.signals.generation


def take_in_settled(state: State, run: Run) -> None:
    """Add to the state a run that was done in the lane, and that its owner cancels after all."""
    group = run.group
    one_chunk.begin(run, run.only_chunk, state.most_threads(group))
    if run.report is not None:  # its helper counted nothing else
        run.done_units, run.chunks_done = run.size, 1
        run.last_chunk = run.first_claim + int(run.report.elapsed * 1e9)
    state.runs[run] = None
    group.runs[run] = None
    state.scheduler.add(run.entry)
    _count_waiter(state, run, run.lane_waiter)


def _count_waiter(state: State, run: Run, waiter: Waiter | None) -> None:
    if waiter is not None:
        run.waiters[waiter] = Wait(None, detects=False)
        state.loans.add_first(run.entry, waiter.nice)
