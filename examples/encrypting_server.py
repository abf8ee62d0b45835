# SPDX-License-Identifier: MIT
# A server that encrypts what it receives, packet by packet, and forwards it in order: what padata's
# serial jobs were made for (IPsec), in user space.
"""A socket server that receives packets, encrypts them on helpers, and forwards them in order."""

import asyncio
import os
import struct
import sys
import time
from collections.abc import AsyncIterator

from aioktask import map_ordered

try:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
except ImportError as error:
    print(f"this needs cryptography, which is not there ({error}): pip install cryptography")
    sys.exit()

PACKETS = 400
PACKET_BYTES = 1 << 18
WINDOW = 16  # packets that are in the server at a time, for each connection

HEAD = struct.Struct("!QI")  # of a packet: its number, and how many bytes follow
cipher = AESGCM(AESGCM.generate_key(128))


async def packets(reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, bytes]]:
    """The packets of a connection, until its other end is closed."""
    while True:
        try:
            number, size = HEAD.unpack(await reader.readexactly(HEAD.size))
        except asyncio.IncompleteReadError:
            return
        yield number, await reader.readexactly(size)


def encrypt(packet: tuple[int, bytes]) -> bytes:
    """One packet, on a helper: OpenSSL lets go of the GIL meanwhile."""
    number, data = packet
    sealed = cipher.encrypt(number.to_bytes(12, "big"), data, None)
    return HEAD.pack(number, len(sealed)) + sealed


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """Encrypt what comes and forward it. Where the next hop is slow, no more is read."""
    _, forward = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with map_ordered(encrypt, packets(reader), window=WINDOW) as sealed:
            async for packet in sealed:
                forward.write(packet)
                await forward.drain()
    finally:
        for each in (forward, writer):
            each.close()
            await each.wait_closed()


async def send(port: int, data: bytes) -> None:
    """A client that sends all packets."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    for number in range(PACKETS):
        writer.write(HEAD.pack(number, len(data)) + data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def main() -> None:
    data = os.urandom(PACKET_BYTES)
    received: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()

    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for packet in packets(reader):
            received.put_nowait(packet)
        received.put_nowait(None)
        writer.close()
        await writer.wait_closed()

    hop = await asyncio.start_server(sink, "127.0.0.1")
    hop_port = hop.sockets[0].getsockname()[1]
    server = await asyncio.start_server(lambda r, w: serve(r, w, hop_port), "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    async with hop, server:
        began = time.perf_counter()
        await send(port, data)
        arrived = []
        while (packet := await received.get()) is not None:
            arrived.append(packet)
        seconds = time.perf_counter() - began
    assert [number for number, _ in arrived] == list(range(PACKETS))
    number, last = arrived[-1]
    assert cipher.decrypt(number.to_bytes(12, "big"), last, None) == data
    mebibytes = PACKETS * PACKET_BYTES / (1 << 20)
    print(f"{PACKETS} packets, {mebibytes:.0f} MiB, encrypted and forwarded in order", end="")
    print(f" in {seconds:.2f} s")


if __name__ == "__main__":
    asyncio.run(main())
