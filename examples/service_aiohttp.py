# SPDX-License-Identifier: MIT
# A service of aiohttp over the source code of Python's standard library, whose heavy endpoint
# leaves files behind, and none of them where its client goes away. Without arguments it starts
# itself on a free port, asks each endpoint, goes away from one, and stops it by SIGTERM.
"""Compressing files, by HTTP: python service_aiohttp.py [serve PORT DIRECTORY]."""

import gzip
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path

from aioktask import Job, map_ordered, run_multithreaded

try:
    from aiohttp import web
except ImportError as error:
    print(f"this needs aiohttp ({error}): pip install 'aioktask[aiohttp]'")
    sys.exit()

from aioktask.web.aiohttp import cleanup_ctx, coordinator_of, deadline, deadlines, errors

FILES = sorted(Path(sysconfig.get_path("stdlib")).glob("*/*.py"))[:600]


def service(directory: Path) -> web.Application:
    """The application, which puts its files into this directory."""

    def pack(start: int, stop: int) -> None:
        for number in range(start, stop):
            packed = gzip.compress(FILES[number].read_bytes())
            (directory / f"{number}.gz").write_bytes(packed)

    def unpack(start: int, stop: int) -> None:
        for number in range(start, stop):
            (directory / f"{number}.gz").unlink()

    async def interactive(request: web.Request) -> web.Response:
        """The checksum of one file: one call on a helper."""
        path = FILES[int(request.query["file"]) % len(FILES)]
        value = await coordinator_of(request).run(
            lambda: zlib.crc32(path.read_bytes()), name="checksum", timeout=deadline(request)
        )
        return web.json_response({path.name: value})

    async def heavy(request: web.Request) -> web.Response:
        """All files, packed. A client that goes away leaves none."""
        job = Job(pack, len(FILES), chunk=1, undo=unpack, nice=5, name="pack")
        await run_multithreaded(job, coordinator=coordinator_of(request), timeout=deadline(request))
        return web.json_response({"files": len(FILES)})

    async def streaming(request: web.Request) -> web.StreamResponse:
        """A line for each file, in order, as fast as the client reads."""
        response = web.StreamResponse()
        await response.prepare(request)
        async with map_ordered(
            lambda path: f"{zlib.crc32(path.read_bytes()):08x}  {path.name}\n",
            FILES,
            coordinator=coordinator_of(request),
            name="checksums",
        ) as lines:
            async for line in lines:
                await response.write(line.encode())
        return response

    async def ready(request: web.Request) -> web.Response:
        return web.Response(status=200 if coordinator_of(request).ready else 503)

    app = web.Application(middlewares=[errors(), deadlines(header="x-timeout", most=60)])
    app.cleanup_ctx.append(cleanup_ctx(max_queued=64, finish=5, undo=10))
    for handler in (interactive, heavy, streaming, ready):
        app.router.add_get(f"/{handler.__name__}", handler)
    return app


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        return answer.read().decode()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            sys.exit("the service does not get on")
        time.sleep(0.01)


def try_it(directory: Path) -> None:
    """Start the service, ask it, and stop it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-W", "error", __file__, "serve", str(port), str(directory)]
    )

    def serves() -> bool:
        if server.poll() is not None:
            sys.exit(f"the service ended: {server.returncode}")
        try:
            return get(port, "/ready") == ""
        except OSError:
            return False

    try:
        wait_until(serves)
        print("interactive:", get(port, "/interactive?file=7"))
        print("streaming:  ", len(get(port, "/streaming").splitlines()), "checksums")

        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /heavy HTTP/1.1\r\nHost: here\r\n\r\n")
            wait_until(lambda: any(directory.iterdir()))
        wait_until(lambda: not any(directory.iterdir()))
        print("a client went away: its files are gone")

        print("heavy:      ", get(port, "/heavy"), len(list(directory.iterdir())), "are there")
        server.send_signal(signal.SIGTERM)
        print("the status of the service:", server.wait(60))
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        web.run_app(
            service(Path(sys.argv[3])),
            host="127.0.0.1",
            port=int(sys.argv[2]),
            handler_cancellation=True,
            shutdown_timeout=15,
            print=None,
        )
    else:
        with tempfile.TemporaryDirectory() as temporary:
            try_it(Path(temporary))
