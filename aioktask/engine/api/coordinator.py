# SPDX-License-Identifier: MIT
# Coordinators, which own jobs: how a program submits to one, configures it and leaves it. All state
# that changes is in the pool; what is here posts commands, and waits.
"""The scope that owns jobs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator, Mapping
from functools import partial
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Never, SupportsIndex, TypeVar, TypeVarTuple, Unpack, cast

from aioktask.checks import seconds
from aioktask.engine.api.call import refuse_keywords
from aioktask.engine.api.executor import HelperThreadPoolExecutor
from aioktask.engine.api.handle import Handle
from aioktask.engine.api.run_job import run
from aioktask.engine.api.scope import Scope
from aioktask.engine.api.snapshots import take_snapshot
from aioktask.engine.api.submission import needed_loop, new_run, park_until
from aioktask.engine.loops.loop import Loop, refuse_running_loop, running_loop
from aioktask.engine.loops.waiting import (
    CALLS_OF_A_WAIT,
    CALLS_OF_LEAVING,
    wait_until,
    wait_until_shielded,
)
from aioktask.engine.stack import need_stack
from aioktask.engine.state import ending
from aioktask.engine.state.current import enclosing_stint, local, refuse_own, refuse_waiting
from aioktask.engine.state.group import Leaver, RunGroup
from aioktask.engine.state.run import Run, numbers
from aioktask.engine.state.workers import ThreadWaiter
from aioktask.engine.threads.pool import Pool
from aioktask.engine.tunables import TUNABLES, checked
from aioktask.errors import CoordinatorClosed, UndoFailed
from aioktask.job import Job, Learn, Remember
from aioktask.status import JobStatus, Snapshot

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# The nice at which a leaver waits: the least urgent one, so that it lends jobs nothing.
_NO_LOAN = 19


class Coordinator(Scope):
    """A scope that owns jobs: none outlives it.

    Use it with ``async with`` (a server's lifespan) or, in a thread without a loop, with plain
    ``with``. Leaving it normally waits for its jobs; leaving it by an exception cancels them and
    waits until they are undone. After that `submit` is refused, and so are `executor` and entering
    it once more.

    The failure of a job that nothing awaits is told in an event; leaving raises only an
    `UndoFailed` that no waiter has been given yet.

    **Cancellation** while leaving cancels the jobs, waits until they are undone, and goes on.

    Its settings override the process's, and a job's own `learn` and `remember` override both;
    `configure` changes them, also while jobs run.

    **Interruption.** `submit` and `configure` return at once, wherever they are called: in a signal
    handler, a finalizer, a weak reference callback or a listener of events too. Leaving waits, so
    plain ``with`` is refused where the engine itself is interrupted.

    Args:
        max_threads: The most helpers for its jobs together, below the process's limit.
        max_threads_per_node: The most of them that are bound to one NUMA node.
        nice: The nice of its jobs, in place of their own; a `priority` block goes before it.
        give_way: Whether its jobs of a nice above 0 leave the CPUs to other processes.
        learn: What its jobs learn while they run, unless a job itself says; see `Job`.
        remember: Whether its jobs remember it, and where, unless a job itself says; see `Job`.
        max_queued: The most of its jobs that may wait for a thread, beside as many as there are
            threads for them; one more is refused with `Overloaded`. Jobs that its own chunks submit
            are never refused.
        max_wait: The longest, in seconds above 0, that one of its jobs may wait to begin; then it
            ends with `Overloaded`, as it does at once where it would wait longer by the rate at
            which jobs begin. Nor does that hold for jobs that its own chunks submit. A stream waits
            from when it has an item.
        stuck_after: After how many seconds in one chunk the event `chunk_stuck` tells of it.
        trace: Whether its jobs keep what `Report.timeline` shows, unless a job itself says.

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
        remember: Remember | None = None,
        max_queued: SupportsIndex | None = None,
        max_wait: float | None = None,
        stuck_after: float | None = None,
        trace: bool | None = None,
    ) -> None:
        given = {
            "max_threads": max_threads,
            "max_threads_per_node": max_threads_per_node,
            "nice": nice,
            "give_way": give_way,
            "learn": learn,
            "remember": remember,
            "max_queued": max_queued,
            "max_wait": max_wait,
            "stuck_after": stuck_after,
            "trace": trace,
        }
        said = {name: value for name, value in given.items() if value is not None}
        super().__init__(checked("Coordinator()", said, scoped=True))

    def __repr__(self) -> str:
        runs = [run for group in list(self._groups.values()) for run in list(group.runs)]
        jobs = sum(not run.ended for run in runs)
        return f"<Coordinator max_threads={self.max_threads} jobs={jobs}>"

    @property
    def max_threads(self) -> int | None:
        """The most helpers for its jobs. May be set while they run.

        Helpers above a lower one stop at the next chunk boundary.
        """
        return self._cap

    @max_threads.setter
    def max_threads(self, threads: SupportsIndex | None) -> None:
        self.configure(max_threads=threads)

    def configure(self, **values: Any) -> None:
        """Change the coordinator's settings, also while jobs run.

        Args:
            values: By the name of the class's argument; those not named stay as they are. None goes
                back to the process's.

        Raises:
            TypeError, ValueError: There is no such argument, or a value is not what it may be; then
                nothing is changed.
        """
        said = {name: value for name, value in values.items() if value is not None}
        found = checked("Coordinator", said, scoped=True)
        for name in values.keys() - {each.name for each in TUNABLES.values() if each.scoped}:
            checked("Coordinator", {name: None}, scoped=True)  # raises: there is none
        for name in values:
            if name in found:
                self._tunables[name] = found[name]
            else:
                self._tunables.pop(name, None)
        pool, group = self.scope()
        pool.adapter.set_group(group)

    def submit(self, job: Job[T], *, timeout: float | None = None) -> Handle[T]:
        """Run a job, whether or not anyone waits for it.

        May be called from any thread; a job with a coroutine `undo` from a running loop only.

        Args:
            job: What to run.
            timeout: How long it may take from now on, in seconds, its undo apart; None for any
                time. The handle of one that has not begun by then raises `Overloaded`; one that
                runs is cancelled and undone, and its handle raises a `TimeoutError`.

        Raises:
            Overloaded: The job could not begin in time, as is known already: it is not taken in.
                Never for a job that a chunk of this coordinator submits, but for a `timeout` of 0.
            CoordinatorClosed: The coordinator was drained, left or shut down.
            RuntimeError: The interpreter exits.
            TypeError: `job` is no Job, or its coroutine undo has no loop to run on; `timeout` is no
                number.
            ValueError: `timeout` is negative or not finite.
        """
        pool, group = self.scope()
        run = new_run(pool, group, job, running_loop(), parent=None, owned=False, timeout=timeout)
        outer = local.stint
        try:
            pool.submit(run, nested=outer is not None and outer.run.group is group)
        except BaseException:  # refused, or struck by a signal handler: nobody gets the handle
            pool.cancel(run)
            raise
        return Handle(pool, run, job)

    async def run(
        self,
        fn: Callable[[Unpack[Ts]], T],
        *args: *Ts,
        nice: SupportsIndex | None = None,
        name: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it ends the job, not the wait
        labels: Mapping[str, str] | None = None,
        **others: Never,
    ) -> T:
        """Call a function on a helper thread, and wait for what it returns: see `aioktask.run`.

        **Cancellation.** As `aioktask.run`.
        """
        if others:
            refuse_keywords("Coordinator.run()", fn, others)
        return await run(
            fn, *args, nice=nice, name=name, coordinator=self, timeout=timeout, labels=labels
        )

    def executor(self, nice: SupportsIndex = 0) -> HelperThreadPoolExecutor:
        """An executor of `concurrent.futures` whose calls are jobs of this coordinator.

        There may be any number of them. Shutting one down leaves the coordinator as it is.

        Args:
            nice: Of its calls.

        Raises:
            TypeError, ValueError: `nice` is no integer, or not from -20 to 19.
            CoordinatorClosed: The coordinator was drained, left or shut down.

        >>> with Coordinator() as coordinator, coordinator.executor() as executor:
        ...     list(executor.map(abs, [-1, 2]))
        [1, 2]
        """
        self._refuse_if_closed()
        return HelperThreadPoolExecutor(self, nice)

    @property
    def ready(self) -> bool:
        """Whether it takes jobs: what a health check may ask. False once it was drained."""
        return not (self._closed or self.scope()[0].state.closing)

    def drain(self) -> None:
        """Take no more jobs, and return at once: those there are go on.

        `submit` is refused from now on, and so are calls and streams; `ready` is False. Only chunks
        of its own jobs may still submit to it. May be called from any thread, in a signal handler
        too, and any number of times.
        """
        self.scope()[1].closed = True

    async def shutdown(
        self,
        *,
        cancel: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - it comes back, and is not cancelled
    ) -> tuple[JobStatus, ...]:
        """Take no more jobs, and wait for those there are; with `cancel`, cancel them first.

        Args:
            cancel: Whether to cancel them.
            timeout: How long to wait, in seconds; None for any time. Jobs that are left then go on.
                Leaving the coordinator afterwards does not wait for them: the event
                `jobs_left_behind` names them. The exit of the interpreter cancels them, and waits.

        Returns:
            The jobs that are left, as they stand; none without `timeout`.

        **Cancellation** while it waits cancels the jobs, waits until they are undone or the time is
        up, and goes on. What a signal handler raises in here does the same.

        Raises:
            UndoFailed: An undo failed, and no waiter has been given that yet.
            TypeError, ValueError: `timeout` is no number, negative or not finite.

        >>> import asyncio
        >>> async def main():
        ...     async with Coordinator() as coordinator:
        ...         coordinator.drain()
        ...         return coordinator.ready, await coordinator.shutdown(timeout=10)
        >>> asyncio.run(main())
        (False, ())
        """
        need_stack(CALLS_OF_A_WAIT)
        until = None
        if timeout is not None:
            until = perf_counter_ns() + int(seconds("timeout", timeout) * 1e9)
        await self._leave(cancel=cancel, until=until)
        pool, group = self.scope()
        return take_snapshot(pool, group).jobs if until is not None and group.given_up else ()

    def snapshot(self) -> Snapshot:
        """What there is to see of this coordinator's jobs, and of the process: see `snapshot`.

        Of its jobs that ended those are told that are among the last 100 of the process.
        """
        pool, group = self.scope()
        return take_snapshot(pool, group)

    async def _leave(self, *, cancel: bool, until: int | None = None) -> None:
        pool, group = self.scope()
        loop = needed_loop("Coordinator.shutdown()")
        waiter = loop.waiter(_NO_LOAN)
        leaver = Leaver(waiter, enclosing_stint(), detects=False)
        try:
            pool.leave(group, leaver, cancels=cancel)
            with _time_limit(pool, group, leaver, until):
                await loop.checkpoint_if_cancelled()
                await wait_until(waiter, lambda: leaver.waits_no_more)
            while _ended_meanwhile(group, leaver):
                leaver = Leaver(waiter, leaver.stint, detects=False)
                pool.leave(group, leaver, cancels=False)
                await wait_until(waiter, partial(_is_gone, leaver))
        except GeneratorExit:
            pool.cancel_group(group)
            raise
        except BaseException as error:
            await _end_all(pool, group, loop, error, until)
            raise
        group.given_up = not leaver.gone
        _raise_undo_failed(leaver, None)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise CoordinatorClosed(
                "the coordinator was drained, left or shut down: it takes no more jobs; make a "
                "new one"
            )

    async def __aenter__(self) -> Coordinator:
        self._refuse_if_closed()
        need_stack(CALLS_OF_LEAVING)
        loop = needed_loop("entering a coordinator")
        self.scope()[0].loops.add(loop)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pool, group = self.scope()
        loop = running_loop()
        if loop is not None:
            pool.loops.remove(loop)
        if group.given_up and group.runs:
            _leave_behind(pool, group, cancels=exc is not None)
            return
        if exc is None:
            await self._leave(cancel=False)
            return
        pool.cancel_group(group)
        if issubclass(type(exc), GeneratorExit):  # the loop is gone, and nobody can wait
            return
        cancelled = await _end_all(pool, group, needed_loop("leaving a coordinator"), exc)
        if cancelled is not None:  # it came while this waited, and must not be lost
            raise cancelled

    def __enter__(self) -> Coordinator:
        refuse_running_loop("leaving the coordinator", "use `async with`")
        refuse_waiting("leaving the coordinator")
        self._refuse_if_closed()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pool, group = self.scope()
        if group.given_up and group.runs:
            _leave_behind(pool, group, cancels=exc is not None)
            return
        try:
            _leave_in_thread(pool, group, exc, cancels=exc is not None)
        except UndoFailed:
            raise
        except BaseException as error:  # KeyboardInterrupt: a second one gives up
            _leave_in_thread(pool, group, error, cancels=True)
            raise


