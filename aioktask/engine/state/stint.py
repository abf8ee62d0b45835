# SPDX-License-Identifier: MIT
# One thread's part in one run, and the walk over a stretch of chunks: the hottest loop there is.
#
# A stretch is walked without the lock. Before each chunk but the first, one comparison asks whether
# anything changed since the stretch was claimed (a job came, ended, was cancelled or reniced, a
# limit moved, a hungry helper asked for a share); if so, the walk returns where it stands and the
# rest is given back. A chunk leaves no record: its start is a field that the next chunk overwrites.
"""The walk of one thread over the chunks of one run."""

from __future__ import annotations

import threading
import weakref
from contextvars import Context, ContextVar
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from aioktask.engine.reduction import push
from aioktask.engine.scheduling.queue import Seat
from aioktask.engine.scores import Pace
from aioktask.errors import ChunkCancelled
from aioktask.job import Chunk

if TYPE_CHECKING:
    from aioktask.engine.state.run import Run


class Signals:
    """What every walk looks at before a chunk. Changed under the engine's lock only."""

    __slots__ = ("generation",)

    def __init__(self) -> None:
        self.generation = 0


class Frame:
    """One thread's part in one run.

    Its own thread writes `start`, and when it begins to walk `walked_at`, without the lock; others
    read `start` as a hint of where the thread stands. All else changes under the lock.
    """

    __slots__ = (
        "__weakref__",
        "advanced_from",
        "advanced_to",
        "busy",
        "chunk",
        "chunks",
        "claimed_at",
        "contended",
        "context",
        "counted",
        "counted_in_group",
        "cpu",
        "cpu_charged",
        "cpu_mark",
        "delay",
        "end",
        "entered_at",
        "first",
        "generation",
        "helps",
        "live",
        "look_at",
        "looked_at",
        "looked_cpu",
        "node",
        "number",
        "outer",
        "pace",
        "reducing",
        "run",
        "seat",
        "slice_end",
        "stack",
        "start",
        "stop",
        "system",
        "thread",
        "threads",
        "walked_at",
    )

    def __init__(self, run: Run, thread: object, context: Context) -> None:
        self.run = run
        self.thread = thread  # the Helper or Caller
        self.context = context
        self.outer: Frame | None = None  # whose chunk the thread is in meanwhile
        self.counted = False  # whether the thread counts as running without this frame
        self.counted_in_group = False  # whether it does in this run's group
        self.live = False  # whether the thread serves the run now
        self.start = self.first = self.stop = 0  # the chunk that runs; the stretch
        self.end = 0  # of the first chunk of the stretch
        self.chunk = 1  # the size of the others
        self.generation = 0  # of the signals, when the stretch was claimed
        self.chunks = 1  # how many chunks the next stretch should have, where all are of one size
        self.pace: Pace | None = None  # where the size is being learned
        self.number = -1  # of the size that the stretch measures, -1 for none
        self.threads = 0  # that served the run when the stretch was claimed
        self.claimed_at = self.entered_at = self.slice_end = 0
        self.walked_at = 0  # when the stretch was begun, where the size is being learned
        self.advanced_from: int | None = None  # the chunk that `advanced_to` is about
        self.advanced_to = 0
        self.busy = self.cpu = self.cpu_mark = 0
        self.cpu_charged = 0  # the thread's CPU time up to which a background job has paid
        # When a background thread was kept from its CPU last, and how long in all until then.
        self.contended: tuple[int, int] = (0, 0)
        self.seat = Seat.OWN
        self.node: int | None = None  # whose parts of the job it takes first
        self.helps = False  # whether it takes those of other nodes, which have no CPU for it
        self.look_at = 0  # how long busy, when it is asked again what it waited for
        self.looked_at = self.looked_cpu = 0  # busy and CPU time when it was asked last,
        self.system = self.delay = 0  # and what it said
        self.reducing = False  # whether `reduce` runs, not `fn`
        self.stack: list[tuple[int, int, Any]] = []  # values of a reduce, of this stretch

    def walk(self, signals: Signals) -> int:
        """Call the function for each chunk of the stretch; where it stands when it returns."""
        run = self.run
        fn = run.fn
        chunk = self.chunk
        generation = self.generation
        if self.pace is not None:  # what chunks cost, without what it took to get them
            self.walked_at = perf_counter_ns()
        position, stop = self.start, self.stop
        end = self.end
        while end < stop:
            self.start = position
            fn(position, end)
            position = end
            if signals.generation != generation:
                return position
            end += chunk
        self.start = position
        fn(position, stop)
        return stop

    def walk_reduce(self, signals: Signals) -> int:
        """The same, keeping the values: siblings are combined at once, the rest lies on `stack`."""
        run = self.run
        fn = run.fn
        chunk = run.claims.chunk
        generation = self.generation
        position, stop = self.start, self.stop
        leaf = position // chunk - run.job.start // chunk
        while True:
            self.start = position
            end = min(position - position % chunk + chunk, stop)
            value = fn(position, end)
            self.start = position = end
            self.reducing = True
            self._combine(leaf, value)
            self.reducing = False
            if position == stop or signals.generation != generation:
                return position
            leaf += 1

    def _combine(self, leaf: int, value: object) -> None:
        reduce = self.run.job.reduce
        assert reduce is not None
        if leaf == 0 and self.run.initial is not ...:
            value = reduce(self.run.initial, value)
        level, index = 0, leaf
        while (pair := push(self.stack, level, index, value)) is not None:
            level, left, right = pair
            value = reduce(left, right)
            index >>= 1

    def chunk_stop(self) -> int:
        """Where the chunk that runs ends."""
        return self.end if self.start == self.first else min(self.start + self.chunk, self.stop)

    def chunks_up_to(self, position: int) -> int:
        """How many chunks of the stretch end at `position` or before; it is where one ends."""
        if position <= self.first:
            return 0
        return 1 if position <= self.end else 1 - (self.end - position) // self.chunk

    # ChunkOwner: what `current_chunk()` asks for.

    def advance(self, start: int, stop: int, upto: int) -> None:
        if not self.live or self.reducing or self.start != start:
            raise RuntimeError(f"the chunk {start} to {stop} is over: advance came too late")
        last = self.advanced_to if self.advanced_from == start else start
        if not (start < upto <= stop and last <= upto):
            raise ValueError(
                f"advance takes a position above {start}, up to {stop} and not below the last one "
                f"({last}), got {upto}"
            )
        self.advanced_to = upto
        self.advanced_from = start

    def check_cancelled(self) -> None:
        if self.run.unwanted():
            raise ChunkCancelled(f"the job {self.run.job.name!r} wants no more work")


