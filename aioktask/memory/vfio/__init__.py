# SPDX-License-Identifier: MIT
# Memory for devices: the public names and nothing else.
"""DMA for user-space drivers: a container of VFIO, and memory that is mapped for its devices."""

from aioktask.memory.vfio._container import Container
from aioktask.memory.vfio._device import Device
from aioktask.memory.vfio._mapping import Mapping

__all__ = ["Container", "Device", "Mapping"]
