# SPDX-License-Identifier: MIT
# Calls that block make room for helpers, up to the ceiling, as long as they are served.

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask import Job
from aioktask.engine.api.call import job_of_call
from aioktask.engine.priority import thread_nice
from aioktask.engine.scheduling.caps import Cap
from aioktask.engine.state.blocking import calls_served, find_blocked
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.following import configure
from aioktask.engine.state.group import RunGroup
from aioktask.engine.state.lane_turns import settle_lane
from aioktask.engine.state.recovery import rebuild
from aioktask.engine.state.workers import Helper
from aioktask.engine.tunables import Tunables
from tests.engine.state.turns import a_run, a_state, admit, idle_helper, stint_of


def nothing(start: int, stop: int) -> None: ...


def served_call(state: State, number: int) -> Helper:
    """A helper, of a number of its own, that is at a call."""
    run = admit(state, a_run(job_of_call(nothing, 0, f"call {number}")))
    helper = idle_helper(state)
    helper.native = number
    stint = stint_of(helper)
    assert stint.run is run
    stint.entered_at = number  # so that no two are the same
    return helper


def returns(state: State, helper: Helper) -> None:
    stint = stint_of(helper)
    state.walked(stint, stint.stretch_stop, stint.entered_at + 1000)
    state.reconsider(stint, stint.entered_at + 1000)


@given(st.integers(1, 4), st.integers(0, 4), st.data())
def test_each_call_that_blocks_makes_room_until_it_returns(
    cap: int, ceiling: int, data: st.DataObject
) -> None:
    state = a_state(cap, max_blocked=ceiling)
    helpers = [served_call(state, number + 1) for number in range(cap)]
    calls = calls_served(state)
    assert len(calls) == cap
    for _ in range(data.draw(st.integers(1, 4))):
        blocked = data.draw(st.sets(st.sampled_from(calls)))
        find_blocked(state, None, blocked)
        assert state.scheduler.blocked == min(len(blocked), ceiling)
        assert state.scheduler.room == min(len(blocked), ceiling)
    left = {stint_of(helper): helper for helper in helpers}
    for helper in data.draw(st.permutations(helpers)):
        del left[stint_of(helper)]
        returns(state, helper)
        assert set(state.blocking) <= set(left)
        assert state.scheduler.blocked == min(len(state.blocking), ceiling)
    assert state.scheduler.blocked == 0


@given(st.integers(1, 4), st.integers(0, 5), st.integers(0, 5))
def test_another_ceiling_holds_at_once(calls: int, before: int, after: int) -> None:
    state = a_state(calls, max_blocked=before)
    for number in range(calls):
        served_call(state, number + 1)
    find_blocked(state, None, calls_served(state))
    assert state.scheduler.blocked == min(calls, before)
    cap = Cap(calls, "the machine")
    wanted: Any = SimpleNamespace(tunables=Tunables(max_blocked=after), share=None, cap=cap)
    configure(state, None, wanted)
    assert state.scheduler.blocked == min(calls, after)


def test_what_waits_is_given_helpers_as_soon_as_calls_are_found_to_block() -> None:
    state = a_state(2)
    for number in (1, 2):
        served_call(state, number)
    for _ in range(3):
        admit(state, a_run(Job(nothing, 1, chunk=1)))
    idle = idle_helper(state)
    assert idle.stint is None
    find_blocked(state, None, calls_served(state))
    assert idle.stint is not None
    assert [idle_helper(state).stint is None for _ in range(2)] == [False, True]


def test_only_calls_that_are_served_count() -> None:
    state = a_state(4)
    call = served_call(state, 1)
    admit(state, a_run(Job(nothing, 1, chunk=1)))  # a chunk of a range
    idle_helper(state)
    called = served_call(state, 3)
    called.called = True  # it has not begun
    waiting = served_call(state, 4)
    state.waiting[stint_of(waiting)] = 1  # for a run
    assert calls_served(state) == [(call.native, stint_of(call).entered_at)]
    find_blocked(state, None, {(1, 1), (3, 3), (4, 4), (9, 9)})
    assert list(state.blocking) == [stint_of(call)]


def test_counts_are_the_same_when_they_are_counted_anew() -> None:
    state = a_state(2)
    helpers = [served_call(state, number) for number in (1, 2)]
    find_blocked(state, None, calls_served(state))
    rebuild(state)
    assert state.scheduler.blocked == 2
    returns(state, helpers[0])
    rebuild(state)
    assert state.scheduler.blocked == 1


@pytest.mark.parametrize(("cap", "serves"), [(2, False), (3, True), (None, True)])
def test_a_coordinator_passes_the_lane_only_if_its_cap_allows_all_members(
    cap: int | None, serves: bool
) -> None:
    state = a_state(2)
    served_call(state, 1)
    for _ in range(2):
        idle_helper(state, thread_nice(0, 0, gil=state.gil))
    find_blocked(state, None, calls_served(state))
    state.lane.expect(0)
    settle_lane(state, deque())
    assert len(state.lane.members) == 2
    assert state.lane.may_serve(RunGroup(cap)) is serves
