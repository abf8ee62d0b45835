# SPDX-License-Identifier: MIT
"""What is read of a machine: trees made after real ones, then this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioktask.engine.machine.quota import Quota
from aioktask.engine.machine.topology import Node, Topology, parse_cpulist, read_topology

CPU = "sys/devices/system/cpu"
NODE = "sys/devices/system/node"
CGROUP = "sys/fs/cgroup"

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "33 32 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
SYSTEMD_MOUNT = "34 32 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"


def tree(root: Path, files: Mapping[str, str]) -> Path:
    """A root directory with these files."""
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def v1_quota(directory: str, quota: int, period: int = 100_000) -> dict[str, str]:
    return {
        f"{directory}/cpu.cfs_quota_us": f"{quota}\n",
        f"{directory}/cpu.cfs_period_us": f"{period}\n",
    }


def read(root: Path, files: Mapping[str, str], cpus: int = 8) -> Topology:
    """The topology of a process that is bound to the first `cpus` CPUs of the tree."""
    return read_topology(tree(root, files), affinity=range(cpus))


# CPUs


def test_a_laptop(tmp_path: Path) -> None:
    topology = read(
        tmp_path,
        {
            f"{CPU}/online": "0-7\n",
            f"{NODE}/online": "0\n",
            f"{NODE}/node0/cpulist": "0-7\n",
            f"{NODE}/node0/distance": "10\n",
            f"{NODE}/node0/meminfo": "\nNode 0 MemTotal:       16231964 kB\nNode 0 MemFree: 5 kB\n",
            "proc/self/cgroup": "0::/user.slice/user-1000.slice/session-2.scope\n",
            "proc/self/mountinfo": "22 28 0:20 / /sys rw - sysfs sysfs rw\n" + V2_MOUNT,
            f"{CGROUP}/user.slice/cpu.max": "max 100000\n",
            f"{CGROUP}/user.slice/user-1000.slice/cpu.max": "max 100000\n",
        },
    )
    cpus = frozenset(range(8))
    node = Node(0, cpus, (10,), 16231964 * 1024)
    assert topology == Topology(cpus, cpus, (node,), None)
    assert topology.cpu_limit == 8


def test_offline_cpus_are_neither_usable_nor_in_a_node(tmp_path: Path) -> None:
    topology = read(
        tmp_path,
        {
            f"{CPU}/online": "0-3,6\n",
            f"{NODE}/online": "0-1\n",
            f"{NODE}/node0/cpulist": "0-3\n",
            f"{NODE}/node1/cpulist": "4-7\n",
        },
    )
    assert topology.cpus == topology.online == {0, 1, 2, 3, 6}
    assert [node.cpus for node in topology.nodes] == [{0, 1, 2, 3}, {6}]
    assert topology.cpu_limit == 5


def test_the_affinity_leaves_the_nodes_whole(tmp_path: Path) -> None:
    topology = read(tmp_path, {f"{CPU}/online": "0-7\n"}, cpus=3)
    assert topology.cpus == {0, 1, 2}
    assert topology.online == topology.nodes[0].cpus == set(range(8))


@pytest.mark.parametrize(
    "online", ["0\n", "", "3-1\n", "a-b\n", "0-99999999999\n", "0-999999999\n"]
)
def test_the_affinity_is_believed_where_the_online_file_cannot_be(
    tmp_path: Path, online: str
) -> None:
    topology = read_topology(tree(tmp_path, {f"{CPU}/online": online}), affinity={24, 25})
    assert topology.cpus == {24, 25}
    assert topology.cpus <= topology.online


@pytest.mark.parametrize(("online", "cpus"), [("2-3\n", {2, 3}), ("", {0})])
def test_there_is_always_a_cpu(tmp_path: Path, online: str, cpus: set[int]) -> None:
    topology = read_topology(tree(tmp_path, {f"{CPU}/online": online}), affinity=())
    assert topology.cpus == topology.online == cpus
    assert topology.cpu_limit == len(cpus)


def test_where_there_is_no_linux_the_cpu_count_is_all_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    cpus = frozenset(range(6))
    assert read_topology(tmp_path) == Topology(cpus, cpus, (Node(0, cpus, (10,), 0),), None)


def test_a_container_whose_cpus_are_renumbered_keeps_all_it_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {1, 24}, raising=False)
    topology = read_topology(tree(tmp_path, {f"{CPU}/online": "0-1\n"}))
    assert topology.cpus == {1, 24}


# Nodes


def test_two_sockets(tmp_path: Path) -> None:
    topology = read(
        tmp_path,
        {
            f"{CPU}/online": "0-7\n",
            f"{NODE}/online": "0-1\n",
            f"{NODE}/node0/cpulist": "0-1,4-5\n",
            f"{NODE}/node0/distance": "10 21\n",
            f"{NODE}/node0/meminfo": "Node 0 MemTotal:       100 kB\n",
            f"{NODE}/node1/cpulist": "2-3,6-7\n",
            f"{NODE}/node1/distance": "21 10\n",
            f"{NODE}/node1/meminfo": "Node 1 MemTotal:       200 kB\n",
        },
    )
    assert topology.nodes == (
        Node(0, frozenset({0, 1, 4, 5}), (10, 21), 102_400),
        Node(1, frozenset({2, 3, 6, 7}), (21, 10), 204_800),
    )


@pytest.mark.parametrize("online", ["0,8\n", "", "nonsense"])
def test_node_numbers_with_gaps_and_a_node_without_cpus(tmp_path: Path, online: str) -> None:
    """POWER numbers its sockets 0 and 8; memory on a device is a node that has no CPUs."""
    topology = read(
        tmp_path,
        {
            f"{CPU}/online": "0-7\n",
            f"{NODE}/online": online,
            f"{NODE}/node0/cpulist": "0-7\n",
            f"{NODE}/node0/distance": "10 80\n",
            f"{NODE}/node8/cpulist": "\n",
            f"{NODE}/node8/distance": "80 10\n",
            f"{NODE}/node8/meminfo": "Node 8 MemTotal:       16 kB\n",
            f"{NODE}/node_other/cpulist": "0\n",
        },
    )
    assert topology.nodes == (
        Node(0, frozenset(range(8)), (10, 80), 0),
        Node(8, frozenset(), (80, 10), 16384),
    )


def test_without_node_files_there_is_one_node_with_every_cpu_and_all_memory(tmp_path: Path) -> None:
    files = {f"{CPU}/online": "0-7\n", "proc/meminfo": "MemTotal:        2048 kB\nMemFree: 1 kB\n"}
    topology = read(tmp_path, files, cpus=2)
    assert topology.nodes == (Node(0, frozenset(range(8)), (10,), 2048 * 1024),)


def test_malformed_node_files_are_facts_that_are_not_known(tmp_path: Path) -> None:
    topology = read(
        tmp_path,
        {
            f"{CPU}/online": "0-7\n",
            f"{NODE}/online": "0-1\n",
            f"{NODE}/node0/cpulist": "0-\n",
            f"{NODE}/node0/distance": "10\n",
            f"{NODE}/node0/meminfo": "Node 0 MemTotal: many kB\n",
            f"{NODE}/node1/cpulist": "4-7\n",
            f"{NODE}/node1/distance": "ten 20\n",
        },
    )
    assert topology.nodes == (Node(0, frozenset(), (), 0), Node(1, frozenset({4, 5, 6, 7}), (), 0))


# The quota, cgroup v2


def test_the_quota_of_an_ancestor_binds_a_process_in_a_leaf_without_one(tmp_path: Path) -> None:
    topology = read(
        tmp_path,
        {
            "proc/self/cgroup": "0::/kubepods.slice/pod7.slice/app.scope/init\n",
            "proc/self/mountinfo": V2_MOUNT,
            f"{CGROUP}/kubepods.slice/cpu.max": "600000 100000\n",
            f"{CGROUP}/kubepods.slice/pod7.slice/cpu.max": "250000 100000\n",
            f"{CGROUP}/kubepods.slice/pod7.slice/app.scope/cpu.max": "300000 100000\n",
            f"{CGROUP}/kubepods.slice/pod7.slice/app.scope/init/cpu.max": "max 100000\n",
            f"{CGROUP}/kubepods.slice/pod8.slice/cpu.max": "10000 100000\n",
        },
    )
    source = tmp_path / CGROUP / "kubepods.slice/pod7.slice/cpu.max"
    assert topology.quota == Quota(250_000, 100_000, source)
    assert topology.quota.cpus == 2.5
    assert topology.cpu_limit == 2


def test_quotas_are_compared_by_cpus_not_by_microseconds(tmp_path: Path) -> None:
    topology = read(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "proc/self/mountinfo": V2_MOUNT,
            f"{CGROUP}/a/cpu.max": "300000 100000\n",
            f"{CGROUP}/a/b/cpu.max": "50000 10000\n",
        },
    )
    assert topology.cpu_limit == 3


def test_a_private_namespace_has_its_quota_at_the_mount_point(tmp_path: Path) -> None:
    topology = read(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT,
            f"{CGROUP}/cpu.max": "150000 100000\n",
        },
    )
    assert topology.quota == Quota(150_000, 100_000, tmp_path / CGROUP / "cpu.max")
    assert topology.cpu_limit == 1


HIDDEN = {  # podman: the host's tree is mounted, two levels above the namespace's root
    "proc/self/cgroup": "0::/init [x]\n",
    "proc/self/stat": "71 (python) S 1\n",
    "proc/self/mountinfo": "30 23 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    f"{CGROUP}/cpu.max": "700000 100000\n",
    f"{CGROUP}/machine.slice/other.scope/init [x]/cgroup.procs": "7\n171\n",
    f"{CGROUP}/machine.slice/other.scope/init [x]/cpu.max": "100000 100000\n",
    f"{CGROUP}/machine.slice/pod.scope/cpu.max": "400000 100000\n",
    f"{CGROUP}/machine.slice/pod.scope/init [x]/cpu.max": "max 100000\n",
}


def test_a_process_below_levels_that_its_namespace_hides_is_found_by_its_number(
    tmp_path: Path,
) -> None:
    mine = {f"{CGROUP}/machine.slice/pod.scope/init [x]/cgroup.procs": "70\n71\n"}
    assert read(tmp_path, HIDDEN | mine).cpu_limit == 4


def test_a_process_that_is_not_found_has_at_least_the_quota_of_the_mounts_root(
    tmp_path: Path,
) -> None:
    assert read(tmp_path, HIDDEN).cpu_limit == 7


@pytest.mark.parametrize(
    ("mount_root", "own"),
    [
        ("/", "/../../elsewhere"),  # moved out of its namespace's root
        ("/..", "/../.."),
        ("/docker/abc", "/docker/abcdef"),
        ("/docker/abc", "/"),
        ("/../neighbour", "/"),
        ("/../neighbour", "/../other"),
    ],
)
def test_a_mount_that_does_not_hold_the_process_says_nothing_of_it(
    tmp_path: Path, mount_root: str, own: str
) -> None:
    topology = read(
        tmp_path,
        {
            "proc/self/cgroup": f"0::{own}\n",
            "proc/self/stat": "71 (python) S 1\n",
            "proc/self/mountinfo": f"30 23 0:26 {mount_root} /sys/fs/cgroup rw - cgroup2 c rw\n",
            f"{CGROUP}/cpu.max": "100000 100000\n",
            f"{CGROUP}/cgroup.procs": "71\n",
        },
    )
    assert topology.quota is None


def test_a_process_outside_its_namespace_but_inside_the_mount_is_placed(tmp_path: Path) -> None:
    topology = read(
        tmp_path,
        {
            "proc/self/cgroup": "0::/../other/leaf\n",
            "proc/self/mountinfo": "30 23 0:26 /.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            f"{CGROUP}/other/cpu.max": "200000 100000\n",
        },
    )
    assert topology.cpu_limit == 2


def test_a_later_mount_hides_the_one_below_it(tmp_path: Path) -> None:
    topology = read(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a\n",
            "proc/self/mountinfo": V2_MOUNT + V2_MOUNT.replace(" / /sys", " /other /sys"),
            f"{CGROUP}/cpu.max": "100000 100000\n",
        },
    )
    assert topology.quota is None


def test_names_with_spaces_colons_and_backslashes(tmp_path: Path) -> None:
    topology = read(
        tmp_path,
        {
            "proc/self/cgroup": "0::/my pod/a\\b:c/leaf\n",
            "proc/self/mountinfo": "30 23 0:26 /my\\040pod /mnt/c\\040g\\134x rw shared:9 master:2 "
            "- cgroup2 cgroup2 rw\n",
            "mnt/c g\\x/a\\b:c/cpu.max": "200000 100000\n",
        },
    )
    assert topology.quota is not None
    assert topology.quota.source == tmp_path / "mnt/c g\\x/a\\b:c/cpu.max"


# The quota, cgroup v1 and both


def test_a_v1_container_with_comounted_controllers(tmp_path: Path) -> None:
    """The path names what the mount's root already is: the quota is at the mount point."""
    topology = read(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc/job\n4:cpuset:/docker/abc\n"
            "1:name=systemd:/docker/abc\n",
            "proc/self/mountinfo": V1_MOUNT.replace(" / ", " /docker/abc ", 1)
            + SYSTEMD_MOUNT.replace(" / ", " /docker/abc ", 1)
            + "35 32 0:31 /docker/abc /sys/fs/cgroup/cpuset ro - cgroup cgroup rw,cpuset\n",
            **v1_quota(f"{CGROUP}/cpu,cpuacct", 350_000),
            **v1_quota(f"{CGROUP}/cpu,cpuacct/job", -1),
            **v1_quota(f"{CGROUP}/cpu,cpuacct/docker/abc", 100_000),
            **v1_quota(f"{CGROUP}/systemd", 100_000),
            **v1_quota(f"{CGROUP}/cpuset", 100_000),
        },
    )
    source = tmp_path / CGROUP / "cpu,cpuacct/cpu.cfs_quota_us"
    assert topology.quota == Quota(350_000, 100_000, source)
    assert topology.cpu_limit == 3


