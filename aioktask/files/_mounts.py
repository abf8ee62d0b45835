# SPDX-License-Identifier: MIT
# Which mount a directory was opened on: what is mounted inside of a tree does not belong to it.
#
# A bind mount may show another part of the same file system, with the same device number, so the
# kernel's number of the mount is asked for: by statx(2) since Linux 5.8, else from /proc. Where
# neither tells, the device number alone has to do. A subvolume is no mount, but has a device
# number of its own, and is left alone as well. The mount of a descriptor is the one it was opened
# on, whatever is mounted over it later.
"""What tells directories apart, and the mounts they lie on."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import NamedTuple

__all__ = ["Looked", "look"]

# From linux/stat.h and linux/fcntl.h: the mask, the inode, the device and the mount.
_STATX = struct.Struct("=I28xQ96xIIQ104x")
_STATX_INO = 0x100
_STATX_MNT_ID = 0x1000
# Of an open descriptor; and what is asked for never changes, so that no server need be asked.
_FLAGS = 0x1000 | 0x4000  # AT_EMPTY_PATH, AT_STATX_DONT_SYNC

_statx = getattr(ctypes.CDLL(None, use_errno=True), "statx", None)


class Looked(NamedTuple):
    """What was found out of a descriptor.

    Attributes:
        identity: Device and inode, which no other directory has at the same time.
        mount: The device, and the kernel's number of the mount, 0 where it is not told.
    """

    identity: tuple[int, int]
    mount: tuple[int, int]


def look(descriptor: int) -> Looked:
    """The identity and the mount of what is open.

    Raises:
        OSError: The descriptor cannot be looked at.
    """
    if _statx is not None:
        filled = ctypes.create_string_buffer(_STATX.size)
        if _statx(descriptor, b"", _FLAGS, _STATX_INO | _STATX_MNT_ID, filled) == 0:
            mask, inode, major, minor, mount = _STATX.unpack(filled.raw)
            if mask & _STATX_MNT_ID:
                device = os.makedev(major, minor)
                return Looked((device, inode), (device, mount))
        else:
            number = ctypes.get_errno()
            if number not in (errno.ENOSYS, errno.EPERM):  # not there, or a sandbox refuses it
                raise OSError(number, os.strerror(number))
    found = os.fstat(descriptor)
    return Looked((found.st_dev, found.st_ino), (found.st_dev, _told_by_proc(descriptor)))


def _told_by_proc(descriptor: int) -> int:
    try:
        with open(f"/proc/self/fdinfo/{descriptor}") as lines:
            for line in lines:
                if line.startswith("mnt_id:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0
