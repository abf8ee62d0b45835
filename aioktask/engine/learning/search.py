# SPDX-License-Identifier: MIT
# Which chunk size to try next, and whether that is worth what it costs.
#
# Pure. The search never stops but becomes rare: a trial costs the time by which the tried size is
# slower than the one in use, and all trials together may cost only a small part of the job's time.
# After the search known sizes are listened to: tried again now and then, in case speeds changed.
"""The search among chunk sizes, and its budget."""

from __future__ import annotations

from collections.abc import Iterator

from aioktask.engine.learning.curve import LONGEST_NS, MUCH_BETTER, Curve
from aioktask.engine.learning.scores import KEPT_SAMPLES, Pace

__all__ = ["LONG_TRIAL_NS", "PROBES_SHARE", "Search"]

MILLISECOND = 1_000_000

# Trials of sizes that nothing is known of: so long each, and this part of the range in all.
PROBE_NS = MILLISECOND
SHORTEST_PROBE_NS = 100_000
PROBES = 250  # of a whole job, at that length
PROBES_SHARE = 0.02

# A trial is two stretches, of which the second counts. Where a chunk lasts so long it is a single
# one, which all helpers make at the same time: what large chunks gain (memory bandwidth, say) does
# not show in one helper alone. These samples are of one event, so only MOST_SEEN of them count.
LONG_TRIAL_NS = 2 * MILLISECOND
MOST_SEEN = 2

# What trials may cost of the job's time: while it is not clear which size is best, and after.
SEARCH_SHARE = 0.05
LISTEN_SHARE = 0.005
UNKNOWN_LOSS = 0.5  # of a size that was never tried
LEAST_LOSS = 0.02  # of any, or searching would have no end
LISTEN_LOSS = 0.1  # of any that is listened to: what the change leaves behind in the caches
MOST_LOSS = 5.0
# What was not spent goes to the next run of the function, up to this.
MOST_CREDIT_NS = 50 * MILLISECOND
# The part of the time left that one trial may take; and, for all helpers together, one of the
# largest size in a function's first run and in later ones.
TRIAL_SHARE = 1 / 32
FIRST_FAR_SHARE = 1 / 16
FAR_SHARE = 0.3
FAR_SAMPLES = 6
# Beyond a size that is slower by this factor unknown ones are tried by what was saved up only, and
# not by what the rest of the run may cost; the largest is not.
SLOWER = 0.8
# Where no trial is worth it, the search looks again after this part of the work, within limits.
LOOK_SHARE = 1 / 20
LEAST_LOOK_NS = 5 * MILLISECOND
MOST_LOOK_NS = 50 * MILLISECOND


