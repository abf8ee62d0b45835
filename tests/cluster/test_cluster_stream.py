# SPDX-License-Identifier: MIT
# `map_ordered(..., on=client)` on a real Dask cluster: what holds of a stream here, and what
# becomes of items that a lost worker had.

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

pytest.importorskip("distributed", reason="distributed is not installed")

from distributed import Client

from aioktask import Coordinator, current_chunk, map_ordered
from aioktask.cluster import WorkerLost
from tests.cluster.dasks import Dask, dask_cluster
from tests.support.gates import eventually

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def client(two: Dask) -> AsyncIterator[Any]:
    async with Client(two.address, asynchronous=True) as client:
        yield client


def square(number: int) -> int:
    return number * number


def square_late(number: int) -> int:
    time.sleep(0.002 * (number % 7))
    return number * number


async def test_values_come_in_the_order_of_the_items(client: Any) -> None:
    async with map_ordered(square_late, range(100), on=client) as results:
        values = [value async for value in results]
    assert values == [number * number for number in range(100)]


def where(number: int) -> tuple[int, str]:
    current_chunk()  # on a helper
    time.sleep(0.005)
    return os.getpid(), threading.current_thread().name


async def test_items_run_on_helpers_of_all_workers_with_one_thread_of_dask(client: Any) -> None:
    async with map_ordered(where, range(60), on=client) as results:
        seen = {value async for value in results}
    pids = {pid for pid, _ in seen}
    assert len(pids) == 2
    assert os.getpid() not in pids


async def test_values_may_come_as_they_are_done(client: Any) -> None:
    async with map_ordered(square_late, range(50), on=client, ordered=False) as results:
        values = [value async for value in results]
    assert sorted(values) == [number * number for number in range(50)]


@pytest.mark.parametrize("kind", ["iterator", "async"])
async def test_no_more_items_are_taken_than_the_window_has_room_for(client: Any, kind: str) -> None:
    taken = given = most = 0

    def numbers() -> Iterator[int]:
        nonlocal taken, most
        for number in range(60):
            taken += 1
            most = max(most, taken - given)
            yield number

    async def async_numbers() -> AsyncIterator[int]:
        for number in numbers():
            yield number

    source: Any = numbers() if kind == "iterator" else async_numbers()
    async with map_ordered(square_late, source, on=client, window=5) as results:
        async for value in results:
            assert value == given * given
            given += 1
    assert given == 60
    assert most == 5


async def test_a_consumer_that_takes_nothing_has_nothing_taken_beyond_the_window(
    client: Any, tmp_path: Path
) -> None:
    taken = []
    source = (taken.append(n) or (n, str(tmp_path)) for n in range(1000))  # type: ignore[func-returns-value]
    async with map_ordered(note, source, on=client, window=8) as results:
        assert await anext(results) == 0
        await eventually(lambda: files(tmp_path, "") == 8)
        await asyncio.sleep(0.05)
        assert len(taken) == files(tmp_path, "") == 8


def note(item: tuple[int, str]) -> int:
    number, folder = item
    open(os.path.join(folder, str(number)), "w").close()
    return number


async def collect(stream: Any, values: list[Any]) -> None:
    async with stream as results:
        async for value in results:
            values.append(value)  # noqa: PERF401 - what came before an error is wanted


def fail_at_7(number: int) -> int:
    if number == 7:
        raise OSError(28, "planted")
    return number


async def test_an_error_arrives_in_its_items_place_and_ends_the_stream(client: Any) -> None:
    values: list[int] = []
    taken: list[int] = []
    source = (taken.append(n) or n for n in range(1000))  # type: ignore[func-returns-value]
    with pytest.raises(OSError, match="planted") as caught:
        await collect(map_ordered(fail_at_7, source, on=client, window=20), values)
    assert values == list(range(7))
    assert len(taken) <= 27
    notes = "\n".join(caught.value.__notes__)
    assert "raised for the item 7 of the stream 'fail_at_7'" in notes
    assert "raised in the worker 'tcp://" in notes
    assert "in fail_at_7" in notes


def exit_at_three(number: int) -> int:
    if number == 3:
        raise SystemExit(7)
    return number


