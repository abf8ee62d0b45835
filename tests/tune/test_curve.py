# SPDX-License-Identifier: MIT
# The measuring behind `tune`, with functions whose cost is known on a clock that they move.

from __future__ import annotations

import json
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask import (
    Job,
    Part,
    Report,
    arrays,
    max_threads,
    run_multithreaded,
    run_multithreaded_sync,
)
from aioktask.figures.panel import Mark, Point, described
from aioktask.job import Bound, job_that_makes
from aioktask.tune.curve import BEST, COLD, PLAIN, WARM, Curve, measure
from aioktask.tune.curve_report import curve_data, curve_picture, curve_text, sweep_panel
from aioktask.tune.ladder import beside, cells_of, ladder, scheme, thread_counts
from aioktask.tune.target import TargetError, copy_of

UNITS = st.integers(1, 1 << 40)
GRAINS = st.integers(1, 1 << 16)
COSTS = st.floats(1e-10, 10)
THREADS = st.integers(1, 300)


class Machine:
    """Time that passes only when a function says so, in whatever thread."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls = 0
        self.reached = 0
        self._lock = threading.Lock()

    def clock(self) -> float:
        return self.now

    def function(self, cost: Callable[[int, int], float]) -> Callable[[int, int], None]:
        def work(start: int, stop: int) -> None:
            with self._lock:
                self.now += cost(start, stop)
                self.calls += 1
                self.reached = max(self.reached, stop)

        return work

    def measure(
        self, cost: Callable[[int, int], float], size: int, seconds: float = 30.0, **how: int
    ) -> Curve:
        rounds = how.pop("rounds", None)
        job = Job(self.function(cost), size, **how)  # type: ignore[call-overload]
        return measure("work:fn", job, seconds=seconds, rounds=rounds, clock=self.clock)


def flat(start: int, stop: int) -> float:
    """Five microseconds a call and a tenth of one a unit."""
    return 5e-6 + (stop - start) * 1e-7


def cliff(start: int, stop: int) -> float:
    """The same, but thrice as slow where a chunk is larger than a cache of 4096 units."""
    units = stop - start
    return 5e-6 + units * (1e-7 if units <= 4096 else 3e-7)


# the grid


@given(UNITS, GRAINS, COSTS, THREADS, st.sampled_from([2, 4]))
def test_sizes_ascend_in_multiples_of_the_grain_up_to_the_whole_range(
    units: int, grain: int, cost: float, most: int, factor: int
) -> None:
    sizes = ladder(units, grain, cost, most, factor)
    assert all(size % grain == 0 for size in sizes)
    assert all(a < b <= a * factor * math.sqrt(2) + grain for a, b in pairwise(sizes))
    assert units <= sizes[-1] < units + grain


@given(UNITS, GRAINS, COSTS)
def test_the_smallest_size_is_about_10_us_or_a_grain_or_all_there_is(
    units: int, grain: int, cost: float
) -> None:
    smallest = ladder(units, grain, cost, 1)[0]
    about = 1e-5 / math.sqrt(2) <= smallest * cost <= 1e-5 * math.sqrt(2)
    assert about or smallest == grain or smallest >= units


@given(st.integers(1, 1 << 20), st.integers(1, 1 << 10), THREADS)
def test_every_thread_of_a_cell_has_a_chunk(units: int, grain: int, most: int) -> None:
    for chunk, threads in cells_of(ladder(units, grain, 1e-7, most), units, grain, most):
        assert (threads - 1) * (chunk - grain) < units
        assert threads in thread_counts(most)


@given(st.integers(1, 512), st.integers(1, 64))
def test_the_neighbours_of_the_best_are_what_a_wide_ladder_left_out(units: int, grain: int) -> None:
    sizes = ladder(units * grain, grain, 1.0, 2, 4)
    for best in sizes:
        for size in beside(best, grain, sizes):
            assert size in (best // 2, best * 2)
            assert size % grain == 0
            assert size not in sizes
            assert grain <= size <= units * grain


@given(UNITS, GRAINS, COSTS, THREADS, st.floats(0.1, 1000))
def test_less_of_the_range_is_measured_only_when_all_does_not_fit(
    size: int, grain: int, cost: float, most: int, seconds: float
) -> None:
    made = scheme(size, grain, cost, most, seconds=seconds, rounds=4, plain=7, jobs=20)
    assert 1 <= made.units <= size
    if made.units < size:
        assert made.factor == 4
        assert made.units % grain == 0
        # No thread is left without a chunk, and no more is left out than must be.
        assert made.units >= min(grain * most, size)
    if made.units > grain * most:
        assert made.units * cost * (7 + 4) <= seconds


def test_a_range_that_fits_is_measured_whole_and_one_that_hardly_fits_with_fewer_sizes() -> None:
    made = [
        scheme(1 << 20, 1, 1e-7, 2, seconds=seconds, rounds=4, plain=7, jobs=20)
        for seconds in (20, 10, 1)
    ]
    assert [(each.units, each.factor) for each in made[:2]] == [(1 << 20, 2), (1 << 20, 4)]
    assert made[2].units < 1 << 20


# measuring


@pytest.fixture(scope="module")
def found() -> Curve:
    return Machine().measure(cliff, 1 << 18, seconds=1000)


def test_the_best_is_the_fastest_size_by_the_clock(found: Curve) -> None:
    assert found.best[0] == 4096
    assert found.size == found.job.size == 1 << 18
    # 64 calls of 4096 units against one call of all of them.
    speed = cliff(0, 1 << 18) / (64 * cliff(0, 4096))
    assert found.speed((4096, 1)).median == pytest.approx(speed)
    assert found.speed((1 << 18, 1)).median == pytest.approx(1)
    assert {chunk for chunk, _ in found.cells()} >= {1 << power for power in range(7, 17)}
    assert {threads for _, threads in found.cells()} == set(thread_counts(max_threads()))
    assert found.notes == ()


def test_the_comparison_with_the_engine_is_on_rounds_of_its_own(found: Curve) -> None:
    assert set(found.final) == {PLAIN, BEST, COLD, WARM}
    assert {len(times) for times in found.final.values()} == {15}
    assert {len(times) for times in found.sweep.values()} == {15}
    for name in (COLD, WARM):
        # Whatever it chose took as long as calls of some sizes over all of it.
        assert min(found.final[name]) >= (1 << 18) * 1e-7


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Job[None]]:
    """Every job that a measurement runs."""
    jobs: list[Job[None]] = []

    def run(job: Job[None]) -> Coroutine[object, object, Report[None]]:
        jobs.append(job)
        return run_multithreaded(job)

    monkeypatch.setattr("aioktask.tune.curve.run_multithreaded", run)
    return jobs


def test_each_cell_is_run_with_its_chunk_and_its_threads(ran: list[Job[None]]) -> None:
    curve = Machine().measure(flat, 1 << 14, rounds=3)
    runs = Counter((job.chunk, job.max_threads) for job in ran if job.chunk is not None)
    # A first look and three rounds; the best again, once to warm up and three times.
    assert runs == {cell: 4 + 4 * (cell == curve.best) for cell in curve.cells()}


def test_cold_runs_know_nothing_and_warm_ones_have_run_before(ran: list[Job[None]]) -> None:
    curve = Machine().measure(flat, 1 << 14, rounds=3)
    free = [job for job in ran if job.chunk is None]
    cold, warm = ([job for job in free if job.remember is each] for each in (False, True))
    assert len(cold) + len(warm) == len(free)
    # Once to begin with, once to warm up, and three rounds; five times to learn.
    assert (len(cold), len(warm)) == (1 + 1 + 3, 5 + 1 + 3)
    assert {job.name for job in warm} == {"tune work:fn"}
    assert all(job.max_threads is None and job.size == curve.size for job in free)


@pytest.mark.parametrize("seconds", [2.0, 5.0, 20.0])
def test_all_takes_about_as_long_as_it_may(seconds: float) -> None:
    machine = Machine()
    curve = machine.measure(flat, 1 << 24, seconds=seconds, max_threads=2)
    assert 0.7 * seconds < machine.now < 1.2 * seconds
    # The comparison in the end has its share of that.
    assert len(curve.final[PLAIN]) >= 6
    assert curve.job.size < curve.size == 1 << 24
    # Only the probes may have seen more of the range.
    assert machine.reached <= max(curve.job.size, 1 << 18)
    assert any("of 16,777,216 units" in note for note in curve.notes)
    assert any("chunk size was left out" in note for note in curve.notes)


def test_more_time_means_more_rounds() -> None:
    counts = [
        len(Machine().measure(flat, 1 << 12, seconds=seconds).sweep[PLAIN])
        for seconds in (0.05, 0.1, 5)
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[2] == 15


def test_a_function_of_minutes_a_unit_is_measured_on_a_few_of_them() -> None:
    machine = Machine()
    curve = machine.measure(lambda start, stop: 100.0 * (stop - start), 1000, max_threads=2)
    assert curve.job.size == min(max_threads(), 2)
    assert machine.now < 100 * 2 * 30
    assert any("would take about 1.67e+03 min" in note for note in curve.notes)
    assert any("Only 1 round:" in note for note in curve.notes)


def test_a_range_whose_end_is_dear_is_planned_anew() -> None:
    machine = Machine()

    def cost(start: int, stop: int) -> float:
        dear = max(stop - max(start, 500_000), 0)
        return 1e-6 + (stop - start) * 1e-7 + dear * 1e-4

    curve = machine.measure(cost, 1_000_000, seconds=20)
    assert curve.job.size < 1_000_000
    # One call over all of it, which is how it was noticed, takes 50 s.
    assert machine.now < 2 * 50 + 2 * 20


def test_rounds_are_as_many_as_were_asked_for() -> None:
    curve = Machine().measure(flat, 1 << 14, rounds=2)
    assert {len(times) for times in (*curve.sweep.values(), *curve.final.values())} == {2}
    assert any("Only 2 rounds" in note for note in curve.notes)


def test_sizes_keep_to_the_grain_and_the_range() -> None:
    machine = Machine()
    seen: set[tuple[int, int]] = set()

    def cost(start: int, stop: int) -> float:
        seen.add((start, stop))
        return flat(start, stop)

    curve = machine.measure(cost, 10_000, start=64, align=32, min_chunk=40, max_threads=1, rounds=1)
    assert all(chunk % 64 == 0 for chunk, _ in curve.cells())
    assert {threads for _, threads in curve.cells()} == {1}
    assert min(start for start, _ in seen) == 64
    assert max(stop for _, stop in seen) == 10_064
    assert all(stop % 32 == 0 or stop == 10_064 for _, stop in seen)


# jobs


def test_a_reduce_is_measured_and_told_that_its_leaves_are_given() -> None:
    made = arrays.reduce(np.add, np.ones(1 << 14))
    curve = measure("work:job", made, seconds=0.5, rounds=1)
    assert "the leaves that the job's description gives" in curve_text(curve)


def test_a_fixed_chunk_does_not_hide_the_other_sizes() -> None:
    machine = Machine()
    curve = machine.measure(cliff, 1 << 16, chunk=1 << 14, rounds=1)
    assert len({chunk for chunk, _ in curve.cells()}) > 5
    assert curve.warm.chunk == 1 << 14
    assert "The job fixes its chunk size (16,384)" in curve_text(curve)


def test_a_copy_of_a_job_does_the_same_over_another_range() -> None:
    out = np.zeros(100)
    fill = copy_of(arrays.fill(out, 7.0), size=40, min_chunk=8)
    run_multithreaded_sync(fill)
    assert out.tolist() == [7.0] * 40 + [0.0] * 60
    total = copy_of(arrays.reduce(np.add, np.arange(100.0)), size=10)
    assert run_multithreaded_sync(total).value == 45


def test_a_copy_of_a_job_takes_as_much_memory_and_has_its_labels() -> None:
    job = Job(print, 30, memory=1 << 40, labels={"of": "test"}, trace=True)
    copied = copy_of(job, size=10)
    assert (copied.memory, copied.labels, copied.trace) == (job.memory, job.labels, True)


def test_a_copy_of_a_job_keeps_the_parts_that_it_reaches() -> None:
    parts = [Part(10, 20, None), Part(20, 30, None), Part(30, 40, None)]
    job = Job(print, 30, start=10, parts=parts, undo=print, nice=3, align=5)
    cut = copy_of(job, size=15)
    assert cut.parts == (Part(10, 20, None), Part(20, 25, None))
    assert (cut.start, cut.stop, cut.undo, cut.nice, cut.align) == (10, 25, print, 3, 5)
    assert copy_of(job).parts == job.parts


def test_each_run_of_a_job_is_bound_anew() -> None:
    machine = Machine()
    bound: list[Callable[[int, int], None]] = []

    def bind() -> Bound[None]:
        bound.append(machine.function(flat))
        return Bound(bound[-1])

    def unbound(start: int, stop: int) -> None:
        raise AssertionError("it is bind() that says what to run")

    job = job_that_makes(Job(unbound, 1 << 14), bind)
    curve = measure("work:job", job, rounds=2, clock=machine.clock)
    assert len(bound) > 3 * len(curve.sweep)


# errors


def test_what_the_function_raises_is_told_with_its_range() -> None:
    def cost(start: int, stop: int) -> float:
        if stop > 5000:
            raise ValueError("no such\nrow")
        return flat(start, stop)

    with pytest.raises(TargetError) as caught:
        Machine().measure(cost, 10_000)
    assert str(caught.value).startswith("work:fn(0, 8192) raised ValueError: no such row (test_cu")


@pytest.mark.parametrize("undo", [None, lambda start, stop: None])
def test_what_it_raises_in_a_helper_is_told_with_the_chunk(undo: object) -> None:
    machine = Machine()
    main = threading.get_ident()

    def cost(start: int, stop: int) -> float:
        if threading.get_ident() != main and start <= 5000 < stop:
            raise LookupError
        return flat(start, stop)

    job = Job(machine.function(cost), 10_000, undo=undo)  # type: ignore[arg-type]
    with pytest.raises(TargetError) as caught:
        measure("work:fn", job, clock=machine.clock)
    told = re.match(r"work:fn\((\d+), (\d+)\) raised LookupError \(test_curve", str(caught.value))
    assert told is not None
    # The smallest chunks come first.
    assert int(told[1]) <= 5000 < int(told[2]) < int(told[1]) + 1000


# what is told


def test_the_table_marks_the_best_and_what_the_engine_chose(found: Curve) -> None:
    text = curve_text(found)
    sweep = text.split("\n\n")[0].splitlines()
    [best] = [line for line in sweep if "*" in line.partition("  * ")[0]]
    assert best.split()[0] == f"{found.best[0]:,}"
    chosen = [line.split()[0] for line in sweep[3:-2] if "<" in line]
    assert chosen in ([f"{found.warm.chunk:,}"], [])
    for name in (PLAIN, BEST, COLD, WARM):
        assert name in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_data_hold_every_sample_and_can_be_json(found: Curve) -> None:
    told = json.loads(json.dumps(curve_data(found)))
    assert told["best"] == {"chunk": found.best[0], "threads": found.best[1]}
    assert told["measured"] == [0, 1 << 18]
    assert told["samples"]["sweep"] == {name: list(each) for name, each in found.sweep.items()}
    assert told["samples"]["final"].keys() == found.final.keys()
    assert len(told["curve"]) == len(found.cells())
    assert told["warm"]["chunk"] == found.warm.chunk
    for point in told["curve"]:
        assert point["low"] <= point["median"] <= point["high"]


def test_the_picture_shows_what_the_engine_chose(found: Curve) -> None:
    picture = curve_picture(found, "a machine")
    assert f"the engine chose {found.warm.chunk:,} x {found.warm.threads}: " in described(picture)
    assert picture.title == "work:fn: speed by chunk size and threads"
    assert picture.caption.startswith("Over 262,144 units.")
    assert picture.caption.endswith("a machine")


def test_a_panel_is_made_of_the_samples_of_any_sweep() -> None:
    sweep = {"64 x 2": [1.0, 2.0, 4.0], "16 x 2": [2.0, 4.0, 8.0], "16 x 1": [4.0, 8.0, 16.0]}
    marks = [Mark(64, 3.0, "here")]
    panel = sweep_panel("t", sweep | {"plain": [1.0] * 3}, plain=[4.0, 8.0, 16.0], marks=marks)
    assert [each.name for each in panel.series] == ["1 thread", "2 threads"]
    # What disturbed a round disturbed both sides of it: the ratio is the same in all of them.
    assert [list(each.points) for each in panel.series] == [
        [Point(16, 1.0, 1.0, 1.0)],
        [Point(16, 2.0, 2.0, 2.0), Point(64, 4.0, 4.0, 4.0)],
    ]
    assert panel.marks == marks


def test_a_panel_can_rest_on_plain_calls_of_other_rounds() -> None:
    panel = sweep_panel("t", {"64 x 2": [1.0, 2.0, 4.0]}, plain=[4.0, 4.0, 4.0, 100.0])
    [point] = panel.series[0].points
    assert (point.low, point.y, point.high) == (1.0, 2.0, 4.0)