class Search:
    """The trials of one run.

    Attributes:
        settled: Whether the search has ended, and sizes are only listened to.
        credit_ns: How much more trials may cost, by the work done so far.
        probes: Units that trials of unknown sizes may still take.
        listened: How many trials there were since the search had ended.
        remembered: Whether this is a later run, so that what is seldom done may cost more.
    """

    __slots__ = (
        "_curve",
        "_listen_ns",
        "_look_at",
        "_paces",
        "_pending",
        "_round",
        "_seen",
        "_together",
        "credit_ns",
        "listened",
        "probes",
        "remembered",
        "settled",
    )

    def __init__(self, curve: Curve, paces: list[Pace]) -> None:
        self._curve = curve
        self._paces = paces  # of all helpers
        self.settled = False
        self.remembered = False
        self.credit_ns = self._listen_ns = 0.0
        self.probes = PROBES_SHARE * curve.size
        self.listened = 0
        self._look_at = 0.0  # how much must be worked before the next look
        self._pending: set[int] = set()  # sizes that a helper tries at the moment
        self._together = -1  # the one of them that all should try now, -1 for none
        self._round = 0  # how many sizes all have tried
        self._seen = 0  # how many samples of the last of these count

    def for_next_run(self, curve: Curve, paces: list[Pace]) -> Search:
        """What the next run of the function begins with, on its own curve and helpers."""
        following = Search(curve, paces)
        following.remembered = True
        following.settled = self.settled
        following.credit_ns = min(max(self.credit_ns, -MOST_CREDIT_NS), MOST_CREDIT_NS)
        following.probes += min(self.probes, self._curve.size)
        following.listened = self.listened
        return following

    def worked(self, wall_ns: int) -> None:
        """Take in work that was done, a part of whose time trials may cost."""
        self.credit_ns += SEARCH_SHARE * wall_ns
        self._listen_ns += LISTEN_SHARE * wall_ns

    def look_again(self) -> None:
        """Look for a trial at once, since another size is in use."""
        self._look_at = 0.0

    def probe_ns(self, left: int, rate: float) -> float:
        """How long a trial should last."""
        whole = self._curve.worked_ns + left / rate
        return min(max(whole / PROBES, SHORTEST_PROBE_NS), PROBE_NS)

    def ended(self, pace: Pace) -> None:
        """Take in that the helper has finished its trial, if it made one."""
        if pace.trying >= 0 and pace.trial < 0:
            self._pending.discard(pace.trying)
            if self._together == pace.trying:
                self._together = -1
            pace.trying = -1

    def next(self, pace: Pace, left: int, rate: float, probe: float) -> int | None:
        """The number of the size that the helper should try now, if any."""
        if pace.joined != self._round and self._together >= 0:
            number: int | None = self._together
            pace.joined = self._round
        elif self._curve.worked_ns >= self._look_at:
            number = self._worth_trying(left, rate, probe)
        else:
            return None
        if number is None:
            return None
        long = self._curve.size_of(number) >= LONG_TRIAL_NS * rate
        pace.tried = True
        pace.trying = number
        pace.trial = -1 if long else number
        pace.together = long
        self._pending.add(number)
        if long and self._together < 0:
            self._together = number
            self._round += 1
            self._seen = 0
            pace.joined = self._round
        return number

    def tried(self, pace: Pace, number: int, units: int, wall_ns: int) -> None:
        """Take in a helper's trial: it adds a sample to the size's score, and its cost is paid."""
        base = pace.rate_over(wall_ns)
        scores = self._curve.scores
        if not pace.together or self._seen < MOST_SEEN:
            scores.add(number, units / max(wall_ns, 1) / base)
            self._seen += pace.together
        # The lesser of what score and clock say: a helper that was disturbed need not pay for it.
        lasts = units / base
        loss = min(1 / max(scores.speed(number), 1e-9) - 1, wall_ns / lasts - 1, MOST_LOSS)
        if self.settled:
            self._listen_ns -= lasts * max(loss, LISTEN_LOSS)
        else:
            self.credit_ns -= lasts * max(loss, LEAST_LOSS)
        if wall_ns <= 2 * PROBE_NS and scores.count(number) == 1:
            self.probes -= units

    def _worth_trying(self, left: int, rate: float, probe: float) -> int | None:
        curve = self._curve
        left_ns = left / rate
        budget = self.credit_ns + SEARCH_SHARE * left_ns
        for number in self._wanted(rate, probe):
            if self._affordable(number, rate, probe, budget, left_ns):
                self.settled = False
                return number
        self.settled = True
        if not self._pending:
            heard = self._next_heard(rate)
            if not curve.too_long(rate):  # or it must be worth it all the time
                budget = self._listen_ns + LISTEN_SHARE * left_ns
            if heard is not None and self._affordable(heard, rate, probe, budget, left_ns):
                self.listened += 1
                return heard
        pause = LOOK_SHARE * (curve.worked_ns + left_ns)
        self._look_at = curve.worked_ns + min(max(pause, LEAST_LOOK_NS), MOST_LOOK_NS)
        return None

    def _affordable(
        self, number: int, rate: float, probe: float, budget: float, left_ns: float
    ) -> bool:
        curve = self._curve
        if number in self._pending or number == curve.best:
            return False
        known = number in curve.scores
        speed = curve.scores.likely(number, curve.best)
        lasts = max(probe, curve.size_of(number) / (rate * speed))
        if not known and speed < SLOWER:
            budget = self.credit_ns
        left_ns += curve.worked_ns
        far = number == curve.far(rate)
        if far and lasts > LONGEST_NS:
            promising = curve.scores.speed(number) > MUCH_BETTER
            share = FAR_SHARE if self.remembered or promising else FIRST_FAR_SHARE
            if lasts * len(self._paces) > left_ns * share:
                return False
        elif lasts > left_ns * TRIAL_SHARE:
            return False
        if not known and lasts <= probe and lasts * rate > self.probes:
            return False
        least = LISTEN_LOSS if self.settled else LEAST_LOSS
        loss = max(1 - speed, least if known else UNKNOWN_LOSS)
        return lasts * loss * (1 if lasts < LONG_TRIAL_NS else len(self._paces)) <= budget

    def _wanted(self, rate: float, probe: float) -> Iterator[int]:
        """The sizes that ought to be tried, the most urgent first."""
        curve, scores, best = self._curve, self._curve.scores, self._curve.best
        if curve.before >= 0:
            yield curve.before
        unknown = [k for k in curve.possible(rate) if k not in scores and k != best]
        quick = [k for k in unknown if curve.size_of(k) <= rate * probe]
        yield from sorted(quick, key=lambda k: abs(k - best))
        promising = max([1.0, *map(scores.least, scores)])
        near = [
            k
            for k in scores
            if scores.count(k) < KEPT_SAMPLES
            and (scores.most(k) > promising or scores.unlucky(k, best))
            and (scores.speed(k) > MUCH_BETTER or curve.short_enough(k, rate))
        ]
        yield from sorted(near, key=lambda k: -scores.most(k))
        for k in (best + 1, best - 1):
            if k in unknown:
                yield k
        far = curve.far(rate)
        hopeful = far not in (best, *unknown) and scores.likely(far, best) >= SLOWER
        if hopeful and curve.alone and not curve.uneven:
            count = scores.count(far)
            if not count or (count < FAR_SAMPLES and scores.speed(far) > 1):
                yield far
        slow = [k for k in unknown if k not in quick and abs(k - best) > 1]
        yield from sorted(slow, key=lambda k: abs(k - best))

    def _next_heard(self, rate: float) -> int | None:
        """The size to listen to: all in turn, and every other time one next to the size in use."""
        curve = self._curve
        known = sorted(k for k in curve.scores if curve.short_enough(k, rate))
        near = [k for k in known if abs(k - curve.best) == 1]
        turn, again = divmod(self.listened, 2)
        among = near if again and near else known
        return among[turn % len(among)] if among else None
