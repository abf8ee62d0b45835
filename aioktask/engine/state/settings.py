# SPDX-License-Identifier: MIT
# What a job is to be run with: its nice, whether it gives way, learns and remembers.
#
# A job's own setting overrides its coordinator's, and that the process's. Only with the nice is it
# otherwise: the job's own holds where neither of the two sets one.
"""What is set for a job."""

from __future__ import annotations

from typing import Any

from aioktask.engine.learning.lessons import Lessons, key_of
from aioktask.engine.state.group import RunGroup
from aioktask.engine.tunables import Tunables
from aioktask.job import Job


def own_nice(job: Job[Any], group: RunGroup, tunables: Tunables) -> int:
    """The job's nice outside of blocks: its coordinator's, else the process's, else its own."""
    for said in (group.tunables.get("nice"), tunables.nice):
        if said is not None:
            return int(said)
    return job.nice


def gives_way(nice: int, group: RunGroup, tunables: Tunables) -> bool:
    """Whether a job of this nice leaves the CPUs to other processes."""
    return nice > 0 and bool(group.tunables.get("give_way", tunables.give_way))


def learns(job: Job[Any], group: RunGroup, tunables: Tunables) -> str:
    """What the job finds out while it runs."""
    if job.learn is not None:
        return job.learn
    if job.chunk is not None:
        return "nothing"
    return str(group.tunables.get("learn", tunables.learn))


def remembers(job: Job[Any], group: RunGroup, tunables: Tunables) -> bool:
    """Whether the job begins with what earlier runs learned, and leaves what it learns."""
    if job.remember is not None:
        return job.remember
    return bool(group.tunables.get("remember", tunables.remember))


def remembered(
    job: Job[Any], threads: int, group: RunGroup, tunables: Tunables, lessons: Lessons
) -> tuple[int | None, int | None] | None:
    """The chunk size and the number of threads that a run would begin with, where it is known."""
    wanted = learns(job, group, tunables)
    if wanted == "nothing" or not remembers(job, group, tunables):
        return None
    lesson = lessons.get(key_of(job, threads))
    if lesson is None:
        return None
    chunk = level = None
    if lesson.sizes is not None and wanted != "threads" and job.reduce is None:
        chunk = lesson.sizes.for_next_run(job.size).chunk
    if lesson.scaling is not None and wanted != "chunk":
        level = lesson.scaling.for_next_run(threads).level
    return chunk, level
