# SPDX-License-Identifier: MIT
# What goes away in crowds costs the same for each: CPU time of this thread, for a large crowd and
# for a small one. Where each looks at all others, the ratio is that of the sizes.

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable

import anyio
import pytest

from aioktask import Coordinator, Job, Part, run_multithreaded, run_multithreaded_sync

SMALL, LARGE = 250, 2000  # eight times as many
MOST = 3.0  # times the cost of each


def nothing(start: int, stop: int) -> None:
    pass


async def cost_of_each(crowd: Callable[[int], Awaitable[float]], size: int) -> float:
    """The least CPU time of a few tries, for each of the crowd."""
    return min([await crowd(size) for _ in range(3)]) / size


async def grows(crowd: Callable[[int], Awaitable[float]]) -> float:
    return await cost_of_each(crowd, LARGE) / await cost_of_each(crowd, SMALL)


@pytest.mark.anyio
async def test_waiters_of_one_handle_that_leave_cost_the_same_each() -> None:
    async def crowd(size: int) -> float:
        over = threading.Event()
        async with Coordinator() as coordinator:
            handle = coordinator.submit(Job(lambda start, stop: over.wait(10), 1, max_threads=1))

            async def wait() -> None:
                await handle

            async with anyio.create_task_group() as tasks:
                for _ in range(size):
                    tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                begun = time.thread_time()
                tasks.cancel_scope.cancel()
            took = time.thread_time() - begun
            over.set()
        return took

    assert await grows(crowd) < MOST


@pytest.mark.anyio
async def test_awaited_jobs_that_are_cancelled_cost_the_same_each() -> None:
    async def crowd(size: int) -> float:
        over = threading.Event()
        job = Job(lambda start, stop: over.wait(10), 1, max_threads=1)

        async def run() -> None:
            await run_multithreaded(job)

        async with anyio.create_task_group() as tasks:
            for _ in range(size):
                tasks.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            begun = time.thread_time()
            tasks.cancel_scope.cancel()
            over.set()
        return time.thread_time() - begun

    assert await grows(crowd) < MOST


@pytest.mark.anyio
async def test_coordinators_cost_the_same_each() -> None:
    async def crowd(size: int) -> float:
        async def scope() -> None:
            async with Coordinator() as coordinator:
                await run_multithreaded(Job(nothing, 4, chunk=1), coordinator=coordinator)

        begun = time.thread_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(size // 4):
                tasks.start_soon(scope)
        return time.thread_time() - begun

    assert await grows(crowd) < MOST


def test_parts_cost_the_same_each() -> None:
    def cost_of_each(size: int) -> float:
        job = Job(nothing, size, parts=[Part(each, each + 1, 0) for each in range(size)])
        costs = []
        for _ in range(3):
            begun = time.thread_time()
            run_multithreaded_sync(job)
            costs.append(time.thread_time() - begun)
        return min(costs) / size

    assert cost_of_each(LARGE) < MOST * cost_of_each(SMALL)
