# SPDX-License-Identifier: MIT
# The handle of a job on workers, and how a program waits for it: on any loop, and in threads
# without one.
#
# All that changes is in the driver's thread; what is here posts steps, waits, and reads.
"""Handles of jobs on workers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, SupportsIndex, TypeVar, cast

import anyio
import anyio.lowlevel

from aioktask.checks import integer, nice_value, seconds
from aioktask.cluster.job import ClusterJob, ClusterReport, WorkerStatus
from aioktask.cluster.run import ClusterRun
from aioktask.engine.api.submission import needed_loop
from aioktask.engine.loops.loop import refuse_running_loop
from aioktask.engine.loops.waiting import wait_until, wait_until_shielded
from aioktask.job import Progress
from aioktask.markup import card, element, table
from aioktask.telling import counted, html_of, told
from aioktask.timeline import Timeline

__all__ = ["ClusterHandle", "ClusterWatch", "until", "until_over_shielded"]

# So many workers of a job a notebook shows.
MOST_SHOWN = 50

T = TypeVar("T")


class ClusterHandle(Generic[T]):
    """A job that was submitted to workers: await it, or ask about it, from any loop or thread.

    It is to a `ClusterJob` what `aioktask.Handle` is to a job. `cancel`, `renice`, `max_threads`,
    `done`, `progress`, `workers` and `timeline` may be called in any thread, and hardly wait.

    Awaiting a handle is only waiting. **Cancellation**: a cancelled waiter is detached and the job
    goes on. Any number of waiters get the same report, or the same exception.
    """

    def __init__(self, run: ClusterRun, job: ClusterJob[T]) -> None:
        self._run = run
        self._job = job

    def __repr__(self) -> str:
        return f"<ClusterHandle of {self._job.name!r}: {self._run.session.phase}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        found = self._run.status()
        figures = [
            ("phase", found.phase),
            ("units", f"{counted(found.progress.done)} of {counted(self._job.size)} done"),
            ("undone", counted(self._run.progress().undone)),
            ("rate", f"{counted(round(found.progress.rate))} units a second"),
            ("threads", found.threads),
            ("nice", found.nice),
            ("waits for", found.waits_for or "nothing"),
        ]
        heads = ("worker", "host", "", "units", "units a second", "threads", "waits for")
        rows = [
            (
                each.name,
                each.host,
                each.state,
                counted(each.units),
                counted(round(each.rate)),
                each.working,
                each.lost or each.waits_for,
            )
            for each in found.workers[:MOST_SHOWN]
        ]
        more = len(found.workers) - len(rows)
        parts = [html_of(told(self.name, found.progress)), table(rows, heads)]
        if more:
            parts.append(element("div", f"and {counted(more)} more workers"))
        return card("Cluster job", *parts, figures=figures)

    @property
    def job(self) -> ClusterJob[T]:
        """The job."""
        return self._job

    @property
    def name(self) -> str:
        """The job's name."""
        return self._job.name

    @property
    def nice(self) -> int:
        """The job's nice, as it was asked for last."""
        return self._run.nice

    @property
    def max_threads(self) -> int | None:
        """The most threads for this job in each worker, None for as many as it has. May be set.

        It holds in all workers at once, and for what is sent later. Threads above a lower one stop
        at the next chunk boundary.
        """
        return self._run.max_threads

    @max_threads.setter
    def max_threads(self, threads: SupportsIndex) -> None:
        self._run.limit(integer("max_threads", threads, least=1))

    def renice(self, nice: SupportsIndex) -> None:
        """Change the job's nice: in all workers at once, and for what is sent later.

        One that waits for its turn at the workers has it by its new nice.

        Raises:
            TypeError, ValueError: `nice` is no integer, or not from -20 to 19.
        """
        self._run.renice(nice_value("nice", nice))

    def cancel(self) -> bool:
        """End the job without waiting: no chunk begins, running ones finish, and undo runs.

        Its waiters get `JobCancelled`. May be called from any thread, any number of times.

        Returns:
            Whether it came in time: False when the job was over, or failing, before.
        """
        return self._run.cancel()

    def done(self) -> bool:
        """Whether the job is over, its undo included.

        Raises:
            RuntimeError: The handle belongs to the parent of this forked process.
        """
        self._run.driver.refuse_in_child()
        return self._run.over

    def progress(self) -> Progress:
        """Where the job stands, as far as workers have told: they do a few times a second."""
        return self._run.progress()

    def workers(self) -> tuple[WorkerStatus, ...]:
        """The workers of the job, and what each does now."""
        return self._run.workers()

    def timeline(self) -> Timeline:
        """Which worker has been at which stretches when, until now, as its messages came in.

        A stretch that is under way is there as far as the worker told.
        """
        return self._run.timeline()

    def watch(self, interval: float = 0.1) -> ClusterWatch:
        """Where the job stands, again and again until it is over: see `aioktask.Handle.watch`.

        Args:
            interval: Seconds from one state to the next, above 0.

        Raises:
            TypeError, ValueError: `interval` is no number, or not above 0 and finite.

        **Cancellation**: each state is a checkpoint; cancelled while it waits, the job goes on.
        """
        return ClusterWatch(self._run, seconds("interval", interval, may_be_zero=False))

    def result(self, timeout: float | None = None) -> ClusterReport[T]:
        """Wait in this thread until the job is over.

        Args:
            timeout: How long to wait, in seconds; None for any time.

        Returns:
            The job's report.

        Raises:
            TypeError, ValueError: `timeout` is no number, negative or not finite.
            TimeoutError: The time passed; the job goes on.
            RuntimeError: This thread runs an event loop; or the handle belongs to the parent of
                this forked process.
            DeadlockError: The coordinator itself called this, in a `reduce`, in `homes` or in a
                listener of events: it would wait for itself.
            JobCancelled, UndoFailed, WorkerLost: How the job ended; or the exception of its first
                failed chunk.
        """
        patience = None if timeout is None else seconds("timeout", timeout)
        if not self._run.over:
            self._run.driver.refuse_in_child()
            refuse_running_loop("ClusterHandle.result()", "await the handle instead")
            with _asking(self._run):
                if not self._run.wait(patience):
                    raise TimeoutError(f"the job {self.name!r} is not over after {patience} s")
        return self._outcome()

    def __await__(self) -> Generator[Any, None, ClusterReport[T]]:
        return self._wait().__await__()

    async def _wait(self) -> ClusterReport[T]:
        with _asking(self._run):
            await until("awaiting a handle", self._run, lambda: self._run.over)
        return self._outcome()

    def _outcome(self) -> ClusterReport[T]:
        outcome = self._run.outcome
        assert outcome is not None
        self._run.told = True
        if outcome.error is not None:
            try:
                raise outcome.error
            finally:
                del outcome
        return cast("ClusterReport[T]", outcome.report)


