# SPDX-License-Identifier: MIT
# Where a job or a stream stands, in words and figures for people: bars, log lines and notebooks all
# tell it from here.
#
# Pure. A percentage is rounded down, so 100% is said only where all is done.
"""Progress in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from aioktask.job import JobPhase, Progress, StreamProgress
from aioktask.markup import Markup, card, meter, printable, table

__all__ = [
    "MEANINGS",
    "Meaning",
    "Told",
    "bar_of",
    "counted",
    "html_of",
    "lasting",
    "left",
    "rated",
    "told",
    "units_of",
]


@dataclass(frozen=True, slots=True)
class Told:
    """Where a job stands, as it is shown.

    Attributes:
        name: The job's, in one line and printable.
        position: Units that are done and not undone.
        size: Units in all; None where that is not known.
        text: What is said beside the bar.
        phase: The job's.
        over: Whether this is how it ended, or the last that is told of it.
    """

    name: str
    position: int
    size: int | None
    text: str
    phase: JobPhase
    over: bool

    @property
    def fraction(self) -> float | None:
        """How much of it is done, from 0 to 1; None where that is not known."""
        if self.size is None:
            return None
        if not self.size:
            return float(self.phase == "finished")
        return self.position / self.size

    @property
    def percent(self) -> str:
        """The same, as ``" 70%"``, rounded down; empty where that is not known."""
        if self.size is None:
            return ""
        return f"{_percent(self.position, self.size):3d}%"

    @property
    def line(self) -> str:
        """All of it in one line."""
        figures = []
        if not self.over:
            figures = [self.percent.strip(), units_of(self.position, self.size)]
        return f"{self.name}: {', '.join(each for each in (*figures, self.text) if each)}"


def told(name: str, progress: Progress | StreamProgress) -> Told:
    """Put it into words.

    Args:
        name: Of the job.
        progress: Where it stands.

    >>> told("sum", Progress(70, 100, 0, 7, 1.0, 70.0, "cancelled", 70, 0.0)).line
    'sum: cancelled at 70%, undone'
    >>> told("sum", Progress(70, 100, 2, 7, 1.0, 70.0, "running", 0, 0.43)).line
    'sum: 70%, 70 of 100, 0.4 s left'
    """
    undone = progress.undone if isinstance(progress, Progress) else 0
    return Told(
        name=printable(name),
        position=max(progress.done - undone, 0),
        size=progress.size,
        text=_text(progress, undone),
        phase=progress.phase,
        over=progress.over,
    )


def left(name: str, progress: Progress | StreamProgress, error: BaseException | None) -> Told:
    """Put into words, for the last time, what is shown while a block runs that is now left.

    Of a stream whose values were all asked for that is how it ended, also where the engine has yet
    to notice, and of one that is left early that it ends with the block. A job goes on.

    Args:
        name: Of the job.
        progress: Where it stands.
        error: By which the block is left; None for its end.

    >>> left("sum", StreamProgress(50, 50, 2, 1.0, 50.0, "running", 0.0), None).line
    'sum: 50 done in 1.0 s'
    >>> left("sum", StreamProgress(31, 50, 2, 1.0, 31.0, "stopping", None), OSError()).line
    'sum: ended by OSError at 62%'
    >>> left("sum", Progress(50, 100, 2, 5, 1.0, 50.0, "running", 0, 1.0), None).line
    'sum: left at 50%'
    """
    found = told(name, progress)
    if found.over:
        return found
    phase = progress.phase
    if error is None and phase == "running" and progress.done == progress.size:
        text, phase = _done(progress), "finished"
    else:
        stops = phase == "stopping" or (error is not None and isinstance(progress, StreamProgress))
        how = "ended" if stops else "left"
        by = "" if error is None else f" by {type(error).__name__}"
        text = f"{how}{by}{_at(progress)}"
    return replace(found, text=text, phase=phase, over=True)


def _text(progress: Progress | StreamProgress, undone: int) -> str:
    phase = progress.phase
    if phase == "waiting":
        return "waiting"
    if phase == "running":
        if progress.eta is not None:
            return f"{lasting(progress.eta)} left"
        return f"for {lasting(progress.elapsed)}"
    if phase == "settled":
        return "done"
    if phase == "finished":
        return _done(progress)
    if phase == "stopping":
        return "stopping"
    if phase == "undoing":
        return "undoing" if progress.eta is None else f"undoing, {lasting(progress.eta)} left"
    if phase == "overloaded":
        return "overloaded: did not begin in time"
    if phase == "undo failed":
        left = counted(progress.done - undone)
        return f"ended{_at(progress)}, undo failed: {left} still done"
    ended = f"{phase}{_at(progress)}"
    return f"{ended}, undone" if undone else ended


def _done(progress: Progress | StreamProgress) -> str:
    return f"{counted(progress.done)} done in {lasting(progress.elapsed)}"


def _at(progress: Progress | StreamProgress) -> str:
    """Where it ended early."""
    if progress.size is None:
        return f" after {counted(progress.done)}"
    return f" at {_percent(progress.done, progress.size)}%"


def _percent(position: int, size: int) -> int:
    return min(100 * position // size, 100) if size else 100


def units_of(position: int, size: int | None) -> str:
    """How many units are done, and of how many where that is known.

    >>> units_of(1000, 20_000), units_of(3, None)
    ('1,000 of 20,000', '3')
    """
    return counted(position) if size is None else f"{counted(position)} of {counted(size)}"


_THOUSANDS = ("k", "M", "G", "T", "P", "E")


def counted(number: int) -> str:
    """A number of units, shortened where it is long.

    >>> counted(12_345), counted(4 << 30), counted(10**30)
    ('12,345', '4.29 G', '1,000,000,000,000 E')
    """
    if number < 100_000:
        return f"{number:,}"
    scale = min((len(str(number)) - 1) // 3, len(_THOUSANDS))
    value = number / 1000**scale
    digits = f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
    return f"{digits} {_THOUSANDS[scale - 1]}"


def rated(rate: float) -> str:
    """Units a second, or by the minute or hour where those are less than one in ten; empty for 0.

    >>> rated(19_000.4), rated(0.42), rated(0.05), rated(0.001), rated(0.0)
    ('19,000/s', '0.42/s', '3/min', '3.6/h', '')
    """
    if rate >= 9.95:
        return f"{counted(round(rate))}/s"
    for unit, seconds in (("s", 1), ("min", 60), ("h", 3600)):
        if rate * seconds >= 0.1:
            return f"{rate * seconds:.2g}/{unit}"
    return ""


def lasting(seconds: float) -> str:
    """A time, as precisely as anybody cares for.

    >>> [lasting(each) for each in (0.04, 9.96, 75, 3600 * 50)]
    ['0.0 s', '10 s', '1:15', '50:00:00']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


