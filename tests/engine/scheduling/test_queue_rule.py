# SPDX-License-Identifier: MIT
# The queue against the rule itself. The rule is a model that stores no count and no queue and looks
# through everything; both are told the same, over long sequences of calls, and must decide the
# same. Then what a call costs: counted in lines and comparisons, beside 10 and beside 20,000 jobs.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log2
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aioktask.engine.scheduling import queue
from aioktask.engine.scheduling.queue import (
    SLICE_NS,
    Account,
    Counted,
    Entry,
    Group,
    Scheduler,
    Seat,
    weight,
)
from tests.engine.scheduling.tracing import lines_of

NICE = st.integers(-20, 19)
CAPS = st.integers(0, 6)
WALL_NS = st.integers(0, 3 * SLICE_NS)
MEMORY = st.sampled_from([0, 0, 1, 2, 5])


@dataclass(eq=False)
class Limited:
    """A coordinator."""

    cap: int | None


@dataclass(eq=False)
class Job:
    """A job as the rule sees it."""

    group: Limited
    nice: int
    limit: int
    gives_way: bool
    number: int
    runtime: float
    memory: int = 0
    loan: int | None = None
    loan_runtime: float = 0.0
    owed: int = 0
    ready: bool = False
    undoing: bool = False
    served: bool = False


@dataclass(eq=False)
class Thread:
    """A thread that serves a job."""

    job: Job
    seat: Seat
    leaves: bool = False  # counted no more, but has the loan until it was charged


