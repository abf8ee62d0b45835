# SPDX-License-Identifier: MIT
# Regions: what is inside, what is there after the end, and what is given back when taking fails.

from __future__ import annotations

import contextlib
import errno
import gc
import mmap
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aioktask import Coordinator
from aioktask.memory import _hugepages, _populate, allocate
from aioktask.memory._kernel import libc
from tests.memory.hugepages import huge_pages as huge_pages
from tests.memory.sweep import cancelled_at, fails, shim

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory of Linux")

PAGE = mmap.PAGESIZE
MIB = 1 << 20
KINDS: list[Any] = ["base", "transparent"]


@contextlib.contextmanager
def mappings() -> Iterator[list[weakref.ref[mmap.mmap]]]:
    """Every mapping that is made inside, as long as it lives."""
    made: list[weakref.ref[mmap.mmap]] = []
    real = libc.map_anonymous

    def map_anonymous(nbytes: int, flags: int = 0) -> mmap.mmap:
        memory = real(nbytes, flags)
        made.append(weakref.ref(memory))
        return memory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libc, "map_anonymous", map_anonymous)
        yield made


def is_mapped(address: int) -> bool:
    maps = Path("/proc/self/maps").read_text().splitlines()
    ends = (line.split(" ", 1)[0].split("-") for line in maps)
    return any(int(start, 16) <= address < int(stop, 16) for start, stop in ends)


def given_back(made: list[weakref.ref[mmap.mmap]]) -> bool:
    gc.collect()
    return all(each() is None for each in made)


@pytest.mark.parametrize("populate", [False, True])
@pytest.mark.parametrize("pages", KINDS)
@pytest.mark.parametrize("nbytes", [1, PAGE, 3 * PAGE + 17, 5 * MIB + 1])
@pytest.mark.anyio
async def test_a_region_is_zeroed_writable_memory_of_the_size(
    nbytes: int, pages: Any, populate: bool
) -> None:
    async with allocate(nbytes, pages=pages, populate=populate) as region:
        assert region.nbytes == nbytes
        assert region.page_size == PAGE
        assert region.address % (2 * MIB if pages == "transparent" else PAGE) == 0
        if populate:
            assert (libc.mincore(region.address, nbytes) & 1).all()
        whole = region.ndarray()
        assert whole.shape == (nbytes,)
        assert whole.ctypes.data == region.address
        assert not whole.any()
        whole[:] = 7
        assert region.buffer.tobytes() == b"\x07" * nbytes
        region.buffer[nbytes - 1] = 9
        assert whole[-1] == 9


def test_arrays_of_any_plain_dtype_and_shape() -> None:
    with allocate(100) as region:
        assert region.ndarray(np.float64).shape == (12,)
        assert region.ndarray("i4", (5, 5)).shape == (5, 5)
        assert region.ndarray([("x", "i4"), ("y", "f8")], 3).dtype.names == ("x", "y")
        assert region.ndarray("i4", 0).shape == (0,)
        with pytest.raises(ValueError, match=r"shape \(5, 6\) of int32 needs 120 bytes, has 100"):
            region.ndarray("i4", (5, 6))
        with pytest.raises(TypeError, match="references to objects"):
            region.ndarray(object)
        with pytest.raises(ValueError, match="shape must be at least 0"):
            region.ndarray("i4", (-2, 3))


def test_nothing_is_taken_before_it_is_opened_and_nothing_is_there_after() -> None:
    with mappings() as made:
        region = allocate(MIB)
        assert not made
        for attribute in ("address", "buffer"):
            with pytest.raises(RuntimeError, match="this Region is new, not open"):
                getattr(region, attribute)
        with region:
            assert len(made) == 1
            address = region.address
        assert given_back(made)
        with pytest.raises(RuntimeError, match="this Region is closed, not open"):
            region.ndarray()
    assert not is_mapped(address)


@pytest.mark.anyio
async def test_a_view_that_is_still_held_reads_zeros_and_keeps_the_addresses() -> None:
    with mappings() as made:
        async with allocate(4 * MIB, populate=True) as region:
            array = region.ndarray()
            array[:] = 7
            address = region.address
        assert not array.any()
        array[5] = 1  # nobody's memory, but no crash
        assert is_mapped(address)
        del array
        assert given_back(made)


