# SPDX-License-Identifier: MIT
# The application of aiohttp that its real server runs in the tests: as `service`, for aiohttp.

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator

import anyio
from aiohttp import web

from aioktask import run_multithreaded
from aioktask.web.aiohttp import (
    cancel_on_disconnect,
    cleanup_ctx,
    coordinator_of,
    deadlines,
    errors,
)
from tests.web import ledger
from tests.web.service import UNITS, job


async def heavy(request: web.Request) -> web.Response:
    name = request.query["name"]
    try:
        await run_multithreaded(
            job(name, int(request.query.get("units", UNITS))), coordinator=coordinator_of(request)
        )
    except BaseException as error:
        ledger.write("end", name, type(error).__name__)
        raise
    ledger.write("end", name, "done")
    return web.json_response({"name": name})


async def guarded(request: web.Request) -> web.Response:
    async with cancel_on_disconnect(request):
        return await heavy(request)


async def submitted(request: web.Request) -> web.Response:
    coordinator_of(request).submit(job(request.query["name"], UNITS))
    return web.Response(text="submitted")


async def ready(request: web.Request) -> web.Response:
    return web.Response(status=200 if coordinator_of(request).ready else 503)


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    while coordinator_of(request).ready:
        await response.write(b": still there\n\n")
        await anyio.sleep(0.05)
    await response.write(b"event: end\n\n")
    return response


async def own(app: web.Application) -> AsyncIterator[None]:
    ledger.write("began", os.getpid())
    yield
    ledger.write("stopped", os.getpid())


def main(port: int, *, handler_cancellation: bool) -> None:
    app = web.Application(middlewares=[errors(), deadlines(header="x-timeout", most=60)])
    app.cleanup_ctx.append(own)
    app.cleanup_ctx.append(cleanup_ctx(finish=float(os.environ.get("AIOKTASK_TEST_FINISH", "0.3"))))
    for name, handler in {
        "heavy": heavy,
        "guarded": guarded,
        "submitted": submitted,
        "ready": ready,
        "endless": endless,
    }.items():
        app.router.add_get(f"/{name}", handler)
    web.run_app(
        app,
        host="127.0.0.1",
        port=port,
        handler_cancellation=handler_cancellation,
        shutdown_timeout=20,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), handler_cancellation="--handler-cancellation" in sys.argv)
