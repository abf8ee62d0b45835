# SPDX-License-Identifier: MIT
# The await shell: what a program calls. Everything that changes is in the pool; here one waits.
"""Running jobs and waiting for them."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextvars import Context, copy_context
from types import TracebackType
from typing import Any, Generic, SupportsIndex, TypeVar, cast

from aioktask.engine.frame import Frame, enclosing_frame, local
from aioktask.engine.helpers import Caller, ThreadWaiter
from aioktask.engine.interrupt import interrupts_cancel
from aioktask.engine.plan import Plan, make_plan, most_threads, split
from aioktask.engine.pool import Pool, RunGroup
from aioktask.engine.priority import submitted_nice, waiter_nice
from aioktask.engine.process import current_pool
from aioktask.engine.run import Run
from aioktask.engine.wakeup import (
    Loop,
    refuse_running_loop,
    running_loop,
    wait_over,
    wait_over_shielded,
)
from aioktask.errors import UndoFailed
from aioktask.job import Job, Progress, Report, integer, nice_value, set_failure, told_of

T = TypeVar("T")


class Handle(Generic[T]):
    """A job that was submitted: await it, or ask about it, from any loop or thread.

    Awaiting a handle is only waiting. **Cancellation**: a cancelled waiter is detached and the job
    goes on. Any number of waiters get the same report, or the same exception.

    >>> import asyncio
    >>> from aioktask import Coordinator, Job
    >>> async def main():
    ...     async with Coordinator() as coordinator:
    ...         handle = coordinator.submit(Job(lambda start, stop: None, 100))
    ...         await handle
    ...         return handle.progress().done
    >>> asyncio.run(main())
    100
    """

    def __init__(self, pool: Pool, run: Run) -> None:
        self._pool = pool
        self._run = run

    def __repr__(self) -> str:
        return f"<Handle of {self._run.job.name!r}: {self._run.phase.value}>"

    @property
    def job(self) -> Job[T]:
        """The job."""
        return self._run.job

    @property
    def nice(self) -> int:
        """The job's nice now."""
        return self._run.entry.nice

    @property
    def max_threads(self) -> int:
        """The most threads for this job. May be set while it runs: those above stop at a chunk."""
        return self._run.entry.limit

    @max_threads.setter
    def max_threads(self, threads: SupportsIndex) -> None:
        limit = integer("max_threads", threads, least=1)
        self._own_pool().set_run_limit(self._run, limit)

    def renice(self, nice: SupportsIndex) -> None:
        """Change the job's share from the next chunk boundary on.

        Raises:
            TypeError, ValueError: `nice` is no integer, or not from -20 to 19.
            RuntimeError: The handle belongs to the parent of this forked process.
        """
        self._own_pool().renice(self._run, nice_value("nice", nice))

    def cancel(self) -> bool:
        """End the job: no new chunk, running chunks finish, undo runs; does not wait for any of it.

        Whoever waits gets `JobCancelled`. May be called from any thread, any number of times.

        Returns:
            Whether it came in time: False when the job was over, or failing, before.

        Raises:
            RuntimeError: The handle belongs to the parent of this forked process.
        """
        return self._own_pool().cancel(self._run)

    def done(self) -> bool:
        """Whether the job is over, undo included."""
        return self._run.over

    def progress(self) -> Progress:
        """Where the job stands.

        Raises:
            RuntimeError: The handle belongs to the parent of this forked process.
        """
        pool = self._own_pool()
        with pool.lock:
            return self._run.progress()

    def result(self, timeout: float | None = None) -> Report[T]:
        """Wait in this thread until the job is over.

        Args:
            timeout: Seconds, or None for any time.

        Returns:
            The job's report.

        Raises:
            TimeoutError: The time passed; the job goes on.
            DeadlockError: The calling chunk's job is one that this job waits for.
            RuntimeError: This thread runs an event loop, or the handle is a forked parent's.
            JobCancelled, UndoFailed: How the job ended; or the exception of its first failed chunk.
        """
        pool = self._own_pool()
        if not self._run.over:
            refuse_running_loop("Handle.result()", "await the handle instead")
            _wait_in_thread(pool, self._run, timeout)
        return cast("Report[T]", pool.result(self._run))

    def __await__(self) -> Generator[Any, None, Report[T]]:
        return self._wait().__await__()

    async def _wait(self) -> Report[T]:
        pool = self._own_pool()
        loop = _needed_loop(pool, "awaiting a handle")
        await loop.checkpoint_if_cancelled()
        run = self._run
        outer = enclosing_frame()
        with _OnBehalf(pool, outer, run):
            await wait_over(pool, loop, run, _waiter_nice(outer, run))
        return cast("Report[T]", pool.result(run))

    def _own_pool(self) -> Pool:
        if self._pool.dead:
            raise RuntimeError(
                f"the job {self._run.job.name!r} belongs to the parent of this forked process, "
                "which has no part in it"
            )
        return self._pool