# What it means that a job is in a phase, which colours only repeat: every display has its own of
# them for each meaning. Phases that are not named are as usual.
Meaning = Literal["good", "warn", "bad"]
MEANINGS: Mapping[JobPhase, Meaning] = {
    "finished": "good",
    "settled": "good",
    "stopping": "warn",
    "undoing": "warn",
    "cancelled": "warn",
    "overloaded": "bad",
    "timed out": "bad",
    "failed": "bad",
    "undo failed": "bad",
}

# Of bars in HTML.
_USUAL = "#2a7ae2"
_COLOURS: Mapping[Meaning, str] = {"good": "#2e8b57", "warn": "#c77700", "bad": "#c0392b"}


def bar_of(shown: Told) -> tuple[Markup, str, str]:
    """Where a job stands, as a bar in HTML, the percentage and the text beside it."""
    meaning = MEANINGS.get(shown.phase)
    colour = _USUAL if meaning is None else _COLOURS[meaning]
    bar = meter(shown.fraction, f"{shown.name}: {shown.text}", colour)
    return bar, shown.percent, shown.text


def html_of(*shown: Told) -> Markup:
    """Where jobs stand, as lines of HTML."""
    return table([(each.name, *bar_of(each)) for each in shown])


def stream_card(name: str, progress: StreamProgress, nice: int) -> Markup:
    """What a notebook shows of a stream."""
    figures = [
        ("phase", progress.phase),
        ("items", f"{counted(progress.done)} done"),
        ("rate", f"{counted(round(progress.rate))} items a second"),
        ("threads", progress.threads),
        ("nice", nice),
    ]
    return card("Stream", html_of(told(name, progress)), figures=figures)
