# SPDX-License-Identifier: MIT
# The calls that run one job: awaited, in a thread, and dry.
"""Running a job and waiting until all of it is done, or all of it is undone."""

from __future__ import annotations

import contextlib
from typing import Any, TypeVar, cast

from aioktask.engine.api.coordinator import Coordinator
from aioktask.engine.api.interrupts import Interrupts, interrupts_cancel
from aioktask.engine.api.process import current_pool
from aioktask.engine.api.submission import (
    Nested,
    OnBehalf,
    checked_job,
    needed_loop,
    new_run,
    nice_of_waiter,
    remembered,
)
from aioktask.engine.helpers import Caller
from aioktask.engine.loops.loop import refuse_running_loop, wait_over, wait_over_shielded
from aioktask.engine.plan import Plan, make_plan, with_learned
from aioktask.engine.state import record as accounts
from aioktask.engine.state.dispatch import RunGroup
from aioktask.engine.state.run import Run
from aioktask.engine.state.stint import enclosing_run, local
from aioktask.engine.threads.pool import Pool
from aioktask.job import Job, Report, set_failure, told_of

T = TypeVar("T")

# Nobody is waited on behalf of: made once, since this is on the path of every short job.
_NOBODY = contextlib.nullcontext()


async def run_multithreaded(job: Job[T], *, coordinator: Coordinator | None = None) -> Report[T]:
    """Run a job on helper threads and wait until all of it is done, or all of it is undone.

    The event loop (asyncio, uvloop or trio) stays free meanwhile.

    Args:
        job: What to run.
        coordinator: Whose cap applies and who may cancel it. By default that of the chunk that
            this is called for, else none.

    Returns:
        The report, with `value` what `reduce` made.

    Raises:
        BaseException: What the first failing chunk raised, as it is, with a note that names the job
            and the chunk; `failure` tells the rest. Chunks that were done have been undone if there
            is an `undo`.
        UndoFailed: An undo raised: part of the work is still there.
        JobCancelled: The coordinator ended the job.
        TypeError: `job` is no Job.
        RuntimeError: No event loop runs here, or the coordinator takes no more jobs.

    **Cancellation.** This is always a checkpoint: in a scope that is cancelled already nothing
    starts. Cancelled while it waits: no new chunk begins, running chunks finish, what was done is
    undone, and then the cancellation goes on; further cancels change nothing. `UndoFailed` takes
    the place of a cancellation, so a timeout does not swallow it.

    >>> import asyncio
    >>> from aioktask import Job
    >>> job = Job(lambda start, stop: sum(range(start, stop)), 1000, reduce=lambda a, b: a + b)
    >>> asyncio.run(run_multithreaded(job)).value
    499500
    """
    pool = current_pool()
    loop = needed_loop(pool, "run_multithreaded()")
    await loop.checkpoint_if_cancelled()
    outer = enclosing_run()
    group = _group(coordinator, outer)
    run = new_run(pool, group, job, loop, parent=outer, hold=True)
    nice = run.entry.nice if outer is None else nice_of_waiter(outer, run)
    waiter = loop.waiter(nice, lost=None if not run.hold else _Abandoned(pool, run))
    with _NOBODY if outer is None else OnBehalf(pool, outer, run):
        pool.submit(run, waiter=waiter, nested=outer is not None and outer.entry.group is group)
        try:
            await waiter.wait()
            while not (pool.commit(run) if run.hold else run.over):
                await wait_over(pool, loop, run, nice)
        except GeneratorExit:
            pool.cancel_soon(run)
            raise
        except BaseException as cancellation:
            pool.cancel(run)
            await wait_over_shielded(pool, loop, run, nice)
            _raise_failed_undo_of(pool, run, cancellation)
            raise
    return cast("Report[T]", pool.result(run))


