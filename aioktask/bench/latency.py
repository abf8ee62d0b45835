# SPDX-License-Identifier: MIT
# How late the loop is while a job fills every CPU with work that releases the GIL.
#
# A ticker of 1 ms runs on the loop for a window of time, beside the library or one of its peers, or
# beside nothing: they take turns, since a machine that others share is late by itself. All call the
# same function over the same range again and again. A window ends by the ticker's clock; what goes
# on then is cancelled, or comes to its end without doing anything, and is not counted. The rival is
# chosen in windows of its own and met in fresh ones.
"""`bench latency`."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass, replace
from functools import partial
from time import perf_counter

from aioktask.bench.beside import TICK, quantile
from aioktask.bench.event_loops import loops
from aioktask.bench.processes import cpus, spinning
from aioktask.bench.promises import PAIRS, Promise, Result
from aioktask.bench.sines import SIZE, Sines
from aioktask.bench.ways import (
    HOLDS_GIL,
    LARGE_CHUNKS,
    LEARNED,
    NOTHING,
    OURS,
    PEERS,
    SMALL_CHUNKS,
    Way,
    at_nice,
)
from aioktask.figures.measure import Contender, Interval, alternate, interval
from aioktask.figures.table import Table

__all__ = ["Window", "lateness", "rival_of", "run"]

MILLI, MEGA = 1e3, 1e-6
NICES = (0, 5, 10, 15, 19)
# What is promised: milliseconds, and of the rival's worst.
LATER, LONGER, SHARE = 1.0, 20.0, 1 / 5
# A peer that does so much of our work in the same time is as fast, as far as one can tell.
AS_FAST = 0.98

Progress = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Window:
    """How late the ticker was in a stretch of time: seconds.

    Attributes:
        median: Of its ticks.
        p99: 99 of 100 were at most so late.
        worst: The longest.
        rate: Elements a second that were done meanwhile.
    """

    median: float
    p99: float
    worst: float
    rate: float


Found = Mapping[str, Sequence[Window]]


@dataclass(frozen=True, slots=True)
class _Pace:
    """How much is measured.

    Attributes:
        seconds: Of a window.
        size: Elements of one run of a job.
        sweep: Rounds in which the rival is chosen.
        rounds: Rounds that something is promised of.
        warm_ups: Rounds before that do not count.
    """

    seconds: float = 0.5
    size: int = SIZE
    sweep: int = 3
    rounds: int = PAIRS
    warm_ups: int = 1


QUICK = _Pace(0.02, SIZE >> 5, 1, 1, 0)


def run(quick: bool, progress: Progress) -> Result:
    """The ticker beside this library and its peers, alone on the machine and beside neighbours."""
    result = Result("latency", quick)
    pace = QUICK if quick else _Pace()
    for neighbours in (False, True):
        with spinning() if neighbours else nullcontext():
            for loop, factory in loops().items():
                where = f"{loop}, beside CPU-bound neighbours" if neighbours else loop
                if factory is None:
                    result.tables.append(Table(where, ("", ""), [("uvloop", "not installed")]))
                    continue
                progress(f"{where}: the library and its peers")
                # Once is enough for the peers where the machine is full of others.
                ways = OURS if neighbours and loop != "asyncio" else (*OURS, *PEERS)
                with asyncio.Runner(loop_factory=factory) as runner:
                    there = [NOTHING, *[way for way in ways if not way.missing]]
                    found = _windows(runner, there, pace, pace.sweep)
                    missing = [way.name for way in ways if way.missing]
                    _tell(result, f"The loop: {where}", found, missing)
                    if not neighbours:
                        _against_rival(result, runner, found, pace, loop, progress)
    by_nice: dict[bool, Found] = {}
    for neighbours in (False, True):
        progress(f"nice 0 to 19, {'beside neighbours' if neighbours else 'alone'}")
        with spinning() if neighbours else nullcontext(), asyncio.Runner() as runner:
            # Beside neighbours it takes time until the worst has been seen.
            longer = replace(pace, seconds=2 * pace.seconds) if neighbours else pace
            there = [NOTHING, *map(at_nice, NICES)]
            by_nice[neighbours] = _windows(runner, there, longer, pace.rounds)
    _tell_nice(result, by_nice)
    return result


# windows


async def lateness(way: Way, sines: Sines, seconds: float) -> Window:
    """The ticker for so long, beside `way`, which is repeated.

    **Cancellation** goes on when nothing works for `way` any more.
    """

    async def repeat() -> None:
        while sines.on:
            await way.once(sines)

    sines.restart()
    task = asyncio.create_task(repeat())
    late: list[float] = []
    began = now = perf_counter()
    try:
        while now < began + seconds and not task.done():
            before = perf_counter()
            await asyncio.sleep(TICK)
            now = perf_counter()
            late.append(now - before - TICK)
        rate = sines.done / (now - began)
    finally:
        if way.cancellable:
            task.cancel()
        else:
            sines.on = False
        await _end_of(task)
    return Window(quantile(late, 0.5), quantile(late, 0.99), max(late), rate)


async def _end_of(task: asyncio.Task[None]) -> None:
    """Wait for it even when cancelled, which goes on then; raise what it raised."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if not task.cancelled():
        task.result()
    if cancelled is not None:
        raise cancelled


