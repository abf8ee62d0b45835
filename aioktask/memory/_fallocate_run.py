# SPDX-License-Identifier: MIT
# One run of a fallocate: what its chunks allocate, and how it is taken back.
#
# A chunk notes which parts of its range have no storage (see `_extents`) before it allocates, so
# what is taken back is what this run allocated and nothing else. The file's size changes last, but
# where a mapping needs it, so most runs that fail never change it. Where it has to be set back, the
# kernel drops all that was allocated beyond the end: what was there before is allocated again.
"""What one run of `fallocate` does to a file."""

from __future__ import annotations

import contextlib
import enum
import errno
import functools
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from aioktask.memory._extents import (
    END,
    Ranges,
    by_cachestat,
    by_fiemap,
    by_seeking,
    gaps,
    knows_cachestat,
    knows_fiemap,
)
from aioktask.memory._file_system import Place, descriptor_of
from aioktask.memory._hugepages import explain
from aioktask.memory._kernel import libc
from aioktask.memory._kernel.libc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, Advice
from aioktask.memory._kernel.signals import uninterrupted
from aioktask.memory._populate import kernel_can_populate, populate_pages

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

__all__ = ["FallocateRun"]

NO_FALLOCATE = (
    "this file system cannot allocate without writing; to write zeros is what os.posix_fallocate "
    "does there, which could not be undone"
)

# By their numbers in <linux/magic.h>: ext4, XFS and btrfs, which report what is written and not yet
# allocated as an extent.
_REPORT_DELAYED = (0xEF53, 0x58465342, 0x9123683E)
_UNIT_OF_BLOCKS = 512  # of st_blocks, whatever the file system's block is


class _Way(enum.Enum):
    """How a run allocates a chunk."""

    CALL = "fallocate(2), over what `_allocated` does not have"
    MAPPING = "by faulting in a mapping of an empty file"
    COUNTING = "page after page, watching how many the file has"


