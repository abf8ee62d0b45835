# SPDX-License-Identifier: MIT
# Handles, and the coordinators that own the jobs behind them. Everything that changes is in the
# pool; here one submits, asks and waits.
"""Jobs in the background, and the scope that owns them."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from types import TracebackType
from typing import Any, Generic, SupportsIndex, TypeVar, cast

from aioktask.checks import integer, nice_value
from aioktask.engine.api.process import current_pool
from aioktask.engine.api.submission import (
    OnBehalf,
    needed_loop,
    new_run,
    nice_of_waiter,
    wait_in_thread,
)
from aioktask.engine.loops.loop import (
    Loop,
    refuse_running_loop,
    running_loop,
    wait_over,
    wait_over_shielded,
)
from aioktask.engine.state import record as accounts
from aioktask.engine.state.dispatch import RunGroup
from aioktask.engine.state.run import Run
from aioktask.engine.state.stint import enclosing_run, local
from aioktask.engine.threads.pool import Pool
from aioktask.engine.tunables import TUNABLES, checked
from aioktask.errors import UndoFailed
from aioktask.job import Job, Learn, Progress, Report

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
        return self._run.limit

    @max_threads.setter
    def max_threads(self, threads: SupportsIndex) -> None:
        limit = integer("max_threads", threads, least=1)
        self._own_pool().set_run_limit(self._run, limit)

    def renice(self, nice: SupportsIndex) -> None:
        """Change the job's nice: before it starts, while it runs or is undone, or after.

        Its share among jobs is another one at once. A helper's thread follows at once where this
        process may set that, else it is exchanged for another one at its next chunk boundary. A
        loan from a waiter stays while it is the more urgent. A job that is over only says the new
        number.

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
        """Whether the job is over, undo included.

        Raises:
            RuntimeError: The handle belongs to the parent of this forked process.
        """
        self._own_pool()
        return self._run.over

    def progress(self) -> Progress:
        """Where the job stands.

        Raises:
            RuntimeError: The handle belongs to the parent of this forked process.
        """
        pool = self._own_pool()
        with pool.lock:
            return accounts.progress(self._run)

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
        if not self._run.over:
            refuse_running_loop("Handle.result()", "await the handle instead")
            self.until_over_in_thread(timeout)
        return cast("Report[T]", self._own_pool().result(self._run))

    def __await__(self) -> Generator[Any, None, Report[T]]:
        return self._wait().__await__()

    async def _wait(self) -> Report[T]:
        await self.until_over()
        return cast("Report[T]", self._own_pool().result(self._run))

    # For the modules that stand on the engine: waiting that raises nothing of the job's.

    async def until_over(self) -> None:
        """Wait until the job is over, however it ends. A checkpoint."""
        pool = self._own_pool()
        loop = needed_loop(pool, "awaiting a handle")
        await loop.checkpoint_if_cancelled()
        run = self._run
        outer = enclosing_run()
        with OnBehalf(pool, outer, run):
            await wait_over(pool, loop, run, nice_of_waiter(outer, run))

    def until_over_in_thread(self, timeout: float | None = None) -> None:
        """The same in a thread; raises `TimeoutError` and `DeadlockError` as `result` does."""
        wait_in_thread(self._own_pool(), self._run, timeout)

    async def until_over_shielded(self) -> asyncio.CancelledError | None:
        """The same across any number of cancels; the first of asyncio's own is returned."""
        pool = self._own_pool()
        loop = needed_loop(pool, "awaiting a handle")
        with OnBehalf(pool, enclosing_run(), self._run):
            return await wait_over_shielded(pool, loop, self._run, self._run.entry.nice)

    def cancel_soon(self) -> None:
        """`cancel` from a finalizer."""
        self._pool.cancel_soon(self._run)

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
    `UndoFailed` that nobody has been given yet.

    **Cancellation** while leaving cancels the jobs, waits until they are undone, and goes on.

    What it sets goes before what the process has set, and a job's own `learn` and `remember` before
    both; `configure` changes it while jobs run.

    Args:
        max_threads: The most helpers for its jobs together, below the process's limit.
        max_threads_per_node: The most of them that are bound to one NUMA node.
        nice: The nice of its jobs, in place of their own; a `priority` block goes before it.
        give_way: Whether its jobs of a nice above 0 leave the CPUs to other processes.
        learn: What its jobs find out while they run, where they do not say so; see `Job`.
        remember: Whether they remember that; see `Job`.

    Raises:
        TypeError, ValueError: An argument is not what it may be: the message names it.
    """

    def __init__(
        self,
        max_threads: SupportsIndex | None = None,
        *,
        max_threads_per_node: SupportsIndex | None = None,
        nice: SupportsIndex | None = None,
        give_way: bool | None = None,
        learn: Learn | None = None,
        remember: bool | None = None,
    ) -> None:
        given = {
            "max_threads": max_threads,
            "max_threads_per_node": max_threads_per_node,
            "nice": nice,
            "give_way": give_way,
            "learn": learn,
            "remember": remember,
        }
        said = {name: value for name, value in given.items() if value is not None}
        self._tunables = checked("Coordinator()", said, scoped=True)
        self._cap: int | None = self._tunables.pop("max_threads", None)
        self._pool: Pool | None = None
        self._group = RunGroup(self._cap, self._tunables)

    def __repr__(self) -> str:
        return f"<Coordinator max_threads={self._cap} jobs={len(self._group.runs)}>"

    @property
    def max_threads(self) -> int | None:
        """The cap. May be set while jobs run: helpers above it stop at the next chunk boundary."""
        return self._cap

    @max_threads.setter
    def max_threads(self, threads: SupportsIndex | None) -> None:
        self.configure(max_threads=threads)

    def configure(self, **values: Any) -> None:
        """Change what the arguments set, also while jobs run.

        Args:
            values: By the name of the argument; what is not named stays as it is. None goes back to
                what the process has.

        Raises:
            TypeError, ValueError: There is no such argument, or a value is not what it may be; then
                nothing is changed.
        """
        said = {name: value for name, value in values.items() if value is not None}
        found = checked("Coordinator", said, scoped=True)
        for name in values.keys() - {each.name for each in TUNABLES.values() if each.scoped}:
            checked("Coordinator", {name: None}, scoped=True)  # there is no such one
        for name in values:
            if name == "max_threads":
                self._cap = found.get(name)
            elif name in found:
                self._tunables[name] = found[name]
            else:
                self._tunables.pop(name, None)
        pool, group = self.scope()
        pool.around.set_group(group, self._cap)

    def submit(self, job: Job[T]) -> Handle[T]:
        """Run a job, whether or not anyone waits for it.

        May be called from any thread; a job with a coroutine `undo` from a running loop only.

        Raises:
            RuntimeError: The coordinator was left or shut down, or the interpreter exits.
            TypeError: `job` is no Job, or its coroutine undo has no loop to run on.
        """
        pool, group = self.scope()
        loop = running_loop(pool)
        run = new_run(pool, group, job, loop, parent=None, hold=False)
        outer = local.frame
        pool.submit(run, nested=outer is not None and outer.run.entry.group is group)
        return Handle(pool, run)

    async def shutdown(self, *, cancel: bool = False) -> None:
        """Take no more jobs and wait for those there are, cancelled first with `cancel`.

        **Cancellation** while it waits cancels the jobs, waits until they are undone, and goes on.

        Raises:
            UndoFailed: An undo failed, and nobody has been given that yet.
        """
        pool, group = self.scope()
        loop = needed_loop(pool, "Coordinator.shutdown()")
        left = pool.shut(group, cancel=cancel)
        try:
            await loop.checkpoint_if_cancelled()
            while left:  # and again: their chunks may have submitted more
                for run in left:
                    with OnBehalf(pool, enclosing_run(), run):
                        await wait_over(pool, loop, run, run.entry.nice, watches=True)
                left = pool.shut(group, cancel=cancel)
        except GeneratorExit:
            _cancel_soon(pool, left)
            raise
        except BaseException as error:
            await _end_all(pool, group, loop)
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
        pool, group = self.scope()
        left = pool.shut(group, cancel=not isinstance(exc, GeneratorExit))
        if isinstance(exc, GeneratorExit):  # the loop is gone, and nobody can wait
            _cancel_soon(pool, left)
            return
        loop = needed_loop(pool, "leaving a coordinator")
        cancelled = await _end_all(pool, group, loop)
        _raise_undo_failed(pool, group, exc)
        if cancelled is not None:  # it came while this waited, and must not be lost
            raise cancelled

    def __enter__(self) -> Coordinator:
        refuse_running_loop("leaving the coordinator", "use `async with`")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pool, group = self.scope()
        try:
            _wait_all(pool, group, cancel=exc is not None)
        except BaseException as error:  # KeyboardInterrupt: a second one gives up
            _wait_all(pool, group, cancel=True)
            _raise_undo_failed(pool, group, error)
            raise
        _raise_undo_failed(pool, group, exc)

    def scope(self) -> tuple[Pool, RunGroup]:
        """The pool of this process and this coordinator's group in it: a new one after a fork."""
        pool = current_pool()
        if self._pool is not pool:
            if self._pool is not None:
                self._group = RunGroup(self._cap, self._tunables)
            self._pool = pool
        return pool, self._group


def _wait_all(pool: Pool, group: RunGroup, *, cancel: bool) -> None:
    """Wait in this thread until no run of the group is left."""
    while left := pool.shut(group, cancel=cancel):
        for run in left:
            wait_in_thread(pool, run, None, watches=True)


async def _end_all(pool: Pool, group: RunGroup, loop: Loop) -> asyncio.CancelledError | None:
    """Cancel and see to their end all runs of a group, across cancels: the first is returned."""
    first: asyncio.CancelledError | None = None
    while left := pool.shut(group, cancel=True):
        for run in left:
            with OnBehalf(pool, enclosing_run(), run):
                cancelled = await wait_over_shielded(pool, loop, run, run.entry.nice, watches=True)
            first = first or cancelled
    return first


def _cancel_soon(pool: Pool, runs: list[Run]) -> None:
    for run in runs:
        pool.cancel_soon(run)


def _raise_undo_failed(pool: Pool, group: RunGroup, cause: BaseException | None) -> None:
    """Raise the undo failures that nobody was given, as one."""
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
