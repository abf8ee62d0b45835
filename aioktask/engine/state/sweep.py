# SPDX-License-Identifier: MIT
# One pass of threads over a range: the work of a run is one sweep, the undo of what it did another.
#
# A sweep holds the function that is called, the free part of the range, and its pacing; a stint
# gets its next stretch from it, and gives back what it did not walk. Turns change it. A run that is
# over refers to `NOTHING`, so that what its functions hold goes with its last sweep.
"""The passes over a run's range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aioktask.engine.learning.pacing import FIXED, Pacing
from aioktask.engine.ranges.claims import Claims, PartedClaims
from aioktask.engine.ranges.plan import Split, chunk_size, count_chunks, node_of, undo_grain
from aioktask.engine.ranges.tree import Tree
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.workers import Caller
from aioktask.job import Job

# The main thread gets its stretches from turns that other threads take: they last longer there, for
# what handing them over costs.
MAIN_THREAD_FACTOR = 10

# A thread is asked again what it waited for after it has served for this long, at the latest.
MOST_LOOK_NS = 160_000_000


class Sweep:
    """One pass over a range.

    Attributes:
        fn: What is called for each chunk.
        claims: The free part of the range.
        pacing: Which stretch a thread takes next, and how many threads should.
        tree: What the values of chunks are combined in, in a reduce.
        undoes: Whether it undoes what another sweep did: what is free of it is still done.
    """

    __slots__ = ("claims", "fn", "pacing", "tree", "undoes")

    def __init__(
        self,
        fn: Callable[[int, int], Any],
        claims: Claims,
        pacing: Pacing = FIXED,
        tree: Tree | None = None,
        *,
        undoes: bool = False,
    ) -> None:
        self.fn = fn
        self.claims = claims
        self.pacing = pacing
        self.tree = tree
        self.undoes = undoes

    def claim(self, stint: Stint, threads: int, most: int, now: int) -> None:
        """Give the stint the next stretch. Something must be free.

        Args:
            stint: It has none.
            threads: How many serve the run, its own included.
            most: How many may.
            now: The time.
        """
        stepper = stint.stepper
        if stepper is None or stepper.pacing is not self.pacing:  # that of the work, in an undo
            thread = stint.thread
            patient = isinstance(thread, Caller) and thread.main
            stepper = self.pacing.stepper(MAIN_THREAD_FACTOR if patient else 1)
            stint.stepper = stepper
        start, stint.first_chunk_stop, stint.stretch_stop = stepper.next(
            self.claims, stint.node, threads, most, now
        )
        stint.chunk_start = stint.stretch_start = start
        stint.chunk = stepper.chunk
        stint.claimed_at = now

    def learn(self, stint: Stint, done: int, threads: int, now: int) -> bool:
        """Learn from the stint's stretch, which is done up to `done`, and over.

        Returns:
            Whether it was found just now that threads wait for each other.
        """
        if stint.stepper is None:  # a run of one chunk, which was had without being claimed here
            return False
        chunks, units = stint.chunks_up_to(done), done - stint.stretch_start
        walk_ns = now - max(stint.claimed_at, stint.walked_at)
        return stint.stepper.finished(chunks, units, self.claims.left, threads, walk_ns, now)

    def give_back(self, stint: Stint, free: int) -> None:
        """Have what the stint has claimed be free again from `free` on; it has no stretch now."""
        self.claims.give_back(free, stint.stretch_stop)
        stint.stretch_start = stint.chunk_start = stint.stretch_stop = free

    def compare_clocks(self, stint: Stint, threads: int) -> None:
        """Learn what the stint's thread waited for since this was asked last, if it is time to.

        Args:
            stint: Its thread has read its clocks.
            threads: How many served the run, its own included.
        """
        scaling = self.pacing.scaling
        if scaling is None or stint.kernel_now is None:
            return
        system, delay = stint.kernel_now
        stint.kernel_now = None
        if stint.busy < stint.look_at:
            return
        if stint.looked_at:
            wall, cpu = stint.busy - stint.looked_at, stint.cpu - stint.looked_cpu
            # The delay in other jobs meanwhile is taken off too, so `waited` is seldom too much.
            waited = wall - cpu - (delay - stint.delay)
            scaling.served(threads, wall, waited, cpu, system - stint.system)
        stint.system, stint.delay = system, delay
        stint.looked_at, stint.looked_cpu = stint.busy, stint.cpu
        stint.look_at = min(2 * stint.busy, stint.busy + MOST_LOOK_NS)


def work_sweep(job: Job[Any], fn: Callable[[int, int], Any], cut: Split, pacing: Pacing) -> Sweep:
    """The sweep over the work of a job that is cut like this; `fn` is the run's own."""
    grain = pacing.grain_of(cut.chunk)
    claims: Claims
    if job.parts and any(part.node is not None for part in job.parts):
        claims = PartedClaims([(each, node_of(job, each.start)) for each in cut.spans], grain)
    else:
        claims = Claims(cut.spans, grain)
    reduces = job.reduce is not None
    tree = Tree(count_chunks(job.start, job.stop, cut.chunk)) if reduces else None
    return Sweep(fn, claims, pacing, tree)


def undo_sweep(
    job: Job[Any],
    undo: Callable[[int, int], Any],
    done: tuple[range, ...],
    threads: int,
    pacing: Pacing,
) -> Sweep:
    """The sweep that undoes what is done of the job, with at most so many threads.

    Its range is cut at multiples of the job's own grain only: no unit of work is undone in halves.
    """
    grain = undo_grain(job)
    units = sum(each.stop - each.start for each in done)
    chunk = chunk_size(units, threads, min_chunk=grain, align=grain)
    return Sweep(undo, Claims(done, chunk), pacing, undoes=True)


def _nothing(start: int, stop: int) -> None:
    """Do nothing: the function of a run that is over."""


# The sweep of a run that has none: nothing is free of it, and nothing comes back to it.
NOTHING = Sweep(_nothing, Claims((), 1))
