# SPDX-License-Identifier: MIT
# The application that the soak's servers run: jobs with an undo, a function or a coroutine, that
# are awaited, submitted or fail; calls; a stream. All tell the ledger what they did.
#
# It is made as the page "Run a service" says, of `aioktask.web` alone, so that what is documented
# is what is soaked: who goes away, whose time is up and what is refused is seen to there.
"""The application of the soak."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import numpy as np
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from aioktask import Coordinator, Job, map_ordered, run_multithreaded, snapshot
from aioktask.web import (
    CancelOnDisconnect,
    Deadline,
    coordinator_of,
    deadline,
    exception_handlers,
    lifespan,
)
from tests.soak.ledger import AWAITED, CALL, STREAM, SUBMITTED, write

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Send

# What a server that stops gives to jobs, in seconds: to finish, and to be undone.
FINISH, UNDO = 2.0, 20.0

_numbers = itertools.count(1)
_X = np.linspace(0.0, 1e3, 1 << 14)


class Broken(Exception):  # noqa: N818 - of a job that is meant to
    """What a job raises that is meant to fail."""


def _name() -> str:
    return f"{os.getpid()}-{next(_numbers)}"


def _work(units: int) -> None:
    """About a seventh of a millisecond a unit."""
    for _ in range(units):
        np.sin(_X)


def _job(
    name: str, units: int, *, fails_at: int = -1, on_loop: bool = False, **more: Any
) -> Job[None]:
    def work(start: int, stop: int) -> None:
        _work(stop - start)
        if start <= fails_at < stop:
            raise Broken  # none of the chunk is written down, and all of it is undone by itself
        write("done", name, start, stop)

    def undo(start: int, stop: int) -> None:
        write("undone", name, start, stop)

    async def undo_on_loop(start: int, stop: int) -> None:
        await anyio.lowlevel.checkpoint()
        write("undone", name, start, stop)

    return Job(work, units, undo=undo_on_loop if on_loop else undo, name="soak", **more)


# Requests.


def _number(request: Request, name: str, default: float) -> float:
    return float(request.query_params.get(name, default))


def _timeout(request: Request) -> float | None:
    """The time of a job: what the request names for it, and what is left of the request's own."""
    own, left = _number(request, "timeout", 0) or None, deadline(request)
    return left if own is None else own if left is None else min(own, left)


async def _seen(name: str, kind: str, units: int, work: Awaitable[object]) -> None:
    """Write down that it begins, and how it ended."""
    write("begin", name, kind, units)
    try:
        await work
    except BaseException as error:
        write("end", name, type(error).__name__)
        raise
    write("end", name, "done")


async def heavy(request: Request) -> Response:
    """A job in chunks, that is awaited."""
    name, units = _name(), int(_number(request, "units", 200))
    job = _job(
        name,
        units,
        fails_at=int(_number(request, "fails_at", -1)),
        on_loop="on_loop" in request.query_params,
        nice=10,
    )
    run = run_multithreaded(job, coordinator=coordinator_of(request), timeout=_timeout(request))
    await _seen(name, AWAITED, units, run)
    return JSONResponse({"name": name, "units": units})


async def submitted(request: Request) -> Response:
    """A job that nobody awaits."""
    name, units = _name(), int(_number(request, "units", 200))
    write("begin", name, SUBMITTED, units)
    coordinator_of(request).submit(_job(name, units, nice=10), timeout=_timeout(request))
    return PlainTextResponse("", 202)


async def call(request: Request) -> Response:
    """One call of a function, of some milliseconds."""
    name = _name()

    def work() -> None:
        _work(20)
        write("done", name, 0, 1)

    run = coordinator_of(request).run(work, timeout=_timeout(request))
    await _seen(name, CALL, 1, run)
    return PlainTextResponse("")


class Streamed(StreamingResponse):
    """A stream's values, as they come."""

    def __init__(self, name: str, items: int, coordinator: Coordinator) -> None:
        super().__init__([])
        self._name = name
        self._items = items
        self._coordinator = coordinator

    async def stream_response(self, send: Send) -> None:
        await _seen(self._name, STREAM, self._items, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        def one(item: int) -> bytes:
            _work(2)
            write("done", self._name, item, item + 1)
            return b"%d\n" % item

        stream = map_ordered(one, range(self._items), window=8, coordinator=self._coordinator)
        async with stream as self.body_iterator:
            await super().stream_response(send)


async def stream(request: Request) -> Response:
    """Values of items, each as it is there."""
    return Streamed(_name(), int(_number(request, "units", 100)), coordinator_of(request))


async def body(request: Request) -> Response:
    """Reads what it is sent."""
    return JSONResponse({"bytes": len(await request.body())})


async def facts(request: Request) -> Response:
    """What this process holds. It is asked for while there is nothing to do."""
    gc.collect()
    now = snapshot()
    return JSONResponse(
        {
            "pid": os.getpid(),
            "jobs": len(now.jobs),
            "helpers": len(now.helpers),
            "most_helpers": now.limits.threads + now.limits.blocked,
            "slots": now.limits.slots.held if now.limits.slots is not None else 0,
            "objects": len(gc.get_objects()),
            "numbered": next(_numbers),
        }
    )


async def gave_up(request: Request, error: Exception) -> Response:
    """The answer for a job that failed as it was meant to, or had no time of its own left."""
    return PlainTextResponse(type(error).__name__, 504)


app = Starlette(
    routes=[
        Route("/heavy", heavy),
        Route("/submitted", submitted),
        Route("/call", call),
        Route("/stream", stream),
        Route("/body", body, methods=["POST"]),
        Route("/facts", facts),
    ],
    lifespan=lifespan(max_queued=32, max_wait=1.0, finish=FINISH, undo=UNDO),
    middleware=[Middleware(Deadline, header="x-timeout", most=60), Middleware(CancelOnDisconnect)],
    exception_handlers={**exception_handlers(), Broken: gave_up, TimeoutError: gave_up},
)
