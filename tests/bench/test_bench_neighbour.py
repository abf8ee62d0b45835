# SPDX-License-Identifier: MIT
# `bench latency`, `neighbour` and `share`: what they work out of what they measured is right, the
# processes that they start do what they are told and are gone afterwards, whatever happens, and a
# hurried run tells all there is to tell.

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.bench import BENCHMARKS, latency, neighbour, processes, share, ways, worker
from aioktask.bench import run as run_benchmark
from aioktask.bench.beside import quantile
from aioktask.bench.latency import NICES, Window, rival_of
from aioktask.bench.neighbour import Times, meeting
from aioktask.bench.pictures import pictures
from aioktask.bench.promises import Result
from aioktask.bench.share import stretch
from aioktask.bench.sines import Sines
from aioktask.bench.timeline import Timeline, together
from aioktask.figures.panel import described
from aioktask.tune.machine import info

ROOT = Path(__file__).parents[2]

# pure parts


@given(st.lists(st.floats(-1, 1e3), min_size=1, max_size=300), st.floats(0.01, 1))
def test_a_quantile_is_the_smallest_value_that_so_many_do_not_exceed(
    values: list[float], part: float
) -> None:
    found = quantile(values, part)
    assert found in values
    assert sum(value <= found for value in values) >= part * len(values) - 1e-9
    below = [value for value in values if value < found]
    assert len(below) < part * len(values) + 1e-9


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """Moments in steps of a second, and counts that only grow."""
    steps = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 99)), max_size=20))
    start = draw(st.integers(0, 50))
    times = [start, *itertools.accumulate((step for step, _ in steps), initial=start)][1:]
    done = list(itertools.accumulate((units for _, units in steps), initial=0))
    return Timeline(times, done)


@given(timelines(), st.lists(st.floats(-10, 300), min_size=2, max_size=2, unique=True))
def test_work_done_grows_and_meets_what_was_seen(line: Timeline, moments: list[float]) -> None:
    assert [line.at(time) for time in line.times] == line.done
    early, late = sorted(moments)
    assert line.done[0] <= line.at(early) <= line.at(late) <= line.done[-1]
    if late - early > 1e-6:
        assert math.isclose(
            line.rate(early, late) * (late - early), line.at(late) - line.at(early), abs_tol=1e-6
        )


@given(st.lists(timelines(), min_size=1, max_size=5), st.floats(0, 300))
def test_together_is_the_sum_at_every_moment(lines: list[Timeline], time: float) -> None:
    expected = sum(line.at(time) for line in lines)
    assert math.isclose(together(lines).at(time), expected, abs_tol=1e-6)


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 9))
def test_full_speed_is_reached_a_window_after_it_is_back(idle: int, rate: int, window: int) -> None:
    """Nothing for a while, then an even rate: the first full window begins where that does."""
    line = Timeline((0, idle, idle + 100), (0, 0, 100 * rate)) if idle else even(rate)
    found = line.reaches(rate, since=0, window=window)
    assert found is not None
    assert idle + window - 1e-6 <= found <= idle + 1.1 * window + 1e-6
    assert line.reaches(1.01 * rate, since=0, window=window) is None
    assert line.reaches(rate, since=idle + 100.5 - window, window=window) is None


def even(rate: float, stop: float = 100.0) -> Timeline:
    return Timeline((0, stop), (0, rate * stop))


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 64))
def test_sines_do_each_element_of_a_range_that_goes_round(
    start: int, size: int, length: int
) -> None:
    sines = Sines(length=length)
    stretches = sines._stretches(start, start + size)
    elements = [at for low, high in stretches for at in range(low, high)]
    assert elements == [at % length for at in range(start, start + size)]
    sines(start, start + size)
    assert sines.done == size
    touched = np.unique(elements).astype(int)
    assert np.array_equal(sines._out[touched], np.sin(sines._x[touched]))


def test_sines_that_are_off_do_nothing() -> None:
    sines = Sines(length=8)
    sines.on = False
    sines(1, 5)
    assert sines.done == 0
    assert not sines._out.any()
    sines.restart()
    sines(1, 5)
    sines.with_gil(0, 3)
    assert sines.done == 7


# whom we are compared with


def windows(worst: float, rate: float) -> list[Window]:
    """One of them was disturbed, which must not count."""
    usual = Window(0.0, worst, worst, rate)
    return [usual, usual, Window(0.0, 99.0, 99.0, 0.0)]


def test_the_rival_is_the_calmest_of_those_who_are_as_fast() -> None:
    found = {
        "ours": windows(1.0, 100.0),
        "calm but slow": windows(0.1, 50.0),
        "fast": windows(5.0, 120.0),
        "as fast and calmer": windows(4.0, 99.0),
    }
    peers = [name for name in found if name != "ours"]
    assert rival_of(found, "ours", peers) == "as fast and calmer"
    assert rival_of(found, "ours", peers[:1]) == "calm but slow"
    found["slower"] = windows(0.01, 49.0)
    assert rival_of(found, "ours", ["calm but slow", "slower"]) == "calm but slow"


