# SPDX-License-Identifier: MIT
# The picture of one run: which thread was at which units when. It comes with the report, or the
# failure, of a job with `trace=True`.
#
# Nothing here knows of the engine. The picture is matplotlib's, which is asked for when one is
# drawn; the trace is in the format that Perfetto and Chrome's tracing page open.
"""Timelines of jobs."""

from __future__ import annotations

import html
import io
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from aioktask.extras import missing_package
from aioktask.markup import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Mark", "Stretch", "Timeline", "TracedThread"]


class Stretch(NamedTuple):
    """Consecutive chunks that one thread was at.

    Attributes:
        thread: The number of the thread in the timeline.
        start: When it began, in seconds since the job was submitted.
        stop: When it came back.
        first: The first unit.
        last: One past the last unit that was done.
        chunks: How many chunks were done.
        kind: "work" or "undo".
        nice: That of the job, or the one that was lent to it.
        lent: Whether it ran at the nice of a waiter that was more urgent.
    """

    thread: int
    start: float
    stop: float
    first: int
    last: int
    chunks: int
    kind: Literal["work", "undo"]
    nice: int
    lent: bool


class Mark(NamedTuple):
    """Something that happened to the job.

    Attributes:
        what: In words.
        at: When, in seconds since the job was submitted.
        thread: The number of the thread that it happened on, if on one.
    """

    what: str
    at: float
    thread: int | None


class TracedThread(NamedTuple):
    """A thread of a timeline.

    Attributes:
        number: Its number in the timeline.
        name: What it is, with the kernel's number where that is known.
    """

    number: int
    name: str


# How many marks a picture names, and how many letters of theirs fit into its width.
MOST_NAMED = 12
LETTERS = 110
TITLE_LETTERS = 72
THREAD_LETTERS = 32

# Of a picture's width: what is shorter is drawn so wide, or as one with what is next to it, so that
# a picture is bounded however many stretches there were, and the shortest undo is seen.
LEAST_WIDTH = 1 / 500


class _Look(Enum):
    """How a stretch is drawn, by what the legend calls it; what is later covers what is before."""

    WORK = "chunks"
    LENT = "chunks at a waiter's nice"
    UNDO = "undo"

    @property
    def colour(self) -> str:
        return {_Look.WORK: "#4c78a8", _Look.LENT: "#72b7b2", _Look.UNDO: "#e45756"}[self]

    @property
    def hatch(self) -> str:
        """So that nothing is told by colour alone."""
        return {_Look.WORK: "", _Look.LENT: "//", _Look.UNDO: "xx"}[self]


def _look_of(stretch: Stretch) -> _Look:
    if stretch.kind == "undo":
        return _Look.UNDO
    return _Look.LENT if stretch.lent else _Look.WORK


