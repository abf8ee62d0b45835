# SPDX-License-Identifier: MIT
# `bench cluster`: on simulated crowds little time is lost, and each is what its description says;
# every way that is measured does all of the work; what is counted is what was moved; and a hurried
# run tells all there is to tell and leaves no process.

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioktask.bench import BENCHMARKS, carried, cluster, on_dask
from aioktask.bench import run as run_benchmark
from aioktask.bench.carried import Counted
from aioktask.bench.crowd import HAPPENINGS, QUIET, crowd, ideal_seconds
from aioktask.bench.orbits import ECCENTRICITY, PIECE, make_files, opened, solve, solved
from aioktask.bench.pictures import pictures
from aioktask.bench.promises import Result
from aioktask.bench.pure_python import longest_here, steps
from aioktask.cluster.messages import Cancel, Closed, Command, Joined, Lost, Message
from aioktask.figures.panel import described
from aioktask.tune.machine import info

needs_dask = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None, reason="distributed is not installed"
)

# crowds


@given(st.integers(10, 80), st.sampled_from(HAPPENINGS), st.integers(0, 2**32))
@settings(max_examples=12)
def test_little_time_is_lost_on_a_crowd_whatever_happens(
    workers: int, happens: str, seed: int
) -> None:
    found = crowd(workers, happens, seed)
    assert 0 < found.lost <= (cluster.ALONE if happens == QUIET else cluster.BESIDE)


def test_messages_of_a_thousand_workers_do_not_pile_up() -> None:
    """Each takes 0.3 ms, one after the other, and near the end there could be too many."""
    found = crowd(1000, HAPPENINGS[-1], seed=0, service=3e-4)
    assert 0 < found.lost <= cluster.BESIDE


def test_the_same_seed_makes_the_same_crowd() -> None:
    one, same, other = (crowd(20, HAPPENINGS[-1], seed) for seed in (3, 3, 4))
    assert (one.lost, one.messages) == (same.lost, same.messages)
    assert one.lost != other.lost


@given(
    st.floats(1, 1e6),
    st.lists(st.tuples(st.floats(0, 50), st.floats(0.1, 100)), min_size=1, max_size=9),
)
def test_the_ideal_is_when_the_rates_have_done_all(
    units: float, joins: list[tuple[float, float]]
) -> None:
    ends = ideal_seconds(units, joins)
    done = sum(max(ends - when, 0.0) * rate for when, rate in joins)
    assert done == pytest.approx(units, rel=1e-6)


def test_a_worker_that_is_lost_does_nothing_more_in_the_ideal() -> None:
    assert ideal_seconds(100, [(0, 10), (0, 10), (2, -10)]) == pytest.approx(8)


def test_a_job_takes_at_least_what_its_messages_take() -> None:
    for service in (1e-4, 1e-2):
        found = crowd(30, QUIET, 1, seconds=5.0, service=service)
        took = 5.0 * (1 + found.lost / 100)
        assert took >= 30 * found.messages * service
    assert found.lost > 100, "messages that take so long are the limit"


# the work


@given(st.lists(st.floats(0, 6.28), min_size=1, max_size=50))
def test_orbits_are_solved(mean: list[float]) -> None:
    found = solved(np.array(mean))
    assert np.allclose(found - ECCENTRICITY * np.sin(found), mean)


def test_an_orbit_is_solved_alike_wherever_a_range_begins(tmp_path: Path) -> None:
    count = 2 * PIECE + 17
    make_files(tmp_path, count)
    files = opened(str(tmp_path))
    for start, stop in ((5, PIECE + 6), (0, 5), (PIECE + 6, count)):
        solve(start, stop, files)
    assert np.array_equal(files.eccentric, solved(files.mean))
    assert np.array_equal(files.eccentric, np.load(tmp_path / "eccentric.npy"))


@given(st.integers(1, 300), st.integers(1, 300))
def test_the_longest_sequence_is_that_of_a_number_of_the_range(start: int, length: int) -> None:
    found = longest_here(start, start + length)
    assert found == max(steps(number) for number in range(start, start + length))


