# SPDX-License-Identifier: MIT
# The application that the soak's servers run: jobs with an undo, a function or a coroutine, that
# are awaited, submitted or fail; calls; a stream. All tell the ledger what they did.
#
# A handler ends with its client, and a time that the client names is the job's.
"""The application of the soak."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from aioktask import (
    Coordinator,
    Job,
    JobCancelled,
    Overloaded,
    map_ordered,
    run_multithreaded,
    snapshot,
)
from tests.soak.ledger import AWAITED, CALL, STREAM, SUBMITTED, write

if TYPE_CHECKING:
    from starlette.requests import Request

CLIENT_CLOSED_REQUEST = 499
# How long the jobs of a server that stops may take to be undone, in seconds.
UNDO_WITHIN = 20.0

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
    return _number(request, "timeout", 0) or None


def _coordinator(request: Request) -> Coordinator:
    found: Coordinator = request.app.state.coordinator
    return found


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
    run = run_multithreaded(job, coordinator=_coordinator(request), timeout=_timeout(request))
    await _seen(name, AWAITED, units, run)
    return JSONResponse({"name": name, "units": units})


async def submitted(request: Request) -> Response:
    """A job that nobody awaits."""
    name, units = _name(), int(_number(request, "units", 200))
    write("begin", name, SUBMITTED, units)
    _coordinator(request).submit(_job(name, units, nice=10), timeout=_timeout(request))
    return PlainTextResponse("", 202)


async def call(request: Request) -> Response:
    """One call of a function, of some milliseconds."""
    name = _name()

    def work() -> None:
        _work(20)
        write("done", name, 0, 1)

    run = _coordinator(request).run(work, timeout=_timeout(request))
    await _seen(name, CALL, 1, run)
    return PlainTextResponse("")


class Streamed(Response):
    """A stream's values, as they come."""

    def __init__(self, name: str, items: int, coordinator: Coordinator) -> None:
        super().__init__()
        self._name = name
        self._items = items
        self._coordinator = coordinator

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def to_client(message: Any) -> None:
            try:
                await send(message)
            except (OSError, RuntimeError) as error:  # uvicorn's, before it tells of a disconnect
                raise ClientDisconnect from error

        work = partial(_seen, self._name, STREAM, self._items)
        try:
            await _until_gone(receive, lambda: work(self._send_all(to_client)))
        except* ClientDisconnect:
            pass

    async def _send_all(self, send: Any) -> None:
        def one(item: int) -> bytes:
            _work(2)
            write("done", self._name, item, item + 1)
            return b"%d\n" % item

        stream = map_ordered(one, range(self._items), window=8, coordinator=self._coordinator)
        async with stream as values:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            async for value in values:
                await send({"type": "http.response.body", "body": value, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


async def stream(request: Request) -> Response:
    """Values of items, each as it is there."""
    return Streamed(_name(), int(_number(request, "units", 100)), _coordinator(request))


async def body(request: Request) -> Response:
    """Reads what it is sent."""
    try:
        return JSONResponse({"bytes": len(await request.body())})
    except ClientDisconnect:
        return PlainTextResponse("", CLIENT_CLOSED_REQUEST)


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


# A handler ends with its client.


async def _until_gone(receive: Any, handle: Callable[[], Awaitable[object]]) -> bool:
    """Do it, unless the client goes first, which cancels it; whether it went."""
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await handle()
        group.cancel_scope.cancel()
    return gone


def watched(endpoint: Callable[[Request], Awaitable[Response]]) -> Any:
    """An endpoint that is cancelled when its client goes away, and answers what goes wrong."""

    async def guarded(request: Request) -> Response:
        answer: list[Response] = []

        async def handle() -> None:
            try:
                answer.append(await endpoint(request))
            except Overloaded as error:
                answer.append(PlainTextResponse(str(error), 503))
            except (TimeoutError, Broken, JobCancelled) as error:
                answer.append(PlainTextResponse(type(error).__name__, 504))
            except RuntimeError as error:  # the coordinator takes no more jobs
                if request.app.state.coordinator.ready:
                    raise
                answer.append(PlainTextResponse(str(error), 503))

        if await _until_gone(request.receive, handle):
            return PlainTextResponse("", CLIENT_CLOSED_REQUEST)
        return answer[0]

    return guarded


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """A coordinator with a bounded queue, whose jobs are cancelled and undone at the end."""
    async with Coordinator(max_queued=32, max_wait=1.0) as coordinator:
        app.state.coordinator = coordinator
        yield
        coordinator.drain()
        left = await coordinator.shutdown(cancel=True, timeout=UNDO_WITHIN)
        assert not left, left


ENDPOINTS = {"/heavy": heavy, "/submitted": submitted, "/call": call, "/stream": stream}
app = Starlette(
    routes=[
        *[Route(path, watched(endpoint)) for path, endpoint in ENDPOINTS.items()],
        Route("/body", body, methods=["POST"]),
        Route("/facts", facts),
    ],
    lifespan=lifespan,
)
