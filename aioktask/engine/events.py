# SPDX-License-Identifier: MIT
# What happens to jobs, told to the listeners that there are. The engine itself logs nothing; what
# was raised where nobody could catch it is shown on standard error.
"""Events of jobs."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple


class EventKind(Enum):
    SUBMITTED = "job_submitted"
    REFUSED = "job_refused"
    STARTED = "job_started"
    LEARNED = "job_learned"
    HOLDS_GIL = "job_holds_gil"
    STALLED = "stream_stalled"
    STUCK = "chunk_stuck"
    BOUND_TO_ONE_CPU = "process_bound_to_one_cpu"
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
    """

    kind: EventKind
    job: str
    run: int
    details: Mapping[str, object]
    awaited: bool
    labels: Mapping[str, str] = MappingProxyType({})


Listener = Callable[[Event], None]

# Only ever appended to, in one step: modules are imported, and register, in any threads.
_listeners: list[Listener] = []
_wishes: list[Callable[[], bool]] = []


def listen(listener: Listener, wants_routine: Callable[[], bool]) -> None:
    """Call `listener` for events, on the thread that makes them; it should be quick.

    What went wrong is always told; that a job was submitted, started or finished only if
    `wants_routine()` says so when the job is submitted.
    """
    _listeners.append(listener)
    _wishes.append(wants_routine)


def routine_is_heard() -> bool:
    """Whether a listener wants to hear that a job was submitted, started or finished."""
    for wish in _wishes:  # noqa: SIM110 - a generator would double the cost, for every job
        if wish():
            return True
    return False


def emit(event: Event) -> None:
    """Tell the listeners. What they raise is shown and goes no further."""
    for listener in _listeners:
        try:
            listener(event)
        except Exception:
            print(f"aioktask: a listener failed at {event}", file=sys.stderr)
            traceback.print_exc()


def show_exception() -> None:
    """Show the exception that is being handled, where nobody could catch it; raises nothing."""
    try:
        traceback.print_exc()
    except BaseException:  # no memory for that, or nowhere to write to
        return