@needs_dask
def test_each_way_of_dask_s_own_solves_every_orbit(tmp_path: Path) -> None:
    from distributed import Client

    from aioktask.bench.dask_ways import WAYS, dask_cluster

    count = 10_007
    make_files(tmp_path, count)
    files = opened(str(tmp_path))
    with dask_cluster(2) as (address, _), Client(address, set_as_default=False) as client:
        assert len(client.scheduler_info()["workers"]) == 2
        for way in WAYS.values():
            files.eccentric[:] = 0.0
            way(client, str(tmp_path), count, 7)
            assert np.array_equal(files.eccentric, solved(files.mean))


# messages


class _Echo:
    """A carrier whose one worker says that it closed, to all that it is told."""

    may_join = True

    def __init__(self) -> None:
        self.ended = False

    def begin(self, hear: Callable[[Message], None]) -> None:
        self.hear = hear
        hear(Joined("w", "here"))

    def send(self, worker: str, command: Command) -> None:
        self.hear(Closed(command.session, worker))

    def end(self) -> None:
        self.hear(Lost("w", "ended", all_heard=True, may_undo=False))
        self.ended = True


@given(st.integers(0, 30))
def test_all_that_two_sides_say_is_counted_and_passed_on(commands: int) -> None:
    echo, heard = _Echo(), []
    counted = Counted(echo)
    counted.begin(heard.append)
    for _ in range(commands):
        counted.send("w", Cancel("s"))
    counted.end()
    counted.may_join = False
    assert (echo.ended, echo.may_join) == (True, False)
    assert [type(each) for each in heard] == [Joined, *[Closed] * commands, Lost]
    assert counted.count == 2 * commands


# all of it


@pytest.fixture(scope="module")
def children_before() -> frozenset[str]:
    return frozenset(children_of(os.getpid()))


@pytest.fixture(scope="module")
def hurried(children_before: frozenset[str]) -> Iterator[Result]:
    said: list[str] = []
    yield run_benchmark("cluster", quick=True, progress=said.append)
    assert said


# It starts a dozen processes.
@needs_dask
@pytest.mark.timeout(400)
def test_a_hurried_run_tells_all_there_is_to_tell(hurried: Result) -> None:
    assert hurried.name in BENCHMARKS
    text = hurried.text()
    for table in hurried.tables:
        assert table.title in text
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
    promised = sorted((promise.limit, promise.at_least) for promise in hurried.promises)
    ways = [(on_dask.OF_ENGINE, True), (on_dask.OF_DASK, True)] * len(on_dask.OURS)
    simulated = [(cluster.ALONE, False)] + [(cluster.BESIDE, False)] * (len(HAPPENINGS) - 1)
    assert promised == sorted([*ways, *simulated, (carried.SAME, False), (carried.SAME, False)])
    assert len({promise.text for promise in hurried.promises}) == len(promised)
    assert all(values for times in hurried.samples.values() for values in times.values())
    made = pictures({**hurried.data(), "machine": info()})
    assert list(made) == ["cluster"]
    told = described(made["cluster"])
    assert ("not kept" in told) is any(not promise.kept for promise in hurried.promises)
    assert len(made["cluster"].panels) == 5


@needs_dask
def test_a_hurried_run_leaves_no_process(hurried: Result, children_before: frozenset[str]) -> None:
    left = set(children_of(os.getpid())) - children_before
    # What multiprocessing, and loky, keep to the end of a process that has used them.
    assert all("resource_tracker" in command_of(pid) for pid in left)


def test_without_dask_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "distributed" else found(name, *more),
    )
    result = Result("cluster", quick=True)
    costs = carried.measure_messages(result, quick=True, progress=str)
    assert costs.keys() == {carried.PROCESSES}
    assert "distributed is not installed" in result.text()


def children_of(pid: int) -> Sequence[str]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [child for task in tasks for child in (task / "children").read_text().split()]


def command_of(pid: str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()
