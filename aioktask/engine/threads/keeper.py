# SPDX-License-Identifier: MIT
# The keeper: the thread that starts threads, looks around, and takes turns while helpers are busy.
#
# Every helper is started by it, since a thread inherits its creator's nice and affinity, and an
# unprivileged thread can never lower its nice again. The keeper has the process's own.
#
# Guarantees: `wake` takes no lock, so it may interrupt anything. Any thread may start the keeper;
# where several do, or one is interrupted while it does, the first that runs is the keeper and the
# others end.
"""The thread that keeps helpers."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from aioktask.engine.events import show_exception
from aioktask.engine.machine.os_threads import (
    NAME,
    be_like_the_process,
    name_this_thread,
    start_thread,
)
from aioktask.engine.state.current import local
from aioktask.engine.state.workers import Parking

# How often the keeper looks around while there is anything to look after.
WATCH_SECONDS = 0.1

# How often it comes by while calls are found to block (`call_watch`).
CLOSE_SECONDS = 0.01

# At most so many threads are on their way to be the keeper. Code of the program that runs in each
# of them (a profiling function) may want the keeper too, and so would start more and more of them.
MOST_COMING = 8


class Kept(Protocol):
    """What the keeper serves: the pool."""

    def turn(self) -> None:
        """Apply what was posted."""

    def look_around(self) -> bool:
        """Follow what changed around the process; False when there is nothing to look after."""

    def look_at_calls(self) -> bool:
        """Find calls that block; whether to do so again soon."""

    def next_deadline(self) -> int | None:
        """Have what is due be done; when the next one is due, in ns, if any is."""


class Keeper:
    """The keeper of one pool.

    Attributes:
        running: Whether its thread is there.
    """

    def __init__(self, kept: Kept) -> None:
        self._kept = weakref.ref(kept)
        self._parking = Parking()
        self._errands: deque[Callable[[], None]] = deque()
        self._watched: list[weakref.WeakMethod[Callable[[], bool]]] = []  # the keeper's own
        self._seat = threading.Lock()  # held by the one keeper; only tried
        self._coming: dict[object, None] = {}  # for each thread that was started to be the keeper
        self.running = False
        self._wakes_at = 0  # when it looks at deadlines next, in ns
        self._stops = False
        self._ended = threading.Lock()  # held by the thread while it runs

    @property
    def alive(self) -> bool:
        """Whether its thread is there and has not ended."""
        return self._ended.locked()

    def wake(self) -> None:
        """Have the keeper take a turn, and do what it was told.

        Raises:
            RuntimeError: It is not there yet, and the system has no thread for it.
        """
        if not self.running and len(self._coming) < MOST_COMING:
            mark = object()
            self._coming[mark] = None
            try:
                start_thread(partial(self._keep, mark), NAME)
            except BaseException:
                self._coming.pop(mark, None)
                raise
        self._parking.unpark()

    def see_by(self, due: int) -> None:
        """Have the keeper look at deadlines by this time, in ns: one was added before.

        Raises:
            RuntimeError: As in `wake`.
        """
        if due < self._wakes_at or not self.running:
            self.wake()

    def soon(self, errand: Callable[[], None]) -> None:
        """Have `errand` called on the keeper.

        Raises:
            RuntimeError: As in `wake`.
        """
        self._errands.append(errand)
        self.wake()

    def watch(self, look: Callable[[], bool]) -> None:
        """Have `look`, a method, called every 0.1 s until it returns False or its owner is gone."""
        reference = weakref.WeakMethod(look)
        self.soon(lambda: self._watched.append(reference))

    def _keep(self, mark: object) -> None:
        if not self._seat.acquire(blocking=False):  # another thread was quicker
            self._coming.pop(mark, None)
            return
        try:
            self._keep_seated()
        except BaseException:  # no memory to begin: the next one may have it
            self.running = False
            self._coming.pop(mark, None)
            self._seat.release()
            raise

    def _keep_seated(self) -> None:
        with self._ended:
            self.running = True
            try:
                local.inside = True
                name_this_thread(f"{NAME} keeper")
                be_like_the_process()
            except BaseException:  # no memory for that, and from now on nobody starts another one
                show_exception()
            next_look = 0.0
            busy = True
            while not self._stops:
                # Without the keeper nothing would ever be started again, so nothing ends it.
                try:
                    kept = self._kept()
                    if kept is None:
                        return
                    kept.turn()
                    while self._errands:
                        self._run_errand()
                    now = time.monotonic()
                    if now >= next_look:
                        self._watched = [each for each in self._watched if _look(each)]
                        busy = kept.look_around() or bool(self._watched)
                        next_look = now + WATCH_SECONDS
                    soon = kept.look_at_calls()
                    pause = CLOSE_SECONDS if soon else WATCH_SECONDS if busy else -1
                    pause = self._until_deadline(kept, pause)
                    kept = None
                    if self._parking.wait(pause):
                        busy = True
                except BaseException:
                    show_exception()

    def _until_deadline(self, kept: Kept, pause: float) -> float:
        """How long to wait, in seconds: `pause`, or less where a deadline comes before."""
        while True:
            now = time.perf_counter_ns()
            self._wakes_at = wakes_at = now + int(pause * 1e9) if pause >= 0 else sys.maxsize
            # In this order: a thread adds a deadline, then asks when the keeper wakes.
            due = kept.next_deadline()
            if due is None or due >= wakes_at:
                return pause
            if due > now:
                self._wakes_at = due
                return (due - now) / 1e9
            pause = 0.0 if pause < 0 else pause

    def _run_errand(self) -> None:
        errand = self._errands.popleft()
        try:
            errand()
        except BaseException:
            show_exception()

    def stop(self, seconds: float) -> None:
        """End the thread after its errands, and wait for that, at most so many seconds."""
        if not self.running:
            return
        self._stops = True
        self._parking.unpark()
        if self._ended.acquire(timeout=seconds):
            self._ended.release()


def _look(reference: weakref.WeakMethod[Callable[[], bool]]) -> bool:
    """Call what is watched, in a function, so that no variable refers to it afterwards."""
    look = reference()
    try:
        return look is not None and look()
    except BaseException:
        show_exception()
        return False
