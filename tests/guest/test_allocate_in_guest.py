# SPDX-License-Identifier: MIT
# Regions where there is more than one node, and pages of 1 GiB.

from __future__ import annotations

import errno
import mmap

import numpy as np
import pytest

from aioktask.memory import _hugepages, allocate
from aioktask.memory._kernel import libc
from tests.memory.sweep import cancelled_at, fails, shim

PAGE = mmap.PAGESIZE
MIB, GIB = 1 << 20, 1 << 30


def pool(page_size: int) -> _hugepages.Pool:
    return next(each for each in _hugepages.pools() if each.page_size == page_size)


def nodes_of(address: int, nbytes: int, step: int = PAGE) -> list[int]:
    pages = np.arange(address, address + nbytes, step, dtype=np.uintp)
    return [int(each) for each in libc.nodes_of_pages(pages)]


@pytest.mark.parametrize("pages", ["base", "transparent"])
@pytest.mark.parametrize("node", [0, 1])
@pytest.mark.anyio
async def test_pages_lie_on_the_node_that_was_asked_for(node: int, pages: str) -> None:
    async with allocate(8 * MIB, pages=pages, node=node, populate=True) as region:  # type: ignore[arg-type]
        assert set(nodes_of(region.address, 8 * MIB)) == {node}


def test_pages_are_spread_over_the_nodes_in_turn() -> None:
    with allocate(8 * MIB, pages="base", interleave=[0, 1], populate=True) as region:
        nodes = nodes_of(region.address, 8 * MIB)
    assert abs(nodes.count(0) - nodes.count(1)) <= 2
    assert nodes.count(0) + nodes.count(1) == len(nodes)


@pytest.mark.parametrize("node", [0, 1])
def test_a_page_of_1_gib_is_had_on_either_node(node: int) -> None:
    before = pool(GIB)
    with allocate(GIB, pages="1GiB", node=node) as region:
        assert region.page_size == GIB
        assert region.address % GIB == 0
        assert nodes_of(region.address, GIB, GIB) == [node]
        view = region.ndarray()
        view[-1] = 1
        assert pool(GIB).nodes[node].free == before.nodes[node].free - 1
    assert pool(GIB) == before
    assert view[-1] == 0


def test_both_pages_of_1_gib_are_populated_and_one_more_is_refused() -> None:
    before = pool(GIB)
    with allocate(2 * GIB, pages="1GiB") as region:
        assert sorted(nodes_of(region.address, 2 * GIB, GIB)) == [0, 1]
        with pytest.raises(OSError, match="1 huge page of 1 GiB") as info:
            allocate(1, pages="1GiB").open()
        assert info.value.errno == errno.ENOMEM
    assert pool(GIB) == before


@pytest.mark.parametrize(("pages", "size", "there"), [("1GiB", GIB, 1), ("2MiB", 2 * MIB, 32)])
@pytest.mark.anyio
async def test_a_node_that_has_too_few_is_an_error_and_no_signal(
    pages: str, size: int, there: int
) -> None:
    before = pool(size)
    assert before.nodes[0].free == there
    # The pool has that many, so mmap and mbind succeed; only the pages of the node are too few.
    with pytest.raises(OSError, match=rf"node 0 has {there}, {there} free") as info:
        await allocate((there + 1) * size, pages=pages, node=0)  # type: ignore[arg-type]
    assert info.value.errno == errno.ENOMEM
    assert pool(size) == before


def test_an_exhausted_node_is_told_before_the_kernel_kills_for_it() -> None:
    with pytest.raises(OSError, match="node 1") as info:
        allocate(3 * GIB, node=1, populate=True).open()
    assert info.value.errno == errno.ENOMEM


@pytest.mark.anyio
async def test_any_call_that_fails_or_is_cancelled_leaves_both_pools_as_they_were() -> None:
    before = pool(2 * MIB)

    async def use() -> None:
        async with allocate(8 * MIB, pages="2MiB", interleave=[0, 1], max_threads=1):
            pass

    with shim() as calls:
        await use()
    for at in range(1, len(calls.names) + 1):
        await cancelled_at(at, use)
        assert pool(2 * MIB) == before
        if at <= 3:  # mmap, mbind, and the first madvise
            with shim(fails(at)), pytest.raises(OSError, match="injected"):
                await use()
            assert pool(2 * MIB) == before
