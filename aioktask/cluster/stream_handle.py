# SPDX-License-Identifier: MIT
# How a stream on a cluster stands, and its handle.
#
# The stream's task writes the state, one attribute at a time; whoever asks reads it on any thread,
# without a lock, so that what is read may be a moment apart. How the stream ends is decided once.
# It is seen in snapshots of the process, as a stream on helpers here is.
"""Handles of streams on a cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, SupportsIndex
from urllib.parse import urlsplit

from aioktask.checks import nice_value
from aioktask.cluster.standing import Decision
from aioktask.engine.api import elsewhere
from aioktask.engine.state.run import numbers
from aioktask.job import JobPhase, Labels, StreamProgress, eta_of
from aioktask.status import JobStatus, WorkerStatus
from aioktask.telling import stream_card

__all__ = ["ClusterStreamHandle", "StreamState", "StreamWorker"]


@dataclass(slots=True, eq=False)
class StreamWorker:
    """A worker, and the items that it has, by number.

    Attributes:
        sends: The calls that wait for it.
        done: How many items it has told the outcome of.
        lost: Why it is gone; empty where it is not.
    """

    address: str
    threads: int
    items: dict[int, Any] = field(default_factory=dict)
    sends: set[asyncio.Task[None]] = field(default_factory=set)
    done: int = 0
    lost: str = ""

    def status(self, *, over: bool) -> WorkerStatus:
        return WorkerStatus(
            name=self.address,
            host=urlsplit(self.address).hostname or "",
            pid=None,
            threads=self.threads,
            state="lost" if self.lost else "closed" if over else "open",
            units=self.done,
            working=min(len(self.items), self.threads),
            lost=self.lost,
        )


@dataclass(slots=True, eq=False)
class StreamState:
    """How a stream stands. Times are on the clock of `time.monotonic`.

    Attributes:
        first_at: When the first item was sent; None before.
        last_at: When the last outcome came.
        taken: How many items were taken from the source.
        given: How many values the consumer has.
        done: How many items have an outcome.
        failed: How many of those the consumer has that are exceptions.
        source_ended: Whether all items were taken.
        asked: Whether the consumer waits for a value.
        stopping: Whether no further item is sent, whatever there is.
        workers: Those that are there, by address, and `gone` those that are not any more.
        error: What ended it, in words.
        over: Whether its scope was left, and nothing of it runs.
    """

    name: str
    nice: int | None  # None for what is usual in the workers
    labels: Labels
    entered_at: float = field(default_factory=time.monotonic)
    number: int = field(default_factory=lambda: next(numbers))
    decision: Decision = field(default_factory=Decision)
    first_at: float | None = None
    last_at: float = 0.0
    taken: int = 0
    given: int = 0
    done: int = 0
    failed: int = 0
    source_ended: bool = False
    asked: bool = False
    stopping: bool = False
    workers: dict[str, StreamWorker] = field(default_factory=dict)
    gone: list[StreamWorker] = field(default_factory=list)
    error: str = ""
    over: bool = False

    @property
    def at_workers(self) -> int:
        """How many items are at workers."""
        return sum(len(each.items) for each in list(self.workers.values()))

    @property
    def phase(self) -> JobPhase:
        how = self.decision.how
        if how is not None and (self.over or not self.at_workers):
            return how
        if how is not None or self.stopping:
            return "stopping"
        return "waiting" if self.first_at is None else "running"

    def progress(self) -> StreamProgress:
        phase, first_at, done = self.phase, self.first_at, self.done
        is_over = phase == self.decision.how
        until = self.last_at if is_over else time.monotonic()
        elapsed = 0.0 if first_at is None else max(until - first_at, 0.0)
        size = self.taken if self.source_ended else None
        eta: float | None = None
        if is_over:
            eta = 0.0
        elif size is not None and phase == "running":
            eta = eta_of(size - done, done, elapsed)
        return StreamProgress(
            done=done,
            size=size,
            threads=0 if is_over else sum(each.working for each in self.told_workers()),
            elapsed=elapsed,
            rate=done / elapsed if elapsed else 0.0,
            phase=phase,
            eta=eta,
            failed=self.failed,
        )

    def told_workers(self) -> tuple[WorkerStatus, ...]:
        there = [*self.gone, *list(self.workers.values())]
        return tuple(each.status(over=self.over) for each in there)

    def waits_for(self) -> str:
        """In words, what it waits for; empty where workers have items, or it is over."""
        if self.decision.how is not None or self.at_workers:
            return ""
        if not self.workers:
            return "a worker: the cluster has none yet"
        if not self.asked:  # which takes items from an ordinary source as it asks
            return "its consumer, which asks for no value"
        return "" if self.source_ended else "items of its source"

    def status(self) -> JobStatus:
        now, progress = time.monotonic(), self.progress()
        begun_at = now if self.first_at is None else self.first_at
        return JobStatus(
            number=self.number,
            kind="stream",
            name=self.name,
            labels=self.labels,
            nice=self.nice or 0,
            loan=None,
            phase=progress.phase,
            progress=progress,
            threads=progress.threads,
            queued=begun_at - self.entered_at,
            elapsed=progress.elapsed,
            age=now - self.entered_at,
            waits_for=self.waits_for(),
            workers=self.told_workers(),
            error=self.error,
        )


class ClusterStreamHandle:
    """A stream's handle, by which a program asks about it and changes it while it is open.

    It is to a stream on a cluster what `aioktask.StreamHandle` is to one on helpers here. Every
    method returns at once, on any thread. To wait for a stream is to leave its scope.
    """

    def __init__(self, state: StreamState, end: Callable[[], object]) -> None:
        self._state = state
        self._end = end
        self.number = state.number

    def __repr__(self) -> str:
        return f"<ClusterStreamHandle of {self.name!r}: {self._state.phase}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return stream_card(self.name, self.progress(), self.nice)

    @property
    def name(self) -> str:
        """The stream's name."""
        return self._state.name

    @property
    def nice(self) -> int:
        """The stream's nice, as it was asked for last."""
        return self._state.nice or 0

    def renice(self, nice: SupportsIndex) -> None:
        """Change the nice of the items that are sent from now on, a few of which workers have.

        Raises:
            TypeError, ValueError: `nice` is no integer, or not from -20 to 19.
        """
        self._state.nice = nice_value("nice", nice)

    def cancel(self) -> bool:
        """End the stream without waiting: no item is begun, and its consumer gets `JobCancelled`.

        Items that run finish; `current_chunk().check_cancelled()` tells them.

        Returns:
            Whether it came in time: False when the stream had ended before.
        """
        if not self._state.decision.decide("cancelled"):
            return self._state.decision.how == "cancelled" and not self.done()
        self._end()
        return True

    def done(self) -> bool:
        """Whether the stream is over: no item runs, and none will be begun."""
        return self.progress().over

    def progress(self) -> StreamProgress:
        """Where the stream stands."""
        return self._state.progress()

    def workers(self) -> tuple[WorkerStatus, ...]:
        """The workers that it has had, with the items that each has done."""
        return self._state.told_workers()

    # As `elsewhere.Elsewhere` asks for it.

    def status(self) -> JobStatus:
        """How it stands, for snapshots."""
        return self._state.status()

    def has_begun(self) -> bool:
        """Whether its first item was sent."""
        return self._state.first_at is not None

    def over(self) -> None:
        """Nothing of it runs any more, and nobody wants more of it: it is seen as over."""
        self._state.decision.decide("cancelled")  # unless it has ended otherwise
        self._state.over = True
        elsewhere.end(self, self.status())
