# SPDX-License-Identifier: MIT
# The elements of a picture as SVG: lines, shapes, text.
#
# Pure. What comes out is ASCII, whatever goes in. Sizes of text are estimates, since no font can be
# asked here.
"""SVG elements as strings."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape

# After Okabe and Ito, whose colours most colour-blind readers can tell apart, but darker where a
# thin line on white would be too light. No two of the first 28 lines share both colour and shape.
COLOURS = ("#0072b2", "#d55e00", "#009078", "#a6428a", "#a67a00", "#1a1a1a", "#7a7a7a")
SHAPES = ("circle", "square", "triangle", "diamond")
INK, GREY, GRID, PAPER = "#1a1a1a", "#595959", "#e3e3e3", "#ffffff"

FONT = 13
LINE = 19  # from one line of text to the next
WIDE = 0.58  # the width of a letter, on average, of its height
RADIUS = 3.6


def shape(at: int, x: float, y: float) -> str:
    """The shape of a point of the series of this number."""
    r = RADIUS
    kind = SHAPES[at % len(SHAPES)]
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    if kind == "square":
        return f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"/>'
    if kind == "triangle":
        return f'<path d="M{x:.1f} {y - 4.6:.1f}l4.6 8h-9.2z"/>'
    return f'<path d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z"/>'


def line(
    x1: float, y1: float, x2: float, y2: float, stroke: str, *, width: float = 1, dash: str = ""
) -> str:
    """A straight line, of short ones if `dash` says so."""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{stroke}" stroke-width="{width}"{dashes}/>'
    )


def text(
    x: float,
    y: float,
    content: str,
    *,
    size: int = FONT,
    anchor: str = "start",
    weight: str = "normal",
    fill: str = INK,
    extra: str = "",
) -> str:
    """A line of text, `y` being its base line."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}" fill="{fill}"{extra}>{safe(content)}</text>'
    )


def safe(text: str) -> str:
    """Text for XML, in ASCII; what XML cannot hold (control characters) becomes a question mark."""
    kept = "".join(
        letter if letter >= " " and not "\ud800" <= letter <= "\udfff" else "?"
        for letter in re.sub("[\t\r\n]", " ", re.sub("[\ufffe\uffff]", "?", text))
    )
    return escape(kept, {'"': "&quot;"}).encode("ascii", "xmlcharrefreplace").decode()


def width(text: str, size: float) -> float:
    """How wide the text is, about."""
    return len(text) * size * WIDE


def wrapped(text: str, width: float, size: float) -> list[str]:
    """Lines that fit, cut between words where that is possible."""
    most = max(int(width / (size * WIDE)), 8)
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= most:
            lines[-1] += f" {word}"
        else:
            lines += [word[at : at + most] for at in range(0, len(word), most)]
    return lines
