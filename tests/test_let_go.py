# SPDX-License-Identifier: MIT
# When the await comes back, nothing holds the caller's memory any more: neither a cycle that waits
# for the garbage collector, nor a helper that is still on its way to its parking.

from __future__ import annotations

import gc
import mmap
from collections.abc import Iterator
from typing import Any

import pytest

from aioktask import Coordinator, Job, memory, run_multithreaded, run_multithreaded_sync

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


def test_memory_can_be_closed_right_after_the_sync_form() -> None:
    for _ in range(ROUNDS):
        with mmap.mmap(-1, 1 << 16) as buffer:
            run_multithreaded_sync(job_over(buffer))
        with mmap.mmap(-1, 1 << 16) as buffer:
            run_multithreaded_sync(memory.populate(buffer))
