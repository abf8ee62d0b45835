# SPDX-License-Identifier: MIT
# A program whose event loop ends under a job on a Dask cluster, for tests that look how it goes on:
#
#   python -m tests.cluster.unlooped ADDRESS FOLDER HOW
#
# HOW is "interrupted": two signals of Ctrl-C follow each other while the job runs; or "closed": the
# loop is closed, and a thread waits for the job. It prints the name of what the job ended with.
"""Run a job on a loop that ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from distributed import Client

from aioktask.cluster import ClusterCoordinator, run_on_cluster
from tests.cluster.ledger import Ledger
from tests.support.gates import until


def interrupt_twice(ledger: Ledger) -> None:
    until(lambda: len(ledger.lines()) > 10)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.003)  # else they are one


async def run(address: str, ledger: Ledger) -> None:
    async with Client(address, asynchronous=True) as client:
        threading.Thread(target=interrupt_twice, args=(ledger,), daemon=True).start()
        await run_on_cluster(ledger.job(20_000), client)


async def begin(address: str, ledger: Ledger) -> tuple[Any, ...]:
    client = await Client(address, asynchronous=True)
    coordinator = ClusterCoordinator(client)
    await coordinator.__aenter__()
    handle = coordinator.submit(ledger.job(20_000))
    while len(ledger.lines()) <= 10:
        await asyncio.sleep(0.001)
    return handle, coordinator, client


def main(address: str, folder: Path, how: str) -> str:
    # Chunks of one helper of each worker, which all are in one process.
    ledger = Ledger(folder, unit_seconds=0.002)
    if how == "interrupted":
        try:
            asyncio.run(run(address, ledger))
        except BaseException as error:
            return type(error).__name__
    loop = asyncio.new_event_loop()
    handle, *_held = loop.run_until_complete(begin(address, ledger))
    loop.close()
    try:
        handle.result()
    except Exception as error:
        return type(error).__name__
    return "nothing"


if __name__ == "__main__":
    # By its name, so that what is pickled can be read elsewhere.
    from tests.cluster import unlooped

    print(unlooped.main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]), flush=True)
    os._exit(0)
