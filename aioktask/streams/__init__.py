# SPDX-License-Identifier: MIT
"""A function over items as they come, in parallel, its values in the order of the items."""

from typing import TYPE_CHECKING

__all__ = ["Stream", "StreamHandle", "SyncStream", "map_ordered", "map_ordered_sync"]

# Where they are, for `aioktask.lazy`.
_NAMES = {
    "Stream": "aioktask.streams._async",
    "StreamHandle": "aioktask.engine.api.feed",
    "SyncStream": "aioktask.streams._sync",
    "map_ordered": "aioktask.streams._async",
    "map_ordered_sync": "aioktask.streams._sync",
}

if TYPE_CHECKING:
    from aioktask.engine.api.feed import StreamHandle
    from aioktask.streams._async import Stream, map_ordered
    from aioktask.streams._sync import SyncStream, map_ordered_sync
else:

    def __getattr__(name):
        from aioktask.lazy import load

        return load(__name__, _NAMES, name)

    def __dir__():
        return sorted({*globals(), *__all__})
