# SPDX-License-Identifier: MIT
# The guest machine: what it consists of, what it takes from this one, and the command that runs it.
#
# The figures of `Machine` are what the guest tests may rely on. Without KVM, which may hang on a
# machine that is itself a guest: QEMU emulates the CPUs, so the guest is for behaviour and never
# for performance. Memory of the guest takes memory of this machine when it is first touched.
"""The virtual hardware, as values and as QEMU's arguments."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.packages import Unavailable

__all__ = ["MACHINE", "MODULES", "Limits", "Machine", "Node", "check_host", "check_memory"]

GIB = 1 << 30
MIB = 1 << 20

# Loaded in this order, each after what it depends on. ext4's checksum is no dependency it tells.
MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "crc32c_generic",
    "ext4",
    "vfio",
    "vfio_iommu_type1",
    "vfio_pci",
)


@dataclass(frozen=True, slots=True)
class Node:
    """A NUMA node of the guest, with the huge pages reserved on it at boot."""

    cpus: tuple[int, ...]
    memory: int
    huge_1g: int
    huge_2m: int


@dataclass(frozen=True, slots=True)
class Machine:
    """The guest's hardware.

    Attributes:
        nodes: By the node's number. The first needs more memory than the others: the kernel and
            its page tables take theirs from it, and 1 GiB pages want a whole, aligned GiB each.
        distance: Between two nodes, as the firmware tells it (10 is a node itself).
        edu_slots: The PCI slots of the `edu` devices, which do DMA to where they are told.
    """

    nodes: tuple[Node, ...]
    distance: int
    edu_slots: tuple[int, ...]

    def arguments(self, *, kernel: Path, initramfs: Path, image: Path, scratch: Path) -> list[str]:
        """What follows the name of the program, the `channels` apart."""
        return [
            *("-machine", "q35,kernel-irqchip=split"),
            *("-accel", "tcg,thread=multi"),
            # Fast string operations are slow ones when they are emulated.
            *("-cpu", "max,-erms,-fsrm"),
            *("-device", "intel-iommu,intremap=on,caching-mode=on"),
            *self._processors_and_memory(),
            *self._devices(image, scratch),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-kernel", str(kernel), "-initrd", str(initramfs)),
            *("-append", " ".join(self._kernel_arguments())),
        ]

    def channels(self, *, console: str, pulse: str = "null", port: int | None = None) -> list[str]:
        """More arguments: how the guest speaks to this machine.

        Args:
            console: Where what it prints goes, as `-serial` has it.
            pulse: Where it writes a line every few seconds, likewise.
            port: A socket's descriptor, inherited by QEMU: the other end of the virtual serial
                port named "reports". None for no such port.
        """
        out = ["-serial", console, "-serial", pulse]
        if port is not None:
            out += ["-chardev", f"socket,id=reports,fd={port}", "-device", "virtio-serial-pci"]
            out += ["-device", "virtserialport,chardev=reports,name=reports"]
        return out

    def _processors_and_memory(self) -> list[str]:
        cpus = sum(len(node.cpus) for node in self.nodes)
        memory = sum(node.memory for node in self.nodes)
        out = ["-smp", f"{cpus},sockets={len(self.nodes)}", "-m", f"{memory // MIB}M"]
        for number, node in enumerate(self.nodes):
            backend = f"memory{number}"
            out += ["-object", f"memory-backend-ram,id={backend},size={node.memory}"]
            cpulist = "".join(f",cpus={cpu}" for cpu in node.cpus)
            out += ["-numa", f"node,nodeid={number}{cpulist},memdev={backend}"]
        for number in range(len(self.nodes)):
            for other in range(number + 1, len(self.nodes)):
                out += ["-numa", f"dist,src={number},dst={other},val={self.distance}"]
        return out

    def _devices(self, image: Path, scratch: Path) -> list[str]:
        out = []
        for name, path, access in (
            ("image", image, "readonly=on"),
            # Writes go to a temporary file of QEMU's, so that every boot finds it empty.
            ("scratch", scratch, "snapshot=on"),
        ):
            out += ["-drive", f"if=none,id={name},file={path},format=raw,{access}"]
            out += ["-device", f"virtio-blk-pci,drive={name}"]
        for slot in self.edu_slots:
            out += ["-device", f"edu,addr={slot:#x}"]
        return out

    def _kernel_arguments(self) -> list[str]:
        def on_each_node(counts: Sequence[int]) -> str:
            return ",".join(f"{number}:{count}" for number, count in enumerate(counts))

        return [
            "console=ttyS0",
            "quiet",
            "loglevel=4",
            # A panic ends the machine instead of leaving it there.
            "panic=-1",
            # The kernel's tests of its ciphers take seconds here, and were seen to lock up.
            "cryptomgr.notests",
            "intel_iommu=on",
            "hugepagesz=1G",
            "hugepages=" + on_each_node([node.huge_1g for node in self.nodes]),
            "hugepagesz=2M",
            "hugepages=" + on_each_node([node.huge_2m for node in self.nodes]),
        ]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the guest may take, in seconds. An emulated machine on a busy one is slow.

    Attributes:
        boot: From power to the first test.
        test: Between two messages.
        pulse: Without a beat of its pulse, which comes about every 5 s.
        whole: All in all.
    """

    boot: float = 600
    test: float = 300
    pulse: float = 90
    whole: float = 3600


MACHINE = Machine(
    nodes=(
        Node(cpus=(0, 1), memory=4 * GIB, huge_1g=1, huge_2m=32),
        Node(cpus=(2, 3), memory=3 * GIB, huge_1g=1, huge_2m=32),
    ),
    distance=21,
    edu_slots=(8, 9),
)


def check_host(machine: Machine) -> None:
    """Refuse to run on a machine that is of another kind or has too little memory.

    Raises:
        Unavailable: This is one.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise Unavailable(f"needs Linux on x86-64, this is {platform.platform()}")
    check_memory(machine, Path("/proc/meminfo").read_text())


def check_memory(machine: Machine, meminfo: str) -> None:
    """Refuse a machine whose tests would push this one out of memory.

    Args:
        meminfo: The contents of /proc/meminfo here.

    Raises:
        Unavailable: Less is available than all huge pages and what the rest of the guest and QEMU
            itself take.
    """
    huge = sum(node.huge_1g * GIB + node.huge_2m * 2 * MIB for node in machine.nodes)
    needed = huge + 3 * GIB
    for line in meminfo.splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable" and int(value.split()[0]) * 1024 < needed:
            raise Unavailable(
                f"needs {needed / GIB:.1f} GiB of memory, {int(value.split()[0]) / MIB:.1f} GiB "
                "are available"
            )
