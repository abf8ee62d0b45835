# SPDX-License-Identifier: MIT
# Which stretch of a run's range a thread takes next, and how many threads the run gains from.
#
# Pure: the free part of the range and the number of its threads in, a stretch out; then, in again,
# the finished stretch. There are four forms. `FixedPacing` takes chunks of one size, which is
# given (as `chunk`, or as the leaves of a reduce): the quicker they are, the more at once. In
# `LearnedPacing` the size is learned too. Either guarantees that a stretch is a fair part of what
# is left (`fair_count`) or a single chunk. `EvenPacing` takes the same number of large pieces for
# each thread, and learns nothing. `GrowingPacing` takes single units of a range that grows: what
# is left says nothing of what is to come, so a stretch is as long as is worth a claim, or all there
# is. The others may learn the number of threads. Relies on each stretch being finished, or
# given back with nothing done, before its thread takes another one.
"""The pace at which threads take a range."""

from __future__ import annotations

import functools
import sys
from abc import ABC, abstractmethod
from typing import Any, Protocol

from aioktask.engine.learning.lessons import Lesson
from aioktask.engine.learning.scaling import FIRST_PAUSE, Scaling
from aioktask.engine.learning.sizing import Sizes
from aioktask.engine.learning.stretch import MOST_CHUNKS, TARGET_NS, chunks_at_once
from aioktask.engine.ranges.claims import Claims, fair_count
from aioktask.engine.ranges.plan import CHUNKS_PER_THREAD, even_piece, piece_grain, undo_grain
from aioktask.job import Job, Learned, Speed

__all__ = [
    "FIXED",
    "EvenPacing",
    "FixedPacing",
    "GrowingPacing",
    "LearnedPacing",
    "Pacing",
    "Stepper",
    "learned_with_given_size",
    "pacing_of",
]

# Where so few stretches are left for each thread, the next one depends on where the others stand.
FEW_STRETCHES = 4


class Stepper(Protocol):
    """One thread's way through the range.

    Attributes:
        chunk: Units of the chunks of its stretch, the first and the last one apart.
        pacing: What made it.
    """

    chunk: int
    pacing: Pacing

    def next(
        self, claims: Claims, node: int | None, threads: int, most: int, now: int
    ) -> tuple[int, int, int]:
        """Take the thread's next stretch off what is free.

        Args:
            claims: What is free, which is something.
            node: The NUMA node whose parts the thread takes first.
            threads: How many serve the run now, this one included.
            most: How many it may have.
            now: The time, in ns.

        Returns:
            Where the stretch begins, where its first chunk ends, and where it ends itself.
        """

    def finished(
        self, chunks: int, units: int, left: int, threads: int, walk_ns: int, now: int
    ) -> bool:
        """Learn from the thread's stretch, which is over.

        Args:
            chunks: How many of its chunks are done.
            units: How much that is.
            left: Units that nobody has claimed.
            threads: How many serve the run now, this one included.
            walk_ns: How long the thread walked, without what it took to get the stretch.
            now: The time, in ns.

        Returns:
            Whether it was found just now that threads wait for each other.
        """


class Pacing(ABC):
    """How the threads of a run take its range: the chunk size, and how many threads gain from it.

    Attributes:
        scaling: The search for the number of threads, where that is learned.
    """

    __slots__ = ("_most", "scaling")

    def __init__(self, scaling: Scaling | None, most: int = sys.maxsize) -> None:
        self.scaling = scaling
        self._most = most  # threads, where their number is not learned

    @abstractmethod
    def stepper(self, factor: int) -> Stepper:
        """A stepper for one more thread, whose stretches last `factor` times as long as others'."""

    @abstractmethod
    def chunk_of(self, given: int) -> int:
        """Units of a chunk now: `given`, unless the size is learned."""

    def grain_of(self, given: int) -> int:
        """Units that all stretches end on multiples of: `given`, unless the size is learned."""
        return given

    def be_alone(self, alone: bool) -> None:  # noqa: B027 - sizes that are given follow nothing
        """Take in whether no other job waits for the end of a chunk."""

    def threads_of(self, most: int) -> int:
        """How many of so many threads the run gains from, by what is known."""
        level = self._most if self.scaling is None else self.scaling.level
        return level if level < most else most

    def widen(self, most: int) -> None:
        """Take in that there may be up to `most` threads from now on."""
        if self.scaling is not None:
            self.scaling.widen(most)

    @property
    def learns(self) -> bool:
        """Whether there is something that the next run of the function could begin with."""
        return self.scaling is not None

    @property
    def holds_gil(self) -> bool:
        """Whether threads were let go that had waited for each other."""
        return self.scaling is not None and self.scaling.holds_gil

    def learned(self, chunk: int, threads: int) -> Learned:
        """What the report says of a run with chunks of this size, if given, and so many threads."""
        return learned_with_given_size(chunk, self.threads_of(threads), self.holds_gil)

    def lesson(self, speed: float) -> Lesson:
        """The lesson of a run that had this speed, for the next run of the function."""
        return Lesson(None, self.scaling, speed)

    def for_undo(self) -> Pacing:
        """The pacing of the undo: for as many threads as the work gained from, learning nothing."""
        scaling = self.scaling
        # A new object, so that each thread gets a new stepper for it.
        if scaling is None or scaling.level == scaling.most:
            return FixedPacing(None)
        return FixedPacing(None, scaling.level)


