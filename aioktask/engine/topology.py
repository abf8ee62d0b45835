# SPDX-License-Identifier: MIT
# The machine as this process may use it: CPUs, NUMA nodes, and the cgroup's CPU quota.
#
# Pure readers over a root path, so that a test can show them any machine. They never raise because
# of what they find: a file that is missing, unreadable or malformed is a fact that is not known.
# There is always at least one CPU and one node. Relies on the formats of sysfs, of proc_pid_cgroup
# and proc_pid_mountinfo (man 5) and of cgroups v1 and v2; off Linux only the CPU count is known.
"""CPUs, NUMA nodes and the CPU quota, read from /sys and /proc."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

__all__ = ["Node", "Quota", "Topology", "Watched", "parse_cpulist", "read_topology"]

# Far above the kernel's largest NR_CPUS (8192): a malformed range must not fill the memory.
_CPU_LIMIT = 1 << 16
# How many cgroups are looked at to find one whose name the namespace hides.
_SEARCH_LIMIT = 4096
# By the type of the file system: where a cgroup keeps its quota and its period, in microseconds.
_QUOTA_FILES = {
    "cgroup2": ("cpu.max",),
    "cgroup": ("cpu.cfs_quota_us", "cpu.cfs_period_us"),
}


@dataclass(frozen=True, slots=True)
class Node:
    """A NUMA node.

    Attributes:
        id: The kernel's number of the node. Numbers may have gaps.
        cpus: Its CPUs that are online; empty for a node that has memory only.
        distances: To each of `Topology.nodes`, in that order (10 is the node itself); empty where
            they are not known.
        memory: Bytes of memory; 0 for none, or where that is not known.
    """

    id: int
    cpus: frozenset[int]
    distances: tuple[int, ...]
    memory: int


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


@dataclass(frozen=True, slots=True)
class Topology:
    """The machine as this process may use it.

    Attributes:
        cpus: The CPUs that the process may run on; never empty.
        online: The CPUs that are online.
        nodes: The NUMA nodes that are online, by number; never empty.
        quota: The smallest quota on the path from the process's cgroup to the root, as far as it
            can be seen from here; None where there is none.
    """

    cpus: frozenset[int]
    online: frozenset[int]
    nodes: tuple[Node, ...]
    quota: Quota | None

    @property
    def cpu_limit(self) -> int:
        """How many threads can run all the time: CPUs and quota, rounded down, at least 1.

        Rounded down since threads that work in step are throttled together when the quota ends.
        """
        if self.quota is None:
            return len(self.cpus)
        return max(1, min(len(self.cpus), self.quota.quota_us // self.quota.period_us))


class Watched:
    """Says, cheaply, whether the machine may have changed since it was asked last.

    What is looked at: the affinity, the CPUs that are online, the process's cgroup, and the files
    of the quotas on its path, or where one would appear.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._files: tuple[Path, ...] = ()
        self._seen: tuple[object, ...] = ()

    def changed(self) -> bool:
        """Whether anything is different. The first answer is yes."""
        seen = self._look()
        if seen == self._seen:
            return False
        self._files = (
            self._root / "sys/devices/system/cpu/online",
            self._root / "proc/self/cgroup",
            *(
                directory / name
                for directory, kind in _own_directories(self._root)
                for name in _QUOTA_FILES[kind]
            ),
        )
        self._seen = self._look()
        return True

    def _look(self) -> tuple[object, ...]:
        return (_affinity(), *map(_read, self._files))


def read_topology(root: Path = Path("/"), affinity: Iterable[int] | None = None) -> Topology:
    """The machine below `root`, as this process may use it.

    Args:
        root: Where `proc` and `sys` are.
        affinity: The CPUs that the process is bound to; by default those of the calling thread.
    """
    allowed = _affinity() if affinity is None else frozenset(affinity)
    online = _read_cpulist(root / "sys/devices/system/cpu/online")
    if affinity is None or not allowed & online:
        # The scheduler's own answer has online CPUs only, while the file may be missing or show a
        # container its CPUs under other numbers (lxcfs issue 731: 24 allowed, 0 online).
        online = online | allowed or frozenset({0})
    return Topology(
        cpus=allowed & online or online,
        online=online,
        nodes=_read_nodes(root, online),
        quota=_read_quota(root),
    )


