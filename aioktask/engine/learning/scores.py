# SPDX-License-Identifier: MIT
# How fast each chunk size is against the one in use, and how sure that is.
#
# Pure. Every helper compares for itself: a stretch of another size is set against those of the size
# in use that the same helper made just before, over as long a time, so that a slow core, a
# neighbour, a range that becomes harder or a clock tick that hits a long stretch more often than a
# short one disturb both sides of the comparison alike. What is kept is a score, of which the median
# of the last few samples counts: one bad sample moves nothing.
"""What is known of chunk sizes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from math import exp, log, sqrt

__all__ = [
    "KEPT_SAMPLES",
    "LEAST_SPEED",
    "MOST_NOISE",
    "MOST_SPEED",
    "SURE_SAMPLES",
    "Pace",
    "Scores",
    "bounded",
]

# Stretches of the size in use that a helper remembers.
KEPT_STRETCHES = 8
# The last so many: a trial is compared with their median, and their mean is the rate at the moment.
RECENT_STRETCHES = 3
# A trial that lasts so much longer than these is compared with the mean over as long a time: it has
# its share of disturbances, which a median of short stretches leaves out.
LONGER = 1.5

KEPT_SAMPLES = 11
SURE_SAMPLES = 3
# A score may be off by this many times the noise of one sample, divided by the root of their
# number; a single sample, which may be an outlier, by more.
CONFIDENCE = 1.0
CONFIDENCE_IN_ONE = 3.0
FIRST_NOISE = 0.05
MOST_NOISE = 0.5
# A size that is slower than the one next to it by this factor, by one or two samples, was unlucky.
HOLE = 0.7
# No size is taken for slower or faster than this against the one in use, and no helper against the
# one that was measured last. Where stretches last by turns very long and very short, the size in
# use changes often, and each time the speeds of all other sizes are multiplied, as are the rates
# expected of helpers that stay away: without a bound they would leave the range of a float.
LEAST_SPEED = 1e-6
MOST_SPEED = 1e6


def bounded(speed: float, base: float = 1.0) -> float:
    """The speed, or the nearest one from `LEAST_SPEED` to `MOST_SPEED` times `base`."""
    return min(max(speed, LEAST_SPEED * base), MOST_SPEED * base)


class Pace:
    """What the size in use costs one helper, in one run.

    Attributes:
        rate: Units a nanosecond at the size in use, lately; 0 while that is not known.
        last: The number of the size of the last stretch.
        trial: The number of the size to try once more, -1 for none.
        trying: The number of the size that it tries now, -1 for none.
        joined: The number of the last trial by all helpers that this one took part in.
        together: Whether the size that it tries is tried by all helpers.
        tried: Whether another size was tried since the size in use was last measured.
    """

    __slots__ = (
        "_stretches",
        "joined",
        "last",
        "rate",
        "together",
        "trial",
        "tried",
        "trying",
    )

    def __init__(self) -> None:
        self.rate = 0.0
        self.last = -1
        self.trial = -1
        self.trying = -1
        self.tried = False
        self.together = False
        self.joined = 0
        self._stretches: list[tuple[int, int]] = []  # units and nanoseconds

    @property
    def known(self) -> bool:
        """Whether the size in use was measured enough to compare others with it."""
        return len(self._stretches) > 1

    def add(self, units: int, wall_ns: int) -> float:
        """Take in a stretch of the size in use.

        Returns:
            Its rate relative to those before it; 1 where nothing came before.
        """
        self.tried = False
        stretches = self._stretches
        before = self.rate_over(wall_ns) if stretches else 0.0
        stretches.append((units, max(wall_ns, 1)))
        if len(stretches) > KEPT_STRETCHES:
            del stretches[0]
        done = lasted = 0
        for units_then, wall_then in stretches[-RECENT_STRETCHES:]:
            done += units_then
            lasted += wall_then
        self.rate = done / lasted
        return units / max(wall_ns, 1) / before if before else 1.0

    def rate_over(self, wall_ns: int) -> float:
        """The rate of the last stretches that a trial of this length is compared with."""
        recent = self._stretches[-RECENT_STRETCHES:]
        if not recent:
            return self.rate
        if wall_ns * len(recent) <= LONGER * sum(wall for _, wall in recent):
            return sorted(units / wall for units, wall in recent)[len(recent) // 2]
        done = lasted = 0
        for units, wall in reversed(self._stretches):
            done += units
            lasted += wall
            if lasted >= wall_ns:
                break
        return done / lasted

    def forget(self, rate: float) -> None:
        """Forget the stretches, which no longer compare; this rate is expected of the next ones."""
        self._stretches.clear()
        self.rate = rate


class Score:
    """The speed of one size relative to the size in use.

    Attributes:
        speed: The median of the last few samples, from `LEAST_SPEED` to `MOST_SPEED`.
        count: How many they are.
    """

    __slots__ = ("_samples", "count", "speed")

    def __init__(self, samples: Iterable[float]) -> None:
        self._samples = deque(map(bounded, samples), KEPT_SAMPLES)
        self._count()

    def _count(self) -> None:
        ordered = sorted(self._samples)
        self.count = len(ordered)
        middle = self.count // 2
        odd = self.count % 2
        self.speed = ordered[middle] if odd else (ordered[middle - 1] + ordered[middle]) / 2

    def add(self, sample: float) -> None:
        self._samples.append(bounded(sample))
        self._count()

    def scale(self, factor: float) -> None:
        self._samples = deque((bounded(each * factor) for each in self._samples), KEPT_SAMPLES)
        self._count()


class Scores:
    """The scores by the number of the size; the size in use has none.

    Attributes:
        noise: How much one sample is off, as a factor's logarithm.
    """

    __slots__ = ("_found", "noise")

    def __init__(self, noise: float = FIRST_NOISE) -> None:
        self.noise = noise
        self._found: dict[int, Score] = {}

    def __contains__(self, number: object) -> bool:
        return number in self._found

    def __iter__(self) -> Iterator[int]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def put(self, number: int, speed: float, count: int) -> None:
        """Begin with a score that so many samples led to earlier."""
        self._found[number] = Score([speed] * count)

    def add(self, number: int, sample: float) -> None:
        score = self._found.get(number)
        if score is None:
            self._found[number] = Score([sample])
        else:
            score.add(sample)

    def heard(self, factor: float) -> None:
        """Learn the noise from a stretch that is `factor` times as fast as those before it."""
        off = abs(log(factor)) if factor > 0 else MOST_NOISE
        self.noise += (min(off, MOST_NOISE) - self.noise) / 8

    def speed(self, number: int) -> float:
        """The speed of a size relative to the size in use; 1 where nothing is known."""
        score = self._found.get(number)
        return 1.0 if score is None else score.speed

    def count(self, number: int) -> int:
        """How many samples a size has."""
        score = self._found.get(number)
        return 0 if score is None else score.count

    def sure(self, number: int) -> bool:
        """Whether enough is known of a size to use it, or not to."""
        return self.count(number) >= SURE_SAMPLES

    def _doubt(self, score: Score) -> float:
        factor = CONFIDENCE if score.count > 1 else CONFIDENCE_IN_ONE
        return exp(factor * self.noise / sqrt(score.count))

    def least(self, number: int) -> float:
        """The least speed that a size with a score probably has."""
        score = self._found[number]
        return score.speed / self._doubt(score)

    def most(self, number: int) -> float:
        """The greatest speed that a size with a score probably has."""
        score = self._found[number]
        return score.speed * self._doubt(score)

    def unlucky(self, number: int, best: int) -> bool:
        """Whether very few samples make a size seem far slower than one next to it.

        Curves have no such holes in truth: fresh memory or another process made them.
        """
        score = self._found[number]
        if score.count >= SURE_SAMPLES:
            return False
        beside = (number - 1, number + 1)
        known = [self.speed(each) for each in beside if each in self._found or each == best]
        return bool(known) and score.speed < HOLE * max(known)

    def likely(self, number: int, best: int) -> float:
        """The speed of a size, or else of the nearest one between it and the size in use.

        Curves that fell once seldom rise again beyond.
        """
        low, high = sorted((number, best))
        near = [k for k in self._found if low <= k <= high]
        return self._found[min(near, key=lambda k: abs(k - number))].speed if near else 1.0

    def move(self, number: int, factor: float) -> None:
        """Take in that another size is in use, `factor` times as fast as the one before."""
        self._found.pop(number, None)
        self.scale(1 / factor)

    def scale(self, factor: float, but: int = -1) -> None:
        """Multiply the speeds of all sizes by `factor`, except that of the size `but`."""
        for number, score in self._found.items():
            if number != but:
                score.scale(factor)
