# SPDX-License-Identifier: MIT
# Which job a free thread serves next.
#
# Pure: state in, decision out; the caller holds the engine's lock. Shares follow virtual runtime,
# as in the kernel's fair scheduler: the wall time that threads spent on a job, divided by the
# weight of its nice. The job that is furthest behind is served next, so none starves; among equals,
# such as jobs that have not started, the one of lower nice. Three caps bound the threads: the
# process's, the coordinator's (a Group) and the job's (an Entry); a fourth those of all jobs that
# give way to other processes. An undo goes before all chunks. Jobs that declare what memory a chunk
# takes share a budget of it as well (`scheduling/memory.py`).
#
# A job that a more urgent waiter waits for has a loan: one thread at a time serves it at the
# waiter's nice, on an account of its own that starts level with the others. While that thread is
# wanted the job is queued by the loan, whatever it used up itself, and else by its own account.
#
# Guarantees: every call costs the same beside 10 and beside 20,000 jobs and coordinators, but for
# the logarithm of a bisection; `set_group_cap`, `rebuild` and, where memory was short,
# `look_at_memory` pass over the jobs they are about.
# What makes that so: a job stands in a queue only while one thread more may serve it. The queues of
# a coordinator with a cap are its own, and only the first of each stands in the process's queues
# too, as the delegate of the others, and only while the coordinator is below its cap. So whatever
# is first in the process's queues may be served, and nothing is ever skipped. Jobs that declare
# memory stand in queues of their own, in the same way, which are open while the chunk of the first
# job there fits into the budget: so no job that wants less goes before it.
"""The choice of a job, under caps and shares."""

from __future__ import annotations

import contextlib
from bisect import bisect_left, insort
from collections.abc import Iterable
from enum import Enum, IntEnum
from typing import Any, NamedTuple

from aioktask.engine.machine.available_memory import MemoryLimit
from aioktask.engine.scheduling.memory import MemoryBudget

# A thread serves one job for this long before the choice is made again.
SLICE_NS = 10_000_000

NICE_0_WEIGHT = 1024.0

# How many of those that wait are named in the representation of a scheduler.
NAMED = 10

_WEIGHTS = {nice: NICE_0_WEIGHT / 1.25**nice for nice in range(-20, 20)}

# What entries are sorted by, the least first: False for an undo and True for chunks, runtime, nice,
# order of arrival, and the entry itself, which is never compared: no two arrived together.
Key = tuple[bool, float, int, int, "Entry"]


def weight(nice: int) -> float:
    """The share of a job of this nice: 1024 at 0, and 1.25 times as much for each step down.

    Source: ``sched_prio_to_weight`` of the Linux scheduler, which rounds these numbers.
    """
    return _WEIGHTS[nice]


class Account(Enum):
    """On what account a thread serves a job."""

    OWN = "own"
    LENT = "lent"  # at a waiter's nice
    BACKGROUND = "background"  # its own, and it gives way to other processes


class Counted(IntEnum):
    """Where a thread that begins to serve a job counts as running already."""

    NOWHERE = 0
    IN_PROCESS = 1
    IN_GROUP = 2  # in the process, and in the job's group


# A name of the module is looked up in a tenth of the time that a member of an Enum takes.
OWN, LENT, BACKGROUND = Account
NOWHERE, IN_PROCESS, IN_GROUP = Counted


class Seat(NamedTuple):
    """How a thread that serves a job is accounted for: given by `enter`, taken back by `leave`."""

    account: Account = OWN
    counted: Counted = NOWHERE


# Every seat there is, made once, by `Counted` and then in the order of `Account`.
SEATS = tuple(tuple(Seat(account, counted) for account in Account) for counted in Counted)
OWN_SEAT = SEATS[NOWHERE][0]


class Queues:
    """Jobs that one thread more may serve, in the order of the choice.

    Attributes:
        foreground: Keys of jobs: undoing ones first, then by runtime, then by nice.
        background: Keys of jobs that give way to other processes, in the same order.
        served: The runtimes in the keys of those, in both queues, that were served before.
    """

    __slots__ = ("background", "foreground", "served")

    def __init__(self) -> None:
        self.foreground: list[Key] = []
        self.background: list[Key] = []
        self.served: list[float] = []


# What a coordinator has in the process's queues: its first job in the foreground and in the
# background, and the least runtime of those that were served.
Delegates = tuple[Key | None, Key | None, float | None]
NO_DELEGATES: Delegates = (None, None, None)


