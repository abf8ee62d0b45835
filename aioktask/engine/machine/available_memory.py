# SPDX-License-Identifier: MIT
# How much memory this process could still take: by the limits of its cgroups and by the machine.
#
# Readers over a root path, so that a test can show them any machine. They never raise because of
# what they find: what is missing or malformed is a limit that is not known, and off Linux nothing
# is known. Relies on the formats of cgroups v1 and v2, of /proc/meminfo, and of pressure files.
#
# What the kernel's documentation says of them (admin-guide/cgroup-v2, cgroup-v1/memory,
# filesystems/proc, accounting/psi), and what follows here:
#
# - `memory.max` is the limit beyond which processes are killed, `memory.high` one beyond which they
#   are throttled and have to reclaim: either bounds. `memory.current`, which is compared with both,
#   counts the cgroup and all below it, and so does `memory.stat`. In v1 these are
#   `memory.limit_in_bytes`, `memory.usage_in_bytes` and the `total_` lines of `memory.stat`; a
#   limit of memory and swap together (`memory.memsw`) is there beside it.
# - The usage has the page cache in it. Pages of files stand in the lists `inactive_file` and
#   `active_file`, from which the kernel takes them back before it kills; tmpfs and shared memory
#   do not (they are in the lists of anonymous memory), nor does what is locked. What is dirty, or
#   being written, has to reach a disk first. So what is left is the limit, less the usage, plus
#   both lists, less what is dirty or being written.
# - `MemAvailable` is the kernel's own estimate, of the same kind, for the machine.
# - A pressure file tells how long some task could not go on for want of memory: the reclaim, or
#   the reading in anew, of what it uses. That of the own cgroup is about tasks of this process
#   and those beside it, whichever limit stops them. That of the machine is about all cgroups, also
#   one that is at a limit of its own: so it counts only where the machine's memory is short too.
"""The memory that is left, and memory pressure, read from /proc and /sys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from aioktask.engine.machine.cgroups import own_directories
from aioktask.engine.machine.kernel_files import try_read

__all__ = ["AvailableMemory", "MemoryLimit", "MemoryWatch"]

# By the type of the file system: the limits of a cgroup, each with the usage that it bounds.
_LIMITS = {
    "cgroup2": (("memory.max", "memory.current"), ("memory.high", "memory.current")),
    "cgroup": (
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"),
    ),
}
# The same for the lines of `memory.stat`: what can be taken back, and what of it cannot at once.
_RECLAIMABLE = {
    "cgroup2": (("inactive_file", "active_file"), ("file_dirty", "file_writeback")),
    "cgroup": (("total_inactive_file", "total_active_file"), ("total_dirty", "total_writeback")),
}
# No limit at all is the largest number of pages in v1; no machine comes near to this.
_NO_LIMIT = 1 << 60

_AMOUNTS = re.compile(r"^(\w+): +([0-9]{1,15}) kB$", re.MULTILINE)
_COUNTERS = re.compile(r"^(\w+) ([0-9]{1,20})$", re.MULTILINE)
_NUMBER = re.compile(r"[0-9]{1,20}\n?")
_PRESSURE = re.compile(r"^some avg10=([0-9]{1,3}\.[0-9]{1,2}) .*total=([0-9]{1,18})$", re.MULTILINE)

# Memory is short where tasks stalled for so much of the time; by the average over 10 s that the
# kernel gives where the last look was longer ago than that average is good for.
STALLED_SHARE = 0.1
LEAST_WINDOW_NS = 100_000_000
MOST_WINDOW_NS = 2_000_000_000


class MemoryLimit(NamedTuple):
    """One limit of what can be taken, and what is left of it.

    Attributes:
        source: The file that says so.
        left: Bytes that can still be taken; below 0 where the limit is exceeded.
        total: Bytes that it allows in all.
    """

    source: str
    left: int
    total: int


@dataclass(frozen=True, slots=True)
class AvailableMemory:
    """What one look found.

    Attributes:
        limits: Those of the machine and of the cgroups on the path, as far as they are known.
        pressed: Whether tasks wait for memory.
    """

    limits: tuple[MemoryLimit, ...]
    pressed: bool


class _ShortageError(Exception):
    """A file could not be read for want of descriptors or memory: nothing is known of it now."""


class MemoryWatch:
    """Looks at the memory, and remembers how long tasks had stalled at the last look."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._own: str | None = None  # what was told of the process's cgroups when they were found
        self._directories: tuple[tuple[Path, str], ...] = ()
        self._stalled: dict[Path, int] = {}
        self._stalled_at = 0
        self._pressed = False

    def look(self, now: int) -> AvailableMemory | None:
        """What is left now; None where that cannot be read for want of descriptors or memory.

        Args:
            now: The time, in ns.
        """
        try:
            self._find()
            machine = self._machine()
            limits = (*machine, *self._cgroups())
            if now - self._stalled_at >= LEAST_WINDOW_NS:
                short = any(2 * each.left < each.total for each in machine)
                self._pressed = self._is_pressed(now, short)
        except _ShortageError:
            return None
        return AvailableMemory(limits, self._pressed)

    def _find(self) -> None:
        """Find the cgroups, unless the process is where it was."""
        own = _read(self._root / "proc/self/cgroup")
        if own != self._own:
            self._directories = tuple(own_directories(self._root, "memory"))
            self._own = own

    def _machine(self) -> list[MemoryLimit]:
        """What is available of the machine's memory, if that is known."""
        file = self._root / "proc/meminfo"
        found = dict(_AMOUNTS.findall(_read(file)))
        available, total = found.get("MemAvailable"), found.get("MemTotal")
        if available is None or total is None:  # before Linux 3.14
            return []
        return [MemoryLimit(str(file), int(available) << 10, int(total) << 10)]

    def _cgroups(self) -> list[MemoryLimit]:
        """What is left of each limit on the path."""
        limits = []
        for directory, kind in self._directories:
            stat: str | None = None
            for limit_name, usage_name in _LIMITS[kind]:
                limit = _number(_read(directory / limit_name))
                if limit is None or limit >= _NO_LIMIT:
                    continue
                usage = _number(_read(directory / usage_name))
                if usage is None:
                    continue
                if stat is None:
                    stat = _read(directory / "memory.stat")
                left = limit - usage + min(_reclaimable(stat, kind), usage)
                limits.append(MemoryLimit(str(directory / limit_name), left, limit))
        return limits

    def _is_pressed(self, now: int, short: bool) -> bool:
        """Whether tasks stalled for long since the last look.

        Args:
            now: The time.
            short: Whether so little of the machine's memory is left that its pressure counts.
        """
        window, self._stalled_at = now - self._stalled_at, now
        own = [each for each, kind in self._directories if kind == "cgroup2"][:1]
        files = [each / "memory.pressure" for each in own]
        if short:
            files.append(self._root / "proc/pressure/memory")
        before, self._stalled = self._stalled, {}
        pressed = False
        for file in files:
            match = _PRESSURE.search(_read(file))
            if match is None:
                continue
            total = self._stalled[file] = int(match[2])
            if file in before and window <= MOST_WINDOW_NS:
                pressed |= (total - before[file]) * 1000 > STALLED_SHARE * window
            else:
                pressed |= float(match[1]) > 100 * STALLED_SHARE
        return pressed


def _read(file: Path) -> str:
    found = try_read(file)
    if found is None:
        raise _ShortageError
    return found.decode(errors="replace")


def _number(text: str) -> int | None:
    """The number that a file holds; None for `max`, and for anything else."""
    return int(text) if _NUMBER.fullmatch(text) else None


def _reclaimable(stat: str, kind: str) -> int:
    """Bytes of the page cache that the kernel can take back at once."""
    lines = dict(_COUNTERS.findall(stat))
    lists, busy = _RECLAIMABLE[kind]
    found = sum(int(lines.get(name, 0)) for name in lists)
    return max(found - sum(int(lines.get(name, 0)) for name in busy), 0)
