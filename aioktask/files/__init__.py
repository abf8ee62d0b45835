# SPDX-License-Identifier: MIT
# Jobs over files: the public names and nothing else.
"""Functions that return a ready `Job` over files, to be rid of many of them."""

from aioktask.files._evict import Evicted, evict
from aioktask.files._remove_tree import Removed, remove_tree
from aioktask.files._tally import Tally

__all__ = ["Evicted", "Removed", "Tally", "evict", "remove_tree"]
