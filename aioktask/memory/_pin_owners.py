# SPDX-License-Identifier: MIT
# Who has which pages pinned, in one process.
#
# The kernel keeps one bit: pages are locked or they are not, and a single munlock ends any number
# of mlocks. So the count is kept here, as ranges of addresses with the set of their owners: a set
# instead of a number, since then adding and taking away may be repeated and do no harm.
#
# A value, which nothing changes: whoever makes the system call that goes with a change keeps the
# old value if the call fails. A change costs two binary searches and a copy of the tuple, however
# many pages a range has.
"""An immutable map from ranges of addresses to those who hold them."""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from operator import attrgetter

__all__ = ["PinnedPages", "Stretch"]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Pages in a row that the same owners hold.

    Attributes:
        start: The address of the first page.
        stop: One past the last byte.
        owners: Who holds them; never empty.
        unlocks: Whether the last owner unlocks them: they were not locked before the first came.
    """

    start: int
    stop: int
    owners: frozenset[Hashable]
    unlocks: bool


@dataclass(frozen=True, slots=True)
class PinnedPages:
    """The stretches that are held, ascending, without overlap, no two of them joinable."""

    stretches: tuple[Stretch, ...] = ()

    def free(self, start: int, stop: int) -> list[range]:
        """The ranges between two addresses that nobody holds."""
        found, reached = [], start
        for each in self._between(start, stop):
            if reached < each.start:
                found.append(range(reached, each.start))
            reached = each.stop
        if reached < stop:
            found.append(range(reached, stop))
        return found

    def unlocking(self, start: int, stop: int) -> list[range]:
        """The held ranges between two addresses that their last owner unlocks."""
        between = self._between(start, stop)
        return _joined(range(each.start, each.stop) for each in between if each.unlocks)

    def held_by(
        self, owner: Hashable, start: int, stop: int, unlocks: Iterable[range]
    ) -> PinnedPages:
        """These stretches with `owner` among those of the pages between two addresses.

        Args:
            owner: Who comes. Where it is an owner already nothing changes.
            start: The address of the first page.
            stop: One past the last.
            unlocks: The ranges, ascending, of those that nobody held which the last owner is to
                unlock. What is held already stays as it is in this.
        """
        came = frozenset({owner})
        new = [replace(each, owners=each.owners | came) for each in self._between(start, stop)]
        for gap in self.free(start, stop):
            reached = gap.start
            for each in unlocks:
                first, last = max(each.start, reached), min(each.stop, gap.stop)
                if first < last:
                    if reached < first:
                        new.append(Stretch(reached, first, came, unlocks=False))
                    new.append(Stretch(first, last, came, unlocks=True))
                    reached = last
            if reached < gap.stop:
                new.append(Stretch(reached, gap.stop, came, unlocks=False))
        return self._with(start, stop, sorted(new, key=_start))

    def without(self, owner: Hashable, start: int, stop: int) -> tuple[PinnedPages, list[range]]:
        """These stretches without `owner` between two addresses, and the ranges to unlock."""
        gone = frozenset({owner})
        left, unlock = [], []
        for each in self._between(start, stop):
            if each.owners != gone:
                left.append(replace(each, owners=each.owners - gone))
            elif each.unlocks:
                unlock.append(range(each.start, each.stop))
        return self._with(start, stop, left), _joined(unlock)

    def _between(self, start: int, stop: int) -> list[Stretch]:
        """The stretches between two addresses, cut off there."""
        if start == stop:
            return []
        touched = self.stretches[self._first_beyond(start) : self._first_from(stop)]
        return [
            replace(each, start=max(each.start, start), stop=min(each.stop, stop))
            for each in touched
        ]

    def _with(self, start: int, stop: int, new: list[Stretch]) -> PinnedPages:
        """These stretches with `new` in the place of all between two addresses."""
        first, last = self._first_beyond(start), self._first_from(stop)
        edges = self.stretches[first:last]
        before = [replace(each, stop=start) for each in edges[:1] if each.start < start]
        after = [replace(each, start=stop) for each in edges[-1:] if each.stop > stop]
        # One more at each end, for it may be joined with what is new.
        low, high = max(0, first - 1), last + 1
        pieces = [*self.stretches[low:first], *before, *new, *after, *self.stretches[last:high]]
        joined: list[Stretch] = []
        for each in pieces:
            if joined and joined[-1] == replace(each, start=joined[-1].start, stop=each.start):
                joined[-1] = replace(each, start=joined[-1].start)
            else:
                joined.append(each)
        return PinnedPages((*self.stretches[:low], *joined, *self.stretches[high:]))

    def _first_beyond(self, address: int) -> int:
        """The index of the first stretch that ends beyond an address."""
        return bisect.bisect_right(self.stretches, address, key=attrgetter("stop"))

    def _first_from(self, address: int) -> int:
        """The index of the first stretch that begins at an address or later."""
        return bisect.bisect_left(self.stretches, address, key=_start)


_start = attrgetter("start")


def _joined(ranges: Iterable[range]) -> list[range]:
    """Ascending ranges, with those in one that touch."""
    joined: list[range] = []
    for each in ranges:
        if joined and joined[-1].stop == each.start:
            joined[-1] = range(joined[-1].start, each.stop)
        else:
            joined.append(each)
    return joined
