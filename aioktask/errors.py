# SPDX-License-Identifier: MIT
# What can go wrong beside the job's own exception, each with what it carries.
#
# A chunk's exception reaches the caller as it is; the classes here exist only where there is no
# such exception: a job that was cancelled or not taken in, a wait that could never end, an undo
# that failed.
"""The exceptions of aioktask."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "ChunkCancelled",
    "CoordinatorClosed",
    "DeadlockError",
    "JobCancelled",
    "Overloaded",
    "UndoFailed",
]


# The name of a class, whose own class may have an attribute of that name.
name_of_class = type.__dict__["__name__"].__get__


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception of whatever class: one that refuses attributes goes without."""
    with contextlib.suppress(Exception):
        BaseException.add_note(error, note)


class JobCancelled(Exception):  # noqa: N818 - the field says "cancelled", not "cancelled error"
    """The awaited job was ended by `handle.cancel()`, a shutdown or the exit of its coordinator.

    Raised to whoever waits for the handle. A waiter that is itself cancelled sees its loop's own
    cancellation instead. What was done has been undone if the job has an `undo`.
    """


class Overloaded(Exception):  # noqa: N818 - a state that passes, and no fault
    """A job could not begin in the time that it, its coordinator or the process allows it.

    It was refused as it was submitted, or ended before any of its chunks began: nothing was done.

    Attributes:
        queued: How many jobs with such bounds the coordinator had beyond those that its threads
            could serve at once; jobs without any are not counted.
        retry_after: Seconds after which one that comes is likely to have room, by the rate at which
            jobs ended, or began, of late; 1 where that is not known.
    """

    def __init__(self, message: str, queued: int, retry_after: float) -> None:
        super().__init__(message, queued, retry_after)
        self.queued = queued
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


class CoordinatorClosed(RuntimeError):  # noqa: N818 - a state, as in asyncio's `QueueShutDown`
    """The coordinator was drained, left or shut down: it takes no more jobs.

    Nothing was done. A server answers that it is stopping, so that clients go to another one.
    """


class ChunkCancelled(BaseException):
    """Raised inside a chunk by `check_cancelled()` when the job no longer wants the chunk.

    A `BaseException`, so that ``except Exception`` in a chunk does not swallow it. A chunk that
    catches it and returns counts as done.
    """


class DeadlockError(RuntimeError):
    """A wait was about to begin that could never end, because jobs would wait for each other.

    Attributes:
        jobs: The names of the jobs on the cycle, the waiting one first.
    """

    def __init__(self, jobs: Sequence[str]) -> None:
        self.jobs = tuple(jobs)
        chain = " waits for ".join([*self.jobs, self.jobs[0]])
        super().__init__(f"this wait would never end: {chain}")

    def __reduce__(self) -> tuple[type[DeadlockError], tuple[object, ...], dict[str, object]]:
        return type(self), (self.jobs,), self.__dict__


class UndoFailed(ExceptionGroup[Exception]):
    """At least one call of `undo` raised, so part of the job's work is still there.

    The exceptions are those of the failed calls; one that is no `Exception` is wrapped in a
    `RuntimeError` whose cause it is. ``__cause__`` is what made the job undo: a chunk's exception
    or the cancellation, whose place this error takes.

    Attributes:
        ranges: All that is still done, ascending, in the units of the job.
    """

    ranges: tuple[range, ...]

    def __new__(
        cls, message: str, errors: Iterable[BaseException], ranges: Iterable[range] = ()
    ) -> Self:
        self = super().__new__(cls, message, [_as_exception(error) for error in errors])
        self.ranges = tuple(ranges)
        return self

    def __init__(
        self, message: str, errors: Iterable[BaseException], ranges: Iterable[range] = ()
    ) -> None:
        super().__init__(message, self.exceptions)

    def derive(self, errors: Sequence[Exception], /) -> UndoFailed:  # type: ignore[override]
        """A group of some of these errors (as ``except*`` makes) that keeps `ranges`."""
        return UndoFailed(self.message, errors, self.ranges)

    def __reduce__(self) -> tuple[type[UndoFailed], tuple[object, ...], dict[str, object]]:
        return type(self), (self.message, self.exceptions, self.ranges), self.__dict__


def _as_exception(error: BaseException) -> Exception:
    if issubclass(type(error), Exception):  # an instance might say that it is another's
        return cast("Exception", error)
    name = name_of_class(type(error))
    try:
        text = f"undo raised {name}: {error}"
    except BaseException:  # of its own `__str__`
        text = f"undo raised {name}"
    wrapped = RuntimeError(text)
    wrapped.__cause__ = error
    return wrapped
