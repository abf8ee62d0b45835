# SPDX-License-Identifier: MIT
# Uses of the public face that are only type-checked (`make types`), never run: each says what a
# user's type checker must conclude.

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray  # noqa: TC002 - used by annotations of locals

from aioktask import (
    Chunk,
    Coordinator,
    DeadlockError,
    Failure,
    Handle,
    Job,
    Part,
    Plan,
    Progress,
    Report,
    StreamProgress,
    UndoFailed,
    arrays,
    current_chunk,
    failure,
    map_ordered,
    map_ordered_sync,
    max_threads,
    memory,
    plan,
    priority,
    run,
    run_multithreaded,
    run_multithreaded_sync,
    set_max_threads,
)
from aioktask.cluster import (
    ClusterHandle,
    ClusterJob,
    ClusterReport,
    ProcessCoordinator,
    WorkerPart,
    run_in_processes,
)
from aioktask.progress import Bar, rich_bar, tqdm_bar
from aioktask.streams import Stream, StreamHandle, SyncStream


def work(start: int, stop: int) -> None: ...


def returns_something(start: int, stop: int) -> str:
    return f"{start} {stop}"


def count(start: int, stop: int) -> int:
    return stop - start


def add(a: int, b: int) -> int:
    return a + b


async def undo_later(start: int, stop: int) -> None: ...


def jobs_without_reduce() -> None:
    assert_type(Job(work, 10), Job[None])
    assert_type(Job(work, np.int64(10), start=np.int64(5), align=2, min_chunk=2), Job[None])
    # What the function returns is ignored, whatever it is.
    assert_type(Job(returns_something, 10), Job[None])
    assert_type(Job(lambda start, stop: start, 10), Job[None])
    assert_type(Job(work, 10, undo=work), Job[None])
    assert_type(Job(work, 10, remember="disk"), Job[None])
    assert_type(Job(work, 10, remember=Path("/a/directory")), Job[None])
    assert_type(Job(work, 10, memory=np.int64(1 << 20)), Job[None])
    assert_type(Job(work, 10).over([range(5)]), tuple[Job[None], ...])
    assert_type(Job(work, 10, undo=undo_later), Job[None])
    assert_type(Job(work, 10, parts=[Part(0, 5, 0), Part(5, 10)]), Job[None])


def jobs_with_reduce() -> None:
    assert_type(Job(count, 10, reduce=add), Job[int])
    assert_type(Job(count, 0, reduce=add, initial=0), Job[int])
    assert_type(Job(count, 10, reduce=add, undo=undo_later), Job[int])


def jobs_that_are_refused() -> None:
    Job(returns_something, 10, reduce=add)  # type: ignore[misc]
    Job(count, 10, initial=0)  # type: ignore[call-overload]
    Job(work, 10.0)  # type: ignore[call-overload]
    Job(work)  # type: ignore[call-overload]


async def awaited() -> None:
    assert_type(await run_multithreaded(Job(work, 10)), Report[None])
    report = await run_multithreaded(Job(count, 10, reduce=add))
    assert_type(report, Report[int])
    assert_type(report.value, int)
    assert_type(report.peak_threads, int)
    assert_type(report.chunks, int)
    assert_type(report.queued, float)
    assert_type(report.elapsed, float)
    assert_type(report.cpu_time, float)
    assert_type(report.busy, tuple[float, ...])


def synchronous() -> None:
    assert_type(run_multithreaded_sync(Job(work, 10)), Report[None])
    assert_type(run_multithreaded_sync(Job(count, 10, reduce=add)).value, int)


async def owned_by_a_coordinator() -> None:
    async with Coordinator(max_threads=2) as coordinator:
        assert_type(coordinator, Coordinator)
        assert_type(coordinator.submit(Job(work, 10)), Handle[None])
        handle = coordinator.submit(Job(count, 10, reduce=add))
        assert_type(handle, Handle[int])
        assert_type(handle.progress(), Progress)
        assert_type(handle.progress().done, int)
        assert_type(handle.cancel(), bool)
        handle.renice(10)
        assert_type(await handle, Report[int])
        assert_type(handle.result(), Report[int])
        assert_type(handle.result(timeout=1.5), Report[int])
        report = await run_multithreaded(Job(count, 10, reduce=add), coordinator=coordinator)
        assert_type(report.value, int)
        await coordinator.shutdown(cancel=True)


async def watched(first: Handle[int], second: Handle[None], stream: StreamHandle) -> None:
    async for progress in first.watch(interval=0.5):
        assert_type(progress, Progress)
    for state in stream.watch():
        assert_type(state, StreamProgress)
    assert_type(first.progress().eta, float | None)
    assert_type(rich_bar(first), Bar[Report[int]])
    assert_type(await rich_bar(first), Report[int])
    assert_type(tqdm_bar(second).result(), Report[None])
    assert_type(await tqdm_bar(stream), StreamProgress)
    assert_type(rich_bar(first, second).result(), tuple[Report[Any] | StreamProgress, ...])
    with tqdm_bar(first, stream) as bar:
        assert_type(bar, Bar[tuple[Report[Any] | StreamProgress, ...]])
    rich_bar()  # type: ignore[call-overload]
    tqdm_bar(first, progress=None)  # type: ignore[call-overload]