class Coordinator:
    """A scope that owns jobs: none outlives it.

    Use it with ``async with`` (a server's lifespan) or, in a thread without a loop, with plain
    ``with``. Leaving it normally waits for its jobs; leaving it by an exception cancels them and
    waits until they are undone. After that `submit` is refused.

    A job that failed and that nobody awaits is told in an event; leaving raises only the
    `UndoFailed` of a job that nobody waited for.

    **Cancellation** while leaving cancels the jobs, waits until they are undone, and goes on.

    Args:
        max_threads: The most helpers for its jobs together, below the process's limit.

    Raises:
        TypeError, ValueError: `max_threads` is no integer, or below 1.
    """

    def __init__(self, max_threads: SupportsIndex | None = None) -> None:
        self._cap = _cap(max_threads)
        self._pool: Pool | None = None
        self._group = RunGroup(self._cap)

    def __repr__(self) -> str:
        return f"<Coordinator max_threads={self._cap} jobs={len(self._group.runs)}>"

    @property
    def max_threads(self) -> int | None:
        """The cap. May be set while jobs run: helpers above it stop at the next chunk boundary."""
        return self._cap

    @max_threads.setter
    def max_threads(self, threads: SupportsIndex | None) -> None:
        self._cap = _cap(threads)
        pool, group = self._scope()
        pool.set_group_cap(group, self._cap)

    def submit(self, job: Job[T]) -> Handle[T]:
        """Run a job, whether or not anyone waits for it.

        May be called from any thread; a job with a coroutine `undo` from a running loop only.

        Raises:
            RuntimeError: The coordinator was left or shut down, or the interpreter exits.
            TypeError: `job` is no Job, or its coroutine undo has no loop to run on.
        """
        pool, group = self._scope()
        loop = running_loop(pool)
        run = _new_run(pool, group, job, loop, parent=None, hold=False)
        outer = local.frame
        pool.submit(run, nested=outer is not None and outer.run.entry.group is group)
        return Handle(pool, run)

    async def shutdown(self, *, cancel: bool = False) -> None:
        """Take no more jobs and wait for those there are, cancelled first with `cancel`.

        **Cancellation** while it waits cancels the jobs, waits until they are undone, and goes on.

        Raises:
            UndoFailed: An undo failed, of a job that nobody waited for.
        """
        pool, group = self._scope()
        loop = _needed_loop(pool, "Coordinator.shutdown()")
        left = pool.shut(group, cancel=cancel)
        try:
            await loop.checkpoint_if_cancelled()
            for run in left:
                await wait_over(pool, loop, run, run.entry.nice, watches=True)
        except GeneratorExit:
            for run in left:
                pool.cancel_soon(run)
            raise
        except BaseException as error:
            for run in pool.shut(group, cancel=True):
                await wait_over_shielded(pool, loop, run, run.entry.nice, watches=True)
            _raise_undo_failed(pool, group, error)
            raise
        _raise_undo_failed(pool, group, None)

    async def __aenter__(self) -> Coordinator:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if exc is None:
            await self.shutdown()
            return
        pool, group = self._scope()
        loop = _needed_loop(pool, "leaving a coordinator")
        for run in pool.shut(group, cancel=True):
            await wait_over_shielded(pool, loop, run, run.entry.nice, watches=True)
        _raise_undo_failed(pool, group, exc)

    def __enter__(self) -> Coordinator:
        refuse_running_loop("leaving the coordinator", "use `async with`")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pool, group = self._scope()
        try:
            for run in pool.shut(group, cancel=exc is not None):
                _wait_in_thread(pool, run, None, watches=True)
        except BaseException as error:  # KeyboardInterrupt: a second one gives up
            for run in pool.shut(group, cancel=True):
                _wait_in_thread(pool, run, None, watches=True)
            _raise_undo_failed(pool, group, error)
            raise
        _raise_undo_failed(pool, group, exc)

    def _scope(self) -> tuple[Pool, RunGroup]:
        """The pool of this process and this coordinator's group in it: a new one after a fork."""
        pool = current_pool()
        if self._pool is not pool:
            if self._pool is not None:
                self._group = RunGroup(self._cap)
            self._pool = pool
        return pool, self._group


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
    undone, and then the cancellation goes on; further cancels change nothing. `UndoFailed` takes the
    place of a cancellation, so a timeout does not swallow it.

    >>> import asyncio
    >>> from aioktask import Job
    >>> job = Job(lambda start, stop: sum(range(start, stop)), 1000, reduce=lambda a, b: a + b)
    >>> asyncio.run(run_multithreaded(job)).value
    499500
    """
    pool = current_pool()
    loop = _needed_loop(pool, "run_multithreaded()")
    await loop.checkpoint_if_cancelled()
    outer = enclosing_frame()
    group = _group(coordinator, outer)
    parent = None if outer is None else outer.run
    run = _new_run(pool, group, job, loop, parent=parent, hold=True)
    nice = _waiter_nice(outer, run)
    waiter = loop.waiter(nice, lost=None if not run.hold else _Abandoned(pool, run))
    if parent is not None:
        pool.begin_wait(parent, run, detect=False)
    try:
        pool.submit(run, waiter=waiter, nested=parent is not None and parent.entry.group is group)
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
    finally:
        if parent is not None:
            pool.end_wait(parent, run, detect=False)
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
    outer = local.frame
    group = _group(coordinator, outer)
    parent = None if outer is None else outer.run
    run = _new_run(pool, group, job, None, parent=parent, hold=True)
    caller = Caller(_waiter_nice(outer, run))
    with interrupts_cancel(pool, run, caller) as asked:
        nested = parent is not None and parent.entry.group is group
        pool.submit(run, waiter=caller, caller=caller, nested=nested)
        try:
            with _Nested(pool, parent, run):
                pool.take_part(run, caller, given_up=lambda: asked.given_up)
                while not (asked.given_up or asked.cancelled) and not pool.commit(run):
                    pool.take_part(run, caller, given_up=lambda: asked.given_up)
                if asked.cancelled:
                    pool.cancel(run)
                    pool.take_part(run, caller, given_up=lambda: asked.given_up)
        except BaseException:
            # A signal handler raised here: the second Ctrl-C, or one of the application's own.
            pool.cancel(run)
            if not asked.given_up:
                raise
        if asked.given_up and not run.over:
            raise KeyboardInterrupt(_what_is_left(pool, run))
        if asked.cancelled:
            interrupt = KeyboardInterrupt()
            told = told_of(run.cancellation())
            if told is not None:
                set_failure(interrupt, told)
            _raise_failed_undo_of(pool, run, interrupt)
            raise interrupt
    if parent is not None and run.cancelled and parent.unwanted():
        # A chunk of this run noticed that the enclosing job wants no more work: go on with that.
        assert outer is not None
        _raise_failed_undo_of(pool, run, run.cancellation())
        outer.check_cancelled()
    return cast("Report[T]", pool.result(run))


def plan(job: Job[Any], *, coordinator: Coordinator | None = None) -> Plan:
    """How a job would be run now, without running it.

    Args:
        job: The job.
        coordinator: Whose cap applies.

    >>> from aioktask import Job
    >>> plan(Job(print, 100, chunk=30, max_threads=1)).chunks
    4
    """
    pool = current_pool()
    caps = [(pool.cap.threads, f"the process: {pool.cap.reason}")]
    if coordinator is not None and coordinator.max_threads is not None:
        cap = coordinator.max_threads
        caps.append((cap, f"the coordinator's max_threads={cap}"))
    return make_plan(_job(job), caps)


class _OnBehalf:
    """While a task waits for a run on behalf of a chunk, the run may have one helper more."""

    __slots__ = ("_awaited", "_pool", "_waiting")
    detect = False

    def __init__(self, pool: Pool, outer: Frame | None, awaited: Run) -> None:
        self._pool = pool
        self._waiting = None if outer is None else outer.run
        self._awaited = awaited

    def __enter__(self) -> None:
        if self._waiting is not None:
            self._pool.begin_wait(self._waiting, self._awaited, detect=self.detect)

    def __exit__(self, *exc: object) -> None:
        if self._waiting is not None:
            self._pool.end_wait(self._waiting, self._awaited, detect=self.detect)


class _Nested(_OnBehalf):
    """While a chunk itself waits for a run: the same, and cycles of such waits are found."""

    __slots__ = ()
    detect = True

    def __init__(self, pool: Pool, waiting: Run | None, awaited: Run) -> None:
        self._pool = pool
        self._waiting = waiting
        self._awaited = awaited


class _Abandoned:
    """Called when a loop dropped the wake-up of a run's owner, so nobody will take the result."""

    __slots__ = ("_pool", "_run")

    def __init__(self, pool: Pool, run: Run) -> None:
        self._pool = pool
        self._run = run

    def __call__(self) -> None:
        self._pool.cancel_soon(self._run)


