# SPDX-License-Identifier: MIT
# Where a job or a stream stands, in words and figures for people: bars, log lines and notebooks all
# tell it from here.
#
# Pure. A percentage is rounded down, so 100% is said only where all is done.
"""Progress in words."""

from __future__ import annotations

from dataclasses import dataclass

from aioktask.job import JobPhase, Progress, StreamProgress
from aioktask.markup import Markup, meter, printable, table

__all__ = ["Told", "bar_of", "counted", "html_of", "lasting", "told"]


@dataclass(frozen=True, slots=True)
class Told:
    """Where a job stands, as it is shown.

    Attributes:
        name: The job's, in one line and printable.
        position: Units that are done and not undone.
        size: Units in all; None where that is not known.
        text: What is said beside the bar.
        phase: The job's.
        over: Whether this is how it ended.
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
            figures = [self.percent.strip(), _of(self.position, self.size)]
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
        return f"{counted(progress.done)} done in {lasting(progress.elapsed)}"
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


def _at(progress: Progress | StreamProgress) -> str:
    """Where it ended early."""
    if progress.size is None:
        return f" after {counted(progress.done)}"
    return f" at {_percent(progress.done, progress.size)}%"


def _percent(position: int, size: int) -> int:
    return min(100 * position // size, 100) if size else 100


def _of(position: int, size: int | None) -> str:
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


# Of the bar; the text says the same.
COLOURS: dict[JobPhase, str] = {
    "finished": "#2e8b57",
    "settled": "#2e8b57",
    "stopping": "#c77700",
    "undoing": "#c77700",
    "cancelled": "#c77700",
    "overloaded": "#c0392b",
    "timed out": "#c0392b",
    "failed": "#c0392b",
    "undo failed": "#c0392b",
}
BLUE = "#2a7ae2"


def bar_of(shown: Told) -> tuple[Markup, str, str]:
    """Where a job stands, as a bar in HTML, the percentage and the text beside it."""
    colour = COLOURS.get(shown.phase, BLUE)
    bar = meter(shown.fraction, f"{shown.name}: {shown.text}", colour)
    return bar, shown.percent, shown.text


def html_of(*shown: Told) -> Markup:
    """Where jobs stand, as lines of HTML."""
    return table([(each.name, *bar_of(each)) for each in shown])
