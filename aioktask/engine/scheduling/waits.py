# SPDX-License-Identifier: MIT
# Who waits for whom: the graph in which a cycle is a deadlock.
#
# Pure. A job is over when all its chunks are. So when a chunk of A waits for the end of B, A waits
# for B, and a chunk of B that waited for A could never go on. Such a wait is found where it would
# begin.
"""Waits of jobs for jobs."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Waits(Generic[T]):
    """The waits that are under way. Several chunks of one job may wait for the same other."""

    def __init__(self) -> None:
        self._awaited: dict[T, dict[T, int]] = {}  # how many chunks of each wait for which

    def __bool__(self) -> bool:
        return bool(self._awaited)

    def add(self, waiting: T, awaited: T) -> None:
        """Count a chunk of `waiting` that begins to wait for `awaited`."""
        counts = self._awaited.setdefault(waiting, {})
        counts[awaited] = counts.get(awaited, 0) + 1

    def remove(self, waiting: T, awaited: T) -> None:
        """Count a chunk of `waiting` no more that waited for `awaited`.

        Raises:
            KeyError: No such wait was added.
        """
        counts = self._awaited[waiting]
        counts[awaited] -= 1
        if not counts[awaited]:
            del counts[awaited]
        if not counts:
            del self._awaited[waiting]

    def chain(self, start: T, goal: T) -> list[T]:
        """A chain of waits from start to goal, both included; empty when there is none."""
        came_from: dict[T, T | None] = {start: None}
        stack = [start]
        while stack:
            here = stack.pop()
            if here == goal:
                chain: list[T] = []
                step: T | None = here
                while step is not None:
                    chain.append(step)
                    step = came_from[step]
                return chain[::-1]
            for awaited in self._awaited.get(here, ()):
                if awaited not in came_from:
                    came_from[awaited] = here
                    stack.append(awaited)
        return []
