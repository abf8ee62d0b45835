# SPDX-License-Identifier: MIT
# The CPU quota of the cgroups that this process is in.
#
# Pure readers over a root path, so that a test can show them any machine. They never raise because
# of what they find. Relies on the formats of proc_pid_cgroup and proc_pid_mountinfo (man 5) and of
# cgroups v1 and v2.
"""The cgroup's CPU quota, read from /sys/fs/cgroup and /proc."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from aioktask.engine.machine.kernel_files import read_text

__all__ = ["Quota", "quota_files", "read_quota"]

# How many cgroups are looked at to find one whose name the namespace hides.
_SEARCH_LIMIT = 4096
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
    quotas = (_quota_of(directory, kind) for directory, kind in _own_directories(root))
    return min(filter(None, quotas), key=lambda quota: quota.cpus, default=None)


def quota_files(root: Path) -> list[Path]:
    """The files of the quotas from the process's cgroup to the root, or where one would appear."""
    return [
        directory / name
        for directory, kind in _own_directories(root)
        for name in _QUOTA_FILES[kind]
    ]


def _quota_of(directory: Path, kind: str) -> Quota | None:
    """The cgroup's own quota. `max` (v2) and -1 (v1) say that it has none."""
    sources = [directory / name for name in _QUOTA_FILES[kind]]
    words = [word for source in sources for word in read_text(source).split()]
    if len(words) != 2 or not all(re.fullmatch("[0-9]{1,18}", word) for word in words):
        return None
    quota_us, period_us = map(int, words)
    return Quota(quota_us, period_us, sources[0]) if quota_us and period_us else None


def _own_directories(root: Path) -> Iterator[tuple[Path, str]]:
    """The cgroups that the process is in and that can be seen, for each mount the innermost first.

    Each comes with the type of its file system. A quota anywhere on the path binds, v1 or v2.
    """
    own = _own_groups(root)
    for point, kind, mount_root in _cgroup_mounts(root):
        place = _place_in_mount(own[kind], mount_root) if kind in own else None
        if place is None:
            continue
        top = root / point.lstrip("/")
        hidden, names = place
        if hidden:
            names = _find_hidden(root, top, hidden, names)
        for depth in range(len(names), -1, -1):
            yield top.joinpath(*names[:depth]), kind


def _own_groups(root: Path) -> dict[str, str]:
    """The process's cgroup in the v2 hierarchy and in the v1 hierarchy that has the CPU controller.

    Named hierarchies (`name=systemd`) have no controllers and thus no quota.
    """
    groups = {}
    for line in read_text(root / "proc/self/cgroup").split("\n"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path and "cpu" in controllers.split(","):
            groups["cgroup"] = path
        elif path and number == "0":
            groups["cgroup2"] = path
    return groups


def _cgroup_mounts(root: Path) -> list[tuple[str, str, str]]:
    """Mount point, type and mount's root of each mount that could hold a quota."""
    mounts = {}
    for line in read_text(root / "proc/self/mountinfo").split("\n"):
        head, _, tail = line.partition(" - ")
        fields, (kind, *_, options) = head.split(" "), ["", *tail.split(" ")][-3:]
        if len(fields) >= 6:  # a later mount on the same point hides the earlier one
            mounts[_unescape(fields[4])] = kind, options.split(","), _unescape(fields[3])
    return [
        (point, kind, mount_root)
        for point, (kind, options, mount_root) in mounts.items()
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options)
    ]


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-3][0-7]{2})", lambda match: chr(int(match[1], 8)), field)


def _place_in_mount(path: str, mount_root: str) -> tuple[int, tuple[str, ...]] | None:
    """Where in a mount the process's cgroup is; None if it is not below the mount's root.

    Both are given as seen from the root of the cgroup namespace, from which `..` leads out, and
    only as far as needed. So a mount whose root is `/../..` holds a process at `/`, two levels
    down, but the names of these levels are hidden: what comes back is their number, and the names
    that follow.
    """
    path_up, path_names = _split(path)
    root_up, root_names = _split(mount_root)
    if path_up == root_up and path_names[: len(root_names)] == root_names:
        return 0, path_names[len(root_names) :]
    if path_up < root_up and not root_names:
        return root_up - path_up, path_names
    return None


def _split(path: str) -> tuple[int, tuple[str, ...]]:
    names = tuple(name for name in path.split("/") if name)
    up = next((depth for depth, name in enumerate(names) if name != ".."), len(names))
    return up, names[up:]


def _find_hidden(root: Path, top: Path, hidden: int, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names from `top` to the cgroup that lists this process; none if it is not found."""
    process = read_text(root / "proc/self/stat").partition(" ")[0]
    pattern = "/".join(["*"] * hidden + [glob.escape(name) for name in names] + ["cgroup.procs"])
    try:
        for found in islice(glob.iglob(pattern, root_dir=top), _SEARCH_LIMIT):
            if process in read_text(top / found).split():
                return Path(found).parts[:-1]
    except ValueError:  # a malformed path, with a null byte
        pass
    return ()
