# SPDX-License-Identifier: MIT
# The handle of a submitted job, by which a program asks about it and waits for it. All state that
# changes is in the pool.
"""Handles of submitted jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, SupportsIndex, TypeVar, cast

from aioktask.checks import integer, nice_value, seconds
from aioktask.engine.api.submission import needed_loop, nice_of_waiter, wait_in_thread
from aioktask.engine.api.watch import State, Watch, wait_and_look, wait_and_look_in_thread
from aioktask.engine.loops.loop import refuse_running_loop
from aioktask.engine.loops.waiting import wait_until, wait_until_shielded
from aioktask.engine.state import following, record, waiting
from aioktask.engine.state.current import enclosing_stint
from aioktask.engine.state.run import Run
from aioktask.engine.threads.pool import Pool
from aioktask.job import Job, Progress, Report, StreamProgress
from aioktask.markup import card
from aioktask.telling import counted, html_of, told
from aioktask.timeline import Timeline

T = TypeVar("T")


class Handle(Generic[T]):
    """A job that was submitted: await it, or ask about it, from any loop or thread.

    Awaiting a handle is only waiting. **Cancellation**: a cancelled waiter is detached and the job
    goes on. Any number of waiters get the same report, or the same exception.

    **Interruption.** `cancel`, `renice`, `max_threads`, `done`, `progress` and `watch` return at
    once, wherever they are called: in a signal handler, a finalizer, a weak reference callback or a
    listener of events too. `result` waits, so it is refused where the engine itself is interrupted.

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

    def __init__(self, pool: Pool, run: Run, job: Job[T]) -> None:
        self._pool = pool
        self._run = run
        self._job = job  # a run that is over lets go of it

    def __repr__(self) -> str:
        return f"<Handle of {self._run.name!r}: {self._run.phase.value}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        found = record.progress(self._run)  # also in a fork's child
        figures = [
            ("phase", found.phase),
            ("units", f"{counted(found.done)} of {counted(found.size)} done"),
            ("undone", counted(found.undone)),
            ("rate", f"{counted(round(found.rate))} units a second"),
            ("threads", found.threads),
            ("nice", self._run.nice),
        ]
        return card("Job", html_of(told(self._run.name, found)), figures=figures)

    @property
    def job(self) -> Job[T]:
        """The job."""
        return self._job

    @property
    def name(self) -> str:
        """The job's name."""
        return self._run.name

    @property
    def nice(self) -> int:
        """The job's nice, as it was asked for last."""
        return self._run.nice

    @property
    def max_threads(self) -> int:
        """The most threads for this job. May be set while it runs.

        Threads above a lower one stop at the next chunk boundary.
        """
        return self._run.limit

    @max_threads.setter
    def max_threads(self, threads: SupportsIndex) -> None:
        limit = integer("max_threads", threads, least=1)
        pool = self._own_pool()
        self._run.limit = limit
        pool.post_once((following.set_run_limit, self._run), following.set_run_limit, self._run)

    def renice(self, nice: SupportsIndex) -> None:
        """Change the job's nice: before it starts, while it runs or is undone, or after.

        The job's share among jobs changes at once. So does the nice of a helper's thread where this
        process may set it; else another helper takes over at the next chunk boundary. A loan from a
        waiter stays while it is more urgent. Of a job that is over only the number changes.

        Raises:
            TypeError, ValueError: `nice` is no integer, or not from -20 to 19.
            RuntimeError: The handle belongs to the parent of this forked process.
        """
        value = nice_value("nice", nice)
        self._own_pool().renice(self._run, value)

    def cancel(self) -> bool:
        """End the job without waiting: no chunk begins, running ones finish, and undo runs.

        Its waiters get `JobCancelled`. May be called from any thread, any number of times.

        Returns:
            Whether it came in time: False when the job was over, failing, or ended by its time
            before; True again for a job that an earlier cancel ended.

        Raises:
            RuntimeError: The handle belongs to the parent of this forked process.
        """
        return self._own_pool().cancel(self._run) and not self._run.expired

    def done(self) -> bool:
        """Whether the job is over, undo included, and the engine has let go of its function.

        So memory that the function holds may be closed once the job and its handles are gone. A job
        that was cancelled before it began is over at once, and is let go of a little later.

        Raises:
            RuntimeError: The handle belongs to the parent of this forked process.
        """
        self._own_pool()
        run = self._run
        if run.over:
            run.drop()  # whoever sees to that else may be just about to
            return True
        return run.never_starts

    def progress(self) -> Progress:
        """Where the job stands.

        Raises:
            RuntimeError: The handle belongs to the parent of this forked process.
        """
        self._own_pool()
        return record.progress(self._run)

    def timeline(self) -> Timeline | None:
        """Which thread has been at which part when, until now; None where the job has no `trace`.

        Raises:
            RuntimeError: The handle belongs to the parent of this forked process.
        """
        self._own_pool()
        return record.timeline(self._run)

    def watch(self, interval: float = 0.1) -> Watch[Progress]:
        """Where the job stands, again and again until it is over.

        Iterate over what this returns, with ``async for`` on any loop, or with ``for`` in a thread
        without one. The first state comes at once, then one each interval, and as soon as the job
        is over the last one, once. How the job ended is its `phase`: its exception is not raised
        here, and it is told in an event as long as nobody else waits for the job. A watch that is
        left early needs no closing.

        Args:
            interval: Seconds from one state to the next, above 0; longer where whoever iterates
                takes longer.

        Raises:
            TypeError, ValueError: `interval` is no number, or not above 0 and finite.
            RuntimeError: The handle belongs to the parent of this forked process; while iterating,
                too. ``async for`` finds no loop, or ``for`` finds one.
            DeadlockError: While iterating with ``for`` in a chunk that the job waits for.

        **Cancellation**: each state is a checkpoint; cancelled while it waits, the job goes on.

        >>> from aioktask import Coordinator, Job
        >>> with Coordinator() as coordinator:
        ...     handle = coordinator.submit(Job(lambda start, stop: None, 100))
        ...     for progress in handle.watch():
        ...         pass
        >>> progress.phase, progress.done, progress.eta
        ('finished', 100, 0.0)
        """
        return self.watch_by(self.progress, interval)

    def result(self, timeout: float | None = None) -> Report[T]:
        """Wait in this thread until the job is over.

        Args:
            timeout: How long to wait, in seconds; None for any time.

        Returns:
            The job's report.

        Raises:
            TypeError, ValueError: `timeout` is no number, negative or not finite.
            TimeoutError: The time passed; the job goes on.
            DeadlockError: The calling chunk's job is one that this job waits for.
            RuntimeError: This thread runs an event loop, or the handle is a forked parent's; or a
                finalizer or callback calls this inside the engine, where nothing may wait.
            JobCancelled, UndoFailed: How the job ended; or the exception of its first failed chunk.
        """
        try:
            patience = None if timeout is None else seconds("timeout", timeout)
            if not self._run.over:
                refuse_running_loop("Handle.result()", "await the handle instead")
                self.until_over_in_thread(patience)
            return self._outcome()
        finally:
            del self  # which an exception's traceback would lead to

    def __await__(self) -> Generator[Any, None, Report[T]]:
        return self._wait().__await__()

    async def _wait(self) -> Report[T]:
        try:
            await self.until_over()
            return self._outcome()
        finally:
            del self

    def _outcome(self) -> Report[T]:
        """The report, or how it ended, once it is over and has let go of its function."""
        try:
            self._own_pool()
            self._run.drop()
            return cast("Report[T]", self._run.result())
        finally:
            del self

    # For modules that stand on the engine: what a stream's own handle tells, a watch that reads
    # something else of the run, and waits that do not raise how the job ended.

    def stream_progress(self) -> StreamProgress:
        """Where the stream stands whose run this is the handle of."""
        self._own_pool()
        return record.stream_progress(self._run)

    def watch_by(self, read: Callable[[], State], interval: float) -> Watch[State]:
        """What `watch` returns, with `read()` in place of `progress`."""
        pause = seconds("interval", interval, may_be_zero=False)
        return Watch(self._own_pool(), self._run, read, pause)

    async def until_over(self) -> None:
        """Wait until the job is over, however it ends. A checkpoint."""
        pool = self._own_pool()
        loop = needed_loop("awaiting a handle")
        await loop.checkpoint_if_cancelled()
        run = self._run
        if run.over:
            return
        outer = enclosing_stint()
        waiter = loop.waiter(nice_of_waiter(outer, run))
        try:
            pool.post(waiting.add_waiter, run, waiter, outer, False)
            await wait_until(waiter, lambda: run.over)
        except BaseException:
            waiter.left = True
            pool.post(waiting.remove_waiter, run, waiter)
            raise

    def until_over_in_thread(self, timeout: float | None = None) -> None:
        """Wait in this thread until the job is over; raises as `result`, except how it ended."""
        wait_in_thread(self._own_pool(), self._run, timeout)

    async def until_over_shielded(self) -> asyncio.CancelledError | None:
        """Wait until the job is over, across any number of cancels; returns asyncio's first one."""
        pool = self._own_pool()
        loop = needed_loop("awaiting a handle")
        run = self._run
        waiter = loop.waiter(run.nice)
        pool.post(waiting.add_waiter, run, waiter, enclosing_stint(), False)
        return await wait_until_shielded(loop, waiter, lambda: run.over)

    def _own_pool(self) -> Pool:
        if self._pool.dead:
            raise RuntimeError(
                f"the job {self._run.name!r} belongs to the parent of this forked process, "
                "which has no part in it"
            )
        return self._pool


async def look_until_over(
    handles: Sequence[Handle[Any]], look: Callable[[], object], interval: float
) -> None:
    """Wait until all of these jobs are over, however they end, looking meanwhile. A checkpoint.

    Args:
        handles: One or more.
        look: Called each interval.
        interval: Seconds.
    """
    pool = _pool_of(handles)
    await wait_and_look(pool, _runs_of(handles), interval, _going_on(look), watches=False)


def look_until_over_in_thread(
    handles: Sequence[Handle[Any]], look: Callable[[], object], interval: float
) -> None:
    """As `look_until_over`, in this thread.

    Raises:
        DeadlockError: One of them waits for the calling chunk's job.
        RuntimeError: The calling code runs inside the engine, where nothing may wait.
    """
    pool = _pool_of(handles)
    wait_and_look_in_thread(pool, _runs_of(handles), interval, _going_on(look), watches=False)


def _pool_of(handles: Sequence[Handle[Any]]) -> Pool:
    return next(iter([each._own_pool() for each in handles]))


def _runs_of(handles: Sequence[Handle[Any]]) -> list[Run]:
    return [each._run for each in handles]


def _going_on(look: Callable[[], object]) -> Callable[[], bool]:
    def go_on() -> bool:
        look()
        return True

    return go_on
