# SPDX-License-Identifier: MIT
# Which section of a range is next, and which are done. Pure: whoever uses it has a lock.
"""The sections of an `OnDemand`."""

from __future__ import annotations

import heapq

__all__ = ["Sections"]


class Sections:
    """Which section is next, and where each begins.

    Sections end on absolute multiples of `section`. Those that are urged come first, the most
    urgent ones before the others, then the order of the range.
    """

    def __init__(self, start: int, stop: int, section: int) -> None:
        self.start = start
        self.stop = stop
        self.section = section
        self.first = start // section
        self.count = -(-stop // section) - self.first if stop > start else 0
        # 1 for each section that is not done; one that failed is never done.
        self.left = bytearray(b"\x01" * self.count)
        self._queued = bytearray(self.left)
        self._cursor = 0  # all sections below have been taken
        self._urged: list[tuple[int, int, int]] = []  # nice, order of asking, section
        self._asked = 0

    def bounds(self, index: int) -> tuple[int, int]:
        """The units of a section."""
        start = (self.first + index) * self.section
        return max(start, self.start), min(start + self.section, self.stop)

    def covering(self, start: int, stop: int) -> range:
        """The sections that hold units from start to stop."""
        if start >= stop:
            return range(0)
        return range(start // self.section - self.first, -(-stop // self.section) - self.first)

    def is_queued(self, index: int) -> bool:
        """Whether nobody has taken it yet."""
        return bool(self._queued[index])

    def urge(self, index: int, nice: int) -> None:
        """Have a queued section go before those of a higher nice."""
        self._asked += 1
        heapq.heappush(self._urged, (nice, self._asked, index))

    def take(self, index: int) -> None:
        """This one is run now."""
        self._queued[index] = 0

    def next(self) -> tuple[int, int | None] | None:
        """The section to run next, and at which nice if somebody waits; None if none is queued."""
        while self._urged:
            nice, _, index = heapq.heappop(self._urged)
            if self._queued[index]:
                return index, nice
        self._cursor = self._queued.find(1, self._cursor)
        if self._cursor < 0:
            self._cursor = self.count
            return None
        return self._cursor, None