class FallocateRun:
    """One run of the job: what it allocated, and how to take it back.

    Before the first chunk and when all is taken back the file is as it was, and this as new.
    """

    def __init__(self, file: FileDescriptorLike, place: Place, start: int, stop: int) -> None:
        self._source = file
        self._place = place
        self._start = start
        self._stop = stop
        self._counting = threading.Lock()  # held by who allocates page after page
        self._files = contextlib.ExitStack()  # the descriptors that this run has opened
        weakref.finalize(self, self._files.close)
        self._lock = threading.Lock()  # guards all that follows
        self._file = -1  # a duplicate, so that nobody else's file is ever taken for this one
        self._running: set[int] = set()  # where the chunks begin that run
        self._done = Ranges()  # the chunks that have ended
        self._new = Ranges()  # what this run has allocated, or is about to
        self._begun = False  # whether the file may differ from what it was
        self._size = 0  # the file's, before
        self._way = _Way.CALL
        self._allocated: Callable[[int, int], Ranges] = _nothing  # what has storage
        self._beyond = Ranges()  # what had storage beyond the file's end
        self._dropped = False  # whether that is gone
        self._memory: mmap.mmap | None = None
        self._address = 0

    def fill(self, start: int, stop: int) -> None:
        """Allocate a chunk; when that fails, what it allocated is taken back."""
        try:
            with self._lock:
                self._running.add(start)
                self._begin()
            self._allocate(self._first_block(start), self._last_block(stop))
            with self._lock:
                self._running.discard(start)
                self._done.add(start, stop)
                self._end()
        except BaseException as error:
            raise self._failed(start, stop, error) from None

    def _failed(self, start: int, stop: int, error: BaseException) -> BaseException:
        """Take back what a chunk did; the error to raise."""
        if isinstance(error, OSError):
            error = self._explained(error)
        with self._lock:
            self._running.discard(start)
            self._done.take(start, stop)
            try:
                self._punch(self._first_block(start), self._last_block(stop))
                self._set_back()
            except OSError as other:
                error.add_note(f"fallocate: what this chunk did may be there still: {other}")
        return error

    def take_back(self, start: int, stop: int) -> None:
        """Undo chunks that have ended. Pieces come in any order, several at a time."""
        with self._lock:
            left = Ranges(self._done)
            if left.take(start, stop):
                self._punch(self._first_block(start), self._last_block(stop))
                self._done = left
                self._set_back()

    # The file as a whole, with the lock.

    def _begin(self) -> None:
        if self._file < 0:
            self._open()
        if not self._begun:
            status = os.fstat(self._file)
            self._size, self._dropped = status.st_size, False
            self._way, self._allocated = self._choose_way(status)
            self._beyond = Ranges()
            if self._stop > self._size:
                self._beyond = self._allocated(self._last_block(self._size), END)
            self._begun = True
        if self._way is _Way.MAPPING and self._memory is None:
            self._lengthen()
            nbytes = self._stop - self._start
            self._memory = libc.map_file(self._file, nbytes, self._start, reserve=False)
            self._address = int(np.frombuffer(self._memory, np.uint8).ctypes.data)

    def _open(self) -> None:
        self._file = os.dup(descriptor_of(self._source))
        self._files.callback(os.close, self._file)
        status = os.fstat(self._file)
        if (status.st_dev, status.st_ino) != self._place.identity:
            text = f"{os.strerror(errno.EBADF)}: this descriptor is another file's by now"
            raise OSError(errno.EBADF, text)

    def _choose_way(self, status: os.stat_result) -> tuple[_Way, Callable[[int, int], Ranges]]:
        file, place = self._file, self._place
        if place.kind == "disk":
            if knows_fiemap(file):
                sync = place.number not in _REPORT_DELAYED
                return _Way.CALL, functools.partial(by_fiemap, file, sync=sync)
            if status.st_blocks or status.st_size:
                raise _cannot_tell()
            return _Way.CALL, _nothing
        if status.st_blocks == 0:
            mappable = not place.writable_only and kernel_can_populate()
            mapped = place.kind == "hugetlbfs" and mappable
            return _Way.MAPPING if mapped else _Way.CALL, _nothing
        if place.kind == "tmpfs":
            if knows_cachestat(file):
                return _Way.CALL, functools.partial(by_cachestat, file)
            view = self._view_of_data(status)
            if view is not None:
                return _Way.CALL, functools.partial(by_seeking, view)
        return _Way.COUNTING, _nothing

    def _view_of_data(self, status: os.stat_result) -> int | None:
        """A descriptor to look for data with, if all that has storage is data."""
        try:
            # One of its own: looking for data moves the position, which duplicates share.
            view = os.open(f"/proc/self/fd/{self._file}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        self._files.callback(os.close, view)
        data = by_seeking(view, 0, status.st_size)
        blocks = sum(self._last_block(stop) - start for start, stop in data)
        return view if blocks == status.st_blocks * _UNIT_OF_BLOCKS else None

    def _end(self) -> None:
        """Of the run, if every chunk is done."""
        if list(self._done) != [(self._start, self._stop)]:
            return
        self._unmap()
        if self._way is _Way.COUNTING and self._stop > self._size:
            # No page of these was new, so they were there before.
            end = self._last_block(self._size)
            self._beyond = Ranges([(max(end, self._start), self._stop)] if end < self._stop else ())
            for start, stop in self._new:
                self._beyond.take(start, stop)
        self._lengthen()

    def _lengthen(self) -> None:
        if os.fstat(self._file).st_size < self._stop:
            uninterrupted(libc.ftruncate, self._file, self._stop)

    def _set_back(self) -> None:
        """Leave the file as it was, if nothing of it is done, nor on the way."""
        if self._running:
            return
        self._unmap()
        if self._done:
            return
        if self._begun:
            self._punch(0, END)
            changed = os.fstat(self._file).st_size != self._size
            if changed or self._new or self._is_left_beyond():
                self._dropped = True
                uninterrupted(libc.ftruncate, self._file, self._size)
                self._new = Ranges()
            if self._dropped:
                for start, stop in self._beyond:
                    self._call(FALLOC_FL_KEEP_SIZE, start, stop)
            self._begun = False
        self._files.close()
        self._file = -1

    def _is_left_beyond(self) -> bool:
        """Whether there is more beyond the end than before: ext4 punches no hole there."""
        if self._stop <= self._size or self._place.kind != "disk":
            return False
        left = self._allocated(self._last_block(self._size), END)
        for start, stop in self._beyond:
            left.take(start, stop)
        return bool(left)

    def _unmap(self) -> None:
        if self._memory is None:
            return
        # The pages are unmapped first, by a call that lets go of the GIL: closing does not, and is
        # then quick.
        nbytes = self._stop - self._start
        with contextlib.suppress(OSError):  # Linux before 5.18
            uninterrupted(libc.madvise, self._address, nbytes, Advice.MADV_DONTNEED)
        self._memory.close()
        self._memory = None

    def _punch(self, start: int, stop: int) -> None:
        """Give back what this run has allocated from `start` to `stop`."""
        pieces = Ranges(self._new).take(start, stop)
        for each in pieces:
            try:
                self._call(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, *each)
            except OSError as error:
                # What lies beyond the file's end goes when that is set: FAT punches no holes.
                if error.errno != errno.EOPNOTSUPP or each[0] < self._last_block(self._size):
                    raise
            else:
                self._new.take(*each)

    # A chunk, in whole blocks.

    def _allocate(self, start: int, stop: int) -> None:
        if self._way is _Way.COUNTING:
            return self._allocate_counting(start, stop)
        reach, grain, before = self._place.reach, self._place.grain, self._blocks()
        first, last = start // reach * reach, -(-stop // reach) * reach
        allocated = self._allocated(first, last)
        new = list(gaps(allocated, start, stop, grain))
        around = [*gaps(allocated, first, start, grain), *gaps(allocated, stop, last, grain)]
        self._note(new)
        try:
            self._fill(start, stop)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:  # nothing was allocated, and no hole can be punched
                with self._lock:
                    for each in new:
                        self._new.take(*each)
            raise
        finally:
            if around and self._blocks() - before > sum(end - begin for begin, end in new):
                self._note(around)  # a huge page was taken

    def _fill(self, start: int, stop: int) -> None:
        if self._way is _Way.MAPPING:
            origin = self._address - self._start
            populate_pages(None, origin + start, origin + stop)
        else:
            self._call(FALLOC_FL_KEEP_SIZE, start, stop)

    def _allocate_counting(self, start: int, stop: int) -> None:
        page = self._place.grain
        with self._counting:
            for position in range(start, stop, page):
                before = self._blocks()
                try:
                    self._call(FALLOC_FL_KEEP_SIZE, position, position + page)
                finally:
                    grown = self._blocks() - before
                    if grown > 0:  # by more than a page where huge pages are taken
                        first = position // grown * grown
                        self._note([(first, first + grown)])

    def _note(self, ranges: Iterable[tuple[int, int]]) -> None:
        with self._lock:
            for start, stop in ranges:
                self._new.add(start, stop)

    def _explained(self, error: OSError) -> OSError:
        """The error with what is known of its cause."""
        number, grain = error.errno, self._place.grain
        if self._file < 0:
            return error
        if self._place.kind == "hugetlbfs":
            if number in (errno.EFAULT, errno.ENOMEM, errno.ENOSPC):
                missing = max(self._stop - self._start - self._blocks(), grain)
                told = f"{explain(grain, missing // grain)}, or the size= of the mount"
                return OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {told} ({error})")
        elif number == errno.ENOSPC:
            there = os.fstatvfs(self._file)
            free = there.f_bavail * there.f_frsize
            error.add_note(f"fallocate: {free} bytes are free on this file system")
        elif number == errno.EOPNOTSUPP:
            error.add_note(f"fallocate: {NO_FALLOCATE}")
        return error

    def _call(self, mode: int, start: int, stop: int) -> None:
        uninterrupted(libc.fallocate, self._file, mode, start, stop - start)

    def _blocks(self) -> int:
        return os.fstat(self._file).st_blocks * _UNIT_OF_BLOCKS

    def _first_block(self, start: int) -> int:
        return start // self._place.grain * self._place.grain

    def _last_block(self, stop: int) -> int:
        return -(-stop // self._place.grain) * self._place.grain


def _nothing(_start: int, _stop: int) -> Ranges:
    return Ranges()


def _cannot_tell() -> OSError:
    return OSError(
        errno.EOPNOTSUPP,
        f"{os.strerror(errno.EOPNOTSUPP)}: this file system does not tell which ranges of a file "
        f"are allocated (FIEMAP), so what is added could not be taken back: pass an empty file, or "
        f"use os.posix_fallocate",
    )
