# SPDX-License-Identifier: MIT
# What a stream works on goes when the program lets go of it, without the collector: whether it
# ended well, an item or the source raised, it was cancelled or left early.

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar, copy_context
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aioktask import JobCancelled, map_ordered, map_ordered_sync
from tests.support.watch import Data, Watch, no_collector_and_no_records

__all__ = ["no_collector_and_no_records"]

pytestmark = pytest.mark.usefixtures("no_collector_and_no_records")

ITEMS = 6
OF_THE_CONTEXT: ContextVar[Data] = ContextVar("of_the_context")


def raising(data: Data) -> Callable[[Data], Data]:
    def fn(item: Data) -> Data:
        assert data
        raise ValueError("planted")

    return fn


def returning(data: Data) -> Callable[[Data], Data]:
    def fn(item: Data) -> Data:
        assert data
        return item

    return fn


def items(watch: Watch) -> Iterator[Data]:
    for _ in range(ITEMS):
        yield watch.data()


def items_that_raise(watch: Watch) -> Iterator[Data]:
    yield watch.data()
    kept = watch.data()
    assert kept
    raise ValueError("planted in the source")


async def of_a_loop(source: Iterator[Data]) -> AsyncIterator[Data]:
    for each in source:
        await anyio.lowlevel.checkpoint()
        yield each
        del each


# What is done with an open stream: the function, the source, what to do with a value.
WAYS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "an item raises": (raising, items, {}),
    "an item raises in any order": (raising, items, {"ordered": False}),
    "items raise and are yielded": (raising, items, {"errors": "yield"}),
    "the source raises": (returning, items_that_raise, {}),
    "it ends well": (returning, items, {}),
    "it is left early": (returning, items, {"window": 3}),
    "it is cancelled": (returning, items, {"window": 3}),
}
ENDS = (ValueError, JobCancelled)


def stop_early(way: str, handle: Any) -> bool:
    if way == "it is cancelled":
        handle.cancel()
    return way == "it is left early"


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["iterator", "async iterator"])
@pytest.mark.parametrize("way", WAYS)
async def test_what_a_stream_held_goes_with_it(way: str, kind: str) -> None:
    make, source, options = WAYS[way]
    watch = Watch()

    async def request() -> None:
        given = source(watch)
        if kind == "async iterator":
            given = of_a_loop(given)
        async with map_ordered(make(watch.data()), given, **options) as results:
            async for value in results:
                if stop_early(way, results.handle):
                    break
                del value

    for _ in range(3):
        with contextlib.suppress(*ENDS):
            await request()
    await watch.check_in_task()


@pytest.mark.parametrize("way", WAYS)
def test_what_a_stream_in_a_thread_held_goes_with_it(way: str) -> None:
    make, source, options = WAYS[way]
    watch = Watch()

    def request() -> None:
        with map_ordered_sync(make(watch.data()), source(watch), **options) as results:
            for value in results:
                if stop_early(way, results.handle):
                    break
                del value

    for _ in range(3):
        with contextlib.suppress(*ENDS):
            request()
    watch.check()


@pytest.mark.anyio
@pytest.mark.parametrize("way", WAYS)
async def test_a_stream_that_is_kept_keeps_none_of_it(way: str) -> None:
    make, source, options = WAYS[way]
    watch = Watch()
    kept: list[Any] = []

    async def request() -> None:
        async with map_ordered(make(watch.data()), source(watch), **options) as results:
            kept.append(results)
            async for value in results:
                if stop_early(way, results.handle):
                    break
                del value

    async def task() -> None:
        OF_THE_CONTEXT.set(watch.data())
        with contextlib.suppress(*ENDS):
            await request()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(task)
    await watch.check_in_task()
    assert kept[0].handle.done()


@pytest.mark.parametrize("way", WAYS)
def test_a_stream_in_a_thread_that_is_kept_keeps_none_of_it(way: str) -> None:
    make, source, options = WAYS[way]
    watch = Watch()
    kept: list[Any] = []

    def request() -> None:
        OF_THE_CONTEXT.set(watch.data())
        with map_ordered_sync(make(watch.data()), source(watch), **options) as results:
            values = iter(results)
            kept.extend([results, values])
            for value in values:
                if stop_early(way, results.handle):
                    break
                del value

    with contextlib.suppress(*ENDS):
        copy_context().run(request)
    watch.check()
    assert kept[0].handle.done()
