# SPDX-License-Identifier: MIT
# How many jobs a coordinator has, how long they wait to begin, and whether one more may come.
#
# Pure: the clock is the caller's. Any thread may call at any time, without a lock: each change is
# one step of a dictionary or a deque. So where several threads submit at the same moment too many
# jobs may be refused, by as many as there are such threads, and never too few. A call that an
# exception strikes in any line leaves at most what `end` takes out.
#
# A job of many chunks begins soon whatever else there is, since jobs share threads chunk by chunk:
# what grows in an overload is the number of jobs that are not over. So a queue is bounded by that
# number, beyond the threads that there are, and a wait by how fast jobs begin. A stream that has no
# item takes no thread, and does not count until it has one.
#
# No job is refused for a guess: the wait is reckoned from jobs of at least its urgency, of which
# some waited all the time in which their beginnings were measured. Where that is not known, a job
# comes, and ends when its time has passed.
"""Admission to a coordinator."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from aioktask.engine.copies import items_of

# A rate is measured over so many events, and needs so many to be known.
MOST_EVENTS = 32
FEW_EVENTS = 4

# When to come again where no rate is known, in seconds; and at the least and at the most.
RETRY_SECONDS = 1.0
RETRY_LEAST = 0.001
RETRY_MOST = 3600.0


class Flow:
    """How many of something happen in a second, of late, while there was always something to do."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: deque[int] = deque(maxlen=MOST_EVENTS)

    def note(self, now: int, *, busy: bool) -> None:
        """Take in that it happened now, in ns, and whether anything is left to do.

        What happens at once says nothing of how fast a queue moves, so an idle moment ends the
        measurement.
        """
        if busy:
            self._times.append(now)
        else:
            self._times.clear()

    def rate(self, now: int) -> float | None:
        """How many in a second; None where too few are known."""
        times = items_of(self._times)
        if len(times) < FEW_EVENTS:
            return None
        return (len(times) - 1) * 1e9 / max(now - times[0], 1)

    def seconds(self, count: int, now: int) -> float | None:
        """How long so many take, in seconds; None where that is not known."""
        rate = self.rate(now)
        return None if rate is None else count / rate


class Refusal(NamedTuple):
    """Why a job may not come.

    Attributes:
        queued: How many jobs wait for a thread.
        retry_after: When to come again, in seconds.
        wait: How long it would wait to begin, in seconds, if that is why; else None.
    """

    queued: int
    retry_after: float
    wait: float | None


class Gate:
    """The jobs of one coordinator that count for admission."""

    __slots__ = ("_begins", "_ends", "_present", "_resting", "_threads", "_waiting")

    def __init__(self) -> None:
        # Those that are not over, by the number of the run: the nice at which each waits to begin,
        # or did; None for one that waits for something else first.
        self._present: dict[int, int | None] = {}
        self._resting: dict[int, None] = {}  # those that have nothing to do, and may have later
        self._waiting: dict[int, dict[int, None]] = {}  # by that nice, those that have not begun
        self._threads = 1  # how many may serve them, as far as was heard
        self._begins = Flow()
        self._ends = Flow()

    def __repr__(self) -> str:
        waiting = sum(len(each) for each in list(self._waiting.values()))
        return f"<Gate: {len(self._present)} jobs, {waiting} of them not begun>"

    def __len__(self) -> int:
        return len(self._present)

    def queued(self, threads: int) -> int:
        """How many jobs there are more than threads that may serve them."""
        return max(len(self._present) - threads, 0)

    def enter(
        self,
        number: int,
        nice: int | None,
        threads: int,
        most: int | None,
        patience: float | None,
        now: int,
    ) -> Refusal | None:
        """Count a run, unless it may not come.

        Args:
            number: Of the run.
            nice: At which it waits to begin; None where it may wait for something else first.
            threads: How many may serve jobs of the coordinator.
            most: How many jobs may wait for a thread; None for any number.
            patience: How long the run may wait to begin, in seconds; None for any time.
            now: The time, in ns.
        """
        present = self._present
        self._threads = threads
        if nice is None:
            present[number] = None
        else:
            waiting = self._waiting.setdefault(nice, {})
            present[number] = nice  # first: as long as it is present, `end` finds it in `waiting`
            waiting[number] = None
        too_many = 0 if most is None else len(present) - threads - most
        if too_many > 0:
            seconds = self._ends.seconds(too_many, now)
            return self._refuse(number, threads, seconds, None)
        if patience is not None and nice is not None:
            before = self._as_urgent(nice) - 1
            wait = self._begins.seconds(before, now) if before > 0 else None
            if wait is not None and wait > patience:
                return self._refuse(number, threads, wait - patience, wait)
        return None

    def _as_urgent(self, nice: int) -> int:
        """How many that wait are served before one of this nice, or as soon."""
        waiting = list(self._waiting.items())
        return sum(len(each) for of_nice, each in waiting if of_nice <= nice)

    def _refuse(
        self, number: int, threads: int, seconds: float | None, wait: float | None
    ) -> Refusal:
        self._forget(number)
        return Refusal(self.queued(threads), _within_bounds(seconds), wait)

    def _forget(self, number: int) -> bool:
        """Count a run no more; whether it was counted."""
        nice = self._present.get(number)
        if nice is not None:
            self._waiting[nice].pop(number, None)
        return self._present.pop(number, self) is not self

    def begin(self, number: int, now: int) -> None:
        """Take in that a run begins, if it was counted."""
        nice = self._present.get(number)
        if nice is not None and self._waiting[nice].pop(number, 0) is None:
            self._begins.note(now, busy=self._as_urgent(nice) > 0)

    def rest(self, number: int, now: int) -> None:
        """Count a run no more, until it has something to do again, if it was counted."""
        if number not in self._present:
            return
        self._resting[number] = None
        if self._present.pop(number, self) is self:  # it has just ended
            self._resting.pop(number, None)
        elif len(self._present) < self._threads:
            self._ends.note(now, busy=False)

    def wake(self, number: int) -> None:
        """Count a run again, if it rested. It was admitted, so it is never too many."""
        if number in self._resting:
            self._present[number] = None
            if self._resting.pop(number, self) is self:  # it has just ended
                self._present.pop(number, None)

    def end(self, number: int, now: int) -> None:
        """Take in that a run is over, if it was counted; may be called again."""
        self._resting.pop(number, None)
        if self._forget(number):
            self._ends.note(now, busy=len(self._present) >= self._threads)

    def retry_after(self, threads: int, now: int) -> float:
        """In how many seconds one that comes is likely to begin at once."""
        return _within_bounds(self._ends.seconds(self.queued(threads), now))


def _within_bounds(seconds: float | None) -> float:
    return RETRY_SECONDS if seconds is None else min(max(seconds, RETRY_LEAST), RETRY_MOST)
