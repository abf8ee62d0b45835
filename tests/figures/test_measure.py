# SPDX-License-Identifier: MIT
# The statistics behind the tables, on data whose truth is known, with a clock that is made up.

from __future__ import annotations

import gc
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.bench.promises import Promise, Result, against_best
from aioktask.figures.measure import Contender, Interval, alternate, interval, ratio, turns
from aioktask.figures.table import Table, number, render
from aioktask.tune.machine import available_memory

SECONDS = st.floats(1e-6, 1e3)


class Clock:
    """Time that passes only when someone works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.worked: list[str] = []

    def __call__(self) -> float:
        return self.now

    def contender(self, name: str, seconds: float, units: int = 1) -> Contender:
        def work() -> None:
            self.now += seconds
            self.worked.append(name)

        return Contender(name, work, units)


# interval and ratio


@given(st.lists(SECONDS, min_size=1, max_size=60))
def test_an_interval_lies_within_the_values_and_around_the_median(values: list[float]) -> None:
    found = interval(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    assert found.count == len(values)


@given(st.lists(SECONDS, min_size=1, max_size=60), st.randoms())
def test_an_interval_does_not_depend_on_the_order(
    values: list[float], shuffler: random.Random
) -> None:
    shuffled = values[:]
    shuffler.shuffle(shuffled)
    assert interval(shuffled) == interval(values)


@pytest.mark.parametrize("count", [6, 11, 15, 31])
def test_19_of_20_intervals_contain_the_true_median(count: int) -> None:
    source = random.Random(count)
    trials = 4000
    hits = 0
    for _ in range(trials):
        found = interval(source.lognormvariate(0, 1) for _ in range(count))
        hits += found.low <= 1 <= found.high
    # By how much the share of 4000 trials may differ from the truth: 0.011 is three deviations.
    assert hits / trials >= 0.95 - 0.011


@pytest.mark.parametrize("true", [0.02, 0.7, 1.0, 2.5])
def test_19_of_20_intervals_contain_the_true_ratio_on_a_noisy_machine(true: float) -> None:
    source = random.Random(7)
    trials = 2000
    hits = 0
    for _ in range(trials):
        # What disturbs a round disturbs both, by up to ten times; and each a little by itself.
        noise = [source.uniform(1, 10) for _ in range(15)]
        under = [each * source.lognormvariate(0, 0.1) for each in noise]
        over = [true * each * source.lognormvariate(0, 0.1) for each in noise]
        found = ratio(over, under)
        hits += found.low <= true <= found.high
    assert hits / trials >= 0.95 - 0.015


def test_15_values_give_the_4th_to_the_12th() -> None:
    assert interval(range(15)) == Interval(7, 3, 11, 15)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_values_give_their_range(count: int) -> None:
    found = interval(range(count))
    assert (found.low, found.high) == (0, count - 1)


def test_a_ratio_needs_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


# turns and alternate


@given(st.integers(1, 12), st.integers(0, 40))
def test_everyone_has_one_turn_a_round(count: int, rounds: int) -> None:
    orders = list(turns(count, rounds))
    assert len(orders) == rounds
    assert all(sorted(order) == list(range(count)) for order in orders)


@given(st.integers(1, 12))
def test_everyone_stands_at_each_place_equally_often(count: int) -> None:
    places = Counter(
        (place, each) for order in turns(count, 2 * count) for place, each in enumerate(order)
    )
    assert set(places.values()) == {2}


@given(st.integers(2, 12))
def test_of_two_neighbours_each_goes_first_equally_often(count: int) -> None:
    first = sum(order.index(0) < order.index(1) for order in turns(count, 2 * count))
    assert first == count


def test_times_are_of_one_unit_and_warm_ups_do_not_count() -> None:
    clock = Clock()
    fast, slow = clock.contender("fast", 1.0, units=4), clock.contender("slow", 3.0)
    times = alternate([fast, slow], 4, warm_ups=2, clock=clock)
    assert times == {"fast": (0.25,) * 4, "slow": (3.0,) * 4}
    assert clock.worked == [
        *("fast", "slow", "slow", "fast"),  # warming up
        *("slow", "fast", "fast", "slow", "fast", "slow", "slow", "fast"),
    ]


def test_what_comes_before_a_run_is_not_timed() -> None:
    clock = Clock()

    def before() -> None:
        clock.now += 100

    work = clock.contender("work", 1.0)
    times = alternate([Contender("work", work.run, before=before)], 3, clock=clock)
    assert times == {"work": (1.0,) * 3}


@pytest.mark.parametrize("on", [True, False])
def test_no_garbage_is_collected_while_the_clock_runs(on: bool) -> None:
    seen: list[bool] = []
    try:
        if not on:
            gc.disable()
        alternate([Contender("look", lambda: seen.append(gc.isenabled()))], 2)
        assert gc.isenabled() is on
        with pytest.raises(ZeroDivisionError):
            alternate([Contender("fail", lambda: 1 // 0)], 2)
        assert gc.isenabled() is on
    finally:
        gc.enable()
    assert seen == [False] * 3


def test_contenders_of_one_name_are_refused() -> None:
    clock = Clock()
    with pytest.raises(ValueError, match="different names"):
        alternate([clock.contender("same", 1.0), clock.contender("same", 2.0)], 2)


def test_the_best_is_chosen_by_the_sweep_and_compared_in_fresh_pairs() -> None:
    clock = Clock()
    ours, slow, fast = (clock.contender(name, 1.0) for name in ("ours", "slow", "fast"))
    # One lucky run does not make `slow` the best.
    sweep = {"slow": (0.1, 5.0, 5.0), "fast": (2.0, 2.0, 2.0)}
    best, fresh = against_best(ours, [slow, fast], sweep=sweep, pairs=5)
    assert best is fast
    assert {name: len(values) for name, values in fresh.items()} == {"ours": 5, "fast": 5}
    assert "slow" not in clock.worked


# promises and tables


@pytest.mark.parametrize(
    ("low", "high", "at_least", "kept"),
    [
        (0.90, 0.94, True, False),
        (0.90, 0.95, True, True),
        (0.96, 0.99, True, True),
        (0.90, 0.94, False, True),
        (0.95, 0.99, False, True),
        (0.96, 0.99, False, False),
    ],
)
def test_a_promise_is_kept_when_the_interval_reaches_it(
    low: float, high: float, at_least: bool, kept: bool
) -> None:
    reached = Interval((low + high) / 2, low, high, 15)
    promise = Promise("speed", 0.95, at_least, reached)
    assert promise.kept is kept
    shown = Result("name", quick=False, promises=[promise]).text()
    assert ("NOT KEPT" in shown) is not kept


@given(st.floats(0.01, 1e9))
def test_a_printed_number_is_right_to_three_digits(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=0.0051)


def test_columns_are_aligned() -> None:
    rows = [("a", 1.0, None), ("heading",), ("longer name", 1234567.0, "text")]
    table = render(Table("Title", ("", "number", "other"), rows, ("A note.",)))
    assert table.splitlines() == [
        "Title",
        "-----",
        "                   number   other",
        "  a                  1.00       -",
        "",
        "heading",
        "  longer name   1,234,567    text",
        "  * A note.",
    ]


# memory that is available


def test_available_memory_heeds_the_limit_of_a_container(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:   8000 kB\n")
    assert available_memory(tmp_path) == 8000 * 1024
    cgroup = tmp_path / "sys/fs/cgroup"
    cgroup.mkdir(parents=True)
    (cgroup / "memory.current").write_text("1000\n")
    (cgroup / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == 8000 * 1024
    (cgroup / "memory.max").write_text("5000\n")
    assert available_memory(tmp_path) == 4000
