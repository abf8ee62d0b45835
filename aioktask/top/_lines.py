# SPDX-License-Identifier: MIT
# `top` as plain lines, for what is no terminal, and for whoever asks: a header a snapshot, a line a
# process and a job. Needs nothing but the library.
"""Plain lines, or JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Container, Iterable
from typing import TextIO

from aioktask.top._rows import chosen, columns_for, head, line, process_line, summary
from aioktask.top._source import Processes, Source, SourceError
from aioktask.top._text import fit
from aioktask.top._view import JobRow, View

__all__ = ["lines_of", "show_lines"]

# So many workers of a job are told, one a line.
MOST_WORKERS = 10

# So many of the jobs that are over are told where only one snapshot is asked for.
MOST_ENDED = 10

NOBODY = "no process of this user publishes its jobs: AIOKTASK_PUBLISH=1 has a program do so"


def lines_of(
    view: View, when: float, width: int, *, told: Container[tuple[int, int]] | None = None
) -> list[str]:
    """A snapshot as lines, none of which takes more cells than `width`.

    Args:
        view: What was told.
        when: In seconds since the epoch.
        width: In cells.
        told: Which of the jobs that are over were told before, by process and number, and are not
            again; None to tell the last ones.
    """
    lines = [fit(f"{_stamp(when)}  {summary(view)}", width)]
    lines += ["".join(text for text, _ in process_line(each, width)) for each in view.processes]
    rows = chosen(view, sort="process", words="", ended=False)
    over = view.ended[:MOST_ENDED]
    more = len(view.ended) - len(over)
    if told is not None:
        over = tuple(each for each in view.ended if (each.pid, each.number) not in told)
        more = 0
    shown: list[JobRow] = [*rows, *over]
    if shown:
        columns = columns_for(width, shown, bar=False)
        lines.append(head(columns))
        for each in shown:
            lines.append(line(each, columns))
            lines += [fit(f"  worker {text}", width) for text in workers_of(each, view)]
    if more:
        lines.append(fit(f"and {more:,} more that ended before", width))
    return [each.rstrip() for each in lines]


def workers_of(job: JobRow, view: View) -> list[str]:
    """The first workers of a job that has some in other processes, and how many more there are."""
    process = view.process(job.pid)
    if process is None or job.ended is not None:
        return []
    found = [each.text for each in process.workers if each.job == job.number]
    more = len(found) - MOST_WORKERS
    return [*found[:MOST_WORKERS], *([f"and {more} more"] if more > 0 else [])]


def _over(view: View, before: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    """Which jobs are over, with those of before of processes that tell of nothing this time."""
    silent = {each.pid for each in view.processes if each.problem}
    found = {(pid, number) for pid, number in before if pid in silent}
    return found | {(each.pid, each.number) for each in view.ended}


def _stamp(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def show_lines(
    source: Source,
    out: TextIO,
    *,
    width: Callable[[], int],
    interval: float = 1.0,
    once: bool = False,
    as_json: bool = False,
) -> None:
    """Write what a source tells, again and again, until that is interrupted or nobody reads it.

    Args:
        source: What is read.
        out: Where it is written to; characters that it cannot write become question marks.
        width: Says how many cells a line may take.
        interval: From one snapshot to the next, in seconds.
        once: One snapshot only.
        as_json: An object of JSON a line instead: when it was taken, and what was told.

    Raises:
        SourceError: The source cannot be read the first time.
        BrokenPipeError: Nobody reads any more.
    """
    told: set[tuple[int, int]] | None = None
    while True:
        began, now = time.monotonic(), time.time()
        try:
            reading = source.read()
        except SourceError as error:
            if told is None:  # else it may be there again
                raise
            lines = [json.dumps({"taken_at": now, "problem": str(error)})]
            if not as_json:
                lines = [fit(f"{_stamp(now)}  {error}", width()), ""]
        else:
            if as_json:
                lines = [json.dumps({"taken_at": now, **reading.data})]
            else:
                lines = lines_of(reading.view, now, width(), told=told)
                if not reading.view.processes and source.name == Processes.name:
                    lines.append(fit(NOBODY, width()))
                lines = [each.rstrip() for each in lines]
                if not once:
                    lines.append("")
            told = _over(reading.view, told or ())
        encoding = getattr(out, "encoding", None) or "utf-8"
        text = "".join(f"{each}\n" for each in lines)
        out.write(text.encode(encoding, "replace").decode(encoding))
        out.flush()
        if once:
            return
        time.sleep(max(began + interval - time.monotonic(), 0.01))
