# SPDX-License-Identifier: MIT
# `bench tune`: its workloads give the same however they are cut, the sweep finds the best that
# there is, the promises are the right ratios, and a hurried run tells all there is to tell.

from __future__ import annotations

import asyncio
import ctypes
import itertools
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask import Job, run_multithreaded, run_multithreaded_sync
from aioktask.bench import BENCHMARKS, UnknownOperation, beside, learning
from aioktask.bench.arrays import expression
from aioktask.bench.beside import Waits, lateness, quantile, short_jobs
from aioktask.bench.compiled import compiled
from aioktask.bench.pictures import pictures
from aioktask.bench.promises import Promise, Result
from aioktask.bench.workloads import SUITE, Workload
from aioktask.engine.ranges.plan import leaf_size
from aioktask.figures.measure import Contender
from aioktask.figures.panel import Curves, Dots
from aioktask.memory import residency
from aioktask.tune.ladder import cell_of
from aioktask.tune.machine import info

SMALL = 0.002


# the workloads


def pieces(workload: Workload, seed: int) -> list[tuple[int, int]]:
    """The range cut at random, the first unit apart, in ascending order."""
    grain, stop = workload.align, workload.start + workload.size
    steps = range(1, -(-workload.size // grain))
    inner = random.Random(seed).sample(steps, min(len(steps), 7))
    edges = sorted({workload.start, stop, *[workload.start + n * grain for n in [*inner, 1]]})
    return list(itertools.pairwise(edges))


@pytest.mark.parametrize("name", [name for name in SUITE if "populate" not in name])
def test_a_workload_gives_the_same_however_it_is_cut(name: str) -> None:
    with SUITE[name](SMALL) as one, SUITE[name](SMALL) as other:
        assert other.size == one.size > 0
        whole = one.work(one.start, one.start + one.size)
        cut = pieces(other, seed=1)
        values = {piece: other.work(*piece) for piece in random.Random(2).sample(cut, len(cut))}
        if one.reduce is not None:
            assert other.reduce is not None
            total: Any = values[cut[0]]
            for piece in cut[1:]:
                total = other.reduce(total, values[piece])  # type: ignore[arg-type]
            assert np.array_equal(total, whole)  # type: ignore[arg-type]
            assert total.sum() == one.size
        else:
            assert one.output is not None
            assert other.output is not None
            # A product of some rows may be summed in another order than that of all.
            exact = name != "matrix product"
            np.testing.assert_allclose(one.output, other.output, rtol=0 if exact else 1e-12)


@pytest.mark.parametrize(
    "name", [name for name in SUITE if "populate" not in name and "reduce" not in name]
)
def test_a_workload_writes_all_of_its_output(name: str) -> None:
    """Else the plain call, or a chunk size, would win by doing less."""
    with SUITE[name](SMALL) as workload:
        assert workload.output is not None
        workload.output[...] = 7  # which no result is
        workload.work(workload.start, workload.start + workload.size)
        assert (workload.output != 7).reshape(workload.size, -1).any(axis=1).all()


@pytest.mark.parametrize("name", [name for name in SUITE if "populate" in name])
def test_pages_are_dropped_before_and_there_afterwards(name: str) -> None:
    with SUITE[name](SMALL) as workload:
        memory = (ctypes.c_char * workload.size).from_address(workload.start)

        def resident() -> int:
            return run_multithreaded_sync(residency(memory)).value.resident

        for piece_by_piece in (False, True):
            assert workload.before is not None
            workload.before()
            assert resident() == 0
            whole = [(workload.start, workload.start + workload.size)]
            for start, stop in pieces(workload, seed=3) if piece_by_piece else whole:
                workload.work(start, stop)
            assert resident() == workload.size


# the sweep


def nothing(start: int, stop: int) -> None:
    """Costs what the test says."""


@contextmanager
def four_threads() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "max_threads", lambda: 4)
        yield


def bench_of(workload: Workload) -> learning.Bench:
    return learning.Bench("made up", workload, asyncio.Runner(), quick=False)


@pytest.mark.parametrize("best", [(1 << 12, 4), (1 << 15, 2), (1 << 13, 1), (1 << 18, 4)])
def test_a_sweep_finds_the_best_between_the_sizes_of_its_first_pass(
    best: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(name: str) -> float:
        cell = cell_of(name)
        if cell is None:
            return 0.01  # the plain call: 10 ns a unit
        chunk, threads = cell
        return 1 + abs(np.log2(chunk) - np.log2(best[0])) + 0.1 * abs(threads - best[1])

    def alternate(
        contenders: Sequence[Contender], rounds: int, *, warm_ups: int = 1
    ) -> dict[str, tuple[float, ...]]:
        return {each.name: (seconds(each.name),) * rounds for each in contenders}

    monkeypatch.setattr(learning, "alternate", alternate)
    with four_threads():
        sweep, found = learning._sweep(bench_of(Workload(nothing, 1 << 20)))
    assert found == best
    assert f"{best[0]} x {best[1]}" in sweep
    assert len({len(times) for times in sweep.values()}) == 1


@given(size=st.integers(1, 1 << 40), power=st.integers(0, 21), cost=st.floats(1e-12, 1.0))
def test_a_sweep_goes_from_10_us_to_an_even_share_on_all_threads(
    size: int, power: int, cost: float
) -> None:
    grain = 1 << power
    bench = bench_of(Workload(nothing, size, align=grain))
    with four_threads():
        cells = learning._cells(bench, cost)
    assert len(set(cells)) == len(cells)
    assert all(chunk % grain == 0 for chunk, _ in cells)
    even = -(-size // (4 * grain)) * grain
    for threads in {threads for _, threads in cells}:
        chunks = [chunk for chunk, each in cells if each == threads]
        assert max(chunks) * threads >= size  # an even share
        assert min(chunks) in (grain, even) or 5e-6 <= min(chunks) * cost <= 20e-6
    assert {threads for _, threads in cells} == {1, 2, 4}
    for cell in cells:
        for chunk, threads in learning._around(bench, cell):
            assert chunk % grain == 0
            assert chunk in (2 * cell[0], cell[0] // 2)
            assert threads == cell[1]


def test_of_a_reduce_only_the_threads_vary() -> None:
    with four_threads(), SUITE["histogram, reduce"](SMALL) as workload:
        bench = bench_of(workload)
        leaf = leaf_size(bench.job())
        assert learning._cells(bench, 1e-9) == [(leaf, 1), (leaf, 2), (leaf, 4)]
        assert not learning._around(bench, (leaf, 2))


# promises


def promised(**seconds: float) -> dict[str, Promise]:
    """By what is promised, for contenders that always took so long."""
    names = {
        "plain": learning.PLAIN,
        "rule": learning.RULE,
        "cold": learning.COLD,
        "warm": learning.WARM,
        "best": "64 x 2",
        "prange": learning.PRANGE,
        "kernel": learning.KERNEL,
    }
    times = {names[each]: (value,) * 15 for each, value in seconds.items()}
    return {each.text.partition(": ")[2]: each for each in learning._promises("a", times, "64 x 2")}


def test_what_is_learned_is_held_against_the_best_and_against_plain() -> None:
    found = promised(plain=2.0, rule=1.5, best=0.9, cold=1.0, warm=0.96)
    assert {text: (each.limit, each.reached.median) for text, each in found.items()} == {
        "later runs, of the best of the sweep": (0.95, pytest.approx(0.9 / 0.96)),
        "a first run, of the best of the sweep": (0.90, pytest.approx(0.9)),
        "later runs, of plain": (0.97, pytest.approx(2.0 / 0.96)),
        "a first run, of plain": (0.97, pytest.approx(2.0)),
    }
    assert [each.kept for each in found.values()] == [False, True, True, True]


@pytest.mark.parametrize(
    ("plain", "limit"), [(0.099, None), (0.1, 0.75), (0.499, 0.75), (0.5, 0.90), (9.0, 0.90)]
)
def test_a_first_run_is_held_against_the_best_by_how_long_plain_takes(
    plain: float, limit: float | None
) -> None:
    found = promised(plain=plain, rule=1.0, best=0.4, cold=0.45, warm=0.4)
    promise = found.get("a first run, of the best of the sweep")
    assert limit == (promise.limit if promise else None)


def test_nothing_is_promised_of_work_that_is_over_at_once() -> None:
    assert not promised(plain=0.0099, rule=1.0, best=1.0, cold=1.0, warm=1.0)


def test_the_same_loop_is_held_against_prange() -> None:
    times = {"plain": 0.09, "rule": 1.0, "best": 1.0, "cold": 0.1, "warm": 1.0, "kernel": 0.4}
    assert len(promised(**times)) == 3
    [*_, last] = promised(**times, prange=0.3).values()
    assert (last.limit, last.reached.median, last.kept) == (0.95, pytest.approx(0.75), False)


def test_the_longest_wait_is_what_is_promised_but_not_beside_the_gil() -> None:
    result = Result("tune", False)
    waits = [
        Waits(name, (0.001, longest, 0.002), (0.001, 0.001, 0.001))
        for name, longest in [("nothing", 1.0), ("fill", 0.021), (learning.HOLDS_GIL, 1.0)]
    ]
    learning._served(result, waits)
    [promise] = result.promises
    assert "fill" in promise.text
    assert (promise.limit, promise.reached.high, promise.kept) == (20, pytest.approx(21), False)
    [table] = result.tables
    assert table.rows[1] == ("fill", 2, 21, 21, 1)


# what runs beside a job


@given(st.lists(st.floats(0, 1e3), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_reached_by_so_many_and_no_smaller_value_is(
    values: list[float], share: float
) -> None:
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) * (1 - 1e-9)
    assert sum(value < found for value in values) < share * len(values)


@pytest.mark.asyncio
async def test_a_ticker_is_as_late_as_the_loop_was_held_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0

    async def hold_up() -> None:
        nonlocal now
        now += 0.25

    monkeypatch.setattr(beside, "perf_counter", lambda: now)
    assert await lateness(hold_up) == pytest.approx(0.25 - beside.TICK)


@pytest.mark.asyncio
async def test_what_is_raised_beside_a_ticker_comes_through_and_the_ticker_ends() -> None:
    async def refused() -> None:
        raise OSError("refused")

    with pytest.raises(OSError, match="refused"):
        await lateness(refused)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.asyncio
async def test_short_jobs_are_timed_while_the_long_one_runs_again_and_again() -> None:
    runs = 0

    async def long() -> None:
        nonlocal runs
        runs += 1
        await run_multithreaded(Job(nothing, 8, chunk=1))

    found = await short_jobs("long", long, count=5, pause=0)
    assert runs > 1
    assert len(found.done) == len(found.queued) == 5
    assert all(0 < queued < done for queued, done in zip(found.queued, found.done, strict=True))
    alone = await short_jobs("nothing", None, count=2, pause=0)
    assert len(alone.done) == 2


# compilers


def test_what_is_compiled_gives_what_numpy_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    numba = pytest.importorskip("numba")
    numexpr = pytest.importorskip("numexpr")
    threads = numba.get_num_threads(), numexpr.get_num_threads()
    # As many as the library has, which is not what they have by themselves.
    fewer = max(min(threads) - 1, 1)
    monkeypatch.setattr("aioktask.bench.compiled.max_threads", lambda: fewer)
    x = np.linspace(0.0, 1.0, 10_001)
    out = np.zeros_like(x)
    with compiled(x, out) as found:
        assert numba.get_num_threads() == numexpr.get_num_threads() == fewer
        assert found.layer
        assert not isinstance(found.numexpr, str)
        assert not isinstance(found.prange, str)
        assert not isinstance(found.chunk, str)
        for call in (found.numexpr, found.prange, lambda: found.chunk(0, len(x))):  # type: ignore[operator]
            out[:] = 0
            call()
            np.testing.assert_allclose(out, expression(x), rtol=1e-14)
        out[:] = 0
        found.chunk(10, 20)
        assert np.flatnonzero(out).tolist() == list(range(10, 20))
    assert (numba.get_num_threads(), numexpr.get_num_threads()) == threads


def test_what_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("numba", "numexpr", "threadpoolctl"):
        monkeypatch.setitem(sys.modules, package, None)
    x = np.linspace(0.0, 1.0, 100)
    with compiled(x, np.ones_like(x)) as found:
        assert (found.numexpr, found.prange, found.chunk) == ("not installed",) * 3
    with SUITE["matrix product"](SMALL) as workload:
        assert "not installed" in workload.note
    result = learning.run(True, lambda line: None, "expression")
    [table] = [table for table in result.tables if table.title == "expression"]
    assert {row[0] for row in table.rows if row[-1] == "not installed"} == {
        learning.NUMEXPR,
        learning.PRANGE,
        learning.KERNEL,
    }
    measured = result.samples["expression"].keys()
    assert not {learning.NUMEXPR, learning.PRANGE, learning.KERNEL} & measured


# all of it


def test_a_hurried_run_has_a_line_a_workload_and_every_sample() -> None:
    names = ["fill", "histogram, reduce", "sha256 of blocks"]
    result = learning.run(True, lambda line: None, "; ".join(names))
    assert "tune" in BENCHMARKS
    summary, *tables, waits = result.tables
    assert [row[0] for row in summary.rows] == [table.title for table in tables] == names
    assert [row[0] for row in waits.rows] == ["nothing", "fill"]
    for name, line, table in zip(names, summary.rows, tables, strict=True):
        best = str(line[4])
        asked = [learning.PLAIN, learning.RULE, best, learning.COLD, learning.WARM]
        assert list(result.samples[name]) == [row[0] for row in table.rows] == asked
        assert all(len(times) == 2 for times in result.samples[name].values())
        sweep = result.samples[f"{name}, sweep"]
        assert best == min(sweep, key=lambda choice: sweep[choice])
        assert all(cell_of(choice) is not None for choice in sweep)
        assert [row[-1] for row in table.rows][2] == best
        assert cell_of(str(line[-1])) is not None
        assert name in result.text()
    made = pictures({**result.data(), "machine": info()})
    [dots], [curves] = (made[each].panels for each in ("tune", "tune-curves"))
    assert isinstance(dots, Dots)
    assert [row.label for row in dots.rows] == names
    assert isinstance(curves, Curves)
    drawn = {point.x for series in curves.series for point in series.points}
    assert drawn == {cell[0] for cell in map(cell_of, result.samples["fill, sweep"]) if cell}


def test_a_workload_that_is_not_in_the_suite_is_refused() -> None:
    with pytest.raises(UnknownOperation, match="'nonsense' is in none of these names: expr"):
        learning.run(True, lambda line: None, "nonsense")
