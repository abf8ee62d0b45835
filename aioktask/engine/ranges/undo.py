# SPDX-License-Identifier: MIT
# From what was claimed and what failed: what is done, what is unknown, and so what must be undone.
#
# Pure. Relies on every stretch having come back, so that what is not free was walked.
"""What a job that stopped has done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Failed:
    """A chunk that did not return: done up to `upto`, unknown from there to `stop`."""

    start: int
    upto: int
    stop: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is done and what is unknown, each ascending, adjacent ranges merged."""

    done: tuple[range, ...]
    unknown: tuple[range, ...]


def merge(ranges: Iterable[range]) -> tuple[range, ...]:
    """The units of these ranges, ascending, with adjacent ranges made one.

    >>> merge([range(4, 6), range(0, 2), range(2, 4), range(9, 9)])
    (range(0, 6),)
    """
    merged: list[range] = []
    for each in sorted((each for each in ranges if each), key=lambda each: each.start):
        if merged and merged[-1].stop >= each.start:
            merged[-1] = range(merged[-1].start, max(merged[-1].stop, each.stop))
        else:
            merged.append(each)
    return tuple(merged)


def subtract(whole: range, holes: Iterable[range]) -> tuple[range, ...]:
    """What of `whole` is in no hole.

    >>> subtract(range(0, 10), [range(2, 4), range(8, 12)])
    (range(0, 2), range(4, 8))
    """
    rest: list[range] = []
    reached = whole.start
    for hole in merge(holes):
        if hole.start > reached:
            rest.append(range(reached, min(hole.start, whole.stop)))
        reached = max(reached, hole.stop)
    rest.append(range(reached, whole.stop))
    return tuple(each for each in rest if each)


def outcome(
    whole: range, free: Iterable[tuple[int, int]], failed: Iterable[Failed] = ()
) -> Outcome:
    """What was done of `whole` when `free` was never taken and the chunks `failed` raised."""
    unknown = merge(range(each.upto, each.stop) for each in failed)
    untouched = [range(start, stop) for start, stop in free]
    return Outcome(subtract(whole, [*untouched, *unknown]), unknown)
