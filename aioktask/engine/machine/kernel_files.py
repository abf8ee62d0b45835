# SPDX-License-Identifier: MIT
# Reading of what the kernel tells in files, below /proc and /sys.
#
# A file that is missing is a fact that is not known, and so is one that may not be read; the latter
# is noted. Only a shortage (of descriptors, of memory) is told apart, since it passes: code that
# acts on changes of what it reads must not take it for one.
"""Readers of the kernel's files that never raise."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from aioktask.engine.machine.denials import note_denial

__all__ = ["read_bytes", "read_text", "try_read"]

# Most of these files are shorter; what is read at a time has to be allocated at its full size.
PART_BYTES = 1 << 13

_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def read_bytes(path: str | Path, name: str = "") -> bytes:
    """The contents of a file, empty if it cannot be read.

    Args:
        path: The file.
        name: What a denial is noted as; by default the path.
    """
    return try_read(path, name) or b""


def read_text(path: str | Path, name: str = "") -> str:
    """The text of a file, empty if it cannot be read; see `read_bytes`."""
    return os.fsdecode(read_bytes(path, name))


def try_read(path: str | Path, name: str = "") -> bytes | None:
    """The contents of a file as by `read_bytes`, but None where only a shortage was in the way."""
    try:
        # By its name: without memory, the interpreter takes a Path for something that is no path.
        with open(str(path), "rb", buffering=0) as file:
            parts = []
            while part := file.read(PART_BYTES):
                parts.append(part)
        return b"".join(parts)
    except OSError as error:
        note_denial(f"read {name or path}", error.errno)
        return None if error.errno in _SHORTAGES else b""
    except ValueError:  # a malformed path, with a null byte
        return b""
    except MemoryError:
        return None
