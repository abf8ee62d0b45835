# SPDX-License-Identifier: MIT
# Which section of a range is next, and which are done.
#
# Pure: whoever uses it holds a lock. The range costs two bytes a section, and a request, however
# long, one entry while it is asked for: nothing grows with what was asked for before. A finalizer
# may ask for sections, and take them, in any line of the thread that holds the lock: none is taken
# twice, though one may go later than it should.
"""The sections of an `OnDemand`."""

from __future__ import annotations

import contextlib
from bisect import insort
from itertools import count

__all__ = ["Request", "Sections"]

_order = count()


class Request:
    """Sections that somebody waits for.

    Attributes:
        sections: Which.
        nice: How urgently.
        withdrawn: Whether nobody waits any more. May be set at any time, without a lock.
    """

    __slots__ = ("key", "nice", "sections", "withdrawn")

    def __init__(self, sections: range, nice: int) -> None:
        self.sections = sections
        self.nice = nice
        self.withdrawn = False
        self.key = (nice, next(_order))  # the more urgent first, then who asked first


class Sections:
    """A range cut into sections, at absolute multiples of `section`: their state and their order.

    A section waits until it is taken, once. Requested ones go first, by nice and then in the order
    of asking, the others in the order of the range.
    """

    def __init__(self, start: int, stop: int, section: int) -> None:
        self.start = start
        self.stop = stop
        self.section = section
        self._first = start // section
        self.count = -(-stop // section) - self._first if stop > start else 0
        self._left = bytearray(b"\x01" * self.count)  # 1: not done. A failed one stays so
        self._waiting = bytearray(self._left)  # 1: nobody has taken it
        self._cursor = 0  # below this, none waits
        self._requests: list[Request] = []  # the most urgent first

    def bounds(self, index: int) -> tuple[int, int]:
        """The units of a section."""
        start = (self._first + index) * self.section
        return max(start, self.start), min(start + self.section, self.stop)

    def covering(self, start: int, stop: int) -> range:
        """The sections that hold units from start to stop."""
        if start >= stop:
            return range(0)
        return range(start // self.section - self._first, -(-stop // self.section) - self._first)

    def all_done(self, start: int, stop: int) -> bool:
        """Whether the units from start to stop are done: one look at the bytes of the sections."""
        if start >= stop:
            return True
        section, first = self.section, self._first
        return self._left.find(1, start // section - first, -(-stop // section) - first) < 0

    def first_left(self) -> int | None:
        """The first section that is not done."""
        found = self._left.find(1)
        return None if found < 0 else found

    def done_count(self) -> int:
        """How many sections are done."""
        return self._left.count(0)

    def done(self, index: int) -> None:
        """A section that was taken is done."""
        self._left[index] = 0

    def is_done(self, index: int) -> bool:
        """Whether a section is done."""
        return not self._left[index]

    def is_waiting(self, index: int) -> bool:
        """Whether nobody has taken the section yet."""
        return bool(self._waiting[index])

    def waiting(self, sections: range) -> int:
        """How many of these nobody has taken yet."""
        return self._waiting.count(1, sections.start, sections.stop)

    def ask(self, request: Request) -> None:
        """Have its sections go before others; until they are taken, or it is withdrawn."""
        self._requests = [each for each in self._requests if self._first_of(each) is not None]
        insort(self._requests, request, key=lambda each: each.key)

    def take(self) -> int | None:
        """Take the section that is next, if any waits."""
        while requests := self._requests[:1]:
            index = self.take_of(requests[0])
            if index is not None:
                return index
            with contextlib.suppress(ValueError):
                self._requests.remove(requests[0])
        while (cursor := self._waiting.find(1, self._cursor)) >= 0:
            self._cursor = cursor
            if self._takes(cursor):
                return cursor
        self._cursor = self.count
        return None

    def take_of(self, request: Request) -> int | None:
        """Take the first section of this request that waits, if any and it is not withdrawn."""
        while (index := self._first_of(request)) is not None:
            if self._takes(index):
                return index
        return None

    def _first_of(self, request: Request) -> int | None:
        if request.withdrawn:
            return None
        index = self._waiting.find(1, request.sections.start, request.sections.stop)
        return None if index < 0 else index

    def _takes(self, index: int) -> bool:
        """Take a section, unless it was taken since it was found."""
        # In a line without a call, which nothing interrupts.
        waits, self._waiting[index] = self._waiting[index], 0
        return bool(waits)
