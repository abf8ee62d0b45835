# SPDX-License-Identifier: MIT
# What happens to jobs, told to the listeners that there are. The engine itself logs nothing; what
# was raised where nobody could catch it is shown on standard error.
"""Events of jobs."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextvars import Context
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from aioktask.status import Kind


class EventKind(Enum):
    SUBMITTED = "job_submitted"
    REFUSED = "job_refused"
    STARTED = "job_started"
    LENT = "job_lent"
    LENT_NO_MORE = "job_lent_no_more"
    LEARNED = "job_learned"
    HOLDS_GIL = "job_holds_gil"
    STALLED = "stream_stalled"
    STUCK = "chunk_stuck"
    BOUND_TO_ONE_CPU = "process_bound_to_one_cpu"
    HOMES_UNKNOWN = "homes_unknown"
    FINISHED = "job_finished"
    FAILED = "job_failed"
    CANCELLED = "job_cancelled"
    UNDONE = "job_undone"
    UNDO_FAILED = "job_undo_failed"
    NOT_REMEMBERED = "lesson_not_used"
    NOT_KEPT = "lesson_not_kept"
    LEFT_BEHIND = "jobs_left_behind"
    INITIALIZER_FAILED = "helper_initializer_failed"
    ENGINE_FAILED = "engine_failed"


class Event(NamedTuple):
    """One thing that happened to one job.

    Attributes:
        kind: What happened.
        job: The job's name.
        run: A number of this run of the job, in this process.
        details: Figures and errors, by name.
        awaited: Whether the job has an owner or a waiter, who is told by other means too.
        labels: Those of the job.
        subject: What it happened to.
        at: When, in ns since the epoch; 0 where nobody said. It is told somewhat later.
    """

    kind: EventKind
    job: str
    run: int
    details: Mapping[str, object]
    awaited: bool
    labels: Mapping[str, str] = MappingProxyType({})
    subject: Kind = "job"
    at: int = 0


class Beginning(NamedTuple):
    """A job that is being submitted.

    Attributes:
        job: The job's name.
        run: A number of this run of the job, in this process.
        subject: What it is.
        size: Its units; None for a stream, which does not know.
        nice: At which it was submitted.
        labels: Those of the job.
    """

    job: str
    run: int
    subject: Kind
    size: int | None
    nice: int
    labels: Mapping[str, str] = MappingProxyType({})


Listener = Callable[[Event], None]
Preparer = Callable[[Beginning], None]

# Only ever appended to, in one step: modules are imported, and register, in any threads.
_listeners: list[Listener] = []
_wishes: list[Callable[[], bool]] = []
_preparers: list[Preparer] = []


def listen(
    listener: Listener, wants_routine: Callable[[], bool], prepare: Preparer | None = None
) -> None:
    """Call `listener` for events, on the thread that makes them; it should be quick.

    What went wrong is always told; that a job was submitted, started or finished only if
    `wants_routine()` says so when the job is submitted. A listener is never let go of: one that
    wants nothing any more does nothing, and wishes for nothing.

    Args:
        listener: Called in the context of the job.
        wants_routine: Whether it wants to hear of all that happens to a job.
        prepare: Called for each job that somebody wants to hear all of, by the submitting thread
            and in the context of the job, before the job is there: what it sets there its
            functions find, and those who listen.
    """
    if prepare is not None:
        _preparers.append(prepare)
    _listeners.append(listener)
    _wishes.append(wants_routine)


def routine_is_heard() -> bool:
    """Whether a listener wants to hear that a job was submitted, started or finished."""
    for wish in _wishes:  # noqa: SIM110 - a generator would double the cost, for every job
        if wish():
            return True
    return False


def prepared(context: Context, beginning: Beginning) -> Context:
    """The context for a job that is heard of, after whoever prepares such has set what he sets.

    What they raise is shown and goes no further.

    Args:
        context: That of who submits; it may be that of other jobs too, so it stays as it is.
        beginning: The job.
    """
    if not _preparers:
        return context
    context = context.copy()
    for prepare in _preparers:
        try:
            context.run(prepare, beginning)
        except Exception:
            _show_failure("the begin", beginning)
    return context


def at(when: int) -> int:
    """A time of `perf_counter_ns` as one for `Event.at`."""
    return time.time_ns() - (time.perf_counter_ns() - when)


def emit(event: Event) -> None:
    """Tell the listeners. What they raise is shown and goes no further."""
    for listener in _listeners:
        try:
            listener(event)
        except Exception:
            _show_failure(event.kind.value, event)


def _show_failure(what: str, of: Event | Beginning) -> None:
    """Say at what a listener failed; not all of it, since it may be that which cannot be shown."""
    told = f"aioktask: a listener failed at {what} of the job {of.job!r} (run {of.run})"
    print(told, file=sys.stderr)
    show_exception()


def show_exception() -> None:
    """Show the exception that is being handled, where nobody could catch it; raises nothing."""
    try:
        traceback.print_exc()
    except BaseException:  # no memory for that, or nowhere to write to
        return
