# SPDX-License-Identifier: MIT
# The short way in of a job the size of a request.
#
# A job of one chunk that comes to an idle helper while nothing else waits needs no queue, no cut
# and no learning. `begin_at_once` leaves the state as the rest of `State.admit` would, with fewer
# calls, or changes nothing and says so, and the long way follows. So what comes meanwhile (a
# cancel, another limit, an exception in the middle of a turn) finds nothing special about such a
# run, and it ends as any other.
"""The beginning of jobs of one chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aioktask.engine.ranges.plan import one_chunk
from aioktask.engine.scheduling.queue import SLICE_NS
from aioktask.engine.state.run import Run, Wait
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
    state.numbers += 1
    run.begin_whole(state.numbers, chunk, state.cap_of(group))
    entry = run.entry
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
