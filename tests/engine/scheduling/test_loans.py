# SPDX-License-Identifier: MIT
"""Loans: in the scheduler, one thread at a time; among jobs, as far as waits go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aioktask.engine.scheduling import loans as loans_module
from aioktask.engine.scheduling.loans import Loans
from aioktask.engine.scheduling.queue import (
    OWN_SEAT,
    SLICE_NS,
    Account,
    Entry,
    Group,
    Scheduler,
    Seat,
)
from tests.engine.scheduling.tracing import lines_of, strike

NICE = st.integers(-20, 19)


def entry(scheduler: Scheduler, nice: int, limit: int = 8) -> Entry:
    made = Entry(f"nice {nice}", Group(), nice, limit)
    scheduler.add(made)
    scheduler.set_ready(made)
    return made


# In the scheduler.


def test_one_thread_at_a_time_has_the_loan_and_the_next_one_gets_it() -> None:
    scheduler = Scheduler(cap=8)
    low = entry(scheduler, 19)
    scheduler.set_loan(low, -5)
    assert scheduler.enter(low).account is Account.LENT
    assert scheduler.enter(low).account is Account.OWN
    scheduler.leave(low, 1, Seat(Account.LENT))
    assert scheduler.enter(low).account is Account.LENT
    scheduler.set_loan(low, None)
    scheduler.set_loan(low, 0)
    assert scheduler.enter(low).account is Account.OWN, "who has the loan still serves"


def test_a_loan_is_an_account_of_its_own() -> None:
    scheduler = Scheduler(cap=1)
    high, low = entry(scheduler, 0), entry(scheduler, 19)
    served = {high: 0, low: 0}

    def serve(slices: int) -> None:
        for _ in range(slices):
            chosen = scheduler.choose()
            assert chosen is not None
            seat = scheduler.enter(chosen)
            scheduler.leave(chosen, SLICE_NS, seat)
            served[chosen] += 1

    serve(700)
    assert served[low] < 20
    scheduler.set_loan(low, 0)
    served[low] = served[high] = 0
    serve(100)
    assert abs(served[low] - served[high]) <= 2, "at once as much as who lends, whatever it used"
    scheduler.set_loan(low, None)
    served[low] = served[high] = 0
    serve(700)
    assert served[low] < 20


def test_background_threads_are_bounded_together_and_a_loan_is_not_one_of_them() -> None:
    scheduler = Scheduler(cap=8)
    scheduler.background_cap = 2
    jobs = [entry(scheduler, 19, limit=2) for _ in range(3)]
    for each in jobs:
        scheduler.set_gives_way(each, True)
    seats = []
    while (chosen := scheduler.choose()) is not None:
        seats.append((chosen, scheduler.enter(chosen)))
    assert [seat.account for _, seat in seats] == [Account.BACKGROUND] * 2
    waiting = next(each for each in jobs if not each.threads)
    scheduler.set_loan(waiting, 0)
    assert scheduler.choose() is waiting
    assert scheduler.enter(waiting).account is Account.LENT
    assert scheduler.choose() is None
    for each, seat in seats:
        scheduler.leave(each, 1, seat)
    assert scheduler.background == 0
    scheduler.background_cap = 0
    assert scheduler.choose() is None
    taken = scheduler.take_loan(waiting, OWN_SEAT)
    assert taken.account is Account.LENT
    assert scheduler.wanted(5) == 0


def test_foreground_goes_on_where_background_may_not() -> None:
    scheduler = Scheduler(cap=4)
    scheduler.background_cap = 0
    low, high = entry(scheduler, 5), entry(scheduler, 0, limit=2)
    scheduler.set_gives_way(low, True)
    assert scheduler.wanted(4) == 2
    assert scheduler.choose() is high
    scheduler.set_gives_way(low, False)
    assert scheduler.wish(9) == 9


# Among jobs.


def test_a_loan_goes_on_through_jobs_that_wait_and_ends_with_the_waits() -> None:
    scheduler = Scheduler(cap=2)
    loans = Loans(scheduler)
    outer, middle, inner = (entry(scheduler, nice) for nice in (5, 12, 19))
    assert loans.begin(middle, inner) == [inner]
    assert loans.begin(outer, middle) == [middle, inner]
    assert [each.loan for each in (outer, middle, inner)] == [None, 5, 5]
    assert loans.add_waiter(outer, -3) == [outer, middle, inner]
    assert [each.loan for each in (outer, middle, inner)] == [-3, -3, -3]
    scheduler.set_nice(middle, -10)
    assert loans.reckon(middle) == [middle, inner]
    assert [loans.urgency(each) for each in (outer, middle, inner)] == [-3, -10, -10]
    assert loans.remove_waiter(outer, -3) == [outer]
    assert loans.end(middle, inner) == [inner]
    assert loans.end(outer, middle) == []
    assert [each.loan for each in (outer, middle, inner)] == [None, None, None]


def test_a_waiter_that_is_no_more_urgent_lends_nothing_until_the_job_is_of_higher_nice() -> None:
    scheduler = Scheduler(cap=2)
    loans = Loans(scheduler)
    job = entry(scheduler, 0)
    assert loans.add_waiter(job, 0) == []
    assert loans.add_waiter(job, 5) == []
    assert job.loan is None
    scheduler.set_nice(job, 19)
    assert loans.reckon(job) == [job]
    assert job.loan == 0
    assert loans.remove_waiter(job, 0) == [job]
    assert job.loan == 5


def test_the_waits_for_a_job_that_was_forgotten_may_end_afterwards() -> None:
    scheduler = Scheduler(cap=2)
    loans = Loans(scheduler)
    outer, over, inner = (entry(scheduler, nice) for nice in (0, 10, 19))
    loans.begin(outer, over)
    loans.begin(over, inner)
    loans.add_waiter(over, -5)
    assert inner.loan == -5
    assert loans.forget(over) == [inner]
    assert over.loan is None
    assert inner.loan is None
    assert loans.end(outer, over) == loans.end(over, inner) == loans.remove_waiter(over, -5) == []
    assert loans.forget(outer) == loans.forget(inner) == []
    assert vars(loans) == vars(Loans(scheduler))


class Waiting(RuleBasedStateMachine):
    """Waits that begin and end, and what each job must be lent."""

    @initialize(nices=st.lists(NICE, min_size=2, max_size=6))
    def begin(self, nices: list[int]) -> None:
        self.scheduler = Scheduler(2)
        self.loans = Loans(self.scheduler)
        self.entries = [entry(self.scheduler, nice) for nice in nices]
        self.waiters: list[tuple[Entry, int]] = []
        self.waits: list[tuple[Entry, Entry]] = []

    def draw(self, data: Any) -> Entry:
        drawn: Entry = data.draw(st.sampled_from(self.entries))
        return drawn

    @rule(data=st.data(), nice=NICE)
    def a_waiter_comes(self, data: Any, nice: int) -> None:
        job = self.draw(data)
        self.waiters.append((job, nice))
        self.changes(lambda: self.loans.add_waiter(job, nice))

    @precondition(lambda self: self.waiters)
    @rule(data=st.data())
    def a_waiter_goes(self, data: Any) -> None:
        job, nice = self.waiters.pop(data.draw(st.integers(0, len(self.waiters) - 1)))
        self.changes(lambda: self.loans.remove_waiter(job, nice))

    @rule(data=st.data())
    def a_chunk_begins_to_wait(self, data: Any) -> None:
        numbers = st.integers(0, len(self.entries) - 1)
        waiting, awaited = sorted([data.draw(numbers), data.draw(numbers)])
        if waiting < awaited:  # no cycle
            wait = self.entries[waiting], self.entries[awaited]
            self.waits.append(wait)
            self.changes(lambda: self.loans.begin(*wait))

    @precondition(lambda self: self.waits)
    @rule(data=st.data())
    def a_chunk_waits_no_more(self, data: Any) -> None:
        wait = self.waits.pop(data.draw(st.integers(0, len(self.waits) - 1)))
        self.changes(lambda: self.loans.end(*wait))

    @rule(data=st.data(), nice=NICE)
    def renice(self, data: Any, nice: int) -> None:
        job = self.draw(data)
        self.scheduler.set_nice(job, nice)
        self.changes(lambda: self.loans.reckon(job))

    @rule(data=st.data(), nice=NICE)
    def a_job_ends(self, data: Any, nice: int) -> None:
        job = self.draw(data)
        self.waiters = [each for each in self.waiters if each[0] is not job]
        self.waits = [each for each in self.waits if job not in each]
        self.changes(lambda: self.loans.forget(job), apart=job)

    def changes(self, call: Callable[[], list[Entry]], apart: Entry | None = None) -> None:
        """Call, and check that it tells whose loan changed."""
        before = {each: each.loan for each in self.entries}
        changed = call()
        assert len(set(changed)) == len(changed)
        assert set(changed) == {
            each for each in self.entries if each.loan != before[each] and each is not apart
        }

    @invariant()
    def each_job_has_the_nice_of_the_most_urgent_who_waits(self) -> None:
        if not hasattr(self, "loans"):
            return
        urgency: dict[Entry, int] = {}
        for each in self.entries:
            lent = [nice for job, nice in self.waiters if job is each]
            lent += [urgency[waiting] for waiting, awaited in self.waits if awaited is each]
            urgency[each] = min([each.nice, *lent])
            assert self.loans.urgency(each) == urgency[each]
            assert each.loan == (urgency[each] if urgency[each] < each.nice else None)

    @invariant()
    def nothing_is_kept_but_the_waits(self) -> None:
        if hasattr(self, "loans") and not self.waiters and not self.waits:
            assert vars(self.loans) == vars(Loans(self.scheduler))


TestWaiting = Waiting.TestCase
TestWaiting.settings = settings(stateful_step_count=40)


def test_loans_are_right_again_when_waits_went_in_a_circle_for_a_while() -> None:
    scheduler = Scheduler(cap=2)
    loans = Loans(scheduler)
    first, second = entry(scheduler, 5), entry(scheduler, 19)
    loans.begin(first, second)
    loans.begin(second, first)
    loans.add_waiter(first, -3)
    assert [first.loan, second.loan] == [-3, -3]
    loans.remove_waiter(first, -3)
    loans.end(second, first)
    assert [first.loan, second.loan] == [None, 5]


# An exception in the middle of a call, as Ctrl-C may be.


CALLS: dict[str, Callable[[Loans, list[Entry]], object]] = {
    "add_waiter": lambda loans, each: loans.add_waiter(each[0], -7),
    "remove_waiter": lambda loans, each: loans.remove_waiter(each[1], -3),
    "begin": lambda loans, each: loans.begin(each[1], each[3]),
    "end": lambda loans, each: loans.end(each[1], each[2]),
    "reckon": lambda loans, each: loans.reckon(each[2]),
    "forget": lambda loans, each: loans.forget(each[1]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_struck_at_any_line_is_mended(
    call: Callable[[Loans, list[Entry]], object],
) -> None:
    line = 0
    while True:
        scheduler = Scheduler(2)
        loans = Loans(scheduler)
        entries = [entry(scheduler, nice) for nice in (4, 8, 12, 16)]
        waiters = [(entries[1], -3), (entries[3], 2)]
        waits = [(entries[0], entries[1]), (entries[1], entries[2]), (entries[1], entries[2])]
        for waiter in waiters:
            loans.add_waiter(*waiter)
        for wait in waits:
            loans.begin(*wait)
        lent = [each.loan for each in entries]
        assert lent == [None, -3, -3, 2]
        struck = strike(lambda: call(loans, entries), loans_module, line)  # noqa: B023
        now = [each.loan for each in entries]
        changed = loans.rebuild(entries, waiters, waits)
        assert [each.loan for each in entries] == lent
        assert changed == [
            each for each, loan, was in zip(entries, lent, now, strict=True) if loan != was
        ]
        for waiter in waiters:
            loans.remove_waiter(*waiter)
        for wait in waits:
            loans.end(*wait)
        assert vars(loans) == vars(Loans(scheduler))
        assert [each.loan for each in entries] == [None] * 4
        if not struck:
            break
        line += 1
    assert line > 1


# What a call costs.


def test_a_call_costs_no_more_beside_twenty_thousand_waiters_than_beside_ten() -> None:
    lines: dict[int, list[int]] = {}
    for crowd in (10, 20_000):
        scheduler = Scheduler(2)
        loans = Loans(scheduler)
        job, inner = entry(scheduler, 19), entry(scheduler, 19)
        loans.begin(job, inner)
        others = [Entry(number, Group(), 3, 1) for number in range(crowd)]
        for other in others:
            loans.add_waiter(job, 5)
            loans.begin(other, job)
        urgent = Entry("urgent", Group(), -1, 1)
        lines[crowd] = [
            lines_of(lambda: loans.add_waiter(job, 0), loans_module),  # noqa: B023
            lines_of(lambda: loans.remove_waiter(job, 0), loans_module),  # noqa: B023
            lines_of(lambda: loans.begin(urgent, job), loans_module),  # noqa: B023
            lines_of(lambda: loans.reckon(job), loans_module),  # noqa: B023
            lines_of(lambda: loans.end(urgent, job), loans_module),  # noqa: B023
            lines_of(lambda: loans.forget(others[0]), loans_module),  # noqa: B023
        ]
        assert inner.loan == job.loan == 3
    assert lines[10] == lines[20_000]
