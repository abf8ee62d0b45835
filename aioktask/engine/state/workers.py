# SPDX-License-Identifier: MIT
# The threads as turns see them: helpers, calling threads, and threads that only wait.
"""Helpers, callers and waiters."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from aioktask.errors import DeadlockError

if TYPE_CHECKING:
    from aioktask.engine.state.run import Run
    from aioktask.engine.state.stint import Stint


class Parking:
    """A raw lock that one thread waits on until another opens it; opening twice is opening once.

    Opening takes one step and may interrupt any other, in the same thread too.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, timeout: float = -1) -> bool:
        """Wait until it is open, and close it. False when `timeout` seconds passed instead."""
        return self._lock.acquire(timeout=timeout)

    def unpark(self) -> None:
        """Open the parking."""
        if self._lock.locked():
            try:  # noqa: SIM105 - on the path of every short job
                self._lock.release()
            except RuntimeError:  # somebody else was quicker
                pass


class Waiter(Protocol):
    """Who waits for a run to end.

    Attributes:
        nice: How urgently.
        refused: Why the wait may not begin, set before it is woken.
    """

    nice: int
    refused: DeadlockError | None

    @property
    def heard(self) -> bool:
        """Whether no wake-up is on its way. One that a loop lost is sent again."""

    def wake(self) -> None:
        """Wake the waiter: called on any thread, outside the lock, once or more often."""


class Helper:
    """One helper thread.

    Attributes:
        native: The kernel's number of the thread; 0 before it runs.
        ident: Python's number of it, in the same way.
        nice: The thread's nice.
        born_nice: The one it began with: no new thread could have a lower one.
        node: The NUMA node that the thread is bound to, None for what the process may use.
        boost: The nice of a waiter for a job that runs inside this helper's chunk, if that is lower
            than the job's.
        in_background: Whether it served a background job since the last sample.
        in_lane: Whether it is a member of the lane: see `Lane`.
        express: The job of the lane that its thread is at, or about to claim.
        looks: How often the keeper has looked since it served a job of the lane.
        called: Whether it was given work while it was idle, and has not begun it yet.
        stint: What it serves or is about to.
        begun: What its thread has begun to serve, in a turn of its own.
        idle: Whether it is among the idle ones, so may be given work.
        ends: Whether it was woken to end.
        relays: Whether it should wake more helpers before it works.
        initializer: The tunable with which its thread was prepared.
        natives: The `State.natives` for which its thread's native libraries were limited.
        asked_for: Whether the keeper was told, or is being told, to start it.
        present: Held by the thread as long as it runs.
    """

    depth = 0  # what it serves inside a chunk of another job it serves as a `Caller`

    __slots__ = (
        "asked_for",
        "begun",
        "boost",
        "born_nice",
        "called",
        "ends",
        "express",
        "ident",
        "idle",
        "in_background",
        "in_lane",
        "initializer",
        "looks",
        "native",
        "natives",
        "nice",
        "node",
        "parking",
        "present",
        "relays",
        "stint",
    )

    def __init__(self, nice: int = 0) -> None:
        self.parking = Parking()
        self.present = threading.Lock()
        self.native = self.ident = 0
        self.nice = self.born_nice = nice
        self.node: int | None = None
        self.boost: int | None = None
        self.in_background = False
        self.in_lane = False
        self.express: Run | None = None
        self.looks = 0
        self.called = False
        self.stint: Stint | None = None
        self.begun: Stint | None = None
        self.idle = False
        self.ends = False
        self.relays = False
        self.initializer: Callable[[], object] | None = None
        self.natives = 0
        self.asked_for = False


class Caller:
    """A thread that called `run_multithreaded_sync` and takes part in that run; its own waiter.

    A turn puts a stretch into `stint` and wakes the thread, which takes it out, walks it, and posts
    how far it came.

    Attributes:
        stints: Those that the thread is in, the innermost first.
        stint: The stretch that it should walk next.
        serving: The stint that turns count as its own, whether it has begun or not.
        ident: Python's number of the thread.
        native: The kernel's number of it.
        main: Whether it is the main thread, where signal handlers run at any line.
        quits: Whether it takes no further part: a second Ctrl-C, or it went away.
        present: Held by the thread as long as it takes part. Whichever way it leaves, the
            interpreter lets go of it.
    """

    __slots__ = (
        "ident",
        "main",
        "native",
        "nice",
        "parking",
        "present",
        "quits",
        "refused",
        "serving",
        "stint",
        "stints",
    )

    def __init__(self, nice: int, chunk: Stint | None = None, *, main: bool = False) -> None:
        self.stints: list[Stint] = []
        self.ident = threading.get_ident()
        self.native = threading.get_native_id()
        self.nice = nice
        while chunk is not None:
            self.stints.append(chunk)
            chunk = chunk.outer
        self.parking = Parking()
        self.present = threading.Lock()
        self.stint: Stint | None = None
        self.serving: Stint | None = None
        self.main = main
        self.quits = False
        self.refused: DeadlockError | None = None

    @property
    def depth(self) -> int:
        """In how many chunks of other jobs the thread is, one inside the other."""
        return len(self.stints)

    @property
    def heard(self) -> bool:
        return True

    def wake(self) -> None:
        self.parking.unpark()


class ThreadWaiter:
    """A thread that waits for a run and takes no part in it."""

    __slots__ = ("nice", "parking", "refused")

    def __init__(self, nice: int) -> None:
        self.parking = Parking()
        self.nice = nice
        self.refused: DeadlockError | None = None

    @property
    def heard(self) -> bool:
        return True

    def wake(self) -> None:
        self.parking.unpark()
