# SPDX-License-Identifier: MIT
# Where the time of one short awaited job goes, on the loop's thread and on the helper's.
#
# The clock is read where the job passes from one thread to the other: functions of the engine are
# wrapped for that, for as long as it is measured. So a segment is told about a fifth longer than
# it is, and the whole beside it as it is without.
"""`bench overhead --segments`."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any

from aioktask import Job, run_multithreaded
from aioktask.bench.promises import Result
from aioktask.engine.loops.asyncio_loop import AsyncioWaiter
from aioktask.engine.state.workers import Parking
from aioktask.figures.measure import interval
from aioktask.figures.table import Table

__all__ = ["measure_segments"]

# What is passed, and on which thread the way there was.
_PASSED = (
    ("called", "loop", ""),
    ("unparks", "loop", "describe the run and submit it"),
    ("unparked", "loop", "have the system wake a helper"),
    ("awake", "helper", "the helper wakes, and gets the GIL"),
    ("begun", "helper", "take the job, make its stint"),
    ("wakes", "helper", "end the job, make its report"),
    ("set", "loop", "wake the loop, which gets the GIL"),
    ("taken", "loop", "the task wakes, and takes the report"),
)
MICRO = 1e3  # ns


def measure_segments(
    result: Result,
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop] | None],
    jobs: int,
    progress: Callable[[str], object],
) -> None:
    """Add a table for each loop: how long so many jobs took from each point to the next."""
    for loop, factory in loops.items():
        if factory is None:
            continue
        progress(f"segments of {jobs:,} jobs on {loop}")
        times: dict[str, int] = {}

        def begun(start: int, stop: int, times: dict[str, int] = times) -> None:
            times["begun"] = perf_counter_ns()

        with asyncio.Runner(loop_factory=factory) as runner:
            plain = runner.run(_timed(Job(lambda start, stop: None, 1, chunk=1), jobs, {}))
            with _watched(times):
                passed = runner.run(_timed(Job(begun, 1, chunk=1), jobs, times))
        names = [name for name, _, _ in _PASSED]
        whole = [each for each in passed if all(name in each for name in names)]
        rows: list[tuple[object, ...]] = []
        for before, (name, thread, what) in zip(names, _PASSED[1:], strict=False):
            took = interval((each[name] - each[before]) / MICRO for each in whole)
            rows.append((thread, what, took))
        total = statistics.median((each["taken"] - each["called"]) / MICRO for each in whole)
        rows.append(("", "together", total))
        unwatched = interval((each["taken"] - each["called"]) / MICRO for each in plain)
        rows.append(("", "the same, not watched", unwatched))
        result.samples[f"short awaited job, on {loop}, in ns"] = {
            "watched": [each["taken"] - each["called"] for each in whole],
            "not watched": [each["taken"] - each["called"] for each in plain],
        }
        result.tables.append(
            Table(
                f"Segments of one short job, on {loop}",
                ("on", "", "us"),
                rows,
                ("One chunk with an empty function, one after the other, the Job made once.",),
            )
        )


async def _timed(job: Job[None], jobs: int, times: dict[str, int]) -> list[dict[str, int]]:
    passed = []
    for _ in range(jobs):
        times.clear()
        times["called"] = perf_counter_ns()
        await run_multithreaded(job)
        times["taken"] = perf_counter_ns()
        passed.append(dict(times))
    return passed[jobs // 10 :]  # the first ones make helpers and warm up


@contextmanager
def _watched(times: dict[str, int]) -> Iterator[None]:
    """Note when a helper and the loop are woken, and when they are awake."""
    wait, unpark = Parking.wait, Parking.unpark
    wake, set_ = AsyncioWaiter.wake, AsyncioWaiter._set

    def watched_wait(self: Parking, timeout: float = -1) -> bool:
        woken = wait(self, timeout)
        times["awake"] = perf_counter_ns()
        return woken

    def watched_unpark(self: Parking) -> None:
        times["unparks"] = perf_counter_ns()
        unpark(self)
        times["unparked"] = perf_counter_ns()

    def watched_wake(self: AsyncioWaiter) -> None:
        times["wakes"] = perf_counter_ns()
        wake(self)

    def watched_set(self: AsyncioWaiter) -> None:
        times["set"] = perf_counter_ns()
        set_(self)

    watched: list[tuple[type, str, Any, Any]] = [
        (Parking, "wait", wait, watched_wait),
        (Parking, "unpark", unpark, watched_unpark),
        (AsyncioWaiter, "wake", wake, watched_wake),
        (AsyncioWaiter, "_set", set_, watched_set),
    ]
    try:
        for owner, name, _, by in watched:
            setattr(owner, name, by)
        yield
    finally:
        for owner, name, was, _ in watched:
            setattr(owner, name, was)
