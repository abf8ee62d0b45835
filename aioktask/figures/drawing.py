# SPDX-License-Identifier: MIT
# Curves as SVG, without a library: panels side by side, a line for each series.
#
# Pure: values in, text out, the same for the same values. The text is ASCII and stands for itself:
# it has a background of its own, so it reads the same on a dark page, a title and a description for
# those who do not see it, and series that differ in shape as well as in colour. Sizes of text are
# estimates, since no font can be asked here; what could collide has a line of its own.
"""Line charts over a logarithmic axis: `draw(panels)`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aioktask.figures import svg

__all__ = ["Mark", "Panel", "Point", "Series", "draw"]


@dataclass(frozen=True, slots=True)
class Point:
    """A value and the interval around it.

    Attributes:
        x: Above 0: the axis is logarithmic.
        y: 0 or more.
        low: The lower end of the interval.
        high: Its upper end; it may be beyond what is shown.
    """

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Series:
    """A line.

    Attributes:
        name: In the legend.
        points: By ascending x.
    """

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Mark:
    """A place on the x axis that is pointed out.

    Attributes:
        x: Where.
        label: What is there.
        y: Where a ring is drawn; None for none.
    """

    x: float
    label: str
    y: float | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: Above it.
        x_label: What x is, with its unit.
        series: The lines.
        marks: What is pointed out.
        y_label: What y is. A thin line stands at y = 1.
    """

    title: str
    x_label: str
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    y_label: str = "speed, one plain call = 1"


PLOT_WIDTH, PLOT_HEIGHT = 460, 300
# How much of the height may be left to the intervals, beyond what the lines need.
ROOM = 1.3
LEFT, RIGHT, BELOW, MARGIN = 62, 22, 56, 18
TITLE, HEAD, SMALL = svg.FONT + 4, svg.FONT + 1, svg.FONT - 2
TITLE_LINE, CAPTION_LINE = svg.LINE + 5, svg.LINE - 3


def draw(panels: Sequence[Panel], *, title: str = "", caption: str = "") -> str:
    """The panels side by side as an SVG document.

    Args:
        panels: One or more.
        title: Above all of them.
        caption: Below them, in small letters: the machine, say.

    Raises:
        ValueError: There is no panel, or one without a point.
    """
    if not panels or not all(any(each.points for each in panel.series) for panel in panels):
        raise ValueError("there is nothing to draw: every panel needs a point")
    column = LEFT + PLOT_WIDTH + RIGHT
    width = column * len(panels) + 2 * MARGIN
    titles = svg.wrapped(title, width - 2 * MARGIN, TITLE)
    captions = svg.wrapped(caption, width - 2 * MARGIN, SMALL)
    heads = [svg.wrapped(panel.title, PLOT_WIDTH, HEAD) for panel in panels]
    legends = [_legend_rows(panel.series) for panel in panels]
    # What stands above the plots has the same height everywhere, so that their axes are level.
    head_top = MARGIN + len(titles) * TITLE_LINE + (4 if titles else 0)
    legend_top = head_top + svg.LINE * max(map(len, heads))
    marks_top = legend_top + svg.LINE * max(map(len, legends))
    plot_top = marks_top + svg.LINE * max(len(panel.marks) for panel in panels) + 16
    caption_top = plot_top + PLOT_HEIGHT + BELOW
    height = caption_top + len(captions) * CAPTION_LINE + MARGIN
    lines = list(_header(width, height, title or panels[0].title, panels))
    lines += _paragraph(titles, MARGIN, MARGIN, TITLE_LINE, size=TITLE, weight="bold")
    for at, panel in enumerate(panels):
        left = MARGIN + at * column + LEFT
        lines += _paragraph(heads[at], left, head_top, svg.LINE, size=HEAD, weight="bold")
        lines += _legend(legends[at], left, legend_top + svg.LINE - 5)
        lines += _Plot(panel, left, plot_top).lines()
    lines += _paragraph(captions, MARGIN, caption_top, CAPTION_LINE, size=SMALL, fill=svg.GREY)
    return "\n".join([*lines, "</svg>", ""])


