# SPDX-License-Identifier: MIT
# A look into a dictionary that other threads use, in the child of a fork too.
#
# Without the GIL `dict.get` takes the dictionary's lock. Another thread may have it at the moment
# of a fork, and then it is never free in the child. `in` and `[]` take none.
"""Looks into dictionaries."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, TypeVar

__all__ = ["look_up"]

K = TypeVar("K")


def look_up(mapping: Mapping[K, Any], key: K, otherwise: Any = None) -> Any:
    """What `mapping.get(key, otherwise)` returns, without the lock that it may take.

    >>> look_up({"nice": 5}, "nice"), look_up({}, "nice"), look_up({}, "nice", 0)
    (5, None, 0)
    """
    if key in mapping:
        with contextlib.suppress(KeyError):  # another thread took it out meanwhile
            return mapping[key]
    return otherwise
