# SPDX-License-Identifier: MIT
# The short way of a job the size of a request: one chunk, at once.
#
# A job of one chunk that comes to an idle helper while nothing else waits needs no queue, no cut
# and no learning; and a run whose only helper has walked the last stretch is over. Both functions
# leave the state as the long way through `State.admit` or `State.walked` would, by a fifth of the
# calls, or change nothing and say so, and the long way follows. So what comes meanwhile (a cancel,
# another limit, an exception in the middle of a turn) finds nothing special about such a run.
"""Jobs of one chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aioktask.engine.ranges.plan import one_chunk
from aioktask.engine.scheduling.queue import OWN, SLICE_NS, Entry
from aioktask.engine.state.run import Run, Wait
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.workers import Helper, Waiter

if TYPE_CHECKING:
    from aioktask.engine.state.dispatch import State


def begin_at_once(state: State, run: Run, waiter: Waiter | None, helper: Helper, now: int) -> bool:
    """Have the idle helper whose turn this is serve a run that was admitted.

    Returns:
        Whether it does; else nothing is changed.
    """
    group, nice, scheduler = run.group, run.nice, state.scheduler
    chunk = one_chunk(run.job)
    if (
        not chunk
        or nice > 0  # it might give way to other processes
        or (waiter is not None and nice > waiter.nice)  # it has a loan
        or run.heard
        or run.waiters
        or run.parent_stint is not None
        or group.leavers
        or state.advice is not None
        or not scheduler.has_room(group)
        or not state.can_serve_at(helper, nice)
        or not run.may_start()
    ):
        return False
    stint = run.stint_of(helper)
    entry = run.entry = Entry(run, group, nice, run.limit)
    state.numbers += 1
    run.begin_whole(
        state.numbers, chunk, state.cap if group.cap is None else min(state.cap, group.cap)
    )
    if state.runs:
        state.expect_others(now)
    state.runs[run] = None
    group.runs[run] = None
    scheduler.enter_at_once(entry)
    if waiter is not None:
        run.waiters[waiter] = Wait(None, detects=False)
        state.loans.add_first(entry, waiter.nice)
    state.idle.remove(helper)
    helper.idle = False
    helper.called = True
    helper.stint = stint
    state.serving[stint] = None
    stint.slice_end = now + SLICE_NS
    stint.generation = state.signals.generation
    run.enter_whole(stint, chunk, now)
    return True


def end_at_once(state: State, stint: Stint, now: int) -> bool:
    """End the work on a run whose only helper has walked its last stretch.

    Returns:
        Whether it has ended, and the helper serves nothing; else nothing is changed.
    """
    run = stint.run
    # A calling thread may count as running without this stint, and has more to be told.
    if not isinstance(stint.thread, Helper) or stint.seat is not OWN or not run.may_end_at_once():
        return False
    del state.serving[stint]
    state.scheduler.leave_at_once(run.entry, now - stint.entered_at)
    run.end_whole(stint, now)
    if run.settled:
        state.out.waiters += run.waiters
    else:
        state.end(run)
    return True
