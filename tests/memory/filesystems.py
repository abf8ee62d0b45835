# SPDX-License-Identifier: MIT
# Small file systems for a test, mounted for as long as it needs them, and what the kernel says of
# the storage of a file on them.
#
# As root they are mounted on a folder of the test's own, disk file systems from an image in a file;
# where that is not possible the test is skipped with the reason. They are unmounted also when the
# test failed; of a test run that is killed the mount stays.

from __future__ import annotations

import array
import errno
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aioktask.memory._kernel import libc

__all__ = ["CANNOT", "block_of", "has_extents", "mounted", "storage"]

MIB = 1 << 20
# The smallest that the tools make, and some blocks that are not of a page's size.
DISKS = {
    "ext4": (16 * MIB, ["mkfs.ext4", "-q", "-F", "-b", "1024"]),
    "xfs": (300 * MIB, ["mkfs.xfs", "-q", "-f"]),
    "btrfs": (128 * MIB, ["mkfs.btrfs", "-q", "-f"]),
}
FIEMAP = 0xC020660B
TMPFS = 0x01021994
# What says that the machine or the user may not do this, rather than that something is wrong.
CANNOT = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENODEV, errno.ENOENT, errno.ENXIO)


@contextmanager
def mounted(kind: str, folder: Path, options: str = "") -> Iterator[Path]:
    """A file system of its own, "tmpfs", "hugetlbfs" or one of DISKS, on a folder below `folder`.

    Skips the test, with the reason, where it cannot be had.
    """
    if os.geteuid() != 0:
        pytest.skip(f"mounting a {kind} needs root")
    place = folder / f"mount-of-{kind}"
    place.mkdir()
    command = ["mount", "-t", kind]
    if kind in DISKS:
        options = ",".join(["loop", *options.split(",")] if options else ["loop"])
        source = str(_image(kind, folder))
    else:
        source = "none"
    command += ["-o", options] if options else []
    _run(kind, [*command, source, str(place)])
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _image(kind: str, folder: Path) -> Path:
    nbytes, command = DISKS[kind]
    image = folder / f"image-of-{kind}"
    with image.open("wb") as file:
        file.truncate(nbytes)
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}, which is not installed")
    _run(kind, [*command, str(image)])
    return image


def _run(kind: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr or done.stdout).strip()
        pytest.skip(f"no {kind} can be had here: {' '.join(command)}: {why}")


def storage(file: int) -> list[int]:
    """The blocks of a file that are allocated, written or not, by their numbers.

    On tmpfs and where there is FIEMAP; asked in another way than by what is tested.
    """
    block = block_of(file)
    if libc.fstatfs(file)[0] != TMPFS:
        return [
            number
            for start, stop in _extents(file)
            for number in range(start // block, -(-stop // block))
        ]
    step = 64 * block
    limit = max(os.fstat(file).st_size, 4 * MIB) + 2 * MIB
    found = [
        number
        for start in range(0, limit, step)
        if any(libc.cached_pages(file, start, step))
        for number in range(start // block, (start + step) // block)
        if any(libc.cached_pages(file, number * block, block))
    ]
    assert sum(libc.cached_pages(file, 0, 0)) == len(found), "a page lies further out"
    return found


def _extents(file: int) -> list[tuple[int, int]]:
    asked = array.array("B", struct.pack("=QQLLLL", 0, 1 << 62, 1, 0, 4000, 0) + bytes(4000 * 56))
    fcntl.ioctl(file, FIEMAP, asked)
    count = struct.unpack_from("=L", asked, 20)[0]
    assert count < 4000
    found = [struct.unpack_from("=QQQ", asked, 32 + 56 * index) for index in range(count)]
    return [(start, start + length) for start, _, length in found]


def has_extents(folder: Path) -> bool:
    """Whether FIEMAP tells of the files in a folder."""
    file = os.open(folder, os.O_TMPFILE | os.O_RDWR)
    try:
        _extents(file)
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def block_of(file: int) -> int:
    return libc.fstatfs(file)[1]