def test_a_meeting_compares_the_job_with_itself_a_moment_before() -> None:
    times = Times(lead=1.0, lap=1.0, tail=1.0)
    # 200 a second once it runs well, 50 beside neighbours, and 200 again 0.3 s after they ended.
    job = Timeline((0, 0.5, 1.0, 2.0, 2.3, 3.0), (0, 10, 110, 160, 160, 300))
    met = meeting(job, [(1.0, 1.9), (1.1, 2.0)], times)
    assert met.lap == pytest.approx(0.9)
    assert met.before == pytest.approx(200)
    assert met.beside == pytest.approx(50)
    assert 0.3 + 0.9 * neighbour.WINDOW <= met.back <= 0.3 + 1.1 * neighbour.WINDOW
    never = meeting(Timeline((0, 1, 3), (0, 200, 200)), [(1.0, 2.0), (1.0, 2.0)], times)
    assert never.back == times.tail
    one_by_one = meeting(job, [(1.0, 1.5), (1.5, 2.0)], times)
    assert one_by_one.beside == pytest.approx(50)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6))
def test_a_stretch_is_the_time_in_which_all_ran(rates: list[int]) -> None:
    told = []
    for late, rate in enumerate(rates):
        # Each begins and ends a little later, and begins with a burst that is not counted.
        times = [late / 10, late / 10 + 0.1, late / 10 + 10]
        done = [0, 1e6, 1e6 + rate * 9.9]
        told.append({"times": times, "done": done, "ended": 60, "cpu_time": 2.0, "busy": 3.0})
    found = stretch(told, 0.2)
    assert found.rates == pytest.approx(rates)
    assert found.shares == pytest.approx([len(rates) * rate / sum(rates) for rate in rates])
    assert (found.cpu, found.wall) == pytest.approx((30, 20))
    nothing = {"times": [0.0, 1.0], "done": [0, 0], "ended": 0, "cpu_time": 1.0, "busy": 1.0}
    idle = stretch([nothing, nothing], 0.0)
    assert (idle.rate, idle.cpu, idle.shares) == (0, 0, [0, 0])


# windows


async def pieces(sines: Sines, ended: list[str]) -> None:
    """Like a peer: threads that nobody can cancel."""
    for at in range(64):
        await asyncio.to_thread(sines, at, at + 1)
    ended.append("one run")


def test_a_window_ends_with_nothing_left_that_works() -> None:
    ended: list[str] = []
    for way in (
        ways.Way("peer", lambda sines: pieces(sines, ended)),
        *ways.OURS,
        ways.PEERS[0],
        ways.NOTHING,
    ):
        sines = Sines(1 << 18, 1 << 16)

        async def measured(way: ways.Way = way, sines: Sines = sines) -> Window:
            found = await latency.lateness(way, sines, 0.02)
            assert len(asyncio.all_tasks()) == 1, way.name
            return found

        with asyncio.Runner() as runner:
            found = runner.run(measured())
        done = sines.done
        assert found.median <= found.p99 <= found.worst
        assert (found.rate > 0) <= (done > 0)
    assert ended


def test_what_a_way_raises_is_raised() -> None:
    async def fails(sines: Sines) -> None:
        raise OSError("no threads here")

    for cancellable in (False, True):
        way = ways.Way("fails", fails, cancellable)
        with pytest.raises(OSError, match="no threads"):
            asyncio.run(latency.lateness(way, Sines(length=8), 5))


@pytest.mark.parametrize("seconds", [60, 1e-6], ids=["in it", "at its end"])
def test_cancelling_a_window_waits_for_those_who_work(seconds: float) -> None:
    inside, go = threading.Event(), threading.Event()
    left: list[str] = []

    def work() -> None:
        inside.set()
        go.wait()
        left.append("the thread")

    async def once(sines: Sines) -> None:
        await asyncio.to_thread(work)

    async def main() -> None:
        sines = Sines(length=8)
        task = asyncio.create_task(latency.lateness(ways.Way("", once), sines, seconds))
        await asyncio.to_thread(inside.wait)
        while sines.on and seconds < 1:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)  # it has been told
        waits = not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert waits
        assert left

    asyncio.run(main())


# processes


