# SPDX-License-Identifier: MIT
# Runs whose range grows, without threads: when they are served, and when they are over.

from __future__ import annotations

from time import perf_counter_ns

import pytest

from aioktask import Job
from aioktask.engine.events import EventKind
from aioktask.engine.state import admission, recovery
from aioktask.engine.state.callers import enter_guest
from aioktask.engine.state.dispatch import LASTING_NS, State
from aioktask.engine.state.ending import cancel
from aioktask.engine.state.growing import STALLED_NS, caller_goes, follow, share_out
from aioktask.engine.state.growth import Growth
from aioktask.engine.state.helpers import helper_goes
from aioktask.engine.state.run import Run, Wait
from aioktask.engine.state.workers import Caller, Helper, ThreadWaiter
from tests.engine.state.turns import a_run, a_state, admit, idle_helper, outbox_of, stint_of

# More items than any test here adds units: the threads here walk units, and take no items.
MANY = [(1000, "item")] * 1000


def nothing(start: int, stop: int) -> None:
    pass


def a_growing_run(state: State, nice: int = 0) -> Run:
    """A run over units that are added, which a turn has taken in."""
    run = a_run(Job(nothing, 0, nice=nice, learn="nothing"))
    run.growth = Growth((), MANY, None)
    run.limit = 1000
    return admit(state, run)


def a_caller_that_waits(state: State, run: Run) -> Caller:
    """A calling thread that takes part in the run, and waits for it."""
    caller = Caller(0)
    caller.quits = True
    enter_guest(state, run, caller)
    run.waiters[caller] = Wait(None, detects=False)
    return caller


def grow(state: State, run: Run, stop: int) -> None:
    assert run.growth is not None
    run.growth.stop = stop
    follow(state, run)


def close(state: State, run: Run) -> None:
    assert run.growth is not None
    run.growth.closed = True
    follow(state, run)


def walk(state: State, helper: Helper) -> None:
    """Have the helper walk its stretch, and take the turn that follows."""
    stint = stint_of(helper)
    helper.called = False
    stint.walked_at = perf_counter_ns()
    stint.chunk_start = stint.stretch_stop
    if not state.walked(stint, stint.stretch_stop, perf_counter_ns()):
        state.reconsider(stint, perf_counter_ns())


def walk_all(state: State, helper: Helper) -> None:
    while helper.stint is not None:
        walk(state, helper)


def test_a_run_with_nothing_to_claim_waits_in_no_queue_and_is_not_over() -> None:
    state = a_state(2)
    helper = idle_helper(state)
    run = a_growing_run(state)
    assert helper.stint is None
    assert not run.over
    assert state.scheduler.choose() is None


def test_units_that_are_added_are_served_and_the_run_waits_for_more() -> None:
    state = a_state(1)
    helper = idle_helper(state)
    run = a_growing_run(state)
    for stop in (1, 4, 30):
        outbox_of(state)
        grow(state, run, stop)
        assert stint_of(helper).run is run
        assert outbox_of(state).parkings == [helper.parking]
        walk_all(state, helper)
        assert run.done_units == stop
        assert helper.idle
        assert not run.over
    close(state, run)
    assert run.over
    assert run.report is not None
    assert run.report.chunks == 30
    assert not state.growing


def test_a_run_that_is_closed_is_over_when_what_was_claimed_is_done() -> None:
    state = a_state(1)
    helper = idle_helper(state)
    run = a_growing_run(state)
    waiter = ThreadWaiter(0)
    run.waiters[waiter] = Wait(None, detects=False)
    grow(state, run, 3)
    close(state, run)
    assert not run.over
    walk_all(state, helper)
    assert run.over
    assert waiter in outbox_of(state).waiters


def test_a_cancelled_run_is_over_without_being_closed() -> None:
    state = a_state(1)
    helper = idle_helper(state)
    run = a_growing_run(state)
    grow(state, run, 5)
    helper.called = False
    assert run.cancel()
    cancel(state, run)
    assert not run.over, "its helper is in a unit"
    walk(state, helper)
    assert run.over
    assert helper.idle
    grow(state, run, 9)  # which comes too late, and does no harm
    assert run.over


def test_a_run_that_waits_for_units_is_over_at_once_when_it_is_cancelled() -> None:
    state = a_state(1)
    run = a_growing_run(state)
    assert run.cancel()
    cancel(state, run)
    assert run.over


def test_a_run_that_waited_for_units_makes_nothing_good() -> None:
    state = a_state(1)
    helper = idle_helper(state)
    waiting = a_growing_run(state)
    long = admit(state, a_run(Job(nothing, 1000, chunk=1, max_threads=1)))
    stint = stint_of(helper)
    state.leave(stint, stint.entered_at + 10**9, began=False)
    state.rest(helper)
    grow(state, waiting, 1)
    assert waiting.entry.runtime >= long.entry.runtime - 1, "it would be served for a second"