class _Local(threading.local):
    frame: Frame | None = None


# The frame whose chunk the thread works on.
local = _Local()

# The same for code that runs on behalf of a chunk elsewhere, with a copy of its context: a task
# that the chunk started on some loop and waits for. Weak, since contexts live long.
enclosing: ContextVar[weakref.ref[Frame] | None] = ContextVar("aioktask_enclosing", default=None)


def enclosing_run() -> Run | None:
    """The run in whose chunk this code runs, or on behalf of, if that chunk may still be there."""
    if local.frame is not None:
        return local.frame.run
    reference = enclosing.get()
    frame = None if reference is None else reference()
    if frame is None or not frame.live:
        return None
    run = frame.run  # read once: another thread may be ending it
    return None if run.over else run


def current_chunk() -> Chunk:
    """The chunk that the calling thread works on.

    Raises:
        RuntimeError: The thread works on none: outside of a job, in an undo or in `reduce`.

    >>> from aioktask import Job, run_multithreaded_sync
    >>> def show(start, stop):
    ...     print(current_chunk())
    >>> _ = run_multithreaded_sync(Job(show, 8, chunk=8))
    Chunk(0, 8)
    """
    frame = local.frame
    if frame is None or frame.run.undoing or frame.reducing:
        raise RuntimeError("there is no current chunk: this thread does not run a job's fn now")
    return Chunk(frame.start, frame.chunk_stop(), frame)