async def texts() -> AsyncIterator[str]:
    yield "a"


async def streams() -> None:
    async with map_ordered(len, texts(), window=8, nice=5) as results:
        assert_type(results, Stream[int])
        async for value in results:
            assert_type(value, int)
        assert_type(await anext(results), int)
        assert_type(results.handle, StreamHandle)
        assert_type(results.handle.progress(), StreamProgress)
        assert_type(results.handle.progress().size, int | None)
    async with map_ordered(len, ["a"], errors="yield") as with_errors:
        async for either in with_errors:
            assert_type(either, int | Exception)
    map_ordered(len, [1])  # type: ignore[arg-type]
    async with map_ordered(len, texts(), on=object()) as elsewhere:
        async for value in elsewhere:
            assert_type(value, int)
        assert_type(elsewhere.handle.progress(), StreamProgress)
        assert_type(elsewhere.handle.cancel(), bool)
    async with map_ordered(len, ["a"], on=object(), errors="yield") as with_errors_elsewhere:
        assert_type(await anext(with_errors_elsewhere), int | Exception)


def streams_in_a_script() -> None:
    with map_ordered_sync(len, ["a"], ordered=False) as results:
        assert_type(results, SyncStream[int])
        for value in results:
            assert_type(value, int)
    with map_ordered_sync(len, ["a"], errors="yield") as with_errors:
        assert_type(next(with_errors), int | Exception)


def owned_in_a_script() -> None:
    with Coordinator() as coordinator:
        assert_type(coordinator, Coordinator)
        run_multithreaded_sync(Job(work, 10), coordinator=coordinator)


def covariant(report: Report[bool]) -> Report[int]:
    return report


def inside_a_chunk(start: int, stop: int) -> None:
    chunk = current_chunk()
    assert_type(chunk, Chunk)
    assert_type(chunk.start, int)
    assert_type(chunk.stop, int)
    chunk.check_cancelled()
    chunk.advance(stop)


def failures(error: BaseException) -> None:
    told = failure(error)
    assert_type(told, Failure)
    assert_type(told.chunk, range | None)
    assert_type(told.errors, tuple[BaseException, ...])
    assert_type(told.done, tuple[range, ...])
    assert_type(told.undone, tuple[range, ...])
    assert_type(told.unknown, tuple[range, ...])
    try:
        pass
    except UndoFailed as undo_failed:
        assert_type(undo_failed.ranges, tuple[range, ...])
        assert_type(undo_failed.exceptions, tuple[Exception | ExceptionGroup[Exception], ...])
    except DeadlockError as deadlock:
        assert_type(deadlock.jobs, tuple[str, ...])


def around_it() -> None:
    assert_type(plan(Job(work, 10)), Plan)
    assert_type(plan(Job(count, 10, reduce=add)), Plan)
    assert_type(max_threads(), int)
    set_max_threads(4)
    block: AbstractContextManager[None] = priority(5)
    with block:
        pass


def ready_jobs() -> None:
    numbers = np.zeros(10)
    filled: NDArray[np.float64] = run_multithreaded_sync(arrays.fill(numbers, 0)).value
    copied: NDArray[np.float64] = run_multithreaded_sync(arrays.copy(filled, numbers)).value
    applied = run_multithreaded_sync(arrays.apply(np.sqrt, copied, out=numbers)).value
    roots: NDArray[np.float64] = applied
    assert roots is numbers
    assert_type(memory.clear(bytearray(10)), Job[None])
    assert_type(memory.populate(bytearray(10)), Job[None])


async def single_calls(coordinator: Coordinator) -> None:
    assert_type(await run(count, 1, 2), int)
    assert_type(await run(returns_something, 1, 2, nice=3, name="x"), str)
    assert_type(await run(count, 1, 2, coordinator=coordinator), int)
    assert_type(await coordinator.run(count, 1, 2), int)
    await run(count, "1", 2)  # type: ignore[arg-type]
    executor = coordinator.executor(nice=5)
    assert_type(executor.submit(count, 1, stop=2).result(), int)
    assert_type(list(executor.map(returns_something, [1], [2], buffersize=3)), list[str])


def length(start: int, stop: int, data: str) -> int:
    return stop - start


def opened() -> str:
    return ""


async def on_workers() -> None:
    plain = ClusterJob(work_on, 10, setup=opened)
    assert_type(plain, ClusterJob[None])
    job = ClusterJob(length, 10, setup=opened, reduce=add)
    assert_type(job, ClusterJob[int])
    ClusterJob(length, 10, setup=lambda: 5)  # type: ignore[misc]
    report = await run_in_processes(job, 2)
    assert_type(report, ClusterReport[int])
    assert_type(report.value, int)
    async with ProcessCoordinator(2) as coordinator:
        handle = coordinator.submit(job)
        assert_type(handle, ClusterHandle[int])
        assert_type((await handle).value, int)
        assert_type(handle.result().workers, tuple[WorkerPart, ...])
        async for progress in handle.watch():
            assert_type(progress, Progress)


def work_on(start: int, stop: int, data: str) -> None:
    pass
