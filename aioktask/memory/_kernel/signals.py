# SPDX-License-Identifier: MIT
# Most system calls that a signal interrupts have done nothing yet, and are made again: the handlers
# have run by then, as that is Python again.
"""Calls that signals do not end."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["uninterrupted"]

P = ParamSpec("P")
T = TypeVar("T")


def uninterrupted(call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Make a call again for as long as a signal interrupts it, of which handlers have run."""
    while True:
        try:
            return call(*arguments, **options)
        except InterruptedError:
            continue
