# SPDX-License-Identifier: MIT
# Panels as SVG, by matplotlib.
#
# The same values make the same bytes: there is no date in them, identifiers come from a fixed salt,
# and neither the user's settings of matplotlib nor the fonts of the machine count. A picture is as
# wide as a phone can show with letters of 9 points, so everything is in one column, and names stand
# above what they name. It paints its own paper, in light or dark as the page that shows it is. What
# differs in colour differs in shape too.
#
# Sizes are points; y counts downwards from the top of what is drawn.
"""Pictures by matplotlib: `draw(picture)`."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from aioktask.figures.panel import (
    Bars,
    Curves,
    Dots,
    Panel,
    Picture,
    Reading,
    Row,
    Series,
    described,
)
from aioktask.figures.paper import (
    FONT,
    GAP,
    LINE,
    MARGIN,
    PLOT,
    WIDTH,
    printable,
    text_width,
    wrapped,
)
from aioktask.figures.table import number
from aioktask.figures.ticks import binary, even_ticks, log_ticks, plain, power_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["DARK", "FONT", "INK", "PAPER", "SHAPES", "WIDTH", "draw", "figure"]

STEP = 12.0  # from one reading of a row to the next
TICKS = LINE + 6  # the labels of ticks
CURVES_LEFT, CURVES_HEIGHT = 44.0, 220.0
# How much of the height of curves may be left to the intervals, beyond what the lines need.
ROOM = 1.3

# After Okabe and Ito, whose colours most colour-blind readers can tell apart, darker where a thin
# line on white would be too light; and what each is on a dark page.
PAPER, INK, GREY, GRID = "#ffffff", "#1a1a1a", "#595959", "#e3e3e3"
COLOURS = ("#0072b2", "#d55e00", "#007a65", "#a6428a")
PROMISE = "#8a1c1c"
DARK = {
    PAPER: "#131416",
    INK: "#e8e8e8",
    GREY: "#a9a9a9",
    GRID: "#35383c",
    COLOURS[0]: "#5ab8f0",
    COLOURS[1]: "#ff9a4d",
    COLOURS[2]: "#35d0ac",
    COLOURS[3]: "#e69bd0",
    PROMISE: "#ff8a8a",
}
# A shape, and whether it is filled: the first four series differ in both.
SHAPES = (("o", True), ("D", False), ("^", True), ("s", False))

SETTINGS = {
    "font.family": ["DejaVu Sans", "sans-serif"],  # the first comes with matplotlib
    "font.size": FONT,
    "svg.fonttype": "none",
    "svg.hashsalt": "aioktask",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 1.0,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
}


def draw(picture: Picture) -> str:
    """The picture as an SVG document.

    Args:
        picture: What is drawn. Any text will do: what XML cannot hold becomes a question mark.

    Raises:
        ValueError: There is no panel, or one in which there is nothing to draw.
    """
    with _settings():
        file = io.StringIO()
        figure(picture).savefig(
            file, format="svg", metadata={"Date": None, "Creator": None, "Format": None}
        )
    titled = printable(picture.title or picture.panels[0].title)
    head = (
        f'\n <title id="title">{escape(titled)}</title>'
        f'\n <desc id="description">{escape(printable(described(picture)))}</desc>'
        f"\n <style>{_dark_style()}</style>"
    )
    opened = re.sub(
        r"<svg [^>]*(?=>)",
        lambda found: f'{found[0]} role="img" aria-labelledby="title description"',
        file.getvalue(),
        count=1,
    )
    end = opened.index(">", opened.index("<svg ")) + 1
    return opened[:end] + head + opened[end:]


def figure(picture: Picture) -> Figure:
    """The picture as a matplotlib figure.

    Raises:
        ValueError: There is no panel, or one in which there is nothing to draw.
    """
    if not picture.panels or not all(map(_anything, picture.panels)):
        raise ValueError("there is nothing to draw: every panel needs a value")
    with _settings():
        blocks = [_text(picture.title, size=FONT + 1, weight="bold")]
        for panel in picture.panels:
            blocks += [_space(10), _text(panel.title, weight="bold"), *_blocks(panel)]
        blocks += [_space(8), _text(picture.caption, colour=GREY)]
        sheet = _Sheet(2 * MARGIN + sum(block.height for block in blocks))
        top = MARGIN
        for block in blocks:
            block.draw(sheet, top)
            top += block.height
        return sheet.figure


@contextmanager
def _settings() -> Iterator[None]:
    """Our own, whatever the user's are; and no word about letters that the font does not have."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def _dark_style() -> str:
    """The colours that the drawing has, as they are on a dark page."""
    rules = [
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    ]
    return "@media (prefers-color-scheme:dark){" + "".join(rules) + "}"


