# SPDX-License-Identifier: MIT
# What CPUs and threads were doing lately: who was idle, who waited.
#
# Readers over a root path, so that a test can show them any machine. They never raise because of
# what they find: what cannot be read is not known, None. Relies on the formats of /proc/stat, of
# /proc/pressure/cpu (PSI) and of /proc/PID/task/TID/schedstat; off Linux nothing is known.
"""Idle time, pressure and run delay."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

__all__ = ["idle_ns", "pressure_us", "thread_times_ns"]

_ROOT = Path("/")
# One unit of /proc/stat, USER_HZ.
_TICK_NS = 1_000_000_000 // (os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100)


def idle_ns(cpus: Collection[int], root: Path = _ROOT) -> int | None:
    """How long these CPUs have been idle in all, waits for a disk included."""
    idle = found = 0
    for line in _read(root / "proc/stat").split(b"\n"):
        if not line.startswith(b"cpu"):
            break
        name, *figures = line.split()
        if name[3:].isdigit() and int(name[3:]) in cpus and len(figures) > 4:
            idle += int(figures[3]) + int(figures[4])
            found += 1
    return idle * _TICK_NS if found else None


def pressure_us(root: Path = _ROOT) -> int | None:
    """How long, in all, some thread of the machine could run and had no CPU."""
    for line in _read(root / "proc/pressure/cpu").split(b"\n"):
        if line.startswith(b"some "):
            _, found, total = line.partition(b"total=")
            return int(total) if found and total.isdigit() else None
    return None


def thread_times_ns(threads: Iterable[int], root: Path = _ROOT) -> dict[int, tuple[int, int]]:
    """How long each thread of this process ran, and how long it could run and had no CPU.

    Those that have ended, and those of which it cannot be read, are left out.
    """
    times = {}
    for thread in threads:
        words = _read(root / f"proc/self/task/{thread}/schedstat").split()
        if len(words) >= 2 and words[0].isdigit() and words[1].isdigit():
            times[thread] = int(words[0]), int(words[1])
    return times


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            parts = []
            while part := file.read(1 << 16):
                parts.append(part)
        return b"".join(parts)
    except OSError:
        return b""
