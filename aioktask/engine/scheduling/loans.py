# SPDX-License-Identifier: MIT
# Priority inheritance: what nice a job is lent by those who wait for it.
#
# Pure; the caller holds the engine's lock. A job that a more urgent waiter waits for has a loan of
# that nice in the scheduler, for one thread at a time. A chunk that waits for another job waits as
# urgently as its own job is, a loan of that included: so a loan goes on through jobs that wait for
# jobs, and it follows a renice of any of them. It ends with the wait.
#
# Guarantees: a change costs the same beside one waiter and beside 20,000. Of who waits for a job
# only the number at each nice is kept, and there are 40 of these. A job counts once among those who
# wait for another, at the urgency that it had when it was last counted.
"""Loans of nice from waiters to the jobs they wait for."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

from aioktask.engine.scheduling.queue import Entry, Scheduler

__all__ = ["Loans"]

Key = TypeVar("Key", bound=Hashable)


class Loans:
    """Who waits for which job, and the loans that follow.

    The methods that return entries return those whose loan changed.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._waiting: dict[Entry, dict[int, int]] = {}  # how many wait for it at which nice
        self._awaits: dict[Entry, dict[Entry, int]] = {}  # how many of its chunks wait for which
        self._awaited_by: dict[Entry, set[Entry]] = {}  # whose chunks wait for it
        self._counted: dict[Entry, int] = {}  # at which nice it counts with those it waits for

    def urgency(self, entry: Entry) -> int:
        """The nice at which a wait inside a chunk of the job counts."""
        return entry.urgency

    # Waiters outside all chunks.

    def add_waiter(self, entry: Entry, nice: int) -> list[Entry]:
        """Count a task or a thread that begins to wait for the job at this nice."""
        _count(self._waiting, entry, nice, 1)
        return self.reckon(entry) if nice < entry.urgency else []

    def add_first(self, entry: Entry, nice: int) -> None:
        """Count the first waiter of a job, at a nice that lends it nothing."""
        self._waiting[entry] = {nice: 1}

    def remove_waiter(self, entry: Entry, nice: int) -> list[Entry]:
        """Count a waiter of the job no more; without effect on a job that was forgotten."""
        if nice not in self._waiting.get(entry, ()):
            return []
        _count(self._waiting, entry, nice, -1)
        return self.reckon(entry) if nice == entry.loan else []

    # Waits inside chunks.

    def begin(self, waiting: Entry, awaited: Entry) -> list[Entry]:
        """Count a chunk of `waiting` that begins to wait for `awaited`."""
        _count(self._awaits, waiting, awaited, 1)
        if self._awaits[waiting][awaited] > 1:
            return []
        self._awaited_by.setdefault(awaited, set()).add(waiting)
        urgency = self._counted.setdefault(waiting, waiting.urgency)
        _count(self._waiting, awaited, urgency, 1)
        return self.reckon(awaited) if urgency < awaited.urgency else []

    def end(self, waiting: Entry, awaited: Entry) -> list[Entry]:
        """Count a chunk's wait no more; without effect where one of the jobs was forgotten."""
        if awaited not in self._awaits.get(waiting, ()):
            return []
        _count(self._awaits, waiting, awaited, -1)
        if awaited in self._awaits.get(waiting, ()):
            return []
        urgency = self._counted[waiting]
        if waiting not in self._awaits:
            del self._counted[waiting]
        return self._part(waiting, awaited, urgency)

    def forget(self, entry: Entry) -> list[Entry]:
        """Let go of a job that is over: it waits for none, and none waits for it.

        Its own loan ends too, but the job is not among the entries returned.
        """
        for waiting in self._awaited_by.pop(entry, ()):
            del self._awaits[waiting][entry]
            if not self._awaits[waiting]:
                del self._awaits[waiting], self._counted[waiting]
        self._waiting.pop(entry, None)
        if entry.loan is not None:
            self._scheduler.set_loan(entry, None)
        changed: dict[Entry, None] = {}
        if entry in self._awaits:
            urgency = self._counted.pop(entry)
            for awaited in self._awaits.pop(entry):
                changed.update(dict.fromkeys(self._part(entry, awaited, urgency)))
        return list(changed)

    def _part(self, waiting: Entry, awaited: Entry, urgency: int) -> list[Entry]:
        """Count `waiting`, until now at this nice, no more among those that wait for `awaited`."""
        self._awaited_by[awaited].remove(waiting)
        if not self._awaited_by[awaited]:
            del self._awaited_by[awaited]
        _count(self._waiting, awaited, urgency, -1)
        return self.reckon(awaited) if urgency == awaited.loan else []

    # What follows.

    def reckon(self, entry: Entry) -> list[Entry]:
        """Bring the loans in line after a change of who waits for the job, or of its nice."""
        changed: dict[Entry, None] = {}
        left = [entry]
        while left:
            each = left.pop()
            if self._update_loan(each):
                changed[each] = None
            before, urgency = self._counted.get(each), each.urgency
            if before is None or before == urgency:
                continue
            self._counted[each] = urgency
            for awaited in self._awaits[each]:
                _count(self._waiting, awaited, before, -1)
                _count(self._waiting, awaited, urgency, 1)
                left.append(awaited)
        return list(changed)

    def _update_loan(self, entry: Entry) -> bool:
        """Set the loan to what the most urgent waiter lends; whether that changed it."""
        most_urgent = min(self._waiting.get(entry, ()), default=entry.nice)
        loan = most_urgent if most_urgent < entry.nice else None
        if loan == entry.loan:
            return False
        self._scheduler.set_loan(entry, loan)
        return True

    def rebuild(
        self,
        entries: Iterable[Entry],
        waiters: Iterable[tuple[Entry, int]],
        waits: Iterable[tuple[Entry, Entry]],
    ) -> list[Entry]:
        """Count and lend anew, after an exception struck in the middle of a call.

        The scheduler is to be rebuilt before.

        Args:
            entries: All those of jobs that are not over.
            waiters: For each that waits outside all chunks, the entry that it waits for and its
                nice.
            waits: For each chunk that waits, the entry that it belongs to and the one that it
                waits for.
        """
        self._waiting, self._awaits, self._awaited_by, self._counted = {}, {}, {}, {}
        for entry, nice in waiters:
            _count(self._waiting, entry, nice, 1)
        for waiting, awaited in waits:
            _count(self._awaits, waiting, awaited, 1)
            self._awaited_by.setdefault(awaited, set()).add(waiting)
        urgency = {entry: min([entry.nice, *self._waiting.get(entry, ())]) for entry in entries}
        left = list(urgency)
        while left:
            each = left.pop()
            for awaited in self._awaits.get(each, ()):
                if urgency[each] < urgency[awaited]:
                    urgency[awaited] = urgency[each]
                    left.append(awaited)
        for waiting, all_awaited in self._awaits.items():
            self._counted[waiting] = urgency[waiting]
            for awaited in all_awaited:
                _count(self._waiting, awaited, urgency[waiting], 1)
        return [entry for entry in urgency if self._update_loan(entry)]


def _count(counts: dict[Entry, dict[Key, int]], entry: Entry, key: Key, change: int) -> None:
    inner = counts.setdefault(entry, {})
    inner[key] = inner.get(key, 0) + change
    if not inner[key]:
        del inner[key]
    if not inner:
        del counts[entry]
