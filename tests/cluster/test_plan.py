# SPDX-License-Identifier: MIT
# Whose units a worker takes: what follows from homes and rates alone.

from __future__ import annotations

import functools
import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.bench.simulated import Simulation, covered_once, nothing
from aioktask.cluster import ClusterJob, Home
from aioktask.cluster.members import Member, Members
from aioktask.cluster.messages import Joined
from aioktask.cluster.plan import FreeRange, Rates, Taker, fair_units


@pytest.mark.parametrize("units", [1, 2, 7])
def test_a_home_that_no_worker_is_at_is_taken_before_anything_was_measured(units: int) -> None:
    homes = [Home(unit, unit + 1, f"nobody-{unit}") for unit in range(units)]
    sim = Simulation(ClusterJob(nothing, units, homes=homes))
    for number in range(2):
        sim.at(0.0, lambda n=number: sim.join(f"w{n}", 1.0))  # type: ignore[misc]
    sim.run()
    assert covered_once([piece for _, piece in sim.done], range(units))


def test_a_home_that_no_worker_is_at_goes_before_one_that_is_only_slow() -> None:
    homes = [Home(0, 5000, "slow"), Home(5000, 5001, "nobody")]
    sim = Simulation(ClusterJob(nothing, 5001, homes=homes))
    sim.at(0.0, lambda: sim.join("a", 10.0, "slow"))
    sim.at(0.0, lambda: sim.join("b", 10.0, "far"))
    sim.run()
    assert covered_once([piece for _, piece in sim.done], range(5001))
    first = next(piece for name, piece in sim.done if name == "b")
    assert first == range(5000, 5001)


@given(st.lists(st.integers(0, 100), max_size=20, unique=True), st.data())
def test_what_is_given_back_goes_to_the_homes_that_it_came_from(
    edges: list[int], data: st.DataObject
) -> None:
    edges.sort()
    homes = [
        Home(start, stop, f"w{number % 3}")
        for number, (start, stop) in enumerate(itertools.pairwise(edges))
        if number % 4
    ]
    start = data.draw(st.integers(0, 99))
    piece = range(start, data.draw(st.integers(start + 1, 100)))
    free = FreeRange(0, 100, 1, homes)
    free.drop()
    free.give_back([piece])
    assert sorted(unit for each in free.ranges() for unit in each) == list(piece)
    for name in ("w0", "w1", "w2"):
        at_home = {unit for home in homes if name in home.where for unit in range(*home_of(home))}
        while any(unit in at_home for each in free.ranges() for unit in each):
            taken = free.take(Taker(frozenset({name})), 7, lambda: Rates(()))
            assert taken is not None
            assert set(taken) <= at_home & set(piece)


def home_of(home: Home) -> tuple[int, int]:
    return home.start, home.stop


def test_a_look_for_idle_workers_stays_short_with_many_workers_and_blocks() -> None:
    workers, blocks = 200, 2000
    takers = [Taker(frozenset({f"w{number}"}), 1000.0) for number in range(workers)]
    homes = [
        Home(block * 1000, (block + 1) * 1000, f"w{block % workers}") for block in range(blocks)
    ]
    free = FreeRange(0, blocks * 1000, 1, homes)
    elsewhere = frozenset({"elsewhere"})
    last = range(blocks * 1000 - 10, blocks * 1000)

    def look() -> float:
        """As a tick where half of the workers are idle and the others late, in CPU seconds."""
        began = time.thread_time()
        rates = functools.cache(lambda: Rates(takers))
        for _ in range(workers // 2):
            assert not free.any_takes(elsewhere, last, 1.0, rates)
            assert free.take(Taker(elsewhere, 1000.0), 10, rates) is None
        return time.thread_time() - began

    assert min(look() for _ in range(5)) < 0.005


SECONDS = st.integers(-9, 20).map(lambda power: 10.0**power)
MEASURED = st.lists(st.tuples(st.integers(0, 3), SECONDS), min_size=2, max_size=30)


@given(MEASURED, st.none() | st.integers(0, 3))
def test_the_rate_of_all_workers_is_the_sum_of_theirs_however_unlike_they_are(
    measured: list[tuple[int, float]], gone: int | None
) -> None:
    members = Members()
    for number in range(4):
        members.join(Joined(f"w{number}", "here"))
    for number, seconds in measured:
        members.measure(the(members, number), 10**9, seconds)
    if gone is not None:
        members.gone(the(members, gone), "lost")
    rates = [each.taker.rate for each in members if each.taker.rate is not None]
    assert members.total_rate == pytest.approx(sum(rates), rel=1e-9)
    assert members.measured == len(rates)
    assert fair_units(1000, None, members.total_rate, members.measured, members.there, 1) >= 1


def test_the_rate_of_all_workers_is_right_where_one_that_was_far_faster_slows_down() -> None:
    members = Members()
    for number in range(2):
        members.join(Joined(f"w{number}", "here"))
    members.measure(the(members, 0), 1, 1000.0)
    for seconds in (1e-18, *[1000.0] * 100):  # half of it counts each time
        members.measure(the(members, 1), 1, seconds)
    assert members.total_rate == pytest.approx(0.002)


def the(members: Members, number: int) -> Member:
    found = members.get(f"w{number}")
    assert found is not None
    return found
