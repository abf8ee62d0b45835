# SPDX-License-Identifier: MIT
# Which job a free thread serves next.
#
# Pure: state in, decision out; the caller holds the engine's lock. Shares follow virtual runtime,
# as in the kernel's fair scheduler: the wall time that threads spent on a job, divided by the
# weight of its nice. The job that is furthest behind is served next, so none starves; among equals,
# such as jobs that have not started, the one of lower nice. Three caps bound the threads: the
# process's, the coordinator's (a Group) and the job's (an Entry); a fourth those of all jobs that
# give way to other processes. An undo goes before all chunks.
#
# A job that somebody of higher priority waits for has a loan: one thread at a time serves it at the
# waiter's nice, on an account of its own that starts level with the others. While that thread is
# wanted the job is queued by the loan, whatever it used up itself, and else by its own account.
"""The choice of a job, under caps and shares."""

from __future__ import annotations

from bisect import bisect_left, insort
from enum import Enum
from itertools import chain
from typing import Any

# A thread serves one job for this long before the choice is made again.
SLICE_NS = 10_000_000

NICE_0_WEIGHT = 1024.0

# How many waiting jobs of a coordinator are looked through for one that was served before.
LOOK_AHEAD = 64

Key = tuple[bool, float, int, int]  # an undo or not, runtime, nice, sequence


def weight(nice: int) -> float:
    """The share of a job of this nice: 1024 at 0, and 1.25 times as much for each step down.

    Source: ``sched_prio_to_weight`` of the Linux scheduler, which rounds these numbers.
    """
    return NICE_0_WEIGHT / 1.25**nice


class Seat(Enum):
    """On what account a thread serves a job."""

    OWN = "own"
    LENT = "lent"  # at a waiter's nice
    BACKGROUND = "background"  # its own, and it gives way to other processes


class Group:
    """What the jobs of one coordinator share: a cap.

    Attributes:
        cap: The most threads for all its jobs together, None for no limit of its own.
        threads: Threads that serve its jobs now.
        ready: Its entries with something to claim, by key: undoing ones first, then by runtime,
            then by nice.
        background: Likewise, those that give way to other processes.
    """

    __slots__ = ("background", "cap", "ready", "threads")

    def __init__(self, cap: int | None = None) -> None:
        self.cap = cap
        self.threads = 0
        self.ready: list[tuple[Key, Entry]] = []
        self.background: list[tuple[Key, Entry]] = []


class Entry:
    """One job as the scheduler sees it.

    Attributes:
        run: Whom it stands for; the scheduler does not look inside.
        limit: The most threads for this job.
        threads: Threads that serve it now.
        owed: Chunks that wait for this job. While nobody serves it, it may have one thread beyond
            every cap but its own, since those chunks hold threads.
        loan: The nice of a waiter that is more urgent than the job, None where there is none.
        loan_taken: Whether a thread serves it at that nice now.
        gives_way: Whether it leaves the CPUs to other processes that want them.
    """

    __slots__ = (
        "gives_way",
        "group",
        "key",
        "limit",
        "loan",
        "loan_runtime",
        "loan_taken",
        "nice",
        "owed",
        "queue",
        "ready",
        "run",
        "runtime",
        "served",
        "threads",
    )

    def __init__(self, run: Any, group: Group, nice: int, limit: int) -> None:
        self.run = run
        self.group = group
        self.nice = nice
        self.limit = limit
        self.threads = 0
        self.owed = 0
        self.runtime = 0.0
        self.served = False
        self.ready = False
        self.queue = group.ready  # that it is in while it is ready
        self.key: Key = (True, 0.0, 0, 0)
        self.loan: int | None = None
        self.loan_runtime = 0.0
        self.loan_taken = False
        self.gives_way = False

    @property
    def loan_offered(self) -> bool:
        """Whether the next thread would serve it at its waiter's nice."""
        return self.loan is not None and not self.loan_taken

    def cost(self, wall_ns: int) -> float:
        """What the wall time of one thread counts as virtual runtime."""
        return wall_ns * NICE_0_WEIGHT / weight(self.nice)


