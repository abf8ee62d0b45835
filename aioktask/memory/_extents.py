# SPDX-License-Identifier: MIT
# Which ranges of a file have storage, written or not: what a fallocate must not take back.
#
# SEEK_HOLE does not tell: it calls a range that was allocated and never written a hole. FIEMAP
# does, where a file system has it. tmpfs has none; there the pages of a file are in the page cache
# or swapped out, and cachestat(2) counts both, so a range is bisected until it is all or nothing.
#
# A range that is reported may be larger than what is there, never smaller: too large a one costs
# some storage that an undo leaves, too small a one would cost somebody's data.
"""The allocated ranges of a file."""

from __future__ import annotations

import errno
import os
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator

from aioktask.memory._kernel import libc
from aioktask.memory._kernel.libc import PAGE
from aioktask.memory._kernel.signals import uninterrupted

__all__ = [
    "END",
    "Ranges",
    "by_cachestat",
    "by_fiemap",
    "by_seeking",
    "gaps",
    "knows_cachestat",
    "knows_fiemap",
]

Range = tuple[int, int]

# Beyond the last byte that any file may have, and a multiple of every block size.
END = 1 << 62

# struct fiemap and struct fiemap_extent of <linux/fiemap.h>.
_FIEMAP = struct.Struct("=QQLLLL")
_EXTENT = struct.Struct("=QQQQQLLLL")
_FS_IOC_FIEMAP = 0xC0000000 | _FIEMAP.size << 16 | ord("f") << 8 | 11
_FIEMAP_FLAG_SYNC = 1
_FIEMAP_EXTENT_LAST = 1
_EXTENTS_A_CALL = 256

_NOT_THERE = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM, errno.EINVAL)


class Ranges:
    """A set of integers, kept as ascending ranges that do not touch. For one thread at a time.

    >>> some = Ranges([(0, 10), (20, 30)])
    >>> some.add(10, 12)
    >>> some.take(5, 25)
    [(5, 12), (20, 25)]
    >>> list(some)
    [(0, 5), (25, 30)]
    """

    __slots__ = ("_edges",)

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        # start, stop, start, stop: 16 bytes a range. An index that is even is of a start.
        self._edges = array("q")
        for start, stop in ranges:
            self.add(start, stop)

    def __iter__(self) -> Iterator[Range]:
        edges = iter(self._edges)
        return zip(edges, edges, strict=True)

    def __bool__(self) -> bool:
        return bool(self._edges)

    def add(self, start: int, stop: int) -> None:
        """Add what lies from `start` to `stop`, exclusive."""
        edges = self._edges
        first, last = bisect_left(edges, start), bisect_right(edges, stop)
        new = ([] if first % 2 else [start]) + ([] if last % 2 else [stop])
        edges[first:last] = array("q", new)

    def take(self, start: int, stop: int) -> list[Range]:
        """Remove what lies from `start` to `stop`; what was there."""
        edges = self._edges
        first, last = bisect_left(edges, start), bisect_left(edges, stop)
        # A range that only touches an end stays as it is, or goes as a whole.
        first += first % 2 and edges[first] == start
        last += last % 2 and edges[last] == stop
        head, tail = [start] * (first % 2), [stop] * (last % 2)
        taken = [*head, *edges[first:last], *tail]
        edges[first:last] = array("q", head + tail)
        return list(zip(taken[::2], taken[1::2], strict=True))