@pytest.mark.parametrize("pages", KINDS)
def test_leaving_gives_the_memory_back_at_once(pages: Any) -> None:
    with allocate(8 * MIB, pages=pages, populate=True) as region:
        view = region.ndarray()
        address = region.address
        assert (libc.mincore(address, 8 * MIB) & 1).all()
    assert not (libc.mincore(address, 8 * MIB) & 1).any()
    del view


def test_transparent_huge_pages_are_had_where_there_are_some() -> None:
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.exists() or "[never]" in enabled.read_text():
        pytest.skip("no transparent huge pages on this system")
    for pages, some in (("transparent", True), ("base", False)):
        with allocate(32 * MIB, pages=pages, populate=True) as region:  # type: ignore[arg-type]
            huge = anonymous_huge_bytes(region.address)
        assert (huge > 0) == some


def anonymous_huge_bytes(address: int) -> int:
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        ends = line.split(" ", 1)[0].split("-")
        if len(ends) == 2 and int(ends[0], 16) <= address < int(ends[1], 16):
            for field in lines:
                if field.startswith("AnonHugePages:"):
                    return int(field.split()[1]) << 10
    raise LookupError(f"{address:#x} is not mapped")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"nbytes": 0}, ValueError, "nbytes must be at least 1, got 0"),
        ({"nbytes": 1.5}, TypeError, "nbytes must be an integer"),
        ({"nbytes": 1, "pages": "4MiB"}, ValueError, "pages must be one of 'base', 'transparent'"),
        ({"nbytes": 1, "node": 0, "interleave": [0]}, ValueError, "not both"),
        ({"nbytes": 1, "node": 900}, ValueError, "node 900 has no memory here; these have: 0"),
        ({"nbytes": 1, "node": -1}, ValueError, "node must be at least 0"),
        ({"nbytes": 1, "interleave": []}, ValueError, "at least one node"),
        ({"nbytes": 1, "nice": 20}, ValueError, "nice must be from -20 to 19"),
        ({"nbytes": 1, "max_threads": 0}, ValueError, "max_threads must be at least 1"),
        ({"nbytes": 1, "name": 5}, TypeError, "name"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_taken(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        allocate(**arguments)


@pytest.mark.anyio
async def test_a_node_that_is_there_may_be_asked_for() -> None:
    async with allocate(MIB, node=0, populate=True) as region:
        addresses = np.arange(region.address, region.address + MIB, PAGE, dtype=np.uintp)
        assert (libc.nodes_of_pages(addresses) == 0).all()
    async with allocate(MIB, interleave=[0, np.int64(0)], populate=True):
        pass


def test_a_kernel_that_cannot_populate_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_populate, "kernel_can_populate", lambda: False)
    allocate(1)
    for arguments in ({"populate": True}, {"pages": "2MiB"}):
        with pytest.raises(OSError, match="allocate needs MADV_POPULATE_WRITE") as info:
            allocate(1, **arguments)  # type: ignore[arg-type]
        assert info.value.errno == errno.ENOSYS


def test_more_than_there_is_available_is_refused_before_the_kernel_kills_for_it() -> None:
    with mappings() as made, pytest.raises(OSError, match="available") as info:
        allocate(1 << 46, populate=True).open()
    assert info.value.errno == errno.ENOMEM
    assert not made


# what fails


@pytest.mark.parametrize("pages", KINDS)
@pytest.mark.anyio
async def test_any_call_that_fails_while_taking_leaves_nothing(pages: Any) -> None:
    async with allocate(5 * MIB, pages=pages, node=0, populate=True, max_threads=1):
        pass
    with shim() as calls, mappings() as made:
        region = await allocate(5 * MIB, pages=pages, node=0, populate=True, max_threads=1)
        taking = len(calls.names)
        await region.aclose()
        del region
        assert given_back(made)
    assert taking >= 4
    for at in range(1, taking + 1):
        region = allocate(5 * MIB, pages=pages, node=0, populate=True, max_threads=1)
        with mappings() as made, shim(fails(at)), pytest.raises(OSError, match="injected") as info:
            await region
        assert info.value.errno == errno.EIO
        assert given_back([each for each in made if each() is not None and not each().closed])  # type: ignore[union-attr]


@pytest.mark.anyio
async def test_a_cancel_at_any_call_leaves_nothing() -> None:
    async def use(coordinator: Coordinator | None = None) -> None:
        async with allocate(5 * MIB, populate=True, max_threads=1, coordinator=coordinator):
            pass

    with shim() as calls:
        await use()
    for at in range(1, len(calls.names) + 1):
        with mappings() as made:
            await cancelled_at(at, use)
        assert given_back([each for each in made if each() is not None and not each().closed])  # type: ignore[union-attr]


# reserved huge pages


def pool() -> _hugepages.Pool:
    return next(each for each in _hugepages.pools() if each.page_size == 2 * MIB)


@pytest.mark.parametrize("nbytes", [1, 2 * MIB, 6 * MIB - 5])
@pytest.mark.anyio
async def test_reserved_pages_are_taken_and_given_back(
    nbytes: int, huge_pages: Callable[[int], None]
) -> None:
    huge_pages(3)
    before = pool()
    async with allocate(nbytes, pages="2MiB") as region:
        assert region.page_size == 2 * MIB
        array = region.ndarray()
        assert array.shape == (nbytes,)
        assert pool().free == before.free - -(-nbytes // (2 * MIB))
        array[:] = 1
        assert int(array.sum()) == nbytes
    # A view is still held, and the pool has its pages back all the same.
    assert pool() == before
    assert not array.any()


@pytest.mark.anyio
async def test_missing_reserved_pages_are_an_error_with_the_figures(
    huge_pages: Callable[[int], None],
) -> None:
    huge_pages(2)
    before = pool()
    with pytest.raises(OSError, match=r"2 MiB") as info:
        await allocate((before.free + 1) * 2 * MIB, pages="2MiB")
    assert info.value.errno == errno.ENOMEM
    assert "nr_hugepages" in str(info.value)
    assert pool() == before


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EFAULT])
@pytest.mark.anyio
async def test_pages_that_are_missed_by_populating_are_an_error_with_the_figures(
    number: int, huge_pages: Callable[[int], None]
) -> None:
    huge_pages(2)
    before = pool()
    with shim(fails(2, number)):  # of mmap, and of the first madvise
        with pytest.raises(OSError, match=r"asked for 2 huge pages.*injected") as info:
            await allocate(4 * MIB, pages="2MiB", max_threads=1)
    assert info.value.errno == errno.ENOMEM
    assert pool() == before


