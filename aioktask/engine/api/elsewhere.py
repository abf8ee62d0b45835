# SPDX-License-Identifier: MIT
# Jobs of this process that other processes work on. The engine does not run them; but whoever asks
# what jobs there are, or changes one by its number, need not know that.
#
# Guarantees that a job is seen once, under way or over, between its `add` and the time when many
# others have ended after it: what is kept of one that is over is there before it is taken out here.
# Relies on single steps of dictionaries and deques, and takes no lock: it may be called anywhere.
"""Jobs that run elsewhere."""

from __future__ import annotations

import dataclasses
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from aioktask.engine.copies import items_of
from aioktask.engine.state.dispatch import MOST_PAST
from aioktask.status import JobStatus

__all__ = ["Elsewhere", "add", "drop", "end", "find", "jobs_elsewhere", "open_elsewhere"]


class Elsewhere(Protocol):
    """A job that runs elsewhere.

    Attributes:
        number: Of this run in the process, one that no run of the engine has.
    """

    number: int

    def status(self) -> JobStatus:
        """How it stands. Called on any thread, in any line: it hardly waits, and raises nothing."""

    def cancel(self) -> bool:
        """End it without waiting; whether that came in time."""

    def renice(self, nice: int) -> object:
        """Change its nice, which was checked."""

    def has_begun(self) -> bool:
        """Whether its first chunk has. It never waits."""


_jobs: dict[int, Elsewhere] = {}
_past: deque[tuple[float, JobStatus]] = deque(maxlen=MOST_PAST)  # when it was over, and how


def _forget() -> None:
    """In a fork's child, which has no part in them. They may be locked, where there is no GIL."""
    global _jobs, _past
    _jobs, _past = {}, deque(maxlen=MOST_PAST)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def add(job: Elsewhere) -> None:
    """Have it be seen from now on."""
    _jobs[job.number] = job


def drop(job: Elsewhere) -> None:
    """It was not taken in, and is seen no more."""
    _jobs.pop(job.number, None)


def end(job: Elsewhere, status: JobStatus) -> None:
    """It is over, and this is how; all the times in it end now."""
    if job.number in _jobs:
        _past.append((time.monotonic(), status))
        _jobs.pop(job.number, None)


def find(number: int) -> Elsewhere | None:
    """The job of this number, if it is not over."""
    return _jobs.get(number)


def open_elsewhere() -> tuple[int, int]:
    """How many of them wait for their first chunk, and how many have begun."""
    there = list(_jobs.values())
    begun = sum(each.has_begun() for each in there)
    return len(there) - begun, begun


def jobs_elsewhere(
    pause: Callable[[], object] | None = None,
) -> tuple[list[JobStatus], list[JobStatus]]:
    """Those that are not over, and the last ones that are, as they stand.

    Args:
        pause: Called between two jobs, by who would not keep others from the GIL.
    """
    there = []
    for each in list(_jobs.values()):
        there.append(each.status())
        if pause is not None:
            pause()
    now = time.monotonic()
    over = [_aged(status, now - at) for at, status in items_of(_past)]
    known = {each.number for each in over}
    return [each for each in there if each.number not in known], over


def _aged(status: JobStatus, seconds: float) -> JobStatus:
    return dataclasses.replace(status, ended=seconds, age=status.age + seconds)
