# SPDX-License-Identifier: MIT
# Array work: the library's jobs against plain NumPy and what one would do by hand.
#
# All contenders write into the same arrays, made beforehand. The expression's fixed chunk sizes
# show what the size is worth.
"""`bench arrays`."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aioktask import Job, arrays, max_threads, run_multithreaded
from aioktask.bench.promises import PAIRS, Promise, Result, against_best
from aioktask.figures.measure import Contender, alternate, ratio
from aioktask.figures.table import Table, size_text
from aioktask.tune.machine import available_memory

__all__ = ["expression", "run"]

Floats = NDArray[np.float64]
EXPRESSION = "sqrt(x*x+1.0)*exp(-x)+x"
CHUNKS = tuple(1 << power for power in (12, 13, 14, 15, 17, 20, 22))
MILLI = 1e3
# Seconds of plain NumPy from which on something is promised: below, starting threads would count.
LONG_ENOUGH = 0.010


def expression(x: Floats) -> Floats:
    """The expression of the suite: five passes over memory, most of the time in `exp`."""
    result: Floats = np.sqrt(x * x + 1.0) * np.exp(-x) + x
    return result


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of work, done by all contenders.

    Attributes:
        name: In tables.
        work: Does rows start to stop.
        size: How many rows there are.
        job: The library's job for all of it.
        chunks: Chunk sizes to try with a job made of `work`.
    """

    name: str
    work: Callable[[int, int], object]
    size: int
    job: Job[Any]
    chunks: tuple[int, ...] = field(default=())


def run(quick: bool, progress: Callable[[str], object]) -> Result:
    """The expression, fill, copy and reduce."""
    result = Result("arrays", quick)
    small = _fitting(1 << 20 if quick else 1 << 25, arrays_of=4)
    large = _fitting(1 << 20 if quick else 1 << 26, arrays_of=2)
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        pool = stack.enter_context(ThreadPoolExecutor(max_threads()))
        for make, size in ((_expression, small), (_fill, large), (_copy, large), (_reduce, large)):
            for workload in make(size):
                progress(workload.name)
                _compare(result, workload, runner, pool, 2 if quick else PAIRS)
    return result


def _fitting(elements: int, arrays_of: int) -> int:
    """So many elements, or fewer if so many arrays of them would take half of what there is."""
    available = available_memory()
    while available is not None and elements * 8 * arrays_of > available // 2:
        elements //= 2
    return elements


def _compare(
    result: Result,
    workload: Workload,
    runner: asyncio.Runner,
    pool: ThreadPoolExecutor,
    rounds: int,
) -> None:
    work, size, threads = workload.work, workload.size, max_threads()
    edges = [size * i // threads for i in range(threads + 1)]
    plain = Contender("plain NumPy", lambda: work(0, size))
    ours = Contender("aioktask, untuned", lambda: runner.run(run_multithreaded(workload.job)))
    fixed = [
        _fixed(workload, chunk, runner) for chunk in workload.chunks if chunk * threads <= size
    ]
    contenders = [
        plain,
        ours,
        Contender("asyncio.to_thread", lambda: runner.run(asyncio.to_thread(work, 0, size))),
        Contender(
            f"ThreadPoolExecutor, {threads} slices",
            lambda: list(pool.map(work, edges[:-1], edges[1:])),
        ),
        *fixed,
    ]
    times = alternate(contenders, rounds)
    rows: list[tuple[object, ...]] = [
        (each.name, _milli(times[each.name]), ratio(times[plain.name], times[each.name]))
        for each in contenders[1:]
    ]
    rows.insert(0, (plain.name, _milli(times[plain.name]), 1))
    notes = []
    if fixed:
        best, fresh = against_best(ours, fixed, sweep=times, pairs=rounds)
        share = ratio(fresh[best.name], fresh[ours.name])
        notes.append(
            f"Of the fixed sizes the best is {best.name}: without one, in {rounds} fresh pairs, "
            f"the job has {share} of its speed. What is promised about that: bench tune."
        )
        result.samples[f"{workload.name}, pairs with the best chunk size"] = fresh
    headers = ("", "ms", "speed, plain NumPy = 1")
    result.tables.append(Table(workload.name, headers, rows, tuple(notes)))
    result.samples[workload.name] = times
    if statistics.median(times[plain.name]) >= LONG_ENOUGH:
        text = f"{workload.name.partition(',')[0]}: speed, plain NumPy = 1"
        speed = ratio(times[plain.name], times[ours.name])
        result.promises.append(Promise(text, 0.97, True, speed))


def _fixed(workload: Workload, chunk: int, runner: asyncio.Runner) -> Contender:
    job = Job(workload.work, workload.size, chunk=chunk)
    return Contender(f"aioktask, {_power(chunk)}", lambda: runner.run(run_multithreaded(job)))


def _power(number: int) -> str:
    return f"2^{number.bit_length() - 1}" if number & (number - 1) == 0 else f"{number:,}"


def _expression(size: int) -> list[Workload]:
    x = np.linspace(0.0, 1.0, size)
    out = np.ones_like(x)

    def work(start: int, stop: int) -> None:
        out[start:stop] = expression(x[start:stop])

    job = arrays.apply(expression, x, out=out)
    return [Workload(f"out[:] = {EXPRESSION}, {_of(out)}", work, size, job, CHUNKS)]


def _fill(size: int) -> list[Workload]:
    a = np.ones(size)
    return [
        Workload(
            f"fill with {value}, {_of(a)}",
            lambda start, stop, value=value: a[start:stop].fill(value),  # type: ignore[misc]
            size,
            arrays.fill(a, value),
        )
        for value in (0.0, 1.5)
    ]


def _copy(size: int) -> list[Workload]:
    source, destination = np.ones(size), np.ones(size)

    def work(start: int, stop: int) -> None:
        np.copyto(destination[start:stop], source[start:stop])

    job = arrays.copy(destination, source)
    return [Workload(f"copy, {_of(source)}", work, size, job)]


def _reduce(size: int) -> list[Workload]:
    a = np.ones(size)
    return [
        Workload(
            f"np.add.reduce, {_of(a)}",
            lambda start, stop: np.add.reduce(a[start:stop]),
            size,
            arrays.reduce(np.add, a),
        )
    ]


def _of(array: Floats) -> str:
    return f"{size_text(array.nbytes)} of float64"


def _milli(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * MILLI
