# SPDX-License-Identifier: MIT
# How `map_ordered(..., on=client)` ends where something besides its items goes wrong: tasks of the
# loop are cancelled, calls are dropped by others, the source cannot be opened or closed, the loop
# is gone. On a cluster in this process.

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="distributed is not installed")

from aioktask import map_ordered
from aioktask.cluster import WorkerLost
from aioktask.cluster import stream as streams
from aioktask.cluster.stream_worker import stop_calls
from tests.cluster.dasks import cluster_here
from tests.support.gates import eventually

pytestmark = pytest.mark.asyncio


def note_when_told(item: tuple[int, str]) -> int:
    number, folder = item
    open(os.path.join(folder, f"begun-{number}"), "w").close()
    while not os.path.exists(os.path.join(folder, "go")):
        time.sleep(0.001)
    return number


def begun(folder: Path) -> bool:
    return any(folder.glob("begun-*"))


@pytest.mark.parametrize("which", ["sends", "watch"])
async def test_a_stream_ends_whose_tasks_were_cancelled(tmp_path: Path, which: str) -> None:
    async with cluster_here(1) as (_, client, _):
        stream: Any = map_ordered(note_when_told, [(0, str(tmp_path))], on=client)
        async with stream as results:
            first = asyncio.ensure_future(anext(results))
            await eventually(lambda: begun(tmp_path))
            for task in list(stream._sends) if which == "sends" else [stream._watch]:
                task.cancel()
            with pytest.raises(WorkerLost, match="tasks on the loop were cancelled"):
                await first
            (tmp_path / "go").touch()


def fail_at_1(item: tuple[int, str]) -> int:
    if item[0] == 1:
        raise OSError(28, "planted")
    return note_when_told(item)


async def test_an_item_that_somebody_else_stops_after_a_later_one_failed_arrives(
    tmp_path: Path,
) -> None:
    items = [(number, str(tmp_path)) for number in range(2)]
    async with cluster_here(1) as (_, client, (worker,)):
        stream: Any = map_ordered(fail_at_1, items, on=client)
        async with stream as results:
            first = asyncio.ensure_future(anext(results))
            await eventually(lambda: begun(tmp_path) and 1 in stream._outcomes)
            stop_calls(stream._token, worker)
            (tmp_path / "go").touch()
            with pytest.raises(WorkerLost, match="told to stop by somebody else"):
                await first


class RefusesToClose:
    """A source that raises where it is closed."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        raise StopIteration

    def close(self) -> None:
        raise ValueError("not closed")


async def test_a_cancel_that_comes_while_a_stream_is_left_goes_on_though_closing_raises(
    tmp_path: Path,
) -> None:
    entered = asyncio.Event()

    class Source(RefusesToClose):
        def __next__(self) -> Any:
            return 0, str(tmp_path)

    async def consume(client: Any) -> None:
        async with map_ordered(note_when_told, Source(), on=client, window=1) as results:
            first = asyncio.ensure_future(anext(results))
            await eventually(lambda: begun(tmp_path))
            first.cancel()
            entered.set()

    async with cluster_here(1) as (_, client, _):
        task = asyncio.create_task(consume(client))
        await entered.wait()
        await asyncio.sleep(0)  # it waits for the item
        task.cancel()
        (tmp_path / "go").touch()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
    assert isinstance(caught.value.__cause__, ValueError)


async def test_what_closing_the_source_raises_comes_out(tmp_path: Path) -> None:
    async with cluster_here(1) as (_, client, _):
        source: Any = RefusesToClose()
        with pytest.raises(ValueError, match="not closed"):
            async with map_ordered(note_when_told, source, on=client):
                pass


async def test_a_stream_whose_source_cannot_be_opened_may_be_closed() -> None:
    class Broken:
        def __iter__(self) -> Iterator[int]:
            raise ValueError("no items here")

    async with cluster_here(1) as (_, client, _):
        source: Any = Broken()
        stream: Any = map_ordered(note_when_told, source, on=client)
        with pytest.raises(ValueError, match="no items here"):
            await stream.__aenter__()
        await stream.aclose()


async def test_a_generator_around_a_stream_may_be_closed_where_no_loop_runs(
    tmp_path: Path,
) -> None:
    closed: list[bool] = []

    def items() -> Iterator[tuple[int, str]]:
        try:
            while True:
                yield 0, str(tmp_path)
        finally:
            closed.append(True)

    async def generator(client: Any) -> Any:
        async with map_ordered(note_when_told, items(), on=client, window=1) as results:
            async for value in results:
                yield value

    (tmp_path / "go").touch()
    async with cluster_here(1) as (_, client, _):
        values = generator(client)
        assert await anext(values) == 0

        def close() -> None:
            with pytest.raises(StopIteration):
                values.aclose().send(None)

        watch = [task for task in asyncio.all_tasks() if "_watch_workers" in repr(task)]
        assert len(watch) == 1
        await asyncio.to_thread(close)
        assert closed == [True]
        await eventually(lambda: all(task.done() for task in watch))


async def test_no_wait_on_dask_is_cancelled_where_a_stream_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, go, told = asyncio.Event(), asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(streams, "ANSWER_SECONDS", 0.01)
    async with cluster_here(1) as (_, client, _):

        async def answer_late() -> dict[str, int]:
            asked.set()
            await go.wait()
            told.set()
            return {}

        monkeypatch.setattr(client, "nthreads", answer_late)
        async with map_ordered(note_when_told, [(0, "")], on=client):
            await asked.wait()
        go.set()
        await eventually(told.is_set)


async def test_the_source_is_closed_of_a_stream_whose_end_is_cancelled(tmp_path: Path) -> None:
    closed = asyncio.Event()

    class Source(RefusesToClose):
        def __next__(self) -> Any:
            return 0, str(tmp_path)

        def close(self) -> None:
            closed.set()

    async def consume(client: Any) -> None:
        async with map_ordered(note_when_told, Source(), on=client, window=1) as results:
            first = asyncio.ensure_future(anext(results))
            await eventually(lambda: begun(tmp_path))
            first.cancel()

    async with cluster_here(1) as (_, client, _):
        consumer = asyncio.create_task(consume(client))

        def ending() -> list[asyncio.Task[Any]]:
            return [each for each in asyncio.all_tasks() if "ClusterStream._end()" in repr(each)]

        await eventually(ending)
        await asyncio.sleep(0)  # it waits for what runs
        for task in ending():
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        (tmp_path / "go").touch()
    assert closed.is_set()
