# SPDX-License-Identifier: MIT
# How many calls may still be made, one inside the other, before Python refuses one.
#
# It is found out by making them: the versions of Python count differently what they limit, and none
# of them tells how much is left.
"""What is left of the stack."""

from __future__ import annotations

__all__ = ["has_stack", "need_stack"]


def need_stack(calls: int) -> None:
    """Raise a RecursionError unless so many nested calls can be made from here."""
    if calls:
        need_stack(calls - 1)


def has_stack(calls: int) -> bool:
    """Whether so many nested calls can be made from here."""
    try:
        need_stack(calls)
    except RecursionError:
        return False
    return True
