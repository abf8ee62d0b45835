# SPDX-License-Identifier: MIT
# Which chunk sizes and thread counts are tried, and how much of them there is time for.
#
# Pure. Sizes are the grain times powers of two, as the engine's own are, and an even share of the
# range for each number of threads. Every size is a multiple of the grain.
"""The grid of a sweep, and what of it fits into a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aioktask.engine.ranges.plan import round_up

__all__ = [
    "Cell",
    "Scheme",
    "beside",
    "cell_name",
    "cell_of",
    "cells_of",
    "ladder",
    "scheme",
    "thread_counts",
]

# Seconds of the smallest chunk that is tried.
SHORTEST = 10e-6

# A chunk size and a number of threads.
Cell = tuple[int, int]


def cell_name(chunk: int, threads: int) -> str:
    """A contender's name, from which `cell_of` has the numbers again.

    >>> cell_name(4096, 2), cell_of("4096 x 2"), cell_of("one plain call")
    ('4096 x 2', (4096, 2), None)
    """
    return f"{chunk} x {threads}"


def cell_of(name: str) -> Cell | None:
    """The chunk size and the threads of a contender; None for one of another kind."""
    chunk, _, threads = name.partition(" x ")
    return (int(chunk), int(threads)) if chunk.isdecimal() and threads.isdecimal() else None


def thread_counts(most: int) -> list[int]:
    """1, 2, 4 and so on, and the most there may be.

    >>> thread_counts(6)
    [1, 2, 4, 6]
    """
    return [*(1 << power for power in range((most - 1).bit_length())), most]


def shares(units: int, grain: int, most: int) -> list[int]:
    """An even share of the range for each number of threads, ascending."""
    return sorted({round_up(-(-units // threads), grain) for threads in thread_counts(most)})


def ladder(units: int, grain: int, cost: float, most: int, factor: int = 2) -> list[int]:
    """Chunk sizes, ascending, from about 10 us a chunk on.

    Args:
        units: Of the range.
        grain: What every size is a multiple of.
        cost: Seconds of a unit.
        most: Threads.
        factor: From one size to the next.

    >>> ladder(1 << 20, grain=1, cost=1e-8, most=2, factor=4)
    [1024, 4096, 16384, 65536, 262144, 524288, 1048576]
    >>> ladder(10, grain=4, cost=1.0, most=2)
    [4, 8, 12]
    """
    even = shares(units, grain, most)
    size = grain << max(round(math.log2(SHORTEST / (cost * grain))), 0)
    sizes = []
    # What is nearly an even share is left to that.
    while size < even[0] / math.sqrt(2):
        sizes.append(size)
        size *= factor
    return sizes + even


def beside(best: int, grain: int, sizes: Sequence[int]) -> list[int]:
    """Twice and half the best size, where a wide ladder has left them out.

    >>> beside(4096, 1, [1024, 4096, 16384])
    [2048, 8192]
    """
    return [
        size
        for size in (best // 2, best * 2)
        if grain <= size < sizes[-1] and size % grain == 0 and size not in sizes
    ]


def cells_of(sizes: Iterable[int], units: int, grain: int, most: int) -> list[Cell]:
    """Each size with each number of threads that all get a chunk of it."""
    return [
        (size, threads)
        for size in sizes
        for threads in thread_counts(most)
        if size <= round_up(-(-units // threads), grain)
    ]


@dataclass(frozen=True, slots=True)
class Scheme:
    """What is measured, so that it fits into the time.

    Attributes:
        units: How much of the range, from its start.
        factor: From one chunk size to the next: 2, or 4 to go with less time.
    """

    units: int
    factor: int


def scheme(
    size: int,
    grain: int,
    cost: float,
    most: int,
    *,
    seconds: float,
    rounds: int,
    plain: int = 0,
    jobs: int = 0,
) -> Scheme:
    """What fits: all of the range with all sizes, else with every other one, else a part of it.

    Threads are expected to help by the root of their number. The part has a grain for each thread
    at least, however long that takes.

    Args:
        size: Units of the range.
        grain: Chunks are multiples of it.
        cost: Seconds of a unit for one thread.
        most: Threads.
        seconds: What there is.
        rounds: How often the sweep is run.
        plain: Passes of one thread beside the sweep.
        jobs: Passes of all threads beside it.
    """

    def needed(units: int, factor: int) -> float:
        cells = cells_of(ladder(units, grain, cost, most, factor), units, grain, most)
        if factor > 2:  # the neighbours of the best
            cells += [(0, threads) for threads in thread_counts(most)] * 2
        each = 1 + sum(1 / math.sqrt(threads) for _, threads in cells)
        return cost * units * (each * rounds + plain + jobs / math.sqrt(most))

    for factor in (2, 4):
        if needed(size, factor) <= seconds:
            return Scheme(size, factor)
    least = min(grain * most, size)
    units = size
    while units > least and needed(units, 4) > seconds:
        units = max(units // 2 // grain * grain, least)
    return Scheme(units, 4)