def test_one_unit_that_lasts_keeps_none_behind_it_from_others() -> None:
    state = a_state(2)
    first, second = idle_helper(state), idle_helper(state)
    run = a_growing_run(state)
    assert run.growth is not None
    run.growth.pacing.at_once = 8
    grow(state, run, 8)
    stint = stint_of(first if first.stint is not None else second)
    other = second if stint.thread is first else first
    assert stint.stretch_stop == 8
    stint.thread.called = False  # type: ignore[attr-defined]
    stint.chunk_start = 2  # where it has been for long
    stint.walked_at = stint.claimed_at = perf_counter_ns() - 2 * LASTING_NS
    generation = state.signals.generation
    share_out(state, None)
    assert state.signals.generation != generation, "the walk would go on"
    assert stint.stretch_stop == 3
    assert stint_of(other).run is run
    assert (stint_of(other).chunk_start, stint_of(other).stretch_stop) == (3, 8)
    walk_all(state, other)
    # The thread had just looked at the signals, and began one unit more.
    stint.chunk_start = 4
    state.walked(stint, 4, perf_counter_ns())
    state.reconsider(stint, perf_counter_ns())
    assert run.done_units == 8
    close(state, run)
    assert run.over


def test_a_thread_that_finds_nothing_free_gets_what_another_holds_behind_a_unit_that_lasts() -> (
    None
):
    state = a_state(2)
    first, second = idle_helper(state), idle_helper(state)
    run = a_growing_run(state)
    assert run.growth is not None
    run.growth.pacing.at_once = 4
    grow(state, run, 8)
    held, mine = stint_of(first), stint_of(second)
    first.called = second.called = False
    held.walked_at = held.claimed_at = perf_counter_ns() - 2 * LASTING_NS
    walk(state, second)
    assert held.stretch_stop == held.chunk_start + 1
    assert second.stint is mine
    assert mine.stretch_stop > mine.chunk_start


def test_a_stretch_that_is_on_its_way_is_left_to_its_thread() -> None:
    state = a_state(2)
    first, second = idle_helper(state), idle_helper(state)
    run = a_growing_run(state)
    assert run.growth is not None
    run.growth.pacing.at_once = 4
    grow(state, run, 8)
    held = stint_of(first)
    stop = held.stretch_stop
    walk_all(state, second)
    assert held.stretch_stop == stop
    assert second.idle


def test_the_item_that_holds_the_stream_up_is_told_once() -> None:
    state = a_state(1)
    helper = idle_helper(state)
    run = a_growing_run(state)
    assert run.growth is not None
    grow(state, run, 2)
    helper.called = False
    growth = run.growth
    growth.head, growth.waits_since = 0, perf_counter_ns() - STALLED_NS // 2
    share_out(state, None)
    assert not outbox_of(state).events
    growth.waits_since = perf_counter_ns() - 2 * STALLED_NS
    share_out(state, None)
    [(_, event)] = outbox_of(state).events
    assert event.kind is EventKind.STALLED
    assert event.details["item"] == 0
    share_out(state, None)
    assert not outbox_of(state).events


def test_an_item_that_no_thread_has_begun_is_not_what_holds_the_stream_up() -> None:
    state = a_state(1)
    run = a_run(Job(nothing, 0, learn="nothing"))
    growth = run.growth = Growth((), [(0, "item")], None)
    admit(state, run)
    growth.head, growth.waits_since = 0, perf_counter_ns() - 2 * STALLED_NS
    share_out(state, None)
    assert not outbox_of(state).events


def test_an_item_whose_consumer_does_not_come_for_it_does_not_hold_the_stream_up() -> None:
    state = a_state(1)
    run = a_growing_run(state)
    growth = run.growth
    assert growth is not None
    growth.head, growth.waits_since = 0, perf_counter_ns() - 2 * STALLED_NS
    growth.has = [0].__contains__
    share_out(state, None)
    assert not outbox_of(state).events
    growth.has = [1].__contains__
    share_out(state, None)
    assert outbox_of(state).events


def test_an_item_that_lasts_as_others_did_is_not_told() -> None:
    state = a_state(1)
    run = a_growing_run(state)
    growth = run.growth
    assert growth is not None
    growth.pacing.learn(1, 10 * STALLED_NS)
    growth.head, growth.waits_since = 0, perf_counter_ns() - 10 * STALLED_NS
    share_out(state, None)
    assert not outbox_of(state).events


def test_units_without_items_are_dropped() -> None:
    state = a_state(1)
    run = a_run(Job(nothing, 0, learn="nothing"))
    pending: list[tuple[int, object]] = [(4, "item"), (5, "item")]
    growth = run.growth = Growth((), pending, None)
    admit(state, run)
    grow(state, run, 6)
    assert growth.claims.left == 2
    pending.clear()  # by a calling thread
    close(state, run)
    assert run.over


