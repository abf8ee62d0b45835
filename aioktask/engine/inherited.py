# SPDX-License-Identifier: MIT
# What code finds in its thread beside the context variables, and should find in a helper as well.
#
# Helpers run in a copy of the context of who submitted. Some libraries keep in the thread what they
# should keep there; whoever knows of one says here how it is taken along. Nobody does mostly, and
# then it costs a job nothing but a look at an empty tuple.
"""State of the submitting thread that helpers inherit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

__all__ = ["Inherited", "captured", "entered", "inherit"]

# Makes a block in which a thread has what another one had.
Inherited = Callable[[], AbstractContextManager[object]]

_captures: tuple[Callable[[], Inherited | None], ...] = ()


def inherit(capture: Callable[[], Inherited | None]) -> None:
    """Have `capture` called for each job, on the thread that submits it.

    It is quick, and returns None where the thread has nothing that helpers do not have anyway.
    """
    global _captures
    _captures = (*_captures, capture)


def captured() -> tuple[Inherited, ...]:
    """What a job that is submitted on this thread takes along."""
    if not _captures:
        return ()
    return tuple(found for capture in _captures if (found := capture()) is not None)


@contextmanager
def entered(state: tuple[Inherited, ...]) -> Iterator[None]:
    """The block in which a thread serves a job that took this along."""
    with ExitStack() as stack:
        for each in state:
            stack.enter_context(each())
        yield
