# SPDX-License-Identifier: MIT
# Tables as plain text and as data. A number is printed with three digits that mean something: more
# would pretend to a precision that no measurement here has.
"""Plain text tables."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass

__all__ = ["WIDTH", "Table", "number", "render", "size_text"]

WIDTH = 96


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a title.

    Attributes:
        title: Above the table.
        columns: Headers; the unit belongs there.
        rows: Cells; None where there is nothing to say. A row of one cell is a heading.
        notes: Below the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[object, ...]]
    notes: tuple[str, ...] = ()

    def data(self) -> dict[str, object]:
        """For JSON: numbers stay numbers."""
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": [[_datum(cell) for cell in row] for row in self.rows],
            "notes": list(self.notes),
        }


def number(value: float) -> str:
    """Three significant digits, no exponent.

    >>> [number(value) for value in (0.11723, 16.34, 1020.7, 0)]
    ['0.117', '16.3', '1,021', '0']
    """
    if value == 0:
        return "0"
    size = abs(value)
    places = next((n for n, least in enumerate((100, 10, 1, 0.1, 0.01)) if size >= least), 5)
    return f"{value:,.{places}f}"


def size_text(nbytes: int) -> str:
    """A number of bytes in the largest unit that it is a multiple of, or nearly.

    >>> size_text(3 << 30), size_text(1536), size_text(25276502016)
    ('3 GiB', '1.5 KiB', '23.5 GiB')
    """
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if nbytes >= 1 << shift:
            return f"{nbytes / (1 << shift):.1f}".removesuffix(".0") + f" {unit}"
    return f"{nbytes} B"


def render(table: Table) -> str:
    """The table as lines, the first column to the left, numbers to the right."""
    rows = [tuple(map(_text, row)) for row in table.rows]
    full = [row for row in (table.columns, *rows) if len(row) > 1]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    lines = [table.title, "-" * len(table.title.strip())] if table.title else []
    if any(table.columns):
        lines.append(_line(table.columns, widths))
    for row in rows:
        if len(row) == 1:
            lines.extend(["", row[0]] if lines else [row[0]])
        else:
            lines.append(_line(row, widths))
    for note in table.notes:
        lines.extend(textwrap.wrap(note, WIDTH, initial_indent="  * ", subsequent_indent="    "))
    return "\n".join(lines)


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    first, *others = [
        cell.rjust(width) if i else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "   ".join([f"  {first}", *others]).rstrip()


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return number(cell)
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def _datum(cell: object) -> object:
    if is_dataclass(cell) and not isinstance(cell, type):
        return asdict(cell)
    return cell if cell is None or isinstance(cell, int | float | str) else str(cell)
