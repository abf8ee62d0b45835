# SPDX-License-Identifier: MIT
# How late the loops are in which coordinators were entered.
#
# On each of its looks, while there are jobs or helpers, the keeper gives such a loop a callback,
# unless the last one was not called yet: a wake-up of the loop in a tenth of a second. What is
# measured is so what any other thread's callback has to wait, and a request that comes. A loop that
# does not run is not late; one that is closed, or that raises when it is asked, is forgotten.
"""The lateness of loops."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Protocol

from aioktask.engine.events import show_exception

__all__ = ["LoopWatch", "Watched"]

# What is told of a loop is the worst of so many nanoseconds.
WORST_OF_NS = 10_000_000_000

# A callback that was not called in this time is given again, since a loop may lose one; and then
# after twice the time, and so on, lest they pile up in a loop that is blocked.
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

    def is_running(self) -> bool:
        """Whether it runs now."""
        ...

    def is_closed(self) -> bool:
        """Whether the loop will never run again."""
        ...


class _Probe:
    """A callback that notes when it is called.

    Attributes:
        sent_at: When the loop was given it, in ns.
        again_at: When it is given it again, if it was not called by then.
        answered_at: When it was called; 0 where it was not.
        void: Whether the loop did not run meanwhile, so that it says nothing of its lateness.
    """

    __slots__ = ("again_at", "answered_at", "sent_at", "void")

    def __init__(self, sent_at: int) -> None:
        self.sent_at = sent_at
        self.again_at = sent_at + AGAIN_NS
        self.answered_at = 0
        self.void = False

    def __call__(self) -> None:
        self.answered_at = self.answered_at or perf_counter_ns()

    def late(self, now: int) -> int:
        """How late it was called, or is by now, in ns."""
        return max((self.answered_at or now) - self.sent_at, 0)


class Watched:
    """One loop that is looked after.

    The keeper changes it; any thread may ask for `late`.

    Attributes:
        loop: The loop.
        entered: How many coordinators are entered in it.
    """

    __slots__ = ("_probe", "_told", "entered", "loop")

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.entered = 0
        self._probe: _Probe | None = None
        # When it answered, and how late, those of late; replaced as a whole, for any thread.
        self._told: tuple[tuple[int, int], ...] = ()

    def look(self, now: int) -> bool:
        """On the keeper: take in an answer, and ask again; False where the loop is closed."""
        probe = self._probe
        if probe is not None and not probe.answered_at:
            if not self.loop.is_running():
                probe.void = True
                return not self.loop.is_closed()
            if now >= probe.again_at:
                probe.again_at += now - probe.sent_at
                self.loop.post(probe, None)
            return True
        self._take_in(now)
        self._probe = probe = _Probe(now)
        self.loop.post(probe, None)
        return True

    def rest(self, now: int) -> None:
        """On the keeper: take in the last answer, as there is nothing to look after."""
        self._take_in(now)
        self._probe = None  # one that was lost would be late for ever

    def _take_in(self, now: int) -> None:
        probe = self._probe
        recent = tuple(each for each in self._told if now - each[0] <= WORST_OF_NS)
        if probe is not None and probe.answered_at and not probe.void:
            recent += ((probe.answered_at, probe.late(now)),)
        self._told = recent or self._told[-1:]

    def late(self, now: int) -> tuple[int, int]:
        """How late the loop was when asked last, and at the worst of late, in ns."""
        told, probe = self._told, self._probe
        if probe is not None and not probe.void:
            told += ((probe.answered_at or now, probe.late(now)),)
        recent = [late for at, late in told if now - at <= WORST_OF_NS]
        return (told[-1][1] if told else 0), max(recent, default=0)


class LoopWatch:
    """The loops that are looked after. Any thread may call `add`, `remove` and `loops`."""

    def __init__(self) -> None:
        self._watched: dict[object, Watched] = {}

    def add(self, loop: Loop) -> None:
        """Look after a loop from now on, for one coordinator more. Called on its thread."""
        for each in self.loops():  # where no job follows, the keeper does not look
            if each.loop.is_closed():
                self._watched.pop(each.loop.identity, None)
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
        if not self._watched:
            return
        now = perf_counter_ns()
        for identity, watched in list(self._watched.items()):
            try:
                open_still = watched.look(now)
            except Exception:  # of the loop's class, and what else the keeper does must go on
                show_exception()
                open_still = False
            if not open_still:
                self._watched.pop(identity, None)

    def rest(self) -> None:
        """On the keeper: ask no loop, as there is nothing to look after."""
        now = perf_counter_ns()
        for watched in self.loops():
            watched.rest(now)