# what a picture is made of, from above


class _Sheet:
    """A figure on which places are points from its left and upper edge."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)

    def text(self, x: float, y: float, text: str, **how: Any) -> None:
        self.figure.text(x / WIDTH, 1 - y / self.height, text, **how)

    def line(self, xs: Sequence[float], y: float, **how: Any) -> None:
        places = [x / WIDTH for x in xs], [1 - y / self.height] * len(xs)
        self.figure.add_artist(Line2D(*places, transform=self.figure.transFigure, **how))

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes with an x axis and no frame."""
        place = (
            left / WIDTH,
            1 - (top + height) / self.height,
            width / WIDTH,
            height / self.height,
        )
        axes = self.figure.add_axes(place)
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.yaxis.set_major_locator(NullLocator())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_axisbelow(True)
        axes.tick_params(length=4, pad=3)
        return axes


@dataclass(frozen=True, slots=True)
class _Block:
    """Something as wide as the picture.

    Attributes:
        height: Points.
        draw: Draws it on a sheet, its upper edge there.
    """

    height: float
    draw: Callable[[_Sheet, float], None]


def _space(height: float) -> _Block:
    return _Block(height, lambda sheet, top: None)


def _text(text: str, *, size: float = FONT, weight: str = "normal", colour: str = INK) -> _Block:
    lines = wrapped(text, PLOT, size, weight)

    def draw(sheet: _Sheet, top: float) -> None:
        for at, line in enumerate(lines):
            base = top + (at + 1) * LINE - 4
            sheet.text(MARGIN, base, line, size=size, weight=weight, color=colour)

    return _Block(LINE * len(lines), draw)


def _entry(text: str, *signs: dict[str, Any]) -> _Block:
    """A line of the legend: signs, one over the other, and what they stand for."""
    room = 24.0
    lines = wrapped(text, PLOT - room, FONT)

    def draw(sheet: _Sheet, top: float) -> None:
        for sign in signs:
            stretch = sign.get("linestyle") == "-"
            xs = (MARGIN + 2, MARGIN + room - 6) if stretch else (MARGIN + room / 2 - 2,)
            sheet.line(xs, top + LINE / 2, **sign)
        for at, line in enumerate(lines):
            sheet.text(MARGIN + room, top + (at + 1) * LINE - 4, line)

    return _Block(LINE * len(lines), draw)


def _colour(at: int) -> str:
    return COLOURS[at % len(COLOURS)]


def _sign(at: int) -> dict[str, Any]:
    """How the points of a series look."""
    shape, filled = SHAPES[at % len(SHAPES)]
    colour = _colour(at)
    return {
        "marker": shape,
        "markersize": 7.0 if shape in "o^" else 6.0,
        "markeredgewidth": 1.6,
        "markeredgecolor": colour,
        "markerfacecolor": colour if filled else PAPER,
        "linestyle": "none",
    }


# panels


def _anything(panel: Panel) -> bool:
    if isinstance(panel, Curves):
        return any(series.points for series in panel.series)
    return any(reading is not None for row in panel.rows for reading in row.readings)


def _blocks(panel: Panel) -> list[_Block]:
    if isinstance(panel, Dots):
        return _dots(panel)
    return _bars(panel) if isinstance(panel, Bars) else _curves(panel)


@dataclass(frozen=True, slots=True)
class _Band:
    """Where a row stands.

    Attributes:
        row: The row.
        label: Its label, in lines.
        told: What is told beside that.
        top: Of its first line, from the top of the rows.
        first: Where its first reading is.
        height: Of all of it.
    """

    row: Row
    label: list[str]
    told: str
    top: float
    first: float
    height: float


