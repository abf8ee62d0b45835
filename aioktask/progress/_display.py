# SPDX-License-Identifier: MIT
# Where bars are shown that need nothing but Python: lines for files and pipes, and a notebook.
#
# A display is opened with how many rows it has, is shown where its jobs stand, now and then, and is
# closed with the last of that. It belongs to one bar, and one thread at a time uses it.
"""Displays: lines, and notebooks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TextIO

from aioktask.telling import Told, html_of

__all__ = ["Display", "Lines", "Notebook", "in_notebook", "standard_error"]

# A job that lasts has a line after this time, and then each time that it has taken twice as long:
# a dozen in a night.
FIRST_LINE_SECONDS = 5.0


class Display(Protocol):
    """What shows where some jobs stand."""

    def show(self, rows: Sequence[Told]) -> None:
        """Show this; called each interval with as many rows in the same order."""

    def close(self, rows: Sequence[Told]) -> None:
        """Show this for good."""


class Lines:
    """Plain lines, for a log file or a pipe: few, and without control codes.

    Args:
        file: Where to.
        clock: Tells the time, in seconds.
    """

    def __init__(self, file: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._began = clock()
        self._next = FIRST_LINE_SECONDS
        self._told: dict[int, Told] = {}  # the last line of each row that must be told

    def show(self, rows: Sequence[Told]) -> None:
        lasted = self._clock() - self._began
        due = lasted >= self._next
        while lasted >= self._next:
            self._next *= 2
        for number, row in enumerate(rows):
            before = self._told.get(number)
            if before is not None and before.over:
                continue
            if row.over or (row.phase == "undoing" and before is None):
                self._told[number] = row
                self._write(row)
            elif due:
                self._write(row)

    def close(self, rows: Sequence[Told]) -> None:
        self.show(rows)

    def _write(self, row: Told) -> None:
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        line = row.line.encode(encoding, "replace").decode(encoding)
        self._file.write(f"{line}\n")
        self._file.flush()


class Notebook:
    """A cell's output, which is replaced as a whole: no widgets are needed."""

    def __init__(self) -> None:
        from IPython import display

        self._html: Callable[[str], Any] = display.HTML
        self._display: Callable[..., Any] = display.display
        self._shown: Any = None
        self._last = ""

    def show(self, rows: Sequence[Told]) -> None:
        text = str(html_of(*rows))
        if self._shown is None:
            self._shown = self._display(self._html(text), display_id=True)
        elif text != self._last:
            self._shown.update(self._html(text))
        self._last = text

    def close(self, rows: Sequence[Told]) -> None:
        self.show(rows)


def in_notebook() -> bool:
    """Whether a kernel of Jupyter's runs this program, so that HTML can be shown."""
    ipython = sys.modules.get("IPython")
    if ipython is None:
        return False
    return getattr(ipython.get_ipython(), "kernel", None) is not None


def standard_error() -> TextIO | None:
    """Where bars and lines go by themselves; None where there is no such file, as in a service."""
    return sys.stderr
