# SPDX-License-Identifier: MIT
# Jobs over memory: the public names and nothing else.
"""Functions that return a ready `Job` over the bytes of a buffer."""

from aioktask.memory._clear import clear
from aioktask.memory._populate import populate

__all__ = ["clear", "populate"]
