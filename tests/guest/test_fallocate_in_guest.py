# SPDX-License-Identifier: MIT
# fallocate on a kernel without cachestat, which cannot tell which pages a tmpfs has, on a disk of
# its own, and in pages of 1 GiB.

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aioktask import run_multithreaded, run_multithreaded_sync
from aioktask.memory._extents import knows_cachestat
from aioktask.memory._fallocate import fallocate
from aioktask.memory._kernel import libc
from tests.memory.sweep import cancelled_at, fails, shim

PAGE = libc.PAGE
GIB = 1 << 30
KEEP = libc.FALLOC_FL_KEEP_SIZE
PUNCH = libc.FALLOC_FL_PUNCH_HOLE | KEEP
WRITTEN, PREALLOCATED = (3, 4, 14), (0, 6, 7, 20)


@contextlib.contextmanager
def file_with_pages(folder: str, *, preallocated: bool) -> Iterator[int]:
    """A file of which some pages are written, and some may be allocated and not written."""
    file = os.open(folder, os.O_TMPFILE | os.O_RDWR)
    try:
        for page in WRITTEN:
            os.pwrite(file, b"x" * PAGE, page * PAGE)
        for page in PREALLOCATED if preallocated else ():
            libc.fallocate(file, KEEP, page * PAGE, PAGE)
        os.fsync(file)
        yield file
    finally:
        os.close(file)


def state(file: int) -> tuple[int, int, bytes]:
    """Size, storage in whole pages, and content."""
    status = os.fstat(file)
    # This kernel's ext4 keeps the block of an extent tree that was once too large for the inode.
    blocks = status.st_blocks // (PAGE // 512)
    return status.st_size, blocks, os.pread(file, status.st_size, 0)


def pages_of(file: int) -> list[int]:
    """The pages that a file has, each found by giving it back; it has none afterwards."""
    os.ftruncate(file, 40 * PAGE)
    found = []
    for page in range(40):
        before = os.fstat(file).st_blocks
        libc.fallocate(file, PUNCH, page * PAGE, PAGE)
        if os.fstat(file).st_blocks < before:
            found.append(page)
    return found


@pytest.mark.parametrize("preallocated", [False, True])
@pytest.mark.parametrize("folder", ["/tmp", "/scratch"])
def test_any_call_that_fails_leaves_the_file_as_it_was(folder: str, preallocated: bool) -> None:
    there = sorted(WRITTEN + (PREALLOCATED if preallocated else ()))
    for at in itertools.count(1):
        with file_with_pages(folder, preallocated=preallocated) as file:
            if folder == "/tmp":
                assert not knows_cachestat(file)
            before = state(file)
            job = fallocate(file, 28 * PAGE + 5, offset=PAGE, chunk=4 * PAGE)
            with shim(fails(at)) as calls:
                try:
                    run_multithreaded_sync(job)
                except OSError:
                    failed = True
                else:
                    failed = False
            if failed:
                assert state(file) == before
                assert pages_of(file) == there
                continue
            assert at > len(calls.names)
            assert os.fstat(file).st_size == 29 * PAGE + 5
            assert pages_of(file) == sorted({*there, *range(1, 30)})
            return


@pytest.mark.anyio
@pytest.mark.parametrize("folder", ["/tmp", "/scratch"])
async def test_a_cancel_at_any_call_leaves_the_file_as_it_was(folder: str) -> None:
    cancelled = at = 1
    while cancelled:
        with file_with_pages(folder, preallocated=True) as file:
            before = state(file)
            job = fallocate(file, 28 * PAGE, offset=PAGE, chunk=4 * PAGE)
            cancelled = await cancelled_at(at, lambda job=job: run_multithreaded(job))  # type: ignore[misc]
            if cancelled:
                assert state(file) == before
                assert pages_of(file) == sorted(WRITTEN + PREALLOCATED)
        at += 1
    assert at > 5


def test_a_disk_that_is_full_half_way() -> None:
    with file_with_pages("/scratch", preallocated=True) as file:
        before, there = state(file), os.statvfs("/scratch")
        with pytest.raises(OSError, match="No space left") as info:
            run_multithreaded_sync(fallocate(file, 2 * GIB, chunk=32 << 20))
        assert info.value.errno == errno.ENOSPC
        assert state(file) == before
        os.sync()
        assert os.statvfs("/scratch").f_bfree >= there.f_bfree - 16
        assert pages_of(file) == sorted(WRITTEN + PREALLOCATED)


def test_pages_of_1_gib_are_all_there_or_none() -> None:
    def free() -> int:
        pool = Path("/sys/kernel/mm/hugepages/hugepages-1048576kB")
        return int((pool / "free_hugepages").read_text())

    available = free()
    file = os.open("/dev/huge-1G", os.O_TMPFILE | os.O_RDWR)
    try:
        with pytest.raises(ValueError, match=f"multiples of its page, {GIB} bytes"):
            fallocate(file, 2 << 20)
        with pytest.raises(OSError, match=r"huge pages? of 1 GiB") as info:
            run_multithreaded_sync(fallocate(file, (available + 1) * GIB))
        assert info.value.errno == errno.ENOSPC
        assert (os.fstat(file).st_size, os.fstat(file).st_blocks, free()) == (0, 0, available)
        run_multithreaded_sync(fallocate(file, available * GIB))
        assert (os.fstat(file).st_size, free()) == (available * GIB, 0)
    finally:
        os.close(file)
    assert free() == available
