# SPDX-License-Identifier: MIT
# What is known of chunk sizes: medians that one bad sample does not move, and fair comparisons.

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.learning.scores import (
    KEPT_SAMPLES,
    LEAST_SPEED,
    MOST_SPEED,
    SURE_SAMPLES,
    Pace,
    Scores,
)

speeds = st.floats(0.01, 100.0)


@given(st.lists(speeds, min_size=1, max_size=30))
def test_a_score_is_the_median_of_the_last_samples(samples: list[float]) -> None:
    scores = Scores()
    for sample in samples:
        scores.add(3, sample)
    last = samples[-KEPT_SAMPLES:]
    assert scores.speed(3) == pytest.approx(statistics.median(last))
    assert scores.count(3) == len(last)
    assert scores.least(3) <= scores.speed(3) <= scores.most(3)


@given(speeds, speeds, st.integers(1, KEPT_SAMPLES))
def test_one_bad_sample_does_not_move_a_score_beyond_the_others(
    good: float, bad: float, others: int
) -> None:
    scores = Scores()
    scores.put(5, good, 2 * others)
    scores.add(5, bad)
    assert scores.speed(5) == pytest.approx(good)


@given(st.dictionaries(st.integers(0, 30), speeds, min_size=1), speeds)
def test_another_size_in_use_scales_all_others_and_has_no_score_itself(
    found: dict[int, float], factor: float
) -> None:
    scores = Scores()
    for number, speed in found.items():
        scores.put(number, speed, SURE_SAMPLES)
    chosen = min(found)
    scores.move(chosen, factor)
    assert chosen not in scores
    for number in found.keys() - {chosen}:
        assert scores.speed(number) == pytest.approx(found[number] / factor)
        assert scores.count(number) == SURE_SAMPLES


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(1e-9, 1e9)), max_size=10),
    st.lists(st.tuples(st.integers(0, 3), st.floats(1e-7, 1e7)), max_size=100),
)
def test_no_speed_leaves_its_bounds_however_often_the_size_in_use_changes(
    samples: list[tuple[int, float]], moves: list[tuple[int, float]]
) -> None:
    scores = Scores()
    for number, sample in samples:
        scores.add(number, sample)
    for number, factor in moves:
        scores.move(number, factor)
        scores.add(3 - number, factor)
        assert all(LEAST_SPEED <= scores.speed(each) <= MOST_SPEED for each in scores)


def test_doubt_shrinks_with_samples_and_grows_with_noise() -> None:
    def doubt(samples: int, noise: float) -> float:
        scores = Scores(noise)
        scores.put(1, 1.0, samples)
        return scores.most(1)

    assert doubt(1, 0.1) > doubt(2, 0.1) > doubt(5, 0.1) > 1
    assert doubt(3, 0.2) > doubt(3, 0.1)


def test_a_hole_in_the_curve_is_bad_luck_until_it_is_sure() -> None:
    scores = Scores()
    scores.put(4, 0.9, 5)
    scores.add(5, 0.3)
    scores.put(7, 0.3, 1)
    assert scores.unlucky(5, best=6)
    assert not scores.unlucky(4, best=6)  # only a little slower
    scores.put(5, 0.3, SURE_SAMPLES)
    assert not scores.unlucky(5, best=6)


@given(st.dictionaries(st.integers(0, 30), speeds), st.integers(0, 30), st.integers(0, 30))
def test_an_unknown_size_is_expected_to_be_as_fast_as_the_nearest_on_the_way_to_it(
    found: dict[int, float], number: int, best: int
) -> None:
    found.pop(best, None)
    scores = Scores()
    for k, speed in found.items():
        scores.put(k, speed, 1)
    way = range(number, best, 1 if number < best else -1)
    nearest = next((found[k] for k in way if k in found), 1.0)
    assert scores.likely(number, best) == nearest


def test_noise_follows_how_much_stretches_differ() -> None:
    steady, shaky = Scores(), Scores()
    for turn in range(50):
        steady.heard(1.01)
        shaky.heard(2.0 if turn % 2 else 0.5)
    assert steady.noise == pytest.approx(0.01, abs=0.001)
    assert shaky.noise == pytest.approx(0.5, abs=0.01)


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**7)), min_size=1, max_size=40))
def test_a_rate_is_between_the_slowest_and_the_quickest_stretch(
    stretches: list[tuple[int, int]],
) -> None:
    pace = Pace()
    for units, wall in stretches:
        pace.add(units, wall)
    rates = [units / wall for units, wall in stretches]
    for wall in (1, 10**6, 10**9):
        assert 0.999 * min(rates) <= pace.rate_over(wall) <= 1.001 * max(rates)
    assert 0.999 * min(rates) <= pace.rate <= 1.001 * max(rates)


def test_a_long_trial_is_compared_with_as_long_a_time() -> None:
    """One stretch in four is disturbed: the median of short ones never sees it."""
    pace = Pace()
    for turn in range(8):
        pace.add(1000, 5_000_000 if turn % 4 == 0 else 1_000_000)
    assert pace.rate_over(1_000_000) == 1000 / 1_000_000
    assert pace.rate_over(14_000_000) == pytest.approx(1000 / 2_000_000, rel=0.15)


def test_a_pace_forgets_its_stretches_and_keeps_what_is_expected() -> None:
    pace = Pace()
    pace.add(10, 10)
    assert not pace.known
    pace.add(10, 10)
    assert pace.known
    pace.forget(4.0)
    assert not pace.known
    assert pace.rate == pace.rate_over(1000) == 4.0
