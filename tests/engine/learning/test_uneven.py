# SPDX-License-Identifier: MIT
# When the cost of a function counts as uneven by its noise: that of stretches of one size, which
# are compared with those just before. Steady ones never do, whatever a single one does; those that
# differ by more than is said do, and soon; and what was noise is forgotten.

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.learning.curve import FAR_SLOWER, UNEVEN, Curve
from aioktask.engine.learning.scores import FIRST_NOISE, MOST_NOISE, Scores
from aioktask.engine.learning.sizing import Sizes

MILLISECOND = 1_000_000
SIZE = 1 << 40

# A stretch's rate, as a factor's logarithm. A little less than what may be: nanoseconds are whole.
steady = st.floats(0.0, UNEVEN - 0.001)

# The noise is a mean in which each stretch counts an eighth, and what came before the rest.
KEEPS = 7 / 8


def is_uneven(noise: float) -> bool:
    curve = Curve(SIZE, 1, 2)
    curve.scores.noise = noise
    return curve.uneven


def of_one_size() -> Sizes:
    """The sizes of a run that has climbed, so that one of them stays in use."""
    sizes = Sizes(SIZE, 1, 1)
    sizes._climb.over = True
    return sizes


@given(st.lists(steady, max_size=300), st.integers(1, 10**6))
def test_stretches_that_differ_by_no_more_are_never_uneven(
    logarithms: list[float], units: int
) -> None:
    """From any of them to any other, in any order: what is heard of is no further off."""
    sizes = of_one_size()
    pace = sizes.new_pace()
    for each in logarithms:
        wall = MILLISECOND * math.exp(-each)
        sizes.measured(pace, sizes.best, units, round(wall))
        assert sizes._curve.scores.noise <= max(FIRST_NOISE, UNEVEN)
        assert not sizes._curve.uneven


@given(st.floats(UNEVEN + 0.01, 5.0), st.floats(0.0, UNEVEN), st.booleans())
def test_stretches_that_differ_by_more_are_uneven_soon(
    off: float, before: float, slower: bool
) -> None:
    """After so many that what was heard before them counts for less than they are off."""
    scores = Scores(before)
    off = min(off, MOST_NOISE)
    enough = math.ceil(math.log((off - UNEVEN) / (off - before), KEEPS)) + 1
    for _ in range(enough):
        scores.heard(math.exp(-off if slower else off))
    assert is_uneven(scores.noise)
    assert enough <= 50


@given(st.floats(1e-300, 1e300), st.integers(0, 4), st.lists(steady, max_size=20))
def test_fewer_than_five_far_ones_in_a_row_do_not_count(
    far: float, count: int, before: list[float]
) -> None:
    """Where the others are as steady as is thought at first: one that was disturbed is no news."""
    scores = Scores()
    for each in before:
        scores.heard(math.exp(min(each, FIRST_NOISE)))
    for _ in range(count):
        scores.heard(far)
    assert not is_uneven(scores.noise)


def test_five_do() -> None:
    scores = Scores()
    for _ in range(5):
        scores.heard(1e9)
    assert is_uneven(scores.noise)


@given(st.lists(st.floats(0.0, 1e308) | st.just(math.inf), max_size=50))
def test_noise_is_bounded_and_slower_counts_as_quicker_does(factors: list[float]) -> None:
    one, other = Scores(), Scores()
    for each in factors:
        one.heard(each)
        other.heard(1 / each if each else math.inf)
        assert 0 <= one.noise <= MOST_NOISE
        assert math.isclose(one.noise, other.noise, rel_tol=1e-9)


@given(st.floats(0.0, MOST_NOISE), st.floats(0.0, UNEVEN - 0.05))
def test_noise_is_forgotten(before: float, off: float) -> None:
    scores = Scores(before)
    for _ in range(20):
        scores.heard(math.exp(off))
    assert not is_uneven(scores.noise)


@given(st.lists(st.floats(math.log(FAR_SLOWER) + 0.01, 0.0), min_size=60, max_size=60))
def test_by_noise_a_function_is_uneven_if_and_only_if_the_mean_of_what_is_heard_says_so(
    logarithms: list[float],
) -> None:
    """The mean in which a stretch counts less by an eighth with each that comes after it."""
    sizes = of_one_size()
    pace, heard = sizes.new_pace(), FIRST_NOISE
    rates: list[float] = []
    for each in logarithms:
        wall = round(MILLISECOND * math.exp(-each))
        before = pace.rate_over(wall) if rates else 0.0
        if len(rates) > 1:
            off = abs(math.log(1 / wall / before))
            heard = KEEPS * heard + (1 - KEEPS) * min(off, MOST_NOISE)
        if pace.last >= 0:  # the first stretch of all is not compared
            rates.append(1 / wall)
        sizes.measured(pace, sizes.best, 1, wall)
        assert math.isclose(sizes._curve.scores.noise, heard, rel_tol=1e-9)
        if abs(heard - UNEVEN) > 1e-9 and not sizes._curve.uneven_ns:
            assert sizes._curve.uneven == (heard > UNEVEN)
