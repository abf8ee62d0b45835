# SPDX-License-Identifier: MIT
# How a job becomes a run, and how a thread waits for one: what `run_job`, `handle` and
# `coordinator` have in common.
"""Submitting and waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from threading import TIMEOUT_MAX
from typing import Any

from aioktask.checks import name_of, seconds
from aioktask.engine.loops.coroutine_undo import UndoLoop
from aioktask.engine.loops.loop import Loop, running_loop
from aioktask.engine.machine.imported import imported
from aioktask.engine.priority import MOST_NICE, submitted_nice
from aioktask.engine.ranges.plan import facts_of
from aioktask.engine.state import callers, waiting
from aioktask.engine.state.current import enclosing_stint, local, refuse_own, refuse_waiting
from aioktask.engine.state.group import RunGroup
from aioktask.engine.state.run import Run
from aioktask.engine.state.settings import admission_limits, own_nice, traces
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.terms import Terms
from aioktask.engine.state.workers import Caller, ThreadWaiter
from aioktask.engine.threads.pool import Pool
from aioktask.job import Job


def new_run(
    pool: Pool,
    group: RunGroup,
    job: Job[Any],
    loop: Loop | None,
    *,
    parent: Stint | None,
    owned: bool,
    timeout: float | None = None,
) -> Run:
    """A run of the job, for a turn to take in.

    Args:
        pool: Of the process.
        group: Of its coordinator.
        job: What to run.
        loop: Where a coroutine undo runs.
        parent: The stint of the chunk in which, or on behalf of which, it is awaited.
        owned: Whether one call waits for it and will take the result.
        timeout: How long it may take from now on, in seconds, undo apart; None for any time.

    Raises:
        TypeError: `job` is no Job, or its coroutine undo has no loop to run on; `timeout` is no
            number.
        ValueError: `timeout` is negative or not finite.
    """
    undo_loop = None
    if facts_of(checked_job(job)).undo_is_async:
        if loop is None:
            raise TypeError(
                f"the undo of the job {job.name!r} is a coroutine function, which runs on the loop "
                "that is running at submit, and none is: pass an ordinary function"
            )
        undo_loop = UndoLoop(pool, loop)
    tunables = pool.adapter.tunables
    run = Run(
        job,
        group,
        nice=submitted_nice(own_nice(job, group, tunables)),
        context=_context_for_threads(),
        loop=undo_loop,
        parent=parent,
        owned=owned,
    )
    # Asked first whether anything is set at all, since nearly always nothing is.
    if (
        timeout is not None
        or group.tunables
        or tunables.max_queued is not None
        or tunables.max_wait is not None
    ):
        most_queued, max_wait = admission_limits(group, tunables)
        if most_queued is not None or max_wait is not None or timeout is not None:
            run.terms = Terms(
                group.gate,
                pool.deadlines,
                most_queued,
                max_wait,
                None if timeout is None else seconds("timeout", timeout),
            )
    if traces(job, group, tunables):
        run.have_traced()
    return run


def checked_job(job: object) -> Job[Any]:
    """`job`, if it is one.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(job, Job):
        how = f": make one of it, Job({name_of(job)}, size)" if callable(job) else ""
        if runs_by := getattr(type(job), "runs_by", ""):  # of a job for other processes
            how = f": run it by {runs_by}"
        raise TypeError(f"a Job is needed, got {job!r}{how}")
    return job


def _context_for_threads() -> Context:
    """A copy of the context, without the mark that some libraries leave of the running loop."""
    context = copy_context()
    sniffio = imported("sniffio")
    if sniffio is not None and context.get(sniffio.current_async_library_cvar) is not None:
        context.run(sniffio.current_async_library_cvar.set, None)
    return context


def nice_of_waiter(outer: Stint | None, run: Run) -> int:
    """The nice that a waiter lends the run: the highest inside a chunk, whose job lends instead."""
    return MOST_NICE if outer is not None else submitted_nice(run.nice)


def needed_loop(what: str) -> Loop:
    """The loop that runs on this thread.

    Raises:
        RuntimeError: No loop does.
    """
    loop = running_loop()
    if loop is None:
        raise RuntimeError(f"{what} needs a running event loop: asyncio, uvloop or trio")
    return loop


def is_main_thread() -> bool:
    """Whether signal handlers run on the calling thread."""
    return threading.get_ident() == threading.main_thread().ident


def park_until(
    pool: Pool, waiter: ThreadWaiter, done: Callable[[], bool], timeout: float | None
) -> bool:
    """Wait in this thread until `done()` is true; False when `timeout` seconds passed instead.

    Raises:
        DeadlockError: The wait would never end.
    """
    patience = None if timeout is None else min(max(timeout, 0), TIMEOUT_MAX)
    until = None if patience is None else time.monotonic() + patience
    may_turn = not is_main_thread()
    while not done():
        if waiter.refused is not None:
            raise waiter.refused
        if may_turn:
            pool.turn_on_caller()
            if done() or waiter.refused is not None:
                continue
        left = -1.0 if until is None else max(until - time.monotonic(), 0)
        if not pool.wait_parked(waiter, left) and not done():
            return False
    return True


def wait_in_thread(pool: Pool, run: Run, timeout: float | None) -> None:
    """Wait in this thread until the run is over.

    Raises:
        TimeoutError: `timeout` seconds passed instead.
        DeadlockError: The run would never be over: it waits for the calling chunk's job.
        RuntimeError: The calling code runs inside the engine, where nothing may wait.
    """
    if run.over:
        return
    refuse_waiting("waiting for a job")
    refuse_own((run,))
    outer = enclosing_stint()
    waiter = ThreadWaiter(nice_of_waiter(outer, run))
    # Only on the chunk's own thread does the chunk itself wait. A thread that it started, with a
    # copy of its context, waits on its behalf, while the chunk may go on.
    detects = local.stint is not None
    try:
        pool.post(waiting.add_waiter, run, waiter, outer, detects)
        if not park_until(pool, waiter, lambda: run.over, timeout):
            raise TimeoutError(f"the job {run.name!r} is not over after {timeout} s")
    finally:
        if not run.over:
            pool.post(waiting.remove_waiter, run, waiter)


def run_here(pool: Pool, run: Run, caller: Caller, *, nested: bool) -> None:
    """Submit a run that nobody owns, and serve it in this thread until it is over.

    Raises:
        RuntimeError: It was refused, see `Pool.submit`; or this is inside the engine, where nothing
            may wait.
        BaseException: What struck this thread from outside; the run was cancelled, and is over.
    """
    refuse_waiting("serving a job")
    try:
        with caller.present:
            pool.submit(run, waiter=caller, caller=caller, nested=nested, detects=True)
            pool.take_part(run, caller)
    except BaseException as error:
        if not (run.over or run.refused):
            see_to_its_end(pool, run, caller, error, given_up=lambda: False)
        raise
    finally:
        del run, caller  # which the exception's traceback leads to


def see_to_its_end(
    pool: Pool, run: Run, caller: Caller, error: BaseException, *, given_up: Callable[[], bool]
) -> None:
    """Take no further part, cancel the run, and wait for its end, whatever strikes meanwhile."""
    waiter = ThreadWaiter(caller.nice)
    left = False
    while not run.ended:
        try:
            if not left:
                caller.quits = True
                pool.post(callers.caller_left, run, caller, error)
                pool.cancel(run)
                pool.post(waiting.add_waiter, run, waiter, None, False)
                left = True
            if given_up():
                return
            park_until(pool, waiter, lambda: run.ended or given_up(), None)
        except BaseException:  # the first one is what is told
            continue
