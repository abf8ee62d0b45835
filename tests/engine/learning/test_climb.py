# SPDX-License-Identifier: MIT
# The climb of a first run: it makes chunks larger only as far as was measured and as is affordable,
# takes back a step that was wrong, and comes to an end.

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.learning.climb import CALL_COSTS, SLOWER, STEP_SHARE, Climb
from aioktask.engine.learning.curve import LONGEST_NS, Curve
from aioktask.engine.learning.scores import Pace
from aioktask.engine.learning.sizing import Sizes
from tests.engine.machines import Machine, best_fixed, by_size, simulate

# Nanoseconds a row: a normalisation of rows, whose temporaries are fresh pages from 64 rows on.
CLIFF = {0: 22e3, 2: 12e3, 4: 11e3, 6: 12e3, 7: 26e3, 8: 34e3, 12: 42e3}


@given(
    size=st.integers(1, 10**9),
    grain=st.integers(1, 1000),
    threads=st.integers(1, 64),
    rate=st.floats(1e-6, 1e3),
    probe=st.floats(1e5, 1e6),
    gains=st.lists(st.floats(0.01, 10.0), min_size=1, max_size=60),
)
def test_a_step_is_as_large_as_is_affordable_and_one_down_is_the_end(
    size: int, grain: int, threads: int, rate: float, probe: float, gains: list[float]
) -> None:
    curve = Curve(size, grain, threads)
    climb, pace = Climb(curve), Pace()
    share = size / threads
    step = 0
    for gain in gains:
        judges = climb.measured(pace, gain)
        assert judges == (step > 0)
        assert climb.over == (judges and gain < SLOWER)
        if climb.over:
            break
        step = climb.next(pace, share, rate, probe)
        if climb.over:
            assert step == 0
            break
        assert step == climb.step in (1, 2)
        curve.best += step
        units = curve.size_of(curve.best)
        assert curve.best <= curve.top
        assert units <= STEP_SHARE * share
        assert step == 1 or units <= probe * rate
        assert units <= LONGEST_NS * rate or gain >= CALL_COSTS or not judges
        assert climb.next(pace, share, rate, probe) == 0  # before it was measured
    else:
        return
    assert climb.next(pace, share, rate, probe) == 0


def test_only_the_helper_that_measured_both_sizes_judges_of_a_step() -> None:
    climb = Climb(Curve(1 << 30, 1, 2))
    leader, other = Pace(), Pace()
    assert not climb.measured(leader, 1.0)
    assert climb.next(other, 1e9, 1.0, 1e6) == 0
    assert climb.next(leader, 1e9, 1.0, 1e6) == 2
    assert not climb.measured(other, 0.1)
    assert not climb.over
    assert climb.next(other, 1e9, 1.0, 1e6) == climb.next(leader, 1e9, 1.0, 1e6) == 0
    assert climb.measured(leader, 0.1)
    assert climb.over


def test_a_helper_that_knows_the_size_takes_the_place_of_a_leader_that_is_gone() -> None:
    climb = Climb(Curve(1 << 30, 1, 2))
    leader, other = Pace(), Pace()
    climb.measured(leader, 1.0)
    climb.next(leader, 1e9, 1.0, 1e6)
    for _ in range(2):
        other.add(1000, 1000)
    assert not climb.measured(other, 0.1)
    assert not climb.over
    assert climb.next(leader, 1e9, 1.0, 1e6) == 0
    assert climb.next(other, 1e9, 1.0, 1e6) == 2


def test_a_run_too_short_to_end_the_climb_leaves_that_to_the_next_one() -> None:
    sizes = Sizes(1 << 20, 1, 2)
    sizes.rate = 1.0
    assert not sizes.for_next_run(1 << 20)._climb.over
    assert not Sizes.of_kept(sizes.kept(), 1, 2).for_next_run(1 << 20)._climb.over


def test_no_later_run_climbs_again_not_even_one_of_another_process() -> None:
    sizes = Sizes(1 << 20, 1, 2)
    sizes.rate = 1.0
    sizes._climb.over = True
    assert not sizes.settled
    for lesson in (sizes, Sizes.of_kept(sizes.kept(), 1, 2)):
        assert lesson.for_next_run(1 << 20)._climb.over


def test_what_a_step_told_is_kept_and_one_that_was_wrong_is_taken_back() -> None:
    sizes = Sizes(1 << 30, 1, 1)
    pace = sizes.new_pace()
    speeds = {18: 4.0, 20: 8.0, 22: 2.0}
    for number, speed in speeds.items():
        chunk, _, chosen = sizes.pick(pace, 1 << 30, 1, 0, 1)
        assert (chunk, chosen) == (1 << number, number)
        for _ in range(2 if number > 18 else 3):  # the first one after a change does not count
            sizes.measured(pace, number, 1_000_000, int(1_000_000 / speed))
    assert sizes.chunk == 1 << 20
    found = {chunk: (speed, count) for chunk, speed, count in sizes.curve()}
    assert found[1 << 18] == (pytest.approx(0.5), 1)
    assert found[1 << 22] == (pytest.approx(0.25), 1)
    assert sizes.rate == pytest.approx(8.0)


@pytest.mark.parametrize("milliseconds", [60, 250])
def test_a_first_run_keeps_away_from_large_chunks_that_are_slow(milliseconds: int) -> None:
    """The plain call takes so long: four times as long as it would in the best chunks."""
    machine = Machine(by_size(CLIFF))
    size = int(milliseconds * 1e6 / CLIFF[12])
    best = best_fixed(machine, size)
    assert best / simulate(machine, size).ns >= 0.75


@pytest.mark.parametrize(
    ("points", "size"),
    [({10: 0.1, 22: 0.1, 24: 0.07, 26: 0.05}, 1 << 31), ({0: 10.0, 1: 10.0}, 10**7)],
    ids=["large chunks are faster", "all are as fast"],
)
def test_a_first_run_climbs_where_that_is_no_slower(points: Mapping[int, float], size: int) -> None:
    machine = Machine(by_size(points), spikes=0.0)
    out = simulate(machine, size)
    assert out.sizes is not None
    assert out.sizes._climb.over
    assert best_fixed(machine, size, least=1 << 12) / out.ns >= 0.80