def test_v1_ancestors_bind_up_to_the_root(tmp_path: Path) -> None:
    topology = read(
        tmp_path,
        {
            "proc/self/cgroup": "3:cpuacct,cpu:/slurm/job_1/step_0\n",
            "proc/self/mountinfo": V1_MOUNT,
            **v1_quota(f"{CGROUP}/cpu,cpuacct", -1),
            **v1_quota(f"{CGROUP}/cpu,cpuacct/slurm/job_1", 100_000, 50_000),
            **v1_quota(f"{CGROUP}/cpu,cpuacct/slurm/job_1/step_0", -1),
        },
    )
    assert topology.cpu_limit == 2


def test_only_the_cpu_controller_says_where_the_process_is(tmp_path: Path) -> None:
    topology = read(
        tmp_path,
        {
            "proc/self/cgroup": "6:cpuset:/b\n5:cpu:/a\n4:cpuacct:/b\n3:name=cpu:/b\n",
            "proc/self/mountinfo": V1_MOUNT,
            **v1_quota(f"{CGROUP}/cpu,cpuacct/a", 300_000),
            **v1_quota(f"{CGROUP}/cpu,cpuacct/b", 100_000),
        },
    )
    assert topology.cpu_limit == 3


def test_a_mount_of_a_hierarchy_that_the_process_is_not_in_says_nothing(tmp_path: Path) -> None:
    topology = read(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/a\n",
            "proc/self/mountinfo": V1_MOUNT + V2_MOUNT,
            f"{CGROUP}/cpu.max": "100000 100000\n",
            **v1_quota(f"{CGROUP}/cpu,cpuacct", 100_000),
        },
    )
    assert topology.quota is None


