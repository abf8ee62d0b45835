# SPDX-License-Identifier: MIT
# Jobs over files: the public names and nothing else.
"""Functions that return a ready `Job` over files, to be rid of many of them."""

from typing import TYPE_CHECKING

__all__ = ["Evicted", "Removed", "Tally", "evict", "remove_tree"]

# Where they are, for `aioktask.lazy`.
_NAMES = {
    "Evicted": "aioktask.files._evict",
    "Removed": "aioktask.files._removal",
    "Tally": "aioktask.files._tally",
    "evict": "aioktask.files._evict",
    "remove_tree": "aioktask.files._remove_tree",
}

if TYPE_CHECKING:
    from aioktask.files._evict import Evicted, evict
    from aioktask.files._removal import Removed
    from aioktask.files._remove_tree import remove_tree
    from aioktask.files._tally import Tally
else:

    def __getattr__(name):
        from aioktask.lazy import load

        return load(__name__, _NAMES, name)

    def __dir__():
        return sorted({*globals(), *__all__})