def test_a_calling_thread_serves_the_run_beyond_every_cap_until_it_goes() -> None:
    state = a_state(1)
    helper = idle_helper(state)
    run = a_growing_run(state)
    caller = Caller(0)
    caller.quits = True
    enter_guest(state, run, caller)
    enter_guest(state, run, caller)  # twice does no harm
    assert run.entry.threads == 1
    assert state.scheduler.running == 0
    grow(state, run, 1)
    assert stint_of(helper).run is run
    walk_all(state, helper)
    close(state, run)
    assert not run.over, "its caller may be at an item"
    caller_goes(state, run, caller)
    caller_goes(state, run, caller)
    assert run.over
    assert state.scheduler.running == 0
    assert not state.serving


def test_a_cancel_does_not_wait_for_a_calling_thread_that_is_at_no_item() -> None:
    state = a_state(1)
    run = a_growing_run(state)
    caller = a_caller_that_waits(state, run)
    assert run.cancel()
    cancel(state, run)
    assert run.over
    assert caller in outbox_of(state).waiters


def test_a_cancel_waits_for_a_calling_thread_that_is_at_an_item_and_wakes_it() -> None:
    state = a_state(1)
    run = a_growing_run(state)
    caller = a_caller_that_waits(state, run)
    stint = run.stints[caller]
    stint.stretch_stop = 1  # as it is while the thread is at an item
    grow(state, run, 1)
    assert run.cancel()
    cancel(state, run)
    assert not run.over
    assert caller in outbox_of(state).waiters
    caller_goes(state, run, caller)
    assert run.over


def a_run_that_comes_with_its_thread() -> tuple[Run, Caller]:
    """A growing run that no turn has taken in, and the calling thread that comes with it."""
    run = a_run(Job(nothing, 0, learn="nothing"))
    run.growth = Growth((), MANY, None)
    caller = Caller(0)
    caller.quits = True
    return run, caller


def test_a_cancel_before_a_run_comes_waits_for_a_calling_thread_that_is_at_an_item() -> None:
    state = a_state(1)
    run, caller = a_run_that_comes_with_its_thread()
    stint = run.stint_of(caller)
    stint.stretch_stop = 1
    assert run.may_start()
    assert run.cancel()
    cancel(state, run)  # which may even be posted before
    admit(state, run, caller, caller)
    assert not run.over
    cancel(state, run)
    assert not run.over
    assert caller in outbox_of(state).waiters
    stint.stretch_stop = 0
    caller_goes(state, run, caller)
    assert run.over
    assert not state.serving


def test_a_run_that_was_cancelled_before_its_calling_thread_began_is_over_when_it_comes() -> None:
    state = a_state(1)
    run, caller = a_run_that_comes_with_its_thread()
    assert run.cancel()
    admission.admit(state, run, caller, caller, False, False)
    assert run.over
    assert not run.may_start()
    assert not run.first_claim
    assert not state.serving
    assert caller in outbox_of(state).waiters


@pytest.mark.parametrize(("urgent", "other"), [(0, 5), (-5, 0), (-5, 5)])
def test_growing_runs_share_a_helper_by_nice(urgent: int, other: int) -> None:
    state = a_state(1, give_way=False)
    state.may_lower = True
    helper = idle_helper(state)
    used: dict[Run, int] = {}
    for nice in (urgent, other):
        run = a_growing_run(state, nice)
        assert run.growth is not None
        run.growth.pending = range(10**9)  # type: ignore[assignment]
        used[run] = 0
        grow(state, run, 10**6)
    now, unit_ns = perf_counter_ns(), 1_000_000
    while sum(used.values()) < 10**10:
        stint = stint_of(helper)
        helper.called = False
        stint.walked_at = now
        walked_ns = (stint.stretch_stop - stint.chunk_start) * unit_ns
        used[stint.run] += walked_ns
        now += walked_ns
        stint.chunk_start = stint.stretch_stop
        if not state.walked(stint, stint.stretch_stop, now):
            state.reconsider(stint, now)
    most, least = used.values()
    assert most / least == pytest.approx(1.25 ** (other - urgent), rel=0.1)


def test_a_helper_that_goes_leaves_nothing_in_a_run_that_goes_on() -> None:
    state = a_state(1)
    run = a_growing_run(state)
    for stop in range(1, 50):
        helper = idle_helper(state)
        grow(state, run, stop)
        walk_all(state, helper)
        assert helper_goes(state, helper)
        assert len(run.stints) == 0
    close(state, run)
    assert run.report is not None
    assert len(run.report.busy) == 1


def test_what_is_counted_of_growing_runs_is_counted_anew_after_an_exception() -> None:
    state = a_state(1)
    helper = idle_helper(state)
    run = a_growing_run(state)
    other = a_growing_run(state)
    grow(state, run, 3)
    state.growing = {}
    recovery.recover(state, other, MemoryError())
    assert other.over
    assert list(state.growing) == [run]
    assert not run.over
    walk_all(state, helper)
    assert run.done_units == 3
    close(state, run)
    assert run.over
