# SPDX-License-Identifier: MIT
# Storage for a range of a file, all of it or none.
#
# How it is done follows from what was measured:
# - tmpfs and disk file systems: fallocate(2). It holds the inode's lock throughout, so a second
#   thread gains nothing, and there is one. The chunks are for cancelling, and cost nothing. (On
#   tmpfs two threads that fault in a mapping reach a third of the speed: fallocate clears no page.)
# - hugetlbfs: the same lock, but the time is spent clearing pages, and MADV_POPULATE_WRITE clears
#   them in parallel. The kernel does not tell which pages a file of hugetlbfs has, only how many:
#   where it has any, they are allocated one by one, and the count tells which were new.
"""`fallocate`: a job that gives a range of a file its storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsIndex

from aioktask.checks import integer
from aioktask.job import Bound, Job, job_that_makes
from aioktask.memory._fallocate_run import FallocateRun
from aioktask.memory._file_system import Place

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

__all__ = ["fallocate"]

# A few milliseconds each: 10 GB/s of huge pages, 5 GB/s on tmpfs, 2 TB/s where blocks are only
# noted.
MIN_CHUNK = {"hugetlbfs": 32 << 20, "tmpfs": 32 << 20, "disk": 1 << 30}
_LARGEST = (1 << 63) - 1


def fallocate(
    file: FileDescriptorLike,
    nbytes: SupportsIndex,
    *,
    offset: SupportsIndex = 0,
    chunk: SupportsIndex | None = None,
    nice: SupportsIndex = 0,
    max_threads: SupportsIndex | None = None,
    name: str | None = None,
) -> Job[None]:
    """A job that gives `nbytes` bytes of a file from `offset` on their storage.

    Afterwards a write there does not fail for want of space, and the file reaches to ``offset +
    nbytes`` at least. Data that was there is unchanged, and what is new reads as zeros.

    When the job fails or is cancelled, the file's size and its allocated ranges are as before,
    what was allocated earlier and never written included, also beyond the file's end. Not exact
    are:

    - preallocation beyond ``offset + nbytes`` on hugetlbfs, or on tmpfs before Linux 6.5, which the
      kernel does not tell of, when a cancel comes after the last chunk;
    - huge pages in the range that another mapping of the file has reserved and not touched: their
      reservation goes;
    - preallocation beyond the file's end that has to be allocated again, when another process takes
      the space in that instant: `UndoFailed` then;
    - blocks around the range, with an extent size hint of XFS; and the file system's own, such as a
      block of ext4's extent tree.

    Outside the promise is whoever else changes the file's size or storage meanwhile, a second
    `fallocate` of the same file among them.

    The job's units are bytes of the file. It works on one thread, since a second one gains nothing,
    but on hugetlbfs, where a file that has no page yet is filled in parallel. It needs some memory
    for each range that was not allocated, 16 bytes.

    Args:
        file: An open file, or its descriptor; open for writing, and on hugetlbfs best for reading
            too. It is kept open while the job runs, and must be open still when it begins.
        nbytes: How many bytes. On hugetlbfs a multiple of its page.
        offset: The first one. On hugetlbfs a multiple of its page.
        chunk: Fixes the chunk size in bytes: a multiple of the file system's block, which on tmpfs
            and hugetlbfs is the page.
        nice: See `Job`.
        max_threads: See `Job`. Elsewhere than on hugetlbfs there is one.
        name: See `Job`; "memory.fallocate" by default.

    Raises:
        OSError: EBADF: not open for writing. EOPNOTSUPP: the file system has no fallocate, or does
            not tell which ranges of the file are allocated, so that nothing could be undone; also
            out of the job that runs. Out of that: any errno of fallocate(2), most often ENOSPC; on
            hugetlbfs with the figures of the pool.
        TypeError: `file` is no open file, or a number is no integer.
        ValueError: `file` is no regular file; a range that is negative, too large or on hugetlbfs
            not in whole pages; or an argument that `Job` refuses.

    >>> import os, tempfile
    >>> from aioktask import run_multithreaded_sync
    >>> with tempfile.TemporaryFile() as file:
    ...     run_multithreaded_sync(fallocate(file, 10_000)).value
    ...     os.fstat(file.fileno()).st_size
    10000
    """
    place = Place.of(file)
    size, start = integer("nbytes", nbytes, least=0), integer("offset", offset, least=0)
    if start + size > _LARGEST:
        raise ValueError(f"offset + nbytes must be below 2**63, got {start} + {size}")
    if place.kind == "hugetlbfs" and (start % place.grain or size % place.grain):
        raise ValueError(
            f"on this hugetlbfs offset and nbytes must be multiples of its page, {place.grain} "
            f"bytes, got {start} and {size}"
        )
    threads = None if max_threads is None else integer("max_threads", max_threads, least=1)
    if place.kind != "hugetlbfs" or place.has_storage:
        threads = 1

    def bind() -> Bound[None]:
        run = FallocateRun(file, place, start, start + size)
        return Bound(run.fill, undo=run.take_back)

    job = Job(
        lambda first, last: bind().fn(first, last),
        size,
        start=start,
        align=place.grain,
        min_chunk=max(MIN_CHUNK[place.kind], place.grain) if chunk is None else 1,
        chunk=chunk,
        undo=_by_the_run,
        nice=nice,
        max_threads=threads,
        name="memory.fallocate" if name is None else name,
    )
    return job_that_makes(job, bind)


def _by_the_run(first: int, last: int) -> None:
    """Only a run knows what it allocated, so the run's own function is the one that is called."""
    raise NotImplementedError("a job of fallocate is undone by the engine")
