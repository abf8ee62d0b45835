# SPDX-License-Identifier: MIT
# How contenders are compared on a machine that is never quiet.
#
# Contenders run in turns, so that what slows the machine down hits them all; each goes first as
# often as the others. A comparison is the median of the ratios within a round, with an interval
# from order statistics: no distribution is assumed, one disturbed round moves nothing. Where the
# rival is the best of several, it is chosen on other rounds than those it is compared in, or luck
# would count. Garbage collection is off while the clock runs, for all alike, as in `timeit`.
"""Alternating contenders, medians, ratios with intervals, promises."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

from aioktask.figures.drawing import Panel
from aioktask.figures.table import Table, number, render

__all__ = [
    "Contender",
    "Interval",
    "Promise",
    "Result",
    "against_best",
    "alternate",
    "interval",
    "ratio",
    "turns",
]

# Pairs of a comparison that a promise rests on. The interval is then the 4th to the 12th of 15.
PAIRS = 15


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


def against_best(
    ours: Contender,
    rivals: Sequence[Contender],
    *,
    sweep: Mapping[str, Sequence[float]],
    pairs: int,
) -> tuple[Contender, Mapping[str, Sequence[float]]]:
    """The best of the rivals, and fresh pairs of it and `ours`.

    Args:
        ours: Who is compared.
        rivals: Those to choose from.
        sweep: Times of the rivals, by which the best is chosen.
        pairs: How many pairs are then run.
    """
    best = min(rivals, key=lambda rival: statistics.median(sweep[rival.name]))
    return best, alternate([ours, best], pairs)


@dataclass(frozen=True, slots=True)
class Promise:
    """A number that the design promises, and what was reached.

    Attributes:
        text: What is promised.
        limit: The number.
        at_least: Whether more is better; else less is.
        reached: What was measured.
    """

    text: str
    limit: float
    at_least: bool
    reached: Interval

    @property
    def kept(self) -> bool:
        """Whether the interval reaches the limit."""
        if self.at_least:
            return self.reached.high >= self.limit
        return self.reached.low <= self.limit


@dataclass(slots=True)
class Result:
    """What a benchmark found.

    Attributes:
        name: The benchmark.
        quick: Whether it was hurried: then nothing follows from the figures.
        tables: To be read.
        promises: What was promised about this, and whether it is kept.
        samples: Seconds for one unit, by table and contender: every single value.
        panels: What can be drawn of it, beside each other.
    """

    name: str
    quick: bool
    tables: list[Table] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)
    samples: dict[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    panels: list[Panel] = field(default_factory=list)

    def text(self) -> str:
        """For reading."""
        promises = Table(
            "Promises",
            ("", "promised", "reached (95% interval)", ""),
            [
                (
                    each.text,
                    f"{'>=' if each.at_least else '<='} {each.limit:.4g}",
                    each.reached,
                    "kept" if each.kept else "NOT KEPT",
                )
                for each in self.promises
            ],
            ("Kept means that the interval reaches the promised number.",),
        )
        parts = [render(table) for table in [*self.tables, *([promises] if self.promises else [])]]
        if self.quick:
            parts.append("--quick: too few rounds for the figures to mean anything.")
        return "\n\n".join(parts)

    def data(self) -> dict[str, object]:
        """For JSON."""
        return {
            "benchmark": self.name,
            "quick": self.quick,
            "tables": [table.data() for table in self.tables],
            "promises": [
                {
                    "text": each.text,
                    "limit": each.limit,
                    "at_least": each.at_least,
                    "median": each.reached.median,
                    "low": each.reached.low,
                    "high": each.reached.high,
                    "values": each.reached.count,
                    "kept": each.kept,
                }
                for each in self.promises
            ],
            "samples": {
                table: {name: list(values) for name, values in times.items()}
                for table, times in self.samples.items()
            },
        }


@contextmanager
def _no_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