def gone(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return False
    return True


@pytest.mark.parametrize("error", [None, OSError, KeyboardInterrupt])
def test_processes_are_gone_after_their_block(error: type[BaseException] | None) -> None:
    pids: list[int] = []
    raises = contextlib.nullcontext() if error is None else pytest.raises(error)
    with raises, processes.spinning(2) as spinning, processes.laps(0.01, 1) as running:
        children = [*spinning, *running.children]
        assert len({child.process.pid for child in children}) == 3
        pids += [child.process.pid for child in children]
        assert not any(map(gone, pids))
        if error is not None:
            running.begin()
            raise error
    assert len(pids) == 3
    assert all(map(gone, pids))


def test_processes_die_with_the_one_that_started_them() -> None:
    program = (
        "import os, signal\n"
        "from aioktask.bench.processes import laps, spinning, workers\n"
        "with spinning(1) as one, laps(0.01, 1) as two, workers(1) as (three, _):\n"
        "    children = [*one, *two.children, *three]\n"
        "    two.children[0].tell(str(10**15))\n"
        "    three[0].ask(do='once', nice=0, size=1 << 50, waiter=0)\n"
        "    print(*[child.process.pid for child in children], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in ended.stdout.split()]
    assert len(pids) == 3
    for pid in pids:
        wait_until_dead(pid)


def wait_until_dead(pid: int) -> None:
    """For one that is no child of this process; the timeout of the test is the limit."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            select.select([descriptor], [], [])
        finally:
            os.close(descriptor)


@pytest.mark.parametrize("compiler", [True, False])
def test_neighbours_tell_when_a_lap_began_and_ended(
    compiler: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiler:
        monkeypatch.setattr(processes.shutil, "which", lambda name: None)
    with processes.laps(0.01, 2) as running:
        assert compiler or running.written_in == "Python"
        for _ in range(2):
            running.begin()
            ran = running.end()
            assert len(ran) == 2
            assert all(began < ended for began, ended in ran)


def test_a_process_that_ends_is_told_of() -> None:
    with processes.started([[sys.executable, "-c", "print('ready')"]]) as [child]:
        with pytest.raises(ChildProcessError, match="ended with status 0"):
            child.hear()


def test_a_worker_tells_what_it_did_and_ends() -> None:
    with processes.workers(1) as ([one], one_more):
        two = one_more()
        for child in (one, two):
            child.ask(do="once", nice=19, size=1 << 16, waiter=0)
        assert all(child.answer()["seconds"] > 0 for child in (one, two))
        one.ask(do="repeat", nice=5, size=1 << 22, runs=2)
        two.kill()
        one.ask(do="stop")
        told = one.answer()
        assert told["ended"] >= 2 << 22
        assert told["cpu_time"] > 0
        assert told["times"] == sorted(told["times"])
        assert told["done"] == sorted(told["done"])
        assert told["ended"] % (1 << 22) == 0
        assert told["ended"] <= told["done"][-1]
        assert one.process.stdin is not None
        one.process.stdin.close()
        assert one.process.wait() == 0


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_worker_counts_runs_that_ended_and_the_one_that_goes_on() -> None:
    runs = 3
    told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    sines = Sines(length=1 << 10)
    loop = asyncio.get_running_loop()
    blocked = threading.Event()

    def counted(start: int, stop: int) -> None:
        sines(start, stop)
        if sines.done > runs * 1000 and not blocked.is_set():
            blocked.set()
            loop.call_soon_threadsafe(told.set_result, None)

    found: dict[str, Any] = await worker.repeat(counted, told, nice=0, size=1000)  # type: ignore[arg-type]
    assert found["ended"] >= (runs - 1) * 1000
    assert found["ended"] <= found["done"][-1] <= sines.done
    assert found["busy"] > 0


# everything, in a hurry


@pytest.fixture(scope="module")
def children_before() -> frozenset[str]:
    """Of other tests: multiprocessing keeps a process to the end once it was used."""
    return frozenset(children_of(os.getpid()))


@pytest.fixture(scope="module", params=["latency", "neighbour", "share"])
def hurried(request: pytest.FixtureRequest, children_before: frozenset[str]) -> Iterator[Result]:
    said: list[str] = []
    yield run_benchmark(request.param, quick=True, progress=said.append)
    assert said


def test_a_hurried_run_tells_all_there_is_to_tell(hurried: Result) -> None:
    assert hurried.name in BENCHMARKS
    text = hurried.text()
    for table in hurried.tables:
        assert table.title in text
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
    promised = [(promise.limit, promise.at_least) for promise in hurried.promises]
    assert sorted(promised) == sorted(PROMISED[hurried.name])
    assert len({promise.text for promise in hurried.promises}) == len(promised)
    assert all(values for times in hurried.samples.values() for values in times.values())
    made = pictures({**hurried.data(), "machine": info()})
    assert next(iter(made)) == hurried.name
    told = " ".join(described(picture) for picture in made.values())
    assert ("not kept" in told) <= any(not promise.kept for promise in hurried.promises)


def test_a_hurried_run_leaves_no_process(hurried: Result, children_before: frozenset[str]) -> None:
    assert set(children_of(os.getpid())) <= children_before


def children_of(pid: int) -> Sequence[str]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [child for task in tasks for child in (task / "children").read_text().split()]


def on_a_loop() -> list[tuple[float, bool]]:
    return [(1.0, False)] * 3 + [(1 / 5, False), (1.0, True)]


try:
    import uvloop  # noqa: F401

    LOOPS = 2
except ImportError:
    LOOPS = 1

PROMISED = {
    "latency": LOOPS * on_a_loop() + [(20.0, False)] * len(NICES),
    "neighbour": [(1.05, False)],
    "share": [(0.95, True), (0.95, True), (0.9, True), (1.1, False), (share.BACK_WITHIN, False)],
}