class Group:
    """What the jobs of one coordinator share: a cap.

    Attributes:
        cap: The most threads for all its jobs together, None for no limit of its own.
        threads: Threads that serve its jobs now.
        ready: Its entries with something to claim.
        queues: Those that one thread more may serve but for this cap; empty without a cap, since
            then they stand in the process's queues.
        delegates: What stands for them in the process's queues.
        memory_queues: The same of those that declare memory.
        memory_delegates: What stands for these.
    """

    __slots__ = (
        "cap",
        "delegates",
        "memory_delegates",
        "memory_queues",
        "queues",
        "ready",
        "threads",
    )

    def __init__(self, cap: int | None = None) -> None:
        self.cap = cap
        self.threads = 0
        self.ready: dict[Entry, None] = {}
        self.queues = Queues()
        self.delegates = NO_DELEGATES
        self.memory_queues = Queues()
        self.memory_delegates = NO_DELEGATES


class Entry:
    """One job as the scheduler sees it.

    Attributes:
        run: Whom it stands for; the scheduler does not look inside.
        limit: The most threads for this job, at least 1.
        threads: Threads that serve it now.
        owed: Chunks that wait for this job. While no thread serves it, it may have one beyond every
            cap but its own, since those chunks hold threads.
        ready: Whether it has something to claim.
        undoing: Whether that is an undo.
        served: Whether a thread has served it.
        loan: The nice of a waiter that is more urgent than the job, None where there is none.
        loan_taken: Whether a thread serves it at that nice now.
        gives_way: Whether it leaves the CPUs to other processes that want them.
        memory: Bytes that each of its chunks declares; 0 for none.
        key: Its key while it is queued.
        queue: The queue that it is in while it is queued.
        owed_key: Its key while it is queued and owed a thread.
    """

    __slots__ = (
        "gives_way",
        "group",
        "key",
        "limit",
        "loan",
        "loan_runtime",
        "loan_taken",
        "memory",
        "nice",
        "owed",
        "owed_key",
        "queue",
        "ready",
        "run",
        "runtime",
        "sequence",
        "served",
        "threads",
        "undoing",
    )

    def __init__(self, run: Any, group: Group, nice: int, limit: int) -> None:
        self.run = run
        self.group = group
        self.nice = nice
        self.limit = limit
        self.threads = 0
        self.owed = 0
        self.runtime = 0.0
        self.sequence = 0
        self.ready = False
        self.undoing = False
        self.served = False
        self.loan: int | None = None
        self.loan_runtime = 0.0
        self.loan_taken = False
        self.gives_way = False
        self.memory = 0
        self.key: Key | None = None
        self.queue: list[Key] = group.queues.foreground
        self.owed_key: Key | None = None

    @property
    def urgency(self) -> int:
        """The nice at which a wait inside a chunk of the job counts: the loan, else the job's."""
        return self.nice if self.loan is None else self.loan

    @property
    def loan_offered(self) -> bool:
        """Whether the next thread would serve it at its waiter's nice."""
        return self.loan is not None and not self.loan_taken

    @property
    def in_background(self) -> bool:
        """Whether the next thread would give way to other processes."""
        return self.gives_way and not self.undoing and not self.loan_offered

    @property
    def holds_memory(self) -> bool:
        """Whether each thread that serves it holds memory of the budget: an undo declares none."""
        return self.memory > 0 and not self.undoing

    def new_key(self) -> Key:
        """The key under which the next thread finds the entry in a queue."""
        if self.loan is not None and not self.loan_taken:
            return (not self.undoing, self.loan_runtime, self.loan, self.sequence, self)
        return (not self.undoing, self.runtime, self.nice, self.sequence, self)

    def cost(self, wall_ns: int) -> float:
        """What the wall time of one thread counts as virtual runtime."""
        return wall_ns * NICE_0_WEIGHT / weight(self.nice)


