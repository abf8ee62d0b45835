# SPDX-License-Identifier: MIT
# A process with jobs that want every CPU, as `bench neighbour` and `bench share` have beside them.
#
# It is asked by lines of JSON on stdin and answers with one line each:
#   {"do": "repeat", "nice": 19, "size": N, "runs": 1}    runs a job over N elements again and again
#       until the next line comes, whatever that is, and tells what was done when
#   {"do": "once", "nice": 19, "size": N, "waiter": 0}    submits it once and awaits it at another
#       nice, and tells how long that took
# It ends with its stdin, and dies with its parent.
"""`python -m aioktask.bench.worker PARENT`."""

from __future__ import annotations

import asyncio
import json
import sys
from time import monotonic
from typing import Any

from aioktask import Coordinator, Job, priority
from aioktask.bench.processes import die_with
from aioktask.bench.sines import Sines

__all__ = ["once", "repeat"]

# Between two looks at what is done.
SAMPLE = 0.010


async def repeat(
    sines: Sines, told: asyncio.Future[Any], *, nice: int, size: int, runs: int = 0
) -> dict[str, object]:
    """Run a job again and again until `told` is done; it is then cancelled.

    Args:
        sines: The job's function.
        told: Ends it.
        nice: The job's.
        size: Elements of a run.
        runs: So many come to their end first, in any case.

    Returns:
        What was done when, in elements, and of the runs that came to their end: the elements, the
        helpers' CPU time and their wall time.
    """
    job = Job(sines, size, nice=nice, name="bench worker")
    ended = 0
    cpu_time = busy = 0.0
    times, done = [monotonic()], [0]
    async with Coordinator() as coordinator:
        handle = coordinator.submit(job)

        async def again() -> None:
            nonlocal handle, ended, cpu_time, busy
            while True:
                report = await handle
                ended += size
                cpu_time += report.cpu_time
                busy += sum(report.busy)
                handle = coordinator.submit(job)

        again_and_again = asyncio.create_task(again())
        while not told.done() or ended < runs * size:
            await asyncio.sleep(SAMPLE)
            if again_and_again.done():
                again_and_again.result()  # it never ends but by an error
            times.append(monotonic())
            done.append(ended + handle.progress().done)
        again_and_again.cancel()
        await asyncio.wait([again_and_again])
        await coordinator.shutdown(cancel=True)
    return {"times": times, "done": done, "ended": ended, "cpu_time": cpu_time, "busy": busy}


async def once(sines: Sines, *, nice: int, size: int, waiter: int) -> dict[str, object]:
    """Run a job once; its waiter has a nice of its own."""
    began = monotonic()
    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(sines, size, nice=nice, name="bench worker"))
        with priority(waiter):
            await handle
    return {"seconds": monotonic() - began}


async def _serve() -> None:
    sines = Sines()
    print("ready", flush=True)
    while line := await _next_line():
        how: dict[str, Any] = json.loads(line)
        match how.pop("do"):
            case "repeat":
                found = await repeat(sines, asyncio.ensure_future(_next_line()), **how)
            case "once":
                found = await once(sines, **how)
            case asked:
                raise ValueError(f"a worker can repeat a job or run it once, got {asked!r}")
        print(json.dumps(found), flush=True)


async def _next_line() -> str:
    return await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    asyncio.run(_serve())
