# SPDX-License-Identifier: MIT
# The values of a reduce, on a worker and where nodes of all come together: one tree of the whole
# range.
#
# Guarantees that the operands are those of one machine, in the same order, and that there is no
# value where one of a leaf is lacking. Relies on each leaf, and each node, being taken once.
"""Combining the values of a job."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

from aioktask.checks import check_done
from aioktask.engine.ranges.plan import count_chunks
from aioktask.engine.ranges.tree import Node, Tree

__all__ = ["Reducing"]


class Reducing:
    """Values, combined as far as they are siblings in the tree of the whole range.

    Args:
        start: The job's first unit.
        size: How many units it has, at least one.
        leaf: How many of them a leaf has.
        reduce: Combines two values.
        initial: What stands before the first one; ``...`` for nothing.
        name: Of the job.

    >>> left, right, whole = (Reducing(0, 30, 10, str.__add__) for _ in range(3))
    >>> left.take_leaf(10, "b"), left.take_leaf(0, "a"), right.take_leaf(20, "c")
    (None, None, None)
    >>> left.nodes(), right.nodes()
    ([(1, 0, 'ab')], [(1, 1, 'c')])
    >>> whole.take([*right.nodes(), *left.nodes()])
    >>> whole.value()
    'abc'
    """

    def __init__(
        self,
        start: int,
        size: int,
        leaf: int,
        reduce: Callable[[Any, Any], Any],
        initial: Any = ...,
        name: str = "",
    ) -> None:
        self._leaf = leaf
        self._first = start // leaf
        self._reduce = reduce
        self._name = name
        self._initial = initial
        self._tree = Tree(count_chunks(start, start + size, leaf))

    def take_leaf(self, start: int, value: Any) -> None:
        """This is the value of the leaf that has this unit first. May be called on any thread.

        Raises:
            BaseException: What `reduce` raised: then this value is lacking, and others may be.
        """
        index = start // self._leaf - self._first
        if index == 0 and self._initial is not ...:
            value = self._combined(copy.deepcopy(self._initial), value)
        self.take([(0, index, value)])

    def take(self, nodes: Iterable[Node]) -> None:
        """These are nodes of the tree, as `nodes` told them elsewhere.

        Raises:
            BaseException: What `reduce` raised.
        """
        for offered in nodes:
            while (both := self._tree.offer(*offered)) is not None:
                offered = both[0], both[1], self._combined(both[2], both[3])

    def _combined(self, left: Any, right: Any) -> Any:
        """What `reduce` makes of two values, unless that is work to be done."""
        value = self._reduce(left, right)
        check_done(value, "reduce", self._name)
        return value

    def nodes(self) -> list[Node]:
        """What waits for a sibling that somebody else has, or for nothing more."""
        waiting = self._tree.waiting
        return [(level - 1, index, value) for (level, _), (index, value) in waiting.items()]

    def value(self) -> Any:
        """The value of the whole range.

        Raises:
            RuntimeError: Not all leaves came with theirs.
        """
        try:
            return self._tree.value()
        except KeyError:
            raise RuntimeError("not all leaves of the reduce came with their values") from None