async def test_an_exit_in_an_item_is_its_error_and_no_worker_ends(client: Any) -> None:
    before = set(client.scheduler_info()["workers"])
    values: list[int] = []
    with pytest.raises(SystemExit):
        await collect(map_ordered(exit_at_three, range(10), on=client), values)
    assert values == [0, 1, 2]
    async with map_ordered(square, range(4), on=client) as results:
        assert [value async for value in results] == [0, 1, 4, 9]
    assert set(client.scheduler_info()["workers"]) == before


def end_at_three(number: int) -> int:
    if number == 3:
        raise StopAsyncIteration
    return number


def ends_otherwise() -> Iterator[int]:
    class Source:
        def __iter__(self) -> Any:
            return self

        def __next__(self) -> int:
            raise StopAsyncIteration

    return Source()  # type: ignore[return-value]


@pytest.mark.parametrize("who", ["fn", "source"])
async def test_what_would_be_taken_for_the_end_of_the_stream_is_an_error(
    client: Any, who: str
) -> None:
    source = range(10) if who == "fn" else ends_otherwise()
    with pytest.raises(RuntimeError, match="raised StopAsyncIteration"):
        await collect(map_ordered(end_at_three, source, on=client), [])


async def test_errors_may_be_values(client: Any) -> None:
    async with map_ordered(fail_at_7, range(20), on=client, errors="yield") as results:
        values = [value async for value in results]
    assert isinstance(values[7], OSError)
    assert values[:7] + values[8:] == [*range(7), *range(8, 20)]


async def test_what_the_source_raises_comes_after_the_values_before_it(client: Any) -> None:
    def numbers() -> Iterator[int]:
        yield from range(5)
        raise ValueError("the source ends so")

    async def async_numbers() -> AsyncIterator[int]:
        for number in numbers():
            yield number

    sources: list[Any] = [numbers(), async_numbers()]
    for source in sources:
        values: list[int] = []
        with pytest.raises(ValueError, match="the source ends so"):
            await collect(map_ordered(square_late, source, on=client), values)
        assert values == [0, 1, 4, 9, 16]


def until_not_wanted(item: tuple[int, str]) -> int:
    number, folder = item
    open(os.path.join(folder, f"{number} begun"), "w").close()
    try:
        while True:
            current_chunk().check_cancelled()
            time.sleep(0.001)
    finally:
        open(os.path.join(folder, f"{number} ended"), "w").close()


def files(folder: Path, what: str) -> int:
    return sum(each.name.endswith(what) for each in folder.iterdir())


