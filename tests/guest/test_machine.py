# SPDX-License-Identifier: MIT
# The guest machine is what it claims to be: the other tests of this folder rely on each line.

from __future__ import annotations

import os
from pathlib import Path

import pytest

import aioktask
from tests.guest.facts import HUGE_1G, HUGE_2M, NodeFacts
from tests.guest.machine import MACHINE, MODULES

PCI = Path("/sys/bus/pci/devices")


def mounts() -> dict[str, str]:
    """The type of file system by the place where it is mounted."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return {fields[1]: fields[2] for fields in map(str.split, lines)}


def test_the_kernel_is_debians_and_at_least_6_1() -> None:
    assert "Debian" in os.uname().version
    major, minor = os.uname().release.split(".")[:2]
    assert (int(major), int(minor)) >= (6, 1)


def test_the_tests_are_root() -> None:
    assert os.geteuid() == 0


def test_each_node_has_its_cpus_and_memory(nodes: tuple[NodeFacts, ...]) -> None:
    assert [sorted(node.cpus) for node in nodes] == [list(node.cpus) for node in MACHINE.nodes]
    for node, claimed in zip(nodes, MACHINE.nodes, strict=True):
        # The kernel keeps some for itself before it counts.
        assert 0.9 * claimed.memory < node.memory <= claimed.memory


def test_the_tests_may_use_every_cpu() -> None:
    assert os.sched_getaffinity(0) == {cpu for node in MACHINE.nodes for cpu in node.cpus}


def test_each_node_has_its_huge_pages_free(nodes: tuple[NodeFacts, ...]) -> None:
    for node, claimed in zip(nodes, MACHINE.nodes, strict=True):
        assert node.huge_pages(HUGE_1G) == node.free_huge_pages(HUGE_1G) == claimed.huge_1g
        assert node.huge_pages(HUGE_2M) == node.free_huge_pages(HUGE_2M) == claimed.huge_2m


def test_nodes_are_as_far_apart_as_the_firmware_says() -> None:
    read = [
        Path(f"/sys/devices/system/node/node{number}/distance").read_text().split()
        for number in range(len(MACHINE.nodes))
    ]
    assert read == [["10", str(MACHINE.distance)], [str(MACHINE.distance), "10"]]


@pytest.mark.parametrize("slot", MACHINE.edu_slots)
def test_each_edu_device_is_in_an_iommu_group_of_its_own(slot: int) -> None:
    device = PCI / f"0000:00:{slot:02x}.0"
    assert (device / "vendor").read_text().strip() == "0x1234"
    assert (device / "device").read_text().strip() == "0x11e8"
    assert os.listdir(device / "iommu_group" / "devices") == [device.name]


def test_no_driver_has_an_edu_device() -> None:
    for slot in MACHINE.edu_slots:
        assert not (PCI / f"0000:00:{slot:02x}.0" / "driver").exists()


def test_vfio_is_there() -> None:
    assert Path("/dev/vfio/vfio").is_char_device()
    assert Path("/sys/bus/pci/drivers/vfio-pci").is_dir()


def test_every_chosen_module_is_loaded_or_built_in() -> None:
    loaded = {line.split()[0] for line in Path("/proc/modules").read_text().splitlines()}
    # A driver that is built in has a folder in /sys/module, too.
    known = loaded | set(os.listdir("/sys/module"))
    assert set(MODULES) - known == set()


def test_cgroup_v2_has_the_controllers_for_cpus_and_memory() -> None:
    assert mounts()["/sys/fs/cgroup"] == "cgroup2"
    controllers = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    assert {"cpu", "cpuset", "memory"} <= set(controllers)


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/tmp", "tmpfs"),
        ("/dev/shm", "tmpfs"),
        ("/scratch", "ext4"),
        ("/dev/huge-2M", "hugetlbfs"),
        ("/dev/huge-1G", "hugetlbfs"),
    ],
)
def test_there_are_writable_file_systems(place: str, kind: str) -> None:
    assert mounts()[place] == kind
    file = Path(place, "written")
    file.touch()
    file.unlink()


def test_a_cpu_goes_offline_and_comes_back(nodes: tuple[NodeFacts, ...]) -> None:
    last = MACHINE.nodes[-1].cpus[-1]
    switch = Path(f"/sys/devices/system/cpu/cpu{last}/online")
    try:
        switch.write_text("0")
        assert last not in nodes[-1].cpus
    finally:
        switch.write_text("1")
    assert last in nodes[-1].cpus


def test_much_output_comes_through() -> None:
    # More than the virtual serial port takes at a time: cut short, the report would be unreadable.
    print("x" * 100_000)


def test_four_helpers_do_every_unit_once() -> None:
    # No two chunks touch the same unit, and a bytearray keeps no reference to what it holds.
    done = bytearray(1000)

    def count(start: int, stop: int) -> None:
        for unit in range(start, stop):
            done[unit] += 1

    report = aioktask.run_multithreaded_sync(aioktask.Job(count, len(done), max_threads=4))
    assert done == b"\x01" * 1000
    assert 1 <= report.peak_threads <= 4


@pytest.mark.anyio
async def test_a_job_is_awaited_on_every_loop() -> None:
    done = bytearray(1000)

    def count(start: int, stop: int) -> None:
        for unit in range(start, stop):
            done[unit] += 1

    await aioktask.run_multithreaded(aioktask.Job(count, len(done)))
    assert done == b"\x01" * 1000
