# SPDX-License-Identifier: MIT
# One run of a job on workers: how it is asked for, waited for, looked at, and told of.
#
# Guarantees that whatever is called here may be called on any thread and hardly waits: what changes
# is posted to the driver's thread, and what is read is read under its lock, for as long as a
# session needs for one message, or is what was read before. How it ends is decided once. It is seen
# in snapshots of the process, and listeners of events hear of it, as of a job of the engine's.
"""Runs of jobs on workers."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import Context, copy_context
from dataclasses import replace
from typing import Any, Protocol, cast

from aioktask.cluster.job import ClusterJob
from aioktask.cluster.session import Decision, Orders, Outcome, Session
from aioktask.engine.api import elsewhere
from aioktask.engine.events import Beginning, Event, EventKind, emit, prepared, routine_is_heard
from aioktask.engine.raised import told_of_error
from aioktask.engine.state.run import numbers
from aioktask.errors import JobCancelled, Overloaded, UndoFailed
from aioktask.job import Progress, told_of
from aioktask.status import JobStatus, WorkerStatus
from aioktask.timeline import Timeline

__all__ = ["ClusterRun", "Owner"]

# How soon a job may come again that did not begin in time, in seconds, as nothing is known of that.
RETRY_AFTER = 1.0


# So many names of homes and of workers are told.
MOST_NAMED = 10


class Owner(Protocol):
    """What a run needs of whoever drives it.

    Attributes:
        lock: Guards the sessions, for those who read them. It may be taken again.
        begun: How many jobs are at the workers.
        waiting: How many wait for their turn.
        may_join: Whether workers may come that are not there yet.
    """

    lock: threading.RLock

    @property
    def begun(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    @property
    def may_join(self) -> bool: ...

    def refuse_in_child(self) -> None:
        """Raise in a forked child."""

    def refuse_here(self, name: str) -> None:
        """Raise in the thread that drives the sessions, which must not wait."""

    def post(self, run: ClusterRun, step: Callable[[], Orders]) -> None:
        """Have the thread take a step of a run."""

    def outside(self) -> AbstractContextManager[None]:
        """For functions of the program: let others read meanwhile."""

    def glance(self) -> AbstractContextManager[bool]:
        """Take the lock, if that takes hardly any time; whether it was taken."""


class ClusterRun:
    """One run of a job: what its handle refers to.

    Attributes:
        settled: Whether all is done, and its owner may commit.
        over: Whether its outcome is there.
        told: Whether somebody was given the outcome.
    """

    def __init__(
        self,
        driver: Owner,
        job: ClusterJob[Any],
        packed: bytes,
        timeout: float | None,
        owned: bool,
    ) -> None:
        now = time.monotonic()
        self.driver = driver
        self.job = job
        self.nice = job.nice
        self.max_threads = job.max_threads
        self.timeout = timeout
        self.deadline = None if timeout is None else now + timeout
        self.decision = Decision()
        self.number = next(numbers)
        self.session = Session(
            f"{uuid.uuid4().hex}-{self.number}",
            job,
            packed,
            decision=self.decision,
            now=now,
            may_join=driver.may_join,
            owned=owned,
            outside=driver.outside,
        )
        self.begun = False  # else it waits for its turn at the workers
        self.outcome: Outcome | None = None
        self.looked_at = now  # when `tick` was asked last
        self.settled = False
        self.told = False
        self.ended = threading.Event()
        self.owned = owned
        # Who is given the outcome as soon as it is there; each adds and removes a key of its own.
        self.askers: dict[object, None] = {}
        self._submitted_at = now
        self._waiters: dict[object, Callable[[], object]] = {}
        self._heard = routine_is_heard()
        self._told_submitted = self._told_started = self._told_unknown_homes = False
        # As listeners prepared it, who find in it what they set.
        self._context = copy_context()
        self._seen = self._status()

    @property
    def over(self) -> bool:
        return self.outcome is not None

    def wait(self, seconds: float | None = None) -> bool:
        """Wait in this thread until it is over, for so long at most; whether it is.

        Raises:
            DeadlockError: This is the thread that drives it.
        """
        if not self.over:
            self.driver.refuse_here(self.job.name)
        return self.ended.wait(seconds)

    def add_waiter(self, wake: Callable[[], object]) -> object:
        """Have `wake` be called when it has settled or is over; the caller looks after this."""
        key = object()
        self._waiters[key] = wake
        return key

    def remove_waiter(self, key: object) -> None:
        self._waiters.pop(key, None)

    def waiters(self) -> list[Callable[[], object]]:
        """What is called when it has settled or is over."""
        return list(self._waiters.values())

    # What is asked for.

    def cancel(self) -> bool:
        """End it; whether that came in time."""
        self.driver.refuse_in_child()
        self.decision.decide("cancelled")
        how = self.decision.how
        if self.over:
            return False
        # Also where that was decided before: a Ctrl-C may have come before it was posted.
        if how == "cancelled":
            self.driver.post(self, self._cancelled)
        elif how == "finished" and self.owned:
            self.driver.post(self, self._committed)
        return how == "cancelled"

    def _cancelled(self) -> Orders:
        error = JobCancelled(f"the job {self.job.name!r} was cancelled")
        return self.session.end(error, time.monotonic())

    def expire(self, now: float) -> Orders:
        """End it since its time is up, unless all is done and its owner is yet to take that."""
        session, name = self.session, self.job.name
        error: TimeoutError | Overloaded
        if session.phase == "settled":
            return []
        if self.begun:
            if not self.decision.decide("timed out"):
                return []
            error = TimeoutError(f"the job {name!r} was not done after {self.timeout} s")
        else:
            if not self.decision.decide("overloaded"):
                return []
            queued = self.driver.waiting
            error = Overloaded(
                f"the job {name!r} did not begin within {self.timeout} s: {queued} jobs waited for "
                "their turn at the workers",
                queued,
                RETRY_AFTER,
            )
        return session.end(error, now)

    def commit(self) -> bool:
        """Keep what is done, where nobody cancelled before: for its owner, when it has settled."""
        if not self.decision.decide("finished"):
            return False
        self.driver.post(self, self._committed)
        return True

    def _committed(self) -> Orders:
        return self.session.commit(time.monotonic())

    def renice(self, nice: int) -> None:
        self.driver.refuse_in_child()
        self.nice = nice
        self.driver.post(self, lambda: self.session.renice(self.nice))

    def limit(self, threads: int) -> None:
        """Have it be served by so many threads in each worker at most."""
        self.driver.refuse_in_child()
        self.max_threads = threads
        self.driver.post(self, lambda: self.session.limit(threads))

    def next_look(self) -> float | None:
        """When the session may have something to do that no message tells of; None for never."""
        seconds = self.session.next_look()
        return None if seconds is None else self.looked_at + seconds

    # What is seen.

    def progress(self) -> Progress:
        self.driver.refuse_in_child()
        with self.driver.lock:
            return self.session.progress(time.monotonic())

    def workers(self) -> tuple[WorkerStatus, ...]:
        self.driver.refuse_in_child()
        with self.driver.lock:
            return self.session.workers()

    def timeline(self) -> Timeline:
        self.driver.refuse_in_child()
        with self.driver.lock:
            return self.session.timeline(time.monotonic())

    def has_begun(self) -> bool:
        """Whether its first chunk has."""
        return self.session.phase != "waiting"

    def status(self) -> JobStatus:
        """How it stands, for snapshots; where the driver's thread is long at a step, how it did."""
        with self.driver.glance() as taken:
            if taken:
                self._seen = self._status()
        return self._seen

    def _status(self) -> JobStatus:
        session, now = self.session, time.monotonic()
        progress = session.progress(now)
        age = now - self._submitted_at
        workers = session.workers()
        error, chunk = session.why_it_fails()
        waits_for = "" if session.over else self._waits_for()
        if waits_for and not progress.threads and progress.phase == "running":
            progress = replace(progress, eta=None)  # nobody knows when it goes on
        return JobStatus(
            number=self.number,
            kind="job",
            name=self.job.name,
            labels=self.job.labels,
            nice=self.nice,
            loan=None,
            phase=progress.phase,
            progress=progress,
            threads=session.peak_threads if session.over else progress.threads,
            queued=session.queued(now),
            elapsed=progress.elapsed,
            age=age,
            undone=progress.undone if session.over else 0,
            waits_for=waits_for,
            workers=workers,
            error="" if error is None else told_of_error(error),
            error_chunk=chunk,
        )

    def _waits_for(self) -> str:
        if self.begun or self.session.phase != "waiting":
            return self.session.waits_for()
        return f"its turn: {self.driver.begun} jobs of its coordinator are at the workers"

    # What is told.

    def prepare(self) -> None:
        """On the submitting thread: have it be seen, and listeners prepare its context."""
        elsewhere.add(self)
        if self._heard:
            job = self.job
            beginning = Beginning(job.name, self.number, "job", job.size, self.nice, job.labels)
            self._context = prepared(self._context, beginning)

    def tell_refused(self) -> None:
        """On the submitting thread: tell that it was not taken in, and have it be seen no more."""
        elsewhere.drop(self)
        if self._heard:
            self._tell(EventKind.REFUSED, {})

    def tell_submitted(self) -> None:
        """Tell that it was taken in, if that was not told."""
        if self._heard and not self._told_submitted:
            self._told_submitted = True
            job = self.job
            told = {"size": job.size, "chunk": job.chunk or 0, "threads": job.max_threads or 0}
            self._tell(EventKind.SUBMITTED, told, time.monotonic() - self._submitted_at)

    def tell_started(self) -> None:
        """Tell that its first chunk began, if that is so and was not told."""
        if not self._heard or self._told_started or self.session.phase == "waiting":
            return
        ago = self.session.first_ago(time.monotonic())
        if ago is not None:
            self._told_started = True
            self._tell(EventKind.STARTED, {"queued": self.session.queued(0.0)}, ago)

    def tell_unknown_homes(self) -> None:
        """Tell that no worker has the names of homes, if that is so and was not told."""
        found = self.session.unknown_homes
        if found is None or self._told_unknown_homes:
            return
        self._told_unknown_homes = True
        homes, workers = (sorted(each)[:MOST_NAMED] for each in found)
        advice = (
            f"homes= names {_listed(homes, len(found[0]))}, and no worker or host is called so, so "
            f"others do those units: workers go by {_listed(workers, len(found[1]))}"
        )
        told = {"homes": tuple(homes), "workers": tuple(workers), "advice": advice}
        self._tell(EventKind.HOMES_UNKNOWN, told)

    def tell_end(self) -> None:
        """Tell how it ended, as of a job of the engine's: perhaps nobody else asks."""
        with self.driver.lock:
            self._seen = self._status()
        try:
            self._tell_end()
        finally:
            elsewhere.end(self, self._seen)
            self._context = Context()  # nothing of the program's is held

    def _tell_end(self) -> None:
        outcome, how = self.session.outcome, self.decision.how
        error = None if outcome is None else outcome.error
        failure = None if error is None else told_of(error)
        progress = self._seen.progress
        details: dict[str, object] = {
            "elapsed": progress.elapsed,
            "queued": self._seen.queued,
            "chunks": self.session.chunks,
            "threads": self._seen.threads,
        }
        undoing = self.session.undoing_seconds
        # An exception of the program's may say that it is another one's instance.
        failed = cast("UndoFailed", error) if issubclass(type(error), UndoFailed) else None
        if failed is not None:
            told = {"ranges": failed.ranges, "error": failed, "undoing": undoing}
            self._tell(EventKind.UNDO_FAILED, told)
            details["undoing"] = undoing
        elif failure is not None and failure.undone:
            self._tell(EventKind.UNDONE, {"ranges": failure.undone, "undoing": undoing})
            details["undoing"] = undoing
        cause = error if failed is None else failed.__cause__
        if error is None:
            if self._heard:
                self._tell(EventKind.FINISHED, details)
        elif how in ("cancelled", "timed out", "overloaded"):
            if failure is not None:
                details |= {"done": failure.done, "undone": failure.undone}
            if how != "cancelled":
                details |= {"why": how, "expired": str(cause)}
            self._tell(EventKind.CANCELLED, details)
        else:
            details |= {"error": cause, "chunk": None if failure is None else failure.chunk}
            if worker := self.session.worker_of(cause):
                details["worker"] = worker
            self._tell(EventKind.FAILED, details)

    def _tell(self, kind: EventKind, details: Mapping[str, object], ago: float = 0.0) -> None:
        awaited = self.owned or self.told or bool(self.askers)
        at = time.time_ns() - int(ago * 1e9)
        event = Event(
            kind, self.job.name, self.number, details, awaited, self.job.labels, "job", at
        )
        self._context.run(emit, event)


def _listed(names: Sequence[str], of: int) -> str:
    """Some names, of so many that there are."""
    more = f" and {of - len(names)} more" if of > len(names) else ""
    return f"{', '.join(map(repr, names))}{more}"
