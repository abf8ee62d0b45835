# SPDX-License-Identifier: MIT
# What the kernel says of a NUMA node, read each time it is asked: huge pages come and go in tests.
#
# Relies on /sys/devices/system/node, which a kernel with NUMA has.
"""NUMA nodes as the guest's kernel sees them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from aioktask.engine.machine.topology import parse_cpulist

__all__ = ["HUGE_1G", "HUGE_2M", "NodeFacts", "read_nodes"]

HUGE_2M = 2 << 20
HUGE_1G = 1 << 30

_NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node, by the kernel's number of it."""

    number: int

    @property
    def cpus(self) -> frozenset[int]:
        """Its CPUs that are online."""
        return frozenset(parse_cpulist((self._folder / "cpulist").read_text()))

    @property
    def memory(self) -> int:
        """Bytes that the kernel manages, huge pages among them."""
        return self._meminfo("MemTotal")

    @property
    def free_memory(self) -> int:
        """Bytes that nobody uses; reserved huge pages are not among them."""
        return self._meminfo("MemFree")

    def huge_pages(self, size: int) -> int:
        """Huge pages of so many bytes in the node's pool, used or not."""
        return self._pool(size, "nr_hugepages")

    def free_huge_pages(self, size: int) -> int:
        """Those of them that nobody uses."""
        return self._pool(size, "free_hugepages")

    @property
    def _folder(self) -> Path:
        return _NODES / f"node{self.number}"

    def _meminfo(self, name: str) -> int:
        text = (self._folder / "meminfo").read_text()
        found = re.search(rf"{name}:\s+(\d+) kB", text)
        assert found is not None, text
        return int(found[1]) * 1024

    def _pool(self, size: int, name: str) -> int:
        return int((self._folder / "hugepages" / f"hugepages-{size >> 10}kB" / name).read_text())


def read_nodes() -> tuple[NodeFacts, ...]:
    """Every node that is online, by number."""
    numbers = parse_cpulist((_NODES / "online").read_text())
    return tuple(NodeFacts(number) for number in sorted(numbers))
