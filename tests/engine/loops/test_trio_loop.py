# SPDX-License-Identifier: MIT
# How a task of trio is woken while another thread holds the lock under which its run takes
# callbacks: a finalizer that Python calls in there may wait for a job.

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from aioktask import Coordinator, Job, run_multithreaded, run_multithreaded_sync
from tests.support.gates import PATIENCE, Gate, eventually

trio = pytest.importorskip("trio")


class Locked:
    """A run's lock that another thread holds until `free` is set."""

    def __init__(self, lock: Any) -> None:
        self.free = threading.Event()
        self._lock = lock
        self._held = threading.Event()

    @contextmanager
    def held(self) -> Iterator[None]:
        """In the block, unless that sets `free` before."""
        holder = threading.Thread(target=self._hold)
        holder.start()
        assert self._held.wait(PATIENCE)
        try:
            yield
        finally:
            self.free.set()
            holder.join()

    def _hold(self) -> None:
        with self._lock:
            self._held.set()
            assert self.free.wait(PATIENCE)


def lock_of_this_run() -> Locked:
    """Which trio has under names of its own: a version that has not is to be looked at."""
    return Locked(trio.lowlevel.current_trio_token()._reentry_queue.lock)


def nothing(start: int, stop: int) -> None:
    """A job's function."""


@pytest.mark.max_threads(1)
def test_helpers_serve_others_while_a_waiter_cannot_be_woken() -> None:
    """Also the job that whoever holds the lock waits for."""
    gate, served = Gate(), threading.Event()

    async def main() -> None:
        locked = lock_of_this_run()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_multithreaded, Job(gate.chunk, 2, chunk=2))
            await gate.entered()
            with locked.held():
                gate.open()  # its end is to be told here, which cannot be
                other = threading.Thread(target=serve_another, daemon=True)
                other.start()
                await eventually(served.is_set)
                locked.free.set()
        other.join()

    def serve_another() -> None:
        with Coordinator() as coordinator:
            coordinator.submit(Job(nothing, 4, chunk=1)).result(PATIENCE)
        run_multithreaded_sync(Job(nothing, 4, chunk=1))
        served.set()

    trio.run(main)


def test_a_coroutine_undo_begins_when_the_lock_is_free() -> None:
    gate = Gate()
    undone: list[tuple[int, int]] = []

    async def undo(start: int, stop: int) -> None:
        undone.append((start, stop))

    def fails(start: int, stop: int) -> None:
        gate.chunk(start, stop)
        if start == 1:
            raise ValueError(start)

    async def main() -> None:
        locked = lock_of_this_run()
        job = Job(fails, 2, chunk=1, max_threads=1, undo=undo)

        async def run() -> None:
            with pytest.raises(ValueError, match="1"):
                await run_multithreaded(job)

        async with Coordinator(max_threads=1) as coordinator, trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await gate.entered()
            with locked.held():
                gate.open()
                await eventually(lambda: len(gate.done) == 2)
                await eventually(coordinator.submit(Job(nothing, 1)).done)
                assert not undone
        assert undone == [(0, 1)]

    trio.run(main)
