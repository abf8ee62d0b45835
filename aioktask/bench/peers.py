# SPDX-License-Identifier: MIT
# What one would take instead, each set up as its documentation says and as well as it can be.
#
# Each peer calls one empty function once for each chunk, with as many threads as asked for. Pools
# are made before the clock starts. A peer that is not installed says so: `missing`.
"""The rivals of the overhead benchmark."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import anyio
import anyio.to_thread

__all__ = ["PEERS", "Peer", "nothing"]

# Runs so many empty chunks.
Chunks = Callable[[int], object]


def nothing(start: int, stop: int) -> None:
    """An empty chunk."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A way to run many small functions on threads.

    Attributes:
        name: In tables.
        chunks: How many chunks a run has: fewer for slow peers, times are for one chunk.
        package: What must be installed.
        opened: Sets it up with so many threads.
    """

    name: str
    chunks: int
    package: str
    opened: Callable[[int], AbstractContextManager[Chunks]]

    @property
    def missing(self) -> bool:
        return importlib.util.find_spec(self.package) is None


@contextmanager
def _executor(threads: int) -> Iterator[Chunks]:
    with ThreadPoolExecutor(threads) as pool:
        yield lambda chunks: list(pool.map(nothing, range(chunks), range(1, chunks + 1)))


@contextmanager
def _to_thread(threads: int) -> Iterator[Chunks]:
    async def main(chunks: int) -> None:
        await asyncio.gather(*[asyncio.to_thread(nothing, i, i + 1) for i in range(chunks)])

    with asyncio.Runner() as runner:
        runner.get_loop().set_default_executor(ThreadPoolExecutor(threads))
        yield lambda chunks: runner.run(main(chunks))


@contextmanager
def _anyio(threads: int) -> Iterator[Chunks]:
    async def one(start: int, limiter: anyio.CapacityLimiter) -> None:
        await anyio.to_thread.run_sync(nothing, start, start + 1, limiter=limiter)

    async def main(chunks: int) -> None:
        limiter = anyio.CapacityLimiter(threads)
        async with anyio.create_task_group() as group:
            for start in range(chunks):
                group.start_soon(one, start, limiter)

    with asyncio.Runner() as runner:
        yield lambda chunks: runner.run(main(chunks))


@contextmanager
def _joblib(threads: int) -> Iterator[Chunks]:
    joblib = importlib.import_module("joblib")
    task = joblib.delayed(nothing)
    with joblib.Parallel(n_jobs=threads, backend="threading") as parallel:
        yield lambda chunks: parallel(task(i, i + 1) for i in range(chunks))


@contextmanager
def _dask(threads: int) -> Iterator[Chunks]:
    dask = importlib.import_module("dask")
    task = dask.delayed(nothing, pure=False)

    def run(chunks: int) -> None:
        tasks = [task(i, i + 1) for i in range(chunks)]
        dask.compute(*tasks, scheduler="threads", num_workers=threads)

    yield run


PEERS = (
    Peer("ThreadPoolExecutor.map", 4000, "concurrent.futures", _executor),
    Peer("gather of asyncio.to_thread", 1000, "asyncio", _to_thread),
    Peer("anyio.to_thread, CapacityLimiter", 400, "anyio", _anyio),
    Peer("joblib, threading", 1000, "joblib", _joblib),
    Peer("dask.delayed, threads", 200, "dask", _dask),
)
