# SPDX-License-Identifier: MIT
# One run of a job, from submit to its end.
#
# The state changes only in the methods here, and only while the caller holds the engine's lock.
# Nothing here blocks, starts a thread or calls the user's code.
#
#   WORK -> SETTLED -> DONE      all is done; SETTLED only where a cancel may still undo it (`hold`)
#   WORK -> UNDO -> DONE         an error or a cancel, and something to undo
#   WORK -> DONE                 an error or a cancel, and nothing to undo
#   SETTLED -> UNDO -> DONE      cancelled just after the last chunk
"""The life of a job that was submitted."""

from __future__ import annotations

import contextlib
import copy
import weakref
from contextvars import Context
from enum import Enum
from time import perf_counter_ns, thread_time_ns
from types import EllipsisType, TracebackType
from typing import Any, Literal, Protocol

from aioktask.engine import events
from aioktask.engine.claims import Claims, PartedClaims
from aioktask.engine.events import Event, EventKind
from aioktask.engine.helpers import Caller, kernel_and_delay_ns
from aioktask.engine.lessons import Key, Lesson, Lessons
from aioktask.engine.plan import (
    Split,
    chunk_size,
    count_chunks,
    most_threads,
    node_of,
    undo_grain,
)
from aioktask.engine.reduction import Tree
from aioktask.engine.scaling import Scaling
from aioktask.engine.scheduling.queue import Entry, Group
from aioktask.engine.sizing import Sizes
from aioktask.engine.state import record as accounts
from aioktask.engine.state.stint import Frame, enclosing
from aioktask.engine.tuning import next_stretch
from aioktask.engine.undo import Failed, outcome
from aioktask.errors import ChunkCancelled, JobCancelled, UndoFailed
from aioktask.job import Bound, Failure, Job, Report, set_failure

# Where so few stretches are left for each thread, the next one depends on where the others stand.
FEW_STRETCHES = 4

# How often a thread is asked what it waited for, of the time it serves: at first, and at most.
LOOK_NS = 5_000_000
MOST_LOOK_NS = 160_000_000

GIL_ADVICE = (
    "more threads get no more done, since they wait for each other: the function holds the GIL (or "
    "one lock of its own). Let it call what releases the GIL on larger blocks (NumPy, a compiled "
    "nogil function), or run it in processes"
)


class Phase(Enum):
    WORK = "work"
    SETTLED = "settled"
    UNDO = "undo"
    DONE = "done"


class Waiter(Protocol):
    """Who waits for a run to end. `wake` is called once, on any thread, outside the lock."""

    nice: int

    def wake(self) -> None: ...


class UndoLoop(Protocol):
    """The loop that a coroutine undo runs on."""

    def start_undo(self, run: Run) -> None: ...


class UndoOnLoop(Protocol):
    """A coroutine undo on its way."""

    def rescue(self) -> None: ...


