# SPDX-License-Identifier: MIT
# The paper that a picture is drawn on: how large it and its letters are, and what of a text fits.
#
# Sizes are points. Letters are measured in the font that comes with matplotlib, so what fits is the
# same on every machine.
"""Sizes of a picture, and text that fits."""

from __future__ import annotations

import re

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

__all__ = [
    "FONT",
    "GAP",
    "LINE",
    "MARGIN",
    "PLOT",
    "WIDTH",
    "printable",
    "text_width",
    "wrapped",
]

# 480 pixels of a page. Where a phone shows it on 360 of them, 12 points become 9.
WIDTH = 360.0
FONT = 12.0
LINE = 16.0  # from one line of text to the next
MARGIN = 14.0
PLOT = WIDTH - 2 * MARGIN
GAP = 8.0  # between what stands beside each other


def wrapped(text: str, width: float, size: float = FONT, weight: str = "normal") -> list[str]:
    """Lines that fit, cut between words where that is possible, in letters that XML can hold."""
    lines: list[str] = []
    for word in printable(text).split():
        if lines and text_width(f"{lines[-1]} {word}", size, weight) <= width:
            lines[-1] += f" {word}"
            continue
        while word:
            fits = len(word)
            while fits > 1 and text_width(word[:fits], size, weight) > width:
                fits -= 1
            lines.append(word[:fits])
            word = word[fits:]
    return lines


def text_width(text: str, size: float = FONT, weight: str = "normal") -> float:
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width)


def printable(text: str) -> str:
    """What XML cannot hold becomes a question mark, and white space a space."""
    kept = (
        letter
        if letter >= " " and not "\ud800" <= letter <= "\udfff" and letter not in "\ufffe\uffff"
        else "?"
        for letter in re.sub(r"\s", " ", text)
    )
    return "".join(kept)
