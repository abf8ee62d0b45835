# SPDX-License-Identifier: MIT
# A job that only computes, on two workers of Dask on this machine: this library's way, Dask's own
# ways with pieces tuned by hand, and the engine without a cluster.
#
# Every way is checked to have solved every orbit before it is measured. Which of Dask's own is the
# best is found on other rounds than those in which it is compared.
"""Orbits on Dask, for `bench cluster`."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from anyio.from_thread import BlockingPortal, start_blocking_portal

from aioktask import Job, run_multithreaded_sync
from aioktask.bench.orbits import make_files, opened, solve, solved
from aioktask.bench.processes import cpus
from aioktask.bench.promises import PAIRS, Promise, Result
from aioktask.cluster import ClusterJob
from aioktask.figures.measure import Contender, alternate, interval, ratio
from aioktask.figures.table import Table

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["ENGINE", "OURS", "TITLE", "awaited_client", "measure_on_dask"]

TITLE = "A job that only computes, on two workers of Dask"
ENGINE = "run_multithreaded, no cluster"
OURS = ("aioktask: run_on_cluster", "aioktask: a kept ClusterCoordinator")
WORKERS = 2
ORBITS, FEWER = 3 << 22, 1 << 16
PIECES = (8, 32, 128, 512)
SWEEP = 2
# What is promised: of one machine's engine, of the best of Dask's own ways.
OF_ENGINE, OF_DASK = 0.95, 1.0


def measure_on_dask(result: Result, quick: bool, progress: Callable[[str], object]) -> None:
    """Solve the orbits in a file, which needs Dask."""
    from distributed import Client

    from aioktask.bench.dask_ways import WAYS, dask_cluster
    from aioktask.cluster import ClusterCoordinator, run_on_cluster

    count, pairs = (FEWER, 1) if quick else (ORBITS, PAIRS)
    pieces = PIECES[:1] if quick else PIECES
    memory = Path("/dev/shm")
    with ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="aioktask-", dir=memory if memory.is_dir() else None)
        )
        make_files(Path(folder), count)
        files = opened(folder)
        address, _ = stack.enter_context(dask_cluster(WORKERS))
        client = stack.enter_context(Client(address, set_as_default=False))
        portal = stack.enter_context(start_blocking_portal())
        awaited = awaited_client(stack, portal, address)
        coordinator = portal.call(ClusterCoordinator, awaited)
        kept = stack.enter_context(portal.wrap_async_context_manager(coordinator))
        job = ClusterJob(solve, count, setup=functools.partial(opened, folder), name="orbits")
        here = Job(lambda start, stop: solve(start, stop, files), count, name="orbits")
        ways = [
            Contender(
                f"{name}, {number} pieces",
                lambda way=way, number=number: way(client, folder, count, number),  # type: ignore[misc]
            )
            for name, way in WAYS.items()
            for number in pieces
        ]
        contenders = [
            Contender(ENGINE, lambda: run_multithreaded_sync(here)),
            Contender(OURS[0], lambda: portal.call(run_on_cluster, job, awaited)),
            Contender(OURS[1], lambda: kept.submit(job).result()),
        ]
        expected = solved(files.mean)
        for each in (*contenders, ways[0], ways[-1]):
            files.eccentric[:] = 0.0
            each.run()
            assert np.array_equal(files.eccentric, expected), f"{each.name} left orbits out"
        progress(f"orbits on Dask: {len(ways)} ways of its own")
        sweep = alternate(ways, 1 if quick else SWEEP, warm_ups=0)
        best = min(ways, key=lambda each: interval(sweep[each.name]).median)
        progress(f"orbits on Dask: {pairs} rounds")
        times = alternate([*contenders, best], pairs)
    rows = [
        (name, interval(taken), ratio(times[ENGINE], taken), ratio(times[best.name], taken))
        for name, taken in times.items()
    ]
    columns = ("", "s", "speed, no cluster = 1", "speed, the best of Dask's = 1")
    notes = (
        f"Kepler's equation for {count:,} orbits, from an array in a file to another one, which "
        f"each process opens. Workers have a CPU each, of {cpus()} that there are: the client, the "
        "scheduler and the workers' own loops use those too.",
    )
    result.tables.append(Table(TITLE, columns, rows, notes))
    swept = [(name, interval(taken)) for name, taken in sweep.items()]
    result.tables.append(Table("Dask's own ways, in a sweep", ("", "s"), swept))
    result.samples["orbits on Dask, s"] = times
    result.samples["orbits on Dask, in a sweep, s"] = sweep
    for name in OURS:
        text = f"{name.removeprefix('aioktask: ')}: speed, of"
        for rival, of, limit in (
            (ENGINE, "one machine's engine", OF_ENGINE),
            (best.name, "the best of Dask's own ways", OF_DASK),
        ):
            reached = ratio(times[rival], times[name])
            result.promises.append(Promise(f"{text} {of}", limit, True, reached))


def awaited_client(stack: ExitStack, portal: BlockingPortal, address: str) -> Client:
    """A client on a loop that goes on in a thread of its own, closed with the stack."""
    from distributed import Client

    async def connected() -> Client:
        return await Client(address, asynchronous=True, set_as_default=False)

    client = portal.call(connected)
    stack.callback(portal.call, client.close)
    return client
