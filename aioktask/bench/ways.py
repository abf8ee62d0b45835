# SPDX-License-Identifier: MIT
# How one fills every CPU from a coroutine: with this library, and as its peers do it.
#
# A peer gets the same function in pieces of a fixed size, and as many threads as the library has,
# but for `asyncio.to_thread`, which has those of the loop's default executor. What blocks (joblib,
# dask) is called on a thread, so that the loop is free.
"""The contenders of `bench latency`."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.to_thread

from aioktask import Job, max_threads, run_multithreaded
from aioktask.bench.processes import cpus
from aioktask.bench.sines import LARGE, SMALL, Sines

__all__ = [
    "FEWER",
    "HOLDS_GIL",
    "LARGE_CHUNKS",
    "LEARNED",
    "NOTHING",
    "OURS",
    "PEERS",
    "SMALL_CHUNKS",
    "Way",
    "at_nice",
]

LEARNED = "aioktask, learned"
SMALL_CHUNKS, LARGE_CHUNKS = "aioktask, 2^14 a chunk", "aioktask, 2^20 a chunk"
FEWER = "aioktask, one helper fewer"
HOLDS_GIL = "aioktask, holds the GIL"


@dataclass(frozen=True, slots=True)
class Way:
    """A way to call a function for all of a range.

    Attributes:
        name: In tables.
        once: Does it once, over as many elements as a run has.
        cancellable: Whether it waits for its threads when it is cancelled. Else it must be left to
            come to its end.
        package: What must be installed.
    """

    name: str
    once: Callable[[Sines], Awaitable[object]]
    cancellable: bool = False
    package: str = "asyncio"

    @property
    def missing(self) -> bool:
        return importlib.util.find_spec(self.package) is None


async def _nothing(sines: Sines) -> None:
    await asyncio.Event().wait()


async def _job(
    sines: Sines,
    *,
    chunk: int | None = None,
    threads: int | None = None,
    nice: int = 0,
    with_gil: bool = False,
) -> None:
    work = sines.with_gil if with_gil else sines
    name = "bench latency, with the GIL" if with_gil else "bench latency"
    job = Job(work, sines.size, chunk=chunk, max_threads=threads, nice=nice, name=name)
    await run_multithreaded(job)


def _pieces(sines: Sines, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, sines.size)) for start in range(0, sines.size, size))


async def _to_thread(sines: Sines, size: int) -> None:
    await asyncio.gather(*[asyncio.to_thread(sines, *piece) for piece in _pieces(sines, size)])


async def _anyio(sines: Sines, size: int) -> None:
    limiter = anyio.CapacityLimiter(max_threads())

    async def one(start: int, stop: int) -> None:
        await anyio.to_thread.run_sync(sines, start, stop, limiter=limiter)

    async with anyio.create_task_group() as group:
        for piece in _pieces(sines, size):
            group.start_soon(one, *piece)


async def _joblib(sines: Sines, size: int) -> None:
    joblib = importlib.import_module("joblib")

    def blocking() -> None:
        with joblib.Parallel(n_jobs=max_threads(), backend="threading") as parallel:
            parallel(joblib.delayed(sines)(*piece) for piece in _pieces(sines, size))

    await asyncio.to_thread(blocking)


async def _dask(sines: Sines, size: int) -> None:
    dask = importlib.import_module("dask")

    def blocking() -> None:
        task = dask.delayed(sines, pure=False)
        tasks = [task(*piece) for piece in _pieces(sines, size)]
        dask.compute(*tasks, scheduler="threads", num_workers=max_threads())

    await asyncio.to_thread(blocking)


def at_nice(nice: int) -> Way:
    """A job of that nice, with all that is learned."""
    return Way(f"nice {nice}", partial(_job, nice=nice), cancellable=True)


NOTHING = Way("nothing", _nothing, cancellable=True)
OURS = (
    Way(LEARNED, _job, cancellable=True),
    Way(SMALL_CHUNKS, partial(_job, chunk=SMALL), cancellable=True),
    Way(LARGE_CHUNKS, partial(_job, chunk=LARGE), cancellable=True),
    Way(FEWER, partial(_job, threads=max(cpus() - 1, 1)), cancellable=True),
    Way(HOLDS_GIL, partial(_job, with_gil=True), cancellable=True),
)
# dask takes about a millisecond a task: in pieces of 2^14 that is all that it would do.
PEERS = (
    Way("asyncio.to_thread, gather, 2^14", partial(_to_thread, size=SMALL)),
    Way("asyncio.to_thread, gather, 2^20", partial(_to_thread, size=LARGE)),
    Way("anyio, CapacityLimiter, 2^14", partial(_anyio, size=SMALL)),
    Way("anyio, CapacityLimiter, 2^20", partial(_anyio, size=LARGE)),
    Way("joblib, threading, 2^14", partial(_joblib, size=SMALL), package="joblib"),
    Way("joblib, threading, 2^20", partial(_joblib, size=LARGE), package="joblib"),
    Way("dask, threads, 2^20", partial(_dask, size=LARGE), package="dask"),
)
