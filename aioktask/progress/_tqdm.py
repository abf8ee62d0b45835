# SPDX-License-Identifier: MIT
# Bars drawn by tqdm: the class of the program's own bars, so `tqdm.write` goes above them.
"""tqdm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TextIO

from tqdm import tqdm
from tqdm.utils import disp_len, disp_trim

from aioktask.telling import Told

__all__ = ["Meters"]

# Too short to make a difference to a time of day: a bar that is closed at once is shown too.
SHORT = 1e-9

# As many as the bars of rich have.
NAME_CELLS = 32

FORMAT = "{desc} |{bar}| {percent} {told}"


class _Meter(tqdm):  # type: ignore[misc]
    """A bar of tqdm's that says where the job stands in its own words.

    tqdm's figures are those of a bar that only moves forward.
    """

    monitor_interval = 0  # else tqdm starts a thread, which stays

    row: Told

    @property
    def format_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = super().format_dict
        return {**found, "told": self.row.text, "percent": self.row.percent}


def _cut(name: str) -> str:
    """The name, in few enough cells that a terminal has room for what is said after it."""
    return name if disp_len(name) <= NAME_CELLS else disp_trim(name, NAME_CELLS - 1) + "…"


class Meters:
    """A bar for each row."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._meters: list[_Meter] = []

    def show(self, rows: Sequence[Told]) -> None:
        names = [_cut(row.name) for row in rows]
        width = max(map(disp_len, names))
        for number, row in enumerate(rows):
            if number == len(self._meters):
                self._meters.append(self._meter(row, names[number], width))
            meter = self._meters[number]
            fraction = row.fraction
            meter.row = row
            meter.total = None if fraction is None else 1.0
            meter.n = fraction or 0.0
            with meter.get_lock():  # which all bars have: `refresh` keeps it where a write fails
                meter.refresh(nolock=True)

    def _meter(self, row: Told, name: str, width: int) -> _Meter:
        # With a delay it does not show itself as it is made, when nobody could close it yet.
        return _Meter(
            total=1.0,
            desc=name + " " * (width - disp_len(name)),
            file=self._file,
            bar_format=FORMAT,
            dynamic_ncols=True,
            leave=True,
            delay=SHORT,
        )

    def close(self, rows: Sequence[Told]) -> None:
        try:
            self.show(rows)
        finally:
            for meter in self._meters:
                meter.close()
