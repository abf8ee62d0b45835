# SPDX-License-Identifier: MIT
# Jobs over memory: the public names and nothing else.
"""Functions that return a ready `Job` over the bytes of a buffer, and memory held for a while."""

from typing import TYPE_CHECKING

__all__ = [
    "Pages",
    "Pinned",
    "Region",
    "Residency",
    "allocate",
    "clear",
    "copy",
    "fallocate",
    "parts",
    "pin",
    "populate",
    "release",
    "residency",
    "vfio",
]

# Where they are, for `aioktask.lazy`.
_NAMES = {
    "Pages": "aioktask.memory._allocate",
    "Pinned": "aioktask.memory._pin",
    "Region": "aioktask.memory._allocate",
    "Residency": "aioktask.memory._residency",
    "allocate": "aioktask.memory._allocate",
    "clear": "aioktask.memory._clear",
    "copy": "aioktask.memory._copy",
    "fallocate": "aioktask.memory._fallocate",
    "parts": "aioktask.memory._parts",
    "pin": "aioktask.memory._pin",
    "populate": "aioktask.memory._populate",
    "release": "aioktask.memory._release",
    "residency": "aioktask.memory._residency",
    "vfio": "aioktask.memory.vfio",
}

if TYPE_CHECKING:
    from aioktask.memory import vfio
    from aioktask.memory._allocate import Pages, Region, allocate
    from aioktask.memory._clear import clear
    from aioktask.memory._copy import copy
    from aioktask.memory._fallocate import fallocate
    from aioktask.memory._parts import parts
    from aioktask.memory._pin import Pinned, pin
    from aioktask.memory._populate import populate
    from aioktask.memory._release import release
    from aioktask.memory._residency import Residency, residency
else:

    def __getattr__(name):
        from aioktask.lazy import load

        return load(__name__, _NAMES, name)

    def __dir__():
        return sorted({*globals(), *__all__})