def gaps(ranges: Iterable[Range], start: int, stop: int, grain: int) -> Iterator[Range]:
    """What lies between ascending ranges from `start` to `stop`, in whole multiples of `grain`.

    >>> list(gaps([(3, 9), (15, 16), (40, 60)], 0, 30, 5))
    [(10, 15), (20, 30)]
    """
    for first, last in (*ranges, (stop, stop)):
        whole = min(first // grain * grain, stop)
        if start < whole:
            yield start, whole
        start = max(start, -(-last // grain) * grain)


def knows_fiemap(file: int) -> bool:
    """Whether the file system tells the extents of a file."""
    return _has(lambda: libc.ioctl(file, _FS_IOC_FIEMAP, _fiemap(0, 1, 0, 0)))


def by_fiemap(file: int, start: int, stop: int, *, sync: bool) -> Ranges:
    """What FIEMAP reports between two offsets, preallocation and all that lies beyond the end.

    Args:
        file: A descriptor.
        start: The first byte.
        stop: One past the last byte.
        sync: Have the file's dirty pages written first: for file systems that are not known to
            report what is written and not yet allocated.
    """
    found = Ranges()
    # A block on its way from the page cache to its place may be seen as neither, but not twice.
    for _ in range(2):
        for first, last in _extents(file, start, stop, _FIEMAP_FLAG_SYNC if sync else 0):
            found.add(first, last)
    return found


def _extents(file: int, start: int, stop: int, flags: int) -> Iterator[Range]:
    while start < stop:
        asked = _fiemap(start, stop - start, flags, _EXTENTS_A_CALL)
        uninterrupted(libc.ioctl, file, _FS_IOC_FIEMAP, asked)
        mapped = _FIEMAP.unpack_from(asked)[3]
        flag = _FIEMAP_EXTENT_LAST
        for index in range(mapped):
            extent = _EXTENT.unpack_from(asked, _FIEMAP.size + index * _EXTENT.size)
            first, length, flag = extent[0], extent[2], extent[5]
            if max(first, start) < min(first + length, stop):
                yield max(first, start), min(first + length, stop)
            start = max(start, first + length)
        if flag & _FIEMAP_EXTENT_LAST:
            return


def _fiemap(start: int, nbytes: int, flags: int, extents: int) -> bytearray:
    header = _FIEMAP.pack(start, nbytes, flags, 0, extents, 0)
    return bytearray(header.ljust(_FIEMAP.size + extents * _EXTENT.size, b"\0"))


def knows_cachestat(file: int) -> bool:
    """Whether the kernel counts the pages of this file: since Linux 6.5, where that is allowed."""
    return _has(lambda: libc.cached_pages(file, 0, PAGE))


def by_cachestat(file: int, start: int, stop: int) -> Ranges:
    """The pages of a file of tmpfs between two offsets, which are multiples of the page."""
    found = Ranges()
    if stop == END:
        stop = _end_of_pages(file, start)
    left = [(start, stop)] if start < stop else []
    while left:
        start, stop = left.pop()
        nbytes = _pages(file, start, stop - start) * PAGE
        if nbytes >= stop - start:
            found.add(start, stop)
        elif nbytes:
            middle = start + (stop - start) // PAGE // 2 * PAGE
            left += (middle, stop), (start, middle)
    return found


def _end_of_pages(file: int, start: int) -> int:
    """An offset with no page beyond: halving all that a file may have would take long."""
    pages, nbytes = _pages(file, start, 0), PAGE
    while pages and _pages(file, start, nbytes) < pages:
        nbytes *= 2
    return start + nbytes if pages else start


def _pages(file: int, start: int, nbytes: int) -> int:
    return sum(uninterrupted(libc.cached_pages, file, start, nbytes))


def by_seeking(file: int, start: int, stop: int) -> Ranges:
    """What SEEK_DATA calls data, so none of what was allocated and not written.

    Args:
        file: A descriptor whose position may be changed.
        start: The first byte.
        stop: One past the last byte.
    """
    found = Ranges()
    while start < stop:
        try:
            first = uninterrupted(libc.lseek, file, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no data from there to the end
                raise
            break
        if first >= stop:
            break
        start = min(uninterrupted(libc.lseek, file, first, os.SEEK_HOLE), stop)
        found.add(first, start)
    return found


def _has(call: Callable[[], object]) -> bool:
    try:
        uninterrupted(call)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        return False
    return True
