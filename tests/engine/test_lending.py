# SPDX-License-Identifier: MIT
"""Loans among jobs and helpers: who takes one, and when."""

from __future__ import annotations

from contextvars import Context

import pytest
from aioktask.engine.helpers import Caller, Helper, ThreadWaiter
from aioktask.engine.run import Run
from hypothesis import given
from hypothesis import strategies as st

from aioktask import Job
from aioktask.engine import state as state_module
from aioktask.engine.plan import split
from aioktask.engine.priority import thread_nice
from aioktask.engine.scheduling.background import Looked
from aioktask.engine.scheduling.queue import Seat
from aioktask.engine.state import Outbox, RunGroup, State

# Among jobs.


def a_run(state: State, nice: int, size: int = 1000) -> Run:
    job = Job(lambda start, stop: None, size, nice=nice)
    return Run(
        job,
        split(job, 4),
        group=RunGroup(),
        nice=nice,
        context=Context(),
        loop=None,
        parent=None,
        hold=False,
    )


def submitted(state: State, nice: int) -> Run:
    run = a_run(state, nice)
    state.submit(run, None, nested=False, outbox=Outbox())
    return run


def test_a_loan_goes_on_through_jobs_that_wait_and_ends_with_the_waits() -> None:
    state, outbox = State(cap=2), Outbox()
    outer, middle, inner = (submitted(state, nice) for nice in (5, 12, 19))
    state.begin_wait(outer, middle, detect=True, outbox=outbox)
    state.begin_wait(middle, inner, detect=True, outbox=outbox)
    assert [each.entry.loan for each in (outer, middle, inner)] == [None, 5, 5]
    waiter = ThreadWaiter(-3)
    state.add_waiter(outer, waiter, outbox)
    assert [each.urgency for each in (outer, middle, inner)] == [-3, -3, -3]
    state.renice(middle, -10, gives_way=False, outbox=outbox)
    assert [each.urgency for each in (outer, middle, inner)] == [-3, -10, -10]
    state.renice(middle, 12, gives_way=False, outbox=outbox)
    state.remove_waiter(outer, waiter, outbox)
    assert [each.entry.loan for each in (outer, middle, inner)] == [None, 5, 5]
    state.renice(outer, 15, gives_way=True, outbox=outbox)
    assert [each.entry.loan for each in (outer, middle, inner)] == [None, None, 12]
    state.end_wait(middle, inner, detect=True, outbox=outbox)
    state.end_wait(outer, middle, detect=True, outbox=outbox)
    assert [each.entry.loan for each in (outer, middle, inner)] == [None, None, None]


def test_a_waiter_that_is_no_more_urgent_lends_nothing() -> None:
    state = State(cap=2)
    run = submitted(state, 19)
    state.add_waiter(run, ThreadWaiter(19), Outbox())
    assert run.entry.loan is None
    high = submitted(state, 0)
    state.add_waiter(high, ThreadWaiter(5), Outbox())
    assert high.entry.loan is None


@given(
    nices=st.lists(st.integers(-20, 19), min_size=2, max_size=6),
    data=st.data(),
)
def test_any_waits_and_renices_leave_each_job_the_nice_of_the_most_urgent_who_waits(
    nices: list[int], data: st.DataObject
) -> None:
    """Also when waits go in circles for a while, and always once they do not."""
    state = State(cap=2)
    runs = [submitted(state, nice) for nice in nices]
    numbers = st.integers(0, len(runs) - 1)
    edges: list[tuple[int, int]] = []
    for _ in range(data.draw(st.integers(1, 12))):
        action = data.draw(st.sampled_from(["wait", "end", "renice"]))
        if action == "wait":
            a, b = data.draw(numbers), data.draw(numbers)
            if a < b:  # no cycle
                state.begin_wait(runs[a], runs[b], detect=False, outbox=Outbox())
                edges.append((a, b))
        elif action == "end" and edges:
            a, b = edges.pop(data.draw(st.integers(0, len(edges) - 1)))
            state.end_wait(runs[a], runs[b], detect=False, outbox=Outbox())
        elif action == "renice":
            which, nice = data.draw(numbers), data.draw(st.integers(-20, 19))
            state.renice(runs[which], nice, gives_way=False, outbox=Outbox())
        urgency: list[int] = []
        for number, run in enumerate(runs):
            waiting = [urgency[a] for a, b in edges if b == number]
            urgency.append(min([run.entry.nice, *waiting]))
        assert [run.urgency for run in runs] == urgency


