# SPDX-License-Identifier: MIT
# Copying memory.
"""`copy`: a job that copies the bytes of one buffer to another."""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING, SupportsIndex

from aioktask.job import Job
from aioktask.memory._buffer import Buffer, job_over
from aioktask.memory._kernel import libc
from aioktask.memory._kernel.libc import HUGE_PAGE

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["copy"]

# Asked for more than this, glibc's memmove writes past the caches, which spares it reading what it
# overwrites: three quarters of the last-level cache (glibc 2.27 to 2.37 on x86; a quarter from 2.38
# on). With two threads, 1 GiB: 24 GB/s in two calls of 512 MiB, 17 in smaller ones.
PAST_CACHES = 3 / 4
MIN_CHUNK = 256 << 20  # where the size of that cache is not told
SC_LEVEL3_CACHE_SIZE = 194  # glibc's; Python has no name for it


def min_chunk() -> int:
    """Bytes of a call that is certainly worth it, in whole huge pages."""
    try:
        cache = os.sysconf(SC_LEVEL3_CACHE_SIZE) if sys.platform == "linux" else 0
    except OSError:  # another libc
        cache = 0
    least = int(cache * PAST_CACHES) if cache > 0 else MIN_CHUNK
    return -(-least // HUGE_PAGE) * HUGE_PAGE


def copy(
    destination: WriteableBuffer,
    source: ReadableBuffer,
    *,
    chunk: SupportsIndex | None = None,
    nice: SupportsIndex = 0,
    max_threads: SupportsIndex | None = None,
    name: str | None = None,
) -> Job[None]:
    """A job that copies the bytes of `source` to `destination`.

    The job ranges over addresses of the destination: its units are bytes. It holds both buffers for
    as long as it lives, as `clear` does. It cannot be undone: when it fails or is cancelled, what
    has been copied stays.

    Args:
        destination: Writable contiguous memory: an array, mmap, bytearray, memoryview.
        source: Contiguous memory of the same number of bytes, not overlapping the destination.
        chunk: Fixes the chunk size in bytes, a multiple of the page.
        nice: See `Job`.
        max_threads: See `Job`.
        name: See `Job`; "memory.copy" by default.

    Raises:
        TypeError: One has no buffer protocol, or holds references to Python objects.
        ValueError: The sizes differ; they overlap; `destination` is read-only; one is not
            contiguous; or an argument that `Job` refuses.

    >>> from aioktask import run_multithreaded_sync
    >>> target = bytearray(9)
    >>> run_multithreaded_sync(copy(target, b"swordfish")).value
    >>> target
    bytearray(b'swordfish')
    """
    to = Buffer(destination, "copy to")
    origin = Buffer(source, "copy from", writable=False)
    if to.nbytes != origin.nbytes:
        raise ValueError(
            f"copy needs buffers of one size, got {to.nbytes} bytes to copy to and {origin.nbytes} "
            f"to copy from: pass a slice of the longer one"
        )
    if to.address < origin.address + origin.nbytes and origin.address < to.address + to.nbytes:
        raise ValueError(
            "copy needs buffers that do not overlap: several threads copy, in no order. "
            "Copy to other memory first, or assign one slice to the other"
        )
    return job_over(
        to,
        functools.partial(_copy_range, origin),
        whole_pages=False,
        min_chunk=min_chunk(),
        chunk=chunk,
        nice=nice,
        max_threads=max_threads,
        name="memory.copy" if name is None else name,
    )


def _copy_range(origin: Buffer, to: Buffer, start: int, stop: int) -> None:
    libc.move(start, origin.address + start - to.address, stop - start)
