# SPDX-License-Identifier: MIT
# How contenders are compared on a machine that is never quiet.
#
# Contenders run in turns, so that what slows the machine down hits them all; each goes first as
# often as the others. A comparison is the median of the ratios within a round, with an interval
# from order statistics: no distribution is assumed, one disturbed round moves nothing. Garbage
# collection is off while the clock runs, for all alike, as in `timeit`.
"""Alternating contenders, medians, ratios with intervals."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from aioktask.figures.table import number

__all__ = [
    "Contender",
    "Interval",
    "alternate",
    "interval",
    "microseconds",
    "ratio",
    "turns",
]


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do the work.

    Attributes:
        name: In tables.
        run: Does the work once; this is timed.
        units: How much work that is: times are seconds for one unit.
        before: Called before each run, not timed.
    """

    name: str
    run: Callable[[], object]
    units: int = 1
    before: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class Interval:
    """A median, and where it is with a probability of 95%.

    Of fewer than 6 values no such interval can be told: `low` and `high` are then the smallest and
    the largest of them.

    Attributes:
        median: Of the values.
        low: The lower end.
        high: The upper end.
        count: How many values.
    """

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        if self.count == 1:
            return number(self.median)
        return f"{number(self.median)} ({number(self.low)} to {number(self.high)})"


def interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """The median of `values` with its interval, from order statistics.

    The k-th smallest and k-th largest value enclose the true median unless fewer than k values lie
    on one side of it, whose probability is binomial.

    >>> str(interval(range(1, 16)))
    '8.00 (4.00 to 12.0)'
    """
    ordered = sorted(values)
    count = len(ordered)
    outside, k = 0.0, 0
    while True:
        outside += 2 * math.comb(count, k) / 2**count
        if outside > 1 - confidence:
            break
        k += 1
    k = max(k, 1)
    return Interval(statistics.median(ordered), ordered[k - 1], ordered[-k], count)


def microseconds(seconds: Iterable[float]) -> Interval:
    """The median of times with its interval, from seconds to microseconds.

    >>> str(microseconds([2e-6]))
    '2.00'
    """
    return interval(each * 1e6 for each in seconds)


def ratio(over: Sequence[float], under: Sequence[float]) -> Interval:
    """The ratio of two contenders, from the ratios within each round."""
    return interval(a / b for a, b in zip(over, under, strict=True))


def turns(count: int, rounds: int) -> Iterator[list[int]]:
    """The order of the contenders in each round: there, back, and then begun one further.

    >>> list(turns(2, 4))
    [[0, 1], [1, 0], [1, 0], [0, 1]]
    """
    for at in range(rounds):
        shift = at // 2 % count
        order = [*range(shift, count), *range(shift)]
        yield order[::-1] if at % 2 else order


def alternate(
    contenders: Sequence[Contender],
    rounds: int,
    *,
    warm_ups: int = 1,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, tuple[float, ...]]:
    """Seconds for one unit of work, by name: one value a round, rounds in parallel.

    Args:
        contenders: Who takes turns.
        rounds: How many values each gets.
        warm_ups: Rounds before that do not count.
        clock: Seconds.
    """
    times: dict[str, list[float]] = {each.name: [] for each in contenders}
    if len(times) != len(contenders):
        raise ValueError(f"contenders need different names, got {[c.name for c in contenders]}")
    with _no_collection():
        for at, order in enumerate(turns(len(contenders), warm_ups + rounds)):
            gc.collect()
            for each in (contenders[i] for i in order):
                if each.before is not None:
                    each.before()
                began = clock()
                each.run()
                seconds = clock() - began
                if at >= warm_ups:
                    times[each.name].append(seconds / each.units)
    return {name: tuple(values) for name, values in times.items()}


@contextmanager
def _no_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
