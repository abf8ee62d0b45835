# SPDX-License-Identifier: MIT
# The chunk sizes of one range, which of them is in use, and what is known of all.
#
# Pure. Sizes are the grain times powers of two, up to an even share of the range. Also decided here
# is how long a chunk may last, since a cancel, and any other job, wait for its end.
"""Chunk sizes and what is known of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aioktask.engine.learning.scores import Scores
from aioktask.engine.ranges.plan import CHUNKS_PER_THREAD, round_up

__all__ = ["FAR_SLOWER", "LONGEST_ALONE_NS", "LONGEST_NS", "MUCH_BETTER", "Curve"]

MILLISECOND = 1_000_000

# Two slices of this length fit into the 20 ms within which a short job beside this one is served.
LONGEST_NS = 10 * MILLISECOND
# While no other job is there chunks may last up to this, if they are faster by MUCH_BETTER: where
# the call costs more than the units do, or where only large chunks bypass the cache.
LONGEST_ALONE_NS = 50 * MILLISECOND
MUCH_BETTER = 1.2

# Below this a chunk's own costs (a claim, the call, the interpreter's lock) may be a large part of
# it: of two helpers on two CPUs the second gains nothing at 5 us, half at 45, and all at 120.
SHORTEST_NS = 100_000

# Cost is uneven where stretches of one size differ by more than this, as a factor's logarithm, or
# where so much of the time goes into those that are far slower than the ones before. Shorter chunks
# are shared out better then.
UNEVEN = 0.25
UNEVEN_SHARE = 0.15
FAR_SLOWER = 0.33
UNEVEN_PRIOR_NS = 200 * MILLISECOND
LONGEST_UNEVEN_NS = 2 * MILLISECOND


class Curve:
    """The sizes of one range by number, and their speeds.

    Size k is ``grain << k``, but the last one is an even share of the range. Rates are those of one
    helper at the size in use, in units a nanosecond.

    Attributes:
        size: Units of the range.
        grain: The smallest size, of which all are multiples.
        threads: How many helpers may share the range.
        even: Units of an even share.
        top: The number of the last size.
        best: The number of the size in use.
        scores: Speeds of the other sizes, relative to the one in use.
        before: The number of the size that was in use before, until it was tried again; or -1.
        expected: The score that a new trial of `before` should give.
        worked_ns: What all helpers together have worked.
        uneven_ns: What of `worked_ns` went into far slower stretches of the size in use.
        alone: Whether no other job waits for the end of a chunk.
    """

    __slots__ = (
        "alone",
        "before",
        "best",
        "even",
        "expected",
        "grain",
        "scores",
        "size",
        "threads",
        "top",
        "uneven_ns",
        "worked_ns",
    )

    def __init__(self, size: int, grain: int, threads: int) -> None:
        self.size = size
        self.grain = grain
        self.threads = threads
        self.even = round_up(-(-size // threads), grain)
        self.top = (self.even // grain - 1).bit_length()
        self.best = 0
        self.scores = Scores()
        self.before = -1
        self.expected = 1.0
        self.worked_ns = 0
        self.uneven_ns = 0.0
        self.alone = True

    def for_next_run(self, size: int) -> Curve:
        """What the next run of the function begins with, over a range of this size."""
        following = Curve(size, self.grain, self.threads)
        scores = following.scores = Scores(self.scores.noise)
        following.best = min(self.best, following.top)
        following.uneven_ns = self.uneven_share * UNEVEN_PRIOR_NS
        for number in self.scores:
            if number <= following.top and number != following.best:
                scores.put(number, self.scores.speed(number), self.scores.count(number))
        if self.before <= following.top and self.before != following.best:
            following.before, following.expected = self.before, self.expected
        return following

    def kept(self) -> dict[str, Any]:
        """What of it is kept on disk."""
        scores = self.scores
        return {
            "best": self.best,
            "noise": scores.noise,
            "uneven": self.uneven_share,
            "scores": [[k, scores.speed(k), scores.count(k)] for k in sorted(scores)],
        }

    def take_kept(self, kept: Mapping[str, Any]) -> None:
        """Begin with what `kept` told, which was checked."""
        self.best = kept["best"]
        self.scores.noise = kept["noise"]
        self.uneven_ns = kept["uneven"] * UNEVEN_PRIOR_NS
        for number, speed, count in kept["scores"]:
            self.scores.put(number, speed, count)

    def size_of(self, number: int) -> int:
        """Units of a chunk of the size of this number."""
        return self.even if number >= self.top else self.grain << number

    def at_most(self, units: float) -> int:
        """The number of the largest size of at most so many units, else of the smallest size."""
        number = self.top
        while number and self.size_of(number) > units:
            number -= 1
        return number

    # How long chunks last, and may last.

    def lasts(self, number: int, rate: float) -> float:
        """How many nanoseconds a chunk of the size lasts, by its score."""
        return self.size_of(number) / (rate * self.scores.speed(number))

    @property
    def uneven(self) -> bool:
        """Whether some parts of the range cost much more than others of the same length."""
        return self.scores.noise > UNEVEN or self.uneven_share > UNEVEN_SHARE

    @property
    def uneven_share(self) -> float:
        """The part of the time that went into stretches far slower than others."""
        return self.uneven_ns / (self.worked_ns + UNEVEN_PRIOR_NS)

    @property
    def longest_ns(self) -> int:
        """How long a chunk may last."""
        return LONGEST_UNEVEN_NS if self.uneven else LONGEST_NS

    def longest(self, rate: float) -> int:
        """The number of the largest size whose chunks last no longer than they may."""
        return self.at_most(self.longest_ns * rate)

    def far(self, rate: float) -> int:
        """The number of the largest size for chunks while no other job is there.

        They last no longer than they may then, and are no larger than padata's.
        """
        return self.at_most(min(LONGEST_ALONE_NS * rate, self.even // CHUNKS_PER_THREAD))

    def too_long(self, rate: float) -> bool:
        """Whether chunks of the size in use last longer than they may, and could be smaller."""
        return self.best > 0 and self.size_of(self.best) > 2 * self.longest_ns * rate

    def short_enough(self, number: int, rate: float) -> bool:
        """Whether chunks of the size last at most little longer than they may."""
        return self.lasts(number, rate) <= 1.5 * self.longest_ns

    def worth_it(self, number: int) -> bool:
        """Whether the size is so good that chunks may last longer than they should."""
        return not self.uneven and self.scores.speed(number) > MUCH_BETTER

    def possible(self, rate: float) -> Iterator[int]:
        """The sizes of which a chunk lasts neither too long nor too short."""
        for number in range(self.top + 1):
            lasts = self.lasts(number, rate)
            if number == self.best or SHORTEST_NS <= lasts <= 1.5 * LONGEST_NS:
                yield number
            elif number == self.best + 1 and lasts > LONGEST_NS:
                # One step beyond, to learn whether time goes into the units or into the call.
                yield number