@pytest.mark.parametrize(("v1", "v2", "limit"), [(200_000, 300_000, 2), (300_000, 200_000, 2)])
def test_in_a_mixed_hierarchy_the_smaller_quota_wins(
    tmp_path: Path, v1: int, v2: int, limit: int
) -> None:
    topology = read(
        tmp_path,
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/old\n1:name=systemd:/system.slice\n0::/new\n",
            "proc/self/mountinfo": V1_MOUNT
            + SYSTEMD_MOUNT
            + V2_MOUNT.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified "),
            **v1_quota(f"{CGROUP}/cpu,cpuacct/old", v1),
            f"{CGROUP}/unified/new/cpu.max": f"{v2} 100000\n",
        },
    )
    assert topology.cpu_limit == limit


# The quota where it is odd


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("50000 100000\n", 1),
        ("1000 100000\n", 1),
        ("199999 100000\n", 1),
        ("800000 100000\n", 8),
        ("6400000 100000\n", 8),
    ],
)
def test_the_limit_is_rounded_down_at_least_one_and_at_most_the_cpus(
    tmp_path: Path, text: str, limit: int
) -> None:
    files = {"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": V2_MOUNT}
    assert read(tmp_path, files | {f"{CGROUP}/a/cpu.max": text}).cpu_limit == limit


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "max\n",
        "100000\n",
        "100000 0\n",
        "0 100000\n",
        "-1 100000\n",
        "1e5 100000\n",
        "²00000 100000\n",
        "100000 100000 100000\n",
        f"{'9' * 5000} 1\n",
    ],
)
def test_a_malformed_quota_is_no_quota_and_does_not_hide_the_next(
    tmp_path: Path, text: str
) -> None:
    files = {
        "proc/self/cgroup": "0::/a\n",
        "proc/self/mountinfo": V2_MOUNT,
        f"{CGROUP}/a/cpu.max": text,
    }
    assert read(tmp_path, files).quota is None
    assert read(tmp_path, {f"{CGROUP}/cpu.max": "200000 100000\n"}).cpu_limit == 2


