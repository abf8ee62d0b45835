# SPDX-License-Identifier: MIT
# One stretch on its worker, as a job of the engine: it is let in chunk by chunk, called back,
# cancelled, and told of.
#
# Guarantees that what was asked for last holds, also where that came before the job was there; that
# chunks of a stretch that is called back are wanted still; that all of the stretch is told of:
# done, unknown, or not begun; and that whatever its chunks raised is told. Relies on the engine for
# knowing which units of a job that ended are done.
"""Doing a stretch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aioktask.checks import check_done
from aioktask.cluster.messages import Ended, Message, Progressed, Run
from aioktask.cluster.packing import Kit, packed_error, packed_nodes
from aioktask.cluster.reducing import Reducing
from aioktask.engine.api.coordinator import Coordinator
from aioktask.engine.api.handle import Handle
from aioktask.engine.api.snapshots import why_it_waits
from aioktask.engine.ranges.undo import merge, subtract
from aioktask.engine.state.current import current_chunk
from aioktask.errors import JobCancelled
from aioktask.job import Job, told_of

__all__ = ["Asked", "Doing", "do", "ended_by_force"]


@dataclass(slots=True)
class Asked:
    """What a session asked of a worker last, of all its stretches.

    Attributes:
        nice: The job's.
        max_threads: The most threads for it; None for no such limit.
        cancelled: Whether nothing more is wanted.
    """

    nice: int
    max_threads: int | None = None
    cancelled: bool = False


class Doing:
    """The stretch that is being done: what lets chunks in, and calls the rest back.

    The engine would tell chunks of a job that is cancelled that they are not wanted, and those of a
    stretch that is called back are. So no further chunk is let in, and the job is cancelled when
    the last one that is inside has come out.

    Attributes:
        skipped: What was not let in.
    """

    def __init__(self, order: Run, asked: Asked) -> None:
        self.order = order
        self.asked = asked
        self.handle: Handle[Any] | None = None
        self.recalled = False
        self.skipped: list[range] = []
        self._raised: list[tuple[BaseException, range]] = []
        self._inside = 0
        self._lock = threading.Lock()  # guards how many are inside, and what is skipped for that
        self._drained = threading.Event()

    def enter(self, start: int, stop: int) -> bool:
        """Whether the chunk may run. One that may not waits until the job is cancelled."""
        with self._lock:
            if not self.recalled:
                self._inside += 1
                return True
            self.skipped.append(range(start, stop))
        self._drained.wait()
        return False

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
        self._look()

    def note(self, error: BaseException, start: int, stop: int) -> None:
        """Remember which chunk raised this."""
        self._raised.append((error, range(start, stop)))

    def chunk_of(self, error: BaseException) -> range | None:
        """The chunk that raised this."""
        return next((chunk for raised, chunk in self._raised if raised is error), None)

    def lacking(self, done: Sequence[range]) -> BaseException | None:
        """What a chunk raised that is done all the same: so its value is lacking."""
        inside = (
            error
            for error, chunk in self._raised
            if any(each.start <= chunk.start and chunk.stop <= each.stop for each in done)
        )
        return next(inside, None)

    def forget(self) -> None:
        """Hold no exception any more, whose traceback leads back here."""
        self._raised.clear()

    def recall(self) -> None:
        with self._lock:
            self.recalled = True
        self._spare()
        self._look()

    def begin(self, handle: Handle[Any]) -> None:
        """This is its job; what was asked for before holds for that too."""
        self.handle = handle
        self._spare()
        self._look()
        self.follow()

    def follow(self) -> None:
        """Have the job be as it was asked for last."""
        handle, asked = self.handle, self.asked
        if handle is None:
            return
        if asked.cancelled:
            handle.cancel()
        if handle.nice != asked.nice:
            handle.renice(asked.nice)
        limit = asked.max_threads
        if limit is not None and limit != handle.max_threads and not self.recalled:
            handle.max_threads = limit

    def _spare(self) -> None:
        """Where it was called back, let helpers go that would have no chunk: others use them."""
        handle = self.handle
        if self.recalled and handle is not None:
            handle.max_threads = 1

    def _look(self) -> None:
        """Cancel the job if it was called back and no chunk is inside."""
        handle = self.handle
        with self._lock:
            drained = self.recalled and not self._inside and handle is not None
        if drained:
            assert handle is not None
            handle.cancel()
            self._drained.set()


def do(
    kit: Kit,
    data: Any,
    doing: Doing,
    coordinator: Coordinator,
    tell: Callable[[Message], object],
) -> Ended:
    """Do a stretch; what came of it.

    Args:
        kit: The job.
        data: What its functions work on.
        doing: The stretch.
        coordinator: On whose helpers.
        tell: Called with what is told meanwhile.
    """
    asked, order, stretch = doing.asked, doing.order, doing.order.stretch
    leaves = None
    if kit.reduce is not None:
        leaves = Reducing(kit.start, kit.size, kit.leaf, kit.reduce, kit.initial, kit.name)
    job: Job[None] = Job(
        _chunk_function(kit, data, doing, leaves),
        len(stretch.range),
        start=stretch.start,
        # Chunks end where the undo may begin, so that no call of fn is undone in halves.
        align=kit.align if kit.undo is None else kit.grain,
        min_chunk=1 if leaves is not None else kit.min_chunk,
        chunk=kit.leaf if leaves is not None else kit.chunk,
        max_threads=asked.max_threads,
        nice=asked.nice,
        name=kit.name,
    )
    done: tuple[range, ...] = (stretch.range,)
    unknown: tuple[range, ...] = ()
    errors: list[bytes] = []
    chunk: range | None = None
    how: Any = "done"
    cpu_time, threads = 0.0, 0
    handle: Handle[None] | None = None
    try:
        handle = coordinator.submit(job)
        doing.begin(handle)
        waits_for = ""
        for beat, state in enumerate(handle.watch(order.tell_every)):
            threads = max(threads, state.threads)
            # Not as it begins, when nearly all wait for a moment.
            idle = beat and not state.threads and not state.over
            why = why_it_waits(handle) if idle else ""
            if (state.done or why != waits_for) and not state.over:
                waits_for = why
                told = state.done, state.threads, why
                tell(Progressed(order.session, stretch.worker, stretch.lease, *told))
        report = handle.result()
        cpu_time, threads = report.cpu_time, report.peak_threads
    except BaseException as raised:
        known = told_of(raised)
        if known is None:  # it struck this thread, not the job
            done, unknown = ended_by_force(handle, stretch.range)
        else:
            done, unknown, chunk = known.done, known.unknown, known.chunk
            errors += map(packed_error, known.errors)
        if issubclass(type(raised), JobCancelled) and (doing.recalled or asked.cancelled):
            # The last chunks inside may have raised all the same.
            if known is not None and known.errors:
                chunk = doing.chunk_of(known.errors[0])
            elif leaves is not None and (lacking := doing.lacking(done)) is not None:
                errors.append(packed_error(lacking))
            how = "cancelled" if asked.cancelled else "failed" if errors else "recalled"
        else:
            how = "failed"
            errors.insert(0, packed_error(raised))
    done = merge(piece for each in done for piece in subtract(each, doing.skipped))
    if doing.skipped and how == "done":
        how = "recalled"
    nodes = b""
    # Also of a stretch that is cancelled, since the worker may leave.
    if leaves is not None and how != "failed":
        try:
            nodes = packed_nodes(leaves.nodes(), kit.name)
        except BaseException as refused:  # of a method of a value's
            how = "failed"
            errors.append(packed_error(refused))
    last = None if handle is None else handle.progress()
    doing.forget()
    return Ended(
        order.session,
        stretch.worker,
        stretch.lease,
        how,
        done,
        unknown,
        tuple(errors),
        chunk,
        nodes,
        0 if last is None else last.chunks,
        0.0 if last is None else last.elapsed,
        cpu_time,
        threads,
    )


def ended_by_force(
    handle: Handle[Any] | None, piece: range
) -> tuple[tuple[range, ...], tuple[range, ...]]:
    """What of a range is done, and what may be, once its job has ended; it is cancelled first."""
    if handle is None:
        return (), ()
    handle.cancel()
    try:
        handle.result()
    except BaseException as ended:
        told = told_of(ended)
        return ((), (piece,)) if told is None else (told.done, told.unknown)
    return (piece,), ()


def _chunk_function(
    kit: Kit, data: Any, doing: Doing, leaves: Reducing | None
) -> Callable[[int, int], object]:
    """The function of the engine's job. It closes over the job's own, by which it learns."""
    fn = kit.fn

    def call(start: int, stop: int) -> object:
        if not doing.enter(start, stop):
            return None
        try:
            value = fn(start, stop, data)
            if leaves is None:
                return value
            check_done(value, "fn", kit.name)
            current_chunk().advance(stop)  # where `reduce` raises, this is done all the same
            leaves.take_leaf(start, value)
            return None
        except BaseException as error:
            doing.note(error, start, stop)
            raise
        finally:
            doing.leave()  # last: then its job may be cancelled

    return call
