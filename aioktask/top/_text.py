# SPDX-License-Identifier: MIT
# Text that programs named, made fit for a terminal: what it takes in cells, and how it is cut.
#
# Guarantees that what `plain` returns is one line, moves no cursor, and takes at most as many cells
# as `cells` says, whichever table of widths a terminal has. So characters that terminals disagree
# about are replaced, or counted as the wider of the two. What a font does with the scripts of India
# stays the terminal's own affair: their spacing marks are counted as a cell.
"""Text in cells of a terminal."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from aioktask.markup import printable

__all__ = ["cells", "fit", "plain"]

# So many marks may stand on one character; more of them paint over the lines above and below.
MOST_MARKS = 2

# More of a text than this is never looked at.
MOST_CHARACTERS = 4096

# Terminals disagree about what these take, alone or beside each other: halves of flags, skin
# colours, choices between glyphs, and parts of Korean syllables that stand alone.
_DISPUTED = (
    (0x1160, 0x11FF),
    (0x302E, 0x302F),
    (0x3164, 0x3164),
    (0xD7B0, 0xD7FF),
    (0xFE00, 0xFE0F),
    (0x16FF0, 0x16FF1),
    (0x1F1E6, 0x1F1FF),
    (0x1F3FB, 0x1F3FF),
    (0xE0100, 0xE01EF),
)

# Symbols that take two cells since Unicode 16, and took one before.
_WIDENED = ((0x2630, 0x2637), (0x268A, 0x268F), (0x4DC0, 0x4DFF), (0x1D300, 0x1D37F))


def _is_in(ranges: tuple[tuple[int, int], ...], character: str) -> bool:
    code = ord(character)
    return any(first <= code <= last for first, last in ranges)


@lru_cache(maxsize=4096)
def _cells_of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    wide = unicodedata.east_asian_width(character) in ("W", "F")
    return 2 if wide or _is_in(_WIDENED, character) else 1


def cells(text: str) -> int:
    """How many cells a text takes that `plain` returned.

    >>> cells("abc"), cells("日本"), cells("e\\u0301")
    (3, 4, 1)
    """
    return len(text) if text.isascii() else sum(map(_cells_of, text))


def plain(text: str) -> str:
    """`text` in one line, with a mark for each character that is none to be shown.

    >>> plain("a\\x1b[2J\\nb"), plain("[red]x")
    ('a\\ufffd[2J\\ufffdb', '[red]x')
    """
    text = printable(text[:MOST_CHARACTERS])
    if text.isascii():
        return text
    kept: list[str] = []
    marks = MOST_MARKS  # none may stand on what stands before the text
    for each in unicodedata.normalize("NFC", text):
        if _is_in(_DISPUTED, each):
            each = "\ufffd"
        marks = marks + 1 if _cells_of(each) == 0 else 0
        if marks <= MOST_MARKS:
            kept.append(each)
    return "".join(kept)


def fit(text: str, width: int, *, right: bool = False) -> str:
    """A plain text in exactly so many cells: cut with an ellipsis, or with blanks added.

    Args:
        text: As `plain` returned it.
        width: In cells; none or fewer is nothing.
        right: Whether the blanks come first.

    >>> fit("fill table", 6), fit("ab", 4, right=True), fit("日本語", 4)
    ('fill …', '  ab', '日… ')
    """
    if width <= 0:
        return ""
    taken = cells(text)
    if taken > width:
        kept, taken = [], 1
        for each in text:
            taken += _cells_of(each)
            if taken > width:
                taken -= _cells_of(each)
                break
            kept.append(each)
        text = "".join(kept) + "…"
    blanks = " " * (width - taken)
    return blanks + text if right else text + blanks
