# SPDX-License-Identifier: MIT
# Values of an answer that another process gave, as JSON has them: what is expected, or an error of
# `processes.UNREADABLE` that says what there is instead.
"""Checked values of JSON."""

from __future__ import annotations

import math

__all__ = ["integer", "integer_or_none", "nesting", "number", "text"]

MOST_DEPTH = 100


def integer(value: object) -> int:
    """The value, if it is an integer.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(value, int):
        raise TypeError(f"an integer is wanted, got {value!r}")
    return value


def integer_or_none(value: object) -> int | None:
    """The value, if it is an integer or None.

    Raises:
        TypeError: It is not.
    """
    return None if value is None else integer(value)


def number(value: object) -> float:
    """The value, if it is a finite number.

    Raises:
        TypeError: It is not.
        OverflowError: It is an integer too large for that to be told.
    """
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"a finite number is wanted, got {value!r}")
    return value


def nesting(value: object) -> int:
    """The value, if a thread may be in so many chunks of other jobs, each with a row on the page.

    Raises:
        TypeError: It is no integer.
        ValueError: It is out of range.
    """
    found = integer(value)
    if not 0 <= found <= MOST_DEPTH:
        raise ValueError(f"a depth of 0 to {MOST_DEPTH} is wanted, got {found}")
    return found


def text(value: object) -> str:
    """The value, if it is text.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(value, str):
        raise TypeError(f"text is wanted, got {value!r}")
    return value
