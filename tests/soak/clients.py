# SPDX-License-Identifier: MIT
# Clients of the soak, good ones and bad ones, over raw connections: those that read their answer,
# that go away at some moment, that leave it to the server to end what takes too long, and that send
# what is no request.
#
# Which come in what order is drawn from a seed. That a connection breaks on a client who waits for
# an answer is a fault, but while workers end.
"""Clients, good ones and bad ones."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

# In which a client names a time for its request.
TIME_HEADER = "X-Timeout"
# What a server may take for an answer, in seconds, on a machine that others load.
PATIENCE = 60.0
ANSWERS = frozenset({200, 202, 503, 504})


class Unexpected(Exception):  # noqa: N818 - not an error of ours
    """A server answered what it may not, or did not answer in time."""


@dataclass
class Crowd:
    """Clients that come again and again, until they are told to stop.

    Attributes:
        port: Of the server.
        seed: Of what they do.
        statuses: How often which status came; 0 for a connection that broke.
        served: How many clients of each kind there were.
        workers_end: Whether workers end now, so that connections may break.
    """

    port: int
    seed: int
    statuses: Counter[int] = field(default_factory=Counter)
    served: Counter[str] = field(default_factory=Counter)
    workers_end: bool = False

    @contextlib.asynccontextmanager
    async def coming(self, clients: int) -> AsyncIterator[None]:
        """So many of them come while the block lasts; all are gone afterwards.

        Raises:
            Unexpected: What a server did to one of them.
        """
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._come(random.Random(self.seed * 1000 + number), stop))
            try:
                yield
            finally:
                stop.set()

    async def _come(self, chance: random.Random, stop: asyncio.Event) -> None:
        kinds = [kind for kind, weight in KINDS for _ in range(weight)]
        while not stop.is_set():
            kind = chance.choice(kinds)
            self.served[kind.__name__] += 1
            try:
                async with asyncio.timeout(PATIENCE):
                    await kind(self, chance)
            except TimeoutError:
                raise Unexpected(f"{kind.__name__}: no answer in {PATIENCE} s") from None
            except OSError:  # of one that does not wait for an answer
                pass
            await asyncio.sleep(chance.uniform(0, 0.01))

    async def get(self, target: str, *headers: str) -> None:
        """Ask, and read all of the answer.

        Raises:
            Unexpected: There is none, or one that may not be.
        """
        status = 0
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            with closed(writer):
                writer.write(request(target, "GET", *headers))
                if head := await reader.readline():
                    status = int(head.split()[1])
                    await reader.read()
        self.statuses[status] += 1
        if status not in ANSWERS and not (status == 0 and self.workers_end):
            raise Unexpected(f"{target} was answered with {status}")


def request(target: str, method: str = "GET", *headers: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: soak", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode()


@contextlib.contextmanager
def closed(writer: asyncio.StreamWriter, *, reset: bool = False) -> Iterator[None]:
    """The connection is gone afterwards; with `reset` the other side is told so at once."""
    try:
        yield
    finally:
        if reset:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


def target(chance: random.Random) -> str:
    """What one may ask for."""
    units = chance.randrange(1, 400)
    match chance.randrange(8):
        case 0 | 1:
            return f"/heavy?units={units}"
        case 2:
            return f"/heavy?units={units}&on_loop=1"
        case 3:
            return f"/heavy?units={units}&fails_at={chance.randrange(units)}"
        case 4:
            return f"/submitted?units={units}"
        case 5:
            return f"/stream?units={units // 4 + 1}"
        case _:
            return "/call"


# What clients do.


async def reads(crowd: Crowd, chance: random.Random) -> None:
    """Asks, and reads the answer."""
    await crowd.get(target(chance))


async def names_a_time(crowd: Crowd, chance: random.Random) -> None:
    """Asks for something that has to be over in a time that is too short, or just not."""
    path = chance.choice(["/heavy", "/submitted", "/call"])
    units, timeout = chance.randrange(100, 800), chance.uniform(0.001, 0.1)
    if chance.random() < 0.5:  # for the job alone
        await crowd.get(f"{path}?units={units}&timeout={timeout:.4f}")
    else:
        await crowd.get(f"{path}?units={units}", f"{TIME_HEADER}: {timeout:.4f}")


async def leaves(crowd: Crowd, chance: random.Random) -> None:
    """Asks, and goes away, with or without a word."""
    _, writer = await asyncio.open_connection("127.0.0.1", crowd.port)
    with closed(writer, reset=chance.random() < 0.5):
        writer.write(request(target(chance)))
        await asyncio.sleep(chance.uniform(0, 0.08))


async def asks_for_two(crowd: Crowd, chance: random.Random) -> None:
    """Sends a second request before the first is answered, and goes after part of the answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", crowd.port)
    with closed(writer):
        once = request(target(chance)).replace(b"Connection: close\r\n", b"")
        writer.write(once + request(target(chance)))
        await reader.readline()


async def sends_rubbish(crowd: Crowd, chance: random.Random) -> None:
    """Sends what is no request, or half of one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", crowd.port)
    with closed(writer, reset=chance.random() < 0.5):
        whole = request("/body", "POST", "Content-Length: 100000")
        match chance.randrange(7):
            case 0:
                writer.write(chance.randbytes(chance.randrange(1, 4000)))
            case 1:  # it breaks off within the head
                writer.write(whole[: chance.randrange(len(whole))])
            case 2:  # within the body
                writer.write(whole + chance.randbytes(chance.randrange(99_999)))
            case 3:
                writer.write(request("/body", "POST", "Content-Length: many"))
            case 4:  # a head that is longer than any server takes
                with contextlib.suppress(ConnectionError, TimeoutError):
                    async with asyncio.timeout(0.1):
                        for _ in range(64):
                            writer.write(b"X-Long: " + b"y" * (1 << 16))
                            await writer.drain()
            case 5:  # a body that nobody reads
                writer.write(request("/call", "GET", "Content-Length: 9") + b"123")
            case _:  # a head that comes slowly
                for at in range(0, len(whole) // 2, 8):
                    writer.write(whole[at : at + 8])
                    await asyncio.sleep(0.001)
        if chance.random() < 0.5:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await reader.read(4096)


Kind = Callable[[Crowd, random.Random], Awaitable[None]]
KINDS: tuple[tuple[Kind, int], ...] = (
    (reads, 8),
    (leaves, 5),
    (names_a_time, 3),
    (asks_for_two, 1),
    (sends_rubbish, 3),
)
