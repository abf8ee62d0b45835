# SPDX-License-Identifier: MIT
# What is seen of streams on a cluster: in snapshots, in top and by their handles; that changes from
# there reach them; and that no exception, whatever its class, is lost or keeps a stream from its
# end. On a cluster in this process.

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="distributed is not installed")

import aioktask
from aioktask import JobCancelled, Overloaded, current_chunk, map_ordered
from aioktask.cluster import ClusterStreamHandle, WorkerLost
from aioktask.cluster.stream_handle import StreamState
from aioktask.engine.api import elsewhere
from aioktask.engine.api.control import cancel_job, renice_job
from aioktask.job import NO_LABELS
from aioktask.observe.processes import ask, publish
from aioktask.status import JobStatus
from aioktask.top._lines import lines_of
from aioktask.top._view import view_of
from tests.cluster.dasks import cluster_here
from tests.support.gates import eventually

pytestmark = pytest.mark.asyncio


def stay(item: tuple[int, str]) -> int:
    """An item that stays as long as a file is there, and may be cancelled."""
    number, folder = item
    Path(folder, f"begun-{number}").touch()
    while Path(folder, "hold").exists():
        current_chunk().check_cancelled()
        time.sleep(0.001)
    return number


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "hold"
    file.touch()
    yield file
    file.unlink(missing_ok=True)


def items(hold: Path, count: int) -> list[tuple[int, str]]:
    return [(number, str(hold.parent)) for number in range(count)]


def release(hold: Path) -> None:
    hold.unlink()


def shown_in_top() -> list[str]:
    publisher = publish()
    try:
        told = ask(os.getpid(), {"do": "snapshot"})
    finally:
        publisher.close()
    return lines_of(view_of([told]), 1.0, 120)


def begun(hold: Path) -> bool:
    return any(hold.parent.glob("begun-*"))


def seen(name: str) -> JobStatus | None:
    """The stream of this name, while it is not over."""
    there = aioktask.snapshot().jobs
    return next((each for each in there if each.name == name and each.kind == "stream"), None)


def past(name: str) -> JobStatus | None:
    ended = aioktask.snapshot().ended
    return next((each for each in ended if each.name == name and each.kind == "stream"), None)


async def test_an_open_stream_is_seen_with_its_workers_until_it_has_ended(hold: Path) -> None:
    async with cluster_here(2) as (_, client, workers):
        told = {"name": "seen", "window": 9, "labels": {"request": "7"}}
        async with map_ordered(stay, items(hold, 20), on=client, **told) as results:
            first = asyncio.ensure_future(anext(results))
            await eventually(lambda: begun(hold))
            await eventually(lambda: len(results.handle.workers()) == 2)
            await eventually(lambda: results.handle.progress().threads)
            found = seen("seen")
            assert found is not None
            assert (found.phase, found.labels) == ("running", {"request": "7"})
            assert found.number == results.handle.number
            assert {each.name for each in found.workers} == {each.address for each in workers}
            assert found.threads == sum(each.working for each in found.workers) > 0
            assert found.elapsed > 0
            assert any("seen" in line for line in shown_in_top())
            release(hold)
            values = [await first] + [value async for value in results]
            assert values == list(range(20))
            assert results.handle.progress().done == 20
        over = past("seen")
        assert over is not None
        assert (over.phase, over.progress.done, over.progress.size) == ("finished", 20, 20)
        assert sum(each.units for each in over.workers) == 20
        assert results.handle.done()
        assert not results.handle.cancel()
        assert seen("seen") is None


@pytest.mark.parametrize("by", ["handle", "number", "thread"])
async def test_a_cancel_from_outside_reaches_consumer_and_workers(hold: Path, by: str) -> None:
    async with cluster_here(1) as (_, client, _):
        async with map_ordered(stay, items(hold, 20), on=client, name="cancelled") as results:
            first = asyncio.ensure_future(anext(results))
            await eventually(lambda: begun(hold))
            handle = results.handle
            if by == "handle":
                assert handle.cancel()
            elif by == "number":
                assert cancel_job(handle.number)
            else:
                assert await asyncio.to_thread(handle.cancel)
            with pytest.raises(JobCancelled, match="'cancelled' was cancelled by its handle"):
                await first
        assert not handle.cancel()
        over = past("cancelled")
        assert over is not None
        assert over.phase == "cancelled"
        assert over.progress.done == 0