class ClusterWatch:
    """The states of a job, one each interval, and the last one when it is over."""

    def __init__(self, run: ClusterRun, interval: float) -> None:
        self._run = run
        self._interval = interval
        self._next_at = -1.0
        self._ended = False

    def __aiter__(self) -> ClusterWatch:
        return self

    async def __anext__(self) -> Progress:
        if self._ended:
            raise StopAsyncIteration
        await anyio.lowlevel.checkpoint()
        with anyio.move_on_after(self._left()):
            await until("watching a job", self._run, lambda: self._run.over)
        return self._state()

    def __iter__(self) -> ClusterWatch:
        return self

    def __next__(self) -> Progress:
        if self._ended:
            raise StopIteration
        refuse_running_loop("iterating over a watch with `for`", "use `async for`")
        self._run.wait(self._left())
        return self._state()

    def _left(self) -> float:
        return max(self._next_at - time.monotonic(), 0.0)

    def _state(self) -> Progress:
        state = self._run.progress()
        self._ended = state.over
        self._next_at = time.monotonic() + self._interval
        return state


@contextlib.contextmanager
def _asking(run: ClusterRun) -> Iterator[None]:
    """While somebody waits who is given the outcome."""
    key = object()
    run.askers[key] = None
    try:
        yield
    finally:
        run.askers.pop(key, None)


async def until(what: str, run: ClusterRun, done: Callable[[], bool]) -> None:
    """Wait until `done()`, which is asked when the run settles or is over. A checkpoint."""
    loop = needed_loop(what)
    run.driver.refuse_in_child()
    if not done():
        run.driver.refuse_here(run.job.name)
    await loop.checkpoint_if_cancelled()
    waiter = loop.waiter(0)
    key = run.add_waiter(waiter.wake)
    try:
        await wait_until(waiter, done)
    finally:
        waiter.left = True
        run.remove_waiter(key)


async def until_over_shielded(run: ClusterRun) -> asyncio.CancelledError | None:
    loop = needed_loop("waiting for a job")
    if not run.over:
        run.driver.refuse_here(run.job.name)
    waiter = loop.waiter(0)
    key = run.add_waiter(waiter.wake)
    try:
        return await wait_until_shielded(loop, waiter, lambda: run.over)
    finally:
        waiter.left = True
        run.remove_waiter(key)
