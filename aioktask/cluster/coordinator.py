# SPDX-License-Identifier: MIT
# What a program holds: the scope that owns jobs on workers, and how a job is run that ends with
# its caller.
#
# All that changes is in the driver's thread; what is here posts steps and waits, on any loop, and
# in threads without one.
"""Coordinators of jobs on workers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar, cast

from aioktask.checks import seconds
from aioktask.cluster.carrier import Carrier
from aioktask.cluster.driver import Driver
from aioktask.cluster.handle import ClusterHandle, until, until_over_shielded
from aioktask.cluster.job import (
    ClusterFailure,
    ClusterJob,
    ClusterReport,
    ClusterSnapshot,
    checked_cluster_job,
)
from aioktask.cluster.packing import packed_job
from aioktask.cluster.run import ClusterRun
from aioktask.cluster.session import Outcome
from aioktask.engine.api.submission import needed_loop
from aioktask.engine.loops.loop import refuse_running_loop
from aioktask.engine.loops.waiting import wait_until_shielded
from aioktask.errors import CoordinatorClosed, UndoFailed
from aioktask.job import set_failure, told_of

__all__ = ["Fleet", "enter_here", "leave_here", "run_owned"]

# A coordinator looks for runs that are over where there are so many of them, at least.
FORGET_AT = 16

T = TypeVar("T")
F = TypeVar("F", bound="Fleet")


class Fleet:
    """A scope that owns jobs on the workers of a carrier: none outlives it.

    Use it with ``async with``; one whose carrier needs no loop also with plain ``with``. Leaving it
    normally waits for its jobs; leaving it by an exception cancels them and waits until they are
    undone. Then the workers are let go of. Where whoever leaves it must not wait, as an async
    generator that is closed, both happen in the background: its jobs are cancelled and undone, and
    then the workers are let go of.

    **Cancellation** while leaving cancels the jobs, waits until they are undone, and goes on.
    """

    def __init__(self, carrier: Carrier) -> None:
        self._driver = Driver(carrier)
        # Guards the two below: what is submitted is known to whoever leaves, or refused. A signal
        # handler may submit too.
        self._lock = threading.RLock()
        self._runs: list[ClusterRun] = []
        self._forget_at = FORGET_AT  # so many runs: then those that are over are dropped
        self._state = "new"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._state}, {len(self._driver.workers)} workers>"

    def submit(self, job: ClusterJob[T], *, timeout: float | None = None) -> ClusterHandle[T]:
        """Run a job, whether or not anyone waits for it. May be called from any thread.

        Args:
            job: What to run.
            timeout: How long it may take from now on, in seconds, its undo apart; None for any
                time. The handle of one that waits for its turn at the workers by then raises
                `Overloaded`; one that is there is cancelled and undone, and its handle raises a
                `TimeoutError`.

        Raises:
            TypeError: `job` is no ClusterJob, or cannot be pickled: the message says which part;
                `timeout` is no number.
            ValueError: The job is larger than 1 MiB as bytes: the message says what it captured;
                or `timeout` is negative or not finite.
            CoordinatorClosed: The coordinator was drained, left or shut down.
            RuntimeError: It was not entered yet.
        """
        return ClusterHandle(self._submit(job, timeout, owned=False), job)

    def _submit(self, job: ClusterJob[Any], timeout: float | None, *, owned: bool) -> ClusterRun:
        self._driver.refuse_in_child()
        packed = packed_job(checked_cluster_job(job))
        if timeout is not None:
            timeout = seconds("timeout", timeout)
        run = ClusterRun(self._driver, job, packed, timeout, owned)
        try:
            run.prepare()
            with self._lock:
                self._refuse_unless_open()
                if len(self._runs) >= self._forget_at:
                    left = [each for each in self._runs if not each.over or _undo_failed(each)]
                    self._runs, self._forget_at = left, 2 * len(left) + FORGET_AT
                self._runs.append(run)  # first: so whoever leaves waits for all that is submitted
                self._driver.submit(run)
        except BaseException:  # a Ctrl-C in any line, too
            if run in self._runs:
                run.cancel()  # which ends it also where it was not submitted
            else:
                run.tell_refused()
            raise
        return run

    def _refuse_unless_open(self) -> None:
        if self._state == "new":
            raise RuntimeError(f"enter the coordinator first: `async with {type(self).__name__}`")
        if self._state != "open" or self._driver.ended.is_set():
            raise CoordinatorClosed(
                "the coordinator was drained, left or shut down: it takes no more jobs; make a "
                "new one"
            )

    def drain(self) -> None:
        """Take no more jobs, and return at once: those there are go on."""
        self._driver.refuse_in_child()
        with self._lock:
            if self._state == "open":
                self._state = "drained"

    async def shutdown(self, *, cancel: bool = False) -> None:
        """Take no more jobs, wait for those there are, and let go of the workers.

        Args:
            cancel: Whether to cancel them first.

        Raises:
            UndoFailed: An undo failed, and no waiter has been given that yet.

        **Cancellation** while it waits cancels the jobs, waits until they are undone, and goes on.
        """
        self._driver.refuse_in_child()
        try:
            self.drain()
            if cancel:
                self._cancel_all()
            for run in list(self._runs):
                await until("shutdown()", run, lambda run=run: run.over)  # type: ignore[misc]
        except BaseException as error:
            await self._end_all(error)
            raise
        cancelled = await self._end()
        self._raise_undo_failed()
        if cancelled is not None:
            raise cancelled

    def snapshot(self) -> ClusterSnapshot:
        """The workers that there are, and the jobs that are not over."""
        return self._driver.snapshot()

    def _cancel_all(self) -> None:
        for run in self._runs:
            run.cancel()

    def _enter(self) -> None:
        if self._state != "new":
            raise CoordinatorClosed("the coordinator was entered before: make a new one")
        self._state = "open"
        try:
            self._driver.begin()
        except BaseException:
            self._state = "closed"
            self._driver.end()  # again: a Ctrl-C may have come as it had begun
            raise

    async def _end_all(self, error: BaseException) -> None:
        """Cancel all jobs, wait until they are undone, and let go of the workers.

        Args:
            error: Why.

        Raises:
            UndoFailed: An undo failed, and no waiter has been given that yet.
            asyncio.CancelledError: It came while this waited, and must not be lost.
        """
        first: asyncio.CancelledError | None = None
        try:
            self.drain()
            # An exception of the program's may say that it is another one's instance, or raise.
            if issubclass(type(error), GeneratorExit):  # who is closed must not wait
                self._end_when_idle()
                return
            self._cancel_all()
            for run in list(self._runs):
                cancelled = await until_over_shielded(run)
                first = first or cancelled
            cancelled = await self._end()
            first = first or cancelled
        except BaseException:  # who waits here is closed, or its loop is; or a second Ctrl-C
            self._end_when_idle()
            raise
        self._raise_undo_failed()
        if first is not None and not issubclass(type(error), asyncio.CancelledError):
            raise first

    def _end_when_idle(self) -> None:
        """Have all jobs be cancelled, and the workers be let go of after that; do not wait."""
        self._let_go(self._driver.end_when_idle)

    async def _end(self) -> asyncio.CancelledError | None:
        """Let go of the workers, across cancellations; returns the first one that came.

        Whoever comes second waits for the same.
        """
        driver = self._driver
        loop = needed_loop("leaving a coordinator")
        waiter = loop.waiter(0)
        driver.end_waiters[waiter] = waiter.wake
        try:
            self._let_go(driver.end)
            if driver.is_here:  # which ends when it is through with what it does now
                return None
            return await wait_until_shielded(loop, waiter, driver.ended.is_set)
        finally:
            waiter.left = True
            driver.end_waiters.pop(waiter, None)

    def _let_go(self, end: Callable[[], None]) -> None:
        """Have the workers be let go of, in this way, if nobody has before."""
        with self._lock:
            if self._state == "new":
                self._driver.ended.set()  # there is nobody to end it
            elif self._state != "closed":
                end()  # before that is noted: a Ctrl-C between the two has it be done twice
            self._state = "closed"

    def _raise_undo_failed(self) -> None:
        """Raise the undo failures that no waiter was given, as one `UndoFailed`."""
        failures = []
        for run in self._runs:
            if _undo_failed(run):
                run.told = True
                assert run.outcome is not None
                failures.append(cast("UndoFailed", run.outcome.error))
        try:
            if len(failures) == 1:
                raise failures[0]
            if failures:
                ranges = [each for failed in failures for each in failed.ranges]
                raise UndoFailed(f"undo of {len(failures)} jobs failed", failures, ranges)
        finally:
            del failures  # which the exception's traceback leads to

    async def __aenter__(self: F) -> F:
        needed_loop("entering a coordinator")
        self._enter()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._driver.in_child:
            return
        if exc is not None:
            await self._end_all(exc)
        else:
            await self.shutdown()


def _undo_failed(run: ClusterRun) -> bool:
    outcome = run.outcome
    return outcome is not None and issubclass(type(outcome.error), UndoFailed) and not run.told


def enter_here(fleet: Fleet) -> None:
    """Enter a coordinator in a thread without a loop."""
    refuse_running_loop("plain `with`", "use `async with`")
    fleet._enter()


def leave_here(fleet: Fleet, exc: BaseException | None) -> None:
    """Leave a coordinator in a thread without a loop; a forked child has no part in it."""
    if fleet._driver.in_child:
        return
    try:
        try:
            _wait_here(fleet, cancels=exc is not None)
        except BaseException:  # a Ctrl-C, say
            _wait_here(fleet, cancels=True)
            _end_here(fleet)
            fleet._raise_undo_failed()
            raise
        _end_here(fleet)
    except BaseException:  # a second Ctrl-C, say; else this finds them let go of
        fleet._end_when_idle()
        raise
    fleet._raise_undo_failed()


def _wait_here(fleet: Fleet, *, cancels: bool) -> None:
    """Wait in this thread until no job is left."""
    fleet.drain()
    if cancels:
        fleet._cancel_all()
    for run in list(fleet._runs):
        run.wait()


def _end_here(fleet: Fleet) -> None:
    """Let go of the workers, and wait for that in this thread."""
    fleet._let_go(fleet._driver.end)
    if not fleet._driver.is_here:
        fleet._driver.ended.wait()


async def run_owned(
    fleet: Fleet,
    job: ClusterJob[T],
    timeout: float | None,  # noqa: ASYNC109 - it ends the job, not the wait
) -> ClusterReport[T]:
    """Run a job that ends with its caller: all done, or all undone.

    **Cancellation** undoes what is done, waits for that, and goes on; it comes too late where data
    is being closed already.
    """
    run = fleet._submit(job, timeout, owned=True)
    try:
        await until("running a job", run, lambda: run.settled or run.over)
        if run.commit() or not run.over:
            cancelled = await until_over_shielded(run)
            if cancelled is not None:
                raise cancelled
    except BaseException as error:
        run.cancel()
        if issubclass(type(error), GeneratorExit):  # who is closed must not wait
            raise
        await until_over_shielded(run)
        outcome = run.outcome
        run.told = True
        assert outcome is not None
        if outcome.error is not None and issubclass(type(outcome.error), UndoFailed):
            raise outcome.error from error
        told = _all_done(job, outcome) if outcome.error is None else told_of(outcome.error)
        if told is not None:
            set_failure(error, told)
        raise
    return ClusterHandle(run, job)._outcome()


def _all_done(job: ClusterJob[Any], outcome: Outcome) -> ClusterFailure:
    """What a caller is told whose cancellation came too late."""
    report = outcome.report
    assert report is not None
    done = (range(job.start, job.stop),) if job.size else ()
    return ClusterFailure(
        *(job, None, (), done),
        undone=(),
        unknown=(),
        workers=report.workers,
    )
