# SPDX-License-Identifier: MIT
# Reading of what the kernel tells in files, below /proc and /sys.
"""Readers of the kernel's files that never raise."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["read_bytes", "read_text"]


def read_bytes(path: Path) -> bytes:
    """The contents of a file, empty if it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            parts = []
            while part := file.read(1 << 16):
                parts.append(part)
        return b"".join(parts)
    except (OSError, ValueError):  # ValueError: a malformed path, with a null byte
        return b""


def read_text(path: Path) -> str:
    """The text of a file, empty if it cannot be read."""
    return os.fsdecode(read_bytes(path))