def test_a_v1_quota_without_its_period_is_no_quota(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "3:cpu:/\n",
        "proc/self/mountinfo": V1_MOUNT,
        f"{CGROUP}/cpu,cpuacct/cpu.cfs_quota_us": "100000\n",
    }
    assert read(tmp_path, files).quota is None


def test_files_that_cannot_be_read_are_no_quota(tmp_path: Path) -> None:
    """Directories in their place, since a superuser can read every file."""
    root = tree(
        tmp_path,
        {"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": V2_MOUNT, f"{CGROUP}/a/x": ""},
    )
    (root / CGROUP / "a/cpu.max").mkdir()
    (root / CPU / "online").mkdir(parents=True)
    assert read_topology(root, affinity={0}).quota is None


@settings(deadline=None)
@given(cgroup=st.text(), mountinfo=st.text(), online=st.text())
def test_no_text_in_these_files_raises(cgroup: str, mountinfo: str, online: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        for start, fields in [("", ""), ("0::/", "1 2 3 /.. /c\\000 "), ("3:cpu:", "1 2 3 / / ")]:
            root = tree(
                Path(directory),
                {
                    "proc/self/cgroup": start + cgroup,
                    "proc/self/mountinfo": f"{fields}{mountinfo} - cgroup2 x cpu\n{mountinfo}",
                    f"{CPU}/online": online,
                },
            )
            assert read_topology(root, affinity={0}).cpus == {0}


# Properties


def as_cpulist(cpus: frozenset[int]) -> str:
    """As the kernel prints it: ascending, neighbours as a range."""
    starts = sorted(cpu for cpu in cpus if cpu - 1 not in cpus)
    stops = sorted(cpu for cpu in cpus if cpu + 1 not in cpus)
    pairs = zip(starts, stops, strict=True)
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in pairs) + "\n"


