# SPDX-License-Identifier: MIT
# A stock Debian kernel made ready to boot: unpacked, its modules chosen, an initramfs around them.
#
# Pure readers and writers of three formats: the kernel's boot protocol (Documentation/arch/x86/
# boot.rst), the `.modinfo` section of a module, and the newc archive that an initramfs is
# (Documentation/driver-api/early-userspace/buffer-format.rst). None of it needs root, depmod or
# cpio. The archive is not compressed: an emulated CPU unpacks slowly, and loads 20 MB in no time.
"""The guest's kernel, its modules and its initramfs."""

from __future__ import annotations

import lzma
import re
import stat
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["archive", "modules_with_dependencies", "tree_in_archive", "vmlinux"]

_XZ = b"\xfd7zXZ\x00"


def vmlinux(bzimage: bytes) -> bytes:
    """The kernel as an ELF file, out of the self-extracting one: 4 s less to boot, emulated.

    One that is not compressed with xz, as Debian's is, comes back as it is; it boots as well.
    """
    # An old loader's convention: no sectors of setup code means four.
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = bzimage[start : start + length]
    if not payload.startswith(_XZ):
        return bzimage
    # What follows the stream is the unpacked size, which an LZMADecompressor leaves alone.
    return lzma.LZMADecompressor().decompress(payload)


def modules_with_dependencies(tree: Path, wanted: Iterable[str]) -> list[tuple[str, bytes]]:
    """Modules and all they depend on, in an order in which they can be loaded.

    Args:
        tree: Where the modules lie, in any folders, compressed with xz or not.
        wanted: Names, with `_` for `-`. What the kernel has built in is passed over.
    """
    files = {
        match[1].replace("-", "_"): path
        for path in sorted(tree.rglob("*.ko*"))
        if (match := re.fullmatch(r"(.+)\.ko(\.xz)?", path.name))
    }
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered or name not in files:
            return
        data = files[name].read_bytes()
        if data.startswith(_XZ):
            data = lzma.decompress(data)
        for dependency in _dependencies(data):
            add(dependency)
        ordered[name] = data

    for name in wanted:
        add(name)
    return list(ordered.items())


def _dependencies(module: bytes) -> list[str]:
    found = re.search(rb"\x00depends=([^\x00]*)\x00", module)
    names = found[1].decode().replace("-", "_") if found else ""
    return [name for name in names.split(",") if name]


Entry = tuple[str, int, float, bytes]
"""A member of an archive: its name, `st_mode`, time of change, contents."""


def archive(entries: Iterable[Entry]) -> bytes:
    """An initramfs of these files and folders; the folders a name needs are made."""
    out = bytearray()
    known: set[str] = set()

    def member(number: int, name: str, mode: int, changed: float, data: bytes) -> None:
        encoded = name.encode() + b"\0"
        # inode, mode, uid, gid, links, time, size, four device numbers, length of name, checksum
        fields = (number, mode, 0, 0, 1, int(changed), len(data), 0, 0, 0, 0, len(encoded), 0)
        out.extend(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)
        out.extend(b"\0" * (-len(out) % 4) + data)
        out.extend(b"\0" * (-len(out) % 4))

    for name, mode, changed, data in entries:
        folders = [str(folder) for folder in Path(name).parents if str(folder) != "."]
        for folder in reversed(folders):
            if folder not in known:
                known.add(folder)
                member(len(known), folder, stat.S_IFDIR | 0o755, changed, b"")
        if name not in known:
            known.add(name)
            member(len(known), name, mode, changed, data)
    member(0, "TRAILER!!!", 0, 0, b"")
    return bytes(out)


def tree_in_archive(path: Path, name: str) -> Iterator[Entry]:
    """A file, or a folder with all that is in it, as it is to be called in the archive."""
    for found in [path, *sorted(path.rglob("*"))] if path.is_dir() else [path]:
        status = found.stat()
        data = found.read_bytes() if found.is_file() else b""
        within = found.relative_to(path)
        yield (str(name / within), status.st_mode, status.st_mtime, data)
