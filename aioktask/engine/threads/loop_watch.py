# SPDX-License-Identifier: MIT
# How late the loops are in which coordinators were entered.
#
# On each of its looks, while there are jobs, the keeper gives such a loop a callback, unless the
# last one was not called yet: a wake-up of the loop in a tenth of a second. What is measured is so
# what any other thread's callback has to wait, and a request that comes.
"""The lateness of loops."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import Protocol

__all__ = ["LoopWatch", "Watched"]

# What is told of a loop is the worst of so many nanoseconds.
WORST_OF_NS = 10_000_000_000
MOST_TOLD = 128

# A callback that was not called in this time is given again: a loop may lose one.
AGAIN_NS = 1_000_000_000


class Loop(Protocol):
    """One running loop, as far as it is looked after: see `loops.loop.Loop`."""

    @property
    def kind(self) -> str:
        """Which loop it is."""
        ...

    @property
    def identity(self) -> object:
        """What is the same for all objects about this loop."""

    def without_task(self) -> Loop:
        """The same loop, without what refers to the running task."""
        ...

    def post(self, callback: Callable[[], None], lost: Callable[[], None] | None) -> None:
        """Have the loop call `callback`."""

    def is_closed(self) -> bool:
        """Whether the loop will never run again."""
        ...


class _Probe:
    """A callback that notes when it is called."""

    __slots__ = ("answered_at", "sent_at")

    def __init__(self, sent_at: int) -> None:
        self.sent_at = sent_at
        self.answered_at = 0

    def __call__(self) -> None:
        self.answered_at = self.answered_at or perf_counter_ns()

    def late(self, now: int) -> int:
        """How late it was called, or is by now, in ns."""
        return (self.answered_at or now) - self.sent_at


class Watched:
    """One loop that is looked after.

    The keeper changes it; any thread may ask for `late`.

    Attributes:
        loop: The loop.
        entered: How many coordinators are entered in it.
    """

    __slots__ = ("_probe", "_sent_last", "_told", "entered", "loop")

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.entered = 0
        self._probe: _Probe | None = None
        self._sent_last = 0
        self._told: deque[tuple[int, int]] = deque(maxlen=MOST_TOLD)  # when, and how late

    def look(self, now: int) -> None:
        """On the keeper: take in an answer, and ask again."""
        probe = self._probe
        if probe is not None and not probe.answered_at:
            if now - self._sent_last >= AGAIN_NS:
                self._sent_last = now
                self.loop.post(probe, None)
            return
        if probe is not None:
            self._told.append((probe.answered_at, probe.late(now)))
        self._probe = probe = _Probe(now)
        self._sent_last = now
        self.loop.post(probe, None)

    def rest(self) -> None:
        """On the keeper: take in the last answer, as there is nothing to look after."""
        probe = self._probe
        if probe is not None and probe.answered_at:
            self._told.append((probe.answered_at, probe.late(0)))
            self._probe = None

    def late(self, now: int) -> tuple[int, int]:
        """How late the loop was when asked last, and at the worst of late, in ns."""
        told, probe = list(self._told), self._probe
        if probe is not None:
            told.append((probe.answered_at or now, probe.late(now)))
        recent = [late for at, late in told if now - at <= WORST_OF_NS]
        return (told[-1][1] if told else 0), max(recent, default=0)


class LoopWatch:
    """The loops that are looked after. Any thread may call `add`, `remove` and `loops`."""

    def __init__(self) -> None:
        self._watched: dict[object, Watched] = {}

    def add(self, loop: Loop) -> None:
        """Look after a loop from now on, for one coordinator more. Called on its thread."""
        watched = self._watched.setdefault(loop.identity, Watched(loop.without_task()))
        watched.entered += 1

    def remove(self, loop: Loop) -> None:
        """Look after it for one coordinator less. Called on its thread."""
        watched = self._watched.get(loop.identity)
        if watched is not None:
            watched.entered -= 1
            if watched.entered <= 0:
                self._watched.pop(loop.identity, None)

    def loops(self) -> list[Watched]:
        """Those that there are."""
        return list(self._watched.values())

    def look(self) -> None:
        """On the keeper: ask each loop, and forget those that are closed."""
        now = perf_counter_ns()
        for identity, watched in list(self._watched.items()):
            if watched.loop.is_closed():
                self._watched.pop(identity, None)
            else:
                watched.look(now)

    def rest(self) -> None:
        """On the keeper: ask no loop, as there is nothing to look after."""
        for watched in self.loops():
            watched.rest()
