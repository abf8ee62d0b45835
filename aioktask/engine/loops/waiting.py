# SPDX-License-Identifier: MIT
# How a task waits for what a turn will bring, with and without minding cancellation.
#
# A waiter may be woken without a reason, so each wait asks again whether it is over. What it is
# registered for is none of these functions' business.
"""Waiting on loops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import anyio

from aioktask.engine.loops.loop import AsyncWaiter, Loop


async def wait_until(waiter: AsyncWaiter, done: Callable[[], bool]) -> None:
    """Wait until it is done, or the waiter is refused.

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
    """Wait until it is done, across any number of cancellations.

    Returns:
        The first cancellation of asyncio's own that came meanwhile.
    """
    first: asyncio.CancelledError | None = None
    # Known before it is entered, so that it is left also where a handler raises just after that.
    scope: anyio.CancelScope | None = None
    try:
        if loop.shields_at_once:
            scope = anyio.CancelScope(shield=True)
            scope.__enter__()
        while not done():
            try:
                waiter.renew()
                if not done():
                    await waiter.wait()
            except asyncio.CancelledError as cancelled:
                if first is None:
                    first = cancelled
                elif scope is None:
                    # A scope of anyio cancels again and again; asyncio's own cancel passes it.
                    scope = anyio.CancelScope(shield=True)
                    scope.__enter__()
    except GeneratorExit:  # the loop is gone, so the scope cannot be left in its task
        scope = None
        raise
    finally:
        if scope is not None:
            with contextlib.suppress(RuntimeError):  # it was struck before it was entered
                scope.__exit__(None, None, None)
    return first
