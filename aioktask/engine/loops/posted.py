# SPDX-License-Identifier: MIT
# What is given to a loop that may be closed before it comes to it.
"""Callbacks that tell when they are dropped."""

from __future__ import annotations

from collections.abc import Callable


class Posted:
    """A callback given to a loop. `lost` is called if the loop drops it without a call."""

    __slots__ = ("_callback", "_lost")

    def __init__(self, callback: Callable[[], None], lost: Callable[[], None] | None) -> None:
        self._callback = callback
        self._lost = lost

    def __call__(self) -> None:
        self._lost = None
        self._callback()

    def __del__(self) -> None:
        if self._lost is not None:
            self._lost()
