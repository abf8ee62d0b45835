# SPDX-License-Identifier: MIT
# A service of Starlette over the source code of Python's standard library: what jobs look like in
# requests that are short, long, or never quite done. Without arguments it starts itself on a free
# port, asks each endpoint, goes away from one, and stops it by SIGTERM.
"""Letters, entropy and digests of a text, by HTTP: python service_starlette.py [serve PORT]."""

import hashlib
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import numpy as np

from aioktask import Coordinator, Job, map_ordered, run_multithreaded

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Route
    from starlette.types import Send
except ImportError as error:
    print(f"this needs Starlette and uvicorn ({error}): pip install 'aioktask[server]'")
    sys.exit()

from aioktask.web import (
    CancelOnDisconnect,
    Deadline,
    coordinator_of,
    deadline,
    exception_handlers,
    lifespan,
)

FILES = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
TEXT = np.frombuffer(b"".join(path.read_bytes() for path in FILES), np.uint8)


def letters(start: int, stop: int) -> np.ndarray:
    return np.bincount(TEXT[start:stop], minlength=256)


def bits_per_byte(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


async def interactive(request: Request) -> Response:
    """The letter that 64 KiB have most: one call on a helper, which nobody should wait for."""
    counts = await coordinator_of(request).run(letters, 0, 65_536, timeout=deadline(request))
    return JSONResponse({"most": chr(int(counts.argmax()))})


async def heavy(request: Request) -> Response:
    """The entropy of all of it, on all CPUs; undone with the request, since nothing is kept."""
    job = Job(letters, len(TEXT), reduce=np.add, min_chunk=1 << 18, nice=5, name="entropy")
    report = await run_multithreaded(
        job, coordinator=coordinator_of(request), timeout=deadline(request)
    )
    return JSONResponse({"bytes": len(TEXT), "bits per byte": bits_per_byte(report.value)})


class Digests(StreamingResponse):
    """A line for each file, in order, as fast as the client reads.

    The stream's scope is opened here and not in an async generator: one that is cut in the middle
    is not closed by whoever iterates over it.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        super().__init__([], media_type="text/plain")
        self._coordinator = coordinator

    async def stream_response(self, send: Send) -> None:
        async with map_ordered(digest, FILES, coordinator=self._coordinator) as lines:
            self.body_iterator = lines
            await super().stream_response(send)


def digest(path: Path) -> str:
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"


async def streaming(request: Request) -> Response:
    return Digests(coordinator_of(request))


async def events(request: Request) -> Response:
    """A stream that would never end: a service that stops ends it."""

    async def beats() -> AsyncIterator[str]:
        while coordinator_of(request).ready:
            yield ": still there\n\n"
            await anyio.sleep(0.2)
        yield "event: end\ndata: the service is stopping\n\n"

    return StreamingResponse(beats(), media_type="text/event-stream")


async def ready(request: Request) -> Response:
    return PlainTextResponse("", 200 if coordinator_of(request).ready else 503)


app = Starlette(
    routes=[
        Route("/interactive", interactive),
        Route("/heavy", heavy),
        Route("/streaming", streaming),
        Route("/events", events),
        Route("/ready", ready),
    ],
    lifespan=lifespan(max_queued=64, finish=5, undo=10),
    middleware=[Middleware(Deadline, header="x-timeout", most=60), Middleware(CancelOnDisconnect)],
    exception_handlers=exception_handlers(),
)


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        return answer.read().decode()


def try_it() -> None:
    """Start the service, ask it, and stop it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-W", "error", __file__, "serve", str(port)])
    try:
        while True:
            try:
                get(port, "/ready")
                break
            except OSError:
                if server.poll() is not None:
                    sys.exit(f"the service ended: {server.returncode}")
                time.sleep(0.05)
        print("interactive:", get(port, "/interactive"))
        print("heavy:      ", get(port, "/heavy"))
        print("streaming:  ", len(get(port, "/streaming").splitlines()), "digests")
        url = f"http://127.0.0.1:{port}/events"
        with urllib.request.urlopen(url, timeout=60) as endless:
            print("events:     ", endless.readline().decode().strip())
            server.send_signal(signal.SIGTERM)
            print("after SIGTERM:", endless.read().decode().strip().splitlines()[-1])
        print("the status of the service:", signal.Signals(-server.wait(60)).name)
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        uvicorn.run(
            app,
            port=int(sys.argv[2]),
            timeout_graceful_shutdown=15,
            log_level="warning",
        )
    else:
        try_it()