# Helpers.


def idle_helper(state: State, nice: int) -> Helper:
    helper = Helper(nice)
    helper.native = 1
    state.helpers[helper] = None
    state.find_work(helper, 0, Outbox())
    return helper


def test_what_has_not_begun_is_not_run_in_vain_when_a_higher_waiter_comes() -> None:
    """A helper of high nice that was called may not get a CPU for long: its chunks are free again,
    for whoever is sooner."""
    state = State(cap=2)
    state.may_lower = False
    low = thread_nice(19, 0, gil=True)
    helper = idle_helper(state, low)
    assert helper.idle
    run = submitted(state, 19)
    assert helper.called
    assert helper.frame is not None
    before = run.claims.left
    assert before < run.job.size
    outbox = Outbox()
    state.add_waiter(run, ThreadWaiter(0), outbox)
    assert helper.frame is None
    assert helper.idle
    assert run.claims.left == run.job.size
    assert outbox.starts == 1, "its thread may not have the waiter's nice, so there is a new one"
    fresh = idle_helper(state, 0)
    assert fresh.frame is not None
    assert fresh.frame.seat is Seat.LENT
    assert run.lent == "at once", "nobody served it before"


def test_a_helper_that_is_called_off_is_called_again_also_when_a_waiter_goes() -> None:
    """Or it would be idle beside work, and nobody would notice."""
    state = State(cap=2)
    state.may_lower = True
    helper = idle_helper(state, 5)
    run = submitted(state, 19)
    assert helper.called
    urgent, other = ThreadWaiter(-3), ThreadWaiter(0)
    run.waiters += [urgent, other]
    state.scheduler.set_loan(run.entry, -3)  # and nobody serves it on that yet
    state.remove_waiter(run, urgent, Outbox())
    assert run.entry.loan == 0
    assert helper.frame is not None
    assert helper.frame.seat is Seat.LENT


@pytest.mark.parametrize("may_lower", [True, False])
def test_a_helper_that_works_takes_the_loan_at_once_where_that_is_allowed(may_lower: bool) -> None:
    state = State(cap=2)
    state.may_lower = may_lower
    low = thread_nice(19, 0, gil=state.gil)
    helper = idle_helper(state, low)
    run = submitted(state, 19)
    helper.called = False  # it has begun
    assert state.nice_of(helper) == low
    generation = state.signals.generation
    outbox = Outbox()
    state.add_waiter(run, ThreadWaiter(0), outbox)
    assert state.signals.generation != generation
    assert helper.frame is not None
    if may_lower:
        assert helper.frame.seat is Seat.LENT
        assert helper in outbox.renices
        assert state.nice_of(helper) == thread_nice(0, 0, gil=state.gil)
        assert run.lent == "at once"
    else:
        assert helper.frame.seat is not Seat.LENT
        assert state.nice_of(helper) == low
        assert run.lent == "at a chunk boundary"
        frame = helper.frame
        following = state.reconsider(frame, 10, outbox)  # the boundary
        assert following is None
        assert helper.idle
        assert outbox.starts


def test_without_more_threads_one_of_too_high_a_nice_serves() -> None:
    state = State(cap=2)
    state.may_lower = False
    helper = idle_helper(state, 5)
    outbox = Outbox()
    run = a_run(state, 0)
    state.submit(run, None, nested=False, outbox=outbox)
    assert helper.frame is None
    assert outbox.starts == state.starting == 2
    state.not_started(RuntimeError("no more"), outbox)
    assert helper.frame is not None
    assert helper.frame.run is run


