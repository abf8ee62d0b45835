# SPDX-License-Identifier: MIT
# Streams that may take so long, and whose first item may wait so long: what the consumer is told,
# whoever is slow.

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from aioktask import Coordinator, Job, Overloaded, map_ordered, map_ordered_sync
from aioktask.engine.api.process import current_pool
from aioktask.streams import StreamHandle
from tests.support.gates import Gate, eventually
from tests.support.harness import pool_at_rest
from tests.support.patient import wait_until_unwanted

pytestmark = pytest.mark.max_threads(2)

everywhere = pytest.mark.anyio

SOON = 0.01
LATE = 600.0


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    yield
    pool_at_rest()
    assert len(current_pool().deadlines) == 0


def busy() -> Gate:
    """Both helpers are in chunks until the gate is opened."""
    gate = Gate()
    Coordinator().submit(Job(gate.chunk, 2, chunk=1, name="busy"))
    gate.wait_entered(2)
    return gate


@everywhere
async def test_a_stream_whose_source_never_ends_is_over_after_its_time() -> None:
    given = -1
    with pytest.raises(TimeoutError, match=r"the stream 'abs' was not over after 0\.25 s"):  # noqa: PT012
        async with map_ordered(abs, itertools.count(), timeout=0.25) as results:
            async for given in results:  # noqa: B007 - that there were some is checked
                pass
    assert given >= 0


def test_a_stream_in_a_thread_whose_source_never_ends_is_over_after_its_time() -> None:
    given = -1
    with pytest.raises(TimeoutError, match="the stream 'abs' was not over"):  # noqa: PT012
        with map_ordered_sync(abs, itertools.count(), timeout=0.25) as results:
            for given in results:  # noqa: B007
                pass
    assert given >= 0


@everywhere
async def test_items_that_run_are_told_and_waited_for() -> None:
    ended: list[int] = []

    def fn(item: int) -> None:
        try:
            wait_until_unwanted()
        finally:
            ended.append(item)

    async with map_ordered(fn, range(2), window=2, timeout=0.25) as results:
        with pytest.raises(TimeoutError):
            await anext(results)
    assert sorted(ended) == [0, 1]


@everywhere
async def test_a_source_that_gives_nothing_makes_no_overload() -> None:
    """It is the source that is late: to come again would not help."""

    async def never() -> AsyncIterator[int]:
        await anyio.sleep_forever()
        yield 0

    async with map_ordered(abs, never(), timeout=SOON) as results:
        with pytest.raises(TimeoutError, match="was not over") as caught:
            await anext(results)
        assert not isinstance(caught.value, Overloaded)


@everywhere
async def test_a_stream_that_nobody_asks_is_over_after_its_time_too() -> None:
    async with map_ordered(abs, range(3), timeout=SOON) as results:
        await eventually(results.handle.done)
        with pytest.raises(TimeoutError, match="was not over"):
            await anext(results)


@everywhere
async def test_the_first_item_may_come_later_than_the_coordinator_lets_jobs_wait() -> None:
    come = anyio.Event()

    async def late() -> AsyncIterator[int]:
        await come.wait()
        yield -1

    async with Coordinator(max_wait=SOON) as coordinator:
        async with map_ordered(abs, late(), coordinator=coordinator) as results:
            looked = _looks(results.handle)
            await eventually(lambda: len(looked) >= 2)
            come.set()
            assert [value async for value in results] == [1]


def _looks(handle: StreamHandle) -> list[int]:
    """A list that grows with each look at the stream."""
    terms = handle._handle._run.terms
    assert terms is not None
    looks: list[int] = []
    add = terms.deadlines.add

    class Noting:
        def add(self, number: int, thing: object, due: int) -> None:
            looks.append(due)
            add(number, thing, due)  # type: ignore[arg-type]

        def drop(self, number: int) -> None:
            current_pool().deadlines.drop(number)

    terms.deadlines = Noting()  # type: ignore[assignment]
    return looks


@everywhere
async def test_an_item_that_no_helper_comes_for_is_an_overload() -> None:
    begun: list[int] = []
    gate = busy()
    try:
        async with map_ordered(begun.append, [1], timeout=SOON) as results:
            with pytest.raises(Overloaded, match="had not begun after"):
                await anext(results)
        async with Coordinator(max_wait=SOON) as coordinator:
            async with map_ordered(begun.append, [1], coordinator=coordinator) as results:
                with pytest.raises(Overloaded, match="had not begun"):
                    await anext(results)
    finally:
        gate.open()
    assert not begun


def test_in_a_thread_a_stream_begins_at_once() -> None:
    """The calling thread serves it, whatever helpers do."""
    gate = busy()
    try:
        with (
            Coordinator(max_wait=SOON) as coordinator,
            map_ordered_sync(abs, [-1, -2], coordinator=coordinator) as results,
        ):
            assert list(results) == [1, 2]
    finally:
        gate.open()


@everywhere
async def test_no_time_and_too_many_are_refused_as_the_stream_is_entered() -> None:
    with pytest.raises(
        Overloaded, match="refused: it has no time left to begin, with a timeout of 0 s"
    ):
        async with map_ordered(abs, [1], timeout=0):
            pytest.fail("it was entered")
    gate = Gate()
    async with Coordinator(max_queued=0) as coordinator:
        coordinator.submit(Job(gate.chunk, 1))
        coordinator.submit(Job(gate.chunk, 1))
        with pytest.raises(Overloaded, match="as many jobs under way as threads for them, and"):
            async with map_ordered(abs, [1], coordinator=coordinator):
                pytest.fail("it was entered")
        gate.open()


def test_in_a_thread_no_time_is_refused_as_the_stream_is_entered() -> None:
    with pytest.raises(Overloaded), map_ordered_sync(abs, [1], timeout=0):
        pytest.fail("it was entered")


@everywhere
async def test_a_stream_that_is_over_in_time_is_not_looked_at_any_more() -> None:
    async with map_ordered(abs, range(-100, 0), timeout=LATE) as results:
        values = [value async for value in results]
    assert len(values) == 100
    await eventually(lambda: len(current_pool().deadlines) == 0)


@everywhere
async def test_a_stream_that_is_left_early_is_not_looked_at_any_more() -> None:
    async with map_ordered(abs, itertools.count(), timeout=LATE) as results:
        await anext(results)
    await eventually(lambda: len(current_pool().deadlines) == 0)
