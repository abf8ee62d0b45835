# SPDX-License-Identifier: MIT
# What a turn has to say once the lock is free: whom to wake, what to tell, which threads to start,
# and which objects to let go of, whose finalizers may be user code.
"""The outbox of turns."""

from __future__ import annotations

from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, NamedTuple

from aioktask.engine import events
from aioktask.engine.learning.lessons import Key, Lesson
from aioktask.engine.state.workers import Helper, Parking, Waiter

if TYPE_CHECKING:
    from aioktask.engine.state.run import Run


class Source(NamedTuple):
    """Where on disk a lesson is kept, and what for.

    Attributes:
        directory: Its path, or `DISK`.
        key: The key of the lesson.
        run: The number of a run of the function, for events.
    """

    directory: str
    key: Key
    run: int


class Outbox:
    """What is to be done after a turn.

    Attributes:
        renices: Helpers whose threads should perhaps be of another nice.
        notes: What is to be attached to which exception, whose class may be the user's.
        events: What is to be told, each in the context that its run was submitted in.
        waiters: The waiters that are to be woken.
        undos: Runs whose coroutine undo should begin.
        parkings: Those of threads that have work now.
        starts: Helpers that should be started.
        readings: What should be read from disk for runs that wait for it.
        looks: Whether somebody should look how much memory is left, for a run that waits for that.
        lessons: What was learned, to be kept on disk.
        ended: Runs that may let go now of what they held.
        dropped: What else may be finalized now.
        look_by: When the keeper should look at deadlines at the latest, in ns; 0 for no such time.
    """

    __slots__ = (
        "dropped",
        "ended",
        "events",
        "lessons",
        "look_by",
        "looks",
        "notes",
        "parkings",
        "readings",
        "renices",
        "starts",
        "undos",
        "waiters",
    )

    def __init__(self) -> None:
        self.renices: list[Helper] = []
        self.notes: list[tuple[BaseException, str]] = []
        self.events: list[tuple[Context, events.Event]] = []
        self.waiters: deque[Waiter] = deque()
        self.undos: list[Run] = []
        self.parkings: list[Parking] = []
        self.starts: list[Helper] = []
        self.readings: list[Source] = []
        self.looks = False
        self.lessons: list[tuple[Source, Lesson | None]] = []
        self.ended: list[Run] = []
        self.dropped: list[object] = []
        self.look_by = 0

    def __bool__(self) -> bool:
        return bool(
            self.parkings
            or self.waiters
            or self.ended
            or self.dropped
            or self.starts
            or self.events
            or self.notes
            or self.renices
            or self.undos
            or self.readings
            or self.looks
            or self.lessons
            or self.look_by
        )

    def tell(self, run: Run) -> None:
        """Take what the run has to tell."""
        if run.note is not None:
            self.notes.append(run.note)
            run.note = None
        if run.news:
            context = run.context.copy()
            self.events += ((context, event) for event in run.news)
            run.news.clear()
        if run.over:
            run.drop_context()
            self.ended.append(run)
