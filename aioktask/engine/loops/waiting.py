# SPDX-License-Identifier: MIT
# How a task waits for what a turn will bring, with and without minding cancellation.
#
# A waiter may be woken without a reason, so each wait asks again whether it is over. To register
# the waiter with a run or a group is left to the code that calls these functions.
"""Waiting on loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio

from aioktask.engine.loops.loop import AsyncWaiter, Loop


async def wait_until(waiter: AsyncWaiter, done: Callable[[], bool]) -> None:
    """Wait until `done()` is true, or the waiter is refused.

    **Cancellation** ends the wait.

    Raises:
        DeadlockError: The wait would never end.
    """
    while not done():
        if waiter.refused is not None:
            raise waiter.refused
        waiter.renew()
        if not done():
            await waiter.wait()


async def wait_until_shielded(
    loop: Loop, waiter: AsyncWaiter, done: Callable[[], bool]
) -> asyncio.CancelledError | None:
    """Wait until `done()` is true, across any number of cancellations.

    Returns:
        The first cancellation of asyncio's own that came meanwhile.
    """
    shield = _Shield()
    try:
        return await _wait_across_cancellations(loop, waiter, done, shield)
    finally:
        shield.leave()  # again, should a handler have raised while it was left


async def _wait_across_cancellations(
    loop: Loop, waiter: AsyncWaiter, done: Callable[[], bool], shield: _Shield
) -> asyncio.CancelledError | None:
    first: asyncio.CancelledError | None = None
    try:
        if loop.shields_at_once:
            shield.enter()
        while not done():
            try:
                waiter.renew()
                if not done():
                    await waiter.wait()
            except asyncio.CancelledError as cancelled:
                if first is None:
                    first = cancelled
                else:
                    # A scope of anyio cancels again and again; asyncio's cancel passes the shield.
                    shield.enter()
    except GeneratorExit:  # the loop is gone, so the scope cannot be left in its task
        shield.forget()
        raise
    finally:
        shield.leave()
    return first


# What a call that waits across cancellations needs below itself: 4 calls to where the scope of
# `_Shield` is left, and that of anyio's code for it. Such a call asks for it as it begins
# (`need_stack`). Where the scope is entered it cannot be told: a cancellation is thrown into the
# innermost of a task's coroutines, for which Python counts none of those around it, and there seems
# to be more stack than there is when the wait goes on.
CALLS_OF_A_WAIT = 16
# What a scope needs that ends with such a wait, however often something strikes. It asks for that
# as it is entered, since it is left by the same code: an `AsyncExitStack` goes a little deeper.
CALLS_OF_LEAVING = CALLS_OF_A_WAIT + 8


class _Shield:
    """A shielded scope of anyio's for a part of a function, entered at need."""

    __slots__ = ("_scope",)

    def __init__(self) -> None:
        self._scope: anyio.CancelScope | None = None

    def enter(self) -> None:
        """Enter the scope, unless that was done."""
        if self._scope is None:
            # Known before it is entered, so that it is left also where a handler raises in between.
            self._scope = anyio.CancelScope(shield=True)
            self._scope.__enter__()

    def leave(self) -> None:
        """Leave the scope, if it was entered; may be called again."""
        if self._scope is not None:
            try:
                self._scope.__exit__(None, None, None)
            except RecursionError:  # the caller has more stack, and leaves the scope again
                raise
            except RuntimeError:  # it was not entered, or is left already
                pass
            self._scope = None

    def forget(self) -> None:
        """Have `leave` do nothing, since the scope cannot be left any more."""
        self._scope = None
