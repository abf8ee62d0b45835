# SPDX-License-Identifier: MIT
# What the two ways to an IOMMU have in common: the face that a container needs, and the call.
#
# The numbers and structures are those of <linux/vfio.h> and <linux/iommufd.h>. Calls may sleep, on
# the lock of the IOMMU's address space above all, so they are made by jobs.
"""The kernel's side of a container."""

from __future__ import annotations

import errno
import io
import os
from typing import Protocol

from aioktask.memory._kernel import libc, memlock
from aioktask.memory.vfio._information import Information

__all__ = ["Backend", "call", "check_limit"]


class Backend(Protocol):
    """A way to an IOMMU. Errors are OSErrors with the kernel's errno."""

    @property
    def name(self) -> str:
        """What a user calls it."""

    @property
    def information(self) -> Information:
        """What the IOMMU can do, once this is open."""

    def open(self) -> None:
        """Take the devices. When this fails, `close` puts back what was taken."""

    def close(self) -> None:
        """Give the devices back; the kernel unmaps what is mapped. May be repeated."""

    def map(self, address: int, iova: int, nbytes: int, *, read: bool, write: bool) -> None:
        """Map memory. When this fails, none of it is mapped by this call."""

    def unmap(self, iova: int, nbytes: int) -> None:
        """Unmap what lies in the range, whole mappings only. That there is none is no error."""

    def dma_available(self) -> int | None:
        """How many more mappings may be made; None when there is no limit that is told."""

    def check_memory_limit(self, nbytes: int) -> None:
        """Refuse to pin so many bytes where it is known that the kernel would."""

    def open_device(self, address: str) -> io.FileIO:
        """Open one of the devices."""


def call(file: io.FileIO, request: int, argument: bytearray | int, what: str) -> int:
    """Call ioctl(2) until no signal interrupts it.

    An interrupted call has done nothing. Python's signal handlers have run in between: what one of
    them raises goes on from here.

    Raises:
        OSError: With a note of what was asked for.
    """
    while True:
        try:
            return libc.ioctl(file.fileno(), request, argument)
        except InterruptedError:
            continue
        except OSError as error:
            error.add_note(what)
            raise


def check_limit(known: memlock.Allowance, nbytes: int) -> None:
    """Refuse to pin more than a process may.

    Raises:
        OSError: ENOMEM, with the figures.
    """
    if known.refusal(nbytes) is not None:
        raise OSError(
            errno.ENOMEM,
            f"{os.strerror(errno.ENOMEM)}: {nbytes} bytes were to be pinned, {known.locked} are "
            f"locked in this process, and RLIMIT_MEMLOCK allows {known.limit}: "
            f"{memlock.WHAT_TO_DO}",
        )