class Scheduler:
    """The entries that have something to claim, and the choice among them.

    Attributes:
        cap: The most threads in this process; may change at any time.
        running: Threads that serve some job now. Calling threads are never refused, so it can be
            above the cap.
        blocked: How many of them make room for one more each, since their calls block without
            using a CPU. Set by the caller, who bounds it.
        background_cap: The most of them for jobs that give way to other processes.
        background: How many serve such jobs.
        memory: The budget of jobs that declare what memory a chunk takes.
    """

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.running = 0
        self.blocked = 0
        self.background_cap = cap
        self.background = 0
        self.memory = MemoryBudget()
        self._queues = Queues()  # of jobs without a coordinator's cap, and of delegates
        self._owed: list[Key] = []  # of queued entries that chunks wait for and no thread serves
        self._memory_queues = Queues()  # the same of those that declare memory
        self._memory_owed: list[Key] = []
        self._memory_ready: dict[Entry, None] = {}  # all of these, queued or not
        self._floor = 0.0  # where a new job starts
        self._sequence = 0

    def __repr__(self) -> str:
        keys = sorted(self._queues.foreground[:NAMED] + self._queues.background[:NAMED])
        first = [
            f"{entry.run}: nice {entry.nice}, {entry.threads}/{entry.limit} threads"
            for *_, entry in keys[:NAMED]
        ]
        return f"<Scheduler {self.running}/{self.cap} running; first: {', '.join(first) or 'none'}>"

    # What the entries and groups are.

    def add(self, entry: Entry) -> None:
        """Let a new job start level with the one that is furthest behind among those served."""
        entry.runtime = entry.loan_runtime = self._floor
        self._sequence += 1
        entry.sequence = self._sequence

    def set_ready(self, entry: Entry, *, undoing: bool = False) -> None:
        """Take in that the entry has something to claim."""
        if entry.ready:
            return
        entry.ready = True
        entry.undoing = undoing
        entry.group.ready[entry] = None
        if entry.memory and not undoing:
            self._memory_ready[entry] = None
        self._place(entry)

    def set_ready_again(self, entry: Entry) -> None:
        """Take in that an entry that had nothing to claim has something now.

        What it did not use meanwhile is not made good.
        """
        if not entry.ready:
            entry.runtime = max(entry.runtime, self._floor)
            self.set_ready(entry)

    def set_idle(self, entry: Entry) -> None:
        """Take in that the entry has nothing to claim at present."""
        if not entry.ready:
            return
        entry.ready = False
        del entry.group.ready[entry]
        if entry.memory:
            self._memory_ready.pop(entry, None)
        self._place(entry)

    def set_nice(self, entry: Entry, nice: int) -> None:
        """Change the weight of what comes; what was used stays counted as it was."""
        entry.nice = nice
        self._place(entry)

    def set_limit(self, entry: Entry, limit: int) -> None:
        """Change the job's own limit; what the old one kept it from using is not made good."""
        entry.limit = limit
        entry.runtime = max(entry.runtime, self._floor)
        self._place(entry)

    def set_group_cap(self, group: Group, cap: int | None) -> None:
        """Change a coordinator's cap.

        What the old one kept its jobs from using is not made good; the shares among them stay as
        they are. The call passes over all of its jobs that have something to claim.
        """
        # From the last to the first and back again: little has to move in a sorted list then.
        waiting = sorted(group.ready, key=Entry.new_key)
        for entry in reversed(waiting):
            self._take_out(entry)
        group.cap = cap
        self._put_back(waiting)
        self._send_delegates(group)

    def _put_back(self, waiting: list[Entry]) -> None:
        """Queue what was taken out, level with the rest: its shares among each other stay."""
        lag = self._floor - min((entry.runtime for entry in waiting), default=self._floor)
        for entry in waiting:
            if lag > 0:
                entry.runtime += lag
            if entry.threads < entry.limit:
                self._put_in(entry)

    def look_at_memory(self, limits: Iterable[MemoryLimit], *, pressed: bool) -> None:
        """Take in how much memory is left; see `MemoryBudget.look`.

        What those that declare memory could not use while it was short is not made good; the shares
        among them stay as they are. The call passes over all of them then.
        """
        first = self.first_of_memory()
        if first is not None and not self._fits(first):
            self._level_memory()
        self.memory.look(limits, pressed=pressed, step=0 if first is None else first.memory)

    def _level_memory(self) -> None:
        """Level the jobs that declare memory, which had to wait, with the rest."""
        waiting = sorted(self._memory_ready, key=Entry.new_key)
        if min(entry.runtime for entry in waiting) >= self._floor:
            return
        for entry in reversed(waiting):
            self._take_out(entry)
        self._put_back(waiting)
        for group in {entry.group for entry in waiting if entry.group.cap is not None}:
            self._send_delegates(group)

    def set_gives_way(self, entry: Entry, gives_way: bool) -> None:
        """Have the job's next threads give way or not; those that serve it stay as counted."""
        entry.gives_way = gives_way
        self._place(entry)

    def set_loan(self, entry: Entry, nice: int | None) -> None:
        """Have one thread at a time serve it at this nice; None to end that."""
        if entry.loan is None:
            entry.loan_runtime = min(self._floor, entry.runtime)
        entry.loan = nice
        self._place(entry)

    def take_loan(self, entry: Entry, seat: Seat) -> Seat:
        """Move a thread that serves the entry in another seat to the waiter's nice."""
        if seat.account is BACKGROUND:
            self.background -= 1
        entry.loan_taken = True
        self._place(entry)
        return SEATS[seat.counted][1]

    def owe(self, entry: Entry, count: int) -> None:
        """Take in that `count` more (or fewer) chunks wait for this job."""
        before = entry.owed
        entry.owed += count
        if not before or not entry.owed:
            self._place(entry)

    # The choice.

    def choose(self) -> Entry | None:
        """The job that a helper with nothing to do should serve, or None."""
        return self._choose(self.cap)

    def _choose(self, cap: int) -> Entry | None:
        if self._memory_ready:
            return self._choose_by_memory(cap)
        if self.running - self.blocked < cap:
            foreground, background = self._queues.foreground, self._queues.background
            admitted = background and self.background < self.background_cap
            if admitted and (not foreground or background[0] < foreground[0]):
                return background[0][-1]
            if foreground:
                return foreground[0][-1]
        return self._owed[0][-1] if self._owed else None

    def _choose_by_memory(self, cap: int) -> Entry | None:
        """The choice where some jobs declare memory: the first of them comes only if it fits."""
        chosen = None
        if self.running - self.blocked < cap:
            chosen = self._earlier(self._first(self._queues), self._first(self._memory_queues))
        if chosen is None:
            owed, declares = self._owed, self._memory_owed
            chosen = self._earlier(owed[0] if owed else None, declares[0] if declares else None)
        return None if chosen is None else chosen[-1]

    def _earlier(self, key: Key | None, declares: Key | None) -> Key | None:
        """The earlier one of two keys, the second of which counts only if it fits the budget."""
        if declares is None or not self._fits(declares[-1]):
            return key
        return declares if key is None or declares < key else key

    def _fits(self, entry: Entry) -> bool:
        """Whether the budget has room for one more chunk of the entry."""
        return self.memory.fits(entry.memory, owed=entry.owed > 0)

    def _first(self, queues: Queues) -> Key | None:
        """The key that comes first in the queues, those in the background if one may be served."""
        foreground, background = queues.foreground, queues.background
        admitted = background and self.background < self.background_cap
        if admitted and (not foreground or background[0] < foreground[0]):
            return background[0]
        return foreground[0] if foreground else None

    def first_of_memory(self) -> Entry | None:
        """The job that the next room in the budget is for."""
        key = self._first(self._memory_queues)
        return None if key is None else key[-1]

    @property
    def _memory_open(self) -> bool:
        """Whether a job that declares memory may be served, the process's cap apart."""
        keys = self._memory_owed[:1], self._first(self._memory_queues)
        return any(self._fits(key[-1]) for key in (*keys[0], keys[1]) if key is not None)

    def memory_admits(self, entry: Entry) -> bool:
        """Whether a calling thread may serve it: it has the room, and no other job waits for that.

        One that chunks wait for need not wait for others.
        """
        if not entry.holds_memory:
            return True
        first = self._first(self._memory_queues)
        overtakes = first is not None and first < entry.new_key() and not entry.owed
        return not overtakes and self._fits(entry)

    def lacks_memory(self, entry: Entry) -> str:
        """Why no further chunk of the entry begins, where that is for want of memory; else empty.

        May be called on any thread, without the lock.
        """
        if not entry.holds_memory or not entry.ready or entry.threads >= entry.limit:
            return ""
        if not self._fits(entry):
            return self.memory.reason(entry.memory)
        first: Entry | None = None
        with contextlib.suppress(IndexError):  # a turn may take the last one out meanwhile
            first = self.first_of_memory()
        if first is None or first is entry or self._fits(first):
            return ""
        return f"{self.memory.reason(first.memory)} of another job, which comes before"

    @property
    def anybody_waits(self) -> bool:
        """Whether some job could have one helper more, the process's caps apart."""
        queues = self._queues
        if queues.foreground or queues.background or self._owed:
            return True
        return bool(self._memory_ready) and self._memory_open

    @property
    def room(self) -> int:
        """How many threads more the process's cap leaves."""
        return max(self.cap + self.blocked - self.running, 0)

    def has_room(self, group: Group) -> bool:
        """Whether a helper may serve a job of the group at once: no other one waits for helpers."""
        if self.anybody_waits or self.running - self.blocked >= self.cap:
            return False
        return group.cap is None or group.threads < group.cap

    def may_enter(self, entry: Entry) -> bool:
        """Whether a calling thread may serve it: always, unless it gives way to other processes."""
        return not entry.in_background or self.background < self.background_cap

    def wanted(self, most: int) -> int:
        """How many more helpers would find something to do, counted up to `most`."""
        return self._wanted(most, self.cap)

    def wish(self, cap: int) -> int:
        """How many threads would use CPUs now if the process's cap were this one."""
        using = self.running - self.blocked
        return using + self._wanted(max(cap - using, 0), cap)

    def _wanted(self, most: int, cap: int) -> int:
        taken: list[tuple[Entry, Seat]] = []
        while len(taken) < most and (entry := self._choose(cap)) is not None:
            taken.append((entry, self.enter(entry)))
        for entry, seat in reversed(taken):
            self._count(entry, -1, NOWHERE)
            self._vacate(entry, seat)
            self._follow_threads(entry)
        return len(taken)

    # Threads.

    def enter(self, entry: Entry, counted: Counted = NOWHERE) -> Seat:
        """Count a thread that begins to serve the entry; returns its seat, for `leave`.

        Args:
            entry: The job that it serves.
            counted: Where it counts as running already: a thread inside a chunk does so in the
                process, and in the group if that chunk, or one that it is nested in, is of the same
                coordinator.
        """
        self._count(entry, 1, counted)
        own, _, background = SEATS[counted]
        if entry.loan is not None and not entry.loan_taken:
            return self.take_loan(entry, own)
        self._follow_threads(entry)
        if entry.gives_way and not entry.undoing and counted is NOWHERE:
            self.background += 1
            return background
        return own

    def leave(self, entry: Entry, wall_ns: int, seat: Seat = OWN_SEAT) -> None:
        """Count a thread that stops serving the entry, which it did for `wall_ns`."""
        self._count(entry, -1, seat.counted)
        self.charge(entry, wall_ns, seat.account)
        self._vacate(entry, seat)

    def enter_at_once(self, entry: Entry) -> None:
        """Let a new job start, and count its first thread, which has all that there is to claim.

        Its group `has_room`, so the job stands in no queue.
        """
        entry.runtime = entry.loan_runtime = self._floor
        self._sequence += 1
        entry.sequence = self._sequence
        entry.threads = 1
        entry.group.threads += 1
        self.running += 1

    def charge(self, entry: Entry, wall_ns: int, account: Account = OWN) -> None:
        """Count the wall time of one thread against the entry's share, or against its loan."""
        if not entry.served:
            entry.served = True
            if entry.key is not None:
                insort(self._queues_of(entry).served, entry.key[1])
        if account is LENT and entry.loan is not None:
            entry.loan_runtime += wall_ns * NICE_0_WEIGHT / weight(entry.loan)
            used = entry.loan_runtime
        else:
            entry.runtime += entry.cost(wall_ns)
            used = entry.runtime
        if entry.ready or entry.group.cap is not None:
            self._place(entry)
        # New jobs start with the least runtime among those that were served and might be served
        # now. It moves with what is used up, and jobs that have not been served are left out: or a
        # stream of short jobs, each starting there, would always come before a long one.
        served = self._queues.served
        least = min(served[0], used) if served else used
        if self._memory_queues.served and self._memory_open:
            least = min(least, self._memory_queues.served[0])
        self._floor = max(self._floor, least)

    def rebuild(self, entries: Iterable[Entry], serving: Iterable[tuple[Entry, Seat]]) -> None:
        """Make every count and queue anew, after an exception struck in the middle of a call.

        The caps, `blocked`, the runtimes and what an entry says of itself (`ready`, `undoing`,
        `nice`, `limit`, `owed`, `loan`, `gives_way`) are trusted; what an interrupted call was to
        change in these must be set again afterwards.

        Args:
            entries: All those of jobs that are not over, or were not when the call began.
            serving: The entry and the seat of each thread that serves a job.
        """
        serving = list(serving)
        everybody = dict.fromkeys([*entries, *(entry for entry, *_ in serving)])
        self._queues, self._memory_queues = Queues(), Queues()
        self._owed, self._memory_owed = [], []
        self._memory_ready = {}
        self.memory.held = self.memory.chunks = 0
        self.running = self.background = 0
        for group in {entry.group for entry in everybody}:
            group.threads = 0
            group.ready = {}
            group.queues, group.memory_queues = Queues(), Queues()
            group.delegates = group.memory_delegates = NO_DELEGATES
        for entry in everybody:
            entry.threads = 0
            entry.loan_taken = False
            entry.key = entry.owed_key = None
        for entry, seat in serving:
            self._count(entry, 1, seat.counted)
            if seat.account is LENT:
                entry.loan_taken = True
            elif seat.account is BACKGROUND:
                self.background += 1
        for entry in sorted(everybody, key=Entry.new_key):
            if entry.ready:
                entry.group.ready[entry] = None
                if entry.holds_memory:
                    self._memory_ready[entry] = None
                self._place(entry)

    def _count(self, entry: Entry, threads: int, counted: Counted) -> None:
        entry.threads += threads
        if counted is not IN_GROUP:
            entry.group.threads += threads
        if counted is NOWHERE:
            self.running += threads
        if entry.memory and not entry.undoing:
            self.memory.hold(entry.memory, threads)

    def _vacate(self, entry: Entry, seat: Seat) -> None:
        if seat.account is BACKGROUND:
            self.background -= 1
        elif seat.account is LENT:
            entry.loan_taken = False
            self._place(entry)

    # The queues, which follow from all that.

    def _place(self, entry: Entry) -> None:
        """Queue the entry by what it is now, and not at all where no thread more may serve it."""
        self._take_out(entry)
        if entry.ready and entry.threads < entry.limit:
            self._put_in(entry)
        if entry.group.cap is not None:
            self._send_delegates(entry.group)

    def _follow_threads(self, entry: Entry) -> None:
        """Place the entry after a change of its threads alone, which seldom moves it."""
        may_be_queued = entry.threads < entry.limit
        if entry.owed or may_be_queued != (entry.key is not None):
            self._place(entry)
        elif entry.group.cap is not None:
            self._send_delegates(entry.group)

    def _take_out(self, entry: Entry) -> None:
        key = entry.key
        if key is None:
            return
        entry.key = None
        queue = entry.queue
        del queue[bisect_left(queue, key)]
        if entry.served:
            served = self._queues_of(entry).served
            del served[bisect_left(served, key[1])]
        if entry.owed_key is not None:
            entry.owed_key = None
            owed = self._memory_owed if entry.holds_memory else self._owed
            del owed[bisect_left(owed, key)]

    def _put_in(self, entry: Entry) -> None:
        queues = self._queues_of(entry)
        key = entry.key = entry.new_key()
        entry.queue = queues.background if entry.in_background else queues.foreground
        insort(entry.queue, key)
        if entry.served:
            insort(queues.served, key[1])
        if entry.owed and not entry.threads:
            entry.owed_key = key
            insort(self._memory_owed if entry.holds_memory else self._owed, key)

    def _queues_of(self, entry: Entry) -> Queues:
        group = entry.group
        if entry.memory and not entry.undoing:
            return self._memory_queues if group.cap is None else group.memory_queues
        return self._queues if group.cap is None else group.queues

    def _send_delegates(self, group: Group) -> None:
        """Have the first entries of a group below its cap stand in the process's queues."""
        below = group.cap is not None and group.threads < group.cap
        own = group.queues if below else _CLOSED
        group.delegates = _send(own, self._queues, group.delegates)
        if self._memory_ready or group.memory_delegates is not NO_DELEGATES:
            own = group.memory_queues if below else _CLOSED
            group.memory_delegates = _send(own, self._memory_queues, group.memory_delegates)


# What a group at its cap has for the process's queues: nothing.
_CLOSED = Queues()


def _send(own: Queues, process: Queues, before: Delegates) -> Delegates:
    """Have the first entries of a group's queues stand in the process's; returns what does."""
    foreground = own.foreground[0] if own.foreground else None
    background = own.background[0] if own.background else None
    served = own.served[0] if own.served else None
    if foreground is not before[0]:
        _replace(process.foreground, before[0], foreground)
    if background is not before[1]:
        _replace(process.background, before[1], background)
    if served != before[2]:
        _replace(process.served, before[2], served)
    if foreground is None and background is None and served is None:
        return NO_DELEGATES
    return foreground, background, served


def _replace(queue: list[Any], before: Any, after: Any) -> None:
    if before is not None:
        del queue[bisect_left(queue, before)]
    if after is not None:
        insort(queue, after)