@functools.lru_cache(64)
def learned_with_given_size(chunk: int, threads: int, holds_gil: bool) -> Learned:
    """What the report says was learned where the chunk size was given."""
    return Learned(chunk, threads, holds_gil=holds_gil)


class FixedPacing(Pacing):
    """Chunks of one size, as many at once as they are quick."""

    __slots__ = ()

    def stepper(self, factor: int) -> Stepper:
        return FixedStepper(self, factor)

    def chunk_of(self, given: int) -> int:
        return given


# The pacing of runs of which nothing is learned. They share it, since it has no state.
FIXED = FixedPacing(None)


class FixedStepper(Stepper):
    """One thread's way through chunks of one size."""

    __slots__ = ("_claimed_at", "_count", "_factor", "_scaling", "_threads", "chunk", "pacing")

    def __init__(self, pacing: FixedPacing, factor: int) -> None:
        self.chunk = 1
        self.pacing = pacing
        self._scaling = pacing.scaling
        self._factor = factor
        self._count = 1
        self._threads = self._claimed_at = 0

    def next(
        self, claims: Claims, node: int | None, threads: int, most: int, now: int
    ) -> tuple[int, int, int]:
        self._threads, self._claimed_at = threads, now
        chunk, count = claims.chunk, self._count
        self.chunk = chunk
        if count > 1:
            count = fair_count(count, chunk, claims.left // threads) or 1
        return claims.take(chunk, count, node=node)

    def finished(
        self, chunks: int, units: int, left: int, threads: int, walk_ns: int, now: int
    ) -> bool:
        if not chunks:
            return False
        if left:
            # By the time of the walk alone: with the wait for the lock in it, many helpers would
            # take less and less at a time, and wait the more.
            self._count = chunks_at_once(chunks, walk_ns, self._factor)
        scaling = self._scaling
        if scaling is None or threads != self._threads:
            return False
        held = scaling.holds_gil
        scaling.measured(threads, units, now - self._claimed_at, left)
        return scaling.holds_gil and not held


class EvenPacing(Pacing):
    """Pieces of one size, the same number for each thread, of a range of a few chunks.

    Chunks that may not be short would leave threads with one more or less than others, and cut at
    their multiples the range would have a rest on both sides.
    """

    __slots__ = ("_cut", "piece")

    def __init__(self, piece: int, cut: int) -> None:
        """
        Args:
            piece: Units of a piece.
            cut: Pieces end on multiples of it.
        """
        super().__init__(None)
        self.piece = piece
        self._cut = cut

    def stepper(self, factor: int) -> Stepper:
        return EvenStepper(self)

    def chunk_of(self, given: int) -> int:
        return self.piece

    def grain_of(self, given: int) -> int:
        return self._cut


class EvenStepper(Stepper):
    """One thread's way through even pieces."""

    __slots__ = ("chunk", "pacing")

    def __init__(self, pacing: EvenPacing) -> None:
        self.chunk = 1
        self.pacing: EvenPacing = pacing

    def next(
        self, claims: Claims, node: int | None, threads: int, most: int, now: int
    ) -> tuple[int, int, int]:
        self.chunk = self.pacing.piece
        if claims.left - self.chunk < claims.chunk:  # the first piece began off the grain
            self.chunk += claims.chunk
        return claims.take(self.chunk, 1, piece=True, node=node)

    def finished(
        self, chunks: int, units: int, left: int, threads: int, walk_ns: int, now: int
    ) -> bool:
        return False


class LearnedPacing(Pacing):
    """Chunks of the size that is found to be best."""

    __slots__ = ("_cut", "_steppers", "sizes")

    def __init__(self, sizes: Sizes, scaling: Scaling | None, cut: int) -> None:
        super().__init__(scaling)
        self.sizes = sizes
        self._cut = cut  # the pieces that end the range are multiples of it
        self._steppers: list[LearnedStepper] = []

    def stepper(self, factor: int) -> Stepper:
        made = LearnedStepper(self)
        self._steppers.append(made)
        return made

    def chunk_of(self, given: int) -> int:
        return self.sizes.chunk

    def grain_of(self, given: int) -> int:
        return self._cut

    @property
    def learns(self) -> bool:
        return True

    def be_alone(self, alone: bool) -> None:
        self.sizes.be_alone(alone)

    def ahead(self, left: int, sharers: int, now: int) -> int:
        """Units that threads have claimed and probably not done; 0 while much is left."""
        if left >= FEW_STRETCHES * sharers * self.sizes.chunk:
            return 0
        return sum([each.ahead(now) for each in self._steppers])

    def learned(self, chunk: int, threads: int) -> Learned:
        sizes = self.sizes
        return Learned(
            chunk=sizes.chunk,
            threads=self.threads_of(threads),
            rate=sizes.rate * 1e9,
            settled=sizes.settled,
            remembered=sizes.remembered,
            holds_gil=self.holds_gil,
            curve=tuple(Speed(*each) for each in sizes.curve()),
        )

    def lesson(self, speed: float) -> Lesson:
        self.sizes.forget_helpers()
        return Lesson(self.sizes if self.sizes.rate else None, self.scaling, speed)

    def scale(self, threads: int, number: int, units: int, wall_ns: int, left: int) -> bool:
        """Learn the number of threads from a stretch of chunks of the size of this number.

        That begins once the chunk size is known; or at once where threads stand in each other's
        way, since sizes cannot be compared then.

        Returns:
            Whether it was found just now that threads wait for each other.
        """
        sizes, scaling = self.sizes, self.scaling
        if scaling is None:
            return False
        sizes.paused = scaling.urgent
        if number != sizes.best or not (sizes.settled or sizes.paused):
            return False
        held = scaling.holds_gil
        moved = scaling.measured(threads, units, wall_ns, left)
        found = scaling.holds_gil and not held
        if found:
            sizes.forget()
        if moved:
            sizes.disturbed()
        return found


class LearnedStepper(Stepper):
    """One thread's way through chunks of the size that is best, and of those that are tried."""

    __slots__ = ("_claimed_at", "_number", "_pace", "_threads", "_units", "chunk", "pacing")

    def __init__(self, pacing: LearnedPacing) -> None:
        self.chunk = 1
        self.pacing: LearnedPacing = pacing
        self._pace = pacing.sizes.new_pace()
        self._number = -1  # of the size that the stretch measures, -1 for none
        self._units = 0  # of the stretch
        self._threads = self._claimed_at = 0

    def ahead(self, now: int) -> int:
        """Units of the thread's stretch that are probably not done."""
        return max(self._units - int(self._pace.rate * (now - self._claimed_at)), 0)

    def next(
        self, claims: Claims, node: int | None, threads: int, most: int, now: int
    ) -> tuple[int, int, int]:
        pacing = self.pacing
        sizes, left = pacing.sizes, claims.left
        sharers = max(threads, pacing.threads_of(most))
        ahead = pacing.ahead(left, sharers, now)
        self.chunk, count, number = sizes.pick(self._pace, left, sharers, ahead, claims.chunk)
        # A larger size is tried at its full length, wherever the last stretch ended.
        piece = number < 0 or number > sizes.best
        taken = claims.take(self.chunk, count, piece=piece, node=node)
        self._number, self._threads, self._claimed_at = number, threads, now
        self._units = taken[2] - taken[0]
        return taken

    def finished(
        self, chunks: int, units: int, left: int, threads: int, walk_ns: int, now: int
    ) -> bool:
        self._units = 0
        if not chunks:
            return False
        pacing, number = self.pacing, self._number
        if threads != self._threads:
            pacing.sizes.measured(self._pace, -1, units, walk_ns)
            return False
        pacing.sizes.measured(self._pace, number, units, walk_ns)
        return pacing.scale(threads, number, units, now - self._claimed_at, left)


# A stretch of a range that grows lasts so long at most, by what is known: where much is left, and
# for each thread its even share. A thread that has no more than `TARGET_NS` of work is not helped.
MOST_TARGET_NS = 500_000

# How much of what is known of a unit's cost a further stretch replaces.
LATEST_SHARE = 1 / 8


class GrowingPacing(Pacing):
    """Single units of a range that grows, as many at once as they are quick.

    Attributes:
        at_once: How many units are worth a thread's coming, by what the last ones took: who adds
            units need not have them taken up before there are so many.
        together: How many units one thread takes at most, by the same: who waits for them need not
            be woken for fewer.
        unit_ns: What a unit costs, in ns, the last ones counting most; 0 until it is known.
    """

    __slots__ = ("_least_ns", "_most_ns", "at_once", "together", "unit_ns")

    def __init__(self, longest_ns: int | None) -> None:
        """
        Args:
            longest_ns: How long a stretch may last, by what is known: 0 for single units only, None
                for what is best.
        """
        super().__init__(None)
        longest = MOST_TARGET_NS if longest_ns is None else longest_ns
        self._least_ns, self._most_ns = min(longest, TARGET_NS), min(longest, MOST_TARGET_NS)
        self.at_once = self.together = 1
        self.unit_ns = 0.0

    def learn_threads(self, most: int, lesson: Lesson | None) -> None:
        """Find out from now on how many of so many threads the run gains from.

        Args:
            most: How many.
            lesson: What an earlier run of the function left, if anything.
        """
        if lesson is None or lesson.scaling is None:
            # A stream may be over in some milliseconds, which a trial of fewer threads would take.
            self.scaling = Scaling(most, first_look=FIRST_PAUSE)
            return
        self.scaling = lesson.scaling.for_next_run(most)
        if lesson.unit_ns:
            self.unit_ns = lesson.unit_ns
            self._expect(lesson.unit_ns, MOST_CHUNKS)

    def lesson(self, speed: float) -> Lesson:
        # The source and the consumer have their part in the speed.
        return Lesson(None, self.scaling, 0.0, unit_ns=self.unit_ns)

    def stepper(self, factor: int) -> Stepper:
        return GrowingStepper(self)

    def chunk_of(self, given: int) -> int:
        return 1

    def learn(self, units: int, walk_ns: int) -> tuple[int, int]:
        """Learn from a stretch; returns how many units the next one has at least, and at most.

        The numbers at most double, since a quick stretch proves little, and fall at once.
        """
        each_ns = max(walk_ns / units, 1.0)
        known = self.unit_ns or each_ns
        self.unit_ns = known + (each_ns - known) * LATEST_SHARE
        self._expect(each_ns, min(units * 2, MOST_CHUNKS))
        return self.at_once, self.together

    def _expect(self, each_ns: float, most: int) -> None:
        """Have a thread take as many units as are worth it at this cost, and at most so many."""
        self.at_once = max(min(int(self._least_ns / each_ns), most), 1)
        self.together = max(min(int(self._most_ns / each_ns), most), 1)


class GrowingStepper(Stepper):
    """One thread's way through a range that grows."""

    __slots__ = ("_claimed_at", "_least", "_most", "_threads", "chunk", "pacing")

    def __init__(self, pacing: GrowingPacing) -> None:
        self.chunk = 1
        self.pacing: GrowingPacing = pacing
        self._least = self._most = pacing.at_once
        self._threads = self._claimed_at = 0

    def next(
        self, claims: Claims, node: int | None, threads: int, most: int, now: int
    ) -> tuple[int, int, int]:
        self._threads, self._claimed_at = threads, now
        share = claims.left // max(self.pacing.threads_of(most), 1)
        return claims.take(1, min(max(share, self._least), self._most), node=node)

    def finished(
        self, chunks: int, units: int, left: int, threads: int, walk_ns: int, now: int
    ) -> bool:
        if not chunks:
            return False
        self._least, self._most = self.pacing.learn(units, walk_ns)
        scaling = self.pacing.scaling
        wall_ns = now - self._claimed_at
        if scaling is None or threads != self._threads or wall_ns > 2 * walk_ns:
            return False  # or it waited for units, which says nothing of other threads
        held = scaling.holds_gil
        # More is to come, so what a trial of fewer threads costs is little.
        scaling.measured(threads, units, wall_ns, sys.maxsize)
        return scaling.holds_gil and not held


def pacing_of(job: Job[Any], threads: int, wanted: str, lesson: Lesson | None) -> Pacing:
    """The pacing for a run of the job by at most so many threads.

    Args:
        job: The job.
        threads: The most there will be.
        wanted: What is to be learned: "chunk", "threads", "both" or "nothing".
        lesson: What an earlier run left, if anything.
    """
    scaling: Scaling | None = None
    if wanted == "nothing":
        return FIXED
    if job.size <= CHUNKS_PER_THREAD * undo_grain(job):
        piece = 0 if wanted == "threads" else even_piece(job, threads)
        return EvenPacing(piece, piece_grain(job)) if piece else FIXED
    if wanted != "chunk":
        known = None if lesson is None else lesson.scaling
        scaling = Scaling(threads) if known is None else known.for_next_run(threads)
    if wanted == "threads" or job.reduce is not None:  # the leaves of a reduce are given
        return FIXED if scaling is None else FixedPacing(scaling)
    if lesson is None or lesson.sizes is None:
        sizes = Sizes(job.size, undo_grain(job), threads)
    else:
        sizes = lesson.sizes.for_next_run(job.size)
    return LearnedPacing(sizes, scaling, piece_grain(job))
