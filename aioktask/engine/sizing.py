# SPDX-License-Identifier: MIT
# Which chunk size a function is fastest with, found out while it works.
#
# Pure: finished stretches in, the next stretch out. Sizes are the grain times powers of two, up to
# an even share of the range. Every helper compares for itself: a stretch of another size is set
# against those of the size in use that the same helper made just before, so that a slow core, a
# neighbour or a range that becomes harder disturb both sides of the comparison alike. What is kept
# of it is a score, the speed relative to the size in use, of which the median of the last few
# counts: one bad sample moves nothing.
#
# The search never stops, it becomes rare: a trial costs what the size tried is slower than the one
# in use, and all trials together may cost a small part of the job's time only.
"""The search for the chunk size."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import median

from aioktask.engine.plan import CHUNKS_PER_THREAD, round_up

MILLISECOND = 1_000_000

# The lock, the clock and the choice of a job cost some 5 us, once a stretch of so long.
STRETCH_NS = MILLISECOND // 2
MOST_CHUNKS = 256

# A cancel, and a short job beside this one, wait for the end of a chunk. Two slices of this length
# fit into 20 ms.
LONGEST_NS = 10 * MILLISECOND

# Below this a chunk's own costs (a claim, the call, the interpreter's lock) may be a large part of
# it: of two helpers on two CPUs the second gains nothing at 5 us, half at 45, and all at 120.
SHORTEST_NS = 100_000

# The first chunk is this part of the range, for each helper: small enough not to matter, whatever
# it costs.
FIRST_SHARE = 4096
FIRST_SHARE_EACH = 256

# A job that takes each helper less than this begins with chunks nearly as large as padata's: there
# is no time to find out, and nothing is like the user's one call over everything as much as these.
SHORT_JOB_NS = 50 * MILLISECOND

# Trials of sizes that nothing is known of: so long each, and this part of the range in all.
PROBE_NS = MILLISECOND
SHORTEST_PROBE_NS = 100_000
PROBES = 250  # of a whole job, at that length
PROBES_SHARE = 0.02
# Where nothing is worth a trial, that is asked again after so many probes' time.
LOOK_PROBES = 5

# A trial is made of two stretches, of which the second counts, but where a chunk lasts so long.
LONG_TRIAL_NS = 2 * MILLISECOND

# What trials may cost of the job's time: while it is not clear which size is best, and after.
SEARCH_SHARE = 0.05
LISTEN_SHARE = 0.005
UNKNOWN_LOSS = 0.5  # of a size that was never tried
LEAST_LOSS = 0.02  # of any, or listening would have no end
MOST_LOSS = 5.0
# What was not spent goes to the next run of the function, up to this.
MOST_CREDIT_NS = 50 * MILLISECOND
# And how long one trial may take, of what is left: the one of a much larger size, and any other.
LEAP_SHARE = 1 / 8
TRIAL_SHARE = 1 / 32

# A score is the median of the last few samples. It may be off by this many times the noise of one
# sample, divided by the root of their number.
KEPT_SAMPLES = 7
KEPT_RATES = 3
CONFIDENCE = 1.2
SURE_SAMPLES = 3
FIRST_NOISE = 0.05
MOST_NOISE = 0.5
# What is surely so much better takes the place of the size in use.
BETTER = 1.02
# Where the call costs more than the units do, sizes differ by such factors.
MUCH_BETTER = 1.4
MUCH_SLOWER = 0.7
# What is as good and smaller does too, if chunks last longer than a probe: they let others through,
# and work of uneven cost is shared out better.
AS_GOOD = 0.98
# A size that is so many times slower than was expected when it was chosen was chosen by mistake.
SURPRISE = 1.15
MOST_SURPRISE = 4.0
# A size that is so good may stand in for the best where pieces must become small.
GOOD_ENOUGH = 0.95


class Pace:
    """What the size in use costs one helper, in one run.

    Attributes:
        rate: Units a nanosecond at the size in use: the median of the last few stretches, 0 while
            that is not known.
        last: The number of the size of the last stretch.
        trial: The number of the size to try once more, -1 for none.
        trying: The number of the size that it tries now, -1 for none.
        tried: Whether another size was tried since the size in use was last measured.
    """

    __slots__ = ("_rates", "expected", "last", "rate", "trial", "tried", "trying")

    def __init__(self) -> None:
        self.rate = 0.0
        self.expected = 0.0
        self.last = -1
        self.trial = -1
        self.trying = -1
        self.tried = False
        self._rates: list[float] = []

    @property
    def known(self) -> bool:
        """Whether other sizes can be compared with it."""
        return len(self._rates) > 1

    def add(self, rate: float) -> None:
        self.tried = False
        self._rates.append(rate)
        del self._rates[:-KEPT_RATES]
        # What disturbs makes slower: of two the quicker one is right.
        self.rate = sorted(self._rates)[len(self._rates) // 2]

    def forget(self, expected: float) -> None:
        """The size in use is another one, of this rate if all goes as it should."""
        self._rates.clear()
        self.rate = self.expected = expected

    def surprise(self) -> float:
        """How many times slower the size in use is than it was expected to be, told once."""
        if not self.expected or not self.known:
            return 1.0
        expected, self.expected = self.expected, 0.0
        return min(expected / self.rate, MOST_SURPRISE)


@dataclass(frozen=True, slots=True)
class SizeLesson:
    """What a run leaves to the next one of its function.

    Attributes:
        best: The number of the size in use.
        rate: Units a nanosecond of one helper at that size.
        scores: Median score and number of samples by the number of the size.
        settled: Whether the search had ended.
        credit_ns: What trials might have cost more.
        probes: Units that trials of unknown sizes might have had more.
        noise: How much one sample is off, as a factor's logarithm.
    """

    best: int
    rate: float
    scores: tuple[tuple[int, float, int], ...]
    settled: bool
    credit_ns: float
    probes: float
    noise: float


class Sizes:
    """The chunk sizes of one run and what is known of them.

    Sizes are numbered: size k is ``grain << k``, but the last one is an even share of the range.

    Attributes:
        grain: The smallest size, of which all are multiples.
        best: The number of the size in use.
        settled: Whether the search has ended, and only listens.
        rate: Units a nanosecond of some helper lately, at the size in use; 0 while not known.
        remembered: Whether it began with a lesson.
    """

    __slots__ = (
        "_credit_ns",
        "_even",
        "_heard",
        "_leapt",
        "_listen_ns",
        "_listened",
        "_look_at",
        "_noise",
        "_paces",
        "_pending",
        "_probes",
        "_scores",
        "_size",
        "_threads",
        "_top",
        "_worked_ns",
        "best",
        "grain",
        "rate",
        "remembered",
        "settled",
    )

    def __init__(self, size: int, grain: int, threads: int, lesson: SizeLesson | None) -> None:
        self.grain = grain
        self._size = size
        self._threads = threads
        self._even = round_up(-(-size // threads), grain)
        self._top = (self._even // grain - 1).bit_length()
        self._scores: dict[int, deque[float]] = {}
        self._pending: set[int] = set()  # sizes that a helper tries at the moment
        self._paces: list[Pace] = []
        self._worked_ns = 0  # by all helpers together
        self._credit_ns = self._listen_ns = 0.0  # what trials may cost, for the work that is done
        self._probes = PROBES_SHARE * size  # units that trials of unknown sizes may have yet
        self._noise = FIRST_NOISE
        self._heard: dict[int, int] = {}  # when each size was last tried
        self._listened = 0
        self._leapt = False
        self._look_at = 0.0  # when to look for something to try again
        self.remembered = lesson is not None
        if lesson is None:
            first = size // max(FIRST_SHARE, FIRST_SHARE_EACH * threads) // grain
            self.best = min(max(first, 1).bit_length() - 1, self._top)
            self.rate = 0.0
            self.settled = False
        else:
            self.best = min(lesson.best, self._top)
            self.rate = lesson.rate
            self.settled = lesson.settled
            self._credit_ns = lesson.credit_ns
            self._probes += lesson.probes
            self._noise = lesson.noise
            self._leapt = True
            for number, score, samples in lesson.scores:
                if number <= self._top and number != self.best:
                    self._scores[number] = deque([score] * samples, KEPT_SAMPLES)

    def size_of(self, number: int) -> int:
        """Units of a chunk of the size of this number."""
        return self._even if number >= self._top else self.grain << number

    @property
    def chunk(self) -> int:
        """Units of a chunk of the size in use."""
        return self.size_of(self.best)

    def new_pace(self) -> Pace:
        """For one more helper."""
        pace = Pace()
        self._paces.append(pace)
        return pace

    def curve(self) -> Iterator[tuple[int, float, int]]:
        """Size, speed relative to the size in use, and samples, ascending."""
        for number in sorted({*self._scores, self.best}):
            if number == self.best:
                yield self.chunk, 1.0, 0
            else:
                scores = self._scores[number]
                yield self.size_of(number), median(scores), len(scores)

    def lesson(self) -> SizeLesson:
        """What the next run of the function should begin with."""
        scores = ((k, median(each), len(each)) for k, each in self._scores.items())
        return SizeLesson(
            self.best,
            self.rate,
            tuple(scores),
            self.settled,
            min(max(self._credit_ns, -MOST_CREDIT_NS), MOST_CREDIT_NS),
            min(self._probes, self._size),
            self._noise,
        )

    # What a helper does next.

    def pick(self, pace: Pace, left: int, sharers: int, ahead: int) -> tuple[int, int, int]:
        """Size and number of the chunks of a helper's next stretch, and what size that measures.

        Args:
            pace: The helper's.
            left: Units that nobody has claimed, at least 1.
            sharers: Helpers that work on the range, this one included.
            ahead: Units that the others have claimed and not done.

        Returns:
            Units of a chunk, a multiple of the grain; how many; the number of the size, or -1 when
            the stretch is not to be measured.
        """
        if pace.trial < 0 and pace.trying >= 0:
            self._pending.discard(pace.trying)
            pace.trying = -1
        rate = pace.rate or self.rate
        if not rate:
            return self._fitted(self.best, 1, left, sharers, ahead)
        probe = self._probe_ns(left, rate)
        number, length = self.best, float(STRETCH_NS)
        if not pace.known:
            length = probe
        elif pace.trial >= 0:
            number, length, pace.trial = pace.trial, probe, -1
        elif not pace.tried:
            trial = self._trial(left, rate, probe)
            if trial is not None:
                number, length = trial, probe
                pace.trial = trial if self.size_of(trial) < LONG_TRIAL_NS * rate else -1
                pace.tried = True
                pace.trying = trial
                self._pending.add(trial)
                self._heard[trial] = self._worked_ns
        chunk = self.size_of(number)
        count = int(length * rate * self.score(number) / chunk)
        return self._fitted(number, min(max(count, 1), MOST_CHUNKS), left, sharers, ahead)

    def measured(self, pace: Pace, number: int, units: int, wall_ns: int) -> None:
        """A stretch of chunks of the size of this number is over."""
        self._worked_ns += wall_ns
        self._credit_ns += SEARCH_SHARE * wall_ns
        self._listen_ns += LISTEN_SHARE * wall_ns
        if number < 0 or not units:
            return
        rate = units / max(wall_ns, 1)
        # The first stretch after another size pays for what that left behind, in the caches and in
        # the allocator, and the first of all for what is made once.
        changed, pace.last = number != pace.last, number
        again = wall_ns < LONG_TRIAL_NS if number == self.best else pace.trial == number
        if changed and again:
            if not pace.rate:
                pace.rate = rate
                self.rate = self.rate or rate
            return
        if number == self.best:
            if pace.known:
                off = abs(log(rate / pace.rate))
                self._noise += (min(off, MOST_NOISE) - self._noise) / 8
            pace.add(rate)
            self.rate = pace.rate
            self._correct(pace.surprise())
            if not self._scores and not self._leapt:
                self._begin_large(pace)
            self._keep_long(pace)
            return
        pace.tried = True
        base = pace.rate or self.rate
        if not base:
            return
        if number not in self._scores:
            self._scores[number] = deque(maxlen=KEPT_SAMPLES)
        scores = self._scores[number]
        scores.append(rate / base)
        # By the score, not by the clock: who was disturbed need not pay for it.
        cost = units / base * min(max(1 / median(scores) - 1, LEAST_LOSS), MOST_LOSS)
        if self.settled:
            self._listen_ns -= cost
        else:
            self._credit_ns -= cost
        if wall_ns <= 2 * PROBE_NS and len(scores) == 1:
            self._probes -= units
        self._choose()

    def disturbed(self) -> None:
        """The number of helpers changed, and with it what each of them gets done."""
        for pace in self._paces:
            pace.forget(pace.rate)
            pace.expected = 0.0

    # What is known.

    def score(self, number: int) -> float:
        """Speed relative to the size in use, 1 where nothing is known."""
        scores = self._scores.get(number)
        return median(scores) if scores and number != self.best else 1.0

    def _doubt(self, number: int) -> float:
        """The factor by which the score may be off."""
        return exp(CONFIDENCE * self._noise / sqrt(len(self._scores[number])))

    def _value(self, number: int) -> float:
        """The score that the size has at least, as far as can be told."""
        return median(self._scores[number]) / self._doubt(number)

    def _choose(self) -> None:
        """Change to the size that is best now; of those that are as good to a smaller one."""
        sure = [k for k in self._scores if len(self._scores[k]) >= SURE_SAMPLES]
        rival = max(sure, key=self._value, default=self.best)
        if rival != self.best and self._value(rival) > BETTER:
            self._use(rival, median(self._scores[rival]))
        elif self._too_long(self.rate) and self._is_sure(shorter := self._longest(self.rate)):
            # But not where the call itself costs so much that smaller chunks are no shorter.
            if self.score(shorter) > MUCH_SLOWER:
                self._use(shorter, self.score(shorter))
        elif self.chunk > PROBE_NS * self.rate:
            smaller = [k for k in sure if k < self.best and median(self._scores[k]) >= AS_GOOD]
            if smaller:
                self._use(max(smaller), median(self._scores[max(smaller)]))

    def _use(self, number: int, factor: float) -> None:
        """Make this the size in use; it is so many times as fast as the one until now."""
        before = self.best
        samples = len(self._scores.pop(number, ()))
        self._scores = {
            each: deque((score / factor for score in scores), KEPT_SAMPLES)
            for each, scores in self._scores.items()
        }
        if samples:
            self._scores[before] = deque([1 / factor] * samples, KEPT_SAMPLES)
        self.best = number
        self.rate *= factor
        for pace in self._paces:
            pace.forget(pace.rate * factor)

    def _correct(self, slower: float) -> None:
        """The size in use was chosen for a speed that it does not have: the others are better."""
        if slower > SURPRISE:
            self._scores = {
                number: deque((score * slower for score in scores), KEPT_SAMPLES)
                for number, scores in self._scores.items()
            }
            for each in self._paces:
                if each.expected:
                    each.forget(each.expected / slower)
                    each.expected = 0.0
            self._choose()

    def _begin_large(self, pace: Pace) -> None:
        """In a short job, go on with the largest chunks."""
        self._leapt = (self._size - self.chunk) / pace.rate < SHORT_JOB_NS * self._threads
        if self._leapt:
            most = self._even // CHUNKS_PER_THREAD
            number = self._longest(pace.rate)
            while number and self.size_of(number) > most:
                number -= 1
            self._use(number, 1.0)

    def _keep_long(self, pace: Pace) -> None:
        """Make the size in use one that does not last much shorter than chunks should."""
        if pace.known and self.chunk < SHORTEST_NS / 2 * pace.rate:
            number = self.best
            while number < self._top and self.size_of(number) < SHORTEST_NS * pace.rate:
                number += 1
            if number != self.best:
                self._use(number, 1.0)

    def _too_long(self, rate: float) -> bool:
        """Whether chunks of the size in use last longer than they may, and could be smaller."""
        return self.best > 0 and self.chunk > 2 * LONGEST_NS * rate

    def _is_sure(self, number: int) -> bool:
        """Whether enough is known of a size to use it, or not to."""
        return len(self._scores.get(number, ())) >= SURE_SAMPLES

    def _longest(self, rate: float) -> int:
        """The largest size of which a chunk lasts as long as it may, at this rate."""
        number = self._top
        while number and self.size_of(number) > LONGEST_NS * rate:
            number -= 1
        return number

    # What is tried.

    def _probe_ns(self, left: int, rate: float) -> float:
        return min(max((self._worked_ns + left / rate) / PROBES, SHORTEST_PROBE_NS), PROBE_NS)

    def _trial(self, left: int, rate: float, probe: float) -> int | None:
        """The size to try next, if one is worth what that costs."""
        if self._worked_ns < self._look_at:
            return None
        left_ns = left / rate
        budget = self._credit_ns + SEARCH_SHARE * left_ns
        for number in self._wanted(rate, probe, left_ns):
            if self._affordable(number, rate, probe, budget, left_ns):
                self.settled = False
                return number
        self.settled = True
        if not self._pending:
            heard = self._next_heard()
            budget = self._listen_ns + LISTEN_SHARE * left_ns
            if heard is not None and self._affordable(heard, rate, probe, budget, left_ns):
                self._listened += 1
                return heard
        self._look_at = self._worked_ns + LOOK_PROBES * probe
        return None

    def _affordable(
        self, number: int, rate: float, probe: float, budget: float, left_ns: float
    ) -> bool:
        if number in self._pending or number == self.best:
            return False
        known = number in self._scores
        lasts = max(probe, self.size_of(number) / (rate * self.score(number)))
        if lasts > left_ns / 2:
            return False
        left_ns += self._worked_ns
        loss = max(1 - self.score(number), LEAST_LOSS) if known else UNKNOWN_LOSS
        leap = not known and not self._leapt and number == self._longest(rate)
        if lasts > left_ns * (LEAP_SHARE if leap or self._rising(number) else TRIAL_SHARE):
            return False
        if not known and lasts <= probe and lasts * rate > self._probes:
            return False
        if leap:
            self._leapt = True
            return True
        return lasts * loss <= budget

    def _rising(self, number: int) -> bool:
        """Whether this is the next larger one of the largest that was tried, which is the best."""
        return number == self.best + 1 and self.best >= max(self._scores, default=self.best)

    def _wanted(self, rate: float, probe: float, left_ns: float) -> Iterator[int]:
        """The sizes that ought to be tried, the most urgent first."""
        if self._too_long(rate) and not self._is_sure(self._longest(rate)):
            yield self._longest(rate)
        unknown = [k for k in self._lasting(rate) if k not in self._scores and k != self.best]
        # Steps of four first: they show the shape of the curve at half the price.
        quick = [k for k in unknown if self.size_of(k) <= rate * probe]
        yield from sorted(quick, key=lambda k: ((k - self.best) % 2, abs(k - self.best)))
        if not self._leapt and self._longest(rate) in unknown:
            yield self._longest(rate)
        scores = self._scores
        promising = max([1.0, *map(self._value, scores)])
        near = [
            k
            for k in scores
            if len(scores[k]) < KEPT_SAMPLES
            and median(scores[k]) * self._doubt(k) > promising
            and (median(scores[k]) > MUCH_BETTER or self._short_enough(k, rate))
        ]
        yield from sorted(near, key=lambda k: -median(scores[k]) * self._doubt(k))
        for k in (self.best + 1, self.best - 1):
            if k in unknown:
                yield k
        # The slower of two steps of four may hide something between them, or beyond.
        slow = [k for k in unknown if k not in quick and abs(k - self.best) > 1]
        yield from sorted(slow, key=lambda k: abs(k - self.best))

    def _lasting(self, rate: float) -> Iterator[int]:
        """The sizes of which a chunk lasts neither too long nor too short, by what is known."""
        for number in range(self._top + 1):
            lasts = self.size_of(number) / (rate * self.score(number))
            if number == self.best or SHORTEST_NS <= lasts <= 1.5 * LONGEST_NS:
                yield number
            elif number == self.best + 1 and lasts > LONGEST_NS:
                # One step beyond, to learn whether time goes into the units or into the call.
                yield number

    def _short_enough(self, number: int, rate: float) -> bool:
        return self.size_of(number) <= 1.5 * LONGEST_NS * rate * self.score(number)

    def _next_heard(self) -> int | None:
        """The size to listen to: a neighbour, every fourth time another one."""
        known = [k for k in self._scores if k != self.best and self._short_enough(k, self.rate)]
        near = [k for k in known if abs(k - self.best) == 1]
        among = near if self._listened % 4 and near else known
        return min(among, key=lambda k: self._heard.get(k, -1), default=None)

    # How a stretch fits into what is left.

    def _fitted(
        self, number: int, count: int, left: int, sharers: int, ahead: int
    ) -> tuple[int, int, int]:
        """At most half a fair part of what is left, so that all end at about the same time.

        A whole fair part where smaller chunks are slow.
        """
        chunk = self.size_of(number)
        fair = (left + ahead) / sharers
        if chunk * count <= fair / 2:
            return chunk, count, number
        if chunk <= fair / 2:
            return chunk, int(fair / 2 / chunk), number
        least = self._least()
        halves = number - 1 in self._scores and (
            self.score(number - 1) >= GOOD_ENOUGH * self.score(number)
        )
        piece = round_up(int(max(fair / 2 if halves else fair, least, 1)), self.grain)
        if left - piece < least // 2:
            piece = round_up(left, self.grain)
        if piece >= chunk:
            return chunk, 1, number
        return piece, 1, -1

    def _least(self) -> int:
        """The smallest piece that is not slow."""
        number = self.best
        while number and self.score(number - 1) >= GOOD_ENOUGH and (number - 1) in self._scores:
            number -= 1
        if self.rate:
            return min(self.size_of(number), int(max(self.rate * SHORTEST_PROBE_NS, self.grain)))
        return self.grain
