# SPDX-License-Identifier: MIT
# `bench serve`: the client's load is an open loop, whatever the server does; what it works out of
# what it measured is right; each way serves, and refuses where it is bounded; and a hurried run
# tells all there is to tell and leaves no process.

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.bench import BENCHMARKS, barest, processes, serve, serving
from aioktask.bench import run as run_benchmark
from aioktask.bench.barest import bare_requests
from aioktask.bench.load import BROKEN, load, schedule
from aioktask.bench.pictures import pictures
from aioktask.bench.processes import started
from aioktask.bench.promises import Result
from aioktask.bench.serve import Window, best_of, window_of
from aioktask.figures.panel import described
from aioktask.tune.machine import info
from tests.support.gates import eventually

needs_httptools = pytest.mark.skipif(
    importlib.util.find_spec("httptools") is None, reason="httptools is not installed"
)
needs_servers = pytest.mark.skipif(
    bool(serving.missing(serving.OURS)) or sys.platform != "linux",
    reason=f"{serving.missing(serving.OURS) or 'Linux'} is not there",
)

# the schedule


@given(
    st.dictionaries(st.sampled_from("abc"), st.floats(1, 500), max_size=3),
    st.floats(0, 3),
    st.integers(0, 9),
)
def test_requests_of_a_path_are_at_even_distances(
    rates: dict[str, float], seconds: float, seed: int
) -> None:
    plan = schedule(rates, seconds, seed)
    assert plan == sorted(plan)
    for path, rate in rates.items():
        times = [time for time, each in plan if each == path]
        assert len(times) == round(rate * seconds)
        gaps = [late - early for early, late in itertools.pairwise(times)]
        assert gaps == pytest.approx([1 / rate] * len(gaps))
        assert all(0 <= time <= 1 / rate for time in times[:1])


# the client


class Stub:
    """A server that answers when the test lets it."""

    def __init__(self, status: int = 200, breaks: bool = False) -> None:
        self.asked: list[str] = []
        self.status = status
        self.breaks = breaks
        self.go = asyncio.Event()
        self.port = 0
        self.connections = self.ended = 0

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Stub]:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self
            await eventually(lambda: self.ended == self.connections)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.asked.append(head.split()[1].decode())
                await self.go.wait()
                if self.breaks:
                    break
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\nok" % self.status)
        writer.close()
        await writer.wait_closed()
        self.ended += 1


@needs_httptools
def test_a_server_that_stalls_does_not_put_the_load_off() -> None:
    """All are sent though none is answered, and what they wait counts from when they were due."""

    async def main() -> None:
        async with Stub().serving() as stub:
            asking = asyncio.create_task(
                load(port=stub.port, rates={"/a": 100.0}, seconds=0.2, seed=1)
            )
            await eventually(lambda: len(stub.asked) == 20)
            assert not asking.done()
            stub.go.set()
            answer: Any = await asking
            took = [seconds for seconds, status in answer["took"]["/a"] if status == 200]
            assert len(took) == 20
            # The first was due at least 19 intervals before the last was sent.
            assert max(took) >= 0.19
            assert len(answer["late"]) == 20

    asyncio.run(main())


@needs_httptools
def test_connections_are_kept_while_they_are_not_needed_twice() -> None:
    async def main() -> None:
        async with Stub().serving() as stub:
            stub.go.set()
            answer: Any = await load(
                port=stub.port, rates={}, seconds=0, seed=1, background="/b", times=5, together=2
            )
            assert answer["statuses"] == [200] * 10
            assert stub.asked == ["/b"] * 10
            assert stub.connections == 2

    asyncio.run(main())


@needs_httptools
def test_the_load_ends_with_what_is_in_the_background() -> None:
    async def main() -> None:
        async with Stub().serving() as stub:
            asking = asyncio.create_task(
                load(
                    port=stub.port, rates={"/a": 50}, seconds=1e4, seed=1, background="/b", times=1
                )
            )
            await eventually(lambda: stub.asked.count("/a") == 3)
            stub.go.set()
            answer: Any = await asking
            assert answer["statuses"] == [200]
            assert len(answer["took"]["/a"]) == stub.asked.count("/a") < 1000

    asyncio.run(main())


@needs_httptools
def test_what_is_not_answered_is_counted_as_broken() -> None:
    async def main() -> None:
        async with Stub(breaks=True).serving() as stub:
            stub.go.set()
            answer: Any = await load(port=stub.port, rates={"/a": 100}, seconds=0.03, seed=1)
            assert [status for _, status in answer["took"]["/a"]] == [BROKEN] * 3

    asyncio.run(main())


def test_a_connection_that_is_refused_is_counted_as_broken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    answer: Any = asyncio.run(load(port=port, rates={"/a": 100}, seconds=0.03, seed=1))
    assert [status for _, status in answer["took"]["/a"]] == [BROKEN] * 3


# what is worked out


@given(
    st.lists(st.tuples(st.floats(0.001, 9), st.sampled_from([200, 503, 500, BROKEN])), max_size=50),
    st.lists(st.tuples(st.floats(0.001, 9), st.sampled_from([200, 500])), max_size=50),
    st.lists(st.sampled_from([200, 500]), max_size=3),
)
def test_each_answer_is_counted_once(
    interactive: list[tuple[float, int]], empty: list[tuple[float, int]], heavy: list[int]
) -> None:
    answer = {
        "took": {serve.INTERACTIVE: interactive, serve.EMPTY: empty},
        "late": [0.0, 0.1],
        "background": 1.5,
        "statuses": heavy,
    }
    found = window_of(answer)
    good = sum(status == 200 for _, status in empty) + heavy.count(200)
    counted = found.served + found.turned_away + found.broken
    assert counted == len(interactive) + len(empty) + len(heavy) - good
    served = [seconds for seconds, status in interactive if status == 200]
    assert found.served == len(served)
    assert found.median <= found.p99 <= max(served, default=0.0)
    assert (found.late, found.background) == (0.1, 1.5)


