# SPDX-License-Identifier: MIT
# Copying and giving back, against the bytes and the pages themselves.

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask import Coordinator, JobCancelled, run_multithreaded, run_multithreaded_sync
from aioktask.memory import copy, populate, release
from aioktask.memory._copy import MIN_CHUNK, SC_LEVEL3_CACHE_SIZE
from aioktask.memory._kernel import libc
from aioktask.memory._kernel.page_size import largest_page, largest_page_in, may_be_huge
from tests.memory.sweep import cancelled_at, fails, shim
from tests.support.pieces import run_in_pieces

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="madvise(2) of Linux")

PAGE = mmap.PAGESIZE


def private(npages: int) -> mmap.mmap:
    memory = mmap.mmap(-1, npages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = b"x" * len(memory)
    return memory


def address_of(memory: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


# copy


@given(st.data())
def test_copy_copies_its_bytes_and_no_others(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 3 * PAGE))
    before, after, skip = (data.draw(st.integers(0, PAGE)) for _ in range(3))
    origin = np.random.default_rng(count).integers(0, 256, skip + count, np.uint8).tobytes()
    whole = bytearray(b"\xaa" * (before + count + after))
    with memoryview(whole) as view, view[before : before + count] as middle:
        job = copy(middle, memoryview(origin)[skip:])
        assert job.size == count
        run_in_pieces(job, data.draw(st.sampled_from([1000, PAGE, 10 * PAGE])), 3)
        del job
    assert whole == b"\xaa" * before + origin[skip:] + b"\xaa" * after


def test_copy_takes_arrays_of_any_kind_of_the_same_size() -> None:
    origin = np.arange(6.0).reshape(2, 3)
    target = bytearray(48)
    run_multithreaded_sync(copy(target, origin))
    assert np.frombuffer(target).tolist() == list(range(6))
    turned = np.zeros((3, 2), order="F")
    run_multithreaded_sync(copy(turned, np.asfortranarray(origin.T)))
    assert turned.tolist() == origin.T.tolist()


def test_copy_refuses_other_sizes_overlaps_and_what_may_not_be_written() -> None:
    memory = bytearray(10)
    view = memoryview(memory)
    with pytest.raises(ValueError, match="got 10 bytes to copy to and 4 to copy from"):
        copy(memory, b"four")
    with pytest.raises(ValueError, match="do not overlap"):
        copy(view[:8], view[2:])
    with pytest.raises(ValueError, match="do not overlap"):
        copy(view[2:], view[:8])
    run_multithreaded_sync(copy(view[:5], view[5:]))
    with pytest.raises(ValueError, match="copy to writes to its buffer"):
        copy(b"12345", b"54321")
    with pytest.raises(ValueError, match="gaps"):
        copy(bytearray(3), np.zeros(6, np.uint8)[::2])


# release


@given(st.data())
def test_release_gives_back_the_whole_pages_and_leaves_the_rest(data: st.DataObject) -> None:
    memory = private(6)
    start = data.draw(st.integers(0, len(memory)))
    stop = data.draw(st.integers(start, len(memory)))
    with memoryview(memory) as view, view[start:stop] as middle:
        job = release(middle)
        run_in_pieces(job, PAGE, 3)
        del job
    first, last = -(-start // PAGE) * PAGE, stop // PAGE * PAGE
    expected = bytearray(b"x" * len(memory))
    expected[first : max(first, last)] = bytes(max(0, last - first))
    # Seen before it is read, which brings a page back.
    there = [bool(each & 1) for each in libc.mincore(address_of(memory), len(memory))]
    pages = range(first, max(first, last), PAGE)
    assert there == [page * PAGE not in pages for page in range(6)]
    assert memory[:] == expected


def test_released_pages_of_a_private_file_mapping_read_as_the_file(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"f" * (3 * PAGE))
    with file.open("r+b") as opened:
        memory = mmap.mmap(opened.fileno(), 0, flags=mmap.MAP_PRIVATE)
    memory[:] = b"m" * len(memory)
    run_multithreaded_sync(release(memory))
    assert memory[:] == b"f" * len(memory)


def test_of_a_shared_mapping_nothing_is_lost() -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(3 * PAGE)
        memory = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED)
        memory[:] = b"m" * len(memory)
        run_multithreaded_sync(release(memory))
        assert memory[:] == b"m" * len(memory)
        memory.close()


def test_locked_memory_is_refused_with_a_hint() -> None:
    memory = private(2)
    address = address_of(memory)
    libc.mlock2(address, len(memory), on_fault=False)
    try:
        with pytest.raises(OSError, match="madvise") as info:
            run_multithreaded_sync(release(memory))
    finally:
        libc.munlock(address, len(memory))
    assert info.value.errno == errno.EINVAL
    assert "unpin it first" in "".join(info.value.__notes__)
    assert memory[:] == b"x" * len(memory)


def test_a_buffer_without_a_whole_page_is_a_job_of_size_0() -> None:
    memory = bytearray(PAGE // 2)
    assert release(memory).size == 0
    assert release(np.zeros(0)).size == 0


# what fails


@pytest.mark.parametrize("operation", [release, populate])
def test_any_call_may_be_interrupted(operation: Any) -> None:
    memory = private(4)
    job = operation(memory, chunk=PAGE, max_threads=1)
    with shim() as calls:
        run_multithreaded_sync(job)
    assert len(calls.names) == 4
    for at in range(1, 5):
        with shim(fails(at, errno.EINTR)) as calls:
            run_multithreaded_sync(job)
        assert len(calls.names) == 5
    del job


@pytest.mark.parametrize("operation", [release, populate])
def test_any_call_may_fail_and_its_error_comes_out(operation: Any) -> None:
    memory = private(4)
    job = operation(memory, chunk=PAGE, max_threads=2)
    for at in range(1, 5):
        with shim(fails(at)), pytest.raises(OSError, match="injected") as info:
            run_multithreaded_sync(job)
        assert info.value.errno == errno.EIO
    outside = [byte for byte in set(memory[:]) if byte not in b"x\0"]
    assert not outside


@pytest.mark.anyio
async def test_a_cancel_at_any_call_goes_on() -> None:
    memory = private(4)
    for at in range(1, 5):
        job = release(memory, chunk=PAGE, max_threads=1)
        assert await cancelled_at(at, lambda job=job: run_multithreaded(job))  # type: ignore[misc]
    assert not await cancelled_at(99, lambda: run_multithreaded(job))


@pytest.mark.anyio
async def test_a_handle_that_is_cancelled_stops_at_a_chunk() -> None:
    memory = private(4)
    async with Coordinator() as coordinator:
        entered, released = anyio.Event(), []
        token = anyio.lowlevel.current_token()

        def action(call: int, name: str) -> None:
            released.append(call)
            anyio.from_thread.run_sync(lambda: (handle.cancel(), entered.set()), token=token)

        job = release(memory, chunk=PAGE, max_threads=1)
        with shim(action):
            handle = coordinator.submit(job)
            await entered.wait()
            with pytest.raises(JobCancelled):
                await handle
    assert released == [1]


# the pages of a mapping

SMAPS = b"""\
7f0000000000-7f0000200000 rw-p 00000000 00:00 0
Size:               2048 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
VmFlags: rd wr mr mw me ac
7f0000200000-7f0000400000 rw-p 00000000 00:0f 1234   /anon_hugepage (deleted)
Size:               2048 kB
KernelPageSize:     2048 kB
MMUPageSize:        2048 kB
VmFlags: rd wr mr mw me de ht
7f0000400000-7f0000401000 rw-p 00000000 00:00 0 [stack]
Size:                  4 kB
KernelPageSize:        4 kB
"""
MAPS = b"\n".join(line for line in SMAPS.splitlines() if b"-7f" in line)


@pytest.mark.parametrize(
    ("start", "nbytes", "largest"),
    [
        (0x7F0000000000, 0x200000, PAGE),
        (0x7F0000000000, 0x200001, 2 << 20),
        (0x7F0000200000, 1, 2 << 20),
        (0x7F00003FFFFF, 2, 2 << 20),
        (0x7F0000400000, PAGE, PAGE),
        (0x7E0000000000, 5, PAGE),
    ],
)
def test_the_largest_page_is_that_of_the_mappings_touched(
    start: int, nbytes: int, largest: int
) -> None:
    assert largest_page_in(SMAPS, start, nbytes) == largest
    assert may_be_huge(MAPS, start, nbytes) == (largest > PAGE)


def test_a_file_that_is_gone_leaves_it_open() -> None:
    line = b"7f0000000000-7f0000200000 rw-s 00000000 00:0f 99 /dev/shm/x y (deleted)\n"
    assert may_be_huge(line, 0x7F0000000000, 1)
    assert not may_be_huge(line, 0x7F0000200000, 1)


def test_a_kernel_that_answers_no_query_is_asked_another_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ioctl(*arguments: object) -> int:
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    memory = bytearray(PAGE)
    address = address_of(memory)
    assert largest_page(address, PAGE) == PAGE
    monkeypatch.setattr(libc, "ioctl", ioctl)
    assert largest_page(address, PAGE) == PAGE


@pytest.mark.parametrize(
    ("told", "chunk"),
    [
        (32 << 20, 24 << 20),
        (384 << 20, 288 << 20),
        ((32 << 20) + 4, 26 << 20),  # in whole huge pages
        (0, MIN_CHUNK),  # not known to the kernel
        (-1, MIN_CHUNK),
        (OSError(errno.EINVAL, "unrecognized configuration name"), MIN_CHUNK),
    ],
)
def test_a_copy_is_in_calls_that_go_past_the_caches(
    told: int | OSError, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sysconf(name: int) -> int:
        assert name == SC_LEVEL3_CACHE_SIZE
        if isinstance(told, OSError):
            raise told
        return told

    monkeypatch.setattr(os, "sysconf", sysconf)
    assert copy(bytearray(10), bytes(10)).min_chunk == chunk
    assert copy(bytearray(10), bytes(10), chunk=4096).chunk == 4096
