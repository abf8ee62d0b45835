# SPDX-License-Identifier: MIT
# The rows that `top` shows: chosen, ordered, and laid out in a width.
#
# Pure: values in, text out. A line takes exactly the width that it is laid out for.
"""The rows that `top` shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aioktask.job import JobPhase
from aioktask.telling import MEANINGS, lasting, rated
from aioktask.top._text import cells, fit
from aioktask.top._view import JobRow, ProcessRow, View

__all__ = [
    "SORTS",
    "Cell",
    "Columns",
    "Tone",
    "cells_of",
    "chosen",
    "columns_for",
    "detail",
    "head",
    "line",
    "process_line",
    "summary",
]

# What a piece of text means. It is told in words too: a colour only repeats it.
Tone = Literal["", "faint", "bar", "good", "warn", "bad", "head"]
Cell = tuple[str, Tone]

_TONES: Mapping[JobPhase, Tone] = {"waiting": "faint", **MEANINGS}


# Choosing.

_KEYS: Mapping[str, Callable[[JobRow], Any]] = {
    "process": lambda job: (),
    "name": lambda job: job.name.casefold(),
    "progress": lambda job: -(job.fraction or 0.0),
    "rate": lambda job: -job.rate,
    "threads": lambda job: -job.threads,
    "nice": lambda job: job.nice if job.loan is None else min(job.nice, job.loan),
    "time": lambda job: -job.seconds,
}

SORTS = tuple(_KEYS)

# So many workers of a job are told, one a line.
MOST_WORKERS = 100


def chosen(view: View, *, sort: str, words: str, ended: bool) -> list[JobRow]:
    """The jobs to show: those under way in their order, then those that are over.

    Args:
        view: What was told.
        sort: One of `SORTS`: the largest first, but names, numbers and the most urgent nice.
        words: Only jobs with this in their name, labels, process, number or phase.
        ended: Whether those that are over are shown, the latest first.
    """
    key = _KEYS[sort]
    under_way = sorted(view.jobs, key=lambda job: (key(job), job.key))
    wanted = words.casefold().strip()
    rows = [*under_way, *(view.ended if ended else ())]
    return [each for each in rows if not wanted or wanted in _searched(each)]


def _searched(job: JobRow) -> str:
    labels = " ".join(job.labels)
    told = f"{job.name} {labels} {job.kind} {job.phase} {job.state} {job.pid} {job.number}"
    return told.casefold()


# Laying out.

# Of a phase that a job is in that is not over, and of a rate: 999.9 k/s.
_PHASE = 8
_RATE = 8
_THREADS = 4
_PERCENT = 5
_TIME = 7
# The fewest cells for a name, and the most before other columns get more.
_NAME, _GOOD_NAME = 8, 21
# The fewest cells in which what there is to say has a column of its own.
_NOTE = 16


@dataclass(frozen=True, slots=True)
class Columns:
    """How many cells each column takes; 0 where there is no room for it.

    What stands behind `time` is one area: the phase, the bar, the rate, the threads; and where
    there is no column for what there is to say of a job, that stands over them.
    """

    width: int
    pid: int
    number: int
    name: int
    nice: int
    time: int
    bar: int
    note: int

    @property
    def area(self) -> int:
        """What is left behind the other columns."""
        taken = sum(
            each + 1 for each in (self.pid, self.number, self.name, self.nice, self.time) if each
        )
        return max(self.width - taken, 0)


def columns_for(width: int, jobs: Iterable[JobRow], *, bar: bool = True) -> Columns:
    """Lay out a table of these jobs in so many cells."""
    pid, number, nice = 4, 2, 5
    for job in jobs:
        pid = max(pid, len(str(job.pid)))
        number = max(number, len(str(job.number)))
        nice = max(nice, len(job.nices))
    pid, number, nice, time = min(pid, 10), min(number, 9), min(nice, 7), _TIME
    bars = 6 if bar else 0
    area = _PHASE + 1 + bars + _PERCENT + 1 + _RATE + 1 + _THREADS

    def left() -> int:
        return width - area - sum(each + 1 for each in (pid, number, nice, time) if each) - 1

    if left() < _NAME:
        nice = 0
    if left() < _NAME:
        time = 0
    name = max(min(left(), _GOOD_NAME), _NAME)
    spare = max(left() - name, 0)
    note = 0
    if spare >= _NOTE + 1:
        bars += min(spare // 8, 14) if bar else 0
        name += min(spare // 6, 27)
        note = max(left() - name - (bars - 6 if bar else 0) - 1, 0)
    else:
        name += spare
    return Columns(width, pid, number, name, nice, time, bars, note)


def head(columns: Columns, sort: str = "") -> str:
    """The names of the columns, with a mark at the one that jobs are ordered by."""

    def named(text: str, by: str) -> str:
        return f"{text}▾" if sort == by else text

    c = columns
    parts = [
        fit(named("pid", "process"), c.pid, right=True),
        fit("no", c.number, right=True),
        fit(named("name", "name"), c.name),
        fit(named("nice", "nice"), c.nice, right=True),
        fit(named("time", "time"), c.time, right=True),
    ]
    progress = named("progress" if c.bar else "done", "progress")
    progress = fit(progress, c.bar + _PERCENT, right=not c.bar)
    rate = fit(named("rate", "rate"), _RATE, right=True)
    threads = fit(named("thr", "threads"), _THREADS, right=True)
    area = f"{fit('state', _PHASE)} {progress} {rate} {threads}"
    parts.append(fit(f"{area} {'why' if c.note else ''}".rstrip(), c.area))
    return fit(" ".join(each for each in parts if each), c.width)


def cells_of(job: JobRow, columns: Columns) -> list[Cell]:
    """A job's line, in pieces that take exactly the width together."""
    c = columns
    parts: list[Cell] = []

    def put(text: str, width: int, tone: Tone = "", *, right: bool = False) -> None:
        if width > 0:
            parts.append((fit(text, width, right=right), tone))
            parts.append((" ", ""))

    over: Tone = "" if job.ended is None else "faint"
    put(str(job.pid), c.pid, over, right=True)
    put(str(job.number), c.number, over, right=True)
    put(job.name, c.name, over)
    put(job.nices, c.nice, over, right=True)
    put(lasting(job.seconds), c.time, over, right=True)
    parts += _area(job, c)
    return _cut(parts, c.width)