def _new_run(
    pool: Pool,
    group: RunGroup,
    job: Job[Any],
    loop: Loop | None,
    *,
    parent: Run | None,
    hold: bool,
) -> Run:
    if _job(job).undo_is_async and loop is None:
        raise TypeError(
            f"the undo of the job {job.name!r} is a coroutine function, which runs on the loop "
            "that is running at submit, and none is: pass an ordinary function"
        )
    cap = pool.cap.threads if group.cap is None else min(pool.cap.threads, group.cap)
    return Run(
        job,
        split(job, cap),
        group=group,
        nice=submitted_nice(job.nice),
        context=_context_for_threads(),
        loop=loop,
        parent=parent,
        hold=hold,
    )


def _job(job: object) -> Job[Any]:
    if not isinstance(job, Job):
        raise TypeError(f"a Job is needed, got {job!r}")
    return job


def _cap(threads: object) -> int | None:
    return None if threads is None else integer("max_threads", threads, least=1)


def _context_for_threads() -> Context:
    """A copy of the context, without the mark that some libraries leave of the running loop."""
    context = copy_context()
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None and context.get(sniffio.current_async_library_cvar) is not None:
        context.run(sniffio.current_async_library_cvar.set, None)
    return context


def _group(coordinator: Coordinator | None, outer: Frame | None) -> RunGroup:
    if coordinator is not None:
        return coordinator._scope()[1]
    if outer is not None:
        group = outer.run.entry.group
        assert isinstance(group, RunGroup)
        return group
    return current_pool().root


