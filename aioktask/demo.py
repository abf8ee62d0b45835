# SPDX-License-Identifier: MIT
# The demo: what the library is for, shown on this machine in under a minute.
#
# The same work three ways in turns, with a ticker beside it that tells how long the event loop
# stood still; then a job that is cancelled and one that fails, and what was undone. Takes at most
# half of the memory that is available, and gives it back. Relies on the runtime dependencies only.
"""`python -m aioktask demo`."""

from __future__ import annotations

import asyncio
import gc
import mmap
import statistics
import textwrap
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from aioktask import (
    Coordinator,
    Failure,
    Handle,
    Job,
    JobCancelled,
    failure,
    max_threads,
    memory,
    run_multithreaded,
)
from aioktask.bench.arrays import EXPRESSION, Floats, expression
from aioktask.bench.beside import lateness
from aioktask.bench.memory import anonymous, fitting, populate_plainly
from aioktask.bench.pictures import PAUSES
from aioktask.bench.promises import Result
from aioktask.figures.measure import turns
from aioktask.figures.table import WIDTH, Table, number, render, size_text
from aioktask.tune.machine import info, machine_text

__all__ = ["demo"]

# 128 KiB of float64: the temporaries of the expression stay in the cache.
CHUNK = 1 << 14
WAYS = ("in the coroutine", "asyncio.to_thread", "run_multithreaded")
# After a warm-up round there are up to nine rounds of each kind of work: as many as fit into this.
SECONDS = 15.0
LONG_POPULATE = 1.5
MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Work:
    """One piece of work that can be done in three ways.

    Attributes:
        title: What it is.
        plain: All of it, in the thread that calls this.
        job: The same as a job.
        before: Called before each time, not timed.
    """

    title: str
    plain: Callable[[], object]
    job: Job[None]
    before: Callable[[], object]

    async def do(self, way: str) -> None:
        if way == WAYS[0]:
            self.plain()
        elif way == WAYS[1]:
            await asyncio.to_thread(self.plain)
        else:
            await run_multithreaded(self.job)


def demo(*, quick: bool = False, say: Callable[[str], object] = print) -> Result:
    """Show the demo, and return what was measured in it.

    Args:
        quick: On little data, in some seconds, to see that it works.
        say: Called with each part of what is shown.
    """
    head = f"aioktask demo: {max_threads()} helpers on {machine_text(info())}"
    say(textwrap.fill(head, WIDTH, subsequent_indent="  ") + "\n")
    return asyncio.run(_demo(quick, say))


async def _demo(quick: bool, say: Callable[[str], object]) -> Result:
    result = Result("demo", quick)
    rows: list[tuple[object, ...]] = []
    alone = await lateness(lambda: asyncio.sleep(0.05 if quick else 0.5))
    rows += await _rows(result, _expression(fitting((8 if quick else 256) * MIB)))
    _give_back()
    rows += await _rows(result, _pure_python(24 if quick else 320))
    try:
        with anonymous(fitting((64 if quick else 3072) * MIB), huge=True) as memory_map:
            rows += await _rows(result, _populate(memory_map, _worthwhile(memory_map)))
    except OSError as error:  # no Linux, one before 5.14, or a sandbox that is stricter
        rows.append((f"populate: cannot be done here: {error}",))
    ways = Table(
        "The same work, three ways",
        ("", "time, ms", "best", "speed", "worst pause of the event loop, ms"),
        rows,
        (
            "Medians of some rounds in turns, after one to warm up. The pause is the "
            "longest that a 1 ms ticker on the loop was late; with nothing beside it just "
            f"now {number(alone * 1e3)} ms. On a virtual machine a run now and then takes "
            "several times as long, whoever's turn it is: the host has to find memory.",
            "Nothing is tuned: chunk sizes and thread counts are learned while a job runs. "
            "The expression comes out in pieces whose temporaries stay in the cache, which "
            "is worth more than the second CPU.",
            "Pure Python gains a loop that goes on, and more CPUs only where there is no GIL.",
        ),
    )
    say(render(ways))
    size = fitting((8 if quick else 256) * MIB) // 8
    undone = Table(
        "\nAll is done, or all that was done is undone",
        ("the job, and what its caller got", "chunks", "undone", "left done", "values left set"),
        [await _cancelled(size), await _failed(size)],
        ("What is neither undone nor left was never started, but for a chunk that failed itself.",),
    )
    say(render(undone))
    if quick:
        say("\n--quick: too little data for the figures to mean anything.")
    _give_back()
    result.tables += [ways, undone]
    return result


async def _rows(result: Result, work: Work) -> list[tuple[object, ...]]:
    """The table's rows about `work`: each way by turns, and how long the loop stood still."""
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    pauses: dict[str, list[float]] = {way: [] for way in WAYS}
    began = time.perf_counter()
    for at, order in enumerate(turns(len(WAYS), 2 if result.quick else 10)):
        spent = time.perf_counter() - began
        if at > 1 and spent + spent / at > SECONDS:
            break
        for way in (WAYS[i] for i in order):
            work.before()
            _give_back()
            seconds = 0.0

            async def timed(way: str = way) -> None:
                nonlocal seconds
                started = time.perf_counter()
                await work.do(way)
                seconds = time.perf_counter() - started

            pause = await lateness(timed)
            if at > 0:
                times[way].append(seconds)
                pauses[way].append(pause)
    result.samples[work.title] = times
    result.samples[f"{work.title}{PAUSES}"] = pauses
    plain = statistics.median(times[WAYS[0]])
    return [(work.title,), *[_row(way, times[way], pauses[way], plain) for way in WAYS]]