class Run:
    """One run of a job. `State` calls the methods, under the pool's lock."""

    # What most runs never change stands on the class: a run is made for every request of a server.
    phase = Phase.WORK
    number = 0  # of this run in the process; the pool's to give
    caller: Caller | None = None  # a calling thread that would take more chunks
    tree: Tree | None = None  # of a reduce
    initial: object | EllipsisType = ...
    # What was done.
    done_units = chunks_done = peak_threads = 0
    first_claim = last_chunk = 0
    # When a helper took the priority of a waiter, as the report says it.
    lent: Literal["no", "at once", "at a chunk boundary"] = "no"
    scaled_at = 0  # the number of the chunk size when the number of threads was last found
    # What went wrong.
    cancelled = False
    error: BaseException | None = None
    error_chunk: range | None = None
    errors: tuple[BaseException, ...] = ()
    failed: tuple[Failed, ...] = ()
    # What of it is undone.
    undoing = False
    async_undo = False  # a coroutine undo is on its way
    undo_task: UndoOnLoop | None = None
    undo_errors: tuple[tuple[range, BaseException], ...] = ()
    to_undo: tuple[range, ...] = ()
    unknown: tuple[range, ...] = ()
    # What is told in the end.
    value: Any = None
    verdict: BaseException | None = None
    dropped: tuple[object, ...] = ()  # what the end of the run lets go of, for the outbox
    told = False  # whether somebody got it
    _trace: TracebackType | None = None  # of the verdict, as it was raised
    used: tuple[tuple[int, int], ...] = ()  # wall and CPU time of each thread, in ns
    _failure: Failure | None = None

    def __init__(
        self,
        job: Job[Any],
        split: Split,
        *,
        group: Group,
        nice: int,
        context: Context,
        loop: UndoLoop | None,
        parent: Run | None,
        hold: bool,
        sizes: Sizes | None = None,
        scaling: Scaling | None = None,
        key: Key | None = None,
        lessons: Lessons | None = None,
    ) -> None:
        self.job = job
        self.name = job.name
        self._bound = job.bind()
        self.fn = self._bound.fn
        self.split = split
        self.sizes = sizes  # where the chunk size is learned
        self.key = key  # under which that is remembered, if it is
        self.lessons = lessons  # where, and what was told already
        grain = split.chunk if sizes is None else sizes.grain
        if job.parts and any(part.node is not None for part in job.parts):
            pieces = [(each, node_of(job, each.start)) for each in split.spans]
            self.claims: Claims = PartedClaims(pieces, grain)
        else:
            self.claims = Claims(split.spans, grain)
        self.threads_planned = split.threads
        self.scaling = scaling  # where the number of threads is learned
        if sizes is not None:
            self.scaled_at = sizes.best
        self.limit = most_threads(job)
        self.entry = Entry(self, group, nice, min(self.limit, self.threads_learned))
        self.context = context
        self.loop = loop  # where a coroutine undo runs
        self.parent_number = 0 if parent is None else parent.number
        self.parent = parent  # the run in whose chunk somebody waits for this one, if so
        self.owned = hold  # by a call that waits for it and will take the result
        self.hold = hold and job.undo is not None  # a cancel may come until `commit`
        self.waiters: list[Waiter] = []  # who will get the result
        self.watchers: list[Waiter] = []  # who waits for the end only: a coordinator's exit
        self.news: list[Event] = []  # to be told outside the lock
        self.frames: dict[object, Frame] = {}
        self.reduces = job.reduce is not None
        if self.reduces:
            self.tree = Tree(count_chunks(job.start, job.stop, split.chunk))
            self.initial = ... if job.initial is ... else copy.deepcopy(job.initial)
        self._heard = events.routine_is_heard()
        self.submitted_at = perf_counter_ns()

    def __repr__(self) -> str:
        return f"<Run {self.number} of {self.name!r}: {self.phase.value}>"

    @property
    def urgency(self) -> int:
        """The nice at which whoever waits inside a chunk of this run waits."""
        return self.entry.nice if self.entry.loan is None else self.entry.loan

    @property
    def threads_learned(self) -> int:
        """How many threads the run deserves, by what is known."""
        return self.limit if self.scaling is None else self.scaling.level

    def cap_moved(self, cap: int) -> None:
        """At most so many threads may serve this run, as far as others decide."""
        self.threads_planned = max(min(self.limit, cap), 1)
        if self.scaling is not None:
            self.scaling.widen(self.threads_planned)

    def submitted(self, number: int) -> None:
        """The pool took the run in, as this number of its process."""
        self.number = number
        if self._heard:
            self.tell(
                EventKind.SUBMITTED,
                size=self.job.size,
                chunk=self.split.chunk if self.sizes is None else self.sizes.chunk,
                threads=self.threads_planned,
            )

    # What may happen now.

    @property
    def over(self) -> bool:
        return self.phase is Phase.DONE

    @property
    def working(self) -> bool:
        """Whether there are chunks that have not ended, or not begun."""
        return self.phase is Phase.WORK

    @property
    def stopping(self) -> bool:
        """Whether no new chunk may begin."""
        return self.error is not None or self.cancelled

    @property
    def claimable(self) -> bool:
        """Whether a thread would find something to do."""
        if not self.claims.left:
            return False
        if self.phase is Phase.WORK:
            return not self.stopping
        return self.phase is Phase.UNDO and not self.async_undo

    def unwanted(self) -> bool:
        """Whether this run, or one in whose chunk somebody waits for it, wants no more work."""
        run: Run | None = self
        while run is not None:
            if run.undoing:
                return False  # an undo is wanted whatever was cancelled around it
            if run.working and run.stopping:
                return True
            run = run.parent
        return False

    # A thread comes, walks and goes.

    def frame_of(self, thread: object) -> Frame:
        """The thread's frame: one for each thread and run, with a context of its own."""
        frame = self.frames.get(thread)
        if frame is None:
            frame = Frame(self, thread, self.context.copy())
            frame.look_at = LOOK_NS
            frame.context.run(enclosing.set, weakref.ref(frame))
            self.frames[thread] = frame
        return frame

    def enter(self, frame: Frame, now: int) -> None:
        """The frame's thread serves this run from now on."""
        frame.live = True
        frame.entered_at = now
        if self.entry.threads > self.peak_threads:
            self.peak_threads = self.entry.threads
        if not self.first_claim:
            self.first_claim = now
            if self._heard:
                self.tell(EventKind.STARTED, queued=(now - self.submitted_at) / 1e9)

    def leave(self, frame: Frame, now: int) -> None:
        """It does not any more."""
        frame.live = False
        frame.busy += now - frame.entered_at
        mark = thread_time_ns()
        frame.cpu += mark - frame.cpu_mark
        frame.cpu_mark = mark
        if self.scaling is not None and frame.busy >= frame.look_at:
            self._look(frame, self.scaling)

    def _look(self, frame: Frame, scaling: Scaling) -> None:
        """Ask what the frame's thread waited for since the last look: seldom, it costs 50 us."""
        system, delay = kernel_and_delay_ns()
        if frame.looked_at:
            wall, cpu = frame.busy - frame.looked_at, frame.cpu - frame.looked_cpu
            # What it waited for a CPU in other jobs between counts too, so it is seldom too much.
            waited = wall - cpu - (delay - frame.delay)
            scaling.served(self.entry.threads + 1, wall, waited, cpu, system - frame.system)
        frame.system, frame.delay = system, delay
        frame.looked_at, frame.looked_cpu = frame.busy, frame.cpu
        frame.look_at = min(2 * frame.busy, frame.busy + MOST_LOOK_NS)

    def claim(self, frame: Frame, now: int, generation: int) -> bool:
        """Give the frame a stretch to walk; False when there is none."""
        if not self.claimable:
            return False
        if self.sizes is None or self.undoing:
            stretch = self.claims.at(frame.node).claim(frame.chunks, self.entry.threads)
            assert stretch is not None
            self.claims.took()
            frame.start, frame.stop = stretch
            chunk = frame.chunk = self.claims.chunk
            frame.end = min(frame.start - frame.start % chunk + chunk, frame.stop)
        else:
            self._claim_learned(frame, self.sizes, now)
        frame.first = frame.start
        frame.threads = self.entry.threads
        frame.claimed_at = now
        frame.generation = generation
        return True

    def _claim_learned(self, frame: Frame, sizes: Sizes, now: int) -> None:
        if frame.pace is None:
            frame.pace = sizes.new_pace()
        left = self.claims.left
        sharers = max(self.entry.threads, min(self.threads_planned, self.threads_learned))
        ahead = 0
        if left < FEW_STRETCHES * sharers * max(sizes.chunk, frame.stop - frame.first):
            ahead = sum(self._ahead(each, now) for each in self.frames.values())
        chunk, count, frame.number = sizes.pick(frame.pace, left, sharers, ahead)
        # A larger size is tried at its full length, wherever the last stretch ended.
        piece = frame.number < 0 or frame.number > sizes.best
        taken = self.claims.at(frame.node).take(chunk, count, piece=piece)
        assert taken is not None
        self.claims.took()
        frame.start, frame.end, frame.stop = taken
        frame.chunk = chunk

    def _ahead(self, frame: Frame, now: int) -> int:
        """Units of the frame's stretch that are probably not done yet."""
        if not frame.live or frame.pace is None or frame.stop <= frame.first:
            return 0
        return max(frame.stop - frame.first - int(frame.pace.rate * (now - frame.claimed_at)), 0)

    def walked(self, frame: Frame, position: int, now: int) -> None:
        """The frame walked its stretch up to `position`; the rest comes back."""
        self._close_stretch(frame, position, position, now)

    def chunk_raised(self, frame: Frame, error: BaseException, now: int) -> None:
        """The chunk at ``frame.start`` raised `error`."""
        chunk = range(frame.start, frame.chunk_stop())
        upto = frame.advanced_to if frame.advanced_from == chunk.start else chunk.start
        self._close_stretch(frame, chunk.start, chunk.stop, now)
        if self.undoing:
            self.undo_errors += ((chunk, error),)
            return
        self.failed += (Failed(chunk.start, upto, chunk.stop),)
        self.done_units += upto - chunk.start
        if isinstance(error, ChunkCancelled) and self.unwanted():
            self.cancelled = self.cancelled or self.error is None
        else:
            self._add_error(error, f"in the chunk {chunk.start} to {chunk.stop}", chunk)

    def reduce_raised(self, frame: Frame, error: BaseException, now: int) -> None:
        """`reduce` raised: the chunks up to ``frame.start`` are done, but the job has no value."""
        frame.reducing = False
        self._close_stretch(frame, frame.start, frame.start, now)
        self._add_error(error, "in reduce")

    def _close_stretch(self, frame: Frame, done: int, free: int, now: int) -> None:
        """What the frame claimed is done up to `done`, and free again from `free` on."""
        chunks = frame.chunks_up_to(done)
        if chunks and (frame.pace is None or self.undoing):
            frame.chunks = next_stretch(chunks, now - frame.claimed_at)
        if chunks and not self.undoing:
            self._learn(frame, done - frame.first, now)
        self.claims.give_back(free, frame.stop)
        if not self.undoing:
            self.done_units += done - frame.first
            self.chunks_done += chunks
            self.last_chunk = now
        frame.first = frame.start = frame.stop = free

    def _learn(self, frame: Frame, units: int, now: int) -> None:
        """So many units of the frame's stretch are done."""
        steady = frame.threads == self.entry.threads
        if self.sizes is not None and frame.pace is not None:
            wall = now - frame.walked_at
            self.sizes.measured(frame.pace, frame.number if steady else -1, units, wall)
        if self.scaling is not None and steady:
            self._scale(frame, self.scaling, units, now - frame.claimed_at)

    def _scale(self, frame: Frame, scaling: Scaling, units: int, wall: int) -> None:
        """Likewise, for the number of threads: once the chunk size is known, or at once if they
        stand in each other's way, since then sizes cannot be compared."""
        sizes = self.sizes
        if sizes is not None:
            sizes.paused = scaling.urgent
            if frame.number != sizes.best or not (sizes.settled or sizes.paused):
                return
        known = scaling.holds_gil
        moved = scaling.measured(frame.threads, units, wall, self.claims.left)
        if scaling.holds_gil and not known:
            if sizes is not None:
                sizes.forget()
            if self.lessons is None or self.lessons.tell_once(self.job):
                self.tell(EventKind.HOLDS_GIL, threads=scaling.level, advice=GIL_ADVICE)
        if sizes is None:
            return
        if moved:
            sizes.disturbed()
            self.scaled_at = sizes.best
        elif abs(sizes.best - self.scaled_at) > 1:
            scaling.another_size()
            self.scaled_at = sizes.best

    def _add_error(self, error: BaseException, where: str, chunk: range | None = None) -> None:
        if self.stopping:
            if error is not self.error:
                self.errors += (error,)
            return
        self.error = accounts.raisable(error)
        self.error_chunk = chunk
        note = f"raised {where} of the job {self.name!r}"
        with contextlib.suppress(Exception):  # the user's class may refuse
            if note not in getattr(self.error, "__notes__", ()):
                BaseException.add_note(self.error, note)

    # The run as a whole.

    def settle(self) -> None:
        """Nobody is inside and nothing is claimable: go on to what comes next."""
        if self.phase is Phase.WORK and not self.stopping:
            if self.hold:
                self.phase = Phase.SETTLED
            else:
                self._succeed()
        elif self.phase is Phase.UNDO:
            self._finish()
        elif not self.over:
            self._stop()

    def commit(self) -> None:
        """The waiter took the result: from now on nothing can undo it."""
        if self.phase is Phase.SETTLED:
            self._succeed()

    def async_undo_raised(self, piece: range, error: BaseException) -> None:
        """The coroutine undo of `piece` raised, or was killed with its loop."""
        self.undo_errors += ((piece, error),)

    def lesson(self) -> Lesson:
        """What the next run of the function should begin with."""
        sizes = None if self.sizes is None or not self.sizes.rate else self.sizes.lesson()
        elapsed = self.last_chunk - self.first_claim
        return Lesson(sizes, self.scaling, self.done_units / elapsed if elapsed > 0 else 0.0)

    def no_helper(self, error: RuntimeError) -> None:
        """No thread could be had for this run, and none will be."""
        if self.undoing:
            self.undo_errors += tuple((range(*piece), error) for piece in self.claims.free)
            self.claims.clear()
        else:
            self._add_error(error, "for want of a helper")

    @property
    def undo_failed(self) -> bool:
        """Whether the end of this run is an `UndoFailed`."""
        return isinstance(self.verdict, UndoFailed)

    def _stop(self) -> None:
        found = outcome(range(self.job.start, self.job.stop), self.claims.free, self.failed)
        self.to_undo, self.unknown = found.done, found.unknown
        if self.tree is not None:
            self.tree.waiting.clear()
        if self.job.undo is None or not self.to_undo:
            self.claims.clear()
            self._finish()
            return
        self.phase = Phase.UNDO
        self.undoing = True
        self.async_undo = self.job.undo_is_async
        self.reduces = False
        self.fn = self._bound.undo or self.job.undo
        grain = undo_grain(self.job)
        units = sum(each.stop - each.start for each in self.to_undo)
        chunk = chunk_size(units, self.threads_planned, min_chunk=grain, align=grain)
        self.claims = Claims(self.to_undo, chunk)
        for frame in self.frames.values():
            frame.chunks = 1

    def _succeed(self) -> None:
        self.phase = Phase.DONE
        if self._bound.value is not None:
            self.value = self._bound.value()
        elif self.tree is not None:
            self.value = self.tree.value() if self.job.size else self.initial
        self._forget()
        if self._heard:
            report = accounts.report(self)
            learned = report.learned
            if learned.rate:
                self.tell(
                    EventKind.LEARNED,
                    chunk=learned.chunk,
                    threads=learned.threads,
                    rate=learned.rate,
                    settled=learned.settled,
                    remembered=learned.remembered,
                )
            self.tell(
                EventKind.FINISHED,
                elapsed=report.elapsed,
                queued=report.queued,
                chunks=report.chunks,
                threads=report.peak_threads,
            )

    def _finish(self) -> None:
        self.phase = Phase.DONE
        self._failure = accounts.failure(self)
        cause = self.error if self.error is not None else self.cancellation()
        set_failure(cause, self._failure, self.parent_number)
        self.verdict = self.error
        if self.undo_errors:
            self.verdict = accounts.undo_failed(self, self._failure, cause)
            self.tell(EventKind.UNDO_FAILED, ranges=self._failure.done, error=self.verdict)
        elif self.undoing:
            self.tell(EventKind.UNDONE, ranges=self._failure.undone)
        if self.error is not None:
            self.tell(EventKind.FAILED, error=self.error, chunk=self.error_chunk)
        else:
            self.tell(EventKind.CANCELLED, done=self._failure.done, undone=self._failure.undone)
        if self.verdict is not None:
            self._trace = self.verdict.__traceback__
        self._forget()

    def _forget(self) -> None:
        """Let go of what only a running job needs: when the lock is free, since it may be the last
        reference, and finalizers are anybody's code."""
        self.dropped = (
            self.fn,
            self._bound,
            tuple(self.frames.values()),
            self.loop,
            self.parent,
            self.tree,
            self.initial,
            self.errors,
            self.undo_errors,
            self.undo_task,
        )
        self.used = tuple((frame.busy, frame.cpu) for frame in self.frames.values())
        for frame in self.frames.values():
            # Its thread looks at the frame once more after the waiter was woken, who may by then
            # want to close the memory that the job's function holds.
            frame.run = OVER
        self.frames.clear()
        self.claims.clear()
        self.fn = _nothing
        self._bound = _NOTHING
        self.loop = self.parent = self.caller = None
        if self.job.reduce is not None:
            self.tree, self.initial = None, ...
        if self.stopping:
            self.errors, self.failed, self.undo_errors = (), (), ()
            self.undo_task = None

    def cancellation(self) -> JobCancelled:
        """A new exception that tells a waiter of the cancel."""
        error = JobCancelled(f"the job {self.name!r} was cancelled")
        if self._failure is not None:
            set_failure(error, self._failure, self.parent_number)
        return error

    def result(self) -> Report[Any]:
        """The report of a run that is over, or what it raises."""
        self.told = True
        if not self.stopping:
            return accounts.report(self)
        if self.verdict is not None:
            # Each raise would add to the traceback of the one exception that all waiters get.
            raise self.verdict.with_traceback(self._trace)
        raise self.cancellation()

    def tell(self, kind: EventKind, **details: object) -> None:
        self.news.append(
            Event(kind, self.name, self.number, details, awaited=self.owned or bool(self.waiters))
        )


def _nothing(start: int, stop: int) -> None:
    """What a run that is over calls."""


_NOTHING: Bound[Any] = Bound(_nothing)


# What frames of a run that is over refer to.
OVER = Run(
    Job(_nothing, 0, name="over"),
    Split(threads=0, chunk=1, spans=()),
    group=Group(),
    nice=0,
    context=Context(),
    loop=None,
    parent=None,
    hold=False,
)
OVER.phase = Phase.DONE
