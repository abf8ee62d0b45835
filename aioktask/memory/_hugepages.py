# SPDX-License-Identifier: MIT
# What huge pages and what memory the kernel has, and what to do where they are missing.
#
# Pure readers over a root path, so that a test can show them any machine. A file that is missing or
# malformed counts as 0: these figures explain an error, and must not be one of their own.
# All of it may change at any moment, so nothing may rest on it: only the kernel's answer to a call
# decides. Relies on /sys/kernel/mm/hugepages, /sys/devices/system/node and /proc/meminfo.
"""Pools of huge pages, nodes with memory, and memory that is available."""

from __future__ import annotations

import errno
import mmap
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from aioktask.engine.machine.topology import parse_cpulist

__all__ = [
    "NodePages",
    "Pool",
    "check_available",
    "explain",
    "nodes_with_memory",
    "pools",
    "smallest_huge_page",
]

_ROOT = Path("/")
_POOLS = "sys/kernel/mm/hugepages"
_NODES = "sys/devices/system/node"
_POOL = re.compile(r"hugepages-([0-9]{1,12})kB")
_NODE = re.compile(r"node([0-9]{1,9})")
_NUMBER = re.compile(r"([0-9]{1,18})\s*")
_AMOUNTS = re.compile(r"^(?:Node [0-9]+ )?(\S+):\s+([0-9]{1,15}) kB$", re.MULTILINE)
# From this size on the kernel hardly finds a page once it has run for a while.
_FOUND_AT_BOOT_ONLY_FROM = 1 << 30
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


@dataclass(frozen=True, slots=True)
class NodePages:
    """What a node has of a pool, in pages.

    Attributes:
        total: Pages, in use or not.
        free: Those that nobody uses; reservations are not counted by node.
        surplus: Those of `total` that the kernel made on demand.
    """

    total: int
    free: int
    surplus: int


@dataclass(frozen=True, slots=True)
class Pool:
    """The huge pages of one size, in pages.

    Attributes:
        page_size: In bytes.
        total: Pages, in use or not.
        free: Those that nobody uses, reserved ones among them.
        reserved: Free ones that are promised to mappings which have not touched them yet.
        surplus: Those of `total` that the kernel made on demand.
        overcommit: How many may be made on demand: the limit of `surplus`.
        nodes: What each node has; empty where the kernel knows no nodes.
    """

    page_size: int
    total: int
    free: int
    reserved: int
    surplus: int
    overcommit: int
    nodes: Mapping[int, NodePages]


def pools(root: Path = _ROOT) -> tuple[Pool, ...]:
    """The pools that the kernel below `root` has, smallest pages first; also those without pages.

    Args:
        root: Where `proc` and `sys` are.
    """
    sizes = _numbered(root / _POOLS, _POOL)
    return tuple(_read_pool(root, kib << 10) for kib in sorted(sizes))