def _bands(rows: Sequence[Row], step: float, *, stacked: bool) -> list[_Band]:
    """Where rows stand, their readings one below the other or, else, all at one height."""
    bands = []
    top = 0.0
    for row in rows:
        told = printable(row.told)
        room = PLOT - (text_width(told) + GAP if told else 0)
        label = wrapped(row.label, max(room, PLOT / 3), FONT, _weight(row))
        named = LINE * max(len(label), 1)
        there = sum(reading is not None for reading in row.readings) if stacked else 1
        height = named + step * max(there, 1) + 6
        bands.append(_Band(row, label, told, top, top + named + step / 2 + 1, height))
        top += height
    return bands


def _weight(row: Row) -> str:
    return "bold" if row.ours else "normal"


def _labels(sheet: _Sheet, top: float, bands: Sequence[_Band]) -> None:
    for band in bands:
        for at, line in enumerate(band.label):
            base = top + band.top + (at + 1) * LINE - 4
            sheet.text(MARGIN, base, line, weight=_weight(band.row))
        if band.told:
            sheet.text(MARGIN + PLOT, top + band.top + LINE - 4, band.told, ha="right")


def _dots(panel: Dots) -> list[_Block]:
    bands = _bands(panel.rows, STEP, stacked=True)
    height = bands[-1].top + bands[-1].height
    low, high = _range(panel)

    def draw(sheet: _Sheet, top: float) -> None:
        axes = sheet.axes(MARGIN, top, PLOT, height)
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(height, 0)
        _x_ticks(axes, log_ticks(low, high, PLOT), plain)
        axes.xaxis.set_minor_locator(NullLocator())
        for band in bands:
            y = band.first
            for at, reading in enumerate(band.row.readings):
                if reading is not None:
                    _dot(axes, reading, at, y, low)
                    y += STEP
        _labels(sheet, top, bands)

    legend = [_entry(name, _sign(at)) for at, name in enumerate(panel.series) if name]
    if panel.promise:
        upright = {"marker": "|", "markersize": STEP, "markeredgewidth": 2.4, "color": PROMISE}
        legend.append(_entry(panel.promise, upright))
    return [*legend, _space(4), _Block(height, draw), _space(TICKS), _text(panel.x_label)]


def _dot(axes: Axes, reading: Reading, at: int, y: float, least: float) -> None:
    """A reading: its whisker, its promises, and on them its dot."""
    value = reading.value
    if value.low < value.high:
        ends = [max(value.low, least), max(value.high, least)]
        cap: dict[str, Any] = {"marker": "|", "markersize": 7, "markeredgewidth": 1.6}
        axes.plot(ends, [y, y], color=_colour(at), linewidth=1.6, gid="whisker", **cap)
    for limit in reading.promised:
        reach = [y - STEP / 2, y + STEP / 2]
        axes.plot([limit] * 2, reach, color=PROMISE, linewidth=2.4, gid="promise")
    axes.plot([max(value.median, least)], [y], gid="dot", clip_on=False, **_sign(at))


def _range(panel: Dots) -> tuple[float, float]:
    """The ends of the axis: all that is read and promised, and a little more."""
    shown = [reading for row in panel.rows for reading in row.readings if reading is not None]
    every = [
        value
        for each in shown
        for value in (each.value.low, each.value.median, each.value.high, *each.promised)
        if value > 0
    ]
    low, high = (min(every), max(every)) if every else (1.0, 1.0)
    more = max((high / low) ** 0.04, 1.02)
    return low / more, high * more


def _bars(panel: Bars) -> list[_Block]:
    bands = _bands(panel.rows, LINE + 2, stacked=False)
    height = bands[-1].top + bands[-1].height
    width = (PLOT - 2 * GAP * (len(panel.columns) - 1)) / len(panel.columns)
    lefts = [MARGIN + at * (width + 2 * GAP) for at in range(len(panel.columns))]
    heads = [wrapped(column, width, FONT) for column in panel.columns]

    def head(sheet: _Sheet, top: float) -> None:
        for left, lines in zip(lefts, heads, strict=True):
            for at, line in enumerate(lines):
                sheet.text(left, top + (at + 1) * LINE - 4, line, color=GREY)

    def draw(sheet: _Sheet, top: float) -> None:
        for at, left in enumerate(lefts):
            read = [(band, band.row.readings[at]) for band in bands]
            there = [(band, reading) for band, reading in read if reading is not None]
            if there:
                axes = sheet.axes(left, top, width, height)
                axes.set_ylim(height, 0)
                _column(axes, there, width)
        _labels(sheet, top, bands)

    most = max(map(len, heads))
    return [_Block(LINE * most, head), _space(4), _Block(height, draw), _space(TICKS)]


