# SPDX-License-Identifier: MIT
# How a task of asyncio is woken where its loop, or the stack of who wakes it, is at its end.

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from aioktask.engine.loops.asyncio_loop import AsyncioLoop, AsyncioWaiter


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def refuse(loop: asyncio.AbstractEventLoop, error: BaseException) -> None:
    """Have the loop take no callbacks."""

    def raises(*_: object) -> None:
        raise error

    loop.call_soon_threadsafe = raises  # type: ignore[assignment, method-assign]


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("error", [RecursionError("deep"), MemoryError()])
def test_a_wake_up_that_was_struck_is_none_that_got_lost(
    error: BaseException, watched: bool, loop: asyncio.AbstractEventLoop
) -> None:
    """The loop is there, and will be given another one; nobody cancels what is waited for."""
    lost: list[None] = []
    waiter = AsyncioWaiter(loop, 0, (lambda: lost.append(None)) if watched else None)
    call_soon = loop.call_soon_threadsafe
    refuse(loop, error)
    with pytest.raises(type(error)):
        waiter.wake()
    assert not lost
    assert not waiter.heard
    loop.call_soon_threadsafe = call_soon  # type: ignore[method-assign]
    waiter.wake()
    loop.run_until_complete(asyncio.wait_for(waiter.wait(), 20))  # type: ignore[arg-type]
    assert waiter.heard
    assert not lost


def test_a_loop_that_is_closed_tells_of_the_loss_and_raises_nothing(
    loop: asyncio.AbstractEventLoop,
) -> None:
    lost: list[None] = []
    waiter = AsyncioWaiter(loop, 0, lambda: lost.append(None))
    loop.close()
    waiter.wake()
    assert lost == [None]
    assert waiter.heard
    AsyncioWaiter(loop, 0, None).wake()


@pytest.mark.parametrize("closed", [False, True])
def test_what_is_posted_is_called_or_lost(closed: bool, loop: asyncio.AbstractEventLoop) -> None:
    told: list[str] = []
    asked = AsyncioLoop(loop)
    if closed:
        loop.close()
    asked.post(lambda: told.append("called"), lambda: told.append("lost"))
    if not closed:
        loop.run_until_complete(asyncio.sleep(0))
    assert told == ["lost" if closed else "called"]


def test_to_post_at_the_end_of_the_stack_raises(loop: asyncio.AbstractEventLoop) -> None:
    refuse(loop, RecursionError("deep"))
    with pytest.raises(RecursionError):
        AsyncioLoop(loop).post(lambda: None, None)
