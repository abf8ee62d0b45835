# SPDX-License-Identifier: MIT
# A client that puts a load on a web server, in a process of its own.
#
# The load is an open loop: when each request is sent is fixed beforehand, and its latency counts
# from then, so a server that stalls does not put the load off, and what would have been sent
# meanwhile counts. Requests of a path are sent at even distances, from a moment that is drawn.
# Requests that are one after the other beside that are a closed loop: how long they take tells of
# throughput, not of latency.
#
# It is asked by lines of JSON on stdin and answers with one line each: see `load`. It ends with its
# stdin, and dies with its parent.
"""`python -m aioktask.bench.load PARENT`."""

from __future__ import annotations

import asyncio
import json
import random
import selectors
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from aioktask.bench.processes import die_with

if TYPE_CHECKING:
    import httptools

__all__ = ["load", "schedule"]

# Below what `select` can look at; what is more waits for a connection, and its clock runs.
MOST_CONNECTIONS = 900
# The status of a request whose connection broke.
BROKEN = 0


def schedule(rates: Mapping[str, float], seconds: float, seed: int) -> list[tuple[float, str]]:
    """When to send what: seconds from the beginning, ascending, and the path.

    >>> [path for _, path in schedule({"/": 2.0}, 1.5, seed=1)]
    ['/', '/', '/']
    """
    chance = random.Random(seed)
    first = {path: chance.random() for path in rates}
    return sorted(
        ((at + first[path]) / rate, path)
        for path, rate in rates.items()
        for at in range(round(rate * seconds))
    )


class Connection(asyncio.Protocol):
    """A connection that is kept alive, with one request on it at a time."""

    def __init__(self) -> None:
        from httptools import HttpResponseParser

        self._parser: httptools.HttpResponseParser = HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._answered: asyncio.Future[int] | None = None
        self._lost = asyncio.Event()
        self.closed = False

    async def ask(self, path: str) -> int:
        """Send a request; the status of the answer, when all of it is there."""
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        return await self._answered

    async def close(self) -> None:
        """Close it, and wait until it is."""
        self._transport.close()
        await self._lost.wait()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._answer(BROKEN)
        self.closed = True
        self._lost.set()

    # What the parser calls.

    def on_message_complete(self) -> None:
        self.closed |= not self._parser.should_keep_alive()
        self._answer(self._parser.get_status_code())

    def _answer(self, status: int) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(status)


class _Load:
    """The requests of one load, and what came of them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Connection] = []
        self._most = asyncio.Semaphore(MOST_CONNECTIONS)
        self._loop = asyncio.get_running_loop()

    async def ask(self, path: str) -> int:
        """The status of one answer, on a connection that is idle, or a new one; else `BROKEN`."""
        async with self._most:
            connection = self._idle.pop() if self._idle else None
            if connection is None or connection.closed:
                try:
                    _, connection = await self._loop.create_connection(
                        Connection, "127.0.0.1", self._port
                    )
                except OSError:
                    return BROKEN
            status = await connection.ask(path)
            if not connection.closed:
                self._idle.append(connection)
            return status

    async def close(self) -> None:
        """Close the connections, which are idle now."""
        for connection in self._idle:
            await connection.close()

    async def at_rates(
        self, plan: Sequence[tuple[float, str]], stop: asyncio.Event, took: dict[str, list[object]]
    ) -> list[float]:
        """Send as planned until `stop`, and wait for the answers; how late each was sent."""
        late: list[float] = []
        tasks: set[asyncio.Task[None]] = set()

        async def one(path: str, due: float) -> None:
            status = await self.ask(path)
            took[path].append((self._loop.time() - due, status))

        began = self._loop.time()
        for due, path in plan:
            while not stop.is_set() and (left := began + due - self._loop.time()) > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), left)
            if stop.is_set():
                break
            late.append(self._loop.time() - began - due)
            task = asyncio.create_task(one(path, began + due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)
        return late


async def load(
    *,
    port: int,
    rates: Mapping[str, float],
    seconds: float,
    seed: int,
    background: str | None = None,
    times: int = 0,
    together: int = 1,
) -> dict[str, object]:
    """Put a load on a server.

    Args:
        port: Where it listens, on this machine.
        rates: How often to ask for which path, a second.
        seconds: How long, at most.
        seed: Of the moment of the first request of each path.
        background: A path to ask for beside that, one request after the other. The load ends with
            the last of them.
        together: How many such requests are under way at a time.
        times: How often each of them is asked.

    Returns:
        By path pairs of seconds and status; how late requests were sent; and how long the ones in
        the background took, in all.
    """
    asked = _Load(port)
    took: dict[str, list[object]] = {path: [] for path in rates}
    statuses: list[int] = []
    stop = asyncio.Event()

    async def one_after_the_other() -> None:
        if background is not None:
            statuses.extend([await asked.ask(background) for _ in range(times)])

    async def in_background() -> float:
        began = loop.time()
        await asyncio.gather(*[one_after_the_other() for _ in range(together)])
        if background is not None:
            stop.set()
        return loop.time() - began

    loop = asyncio.get_running_loop()
    late, background_took = await asyncio.gather(
        asked.at_rates(schedule(rates, seconds, seed), stop, took), in_background()
    )
    await asked.close()
    return {"took": took, "late": late, "background": background_took, "statuses": statuses}


def _loop() -> asyncio.AbstractEventLoop:
    """A loop whose timers are exact to some microseconds: those of others are to a millisecond."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def _serve() -> None:
    print("ready", flush=True)
    with asyncio.Runner(loop_factory=_loop) as runner:
        for line in sys.stdin:
            print(json.dumps(runner.run(load(**json.loads(line)))), flush=True)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    _serve()