class Scheduler:
    """The entries that have something to claim, and who may be served.

    Attributes:
        cap: The most threads in this process; may change at any time.
        running: Threads that serve some job now. Calling threads are never refused, so it can be
            above the cap.
        background_cap: The most of them for jobs that give way to other processes.
        background: How many serve such jobs.
    """

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.running = 0
        self.background_cap = cap
        self.background = 0
        self._groups: dict[Group, None] = {}  # those with ready entries
        self._owed: dict[Entry, None] = {}  # ready entries that a chunk waits for
        self._floor = 0.0  # where a new job starts
        self._sequence = 0

    def __repr__(self) -> str:
        queues = ", ".join(
            f"{entry.run}: nice {entry.nice}, {entry.threads}/{entry.limit} threads"
            for group in self._groups
            for _, entry in chain(group.ready, group.background)
        )
        return f"<Scheduler {self.running}/{self.cap} running; ready: {queues or 'none'}>"

    def add(self, entry: Entry) -> None:
        """A new job: it starts level with the job that is furthest behind among those served."""
        entry.runtime = entry.loan_runtime = self._floor
        self._sequence += 1
        entry.key = (True, 0.0, 0, self._sequence)

    def set_ready(self, entry: Entry, *, undoing: bool = False) -> None:
        """The entry has something to claim."""
        if entry.ready:
            return
        entry.ready = True
        group = entry.group
        if entry.loan is not None and not entry.loan_taken:
            entry.key = (not undoing, entry.loan_runtime, entry.loan, entry.key[-1])
            entry.queue = group.ready
        else:
            entry.key = (not undoing, entry.runtime, entry.nice, entry.key[-1])
            entry.queue = group.background if entry.gives_way and not undoing else group.ready
        insort(entry.queue, (entry.key, entry))
        self._groups[group] = None
        if entry.owed:
            self._owed[entry] = None

    def set_idle(self, entry: Entry) -> None:
        """The entry has nothing to claim at present."""
        if not entry.ready:
            return
        entry.ready = False
        group = entry.group
        del entry.queue[bisect_left(entry.queue, (entry.key,))]
        if not group.ready and not group.background:
            del self._groups[group]
        self._owed.pop(entry, None)

    def set_nice(self, entry: Entry, nice: int) -> None:
        """Changes the weight of what comes; what was used stays counted as it was."""
        entry.nice = nice
        self._requeue(entry)

    def set_limit(self, entry: Entry, limit: int) -> None:
        """Move the job's own limit. What it could not use below the old one is not owed to it."""
        entry.limit = limit
        entry.runtime = max(entry.runtime, self._floor)
        self._requeue(entry)

    def set_group_cap(self, group: Group, cap: int | None) -> None:
        """Move a coordinator's cap, likewise; the shares among its jobs stay as they are."""
        group.cap = cap
        waiting = [entry for _, entry in chain(group.ready, group.background)]
        if waiting:
            lag = self._floor - min(entry.runtime for entry in waiting)
            for entry in waiting if lag > 0 else ():
                entry.runtime += lag
                self._requeue(entry)

    def set_gives_way(self, entry: Entry, gives_way: bool) -> None:
        """Threads that serve it already stay counted as they are."""
        entry.gives_way = gives_way
        self._requeue(entry)

    def set_loan(self, entry: Entry, nice: int | None) -> None:
        """Have one thread at a time serve it at this nice; None to end that."""
        if entry.loan is None:
            entry.loan_runtime = min(self._floor, entry.runtime)
        entry.loan = nice
        self._requeue(entry)

    def take_loan(self, entry: Entry, seat: Seat) -> Seat:
        """A thread that serves the entry in another seat goes over to the waiter's nice."""
        if seat is Seat.BACKGROUND:
            self.background -= 1
        entry.loan_taken = True
        self._requeue(entry)
        return Seat.LENT

    def owe(self, entry: Entry, count: int) -> None:
        """`count` more (or fewer) chunks wait for this job."""
        entry.owed += count
        if entry.owed and entry.ready:
            self._owed[entry] = None
        elif not entry.owed:
            self._owed.pop(entry, None)

    def choose(self) -> Entry | None:
        """The job that a helper with nothing to do should serve, or None."""
        best = self._best() if self.running < self.cap else None
        if best is not None:
            return best
        for entry in self._owed:
            if not entry.threads:
                return entry
        return None

    def _best(self) -> Entry | None:
        """The first of those that their own and their coordinator's cap admit."""
        best: tuple[Key, Entry] | None = None
        background = self.background < self.background_cap
        for group in self._groups:
            if group.cap is not None and group.threads >= group.cap:
                continue
            for queue in (group.ready, group.background) if background else (group.ready,):
                for candidate in queue:
                    if best is not None and candidate[0] > best[0]:
                        break
                    if candidate[1].threads < candidate[1].limit:
                        best = candidate
                        break
        return None if best is None else best[1]

    def may_enter(self, entry: Entry) -> bool:
        """Whether a calling thread may serve it: always, unless it gives way to other processes."""
        background = entry.gives_way and entry.key[0] and not entry.loan_offered
        return not background or self.background < self.background_cap

    def wanted(self, most: int) -> int:
        """How many more helpers would find something to do, counted up to `most`."""
        taken: list[tuple[Entry, Seat]] = []
        while len(taken) < most and (entry := self.choose()) is not None:
            taken.append((entry, self.enter(entry)))
        for entry, seat in reversed(taken):
            self._vacate(entry, seat)
            self._count(entry, -1)
        return len(taken)

    def wish(self, cap: int) -> int:
        """How many threads would serve jobs now if the process's cap were this one."""
        cap, self.cap = self.cap, cap
        try:
            return self.running + self.wanted(max(self.cap - self.running, 0))
        finally:
            self.cap = cap

    def enter(self, entry: Entry, *, counted: bool = False, counted_in_group: bool = False) -> Seat:
        """A thread begins to serve the entry: what it is to give back when it ends to.

        A thread inside a chunk is `counted` as running already, and `counted_in_group` if that
        chunk, or one that it is nested in, is of the same coordinator.
        """
        self._count(entry, 1, counted, counted_in_group)
        if entry.loan_offered:
            return self.take_loan(entry, Seat.OWN)
        if entry.gives_way and entry.key[0] and not counted:
            self.background += 1
            return Seat.BACKGROUND
        return Seat.OWN

    def leave(
        self,
        entry: Entry,
        wall_ns: int,
        seat: Seat = Seat.OWN,
        *,
        counted: bool = False,
        counted_in_group: bool = False,
    ) -> None:
        """It ends to, after `wall_ns`."""
        self._count(entry, -1, counted, counted_in_group)
        self.charge(entry, wall_ns, seat)
        self._vacate(entry, seat)

    def _vacate(self, entry: Entry, seat: Seat) -> None:
        if seat is Seat.BACKGROUND:
            self.background -= 1
        elif seat is Seat.LENT:
            entry.loan_taken = False
            self._requeue(entry)

    def charge(self, entry: Entry, wall_ns: int, seat: Seat = Seat.OWN) -> None:
        """Count the wall time of one thread against the entry's share, or against its loan."""
        if seat is Seat.LENT and entry.loan is not None:
            entry.loan_runtime += wall_ns * NICE_0_WEIGHT / weight(entry.loan)
            used = entry.loan_runtime
        else:
            entry.runtime += entry.cost(wall_ns)
            used = entry.runtime
        self._requeue(entry)
        entry.served = True
        behind = self._furthest_behind()
        self._floor = max(self._floor, used if behind is None else min(behind, used))

    def _furthest_behind(self) -> float | None:
        """The least runtime among those that were served before and might be served now.

        New jobs start there. It moves with what is used up, and jobs that have not been served are
        left out: or a stream of short jobs, each starting there, would always come before a long
        one. Behind a long queue of new jobs it looks no further, and the floor may move too far,
        which favours the jobs that wait.
        """
        least: float | None = None
        for group in self._groups:
            if group.cap is not None and group.threads >= group.cap:
                continue
            for queue in (group.ready, group.background):
                for key, entry in queue[:LOOK_AHEAD]:
                    if least is not None and key[1] >= least:
                        break
                    if entry.served and entry.threads < entry.limit:
                        least = key[1]
                        break
        return least

    def _count(
        self, entry: Entry, threads: int, counted: bool = False, counted_in_group: bool = False
    ) -> None:
        entry.threads += threads
        if not counted_in_group:
            entry.group.threads += threads
        if not counted:
            self.running += threads

    def _requeue(self, entry: Entry) -> None:
        if entry.ready:
            undoing = not entry.key[0]
            self.set_idle(entry)
            self.set_ready(entry, undoing=undoing)
