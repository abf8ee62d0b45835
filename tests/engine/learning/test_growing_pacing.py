# SPDX-License-Identifier: MIT
# How many units of a range that grows a thread takes at once.

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.learning.pacing import MOST_TARGET_NS, GrowingPacing
from aioktask.engine.learning.stretch import MOST_CHUNKS, TARGET_NS
from aioktask.engine.ranges.claims import GrowingClaims


def walked(pacing: GrowingPacing, units: int, unit_ns: int, threads: int = 1) -> list[int]:
    """The lengths of the stretches in which one thread walks so many units of this cost."""
    claims, stepper, lengths = GrowingClaims(), pacing.stepper(1), []
    claims.grow(units)
    now = 0
    while claims.left:
        start, _, stop = stepper.next(claims, None, threads, threads, now)
        now += (stop - start) * unit_ns
        lengths.append(stop - start)
        stepper.finished(
            stop - start, stop - start, claims.left, threads, (stop - start) * unit_ns, now
        )
    return lengths


@given(unit_ns=st.integers(1, 10**9), units=st.integers(1, 2000))
def test_a_stretch_is_as_long_as_is_aimed_at_or_one_unit(unit_ns: int, units: int) -> None:
    pacing = GrowingPacing(None)
    lengths = walked(pacing, units, unit_ns)
    assert sum(lengths) == units
    assert lengths[0] == 1, "nothing is known of the first unit"
    for before, after in itertools.pairwise(lengths):
        assert after <= 2 * before, "one quick stretch proves little"
        assert after == 1 or after * unit_ns <= MOST_TARGET_NS
        assert after <= MOST_CHUNKS
    assert pacing.at_once == 1 or pacing.at_once * unit_ns <= TARGET_NS
    assert abs(pacing.unit_ns - unit_ns) <= 1e-6 * unit_ns


@given(unit_ns=st.integers(1, 10**6), longest_ns=st.integers(0, 10**6))
def test_no_unit_waits_for_others_longer_than_is_asked_for(unit_ns: int, longest_ns: int) -> None:
    lengths = walked(GrowingPacing(longest_ns), 500, unit_ns)
    assert all(each == 1 or each * unit_ns <= longest_ns for each in lengths)


def test_units_go_one_by_one_where_none_may_wait_for_others() -> None:
    pacing = GrowingPacing(0)
    assert walked(pacing, 50, 1) == [1] * 50
    assert pacing.at_once == 1


def test_a_thread_leaves_others_their_even_share_where_that_is_worth_their_coming() -> None:
    pacing = GrowingPacing(None)
    claims, stepper = GrowingClaims(), pacing.stepper(1)
    stepper.finished(20, 20, 0, 1, 20 * 10_000, 0)  # 10 us each, so 10 are worth coming for
    claims.grow(64)
    assert claims.take(1, 1)
    claims.give_back(0, 1)
    start, _, stop = stepper.next(claims, None, 1, 4, 0)
    assert stop - start == 16
    start, _, stop = stepper.next(claims, None, 1, 16, 0)
    assert stop - start == 10


def test_what_a_unit_costs_follows_a_change() -> None:
    pacing = GrowingPacing(None)
    walked(pacing, 200, 1000)
    walked(pacing, 200, 1_000_000)
    assert 900_000 < pacing.unit_ns < 1_000_001
    assert pacing.at_once == 1


def test_the_next_stream_of_a_function_begins_with_what_the_last_one_learned() -> None:
    first = GrowingPacing(None)
    first.learn_threads(4, None)
    walked(first, 2000, 10_000, threads=4)
    lesson = first.lesson(1.0)
    assert lesson.speed == 0, "the source and the consumer have their part in it"
    following = GrowingPacing(None)
    following.learn_threads(4, lesson)
    assert (following.at_once, following.together) == (10, 50)
    assert walked(following, 500, 10_000)[0] == following.at_once > 1
    assert following.scaling is not None
    assert following.scaling.level == 4
    another = GrowingPacing(0)  # where none may wait for others
    another.learn_threads(4, lesson)
    assert walked(another, 50, 1) == [1] * 50


def test_a_short_stream_is_not_spent_on_a_trial_of_fewer_threads() -> None:
    pacing = GrowingPacing(None)
    pacing.learn_threads(2, None)
    claims, steppers, now = GrowingClaims(), [pacing.stepper(1), pacing.stepper(1)], 0
    claims.grow(10**9)
    levels = []
    while now < 10**9:  # two threads walk side by side, one unit in 50 us each
        stretches = [each.next(claims, None, 2, 2, now) for each in steppers]
        longest = max(stop - start for start, _, stop in stretches)
        now += longest * 50_000
        for stepper, (start, _, stop) in zip(steppers, stretches, strict=True):
            walk_ns = (stop - start) * 50_000
            stepper.finished(stop - start, stop - start, claims.left, 2, walk_ns, now)
        levels.append((now, pacing.threads_of(2)))
    assert all(level == 2 for at, level in levels if at < 100 * 10**6)
    assert any(level == 1 for _, level in levels), "later it is tried"
