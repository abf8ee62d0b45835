# SPDX-License-Identifier: MIT
# The C library calls that the memory jobs are made of. A failure is an OSError that says what was
# asked.
#
# They are called through `ctypes`, which lets go of the GIL during the call and keeps an errno for
# each thread; `mmap.mmap.madvise` promises neither. Nobody checks lengths and addresses: a caller
# passes memory that it holds (see `_buffer`).
"""Thin wrappers of libc calls on memory."""

from __future__ import annotations

import ctypes
import enum
import errno
import functools
import mmap
import os
import sys
from collections.abc import Callable

__all__ = ["HUGE_PAGE", "PAGE", "Advice", "madvise", "zero"]

PAGE = mmap.PAGESIZE
# A transparent huge page where pages are of 4 KiB. Where it is something else, nothing but a little
# speed is lost: two helpers may meet in one huge page.
HUGE_PAGE = 2 << 20


class Advice(enum.IntEnum):
    """What `madvise` may be asked for, by the names and numbers of the kernel's <linux/mman.h>."""

    MADV_POPULATE_WRITE = 23


def madvise(address: int, nbytes: int, advice: Advice) -> None:
    """Call madvise(2) once. `address` is a multiple of the page.

    Raises:
        OSError: With the errno that the kernel gave; ENOSYS elsewhere than on Linux.
    """
    if _madvise()(address, nbytes, advice) != 0:
        number = ctypes.get_errno()
        asked = f"madvise({address:#x}, {nbytes}, {advice.name})"
        raise OSError(number, f"{os.strerror(number)}: {asked}")


def zero(address: int, nbytes: int) -> None:
    """Set bytes to zero with memset(3)."""
    # The same function of the same libc as `CDLL(None).memset`, and there on every platform.
    ctypes.memset(address, 0, nbytes)


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, f"{os.strerror(errno.ENOSYS)}: madvise on {sys.platform}")
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    function.restype = ctypes.c_int
    return function