def _column(axes: Axes, read: Sequence[tuple[_Band, Reading]], width: float) -> None:
    """The bars of a column, with the median at the end of each."""
    room = max(text_width(number(reading.value.median)) for _, reading in read) + GAP
    most = max(max(reading.value.high, reading.value.median) for _, reading in read) or 1.0
    end = most * width / (width - room)
    axes.set_xlim(0, end)
    _x_ticks(axes, even_ticks(most, width - room), plain)
    for band, reading in read:
        value, y = reading.value, band.first
        color = COLOURS[0] if band.row.ours else GREY
        axes.barh([y], [value.median], height=12, gid="bar", color=color)
        if value.low < value.high:
            cap: dict[str, Any] = {"marker": "|", "markersize": 7, "markeredgewidth": 1.4}
            axes.plot([value.low, value.high], [y, y], color=INK, linewidth=1.4, **cap)
        beyond = max(value.high, value.median) + end / width * GAP / 2
        axes.text(beyond, y, number(value.median), va="center_baseline")


def _curves(panel: Curves) -> list[_Block]:
    points = [point for series in panel.series for point in series.points]
    ys = [point.y for point in points] + [mark.y for mark in panel.marks]
    # Long intervals are cut off, or they would press the lines together.
    most = max(min(max(point.high for point in points), ROOM * max(ys)), *ys) * 1.05 or 1.0
    xs = [point.x for point in points] + [mark.x for mark in panel.marks]
    low, high = min(xs) / 1.2, max(xs) * 1.2
    width = PLOT - CURVES_LEFT

    def draw(sheet: _Sheet, top: float) -> None:
        axes = sheet.axes(MARGIN + CURVES_LEFT, top, width, CURVES_HEIGHT)
        axes.spines["left"].set_visible(True)
        axes.set_xscale("log", base=2)
        axes.set_xlim(low, high)
        axes.set_ylim(0, most)
        _x_ticks(axes, power_ticks(low, high, width), binary)
        axes.xaxis.set_minor_locator(NullLocator())
        heights = even_ticks(most, CURVES_HEIGHT, upright=True)
        axes.yaxis.set_major_locator(FixedLocator(heights))
        axes.set_yticks(heights, [plain(each) for each in heights])
        axes.grid(axis="y", color=GRID, linewidth=1)
        for at, series in enumerate(panel.series):
            # A little beside each other, or the intervals would hide one another.
            _curve(axes, series, at, shift=3.0 * (at - (len(panel.series) - 1) / 2))
        for mark in panel.marks:
            axes.plot([mark.x], [mark.y], gid="mark", **_ring())

    legend = [
        _entry(series.name, {"color": _colour(at), "linewidth": 1.6, "linestyle": "-"}, _sign(at))
        for at, series in enumerate(panel.series)
    ]
    legend += [_entry(mark.label, {**_ring(), "markersize": 11}) for mark in panel.marks]
    plot = [_text(panel.y_label), _space(6), _Block(CURVES_HEIGHT, draw)]
    return [*legend, _space(6), *plot, _space(TICKS), _text(panel.x_label)]


def _curve(axes: Axes, series: Series, at: int, *, shift: float) -> None:
    """A line through its points, `shift` points to the right."""
    aside = axes.transData + ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
    xs = [point.x for point in series.points]
    for point in series.points:
        if point.low < point.high:
            ends = [point.low, point.high]
            whisker: dict[str, Any] = {"color": _colour(at), "linewidth": 1.2, "gid": "whisker"}
            whisker.update(transform=aside, marker="_", markersize=5)
            axes.plot([point.x] * 2, ends, **whisker)
    ys = [point.y for point in series.points]
    curve = {**_sign(at), "linestyle": "-", "color": _colour(at), "transform": aside}
    axes.plot(xs, ys, gid="curve", **curve)


def _ring() -> dict[str, Any]:
    shape: dict[str, Any] = {"marker": "o", "markersize": 14, "markerfacecolor": "none"}
    return {**shape, "markeredgecolor": INK, "markeredgewidth": 1.8, "linestyle": "none"}


def _x_ticks(axes: Axes, ticks: Sequence[float], text: Callable[[float], str]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.set_xticks(ticks, [text(each) for each in ticks])
    axes.grid(axis="x", color=GRID, linewidth=1)
