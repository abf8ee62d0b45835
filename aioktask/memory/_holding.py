# SPDX-License-Identifier: MIT
# What is taken, held and let go of: a region, a pin, a mapping.
#
# How something is taken and let go of is written once, as a generator of jobs ("steps"): quick
# system calls stand between the `yield`s, and what may take long is a job that the caller runs,
# awaited or in a thread. When a job fails or is cancelled, its exception is raised at the `yield`;
# from then on the generator only takes back what it did, and yields jobs for that.
#
# Jobs that take something back are seen to their end whatever cancels come meanwhile: they are run
# again from the start until they went through, so each of them must do no harm when it is repeated
# (munlock, MADV_DONTNEED and UNMAP_DMA do none). Steps note what they are about to do before they
# do it, so that a KeyboardInterrupt between two instructions loses nothing.
"""Steps that take and give back, and the scope that holds in between."""

from __future__ import annotations

import abc
import threading
import warnings
from collections.abc import Generator
from types import TracebackType
from typing import Any, Self

import anyio

from aioktask.checks import optional
from aioktask.engine.api.coordinator import Coordinator
from aioktask.engine.api.run_job import run_multithreaded, run_multithreaded_sync
from aioktask.errors import JobCancelled, UndoFailed
from aioktask.job import Job

__all__ = ["Holding", "Steps", "drive", "drive_sync"]

Steps = Generator[Job[Any], None, None]

# What follows when something in this state is to be closed.
_WHEN_CLOSED = {
    "new": "closed",
    "opening": "opening",
    "open": "closing",
    "closing": "closing",
    "closed": "closed",
}

# In the sync form a second Ctrl-C gives up, as it does in run_multithreaded_sync.
_INTERRUPTS_TO_GIVE_UP = 2