@dataclass(frozen=True)
class Timeline:
    """Which thread was at which part of a job when.

    Attributes:
        name: The job's name.
        size: Its units.
        seconds: From submit to the end of the timeline.
        threads: The threads that were at it, in the order in which they came.
        stretches: What they were at, in the order in which they began.
        marks: What happened to the job as a whole, in order.
        lost: How many stretches are not kept: the last 1,024 are of each of the last 256 threads
            that came.

    >>> from aioktask import Job, run_multithreaded_sync
    >>> job = Job(lambda start, stop: None, 100, max_threads=1, trace=True)
    >>> timeline = run_multithreaded_sync(job).timeline
    >>> sum(each.last - each.first for each in timeline.stretches)
    100
    """

    name: str
    size: int
    seconds: float
    threads: tuple[TracedThread, ...]
    stretches: tuple[Stretch, ...]
    marks: tuple[Mark, ...]
    lost: int

    # As a trace for Perfetto.

    def chrome_trace(self) -> dict[str, object]:
        """The timeline in the Trace Event Format, for `ui.perfetto.dev` or ``chrome://tracing``.

        Each thread has an integer ``tid`` of its own; counters show threads and units done; an
        arrow leads from a waiter's loan to the first stretch that runs at the waiter's nice.

        Returns:
            What `json.dump` takes.
        """
        return {
            "traceEvents": list(self._events()),
            "displayTimeUnit": "ms",
            "otherData": {"job": self.name, "size": self.size, "lost stretches": self.lost},
        }

    def write_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write `chrome_trace` into a file.

        Raises:
            OSError: It cannot be written.
        """
        Path(path).write_text(json.dumps(self.chrome_trace()), encoding="utf-8")

    def _events(self) -> Iterator[dict[str, object]]:
        pid = os.getpid()
        yield _named("process_name", pid, 0, f"job {self.name}")
        yield _named("thread_name", pid, 0, "the job")
        for number, name in self.threads:
            yield _named("thread_name", pid, number, name)
        for mark in self.marks:
            tid = mark.thread or 0
            scope = "t" if tid else "p"
            yield {**_event("i", mark.what, mark.at, pid, tid), "s": scope}
        yield from self._stretch_events(pid)
        yield from self._loan_events(pid)
        yield from self._counters(pid)

    def _stretch_events(self, pid: int) -> Iterator[dict[str, object]]:
        for each in self.stretches:
            name = f"{each.first} to {each.last}"
            yield {
                **_event("X", name, each.start, pid, each.thread),
                "cat": each.kind,
                "dur": _microseconds(each.stop - each.start),
                "args": {
                    "first": each.first,
                    "last": each.last,
                    "chunks": each.chunks,
                    "nice": each.nice,
                    "lent": each.lent,
                },
            }

    def _loan_events(self, pid: int) -> Iterator[dict[str, object]]:
        """Arrows from loans to the stretches that they made urgent."""
        lent = [each for each in self.stretches if each.lent]
        before: dict[int, float] = {}
        number = 0
        for each in lent:
            begins = before.get(each.thread)
            before[each.thread] = each.stop
            if begins is not None and each.start - begins < self.seconds / 1000:
                continue  # it goes on
            number += 1
            flow = {"cat": "loan", "id": number}
            yield {**_event("i", f"lends nice {each.nice}", each.start, pid, 0), "s": "t"}
            yield {**_event("s", "loan", each.start, pid, 0), **flow}
            yield {**_event("f", "loan", each.start, pid, each.thread), **flow, "bp": "e"}

    def _counters(self, pid: int) -> Iterator[dict[str, object]]:
        changes: list[tuple[float, int, int]] = []
        for each in self.stretches:
            done = each.last - each.first
            changes.append((each.start, 1, 0))
            changes.append((each.stop, -1, done if each.kind == "work" else -done))
        threads = units = 0
        for at, thread, done in sorted(changes):
            threads += thread
            yield {**_event("C", "threads", at, pid, 0), "args": {"threads": threads}}
            if done:
                units += done
                yield {**_event("C", "units done", at, pid, 0), "args": {"units": units}}

    # As a picture.

    def svg(self) -> str:
        """The timeline as an SVG picture: a row for each thread, its stretches in time.

        Raises:
            ImportError: There is no matplotlib: the extra `plot` brings it.
        """
        buffer = io.StringIO()
        figure = self.figure()
        with warnings.catch_warnings():  # of letters that the font has not, which are boxes then
            warnings.filterwarnings("ignore", "Glyph")
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        text = buffer.getvalue()
        return text[text.index("<svg") :]

    def figure(self) -> Figure:
        """The timeline as a figure of matplotlib, to be changed or saved in any format.

        Raises:
            ImportError: There is no matplotlib: the extra `plot` brings it.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise missing_package("the picture of a timeline", "matplotlib", error) from error
        figure = Figure(figsize=(9, 1.4 + 0.3 * max(len(self.threads), 1)), layout="constrained")
        axes = figure.subplots()
        rows = {thread.number: row for row, thread in enumerate(self.threads)}
        unit, scale = _unit(self.seconds)
        for look, by_thread in self._spans().items():
            for number, spans in by_thread.items():
                axes.broken_barh(
                    [(start * scale, (stop - start) * scale) for start, stop in spans],
                    (rows[number] - 0.4, 0.8),
                    facecolor=look.colour,
                    hatch=look.hatch,
                    edgecolor="white",
                    linewidth=0.3,
                )
        for mark in self.marks:
            axes.axvline(mark.at * scale, color="0.4", linewidth=0.6, linestyle=":")
        self._name_marks(axes, scale)
        axes.set_yticks(
            list(rows.values()), [_plain(thread.name, THREAD_LETTERS) for thread in self.threads]
        )
        axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
        axes.set_xlim(0, max(self.seconds * scale, 1e-9))
        axes.set_xlabel(f"{unit} since the job was submitted")
        axes.set_title(_plain(self.name, TITLE_LETTERS), fontsize="medium", loc="left", pad=16)
        self._add_legend(figure)
        return figure

    def _spans(self) -> dict[_Look, dict[int, list[tuple[float, float]]]]:
        """What is drawn, in the order in which it covers: when, by look and thread."""
        least = self.seconds * LEAST_WIDTH
        found: dict[_Look, dict[int, list[tuple[float, float]]]] = {look: {} for look in _Look}
        for each in self.stretches:
            spans = found[_look_of(each)].setdefault(each.thread, [])
            stop = max(each.stop, each.start + least)
            if spans and each.start - spans[-1][1] < least and each.stop - each.start < least:
                spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
            else:
                spans.append((each.start, stop))
        return found

    def _name_marks(self, axes: Any, scale: float) -> None:
        """Name the last marks above the rows, those apart that another one's name would cover."""
        free = self.seconds * scale
        for mark in reversed(self.marks[-MOST_NAMED:]):
            width = len(mark.what) * self.seconds * scale / LETTERS
            if mark.at * scale + width <= free:
                free = mark.at * scale
                axes.annotate(
                    _plain(mark.what),
                    (free, 1),
                    xytext=(2, 2),
                    xycoords=("data", "axes fraction"),
                    textcoords="offset points",
                    fontsize="x-small",
                )

    def _add_legend(self, figure: Figure) -> None:
        from matplotlib.patches import Patch

        found = {_Look.WORK, *map(_look_of, self.stretches)}
        patches = [
            Patch(facecolor=look.colour, hatch=look.hatch, edgecolor="white", label=look.value)
            for look in _Look
            if look in found
        ]
        figure.legend(
            handles=patches,
            loc="outside lower right",
            ncols=len(patches),
            fontsize="small",
            frameon=False,
        )

    def _repr_html_(self) -> str:
        """The picture, in a notebook; without matplotlib what it would show, as a table."""
        try:
            return self.svg()
        except ImportError:
            rows = "".join(
                f"<tr><td>{html.escape(thread.name)}</td><td>{self._busy(thread.number):.3g} s"
                "</td></tr>"
                for thread in self.threads
            )
            return (
                f"<table><caption>{html.escape(self.name)}: {self.seconds:.3g} s (a picture of it "
                f"needs matplotlib)</caption>{rows}</table>"
            )

    def _busy(self, number: int) -> float:
        return sum(each.stop - each.start for each in self.stretches if each.thread == number)

    def __repr__(self) -> str:
        return (
            f"<Timeline of {self.name!r}: {len(self.threads)} threads, "
            f"{len(self.stretches)} stretches in {self.seconds:.3g} s>"
        )


def _unit(seconds: float) -> tuple[str, float]:
    """The unit that times are shown in, and how many of it a second has."""
    if seconds < 1e-3:
        return "microseconds", 1e6
    return ("milliseconds", 1e3) if seconds < 2 else ("seconds", 1.0)


def _plain(text: str, most: int = LETTERS) -> str:
    """The text as matplotlib shows it literally, which takes ``$`` for the begin of a formula.

    What cannot be printed cannot be in an SVG either; what has more letters than `most` is cut.
    """
    text = printable(text)
    if len(text) > most:
        text = text[: most - 1] + "…"
    return text.replace("$", r"\$")


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, object]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}


def _event(phase: str, name: str, at: float, pid: int, tid: int) -> dict[str, object]:
    return {"ph": phase, "name": name, "ts": _microseconds(at), "pid": pid, "tid": tid}
