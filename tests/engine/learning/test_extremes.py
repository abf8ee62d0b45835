# SPDX-License-Identifier: MIT
# All that is learned of a function, together, where stretches last nothing, or for days: whatever
# comes, each number that is held stays finite and in its range.

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from aioktask import Job
from aioktask.engine.learning.lessons import Lesson
from aioktask.engine.learning.pacing import LearnedPacing, LearnedStepper, pacing_of
from aioktask.engine.learning.scaling import MOST_CLOCK_NS, MOST_PAUSE, Scaling
from aioktask.engine.learning.scores import KEPT_SAMPLES, LEAST_SPEED, MOST_NOISE, MOST_SPEED
from aioktask.engine.learning.sizing import Sizes
from aioktask.engine.learning.stretch import MOST_CHUNKS
from aioktask.engine.ranges.claims import Claims

DAY_NS = 24 * 3600 * 10**9
STRETCHES = 300

durations = st.integers(0, 10) | st.integers(0, 10**8) | st.integers(0, 10 * DAY_NS)


@given(
    grains=st.integers(5, 10**6) | st.integers(10**6, 10**30),
    min_chunk=st.integers(1, 100) | st.integers(1, 10**9),
    threads=st.integers(1, 5),
    in_use=st.lists(durations, min_size=1, max_size=5),
    tried=st.lists(durations, min_size=1, max_size=5),
    waits=st.floats(-1.0, 1.0),
    seed=st.integers(0, 2**32),
)
def test_whatever_stretches_last_what_is_learned_stays_finite_and_in_range(
    grains: int,
    min_chunk: int,
    threads: int,
    in_use: list[int],
    tried: list[int],
    waits: float,
    seed: int,
) -> None:
    """Stretches of the size in use last otherwise than those of others; some threads stay away."""
    rng = random.Random(seed)
    size = grains * min_chunk
    job = Job(print, size, min_chunk=min_chunk)
    lesson: Lesson | None = None
    for _ in range(3):
        pacing = pacing_of(job, threads, "both", lesson)
        scaling = pacing.scaling
        assert isinstance(pacing, LearnedPacing)
        assert scaling is not None
        claims = Claims([range(size)], pacing.grain_of(1))
        steppers = [pacing.stepper(1) for _ in range(threads)]
        now, serve = 0, threads
        for _ in range(STRETCHES):
            if not claims.left:
                break
            if rng.random() < 0.05:
                serve = rng.randint(1, threads)
                pacing.be_alone(rng.random() < 0.5)
            stepper = steppers[rng.randrange(serve)]
            start, first, stop = stepper.next(claims, None, serve, threads, now)
            assert start < first <= stop <= size
            chunks = 1 + -(-(stop - first) // stepper.chunk)
            assert 1 <= chunks <= MOST_CHUNKS
            assert isinstance(stepper, LearnedStepper)
            lasts = rng.choice(in_use if stepper._number == pacing.sizes.best else tried)
            now += lasts
            waited = int(lasts * waits)
            scaling.served(serve, lasts, waited, lasts - waited, 0)
            stepper.finished(chunks, stop - start, claims.left, serve, lasts, now)
            is_in_range(pacing.sizes)
            scaling_is_in_range(scaling, threads)
            assert 0 <= pacing.ahead(claims.left, serve, now) <= size
        lesson = pacing.lesson(size / max(now, 1))


def is_in_range(sizes: Sizes) -> None:
    curve, search = sizes._curve, sizes._search
    assert 0 <= curve.best <= curve.top
    assert -1 <= curve.before <= curve.top
    assert 0 < curve.expected < math.inf
    assert 0 <= curve.uneven_share <= 1
    assert 0 <= curve.scores.noise <= MOST_NOISE
    for number in curve.scores:
        assert 0 <= number <= curve.top
        assert number != curve.best
        assert LEAST_SPEED <= curve.scores.speed(number) <= MOST_SPEED
        assert 1 <= curve.scores.count(number) <= KEPT_SAMPLES
        assert curve.scores.least(number) > 0
        assert curve.scores.most(number) < math.inf
    held = search.credit_ns, search.probes, search._listen_ns, search._look_at
    assert all(map(math.isfinite, held))
    rates = sizes.rate, *(pace.rate for pace in sizes._paces)
    assert all(0 <= rate < math.inf for rate in rates)


def scaling_is_in_range(scaling: Scaling, threads: int) -> None:
    assert 1 <= scaling.level <= threads
    assert 1 <= scaling._pause <= MOST_PAUSE
    assert scaling._pause_left <= MOST_PAUSE
    clocks = scaling._served_ns, scaling._waited_ns, scaling._busy_ns, scaling._system_ns
    assert all(abs(each) <= MOST_CLOCK_NS for each in (*clocks, scaling._elapsed_ns))
    assert all(0 < done < math.inf for level in scaling._done.values() for done in level)


def test_a_helper_that_stays_away_while_sizes_change_is_not_thought_infinitely_fast() -> None:
    """Each size is far faster while it is tried than in use, so that others take its place."""
    left = 1 << 40
    sizes = Sizes(left, 1, 2)
    away, here = sizes.new_pace(), sizes.new_pace()
    for _ in range(3):
        chunk, count, number = sizes.pick(away, left, 2, 0, 1)
        sizes.measured(away, number, chunk * count, 1_000_000)
    changes, best = 0, sizes.best
    for _ in range(500):
        chunk, count, number = sizes.pick(here, left, 2, 0, 1)
        lasts = 10_000_000_000_000 if number == sizes.best else 1_000_000
        sizes.measured(here, number, chunk * count, lasts)
        is_in_range(sizes)
        changes, best = changes + (sizes.best != best), sizes.best
    assert changes > 60
    assert LEAST_SPEED * sizes.rate <= away.rate <= MOST_SPEED * sizes.rate
    chunk, count, number = sizes.pick(away, left, 2, 0, 1)
    sizes.measured(away, number, chunk * count, 1_000_000)
    is_in_range(sizes)
