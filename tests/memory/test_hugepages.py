# SPDX-License-Identifier: MIT
# What is read of pools, nodes and memory: trees made after real ones, then this machine.

from __future__ import annotations

import errno
import fcntl
import mmap
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from aioktask.memory._hugepages import (
    NodePages,
    check_available,
    explain,
    nodes_with_memory,
    pools,
    smallest_huge_page,
)
from tests.memory import hugepages
from tests.memory.hugepages import HUGE, grow_pool

MIB, GIB = 1 << 20, 1 << 30
MAP_HUGETLB = 0x40000 | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
FILES = ("nr", "free", "resv", "surplus", "nr_overcommit")
MEMINFO = "Node {} MemTotal: 99 kB\nNode {} MemFree: {} kB\nNode {} Active(file): 100 kB\n"


def pool(page_size: int, *figures: int) -> dict[str, str]:
    folder = f"sys/kernel/mm/hugepages/hugepages-{page_size >> 10}kB"
    return {
        f"{folder}/{file}_hugepages": f"{figure}\n"
        for file, figure in zip(FILES, figures, strict=True)
    }


def on_node(node: int, page_size: int, total: int, free: int, surplus: int = 0) -> dict[str, str]:
    folder = f"sys/devices/system/node/node{node}/hugepages/hugepages-{page_size >> 10}kB"
    return {
        f"{folder}/nr_hugepages": f"{total}\n",
        f"{folder}/free_hugepages": f"{free}\n",
        f"{folder}/surplus_hugepages": f"{surplus}\n",
    }


def tree(root: Path, *parts: Mapping[str, str]) -> Path:
    """A root directory with these files."""
    for path, text in [each for files in parts for each in files.items()]:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.fixture
def two_nodes(tmp_path: Path) -> Path:
    return tree(
        tmp_path,
        pool(2 * MIB, 50, 30, 4, 2, 8),
        on_node(0, 2 * MIB, 20, 5),
        on_node(1, 2 * MIB, 30, 25, 2),
        pool(GIB, 3, 1, 0, 0, 0),
        on_node(0, GIB, 2, 0),
        on_node(1, GIB, 1, 1),
        {
            "sys/devices/system/node/has_memory": "0-1\n",
            "sys/devices/system/node/node0/meminfo": MEMINFO.format(0, 0, 1000, 0),
            "sys/devices/system/node/node1/meminfo": MEMINFO.format(1, 1, 2000, 1),
            "proc/meminfo": "MemTotal: 99 kB\nMemAvailable:   4000 kB\nSwapFree: 10 kB\n",
        },
    )


# pools


def test_pools_are_read_with_what_each_node_has(two_nodes: Path) -> None:
    small, large = pools(two_nodes)
    assert (small.page_size, large.page_size) == (2 * MIB, GIB)
    assert (small.total, small.free, small.reserved) == (50, 30, 4)
    assert (small.surplus, small.overcommit) == (2, 8)
    assert small.nodes == {0: NodePages(20, 5, 0), 1: NodePages(30, 25, 2)}
    assert large.nodes == {0: NodePages(2, 0, 0), 1: NodePages(1, 1, 0)}


def test_a_kernel_without_huge_pages_has_no_pool(tmp_path: Path) -> None:
    assert pools(tmp_path) == ()


def test_a_kernel_without_nodes_has_pools_all_the_same(tmp_path: Path) -> None:
    [only] = pools(tree(tmp_path, pool(2 * MIB, 1, 1, 0, 0, 0)))
    assert (only.total, only.nodes) == (1, {})


@pytest.mark.parametrize("text", ["", "many\n", "-1\n", "9" * 5000, "\udcff"])
def test_a_malformed_figure_counts_as_0(tmp_path: Path, text: str) -> None:
    tree(tmp_path, pool(2 * MIB, 7, 0, 0, 0, 0))
    figure = tmp_path / "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"
    figure.write_bytes(text.encode("utf-8", "surrogateescape"))
    (tmp_path / "sys/kernel/mm/hugepages/README").touch()
    [only] = pools(tmp_path)
    assert (only.total, only.free) == (7, 0)


def test_the_smallest_huge_page_is_one_of_either_kind(tmp_path: Path) -> None:
    assert smallest_huge_page(tmp_path) == mmap.PAGESIZE
    transparent = {"sys/kernel/mm/transparent_hugepage/hpage_pmd_size": f"{2 * MIB}\n"}
    assert smallest_huge_page(tree(tmp_path, transparent)) == 2 * MIB
    assert smallest_huge_page(tree(tmp_path, pool(GIB, 0, 0, 0, 0, 0))) == 2 * MIB
    assert smallest_huge_page(tree(tmp_path, pool(64 << 10, 0, 0, 0, 0, 0))) == 64 << 10


# nodes


def test_nodes_with_memory_are_those_that_the_kernel_lists(tmp_path: Path) -> None:
    listed = "sys/devices/system/node/has_memory"
    assert nodes_with_memory(tree(tmp_path, {listed: "0,2-3\n"})) == (0, 2, 3)


