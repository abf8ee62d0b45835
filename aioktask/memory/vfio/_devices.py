# SPDX-License-Identifier: MIT
# What sysfs tells of PCI devices and IOMMU groups: which driver has a device, which group it is in.
#
# A group is the devices that the IOMMU cannot tell apart. VFIO gives it to a process only whole.
"""Devices by their PCI address, and the errors that say how to make one ready for VFIO."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import SupportsIndex

from aioktask.checks import integer

__all__ = ["device_or_group", "devices_in", "group_of", "not_given_up", "vfio_name"]

# A device without a driver, and drivers that do no DMA.
_HARMLESS = {None, "pci-stub", "pcieport"}
_ADDRESS = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", re.IGNORECASE)


def device_or_group(value: str | SupportsIndex) -> str | int:
    """A full PCI address, or the number of a group.

    Raises:
        TypeError: It is neither a string nor an integer.
        ValueError: It is no PCI address, or a negative number.

    >>> device_or_group("00:1F.2")
    '0000:00:1f.2'
    """
    if not isinstance(value, str):
        return integer("the number of an IOMMU group", value, least=0)
    found = _ADDRESS.fullmatch(value)
    if found is None:
        raise ValueError(
            f"a device must be a PCI address as '0000:00:08.0', or the number of its IOMMU group, "
            f"got {value!r}"
        )
    return f"{found[1] or '0000'}:{found[2]}".lower()


def group_of(address: str, root: Path) -> int:
    """The group of a device that VFIO has.

    Raises:
        OSError: ENODEV: there is no such device, it is in no group, or another driver has it.
    """
    device = _folder(address, root)
    if not device.exists():
        raise _no_device(f"there is no PCI device {address}")
    group = _target(device / "iommu_group")
    if group is None:
        raise _no_device(
            f"{address} is behind no IOMMU: switch it on in the firmware and for the kernel "
            f"(intel_iommu=on)"
        )
    if not _has_vfio(device):
        driver = _target(device / "driver")
        now = "no driver has it" if driver is None else f"the driver {driver} has it"
        unbind = "" if driver is None else f"echo {address} > {device}/driver/unbind; "
        raise _no_device(
            f"VFIO does not have {address}: {now}. Bind it, as root: modprobe vfio-pci; "
            f"echo vfio-pci > {device}/driver_override; {unbind}"
            f"echo {address} > {root / 'sys/bus/pci/drivers_probe'}"
        )
    return int(group)


def devices_in(group: int, root: Path) -> list[str]:
    """The names of a group's devices.

    Raises:
        OSError: ENODEV: there is no such group.
    """
    folder = root / f"sys/kernel/iommu_groups/{group}/devices"
    try:
        return sorted(each.name for each in folder.iterdir())
    except FileNotFoundError:
        raise _no_device(f"there is no IOMMU group {group}") from None


def not_given_up(group: int, root: Path) -> list[str]:
    """The group's devices that drivers of the kernel have, each with its driver."""
    found = []
    for name in devices_in(group, root):
        device = root / f"sys/kernel/iommu_groups/{group}/devices" / name
        driver = _target(device / "driver")
        if driver not in _HARMLESS and not _has_vfio(device):
            found.append(f"{name} ({driver})")
    return found


def vfio_name(address: str, root: Path) -> str | None:
    """The name of a device in /dev/vfio/devices; None where it has none (before Linux 6.6)."""
    folder = _folder(address, root) / "vfio-dev"
    return next((each.name for each in folder.iterdir()), None) if folder.exists() else None


def _folder(address: str, root: Path) -> Path:
    return root / "sys/bus/pci/devices" / address


def _has_vfio(device: Path) -> bool:
    # Drivers for one kind of device are called otherwise (mlx5_vfio_pci); they have the folder.
    return "vfio" in (_target(device / "driver") or "") or (device / "vfio-dev").exists()


def _target(link: Path) -> str | None:
    try:
        return os.path.basename(os.readlink(link))
    except OSError:
        return None


def _no_device(text: str) -> OSError:
    return OSError(errno.ENODEV, f"{os.strerror(errno.ENODEV)}: {text}")
