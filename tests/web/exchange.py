# SPDX-License-Identifier: MIT
# One ASGI request as a server exchanges it with an application: the test says what arrives and
# when the client goes, and reads what was sent. As real servers do, `receive` tells of a disconnect
# again and again, also once the response is complete.

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import anyio
import anyio.lowlevel

Message = MutableMapping[str, Any]
App = Callable[..., Awaitable[None]]


class Exchange:
    """A request of one client.

    Attributes:
        read: How many bytes of the body were read from the server.
        sent: What the application sent.
    """

    def __init__(self, body: Iterable[bytes] = (), headers: Iterable[tuple[str, str]] = ()) -> None:
        pieces = list(body) or [b""]
        self._arrived = deque(
            {"type": "http.request", "body": piece, "more_body": number < len(pieces)}
            for number, piece in enumerate(pieces, 1)
        )
        self._over = anyio.Event()
        self.read = 0
        self.sent: list[Message] = []
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST" if body else "GET",
            "scheme": "http",
            "path": "/",
            "raw_path": b"/",
            "root_path": "",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "state": {},
        }

    def leave(self) -> None:
        """The client goes away."""
        self._over.set()

    async def receive(self) -> Message:
        await anyio.lowlevel.checkpoint()
        if self._arrived:
            message = self._arrived.popleft()
            self.read += len(message["body"])
            return message
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._over.set()
        await anyio.lowlevel.checkpoint()

    async def run(self, app: App) -> None:
        await app(self.scope, self.receive, self.send)

    @property
    def status(self) -> int | None:
        """Of the response, None where there was none."""
        begun = [each["status"] for each in self.sent if each["type"] == "http.response.start"]
        assert len(begun) <= 1
        return begun[0] if begun else None

    @property
    def body(self) -> bytes:
        return b"".join(each.get("body", b"") for each in self.sent)
