# SPDX-License-Identifier: MIT
# The application of Starlette that real servers run in the tests: its jobs tell in the ledger what
# they did, its lifespan tells when it began and was left.
#
# What a test wants of it stands in the environment, since a server starts its workers itself.

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from aioktask import Job, run_multithreaded
from aioktask.web import (
    CancelOnDisconnect,
    Deadline,
    cancel_on_disconnect,
    coordinator_of,
    exception_handlers,
    lifespan,
)
from tests.web import ledger

UNITS = 100_000  # of a job that is not meant to end by itself


def job(name: str, units: int) -> Job[None]:
    """A job whose units take 2 ms each, and as long to undo."""

    def work(start: int, stop: int) -> None:
        time.sleep(0.002)
        ledger.write("done", name, start, stop)

    def undo(start: int, stop: int) -> None:
        time.sleep(0.002)
        ledger.write("undone", name, start, stop)

    return Job(work, units, chunk=1, max_threads=2, undo=undo, name=name)


async def run(name: str, units: int, request: Request) -> None:
    try:
        await run_multithreaded(job(name, units), coordinator=coordinator_of(request))
    except BaseException as error:
        ledger.write("end", name, type(error).__name__)
        raise
    ledger.write("end", name, "done")


async def heavy(request: Request) -> Response:
    name = request.query_params["name"]
    await run(name, int(request.query_params.get("units", UNITS)), request)
    return JSONResponse({"name": name})


async def guarded(request: Request) -> Response:
    async with cancel_on_disconnect(request):
        return await heavy(request)


async def submitted(request: Request) -> Response:
    """A job that belongs to the coordinator, and that nobody awaits."""
    coordinator_of(request).submit(job(request.query_params["name"], UNITS))
    return PlainTextResponse("submitted")


def spin(seconds: float) -> None:
    """Pure Python, which holds the GIL for as long as the interpreter lets it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


async def spinning(request: Request) -> Response:
    await coordinator_of(request).run(spin, float(request.query_params["seconds"]))
    return PlainTextResponse("done")


async def length(request: Request) -> Response:
    return JSONResponse({"bytes": len(await request.body())})


async def ready(request: Request) -> Response:
    return PlainTextResponse("", 200 if coordinator_of(request).ready else 503)


async def endless(request: Request) -> Response:
    """A stream of events that ends when the service stops, as a page would hold open."""
    coordinator = coordinator_of(request)

    async def events() -> AsyncIterator[bytes]:
        while coordinator.ready:
            yield b": still there\n\n"
            await anyio.sleep(0.05)
        yield b"event: end\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@asynccontextmanager
async def own_lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
    ledger.write("began", os.getpid())
    yield {"own": "state"}
    ledger.write("stopped", os.getpid())


async def pass_on(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    return response


middleware = [
    Middleware(BaseHTTPMiddleware, dispatch=pass_on),
    Middleware(Deadline, header="x-timeout", most=60),
    Middleware(CancelOnDisconnect),
    Middleware(BaseHTTPMiddleware, dispatch=pass_on),
]
if os.environ.get("AIOKTASK_TEST_MIDDLEWARE") == "base":
    middleware = middleware[:1]
app = Starlette(
    routes=[
        Route("/heavy", heavy),
        Route("/guarded", guarded),
        Route("/submitted", submitted),
        Route("/spinning", spinning),
        Route("/length", length, methods=["POST"]),
        Route("/ready", ready),
        Route("/endless", endless),
    ],
    middleware=middleware,
    exception_handlers=exception_handlers(),
    lifespan=lifespan(
        own_lifespan,
        finish=float(os.environ.get("AIOKTASK_TEST_FINISH", "0.3")),
        stop_on=() if os.environ.get("AIOKTASK_TEST_SIGNALS") == "none" else (signal.SIGTERM,),
    ),
)