def test_what_was_seen_bounds_background_threads_and_calls_them_back() -> None:
    state = State(cap=4)
    helpers = [idle_helper(state, 5) for _ in range(4)]
    state.may_lower = True
    run = a_run(state, 19, 10_000)
    run.entry.gives_way = True
    state.submit(run, None, nested=False, outbox=Outbox())
    assert run.entry.threads == 1, "until the first look nobody knows what is free"
    second = 1_000_000_000
    state.looked(Looked(second, 3 * second, second, 0), 4, Outbox())
    for each in helpers:
        each.relays = False
        state.summon(0, Outbox())
    assert run.entry.threads == 4
    assert state.scheduler.background == 4
    generation = state.signals.generation
    state.looked(Looked(second, second, second, 0), 4, Outbox())
    assert state.scheduler.background_cap == 2
    assert state.signals.generation != generation
    state.looked(Looked(second, 0, second, 3 * second), 4, Outbox())
    assert state.yielding.pausing
    state.renice(run, 0, gives_way=False, outbox=Outbox())
    state.looked(None, 4, Outbox())
    assert not state.yielding.pausing


@pytest.mark.parametrize(("kept_from_cpu", "gives_way"), [(0.9, True), (0.2, False)])
def test_a_neighbour_that_comes_between_two_looks_is_noticed(
    monkeypatch: pytest.MonkeyPatch, kept_from_cpu: float, gives_way: bool
) -> None:
    """By two stretches, one after the other, that were kept from their CPU; not by what waits for
    something else."""
    clock = {"cpu": 0, "delay": 0}
    monkeypatch.setattr(state_module, "thread_time_ns", lambda: clock["cpu"])
    monkeypatch.setattr(state_module, "kernel_and_delay_ns", lambda: (0, clock["delay"]))
    state = State(cap=1)
    helper = idle_helper(state, 5)
    state.may_lower = True
    run = a_run(state, 19, 1 << 40)
    run.entry.gives_way = True
    state.submit(run, None, nested=False, outbox=Outbox())
    frame = helper.frame
    assert frame is not None
    assert frame.seat is Seat.BACKGROUND
    now = frame.entered_at
    stretch = 4_000_000
    frame.slice_end = now + 100 * stretch
    for number in range(5):
        now += stretch
        clock["cpu"] += stretch // 4
        clock["delay"] += round(kept_from_cpu * stretch)
        going_on = state.walked(frame, frame.stop, now)
        if gives_way and number == 1:
            break
        assert going_on
    assert state.yielding.pausing is gives_way
    assert state.scheduler.background_cap == (0 if gives_way else 1)


def test_a_job_inside_a_helper_s_chunk_lends_to_that_helper() -> None:
    state = State(cap=1)
    state.may_lower = True
    helper = idle_helper(state, 5)
    outer = submitted(state, 19)
    helper.called = False
    assert helper.frame is not None
    inner = a_run(state, 19)
    caller = Caller(19, helper.frame)
    state.submit(inner, caller, nested=True, outbox=Outbox())
    assert caller.frame is not None
    outbox = Outbox()
    waiter = ThreadWaiter(0)
    state.add_waiter(inner, waiter, outbox)
    assert caller.frame.seat is Seat.LENT
    assert helper.boost == 0
    assert helper in outbox.renices
    assert state.nice_of(helper) == thread_nice(0, 0, gil=state.gil)
    assert outer.entry.loan is None
    state.abandon(caller, 5, outbox)
    assert helper.boost is None
    assert state.nice_of(helper) == thread_nice(19, 0, gil=state.gil)


def test_an_undo_runs_at_the_nice_of_the_most_urgent_who_waits_inside_chunks_too() -> None:
    state, outbox = State(cap=1), Outbox()
    outer = submitted(state, -2)
    job = Job(lambda start, stop: None, 100, nice=19, undo=lambda start, stop: None)
    inner = Run(
        job,
        split(job, 1),
        group=RunGroup(),
        nice=19,
        context=Context(),
        loop=None,
        parent=None,
        hold=False,
    )
    state.begin_wait(outer, inner, detect=True, outbox=outbox)
    state.cancel(outer, outbox)  # so that the helper below serves the inner one
    state.submit(inner, None, nested=True, outbox=outbox)
    helper = idle_helper(state, 0)
    frame = helper.frame
    assert frame is not None
    assert frame.run is inner
    state.walked(frame, frame.stop, 1)
    state.cancel(inner, outbox)
    state.reconsider(frame, 2, outbox)
    assert inner.undoing
    assert inner.entry.nice == -2
