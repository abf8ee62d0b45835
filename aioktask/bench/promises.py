# SPDX-License-Identifier: MIT
# What a benchmark finds: tables and single times, and whether what the design promises is kept.
#
# Where the rival of a promise is the best of several, it is chosen on other rounds than those it is
# compared in, or luck would count.
"""Promises, and the result that they are part of."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aioktask.figures.measure import Contender, Interval, alternate
from aioktask.figures.table import Table, render

__all__ = ["PAIRS", "Promise", "Result", "against_best"]

# Pairs of a comparison that a promise rests on. The interval is then the 4th to the 12th of 15.
PAIRS = 15


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
    """

    name: str
    quick: bool
    tables: list[Table] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)
    samples: dict[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

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