@dataclass
class Rule:
    """The choice of a job, by looking through all jobs and threads each time."""

    cap: int
    background_cap: int
    jobs: list[Job] = field(default_factory=list)
    threads: list[Thread] = field(default_factory=list)
    floor: float = 0.0
    room: int | None = None  # for the memory that threads hold
    waiting: int = 0  # of those that hold some

    def threads_of(self, job: Job) -> int:
        return sum(thread.job is job and not thread.leaves for thread in self.threads)

    def threads_in(self, group: Limited) -> int:
        inside = [thread for thread in self.threads if thread.job.group is group]
        return sum(
            thread.seat.counted is not Counted.IN_GROUP and not thread.leaves for thread in inside
        )

    @property
    def running(self) -> int:
        return sum(t.seat.counted is Counted.NOWHERE and not t.leaves for t in self.threads)

    @property
    def background(self) -> int:
        return sum(thread.seat.account is Account.BACKGROUND for thread in self.threads)

    def loan_taken(self, job: Job) -> bool:
        return any(t.job is job and t.seat.account is Account.LENT for t in self.threads)

    def lends(self, job: Job) -> bool:
        return job.loan is not None and not self.loan_taken(job)

    def in_background(self, job: Job) -> bool:
        return job.gives_way and not job.undoing and not self.lends(job)

    def key(self, job: Job) -> tuple[bool, float, int, int]:
        if self.lends(job):
            assert job.loan is not None
            return not job.undoing, job.loan_runtime, job.loan, job.number
        return not job.undoing, job.runtime, job.nice, job.number

    def within_caps(self, job: Job) -> bool:
        """Whether the job's and its coordinator's cap admit one thread more."""
        cap = job.group.cap
        within = cap is None or self.threads_in(job.group) < cap
        return job.ready and self.threads_of(job) < job.limit and within

    def declares(self, job: Job) -> bool:
        """Whether a thread that serves the job holds memory."""
        return job.memory > 0 and not job.undoing

    def fits(self, job: Job) -> bool:
        held = [t.job.memory for t in self.threads if self.declares(t.job) and not t.leaves]
        if len(held) <= (self.waiting if job.owed else 0):
            return True
        return self.room is None or sum(held) + job.memory <= self.room

    def admitted(self, job: Job) -> bool:
        """Whether all caps but the process's own, and memory, admit one thread more."""
        background = self.background < self.background_cap
        return self.within_caps(job) and (background or not self.in_background(job))

    def first_of_memory(self) -> Job | None:
        """The job that the next room for memory is for, whether or not there is any."""
        found = [job for job in self.jobs if self.declares(job) and self.admitted(job)]
        return min(found, key=self.key, default=None)

    def choose(self) -> Job | None:
        first = []
        if self.running < self.cap:
            first = [job for job in self.jobs if not self.declares(job) and self.admitted(job)]
            declares = self.first_of_memory()
            if declares is not None and self.fits(declares):
                first.append(declares)
        if first:
            return min(first, key=self.key)
        first = [job for job in self.owed if not self.declares(job)]
        declares = min(filter(self.declares, self.owed), key=self.key, default=None)
        if declares is not None and self.fits(declares):
            first.append(declares)
        return min(first, key=self.key, default=None)

    @property
    def owed(self) -> list[Job]:
        """The jobs that chunks wait for and no thread serves."""
        return [job for job in self.jobs if job.ready and job.owed and not self.threads_of(job)]

    def memory_admits(self, job: Job) -> bool:
        if not self.declares(job):
            return True
        first = self.first_of_memory()
        overtakes = first is not None and self.key(first) < self.key(job) and not job.owed
        return self.fits(job) and not overtakes

    def memory_open(self) -> bool:
        """Whether some job that declares memory may be served, the process's cap apart."""
        owed = min(filter(self.declares, self.owed), key=self.key, default=None)
        firsts = [self.first_of_memory(), owed]
        return any(job is not None and self.fits(job) for job in firsts)

    def set_room(self, room: int | None) -> None:
        first = self.first_of_memory()
        if first is not None and not self.fits(first):
            waiting = [job for job in self.jobs if job.ready and self.declares(job)]
            lag = self.floor - min(job.runtime for job in waiting)
            for job in waiting:
                job.runtime += max(lag, 0)
        self.room = room

    def wanted(self, most: int) -> int:
        before = len(self.threads)
        while len(self.threads) - before < most and (job := self.choose()) is not None:
            self.enter(job, Counted.NOWHERE)
        found = len(self.threads) - before
        del self.threads[before:]
        return found

    def enter(self, job: Job, counted: Counted) -> Thread:
        account = Account.OWN
        if self.lends(job):
            account = Account.LENT
        elif self.in_background(job) and counted is Counted.NOWHERE:
            account = Account.BACKGROUND
        thread = Thread(job, Seat(account, counted))
        self.threads.append(thread)
        return thread

    def leave(self, thread: Thread, wall_ns: int) -> None:
        thread.leaves = True
        self.charge(thread.job, wall_ns, thread.seat.account)
        self.threads.remove(thread)

    def charge(self, job: Job, wall_ns: int, account: Account) -> None:
        job.served = True
        if account is Account.LENT and job.loan is not None:
            used = job.loan_runtime = job.loan_runtime + wall_ns * 1024.0 / weight(job.loan)
        else:
            used = job.runtime = job.runtime + wall_ns * 1024.0 / weight(job.nice)
        served = [each for each in self.jobs if each.served and self.within_caps(each)]
        might_be_served = [
            self.key(each)[1] for each in served if not self.declares(each) or self.memory_open()
        ]
        self.floor = max(self.floor, min([*might_be_served, used]))

    def set_group_cap(self, group: Limited, cap: int | None) -> None:
        group.cap = cap
        waiting = [job for job in self.jobs if job.group is group and job.ready]
        lag = self.floor - min((job.runtime for job in waiting), default=self.floor)
        for job in waiting:
            if lag > 0:
                job.runtime += lag

    def set_loan(self, job: Job, nice: int | None) -> None:
        if job.loan is None:
            job.loan_runtime = min(self.floor, job.runtime)
        job.loan = nice


