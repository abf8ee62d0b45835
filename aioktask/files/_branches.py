# SPDX-License-Identifier: MIT
# How helpers share a tree: each walks a branch of its own, and gives a part of it away when another
# has nothing to do.
#
# What a branch is, is the walker's affair. A branch is either free, or one helper works on it, and
# the work is over when none is free and nobody works: who works may still add some. One condition
# guards all of it and is notified of every change.
"""Branches of a tree that helpers take, give away and give back."""

from __future__ import annotations

import threading
import time
from typing import Generic, TypeVar

from aioktask.engine.state.current import current_chunk

__all__ = ["Branches"]

# Seconds after which a helper that waits for a branch looks whether its job was cancelled.
PATIENCE = 0.010

T = TypeVar("T")


class Branches(Generic[T]):
    """The branches of one walk, of which the first is free."""

    def __init__(self, first: T) -> None:
        self._changed = threading.Condition()
        self._free = [first]
        self._working = 0
        self._hungry = 0
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether nothing is left, or the walk was ended: no branch is taken any more."""
        return self._ended

    @property
    def wanted(self) -> bool:
        """Whether a helper has nothing to do that will find no free branch."""
        return self._hungry > len(self._free)

    def take(self, deadline: float) -> T | None:
        """A branch to work on; None if there is none until the deadline, or at the end."""
        with self._changed:
            self._hungry += 1
            try:
                while not self._free and not self._ended:
                    left = min(deadline - time.monotonic(), PATIENCE)
                    if left <= 0:
                        return None
                    self._changed.wait(left)
                    current_chunk().check_cancelled()
            finally:
                self._hungry -= 1
            if self._ended:
                return None
            self._working += 1
            return self._free.pop()

    def add(self, branch: T) -> None:
        """A further branch, from a helper that works on one."""
        with self._changed:
            self._free.append(branch)
            self._changed.notify()

    def give_back(self, *rest: T) -> bool:
        """End working on a branch, of which this is left.

        Returns:
            Whether the walk is over and nobody works any more: true once, for the last.
        """
        with self._changed:
            self._working -= 1
            self._free.extend(rest)
            last = self._working == 0 and (self._ended or not self._free)
            if last:
                self._ended = True
            self._changed.notify_all()
            return last

    def end(self) -> None:
        """End the walk, whatever is left."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
