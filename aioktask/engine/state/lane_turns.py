# SPDX-License-Identifier: MIT
# What turns do with the lane, which is open between turns only.
#
# A turn that finds the lane open closes it first, so that the jobs its members are at become
# ordinary runs. At its end it opens the lane again, or has the jobs that wait there taken in by
# `admit`. Why no job gets lost or is served twice meanwhile, whatever members do, stands in `lane`.
"""Turns that open and close the lane."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any

from aioktask.engine.priority import thread_nice
from aioktask.engine.state.admission import admit
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.one_chunk import end_struck
from aioktask.engine.state.run import ADMITTED, Run
from aioktask.engine.state.short import adopt
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.waiting import add_waiter
from aioktask.engine.state.workers import Helper, Waiter


def close_lane(state: State, now: int) -> None:
    """At the beginning of a turn: close the lane; each of its members is to `leave_lane` then."""
    if state.lane.used and state.runs:
        state.expect_others(now)
    state.lane.close()


def leave_lane(state: State, helper: Helper, now: int) -> None:
    """Make an ordinary run of what a member of the lane is at; may be called again."""
    run = helper.express
    found = None if run is None or run.begun else run.decide_entrance(ADMITTED)
    if run is not None and found is helper:
        adopt(state, run, helper, now)
    if helper.stint is None:
        state.rest(helper)
    if run is not None and found is ADMITTED:
        _admit_from_lane(state, run)


def adopt_late(state: State, helper: Helper, now: int) -> None:
    """Make an ordinary run of what the helper took out of the lane, unless it is one."""
    run = helper.express
    state.out.dropped.append(run)  # where a snapshot finds it until it is an ordinary run
    helper.express = None
    if run is None or run.begun:
        return
    if run.decide_entrance(ADMITTED) is helper:
        adopt(state, run, helper, now)


def struck_in_lane(state: State, helper: Helper, now: int) -> None:
    """End a job of the lane if an exception struck its helper as it did so; else adopt the job."""
    run = helper.express
    if run is None or run.begun or run.decide_entrance(ADMITTED) is not helper:
        helper.express = None
        return
    if not end_struck(run, helper, now, state.cap, state.past):
        adopt_late(state, helper, now)
        return
    helper.express = None
    if run.lane_waiter is not None:
        state.out.waiters.append(run.lane_waiter)
    if run.settled:
        state.lane.settled.append(run)
    else:
        state.out.tell(run)


def settle_lane(state: State, inbox: deque[tuple[Any, ...]]) -> None:
    """At the end of a turn: open the lane, or put the jobs that wait there into the inbox.

    Args:
        inbox: Where they go first, since what is in there was posted after them.
    """
    lane = state.lane
    opened = lane.expected and not inbox and _open_lane(state)
    while lane.former:
        helper = lane.former[-1]
        if not helper.in_lane and helper.stint is None and helper is not state.turner:
            state.out.parkings.append(helper.parking)  # it waits as a member, and is none now
        lane.former.pop()
    waiting = lane.waiting
    while not opened:
        try:
            state.out.dropped.append(waiting[-1])  # where a snapshot finds it meanwhile
            run = waiting.pop()
        except IndexError:  # also where a helper has just taken out the last one, which it claimed
            return
        try:
            inbox.appendleft((admit, run, run.lane_waiter, None, False, False))
        except BaseException:
            waiting.append(run)
            raise


def _open_lane(state: State) -> bool:
    """Open the lane for idle helpers, unless some job needs them; whether it is open."""
    lane, scheduler = state.lane, state.scheduler
    if (
        state.closing
        or scheduler.anybody_waits
        or any(stint.run.sweep.claims.left for stint in state.serving)
        or state.several_chunks_wait()
    ):
        return False
    room = scheduler.room
    nice = thread_nice(lane.nice, state.base_nice, gil=state.gil)
    # One whose libraries should be limited anew passes a job that comes by turns before.
    fitting = [
        each
        for each in state.idle
        if each.node is None
        and (each.nice == nice or not state.may_set_nice)
        and each.natives == state.natives
    ][:room]
    full = len(fitting) == room
    if not full and (not fitting or len(lane.waiting) > len(fitting)):  # more may be had
        return False
    for helper in fitting:
        lane.members.append(helper)  # first: what strikes from here on, the next turn closes it
        helper.in_lane = True
        state.idle.remove(helper)
        helper.idle = False
    # Each job that waits has a member of its own, the turner first, who is awake.
    fitting.sort(key=lambda each: each is not state.turner)
    waiting = len(lane.waiting)
    for helper in fitting[:waiting]:
        if helper is not state.turner:
            state.out.parkings.append(helper.parking)
    lane.parked.extend(fitting[waiting:])
    lane.cap = scheduler.cap + scheduler.blocked
    lane.full = full
    lane.open = True
    return True


def admit_waiting(state: State) -> None:
    """Take in the jobs of the lane that no helper has claimed."""
    waiting = state.lane.waiting
    for _ in range(len(waiting)):
        try:
            run = waiting[0]
        except IndexError:  # helpers were quicker
            return
        _admit_from_lane(state, run)


def wait_for_call(
    state: State, run: Run, waiter: Waiter, stint: Stint | None, detects: bool
) -> None:
    """A command: as `waiting.add_waiter`, for a run that may be in the lane.

    Where a helper ends it there at this moment, nothing is counted: the waiter is woken otherwise.
    """
    if run.lane_waiter is not None and not (run.begun or run.over):
        _admit_from_lane(state, run)
    add_waiter(state, run, waiter, stint, detects)


def _admit_from_lane(state: State, run: Run) -> None:
    """Take in a job of the lane that no helper has claimed, as it was posted."""
    admit(state, run, run.lane_waiter, None, False, False)
    with contextlib.suppress(ValueError):  # a helper took it
        state.lane.waiting.remove(run)
