# SPDX-License-Identifier: MIT
# The CPU quota of the cgroups that this process is in.
#
# Pure readers over a root path, so that a test can show them any machine. They never raise because
# of what they find. Relies on the formats of cgroups v1 and v2.
"""The cgroup's CPU quota, read from /sys/fs/cgroup and /proc."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from aioktask.engine.machine.cgroups import own_directories
from aioktask.engine.machine.kernel_files import read_text

__all__ = ["Quota", "quota_files", "read_quota"]

_NUMBER = re.compile("[0-9]{1,18}")

# By the type of the file system: where a cgroup keeps its quota and its period, in microseconds.
_QUOTA_FILES = {
    "cgroup2": ("cpu.max",),
    "cgroup": ("cpu.cfs_quota_us", "cpu.cfs_period_us"),
}


@dataclass(frozen=True, slots=True)
class Quota:
    """CPU time that a cgroup may use.

    Attributes:
        quota_us: Microseconds of CPU time in each period.
        period_us: The period, in microseconds.
        source: The file that says so.
    """

    quota_us: int
    period_us: int
    source: Path

    @property
    def cpus(self) -> float:
        """The number of CPUs that the quota keeps busy."""
        return self.quota_us / self.period_us

    @property
    def threads(self) -> int:
        """How many threads can run all the time under the quota: rounded down, at least 1.

        Rounded down since threads that work in step are throttled together when the quota ends.
        """
        return max(1, self.quota_us // self.period_us)


def read_quota(root: Path) -> Quota | None:
    """The smallest quota on the path from the process's cgroup to the root.

    None where there is none, as far as it can be seen from here.
    """
    quotas = (_quota_of(directory, kind) for directory, kind in own_directories(root, "cpu"))
    return min(filter(None, quotas), key=lambda quota: quota.cpus, default=None)


def quota_files(root: Path) -> list[Path]:
    """The files of the quotas from the process's cgroup to the root, or where one would appear."""
    return [
        directory / name
        for directory, kind in own_directories(root, "cpu")
        for name in _QUOTA_FILES[kind]
    ]


def _quota_of(directory: Path, kind: str) -> Quota | None:
    """The cgroup's own quota. `max` (v2) and -1 (v1) say that it has none."""
    sources = [directory / name for name in _QUOTA_FILES[kind]]
    words = [word for source in sources for word in read_text(source).split()]
    if len(words) != 2 or not all(_NUMBER.fullmatch(word) for word in words):
        return None
    quota_us, period_us = map(int, words)
    return Quota(quota_us, period_us, sources[0]) if quota_us and period_us else None