def _area(job: JobRow, c: Columns) -> list[Cell]:
    phase = job.phase
    tone = _TONES.get(phase, "")
    if job.ended is not None:
        return [(fit(job.note, c.area), tone)]
    state, note = job.state, job.note.removeprefix("waits for ").removeprefix("a thread: ")
    if state == "stuck":
        tone = "bad"
    elif note and not tone:
        tone = "faint"
    if note and (phase == "waiting" or not (c.note or c.bar)):
        percent = f" {job.percent}" if job.fraction else ""
        return [(fit(f"{state}{percent}: {note}", c.area), tone)]
    done = fit(job.percent, _PERCENT, right=True)
    if job.fraction is None:  # a stream whose source has not come to its end
        bar: list[Cell] = [(fit(f"{job.units} done", c.bar + _PERCENT), "")]
    else:
        bar = [(_bar(job.fraction, c.bar), "bar" if tone in ("", "faint") else tone), (done, "")]
    rate = rated(job.rate) or "-"
    found: list[Cell] = [
        (fit(state, _PHASE), tone),
        (" ", ""),
        *bar,
        (" ", ""),
        (fit(rate, _RATE, right=True), ""),
        (" ", ""),
        (fit(str(job.threads), _THREADS, right=True), ""),
        (" ", ""),
        (fit(note, c.note), tone),
    ]
    return _cut(found, c.area)


def _cut(parts: Sequence[Cell], width: int) -> list[Cell]:
    """The same in exactly so many cells."""
    found: list[Cell] = []
    left = width
    for text, tone in parts:
        taken = cells(text)
        if taken > left:
            found.append((fit(text, left), tone))
            return found
        found.append((text, tone))
        left -= taken
    return [*found, (" " * left, "")] if left else found


_EIGHTHS = " ▏▎▍▌▋▊▉"


