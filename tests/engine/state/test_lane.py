# SPDX-License-Identifier: MIT
# The lane: a turn that comes at any moment finds what it would find without it.
#
# Two states get the same commands in the same order, the lane being open between turns in both. In
# one of them jobs that may pass the lane do, up to the moment at which their helper has begun the
# chunk; in the other a turn takes them in. Then everything is compared that a turn could look at.

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioktask import Job
from aioktask.engine.events import EventKind
from aioktask.engine.state import ending, lane_turns, one_chunk
from aioktask.engine.state.admission import admit
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.ending import cancel_group
from aioktask.engine.state.group import RunGroup
from aioktask.engine.state.lane import MOST_UNUSED
from aioktask.engine.state.lane_turns import (
    close_lane,
    leave_lane,
    settle_lane,
    struck_in_lane,
)
from aioktask.engine.state.recovery import rebuild
from aioktask.engine.state.run import Run
from aioktask.engine.state.workers import Helper, ThreadWaiter
from tests.engine.state.test_short import _STEPS, World, _nothing, _take, told_in
from tests.engine.state.turns import a_state, idle_helper, outbox_of
from tests.support.meanwhile import Scene, play_at_each_bytecode


def _close(state: State, now: int = 0) -> None:
    """The beginning of a turn."""
    if state.lane.open:
        close_lane(state, now)
        for helper in state.lane.members:
            leave_lane(state, helper, now)
        state.lane.former += state.lane.members
        state.lane.members.clear()


class LaneWorld(World):
    """A world whose lane is open between turns.

    Attributes:
        passes: Whether jobs pass the lane, if they may.
        passed: How many did.
    """

    def __init__(self, passes: bool, cap: int, nices: tuple[int, int]) -> None:
        super().__init__(True, cap, nices)
        self.passes = passes
        self.passed = 0
        self.inbox: deque[tuple[Any, ...]] = deque()
        self.open()

    def open(self) -> None:
        self.state.lane.expect(0)
        settle_lane(self.state, self.inbox)
        assert not self.inbox
        outbox_of(self.state)  # whom it wakes is another test's

    def close(self) -> None:
        _close(self.state, self.now)

    def turn(self, helper: int | None, what: Callable[[], object]) -> None:
        self.close()
        super().turn(helper, what)
        for each in self.helpers:
            each.called = False
        self.open()

    def submit(
        self,
        helper: int | None,
        job: Job[Any],
        waits: int | None,
        grouped: bool,
        how: str = "plain",
    ) -> None:
        lane, state = self.state.lane, self.state
        group = self.group if grouped else state.root
        waiter = None if waits is None else ThreadWaiter(waits)
        run = Run(job, group, nice=job.nice, context=copy_context(), owned=waits is not None)
        run.heard = how == "heard"
        takes = waiter is not None and lane.takes(run, group, waiter)
        if not takes or how not in ("plain", "heard") or not lane.members:
            super().submit(helper, job, waits, grouped, how)
            return
        self.passed += 1
        member = lane.members[0]
        if not self.passes:
            super().submit(self.helpers.index(member), job, waits, grouped, how)
            return
        self.now += 1_000
        run.submitted_at = self.now - 1_000
        self.runs.append(run)
        self.waiters.append(waiter)
        run.lane_waiter = waiter
        lane.used = True
        member.express = run
        assert run.decide_entrance(member) is member
        stint = run.stint_of(member)
        one_chunk.enter(run, stint, run.only_chunk, self.now)
        assert run.may_start()
        self.close()
        member.express = None
        told = told_in(self.state.out)
        self.state.out.events.clear()
        self.told.append(("woken: []", "parkings: []", "starts: 0", told))
        self.open()


@given(st.sampled_from([1, 2, 2, 3]), st.sampled_from([(1, 1), (1, 1), (1, 3), (0, 1)]), _STEPS)
@settings(max_examples=max(settings().max_examples, 300), deadline=None)
def test_a_job_that_passes_the_lane_is_found_as_one_that_was_taken_in(
    cap: int, nices: tuple[int, int], steps: list[tuple[Any, ...]]
) -> None:
    worlds = [LaneWorld(passes, cap, nices) for passes in (True, False)]
    for step in [("submit", 0, {"size": 1, "chunk": 1}, 0, False), *steps]:
        for world in worlds:
            _take(world, step)
            world.close()
        quick, slow = (world.dump() for world in worlds)
        for what, found in quick.items():
            assert found == slow[what], (what, step)
        for world in worlds:
            world.open()
    assert worlds[0].passed


def _opened(cap: int = 2, nices: tuple[int, ...] = (1, 1)) -> tuple[Any, list[Helper]]:
    """A state whose lane is open, and its helpers."""
    state = a_state(cap)
    helpers = [idle_helper(state, nice) for nice in nices]
    state.lane.expect(0)
    settle_lane(state, deque())
    return state, helpers


