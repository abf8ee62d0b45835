# SPDX-License-Identifier: MIT
# What others notice of a job that learns: a short job that is submitted beside it, and the loop.
#
# Both are told as the worst of many, with quantiles, since a mean hides what is waited for. With
# nothing beside them the same is measured in the same run: a machine that others share is late by
# itself.
"""Waits beside a job."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from aioktask import Job, run_multithreaded
from aioktask.bench.peers import nothing
from aioktask.figures.table import Table

__all__ = ["TICK", "Waits", "lateness", "quantile", "short_jobs", "waits_table"]

MILLI = 1e3
TICK = 1e-3
# Between one short job and the next.
PAUSE = 50e-3
# A short job beside a long one is served within this many seconds.
SERVED = 20e-3


@dataclass(frozen=True, slots=True)
class Waits:
    """How long short jobs took beside something.

    Attributes:
        name: What ran beside them.
        done: Seconds from submit until the task that waits goes on.
        queued: Seconds from submit until a helper took its chunk.
    """

    name: str
    done: tuple[float, ...]
    queued: tuple[float, ...]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least such a share of them does not exceed.

    >>> quantile(range(1, 101), 0.99), quantile([3.0, 1.0, 2.0], 0.5), quantile([1.0], 0.99)
    (99, 2.0, 1.0)
    """
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


async def short_jobs(
    name: str, long: Callable[[], Awaitable[object]] | None, count: int, pause: float = PAUSE
) -> Waits:
    """Submit short jobs, one after the other, while `long` runs again and again.

    **Cancellation** goes on when the long job is undone.

    Args:
        name: What runs beside them.
        long: Runs the long job once; None for nothing.
        count: How many short jobs.
        pause: Seconds from the end of one to the next.
    """
    short = Job(nothing, 1, chunk=1, name="short")
    done, queued = [], []
    on = True

    async def repeat() -> None:
        while on and long is not None:
            await long()

    async with asyncio.TaskGroup() as group:
        group.create_task(repeat())
        for _ in range(count):
            await asyncio.sleep(pause)
            began = perf_counter()
            report = await run_multithreaded(short)
            done.append(perf_counter() - began)
            queued.append(report.queued)
        on = False
    return Waits(name, tuple(done), tuple(queued))


def waits_table(found: Sequence[Waits]) -> Table:
    """A row for each of them."""
    rows: list[tuple[object, ...]] = [
        (
            each.name,
            *[MILLI * quantile(each.done, share) for share in (0.5, 0.99)],
            MILLI * max(each.done),
            MILLI * max(each.queued),
        )
        for each in found
    ]
    headers = ("beside", "median, ms", "99%, ms", "worst, ms", "worst wait for a helper, ms")
    count = max(len(each.done) for each in found)
    notes = (
        f"{count} jobs of one empty chunk, {PAUSE * MILLI:.0f} ms apart, from submit until the "
        "task goes on, while a long job runs again and again at the default settings.",
        "A function that holds the GIL makes the loop wait for it, not only the short job.",
    )
    return Table("A short job beside a long one", headers, rows, notes)


async def lateness(work: Callable[[], Awaitable[object]]) -> float:
    """The longest, in seconds, that a ticker of 1 ms was late while `work` went on.

    What `work` raises comes through as it is. **Cancellation** goes on as soon as `work` lets it.
    """
    worst = 0.0
    on = True

    async def tick() -> None:
        nonlocal worst
        while on:
            due = perf_counter() + TICK
            await asyncio.sleep(TICK)
            worst = max(worst, perf_counter() - due)

    ticker = asyncio.create_task(tick())
    try:
        await asyncio.sleep(5 * TICK)
        worst = 0.0
        await work()
    finally:
        on = False
        await ticker  # which is told of a pause only after it
    return worst