@given(st.frozensets(st.integers(0, 300)))
def test_a_printed_cpu_list_parses_to_the_same_cpus(cpus: frozenset[int]) -> None:
    assert parse_cpulist(as_cpulist(cpus)) == cpus


def test_the_kernels_format() -> None:
    assert parse_cpulist("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert parse_cpulist("\n") == frozenset()


@pytest.mark.parametrize(
    "text", ["3-1", "1,", ",", "-1", "1-", "0 1", "x", "1-2-3", "0-70000", "٣"]
)
def test_what_is_no_cpu_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="CPU"):
        parse_cpulist(text)


quotas = st.none() | st.tuples(st.integers(1_000, 6_400_000), st.integers(1_000, 1_000_000))


@settings(deadline=None)
@given(st.lists(quotas, min_size=1, max_size=5), st.integers(1, 64))
def test_the_quota_is_the_smallest_on_the_path(
    path: list[tuple[int, int] | None], cpus: int
) -> None:
    own = [f"level{depth}" for depth in range(len(path))]
    files = {"proc/self/cgroup": f"0::/{'/'.join(own)}\n", "proc/self/mountinfo": V2_MOUNT}
    for depth, quota in enumerate(path, start=1):
        words = ("max", 100_000) if quota is None else quota
        files["/".join([CGROUP, *own[:depth], "cpu.max"])] = "{} {}\n".format(*words)
    with tempfile.TemporaryDirectory() as directory:
        topology = read(Path(directory), files, cpus)
    given_quotas = [Fraction(*quota) for quota in path if quota is not None]
    if not given_quotas:
        assert topology.quota is None
        assert topology.cpu_limit == cpus
    else:
        assert topology.quota is not None
        assert topology.quota.cpus == float(min(given_quotas))
        assert topology.cpu_limit == max(1, min(cpus, int(min(given_quotas))))