def _bar(fraction: float, width: int) -> str:
    """A bar that is filled up to a fraction.

    >>> _bar(0.5, 3), _bar(1.0, 3)
    ('█▌░', '███')
    """
    eighths = int(8 * width * min(max(fraction, 0.0), 1.0))
    full, rest = divmod(eighths, 8)
    part = _EIGHTHS[rest] if rest else ""
    return f"{'█' * full}{part}{'░' * (width - full - len(part))}"


def line(job: JobRow, columns: Columns) -> str:
    """A job's line as text."""
    return "".join(text for text, _ in cells_of(job, columns))


def process_line(process: ProcessRow, width: int) -> list[Cell]:
    """A process in exactly so many cells."""
    command = fit(process.command, min(cells(process.command), max(width // 3, 16)))
    parts: list[Cell] = [(f"{process.pid}  ", "")]
    if command:
        parts.append((f"{command}  ", "faint"))
    if process.problem:
        parts.append((f"! no answer: {process.problem.removeprefix('it ')}", "bad"))
        return _cut(parts, width)
    working, limit = process.working, process.limit
    if working > limit:  # until their chunks end
        parts.append((f"{_many(working, 'helper', 'helpers')}, {limit} at most", ""))
    else:
        parts.append((f"{working} of {limit} helpers", ""))
    if process.loop:
        parts.append((f"  {process.loop}", ""))
    if process.reason:
        parts.append((f"  {process.reason}", "faint"))
    return _cut(parts, width)


def summary(view: View) -> str:
    """How many processes and jobs there are.

    >>> summary(View())
    'no process'
    """
    if not view.processes:
        return "no process"
    counts: Counter[str] = Counter()
    for process in view.processes:
        counts.update(dict(process.counts))
    silent = sum(1 for each in view.processes if each.problem)
    processes = _many(len(view.processes), "process", "processes")
    if silent:
        processes += f" ({silent} silent)"
    jobs = _many(sum(counts.values()), "job", "jobs")
    told = ", ".join(f"{number:,} {phase}" for phase, number in sorted(counts.items()))
    return f"{processes}, {jobs}{f': {told}' if told else ''}"


def _many(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


def detail(job: JobRow, view: View) -> list[list[Cell]]:
    """All there is to say of a job, in lines that may be longer than a screen is wide."""
    lines: list[list[Cell]] = [
        [(f"{job.kind} {job.number} of process {job.pid}  ", "faint"), (job.name, "head")]
    ]
    figures: list[str] = []
    if job.ended is None:
        figures += [job.phase, job.percent, job.units]
        if job.text not in (job.phase, ""):
            figures.append(job.text)
        figures.append(rated(job.rate))
        figures.append(_many(job.threads, "thread", "threads"))
    else:
        figures += [job.note, f"{_many(job.threads, 'thread', 'threads')} at most"]
    figures.append(f"nice {job.nice}")
    if job.loan is not None:
        lender = "a waiter" if job.lender is None else f"job {job.lender}"
        figures.append(f"{lender} lends it {job.loan}")
    lines.append([(", ".join(each for each in figures if each), _TONES.get(job.phase, ""))])
    if job.labels:
        lines.append([("labels    ", "faint"), ("  ".join(job.labels), "")])
    if job.note and job.ended is None:
        lines.append([("why       ", "faint"), (job.note, "warn")])
    elif job.error:
        lines.append([("error     ", "faint"), (job.error, "bad")])
    process = view.process(job.pid)
    if process is None:
        return lines
    serving = [each for each in process.helpers if each.job == job.number and job.ended is None]
    for helper in serving:
        lines.append([("served by ", "faint"), (helper.text, "")])
        if helper.stuck:
            lines.append([("stuck     ", "faint"), (f"for {lasting(helper.stuck)} at:", "bad")])
            lines += [[(f"          {each}", "")] for each in helper.stack]
    workers = [each for each in process.workers if each.job == job.number and job.ended is None]
    for worker in workers[:MOST_WORKERS]:
        lines.append([("worker    ", "faint"), (worker.text, "bad" if worker.gone else "")])
    if len(workers) > MOST_WORKERS:
        more = f"and {_many(len(workers) - MOST_WORKERS, 'more worker', 'more workers')}"
        lines.append([("          ", "faint"), (more, "faint")])
    for name, text in process.advice:
        if name in (job.name, ""):
            lines.append([("advice    ", "faint"), (text, "warn")])
    return lines
