# SPDX-License-Identifier: MIT
# A scheduler or a worker of Dask, bound to CPUs, that dies with the benchmark which started it.
#
# Says "ready" when it serves, and then its address as JSON.
"""`python -m aioktask.bench.dask_process CPUS [SCHEDULER] PARENT`."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from aioktask.bench.processes import die_with

__all__: list[str] = []


async def _serve(scheduler: str) -> None:
    from distributed import Scheduler, Worker

    # Any port that is free: a cluster of the user's may have the usual one.
    here = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    server = Worker(scheduler, nthreads=1, **here) if scheduler else Scheduler(port=0, **here)
    async with server:
        print("ready", flush=True)
        print(json.dumps(server.address), flush=True)
        await server.finished()


if __name__ == "__main__":
    cpus, *addresses, parent = sys.argv[1:]
    die_with(int(parent))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, cpus.split(",")))
    asyncio.run(_serve(addresses[0] if addresses else ""))