def _paragraph(texts: Sequence[str], left: float, top: float, line: float, **how: Any) -> list[str]:
    return [svg.text(left, top + (at + 1) * line - 6, text, **how) for at, text in enumerate(texts)]


class _Plot:
    """One panel's axes, lines and marks, at a place on the paper."""

    def __init__(self, panel: Panel, left: float, top: float) -> None:
        points = [point for series in panel.series for point in series.points]
        xs = [point.x for point in points] + [mark.x for mark in panel.marks]
        ys = [point.y for point in points] + [mark.y or 0.0 for mark in panel.marks]
        self.panel, self.left, self.top = panel, left, top
        self.low, self.high = math.log2(min(xs)), math.log2(max(xs))
        if self.high - self.low < 1:
            middle = (self.high + self.low) / 2
            self.low, self.high = middle - 0.5, middle + 0.5
        # Long intervals are cut off, or they would press the lines together.
        most = max(min(max(point.high for point in points), ROOM * max(ys)), *ys, 1.05)
        self.step = _nice_step(most)
        self.most = math.ceil(most / self.step - 1e-9) * self.step

    def x(self, value: float) -> float:
        part = (math.log2(value) - self.low) / (self.high - self.low)
        return self.left + 14 + part * (PLOT_WIDTH - 28)

    def y(self, value: float) -> float:
        return self.top + PLOT_HEIGHT * (1 - value / self.most)

    def lines(self) -> Iterator[str]:
        yield from self._axes()
        yield from self._marks_behind()
        count = len(self.panel.series)
        for at, series in enumerate(self.panel.series):
            # A little beside each other, or the intervals would hide one another.
            yield from self._series(at, series, 3.0 * (at - (count - 1) / 2) if count < 6 else 0)
        yield from self._rings()

    def _axes(self) -> Iterator[str]:
        left, right = self.left, self.left + PLOT_WIDTH
        bottom = self.top + PLOT_HEIGHT
        for at in range(round(self.most / self.step) + 1):
            value = at * self.step
            y = self.y(value)
            yield svg.line(left, y, right, y, svg.GRID)
            yield svg.text(left - 8, y + 4, _short(value), anchor="end", fill=svg.GREY)
        yield svg.line(left, self.y(1), right, self.y(1), svg.GREY, dash="2 3")
        for power in _powers(self.low, self.high):
            x = self.x(2.0**power)
            yield svg.line(x, bottom, x, bottom + 5, svg.GREY)
            yield svg.text(x, bottom + 19, _binary(power), anchor="middle", fill=svg.GREY)
        yield svg.line(left, bottom, right, bottom, svg.GREY)
        yield svg.line(left, self.top, left, bottom, svg.GREY)
        middle = self.top + PLOT_HEIGHT / 2
        yield svg.text((left + right) / 2, bottom + 41, self.panel.x_label, anchor="middle")
        turn = f' transform="rotate(-90 {left - 44:.1f} {middle:.1f})"'
        yield svg.text(left - 44, middle, self.panel.y_label, anchor="middle", extra=turn)

    def _series(self, at: int, series: Series, shift: float) -> Iterator[str]:
        colour = svg.COLOURS[at % len(svg.COLOURS)]
        places = [(self.x(point.x) + shift, self.y(point.y)) for point in series.points]
        yield f'<g stroke="{colour}" fill="{colour}"><title>{svg.safe(series.name)}</title>'
        for (x, _), point in zip(places, series.points, strict=True):
            low, high = self.y(max(point.low, 0)), self.y(min(point.high, self.most))
            if low - high > 0.5:
                end = "m-3 0h6" if point.high <= self.most else ""
                path = f"M{x - 3:.1f} {low:.1f}h6m-3 0V{high:.1f}{end}"
                yield f'<path d="{path}" fill="none" stroke-opacity="0.6"/>'
        if len(places) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            yield f'<polyline points="{path}" fill="none" stroke-width="2"/>'
        yield from (svg.shape(at, x, y) for x, y in places)
        yield "</g>"

    def _marks_behind(self) -> Iterator[str]:
        """A line down from each label. The labels stand one above the other over the plot."""
        marks = self.panel.marks
        places = [
            (self.x(mark.x), self.top - 11 - svg.LINE * (len(marks) - 1 - at), mark.label)
            for at, mark in enumerate(marks)
        ]
        for x, y, _ in places:
            yield svg.line(x, y + 5, x, self.top + PLOT_HEIGHT, svg.INK, dash="5 3")
        # A rim in the colour of the paper first, where another mark's line passes behind the text.
        rim = f' stroke="{svg.PAPER}" stroke-width="5" aria-hidden="true"'
        for x, y, label in places:
            width = svg.width(label, svg.FONT)
            middle = min(x, self.left + PLOT_WIDTH + RIGHT - width / 2)
            middle = max(middle, self.left + width / 2)
            yield svg.text(middle, y, label, anchor="middle", fill=svg.PAPER, extra=rim)
            yield svg.text(middle, y, label, anchor="middle")

    def _rings(self) -> Iterator[str]:
        for mark in self.panel.marks:
            if mark.y is not None:
                yield (
                    f'<circle cx="{self.x(mark.x):.1f}" cy="{self.y(mark.y):.1f}" r="9" '
                    f'fill="none" stroke="{svg.INK}" stroke-width="2"><title>{svg.safe(mark.label)}'
                    "</title></circle>"
                )