def run_multithreaded_sync(job: Job[T], *, coordinator: Coordinator | None = None) -> Report[T]:
    """Run a job, the calling thread taking chunks too, until all is done or all is undone.

    For scripts, and for nested jobs inside a chunk: to any depth, since no free helper is needed.

    Args:
        job: What to run. Its `undo` must be a plain function: no loop runs here.
        coordinator: As in `run_multithreaded`.

    Returns:
        The report.

    Raises:
        BaseException: What the first failing chunk raised, as in `run_multithreaded`.
        UndoFailed: An undo raised: part of the work is still there.
        JobCancelled: The coordinator ended the job.
        KeyboardInterrupt: Ctrl-C in the main thread, after the undo. A second one gives up: it
            names what is left, and helpers end the undo in the background.
        RuntimeError: This thread runs an event loop, or the coordinator takes no more jobs.
        TypeError: `job` is no Job, or its undo is a coroutine function.

    >>> from aioktask import Job
    >>> run_multithreaded_sync(Job(max, 10, reduce=max, chunk=2)).value
    10
    """
    refuse_running_loop("run_multithreaded_sync()", "await run_multithreaded(job) instead")
    pool = current_pool()
    frame = local.frame
    parent = None if frame is None else frame.run
    group = _group(coordinator, parent)
    run = new_run(pool, group, job, None, parent=parent, hold=True)
    caller = Caller(nice_of_waiter(parent, run), frame)
    with interrupts_cancel(pool, run, caller) as asked:
        nested = parent is not None and parent.entry.group is group
        pool.submit(run, waiter=caller, caller=caller, nested=nested)
        try:
            with Nested(pool, parent, run):
                pool.take_part(run, caller, given_up=lambda: asked.given_up)
                while not (asked.given_up or asked.cancelled) and not pool.commit(run):
                    pool.take_part(run, caller, given_up=lambda: asked.given_up)
                if asked.cancelled:
                    pool.cancel(run)
                    pool.take_part(run, caller, given_up=lambda: asked.given_up)
        except BaseException as error:
            # A signal handler raised here: the second Ctrl-C, or one of the application's own.
            pool.cancel(run)
            if not asked.given_up:
                _wait_out(pool, run, caller, asked)
                _raise_failed_undo_of(pool, run, error)
                raise
        if asked.given_up and not run.over:
            asked.raised = True
            raise KeyboardInterrupt(_what_is_left(pool, run))
        if asked.cancelled:
            interrupt = KeyboardInterrupt()
            told = told_of(run.cancellation())
            if told is not None:
                set_failure(interrupt, told)
            asked.raised = True
            _raise_failed_undo_of(pool, run, interrupt)
            raise interrupt
    if parent is not None and run.cancelled and parent.unwanted():
        # A chunk of this run noticed that the enclosing job wants no more work: go on with that.
        assert frame is not None
        _raise_failed_undo_of(pool, run, run.cancellation())
        frame.check_cancelled()
    return cast("Report[T]", pool.result(run))


def plan(job: Job[Any], *, coordinator: Coordinator | None = None) -> Plan:
    """How a job would be run now, without running it.

    Where an earlier run of the function left what it learned, that is where this one would begin.
    Else the numbers are those of padata's rule, and what is learned changes them.

    Args:
        job: The job.
        coordinator: Whose cap applies.

    >>> from aioktask import Job
    >>> plan(Job(print, 100, chunk=30, max_threads=1)).chunks
    4
    """
    pool = current_pool()
    pool.around.refresh()
    caps = [(pool.around.cap.threads, f"the process: {pool.around.cap.reason}")]
    share = pool.around.share
    if share is not None and share < pool.around.cap.threads:
        name = pool.around.tunables.share
        caps.append((max(share, 1), f"what other busy processes leave of the slots {name!r}"))
    if coordinator is not None and coordinator.max_threads is not None:
        cap = coordinator.max_threads
        caps.append((cap, f"the coordinator's max_threads={cap}"))
    made = make_plan(checked_job(job), caps)
    group = _group(coordinator, None) if coordinator is not None else pool.state.root
    lesson = remembered(job, made.threads, group, pool)
    return made if lesson is None else with_learned(made, job, *lesson)


class _Abandoned:
    """Called when a loop dropped the wake-up of a run's owner, so nobody will take the result."""

    __slots__ = ("_pool", "_run")

    def __init__(self, pool: Pool, run: Run) -> None:
        self._pool = pool
        self._run = run

    def __call__(self) -> None:
        self._pool.cancel_soon(self._run)


def _group(coordinator: Coordinator | None, outer: Run | None) -> RunGroup:
    if coordinator is not None:
        return coordinator.scope()[1]
    if outer is not None:
        group = outer.entry.group
        assert isinstance(group, RunGroup)
        return group
    return current_pool().state.root


def _raise_failed_undo_of(pool: Pool, run: Run, cause: BaseException) -> None:
    with pool.lock:
        failed = run.undo_failed
        run.told = run.told or failed
    if failed:
        assert run.verdict is not None
        run.verdict.__cause__ = cause
        raise run.verdict


def _wait_out(pool: Pool, run: Run, caller: Caller, asked: Interrupts) -> None:
    """See a cancelled run to its end, whatever signal handlers raise meanwhile."""
    while not (run.over or asked.given_up):
        with contextlib.suppress(BaseException):
            pool.take_part(run, caller, given_up=lambda: asked.given_up)


def _what_is_left(pool: Pool, run: Run) -> str:
    with pool.lock:
        left = accounts.left(run)
    ranges = ", ".join(f"{each.start} to {each.stop}" for each in left) or "nothing"
    return f"gave up waiting for the job {run.job.name!r}; may be done and not undone yet: {ranges}"
