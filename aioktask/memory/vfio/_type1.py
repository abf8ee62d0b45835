# SPDX-License-Identifier: MIT
# The IOMMU by way of /dev/vfio/vfio: a container with groups in it, of type 1, version 2.
#
# In version 2 a mapping is unmapped whole or not at all. A call that fails to map rolls itself
# back. Pages that are mapped count in VmLck, once for each mapping of them, those of hugetlbfs too.
"""The backend "type1"."""

from __future__ import annotations

import errno
import io
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from aioktask.memory._kernel import libc, memlock
from aioktask.memory.vfio import _devices
from aioktask.memory.vfio._backend import call, check_limit
from aioktask.memory.vfio._information import SIZE, Information, read_information

__all__ = ["CONTAINER", "Type1"]

CONTAINER = "dev/vfio/vfio"

_GET_API_VERSION = 0x3B64
_CHECK_EXTENSION = 0x3B65
_SET_IOMMU = 0x3B66
_GROUP_GET_STATUS = 0x3B67
_GROUP_SET_CONTAINER = 0x3B68
_GROUP_GET_DEVICE_FD = 0x3B6A
_IOMMU_GET_INFO = 0x3B70
_IOMMU_MAP_DMA = 0x3B71
_IOMMU_UNMAP_DMA = 0x3B72

_API_VERSION = 0
_TYPE1V2_IOMMU = 3
_VIABLE = 1
_READ = 1
_WRITE = 2
# Size, flags, address, iova, bytes.
_MAP = struct.Struct("=IIQQQ")
# Size, flags, iova, bytes: those to unmap, then those that were.
_UNMAP = struct.Struct("=IIQQ")
# Of these many bytes fcntl.ioctl still lets go of the GIL: for about 60 ranges of iovas.
_ROOM = 1024

_HINTS = {
    errno.EEXIST: "some of these iovas are mapped already, and not by this container object",
    errno.EFAULT: "memory that is not mapped or may not be written, or of a file on a disk",
    errno.EINVAL: "iovas that the IOMMU does not translate",
    errno.ENOMEM: f"RLIMIT_MEMLOCK or out of memory; {memlock.WHAT_TO_DO}",
    errno.ENOSPC: "as many mappings as the module parameter dma_entry_limit allows",
}


class Type1:
    """A container, and groups that are in it from `open` to `close`."""

    name = "type1"

    def __init__(self, wanted: Sequence[str | int], root: Path) -> None:
        self._wanted = wanted
        self._root = root
        self._files: list[io.FileIO] = []  # the container, then the groups
        self._groups: dict[int, io.FileIO] = {}
        self.information = Information()

    def open(self) -> None:
        """See `Backend`.

        Raises:
            OSError: ENODEV: a device is not ready for VFIO. EBUSY: a driver of the kernel has
                another device of a group, or the group is in use. EPERM: the IOMMU does not remap
                interrupts. ENOTSUP: the kernel has no such IOMMU. And as open(2).
        """
        numbers = [
            _devices.group_of(each, self._root) if isinstance(each, str) else each
            for each in self._wanted
        ]
        container = libc.open_device(self._root / CONTAINER)
        self._files.append(container)
        version = call(container, _GET_API_VERSION, 0, "VFIO_GET_API_VERSION")
        known = call(container, _CHECK_EXTENSION, _TYPE1V2_IOMMU, "VFIO_CHECK_EXTENSION")
        if version != _API_VERSION or not known:
            raise OSError(
                errno.ENOTSUP,
                f"{os.strerror(errno.ENOTSUP)}: VFIO of API version {version} without "
                f"VFIO_TYPE1v2_IOMMU: modprobe vfio_iommu_type1",
            )
        for number in dict.fromkeys(numbers):
            self._groups[number] = self._join(container, number)
        call(
            container,
            _SET_IOMMU,
            _TYPE1V2_IOMMU,
            "VFIO_SET_IOMMU: EPERM where interrupts are not remapped, unless the module parameter "
            "allow_unsafe_interrupts of vfio_iommu_type1 is set",
        )
        self.information = self._ask()

    def close(self) -> None:
        self._groups.clear()
        # A group leaves the container when its file is closed, and before: the last one unmaps all.
        for file in reversed(self._files):
            file.close()
        self._files.clear()

    def map(self, address: int, iova: int, nbytes: int, *, read: bool, write: bool) -> None:
        flags = (_READ if read else 0) | (_WRITE if write else 0)
        asked = bytearray(_MAP.pack(_MAP.size, flags, address, iova, nbytes))
        what = f"VFIO_IOMMU_MAP_DMA of {nbytes} bytes at {address:#x} to iova {iova:#x}"
        try:
            call(self._files[0], _IOMMU_MAP_DMA, asked, what)
        except OSError as error:
            if error.errno in _HINTS:
                error.add_note(_HINTS[error.errno])
            raise

    def unmap(self, iova: int, nbytes: int) -> None:
        # How much was unmapped says nothing more: afterwards no mapping lies in the range.
        asked = bytearray(_UNMAP.pack(_UNMAP.size, 0, iova, nbytes))
        what = f"VFIO_IOMMU_UNMAP_DMA of {nbytes} bytes from iova {iova:#x}"
        call(self._files[0], _IOMMU_UNMAP_DMA, asked, what)

    def dma_available(self) -> int | None:
        return self._ask().dma_available

    def check_memory_limit(self, nbytes: int) -> None:
        check_limit(memlock.allowance(), nbytes)

    def open_device(self, address: str) -> io.FileIO:
        number = _devices.group_of(address, self._root)
        group = self._groups.get(number)
        if group is None:
            raise ValueError(f"{address} is in group {number}, which this container does not have")
        name = bytearray(address.encode() + b"\0")
        descriptor = call(group, _GROUP_GET_DEVICE_FD, name, f"VFIO_GROUP_GET_DEVICE_FD {address}")
        return io.FileIO(descriptor, "r+")

    def _join(self, container: io.FileIO, number: int) -> io.FileIO:
        if others := _devices.not_given_up(number, self._root):
            raise OSError(
                errno.EBUSY,
                f"{os.strerror(errno.EBUSY)}: drivers of the kernel have devices of group "
                f"{number}: {', '.join(others)}. Unbind all of them or bind them to vfio-pci",
            )
        try:
            group = libc.open_device(self._root / f"dev/vfio/{number}")
        except OSError as error:
            error.add_note(
                f"group {number} is there when a device of it is bound to vfio-pci, and busy while "
                f"another container has it"
            )
            raise
        self._files.append(group)
        status = bytearray(struct.pack("=II", 8, 0))
        call(group, _GROUP_GET_STATUS, status, f"VFIO_GROUP_GET_STATUS of group {number}")
        if not struct.unpack("=II", status)[1] & _VIABLE:
            names = ", ".join(_devices.devices_in(number, self._root))
            raise OSError(
                errno.EBUSY,
                f"{os.strerror(errno.EBUSY)}: group {number} is not viable: all its devices must "
                f"be bound to vfio-pci or to nothing: {names}",
            )
        place = bytearray(struct.pack("=i", container.fileno()))
        call(group, _GROUP_SET_CONTAINER, place, f"VFIO_GROUP_SET_CONTAINER of group {number}")
        return group

    def _ask(self) -> Information:
        room = _ROOM
        while True:
            told = bytearray(room)
            struct.pack_into("=I", told, 0, room)
            call(self._files[0], _IOMMU_GET_INFO, told, "VFIO_IOMMU_GET_INFO")
            (needed,) = struct.unpack_from("=I", told)
            if needed <= room:
                return read_information(bytes(told[: max(needed, SIZE)]))
            room = needed
