# SPDX-License-Identifier: MIT
# Whose nice counts: of what is submitted, and of who waits.
#
# The `priority()` block is a context variable, so it follows tasks and the chunks that they cause.
"""Nice values of blocks and waiters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import SupportsIndex

from aioktask.checks import nice_value

_block: ContextVar[int | None] = ContextVar("aioktask_priority", default=None)


@contextmanager
def priority(nice: SupportsIndex) -> Iterator[None]:
    """The nice of what is submitted and awaited in this block.

    It takes the place of the jobs' own `nice`. Tasks and chunks that start in the block inherit it;
    an inner block wins over an outer one.

    Args:
        nice: -20 (most urgent) to 19.

    Raises:
        TypeError, ValueError: `nice` is no integer, or out of range.
    """
    token = _block.set(nice_value("nice", nice))
    try:
        yield
    finally:
        _block.reset(token)


def submitted_nice(own: int) -> int:
    """The nice of a job that is submitted here, whose own is `own`."""
    block = _block.get()
    return own if block is None else block


def waiter_nice(enclosing: int | None, awaited: int) -> int:
    """The nice of who waits here for a job.

    That of the job in whose chunk it waits (`enclosing`), else of the block it is in, else the
    awaited job's own, so that nothing would be lent.
    """
    if enclosing is not None:
        return enclosing
    return submitted_nice(awaited)
