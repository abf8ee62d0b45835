# SPDX-License-Identifier: MIT
# Which chunk size a function is fastest with, found out while it works.
#
# Pure: finished stretches in, the next stretch out. Sizes are the grain times powers of two, up to
# an even share of the range. What is known of them are scores (engine/scores); here is decided what
# to use, what to try, and what that may cost.
#
# The search never stops, it becomes rare: a trial costs what the size tried is slower than the one
# in use, and all trials together may cost a small part of the job's time only. So may the thinking:
# it is done under the engine's lock and, mostly, the interpreter's.
"""The search for the chunk size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aioktask.engine.plan import CHUNKS_PER_THREAD, round_up
from aioktask.engine.scores import KEPT_SAMPLES, Pace, Scores

__all__ = ["SizeLesson", "Sizes"]

MILLISECOND = 1_000_000

# The lock, the clock and the choice of a job cost some 10 us, and more while another thread wants
# the interpreter: once a stretch of so long while sizes are searched for, and after.
STRETCH_NS = MILLISECOND
SETTLED_STRETCH_NS = 3 * MILLISECOND
MOST_CHUNKS = 256

# A cancel, and a short job beside this one, wait for the end of a chunk. Two slices of this length
# fit into 20 ms.
LONGEST_NS = 10 * MILLISECOND
# While no other job is there, up to this, where it is worth much.
LONGEST_ALONE_NS = 50 * MILLISECOND
# Cost is uneven where stretches of one size differ by more than this, as a factor's logarithm, or where
# so much of the time goes into those that are far slower than the ones before. Shorter chunks are
# shared out better then.
UNEVEN = 0.25
UNEVEN_SHARE = 0.15
FAR_SLOWER = 0.33
UNEVEN_PRIOR_NS = 200 * MILLISECOND
LONGEST_UNEVEN_NS = 2 * MILLISECOND

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

# A trial is made of two stretches, of which the second counts, but where a chunk lasts so long. Then
# all helpers try it at the same time: what large chunks are good for, the memory's bandwidth, say,
# one of them alone does not show.
LONG_TRIAL_NS = 2 * MILLISECOND
MOST_SEEN = 2

# What trials may cost of the job's time: while it is not clear which size is best, and after.
SEARCH_SHARE = 0.05
LISTEN_SHARE = 0.005
UNKNOWN_LOSS = 0.5  # of a size that was never tried
FAR_LOSS = 0.25  # of one that is nearly the user's own call over everything
LEAST_LOSS = 0.02  # of any, or searching would have no end
LISTEN_LOSS = 0.1  # of any that is listened to: what the change leaves behind in the caches
MOST_LOSS = 5.0
# What was not spent goes to the next run of the function, up to this.
MOST_CREDIT_NS = 50 * MILLISECOND
# And how long one trial may take, of what is left: the one of a much larger size, and any other; and
# of all helpers together that of the largest, in the first run and later, since it is done once.
LEAP_SHARE = 1 / 8
TRIAL_SHARE = 1 / 32
FIRST_FAR_SHARE = 1 / 16
FAR_SHARE = 0.3
# Where nothing is worth a trial, that is asked again after this part of the work, within limits.
LOOK_SHARE = 1 / 20
LEAST_LOOK_NS = 5 * MILLISECOND
MOST_LOOK_NS = 50 * MILLISECOND

# What is surely so much better takes the place of the size in use; and so much at most is taken for
# true at first, so that the others are not thought worse than they are.
BETTER = 1.02
MOST_GAIN = 2.0
# Longer than they may be chunks are only for so much: where the call costs more than the units do,
# or where only large ones go around the cache.
MUCH_BETTER = 1.2
MUCH_SLOWER = 0.83
FAR_SAMPLES = 6
# And beside another job only where shorter ones are no shorter, since they are so much slower.
NO_SHORTER = 0.4
# What is as good and smaller does too, where chunks last long: they let others through, and work of
# uneven cost is shared out better.
AS_GOOD = 0.99
LONG_NS = LONGEST_NS // 2
# A size that is so good may stand in for the best where pieces must become small.
GOOD_ENOUGH = 0.95


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
        listened: How many trials there were since the search had ended.
        uneven: The part of the time that went into stretches far slower than others.
        before: The number of the size that was in use before and must be tried again, or -1.
        expected: What its score should be.
    """

    best: int
    rate: float
    scores: tuple[tuple[int, float, int], ...]
    settled: bool
    credit_ns: float
    probes: float
    noise: float
    listened: int
    uneven: float
    before: int = -1
    expected: float = 1.0


