# SPDX-License-Identifier: MIT
# The system calls that the memory jobs are made of. A failure is an OSError with its errno that
# says what was asked.
#
# They are called through `ctypes` where Python has no call of its own, which lets go of the GIL
# during the call and keeps an errno for each thread; `mmap.mmap.madvise` promises neither. Nobody
# checks lengths and addresses: a caller passes memory that it holds (see `_buffer`).
#
# The other modules call these functions through this module (`libc.madvise(...)`), never by a name
# of their own: so the tests can fail the k-th of them, whichever it is.
"""Thin wrappers of system calls on memory and on what lies behind it."""

from __future__ import annotations

import ctypes
import enum
import errno
import fcntl
import functools
import io
import mmap
import os
import platform
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FALLOC_FL_KEEP_SIZE",
    "FALLOC_FL_PUNCH_HOLE",
    "HUGE_PAGE",
    "MPOL_BIND",
    "MPOL_INTERLEAVE",
    "PAGE",
    "Advice",
    "allocate_empty_over",
    "any_locked",
    "cached_pages",
    "fallocate",
    "fstatfs",
    "ftruncate",
    "ioctl",
    "lseek",
    "madvise",
    "map_anonymous",
    "map_file",
    "mbind",
    "mincore",
    "mlock2",
    "move",
    "munlock",
    "nodes_of_pages",
    "open_device",
    "pread",
    "zero",
]

PAGE = mmap.PAGESIZE
# A transparent huge page where pages are of 4 KiB. Where it is something else, nothing but a little
# speed is lost: two helpers may meet in one huge page.
HUGE_PAGE = 2 << 20

FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
MLOCK_ONFAULT = 1
MPOL_BIND = 2
MPOL_INTERLEAVE = 3
_MS_ASYNC = 1
_MS_INVALIDATE = 2
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value
# The longest list of nodes that a kernel knows (CONFIG_NODES_SHIFT is at most 10).
_MOST_NODES = 1024

# Calls that the C library has no function for, by their number on each machine.
_NUMBERS = {
    "x86_64": {"mbind": 237, "move_pages": 279, "cachestat": 451},
    "aarch64": {"mbind": 235, "move_pages": 239, "cachestat": 451},
}


class Advice(enum.IntEnum):
    """What `madvise` may be asked for, by the names and numbers of the kernel's <linux/mman.h>."""

    MADV_DONTNEED = 4
    MADV_HUGEPAGE = 14
    MADV_NOHUGEPAGE = 15
    MADV_POPULATE_READ = 22
    MADV_POPULATE_WRITE = 23


def madvise(address: int, nbytes: int, advice: Advice) -> None:
    """Call madvise(2) once. `address` is a multiple of the page.

    Raises:
        OSError: With the errno that the kernel gave; ENOSYS elsewhere than on Linux.
    """
    function = _function("madvise", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if function(address, nbytes, advice) != 0:
        raise _failed(f"madvise({address:#x}, {nbytes}, {advice.name})")


def zero(address: int, nbytes: int) -> None:
    """Set bytes to zero with memset(3)."""
    # The same function of the same libc as `CDLL(None).memset`, and there on every platform.
    ctypes.memset(address, 0, nbytes)


def move(destination: int, source: int, nbytes: int) -> None:
    """Copy bytes with memmove(3)."""
    ctypes.memmove(destination, source, nbytes)


def map_anonymous(nbytes: int, flags: int = 0) -> mmap.mmap:
    """Private anonymous memory, readable and writable. `flags` are more bits of MAP_*."""
    try:
        return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | flags)
    except OSError as error:
        raise _asked(error, f"mmap of {nbytes} bytes, flags {flags:#x}") from None


