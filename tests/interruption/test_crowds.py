# SPDX-License-Identifier: MIT
# What goes away in crowds costs the same for each: CPU time of this thread, for a large crowd and
# for a small one. Where each looks at all others, the ratio is that of the sizes.

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

import anyio
import pytest

from aioktask import (
    Coordinator,
    Job,
    Part,
    run_multithreaded,
    run_multithreaded_sync,
    snapshot,
)
from aioktask.engine.api.process import current_pool
from aioktask.engine.api.snapshots import runs_of
from aioktask.engine.api.why_waiting import awaited

SMALL, LARGE = 250, 2000  # eight times as many
MOST = 3.0  # times the cost of each


def nothing(start: int, stop: int) -> None:
    pass


@pytest.fixture(autouse=True)
def without_the_collector() -> Iterator[None]:
    """A collection goes through all that other tests left, and comes more often in a crowd."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def grows(crowd: Callable[[int], Awaitable[float]]) -> float:
    """How many times as much each of a large crowd costs: the least CPU time of some tries."""
    large, small = [], []
    for _ in range(5):
        large.append(await crowd(LARGE) / LARGE)
        small.append(await crowd(SMALL) / SMALL)
    return min(large) / min(small)


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


@pytest.mark.anyio
async def test_to_find_the_jobs_that_one_chunk_waits_for_costs_the_same_each() -> None:
    async def crowd(size: int) -> float:
        took: list[float] = []
        over, left = threading.Event(), threading.Event()

        def leaves(start: int, stop: int) -> None:
            with Coordinator(max_threads=1) as inner:
                for _ in range(size):
                    inner.submit(Job(lambda start, stop: over.wait(10), 1))
                left.set()

        async with Coordinator() as coordinator:
            coordinator.submit(Job(leaves, 1, name="leaves"))
            await anyio.to_thread.run_sync(left.wait)
            while not any("and" in each.waits_for for each in snapshot().jobs if each.threads):
                await anyio.sleep(0.001)
            for _ in range(3):
                runs = list(runs_of(current_pool()))
                begun = time.thread_time()
                awaited(runs)
                took.append(time.thread_time() - begun)
            over.set()
        return min(took)

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