# This machine

linux = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")


@linux
def test_this_machine_is_read_as_the_scheduler_sees_it() -> None:
    topology = read_topology()
    assert topology.cpus == os.sched_getaffinity(0)
    assert topology.cpus <= topology.online
    assert frozenset().union(*(node.cpus for node in topology.nodes)) >= topology.cpus
    assert all(node.memory > 0 for node in topology.nodes if node.cpus)
    assert all(len(node.distances) == len(topology.nodes) for node in topology.nodes)
    assert 1 <= topology.cpu_limit <= len(topology.cpus)


@pytest.fixture
def real_cgroup() -> Iterator[Path]:
    """A cgroup of this machine with a quota of 1.5 CPUs, and a leaf in it without one."""
    for base in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")):
        group = base / f"aioktask-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError as error:
            why = str(error)
            continue
        try:
            if (group / "cpu.cfs_quota_us").exists():
                (group / "cpu.cfs_quota_us").write_text("150000")
            elif (group / "cpu.max").exists():
                (group / "cpu.max").write_text("150000 100000")
            else:
                why = f"no CPU controller in {base}"
                continue
            (group / "leaf").mkdir()
            yield group
            return
        except OSError as error:
            why = str(error)
        finally:
            for made in (group / "leaf", group):
                if made.exists():
                    made.rmdir()
    pytest.skip(f"cannot make a cgroup with a quota here: {why}")


READ_IN_CGROUP = """
import os, subprocess, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])
"""
READ = """
from aioktask.engine.machine.topology import read_topology
topology = read_topology()
print(topology.cpu_limit, topology.quota and topology.quota.source)
"""


@linux
@pytest.mark.parametrize("where", ["", "leaf"])
@pytest.mark.parametrize("namespace", [(), ("unshare", "--cgroup")], ids=["shared", "private"])
def test_a_real_quota_is_found_from_inside(
    real_cgroup: Path, where: str, namespace: tuple[str, ...]
) -> None:
    if namespace and shutil.which("unshare") is None:
        pytest.skip("the unshare program is not here")
    if namespace and subprocess.run([*namespace, "true"], timeout=100, check=False).returncode:
        pytest.skip("a cgroup namespace cannot be made here")
    inside = [sys.executable, "-c", READ_IN_CGROUP, str(real_cgroup / where)]
    done = subprocess.run(
        [*inside, *namespace, sys.executable, "-c", READ],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    limit, source = done.stdout.split()
    assert limit == "1"
    assert Path(source).parent == real_cgroup