@pytest.mark.anyio
async def test_any_call_that_fails_leaves_the_pool_as_it_was(
    huge_pages: Callable[[int], None],
) -> None:
    huge_pages(4)
    before = pool()
    with shim() as calls:
        region = await allocate(8 * MIB, pages="2MiB", node=0, max_threads=1)
        taking = len(calls.names)
        await region.aclose()
    for at in range(1, taking + 1):
        for number in (errno.EIO, errno.EINTR):
            region = allocate(8 * MIB, pages="2MiB", node=0, max_threads=1)
            interrupted = number == errno.EINTR and calls.names[at - 1] == "madvise"
            with shim(fails(at, number)):
                if interrupted:
                    async with region:
                        pass
                else:
                    with pytest.raises(OSError, match=r"injected"):
                        await region
            assert pool() == before
    for at in range(1, len(calls.names) + 1):
        await cancelled_at(at, lambda: use_reserved())
        assert pool() == before


async def use_reserved() -> None:
    async with allocate(8 * MIB, pages="2MiB", max_threads=1):
        pass


def test_a_region_tells_what_it_is() -> None:
    with allocate(5, pages="base") as region:
        assert repr(region) == "<Region of 5 bytes in base pages: open>"
    assert repr(region) == "<Region of 5 bytes in base pages: closed>"
