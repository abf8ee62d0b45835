# SPDX-License-Identifier: MIT
# Of which mappings a stretch of memory is made.
#
# PROCMAP_QUERY (Linux 6.11) looks them up one by one, in microseconds. Before, /proc/self/maps is
# read, which has a line for each mapping of the process; for it the kernel looks at no page table,
# as it does for /proc/self/smaps, which tells the size of pages: see `page_size`.
"""What the kernel says of the mappings between two addresses."""

from __future__ import annotations

import bisect
import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from aioktask.memory._kernel import libc
from aioktask.memory._kernel.libc import PAGE
from aioktask.memory._kernel.page_size import largest_page_in, may_be_huge

__all__ = ["Mapping", "mappings_between", "mappings_in"]

# struct procmap_query of <linux/fs.h>: its size, flags and address as input, then what is found.
_QUERY = struct.Struct("=13Q")
_PROCMAP_QUERY = 0xC0000000 | _QUERY.size << 16 | ord("f") << 8 | 17
_THIS_OR_NEXT = 0x10
_WRITABLE = 0x02
_SHARED = 0x08


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping, or the part of it that was asked for.

    Attributes:
        start: The address of its first byte.
        stop: One past the last.
        writable: Whether it may be written now.
        shared: Whether what is written reaches others: MAP_SHARED.
        page: The size of its pages, in bytes; that of ordinary pages for transparent huge ones.
    """

    start: int
    stop: int
    writable: bool
    shared: bool
    page: int


def mappings_between(start: int, stop: int) -> list[Mapping]:
    """Those of this process that lie between two addresses, cut off there, ascending.

    Raises:
        OSError: There is no /proc.
    """
    maps = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _by_query(maps, start, stop)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL):
            raise
    finally:
        os.close(maps)
    text = Path("/proc/self/maps").read_bytes()
    smaps = b""
    if may_be_huge(text, start, stop - start):
        smaps = Path("/proc/self/smaps").read_bytes()
    return mappings_in(text, smaps, start, stop)


def mappings_in(maps: bytes, smaps: bytes, start: int, stop: int) -> list[Mapping]:
    """The mappings in the text of /proc/self/maps; smaps is for pages that are not ordinary."""
    lines = maps.splitlines()
    found = []
    # The lines ascend by their ends, also where mappings were joined while the kernel wrote them
    # down: then the next line begins anew at an address that has been told already.
    reached = start
    for line in lines[bisect.bisect_right(lines, start, key=lambda line: _ends(line)[1]) :]:
        begins, ends = _ends(line)
        begins, ends = max(begins, reached), min(ends, stop)
        if begins >= stop:
            break
        permissions = line.split(b" ", 2)[1].decode("ascii")
        page = largest_page_in(smaps, begins, ends - begins)
        found.append(Mapping(begins, ends, permissions[1] == "w", permissions[3] == "s", page))
        reached = ends
    return found


def _ends(line: bytes) -> tuple[int, int]:
    begins, ends = line.split(b" ", 1)[0].split(b"-")
    return int(begins, 16), int(ends, 16)


def _by_query(maps: int, start: int, stop: int) -> list[Mapping]:
    found = []
    reached = start
    while reached < stop:
        asked = bytearray(_QUERY.pack(_QUERY.size, _THIS_OR_NEXT, reached, *[0] * 10))
        try:
            libc.ioctl(maps, _PROCMAP_QUERY, asked)
        except InterruptedError:
            continue
        except FileNotFoundError:  # nothing is mapped from here on
            break
        _, _, _, begins, ends, flags, page, *_ = _QUERY.unpack(asked)
        # It may have been joined with one that was told already.
        begins, ends = max(begins, reached), min(ends, stop)
        if begins < stop:
            writable, shared = bool(flags & _WRITABLE), bool(flags & _SHARED)
            found.append(Mapping(begins, ends, writable, shared, max(page, PAGE)))
        reached = ends
    return found
