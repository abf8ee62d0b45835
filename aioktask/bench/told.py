# SPDX-License-Identifier: MIT
# A benchmark's figures, read back from the JSON that it writes. Pictures and pages are made of
# these, so they can be made anew from a file.
"""What a benchmark told: `Told`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aioktask.bench.promises import Promise
from aioktask.figures.measure import Interval
from aioktask.tune.machine import machine_text

__all__ = ["Told", "as_interval"]


@dataclass(frozen=True, slots=True)
class Told:
    """What is in the JSON of a benchmark.

    Attributes:
        data: All of it.
    """

    data: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the benchmark."""
        return str(self.data["benchmark"])

    @property
    def machine(self) -> str:
        """The machine and its Python, in a line; and that the run was hurried, if it was."""
        hurried = " Hurried: the figures mean nothing." if self.data["quick"] else ""
        return f"{machine_text(self.data['machine'])}.{hurried}"

    @property
    def samples(self) -> Mapping[str, Mapping[str, Sequence[float]]]:
        """Every single value, by what it is of and by contender."""
        found: Mapping[str, Mapping[str, Sequence[float]]] = self.data["samples"]
        return found

    @property
    def promises(self) -> list[Promise]:
        """What is promised, and what was reached."""
        return [
            Promise(
                each["text"],
                each["limit"],
                each["at_least"],
                Interval(each["median"], each["low"], each["high"], each["values"]),
            )
            for each in self.data["promises"]
        ]

    def titles(self) -> list[str]:
        """Of its tables."""
        return [each["title"] for each in self.data["tables"]]

    def rows(self, title: str) -> dict[str, dict[str, Any]]:
        """A table's cells by row and column; empty where there is no such table.

        The name of a row is its first cell.
        """
        for table in self.data["tables"]:
            if table["title"] == title:
                return {
                    str(row[0]).strip(): dict(zip(table["columns"], row, strict=True))
                    for row in table["rows"]
                    if len(row) > 1
                }
        return {}


def as_interval(cell: object) -> Interval | None:
    """A cell of a table as an interval; None if no number is in it."""
    if isinstance(cell, Mapping):
        return Interval(cell["median"], cell["low"], cell["high"], cell["count"])
    if isinstance(cell, int | float):
        return Interval(cell, cell, cell, 1)
    return None
