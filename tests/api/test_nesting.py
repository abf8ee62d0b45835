# SPDX-License-Identifier: MIT
# Jobs inside chunks, to any depth and with one helper only; waits that could never end are refused.

from __future__ import annotations

import asyncio
import threading
from typing import Any

import anyio
import anyio.from_thread
import pytest

import aioktask
from aioktask import (
    Coordinator,
    DeadlockError,
    Handle,
    Job,
    priority,
    run_multithreaded,
    run_multithreaded_sync,
)
from aioktask.engine.api.process import current_pool

everywhere = pytest.mark.anyio


@pytest.fixture(autouse=True, params=[1, 2], ids=["one helper", "two helpers"])
def helpers(request: pytest.FixtureRequest) -> Any:
    aioktask.set_max_threads(request.param)
    yield request.param
    aioktask.set_max_threads(None)


class Counter:
    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def add(self, start: int, stop: int) -> None:
        with self._lock:
            self.value += stop - start


def nest(counter: Counter, depth: int) -> Job[None]:
    """A job whose chunks run a job whose chunks ..."""
    if depth == 0:
        return Job(counter.add, 3, chunk=1)
    return Job(lambda a, b: _run(nest(counter, depth - 1)), 3, chunk=1)


def _run(job: Job[Any]) -> None:
    run_multithreaded_sync(job)


@everywhere
async def test_nested_jobs_run_to_any_depth() -> None:
    counter = Counter()
    await run_multithreaded(nest(counter, 5))
    assert counter.value == 3**6


def test_nested_jobs_run_from_a_script() -> None:
    counter = Counter()
    run_multithreaded_sync(nest(counter, 5))
    assert counter.value == 3**6


@everywhere
async def test_a_nested_job_belongs_to_the_coordinator_of_its_chunk() -> None:
    seen: list[int] = []

    async with Coordinator(max_threads=1) as coordinator:

        def outer(start: int, stop: int) -> None:
            report = run_multithreaded_sync(Job(lambda a, b: None, 50, chunk=1))
            seen.append(report.peak_threads)

        await run_multithreaded(Job(outer, 4, chunk=1), coordinator=coordinator)
    assert seen == [1, 1, 1, 1]


@everywhere
async def test_nested_jobs_may_still_run_while_their_coordinator_is_left() -> None:
    counter = Counter()
    entered, leaving = threading.Event(), threading.Event()

    def outer(start: int, stop: int) -> None:
        entered.set()
        assert leaving.wait(60)
        run_multithreaded_sync(Job(counter.add, 5, chunk=1))

    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(outer, 2, chunk=1))
        await anyio.to_thread.run_sync(entered.wait)
        threading.Timer(0.05, leaving.set).start()
    await handle
    assert counter.value == 10
    with pytest.raises(RuntimeError, match="takes no more jobs"):
        coordinator.submit(Job(print, 1))


@everywhere
async def test_a_job_that_a_loop_awaits_for_a_chunk_needs_no_free_helper() -> None:
    """Every helper waits in a chunk for the loop, which awaits a job for it."""
    counter = Counter()
    token = anyio.lowlevel.current_token()

    async def for_chunk() -> None:
        await run_multithreaded(Job(counter.add, 5, chunk=1))

    def outer(start: int, stop: int) -> None:
        anyio.from_thread.run(for_chunk, token=token)

    await run_multithreaded(Job(outer, 6, chunk=1))
    assert counter.value == 30


@everywhere
async def test_a_chunk_may_run_a_loop_that_awaits_a_job() -> None:
    counter = Counter()

    async def inner() -> None:
        await run_multithreaded(Job(counter.add, 5, chunk=1))

    await run_multithreaded(Job(lambda a, b: asyncio.run(inner()), 6, chunk=1))
    assert counter.value == 30


@everywhere
async def test_a_chunk_may_wait_for_a_handle_when_every_helper_does(helpers: int) -> None:
    counter = Counter()
    async with Coordinator() as coordinator:

        def outer(start: int, stop: int) -> None:
            coordinator.submit(Job(counter.add, 5, chunk=1)).result()

        await coordinator.submit(Job(outer, 8, chunk=1))
    assert counter.value == 40
    pool = current_pool()
    assert pool.state.scheduler.running == 0


@everywhere
async def test_waiting_for_one_s_own_job_is_refused() -> None:
    handles: list[Handle[Any]] = []
    ready = threading.Event()

    def chunk(start: int, stop: int) -> None:
        assert ready.wait(60)
        handles[0].result()

    async with Coordinator() as coordinator:
        handles.append(coordinator.submit(Job(chunk, 1, name="self")))
        ready.set()
        with pytest.raises(DeadlockError, match="self waits for self") as caught:
            await handles[0]
    assert caught.value.jobs == ("self",)


