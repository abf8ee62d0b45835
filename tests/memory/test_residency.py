# SPDX-License-Identifier: MIT
# Residency against pages that the test has made resident, given back or swapped out, and against
# what /proc/self/smaps says of their mapping. Each on both ways to read the page tables: that of
# this kernel, and the one before Linux 6.7.

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import mmap
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask import run_multithreaded, run_multithreaded_sync
from aioktask.memory import _residency
from aioktask.memory._hugepages import nodes_with_memory
from aioktask.memory._kernel import libc, page_tables
from aioktask.memory._kernel.libc import Advice
from aioktask.memory._kernel.page_tables import Mapping, mappings_between
from aioktask.memory._residency import Residency, residency
from tests.memory.hugepages import HUGE
from tests.memory.sweep import cancelled_at, fails, shim
from tests.support.open_files import open_files
from tests.support.pieces import run_in_pieces

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="page tables of Linux")

PAGE = mmap.PAGESIZE
MIB = 1 << 20
MAP_HUGETLB = 0x40000
MADV_PAGEOUT = 21


@pytest.fixture(params=["this kernel's way", "the way before Linux 6.7"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    with reading(request.param):
        yield request.param


@contextlib.contextmanager
def reading(way: str) -> Iterator[None]:
    """Have the page tables read in this way."""

    def none(*_arguments: object) -> int:
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    if way.startswith("this"):
        yield
    else:
        with mock.patch.object(libc, "ioctl", none):
            yield


def memory_of(pages: int, *, huge: bool = False, flags: int = mmap.MAP_PRIVATE) -> memoryview:
    """Memory of which nothing is resident, on a multiple of a huge page, a mapping of its own."""
    nbytes = pages * PAGE
    whole = mmap.mmap(-1, nbytes + 2 * HUGE, flags=flags | mmap.MAP_ANONYMOUS)
    address = address_of(whole)
    start = HUGE - address % HUGE
    # What is around it may not be accessed, so that no other mapping is joined to it.
    for first, last in (0, start), (start + nbytes, len(whole)):
        length = ctypes.c_size_t(last - first)
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + first), length, 0) == 0
    advice = Advice.MADV_HUGEPAGE if huge else Advice.MADV_NOHUGEPAGE
    libc.madvise(address + start, nbytes, advice)
    return memoryview(whole)[start : start + nbytes]


