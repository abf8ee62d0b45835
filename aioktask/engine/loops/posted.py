# SPDX-License-Identifier: MIT
# What is given to a loop that may be closed before it comes to it.
"""Callbacks that tell when they are dropped."""

from __future__ import annotations

from collections.abc import Callable


class Posted:
    """A callback given to a loop. `lost` is called if the loop drops it without a call.

    Where it is to be `completed`, also if the call ends by an exception: a signal handler may raise
    in any line of it.
    """

    __slots__ = ("_callback", "_completed", "_lost")

    def __init__(
        self,
        callback: Callable[[], None],
        lost: Callable[[], None] | None,
        *,
        completed: bool = False,
    ) -> None:
        self._lost: Callable[[], None] | None = None  # until all is set
        self._callback = callback
        self._completed = completed
        self._lost = lost

    def __call__(self) -> None:
        if not self._completed:
            self._lost = None
        self._callback()
        self._lost = None

    def withdraw(self) -> None:
        """Tell of no loss: this was not given to the loop, and another one will be."""
        self._lost = None

    def __del__(self) -> None:
        if self._lost is not None:
            self._lost()
