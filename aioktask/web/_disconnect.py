# SPDX-License-Identifier: MIT
# Who reads what an ASGI server says of a request while its handler works: the body, and that the
# client is gone.
#
# A server tells of a disconnect only to whoever calls `receive`, and hands each message to one
# caller. So one task calls it all the time and keeps the body for the handler, which reads from
# here. What is kept is bounded in memory, however small the pieces are: while the bound is reached
# nothing is read, and a disconnect is seen once the handler has taken something. Relies on servers
# that answer `http.disconnect` again and again once the client is gone, or the response is
# complete.
"""Watching an ASGI request for its client's disconnect."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

DISCONNECT = "http.disconnect"

# What a message takes in memory beside its body, in bytes, rounded up: a client may send a body
# byte by byte.
MESSAGE_BYTES = 256


class Watch:
    """The messages of one request, read ahead by one task, and what was read from them.

    Args:
        receive: The server's.
        most_bytes: So much is read ahead, and the rest of the message that reaches it; each message
            counts as `MESSAGE_BYTES` more than its body.

    Attributes:
        cut: Whether the client went and the block of `cancelling` was cancelled for it.
        answered: Whether the response is complete: what the server calls a disconnect from then
            on is none.
    """

    def __init__(self, receive: Receive, most_bytes: int) -> None:
        self._receive = receive
        self._most_bytes = most_bytes
        self._kept: deque[Message] = deque()
        self._bytes = 0
        self._reading = False
        self._gone: Message | None = None
        self._failed: Exception | None = None
        self._changed = anyio.Event()
        self._cancel: Callable[[], None]
        self.cut = False
        self.answered = False

    @property
    def gone(self) -> bool:
        """Whether the client is gone, as far as was seen."""
        return self._gone is not None

    async def lose(self) -> None:
        """Take in that the client is gone, before the server tells so, or where it never does.

        Where that cancels the block of `cancelling`, it is cancelled in here.
        """
        if self._gone is None:
            self._gone = {"type": DISCONNECT}
            self._tell()
        if self._reading and not self.answered:
            self._cancel()
        await anyio.lowlevel.checkpoint()

    async def receive(self) -> Message:
        """The next message, as the server's own `receive` gives it."""
        while True:
            if self._kept:
                message = self._kept.popleft()
                self._bytes -= _bytes_of(message)
                self._tell()
                return message
            if self._gone is not None:
                return self._gone
            if self._failed is not None:
                raise self._failed
            if not self._reading:  # before the watch, or after it
                return await self._receive()
            await self._changed.wait()

    @asynccontextmanager
    async def cancelling(self) -> AsyncIterator[None]:
        """Cancel the block as soon as the client is gone; `cut` says afterwards whether it was.

        An exception of the block goes on as it is, never in a group.
        """
        error: BaseException | None = None
        finished = False
        async with anyio.create_task_group() as group:
            self._reading = True
            self._cancel = group.cancel_scope.cancel
            group.start_soon(self._read_ahead)
            try:
                yield
                finished = True
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as raised:
                error = raised
            finally:
                self._reading = False
                self._failed = None  # its traceback leads here; who asks now asks the server itself
                self._tell()
            group.cancel_scope.cancel()
        if error is not None:
            raise error
        self.cut = not finished

    async def _read_ahead(self) -> None:
        try:
            while self._gone is None:
                while self._bytes >= self._most_bytes:
                    await self._changed.wait()
                message = await self._receive()
                if message["type"] == DISCONNECT:
                    self._gone = message
                elif _says_nothing(message):
                    continue
                else:
                    self._kept.append(message)
                    self._bytes += _bytes_of(message)
                self._tell()
        except Exception as error:  # of the server: for the handler that asks next
            self._failed = error
            self._tell()
            return
        if not self.answered:
            self._cancel()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def _bytes_of(message: Message) -> int:
    return len(message.get("body", b"")) + MESSAGE_BYTES


def _says_nothing(message: Message) -> bool:
    """Whether it is a part of the body with nothing in it, and further ones come."""
    more = message.get("more_body", False)
    return bool(message["type"] == "http.request" and more and not message.get("body"))
