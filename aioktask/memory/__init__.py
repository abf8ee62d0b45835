# SPDX-License-Identifier: MIT
# Jobs over memory: the public names and nothing else.
"""Functions that return a ready `Job` over the bytes of a buffer, and memory held for a while."""

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