def windows(p99: float) -> Sequence[Window]:
    """One of them was disturbed, which must not count."""
    return [Window(0, 0, each, 0, 1, 0, 0, 1.0, 0.0) for each in (p99, 99.0, p99)]


def test_the_best_has_the_smallest_p99_of_those_that_are_there() -> None:
    found = {"a": windows(3.0), "b": windows(1.0), "c": windows(2.0)}
    assert best_of(found, ("a", "c", "missing")) == "c"
    assert best_of(found, found) == "b"
    assert best_of(found, ("missing",)) is None


@pytest.mark.parametrize("served", [0, 5])
def test_where_nothing_is_served_or_something_breaks_no_promise_is_kept(served: int) -> None:
    good = Window(0.001, 0.006, 0.006, 0.0, 9, 0, 0, 1.0, 0.0)
    bad = Window(0.001, 0.0, 0.0, 0.0, served, 0, 200, 1.0, 0.0)
    for at_twice, kept in ((good, True), (bad, False)):
        result = Result("serve", quick=True)
        found = {serve.AT_CAPACITY: [good] * 3, serve.AT_TWICE: [at_twice] * 3}
        amount = serving.Amount(1, 1, 1, 1.0)
        serve._tell_overload(result, found, 100.0, serve.Pace(), amount)
        assert [each.kept for each in result.promises] == [kept, kept]
        assert result.text()


@given(st.sets(st.integers(0, 200), min_size=1, max_size=9))
def test_the_client_has_a_cpu_of_its_own_where_there_are_enough(there: set[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve.os, "sched_getaffinity", lambda process: there, raising=False)
        servers, client = serve._cpus()
    assert servers | client == there
    assert servers.isdisjoint(client) is (len(there) >= serve.ENOUGH_CPUS)
    assert len(client) == 1 or client == servers


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux binds processes to CPUs")
def test_what_is_started_on_some_cpus_stays_there_and_who_started_it_does_not() -> None:
    before = os.sched_getaffinity(0)
    with serve._on({max(before)}), processes.spinning(1) as (child,):
        assert os.sched_getaffinity(child.process.pid) == {max(before)}
    assert os.sched_getaffinity(0) == before


# servers


@pytest.fixture
def client() -> Iterator[Any]:
    with started([[sys.executable, "-m", "aioktask.bench.load"]]) as (child,):
        yield child


@needs_servers
def test_what_is_bounded_is_answered_with_503(client: Any) -> None:
    way = serving.BOUNDED
    long = serving.Amount(interactive=1 << 26, heavy=1, max_queued=0, max_wait=60)
    with serve._serving([way], long) as ports:
        client.ask(port=ports[way], rates={serve.INTERACTIVE: 200}, seconds=0.2, seed=1)
        found = window_of(client.answer())
    assert found.turned_away > 0
    assert found.broken == 0
    assert found.served + found.turned_away == 40


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> Any:
        return None if name.startswith("gunicorn") else found(name, package)

    monkeypatch.setattr(serving.importlib.util, "find_spec", without)
    assert serving.missing(serving.DIRTY) in ("gunicorn", serving.missing(serving.OURS))
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: None)
    result = run_benchmark("serve", quick=True, progress=lambda line: None)
    assert "starlette is not installed" in result.text()
    assert not result.promises


# everything, in a hurry


@pytest.fixture(scope="module")
def children_before() -> frozenset[str]:
    """Of other tests: multiprocessing keeps a process to the end once it was used."""
    return frozenset(children_of(os.getpid()))


def children_of(pid: int) -> Sequence[str]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [child for task in tasks for child in (task / "children").read_text().split()]


@pytest.fixture(scope="module")
def hurried(children_before: frozenset[str]) -> Result:
    said: list[str] = []
    result = run_benchmark("serve", quick=True, progress=said.append)
    assert said
    return result


# It starts two dozen processes.
@needs_servers
@pytest.mark.timeout(400)
def test_a_hurried_run_tells_all_there_is_to_tell(hurried: Result) -> None:
    assert hurried.name in BENCHMARKS
    text = hurried.text()
    for table in hurried.tables:
        assert table.title in text
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
        broken = [row[table.columns.index("broken")] for row in table.rows]
        assert not any(broken), "a way does not serve"
    promised = sorted((promise.limit, promise.at_least) for promise in hurried.promises)
    ours = [(1 / 5, False), (1.0, True), (1.0, False), (5.0, False)]
    assert promised == sorted([*ours, *ours, (serve.KEPT, False), (10.0, False)])
    assert len({promise.text for promise in hurried.promises}) == len(promised)
    assert all(values for times in hurried.samples.values() for values in times.values())
    made = pictures({**hurried.data(), "machine": info()})
    assert list(made) == ["serve"]
    told = described(made["serve"])
    assert ("not kept" in told) is any(not promise.kept for promise in hurried.promises)


@needs_servers
def test_bare_requests_are_as_many_as_asked_for_and_take_their_service_time_at_the_least() -> None:
    alone, beside = bare_requests(service=2e-3, rate=40.0, seconds=0.5)
    for took in (alone, beside):
        assert len(took) == pytest.approx(20, abs=barest.EACH * processes.cpus())
        assert min(took) > 0.5e-3  # it is a median, on a machine that others share
        assert sorted(took)[len(took) // 2] > 1e-3


@needs_servers
def test_a_hurried_run_leaves_no_process(hurried: Result, children_before: frozenset[str]) -> None:
    assert set(children_of(os.getpid())) <= children_before
