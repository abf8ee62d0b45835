# SPDX-License-Identifier: MIT
# When the await comes back, nothing holds the caller's memory any more: neither a cycle that waits
# for the garbage collector, nor a helper that is still on its way to its parking.

from __future__ import annotations

import gc
import mmap
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from aioktask import Coordinator, Job, memory, run_multithreaded, run_multithreaded_sync
from aioktask.engine.state.outbox import Outbox
from aioktask.engine.threads.pool import Pool

ROUNDS = 100


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def job_over(buffer: mmap.mmap, **options: Any) -> Job[None]:
    view = memoryview(buffer)

    def touch(start: int, stop: int) -> None:
        view[start] = 1

    return Job(touch, len(buffer), chunk=1024, **options)


@pytest.mark.anyio
async def test_memory_can_be_closed_right_after_the_await() -> None:
    for _ in range(ROUNDS):
        with mmap.mmap(-1, 1 << 16) as buffer:  # closing fails while anything exports it
            await run_multithreaded(job_over(buffer))
        with mmap.mmap(-1, 1 << 16) as buffer:
            await run_multithreaded(job_over(buffer, undo=lambda a, b: None))


@pytest.mark.anyio
async def test_memory_can_be_closed_right_after_a_handle() -> None:
    async with Coordinator() as coordinator:
        for _ in range(ROUNDS):
            with mmap.mmap(-1, 1 << 16) as buffer:
                await coordinator.submit(job_over(buffer))


@pytest.mark.anyio
async def test_a_helper_that_is_slow_to_park_holds_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is kept where it has just woken the waiter, and its frame is still on its stack."""
    parks = threading.Event()
    deliver = Pool.send

    def deliver_and_wait(pool: Pool, outbox: Outbox) -> None:
        woke = bool(outbox.waiters)
        deliver(pool, outbox)
        if woke and threading.current_thread() is not threading.main_thread():
            assert parks.wait(60)

    with mmap.mmap(-1, 1 << 16) as buffer:
        job = job_over(buffer, max_threads=1)
        await run_multithreaded(Job(lambda a, b: None, 1))  # so that there is a helper
        monkeypatch.setattr(Pool, "send", deliver_and_wait)
        try:
            await run_multithreaded(job)
            del job
            buffer.close()
        finally:
            parks.set()


def test_memory_can_be_closed_right_after_the_sync_form() -> None:
    for _ in range(ROUNDS):
        with mmap.mmap(-1, 1 << 16) as buffer:
            run_multithreaded_sync(job_over(buffer))
        with mmap.mmap(-1, 1 << 16) as buffer:
            run_multithreaded_sync(memory.populate(buffer))
