# SPDX-License-Identifier: MIT
# Making memory resident before it is used.
#
# MADV_POPULATE_WRITE (Linux 5.14) does what a write to each page would do, without changing a byte,
# and several threads of one process may do it to one mapping at a time.
"""`populate`: a job that faults in the pages of a buffer."""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import sys
from typing import TYPE_CHECKING, SupportsIndex

from aioktask.job import Job
from aioktask.memory._buffer import Buffer, job_over
from aioktask.memory._kernel import libc
from aioktask.memory._kernel.faulting import fault_in
from aioktask.memory._kernel.libc import PAGE, Advice

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["MIN_CHUNK", "check_kernel_can_populate", "populate", "populate_pages"]

# A millisecond of faults with small pages, so the call itself does not count.
MIN_CHUNK = 2 << 20


def populate(
    buffer: WriteableBuffer,
    *,
    chunk: SupportsIndex | None = None,
    nice: SupportsIndex = 0,
    max_threads: SupportsIndex | None = None,
    name: str | None = None,
) -> Job[None]:
    """A job that makes the pages of `buffer` resident and writable, and changes no byte of them.

    Later accesses then meet no page fault, until the kernel swaps a page out or the process forks.
    A page that was resident stays as it is. Pages of a shared file mapping become dirty, and the
    file's holes are allocated.

    The job ranges over addresses: its units are bytes, from the first page's address to the
    buffer's end. It holds the buffer for as long as it lives: a bytearray cannot be resized and a
    mmap cannot be closed before the job is gone.

    Args:
        buffer: Writable contiguous memory: an array, mmap, bytearray, memoryview, `array.array`.
        chunk: Fixes the chunk size in bytes, a multiple of the page.
        nice: See `Job`.
        max_threads: See `Job`.
        name: See `Job`; "memory.populate" by default.

    Raises:
        OSError: ENOSYS: the kernel is older than Linux 5.14 or no Linux. Out of the job that runs:
            any errno of madvise(2), most often ENOMEM.
        TypeError: `buffer` has no buffer protocol, or holds references to Python objects.
        ValueError: `buffer` is read-only or not contiguous; or an argument that `Job` refuses.

    >>> import mmap
    >>> from aioktask import run_multithreaded_sync
    >>> memory = mmap.mmap(-1, 1 << 20)
    >>> run_multithreaded_sync(populate(memory)).value
    """
    held = Buffer(buffer, "populate")
    check_kernel_can_populate("populate")
    return job_over(
        held,
        populate_pages,
        whole_pages=True,
        min_chunk=MIN_CHUNK,
        chunk=chunk,
        nice=nice,
        max_threads=max_threads,
        name="memory.populate" if name is None else name,
    )


def populate_pages(_held: object, start: int, stop: int) -> None:
    """Make the pages from one address to another resident: the chunk of such a job."""
    fault_in(start, stop, Advice.MADV_POPULATE_WRITE)


def check_kernel_can_populate(operation: str) -> None:
    """Refuse an operation that needs MADV_POPULATE_WRITE where there is none.

    Raises:
        OSError: ENOSYS.
    """
    if not kernel_can_populate():
        raise OSError(
            errno.ENOSYS,
            f"{os.strerror(errno.ENOSYS)}: {operation} needs MADV_POPULATE_WRITE of Linux 5.14; "
            f"aioktask.memory.clear makes pages resident too, by zeroing them",
        )


@functools.cache
def kernel_can_populate() -> bool:
    """Asked once a process, with a page about which nothing else can be wrong."""
    if sys.platform != "linux":
        return False
    page = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    try:
        libc.madvise(address, PAGE, Advice.MADV_POPULATE_WRITE)
    except OSError as error:
        return error.errno not in (errno.EINVAL, errno.ENOSYS)
    return True
