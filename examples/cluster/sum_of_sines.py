# SPDX-License-Identifier: MIT
# One job in three places: threads of this process, processes of this machine, a Dask cluster.
"""Add up sines that are kept in a file, wherever the workers are, and show who did what.

python examples/cluster/sum_of_sines.py                         # here
python -m aioktask cluster 2                                    # in another terminal
python examples/cluster/sum_of_sines.py tcp://127.0.0.1:8786    # there too
"""

import asyncio
import functools
import operator
import sys
import tempfile
from pathlib import Path

import numpy as np

from aioktask import Job, run_multithreaded
from aioktask.cluster import ClusterJob, ClusterReport, run_in_processes

NUMBERS = 4_000_000


def add_sines(start: int, stop: int, numbers: np.ndarray) -> float:
    return float(np.sin(numbers[start:stop]).sum())


def make_job(path: str) -> ClusterJob[float]:
    # Once in each worker: what is large is opened there, and not sent.
    open_file = functools.partial(np.load, path, mmap_mode="r")
    return ClusterJob(add_sines, NUMBERS, setup=open_file, reduce=operator.add)


def show(where: str, report: ClusterReport[float]) -> None:
    print(f"{where}: {report.value!r} in {report.elapsed:.2f} s")
    for worker in report.workers:
        print(f"    {worker.name}: {worker.units:,} numbers, stretches: {worker.stretches}")


async def main(address: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "numbers.npy"))
        numbers = np.arange(NUMBERS) * 1e-3
        np.save(path, numbers)
        job = make_job(path)

        def here(start: int, stop: int) -> float:
            return add_sines(start, stop, numbers)

        report = await run_multithreaded(Job(here, NUMBERS, reduce=operator.add))
        print(f"threads: {report.value!r} in {report.elapsed:.2f} s")
        there = await run_in_processes(job, 2)
        show("processes", there)
        assert there.value == report.value  # the same bits
        if address is not None:
            from distributed import Client

            from aioktask.cluster import run_on_cluster

            async with Client(address, asynchronous=True) as client:
                there = await run_on_cluster(job, client)
            show("cluster", there)
            assert there.value == report.value


if __name__ == "__main__":  # workers import this module too
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