async def test_a_cancel_comes_before_values_that_are_there() -> None:
    async with cluster_here(1) as (_, client, _):
        async with map_ordered(fails, range(3), on=client, name="there") as results:
            assert await anext(results) == 0
            await eventually(lambda: results.handle.progress().done == 3)
            assert results.handle.cancel()
            with pytest.raises(JobCancelled):
                await anext(results)


async def test_a_renice_is_for_the_items_that_are_sent_from_then_on(hold: Path) -> None:
    options = {"window": 60, "nice": 3, "name": "reniced"}
    async with cluster_here(1) as (_, client, _):
        async with map_ordered(stay, items(hold, 60), on=client, **options) as results:
            first = asyncio.ensure_future(anext(results))
            await eventually(lambda: begun(hold))
            assert renice_job(results.handle.number, 9)
            assert results.handle.nice == 9
            release(hold)
            assert await first == 0
            assert (await consumed(results))[1] is None
        ended = aioktask.snapshot().ended
        calls = [each for each in ended if each.kind == "call" and each.name == "reniced"]
    assert len(calls) == 60
    assert {each.nice for each in calls} == {3, 9}


async def test_what_a_stream_waits_for_is_told(hold: Path) -> None:
    async with cluster_here(0) as (_, client, _):
        async with map_ordered(stay, items(hold, 20), on=client, name="w", window=2) as results:
            first = asyncio.ensure_future(anext(results))
            await eventually(lambda: (found := seen("w")) and "a worker" in found.waits_for)
            first.cancel()
    release(hold)
    async with cluster_here(1) as (_, client, _):
        async with map_ordered(stay, items(hold, 20), on=client, name="w", window=2) as results:
            await anext(results)
            await eventually(lambda: (found := seen("w")) and "its consumer" in found.waits_for)


def fails(item: int) -> int:
    if item == 3:
        raise OSError(28, "planted")
    return item


async def test_how_a_stream_ended_is_told() -> None:
    async with cluster_here(1) as (_, client, _):
        async with map_ordered(fails, range(9), on=client, name="failed") as results:
            values, error = await consumed(results)
        assert (values, type(error)) == ([0, 1, 2], OSError)
        async with map_ordered(fails, range(3), on=client, name="left") as results:
            assert await anext(results) == 0
        async with map_ordered(fails, range(9), on=client, name="y", errors="yield") as results:
            assert [type(value) for value in [each async for each in results]].count(OSError) == 1
    failed, left, yields = past("failed"), past("left"), past("y")
    assert failed is not None
    assert (failed.phase, failed.error) == ("failed", "OSError: [Errno 28] planted")
    assert left is not None
    assert left.phase == "cancelled"
    assert yields is not None
    assert (yields.phase, yields.progress.failed) == ("finished", 1)


async def test_a_stream_that_does_not_begin_in_time_is_refused() -> None:
    async with cluster_here(0) as (_, client, _):
        with pytest.raises(Overloaded, match=r"did not begin within 0\.05 s"):
            async with map_ordered(fails, [1], on=client, timeout=0.05, name="late") as results:
                await anext(results)
    over = past("late")
    assert over is not None
    assert over.phase == "overloaded"


async def test_a_stream_whose_source_gives_nothing_in_time_is_over_its_time() -> None:
    async def nothing() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 0

    async with cluster_here(1) as (_, client, _):
        with pytest.raises(TimeoutError, match=r"was not over after 0\.05 s"):
            async with map_ordered(
                fails, nothing(), on=client, timeout=0.05, name="dry"
            ) as results:
                await anext(results)
    over = past("dry")
    assert over is not None
    assert over.phase == "timed out"


async def test_a_stream_that_nobody_leaves_is_seen_no_more_once_it_is_gone() -> None:
    async with cluster_here(1) as (_, client, _):
        results: Any = map_ordered(fails, range(3), on=client, name="forgotten")
        await results.__aenter__()
        assert seen("forgotten") is not None
        watch = results._watch
        watch.cancel()
        del results
        await asyncio.wait([watch])
        del watch
        await eventually(lambda: gc.collect() >= 0 and seen("forgotten") is None)
    over = past("forgotten")
    assert over is not None
    assert over.phase == "failed"  # its watch was cancelled


