# SPDX-License-Identifier: MIT
# What it costs to await a thread: a short job and a single call, beside one `asyncio.to_thread`.
#
# They are awaited one after the other and told one by one, with the loop thread's own CPU time, and
# short jobs many at once too. Beside them stands what no way through a thread can undercut: a
# parked thread that wakes the loop.
"""The part of `bench overhead` that compares with `asyncio.to_thread`."""

from __future__ import annotations

import asyncio
import hashlib
import statistics
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter, thread_time

import aioktask
from aioktask import Job, run_multithreaded
from aioktask.bench.event_loops import loops
from aioktask.bench.peers import nothing
from aioktask.bench.promises import PAIRS, Promise, Result
from aioktask.figures.measure import Contender, alternate, microseconds, ratio
from aioktask.figures.table import Table

__all__ = ["consecutive", "measure_short_jobs", "measure_single_calls"]


def measure_short_jobs(result: Result, quick: bool, progress: Callable[[str], object]) -> None:
    """A job of one empty chunk beside `asyncio.to_thread`, one after the other and many at once."""
    awaits = 20 if quick else 300
    pairs = 3 if quick else 2 * PAIRS + 1
    job = Job(nothing, 1, chunk=1)
    undone = Job(nothing, 1, chunk=1, undo=nothing)

    async def gathered(one: Callable[[], Coroutine[None, None, object]]) -> None:
        await asyncio.gather(*[one() for _ in range(together)])

    together = 100 if quick else 2000
    fewer = 3 if quick else 15
    rows: list[tuple[object, ...]] = []
    more: list[tuple[object, ...]] = []
    for loop, factory in loops().items():
        if factory is None:
            rows.append((loop, "not installed", None, None, None, None))
            continue
        progress(f"short awaited jobs: {pairs} rounds on {loop}")
        with asyncio.Runner(loop_factory=factory) as runner, _bare_thread() as bare:
            one_by_one = [
                consecutive("aioktask", runner, awaits, run_multithreaded, job),
                consecutive("to_thread", runner, awaits, asyncio.to_thread, nothing, 0, 1),
                consecutive("with undo", runner, awaits, run_multithreaded, undone),
                consecutive("bare", runner, awaits, bare),
            ]
            times = alternate(one_by_one, pairs)
            cpu = alternate(one_by_one[:2], fewer, clock=thread_time)
            at_once = alternate(
                [
                    Contender(
                        "aioktask",
                        lambda: runner.run(gathered(lambda: run_multithreaded(job))),
                        together,
                    ),
                    Contender(
                        "to_thread",
                        lambda: runner.run(gathered(lambda: asyncio.to_thread(nothing, 0, 1))),
                        together,
                    ),
                ],
                fewer,
            )
        share = ratio(times["aioktask"], times["to_thread"])
        names = ("aioktask", "with undo", "to_thread", "bare")
        rows.append((loop, *[microseconds(times[name]) for name in names], share))
        result.samples[f"short awaited job on {loop}"] = times
        text = f"one short job awaited, of asyncio.to_thread, on {loop}"
        result.promises.append(Promise(text, 0.9, False, share))
        for what, figures, most in (
            ("the loop thread's CPU time", cpu, 0.9),
            (f"{together:,} at once", at_once, 0.7),
        ):
            each = [microseconds(figures[name]) for name in ("aioktask", "to_thread")]
            share = ratio(figures["aioktask"], figures["to_thread"])
            more.append((loop, what, *each, share))
            result.samples[f"short awaited job, {what}, on {loop}"] = figures
            result.promises.append(Promise(f"the same, {what}, on {loop}", most, False, share))
    result.tables.append(
        Table(
            "One short job, awaited",
            (
                "",
                "a job, us",
                "with undo, us",
                "to_thread, us",
                "two wake-ups, us",
                "job / to_thread",
            ),
            rows,
            (
                "One chunk with an empty function, one after the other, the Job made once.",
                "Two wake-ups: a lock that wakes a thread, whose call_soon_threadsafe wakes the "
                "loop, and nothing else: what no way through a thread can undercut.",
            ),
        )
    )
    result.tables.append(
        Table(
            "What else a short job costs",
            ("", "", "a job, us", "to_thread, us", "job / to_thread"),
            more,
            ("At once: so many are gathered, and what is told is the time of one.",),
        )
    )


def measure_single_calls(result: Result, quick: bool, progress: Callable[[str], object]) -> None:
    """`run` beside `asyncio.to_thread`, of an empty function and of one that lasts 1 ms."""
    pairs = 3 if quick else PAIRS
    functions: dict[str, tuple[Callable[[], object], int]] = {
        "an empty function": (_empty, 20 if quick else 300),
        "a function of 1 ms": (_of_one_ms(), 5 if quick else 50),
    }

    rows: list[tuple[object, ...]] = []
    for loop, factory in loops().items():
        if factory is None:
            continue
        with asyncio.Runner(loop_factory=factory) as runner:
            for text, (function, times) in functions.items():
                progress(f"single calls of {text}: {pairs} rounds on {loop}")
                contenders = [
                    consecutive("run", runner, times, aioktask.run, function),
                    consecutive("to_thread", runner, times, asyncio.to_thread, function),
                ]
                wall = alternate(contenders, pairs)
                cpu = alternate(contenders, pairs, clock=thread_time)
                for what, figures in (("", wall), (", the loop thread's CPU time", cpu)):
                    share = ratio(figures["run"], figures["to_thread"])
                    rows.append((loop, text + what, *map(microseconds, figures.values()), share))
                    result.samples[f"one call of {text}{what}, on {loop}"] = figures
                    told = f"run of {text}{what}, of asyncio.to_thread, on {loop}"
                    result.promises.append(Promise(told, 1.0, False, share))
    result.tables.append(
        Table(
            "One call, awaited",
            ("", "", "run, us", "to_thread, us", "run / to_thread"),
            rows,
            ("One after the other. The function of 1 ms computes without the GIL.",),
        )
    )


def consecutive(
    name: str,
    runner: asyncio.Runner,
    times: int,
    call: Callable[..., Awaitable[object]],
    *arguments: object,
) -> Contender:
    """A contender that awaits `call(*arguments)` so many times, one after the other."""

    async def calls() -> None:
        for _ in range(times):
            await call(*arguments)

    return Contender(name, lambda: runner.run(calls()), times)


def _empty() -> None:
    """A function that does nothing."""


def _of_one_ms() -> Callable[[], object]:
    """A function that computes for about a millisecond on this machine, without the GIL."""
    block = bytes(1 << 20)
    times = []
    for _ in range(9):
        begun = perf_counter()
        hashlib.sha256(block)
        times.append(perf_counter() - begun)
    size = int(len(block) * 1e-3 / statistics.median(times))
    return partial(hashlib.sha256, bytes(size))


@contextmanager
def _bare_thread() -> Iterator[Callable[[], Awaitable[None]]]:
    """A function whose result is awaited until a parked thread has woken the loop."""
    parking = threading.Lock()
    parking.acquire()
    wakes: list[Callable[[], object]] = []

    def serve() -> None:
        while True:
            parking.acquire()
            if not wakes:
                return
            wakes.pop()()

    async def wait() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        wakes.append(partial(loop.call_soon_threadsafe, done.set_result, None))
        parking.release()
        await done

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield wait
    finally:
        parking.release()
        thread.join()
