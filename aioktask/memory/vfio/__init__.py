# SPDX-License-Identifier: MIT
# Memory for devices: the public names and nothing else.
"""DMA for user-space drivers: a container of VFIO, and memory that is mapped for its devices."""

from typing import TYPE_CHECKING

__all__ = ["Container", "Device", "Mapping"]

# Where they are, for `aioktask.lazy`.
_NAMES = {
    "Container": "aioktask.memory.vfio._container",
    "Device": "aioktask.memory.vfio._device",
    "Mapping": "aioktask.memory.vfio._mapping",
}

if TYPE_CHECKING:
    from aioktask.memory.vfio._container import Container
    from aioktask.memory.vfio._device import Device
    from aioktask.memory.vfio._mapping import Mapping
else:

    def __getattr__(name):
        from aioktask.lazy import load

        return load(__name__, _NAMES, name)

    def __dir__():
        return sorted({*globals(), *__all__})
