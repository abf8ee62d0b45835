# SPDX-License-Identifier: MIT
# QEMU's `edu` device, driven from user space: it copies between memory and a buffer of its own, to
# and from the iovas it is told, below 256 MiB. So it shows what is mapped, byte by byte.
#
# The layout of its registers is that of docs/specs/edu.rst in QEMU.
"""A driver of the `edu` device, and its binding to vfio-pci."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from aioktask.memory.vfio import Device
from tests.support.patience import PATIENCE

__all__ = ["ADDRESSES", "TRANSFER", "Edu", "bound_to_vfio"]

ADDRESSES = ("0000:00:08.0", "0000:00:09.0")
# At most: the whole buffer, of 4096 bytes, aborts QEMU 7.2.
TRANSFER = 2048

_PCI = Path("/sys/bus/pci")
_GET_REGION_INFO = 0x3B6C
_REGISTERS = 0
_CONFIGURATION = 7
# Size, flags, index, where its capabilities are, bytes, where it lies in the file.
_REGION = struct.Struct("=IIIIQQ")
_COMMAND = 4
_MEMORY_AND_MASTER = 6

_IDENTIFICATION = 0x00
_SOURCE, _DESTINATION, _COUNT, _GO = 0x80, 0x88, 0x90, 0x98
_START, _TO_MEMORY = 1, 2
_BUFFER = 0x40000


@contextlib.contextmanager
def bound_to_vfio(*addresses: str) -> Iterator[None]:
    """The devices, which no driver has, with vfio-pci for a while."""
    try:
        for address in addresses:
            (_PCI / "devices" / address / "driver_override").write_text("vfio-pci")
            (_PCI / "drivers_probe").write_text(address)
        yield
    finally:
        for address in addresses:
            device = _PCI / "devices" / address
            if (device / "driver").exists():
                (device / "driver/unbind").write_text(address)
            (device / "driver_override").write_text("\n")


class Edu:
    """An open `edu` device, allowed to access memory, until it is left.

    Its registers are mapped meanwhile, and the kernel keeps the device open for as long.
    """

    def __init__(self, device: Device) -> None:
        file = device.fileno()
        _, configuration = _region(file, _CONFIGURATION)
        place = configuration + _COMMAND
        (command,) = struct.unpack("<H", os.pread(file, 2, place))
        os.pwrite(file, struct.pack("<H", command | _MEMORY_AND_MASTER), place)
        size, begin = _region(file, _REGISTERS)
        self._registers = mmap.mmap(file, size, offset=begin)
        assert self._word(_IDENTIFICATION) & 0xFF == 0xED

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._registers.close()

    def read(self, iova: int, nbytes: int = TRANSFER) -> None:
        """Copy bytes from an iova to the device's own buffer."""
        self._copy(iova, _BUFFER, nbytes, 0)

    def write(self, iova: int, nbytes: int = TRANSFER) -> None:
        """Copy bytes from the device's own buffer to an iova."""
        self._copy(_BUFFER, iova, nbytes, _TO_MEMORY)

    def _copy(self, source: int, destination: int, nbytes: int, direction: int) -> None:
        assert nbytes <= TRANSFER
        for register, value in ((_SOURCE, source), (_DESTINATION, destination), (_COUNT, nbytes)):
            self._put(register, value)
        self._put(_GO, direction | _START)
        deadline = time.monotonic() + PATIENCE
        while self._word(_GO) & _START:
            assert time.monotonic() < deadline, "the device never ended its copy"
            os.sched_yield()

    # One access each: an ordinary copy may read and write a register byte by byte.

    def _word(self, register: int) -> int:
        return ctypes.c_uint32.from_buffer(self._registers, register).value

    def _put(self, register: int, value: int) -> None:
        ctypes.c_uint64.from_buffer(self._registers, register).value = value


def _region(file: int, index: int) -> tuple[int, int]:
    asked = bytearray(_REGION.pack(_REGION.size, 0, index, 0, 0, 0))
    fcntl.ioctl(file, _GET_REGION_INFO, asked)
    _, _, _, _, size, begin = _REGION.unpack(asked)
    return size, begin
