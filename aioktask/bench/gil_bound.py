# SPDX-License-Identifier: MIT
# A function that holds the GIL: threads, pools of processes with pieces tuned by hand, and workers
# of this library's with nothing tuned.
#
# All processes are started afresh ("spawn"), the pools' as well as ours: so "made for the job" is
# the same for all. The pools' number of pieces is the best of a sweep, found on other rounds.
"""Pure Python on two processes, for `bench cluster`."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context

from aioktask import Job, run_multithreaded_sync
from aioktask.bench.promises import PAIRS, Result
from aioktask.bench.pure_python import longest, longest_here
from aioktask.cluster import ClusterJob, ProcessCoordinator, run_in_processes
from aioktask.figures.measure import Contender, alternate, interval, ratio
from aioktask.figures.table import Table

__all__ = ["LOOP", "TITLE", "measure_gil_bound"]

TITLE = "A function that holds the GIL, on two processes"
LOOP = "a for loop"
EXECUTOR, LOKY = "ProcessPoolExecutor.map", "joblib, loky"
WORKERS = 2
# Numbers from 1: some seconds of a CPU.
NUMBERS, FEWER = 300_000, 2_000
PIECES = (2, 8, 32, 128, 512)
SWEEP = 2

Pool = Callable[[int], int]


def measure_gil_bound(result: Result, quick: bool, progress: Callable[[str], object]) -> None:
    """The longest of Collatz's sequences, in threads and in processes."""
    numbers, rounds = (FEWER, 1) if quick else (NUMBERS, PAIRS)
    pieces = PIECES[:2] if quick else PIECES
    with ExitStack() as stack:
        pools = _kept_pools(stack, numbers)
        progress(f"a function that holds the GIL: pools with {len(pieces)} numbers of pieces")
        ways = {
            (name, count): Contender(
                f"{name}, kept, {count} pieces",
                lambda pool=pool, count=count: pool(count),  # type: ignore[misc]
            )
            for name, pool in pools.items()
            for count in pieces
        }
        sweep = alternate(list(ways.values()), 1 if quick else SWEEP)
        result.samples["a function that holds the GIL, pools in a sweep, s"] = sweep
        taken = {way: interval(sweep[each.name]).median for way, each in ways.items()}
        best_of = {
            name: min((way for way in ways if way[0] == name), key=taken.__getitem__)
            for name in pools
        }
        best = ways[min(best_of.values(), key=taken.__getitem__)]
        _, count = best_of[EXECUTOR]

        progress(f"a function that holds the GIL: {rounds} rounds")
        coordinator = stack.enter_context(ProcessCoordinator(WORKERS, max_threads=1))
        runner = stack.enter_context(asyncio.Runner())
        job = ClusterJob(longest, numbers, start=1, reduce=max, name="collatz")
        here = Job(longest_here, numbers, start=1, reduce=max, name="collatz")

        def in_new_pool() -> int:
            with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
                return _mapped(pool, numbers, count)

        def in_new_processes() -> int:
            return runner.run(run_in_processes(job, WORKERS, max_threads=1)).value

        contenders = [
            Contender(LOOP, lambda: longest_here(1, numbers + 1)),
            Contender("aioktask: run_multithreaded", lambda: run_multithreaded_sync(here).value),
            Contender(f"ProcessPoolExecutor, made for the job, {count} pieces", in_new_pool),
            Contender("aioktask: run_in_processes", in_new_processes),
            *(ways[way] for way in best_of.values()),
            Contender(
                "aioktask: a kept ProcessCoordinator",
                lambda: coordinator.submit(job).result().value,
            ),
        ]
        expected = longest_here(1, numbers + 1)
        for each in contenders:
            found = each.run()
            assert found == expected, f"{each.name} found {found!r} for {expected}"
        times = alternate(contenders, rounds, warm_ups=0)
    rows = [
        (
            name,
            interval(seconds),
            ratio(times[LOOP], seconds),
            ratio(times[best.name], seconds),
        )
        for name, seconds in times.items()
    ]
    missing = [] if LOKY in pools else ["joblib is not installed."]
    notes = (
        f"The longest of Collatz's sequences below {numbers:,}. Pools of {WORKERS} processes, "
        f"which are started afresh as ours are; of each of the kept pools, with "
        f"{', '.join(map(str, pieces))} pieces, the best is shown.",
        *missing,
    )
    columns = ("", "s", "speed, a for loop = 1", "speed, the best pool = 1")
    result.tables.append(Table(TITLE, columns, rows, notes))
    result.samples["a function that holds the GIL, s"] = times


def _kept_pools(stack: ExitStack, numbers: int) -> dict[str, Pool]:
    """Pools that stay for all jobs, by name: each does the work in so many pieces."""
    executor = stack.enter_context(ProcessPoolExecutor(WORKERS, get_context("spawn")))
    pools: dict[str, Pool] = {EXECUTOR: lambda pieces: _mapped(executor, numbers, pieces)}
    if importlib.util.find_spec("joblib") is not None:
        joblib = importlib.import_module("joblib")
        loky = importlib.import_module("joblib.externals.loky")
        parallel = stack.enter_context(joblib.Parallel(WORKERS, backend="loky"))
        stack.callback(lambda: loky.get_reusable_executor(WORKERS).shutdown(wait=True))
        task = joblib.delayed(longest_here)

        def in_joblib(pieces: int) -> int:
            edges = _edges(numbers, pieces)
            found: list[int] = parallel(map(task, edges[:-1], edges[1:]))
            return max(found)

        pools[LOKY] = in_joblib
    return pools


def _mapped(pool: ProcessPoolExecutor, numbers: int, pieces: int) -> int:
    edges = _edges(numbers, pieces)
    return max(pool.map(longest_here, edges[:-1], edges[1:]))


def _edges(numbers: int, pieces: int) -> list[int]:
    return [1 + numbers * at // pieces for at in range(pieces + 1)]
