# SPDX-License-Identifier: MIT
# What a user-space driver begins with: devices taken from the kernel, in one address space.
#
# Of the two ways that the kernel has, type1 is taken where there is a choice: it is there on every
# kernel, and tells how much may be locked and mapped still.
#
# All that is made through a container is left with it: mappings and devices are kept here until
# they are closed. A fork's child has the same open files as its parent. So there, leaving closes
# the child's descriptors and does not unmap.
"""`Container`: an IOMMU's address space for devices."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, SupportsIndex

from aioktask.checks import check_flag, check_name, integer, nice_value
from aioktask.engine.api.coordinator import Coordinator
from aioktask.job import Job
from aioktask.memory._buffer import Buffer
from aioktask.memory._holding import Holding, Steps
from aioktask.memory._populate import check_kernel_can_populate
from aioktask.memory.vfio._backend import Backend
from aioktask.memory.vfio._device import Device
from aioktask.memory.vfio._devices import device_or_group
from aioktask.memory.vfio._iommufd import IOMMU, Iommufd
from aioktask.memory.vfio._mapping import Mapping
from aioktask.memory.vfio._space import Taken, check_place
from aioktask.memory.vfio._type1 import CONTAINER, Type1

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["Container"]

_ROOT = Path("/")
_BACKENDS: dict[str, Callable[[Sequence[str | int], Path], Backend]] = {
    "type1": Type1,
    "iommufd": Iommufd,
}


class Container(Holding):
    """Devices in one address space of the IOMMU, held from entering to leaving.

    The devices must be bound to vfio-pci before, which needs root. Use it with ``async with`` or
    ``with``, or by plain calls: ``container = await Container(...)`` and
    ``await container.aclose()``, or in a thread ``container = Container(...).open()`` and
    ``container.close()``.

    Leaving unmaps and closes what was mapped and opened through it and is open still.

    A fork's child inherits the descriptors. Leaving there closes them and unmaps nothing; nothing
    can be mapped there. As long as the child has them open, the container lives on in the kernel.

    Args:
        devices: One or more: the PCI address of a device, whose whole group is taken, or the number
            of a group.
        iommu: "type1": by /dev/vfio/vfio; "iommufd": by /dev/iommu. None: type1 where it is there,
            else iommufd.
        coordinator: Of the job that opens it.

    Raises:
        TypeError: A device is neither a string nor an integer.
        ValueError: No device, no PCI address, no such `iommu`.
        OSError: On entering: ENODEV: a device is not bound to vfio-pci (the message says what has
            it and how to bind), or there is none; EBUSY: other devices of the group are not given
            up by their drivers, or it is in use elsewhere; EPERM, EACCES: not for this process.

    Example::

        async with vfio.Container("0000:00:08.0") as container:
            async with container.map(memory, iova=1 << 30), container.device("0000:00:08.0") as it:
                registers = mmap.mmap(it.fileno(), ...)
    """

    def __init__(
        self,
        *devices: str | SupportsIndex,
        iommu: Literal["type1", "iommufd"] | None = None,
        coordinator: Coordinator | None = None,
    ) -> None:
        super().__init__(coordinator)
        if not devices:
            raise ValueError("a container needs at least one device or group, got none")
        if iommu is not None and iommu not in _BACKENDS:
            raise ValueError(f"iommu must be 'type1' or 'iommufd', got {iommu!r}")
        self._devices = tuple(device_or_group(each) for each in devices)
        self._iommu = iommu
        self._backend: Backend = Type1(self._devices, _ROOT)
        self._process = 0
        # Guarded by _lock, as _state is.
        self._taken = Taken()
        self._held: dict[Holding, None] = {}

    def __repr__(self) -> str:
        return f"<Container of {', '.join(map(str, self._devices))}: {self._state}>"

    @property
    def iommu(self) -> str:
        """By which way: "type1" or "iommufd".

        Raises:
            RuntimeError: It is not open.
        """
        self._check_open()
        return self._backend.name

    @property
    def page_sizes(self) -> tuple[int, ...]:
        """The page sizes of the IOMMU, in bytes, ascending; of iommufd only the smallest.

        Raises:
            RuntimeError: It is not open.
        """
        self._check_open()
        return self._backend.information.page_sizes

    @property
    def iova_ranges(self) -> tuple[range, ...]:
        """The iovas that may be mapped; all where the kernel does not tell.

        A range may be longer than `len` takes: use its `start` and `stop`.

        Raises:
            RuntimeError: It is not open.
        """
        self._check_open()
        return self._backend.information.iova_ranges

    def dma_available(self) -> int | None:
        """How many more mappings the kernel would make; None where it does not tell.

        `map` makes one for each of its pieces. Waits for a piece that is being mapped.

        Raises:
            RuntimeError: It is not open.
        """
        self._check_open()
        return self._backend.dma_available()

    def map(
        self,
        buffer: ReadableBuffer,
        iova: SupportsIndex,
        *,
        read: bool = True,
        write: bool = True,
        chunk: SupportsIndex | None = None,
        nice: SupportsIndex = 0,
        max_threads: SupportsIndex | None = None,
        name: str | None = None,
        coordinator: Coordinator | None = None,
    ) -> Mapping:
        """Memory that the container's devices may access while it is held.

        Its pages are made resident by several threads and then mapped by one, in pieces, so that
        others who map in this container do not wait long. They stay where they are while they are
        mapped. Nothing is done before it is entered, awaited or opened.

        Args:
            buffer: Contiguous memory in whole pages: an array, mmap, memoryview. `Region.buffer`
                of `memory.allocate` is best; huge pages are mapped fastest, and where iova and
                address are as far from a multiple of theirs, the IOMMU has them too.
            iova: Where the devices see the first byte.
            read: Whether the devices may read it.
            write: Whether they may write it.
            chunk: Fixes the size of the pieces, which are cut at multiples of it in the process's
                addresses, in bytes. By default 64 MiB, or one huge page where that is more.
            nice: Of the jobs; see `Job`.
            max_threads: Of the job that populates; see `Job`.
            name: Of the jobs, with ".check", ".populate", ".map" and ".unmap" behind it;
                "memory.vfio.map" by default.
            coordinator: Of the jobs that populate and map.

        Raises:
            RuntimeError: The container is not open.
            TypeError: `buffer` has no buffer protocol, or holds references to Python objects; an
                argument of the wrong kind.
            ValueError: The buffer is empty, not contiguous, not in whole pages, or read-only while
                `write`; iovas that are not aligned, beyond 64 bits, or not in `iova_ranges`;
                neither `read` nor `write`; or an argument that `Job` refuses.
            OSError: ENOSYS: the kernel is older than Linux 5.14 or no Linux. On entering, and then
                nothing is mapped that was not before: EEXIST: some of the iovas are mapped already;
                ENOMEM: RLIMIT_MEMLOCK would be exceeded and the process lacks CAP_IPC_LOCK, or
                there is no memory; ENOSPC: too many mappings; any errno of the kernel's calls.
        """
        self._check_open()
        if not check_flag("read", read) | check_flag("write", write):
            raise ValueError("a mapping needs read or write, or both")
        held = Buffer(buffer, "vfio map", writable=write)
        place = integer("iova", iova, least=0)
        page = self.page_sizes[0]
        ranges = self.iova_ranges
        check_place(place, held.address, held.nbytes, page=page, allowed=ranges)
        pieces = None if chunk is None else integer("chunk", chunk, least=1)
        if pieces is not None and pieces % page:
            raise ValueError(f"chunk must be a multiple of the IOMMU's page of {page}, got {chunk}")
        check_kernel_can_populate("vfio map")
        return Mapping(
            self,
            held,
            place,
            read=read,
            write=write,
            chunk=pieces,
            options={"nice": nice_value("nice", nice), "max_threads": max_threads},
            name="memory.vfio.map" if name is None else check_name(name),
            coordinator=coordinator,
        )

    def device(self, address: str, *, coordinator: Coordinator | None = None) -> Device:
        """One of the devices, open while it is held.

        Args:
            address: Its PCI address.
            coordinator: Of the job that opens it.

        Raises:
            RuntimeError: The container is not open.
            TypeError: `address` is no string.
            ValueError: It is no PCI address; on entering: the container does not have the device.
            OSError: On entering: as the kernel.
        """
        self._check_open()
        if not isinstance(address, str):
            raise TypeError(f"a device must be a PCI address as '0000:00:08.0', got {address!r}")
        return Device(self, str(device_or_group(address)), coordinator)

    @property
    def _inherited(self) -> bool:
        return self._process != os.getpid()

    def _hold(self, held: Holding, iovas: range | None = None) -> None:
        """Keep something until it is let go of, and its iovas from others.

        Raises:
            FileExistsError: Some of the iovas are another mapping's.
            RuntimeError: This is not open, or was opened by the process that this one is a fork of.
        """
        with self._lock:
            # Noted first, and only then asked: a finalizer that closes this in a line after that
            # finds what is held, and is refused; one that did before is found out by the question.
            self._held[held] = None
            kept = False
            try:
                self._check_open()
                if self._inherited:
                    raise RuntimeError("this Container was opened by the parent of this process")
                other = None if iovas is None else self._taken.add(iovas)
                kept = other is None
            finally:
                if not kept:
                    self._held.pop(held, None)
        if other is None:
            return
        raise FileExistsError(
            errno.EEXIST,
            f"{os.strerror(errno.EEXIST)}: this container maps iova {other.start:#x} to "
            f"{other.stop - 1:#x} already: close that mapping or choose other iovas",
        )

    def _let_go(self, held: Holding, iovas: range | None = None) -> None:
        with self._lock:
            if self._held.pop(held, held) is None and iovas is not None:
                self._taken.remove(iovas)

    def _taking(self) -> Steps:
        self._process = os.getpid()
        try:
            yield Job(self._open_files, 1, name="memory.vfio.open")
        except BaseException:
            yield Job(self._close_files, 1, name="memory.vfio.close")
            raise

    def _giving_back(self) -> Steps:
        with self._lock:
            held = list(self._held)
        # Devices first, which then do no more DMA.
        for each in sorted(held, key=lambda each: not isinstance(each, Device)):
            yield from _closed_with(each)
        yield Job(self._close_files, 1, name="memory.vfio.close")

    def _open_files(self, _start: int, _stop: int) -> None:
        iommu = self._iommu
        if iommu is None:
            iommu = "type1" if (_ROOT / CONTAINER).exists() else "iommufd"
            if iommu == "iommufd" and not (_ROOT / IOMMU).exists():
                raise OSError(
                    errno.ENODEV,
                    f"{os.strerror(errno.ENODEV)}: neither /{CONTAINER} nor /{IOMMU} is there: "
                    f"modprobe vfio-pci, on a machine with an IOMMU that is switched on",
                )
        self._backend = _BACKENDS[iommu](self._devices, _ROOT)
        self._backend.open()

    def _close_files(self, _start: int, _stop: int) -> None:
        self._backend.close()


def _closed_with(held: Holding) -> Steps:
    """Close something, as its own `aclose` does."""
    if held._begins_to_close():
        try:
            yield from held._closing()
        finally:
            if held._state == "closing":
                held._state = "open"
