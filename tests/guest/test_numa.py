# SPDX-License-Identifier: MIT
# Residency where pages lie on two nodes, on a kernel that does not tell huge pages one by one.

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from aioktask import run_multithreaded, run_multithreaded_sync
from aioktask.memory import allocate
from aioktask.memory._kernel import libc
from aioktask.memory._kernel.libc import Advice
from aioktask.memory._residency import Residency, residency
from tests.guest.facts import HUGE_1G, HUGE_2M
from tests.memory.sweep import shim

PAGE = mmap.PAGESIZE


def memory_on(*nodes: int, page_size: int = PAGE, flags: int = 0) -> mmap.mmap:
    """Eight pages for each of these nodes in turn, on a mapping of their own, all resident."""
    part = 8 * page_size
    memory = mmap.mmap(-1, part * len(nodes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | flags)
    address = address_of(memory)
    if not flags:
        advice = Advice.MADV_NOHUGEPAGE if page_size == PAGE else Advice.MADV_HUGEPAGE
        libc.madvise(address, len(memory), advice)
    for index, node in enumerate(nodes):
        libc.mbind(address + index * part, part, libc.MPOL_BIND, [node])
    libc.madvise(address, len(memory), Advice.MADV_POPULATE_WRITE)
    return memory


def address_of(memory: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def found(buffer: Any, **options: Any) -> Residency:
    return run_multithreaded_sync(residency(buffer, **options)).value


@contextmanager
def closing(memory: mmap.mmap) -> Iterator[mmap.mmap]:
    yield memory
    memory.close()


SMALL = Residency(24 * PAGE, 24 * PAGE, 0, 0, 0, {0: 8 * PAGE, 1: 16 * PAGE})


@pytest.mark.anyio
async def test_small_pages_are_told_by_node_on_every_loop() -> None:
    memory = memory_on(0, 1, 1)
    assert (await run_multithreaded(residency(memory, chunk=3 * PAGE))).value == SMALL


def test_small_pages_are_told_by_node_wherever_the_buffer_is_cut() -> None:
    memory = memory_on(0, 1, 1)
    assert found(memory) == SMALL
    with memoryview(memory)[5 * PAGE + 9 : 12 * PAGE + 1] as part:
        assert found(part) == Residency(8 * PAGE, 8 * PAGE, 0, 0, 0, {0: 3 * PAGE, 1: 5 * PAGE})


def test_pages_that_are_not_there_are_on_no_node() -> None:
    memory = memory_on(0, 1)
    libc.madvise(address_of(memory), 6 * PAGE, Advice.MADV_DONTNEED)
    assert memory[0] == 0  # the page of zeros
    nodes = {0: 2 * PAGE, 1: 8 * PAGE}
    assert found(memory) == Residency(16 * PAGE, 10 * PAGE, 0, 0, 0, nodes)


def test_transparent_huge_pages_are_told_by_node() -> None:
    with allocate(8 * HUGE_2M, node=1, populate=True) as region:
        nbytes = 8 * HUGE_2M
        assert found(region.buffer) == Residency(nbytes, nbytes, nbytes, 0, 0, {1: nbytes})


def test_reserved_huge_pages_are_told_by_node() -> None:
    flags = 0x40000 | 21 << 26
    with closing(memory_on(1, 0, page_size=HUGE_2M, flags=flags)) as memory:
        nbytes, half = len(memory), len(memory) // 2
        assert found(memory) == Residency(nbytes, nbytes, nbytes, 0, 0, {0: half, 1: half})
        with memoryview(memory)[half - PAGE : half + 1] as part:
            nodes = {0: PAGE, 1: PAGE}
            assert found(part) == Residency(2 * PAGE, 2 * PAGE, 2 * PAGE, 0, 0, nodes)


def test_a_page_of_1_gib_is_told_with_its_node() -> None:
    with allocate(HUGE_1G, pages="1GiB", node=1) as region:
        value = found(region.buffer)
        assert value == Residency(HUGE_1G, HUGE_1G, HUGE_1G, 0, 0, {1: HUGE_1G})


def test_this_kernel_is_asked_the_older_way() -> None:
    memory = memory_on(0)
    with shim() as calls:
        found(memory)
    if "pread" not in calls.names:
        pytest.skip("the guest's kernel is Linux 6.7 or later")
    assert calls.names == ["ioctl", "pread", "nodes_of_pages"]