@pytest.mark.parametrize("how", ["break", "cancel", "aclose"])
async def test_leaving_early_tells_items_that_run_waits_for_them_and_closes_the_source(
    client: Any, tmp_path: Path, how: str
) -> None:
    closed = []

    async def items() -> AsyncIterator[tuple[int, str]]:
        try:
            for number in range(1000):
                yield number, str(tmp_path)
        finally:
            closed.append(True)

    stream = map_ordered(until_not_wanted, items(), on=client)
    entered = asyncio.Event()

    async def consume() -> None:
        async with stream as results:
            entered.set()
            if how == "cancel":
                await anext(results)
            await eventually(lambda: files(tmp_path, "begun") >= 2)
            if how == "aclose":
                await stream.aclose()  # type: ignore[attr-defined]

    task = asyncio.create_task(consume())
    if how == "cancel":
        await eventually(lambda: files(tmp_path, "begun") >= 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        await task
    assert files(tmp_path, "begun") == files(tmp_path, "ended")
    assert closed == [True]
    begun = files(tmp_path, "begun")
    await asyncio.sleep(0.05)
    assert files(tmp_path, "begun") == begun
    with pytest.raises(RuntimeError, match="left before its last value"):
        await anext(stream)  # type: ignore[call-overload]


async def test_a_cancelled_wait_loses_no_value(client: Any) -> None:
    async with map_ordered(square_late, range(30), on=client) as results:
        values = []
        while len(values) < 30:
            try:
                async with asyncio.timeout(0.001):
                    values.append(await anext(results))
            except TimeoutError:
                continue
    assert values == [number * number for number in range(30)]


async def test_a_stream_that_takes_too_long_is_ended(client: Any, tmp_path: Path) -> None:
    items = [(number, str(tmp_path)) for number in range(4)]
    with pytest.raises(TimeoutError, match=r"was not over after 0.2 s"):
        async with map_ordered(until_not_wanted, items, on=client, timeout=0.2) as results:
            await anext(results)
    assert files(tmp_path, "begun") == files(tmp_path, "ended")


async def test_what_cannot_travel_is_told_by_its_name(client: Any) -> None:
    lock = threading.Lock()
    with pytest.raises(TypeError, match="cannot be sent to another process"):
        map_ordered(lambda item: lock, range(3), on=client)
    values: list[Any] = []
    with pytest.raises(TypeError, match=r"the item 1 \(<unlocked _th"):
        await collect(map_ordered(square, [1, lock, 2], on=client), values)  # type: ignore[list-item]
    assert values == [1]
    with pytest.raises(TypeError, match="lock cannot be sent to another process"):
        await collect(map_ordered(make_lock, [1], on=client), values)
    large = bytes(2 << 20)
    with pytest.raises(ValueError, match=r"is 2048 KiB as bytes.* at most 1024 KiB"):
        map_ordered(lambda item: len(large), range(3), on=client)


def make_lock(item: int) -> Any:
    return threading.Lock()


async def test_options_of_this_process_and_other_clients_are_refused(
    client: Any, two: Dask
) -> None:
    with pytest.raises(TypeError, match=r"on must be a distributed.Client, got 7"):
        map_ordered(square, range(3), on=7)
    with pytest.raises(TypeError, match="max_delay is for streams on helpers of this process"):
        map_ordered(square, range(3), on=client, max_delay=0)  # type: ignore[call-overload]
    async with Coordinator() as coordinator:
        with pytest.raises(TypeError, match="coordinator is for streams on helpers"):
            map_ordered(square, range(3), on=client, coordinator=coordinator)  # type: ignore[call-overload]
    sync = await asyncio.to_thread(Client, two.address, set_as_default=False)
    try:
        with pytest.raises(TypeError, match="on must be asynchronous"):
            map_ordered(square, range(3), on=sync)
    finally:
        await asyncio.to_thread(sync.close)


async def test_a_second_task_is_refused_and_the_first_goes_on(client: Any, tmp_path: Path) -> None:
    async with map_ordered(note_when_told, [(0, str(tmp_path))], on=client) as results:
        first = asyncio.ensure_future(anext(results))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="two tasks ask for values"):
            await anext(results)
        (tmp_path / "go").touch()
        assert await first == 0


def note_when_told(item: tuple[int, str]) -> int:
    while not os.path.exists(os.path.join(item[1], "go")):
        time.sleep(0.001)
    return item[0]


async def test_dask_keeps_nothing_of_a_stream(client: Any) -> None:
    async with map_ordered(square, range(30), on=client) as results:
        assert len([value async for value in results]) == 30
        assert not await client.who_has()
        assert not client.futures


async def test_trio_is_refused(client: Any) -> None:
    import trio

    async def enter() -> None:
        map_ordered(square, range(3), on=client)

    with pytest.raises(TypeError, match="this is trio"):
        await asyncio.to_thread(trio.run, enter)


def die_once(item: tuple[int, str]) -> int:
    """The first worker that gets item 5 dies by it, when others of its items are done."""
    number, _ = item
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return number


@pytest.mark.parametrize("errors", ["raise", pytest.param("yield", marks=pytest.mark.slow)])
async def test_items_that_a_dead_worker_had_are_named_and_not_sent_again(
    tmp_path: Path, errors: Any
) -> None:
    items = [(number, str(tmp_path)) for number in range(40)]
    values: list[Any] = []
    with dask_cluster(tmp_path, 2) as dask:
        async with Client(dask.address, asynchronous=True) as client:
            try:
                await collect(map_ordered(die_once, items, on=client, errors=errors), values)
            except WorkerLost as lost:
                values.append(lost)
    lost_ones = [value for value in values if isinstance(value, WorkerLost)]
    assert lost_ones
    assert all("which may be done or not" in str(each) for each in lost_ones)
    assert all(each.worker.startswith("tcp://") for each in lost_ones)
    if errors == "yield":
        assert isinstance(values[5], WorkerLost)
        assert "item 5 ((5, '" in str(values[5])
        assert len(values) == 40
        assert all(value == n for n, value in enumerate(values) if type(value) is int)
