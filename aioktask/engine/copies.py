# SPDX-License-Identifier: MIT
# A copy of a deque that other threads change meanwhile.
#
# With the GIL `list(queue)` is one step. Without it neither that nor `queue.copy()` is: both
# iterate, and raise where another thread's step comes in between. (A copy of a list, set or
# dictionary, or of the latter's values, is one step with and without the GIL.)
"""Copies of deques."""

from __future__ import annotations

from collections import deque
from typing import TypeVar

__all__ = ["items_of"]

T = TypeVar("T")

# How often a deque is read at once before its items are read one by one.
READS = 8


# So many items more than there were at first are read one by one, where others add all the while.
MOST_ADDED = 64


def items_of(queue: deque[T]) -> list[T]:
    """The items of a deque, those that others take out of it or add meanwhile perhaps among them.

    None is told twice, and their order is that of the deque unless others add all the while.

    Args:
        queue: Items are taken out of it on the left, mostly, so one by one they are read from the
            right. No object stands in it twice.
    """
    for _ in range(READS):
        try:
            return list(queue)
        except RuntimeError:
            continue
    found: dict[int, T] = {}
    for _ in range(READS):
        read, undisturbed = _one_by_one(queue)
        found = {id(each): each for each in read}  # what was added shifts the others to the left
        if undisturbed:
            break
    return list(found.values())


def _one_by_one(queue: deque[T]) -> tuple[list[T], bool]:
    """The items, some perhaps twice, and whether nothing was added meanwhile."""
    found: list[T] = []
    try:
        most = len(queue) + MOST_ADDED
        while len(found) < most:
            found.append(queue[-1 - len(found)])
        found.reverse()
        return found, False
    except IndexError:
        undisturbed = not found or _ends_with(queue, found[0])
        found.reverse()
        return found, undisturbed


def _ends_with(queue: deque[T], item: T) -> bool:
    try:
        return queue[-1] is item
    except IndexError:  # all were taken out
        return True
