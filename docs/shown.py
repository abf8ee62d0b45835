# SPDX-License-Identifier: MIT
# Jobs to take pictures of: a service and its nightly work, two processes with one of each that the
# page shows. Nothing is made up; chunks sleep, so that the pictures need no strong machine.
#
#   python docs/shown.py service|nightly
"""The processes that are on the pictures of the page and of `top`."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

from aioktask import (
    Coordinator,
    Job,
    JobCancelled,
    configure,
    current_chunk,
    map_ordered,
    priority,
    run,
)

UNIT_SECONDS = 0.08


def work(start: int, stop: int) -> None:
    time.sleep(UNIT_SECONDS * (stop - start))


def write_page(start: int, stop: int) -> None:
    time.sleep(5 * UNIT_SECONDS * (stop - start))


def undo(start: int, stop: int) -> None:
    time.sleep(4 * UNIT_SECONDS * (stop - start))


def fails(start: int, stop: int) -> None:
    work(start, stop)
    if start > 20:
        raise ValueError("row 21 has no customer")


def load_weights(start: int, stop: int) -> None:
    while True:  # as a library does that is stuck in one call
        time.sleep(0.05)
        current_chunk().check_cancelled()


def holds_gil(start: int, stop: int) -> None:
    sum(number * number for number in range(start, stop))


def send(number: int) -> int:
    time.sleep(0.3)
    return number


def lookup() -> None:
    time.sleep(60.0)


def wait_urgently(handle: object) -> None:
    with priority(-5), suppress(JobCancelled, ValueError):
        handle.result()  # type: ignore[attr-defined]


async def service() -> None:
    """What requests of customers cause, under one coordinator, and reports under another."""
    configure(max_threads=5, max_blocked=1, stuck_after=120.0)
    acme, globex = {"tenant": "acme"}, {"tenant": "globex"}
    async with Coordinator() as coordinator, Coordinator(max_threads=1) as reports:
        scores = Job(holds_gil, 20_000_000, min_chunk=1000, name="score recommendations")
        await coordinator.submit(scores)
        thumbnails = Job(
            work, 700, chunk=1, max_threads=2, undo=undo, name="resize thumbnails", labels=acme
        )
        resized = coordinator.submit(thumbnails)
        index = coordinator.submit(
            Job(work, 2000, chunk=1, max_threads=1, name="rebuild the index", nice=5, labels=globex)
        )
        threading.Thread(target=wait_urgently, args=(index,), daemon=True).start()
        report_jobs = [
            Job(write_page, 80, chunk=1, name=f"report {month}", labels=globex)
            for month in ("January", "February", "March", "April")
        ]
        handles = [reports.submit(job) for job in report_jobs]
        customers = Job(fails, 400, chunk=1, undo=work, name="import customers", labels=acme)
        imported = coordinator.submit(customers)
        tasks = [
            asyncio.create_task(mails(range(100_000))),
            asyncio.create_task(run(lookup)),
        ]
        print("ready", flush=True)
        with suppress(ValueError):
            await imported
        for _ in range(3):
            await coordinator.submit(Job(work, 8, chunk=1, name="resize one", labels=globex))
        await asyncio.to_thread(sys.stdin.readline)  # now the pictures are near
        resized.cancel()
        await asyncio.to_thread(sys.stdin.read)
        for handle in (*handles, index):
            handle.cancel()
        for task in tasks:
            task.cancel()


async def mails(numbers: Iterable[int]) -> None:
    async with map_ordered(send, numbers, window=16, name="send mails") as sent:
        async for _ in sent:
            pass


def nightly() -> None:
    """Work that can wait: it leaves the CPUs to others, and one chunk is stuck."""
    configure(max_threads=1, stuck_after=1.0)
    with Coordinator() as coordinator:
        handles = [
            coordinator.submit(
                Job(load_weights, 1, name="load a model", labels={"run": "nightly"})
            ),
            coordinator.submit(Job(work, 5000, chunk=1, name="compact the archive", nice=10)),
        ]
        print("ready", flush=True)
        sys.stdin.read()
        for handle in handles:
            handle.cancel()


if __name__ == "__main__":
    asyncio.run(service()) if sys.argv[1:] == ["service"] else nightly()
