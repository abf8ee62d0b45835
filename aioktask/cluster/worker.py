# SPDX-License-Identifier: MIT
# The worker's side: the data of each job, the order of its stretches, its ledger and its undo.
#
# A station obeys commands one by one, in the order in which they come, and never waits: each
# session has a thread that makes the data, does stretches in turn on the helpers of this process,
# undoes and closes. Guarantees that a lease is used once, that a stretch is told of as begun before
# the first call of its function, and that what was done is in the ledger before it is told. Relies
# on the engine for knowing which units of a stretch that was stopped are done.
"""What a worker does with what it is told."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

from aioktask.checks import check_done
from aioktask.cluster.doing import Asked, Doing, do, ended_by_force
from aioktask.cluster.messages import (
    Began,
    Cancel,
    Close,
    Closed,
    Command,
    Ended,
    Limit,
    Message,
    Open,
    Opened,
    OpenFailed,
    Recall,
    Renice,
    Run,
    Undo,
    Undone,
)
from aioktask.cluster.packing import Kit, packed_error, unpacked_job
from aioktask.engine.api.coordinator import Coordinator
from aioktask.engine.api.handle import Handle
from aioktask.engine.api.process import max_threads, tunables
from aioktask.engine.ranges.undo import merge, subtract
from aioktask.job import Job

__all__ = ["Station", "here"]

# What the carrier says that this worker is: of Dask, its Worker. Set in the thread of each session,
# and so in the chunks that it submits.
here: ContextVar[Any] = ContextVar("here")

# So long a worker that nobody commands any more waits for chunks, the undo and `close`, in seconds;
# whoever stops a worker gives it less, most often.
LEAVING_SECONDS = 3600.0
# As good as no limits: jobs, and seconds.
NO_LIMITS: dict[str, Any] = {"max_queued": 1 << 30, "max_wait": 1e9}


class _OfParts(Coordinator):
    """A coordinator whose jobs are stretches of jobs of another process, and their undo."""

    are_parts = True


class Station:
    """All sessions of one worker.

    Args:
        name: The worker's.
        tell: Called with each message, on any thread.
        threads: The most helpers for all of its sessions together; None for what the process may
            have.
        place: What `here` is in its sessions.
    """

    def __init__(
        self,
        name: str,
        tell: Callable[[Message], object],
        threads: int | None = None,
        place: object = None,
    ) -> None:
        self.name = name
        self.place = place
        self.tell = tell
        # What the process has set for queues does not hold here: a refusal would come to nobody who
        # could wait.
        unlimited = {name: most for name, most in NO_LIMITS.items() if tunables()[name] is not None}
        self.coordinator = _OfParts(max_threads=threads, **unlimited)
        self.threads = max_threads() if threads is None else min(threads, max_threads())
        self._parts: dict[str, _Part] = {}
        self._leaves = False  # then nothing is opened any more
        _stations.add(self)

    def obey(self, command: Command) -> None:
        """Take a command. Never waits."""
        part = self._parts.get(command.session)
        if isinstance(command, Open):
            if part is None and not self._leaves:
                part = self._parts[command.session] = _Part(self, command)
                try:
                    part.thread.start()
                except RuntimeError as error:  # the system has no more threads
                    self.forget(command.session)
                    self.tell(OpenFailed(command.session, self.name, packed_error(error)))
        elif part is not None:
            part.obey(command)
        elif isinstance(command, Run):
            lease = command.stretch.lease
            self.tell(Ended(command.session, self.name, lease, "refused"))
        elif isinstance(command, Close):
            self.tell(Closed(command.session, self.name))

    def forget(self, session: str) -> None:
        self._parts.pop(session, None)

    @property
    def asks_before_undo(self) -> bool:
        """Whether it has a job of which it must not undo anything that the coordinator may redo."""
        return any(each.idempotent for each in list(self._parts.values()))

    def leave(self) -> None:
        """Open nothing any more, since this worker leaves."""
        self._leaves = True

    def abandon(self, seconds: float = LEAVING_SECONDS, *, known: bool = True) -> bool:
        """Nobody commands any more: stop, undo and close all sessions, and wait for that.

        Args:
            seconds: How long to wait, at most.
            known: Whether the coordinator knows, or is gone. Else it may have others do again what
                is done here of a job that is idempotent: so that is not undone.

        Returns:
            Whether all of that is done.
        """
        self.leave()
        until = time.monotonic() + seconds
        parts = list(self._parts.values())
        for part in parts:
            part.abandon(known=known)
        for part in parts:
            part.thread.join(max(until - time.monotonic(), 0.0))
        return not any(part.thread.is_alive() for part in parts)


# Those of this process. One that ends without abandoning them, as a worker of Dask's does whose
# loop is stopped, undoes all the same: this module is imported after the engine's, so its hook runs
# first, while there are helpers to undo with.
_stations: weakref.WeakSet[Station] = weakref.WeakSet()


@atexit.register
def _abandon_all() -> None:
    for station in list(_stations):
        station.abandon(known=False)


if hasattr(os, "register_at_fork"):  # what a worker did is not for a child of its to undo
    os.register_at_fork(after_in_child=_stations.clear)


class _Part:
    """One session on this worker. Its thread does one thing after the other."""

    def __init__(self, station: Station, order: Open) -> None:
        self._station = station
        self._session = order.session
        self._asked = Asked(order.nice)
        self._kit: Kit | None = None
        self._data: Any = None
        self._has_data = False
        self._ledger: tuple[range, ...] = ()
        self._kept: tuple[range, ...] = ()  # of the ledger: undo raised, and is called once only
        self._undoing: tuple[range, ...] = ()  # of the ledger: undo is at it
        # What becomes of each lease, decided in one step by whoever comes first: the order that
        # begins, or None where it was called back before.
        self._leases: dict[str, Run | None] = {}
        self._closes = False
        self._doing: Doing | None = None
        self._over = False
        self._todo: queue.SimpleQueue[Callable[[], bool] | Run] = queue.SimpleQueue()
        self._todo.put(lambda: self._open(order.job))
        self.thread = threading.Thread(
            target=self._serve, name=f"aioktask-session-{order.session[:8]}", daemon=True
        )

    def obey(self, command: Command) -> None:
        if isinstance(command, Run):
            self._asked.nice = command.nice  # here, so that a later Renice is the later one
            self._asked.max_threads = command.max_threads
            self._todo.put(command)
            if self._over:
                self._refuse_all()
        elif isinstance(command, Undo):
            self._todo.put(self._undo)
        elif isinstance(command, Close):
            self._closes = True
            self._todo.put(self._close)
        elif isinstance(command, Cancel):
            self._cancel()
        elif isinstance(command, Recall):
            if self._leases.setdefault(command.lease, None) is None:
                name = self._station.name
                self._tell(Ended(self._session, name, command.lease, "recalled"))
            doing = self._doing
            if doing is not None and doing.order.stretch.lease == command.lease:
                doing.recall()
        elif isinstance(command, Renice):
            self._asked.nice = command.nice
            self._follow()
        elif isinstance(command, Limit):
            self._asked.max_threads = command.max_threads
            self._follow()

    def abandon(self, *, known: bool) -> None:
        self._cancel()
        self._todo.put(self._undo if known else self._undo_unless_idempotent)
        self._todo.put(lambda: self._close(tell=False))

    def _cancel(self) -> None:
        self._asked.cancelled = True
        self._follow()

    def _follow(self) -> None:
        doing = self._doing
        if doing is not None:
            doing.follow()

    def _serve(self) -> None:
        here.set(self._station.place)
        goes_on = True
        while goes_on:
            step = self._todo.get()
            try:
                goes_on = self._run(step) if isinstance(step, Run) else step()
            except BaseException as error:  # nothing that happens here leaves the job waiting
                goes_on = self._struck(step, error)
            del step
        self._over = True
        self._refuse_all()

    def _struck(self, step: Callable[[], bool] | Run, error: BaseException) -> bool:
        """Tell what is known where a step raised that should not; whether more may come."""
        session, name = self._session, self._station.name
        packed_up = packed_error(error)
        if isinstance(step, Run):
            stretch = step.stretch
            done: tuple[range, ...] = ()
            unknown: tuple[range, ...] = ()
            if self._leases.get(stretch.lease) is step:  # it may have been struck after all of it
                unknown = _without((stretch.range,), self._ledger)
                done = _without((stretch.range,), unknown)
            errors = (packed_up,)
            self._tell(Ended(session, name, stretch.lease, "failed", done, unknown, errors))
        elif self._kit is None:
            self._station.forget(session)
            self._tell(OpenFailed(session, name, packed_up))
            return False
        elif step in (self._undo, self._undo_unless_idempotent):
            unknown, self._undoing = self._undoing, ()
            self._ledger = self._kept = _without(self._ledger, unknown)
            self._tell(Undone(session, name, (), self._ledger, (packed_up,), unknown))
        else:
            self._station.forget(session)
            self._tell(Closed(session, name, packed_up))
            return False
        return True

    def _refuse_all(self) -> None:
        """Nobody serves what comes after the end, so it is not run."""
        with contextlib.suppress(queue.Empty):
            while True:
                step = self._todo.get_nowait()
                if isinstance(step, Run):
                    lease = step.stretch.lease
                    self._tell(Ended(self._session, self._station.name, lease, "refused"))

    def _tell(self, message: Message) -> None:
        self._station.tell(message)

    def _open(self, job: bytes) -> bool:
        station = self._station
        try:
            kit = unpacked_job(job)
            if kit.setup is not None and not (self._asked.cancelled or self._closes):
                self._data = kit.setup()
                self._has_data = True
        except BaseException as error:
            station.forget(self._session)
            self._tell(OpenFailed(self._session, station.name, packed_error(error)))
            return False
        self._kit = kit
        self._tell(Opened(self._session, station.name, station.threads, os.getpid()))
        return True

    def _run(self, order: Run) -> bool:
        stretch = order.stretch
        name, kit = self._station.name, self._kit
        assert kit is not None

        def not_begun(how: Any) -> bool:
            self._tell(Ended(self._session, name, stretch.lease, how))
            return True

        if stretch.worker != name:
            return not_begun("refused")
        doing = Doing(order, self._asked)
        # Before it is looked whether it is wanted: who recalls does the reverse.
        self._doing = doing
        try:
            if self._asked.cancelled:
                return not_begun("cancelled")
            first = self._leases.setdefault(stretch.lease, order)
            if first is not order:
                return not_begun("recalled" if first is None else "used")
            self._tell(Began(self._session, name, stretch.lease))
            ended = do(kit, self._data, doing, self._station.coordinator, self._tell)
            self._ledger = merge((*self._ledger, *ended.done))
            self._tell(ended)
        finally:
            self._doing = None
        return True

    @property
    def idempotent(self) -> bool:
        """Whether others may do again what is done here."""
        return self._kit is not None and self._kit.idempotent

    def _undo_unless_idempotent(self) -> bool:
        return True if self.idempotent else self._undo()

    def _undo(self) -> bool:
        kit = self._kit
        undone: tuple[range, ...] = ()
        kept: tuple[range, ...] = self._ledger
        errors: list[bytes] = []
        pieces = _without(self._ledger, self._kept)
        if kit is not None and kit.undo is not None and pieces:
            self._kept = self._ledger  # also where this is struck
            self._undoing = pieces
            failed = self._undo_all(kit, pieces)
            left = _without(self._ledger, pieces)
            self._kept = kept = merge((*left, *(piece for piece, _ in failed)))
            undone = _without(pieces, kept)
            errors = [packed_error(error) for _, error in failed]
            self._ledger, self._undoing = kept, ()
        self._tell(Undone(self._session, self._station.name, undone, kept, tuple(errors)))
        return True

    def _undo_all(self, kit: Kit, pieces: Sequence[range]) -> list[tuple[range, BaseException]]:
        """Call undo for all of these, whatever single calls raise; those that did."""
        failed: list[tuple[range, BaseException]] = []
        undo, data = kit.undo, self._data

        def undo_piece(start: int, stop: int) -> None:
            try:
                check_done(undo(start, stop, data), "undo", kit.name)
            except BaseException as error:
                failed.append((range(start, stop), error))

        handles: list[tuple[range, Handle[None]]] = []
        for piece in pieces:
            job: Job[None] = Job(
                undo_piece,
                len(piece),
                start=piece.start,
                align=kit.grain,
                max_threads=self._asked.max_threads or kit.max_threads,
                nice=self._asked.nice,
                learn="nothing",
                name=f"undo of {kit.name}",
            )
            try:
                handles.append((piece, self._station.coordinator.submit(job)))
            except BaseException as error:  # the system has no more threads, or no more memory
                failed.append((piece, error))
        for piece, handle in handles:
            try:
                handle.result()
            except BaseException as error:  # none of undo: those are kept above
                known, _ = ended_by_force(handle, piece)
                failed += [(left, error) for left in subtract(piece, known)]
        return failed

    def _close(self, *, tell: bool = True) -> bool:
        error = b""
        kit = self._kit
        if self._has_data and kit is not None and kit.close is not None:
            try:
                kit.close(self._data)
            except BaseException as raised:
                error = packed_error(raised)
        self._data = None
        self._station.forget(self._session)
        if tell:
            self._tell(Closed(self._session, self._station.name, error))
        return False


def _without(pieces: Sequence[range], others: Sequence[range]) -> tuple[range, ...]:
    return merge(left for each in pieces for left in subtract(each, others))
