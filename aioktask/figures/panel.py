# SPDX-License-Identifier: MIT
# What is to be drawn, as values: three forms of panels, and the picture that they make up.
#
# Pure, and without a library that draws: who measures can say what the picture would be whether or
# not it is drawn. `chart` draws it, with matplotlib.
"""Panels of a picture: `Dots`, `Bars`, `Curves`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aioktask.figures.measure import Interval
from aioktask.figures.table import number

__all__ = [
    "Bars",
    "Curves",
    "Dots",
    "Mark",
    "Panel",
    "Picture",
    "Point",
    "Reading",
    "Row",
    "Series",
    "described",
]


@dataclass(frozen=True, slots=True)
class Reading:
    """A measured value in a row.

    Attributes:
        value: The median, and the interval that is drawn as a whisker.
        promised: Limits that are promised of it, each drawn as a line across the row.
    """

    value: Interval
    promised: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """What is read of one contender.

    Attributes:
        label: Who that is.
        readings: One for each series (of `Dots`) or column (of `Bars`); None for one not measured.
        told: Some letters beside the label: the figure that counts.
        ours: Whether it is pointed out, by bold letters: this library among others.
    """

    label: str
    readings: Sequence[Reading | None]
    told: str = ""
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Dots:
    """Dots with whiskers over a logarithmic axis, a row for each contender.

    Attributes:
        title: Above it.
        x_label: What is measured, with its unit.
        rows: From above.
        series: Names of what is read in each row, in the legend; an empty one has no entry there.
        promise: What the lines across the rows say, in the legend; empty where there are none.
    """

    title: str
    x_label: str
    rows: Sequence[Row]
    series: Sequence[str] = ("",)
    promise: str = ""


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars from zero, columns side by side with an axis each.

    Attributes:
        title: Above it.
        columns: What is measured in each column, with its unit.
        rows: From above.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]


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
    """A place that is pointed out by a ring.

    Attributes:
        x: Where.
        y: Where.
        label: What is there, in the legend.
    """

    x: float
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Curves:
    """Lines over a logarithmic axis of powers of two, from zero up.

    Attributes:
        title: Above it.
        x_label: What x is, with its unit.
        y_label: What y is.
        series: The lines.
        marks: What is pointed out.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    marks: Sequence[Mark] = ()


Panel = Dots | Bars | Curves


@dataclass(frozen=True, slots=True)
class Picture:
    """Panels, one below the other.

    Attributes:
        title: Above all of them.
        panels: One or more.
        caption: Below them: the machine, say.
    """

    title: str
    panels: Sequence[Panel]
    caption: str = ""


def described(picture: Picture) -> str:
    """What the picture shows, in words, for those who do not see it."""
    told = [_sentence(panel) for panel in picture.panels]
    return " ".join([f"{picture.title}.", *told] if picture.title else told)


def _sentence(panel: Panel) -> str:
    if isinstance(panel, Curves):
        about = f"{panel.y_label}, over {panel.x_label}"
        parts = []
        for series in panel.series:
            if series.points:
                best = max(series.points, key=lambda point: point.y)
                parts.append(f"{series.name} is highest at {best.x:,.0f}: {number(best.y)}")
        parts += [mark.label for mark in panel.marks]
    else:
        about = panel.x_label if isinstance(panel, Dots) else " and ".join(panel.columns)
        parts = [f"{row.label}: {row.told or _medians(row)}" for row in panel.rows]
    head = f"{panel.title} ({about})" if panel.title else about
    return f"{head}: {'; '.join(parts)}."


def _medians(row: Row) -> str:
    return " and ".join("-" if each is None else number(each.value.median) for each in row.readings)
