# SPDX-License-Identifier: MIT
# The binary tree in which the values of a reduce combine.
#
# Pure. The tree is fixed by the number of leaves: node (level, i) covers the leaves i << level up
# to (i + 1) << level, and a node whose right half lies beyond the last leaf is its left half. So
# the value is the same bit for bit whoever makes the leaves, in any order.
"""Combining values in a fixed order."""

from __future__ import annotations

from typing import Any

Node = tuple[int, int, Any]  # level, index, value


class Tree:
    """The values that wait for their sibling, by the place of their parent.

    That of the whole range waits for ever, since it has none.
    """

    __slots__ = ("leaves", "top", "waiting")

    def __init__(self, leaves: int) -> None:
        self.leaves = leaves
        self.top = (leaves - 1).bit_length()
        self.waiting: dict[tuple[int, int], Any] = {}

    def climb(self, level: int, index: int) -> tuple[int, int]:
        """The highest node with this node's value: up past parents that have no right half."""
        while level < self.top and not index & 1 and (index + 1) << level >= self.leaves:
            level += 1
            index >>= 1
        return level, index

    def offer(self, level: int, index: int, value: Any) -> tuple[int, int, Any, Any] | None:
        """Bring in a node's value; returns its parent's place and both operands if a sibling waits.

        The caller combines the operands and offers the result in turn. May be called by several
        threads at a time: of two siblings the first waits, and the second finds it, by one step.
        """
        level, index = self.climb(level, index)
        parent = level + 1, index >> 1
        mine = index, value
        first = self.waiting.setdefault(parent, mine)
        if first is mine:
            return None
        del self.waiting[parent]
        left, right = (first[1], value) if index & 1 else (value, first[1])
        return *parent, left, right

    def value(self) -> Any:
        """The value of the whole range.

        Raises:
            KeyError: Not every leaf has been offered.
        """
        return self.waiting[self.top + 1, 0][1]


def push(stack: list[Node], level: int, index: int, value: Any) -> tuple[int, Any, Any] | None:
    """Put a node on its maker's own stack, unless the top is its left sibling: then take that off.

    Consecutive leaves of one thread meet here, without the tree. For siblings the operands are
    returned as ``(parent level, left, right)``; the parent's index is ``index >> 1``.
    """
    if stack and index & 1 and stack[-1][0] == level and stack[-1][1] == index ^ 1:
        left = stack.pop()[2]
        return level + 1, left, value
    stack.append((level, index, value))
    return None
