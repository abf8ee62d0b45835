# SPDX-License-Identifier: MIT
# Giving pages back to the kernel.
#
# MADV_DONTNEED needs the mapping's lock for reading only, so several threads of a process may call
# it at a time. Pages of hugetlbfs must be given back whole (Linux 5.18), hence the alignment.
"""`release`: a job that gives the pages of a buffer back."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, SupportsIndex

from aioktask.job import Job
from aioktask.memory._buffer import Buffer, job_over_pages
from aioktask.memory._kernel import libc
from aioktask.memory._kernel.libc import Advice

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["MIN_CHUNK", "release", "release_pages"]

# A few milliseconds of small pages, so the call itself does not count.
MIN_CHUNK = 64 << 20
HINT = "memory that is locked (unpin it first), or reserved huge pages before Linux 5.18"


def release(
    buffer: WriteableBuffer,
    *,
    chunk: SupportsIndex | None = None,
    nice: SupportsIndex = 0,
    max_threads: SupportsIndex | None = None,
    name: str | None = None,
) -> Job[None]:
    """A job that gives the pages of `buffer` back to the kernel; the buffer stays usable.

    What it held is lost, and cannot be undone: private memory reads as zeros from then on, a
    private mapping of a file reads as the file. Of a shared mapping nothing is lost: its pages stay
    in the file or with the other mappings of it. Only pages that lie in the buffer as a whole are
    given back: what is around it, and its bytes on a page's part at either end, stay as they are.

    The job ranges over addresses: its units are bytes, from the first whole page to the end of the
    last. It holds the buffer for as long as it lives, as `clear` does.

    Args:
        buffer: Writable contiguous memory: an array, mmap, bytearray, memoryview, `array.array`.
        chunk: Fixes the chunk size in bytes, a multiple of the page: of the huge page, where the
            memory is in reserved ones.
        nice: See `Job`.
        max_threads: See `Job`.
        name: See `Job`; "memory.release" by default.

    Raises:
        OSError: Out of the job that runs, any errno of madvise(2): EINVAL for locked memory.
        TypeError: `buffer` has no buffer protocol, or holds references to Python objects.
        ValueError: `buffer` is read-only or not contiguous; or an argument that `Job` refuses.

    >>> import mmap
    >>> from aioktask import run_multithreaded_sync
    >>> memory = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE)
    >>> memory[:5] = b"hello"
    >>> run_multithreaded_sync(release(memory)).value
    >>> memory[:5]
    b'\\x00\\x00\\x00\\x00\\x00'
    """
    return job_over_pages(
        Buffer(buffer, "release"),
        release_pages,
        inside=True,
        min_chunk=MIN_CHUNK,
        chunk=chunk,
        nice=nice,
        max_threads=max_threads,
        name="memory.release" if name is None else name,
    )


def release_pages(_held: object, start: int, stop: int) -> None:
    """Give back the pages from one address to another."""
    while True:
        try:
            return libc.madvise(start, stop - start, Advice.MADV_DONTNEED)
        except InterruptedError:
            continue
        except OSError as error:
            if error.errno == errno.EINVAL:
                error.add_note(f"release: {HINT}")
            raise
