# SPDX-License-Identifier: MIT
# Dropping files from the page cache: what the kernel does for many inodes when memory is short.
#
# The files are laid end to end, each rounded up to whole pages, so that chunks cut a file between
# pages, and several helpers share a large one. A chunk opens the files that it meets one by one.
#
# Pages that are dirty cannot be dropped, so they are written first, by fdatasync(2): it writes all
# of the file, whose further chunks then find nothing to write.
"""`evict`: a job that drops files from the page cache."""

from __future__ import annotations

import bisect
import errno
import itertools
import mmap
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import SupportsIndex

from aioktask.checks import check_flag, integer, listed
from aioktask.files._tally import Tally
from aioktask.job import Bound, Job, job_that_makes

__all__ = ["Evicted", "evict"]

PAGE = mmap.PAGESIZE
# Dropping takes about 0.1 ms for each MiB in small pages.
MIN_CHUNK = 8 << 20

PathOrDescriptor = str | bytes | os.PathLike[str] | os.PathLike[bytes] | int


@dataclass(frozen=True, slots=True)
class Evicted:
    """What `evict` did.

    Attributes:
        files: How many files there were.
        nbytes: Their bytes. Pages that are mapped, locked or were dirtied meanwhile may be in the
            cache still.
    """

    files: int
    nbytes: int


def evict(
    paths: Iterable[PathOrDescriptor] | PathOrDescriptor,
    *,
    write_back: bool = True,
    tally: Tally | None = None,
    chunk: SupportsIndex | None = None,
    nice: SupportsIndex = 0,
    max_threads: SupportsIndex | None = None,
    name: str | None = None,
) -> Job[Evicted]:
    """A job that drops files from the page cache, so that their memory is free.

    No byte of them is lost: who reads them later reads from the disk. Files in memory (tmpfs,
    hugetlbfs) have nowhere to go and stay. Pages that a process has mapped stay too.

    Units are bytes of the files laid end to end, each rounded up to whole pages. It cannot be
    undone: after an error or a cancel, `tally` tells how much has been asked of the kernel.

    Args:
        paths: Regular files, by path or by open descriptor; or one of them. A relative path begins
            at the working directory of this call, and symlinks are followed. A path is opened for
            reading while the job runs, and a file that has come to it since is taken in place of
            the first: of it at most as many bytes are dropped. A descriptor must stay open until
            the job is over.
        write_back: Whether dirty pages are written to the disk first; else they stay cached.
        tally: Counts what is done.
        chunk: Fixes the chunk size in bytes, a multiple of the page.
        nice: See `Job`.
        max_threads: See `Job`.
        name: See `Job`; "files.evict" by default.

    Returns:
        A job whose value is the `Evicted`.

    Raises:
        OSError: A file cannot be looked at: ENOENT and its like, as of the empty path. Out of the
            job that runs: it cannot be opened or written back, or is no regular file any more
            (ESTALE). `filename` says which, as it was given, then as it was opened.
        TypeError: Something is no path and no descriptor; an argument is of the wrong kind.
        ValueError: Something is no regular file, or has a NUL byte in its path; or an argument that
            `Job` refuses.

    >>> import tempfile
    >>> from aioktask import run_multithreaded_sync
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     written = file.write(b"x" * 10_000)
    ...     file.flush()
    ...     run_multithreaded_sync(evict(file.name)).value
    Evicted(files=1, nbytes=10000)
    """
    check_flag("write_back", write_back)
    if isinstance(paths, str | bytes | os.PathLike | int):
        paths = [paths]
    found = [(_resolved(file), _size_of(file)) for file in map(_checked, listed("paths", paths))]
    # Of empty ones there is nothing to drop, and no bytes means all there is to posix_fadvise(2).
    files = [file for file, size in found if size]
    sizes = [size for _, size in found if size]
    ends = list(itertools.accumulate(-(-size // PAGE) * PAGE for size in sizes))
    counts = Tally() if tally is None else tally
    if not isinstance(counts, Tally):
        raise TypeError(f"tally must be a files.Tally, got {tally!r}")

    def drop(start: int, stop: int) -> None:
        index = bisect.bisect_right(ends, start)
        while start < stop:
            end = min(stop, ends[index])
            begin = ends[index] - -(-sizes[index] // PAGE) * PAGE
            first, last = start - begin, min(end - begin, sizes[index])
            _drop(files[index], first, last - first, write_back=write_back)
            counts.add(files=last == sizes[index], nbytes=last - first)
            start, index = end, index + 1

    job = Job(
        drop,
        ends[-1] if ends else 0,
        align=PAGE,
        min_chunk=MIN_CHUNK if chunk is None else PAGE,
        chunk=None if chunk is None else integer("chunk", chunk, least=1),
        nice=nice,
        max_threads=max_threads,
        name="files.evict" if name is None else name,
    )
    done = Evicted(len(found), sum(sizes))
    return job_that_makes(job, lambda: Bound(drop, lambda: done))


def _checked(file: PathOrDescriptor) -> str | bytes | int:
    if isinstance(file, int):
        return integer("a descriptor", file, least=0)
    return os.fspath(file)


def _resolved(file: str | bytes | int) -> str | bytes | int:
    """A name that means this file whatever the working directory. Dots are left to the kernel."""
    if isinstance(file, int) or os.path.isabs(file):
        return file
    try:
        if isinstance(file, bytes):
            return os.path.join(os.getcwdb(), file)
        return os.path.join(os.getcwd(), file)
    except OSError as error:
        error.filename = file
        raise


def _size_of(file: str | bytes | int) -> int:
    found = os.stat(file)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"evict needs regular files, got {file!r}: pass the files themselves")
    return found.st_size


def _drop(file: str | bytes | int, start: int, nbytes: int, *, write_back: bool) -> None:
    try:
        if isinstance(file, int):
            _drop_range(file, start, nbytes, write_back=write_back)
            return
        # Whatever is there now: a pipe does not make this wait, a terminal is not taken.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        descriptor = os.open(file, flags)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                text = f"{os.strerror(errno.ESTALE)}: it is no regular file any more"
                raise OSError(errno.ESTALE, text)
            _drop_range(descriptor, start, nbytes, write_back=write_back)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.filename is None:
            error.filename = file
        raise


def _drop_range(descriptor: int, start: int, nbytes: int, *, write_back: bool) -> None:
    if write_back:
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EROFS):  # nothing to write there
                raise
    os.posix_fadvise(descriptor, start, nbytes, os.POSIX_FADV_DONTNEED)