class Sizes:
    """The chunk sizes of one run and what is known of them.

    Sizes are numbered: size k is ``grain << k``, but the last one is an even share of the range.

    Attributes:
        grain: The smallest size, of which all are multiples.
        best: The number of the size in use.
        settled: Whether the search has ended, and only listens.
        rate: Units a nanosecond of some helper lately, at the size in use; 0 while not known.
        remembered: Whether it began with a lesson.
        paused: Whether nothing is tried at present: threads stand in each other's way.
        alone: Whether nobody else waits for the end of a chunk.
    """

    __slots__ = (
        "_before",
        "_credit_ns",
        "_even",
        "_expected",
        "_leapt",
        "_listen_ns",
        "_listened",
        "_look_at",
        "_paces",
        "_pending",
        "_probes",
        "_round",
        "_scores",
        "_seen",
        "_size",
        "_threads",
        "_together",
        "_top",
        "_uneven_ns",
        "_worked_ns",
        "alone",
        "best",
        "grain",
        "paused",
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
        self._pending: set[int] = set()  # sizes that a helper tries at the moment
        self._together = -1  # the one of them that all should try now, -1 for none
        self._round = 0  # how often all did
        self._seen = 0  # samples of the last time
        self._paces: list[Pace] = []
        self._worked_ns = 0  # by all helpers together
        self._credit_ns = self._listen_ns = 0.0  # what trials may cost, for the work that is done
        self._before = -1  # the size that was in use before, until it was tried again
        self._expected = 1.0  # and what its score should be
        self._probes = PROBES_SHARE * size  # units that trials of unknown sizes may have yet
        self._listened = 0  # how often
        self._uneven_ns = 0.0  # spent in stretches of the size in use far slower than those before
        self._leapt = False
        self._look_at = 0.0  # when to look for something to try again
        self.remembered = lesson is not None
        self.paused = False
        self.alone = True
        if lesson is None:
            first = size // max(FIRST_SHARE, FIRST_SHARE_EACH * threads) // grain
            self.best = min(max(first, 1).bit_length() - 1, self._top)
            self.rate = 0.0
            self.settled = False
            self._scores = Scores()
        else:
            self.best = min(lesson.best, self._top)
            self.rate = lesson.rate
            self.settled = lesson.settled
            self._credit_ns = lesson.credit_ns
            self._probes += lesson.probes
            self._listened = lesson.listened
            self._uneven_ns = lesson.uneven * UNEVEN_PRIOR_NS
            if lesson.before <= self._top and lesson.before != self.best:
                self._before, self._expected = lesson.before, lesson.expected
            self._scores = Scores(lesson.noise)
            self._leapt = True
            for number, speed, count in lesson.scores:
                if number <= self._top and number != self.best:
                    self._scores.put(number, speed, count)

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
        scores = self._scores
        for number in sorted({*scores, self.best}):
            yield self.size_of(number), scores.speed(number), scores.count(number)

    def lesson(self) -> SizeLesson:
        """What the next run of the function should begin with."""
        scores = self._scores
        return SizeLesson(
            self.best,
            self.rate,
            tuple((number, scores.speed(number), scores.count(number)) for number in scores),
            self.settled,
            min(max(self._credit_ns, -MOST_CREDIT_NS), MOST_CREDIT_NS),
            min(self._probes, self._size),
            scores.noise,
            self._listened,
            self._uneven_ns / (self._worked_ns + UNEVEN_PRIOR_NS),
            self._before,
            self._expected,
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
            if self._together == pace.trying:
                self._together = -1
            pace.trying = -1
        rate = pace.rate or self.rate
        if not rate:
            return self._fitted(self.best, 1, left, sharers, ahead)
        number, length = self.best, SETTLED_STRETCH_NS if self.settled else STRETCH_NS
        if not self.alone and self._too_long(rate):
            shorter = self._longest(rate)
            if self._scores.speed(shorter) > NO_SHORTER:
                return self._fitted(shorter, 1, left, sharers, ahead)
        if pace.trial >= 0:
            number, length, pace.trial = pace.trial, self._probe_ns(left, rate), -1
        elif not pace.known:
            length = min(length, self._probe_ns(left, rate))
        elif not pace.tried and not self.paused:
            probe = self._probe_ns(left, rate)
            if pace.joined != self._round and self._together >= 0:
                trial: int | None = self._together
                pace.joined = self._round
            elif self._worked_ns >= self._look_at:
                trial = self._trial(left, rate, probe)
            else:
                trial = None
            if trial is not None:
                number, length = trial, probe
                long = self.size_of(trial) >= LONG_TRIAL_NS * rate
                pace.together = long
                pace.trial = -1 if long else trial
                pace.tried = True
                pace.trying = trial
                self._pending.add(trial)
                if long and self._together < 0:
                    self._together = trial
                    self._round += 1
                    self._seen = 0
                    pace.joined = self._round
        chunk = self.size_of(number)
        count = int(length * rate * self._scores.speed(number) / chunk)
        return self._fitted(number, min(max(count, 1), MOST_CHUNKS), left, sharers, ahead)

    def measured(self, pace: Pace, number: int, units: int, wall_ns: int) -> None:
        """A stretch of chunks of the size of this number is over."""
        self._worked_ns += wall_ns
        self._credit_ns += SEARCH_SHARE * wall_ns
        self._listen_ns += LISTEN_SHARE * wall_ns
        if number < 0 or not units:
            return
        # The first stretch after another size pays for what that left behind, in the caches and in
        # the allocator, and the first of all for what is made once.
        first, changed, pace.last = pace.last < 0, number != pace.last, number
        again = wall_ns < LONG_TRIAL_NS if number == self.best else pace.trial == number
        if first or (changed and again):
            if not pace.rate:
                pace.rate = units / max(wall_ns, 1)
                self.rate = self.rate or pace.rate
        elif number == self.best:
            self._measured_best(pace, units, wall_ns)
        else:
            self._measured_other(pace, number, units, wall_ns)

    def _measured_best(self, pace: Pace, units: int, wall_ns: int) -> None:
        known = pace.known
        factor = pace.add(units, wall_ns)
        if known:
            self._scores.heard(factor)
            if factor < FAR_SLOWER:
                self._uneven_ns += wall_ns
        self.rate = pace.rate
        if not self._scores and not self._leapt:
            self._begin_large(pace)
        self._keep_long(pace)

    def _measured_other(self, pace: Pace, number: int, units: int, wall_ns: int) -> None:
        pace.tried = True
        if not pace.known:  # another size came into use meanwhile
            return
        base = pace.rate_over(wall_ns)
        scores = self._scores
        # What all see at the same time is one thing seen: it counts twice at most.
        if not pace.together or self._seen < MOST_SEEN:
            scores.add(number, units / max(wall_ns, 1) / base)
            self._seen += pace.together
        if number not in scores:
            return
        # By the score or by the clock: who was disturbed need not pay for it.
        lasts = units / base
        loss = min(1 / max(scores.speed(number), 1e-9) - 1, wall_ns / lasts - 1, MOST_LOSS)
        if self.settled:
            self._listen_ns -= lasts * max(loss, LISTEN_LOSS)
        else:
            self._credit_ns -= lasts * max(loss, LEAST_LOSS)
        if wall_ns <= 2 * PROBE_NS and scores.count(number) == 1:
            self._probes -= units
        self._verify_before()
        self._choose()

    def disturbed(self) -> None:
        """The number of helpers changed, and with it what each of them gets done."""
        for pace in self._paces:
            pace.forget(pace.rate)

    def forget(self) -> None:
        """What was measured of sizes was measured of threads that stood in each other's way."""
        self._scores = Scores()

    # Which size is in use.

    def _choose(self) -> None:
        """Change to the size that is best now; of those that are as good to a smaller one."""
        scores = self._scores
        if self._before >= 0:
            return
        sure = [number for number in scores if scores.sure(number)]
        may_be = [k for k in sure if self._short_enough(k, self.rate) or self._worth_it(k)]
        rival = max(may_be, key=scores.least, default=self.best)
        if rival != self.best and scores.least(rival) > BETTER:
            # Whoever is chosen for the best of several scores was lucky in them.
            self._use(rival, min(scores.least(rival), MOST_GAIN))
        elif self._too_long(self.rate) and scores.sure(shorter := self._longest(self.rate)):
            # But not where the call itself costs so much that smaller chunks are no shorter.
            if scores.speed(shorter) > MUCH_SLOWER:
                self._use(shorter, scores.speed(shorter))
        elif self.chunk > LONG_NS * self.rate:
            smaller = [k for k in sure if k < self.best and scores.speed(k) >= AS_GOOD]
            if smaller:
                self._use(max(smaller), scores.speed(max(smaller)))

    def _use(self, number: int, factor: float) -> None:
        """Make this the size in use; it is so many times as fast as the one until now."""
        self._scores.move(number, factor)
        before, self.best = self.best, number
        self.rate *= factor
        self._expected = 1 / factor
        self._before = before if self._short_enough(before, self.rate) else -1
        for pace in self._paces:
            pace.forget(pace.rate * factor)
        self._look_at = 0.0

    def _verify_before(self) -> None:
        """The size before was compared with the one in use again: put right what follows from it.

        Whoever is chosen for the best of several scores was lucky in them more often than not, and
        what was measured against the size before is not what it seemed then.
        """
        if self._before >= 0 and self._scores.sure(self._before):
            factor = self._scores.speed(self._before) / self._expected
            if factor > 1 or not self._uneven:
                self._scores.scale(factor, but=self._before)
            self._before = -1

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
        return self.best > 0 and self.chunk > 2 * self._longest_ns * rate

    @property
    def _longest_ns(self) -> int:
        """How long a chunk may last."""
        return LONGEST_UNEVEN_NS if self._uneven else LONGEST_NS

    @property
    def _uneven(self) -> bool:
        """Whether parts of the range of one length cost much more than others."""
        if self._scores.noise > UNEVEN:
            return True
        return self._uneven_ns > UNEVEN_SHARE * (self._worked_ns + UNEVEN_PRIOR_NS)

    def _longest(self, rate: float) -> int:
        """The largest size of which a chunk lasts as long as it may, at this rate."""
        number = self._top
        while number and self.size_of(number) > self._longest_ns * rate:
            number -= 1
        return number

    def _far(self, rate: float) -> int:
        """The largest size of which a chunk lasts as long as it may where there is no other job,
        at this rate; of one that is no more than padata's."""
        number, most = self._top, self._even // CHUNKS_PER_THREAD
        while number and self.size_of(number) > min(LONGEST_ALONE_NS * rate, most):
            number -= 1
        return number

    # What is tried.

    def _probe_ns(self, left: int, rate: float) -> float:
        return min(max((self._worked_ns + left / rate) / PROBES, SHORTEST_PROBE_NS), PROBE_NS)

    def _trial(self, left: int, rate: float, probe: float) -> int | None:
        """The size to try next, if one is worth what that costs."""
        left_ns = left / rate
        budget = self._credit_ns + SEARCH_SHARE * left_ns
        for number in self._wanted(rate, probe):
            if self._affordable(number, rate, probe, budget, left_ns):
                self.settled = False
                return number
        self.settled = True
        if not self._pending:
            heard = self._next_heard()
            if not self._too_long(rate):  # or it must be worth it all the time
                budget = self._listen_ns + LISTEN_SHARE * left_ns
            if heard is not None and self._affordable(heard, rate, probe, budget, left_ns):
                self._listened += 1
                return heard
        pause = LOOK_SHARE * (self._worked_ns + left_ns)
        self._look_at = self._worked_ns + min(max(pause, LEAST_LOOK_NS), MOST_LOOK_NS)
        return None

    def _affordable(
        self, number: int, rate: float, probe: float, budget: float, left_ns: float
    ) -> bool:
        if number in self._pending or number == self.best:
            return False
        known = number in self._scores
        speed = self._scores.speed(number)
        lasts = max(probe, self.size_of(number) / (rate * speed))
        if lasts > left_ns / 2:
            return False
        left_ns += self._worked_ns
        loss = max(1 - speed, LISTEN_LOSS if self.settled else LEAST_LOSS)
        leap = not known and not self._leapt and number == self._longest(rate)
        far = number == self._far(rate)
        if far and lasts > LONGEST_NS:
            share = FAR_SHARE if self.remembered or speed > MUCH_BETTER else FIRST_FAR_SHARE
            if lasts * len(self._paces) > left_ns * share:
                return False
        elif lasts > left_ns * TRIAL_SHARE:
            rare = leap or number == self._before or self._rising(number)
            if not rare or lasts > left_ns * LEAP_SHARE:
                return False
        if not known and lasts <= probe and lasts * rate > self._probes:
            return False
        if leap:
            self._leapt = True
            return True
        if not known:
            loss = FAR_LOSS if far else UNKNOWN_LOSS
        return lasts * loss * (1 if lasts < LONG_TRIAL_NS else len(self._paces)) <= budget

    def _rising(self, number: int) -> bool:
        """Whether this is the next larger one of the largest that was tried, which is the best."""
        return number == self.best + 1 and self.best >= max(self._scores, default=self.best)

    def _wanted(self, rate: float, probe: float) -> Iterator[int]:
        """The sizes that ought to be tried, the most urgent first."""
        scores, best = self._scores, self.best
        if self._before >= 0:
            yield self._before
        if self._too_long(rate) and not scores.sure(self._longest(rate)):
            yield self._longest(rate)
        unknown = [k for k in self._lasting(rate) if k not in scores and k != best]
        # Steps of four first: they show the shape of the curve at half the price.
        quick = [k for k in unknown if self.size_of(k) <= rate * probe]
        yield from sorted(quick, key=lambda k: ((k - best) % 2, abs(k - best)))
        if not self._leapt and self._longest(rate) in unknown:
            yield self._longest(rate)
        promising = max([1.0, *map(scores.least, scores)])
        near = [
            k
            for k in scores
            if scores.count(k) < KEPT_SAMPLES
            and (scores.most(k) > promising or scores.unlucky(k, best))
            and (scores.speed(k) > MUCH_BETTER or self._short_enough(k, rate))
        ]
        yield from sorted(near, key=lambda k: -scores.most(k))
        for k in (best + 1, best - 1):
            if k in unknown:
                yield k
        far = self._far(rate)
        if far not in (best, *unknown) and self.alone and not self._uneven:
            count = scores.count(far)
            if not count or (count < FAR_SAMPLES and scores.speed(far) > 1):
                yield far
        # The slower of two steps of four may hide something between them, or beyond.
        slow = [k for k in unknown if k not in quick and abs(k - best) > 1]
        yield from sorted(slow, key=lambda k: abs(k - best))

    def _lasting(self, rate: float) -> Iterator[int]:
        """The sizes of which a chunk lasts neither too long nor too short, by what is known."""
        for number in range(self._top + 1):
            lasts = self.size_of(number) / (rate * self._scores.speed(number))
            if number == self.best or SHORTEST_NS <= lasts <= 1.5 * LONGEST_NS:
                yield number
            elif number == self.best + 1 and lasts > LONGEST_NS:
                # One step beyond, to learn whether time goes into the units or into the call.
                yield number

    def _worth_it(self, number: int) -> bool:
        """Whether the size is so good that chunks may last longer than they should."""
        return not self._uneven and self._scores.speed(number) > MUCH_BETTER

    def _short_enough(self, number: int, rate: float) -> bool:
        return self.size_of(number) <= 1.5 * self._longest_ns * rate * self._scores.speed(number)

    def _next_heard(self) -> int | None:
        """The size to listen to: all in turn, and every other time one next to the size in use."""
        known = sorted(k for k in self._scores if self._short_enough(k, self.rate))
        near = [k for k in known if abs(k - self.best) == 1]
        turn, again = divmod(self._listened, 2)
        among = near if again and near else known
        return among[turn % len(among)] if among else None

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
        scores = self._scores
        least = self._least()
        halves = number - 1 in scores and (
            scores.speed(number - 1) >= GOOD_ENOUGH * scores.speed(number)
        )
        piece = round_up(int(max(fair / 2 if halves else fair, least, 1)), self.grain)
        if left - piece < least // 2:
            piece = round_up(left, self.grain)
        if piece >= chunk:
            return chunk, 1, number
        return piece, 1, -1

    def _least(self) -> int:
        """The smallest piece that is not slow."""
        number, scores = self.best, self._scores
        while number and (number - 1) in scores and scores.speed(number - 1) >= GOOD_ENOUGH:
            number -= 1
        if self.rate:
            return min(self.size_of(number), int(max(self.rate * SHORTEST_PROBE_NS, self.grain)))
        return self.grain