def _row(
    way: str, times: Sequence[float], pauses: Sequence[float], plain: float
) -> tuple[object, ...]:
    seconds = statistics.median(times)
    speed, pause = f"{plain / seconds:.2f}x", statistics.median(pauses)
    return (way, seconds * 1e3, min(times) * 1e3, speed, pause * 1e3)


def _give_back() -> None:
    """Tasks and tracebacks hang in cycles, and may hold memory until the collector happens by."""
    gc.collect()


def _expression(nbytes: int) -> Work:
    x = np.linspace(0.0, 1.0, nbytes // 8)
    out = np.ones_like(x)

    def chunk(start: int, stop: int) -> None:
        out[start:stop] = expression(x[start:stop])

    return Work(
        f"out[:] = {EXPRESSION}, {size_text(nbytes)} of float64",
        lambda: chunk(0, len(x)),
        Job(chunk, len(x), name="expression"),
        lambda: None,
    )


def _pure_python(side: int) -> Work:
    picture = bytearray(side * side)

    def rows(start: int, stop: int) -> None:
        for y in range(start, stop):
            row = bytearray(side)
            for x in range(side):
                at, z, steps = complex(3 * x / side - 2.25, 2.5 * y / side - 1.25), 0j, 0
                while steps < 80 and abs(z) < 2:
                    z = z * z + at
                    steps += 1
                row[x] = steps
            picture[y * side : (y + 1) * side] = row

    return Work(
        f"the Mandelbrot set, {side} x {side} points, in pure Python",
        lambda: rows(0, side),
        Job(rows, side, name="mandelbrot"),
        lambda: None,
    )


def _worthwhile(memory_map: mmap.mmap) -> int:
    """How much of it to populate: all, unless that takes long here."""
    nbytes = len(memory_map)
    sample = nbytes // 16
    for _ in range(2):  # the first touch of memory that the host has not backed says little
        memory_map.madvise(mmap.MADV_DONTNEED)
        began = time.perf_counter()
        populate_plainly(memory_map, sample)
        seconds = time.perf_counter() - began
    while nbytes > GIB and seconds / sample * nbytes > LONG_POPULATE:
        nbytes //= 2
    return nbytes


def _populate(memory_map: mmap.mmap, nbytes: int) -> Work:
    return Work(
        f"populate {size_text(nbytes)} of memory, in huge pages where there are some",
        lambda: populate_plainly(memory_map, nbytes),
        memory.populate(memoryview(memory_map)[:nbytes]),
        lambda: memory_map.madvise(mmap.MADV_DONTNEED),
    )


@dataclass(frozen=True, slots=True)
class Trial:
    """A job that will not come to its end, over an array that undo sets back to zero."""

    x: Floats
    out: Floats
    half_way: Callable[[], object]  # called in the chunk in the middle, on its helper

    @property
    def middle(self) -> int:
        return len(self.x) // CHUNK // 2 * CHUNK

    def work(self, start: int, stop: int) -> None:
        if start == self.middle:
            self.half_way()
        self.out[start:stop] = expression(self.x[start:stop])

    def undo(self, start: int, stop: int) -> None:
        self.out[start:stop] = 0.0

    def job(self, name: str) -> Job[None]:
        return Job(self.work, len(self.x), chunk=CHUNK, undo=self.undo, name=name)

    def row(self, name: str, told: Failure) -> tuple[object, ...]:
        """The table's row: what the failure tells, and what the array says."""
        undone, left = sum(map(len, told.undone)), sum(map(len, told.done))
        chunks = -(-len(self.x) // CHUNK)
        return (name, chunks, -(-undone // CHUNK), left // CHUNK, int(np.count_nonzero(self.out)))


async def _cancelled(size: int) -> tuple[object, ...]:
    """A job that is cancelled when it is half done."""
    submitted: Future[Handle[None]] = Future()
    # Cancelled by one of its own chunks, as any thread may: so it is always half-way.
    trial = Trial(np.linspace(0.0, 1.0, size), np.zeros(size), lambda: submitted.result().cancel())
    try:
        async with Coordinator() as coordinator:
            handle = coordinator.submit(trial.job("cancelled"))
            submitted.set_result(handle)
            await handle
    except JobCancelled as error:
        return trial.row("cancelled in the middle: JobCancelled", failure(error))
    raise AssertionError("the job was not cancelled")


async def _failed(size: int) -> tuple[object, ...]:
    """A job of which a chunk in the middle fails."""

    def fail() -> None:
        raise ValueError("a bad block")

    trial = Trial(np.linspace(0.0, 1.0, size), np.zeros(size), fail)
    try:
        await run_multithreaded(trial.job("failing"))
    except ValueError as error:
        told = failure(error)
        return trial.row(f"chunk {trial.middle // CHUNK:,} raised ValueError: {error}", told)
    raise AssertionError("the failing chunk did not run")