def parse_cpulist(text: str) -> frozenset[int]:
    """The numbers of a list in the kernel's format.

    Raises:
        ValueError: It is no such list.

    >>> sorted(parse_cpulist("0-2,8,10-11"))
    [0, 1, 2, 8, 10, 11]
    """
    numbers: set[int] = set()
    for item in text.strip().split(",") if text.strip() else ():
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", item)
        if match is None:
            raise ValueError(f"a CPU list is like '0-3,8', got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < _CPU_LIMIT:
            raise ValueError(f"CPUs of a list rise and are below {_CPU_LIMIT}, got {text!r}")
        numbers.update(range(first, last + 1))
    return frozenset(numbers)


def _affinity() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        try:
            # Of the main thread, as the process's: the calling one may be bound to less.
            return frozenset(os.sched_getaffinity(os.getpid()))
        except OSError:  # the main thread has ended, others go on
            return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _read(path: Path) -> str:
    """The text of a file, empty if it cannot be read."""
    try:
        return os.fsdecode(path.read_bytes())
    except (OSError, ValueError):  # ValueError: a malformed path, with a null byte
        return ""


def _read_cpulist(path: Path) -> frozenset[int]:
    try:
        return parse_cpulist(_read(path))
    except ValueError:
        return frozenset()


def _read_nodes(root: Path, online: frozenset[int]) -> tuple[Node, ...]:
    directory = root / "sys/devices/system/node"
    ids = sorted(_read_cpulist(directory / "online") or _listed_nodes(directory))
    if not ids:
        return (Node(0, online, (10,), _read_memory(root / "proc/meminfo")),)
    return tuple(
        Node(
            number,
            _read_cpulist(directory / f"node{number}/cpulist") & online,
            _read_distances(directory / f"node{number}/distance", len(ids)),
            _read_memory(directory / f"node{number}/meminfo"),
        )
        for number in ids
    )


def _listed_nodes(directory: Path) -> set[int]:
    names = glob.glob("node[0-9]*", root_dir=directory)
    return {int(name[4:]) for name in names if re.fullmatch(r"node[0-9]{1,9}", name)}


def _read_distances(path: Path, count: int) -> tuple[int, ...]:
    """The kernel writes one distance for each node that is online, whatever their numbers."""
    words = _read(path).split()
    if len(words) != count or not all(re.fullmatch("[0-9]{1,9}", word) for word in words):
        return ()
    return tuple(map(int, words))


def _read_memory(path: Path) -> int:
    match = re.search(r"\bMemTotal:\s+([0-9]{1,18}) kB", _read(path))
    return int(match[1]) * 1024 if match else 0


def _read_quota(root: Path) -> Quota | None:
    quotas = (_quota_of(directory, kind) for directory, kind in _own_directories(root))
    return min(filter(None, quotas), key=lambda quota: quota.cpus, default=None)


def _quota_of(directory: Path, kind: str) -> Quota | None:
    """The cgroup's own quota. `max` (v2) and -1 (v1) say that it has none."""
    sources = [directory / name for name in _QUOTA_FILES[kind]]
    words = [word for source in sources for word in _read(source).split()]
    if len(words) != 2 or not all(re.fullmatch("[0-9]{1,18}", word) for word in words):
        return None
    quota_us, period_us = map(int, words)
    return Quota(quota_us, period_us, sources[0]) if quota_us and period_us else None


def _own_directories(root: Path) -> Iterator[tuple[Path, str]]:
    """The cgroups that the process is in and that can be seen, for each mount the innermost first.

    With the type of the file system. A quota anywhere on the path binds, v1 and v2 alike.
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
    for line in _read(root / "proc/self/cgroup").split("\n"):
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
    for line in _read(root / "proc/self/mountinfo").split("\n"):
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
    process = _read(root / "proc/self/stat").partition(" ")[0]
    pattern = "/".join(["*"] * hidden + [glob.escape(name) for name in names] + ["cgroup.procs"])
    try:
        for found in islice(glob.iglob(pattern, root_dir=top), _SEARCH_LIMIT):
            if process in _read(top / found).split():
                return Path(found).parts[:-1]
    except ValueError:  # as in _read
        pass
    return ()