def _waiter_nice(outer: Frame | None, run: Run) -> int:
    return waiter_nice(None if outer is None else outer.run.entry.nice, run.entry.nice)


def _needed_loop(pool: Pool, what: str) -> Loop:
    loop = running_loop(pool)
    if loop is None:
        raise RuntimeError(f"{what} needs a running event loop: asyncio, uvloop or trio")
    return loop


def _wait_in_thread(
    pool: Pool, run: Run, timeout: float | None, *, watches: bool = False
) -> None:
    outer = local.frame
    waiter = ThreadWaiter(_waiter_nice(outer, run))
    with _Nested(pool, None if outer is None else outer.run, run):
        try:
            while pool.add_waiter(run, waiter, watches=watches):
                if not pool.wait_parked(waiter, -1 if timeout is None else max(timeout, 0)):
                    raise TimeoutError(f"the job {run.job.name!r} is not over after {timeout} s")
        finally:
            pool.remove_waiter(run, waiter)


def _raise_failed_undo_of(pool: Pool, run: Run, cause: BaseException) -> None:
    with pool.lock:
        failed = run.undo_failed
        run.told = run.told or failed
    if failed:
        assert run.verdict is not None
        run.verdict.__cause__ = cause
        raise run.verdict


def _raise_undo_failed(pool: Pool, group: RunGroup, cause: BaseException | None) -> None:
    """Raise the undo failures that nobody waited for, as one."""
    with pool.lock:
        runs, group.undo_failed = group.undo_failed, []
    failures = [run.verdict for run in runs if not run.told and isinstance(run.verdict, UndoFailed)]
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise UndoFailed(
            f"undo of {len(failures)} jobs failed",
            failures,
            [each for failed in failures for each in failed.ranges],
        ) from cause


def _what_is_left(pool: Pool, run: Run) -> str:
    with pool.lock:
        left = run.what_is_left()
    ranges = ", ".join(f"{each.start} to {each.stop}" for each in left) or "nothing"
    return f"gave up waiting for the job {run.job.name!r}; may be done and not undone yet: {ranges}"
