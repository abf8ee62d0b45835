# SPDX-License-Identifier: MIT
"""Loans among jobs and helpers: who takes one, and when."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask import Job
from aioktask.engine.events import EventKind
from aioktask.engine.machine.load import CpuLoad
from aioktask.engine.priority import thread_nice
from aioktask.engine.scheduling.queue import OWN_SEAT, Account
from aioktask.engine.state import dispatch, following, lending, record
from aioktask.engine.state.callers import caller_left
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.ending import cancel
from aioktask.engine.state.following import sampled
from aioktask.engine.state.helpers import not_started
from aioktask.engine.state.lending import lend, nice_of
from aioktask.engine.state.run import Run
from aioktask.engine.state.waiting import add_waiter, remove_waiter
from aioktask.engine.state.workers import Caller, ThreadWaiter
from tests.engine.state.turns import (
    ChunkWaits,
    a_run,
    a_state,
    admit,
    idle_helper,
    outbox_of,
    stint_of,
)

# Among jobs.


def a_job(nice: int, size: int = 1000, **options: Any) -> Job[None]:
    return Job(lambda start, stop: None, size, nice=nice, **options)


def submitted(state: State, nice: int) -> Run:
    return admit(state, a_run(a_job(nice)))


def wait_for(state: State, run: Run, nice: int) -> ThreadWaiter:
    """Have a thread of the program wait for the run."""
    waiter = ThreadWaiter(nice)
    add_waiter(state, run, waiter, None, False)
    return waiter


def renice(state: State, run: Run, nice: int) -> None:
    run.nice = nice
    following.renice(state, run)


def loans(*runs: Run) -> list[int | None]:
    return [run.entry.loan for run in runs]


def test_a_loan_goes_on_through_jobs_that_wait_and_ends_with_the_waits() -> None:
    state = a_state(2, give_way=False)
    outer, middle, inner = (submitted(state, nice) for nice in (5, 12, 19))
    first = ChunkWaits(state, outer, middle)
    second = ChunkWaits(state, middle, inner)
    assert loans(outer, middle, inner) == [None, 5, 5]
    waiter = wait_for(state, outer, -3)
    assert [each.urgency for each in (outer, middle, inner)] == [-3, -3, -3]
    renice(state, middle, -10)
    assert [each.urgency for each in (outer, middle, inner)] == [-3, -10, -10]
    renice(state, middle, 12)
    remove_waiter(state, outer, waiter)
    assert loans(outer, middle, inner) == [None, 5, 5]
    renice(state, outer, 15)
    assert loans(outer, middle, inner) == [None, None, 12]
    second.end()
    first.end()
    assert loans(outer, middle, inner) == [None, None, None]


def test_a_waiter_that_is_no_more_urgent_lends_nothing() -> None:
    state = a_state(2, give_way=False)
    run = submitted(state, 19)
    wait_for(state, run, 19)
    assert run.entry.loan is None
    high = submitted(state, 0)
    wait_for(state, high, 5)
    assert high.entry.loan is None


@given(
    nices=st.lists(st.integers(-20, 19), min_size=2, max_size=6),
    data=st.data(),
)
def test_any_waits_and_renices_leave_each_job_the_nice_of_the_most_urgent_who_waits(
    nices: list[int], data: st.DataObject
) -> None:
    state = a_state(2, give_way=False)
    runs = [submitted(state, nice) for nice in nices]
    numbers = st.integers(0, len(runs) - 1)
    edges: list[tuple[int, int, ChunkWaits]] = []
    for _ in range(data.draw(st.integers(1, 12))):
        action = data.draw(st.sampled_from(["wait", "end", "renice"]))
        if action == "wait":
            a, b = data.draw(numbers), data.draw(numbers)
            if a < b:  # no cycle
                edges.append((a, b, ChunkWaits(state, runs[a], runs[b], detects=False)))
        elif action == "end" and edges:
            *_, wait = edges.pop(data.draw(st.integers(0, len(edges) - 1)))
            wait.end()
        elif action == "renice":
            which, nice = data.draw(numbers), data.draw(st.integers(-20, 19))
            renice(state, runs[which], nice)
        urgency: list[int] = []
        for number, run in enumerate(runs):
            waiting = [urgency[a] for a, b, _ in edges if b == number]
            urgency.append(min([run.entry.nice, *waiting]))
        assert [run.urgency for run in runs] == urgency


# Helpers.


def test_what_has_not_begun_is_not_run_in_vain_when_a_higher_waiter_comes() -> None:
    """A helper of high nice that was called may not get a CPU for long: its chunks are free again,
    for whoever is sooner."""
    state = a_state(2, give_way=False)
    state.may_lower = False
    low = thread_nice(19, 0, gil=state.gil)
    helper = idle_helper(state, low)
    assert helper.idle
    run = submitted(state, 19)
    assert helper.called
    assert helper.stint is not None
    before = run.sweep.claims.left
    assert before < run.job.size
    outbox_of(state)
    wait_for(state, run, 0)
    assert helper.stint is None
    assert helper.idle
    assert run.sweep.claims.left == run.job.size
    starts = outbox_of(state).starts
    assert len(starts) == 1, "its thread may not have the waiter's nice, so there is a new one"
    fresh = idle_helper(state, 0)
    assert stint_of(fresh).seat.account is Account.LENT
    assert run.lent == "at once", "nobody served it before"


def test_a_helper_that_is_called_off_is_called_again_also_when_a_waiter_goes() -> None:
    """Or it would be idle beside work, and nobody would notice."""
    state = a_state(2, give_way=False)
    state.may_lower = True
    helper = idle_helper(state, 5)
    run = submitted(state, 19)
    assert helper.called
    wait_for(state, run, 0)
    state.loans.add_waiter(run.entry, -3)  # and nobody serves it on that yet
    stint = stint_of(helper)
    stint.seat = OWN_SEAT
    run.entry.loan_taken = False
    lend(state, state.loans.remove_waiter(run.entry, -3))
    assert run.entry.loan == 0
    assert stint_of(helper).seat.account is Account.LENT


@pytest.mark.parametrize("may_lower", [True, False])
def test_a_helper_that_works_takes_the_loan_at_once_where_that_is_allowed(may_lower: bool) -> None:
    state = a_state(2, give_way=False)
    state.may_lower = may_lower
    low = thread_nice(19, 0, gil=state.gil)
    helper = idle_helper(state, low)
    run = submitted(state, 19)
    helper.called = False  # it has begun
    assert nice_of(state, helper) == low
    generation = state.signals.generation
    outbox_of(state)
    wait_for(state, run, 0)
    assert state.signals.generation != generation
    stint = stint_of(helper)
    if may_lower:
        assert stint.seat.account is Account.LENT
        assert helper in outbox_of(state).renices
        assert nice_of(state, helper) == thread_nice(0, 0, gil=state.gil)
        assert run.lent == "at once"
    else:
        assert stint.seat.account is not Account.LENT
        assert nice_of(state, helper) == low
        assert run.lent == "at a chunk boundary"
        outbox_of(state)
        assert state.reconsider(stint, 10) is None  # the boundary
        assert helper.idle
        assert outbox_of(state).starts


@pytest.mark.parametrize("how", ["the thread leaves", "the waiter goes", "neither"])
def test_a_loan_lasts_from_when_a_thread_has_it_until_it_leaves_or_nobody_lends(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (dispatch, lending, record):
        monkeypatch.setattr(module, "perf_counter_ns", lambda: now, raising=False)
    state = a_state(2, give_way=False)
    state.may_lower = True
    helper = idle_helper(state)
    now = 1_000
    run = a_run(a_job(19))
    run.heard = True
    admit(state, run)
    helper.called = False  # it has begun
    now = 2_000
    waiter = wait_for(state, run, 0)
    assert stint_of(helper).seat.account is Account.LENT
    assert record.lent_seconds(run) == {}
    now = 5_000
    assert record.lent_seconds(run) == {"lent": 3e-6}
    if how == "the thread leaves":
        state.leave(stint_of(helper), now, began=True)
    elif how == "the waiter goes":
        remove_waiter(state, run, waiter)
    now = 9_000
    assert record.lent_seconds(run) == {"lent": 7e-6 if how == "neither" else 3e-6}
    told = [event for _, event in outbox_of(state).events if "lent" in event.kind.value]
    kinds = [EventKind.LENT, EventKind.LENT_NO_MORE]
    assert [event.kind for event in told] == kinds[: 2 if how == "the waiter goes" else 1]
    assert told[0].details == {"nice": 0}
    assert all(event.details == {"lent": 3e-6} for event in told[1:])


def test_a_loan_that_comes_again_lasts_again_on_the_same_thread() -> None:
    state = a_state(2, give_way=False)
    state.may_lower = True
    helper = idle_helper(state)
    run = submitted(state, 19)
    helper.called = False  # it has begun
    remove_waiter(state, run, wait_for(state, run, 0))
    assert stint_of(helper).seat.account is Account.LENT, "until its next chunk boundary"
    before = record.lent_seconds(run)
    assert record.lent_seconds(run) == before
    wait_for(state, run, 0)
    assert run.lent_since


def test_without_more_threads_one_of_too_high_a_nice_serves() -> None:
    state = a_state(2, give_way=False)
    state.may_lower = False
    helper = idle_helper(state, 5)
    outbox_of(state)
    run = submitted(state, 0)
    assert helper.stint is None
    starts = outbox_of(state).starts
    assert starts == list(state.starting)
    assert len(starts) == 2
    not_started(state, None, starts[0], RuntimeError("no more"))
    assert stint_of(helper).run is run


def test_what_was_seen_bounds_background_threads_and_calls_them_back() -> None:
    state = a_state(4)
    helpers = [idle_helper(state, 5) for _ in range(4)]
    state.may_lower = True
    run = admit(state, a_run(a_job(19, 10_000)))
    assert run.entry.gives_way
    assert run.entry.threads == 1, "until the first sample nobody knows what is free"
    second = 1_000_000_000
    sampled(state, None, CpuLoad(second, 3 * second, second, 0), 4)
    for each in helpers:
        each.relays = False
        state.summon(0)
    assert run.entry.threads == 4
    assert state.scheduler.background == 4
    generation = state.signals.generation
    sampled(state, None, CpuLoad(second, second, second, 0), 4)
    assert state.scheduler.background_cap == 2
    assert state.signals.generation != generation
    sampled(state, None, CpuLoad(second, 0, second, 3 * second), 4)
    assert state.background.pausing
    renice(state, run, 0)
    assert not run.entry.gives_way
    sampled(state, None, None, 4)
    assert not state.background.pausing


@pytest.mark.parametrize(("kept_from_cpu", "gives_way"), [(0.9, True), (0.2, False)])
def test_a_neighbour_that_comes_between_two_samples_is_noticed(
    kept_from_cpu: float, gives_way: bool
) -> None:
    """By two stretches, one after the other, that were kept from their CPU; not by what waits for
    something else."""
    state = a_state(1)
    helper = idle_helper(state, 5)
    state.may_lower = True
    admit(state, a_run(a_job(19, 1 << 40)))
    stint = stint_of(helper)
    assert stint.seat.account is Account.BACKGROUND
    now = stint.entered_at
    stretch = 4_000_000
    stint.slice_end = now + 100 * stretch
    delay = 0
    for number in range(5):
        now += stretch
        stint.cpu_now += stretch // 4
        delay += round(kept_from_cpu * stretch)
        stint.kernel_now = 0, delay
        going_on = state.walked(stint, stint.stretch_stop, now)
        if gives_way and number == 1:
            break
        assert going_on
    assert state.background.pausing is gives_way
    assert state.scheduler.background_cap == (0 if gives_way else 1)


def test_a_job_inside_a_helper_s_chunk_lends_to_that_helper() -> None:
    state = a_state(1, give_way=False)
    state.may_lower = True
    helper = idle_helper(state, 5)
    outer = submitted(state, 19)
    helper.called = False
    chunk = stint_of(helper)
    inner = a_run(a_job(19), parent=chunk)
    caller = Caller(19, chunk)
    admit(state, inner, caller, caller, nested=True)
    assert stint_of(caller) is caller.serving
    outbox_of(state)
    wait_for(state, inner, 0)
    assert stint_of(caller).seat.account is Account.LENT
    assert helper.boost == 0
    assert helper in outbox_of(state).renices
    assert nice_of(state, helper) == thread_nice(0, 0, gil=state.gil)
    assert outer.entry.loan is None
    caller_left(state, inner, caller, None)
    assert caller.serving is None
    assert helper.boost is None
    assert nice_of(state, helper) == thread_nice(19, 0, gil=state.gil)


def test_an_undo_runs_at_the_nice_of_the_most_urgent_who_waits_inside_chunks_too() -> None:
    state = a_state(1)
    outer = submitted(state, -2)
    inner = a_run(a_job(19, 100, undo=lambda start, stop: None))
    state.scheduler.set_idle(outer.entry)  # so that the helper below serves the inner one
    admit(state, inner, nested=True)
    ChunkWaits(state, outer, inner)
    helper = idle_helper(state, 0)
    stint = stint_of(helper)
    assert stint.run is inner
    state.walked(stint, stint.stretch_stop, 1)
    assert inner.cancel()
    cancel(state, inner)
    state.reconsider(stint, 2)
    assert inner.undoing
    assert inner.entry.nice == -2
