# SPDX-License-Identifier: MIT
# A service of FastAPI over the source code of Python's standard library, which refuses what it
# cannot serve in time. Without arguments it starts itself on a free port, asks each endpoint, asks
# for more than it can do, and stops it by SIGTERM.
"""Searching and compressing a text, by HTTP: python service_fastapi.py [serve PORT]."""

import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections import Counter
from pathlib import Path
from typing import Annotated

from aioktask import Coordinator, Job, map_ordered, run_multithreaded

try:
    import uvicorn
    from fastapi import Depends, FastAPI, Request, Response
    from starlette.responses import StreamingResponse
    from starlette.types import Send
except ImportError as error:
    print(f"this needs FastAPI and uvicorn ({error}): pip install 'aioktask[server]' fastapi")
    sys.exit()

from aioktask.web import (
    CancelOnDisconnect,
    Deadline,
    coordinator_of,
    deadline,
    exception_handlers,
    lifespan,
)

TEXTS = [path.read_bytes() for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]

app = FastAPI(
    lifespan=lifespan(max_queued=2, finish=5, undo=10),
    exception_handlers=exception_handlers(),
)
app.add_middleware(CancelOnDisconnect)
app.add_middleware(Deadline, header="x-timeout", most=60)

Jobs = Annotated[Coordinator, Depends(coordinator_of)]


def count(word: bytes) -> int:
    return sum(text.count(word) for text in TEXTS)


def compressed(text: bytes) -> int:
    return len(zlib.compress(text, 9))


@app.get("/interactive")
async def interactive(word: str, request: Request, coordinator: Jobs) -> dict[str, int]:
    """How often a word occurs: one call on a helper."""
    return {word: await coordinator.run(count, word.encode(), timeout=deadline(request))}


@app.get("/heavy")
async def heavy(request: Request, coordinator: Jobs) -> dict[str, int]:
    """How small all files become: on all CPUs, behind what is interactive."""

    def work(start: int, stop: int) -> int:
        return sum(map(compressed, TEXTS[start:stop]))

    job = Job(work, len(TEXTS), reduce=int.__add__, nice=5, name="compress")
    report = await run_multithreaded(job, coordinator=coordinator, timeout=deadline(request))
    return {"bytes": sum(map(len, TEXTS)), "compressed": report.value}


class Ratios(StreamingResponse):
    """A line for each file, in order, as fast as the client reads.

    The stream's scope is opened here and not in an async generator: one that is cut in the middle
    is not closed by whoever iterates over it.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        super().__init__([], media_type="text/plain")
        self._coordinator = coordinator

    async def stream_response(self, send: Send) -> None:
        async with map_ordered(ratio, TEXTS, coordinator=self._coordinator) as lines:
            self.body_iterator = lines
            await super().stream_response(send)


def ratio(text: bytes) -> str:
    return f"{compressed(text) / max(1, len(text)):.2f}\n"


@app.get("/streaming")
async def streaming(coordinator: Jobs) -> Response:
    return Ratios(coordinator)


@app.get("/ready")
async def ready(coordinator: Jobs) -> Response:
    return Response(status_code=200 if coordinator.ready else 503)


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, f"Retry-After: {refused.headers['Retry-After']}"


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
        print("interactive:", get(port, "/interactive?word=async"))
        print("heavy:      ", get(port, "/heavy"))
        print("streaming:  ", len(get(port, "/streaming")[1].splitlines()), "ratios")

        answers: list[tuple[int, str]] = []
        clients = [
            threading.Thread(target=lambda: answers.append(get(port, "/heavy"))) for _ in range(40)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        statuses = Counter(status for status, _ in answers)
        print(f"40 at once:  {statuses[200]} served, {statuses[503]} refused at once with 503")

        server.send_signal(signal.SIGTERM)
        print("the status of the service:", signal.Signals(-server.wait(60)).name)
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        uvicorn.run(app, port=int(sys.argv[2]), timeout_graceful_shutdown=15, log_level="warning")
    else:
        try_it()
