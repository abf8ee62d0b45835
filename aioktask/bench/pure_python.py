# SPDX-License-Identifier: MIT
# Work in pure Python, which holds the GIL: threads make it no faster, processes do.
#
# In a module that a process which is started afresh can import.
"""Collatz's sequences: `longest`; and time that passes: `spin`."""

from __future__ import annotations

import time

__all__ = ["longest", "longest_here", "spin", "steps"]

# What a unit of `spin` takes, in seconds.
UNIT = 2e-6


def steps(number: int) -> int:
    """How many steps lead from a number to 1.

    >>> steps(27)
    111
    """
    count = 0
    while number > 1:
        number = 3 * number + 1 if number & 1 else number >> 1
        count += 1
    return count


def longest_here(start: int, stop: int) -> int:
    """The most steps from a number of a range."""
    return max(map(steps, range(start, stop)))


def longest(start: int, stop: int, data: object) -> int:
    """The same for a worker, which has no data."""
    return longest_here(start, stop)


def spin(start: int, stop: int, data: object) -> None:
    """Take so long for a unit, however many a call has."""
    until = time.perf_counter() + (stop - start) * UNIT
    while time.perf_counter() < until:
        pass
