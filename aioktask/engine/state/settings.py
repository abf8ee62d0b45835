# SPDX-License-Identifier: MIT
# What a job is to be run with: its nice, its terms, whether it gives way, learns and remembers.
#
# A job's own setting overrides its coordinator's, and that the process's. Only with the nice is it
# otherwise: the job's own holds where neither of the two sets one.
"""What is set for a job."""

from __future__ import annotations

from typing import Any, NamedTuple

from aioktask.engine.learning.lessons import Lesson
from aioktask.engine.lookups import look_up
from aioktask.engine.state.group import RunGroup
from aioktask.engine.tunables import Tunables
from aioktask.job import Job


def own_nice(job: Job[Any], group: RunGroup, tunables: Tunables) -> int:
    """The job's nice outside of blocks: its coordinator's, else the process's, else its own."""
    for nice in (look_up(group.tunables, "nice"), tunables.nice):
        if nice is not None:
            return int(nice)
    return job.nice


def admission_limits(group: RunGroup, tunables: Tunables) -> tuple[int | None, float | None]:
    """How many jobs of the group may wait for a thread, and how long one may wait to begin."""
    own = group.tunables
    queued: int | None = look_up(own, "max_queued", tunables.max_queued)
    wait: float | None = look_up(own, "max_wait", tunables.max_wait)
    return queued, wait


def gives_way(nice: int, group: RunGroup, tunables: Tunables) -> bool:
    """Whether a job of this nice leaves the CPUs to other processes."""
    return nice > 0 and bool(look_up(group.tunables, "give_way", tunables.give_way))


def learns(job: Job[Any], group: RunGroup, tunables: Tunables) -> str:
    """What the job finds out while it runs."""
    if job.learn is not None:
        return job.learn
    if job.chunk is not None:
        return "nothing"
    return str(look_up(group.tunables, "learn", tunables.learn))


def remembers(job: Job[Any], group: RunGroup, tunables: Tunables) -> bool | str:
    """Whether the job begins with what earlier runs learned, and leaves what it learns.

    Returns:
        Whether it does so within the process; or where on disk too: a directory, or `DISK`.
    """
    if job.remember is not None:
        return job.remember
    found: bool | str = look_up(group.tunables, "remember", tunables.remember)
    return found


def traces(job: Job[Any], group: RunGroup, tunables: Tunables) -> bool:
    """Whether it is kept which thread was at which part of the job when."""
    if job.trace is not None:
        return job.trace
    return bool(look_up(group.tunables, "trace", tunables.trace))


class Beginning(NamedTuple):
    """What a run would begin with.

    Attributes:
        chunk: Units of a chunk; None where that is not known.
        level: How many threads help; None where that is not known.
        holds_gil: Whether more are no help because the function holds the GIL.
    """

    chunk: int | None
    level: int | None
    holds_gil: bool


def beginning(
    job: Job[Any], threads: int, group: RunGroup, tunables: Tunables, lesson: Lesson
) -> Beginning:
    """What a run of the job would begin with after this lesson."""
    wanted = learns(job, group, tunables)
    chunk = level = None
    holds_gil = False
    if lesson.sizes is not None and wanted != "threads" and job.reduce is None:
        chunk = lesson.sizes.for_next_run(job.size).chunk
    if lesson.scaling is not None and wanted != "chunk":
        scaling = lesson.scaling.for_next_run(threads)
        level, holds_gil = scaling.level, scaling.holds_gil
    return Beginning(chunk, level, holds_gil)
