# SPDX-License-Identifier: MIT
# Which nice counts for a job that is submitted and for a waiter, and which one the thread of a
# helper should have.
#
# The `priority()` blocks are a context variable, so they follow tasks and the chunks that they
# cause.
# Linux gives each thread a nice of its own; elsewhere it is the process's, which is left alone.
"""Nice values of blocks, waiters and threads."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from contextlib import ContextDecorator
from contextvars import ContextVar, Token
from typing import Any, SupportsIndex, TypeVar, cast

from aioktask.checks import is_async, is_generator_function, name_of, nice_value
from aioktask.engine.machine.os_threads import may_lower, process_nice

__all__ = [
    "ABOVE_LOOP",
    "MOST_ABOVE_LOOP",
    "MOST_NICE",
    "gil_is_on",
    "may_lower",
    "priority",
    "process_nice",
    "submitted_nice",
    "thread_nice",
    "waiter_nice",
]

F = TypeVar("F", bound=Callable[..., Any])

# How far a helper's nice is above the loop's thread's, at least: enough that a loop that has
# something to do gets a CPU first.
ABOVE_LOOP = 1
# How far it is above at most with the GIL, whatever the job's nice: a thread that is preempted
# while it holds the GIL keeps the loop waiting until it is scheduled again: at 19, half a second.
MOST_ABOVE_LOOP = 5

MOST_NICE = 19


class _Block:
    """One passage through a `priority` block."""

    __slots__ = ("nice", "over")

    def __init__(self, nice: int) -> None:
        self.nice = nice
        self.over = False  # whether it ended in another context than it began in


# The blocks that this code is in, the innermost last.
_blocks: ContextVar[tuple[_Block, ...]] = ContextVar("aioktask_priority", default=())


class PriorityBlock(ContextDecorator):
    """What `priority` returns: a block that any context and thread may leave.

    A block that is left in the context that entered it is over there, and goes on in tasks and
    chunks that inherited it. One that is left in another context (a framework ends a generator in a
    task of its own) is over in all contexts, since the first cannot be changed from there.
    """

    def __init__(self, nice: int) -> None:
        self._nice = nice
        self._entered: list[tuple[_Block, Token[tuple[_Block, ...]]]] = []

    def _recreate_cm(self) -> PriorityBlock:  # of each call of a decorated function
        return PriorityBlock(self._nice)

    def __call__(self, func: F) -> F:
        if isinstance(func, staticmethod | classmethod):
            return cast("F", type(func)(self(func.__func__)))
        if is_generator_function(func):
            raise TypeError(
                f"priority() cannot be around the generator function {name_of(func)}, which runs "
                "in pieces: the block would go on between them. Use `with priority(...)` inside it"
            )
        if not is_async(func):
            return super().__call__(func)

        @functools.wraps(func)
        async def within(*args: Any, **kwargs: Any) -> Any:
            with self._recreate_cm():
                return await func(*args, **kwargs)

        return cast("F", within)

    def __enter__(self) -> None:
        block = _Block(self._nice)
        token = _blocks.set((*(each for each in _blocks.get() if not each.over), block))
        self._entered.append((block, token))

    def __exit__(self, *exc: object) -> None:
        here = _blocks.get()
        for entry in reversed(self._entered.copy()):
            block, token = entry
            try:
                _blocks.reset(token)  # only to find out whether this context entered it
            except (RuntimeError, ValueError):  # another one did, whose thread may just leave it
                continue
            here = tuple(each for each in here if each is not block)
            if here != _blocks.get():  # the blocks did not end in the order in which they began
                _blocks.set(here)
            try:
                self._entered.remove(entry)
            except ValueError:  # a thread has just ended it from elsewhere, in place of another one
                continue
            return
        with contextlib.suppress(IndexError):
            self._entered.pop()[0].over = True


def priority(nice: SupportsIndex) -> PriorityBlock:
    """Set, in a block, the nice of what is submitted and awaited in it.

    This nice takes the place of the jobs' own. Tasks and chunks that start in the block inherit it;
    an inner block wins over an outer one. The block may be left in any thread, task or context, and
    in any order with others; as a decorator it is a block around each call, of an `async def` until
    it has been awaited. (Where another function makes the coroutine, around the making only.)

    Args:
        nice: -20 (most urgent) to 19.

    Raises:
        TypeError, ValueError: `nice` is no integer, or out of range; the decorated function is a
            generator function.

    >>> with priority(5):
    ...     submitted_nice(0)
    5
    """
    return PriorityBlock(nice_value("nice", nice))


def submitted_nice(own: int) -> int:
    """The nice of a job that is submitted here, whose own is `own`."""
    for block in reversed(_blocks.get()):
        if not block.over:
            return block.nice
    return own


def waiter_nice(enclosing: int | None, awaited: int) -> int:
    """The nice of a waiter that waits here for a job.

    It is that of the job in whose chunk the waiter is (`enclosing`), else of the block that it is
    in, else the awaited job's own, so that nothing is lent.
    """
    if enclosing is not None:
        return enclosing
    return submitted_nice(awaited)


def thread_nice(nice: int, base: int, *, gil: bool) -> int:
    """The nice of a thread that serves a job of this nice.

    With the GIL it stays within a few steps above `base`, the nice of the loop's thread, and the
    job's shares and pauses do the rest. Without it the full range is used: no thread waits for what
    this one holds. It is never below `base`, so that helpers do not take the loop's CPU.

    >>> [thread_nice(nice, 0, gil=True) for nice in (-20, 0, 10, 19)]
    [1, 1, 3, 5]
    >>> [thread_nice(nice, 0, gil=False) for nice in (-20, 0, 10, 19)]
    [1, 1, 11, 19]
    """
    above = max(nice, 0)
    if gil:
        above = above * (MOST_ABOVE_LOOP - ABOVE_LOOP) // MOST_NICE
    return min(base + ABOVE_LOOP + above, MOST_NICE)


_is_gil_enabled: Callable[[], bool] | None = getattr(sys, "_is_gil_enabled", None)


def gil_is_on() -> bool:
    """Whether threads of this interpreter run Python code one at a time."""
    return _is_gil_enabled is None or _is_gil_enabled()