def test_only_helpers_at_the_nice_of_its_jobs_are_members() -> None:
    state, helpers = _opened(nices=(1, 3, 0))
    assert state.lane.members == helpers[:1]
    assert not state.lane.full
    assert list(state.idle) == helpers[1:]


def test_there_are_no_more_members_than_the_cap_leaves_room_for() -> None:
    state, helpers = _opened(cap=1)
    assert state.lane.members == helpers[:1]
    assert state.lane.full


@pytest.mark.parametrize("heard", [False, True])
@pytest.mark.parametrize("undo", [None, lambda start, stop: None])
def test_of_jobs_with_an_undo_only_those_pass_that_nobody_hears_of(
    heard: bool, undo: Callable[[int, int], None] | None
) -> None:
    state, _ = _opened()
    job = Job(_nothing, 1, chunk=1, undo=undo)
    run = Run(job, state.root, nice=0, context=copy_context(), owned=True)
    run.heard = heard
    assert state.lane.takes(run, state.root, ThreadWaiter(0)) == (undo is None or not heard)


def test_a_job_that_passes_the_lane_tells_once_what_all_others_tell() -> None:
    state, helpers = _opened()
    run = _claimed(state, helpers[0], Job(_nothing, 3, chunk=3))
    run.heard = True
    assert one_chunk.end(run, run.stints[helpers[0]], 2, 1, 2, state.past)
    told = [event.kind for event in run.news]
    assert told == [EventKind.SUBMITTED, EventKind.STARTED, EventKind.FINISHED]
    struck_in_lane(state, helpers[0], 3)  # an exception came before its helper told it
    assert [event.kind for _, event in outbox_of(state).events] == told
    assert not run.news


@pytest.mark.parametrize(
    ("how", "then"),
    [
        ("it ends well", [EventKind.STARTED, EventKind.FINISHED]),
        ("it fails", [EventKind.STARTED, EventKind.FAILED]),
        ("it is cancelled before", [EventKind.CANCELLED]),
    ],
)
def test_a_job_that_is_adopted_as_its_helper_is_about_to_begin_tells_of_a_start_if_it_does(
    how: str, then: list[EventKind]
) -> None:
    state, helpers = _opened()
    run = Run(Job(_nothing, 1, chunk=1), state.root, nice=0, context=copy_context(), owned=True)
    run.heard = True
    run.lane_waiter = ThreadWaiter(0)
    helpers[0].express = run
    assert run.decide_entrance(helpers[0]) is helpers[0]
    _close(state, 1)
    assert [event.kind for _, event in outbox_of(state).events] == [EventKind.SUBMITTED]
    stint = run.stints[helpers[0]]
    cancelled = how == "it is cancelled before"
    if cancelled:
        assert run.cancel()
        run.cancelled = True
    assert run.may_start() is not cancelled
    if how == "it fails":
        state.raised(stint, ValueError("planted"), 5)
    else:
        state.walked(stint, 0 if cancelled else 1, 5)
    state.leave(stint, 5, began=True)
    assert [event.kind for _, event in outbox_of(state).events] == then


def test_the_lane_stays_closed_while_others_have_something_to_claim() -> None:
    state, _ = _opened()
    _close(state)
    run = Run(Job(_nothing, 10, chunk=1), state.root, nice=0, context=copy_context())
    admit(state, run, None, None, False, False)
    settle_lane(state, deque())
    assert not state.lane.open


def test_jobs_of_a_lane_that_stays_closed_go_first_into_the_inbox_in_their_order() -> None:
    state, _ = _opened()
    runs = [
        Run(Job(_nothing, 1, chunk=1), state.root, nice=0, context=copy_context(), owned=True)
        for _ in range(3)
    ]
    state.lane.waiting += runs
    _close(state)
    state.closing = True
    inbox: deque[tuple[Any, ...]] = deque([("posted", None)])
    settle_lane(state, inbox)
    assert [command[1] for command in inbox] == [*runs, None]
    assert not state.lane.waiting


def test_a_helper_may_take_out_what_it_claimed_while_a_turn_empties_the_lane() -> None:
    """Or the turn, which finds nothing where something was, would recover from that."""

    def begin() -> Scene:
        state, _ = _opened()
        waiting = state.lane.waiting
        runs = [
            Run(Job(_nothing, 1, chunk=1), state.root, nice=0, context=copy_context(), owned=True)
            for _ in range(2)
        ]
        waiting += runs
        _close(state)
        state.closing = True
        inbox: deque[tuple[Any, ...]] = deque()

        def take_out() -> None:
            with contextlib.suppress(ValueError):  # as helpers do
                waiting.remove(runs[0])

        def check() -> None:
            assert not waiting
            assert [command[1] for command in inbox] in (runs, runs[1:])

        return Scene(lambda: settle_lane(state, inbox), take_out, check)

    play_at_each_bytecode(begin, lane_turns)


