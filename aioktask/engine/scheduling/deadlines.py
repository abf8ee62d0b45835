# SPDX-License-Identifier: MIT
# What is to be done at a given time, for one thread that looks and any number that ask for it.
#
# Pure: the clock is the caller's. `add` and `drop` are single steps of a dictionary and a deque, so
# that any thread may call them in any line; `next_due` and `hand_over` are for the thread that
# looks. What was dropped, as nearly everything is, is let go of at once; two numbers stay until it
# is due, or until there is more of that than of what is awaited.
#
# Guarantees that nothing is lost where memory ends in any line: a thing that could not be handed
# over is due still.
"""A queue of deadlines."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

# The heap is made anew where it has so many entries more than twice what is awaited.
MOST_DROPPED = 64


class Deadlines(Generic[T]):
    """Things by number, and when each is due. A later `add` of a number replaces the earlier."""

    __slots__ = ("_due", "_heap", "_new")

    def __init__(self) -> None:
        self._due: dict[int, tuple[int, T]] = {}
        self._new: deque[tuple[int, int]] = deque()
        self._heap: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._due)

    def add(self, number: int, thing: T, due: int) -> None:
        """Have it be due at this time, in ns."""
        self._due[number] = due, thing
        self._new.append((due, number))

    def drop(self, number: int) -> None:
        """Have it never be due, if it was to be."""
        self._due.pop(number, None)

    def next_due(self) -> int | None:
        """When the next one is due, in ns; None where there is none."""
        new, heap = self._new, self._heap
        while new:
            heapq.heappush(heap, new[0])  # first: to have it twice does no harm
            new.popleft()
        if len(heap) > 2 * len(self._due) + MOST_DROPPED:
            self._heap = heap = [each for each in heap if self._is_awaited(*each)]
            heapq.heapify(heap)
        while heap and not self._is_awaited(*heap[0]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def hand_over(self, now: int, take: Callable[[T], object]) -> None:
        """Take out what is due by now, the earliest first, and call `take` with it.

        What another thread gives a later time at this moment may come out all the same.
        """
        while (due := self.next_due()) is not None and due <= now:
            number = self._heap[0][1]
            found = None
            try:
                found = self._due.pop(number, None)
                if found is not None:  # else it was dropped at this moment
                    take(found[1])
            except BaseException:
                if found is not None:
                    self._due.setdefault(number, found)
                raise

    def _is_awaited(self, due: int, number: int) -> bool:
        found = self._due.get(number)
        return found is not None and found[0] == due