@everywhere
async def test_a_cycle_of_waits_is_found_when_the_last_wait_would_begin() -> None:
    handles: dict[str, Handle[Any]] = {}
    ready = threading.Event()
    order = threading.Lock()

    def wait_for(name: str) -> Any:
        def chunk(start: int, stop: int) -> None:
            assert ready.wait(60)
            with order:
                pass
            handles[name].result()

        return chunk

    async with Coordinator() as coordinator:
        handles["a"] = coordinator.submit(Job(wait_for("b"), 1, name="a"))
        handles["b"] = coordinator.submit(Job(wait_for("c"), 1, name="b"))
        handles["c"] = coordinator.submit(Job(wait_for("a"), 1, name="c"))
        ready.set()
        errors = []
        for handle in handles.values():
            with pytest.raises(DeadlockError) as caught:
                await handle
            errors.append(caught.value)
    assert all(sorted(error.jobs) == ["a", "b", "c"] for error in errors)
    assert not current_pool().state.waits


@everywhere
async def test_a_cycle_through_a_nested_job_is_found() -> None:
    handles: list[Handle[Any]] = []
    ready = threading.Event()

    def inner(start: int, stop: int) -> None:
        handles[0].result()

    def outer(start: int, stop: int) -> None:
        assert ready.wait(60)
        run_multithreaded_sync(Job(inner, 1, name="inner"))

    async with Coordinator() as coordinator:
        handles.append(coordinator.submit(Job(outer, 1, name="outer")))
        ready.set()
        with pytest.raises(DeadlockError) as caught:
            await handles[0]
    assert caught.value.jobs == ("inner", "outer")


@everywhere
async def test_waits_that_are_no_cycle_are_not_refused() -> None:
    async with Coordinator() as coordinator:
        first = coordinator.submit(Job(lambda a, b: None, 4, chunk=1))
        second = coordinator.submit(Job(lambda a, b: first.result(), 4, chunk=1))
        third = coordinator.submit(Job(lambda a, b: (first.result(), second.result()), 4, chunk=1))
        await third


@everywhere
async def test_a_coordinator_inside_a_chunk_owns_its_jobs() -> None:
    counter = Counter()

    def chunk(start: int, stop: int) -> None:
        with Coordinator() as inner:
            for _ in range(3):
                inner.submit(Job(counter.add, 4, chunk=1))

    await run_multithreaded(Job(chunk, 3, chunk=1))
    assert counter.value == 36


@everywhere
async def test_a_nested_job_inherits_the_priority_block_of_its_submitter() -> None:
    seen: list[int] = []

    async with Coordinator() as coordinator:

        def outer(start: int, stop: int) -> None:
            seen.append(coordinator.submit(Job(lambda a, b: None, 1)).nice)

        with priority(7):
            await run_multithreaded(Job(outer, 1))
        await run_multithreaded(Job(outer, 1))
    assert seen == [7, 0]


def test_a_calling_thread_goes_on_with_what_a_helper_gave_back() -> None:
    """The job's helper is called to a better job; the calling thread takes what it leaves."""
    counter = Counter()
    with Coordinator() as coordinator:
        urgent: list[Handle[Any]] = []

        def chunk(start: int, stop: int) -> None:
            if start == 10:
                urgent.append(coordinator.submit(Job(lambda a, b: None, 200, chunk=1, nice=-20)))
            counter.add(start, stop)

        run_multithreaded_sync(Job(chunk, 5000, chunk=1), coordinator=coordinator)
    assert counter.value == 5000
    assert urgent[0].result().chunks == 200


def test_a_chunk_that_waits_lends_its_own_job_s_nice_also_after_a_renice() -> None:
    """Not the nice that the awaited job had when the wait began."""
    waits, gate, applied = threading.Event(), threading.Event(), threading.Event()
    handles: list[Handle[Any]] = []

    def outer(start: int, stop: int) -> None:
        handles[0].result()

    def inner(start: int, stop: int) -> None:
        waits.set()
        gate.wait(60)

    aioktask.set_max_threads(2)
    pool = current_pool()
    with Coordinator() as coordinator:
        handles.append(coordinator.submit(Job(inner, 1, nice=0, name="inner")))
        assert waits.wait(60)
        coordinator.submit(Job(outer, 1, nice=10, name="outer"))
        run = handles[0]._run
        try:
            while not run.waiters:  # until the chunk's wait has been applied
                applied.clear()
                pool.post(lambda state, run: applied.set(), None)
                assert applied.wait(60)
            handles[0].renice(15)
            applied.clear()
            pool.post(lambda state, run: applied.set(), None)
            assert applied.wait(60)
            assert (run.entry.nice, run.entry.loan) == (15, 10)
        finally:
            gate.set()
