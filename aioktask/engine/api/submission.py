# SPDX-License-Identifier: MIT
# From a job to a run, and how a caller waits for one: what running a job, a handle and a
# coordinator have in common.
"""Submitting and waiting."""

from __future__ import annotations

import sys
from contextvars import Context, copy_context
from functools import partial
from threading import TIMEOUT_MAX
from typing import Any

from aioktask.engine.helpers import ThreadWaiter
from aioktask.engine.lessons import key_of
from aioktask.engine.loops.loop import Loop, running_loop
from aioktask.engine.plan import CHUNKS_PER_THREAD, split, undo_grain
from aioktask.engine.priority import submitted_nice, waiter_nice
from aioktask.engine.scaling import Scaling
from aioktask.engine.sizing import Sizes
from aioktask.engine.state.dispatch import RunGroup
from aioktask.engine.state.run import Run
from aioktask.engine.state.stint import enclosing_run, local
from aioktask.engine.threads.pool import Pool
from aioktask.job import Job


def new_run(
    pool: Pool,
    group: RunGroup,
    job: Job[Any],
    loop: Loop | None,
    *,
    parent: Run | None,
    hold: bool,
) -> Run:
    if checked_job(job).undo_is_async and loop is None:
        raise TypeError(
            f"the undo of the job {job.name!r} is a coroutine function, which runs on the loop "
            "that is running at submit, and none is: pass an ordinary function"
        )
    nice = submitted_nice(_own_nice(job, group, pool))
    cap = pool.around.cap.threads if group.cap is None else min(pool.around.cap.threads, group.cap)
    cut = split(job, cap)
    wanted = learns(job, group, pool)
    key = lesson = sizes = scaling = None
    if wanted != "nothing" and job.size > CHUNKS_PER_THREAD * undo_grain(job):
        if remembers(job, group, pool):
            key = key_of(job, cut.threads)
            lesson = pool.state.lessons.get(key)
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
    run = Run(
        job,
        cut,
        group=group,
        nice=nice,
        context=_context_for_threads(),
        loop=loop,
        parent=parent,
        hold=hold,
        sizes=sizes,
        scaling=scaling,
        key=key,
        lessons=pool.state.lessons,
    )
    run.entry.gives_way = pool.around.gives_way(nice, group)
    return run


def _own_nice(job: Job[Any], group: RunGroup, pool: Pool) -> int:
    """The job's nice, where its coordinator or the process does not set another one."""
    for said in (group.tunables.get("nice"), pool.around.tunables.nice):
        if said is not None:
            return int(said)
    return job.nice


def learns(job: Job[Any], group: RunGroup, pool: Pool) -> str:
    """What the job finds out while it runs: what it says, its coordinator, or the process."""
    if job.learn is not None:
        return job.learn
    if job.chunk is not None:
        return "nothing"
    return str(group.tunables.get("learn", pool.around.tunables.learn))


def remembers(job: Job[Any], group: RunGroup, pool: Pool) -> bool:
    if job.remember is not None:
        return job.remember
    return bool(group.tunables.get("remember", pool.around.tunables.remember))


def remembered(
    job: Job[Any], threads: int, group: RunGroup, pool: Pool
) -> tuple[int | None, int | None] | None:
    """The chunk size and the number of threads that a run would begin with, where it is known."""
    wanted = learns(job, group, pool)
    if wanted == "nothing" or not remembers(job, group, pool):
        return None
    lesson = pool.state.lessons.get(key_of(job, threads))
    if lesson is None:
        return None
    chunk = level = None
    if lesson.sizes is not None and wanted != "threads" and job.reduce is None:
        chunk = Sizes(job.size, undo_grain(job), threads, lesson.sizes).chunk
    if lesson.scaling is not None and wanted != "chunk":
        level = lesson.scaling.for_next_run(threads).level
    return chunk, level


def checked_job(job: object) -> Job[Any]:
    if not isinstance(job, Job):
        raise TypeError(f"a Job is needed, got {job!r}")
    return job


def _context_for_threads() -> Context:
    """A copy of the context, without the mark that some libraries leave of the running loop."""
    context = copy_context()
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None and context.get(sniffio.current_async_library_cvar) is not None:
        context.run(sniffio.current_async_library_cvar.set, None)
    return context


def nice_of_waiter(outer: Run | None, run: Run) -> int:
    """What the waiter itself lends: nothing inside a chunk, since that chunk's job lends."""
    return run.entry.nice if outer is not None else waiter_nice(None, run.entry.nice)


def needed_loop(pool: Pool, what: str) -> Loop:
    loop = running_loop(pool)
    if loop is None:
        raise RuntimeError(f"{what} needs a running event loop: asyncio, uvloop or trio")
    return loop


class OnBehalf:
    """While a task waits for a run on behalf of a chunk, the run may have one helper more."""

    __slots__ = ("_awaited", "_pool", "_waiting")
    detect = False

    def __init__(self, pool: Pool, waiting: Run | None, awaited: Run) -> None:
        self._pool = pool
        self._waiting = waiting
        self._awaited = awaited

    def __enter__(self) -> None:
        if self._waiting is not None:
            self._pool.begin_wait(self._waiting, self._awaited, detect=self.detect)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._waiting is None:
            return
        end = partial(self._pool.end_wait, self._waiting, self._awaited, detect=self.detect)
        if kind is GeneratorExit:  # the collector may be at work here, in a thread with the lock
            self._pool.keeper.soon(end)
        else:
            end()


class Nested(OnBehalf):
    """While a chunk itself waits for a run: the same, and cycles of such waits are found."""

    __slots__ = ()
    detect = True


def wait_in_thread(pool: Pool, run: Run, timeout: float | None, *, watches: bool = False) -> None:
    outer = enclosing_run()
    waiter = ThreadWaiter(nice_of_waiter(outer, run))
    # A thread that the chunk started, with a copy of its context, waits on behalf of it, but not
    # surely in its place.
    kind = OnBehalf if local.frame is None else Nested
    patience = -1 if timeout is None else min(max(timeout, 0), TIMEOUT_MAX)
    with kind(pool, outer, run):
        try:
            while pool.add_waiter(run, waiter, watches=watches):
                if not pool.wait_parked(waiter, patience):
                    raise TimeoutError(f"the job {run.job.name!r} is not over after {timeout} s")
        finally:
            pool.remove_waiter(run, waiter)