@pytest.mark.parametrize("text", [None, "\n", "all\n"])
def test_a_kernel_that_lists_no_nodes_has_node_0(tmp_path: Path, text: str | None) -> None:
    files = {} if text is None else {"sys/devices/system/node/has_memory": text}
    assert nodes_with_memory(tree(tmp_path, files)) == (0,)


# explain


def test_the_missing_pages_are_added_to_those_that_are_in_use(two_nodes: Path) -> None:
    # 26 are free and promised to nobody, so 14 are missing, beside the 48 that are no surplus.
    assert explain(2 * MIB, 40, root=two_nodes) == (
        "asked for 40 huge pages of 2 MiB: the pool has 50, 30 free, 4 of those reserved; "
        "2 of at most 8 made on demand. As root: "
        "echo 62 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages "
        "(and read it back: the kernel may have found fewer)"
    )


def test_pages_of_a_node_are_added_there(two_nodes: Path) -> None:
    told = explain(2 * MIB, 10, [0], two_nodes)
    assert told.startswith("asked for 10 huge pages of 2 MiB on node 0: the pool has 50, ")
    assert "node 0 has 20, 5 free. " in told
    assert "node1" not in told
    # The 4 reserved ones may be meant to come from this node: 1 of its 5 is sure.
    assert "echo 29 > /sys/devices/system/node/node0/hugepages/" in told


def test_pages_of_several_nodes_are_added_to_each(two_nodes: Path) -> None:
    told = explain(2 * MIB, 29, [1, 0], two_nodes)
    assert "on nodes 0, 1: " in told
    assert "node 0 has 20, 5 free; node 1 has 30, 25 free. " in told
    assert "echo 22 > /sys/devices/system/node/node0/" in told
    assert "echo 30 > /sys/devices/system/node/node1/" in told


def test_a_node_without_a_pool_has_0(two_nodes: Path) -> None:
    assert "node 7 has 0, 0 free. " in explain(2 * MIB, 1, [7], two_nodes)


def test_pages_of_a_gibibyte_are_asked_for_at_boot(two_nodes: Path) -> None:
    told = explain(GIB, 2, [0], two_nodes)
    assert told.endswith("Boot with hugepagesz=1G hugepages=0:4,1:1")
    assert explain(GIB, 2, root=two_nodes).endswith("Boot with hugepagesz=1G hugepages=4")
    assert explain(GIB, 2, [7], two_nodes).endswith("hugepagesz=1G hugepages=4")


def test_enough_pages_are_explained_by_what_else_there_is(two_nodes: Path) -> None:
    told = explain(2 * MIB, 1, root=two_nodes)
    assert told.startswith("asked for 1 huge page of 2 MiB: ")
    assert "hugetlb.*.max" in told
    assert "echo" not in told


def test_a_size_that_the_kernel_has_not_is_named_beside_those_it_has(two_nodes: Path) -> None:
    assert explain(64 << 10, 1, root=two_nodes) == (
        "asked for 1 huge page of 64 KiB, and this kernel has none of this size "
        "(it has: 2 MiB, 1 GiB)"
    )
    told = explain(2 * MIB, 1, root=two_nodes / "proc")
    assert told.endswith("(it has: no huge pages)")


# check_available


def test_what_can_be_reclaimed_and_swapped_out_is_available(two_nodes: Path) -> None:
    check_available(4010 << 10, root=two_nodes)
    check_available(1110 << 10, [0], two_nodes)
    check_available(3210 << 10, [0, 1], two_nodes)


@pytest.mark.parametrize(
    ("kib", "nodes", "found"),
    [(4010, (), 4000), (1110, (0,), 1100), (2110, (1,), 2100), (3210, (0, 1), 3200)],
)
def test_more_is_refused_with_the_figures(
    two_nodes: Path, kib: int, nodes: tuple[int, ...], found: int
) -> None:
    with pytest.raises(OSError, match=rf"asked for {(kib << 10) + 1} bytes") as raised:
        check_available((kib << 10) + 1, nodes, two_nodes)
    assert raised.value.errno == errno.ENOMEM
    assert f" {found << 10} are available there, and {10 << 10} of swap" in str(raised.value)


def test_memory_that_is_not_known_refuses_nothing(tmp_path: Path) -> None:
    check_available(1 << 60, root=tmp_path)
    check_available(1 << 60, [0], tmp_path)


# this machine


@pytest.mark.skipif(sys.platform != "linux", reason="sysfs of Linux")
def test_this_machine_is_read() -> None:
    assert len(nodes_with_memory()) >= 1
    check_available(1 << 20)
    with pytest.raises(OSError, match="are available"):
        check_available(1 << 60)


def test_pages_that_a_test_asks_for_are_there_and_given_back(
    huge_pages: Callable[[int], None],
) -> None:
    def figures() -> tuple[int, int]:
        return next((each.total, each.free) for each in pools() if each.page_size == HUGE)

    with grow_pool(0):
        before, _ = figures()
        with grow_pool(4), mmap.mmap(-1, 2 * HUGE, flags=MAP_HUGETLB) as memory:
            memory[:1] = memory[HUGE : HUGE + 1] = b"x"
            total, free = figures()
            assert total - free >= 2
            with hugepages.LOCK.open("a") as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert figures()[0] == before
    huge_pages(2)
    huge_pages(4)
    assert figures()[1] >= 4