def _header(width: float, height: float, title: str, panels: Sequence[Panel]) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="title description" '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f"font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif\" "
        f'font-size="{svg.FONT}">'
    )
    yield f'<title id="title">{svg.safe(title)}</title>'
    described = " ".join(_described(panel) for panel in panels)
    yield f'<desc id="description">{svg.safe(described)}</desc>'
    yield f'<rect width="100%" height="100%" rx="6" fill="{svg.PAPER}"/>'


def _described(panel: Panel) -> str:
    """What the lines show, in words."""
    parts = []
    for series in panel.series:
        if series.points:
            best = max(series.points, key=lambda point: point.y)
            parts.append(f"{series.name}: highest {_short(best.y)} at {best.x:,.0f}")
    parts += [f"marked at {mark.x:,.0f}: {mark.label}" for mark in panel.marks]
    about = f"{panel.title}: " if panel.title else ""
    return f"{about}{panel.y_label}, over {panel.x_label}. {'; '.join(parts)}."


def _legend_rows(series: Sequence[Series]) -> list[list[tuple[int, str, float]]]:
    """Entries by row: the number of the series, its name, and how far to the right it stands."""
    rows: list[list[tuple[int, str, float]]] = [[]]
    used = 0.0
    for at, each in enumerate(series):
        width = 28 + svg.width(each.name, svg.FONT) + 16
        if used + width > PLOT_WIDTH and rows[-1]:
            rows.append([])
            used = 0.0
        rows[-1].append((at, each.name, used))
        used += width
    return rows


def _legend(rows: Sequence[Sequence[tuple[int, str, float]]], left: float, y: float) -> list[str]:
    lines = []
    for row in rows:
        for at, name, right in row:
            x, colour = left + right, svg.COLOURS[at % len(svg.COLOURS)]
            lines.append(f'<g stroke="{colour}" fill="{colour}">')
            lines.append(svg.line(x, y - 4, x + 22, y - 4, colour, width=2))
            lines.append(svg.shape(at, x + 11, y - 4) + "</g>")
            lines.append(svg.text(x + 28, y, name))
        y += svg.LINE
    return lines


def _nice_step(most: float) -> float:
    """From tick to tick: 1, 2 or 5 times a power of ten, four to nine of them up to `most`."""
    rough = most / 8
    power = 10.0 ** math.floor(math.log10(rough))
    return next(each * power for each in (1, 2, 5, 10) if each * power >= rough)


def _powers(low: float, high: float) -> list[int]:
    """Powers of two to name on the axis: about eight."""
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    step = next(step for step in (1, 2, 4, 5, 10, 20, 50) if (last - first) / step < 9)
    return [power for power in range(first, last + 1) if power % step == 0] or [first]


def _binary(power: int) -> str:
    """A power of two as one reads it: 512, 16Ki, 4Mi."""
    if power < 0:
        return f"2^{power}"
    tens = min(power // 10, 6)
    return f"{1 << power - 10 * tens}{('', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi', 'Ei')[tens]}"


def _short(value: float) -> str:
    return f"{value:.3g}"
