# SPDX-License-Identifier: MIT
# What the page tables of this process say, read without changing them and without any privilege.
#
# PAGEMAP_SCAN (Linux 6.7) tells stretches of equal pages, huge ones among them: 3 ms for each GiB
# of small pages, 0.4 ms of huge ones. Before, /proc/self/pagemap has a number for each small page,
# 8 ms. It does not tell a huge page from 512 small ones. That is in /proc/self/smaps, but for whole
# mappings, and the kernel walks the page tables of all mappings before the wanted one to write it.
#
# Neither knows the page cache: a page of a file that this process has not touched is not in its
# page tables, nor is a page of shared memory that was swapped out. A page that the kernel is moving
# at that moment looks like one that is swapped out.
"""Stretches of pages that are present or swapped out, and huge pages by mapping."""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aioktask.memory._kernel import libc
from aioktask.memory._kernel.libc import PAGE

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "HUGE",
    "MAYBE_HUGE",
    "NOTHING",
    "PRESENT",
    "SWAPPED",
    "UNSURE",
    "UNSURE_IF_HUGE",
    "Mapping",
    "mappings_between",
    "stretches",
]

# What a page is: the bits of PAGEMAP_SCAN in <linux/fs.h>.
PRESENT = 1 << 3
SWAPPED = 1 << 4
NOTHING = 1 << 5  # the page of zeros, which all memory shares that was read and never written
HUGE = 1 << 6
# Bits of our own: perhaps the page of zeros, or part of the huge page of zeros; perhaps huge.
UNSURE = 1 << 32
UNSURE_IF_HUGE = 1 << 33
MAYBE_HUGE = 1 << 34

# So many pages are looked at in one call: a helper needs a few megabytes for it, at the most.
_PAGES = 1 << 15
_STRETCHES = 1 << 12

# struct pm_scan_arg of <linux/fs.h>.
_SCAN = struct.Struct("=12Q")
_PAGEMAP_SCAN = 0xC0000000 | _SCAN.size << 16 | ord("f") << 8 | 16

# Bits of an entry of /proc/self/pagemap. The page of zeros has neither of the last two, the huge
# page of zeros is taken for one of a file, but for nobody's own.
_IS_PRESENT = np.uint64(1 << 63)
_IS_SWAPPED = np.uint64(1 << 62)
_IS_OF_FILE = np.uint64(1 << 61)
_IS_EXCLUSIVE = np.uint64(1 << 56)

_MAPPING = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) ")
_TRANSPARENT = (b"AnonHugePages", b"ShmemPmdMapped", b"FilePmdMapped")
_FIGURE = re.compile(rb"(\w+): +([0-9]+) kB")


def stretches(file: int, start: int, stop: int) -> Iterator[NDArray[np.int64]]:
    """Where between two addresses pages are present or swapped out, a batch at a time, ascending.

    Args:
        file: /proc/self/pagemap, open.
        start: A multiple of the page.
        stop: One too.

    Yields:
        Rows of an address, the one after the last, and what the pages are. A huge page may be cut
        in two. A page that is MAYBE_HUGE is never HUGE.

    Raises:
        OSError: Any errno of the calls; what one that was interrupted has told is kept.
    """
    while start < stop:
        try:
            found, start = _scan(file, start, stop)
        except InterruptedError:
            continue
        except OSError as error:
            if error.errno != errno.ENOTTY:
                raise
            found, start = _read_pagemap(file, start, stop)
        yield found


def _scan(file: int, start: int, stop: int) -> tuple[NDArray[np.int64], int]:
    """The next stretches, and where to go on."""
    rows = np.empty((_STRETCHES, 3), np.int64)
    place = start, stop, 0, rows.ctypes.data, len(rows), _PAGES
    wanted = 0, 0, PRESENT | SWAPPED, PRESENT | SWAPPED | NOTHING | HUGE
    asked = bytearray(_SCAN.pack(_SCAN.size, 0, *place, *wanted))
    found = rows[: libc.ioctl(file, _PAGEMAP_SCAN, asked)]
    if not len(found):
        return found, stop
    # Linux up to 6.18 at least leaves the place of an earlier turn in `walk_end` when it fills its
    # own buffer of 512 stretches and then reaches the end. What was told must not be told again.
    reached: int = _SCAN.unpack(asked)[4]
    return found, max(reached, int(found[-1, 1]))


def _read_pagemap(file: int, start: int, stop: int) -> tuple[NDArray[np.int64], int]:
    """The next stretches by the older interface, which knows nothing of huge pages."""
    count = min((stop - start) // PAGE, _PAGES)
    try:
        text = libc.pread(file, count * 8, start // PAGE * 8)
    except InterruptedError:
        return np.empty((0, 3), np.int64), start
    entries = np.frombuffer(text, np.uint64)
    if not len(entries):
        return np.empty((0, 3), np.int64), stop
    present = (entries & _IS_PRESENT) != 0
    kinds = np.zeros(len(entries), np.int64)
    kinds[(entries & _IS_SWAPPED) != 0] = SWAPPED
    kinds[present] = PRESENT | MAYBE_HUGE
    of_file = (entries & _IS_OF_FILE) != 0
    others_too = present & ((entries & _IS_EXCLUSIVE) == 0)
    kinds[others_too & ~of_file] |= UNSURE
    kinds[others_too & of_file] |= UNSURE_IF_HUGE
    first = np.flatnonzero(np.diff(kinds, prepend=-1))
    starts = start + first * PAGE
    reached = start + len(entries) * PAGE
    rows = np.column_stack((starts, np.append(starts[1:], reached), kinds[first]))
    return rows[rows[:, 2] != 0], reached


@dataclass(frozen=True, slots=True)
class Mapping:
    """What /proc/self/smaps tells of a mapping, in bytes.

    Attributes:
        start: The address of its first byte.
        stop: One past the last.
        page_size: More than the usual one for a mapping of reserved huge pages.
        resident: Without reserved huge pages.
        huge: In transparent huge pages.
    """

    start: int
    stop: int
    page_size: int
    resident: int
    huge: int


def mappings_between(start: int, stop: int, smaps: str = "/proc/self/smaps") -> list[Mapping]:
    """The mappings that have bytes between two addresses, whole, ascending.

    Raises:
        OSError: The file cannot be read.
    """
    found: list[Mapping] = []
    with open(smaps, "rb") as file:
        for begins, ends, figures in _texts(file):
            if begins >= stop:
                break
            if start < ends:
                found.append(
                    Mapping(
                        begins,
                        ends,
                        page_size=figures.get(b"KernelPageSize", PAGE),
                        resident=figures.get(b"Rss", 0),
                        huge=sum(figures.get(name, 0) for name in _TRANSPARENT),
                    )
                )
    return found


def _texts(lines: Iterable[bytes]) -> Iterator[tuple[int, int, dict[bytes, int]]]:
    """Start, stop and figures of each mapping, none of them before it is wanted."""
    figures: dict[bytes, int] = {}
    begins = ends = 0
    for line in lines:
        figure = _FIGURE.match(line)
        if figure is not None:
            figures[figure[1]] = int(figure[2]) << 10
        elif mapping := _MAPPING.match(line):
            if ends:
                yield begins, ends, figures
            begins, ends = (int(each, 16) for each in mapping.groups())
            figures = {}
    if ends:
        yield begins, ends, figures
