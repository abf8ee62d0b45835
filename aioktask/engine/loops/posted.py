# SPDX-License-Identifier: MIT
# Callbacks for a loop that may be closed before it calls them.
"""Callbacks that tell when they are dropped."""

from __future__ import annotations

from collections.abc import Callable


class Posted:
    """A callback given to a loop. `lost` is called if the loop drops it without a call.

    With `completed`, `lost` is called also if the call ends by an exception: a signal handler may
    raise in any line of it.
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
        """Tell of no loss: the loop did not get this object, and will get another one."""
        self._lost = None

    def __del__(self) -> None:
        if self._lost is not None:
            self._lost()
