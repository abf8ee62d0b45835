# SPDX-License-Identifier: MIT
# How a stream reads an async source.
#
# In a task of its own, so that a value can be given while the source is waited for; that task also
# closes it, since an async generator's scopes belong to the task that entered them. Guarantees that
# the source is asked for an item only where the consumer has room for it, and that helpers come for
# what was taken before the source, or room, is waited for.
"""Async sources."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any

import anyio
import anyio.abc

from aioktask.engine.loops.loop import AsyncWaiter
from aioktask.engine.state.record import raisable
from aioktask.streams._consumer import Consumer

__all__ = ["SourceReader"]


class SourceReader:
    """Reads an async source, in a task of its own."""

    def __init__(
        self, consumer: Consumer[Any, Any], waiter: AsyncWaiter, iterator: AsyncIterator[Any]
    ) -> None:
        self._consumer = consumer
        self._waiter = waiter
        self._iterator = iterator
        self._tasks: anyio.abc.TaskGroup | None = None
        self._begun = False  # whether their scope was entered
        self._leaving: Coroutine[Any, Any, object] | None = None  # leaves that
        self._scope = anyio.CancelScope()  # of the task that reads
        self._ends = False  # whether that was told to end
        self._room: anyio.Event | None = None  # set when the consumer was given a value
        self._close_error: BaseException | None = None

    async def begin(self) -> None:
        """Start the task."""
        tasks = self._tasks = anyio.create_task_group()
        await tasks.__aenter__()
        self._begun = True
        tasks.start_soon(self._read, name=f"source of {self._consumer.options.name}")

    def value_given(self) -> None:
        """Take in that there is room for one item more."""
        if self._room is not None:
            self._room.set()
            self._room = None

    @property
    def over(self) -> bool:
        """Whether its task has ended, or never began."""
        return self._tasks is None or self._was_left

    async def end(self) -> None:
        """Read no more, and wait until the source is closed.

        Raises:
            BaseException: What closing the source raised.
        """
        tasks = self._tasks
        if tasks is None:
            return
        self._ends = True
        self._scope.cancel()
        # In its own variable, which tells where this is struck whether the tasks were left by then:
        # they may be left once, and must be.
        if self._leaving is None:
            self._leaving = tasks.__aexit__(None, None, None)
        try:
            if not self._was_left:
                await self._leaving
        except Exception:
            if self._begun:
                raise  # else struck before, so there may be nothing to leave
        self._tasks = None
        error, self._close_error = self._close_error, None
        if error is not None:
            try:
                raise error
            finally:
                del error

    @property
    def _was_left(self) -> bool:
        """Whether leaving the tasks has come to its end."""
        return self._leaving is not None and getattr(self._leaving, "cr_frame", None) is None

    def forget(self) -> None:
        """Read no more, where nobody can wait for that."""
        self._ends = True
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._scope.cancel()

    async def _read(self) -> None:
        with self._scope:
            await self._read_and_close()

    async def _read_and_close(self) -> None:
        consumer, error, ended = self._consumer, None, False
        try:
            ended = await self._read_all()
        except anyio.get_cancelled_exc_class() as cancelled:
            if self._ends:
                raise
            # A task that the source waits for may have been cancelled. Where it is this one, its
            # consumer may be shielded, and must not take that for the source's end.
            error = raisable(cancelled, "the source")
            if anyio.current_effective_deadline() == -math.inf:
                raise
        except BaseException as raised:
            error = raised
        finally:
            if ended or error is not None:
                consumer.end_source(error)
            del error
            consumer.feed.wake(self._waiter)
            await self._close()

    async def _read_all(self) -> bool:
        """Read as long as items are wanted; whether that was to the source's end."""
        consumer, iterator = self._consumer, self._iterator
        exchange = consumer.exchange
        while not (exchange.ended or consumer.feed.stopping):
            while not consumer.has_room:
                self._room = room = anyio.Event()
                consumer.post()
                await room.wait()
            try:
                item = await _Watched(iterator.__anext__(), consumer.post)
            except StopAsyncIteration:
                return True
            consumer.take(item)
            del item  # while this waits nothing here refers to it
            if consumer.wants_post:
                consumer.post()
        return False

    async def _close(self) -> None:
        close = getattr(self._iterator, "aclose", None)
        if not callable(close):
            return
        with anyio.CancelScope(shield=True):
            try:
                await close()
            except Exception as error:
                self._close_error = error


class _Watched:
    """Awaits something, and calls `suspends` before that lets the loop go on for the first time."""

    __slots__ = ("_awaitable", "_suspends")

    def __init__(self, awaitable: Awaitable[Any], suspends: Callable[[], None]) -> None:
        self._awaitable = awaitable
        self._suspends = suspends

    def __await__(self) -> Generator[Any, Any, Any]:
        steps: Any = self._awaitable.__await__()
        step: Callable[[], Any]
        try:
            wanted = next(steps)
        except StopIteration as stop:
            return stop.value
        self._suspends()
        while True:
            try:
                sent = yield wanted
            except GeneratorExit:
                with contextlib.suppress(AttributeError):
                    steps.close()
                raise
            except BaseException as error:
                step = partial(steps.throw, error)
            else:
                step = steps.__next__ if sent is None else partial(steps.send, sent)
                sent = None  # on trio it may be an exception, whose traceback leads here
            try:
                wanted = step()
            except StopIteration as stop:
                return stop.value
            finally:
                del step
