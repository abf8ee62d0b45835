# SPDX-License-Identifier: MIT
# Chunks that stop where a test wants them: the way to have a thread at a known place, without
# sleeping.

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel

from aioktask import ChunkCancelled, current_chunk
from tests.support.patience import PATIENCE as PATIENCE

# How often a test looks while it waits. A thread that spins lets go of the GIL again and again, for
# less time than another thread needs to wake up and take it, and so keeps others from it for
# seconds.
LOOK_SECONDS = 0.001


class Gate:
    """A function for a job whose chunks wait inside until the test opens the gate."""

    def __init__(self) -> None:
        self._entered = threading.Semaphore(0)
        self._open = threading.Event()
        self.lock = threading.Lock()
        self.done: list[tuple[int, int]] = []
        self.undone: list[tuple[int, int]] = []

    def chunk(self, start: int, stop: int) -> None:
        self._entered.release()
        assert self._open.wait(PATIENCE), "the test never opened the gate"
        with self.lock:
            self.done.append((start, stop))

    def undo(self, start: int, stop: int) -> None:
        with self.lock:
            self.undone.append((start, stop))

    def open(self) -> None:
        self._open.set()

    def wait_entered(self, chunks: int = 1) -> None:
        """Until so many chunks are inside. Blocks the thread."""
        for _ in range(chunks):
            assert self._entered.acquire(timeout=PATIENCE), "no chunk came"

    async def entered(self, chunks: int = 1) -> None:
        """The same for a task: looks again and again, while the loop stays alive."""
        with anyio.fail_after(PATIENCE):
            for _ in range(chunks):
                while not self._entered.acquire(blocking=False):
                    await anyio.sleep(LOOK_SECONDS)


class CancelledGate(Gate):
    """Chunks that wait inside until their job is cancelled, then until the gate is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.cancelled = threading.Event()

    def chunk(self, start: int, stop: int) -> None:
        self._entered.release()
        try:
            while not self._open.wait(0.001):
                current_chunk().check_cancelled()
        except ChunkCancelled:
            self.cancelled.set()
        assert self._open.wait(PATIENCE), "the test never opened the gate"
        with self.lock:
            self.done.append((start, stop))


def units(ranges: list[tuple[int, int]]) -> list[int]:
    """Every unit, in order, as often as it occurs."""
    return sorted(unit for start, stop in ranges for unit in range(start, stop))


async def turns_pass() -> None:
    """Some turns of the loop, also in a cancelled scope: a cancel is delivered meanwhile."""
    with anyio.CancelScope(shield=True):
        for _ in range(10):
            await anyio.lowlevel.checkpoint()


def comes_true(
    condition: Callable[[], object], seconds: float = PATIENCE, *, every: float = LOOK_SECONDS
) -> bool:
    """Whether the condition holds in time, which is asked again and again. Blocks the thread."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(every)
    return True


def until(
    condition: Callable[[], object],
    what: str = "what the test waits for",
    seconds: float = PATIENCE,
) -> None:
    """Until the condition holds, which is asked again and again. Blocks the thread.

    Raises:
        AssertionError: It did not in time.
    """
    assert comes_true(condition, seconds), f"not in {seconds:g} s: {what}"


def let_go_of(watch: weakref.ref[Any]) -> bool:
    """Whether the object goes in time, its cycles collected meanwhile. Blocks the thread.

    Between two collections other threads run for a while: without the GIL each of them stops all
    threads, so that in a bare loop of them a keeper in many short reads takes seconds.
    """

    def gone() -> bool:
        gc.collect()
        return watch() is None

    return comes_true(gone)


async def eventually(
    condition: Callable[[], object],
    what: str = "what the test waits for",
    seconds: float = PATIENCE,
) -> None:
    """Until the condition holds, which is asked again and again while the loop stays alive.

    Raises:
        AssertionError: It did not in time.
    """
    with anyio.move_on_after(seconds) as limit:
        while not condition():
            await anyio.sleep(LOOK_SECONDS)
    assert not limit.cancelled_caught, f"not in {seconds:g} s: {what}"