def address_of(memory: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def found(buffer: Any, **options: Any) -> Residency:
    return run_multithreaded_sync(residency(buffer, **options)).value


def smaps(memory: Any, *names: str) -> int:
    """The sum of these figures of its mapping, in bytes."""
    text = Path("/proc/self/smaps").read_text()
    start = address_of(memory)
    [entry] = re.findall(rf"^{start:08x}-.*\n(?:\w+:.*\n)+", text, re.MULTILINE)
    figures = dict(re.findall(r"^(\w+): +(\d+) kB$", entry, re.MULTILINE))
    return sum(int(figures[name]) << 10 for name in names)


def expected(nbytes: int, resident: int, *, huge: int = 0, swapped: int = 0) -> Residency:
    """Where all of the memory is on one node."""
    nodes = nodes_with_memory()
    if len(nodes) > 1:
        pytest.skip(f"has memory on nodes {nodes}: tests/guest/test_numa.py looks at those")
    on = {nodes[0]: resident} if resident else {}
    return Residency(nbytes, resident, huge, 0, swapped, on)


# which pages


@given(st.data())
def test_the_pages_that_are_there_are_told_wherever_the_buffer_is_cut(data: st.DataObject) -> None:
    count = 40
    states = data.draw(st.lists(st.sampled_from("wrd-"), min_size=count, max_size=count))
    start = data.draw(st.integers(0, count * PAGE))
    stop = data.draw(st.integers(start, count * PAGE))
    memory = memory_of(count)
    for page, state in enumerate(states):
        if state == "r":  # read and never written: the page of zeros
            assert memory[page * PAGE] == 0
        if state in "wd":
            memory[page * PAGE] = 1
        if state == "d":
            libc.madvise(address_of(memory) + page * PAGE, PAGE, Advice.MADV_DONTNEED)
    touched = range(start // PAGE, -(-stop // PAGE)) if start < stop else range(0)
    resident = PAGE * sum(states[page] == "w" for page in touched)
    for way in "this kernel's", "older":
        with reading(way), memory[start:stop] as part:
            job = residency(part)
            value = run_in_pieces(job, data.draw(st.integers(1, count)) * PAGE, threads=3)
            del job
        assert value == expected(len(touched) * PAGE, resident)


def test_no_page_of_many_stretches_is_told_twice(way: str) -> None:
    # The kernel's own buffer holds 512 stretches, a batch of ours 4096.
    for pages in (2 * 512, 2 * 700, 2 * 4096, 2 * 4097, 2 * 4096 + 1024):
        memory = memory_of(pages)
        memory[:: 2 * PAGE] = b"x" * (pages // 2)
        assert found(memory) == expected(pages * PAGE, pages // 2 * PAGE)
        del memory
        gc.collect()


def test_a_long_chunk_is_read_in_batches(way: str) -> None:
    with mock.patch.multiple(page_tables, _PAGES=7, _STRETCHES=3):
        memory = memory_of(100)
        for page in (0, 1, 2, 10, 12, 14, *range(50, 80), 99):
            memory[page * PAGE] = 1
        with shim() as calls:
            assert found(memory) == expected(100 * PAGE, 37 * PAGE)
        assert len(calls.names) > 5


def test_pages_that_are_read_and_never_written_are_no_memory(way: str) -> None:
    memory = memory_of(8)
    assert bytes(memory) == bytes(len(memory))
    assert found(memory) == expected(8 * PAGE, 0)
    memory[3 * PAGE] = 1
    assert found(memory) == expected(8 * PAGE, PAGE)


def test_shared_memory_is_told_as_far_as_this_process_has_touched_it(way: str) -> None:
    memory = memory_of(8, flags=mmap.MAP_SHARED)
    memory[0] = memory[5 * PAGE] = 1
    assert found(memory) == expected(8 * PAGE, 2 * PAGE)
    libc.madvise(address_of(memory), 2 * PAGE, Advice.MADV_DONTNEED)
    assert found(memory) == expected(8 * PAGE, PAGE)


def test_pages_of_a_file_count_when_they_are_touched_not_when_they_are_cached(
    way: str, tmp_path: Path
) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"cached" * 16 * PAGE)
    with file.open("r+b") as opened:
        memory = mmap.mmap(opened.fileno(), 16 * PAGE, flags=mmap.MAP_SHARED)
    assert found(memory) == expected(16 * PAGE, 0)
    memory[2 * PAGE] = memory[9 * PAGE] = 1
    assert smaps(memory, "Rss") == 2 * PAGE
    assert found(memory) == expected(16 * PAGE, 2 * PAGE)


def test_pages_that_a_fork_shares_are_still_there() -> None:
    program = """
import errno, mmap, os, sys
from unittest import mock
from aioktask import run_multithreaded_sync
from aioktask.memory._kernel import libc
from aioktask.memory._residency import residency
memory = mmap.mmap(-1, 8 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE)
memory[0] = memory[3 * mmap.PAGESIZE] = 1
reader, writer = os.pipe()
if os.fork() == 0:
    os.read(reader, 1)
    os._exit(0)
def none(*arguments):
    raise OSError(errno.ENOTTY, "")
for ioctl in libc.ioctl, none:
    with mock.patch.object(libc, "ioctl", ioctl):
        print(run_multithreaded_sync(residency(memory)).value.resident // mmap.PAGESIZE)
os.write(writer, b"x")
os.wait()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("2\n2\n", "", 0)


# swap


@pytest.fixture
def swap() -> Iterator[None]:
    """A small swap file for the test's time."""
    c_library = ctypes.CDLL(None, use_errno=True)
    pages = 1024
    with tempfile.NamedTemporaryFile() as file:
        header = bytearray(PAGE)
        struct.pack_into("=III", header, 1024, 1, pages - 1, 0)
        header[-10:] = b"SWAPSPACE2"
        file.write(header + bytes((pages - 1) * PAGE))
        file.flush()
        os.fsync(file.fileno())
        if c_library.swapon(file.name.encode(), 0) != 0:
            pytest.skip(f"no swap file may be used here: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            assert c_library.swapoff(file.name.encode()) == 0


def test_pages_that_are_swapped_out_are_told_apart(way: str, swap: None) -> None:
    memory = memory_of(16)
    memory[: 12 * PAGE] = os.urandom(12 * PAGE)
    c_library = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(address_of(memory))
    assert c_library.madvise(address, ctypes.c_size_t(5 * PAGE), MADV_PAGEOUT) == 0
    swapped = smaps(memory, "Swap")
    if not swapped:
        pytest.skip("the kernel swapped nothing out")
    resident = smaps(memory, "Rss")
    assert resident + swapped == 12 * PAGE
    assert found(memory) == expected(16 * PAGE, resident, swapped=swapped)


# huge pages


def transparent(pages: int) -> memoryview:
    """Memory in transparent huge pages, all of it."""
    memory = memory_of(pages * HUGE // PAGE, huge=True)
    memory[::PAGE] = b"x" * (len(memory) // PAGE)
    if smaps(memory, "AnonHugePages") != len(memory):
        pytest.skip("the kernel gives no transparent huge pages, or has no more")
    return memory


def test_transparent_huge_pages_are_told(way: str) -> None:
    memory = transparent(3)
    assert found(memory) == expected(3 * HUGE, 3 * HUGE, huge=3 * HUGE)


def test_huge_pages_at_either_end_count_as_far_as_the_buffer_touches_them(way: str) -> None:
    memory = transparent(3)
    with memory[PAGE + 5 : 2 * HUGE + 7] as part:
        # All that the mapping has is huge: then it is known of a part of it, too.
        assert found(part) == expected(2 * HUGE, 2 * HUGE, huge=2 * HUGE)
        assert found(part, chunk=3 * PAGE) == expected(2 * HUGE, 2 * HUGE, huge=2 * HUGE)


def test_a_huge_page_that_is_not_mapped_as_one_is_none(way: str) -> None:
    memory = transparent(3)
    # Giving a part of it back leaves the rest in small pages.
    libc.madvise(address_of(memory) + HUGE, PAGE, Advice.MADV_DONTNEED)
    assert smaps(memory, "AnonHugePages") == 2 * HUGE
    assert found(memory) == expected(3 * HUGE, 3 * HUGE - PAGE, huge=2 * HUGE)


def test_a_huge_page_of_zeros_is_no_memory(way: str) -> None:
    memory = memory_of(2 * HUGE // PAGE, huge=True)
    assert memory[0] == 0
    assert smaps(memory, "Rss") == 0
    assert found(memory) == expected(2 * HUGE, 0)


@given(st.data())
def test_what_is_not_known_of_a_mapping_in_part_is_told_as_that(data: st.DataObject) -> None:
    count = 4
    blocks = data.draw(st.lists(st.sampled_from("hs-"), min_size=count, max_size=count))
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first + 1, count))
    memory = memory_of(count * HUGE // PAGE, huge=True)
    for kind, advice in ("h", Advice.MADV_HUGEPAGE), ("s", Advice.MADV_NOHUGEPAGE):
        libc.madvise(address_of(memory), len(memory), advice)
        for block in (block for block in range(count) if blocks[block] == kind):
            memory[block * HUGE : (block + 1) * HUGE : PAGE] = b"x" * (HUGE // PAGE)
    if smaps(memory, "AnonHugePages") != blocks.count("h") * HUGE:
        pytest.skip("the kernel gives no transparent huge pages, or has no more")
    inside = blocks[first:last]
    resident, huge = (len(inside) - inside.count("-")) * HUGE, inside.count("h") * HUGE
    with memory[first * HUGE : last * HUGE] as part:
        exact = expected((last - first) * HUGE, resident, huge=huge)
        with shim() as calls:
            value = found(part)
        assert value == exact or "pread" in calls.names
        with reading("the way before Linux 6.7"):
            value = found(part)
    assert (value.nbytes, value.resident, value.nodes) == (exact.nbytes, resident, exact.nodes)
    assert value.huge <= huge <= value.huge + value.maybe_huge <= resident
    outside = set(blocks[:first] + blocks[last:]) - {"-"}
    if not outside or set(blocks) - {"-"} == {"s"} or (outside == {"h"} and set(inside) <= {"h"}):
        assert value == exact


def test_what_is_known_of_one_mapping_is_not_told_of_the_next() -> None:
    memory = memory_of(3 * HUGE // PAGE)
    small = memory[HUGE:]
    small[::PAGE] = b"x" * (len(small) // PAGE)
    libc.madvise(address_of(memory), len(memory), Advice.MADV_HUGEPAGE)
    memory[0] = 1
    # From here on two mappings: the first has the huge page and the first half of the small ones.
    libc.madvise(address_of(memory) + 2 * HUGE, HUGE, Advice.MADV_NOHUGEPAGE)
    if smaps(memory, "AnonHugePages") != HUGE:
        pytest.skip("the kernel gives no transparent huge pages, or has no more")
    with reading("the way before Linux 6.7"):
        value = found(small)
    assert (value.resident, value.huge, value.maybe_huge) == (2 * HUGE, 0, HUGE)


@pytest.mark.parametrize("flags", [mmap.MAP_PRIVATE, mmap.MAP_SHARED])
def test_reserved_huge_pages_are_told(
    way: str, flags: int, huge_pages: Callable[[int], None]
) -> None:
    huge_pages(3)
    memory = mmap.mmap(-1, 3 * HUGE, flags=flags | mmap.MAP_ANONYMOUS | MAP_HUGETLB)
    assert found(memory) == expected(3 * HUGE, 0)
    memory[0] = memory[2 * HUGE] = 1
    assert found(memory) == expected(3 * HUGE, 2 * HUGE, huge=2 * HUGE)
    with memoryview(memory)[PAGE + 5 : HUGE + 7] as part:
        assert found(part) == expected(HUGE, HUGE - PAGE, huge=HUGE - PAGE)
        assert found(part, chunk=3 * PAGE) == found(part)
    memory.close()


SMAPS = """\
1000-5000 rw-p 00000000 00:00 0
Size:                 16 kB
KernelPageSize:        4 kB
Rss:                   8 kB
AnonHugePages:         4 kB
ShmemPmdMapped:        2 kB
FilePmdMapped:         1 kB
VmFlags: rd wr
5000-9000 rw-p 00000000 00:0f 1234   /anon_hugepage (deleted)
Rss:                   0 kB
KernelPageSize:     2048 kB
9000-a000 rw-p 00000000 00:00 0
"""
FIRST = Mapping(0x1000, 0x5000, 4 << 10, 8 << 10, 7 << 10)
SECOND = Mapping(0x5000, 0x9000, 2 * MIB, 0, 0)
THIRD = Mapping(0x9000, 0xA000, PAGE, 0, 0)


@pytest.mark.parametrize(
    ("start", "stop", "mappings"),
    [
        (0x0, 0x1000, []),
        (0x0, 0x1001, [FIRST]),
        (0x4FFF, 0x5001, [FIRST, SECOND]),
        (0x5000, 0x9000, [SECOND]),
        (0x8000, 0xF000, [SECOND, THIRD]),
        (0xA000, 0xF000, []),
    ],
)
def test_mappings_are_read_with_their_figures(
    tmp_path: Path, start: int, stop: int, mappings: list[Mapping]
) -> None:
    file = tmp_path / "smaps"
    file.write_text(SMAPS)
    assert mappings_between(start, stop, str(file)) == mappings


# nodes


def on_two_nodes(answer: Callable[[int], int]) -> contextlib.ExitStack:
    """A machine of two nodes whose kernel answers so for a page: what the guest has, in part."""

    def nodes_of_pages(addresses: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.array([answer(int(each)) for each in addresses], np.int32)

    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(_residency, "nodes_with_memory", return_value=(0, 2)))
    stack.enter_context(mock.patch.object(libc, "nodes_of_pages", nodes_of_pages))
    return stack


def test_pages_are_counted_on_their_nodes(way: str) -> None:
    memory = memory_of(16)
    memory[: 10 * PAGE] = b"x" * (10 * PAGE)
    start = address_of(memory)
    with on_two_nodes(lambda address: 2 if (address - start) // PAGE < 3 else 0):
        value = found(memory, chunk=4 * PAGE)
    assert value == Residency(16 * PAGE, 10 * PAGE, 0, 0, 0, {0: 7 * PAGE, 2: 3 * PAGE})


def test_of_a_huge_page_one_address_is_asked(way: str) -> None:
    memory = transparent(3)
    start, asked = address_of(memory), []

    def answer(address: int) -> int:
        asked.append(address - start)
        return (address - start) // HUGE % 2 * 2

    with shim() as calls, on_two_nodes(answer), memory[PAGE:] as part:
        value = found(part)
    nbytes = 3 * HUGE - PAGE
    nodes = {0: 2 * HUGE - PAGE, 2: HUGE}
    assert value == Residency(nbytes, nbytes, nbytes, 0, 0, nodes)
    if "pread" not in calls.names:
        assert sorted(asked) == [PAGE, HUGE, 2 * HUGE]


def test_a_page_whose_node_is_not_told_is_resident_all_the_same(way: str) -> None:
    memory = memory_of(4)
    memory[:] = b"x" * len(memory)
    start = address_of(memory)
    answers = {start: -errno.ENOENT, start + PAGE: -errno.EFAULT}
    with on_two_nodes(lambda address: answers.get(address, 2)):
        assert found(memory) == Residency(4 * PAGE, 4 * PAGE, 0, 0, 0, {2: 2 * PAGE})


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_a_kernel_that_tells_no_nodes_tells_the_rest(
    way: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_addresses: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(libc, "nodes_of_pages", refuse)
    memory = transparent(1)
    assert found(memory) == expected(HUGE, HUGE, huge=HUGE)
    monkeypatch.setattr(_residency, "nodes_with_memory", lambda: (0, 2))
    assert found(memory) == Residency(HUGE, HUGE, HUGE, 0, 0, {})


# what it takes and refuses


def test_memory_that_may_only_be_read_is_looked_at() -> None:
    array = np.ones(3 * PAGE, np.uint8)
    array.flags.writeable = False
    for buffer in b"x" * 3 * PAGE, array, memoryview(b"x" * 3 * PAGE).toreadonly():
        value = found(buffer)
        assert value.resident == value.nbytes >= 3 * PAGE


def test_a_buffer_of_no_bytes_has_none() -> None:
    for buffer in b"", np.zeros((0, 3)):
        assert found(buffer) == Residency(0, 0, 0, 0, 0, {})


def test_what_has_no_bytes_is_refused() -> None:
    with pytest.raises(TypeError, match="residency needs an object with the buffer protocol"):
        residency([1, 2])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="references to Python objects"):
        residency(np.array([None]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gaps"):
        residency(np.zeros(6)[::2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunk must be a multiple of align"):
        residency(b"x", chunk=PAGE + 1)
    with pytest.raises(ValueError, match="nice must be from"):
        residency(b"x", nice=77)


def test_the_options_are_the_jobs() -> None:
    job = residency(b"x", chunk=2 * PAGE, nice=3, max_threads=2, name="mine")
    assert (job.chunk, job.nice, job.max_threads, job.name) == (2 * PAGE, 3, 2, "mine")
    assert residency(b"x").name == "memory.residency"


def test_the_buffer_is_held_for_as_long_as_the_job_lives() -> None:
    memory = bytearray(PAGE)
    job = residency(memory)
    with pytest.raises(BufferError):
        memory.clear()
    run_multithreaded_sync(job)
    del job
    memory.clear()


def test_each_run_of_a_job_looks_anew(way: str) -> None:
    memory = memory_of(8)
    job = residency(memory)
    for page in range(3):
        memory[page * PAGE] = 1
        assert run_multithreaded_sync(job).value == expected(8 * PAGE, (page + 1) * PAGE)
    del job


def test_the_value_is_a_constant() -> None:
    memory = memory_of(1)
    memory[0] = 1
    value = found(memory)
    with pytest.raises(AttributeError):
        value.resident = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        value.nodes[0] = 3  # type: ignore[index]
    assert hash(value) == hash(found(memory))


@pytest.mark.anyio
async def test_it_is_awaited_on_every_loop(way: str) -> None:
    memory = memory_of(64)
    memory[: 10 * PAGE] = b"x" * (10 * PAGE)
    job = residency(memory, chunk=4 * PAGE)
    report = await run_multithreaded(job)
    assert report.value == expected(64 * PAGE, 10 * PAGE)
    assert report.chunks >= 16
    del job


# what fails


def descriptors() -> int:
    return len(open_files())


@pytest.fixture
def asks_all() -> Iterator[SimpleNamespace]:
    """A job each of whose two chunks makes a call of every kind."""
    memory = memory_of(8)
    memory[: 6 * PAGE] = b"x" * (6 * PAGE)
    with mock.patch.object(_residency, "nodes_with_memory", return_value=(0, 1)):
        job = residency(memory, chunk=8 * PAGE, max_threads=1)
        with shim() as calls:
            value = run_multithreaded_sync(job).value
        yield SimpleNamespace(job=job, calls=len(calls.names), value=value)
    assert value.resident == 6 * PAGE


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.EACCES])
def test_any_call_may_fail_and_its_error_comes_out(
    way: str, number: int, asks_all: SimpleNamespace
) -> None:
    assert asks_all.calls >= 2
    before = descriptors()
    for at in range(1, asks_all.calls + 1):
        with shim(fails(at, number)), pytest.raises(OSError, match="injected") as info:
            run_multithreaded_sync(asks_all.job)
        assert info.value.errno == number
        assert descriptors() == before


def test_any_call_may_be_interrupted(way: str, asks_all: SimpleNamespace) -> None:
    before = descriptors()
    for at in range(1, asks_all.calls + 1):
        with shim(fails(at, errno.EINTR)) as calls:
            assert run_multithreaded_sync(asks_all.job).value == asks_all.value
        assert len(calls.names) > asks_all.calls
        assert descriptors() == before


@pytest.mark.anyio
async def test_a_cancel_at_any_call_goes_on(way: str, asks_all: SimpleNamespace) -> None:
    await run_multithreaded(asks_all.job)
    before = descriptors()
    for at in range(1, asks_all.calls + 1):
        assert await cancelled_at(at, lambda: run_multithreaded(asks_all.job))
        assert descriptors() == before
    assert not await cancelled_at(99, lambda: run_multithreaded(asks_all.job))


def test_page_tables_that_may_not_be_opened_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, _flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    job = residency(b"x")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match="/proc/self/pagemap"):
        run_in_pieces(job, PAGE, 1)


def test_a_pagemap_that_ends_early_ends_the_walk() -> None:
    memory = memory_of(4)
    memory[:] = b"x" * len(memory)
    with reading("the way before Linux 6.7"), mock.patch.object(libc, "pread", return_value=b""):
        assert found(memory) == expected(4 * PAGE, 0)