class Beside(RuleBasedStateMachine):
    """The scheduler and the rule, told the same."""

    @initialize(cap=CAPS, background_cap=CAPS, caps=st.lists(st.none() | CAPS, min_size=1))
    def begin(self, cap: int, background_cap: int, caps: list[int | None]) -> None:
        self.scheduler = Scheduler(cap)
        self.scheduler.background_cap = background_cap
        self.scheduler.look_at_memory((), pressed=False)
        self.rule = Rule(cap, background_cap)
        self.groups = [(Limited(each), Group(each)) for each in caps[:4]]
        self.entries: dict[Job, Entry] = {}

    def draw(self, data: Any) -> tuple[Job, Entry]:
        job = data.draw(st.sampled_from(self.rule.jobs))
        return job, self.entries[job]

    # Jobs.

    @rule(
        data=st.data(),
        nice=NICE,
        limit=st.integers(1, 4),
        gives_way=st.booleans(),
        memory=MEMORY,
    )
    def submit(self, data: Any, nice: int, limit: int, gives_way: bool, memory: int) -> None:
        limited, group = data.draw(st.sampled_from(self.groups))
        floor = self.rule.floor
        job = Job(limited, nice, limit, gives_way, len(self.entries), floor, loan_runtime=floor)
        entry = self.entries[job] = Entry(job, group, nice, limit)
        entry.gives_way = gives_way
        entry.memory = job.memory = memory
        self.rule.jobs.append(job)
        self.scheduler.add(entry)
        job.ready = True
        self.scheduler.set_ready(entry)

    @precondition(lambda self: self.rule.jobs)
    @rule(data=st.data())
    def has_nothing_to_claim(self, data: Any) -> None:
        job, entry = self.draw(data)
        job.ready = False
        self.scheduler.set_idle(entry)

    @precondition(lambda self: self.rule.jobs)
    @rule(data=st.data(), undoing=st.booleans())
    def has_something_to_claim(self, data: Any, undoing: bool) -> None:
        job, entry = self.draw(data)
        if job.memory and self.rule.threads_of(job):  # no undo begins while threads work
            undoing = job.undoing
        if not job.ready:
            job.ready, job.undoing = True, undoing
        self.scheduler.set_ready(entry, undoing=undoing)

    @precondition(lambda self: self.rule.jobs)
    @rule(data=st.data())
    def ends(self, data: Any) -> None:
        job, entry = self.draw(data)
        if not self.rule.threads_of(job):
            self.rule.jobs.remove(job)
            self.scheduler.set_idle(entry)

    @precondition(lambda self: self.rule.jobs)
    @rule(data=st.data(), count=st.sampled_from([1, 1, 2, -1]))
    def is_waited_for(self, data: Any, count: int) -> None:
        job, entry = self.draw(data)
        if job.owed + count >= 0:
            job.owed += count
            self.scheduler.owe(entry, count)

    @precondition(lambda self: self.rule.jobs)
    @rule(data=st.data(), nice=NICE)
    def set_nice(self, data: Any, nice: int) -> None:
        job, entry = self.draw(data)
        job.nice = nice
        self.scheduler.set_nice(entry, nice)

    @precondition(lambda self: self.rule.jobs)
    @rule(data=st.data(), gives_way=st.booleans())
    def set_gives_way(self, data: Any, gives_way: bool) -> None:
        job, entry = self.draw(data)
        job.gives_way = gives_way
        self.scheduler.set_gives_way(entry, gives_way)

    @precondition(lambda self: self.rule.jobs)
    @rule(data=st.data(), nice=st.none() | NICE)
    def set_loan(self, data: Any, nice: int | None) -> None:
        job, entry = self.draw(data)
        self.rule.set_loan(job, nice)
        self.scheduler.set_loan(entry, nice)

    # Caps.

    @rule(cap=CAPS, background_cap=CAPS)
    def set_caps(self, cap: int, background_cap: int) -> None:
        self.rule.cap = self.scheduler.cap = cap
        self.rule.background_cap = self.scheduler.background_cap = background_cap

    @rule(data=st.data(), cap=st.none() | CAPS)
    def set_group_cap(self, data: Any, cap: int | None) -> None:
        limited, group = data.draw(st.sampled_from(self.groups))
        self.rule.set_group_cap(limited, cap)
        self.scheduler.set_group_cap(group, cap)

    @precondition(lambda self: self.rule.jobs)
    @rule(data=st.data(), limit=st.integers(1, 4))
    def set_limit(self, data: Any, limit: int) -> None:
        job, entry = self.draw(data)
        job.limit, job.runtime = limit, max(job.runtime, self.rule.floor)
        self.scheduler.set_limit(entry, limit)

    @rule(room=st.none() | st.integers(-3, 12))
    def room_for_memory_changes(self, room: int | None) -> None:
        memory = self.scheduler.memory
        self.rule.set_room(room)
        self.scheduler.look_at_memory((), pressed=False)
        memory.room = room

    @rule(waiting=st.integers(0, 3))
    def chunks_that_hold_memory_wait(self, waiting: int) -> None:
        self.rule.waiting = self.scheduler.memory.waiting = waiting

    # Threads.

    @rule(most=st.integers(1, 3))
    def helpers_come(self, most: int) -> None:
        for _ in range(most):
            job = self.rule.choose()
            if job is not None:
                self.enter(job, Counted.NOWHERE)

    @precondition(lambda self: self.rule.jobs)
    @rule(data=st.data(), counted=st.sampled_from(Counted))
    def a_caller_comes(self, data: Any, counted: Counted) -> None:
        job, _ = self.draw(data)
        if self.rule.threads_of(job) < job.limit:
            self.enter(job, counted)

    def enter(self, job: Job, counted: Counted) -> None:
        thread = self.rule.enter(job, counted)
        assert self.scheduler.enter(self.entries[job], counted) == thread.seat

    @precondition(lambda self: self.rule.threads)
    @rule(data=st.data(), wall_ns=WALL_NS, goes=st.booleans())
    def a_slice_ends(self, data: Any, wall_ns: int, goes: bool) -> None:
        thread = data.draw(st.sampled_from(self.rule.threads))
        job, entry = thread.job, self.entries[thread.job]
        if goes:
            self.scheduler.leave(entry, wall_ns, thread.seat)
            self.rule.leave(thread, wall_ns)
        else:
            self.scheduler.charge(entry, wall_ns, thread.seat.account)
            self.rule.charge(job, wall_ns, thread.seat.account)

    @precondition(lambda self: self.rule.threads)
    @rule(data=st.data())
    def a_thread_takes_the_loan(self, data: Any) -> None:
        thread = data.draw(st.sampled_from(self.rule.threads))
        if self.rule.lends(thread.job):
            thread.seat = self.scheduler.take_loan(self.entries[thread.job], thread.seat)

    @rule()
    def everything_is_rebuilt(self) -> None:
        self.scheduler.rebuild(
            [self.entries[job] for job in self.rule.jobs],
            [(self.entries[thread.job], thread.seat) for thread in self.rule.threads],
        )

    # What holds at all times.

    @invariant()
    def both_decide_the_same(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        chosen = self.scheduler.choose()
        assert self.rule.choose() is (None if chosen is None else chosen.run)
        for most in (1, 3, 20):
            assert self.scheduler.wanted(most) == self.rule.wanted(most)
        for cap in (1, 8):
            self.rule.cap, before = cap, self.rule.cap
            running = self.rule.running
            wish = running + self.rule.wanted(max(cap - running, 0))
            self.rule.cap = before
            assert self.scheduler.wish(cap) == wish
        for job in self.rule.jobs:
            may_enter = not self.rule.in_background(job)
            may_enter = may_enter or self.rule.background < self.rule.background_cap
            assert self.scheduler.may_enter(self.entries[job]) is may_enter
            admits = self.rule.memory_admits(job)
            assert self.scheduler.memory_admits(self.entries[job]) is admits

    @invariant()
    def both_count_the_same(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        assert self.scheduler.running == self.rule.running
        assert self.scheduler.background == self.rule.background
        holders = [thread.job for thread in self.rule.threads if self.rule.declares(thread.job)]
        memory = self.scheduler.memory
        assert (memory.held, memory.chunks) == (sum(j.memory for j in holders), len(holders))
        assert self.scheduler._floor == self.rule.floor
        for limited, group in self.groups:
            assert group.cap == limited.cap
            assert group.threads == self.rule.threads_in(limited)
        for job in self.rule.jobs:
            entry = self.entries[job]
            assert entry.threads == self.rule.threads_of(job)
            assert entry.loan_taken == self.rule.loan_taken(job)
            assert (entry.runtime, entry.loan_runtime) == (job.runtime, job.loan_runtime)

    @invariant()
    def nothing_is_queued_but_what_may_be_served(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        queues = self.scheduler._queues
        for key in [*queues.foreground, *queues.background]:
            assert self.rule.within_caps(key[-1].run)
            assert not self.rule.declares(key[-1].run)
        queues = self.scheduler._memory_queues
        for key in [*queues.foreground, *queues.background]:
            assert self.rule.within_caps(key[-1].run)
            assert self.rule.declares(key[-1].run)


TestBeside = Beside.TestCase
TestBeside.settings = settings(stateful_step_count=60, max_examples=60)


# What a call costs.


class Compared(float):
    """A runtime that counts how often it is compared."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        Compared.comparisons += 1
        return float(self) == other

    def __lt__(self, other: float) -> bool:
        Compared.comparisons += 1
        return float(self) < float(other)

    def __gt__(self, other: float) -> bool:
        Compared.comparisons += 1
        return float(self) > float(other)

    __hash__ = float.__hash__


CROWDS = {
    "one coordinator": lambda jobs: (1, None),
    "one coordinator with a cap": lambda jobs: (1, 4),
    "a coordinator for each job": lambda jobs: (jobs, None),
    "a coordinator with a cap for each job": lambda jobs: (jobs, 4),
}


def crowd(jobs: int, groups: int, cap: int | None) -> tuple[Scheduler, list[Entry]]:
    """Jobs of which a third is at its limit, and a third owed a thread; all were served."""
    scheduler = Scheduler(jobs * 2)
    made = [Group(cap) for _ in range(groups)]
    entries = []
    for number in range(jobs):
        entry = Entry(number, made[number % groups], 0, 1)
        scheduler.add(entry)
        entry.runtime = Compared(number)
        entry.served = True
        scheduler.set_ready(entry)
        if number % 3 == 0:
            scheduler.owe(entry, 1)
        elif number % 3 == 1:
            scheduler.enter(entry, Counted.IN_GROUP)
        entries.append(entry)
    scheduler.cap = scheduler.running + 3
    return scheduler, entries


def serve(scheduler: Scheduler, entry: Entry) -> None:
    """Serve the entry for a slice."""
    scheduler.leave(entry, SLICE_NS, scheduler.enter(entry))


def be_idle(scheduler: Scheduler, entry: Entry) -> None:
    """End and begin to have something to claim."""
    scheduler.set_idle(entry)
    scheduler.set_ready(entry)


CALLS: dict[str, Callable[[Scheduler, Entry], object]] = {
    "choose": lambda scheduler, entry: scheduler.choose(),
    "wanted": lambda scheduler, entry: scheduler.wanted(3),
    "enter and leave": serve,
    "charge": lambda scheduler, entry: scheduler.charge(entry, SLICE_NS),
    "set_nice": lambda scheduler, entry: scheduler.set_nice(entry, 5),
    "set_limit": lambda scheduler, entry: scheduler.set_limit(entry, 2),
    "set_idle and set_ready": be_idle,
    "set_loan": lambda scheduler, entry: scheduler.set_loan(entry, -5),
    "set_gives_way": lambda scheduler, entry: scheduler.set_gives_way(entry, True),
    "owe": lambda scheduler, entry: scheduler.owe(entry, 1),
    "add": lambda scheduler, entry: scheduler.add(Entry("new", entry.group, 0, 1)),
    "repr": lambda scheduler, entry: repr(scheduler),
}


@pytest.mark.parametrize("groups_of", CROWDS.values(), ids=CROWDS)
def test_a_call_costs_no_more_beside_twenty_thousand_jobs_than_beside_ten(
    groups_of: Callable[[int], tuple[int, int | None]],
) -> None:
    few, many = 30, 20_000
    small, large = crowd(few, *groups_of(few)), crowd(many, *groups_of(many))
    for name, call in CALLS.items():
        for position in (0, 1, 2):  # of each kind one, in the middle
            lines, comparisons = [], []
            for scheduler, entries in (small, large):
                entry = entries[len(entries) // 2 // 3 * 3 + position]
                Compared.comparisons = 0
                lines.append(lines_of(lambda: call(scheduler, entry), queue))  # noqa: B023
                comparisons.append(Compared.comparisons)
            assert lines[1] <= lines[0] + 5, name
            # One list is bisected at most 20 times in a call, with two comparisons a step.
            assert comparisons[1] - comparisons[0] <= 40 * log2(many / few), name