def _leave_behind(pool: Pool, group: RunGroup, *, cancels: bool) -> None:
    """Wait for nothing, since a shutdown gave up, and say which jobs are left."""
    if cancels:
        pool.cancel_group(group)
    pool.post(ending.tell_left_behind, None, group)


def _is_gone(leaver: Leaver) -> bool:
    return leaver.gone


def _waits_no_more(leaver: Leaver) -> bool:
    return leaver.waits_no_more


def _ended_meanwhile(group: RunGroup, leaver: Leaver) -> bool:
    """Whether a leaver gave up, and no run is left all the same: so it may leave now.

    Turns know then which undo failed, and that nobody was told.
    """
    return not (leaver.gone or group.runs)


@contextlib.contextmanager
def _time_limit(
    pool: Pool, group: RunGroup, leaver: Leaver, until: int | None
) -> Generator[None, None, None]:
    """Have the leaver give up at this time, in ns, if it is still in the block."""
    if until is None:
        yield
        return
    number = next(numbers)
    pool.post_at(until, number, ending.give_up_leaving, None, group, leaver)
    try:
        yield
    finally:
        pool.deadlines.drop(number)


def _leave_in_thread(
    pool: Pool, group: RunGroup, cause: BaseException | None, *, cancels: bool
) -> None:
    """Wait in this thread until no run of the group is left.

    Raises:
        UndoFailed: An undo failed, and no waiter has been given that yet.
        DeadlockError: The calling chunk belongs to one of the runs, or they wait for it.
        RuntimeError: The calling code runs inside the engine, where nothing may wait.
    """
    refuse_running_loop("leaving the coordinator", "use `async with`")
    refuse_waiting("leaving a coordinator")
    # Those that no turn has taken in yet, too.
    own = (run for run in local.takes_part if run.group is group and not (run.over or run.ended))
    refuse_own([*group.runs, *own])
    waiter = ThreadWaiter(_NO_LOAN)
    leaver = Leaver(waiter, enclosing_stint(), detects=local.stint is not None)
    try:
        pool.leave(group, leaver, cancels=cancels)
        park_until(pool, waiter, lambda: leaver.gone, None)
    finally:
        if not leaver.gone:
            pool.post(ending.stay_in_group, None, group, leaver)
    _raise_undo_failed(leaver, cause)


