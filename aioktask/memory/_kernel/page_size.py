# SPDX-License-Identifier: MIT
# How large the pages of a mapping are: those of hugetlbfs are not of the usual size, and some calls
# take them only whole.
#
# PROCMAP_QUERY (Linux 6.11) looks one mapping up. Before, /proc/self/smaps has to be read, for
# which the kernel walks all page tables of the process, 10 ms for each GiB in small pages: so only
# where /proc/self/maps, which is cheap, shows a name that mappings of hugetlbfs may have.
"""The size of the pages behind an address."""

from __future__ import annotations

import errno
import os
import re
import struct
import sys
from pathlib import Path

from aioktask.memory._kernel import libc
from aioktask.memory._kernel.libc import PAGE

__all__ = ["largest_page", "largest_page_in", "may_be_huge"]

# struct procmap_query of <linux/fs.h>: its size, flags and address as input, then what is found.
_QUERY = struct.Struct("=13Q")
_PROCMAP_QUERY = 0xC0000000 | _QUERY.size << 16 | ord("f") << 8 | 17
_THIS_OR_NEXT = 0x10
_MAPPING = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) .*\n(?:(?!KernelPageSize).*\n)*?"
    rb"KernelPageSize: +(\d+) kB",
    re.MULTILINE,
)


def largest_page(address: int, nbytes: int) -> int:
    """The size of the largest pages that mappings between the two addresses are made of."""
    if sys.platform != "linux":
        return PAGE
    maps = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _by_query(maps, address, address + nbytes)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL):
            raise
    finally:
        os.close(maps)
    if not may_be_huge(Path("/proc/self/maps").read_bytes(), address, nbytes):
        return PAGE
    return largest_page_in(Path("/proc/self/smaps").read_bytes(), address, nbytes)


def may_be_huge(maps: bytes, address: int, nbytes: int) -> bool:
    """Whether the text of /proc/self/maps leaves it open that there are pages of hugetlbfs."""
    for line in maps.splitlines():
        start, stop = (int(each, 16) for each in line.split(b" ", 1)[0].split(b"-"))
        if start >= address + nbytes or stop <= address:
            continue
        path = line.split(maxsplit=5)[5:]
        if not path or not path[0].startswith(b"/"):
            continue
        if path[0].startswith(b"/anon_hugepage") or path[0].endswith(b" (deleted)"):
            return True
        try:
            if os.stat(path[0]).st_blksize > PAGE:
                return True
        except OSError:
            return True
    return False


def largest_page_in(smaps: bytes, address: int, nbytes: int) -> int:
    """The largest page of a range, by the text of /proc/self/smaps."""
    largest = PAGE
    for start, stop, kib in _MAPPING.findall(smaps):
        if int(start, 16) < address + nbytes and address < int(stop, 16):
            largest = max(largest, int(kib) << 10)
    return largest


def _by_query(maps: int, start: int, stop: int) -> int:
    largest = PAGE
    while start < stop:
        asked = bytearray(_QUERY.pack(_QUERY.size, _THIS_OR_NEXT, start, *[0] * 10))
        try:
            libc.ioctl(maps, _PROCMAP_QUERY, asked)
        except FileNotFoundError:  # nothing is mapped from here on
            break
        found = _QUERY.unpack(asked)
        if found[3] < stop:
            largest = max(largest, found[6])
        start = found[4]
    return largest
