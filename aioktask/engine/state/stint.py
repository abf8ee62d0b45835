# SPDX-License-Identifier: MIT
# One thread's part in one run, and the walk over a stretch of chunks: the hottest loop there is.
#
# A stretch is walked without the lock. Before each chunk but the first, one comparison asks whether
# anything changed since the stretch was claimed (a job came, ended, was cancelled or reniced, a
# limit moved, a hungry helper asked for a share); if so, the walk returns where it stands and the
# rest is given back. A chunk leaves no record: its start is a field that the next chunk overwrites.
"""The walk of one thread over the chunks of one run."""

from __future__ import annotations

from contextvars import Context
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from aioktask.engine.learning.pacing import Stepper
from aioktask.engine.machine.os_threads import cpu_time_ns, kernel_and_delay_ns
from aioktask.engine.ranges.tree import push
from aioktask.engine.scheduling.queue import BACKGROUND, NOWHERE, OWN_SEAT
from aioktask.errors import ChunkCancelled

if TYPE_CHECKING:
    from aioktask.engine.state.run import Run


class Signals:
    """What every walk looks at before a chunk.

    Attributes:
        generation: A walk ends where this is another one than when its stretch was claimed.
        count: How often turns have changed it.
    """

    __slots__ = ("count", "generation")

    def __init__(self) -> None:
        self.generation: object = 0
        self.count = 0

    def change(self) -> None:
        """In a turn: have all walks end at the next chunk."""
        self.count += 1
        self.generation = self.count

    def interrupt(self) -> None:
        """On any thread: have walks end at the next chunk, before the turn that would say so."""
        self.generation = object()