async def _end_all(
    pool: Pool, group: RunGroup, loop: Loop, cause: BaseException, until: int | None = None
) -> asyncio.CancelledError | None:
    """Cancel all runs of a group and wait for their end across cancels; returns the first cancel.

    Args:
        pool: Of the process.
        group: Of the coordinator.
        loop: That runs here.
        cause: Why they are cancelled.
        until: When to give up, in ns; None for never.

    Raises:
        UndoFailed: An undo failed, and no waiter has been given that yet.
    """
    first = struck = None
    waiter = loop.waiter(_NO_LOAN)
    leaver = Leaver(waiter, enclosing_stint(), detects=False)
    while not leaver.waits_no_more or _ended_meanwhile(group, leaver):
        if leaver.gives_up:
            leaver, until = Leaver(waiter, leaver.stint, detects=False), None
        try:
            pool.leave(group, leaver, cancels=True)
            with _time_limit(pool, group, leaver, until):
                done = partial(_waits_no_more, leaver)
                cancelled = await wait_until_shielded(loop, waiter, done)
            first = first or cancelled
        except GeneratorExit:
            raise
        except BaseException as another:  # a signal handler raised in here
            struck = another
    group.given_up = not leaver.gone
    _raise_undo_failed(leaver, struck or cause)
    if struck is not None:
        raise struck from cause
    return first


def _raise_undo_failed(leaver: Leaver, cause: BaseException | None) -> None:
    """Raise the undo failures that no waiter was given, as one `UndoFailed`."""
    failures = [verdict for verdict in map(_untold, leaver.undo_failed) if verdict is not None]
    leaver.undo_failed = []
    try:
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise UndoFailed(
                f"undo of {len(failures)} jobs failed",
                failures,
                [each for failed in failures for each in failed.ranges],
            ) from cause
    finally:
        del failures, cause  # which the exception's traceback leads to


def _untold(run: Run) -> UndoFailed | None:
    return cast("UndoFailed", run.verdict) if run.undo_failed and not run.told else None
