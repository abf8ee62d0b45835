# SPDX-License-Identifier: MIT
# What happens to jobs, told to whoever listens. The engine itself logs nothing.
"""Events of jobs."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum


class EventKind(Enum):
    SUBMITTED = "submitted"
    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNDONE = "undone"
    UNDO_FAILED = "undo_failed"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to one job.

    Attributes:
        kind: What happened.
        job: The job's name.
        run: A number of this run of the job, in this process.
        details: Figures and errors, by name.
        awaited: Whether somebody waits for the job, and so is told by other means too.
    """

    kind: EventKind
    job: str
    run: int
    details: Mapping[str, object]
    awaited: bool


Listener = Callable[[Event], None]

_listeners: tuple[Listener, ...] = ()


def listen(listener: Listener) -> None:
    """Call `listener` for every event, on the thread that makes it; it should be quick."""
    global _listeners
    _listeners = (*_listeners, listener)


def emit(event: Event) -> None:
    """Tell the listeners. What they raise is shown and goes no further."""
    for listener in _listeners:
        try:
            listener(event)
        except Exception:
            print(f"aioktask: a listener failed at {event}", file=sys.stderr)
            traceback.print_exc()
