# SPDX-License-Identifier: MIT
# What a stream holds does not grow with its length.

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from aioktask import map_ordered, map_ordered_sync

KIB = 1024

# What the keeper takes out every 0.1 s, and dictionaries that were made anew, may be in the
# difference; a pointer for each item between the two looks would be 480 kB.
SLACK = 128 * KIB


def nothing(item: int) -> None:
    pass


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 * KIB


@pytest.fixture
def _traced() -> Iterator[None]:
    gc.collect()
    tracemalloc.start()
    yield
    tracemalloc.stop()


def traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.anyio
@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize("ordered", [True, False])
async def test_what_a_stream_holds_is_bounded_by_its_window(ordered: bool) -> None:
    items, early = 80_000, 0
    async with map_ordered(nothing, range(items), ordered=ordered) as results:
        given = 0
        async for _ in results:
            given += 1
            if given == items // 4:
                early = traced()
        late = traced()
    assert given == items
    assert late - early < SLACK


@pytest.mark.usefixtures("_traced")
def test_what_a_stream_in_a_thread_holds_is_bounded_by_its_window() -> None:
    items, early = 80_000, 0
    with map_ordered_sync(nothing, range(items)) as results:
        for given, _ in enumerate(results):
            if given == items // 4:
                early = traced()
        late = traced()
    assert late - early < SLACK


@pytest.mark.slow
@pytest.mark.anyio
async def test_ten_million_items_take_no_more_memory_than_one() -> None:
    items, early = 10_000_000, 0
    async with map_ordered(nothing, range(items)) as results:
        given = 0
        async for _ in results:
            given += 1
            if given == items // 10:
                early = resident()
        late = resident()
    assert given == items
    assert late - early < 4 * KIB * KIB
