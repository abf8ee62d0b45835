# SPDX-License-Identifier: MIT
# What is kept of a run that is to be drawn: the last stretches of each thread, and what happened to
# the run as a whole.
#
# Turns add to it as a stretch ends, so a chunk costs what it costs without. What it holds is
# bounded, whatever the number of chunks: a ring for each thread, and a list of marks. What was kept
# until then may be asked for on any thread.
"""The trace of one run."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from aioktask.engine.copies import items_of
from aioktask.engine.scheduling.queue import LENT
from aioktask.engine.state.workers import Caller, Helper
from aioktask.timeline import Mark, Stretch, Timeline, TracedThread

if TYPE_CHECKING:
    from aioktask.engine.state.run import Run
    from aioktask.engine.state.stint import Stint

# So many stretches of each thread are kept, and so many marks: some 100 KB a thread.
MOST_STRETCHES = 1024
MOST_MARKS = 256
# Threads that come and go in a long run: of more than these the first that came is forgotten.
MOST_THREADS = 256


class Ring:
    """The last stretches of one thread."""

    __slots__ = ("lost", "name", "number", "stretches")

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = name
        self.lost = 0
        self.stretches: deque[Stretch] = deque(maxlen=MOST_STRETCHES)

    def add(self, stretch: Stretch) -> None:
        """Add a stretch, for which the first one goes where there are too many."""
        if len(self.stretches) == MOST_STRETCHES:
            self.lost += 1
        self.stretches.append(stretch)


class Trace:
    """What is kept of one run.

    Args:
        submitted_at: When it was submitted, in ns: times count from then on.
    """

    __slots__ = ("_began", "_count", "_forgotten", "_marks", "_rings")

    def __init__(self, submitted_at: int) -> None:
        self._began = submitted_at
        self._rings: dict[object, Ring] = {}  # by the Helper or Caller; None for the loop
        self._marks: deque[Mark] = deque(maxlen=MOST_MARKS)
        self._count = self._forgotten = 0

    def mark(self, what: str, now: int, thread: object | None = None) -> None:
        """Note that something happened to the run, perhaps on one of its threads."""
        number = None if thread is None else self._ring_of(thread).number
        self._marks.append(Mark(what, self._seconds(now), number))

    def stretch(self, stint: Stint, done: int, chunks: int, now: int, *, undoing: bool) -> None:
        """Take in a stretch that the stint walked up to `done`."""
        start = max(stint.walked_at, stint.claimed_at)
        thread = stint.thread
        lent = stint.seat.account is LENT
        nice = stint.run.urgency if lent else stint.run.entry.nice
        ring = self._ring_of(thread)
        ring.add(
            Stretch(
                ring.number,
                self._seconds(start),
                self._seconds(now),
                stint.stretch_start,
                max(done, stint.stretch_start),
                chunks,
                "undo" if undoing else "work",
                nice,
                lent,
            )
        )

    def piece(self, piece: range, start: int, now: int, nice: int) -> None:
        """Take in a piece that a coroutine undo was at, on its loop."""
        ring = self._ring_of(None)
        begin, end = self._seconds(start), self._seconds(now)
        ring.add(Stretch(ring.number, begin, end, piece.start, piece.stop, 1, "undo", nice, False))

    def timeline(self, run: Run, now: int) -> Timeline:
        """What was kept until now, as it is told."""
        rings = list(self._rings.values())
        kept = [each for ring in rings for each in items_of(ring.stretches)]
        return Timeline(
            name=run.name,
            size=run.size,
            seconds=self._seconds(now),
            threads=tuple(TracedThread(ring.number, ring.name) for ring in rings),
            stretches=tuple(sorted(kept, key=lambda each: each.start)),
            marks=tuple(items_of(self._marks)),
            lost=self._forgotten + sum(ring.lost for ring in rings),
        )

    def _seconds(self, at: int) -> float:
        return max(at - self._began, 0) / 1e9

    def _ring_of(self, thread: object | None) -> Ring:
        ring = self._rings.get(thread)
        if ring is None:
            self._count += 1
            if len(self._rings) >= MOST_THREADS:
                oldest = next(iter(self._rings))
                self._forgotten += len(self._rings.pop(oldest).stretches)
            ring = self._rings[thread] = Ring(self._count, _name_of(thread))
        return ring


def _name_of(thread: object | None) -> str:
    if isinstance(thread, Helper):
        return f"helper {thread.native}"
    if isinstance(thread, Caller):
        main = thread.main and threading.main_thread().native_id
        return f"calling thread {main}" if main else "calling thread"
    return "event loop"