def map_file(file: int, nbytes: int, offset: int = 0, *, reserve: bool = True) -> mmap.mmap:
    """A shared mapping of a file, readable and writable; the file must be as long.

    Without `reserve` no huge page is set aside, which the file would keep when the mapping is gone.
    """
    flags = mmap.MAP_SHARED | (0 if reserve else _MAP_NORESERVE)
    try:
        return mmap.mmap(file, nbytes, flags=flags, offset=offset)
    except OSError as error:
        raise _asked(error, f"mmap of {nbytes} bytes of a file from {offset}") from None


def allocate_empty_over(address: int, nbytes: int) -> None:
    """Put fresh, empty, ordinary memory in the place of a mapping, which is gone then.

    Raises:
        OSError: As mmap(2).
    """
    kinds = (ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    function = _function("mmap", ctypes.c_void_p, ctypes.c_size_t, *kinds, result=ctypes.c_void_p)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
    if function(address, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) == _MAP_FAILED:
        raise _failed(f"mmap({address:#x}, {nbytes}, MAP_FIXED)")


def mbind(address: int, nbytes: int, policy: int, nodes: Iterable[int]) -> None:
    """Say on which nodes the pages of a mapping are to lie that are not there yet: mbind(2)."""
    wanted = sorted(set(nodes))
    mask = (ctypes.c_ulong * (_MOST_NODES // 64))()
    for node in wanted:
        mask[node // 64] |= 1 << node % 64
    # The kernel takes one bit less than it is told.
    if _system_call("mbind", address, nbytes, policy, mask, _MOST_NODES + 1, 0) != 0:
        raise _failed(f"mbind({address:#x}, {nbytes}, policy {policy}, nodes {wanted})")


def nodes_of_pages(addresses: NDArray[np.uintp]) -> NDArray[np.int32]:
    """The node of each page, or a negative errno (-ENOENT: not resident): move_pages(2)."""
    status = np.empty(len(addresses), np.int32)
    pages = np.ascontiguousarray(addresses)
    pointers = ctypes.c_void_p(pages.ctypes.data), None, ctypes.c_void_p(status.ctypes.data)
    if _system_call("move_pages", 0, len(pages), *pointers, 0) != 0:
        raise _failed(f"move_pages of {len(pages)} pages")
    return status


def mincore(address: int, nbytes: int) -> NDArray[np.uint8]:
    """For each page, whether it is in core (bit 0): mincore(2)."""
    vector = np.empty(-(-nbytes // PAGE), np.uint8)
    function = _function("mincore", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    if function(address, nbytes, vector.ctypes.data) != 0:
        raise _failed(f"mincore({address:#x}, {nbytes})")
    return vector


def mlock2(address: int, nbytes: int, *, on_fault: bool) -> None:
    """Lock pages: those that are there, and with `on_fault` the others only when they come."""
    function = _function("mlock2", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
    if function(address, nbytes, MLOCK_ONFAULT if on_fault else 0) != 0:
        raise _failed(f"mlock2({address:#x}, {nbytes}, {'MLOCK_ONFAULT' if on_fault else 0})")


def munlock(address: int, nbytes: int) -> None:
    """Unlock pages, however often they were locked."""
    if _function("munlock", ctypes.c_void_p, ctypes.c_size_t)(address, nbytes) != 0:
        raise _failed(f"munlock({address:#x}, {nbytes})")


def any_locked(address: int, nbytes: int) -> bool:
    """Whether any of the mappings is locked, on fault or at once; changes nothing: msync(2)."""
    function = _function("msync", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if function(address, nbytes, _MS_ASYNC | _MS_INVALIDATE) == 0:
        return False
    if ctypes.get_errno() == errno.EBUSY:
        return True
    raise _failed(f"msync({address:#x}, {nbytes}, MS_ASYNC | MS_INVALIDATE)")


def fallocate(file: int, mode: int, offset: int, nbytes: int) -> None:
    """Allocate or give back a range of a file: fallocate(2), whose `mode` is given."""
    # off_t is a long on every 64-bit system, and `fallocate64` is there on 32-bit ones.
    name = "fallocate" if sys.maxsize > 1 << 32 else "fallocate64"
    function = _function(name, ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if function(file, mode, offset, nbytes) != 0:
        raise _failed(f"fallocate(mode {mode:#x}, {offset}, {nbytes})")


def ftruncate(file: int, nbytes: int) -> None:
    """Set the size of a file."""
    try:
        os.ftruncate(file, nbytes)
    except OSError as error:
        raise _asked(error, f"ftruncate to {nbytes} bytes") from None


def fstatfs(file: int) -> tuple[int, int]:
    """The kind of the file system that a file is on, and its block size: fstatfs(2)."""
    told = (ctypes.c_long * 32)()
    if _function("fstatfs", ctypes.c_int, ctypes.c_void_p)(file, told) != 0:
        raise _failed("fstatfs")
    return told[0], told[1]


def lseek(file: int, offset: int, whence: int) -> int:
    """Set the position of an open file, or look for data or a hole from there: lseek(2)."""
    try:
        return os.lseek(file, offset, whence)
    except OSError as error:
        raise _asked(error, f"lseek to {offset}, whence {whence}") from None


def open_device(path: Path) -> io.FileIO:
    """Open a device, for reading and writing; not kept over an exec."""
    try:
        return io.FileIO(path, "r+")
    except OSError as error:
        raise _asked(error, f"open of {path}") from None


def ioctl(file: int, request: int, argument: bytearray | int = 0) -> int:
    """Call ioctl(2) once; the kernel may write to `argument`. `InterruptedError` is not retried."""
    try:
        return fcntl.ioctl(file, request, argument)
    except OSError as error:
        raise _asked(error, f"ioctl {request:#x}") from None


def pread(file: int, nbytes: int, offset: int) -> bytes:
    """Read bytes of a file at a place; fewer at its end."""
    try:
        return os.pread(file, nbytes, offset)
    except OSError as error:
        raise _asked(error, f"pread of {nbytes} bytes from {offset}") from None


def cached_pages(file: int, offset: int, nbytes: int) -> tuple[int, int]:
    """How many pages of a range of a file are in the page cache, and how many have been evicted
    from it, which on tmpfs is swapped out: cachestat(2), Linux 6.5.

    Pages that were allocated and never written, as fallocate(2) makes them on tmpfs, count. A range
    of no bytes is all from `offset` on.
    """
    place = (ctypes.c_uint64 * 2)(offset, nbytes)
    told = (ctypes.c_uint64 * 5)()
    if _system_call("cachestat", file, place, told, 0) != 0:
        raise _failed(f"cachestat({offset}, {nbytes})")
    return int(told[0]), int(told[3])


def _failed(asked: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{os.strerror(number)}: {asked}")


def _asked(error: OSError, asked: str) -> OSError:
    return OSError(error.errno, f"{os.strerror(error.errno or 0)}: {asked}")


@functools.cache
def _function(name: str, *kinds: Any, result: Any = ctypes.c_int) -> Callable[..., Any]:
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, f"{os.strerror(errno.ENOSYS)}: {name} on {sys.platform}")
    # A library object of its own: one function may be wanted with several signatures.
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except AttributeError:
        reason = f"{os.strerror(errno.ENOSYS)}: this C library has no {name}"
        raise OSError(errno.ENOSYS, reason) from None
    if kinds:
        function.argtypes = kinds
    function.restype = result
    return function  # type: ignore[no-any-return]


def _system_call(name: str, *arguments: Any) -> int:
    """A call by its number; integers are passed as longs."""
    function = _function("syscall", result=ctypes.c_long)
    number = _NUMBERS.get(platform.machine(), {}).get(name)
    if number is None:
        text = f"{os.strerror(errno.ENOSYS)}: {name} on {platform.machine()}"
        raise OSError(errno.ENOSYS, text)
    longs = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return int(function(ctypes.c_long(number), *longs))