class Stint:
    """One thread's part in one run.

    Its own thread writes `chunk_start`, `walked_at`, `cpu_now` and `kernel_now` outside the lock,
    and moves `entered_at` in a chunk of a growing run; others read `chunk_start` as a hint of where
    the thread stands. Turns change all else.

    Attributes:
        thread: The Helper or Caller.
        outer: The stint whose chunk the thread is in while it walks this one.
        counted: Where the thread counts as running without this stint.
        live: Whether the thread serves the run now.
        chunk_start: Where the chunk that runs begins; where the walk stands when it returned.
        stretch_start, stretch_stop: The stretch that is claimed.
        first_chunk_stop: Where the first chunk of the stretch ends.
        chunk: The size of its other chunks.
        generation: That of the signals when the stretch was claimed.
        stepper: Takes the thread's stretches, and learns from them; None until the first one.
        failed: Whether a chunk raised, for another reason than a cancel, since the thread came.
        off_node: Whether it takes parts of other nodes, which have no CPU for it.
    """

    __slots__ = (
        "__weakref__",
        "advanced_from",
        "advanced_to",
        "busy",
        "chunk",
        "chunk_start",
        "claimed_at",
        "contended",
        "context",
        "counted",
        "cpu",
        "cpu_charged",
        "cpu_mark",
        "cpu_now",
        "delay",
        "entered_at",
        "failed",
        "first_chunk_stop",
        "generation",
        "kernel_now",
        "live",
        "look_at",
        "looked_at",
        "looked_cpu",
        "node",
        "off_node",
        "outer",
        "reducing",
        "run",
        "seat",
        "slice_end",
        "stack",
        "stepper",
        "stretch_start",
        "stretch_stop",
        "system",
        "thread",
        "walked_at",
    )

    def __init__(self, run: Run, thread: object, context: Context) -> None:
        self.run = run
        self.thread = thread
        self.context = context
        self.outer: Stint | None = None
        self.counted = NOWHERE
        self.live = self.failed = False
        self.chunk_start = self.stretch_start = self.stretch_stop = 0
        self.first_chunk_stop = 0
        self.chunk = 1
        self.generation: object = 0
        self.stepper: Stepper | None = None
        self.claimed_at = self.entered_at = self.slice_end = 0
        self.walked_at = 0  # when the walk of the stretch was begun
        self.advanced_from: int | None = None  # the chunk that `advanced_to` is about
        self.advanced_to = 0
        self.busy = self.cpu = self.cpu_mark = 0
        self.cpu_now = 0  # the thread's CPU time when it last read it, for the turn that follows
        self.kernel_now: tuple[int, int] | None = None  # its time in the kernel and its delay then
        self.cpu_charged = 0  # the thread's CPU time up to which a background job has paid
        # When a background thread was kept from its CPU last, and how long in all until then.
        self.contended: tuple[int, int] = (0, 0)
        self.seat = OWN_SEAT
        self.node: int | None = None  # whose parts of the job it takes first
        self.off_node = False
        self.look_at = 0  # how long busy, when it is asked again what it waited for
        self.looked_at = self.looked_cpu = 0  # busy and CPU time when it was asked last,
        self.system = self.delay = 0  # and what it said
        self.reducing = False  # whether `reduce` runs, not `fn`
        self.stack: list[tuple[int, int, Any]] = []  # values of a reduce, of this stretch

    def walk(self, signals: Signals) -> int:
        """Call the function for each chunk of the stretch; returns where the walk stands then."""
        run = self.run
        fn = run.sweep.fn
        chunk = self.chunk
        generation = self.generation
        self.walked_at = perf_counter_ns()
        position, stop = self.chunk_start, self.stretch_stop
        end = self.first_chunk_stop
        plain: type | None = None  # the type of the last result, which was checked
        while end < stop:
            self.chunk_start = position
            result = fn(position, end)
            if result is not None and type(result) is not plain:
                plain = run.check_done(result)
            position = end
            if signals.generation != generation:
                self.chunk_start = position
                return position
            end += chunk
        self.chunk_start = position
        result = fn(position, stop)
        if result is not None and type(result) is not plain:
            run.check_done(result)
        self.chunk_start = stop
        return stop

    def walk_reduce(self, signals: Signals) -> int:
        """Walk as `walk` does, keeping the values: siblings combine, the rest lies on `stack`."""
        run = self.run
        fn = run.sweep.fn
        chunk = run.sweep.claims.chunk
        generation = self.generation
        position, stop = self.chunk_start, self.stretch_stop
        leaf = position // chunk - run.job.start // chunk
        plain: type | None = None
        self.walked_at = perf_counter_ns()
        while True:
            self.chunk_start = position
            end = min(position - position % chunk + chunk, stop)
            value = fn(position, end)
            if type(value) is not plain:
                plain = run.check_done(value)
            self.chunk_start = position = end
            self.reducing = True
            self._combine(leaf, value)
            self.reducing = False
            if position == stop or signals.generation != generation:
                return position
            leaf += 1

    def _combine(self, leaf: int, value: object) -> None:
        run = self.run
        if leaf == 0 and run.initial is not ...:
            value = run.combine(run.initial, value)
        level, index = 0, leaf
        while (pair := push(self.stack, level, index, value)) is not None:
            level, left, right = pair
            value = run.combine(left, right)
            index >>= 1

    def leave_out(self, waited_ns: int, beside_ns: int) -> None:
        """On its own thread, in a chunk: have time not count that was spent for no unit.

        Args:
            waited_ns: How long it waited for something to do: that counts for nobody's share, and
                not as waiting for other threads.
            beside_ns: How long in all it did something else than the units that it has.
        """
        self.entered_at += waited_ns
        self.walked_at += beside_ns

    def start_clock(self) -> None:
        """Note the thread's CPU time where it begins to serve."""
        self.cpu_mark = self.cpu_now = cpu_time_ns()

    def read_clocks(self, signals: Signals, now: int) -> None:
        """Read what the turn that follows will want to know of this thread, if it may leave.

        Called by the thread itself, outside the lock: the system calls may take a while.
        """
        background = self.seat.account is BACKGROUND
        run = self.run
        stays = now < self.slice_end and signals.generation == self.generation
        if stays and run.sweep.claims.left and not background:
            return
        self.cpu_now = cpu_time_ns()
        look = (
            run.sweep.pacing.scaling is not None
            and self.busy + now - self.entered_at >= self.look_at
        )
        self.kernel_now = kernel_and_delay_ns() if look or background else None

    def chunk_stop(self) -> int:
        """Where the chunk that runs ends."""
        if self.chunk_start == self.stretch_start:
            return self.first_chunk_stop
        return min(self.chunk_start + self.chunk, self.stretch_stop)

    def chunks_up_to(self, position: int) -> int:
        """How many chunks of the stretch end at or before `position`, which is the end of one."""
        if position <= self.stretch_start:
            return 0
        if position <= self.first_chunk_stop:
            return 1
        return 1 - (self.first_chunk_stop - position) // self.chunk

    # ChunkOwner: what `current_chunk()` asks for.

    def advance(self, start: int, stop: int, upto: int) -> None:
        if not self.live or self.reducing or self.chunk_start != start:
            raise RuntimeError(f"the chunk {start} to {stop} is over: advance came too late")
        last = self.advanced_to if self.advanced_from == start else start
        if not last <= upto <= stop:
            raise ValueError(
                f"advance takes a position from {start} to {stop} and not below the last one "
                f"({last}), got {upto}"
            )
        self.advanced_to = upto
        self.advanced_from = start

    def check_cancelled(self) -> None:
        if self.run.unwanted():
            raise ChunkCancelled(f"the job {self.run.job.name!r} wants no more work")
