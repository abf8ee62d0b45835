# SPDX-License-Identifier: MIT
# What code finds in its thread beside the context variables, and should find in a helper as well.
#
# Helpers run in a copy of the submitting thread's context. Some libraries keep in the thread what
# they should keep in the context; a module that knows of one registers here how a helper takes that
# over. Mostly there is none, and a job pays for a look at an empty list only.
"""State of the submitting thread that helpers inherit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

__all__ = ["Inherited", "captured", "entered", "inherit"]

# Makes a context manager in which a thread has what was captured on another one.
Inherited = Callable[[], AbstractContextManager[object]]

# Only ever appended to, in one step: modules are imported, and register, in any threads.
_captures: list[Callable[[], Inherited | None]] = []


def inherit(capture: Callable[[], Inherited | None]) -> None:
    """Have `capture` called for each job, on the thread that submits it.

    `capture` is quick, and returns None where the thread has nothing that helpers do not have.
    """
    _captures.append(capture)


def captured() -> tuple[Inherited, ...]:
    """What a job that is submitted on this thread takes along."""
    if not _captures:
        return ()
    return tuple(found for capture in _captures if (found := capture()) is not None)


@contextmanager
def entered(state: tuple[Inherited, ...]) -> Iterator[None]:
    """A context manager in which a thread serves a job that took this state along."""
    with ExitStack() as stack:
        for each in state:
            stack.enter_context(each())
        yield
