# SPDX-License-Identifier: MIT
# An open device of a container, for the driver that the user writes.
"""A device's file descriptor, held."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from aioktask.engine.api.coordinator import Coordinator
from aioktask.job import Job
from aioktask.memory._holding import Holding, Steps

if TYPE_CHECKING:
    from aioktask.memory.vfio._container import Container

__all__ = ["Device"]


class Device(Holding):
    """A device that is open from entering to leaving: what `Container.device` returns.

    What one does with it is up to its driver: ``os.pread(device.fileno(), ...)`` reads its
    configuration, ``mmap.mmap(device.fileno(), ...)`` maps its registers. Opening may reset the
    device, and so may closing: both are done on a helper.

    Leaving the container leaves its devices too. But the kernel keeps the device open, and the
    container with all that it maps, for as long as its registers are mapped: unmap them before.

    Attributes:
        address: Of the device on the PCI bus.
    """

    def __init__(self, container: Container, address: str, coordinator: Coordinator | None) -> None:
        super().__init__(coordinator)
        self.address = address
        self._container = container
        self._file: io.FileIO | None = None

    def __repr__(self) -> str:
        return f"<Device {self.address}: {self._state}>"

    def fileno(self) -> int:
        """The descriptor of the device's file.

        Raises:
            RuntimeError: It is not open.
        """
        self._check_open()
        assert self._file is not None
        return self._file.fileno()

    def _taking(self) -> Steps:
        self._container._hold(self)
        try:
            yield Job(self._open_file, 1, name="memory.vfio.device.open")
        except BaseException:
            yield from self._giving_back()
            raise

    def _giving_back(self) -> Steps:
        if self._file is not None:
            yield Job(self._close_file, 1, name="memory.vfio.device.close")
        self._container._let_go(self)

    def _open_file(self, _start: int, _stop: int) -> None:
        self._file = self._container._backend.open_device(self.address)

    def _close_file(self, _start: int, _stop: int) -> None:
        if self._file is not None:
            self._file.close()
