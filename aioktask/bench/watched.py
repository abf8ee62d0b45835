# SPDX-License-Identifier: MIT
# A server with jobs and the live page, for `page`: on one loop whose lateness it tells, while
# somebody looks at the page or nobody does.
#
# Its jobs stand still: one has every helper, the others wait. So what is late is late for the page.
# Beside them there may be short jobs, one after the other on a thread of the program: what there is
# to tell of a timeline grows with their number.
"""`python -m aioktask.bench.watched PARENT`: a server that tells what it is asked, in JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from time import perf_counter
from typing import Any

import uvicorn

from aioktask import Coordinator, Handle, Job, configure, current_chunk, run_multithreaded_sync
from aioktask.bench.beside import TICK
from aioktask.bench.peers import nothing
from aioktask.bench.processes import die_with
from aioktask.web import page
from aioktask.web._page.access import Token

# Chunks of a job, each a call of an empty function.
CHUNKS = 100_000

# How long a short job comes after the one before, in seconds.
SHORT_EVERY = 0.001


def stands_still(start: int, stop: int) -> None:
    """A chunk that ends when its job is cancelled."""
    chunk = current_chunk()
    while True:
        chunk.check_cancelled()
        threading.Event().wait(0.05)


async def lateness(seconds: float) -> list[float]:
    """How late, in seconds, a ticker of 1 ms was each time."""
    late, end = [], perf_counter() + seconds
    while (began := perf_counter()) < end:
        await asyncio.sleep(TICK)
        late.append(perf_counter() - began - TICK)
    return late


def chunk_seconds() -> float:
    """What an empty chunk costs."""
    return run_multithreaded_sync(Job(nothing, CHUNKS, chunk=1, name="empty")).elapsed / CHUNKS


@contextmanager
def short_jobs() -> Iterator[None]:
    """A thread that runs a short job every millisecond or so, as long as the block runs."""
    over = threading.Event()

    def run() -> None:
        number = 0
        while not over.wait(SHORT_EVERY):
            number += 1
            run_multithreaded_sync(Job(nothing, 1, name=f"short {number}"))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Server(uvicorn.Server):  # type: ignore[misc]
    """One that says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    async def startup(self, sockets: Any = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self.listens.set()


async def main() -> None:
    """Serve the page; answer each line of the standard input with one."""
    config = uvicorn.Config(page(), port=0, log_level="warning", lifespan="off", loop="uvloop")
    server = Server(config)
    serving = asyncio.create_task(server.serve())
    await server.listens.wait()
    port = server.servers[0].sockets[0].getsockname()[1]
    print("ready")
    print(json.dumps({"port": port, "token": Token().value}), flush=True)
    configure(stuck_after=None)
    async with Coordinator() as coordinator:
        handles: list[Handle[None]] = []
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked: Mapping[str, Any] = json.loads(line)
            for number in range(len(handles), asked["jobs"]):
                labels = {"request": f"{number:08x}", "tenant": "a tenant"}
                job = Job(stands_still, 8, chunk=1, name=f"job {number}", labels=labels, nice=5)
                handles.append(coordinator.submit(job))
            with short_jobs() if asked["short"] else nullcontext():
                if asked["seconds"]:
                    await asyncio.sleep(asked["before"])
                    found: object = await lateness(asked["seconds"])
                else:
                    found = await asyncio.to_thread(chunk_seconds)
            print(json.dumps(found), flush=True)
        for handle in handles:
            handle.cancel()
    server.should_exit = True
    await serving


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    asyncio.run(main())