async def test_a_stream_that_goes_without_an_end_is_told_as_cancelled() -> None:
    state = StreamState("endless", None, NO_LABELS)
    handle = ClusterStreamHandle(state, lambda: None)
    elsewhere.add(handle)
    state.first_at = time.monotonic()
    assert handle.progress().phase == "running"
    handle.over()
    over = past("endless")
    assert over is not None
    assert (over.phase, handle.done()) == ("cancelled", True)


class OddError(Exception):
    """Says of itself what is not so."""

    @property
    def __class__(self) -> Any:
        raise ValueError("no class")

    def __bool__(self) -> bool:
        raise ValueError("neither")


class CannotBeSent:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


class Struck(BaseException):
    pass


class FalseError(Exception):
    def __bool__(self) -> bool:
        raise ValueError("neither")

    def __eq__(self, other: object) -> bool:
        raise ValueError("incomparable")

    __hash__ = Exception.__hash__


def odd(item: int) -> int:
    if item == 2:
        raise FalseError("item")
    return item


async def consumed(results: Any) -> tuple[list[Any], BaseException | None]:
    values: list[Any] = []
    try:
        async for value in results:
            values.append(value)  # noqa: PERF401 - what came before an error is kept
    except BaseException as error:
        return values, error
    return values, None


async def test_what_an_item_raised_arrives_whatever_its_class_says() -> None:
    async with cluster_here(1) as (_, client, _):
        async with map_ordered(odd, range(6), on=client) as results:
            values, error = await consumed(results)
    assert values == [0, 1]
    assert type(error) is FalseError


async def test_a_block_that_is_left_by_any_exception_waits_for_what_runs(hold: Path) -> None:
    async with cluster_here(1) as (_, client, _):
        mine, left = OddError("mine"), None
        async with asyncio.timeout(60):
            try:
                async with map_ordered(stay, items(hold, 3), on=client, name="odd") as results:
                    first = asyncio.ensure_future(anext(results))
                    await eventually(lambda: begun(hold))
                    first.cancel()
                    raise mine
            except BaseException as error:
                left = error
        assert left is mine
        over = past("odd")
        assert over is not None
        assert over.phase == "cancelled"


@pytest.mark.parametrize("kind", ["iterator", "async"])
@pytest.mark.parametrize("raised", [OddError, Struck])
async def test_an_item_that_cannot_be_sent_has_an_outcome(
    kind: str, raised: type[BaseException]
) -> None:
    given: list[Any] = [0, 1, CannotBeSent(raised("no")), 3]

    async def later() -> AsyncIterator[Any]:
        for item in given:
            yield item

    async with cluster_here(1) as (_, client, _), asyncio.timeout(60):
        source: Any = later() if kind == "async" else given
        async with map_ordered(odd, source, on=client, window=2) as results:
            values, error = await consumed(results)
            if type(error) is Struck and kind == "iterator":  # it struck here; and no item is lost
                values, error = await consumed(results)
    assert values == [0, 1] or kind == "iterator"
    assert type(error) in (TypeError, Struck)


class Unshown:
    """An item whose text cannot be had, and which stays."""

    def __init__(self, folder: str, error: type[BaseException]) -> None:
        self.folder, self.error = folder, error

    def __repr__(self) -> str:
        raise self.error("no text")


def stay_with(item: Unshown) -> int:
    return stay((0, item.folder))


@pytest.mark.parametrize("error", [ValueError, Struck])
async def test_items_of_a_lost_worker_arrive_whatever_they_are(
    hold: Path, error: type[BaseException]
) -> None:
    async with cluster_here(1) as (_, client, _):
        given = [Unshown(str(hold.parent), error) for _ in range(2)]
        async with map_ordered(stay_with, given, on=client, errors="yield") as results:
            first = asyncio.ensure_future(anext(results))
            await eventually(lambda: begun(hold))
            (worker,) = results._state.workers.values()
            with contextlib.suppress(Struck):
                results._lose(worker, "a test says so")
            assert type(await first) is WorkerLost
            assert results.handle.workers()[0].lost == "a test says so"
        # It was told to stop as the block was left, though it was taken for gone.
        await eventually(lambda: not calls())


def calls() -> list[JobStatus]:
    return [each for each in aioktask.snapshot().jobs if each.kind == "call"]
