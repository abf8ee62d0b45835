# SPDX-License-Identifier: MIT
# Which chunk size a function is fastest with, found out while it works.
#
# Pure: finished stretches in, the next stretch out. Here is decided which size is in use and how a
# stretch fits into what is left; what is known is in `curve` and `scores`, what to try in `search`.
# Choices are made under the engine's lock and, mostly, the GIL: so they are rare, and cheap.
"""The chunk size that is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aioktask.engine.learning.climb import Climb
from aioktask.engine.learning.curve import FAR_SLOWER, LONGEST_NS, Curve
from aioktask.engine.learning.scores import Pace, Scores, bounded
from aioktask.engine.learning.search import LONG_TRIAL_NS, Search
from aioktask.engine.learning.stretch import MOST_CHUNKS
from aioktask.engine.ranges.claims import fair_count
from aioktask.engine.ranges.plan import round_up

__all__ = ["Sizes"]

MILLISECOND = 1_000_000

# The lock, the clock and the choice of a job cost some 10 us, and more while another thread wants
# the interpreter: once a stretch of so long while sizes are searched for, and after.
STRETCH_NS = MILLISECOND
SETTLED_STRETCH_NS = 5 * MILLISECOND

# The first chunk is this part of the range, for each helper: small enough not to matter, whatever
# it costs.
FIRST_SHARE = 4096
FIRST_SHARE_EACH = 256

# A size that is surely so much faster takes the place of the one in use.
BETTER = 1.02
# A size whose chunks last too long is left for a smaller one above this relative speed; beside
# another job for one above NO_SHORTER, below which chunks would hardly be shorter.
MUCH_SLOWER = 0.83
NO_SHORTER = 0.4
# Where chunks last long, a smaller size that is as good takes the place too: its chunks let other
# jobs through, and share out work of uneven cost better.
AS_GOOD = 0.99
LONG_NS = LONGEST_NS // 2
# Beside another job a chunk that lasts longer than this is made of a smaller size that is surely
# almost as good, if one is: what another job waits for first is the end of a chunk.
BRIEF_NS = 2 * MILLISECOND
ALMOST_AS_GOOD = 0.97
# A size that is so good may stand in for the best where pieces must become small, which last no
# shorter than this.
GOOD_ENOUGH = 0.95
SHORTEST_PIECE_NS = 100_000


class Sizes:
    """The chunk sizes of one run: which is used, and what a helper does next.

    What a run leaves to the next one of its function is this object: see `for_next_run`.

    Attributes:
        rate: Units a nanosecond of some helper lately, at the size in use; 0 while not known.
        paused: Whether nothing is tried at present: threads stand in each other's way.
    """

    __slots__ = (
        "_climb",
        "_curve",
        "_paces",
        "_search",
        "paused",
        "rate",
    )

    def __init__(self, size: int, grain: int, threads: int) -> None:
        self._paces: list[Pace] = []
        curve = self._curve = Curve(size, grain, threads)
        curve.best = curve.at_most(size // max(FIRST_SHARE, FIRST_SHARE_EACH * threads))
        self._climb = Climb(curve)
        self._search = Search(curve, self._paces)
        self.rate = 0.0
        self.paused = False

    def for_next_run(self, size: int) -> Sizes:
        """What the next run of the function begins with, over a range of this size.

        The new object shares nothing with this one, so that several runs may begin from this one.
        """
        following = Sizes(size, self.grain, self._curve.threads)
        following.rate = self.rate
        curve = following._curve = self._curve.for_next_run(size)
        following._climb = Climb(curve, over=self._climb.over)
        following._search = self._search.for_next_run(curve, following._paces)
        return following

    def kept(self) -> dict[str, Any]:
        """What of it is kept on disk for the function's next process: numbers, in JSON's terms.

        Budgets of trials are not: each process has its own.
        """
        curve = self._curve
        return {
            "size": curve.size,
            "rate": self.rate,
            "climbed": self._climb.over,
            "settled": self._search.settled,
            **curve.kept(),
        }

    @classmethod
    def of_kept(cls, kept: Mapping[str, Any], grain: int, threads: int) -> Sizes:
        """The sizes of a run that left this, which was checked: see `learning.kept`."""
        sizes = cls(kept["size"], grain, threads)
        sizes.rate = kept["rate"]
        sizes._curve.take_kept(kept)
        sizes._climb.over = kept["climbed"]
        sizes._search.settled = kept["settled"]
        sizes._search.probes = 0.0
        return sizes

    def forget_helpers(self) -> None:
        """Forget the helpers' paces at the end of the run: the next one has its own."""
        self._paces.clear()

    @property
    def grain(self) -> int:
        """The smallest size, of which all are multiples."""
        return self._curve.grain

    @property
    def best(self) -> int:
        """The number of the size in use."""
        return self._curve.best

    @property
    def chunk(self) -> int:
        """Units of a chunk of the size in use."""
        return self._curve.size_of(self._curve.best)

    def size_of(self, number: int) -> int:
        """Units of a chunk of the size of this number."""
        return self._curve.size_of(number)

    @property
    def settled(self) -> bool:
        """Whether the search has ended, and sizes are only listened to."""
        return self._search.settled

    @property
    def remembered(self) -> bool:
        """Whether the run began with a lesson."""
        return self._search.remembered

    def be_alone(self, alone: bool) -> None:
        """Take in whether no other job waits for the end of a chunk."""
        self._curve.alone = alone

    def new_pace(self) -> Pace:
        """Make the pace of one more helper."""
        pace = Pace()
        self._paces.append(pace)
        return pace

    def curve(self) -> Iterator[tuple[int, float, int]]:
        """Yield what is known of each size, ascending: units, relative speed, number of samples."""
        scores = self._curve.scores
        for number in sorted({*scores, self.best}):
            yield self.size_of(number), scores.speed(number), scores.count(number)

    # What a helper does next.

    def pick(
        self, pace: Pace, left: int, sharers: int, ahead: int, cut: int
    ) -> tuple[int, int, int]:
        """Size and number of the chunks of a helper's next stretch, and what size that measures.

        Args:
            pace: The helper's.
            left: Units that nobody has claimed, at least 1.
            sharers: Helpers that work on the range, this one included.
            ahead: Units that the others have claimed and not done.
            cut: What the pieces that end the range are multiples of, and the grain is.

        Returns:
            Units of a chunk, at least the grain: one of the sizes, or a multiple of `cut`; how
            many; the number of the size, or -1 when the stretch is not to be measured.
        """
        curve, search = self._curve, self._search
        room = left, sharers, ahead, cut
        search.ended(pace)
        rate = pace.rate or self.rate
        if not rate:
            return self._fitted(curve.best, 1, *room)
        if not curve.alone and curve.too_long(rate):
            shorter = curve.longest(rate)
            if curve.scores.speed(shorter) > NO_SHORTER:
                return self._fitted(shorter, 1, *room)
        elif not curve.alone and self.chunk > BRIEF_NS * rate:
            brief = self._brief(rate)
            if brief >= 0:
                count = int(STRETCH_NS / curve.lasts(brief, rate))
                return self._fitted(brief, min(max(count, 1), MOST_CHUNKS), *room)
        if not self._climb.over:
            self._step_up(pace, left // sharers, rate, search.probe_ns(left, rate))
        number, length = curve.best, float(SETTLED_STRETCH_NS if search.settled else STRETCH_NS)
        if pace.trial >= 0:
            number, length, pace.trial = pace.trial, search.probe_ns(left, rate), -1
        elif not pace.known:
            length = min(length, search.probe_ns(left, rate))
        elif self._climb.over and not pace.tried and not self.paused:
            probe = search.probe_ns(left, rate)
            trial = search.next(pace, left, rate, probe)
            if trial is not None:
                number, length = trial, probe
        count = int(length / curve.lasts(number, rate))
        return self._fitted(number, min(max(count, 1), MOST_CHUNKS), *room)

    def measured(self, pace: Pace, number: int, units: int, wall_ns: int) -> None:
        """Learn from a stretch of chunks of the size of this number, which is over."""
        curve = self._curve
        curve.worked_ns += wall_ns
        self._search.worked(wall_ns)
        if number < 0 or not units:
            return
        # The first stretch after another size pays for what that left behind, in the caches and in
        # the allocator, and the first of all for what is made once.
        first, changed, pace.last = pace.last < 0, number != pace.last, number
        again = wall_ns < LONG_TRIAL_NS if number == curve.best else pace.trial == number
        if first or (changed and again):
            if not pace.rate:
                pace.rate = units / max(wall_ns, 1)
                self.rate = self.rate or pace.rate
        elif number == curve.best:
            self._measured_best(pace, units, wall_ns)
        else:
            pace.tried = True
            if pace.known:  # or another size came into use meanwhile
                self._search.tried(pace, number, units, wall_ns)
                self._verify_before()
                self._choose()

    def _measured_best(self, pace: Pace, units: int, wall_ns: int) -> None:
        curve = self._curve
        known, expected = pace.known, pace.rate
        factor = pace.add(units, wall_ns)
        if known:
            curve.scores.heard(factor)
            if factor < FAR_SLOWER:
                curve.uneven_ns += wall_ns
        self.rate = pace.rate
        if not self._climb.over:
            self._judge_step(pace, units / (max(wall_ns, 1) * expected) if expected else 1.0)

    def disturbed(self) -> None:
        """Forget stretches after the number of helpers changed, and so what each gets done."""
        for pace in self._paces:
            pace.forget(pace.rate)

    def forget(self) -> None:
        """Forget the scores, since they are of threads that stood in each other's way."""
        self._curve.scores = Scores()
        self._curve.before = -1

    # Which size is in use.

    def _choose(self) -> None:
        """Change to the size that is best now; of those that are as good to a smaller one."""
        curve, scores, best = self._curve, self._curve.scores, self._curve.best
        if curve.before >= 0:
            return
        sure = [number for number in scores if scores.sure(number)]
        may_be = [k for k in sure if curve.short_enough(k, self.rate) or curve.worth_it(k)]
        rival = max(may_be, key=scores.least, default=best)
        if rival != best and scores.least(rival) > BETTER:
            # The best of several scores is so partly by luck: so only its least speed counts.
            self._use(rival, scores.least(rival))
        elif curve.too_long(self.rate) and scores.sure(shorter := curve.longest(self.rate)):
            # But not where the call itself costs so much that smaller chunks are no shorter.
            if scores.speed(shorter) > MUCH_SLOWER:
                self._use(shorter, scores.speed(shorter))
        elif self.chunk > LONG_NS * self.rate:
            smaller = [k for k in sure if k < best and scores.speed(k) >= AS_GOOD]
            if smaller:
                self._use(max(smaller), scores.speed(max(smaller)))

    def _brief(self, rate: float) -> int:
        """The largest brief size that is surely almost as good as the one in use; -1 for none."""
        curve, scores = self._curve, self._curve.scores
        there = [
            k
            for k in scores
            if k < curve.best
            and curve.lasts(k, rate) <= BRIEF_NS
            and scores.sure(k)
            and scores.speed(k) >= ALMOST_AS_GOOD
        ]
        return max(there, default=-1)

    def _use(self, number: int, factor: float, *, verify: bool = True) -> None:
        """Make this the size in use, which is `factor` times as fast as the one until now."""
        curve = self._curve
        curve.scores.move(number, factor)
        before, curve.best = curve.best, number
        self.rate *= factor
        curve.expected = 1 / factor
        curve.before = before if verify and curve.short_enough(before, self.rate) else -1
        for pace in self._paces:
            if pace.rate:
                pace.forget(bounded(pace.rate * factor, self.rate))
        self._search.look_again()

    def _verify_before(self) -> None:
        """Correct all scores once the size in use before was tried again.

        The best of several scores is so partly by luck, so the size in use may be slower than it
        seemed; the scores of the others were converted by how it seemed.
        """
        curve = self._curve
        if curve.before >= 0 and curve.scores.sure(curve.before):
            factor = curve.scores.speed(curve.before) / curve.expected
            if factor > 1 or not curve.uneven:
                curve.scores.scale(factor, but=curve.before)
            curve.before = -1

    def _step_up(self, pace: Pace, share: float, rate: float, probe: float) -> None:
        """Make the next step of the climb, if it is this helper's turn to."""
        step = self._climb.next(pace, share, rate, probe)
        if step:
            self._use(self._curve.best + step, 1.0, verify=False)

    def _judge_step(self, pace: Pace, gain: float) -> None:
        """Keep the last step of the climb, or take it back, if the helper can judge of it."""
        climb, scores = self._climb, self._curve.scores
        if not climb.measured(pace, gain):
            return
        higher = self.best
        lower = higher - climb.step
        scores.scale(1 / gain)  # it was taken to be as fast as the one before
        if climb.over:
            self._use(lower, 1 / gain, verify=False)
            scores.add(higher, gain)
        else:
            scores.add(lower, 1 / gain)

    # How a stretch fits into what is left.

    def _fitted(
        self, number: int, count: int, left: int, sharers: int, ahead: int, cut: int
    ) -> tuple[int, int, int]:
        """Fit a stretch into a fair part of what is left; where one chunk is more, take a piece.

        A piece is half of the helper's share, or all of it where smaller chunks are slow. It is all
        of it too where the half, or what a whole chunk would leave, is less than the grain.
        """
        chunk, grain = self.size_of(number), self.grain
        share = (left + ahead) // sharers
        fair = fair_count(count, chunk, share)
        if fair:
            return chunk, fair, number
        if chunk < share < chunk + grain:
            return round_up(share, cut), 1, -1
        scores = self._curve.scores
        least = self._least()
        halves = share >= 2 * grain and (
            number - 1 in scores and scores.speed(number - 1) >= GOOD_ENOUGH * scores.speed(number)
        )
        piece = round_up(max(share // 2 if halves else share, least, 1), cut)
        if left - piece < least // 2:
            piece = max(piece, round_up(left, cut))
        if piece >= chunk:
            return chunk, 1, number
        return piece, 1, -1

    def _least(self) -> int:
        """The smallest piece that is not slow."""
        number, scores = self.best, self._curve.scores
        while number and (number - 1) in scores and scores.speed(number - 1) >= GOOD_ENOUGH:
            number -= 1
        if self.rate:
            return min(self.size_of(number), int(max(self.rate * SHORTEST_PIECE_NS, self.grain)))
        return self.grain
