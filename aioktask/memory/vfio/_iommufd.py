# SPDX-License-Identifier: MIT
# The IOMMU by way of /dev/iommu (Linux 6.2), and devices by way of /dev/vfio/devices (Linux 6.6).
#
# An address space (IOAS) belongs to the open file; each device is bound to the file and attached to
# the address space. As with type1, a mapping is unmapped whole or not at all, and a call that fails
# to map rolls itself back. Pages that are mapped count for the user, over all processes, against
# RLIMIT_MEMLOCK, and in VmPin: how much is left of it cannot be known beforehand.
#
# Debian's kernels have no iommufd, so the guest tests skip this backend; it passes them on Linux
# 6.12 built with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV.
"""The backend "iommufd"."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aioktask.memory._kernel import libc, memlock
from aioktask.memory.vfio import _devices
from aioktask.memory.vfio._backend import call, check_limit
from aioktask.memory.vfio._information import Information

__all__ = ["IOMMU", "Iommufd"]

IOMMU = "dev/iommu"

_IOAS_ALLOC = 0x3B81
_IOAS_IOVA_RANGES = 0x3B84
_IOAS_MAP = 0x3B85
_IOAS_UNMAP = 0x3B86
_DEVICE_BIND_IOMMUFD = 0x3B76
_DEVICE_ATTACH_IOMMUFD_PT = 0x3B77

_FIXED_IOVA = 1
_WRITABLE = 2
_READABLE = 4
# Each begins with its size. Then: flags, the new id.
_ALLOC = struct.Struct("=III")
# Id, number of ranges, 0, where to write them; the smallest alignment of an iova.
_RANGES = struct.Struct("=IIIIQQ")
# Flags, id, 0, address, bytes, iova.
_MAP = struct.Struct("=IIIIQQQ")
# Id, iova, bytes.
_UNMAP = struct.Struct("=IIQQ")
# Flags, the descriptor of the iommufd, the new id.
_BIND = struct.Struct("=IIiI")
# Flags, id of the address space.
_ATTACH = struct.Struct("=III")
_ROOM = 64

_HINTS = {
    errno.EEXIST: "some of these iovas are mapped already, and not by this container object",
    errno.EFAULT: "memory that is not mapped or may not be written, or of a file on a disk",
    errno.ENOMEM: f"RLIMIT_MEMLOCK of the user or out of memory; {memlock.WHAT_TO_DO}",
}


class Iommufd:
    """An address space, and devices that are attached to it from `open` to `close`."""

    name = "iommufd"

    def __init__(self, wanted: Sequence[str | int], root: Path) -> None:
        self._wanted = wanted
        self._root = root
        self._files: list[io.FileIO] = []  # the iommufd, then the devices
        self._devices: dict[str, io.FileIO] = {}
        self._space = 0
        self.information = Information()

    def open(self) -> None:
        """See `Backend`.

        Raises:
            OSError: ENODEV: a device is not ready for VFIO. EBUSY: it is in use. And as open(2).
        """
        names = [name for each in self._wanted for name in self._names(each)]
        iommu = libc.open_device(self._root / IOMMU)
        self._files.append(iommu)
        made = bytearray(_ALLOC.pack(_ALLOC.size, 0, 0))
        call(iommu, _IOAS_ALLOC, made, "IOMMU_IOAS_ALLOC")
        self._space = _ALLOC.unpack(made)[2]
        for name in dict.fromkeys(names):
            self._devices[name] = self._attach(iommu, name)
        self.information = self._ask()

    def close(self) -> None:
        self._devices.clear()
        # A device is detached when its file is closed; the last file takes the address space along.
        for file in reversed(self._files):
            file.close()
        self._files.clear()

    def map(self, address: int, iova: int, nbytes: int, *, read: bool, write: bool) -> None:
        flags = _FIXED_IOVA | (_READABLE if read else 0) | (_WRITABLE if write else 0)
        asked = bytearray(_MAP.pack(_MAP.size, flags, self._space, 0, address, nbytes, iova))
        what = f"IOMMU_IOAS_MAP of {nbytes} bytes at {address:#x} to iova {iova:#x}"
        try:
            call(self._files[0], _IOAS_MAP, asked, what)
        except OSError as error:
            if error.errno in _HINTS:
                error.add_note(_HINTS[error.errno])
            raise

    def unmap(self, iova: int, nbytes: int) -> None:
        asked = bytearray(_UNMAP.pack(_UNMAP.size, self._space, iova, nbytes))
        what = f"IOMMU_IOAS_UNMAP of {nbytes} bytes from iova {iova:#x}"
        with contextlib.suppress(FileNotFoundError):  # nothing is mapped there
            call(self._files[0], _IOAS_UNMAP, asked, what)

    def dma_available(self) -> int | None:
        return None

    def check_memory_limit(self, nbytes: int) -> None:
        # What others of the user have pinned counts, and what this process has locked does not.
        check_limit(dataclasses.replace(memlock.allowance(), locked=0), nbytes)

    def open_device(self, address: str) -> io.FileIO:
        device = self._devices.get(address)
        if device is None:
            raise ValueError(f"this container does not have {address}")
        return io.FileIO(os.dup(device.fileno()), "r+")

    def _names(self, wanted: str | int) -> list[str]:
        if isinstance(wanted, str):
            _devices.group_of(wanted, self._root)
            return [wanted]
        names = _devices.devices_in(wanted, self._root)
        return [each for each in names if _devices.vfio_name(each, self._root)]

    def _attach(self, iommu: io.FileIO, address: str) -> io.FileIO:
        name = _devices.vfio_name(address, self._root)
        if name is None:
            raise OSError(
                errno.ENODEV,
                f"{os.strerror(errno.ENODEV)}: {address} is not in /dev/vfio/devices: iommufd "
                f"needs Linux 6.6 with CONFIG_VFIO_DEVICE_CDEV",
            )
        device = libc.open_device(self._root / "dev/vfio/devices" / name)
        self._files.append(device)
        bound = bytearray(_BIND.pack(_BIND.size, 0, iommu.fileno(), 0))
        call(device, _DEVICE_BIND_IOMMUFD, bound, f"VFIO_DEVICE_BIND_IOMMUFD of {address}")
        attached = bytearray(_ATTACH.pack(_ATTACH.size, 0, self._space))
        call(device, _DEVICE_ATTACH_IOMMUFD_PT, attached, f"attaching {address}")
        return device

    def _ask(self) -> Information:
        room = _ROOM
        while True:
            ranges = np.zeros((room, 2), np.uint64)
            asked = bytearray(
                _RANGES.pack(_RANGES.size, self._space, room, 0, ranges.ctypes.data, 0)
            )
            try:
                call(self._files[0], _IOAS_IOVA_RANGES, asked, "IOMMU_IOAS_IOVA_RANGES")
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
            _, _, room_needed, _, _, alignment = _RANGES.unpack(asked)
            if room_needed <= room:
                pairs = ranges[:room_needed].tolist()
                iovas = tuple(range(first, last + 1) for first, last in pairs)
                return Information((max(alignment, libc.PAGE),), iovas)
            room = room_needed
