# SPDX-License-Identifier: MIT
# What CPUs and threads were doing lately: who was idle, who waited.
#
# Readers over a root path, so that a test can show them any machine. They never raise because of
# what they find: what cannot be read is not known, None. Relies on the formats of /proc/stat, of
# /proc/pressure/cpu (PSI), and of schedstat and stat in /proc/PID/task/TID; off Linux nothing is
# known.
"""Idle time, pressure and run delay."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from aioktask.engine.machine.kernel_files import read_bytes

__all__ = [
    "CpuLoad",
    "idle_ns",
    "pressure_us",
    "sleeping_threads",
    "thread_runs",
    "thread_times_ns",
]

_ROOT = Path("/")
# One unit of /proc/stat, USER_HZ.
_TICK_NS = 1_000_000_000 // (os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100)


@dataclass(frozen=True, slots=True)
class CpuLoad:
    """What CPUs and background threads did between two samples.

    Attributes:
        elapsed_ns: The nanoseconds between the samples.
        idle_ns: CPU time that nobody used, of the CPUs that this process may use.
        used_ns: CPU time of the threads that serve background jobs.
        delay_ns: How long these were kept from a CPU although they could run.
    """

    elapsed_ns: int
    idle_ns: int
    used_ns: int
    delay_ns: int


def idle_ns(cpus: Collection[int], root: Path = _ROOT) -> int | None:
    """How long these CPUs have been idle in all, waits for a disk included."""
    idle = found = 0
    for line in read_bytes(root / "proc/stat").split(b"\n"):
        if not line.startswith(b"cpu"):
            break
        name, *figures = line.split()
        if name[3:].isdigit() and int(name[3:]) in cpus and len(figures) > 4:
            idle += int(figures[3]) + int(figures[4])
            found += 1
    return idle * _TICK_NS if found else None


def pressure_us(root: Path = _ROOT) -> int | None:
    """How long, in all, some thread of the machine could run and had no CPU."""
    for line in read_bytes(root / "proc/pressure/cpu").split(b"\n"):
        if line.startswith(b"some "):
            _, found, total = line.partition(b"total=")
            return int(total) if found and total.isdigit() else None
    return None


def thread_times_ns(threads: Iterable[int], root: Path = _ROOT) -> dict[int, tuple[int, int]]:
    """How long each thread of this process ran, and how long it could run and had no CPU.

    What is left out is told at `thread_runs`.
    """
    return {
        thread: (ran, waited) for thread, (ran, waited, _) in thread_runs(threads, root).items()
    }


def thread_runs(threads: Iterable[int], root: Path = _ROOT) -> dict[int, tuple[int, int, int]]:
    """How long each thread of this process ran, waited for a CPU, and how often it was run.

    Threads that have ended, that were never run, and those whose times cannot be read are left out;
    a kernel that does not count tells of all that they were never run. What a thread runs or waits
    at this moment may be missing: the kernel adds a wait when the thread gets its CPU, and a run at
    its ticks.
    """
    runs = {}
    for thread in threads:
        words = read_bytes(
            root / f"proc/self/task/{thread}/schedstat", "/proc/self/task/TID/schedstat"
        ).split()[:3]
        if len(words) == 3 and all(word.isdigit() for word in words) and int(words[2]):
            runs[thread] = int(words[0]), int(words[1]), int(words[2])
    return runs


def sleeping_threads(threads: Iterable[int], root: Path = _ROOT) -> set[int]:
    """Those threads of this process that sleep in the kernel, and so neither run nor could run.

    Threads that have ended, and those whose state cannot be read, are not among them.
    """
    sleeping = set()
    for thread in threads:
        line = read_bytes(root / f"proc/self/task/{thread}/stat", "/proc/self/task/TID/stat")
        _, found, rest = line.rpartition(b")")  # the name before it may have any characters
        if found and rest[:2] in (b" S", b" D"):
            sleeping.add(thread)
    return sleeping