class Holding(abc.ABC):
    """Something that is held from entering to leaving.

    ``async with``, or ``with`` in a thread; or by plain calls: ``held = await thing`` and
    ``await held.aclose()``, or ``held = thing.open()`` and ``held.close()``. Nothing happens before
    one of these. It is for one use: what was closed is not opened again.

    **Cancellation.** Cancelled while it is taken: running chunks finish, what was taken is given
    back, and then the cancellation goes on. Giving back is not stopped by any cancel: it is ended
    first, and then the first cancellation goes on.
    """

    def __init__(self, coordinator: Coordinator | None) -> None:
        self._coordinator = optional("coordinator", coordinator, Coordinator)
        # Held to look at _state and change it, in a line without a call, which nothing interrupts:
        # a finalizer that opens or closes it may come between the lines of who holds the lock.
        self._lock = threading.RLock()
        self._state = "new"

    @abc.abstractmethod
    def _taking(self) -> Steps:
        """Take it, all of it or nothing."""

    @abc.abstractmethod
    def _giving_back(self) -> Steps:
        """Give it back. If this raises, it may be tried again."""

    def _opening(self) -> Steps:
        yield from self._taking()
        self._state = "open"

    def _closing(self) -> Steps:
        yield from self._giving_back()
        self._state = "closed"

    async def _open(self) -> Self:
        self._begin_to_open()
        try:
            await drive(self._opening(), self._coordinator, certain=False)
        finally:
            if self._state == "opening":
                self._state = "closed"
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Give it back. Does nothing when it is closed.

        Raises:
            OSError: The kernel refused; it is open still.

        **Cancellation** does not stop it: it gives back first.
        """
        if self._begins_to_close():
            try:
                await drive(self._closing(), None, certain=True)
            finally:
                if self._state == "closing":
                    self._state = "open"

    def open(self) -> Self:
        """Take it, in a thread that runs no event loop.

        Raises:
            RuntimeError: This thread runs an event loop: await it instead. Or it was opened before.
        """
        self._begin_to_open()
        try:
            drive_sync(self._opening(), self._coordinator, certain=False)
        finally:
            if self._state == "opening":
                self._state = "closed"
        return self

    def close(self) -> None:
        """Give it back, in a thread that runs no event loop. Does nothing when it is closed.

        Raises:
            OSError: The kernel refused; it is open still.
            RuntimeError: This thread runs an event loop: await `aclose` instead.
        """
        if self._begins_to_close():
            try:
                drive_sync(self._closing(), None, certain=True)
            finally:
                if self._state == "closing":
                    self._state = "open"

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if getattr(self, "_state", "new") == "open":
            text = f"{type(self).__name__} was never closed: use `async with` or call close()"
            _warn(text, ResourceWarning, stacklevel=2, source=self)

    def _check_open(self) -> None:
        if self._state != "open":
            raise RuntimeError(f"this {type(self).__name__} is {self._state}, not open")

    def _begin_to_open(self) -> None:
        with self._lock:
            before, self._state = self._state, "opening" if self._state == "new" else self._state
        if before != "new":
            raise RuntimeError(
                f"this {type(self).__name__} is {before}: make a new one for each use"
            )

    def _begins_to_close(self) -> bool:
        with self._lock:
            before, self._state = self._state, _WHEN_CLOSED[self._state]
        if before in ("opening", "closing"):
            raise RuntimeError(f"this {type(self).__name__} is {before} elsewhere")
        return before == "open"


async def drive(steps: Steps, coordinator: Coordinator | None, *, certain: bool) -> None:
    """Run each job that the steps yield, awaited.

    Args:
        steps: What to do.
        coordinator: Of the jobs that take something. Those that take back belong to nobody who
            could cancel them.
        certain: Whether all of it takes back, so that nothing may stop it.

    Raises:
        BaseException: Of the job that failed, or the cancellation, when all is taken back.
        UndoFailed: Taking back failed; the other error is its cause.
    """
    walk = _Walk(steps, certain=certain)
    while (job := walk.step()) is not None:
        try:
            if not walk.certain:
                await run_multithreaded(job, coordinator=coordinator)
            else:
                await _certainly(job, walk)
        except GeneratorExit:
            # The loop is gone: nobody will run what is left but this thread.
            walk.failed(_Dropped())
            while (job := walk.step()) is not None:
                _here(job, walk)
            raise
        except BaseException as error:
            walk.failed(error)
    walk.end()


def drive_sync(steps: Steps, coordinator: Coordinator | None, *, certain: bool) -> None:
    """Run the jobs of `steps` one after the other; the calling thread takes part in them."""
    walk = _Walk(steps, certain=certain)
    while (job := walk.step()) is not None:
        try:
            if not walk.certain:
                run_multithreaded_sync(job, coordinator=coordinator)
            else:
                _certainly_sync(job, walk)
        except BaseException as error:
            walk.failed(error)
    walk.end()


class _Dropped(BaseException):
    """For the steps, in place of a GeneratorExit: generators may not yield after that."""


class _Walk:
    """Where the steps are, and what came in between."""

    def __init__(self, steps: Steps, *, certain: bool) -> None:
        self._steps = steps
        self.certain = certain
        self._job: Job[Any] | None = None
        self._thrown: BaseException | None = None
        self._first: BaseException | None = None  # why it takes back
        self._not_undone = False  # a job that takes back failed
        self._raised: BaseException | None = None  # what came out in the end
        self.interrupted: BaseException | None = None  # the first cancel while it took back

    def step(self) -> Job[Any] | None:
        """The next job, or None at the end."""
        error, self._thrown = self._thrown, None
        try:
            self._job = next(self._steps) if error is None else self._steps.throw(error)
        except StopIteration:
            return None
        except BaseException as raised:
            self._raised = raised
            return None
        return self._job

    def failed(self, error: BaseException) -> None:
        """A job raised this: have the steps take back."""
        self._thrown = error
        if self._first is None:
            self._first = error
        else:
            self._not_undone = True
        self.certain = True

    def end(self) -> None:
        """Raise what there is to raise."""
        raised, first, interrupted = self._raised, self._first, self.interrupted
        # Tracebacks hold this frame, and so all that it names.
        self._raised = self._first = self._thrown = self.interrupted = None
        try:
            if raised is None:
                if interrupted is not None:
                    raise interrupted
            elif not self._not_undone:
                if interrupted is not None and interrupted is not raised:
                    raise interrupted from raised
                raise raised
            else:
                assert self._job is not None
                left = range(self._job.start, self._job.stop)
                text = f"{self._job.name} failed, so what was taken may be there still"
                raise UndoFailed(text, [raised], (left,)) from first
        finally:
            del raised, first, interrupted


async def _certainly(job: Job[Any], walk: _Walk) -> None:
    cancels = anyio.get_cancelled_exc_class(), KeyboardInterrupt
    while True:
        try:
            # Against cancelled scopes; a task's own `cancel()` of asyncio comes through it, once.
            with anyio.CancelScope(shield=True):
                await run_multithreaded(job, coordinator=None)
        except cancels as error:
            walk.interrupted = walk.interrupted or error
        except (JobCancelled, RuntimeError):
            # A coordinator around us that ended, or the end of the interpreter.
            return _here(job, walk)
        else:
            return None


def _certainly_sync(job: Job[Any], walk: _Walk) -> None:
    interrupts = 0
    while True:
        try:
            run_multithreaded_sync(job, coordinator=None)
        except KeyboardInterrupt as error:
            walk.interrupted = walk.interrupted or error
            interrupts += 1
            if interrupts == _INTERRUPTS_TO_GIVE_UP:
                raise
        except (JobCancelled, RuntimeError):
            return _here(job, walk)
        else:
            return None


def _here(job: Job[Any], walk: _Walk) -> None:
    """Do a job in this thread, as one chunk."""
    try:
        if job.size:
            job.bind().fn(job.start, job.stop)
    except Exception as error:
        walk.failed(error)
