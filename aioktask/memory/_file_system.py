# SPDX-License-Identifier: MIT
# What a file is on, as far as allocating storage for it goes: looked at once, when a job is made.
"""The kind of file system behind an open file."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aioktask.memory._kernel import libc
from aioktask.memory._kernel.libc import HUGE_PAGE
from aioktask.memory._kernel.signals import uninterrupted

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

__all__ = ["Place", "descriptor_of"]

# By their numbers in <linux/magic.h>.
_TMPFS = 0x01021994
_KINDS = {0x958458F6: "hugetlbfs", _TMPFS: "tmpfs"}


@dataclass(frozen=True)
class Place:
    """What a file is, and what it is on.

    Attributes:
        identity: Of the file, as long as it is there.
        kind: "hugetlbfs", "tmpfs" or "disk".
        number: Of the kind of file system, as the kernel has it.
        grain: The block: what storage is given in, in bytes.
        reach: In stretches of this the kernel may allocate more than it is asked for.
        writable_only: Whether it may not be read, so not mapped.
        has_storage: Whether anything of it was allocated when this was looked at.
    """

    identity: tuple[int, int]
    kind: str
    number: int
    grain: int
    reach: int
    writable_only: bool
    has_storage: bool

    @classmethod
    def of(cls, file: FileDescriptorLike) -> Place:
        """Look at a file.

        Raises:
            OSError: It is not open for writing.
            TypeError: It is no open file.
            ValueError: It is closed, or not regular.
        """
        descriptor = descriptor_of(file)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"fallocate needs a regular file, and {file!r} is none")
        access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if access == os.O_RDONLY:
            text = f"{os.strerror(errno.EBADF)}: fallocate needs a file that is open for writing"
            raise OSError(errno.EBADF, text)
        number, grain = uninterrupted(libc.fstatfs, descriptor)
        number &= 0xFFFFFFFF  # the kernel's words are signed on some machines
        return cls(
            identity=(status.st_dev, status.st_ino),
            kind=_KINDS.get(number, "disk"),
            number=number,
            grain=grain,
            reach=HUGE_PAGE if number == _TMPFS else grain,
            writable_only=access == os.O_WRONLY,
            has_storage=bool(status.st_blocks),
        )


def descriptor_of(file: FileDescriptorLike) -> int:
    """The descriptor of an open file, or the descriptor itself."""
    if isinstance(file, bool) or not (isinstance(file, int) or hasattr(file, "fileno")):
        raise TypeError(f"fallocate needs an open file or its descriptor, got {file!r}")
    return file if isinstance(file, int) else file.fileno()
