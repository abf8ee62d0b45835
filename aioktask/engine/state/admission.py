# SPDX-License-Identifier: MIT
# What a run begins with: its split, and what is learned or remembered of its function.
#
# What a job says goes before what its coordinator says, and that before what the process says.
"""The beginning of runs."""

from __future__ import annotations

from typing import Any

from aioktask.engine.learning.lessons import Lesson, Lessons, key_of
from aioktask.engine.learning.scaling import Scaling
from aioktask.engine.learning.sizing import Sizes
from aioktask.engine.ranges.plan import CHUNKS_PER_THREAD, split, undo_grain
from aioktask.engine.state.group import RunGroup
from aioktask.engine.state.run import Run
from aioktask.engine.tunables import Tunables
from aioktask.job import Job


def begin_run(run: Run, cap: int, tunables: Tunables, lessons: Lessons) -> None:
    """Have the run begin under this cap of the process and its coordinator."""
    job, group = run.job, run.group
    cut = split(job, cap)
    wanted = learns(job, group, tunables)
    sizes = scaling = key = None
    if wanted != "nothing" and job.size > CHUNKS_PER_THREAD * undo_grain(job):
        lesson: Lesson | None = None
        if remembers(job, group, tunables):
            key = key_of(job, cut.threads)
            lesson = lessons.get(key)
        if wanted != "threads" and job.reduce is None:  # the leaves of a reduce are given
            known = None if lesson is None else lesson.sizes
            sizes = Sizes(job.size, undo_grain(job), cut.threads, known)
        if wanted != "chunk":
            known_scaling = None if lesson is None else lesson.scaling
            scaling = (
                Scaling(cut.threads)
                if known_scaling is None
                else known_scaling.for_next_run(cut.threads)
            )
    run.begin(cut, sizes=sizes, scaling=scaling, key=key, lessons=lessons)
    run.entry.gives_way = gives_way(run.nice, group, tunables)


def own_nice(job: Job[Any], group: RunGroup, tunables: Tunables) -> int:
    """The job's nice, where its coordinator or the process does not set another one."""
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
    """Whether the job begins with what was learned, and leaves what it learns."""
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
        chunk = Sizes(job.size, undo_grain(job), threads, lesson.sizes).chunk
    if lesson.scaling is not None and wanted != "chunk":
        level = lesson.scaling.for_next_run(threads).level
    return chunk, level
