# SPDX-License-Identifier: MIT
# The machine as this process may use it: CPUs, NUMA nodes, and the cgroup's CPU quota.
#
# Pure readers over a root path, so that a test can show them any machine. They never raise because
# of what they find: a file that is missing, unreadable or malformed is a fact that is not known.
# There is always at least one CPU and one node. Relies on the formats of sysfs; off Linux only the
# CPU count is known.
"""CPUs, NUMA nodes and the CPU quota, read from /sys and /proc."""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aioktask.engine.machine.denials import note_denial
from aioktask.engine.machine.kernel_files import read_text, try_read
from aioktask.engine.machine.quota import Quota, quota_files, read_quota

__all__ = ["Node", "Topology", "Watched", "affinity_of", "parse_cpulist", "read_topology"]

# Compiled here, as in all of the engine: without the GIL a fork's child would wait for ever for a
# lock of `re` if another thread of its parent was compiling.
_CPUS = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_DISTANCE = re.compile("[0-9]{1,9}")
_MEMORY = re.compile(r"\bMemTotal:\s+([0-9]{1,18}) kB")
_NODE = re.compile(r"node[0-9]{1,9}")

# Far above the kernel's largest NR_CPUS (8192): a malformed range must not fill the memory.
_CPU_LIMIT = 1 << 16


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
        """How many threads can run all the time: one for each CPU, less where the quota is less."""
        return len(self.cpus) if self.quota is None else min(len(self.cpus), self.quota.threads)


class Watched:
    """Reads the machine again where it may have changed since it was read last.

    It looks, cheaply, at the affinity, the CPUs that are online, the process's cgroup, and the
    files of the quotas on its path, or where one would appear.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._files: tuple[Path, ...] = ()
        self._seen: tuple[object, ...] | None = ()

    def read(self) -> Topology | None:
        """The machine, if it has changed or may have, as at the first call; else None.

        It is None, too, where something cannot be read for want of descriptors or memory: a quota
        that cannot be seen for a while has not gone.
        """
        seen = self._look()
        if seen is None or seen == self._seen:
            return None
        self._files = (
            self._root / "sys/devices/system/cpu/online",
            self._root / "proc/self/cgroup",
            *quota_files(self._root),
        )
        before = self._look()
        topology = read_topology(self._root)
        after = self._look()
        # What changed while it was read may change back before the next look.
        self._seen = after if after == before else ()
        return None if before is None or after is None else topology

    def doubt(self) -> None:
        """Have the machine read again the next time, different or not."""
        self._seen = ()

    def _look(self) -> tuple[object, ...] | None:
        contents = [try_read(file) for file in self._files]
        return None if None in contents else (_affinity(), *contents)


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
        quota=read_quota(root),
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
        match = _CPUS.fullmatch(item)
        if match is None:
            raise ValueError(f"a CPU list is like '0-3,8', got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < _CPU_LIMIT:
            raise ValueError(f"CPUs of a list rise and are below {_CPU_LIMIT}, got {text!r}")
        numbers.update(range(first, last + 1))
    return frozenset(numbers)


def affinity_of(thread: int) -> frozenset[int] | None:
    """The CPUs that a thread of this process is bound to; None where that cannot be known.

    Args:
        thread: The kernel's number of it, that of the process for its main thread; 0 for the
            calling one.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    try:
        return frozenset(os.sched_getaffinity(thread))
    except OSError as error:
        note_denial("sched_getaffinity, a thread's CPUs", error.errno)
    except OverflowError:  # no thread's number; or an EINVAL, which Python takes for many CPUs
        note_denial("sched_getaffinity, a thread's CPUs", errno.EINVAL)
    return None


def _affinity() -> frozenset[int]:
    """The CPUs that the process is bound to; all that there are where that is not known.

    The main thread's affinity is taken, since the calling thread may be bound to less; the calling
    thread's where the main thread has ended, and others go on.
    """
    return affinity_of(os.getpid()) or affinity_of(0) or frozenset(range(os.cpu_count() or 1))


def _read_cpulist(path: Path) -> frozenset[int]:
    try:
        return parse_cpulist(read_text(path))
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
    return {int(name[4:]) for name in names if _NODE.fullmatch(name)}


def _read_distances(path: Path, count: int) -> tuple[int, ...]:
    """The distances in a file: one for each node that is online, or none if the file differs."""
    words = read_text(path).split()
    if len(words) != count or not all(_DISTANCE.fullmatch(word) for word in words):
        return ()
    return tuple(map(int, words))


def _read_memory(path: Path) -> int:
    match = _MEMORY.search(read_text(path))
    return int(match[1]) * 1024 if match else 0