def _windows(runner: asyncio.Runner, ways: Sequence[Way], pace: _Pace, rounds: int) -> Found:
    """So many windows for each, that count."""
    sines = Sines(pace.size)
    found: dict[str, list[Window]] = {way.name: [] for way in ways}

    def window(way: Way) -> None:
        found[way.name].append(runner.run(lateness(way, sines, pace.seconds)))

    contenders = [Contender(way.name, partial(window, way)) for way in ways]
    alternate(contenders, rounds, warm_ups=pace.warm_ups)
    return {name: windows[pace.warm_ups :] for name, windows in found.items()}


# the peers


def rival_of(found: Found, ours: str, peers: Sequence[str]) -> str:
    """Whose worst is compared: of the peers that are as fast as we are, who stalls the loop least.

    A peer that does less has it easier. Where none is as fast, it is the fastest.
    """
    rate = {name: statistics.median(each.rate for each in found[name]) for name in (ours, *peers)}
    worst = {name: statistics.median(each.worst for each in found[name]) for name in peers}
    fast = [name for name in peers if rate[name] >= AS_FAST * rate[ours]]
    if fast:
        return min(fast, key=lambda name: worst[name])
    return max(peers, key=lambda name: rate[name])


def _against_rival(
    result: Result,
    runner: asyncio.Runner,
    sweep: Found,
    pace: _Pace,
    loop: str,
    progress: Progress,
) -> None:
    rival = rival_of(sweep, LEARNED, [way.name for way in PEERS if way.name in sweep])
    progress(f"{loop}: {pace.rounds} rounds beside the rival, {rival}")
    met = (LEARNED, SMALL_CHUNKS, LARGE_CHUNKS, rival)
    ways = [NOTHING, *[way for way in (*OURS, *PEERS) if way.name in met]]
    found = _windows(runner, ways, pace, pace.rounds)
    note = (
        f"{pace.rounds} fresh rounds. {rival} is the rival: of the peers that are as fast as "
        f"{LEARNED}, its worst stall is the shortest (the fastest one, if none is as fast)."
    )
    _tell(result, f"The loop: {loop}, beside the rival", found, (), note)
    for name in met[:-1]:
        text = f"{loop}, {name}: p99 of the ticker, ms later than without a job"
        result.promises.append(Promise(text, LATER, False, _later(found, name, "p99")))
    worst = interval(_by_round(found, LEARNED, rival, lambda a, b: a.worst / b.worst))
    speed = interval(_by_round(found, LEARNED, rival, _speed))
    text = f"{loop}, {LEARNED}: worst stall, of that of {rival}"
    result.promises.append(Promise(text, SHARE, False, worst))
    text = f"{loop}, {LEARNED}: elements a second, of those of {rival}"
    result.promises.append(Promise(text, 1.0, True, speed))


def _speed(one: Window, other: Window) -> float:
    # In a window of a hurried run the other may not have come to do anything.
    return one.rate / max(other.rate, 1.0)


def _by_round(
    found: Found, one: str, other: str, compare: Callable[[Window, Window], float]
) -> list[float]:
    return [compare(a, b) for a, b in zip(found[one], found[other], strict=True)]


def _later(found: Found, name: str, what: str) -> Interval:
    """Milliseconds later than without a job, by round."""

    def later(beside: Window, without: Window) -> float:
        difference: float = getattr(beside, what) - getattr(without, what)
        return MILLI * difference

    return interval(_by_round(found, name, NOTHING.name, later))


def _tell(result: Result, title: str, found: Found, missing: Sequence[str], *notes: str) -> None:
    rows: list[tuple[object, ...]] = [
        (
            name,
            MILLI * statistics.median(each.median for each in windows),
            interval(MILLI * each.p99 for each in windows),
            interval(MILLI * each.worst for each in windows),
            MILLI * max(each.worst for each in windows),
            MEGA * statistics.median(each.rate for each in windows) or None,
        )
        for name, windows in found.items()
    ]
    rows += [(name, "not installed", None, None, None, None) for name in missing]
    headers = ("beside", "p50, ms", "p99, ms", "worst of a window, ms", "worst, ms", "million/s")
    notes += (
        "How late a ticker of 1 ms was, and how many elements were done; p50, p99 and the worst "
        "of a window are medians of the windows.",
    )
    if HOLDS_GIL in found:
        notes += (
            f"{HOLDS_GIL}: a loop in Python, and the steps of it. One helper fewer: than there are "
            f"CPUs, {cpus()}.",
        )
    result.tables.append(Table(title, headers, rows, notes))
    _keep(result, title, found)


def _keep(result: Result, title: str, found: Found) -> None:
    for at, what in enumerate(("p50, s", "p99, s", "worst, s", "elements a second")):
        result.samples[f"{title}: {what}"] = {
            name: [astuple(each)[at] for each in windows] for name, windows in found.items()
        }


# nice


def _tell_nice(result: Result, by_nice: Mapping[bool, Found]) -> None:
    for neighbours, found in by_nice.items():
        where = "beside CPU-bound neighbours" if neighbours else "alone on the machine"
        _tell(result, f"The loop against the job's nice (asyncio), {where}", found, ())
    for nice in NICES:
        worst = _later(by_nice[True], at_nice(nice).name, "worst")
        text = f"beside neighbours, job at nice {nice}: worst stall, ms longer than without a job"
        result.promises.append(Promise(text, LONGER, False, worst))