def test_jobs_that_wait_when_the_lane_opens_wake_its_members() -> None:
    state, helpers = _opened()
    _close(state)
    outbox_of(state)
    run = Run(Job(_nothing, 1, chunk=1), state.root, nice=0, context=copy_context(), owned=True)
    state.lane.waiting.append(run)
    settle_lane(state, deque())
    assert state.lane.open
    assert outbox_of(state).parkings == [helpers[0].parking]


def test_a_lane_through_which_nothing_comes_is_not_opened_for_ever() -> None:
    state, _ = _opened()
    for _ in range(MOST_UNUSED):
        assert state.lane.open
        _close(state)
        settle_lane(state, deque())
    assert not state.lane.open
    assert len(state.idle) == 2


@pytest.mark.parametrize("waiting", [0, 1])
def test_who_leaves_a_coordinator_finds_its_jobs_in_the_lane(waiting: int) -> None:
    state, _ = _opened()
    run = Run(Job(_nothing, 1, chunk=1), state.root, nice=0, context=copy_context(), owned=True)
    state.lane.waiting += [run] * waiting
    _close(state)
    cancel_group(state, None, state.root)
    assert run.cancel_asked == bool(waiting)
    assert not state.lane.waiting


def test_members_of_a_lane_that_stays_closed_are_woken_as_they_are_none_any_more() -> None:
    state, helpers = _opened()
    _close(state)
    outbox_of(state)
    state.closing = True
    state.turner = helpers[0]
    settle_lane(state, deque())
    assert outbox_of(state).parkings == [helpers[1].parking]


def _claimed(state: State, helper: Helper, job: Job[Any], group: RunGroup | None = None) -> Run:
    """A job of the lane that the helper is at."""
    run = Run(job, group or state.root, nice=0, context=copy_context(), owned=True)
    run.lane_waiter = ThreadWaiter(0)
    helper.express = run
    assert run.decide_entrance(helper) is helper
    one_chunk.enter(run, run.stint_of(helper), run.only_chunk, 1)
    assert run.may_start()
    return run


def _undo(start: int, stop: int) -> None:
    """How a job is undone."""


def test_exit_cancels_what_has_settled_in_the_lane() -> None:
    state, helpers = _opened()
    run = _claimed(state, helpers[0], Job(_nothing, 1, chunk=1, undo=_undo))
    assert one_chunk.end(run, run.stints[helpers[0]], 2, 1, 2, state.past)
    state.lane.settled.append(run)
    helpers[0].express = None
    _close(state)
    ending.close(state, None, ThreadWaiter(0))
    assert run.undoing
    assert state.busy


def test_a_job_that_a_helper_has_is_not_refused() -> None:
    state, helpers = _opened()
    run = _claimed(state, helpers[0], Job(_nothing, 1, chunk=1))
    state.closing = True
    admit(state, run, run.lane_waiter, None, False, False)
    assert not run.over
    assert one_chunk.end(run, run.stints[helpers[0]], 2, 1, 2, state.past)


def test_a_chunk_that_ended_in_the_lane_waits_for_nobody() -> None:
    """A task that it started elsewhere may submit on its behalf when it is over already."""
    state, helpers = _opened()
    outer = _claimed(state, helpers[0], Job(_nothing, 1, chunk=1, undo=_undo))
    stint = outer.stints[helpers[0]]
    inner = Run(Job(_nothing, 2, chunk=1), state.root, nice=0, context=copy_context(), parent=stint)
    assert one_chunk.end(outer, stint, 2, 1, 2, state.past)
    helpers[0].express = None
    _close(state)
    admit(state, inner, ThreadWaiter(0), None, False, False)
    assert inner in state.runs
    assert not state.waiting
    rebuild(state)


def test_a_helper_that_was_counted_as_idle_is_not_where_its_job_is_adopted() -> None:
    state, helpers = _opened()
    run = _claimed(state, helpers[0], Job(_nothing, 1, chunk=1))
    state.rest(helpers[0])  # by a rebuild, after an exception
    _close(state)
    assert run in state.runs
    assert helpers[0] not in state.idle


@pytest.mark.parametrize(
    ("cap", "shut", "may"),
    [(None, False, True), (2, False, True), (1, False, False), (None, True, False)],
)
def test_members_ask_once_more_whether_they_may_serve_a_coordinator(
    cap: int | None, shut: bool, may: bool
) -> None:
    state, _ = _opened()
    group = RunGroup(cap)
    group.shut = shut
    assert state.lane.may_serve(group) is may
