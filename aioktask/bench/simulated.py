# SPDX-License-Identifier: MIT
# Workers that exist in a simulated clock alone: the real session decides, an event queue stands for
# machines and messages. What a worker does is a rate, which may change, and ledgers in memory.
#
# Guarantees that the same calls make the same run, whatever the machine does, but for the time that
# the session's own decisions take, which is real and only counted. Relies on units that take no
# notice of each other: a worker's rate is the same for all of them.
"""A cluster without machines: `Simulation`."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from aioktask.cluster.job import ClusterJob
from aioktask.cluster.messages import (
    Began,
    Cancel,
    Close,
    Closed,
    Command,
    Ended,
    Joined,
    Lost,
    Message,
    Open,
    Opened,
    Progressed,
    Recall,
    Run,
    Undo,
    Undone,
)
from aioktask.cluster.packing import packed_error
from aioktask.cluster.session import Decision, Orders, Session
from aioktask.engine.ranges.undo import merge

__all__ = ["Simulation", "Worker", "covered_once", "nothing"]

TICK = 1e-6  # so that a unit which ends now has ended

LONGEST = 1e5  # no simulated job takes so long, in seconds


def nothing(start: int, stop: int, data: object) -> None:
    """What a simulated job calls, and never does."""


@dataclass
class Worker:
    """A simulated one. `rate` is in units a second."""

    name: str
    rate: float
    host: str = "somewhere"
    queue: list[Run] = field(default_factory=list)
    order: Run | None = None
    begun_at: float = 0.0
    done_before: float = 0.0  # of the order, before the rate changed last
    told_at: float = 0.0
    alive: bool = True
    cancelled: bool = False
    left: bool = False
    undo_raises: bool = False
    ledger: list[range] = field(default_factory=list)
    recalled: set[str] = field(default_factory=set)


class Simulation:
    """A session and its workers, from its start to its end.

    Args:
        job: What is run; its functions are never called.
        latency: How long a message is on its way, in seconds.
        service: How long the coordinator's side, one thing after the other, needs for a message
            that it hears and for a command that it sends, in seconds.
        session: More that the session takes.

    Attributes:
        now: Seconds.
        commands: How many were sent.
        heard: How many messages of workers were heard.
        recalls: How many of the commands called a stretch back.
        deciding: Seconds, real ones, that the session needed to decide.
        done: What was done, as often as it was, in the order of its end, with the worker.
        lost_running: What lost workers were at.
    """

    def __init__(
        self,
        job: ClusterJob[Any],
        latency: float = 0.002,
        *,
        service: float = 0.0,
        **session: Any,
    ) -> None:
        self.job = job
        self.now = 0.0
        self.latency = latency
        self.service = service
        self.commands = 0
        self.heard = 0
        self.recalls = 0
        self.deciding = 0.0
        self.workers: dict[str, Worker] = {}
        self.done: list[tuple[str, range]] = []
        self.lost_running: list[range] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.decision = Decision()
        self.session = Session("s", job, b"", decision=self.decision, now=0.0, **session)
        self._tick_at: float | None = None
        # What has come and was not heard yet, and until when the coordinator has its hands full.
        self._inbox: deque[Message] = deque()
        self._free_at = 0.0

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Have something happen then."""
        heapq.heappush(self._events, (when, next(self._numbers), what))

    def run(self, *, ends: bool = True) -> None:
        """From the start until the session is over, or until nothing happens any more."""
        while self._events and self._events[0][0] == 0.0:  # who is there when it begins
            heapq.heappop(self._events)[2]()
        self.apply(self.session.start(self.now, []))
        self.go_on(ends=ends)

    def go_on(self, *, ends: bool = True) -> None:
        """On until the session is over, or until nothing happens any more.

        Raises:
            RuntimeError: The job never ends, and `ends` says that it should.
        """
        while self._events and not self.session.over and self.now < LONGEST:
            self.now, _, what = heapq.heappop(self._events)
            what()
        if ends and not self.session.over:
            raise RuntimeError(f"the job {self.job.name!r} is not over after {self.now:g} s")

    # What the world does.

    def join(self, name: str, rate: float, host: str = "somewhere") -> None:
        """A worker is there, of so many units a second."""
        self.workers[name] = Worker(name, rate, host)
        self._hear(Joined(name, host))

    def lose(self, name: str, *, all_heard: bool = True, may_undo: bool = False) -> None:
        """A worker dies."""
        worker = self.workers[name]
        if not worker.alive:
            return
        worker.alive = False
        if worker.order is not None:
            self.lost_running.append(worker.order.stretch.range)
        lost = Lost(name, "was lost", all_heard=all_heard, may_undo=may_undo)
        self.at(self.now + self.latency, lambda: self._arrived(lost))

    def leave(self, name: str) -> None:
        """A worker goes in good order: it stops, undoes what it did, and is gone."""
        worker = self.workers[name]
        worker.cancelled = worker.left = True
        if worker.order is not None:
            self._end(worker, "cancelled")
        self._next(worker)
        self._undo(worker)
        self._say(worker, Lost(name, "left the cluster", all_heard=True, may_undo=False))

    def set_rate(self, name: str, rate: float) -> None:
        """From now on a worker does so many units a second."""
        worker = self.workers[name]
        if worker.order is not None:
            worker.done_before = self._done_of(worker)
            worker.begun_at = self.now
        worker.rate = rate
        if worker.order is not None and worker.alive:
            self._plan_end(worker)

    # Workers.

    def _say(self, worker: Worker, message: Message) -> None:
        self.at(self.now + self.latency, lambda: self._arrived(message))

    def _done_of(self, worker: Worker) -> float:
        assert worker.order is not None
        length = len(worker.order.stretch.range)
        return min(worker.done_before + (self.now - worker.begun_at) * worker.rate, length)

    def _obey(self, worker: Worker, command: Command) -> None:
        if not worker.alive:
            return
        if worker.left:
            if isinstance(command, Run):
                self._say(worker, Ended("s", worker.name, command.stretch.lease, "refused"))
            return
        if isinstance(command, Open):
            self._say(worker, Opened("s", worker.name, 1, 0))
        elif isinstance(command, Run):
            worker.queue.append(command)
            self._next(worker)
        elif isinstance(command, Recall):
            self.recalls += 1
            self._recall(worker, command.lease)
        elif isinstance(command, Cancel):
            worker.cancelled = True
            if worker.order is not None:
                self._end(worker, "cancelled")
            self._next(worker)
        elif isinstance(command, Undo):
            self._undo(worker)
        elif isinstance(command, Close):
            self._say(worker, Closed("s", worker.name))

    def _undo(self, worker: Worker) -> None:
        done = merge(worker.ledger)
        if worker.undo_raises:
            errors = (packed_error(ValueError("stays")),)
            self._say(worker, Undone("s", worker.name, (), done, errors))
            return
        worker.ledger = []
        self._say(worker, Undone("s", worker.name, done, (), ()))

    def _recall(self, worker: Worker, lease: str) -> None:
        worker.recalled.add(lease)
        if any(each.stretch.lease == lease for each in worker.queue):
            self._say(worker, Ended("s", worker.name, lease, "recalled"))
        order = worker.order
        if order is not None and order.stretch.lease == lease:
            # The unit that it is at is done to its end.
            done = self._done_of(worker)

            def end() -> None:
                if worker.order is order and worker.alive:
                    self._end(worker, "recalled")
                    self._next(worker)

            self.at(self.now + (math.ceil(done) - done) / worker.rate + TICK, end)
        self._next(worker)

    def _next(self, worker: Worker) -> None:
        while worker.order is None and worker.queue:
            order = worker.queue.pop(0)
            lease = order.stretch.lease
            if worker.cancelled or lease in worker.recalled:
                how: Any = "cancelled" if worker.cancelled else "recalled"
                self._say(worker, Ended("s", worker.name, lease, how))
                continue
            worker.order = order
            worker.begun_at, worker.done_before, worker.told_at = self.now, 0.0, self.now
            self._say(worker, Began("s", worker.name, lease))
            self._plan_end(worker)
            self._tell_later(worker, order)

    def _tell_later(self, worker: Worker, order: Run) -> None:
        self.at(self.now + order.tell_every, lambda: self._tell(worker, order))

    def _tell(self, worker: Worker, order: Run) -> None:
        if worker.order is order and worker.alive:
            done = int(self._done_of(worker))
            self._say(worker, Progressed("s", worker.name, order.stretch.lease, done, 1))
            self._tell_later(worker, order)

    def _plan_end(self, worker: Worker) -> None:
        order, rate, since = worker.order, worker.rate, worker.begun_at
        assert order is not None
        left = len(order.stretch.range) - worker.done_before

        def end() -> None:
            same = worker.order is order and (worker.rate, worker.begun_at) == (rate, since)
            if same and worker.alive:
                self._end(worker, "done")
                self._next(worker)

        self.at(self.now + left / rate, end)

    def _end(self, worker: Worker, how: Any) -> None:
        order = worker.order
        assert order is not None
        stretch = order.stretch
        units = len(stretch.range) if how == "done" else int(self._done_of(worker))
        piece = range(stretch.start, stretch.start + units)
        # What it took, by its own clock: the rate that it had on the whole.
        seconds = max(units / worker.rate, 1e-9)
        worker.order = None
        done = (piece,) if piece else ()
        worker.ledger += done
        self.done += [(worker.name, each) for each in done]
        ended = Ended("s", worker.name, stretch.lease, how, done, seconds=seconds, chunks=1)
        self._say(worker, ended)

    # The coordinator.

    def _arrived(self, message: Message) -> None:
        if not self.service:
            self._hear(message)
            return
        self._inbox.append(message)
        if len(self._inbox) == 1:
            self._serve_next()

    def _serve_next(self) -> None:
        def serve() -> None:
            self._hear(self._inbox[0])
            self._inbox.popleft()
            if self._inbox:
                self._serve_next()

        self._free_at = max(self.now, self._free_at) + self.service
        self.at(self._free_at, serve)

    def _hear(self, message: Message) -> None:
        self.heard += not isinstance(message, Joined)  # which no worker says
        began = time.perf_counter()
        orders = self.session.hear(message, self.now)
        self.deciding += time.perf_counter() - began
        self.apply(orders)

    def cancel(self, error: BaseException) -> None:
        """The job's owner ends it."""
        if self.decision.decide("cancelled"):
            self.apply(self.session.end(error, self.now))

    def apply(self, orders: Orders) -> None:
        """Send commands, one after the other."""
        self.commands += len(orders)
        for name, command in orders:
            worker = self.workers[name]
            self._free_at = max(self.now, self._free_at) + self.service
            there = self._free_at + self.latency
            self.at(there, lambda w=worker, c=command: self._obey(w, c))  # type: ignore[misc]
        self._plan_tick()

    def _plan_tick(self) -> None:
        look = self.session.next_look()
        if look is None or (self._tick_at is not None and self._tick_at >= self.now):
            return
        self._tick_at = self.now + look

        def tick() -> None:
            self._tick_at = None
            self.apply(self.session.tick(self.now))

        self.at(self.now + look, tick)


def covered_once(pieces: Iterable[range], whole: range) -> bool:
    """Whether these ranges are all of `whole`, and no unit is in two."""
    reached = whole.start
    for piece in sorted(pieces, key=lambda each: each.start):
        if piece.start != reached:
            return False
        reached = piece.stop
    return reached == whole.stop
