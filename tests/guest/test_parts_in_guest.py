# SPDX-License-Identifier: MIT
# Parts of memory that really lies on two nodes.

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from aioktask import Job, Part
from aioktask.memory import allocate, parts
from aioktask.memory._kernel import libc
from aioktask.memory._kernel.libc import Advice
from tests.guest.facts import HUGE_1G, HUGE_2M

PAGE = mmap.PAGESIZE
MIB = 1 << 20


def nodes_of(start: int, stop: int) -> list[int]:
    """The node of each page, by move_pages(2) asked one by one."""
    return [int(libc.nodes_of_pages(np.array([page]))[0]) for page in range(start, stop, PAGE)]


@contextmanager
def laid_out(*stretches: tuple[int | None, int]) -> Iterator[Any]:
    """An array whose pages lie, in turn, on these nodes for so many bytes; None: not there.

    In small pages, from a multiple of 2 MiB on.
    """
    nbytes = sum(each for _, each in stretches)
    with allocate(nbytes + HUGE_2M, pages="base") as region:
        skip = -region.address % HUGE_2M
        array = region.ndarray()[skip : skip + nbytes]
        start = array.ctypes.data
        for node, length in stretches:
            if node is not None:
                libc.mbind(start, length, libc.MPOL_BIND, [node])
                libc.madvise(start, length, Advice.MADV_POPULATE_WRITE)
            start += length
        yield array
        del array


def test_an_array_on_two_nodes_has_a_part_on_each() -> None:
    with laid_out((0, 6 * MIB), (1, 10 * MIB)) as array:
        start = array.ctypes.data
        expected = Part(start, start + 6 * MIB, 0), Part(start + 6 * MIB, start + 16 * MIB, 1)
        assert parts(array) == expected
        for part in expected:
            assert set(nodes_of(part.start, part.stop)) == {part.node}


def test_parts_in_rows_cut_no_row() -> None:
    # The edge is within row 204, of which 16 KiB of 20 are on node 0.
    with laid_out((0, 4 * MIB), (1, 4 * MIB)) as array:
        rows = array[: 400 * 5 * PAGE].reshape(400, 5 * PAGE)
        assert 4 * MIB - 204 * 5 * PAGE == 4 * PAGE
        found = parts(rows, unit=rows.strides[0])
        assert found == (Part(0, 205, 0), Part(205, 400, 1))
        assert Job(print, len(rows), parts=found).parts == found
        del rows


def test_pages_that_are_not_there_belong_anywhere() -> None:
    with laid_out((1, 4 * MIB), (None, 4 * MIB), (0, 2 * MIB)) as array:
        start = array.ctypes.data
        assert parts(array) == (
            Part(start, start + 4 * MIB, 1),
            Part(start + 4 * MIB, start + 8 * MIB, None),
            Part(start + 8 * MIB, start + 10 * MIB, 0),
        )


def test_a_few_pages_on_the_other_node_are_no_part_unless_the_grain_is_as_small() -> None:
    with laid_out((1, 4 * MIB), (0, 4 * PAGE), (1, 4 * MIB - 4 * PAGE)) as array:
        start = array.ctypes.data
        assert parts(array) == (Part(start, start + 8 * MIB, 1),)
        assert parts(array, grain=4 * PAGE) == (
            Part(start, start + 4 * MIB, 1),
            Part(start + 4 * MIB, start + 4 * MIB + 4 * PAGE, 0),
            Part(start + 4 * MIB + 4 * PAGE, start + 8 * MIB, 1),
        )


@pytest.mark.parametrize("pages", ["base", "transparent"])
def test_memory_that_is_spread_over_both_nodes_belongs_anywhere(pages: str) -> None:
    with allocate(32 * MIB, pages=pages, interleave=[0, 1], populate=True) as region:  # type: ignore[arg-type]
        start = region.address
        assert set(nodes_of(start, start + 32 * MIB)) == {0, 1}
        # At an end may be half a grain, so a huge page of one node.
        found = parts(region.buffer, most=3)
        assert max(found, key=lambda part: part.stop - part.start).node is None
        if pages == "base":
            assert found == (Part(start, start + 32 * MIB, None),)


@pytest.mark.parametrize("node", [0, 1])
def test_transparent_huge_pages_are_told(node: int) -> None:
    with allocate(8 * HUGE_2M, node=node, populate=True) as region:
        assert parts(region.buffer) == (Part(region.address, region.address + 8 * HUGE_2M, node),)


def test_reserved_huge_pages_are_told() -> None:
    with allocate(6 * HUGE_2M, pages="2MiB", interleave=[0, 1]) as region:
        start = region.address
        found = parts(region.buffer)
        assert [part.stop - part.start for part in found] == [HUGE_2M] * 6
        assert {part.node for part in found} == {0, 1}
        for part in found:
            assert nodes_of(part.start, part.start + PAGE) == [part.node]
        assert (found[0].start, found[-1].stop) == (start, start + 6 * HUGE_2M)


def test_a_page_of_1_gib_is_told() -> None:
    with allocate(HUGE_1G, pages="1GiB", node=1) as region:
        assert parts(region.buffer) == (Part(region.address, region.address + HUGE_1G, 1),)


def test_of_more_than_1_gib_some_pages_are_asked() -> None:
    with allocate(2 * HUGE_1G, pages="1GiB") as region:
        first = nodes_of(region.address, region.address + PAGE)[0]
        middle, stop = region.address + HUGE_1G, region.address + 2 * HUGE_1G
        expected = Part(region.address, middle, first), Part(middle, stop, 1 - first)
        assert parts(region.buffer) == expected