def smallest_huge_page(root: Path = _ROOT) -> int:
    """The size of the smallest huge pages, transparent or reserved; all others are multiples.

    That of a small page where the kernel knows no huge ones.
    """
    transparent = _read_number(root / "sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
    sizes = {transparent, *(pool.page_size for pool in pools(root))} - {0}
    return min(sizes, default=mmap.PAGESIZE)


def nodes_with_memory(root: Path = _ROOT) -> tuple[int, ...]:
    """The numbers of the nodes that have memory; node 0 alone where the kernel knows no nodes."""
    try:
        found = parse_cpulist(_read(root / _NODES / "has_memory"))
    except ValueError:
        found = frozenset()
    return tuple(sorted(found)) or (0,)


def explain(
    page_size: int, pages_wanted: int, nodes: Collection[int] = (), root: Path = _ROOT
) -> str:
    """Why huge pages are missing, with the pool's figures and what to do: one line of text.

    Args:
        page_size: Of the pages that were asked for, in bytes.
        pages_wanted: How many.
        nodes: On which nodes; none for anywhere.
        root: Where `proc` and `sys` are.
    """
    pages = "page" if pages_wanted == 1 else "pages"
    asked = f"asked for {pages_wanted} huge {pages} of {_size(page_size)}{_on(nodes)}"
    known = pools(root)
    pool = next((each for each in known if each.page_size == page_size), None)
    if pool is None:
        sizes = ", ".join(_size(each.page_size) for each in known)
        return (
            f"{asked}, and this kernel has none of this size (it has: {sizes or 'no huge pages'})"
        )
    figures = [f"the pool has {pool.total}, {pool.free} free, {pool.reserved} of those reserved"]
    if pool.overcommit:
        figures.append(f"{pool.surplus} of at most {pool.overcommit} made on demand")
    for node in sorted(nodes):
        there = pool.nodes.get(node, NodePages(0, 0, 0))
        figures.append(f"node {node} has {there.total}, {there.free} free")
    return f"{asked}: {'; '.join(figures)}. {_advice(pool, pages_wanted, sorted(nodes))}"


def check_available(nbytes: int, nodes: Collection[int] = (), root: Path = _ROOT) -> None:
    """Refuse what cannot become resident as ordinary pages: the kernel would kill a process for it.

    A request that is only a little too large passes: what can be reclaimed is an estimate. Limits
    of a cgroup are not looked at.

    Args:
        nbytes: How many bytes.
        nodes: On which nodes; none for anywhere.
        root: Where `proc` and `sys` are.

    Raises:
        OSError: ENOMEM, with the figures.
    """
    system = _meminfo(root / "proc/meminfo")
    if nodes:
        each = [_meminfo(root / _NODES / f"node{node}/meminfo") for node in nodes]
        known = all("MemFree" in node for node in each)
        reclaimed = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")
        available = sum(node.get(name, 0) for node in each for name in reclaimed)
    else:
        known = "MemAvailable" in system
        available = system.get("MemAvailable", 0)
    swap = system.get("SwapFree", 0)
    if known and nbytes > available + swap:
        raise OSError(
            errno.ENOMEM,
            f"{os.strerror(errno.ENOMEM)}: asked for {nbytes} bytes{_on(nodes)}, and {available} "
            f"are available there, and {swap} of swap: ask for less, or do not populate",
        )


def _advice(pool: Pool, wanted: int, nodes: list[int]) -> str:
    """What an administrator can do."""
    known = [node for node in nodes if node in pool.nodes]
    free = sum(pool.nodes[node].free for node in known) if known else pool.free
    missing = wanted - max(0, free - pool.reserved)
    if missing <= 0:
        return (
            "That would do: a limit of the cgroup (hugetlb.*.max), a cpuset's nodes, or another "
            "process that had them for a moment may be the reason"
        )
    kib = pool.page_size >> 10
    # What the file is given counts pages that stay, without those made on demand.
    share = -(-missing // max(1, len(known)))
    if pool.page_size >= _FOUND_AT_BOOT_ONLY_FROM:
        asked = ",".join(
            f"{node}:{there.total - there.surplus + share * (node in known)}"
            for node, there in sorted(pool.nodes.items())
        )
        if not known:
            asked = str(pool.total - pool.surplus + missing)
        return f"Boot with hugepagesz={pool.page_size >> 30}G hugepages={asked}"
    lines = [
        f"echo {pool.nodes[node].total - pool.nodes[node].surplus + share} "
        f"> /{_NODES}/node{node}/hugepages/hugepages-{kib}kB/nr_hugepages"
        for node in known
    ] or [
        f"echo {pool.total - pool.surplus + missing} > /{_POOLS}/hugepages-{kib}kB/nr_hugepages",
    ]
    return f"As root: {'; '.join(lines)} (and read it back: the kernel may have found fewer)"


def _read_pool(root: Path, page_size: int) -> Pool:
    name = f"hugepages-{page_size >> 10}kB"
    folder = root / _POOLS / name
    nodes = {
        node: _read_node_pages(root / _NODES / f"node{node}/hugepages" / name)
        for node in sorted(_numbered(root / _NODES, _NODE))
    }
    return Pool(
        page_size,
        total=_read_number(folder / "nr_hugepages"),
        free=_read_number(folder / "free_hugepages"),
        reserved=_read_number(folder / "resv_hugepages"),
        surplus=_read_number(folder / "surplus_hugepages"),
        overcommit=_read_number(folder / "nr_overcommit_hugepages"),
        nodes=MappingProxyType(nodes),
    )


def _read_node_pages(folder: Path) -> NodePages:
    return NodePages(
        total=_read_number(folder / "nr_hugepages"),
        free=_read_number(folder / "free_hugepages"),
        surplus=_read_number(folder / "surplus_hugepages"),
    )


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[int]:
    """The numbers in the names of a folder's entries that have this pattern."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    matches = (pattern.fullmatch(name) for name in names)
    return [int(match[1]) for match in matches if match is not None]


def _read(path: Path) -> str:
    """The text of a file, empty if it cannot be read."""
    try:
        return os.fsdecode(path.read_bytes())
    except OSError:
        return ""


def _read_number(path: Path) -> int:
    match = _NUMBER.fullmatch(_read(path))
    return int(match[1]) if match else 0


def _meminfo(path: Path) -> dict[str, int]:
    """Bytes by name, of the system's or of a node's."""
    found = _AMOUNTS.findall(_read(path))
    return {name: int(kib) << 10 for name, kib in found}


def _size(nbytes: int) -> str:
    for unit, name in _UNITS:
        if nbytes >= unit and nbytes % unit == 0:
            return f"{nbytes // unit} {name}"
    return f"{nbytes} bytes"


def _on(nodes: Collection[int]) -> str:
    if not nodes:
        return ""
    return f" on node{'s' * (len(nodes) > 1)} {', '.join(map(str, sorted(nodes)))}"
