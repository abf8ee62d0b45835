# SPDX-License-Identifier: MIT
# The free part of a range: what no thread has claimed yet.
#
# Pure. A claim takes a stretch of consecutive chunks off the free ranges; what its thread does not
# walk comes back. So the free ranges are all that must be remembered: what is not free, not held
# and not failed is done. They stay few, a handful for each thread, since a claim takes from the
# range that came back last.
"""The free part of a job's range."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable


def fair_count(count: int, chunk: int, share: int) -> int:
    """How many of `count` chunks a thread may claim at once; 0 where one is more than a fair part.

    A fair part is half of the thread's share of what is left, so that the threads of a range end at
    about the same time: what one of them claims now, it walks while the others walk what is left.

    >>> fair_count(100, 5, 1000), fair_count(100, 5, 90), fair_count(100, 5, 9)
    (100, 9, 0)

    Args:
        count: How many chunks the thread would like.
        chunk: Units of a chunk.
        share: Units that are left for each of those who share the range.
    """
    return min(count, share // (2 * chunk))


class Claims:
    """The ranges that are free, and the taking and giving back of stretches.

    Attributes:
        chunk: Stretches end on absolute multiples of this, or at the end of a range. Where chunks
            of several sizes are taken, the grain of which they and all pieces are multiples.
        free: The free ranges as ``(start, stop)``; the next claim takes from the last one.
        left: Units in them.
        open: Whether units may be added: then it is not the end that nothing is free.
    """

    __slots__ = ("_edges", "chunk", "free", "left")

    open: bool = False

    def __init__(self, ranges: Iterable[range], chunk: int) -> None:
        self.chunk = chunk
        self.free = [(each.start, each.stop) for each in ranges if each]
        self.free.reverse()
        self._edges = frozenset([start for start, _ in self.free])
        self.left = sum([stop - start for start, stop in self.free])

    def take(
        self, chunk: int, count: int, *, piece: bool = False, node: int | None = None
    ) -> tuple[int, int, int]:
        """Take consecutive chunks. Something must be free.

        Chunks end on absolute multiples of their size, or where a free range ends.

        Args:
            chunk: Units of a chunk.
            count: How many; fewer where the free range ends before.
            piece: Whether the first one is to have its full length, wherever it begins: then it
                ends on a multiple of the grain only.
            node: The NUMA node that the claiming thread is bound to, None for none.

        Returns:
            Where the stretch begins, where its first chunk ends, and where it ends itself.
        """
        start, limit = self.free[-1]
        end = start - start % (self.chunk if piece else chunk) + chunk
        stop = end + chunk * (count - 1)
        if stop >= limit:
            stop = limit
            self.free.pop()
        else:
            self.free[-1] = (stop, limit)
        self.left -= stop - start
        return start, min(end, stop), stop

    def give_back(self, start: int, stop: int) -> None:
        """Return the rest of a stretch; `start` is a chunk boundary."""
        if start >= stop:
            return
        self.left += stop - start
        # An edge between parts must stay one.
        if self.free and self.free[-1][0] == stop and stop not in self._edges:
            self.free[-1] = (start, self.free[-1][1])
        else:
            self.free.append((start, stop))

    def clear(self) -> None:
        """Nothing is free any more: what was is never going to be taken."""
        self.free.clear()
        self.left = 0


class PartedClaims(Claims):
    """The free ranges of a job whose parts belong to NUMA nodes, each with free ranges of its own.

    A thread takes from its own node while there is anything, then from what belongs to no node,
    then from the node where most is left.
    """

    __slots__ = ("_nodes", "_parts", "_starts")

    def __init__(self, parts: Iterable[tuple[range, int | None]], chunk: int) -> None:
        self.chunk = chunk
        self._edges = frozenset()
        ordered = sorted(parts, key=lambda part: part[0].start)
        self._starts = [each.start for each, _ in ordered]
        self._nodes = [node for _, node in ordered]
        self._parts = {
            node: Claims([each for each, its in ordered if its == node], chunk)
            for node in dict.fromkeys(self._nodes)
        }
        self._count()

    @property
    def free(self) -> list[tuple[int, int]]:  # type: ignore[override]
        """The free ranges of all nodes."""
        return [piece for each in self._parts.values() for piece in each.free]

    def left_at(self, node: int | None) -> int:
        """Units of a node's parts that are free."""
        part = self._parts.get(node)
        return 0 if part is None else part.left

    @property
    def nodes(self) -> list[int]:
        """The nodes of which something is free."""
        return [node for node, each in self._parts.items() if node is not None and each.left]

    def take(
        self, chunk: int, count: int, *, piece: bool = False, node: int | None = None
    ) -> tuple[int, int, int]:
        taken = self._part_for(node).take(chunk, count, piece=piece)
        self._count()
        return taken

    def _part_for(self, node: int | None) -> Claims:
        for mine in (node, None):
            if self.left_at(mine):
                return self._parts[mine]
        return max(self._parts.values(), key=lambda each: each.left)

    def _count(self) -> None:
        self.left = sum(each.left for each in self._parts.values())

    def give_back(self, start: int, stop: int) -> None:
        if start < stop:
            node = self._nodes[bisect_right(self._starts, start) - 1]
            self._parts[node].give_back(start, stop)
            self._count()

    def clear(self) -> None:
        for each in self._parts.values():
            each.clear()
        self._count()


class GrowingClaims(Claims):
    """The free part of a range whose end moves up while it is worked on, from 0 on.

    Each unit is a chunk. What came back is taken before what was added last.

    Attributes:
        stop: The end of the range now.
    """

    __slots__ = ("open", "stop")

    open: bool
    stop: int

    def __init__(self) -> None:
        super().__init__((), 1)
        self.open = True
        self.stop = 0

    def grow(self, stop: int) -> None:
        """Have the range end at `stop` from now on; nothing is done where it does already."""
        before = self.stop
        if stop <= before:
            return
        if self.free and self.free[0][1] == before:
            self.free[0] = (self.free[0][0], stop)
        else:
            self.free.insert(0, (before, stop))
        self.left += stop - before
        self.stop = stop

    def trim(self, most: int) -> None:
        """Have at most so many units be free; the others are as good as done."""
        while self.left > most:
            start, stop = self.free.pop()
            dropped = min(stop - start, self.left - most)
            self.left -= dropped
            if start + dropped < stop:
                self.free.append((start + dropped, stop))

    def close(self) -> None:
        """Have nothing be added any more."""
        self.open = False

    def clear(self) -> None:
        super().clear()
        self.open = False
