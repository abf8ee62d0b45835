# SPDX-License-Identifier: MIT
# What an application of aiohttp takes to run jobs in its requests, over the public face of the
# library. Needs aiohttp alone; its server runs on asyncio and uvloop.
#
# aiohttp tells of its stop itself (`on_shutdown`) before it waits for requests, so no signal is
# heard here. It cancels the task of a handler whose client is gone only with
# `run_app(handler_cancellation=True)`; without that the connection is looked at now and then.
"""A coordinator in applications of aiohttp.

>>> from aiohttp import web
>>> from aioktask.web.aiohttp import cleanup_ctx, errors
>>> app = web.Application(middlewares=[errors()])
>>> app.cleanup_ctx.append(cleanup_ctx(max_threads=4))
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

from aioktask.extras import missing_package

try:
    from aiohttp import web
except ImportError as error:
    raise missing_package("aioktask.web.aiohttp", "aiohttp", error) from error

from aioktask.engine.api.coordinator import Coordinator
from aioktask.errors import CoordinatorClosed, JobCancelled, Overloaded
from aioktask.web._deadline import GRPC_HEADER, KEY, Limit
from aioktask.web._refusals import CLIENT_CLOSED_REQUEST, Refusals
from aioktask.web._stop import FINISH, UNDO, Running, Service

__all__ = [
    "ClientDisconnected",
    "cancel_on_disconnect",
    "cleanup_ctx",
    "coordinator_of",
    "deadline",
    "deadlines",
    "errors",
]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Middleware = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]

# How often a connection is looked at, in seconds: aiohttp has nothing that could be awaited.
LOOK = 0.1

_RUNNING = web.AppKey("aioktask", Running)
# Releases that have keys of this kind warn of others.
_ENDS: Any = web.RequestKey(KEY, float) if hasattr(web, "RequestKey") else KEY


def cleanup_ctx(
    *, finish: float | None = FINISH, undo: float | None = UNDO, **settings: Any
) -> Callable[[web.Application], AsyncIterator[None]]:
    """What to append to an application's `cleanup_ctx`: one coordinator while it runs.

    The stop begins with the application's `on_shutdown`, while requests still run: the coordinator
    takes no more jobs and is no longer `ready`. What runs may finish for `finish` seconds; then it
    is cancelled, and undone for `undo` seconds at most. aiohttp waits for requests after that, and
    `run_app(shutdown_timeout=)` says how long.

    Args:
        finish: In seconds; None for no limit.
        undo: In seconds; None for no limit.
        settings: Those of `aioktask.Coordinator`.

    Raises:
        TypeError, ValueError: An argument is not what it may be: the message names it.

    >>> app = web.Application()
    >>> app.cleanup_ctx.append(cleanup_ctx(max_threads=2, finish=5, undo=20))
    """
    service = Service("cleanup_ctx()", ("finish", "undo"), finish, undo, (), settings)

    async def with_coordinator(app: web.Application) -> AsyncIterator[None]:
        async def stop(app: web.Application) -> None:
            await running.stop()

        async with service.running() as running:
            app[_RUNNING] = running
            app.on_shutdown.append(stop)
            yield

    return with_coordinator


def coordinator_of(request: web.Request) -> Coordinator:
    """The coordinator of the application that serves this request, or of one that it is mounted in.

    Raises:
        RuntimeError: The application has no `cleanup_ctx` of this module.
    """
    running: Running | None = request.config_dict.get(_RUNNING)
    if running is None:
        raise RuntimeError(
            "the application has no coordinator: "
            "app.cleanup_ctx.append(aioktask.web.aiohttp.cleanup_ctx())"
        )
    return running.coordinator


class ClientDisconnected(web.HTTPClientError):  # type: ignore[misc]
    """The client of a request went away, and what was done for it has been cancelled."""

    status_code = CLIENT_CLOSED_REQUEST

    def __init__(self) -> None:
        super().__init__(reason="Client Closed Request")


@asynccontextmanager
async def cancel_on_disconnect(request: web.Request) -> AsyncIterator[None]:
    """Cancel the block once the client of the request is gone; a job in it is undone first.

    The connection is looked at every 0.1 s. `run_app(handler_cancellation=True)` does as much for
    all handlers, at once.

    Raises:
        ClientDisconnected: The client was gone before the block ended. Answered with status 499,
            which nobody reads.

    **Cancellation** is that of the block.

    >>> async def handler(request):
    ...     async with cancel_on_disconnect(request):
    ...         return web.Response(text=await coordinator_of(request).run(str, 42))
    """
    error: BaseException | None = None
    finished = False

    async def look(cancel: Callable[[], None]) -> None:
        while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110
            await anyio.sleep(LOOK)
        cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(look, group.cancel_scope.cancel)
        try:
            yield
            finished = True
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as raised:
            error = raised
        group.cancel_scope.cancel()
    if error is not None:
        raise error
    if not finished:
        raise ClientDisconnected


def deadlines(
    *,
    header: str | None = GRPC_HEADER,
    most: float | None = None,
    seconds: Callable[[str], float] | None = None,
) -> Middleware:
    """A middleware that ends a request when its time is up.

    A client may name a time in a header. It only shortens: the smaller of that and `most` holds.
    When it is reached, the handler is cancelled, a job that it awaits is undone, and the answer is
    504; one that has begun is cut by the end of the connection. `deadline` tells a handler the
    seconds left, for the `timeout=` of jobs.

    Args:
        header: The header's name, or None for none.
        most: The most seconds that a request may take; None for no limit but the client's.
        seconds: Makes seconds of the header's value, and raises ValueError where it cannot, which
            is answered with 400. By default gRPC's form for ``grpc-timeout``, and a decimal number
            of seconds for other headers, such as 2 or 1.5.

    Raises:
        TypeError, ValueError: An argument is not what it may be: the message names it.

    >>> app = web.Application(middlewares=[deadlines(header="x-timeout", most=20)])
    """
    limit = Limit(header, most, seconds)

    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        said = None if limit.header is None else request.headers.get(limit.header)
        try:
            ends = limit.until(anyio.current_time(), said, request.get(_ENDS))
        except ValueError as error:
            raise web.HTTPBadRequest(
                text=f"the header {limit.header} cannot be read: {error}"
            ) from None
        if ends is None:
            return await handler(request)
        request[_ENDS] = ends
        with anyio.CancelScope(deadline=ends):
            return await handler(request)  # aiohttp answers a TimeoutError with 504 too
        if _has_begun(request):
            raise ConnectionResetError("the time for this request is up, and its answer is cut")
        raise web.HTTPGatewayTimeout(text="the time for this request is up")

    wrapped: Middleware = web.middleware(middleware)
    return wrapped


def deadline(request: web.Request) -> float | None:
    """The seconds that are left for a request, 0 at least; None where it has no deadline.

    For the `timeout=` of jobs, calls and streams. Deadlines come from the middleware `deadlines`.
    """
    ends = request.get(_ENDS)
    return None if ends is None else max(0.0, ends - anyio.current_time())


def errors(*, overloaded: int = 503) -> Middleware:
    """A middleware that answers for what a coordinator raises.

    `Overloaded` becomes the status `overloaded`, with ``Retry-After`` in whole seconds.
    `JobCancelled` becomes 499. While the coordinator stops, both that and what it refuses as
    `CoordinatorClosed` become 503.

    Args:
        overloaded: 503, or 429 to say that the client asks too much.

    Raises:
        TypeError, ValueError: `overloaded` is neither.

    >>> app = web.Application(middlewares=[errors(overloaded=429)])
    """
    refusals = Refusals(overloaded)

    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except (Overloaded, JobCancelled, CoordinatorClosed) as error:
            if _has_begun(request):
                raise  # aiohttp ends the connection then
            running: Running | None = request.config_dict.get(_RUNNING)
            refusal = refusals.of(error, None if running is None else running.coordinator)
            return web.Response(status=refusal.status, text=refusal.text, headers=refusal.headers)

    wrapped: Middleware = web.middleware(middleware)
    return wrapped


def _has_begun(request: web.Request) -> bool:
    """Whether something of a response was sent, so that no other one can be: as aiohttp asks."""
    return bool(request.writer.output_size)
