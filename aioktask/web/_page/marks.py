# SPDX-License-Identifier: MIT
# What the page's timeline is drawn from: the last minutes of every thread, kept while somebody
# looks.
#
# Processes tell what their threads served, the same entry again and longer where it went on; a
# browser is to get each once. So what was told is remembered by what it is, and only what is new or
# grew is told again. Many short ones, one after the other on a thread, become one mark, since a
# screen has no room for more: what a thousand short jobs a second cost is bounded by time, not by
# their number. And of the entries of a process only those of its last answer are remembered, since
# the next one begins a bit before that one ended and tells nothing older, unless it grew.
#
# Pure, but for one thing: it lets go of the GIL now and then, since a loop of this process may wait
# for it. Times are those of `time.perf_counter`, in seconds, which the processes of a machine have
# in common.
"""Marks of a timeline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from aioktask.markup import printable
from aioktask.observe.courtesy import Courtesy
from aioktask.observe.values import integer, nesting, number, text

__all__ = ["SHORT_SECONDS", "Mark", "Marks"]

# Shorter entries are joined, across gaps that are as short, into marks of a second at most.
SHORT_SECONDS = 0.02
JOINED_SECONDS = 1.0


class Mark(NamedTuple):
    """A thread that served one job for a while, or several short ones.

    Attributes:
        pid: Of the process.
        thread: The kernel's number.
        job: The job's number; 0 for several.
        name: The job's.
        kind: "work" or "undo".
        lent: Whether at the nice of a waiter.
        start: When it began.
        stop: When it ended.
        jobs: How many jobs it stands for.
        depth: In how many chunks of other jobs it was, one inside the other.
        failed: Whether a chunk raised.
    """

    pid: int
    thread: int
    job: int
    name: str
    kind: str
    lent: bool
    start: float
    stop: float
    jobs: int
    depth: int
    failed: bool


class Marks:
    """The marks of all processes.

    Args:
        seconds: So far back they are kept.
        most: So many are kept, the latest ones.
    """

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds = seconds
        self._most = most
        self._kept: dict[tuple[object, ...], Mark] = {}
        self._told: dict[int, dict[tuple[object, ...], float]] = {}  # by process

    def add(self, pid: int, entries: Iterable[Mapping[str, Any]]) -> list[Mark]:
        """Take in what a process told, and return the marks that are new or grew.

        Args:
            pid: Of the process.
            entries: Each with `thread`, `depth`, `job`, `name`, `kind`, `lent`, `start`, `stop` and
                `failed`.

        Raises:
            TypeError, ValueError, LookupError, OverflowError: One is no entry. Then none is taken.

        >>> marks = Marks(60.0, 100)
        >>> entry = {"thread": 7, "depth": 0, "job": 1, "name": "a"}
        >>> entry |= {"kind": "work", "lent": False, "failed": False}
        >>> [each.stop for each in marks.add(1, [{**entry, "start": 0.0, "stop": 2.0}])]
        [2.0]
        >>> marks.add(1, [{**entry, "start": 0.0, "stop": 2.0}])
        []
        >>> [each.stop for each in marks.add(1, [{**entry, "start": 0.0, "stop": 3.0}])]
        [3.0]
        >>> len(marks.all())
        1
        """
        pause = Courtesy()
        before = self._told.get(pid, {})
        told: dict[tuple[object, ...], float] = {}
        fresh: dict[tuple[int, int], list[Mark]] = {}
        for each in entries:
            pause()
            found = _mark(pid, each)
            key = _key(found)
            known = told.get(key, before.get(key, -math.inf))
            told[key] = max(found.stop, known)
            if found.stop > known:
                fresh.setdefault((found.thread, found.depth), []).append(found)
        self._told[pid] = told
        joined: list[Mark] = []
        for _, marks in sorted(fresh.items()):
            joined += _joined(sorted(marks, key=attrgetter("start")), pause)
        for mark in joined:
            pause()
            key = _key(mark)
            self._kept.pop(key, None)  # so that the latest ones stand last
            self._kept[key] = mark
        return joined

    def forget(self, now: float) -> None:
        """Let go of what is too long ago, or too much."""
        pause = Courtesy()
        least = now - self._seconds
        surplus = len(self._kept) - self._most
        gone = []
        for place, (key, mark) in enumerate(self._kept.items()):
            pause()
            if place < surplus or mark.stop < least:
                gone.append(key)
        for key in gone:
            del self._kept[key]
        for pid, told in list(self._told.items()):
            if not told or next(reversed(told.values())) < least:
                del self._told[pid]

    def all(self) -> list[Mark]:
        """Those that are kept, the latest ones last."""
        return list(self._kept.values())


def _mark(pid: int, entry: Mapping[str, Any]) -> Mark:
    start, stop = number(entry["start"]), number(entry["stop"])
    thread, job = integer(entry["thread"]), integer(entry["job"])
    name, kind, depth = printable(text(entry["name"])), text(entry["kind"]), nesting(entry["depth"])
    lent, failed = bool(entry["lent"]), bool(entry["failed"])
    return Mark(pid, thread, job, name, kind, lent, start, stop, 1, depth, failed)


def _key(mark: Mark) -> tuple[object, ...]:
    several = mark.jobs > 1
    return mark.pid, mark.thread, mark.depth, mark.job, mark.kind, mark.lent, mark.start, several


def _joined(entries: list[Mark], pause: Courtesy) -> list[Mark]:
    """The entries, which are in order, with short ones that follow each other as one."""
    found: list[Mark] = []
    for each in entries:
        pause()
        last = found[-1] if found else None
        if (
            last is not None
            and (last.thread, last.kind, last.lent) == (each.thread, each.kind, each.lent)
            and _is_short(each)
            and (last.jobs > 1 or _is_short(last))
            and each.start - last.stop <= SHORT_SECONDS
            and each.stop - last.start <= JOINED_SECONDS
        ):
            stop = max(last.stop, each.stop)
            failed = last.failed or each.failed
            found[-1] = last._replace(stop=stop, job=0, jobs=last.jobs + 1, failed=failed)
        else:
            found.append(each)
    return found


def _is_short(mark: Mark) -> bool:
    return mark.stop - mark.start < SHORT_SECONDS
