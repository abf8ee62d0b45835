# SPDX-License-Identifier: MIT
# What an application of Starlette or FastAPI takes to run jobs in its requests, over the public
# face of the library. Needs Starlette; FastAPI is never imported.
#
# A request ends in one of three ways that the server does not see to: its client goes, its time is
# up, the coordinator refuses or cancels. Each cancels the handler by a scope of anyio's, so a job
# that the handler awaits is undone first, and each is answered with a status, never with `null`.
"""A coordinator in applications of Starlette and FastAPI.

>>> from starlette.applications import Starlette
>>> from starlette.middleware import Middleware
>>> from aioktask.web import CancelOnDisconnect, exception_handlers, lifespan
>>> app = Starlette(
...     lifespan=lifespan(max_threads=4),
...     middleware=[Middleware(CancelOnDisconnect)],
...     exception_handlers=exception_handlers(),
... )
"""

from __future__ import annotations

import math
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import anyio

from aioktask.extras import missing_package

try:
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, HTTPConnection, Request
    from starlette.responses import PlainTextResponse, Response
except ImportError as error:
    raise missing_package("aioktask.web", "starlette", error) from error

from aioktask.checks import integer
from aioktask.engine.api.coordinator import Coordinator
from aioktask.errors import CoordinatorClosed, JobCancelled, Overloaded
from aioktask.web._deadline import GRPC_HEADER, KEY, Limit
from aioktask.web._disconnect import Message, Watch
from aioktask.web._lost import tells_of_a_lost_client
from aioktask.web._refusals import CLIENT_CLOSED_REQUEST, Refusals
from aioktask.web._stop import FINISH, UNDO, Service

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = [
    "CancelOnDisconnect",
    "ClientDisconnected",
    "Deadline",
    "cancel_on_disconnect",
    "coordinator_of",
    "deadline",
    "exception_handlers",
    "lifespan",
]

# How much of a request's body is read before its handler asks for it, in bytes.
BODY_BYTES = 65_536

AnyLifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]


def lifespan(
    inner: AnyLifespan | None = None,
    *,
    finish: float | None = FINISH,
    undo: float | None = UNDO,
    stop_on: Iterable[int] = (signal.SIGTERM,),
    **settings: Any,
) -> Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]]:
    """A lifespan with one coordinator, as ``app.state.coordinator`` and for `coordinator_of`.

    The stop begins with the first signal of `stop_on`, while requests still run, or at the end of
    the lifespan: the coordinator takes no more jobs and is no longer `ready`. What runs may finish
    for `finish` seconds; then it is cancelled, and undone for `undo` seconds at most. So the
    server's and the orchestrator's grace periods must be longer than both together.

    Handlers of signals that were there are called as well, and put back at the end. Where there
    was none but the default, the signal ends the process once the stop is through. In threads other
    than the main one no signal is heard.

    Args:
        inner: A lifespan of your own, a function of the application that returns an async context
            manager. It is entered once there is a coordinator, and left once its jobs are over; its
            state is kept, in which ``coordinator`` is this one.
        finish: In seconds; None for no limit.
        undo: In seconds; None for no limit.
        stop_on: Signals with which the stop begins; empty for none.
        settings: Those of `aioktask.Coordinator`.

    Returns:
        What Starlette and FastAPI take as `lifespan`.

    Raises:
        TypeError, ValueError: An argument is not what it may be: the message names it.

    >>> from starlette.applications import Starlette
    >>> app = Starlette(lifespan=lifespan(max_threads=2, finish=5, undo=20))
    """
    if inner is not None and not callable(inner):
        raise TypeError(f"inner must be a lifespan, a function of the application, got {inner!r}")
    own = ("inner", "finish", "undo", "stop_on")
    service = Service("lifespan()", own, finish, undo, stop_on, settings)

    @asynccontextmanager
    async def with_coordinator(app: Any) -> AsyncIterator[dict[str, Any]]:
        async with service.running() as running:
            app.state.coordinator = running.coordinator
            async with nullcontext() if inner is None else inner(app) as state:
                async with running as coordinator:  # left before `inner` lets go of what jobs use
                    yield {**(state or {}), "coordinator": coordinator}

    return with_coordinator


def coordinator_of(request: HTTPConnection) -> Coordinator:
    """The coordinator of the application that serves this request; a dependency for FastAPI.

    In a mounted application that is its own one, where its lifespan runs (Starlette runs that of
    the outermost application alone), and else that of the outermost application.

    Raises:
        RuntimeError: No application around the request has a lifespan of this module that runs.

    >>> from typing import Annotated
    >>> from fastapi import Depends
    >>> Jobs = Annotated[Coordinator, Depends(coordinator_of)]
    """
    found = _coordinator_in(request.scope)
    if isinstance(found, Coordinator):
        return found
    what_to_do = (
        "make it with lifespan=aioktask.web.lifespan(), and run it on a server (or in a test "
        "client) that runs its lifespan"
    )
    if _is_mounted(request.scope):
        what_to_do = (
            f"it is mounted, at {request.scope.get('root_path', '')!r}, and only the lifespan of "
            "the outermost application is run, so make that one with "
            "lifespan=aioktask.web.lifespan(), and run it on a server (or in a test client) that "
            "hands the lifespan's state on"
        )
    raise RuntimeError(f"the application has no coordinator: {what_to_do}")


class ClientDisconnected(HTTPException):  # type: ignore[misc]
    """The client of a request went away, and what was done for it has been cancelled."""

    def __init__(self) -> None:
        super().__init__(CLIENT_CLOSED_REQUEST, "the client closed the connection")


@asynccontextmanager
async def cancel_on_disconnect(
    request: Request, *, body_bytes: int = BODY_BYTES
) -> AsyncIterator[None]:
    """Cancel the block once the client of the request is gone; a job in it is undone first.

    For single endpoints; `CancelOnDisconnect` is for all of them. The request's body can be read
    in the block as well as before it.

    Args:
        request: Of Starlette or FastAPI.
        body_bytes: How much of the body is read ahead, where each piece that the server hands on
            counts as 256 bytes more than it has. While that much waits to be taken, a disconnect
            is not seen.

    Raises:
        ClientDisconnected: The client was gone before the block ended. Answered with status 499,
            which nobody reads.
        TypeError, ValueError: `body_bytes` is no integer, or below 1.

    **Cancellation** is that of the block.

    >>> async def endpoint(request):
    ...     async with cancel_on_disconnect(request):
    ...         return PlainTextResponse(await coordinator_of(request).run(str, 42))
    """
    watch = Watch(request.receive, integer("body_bytes", body_bytes, least=1))
    request._receive = watch.receive  # what it reads its body from
    try:
        async with watch.cancelling():
            yield
    except ClientDisconnect as error:  # the block asked for the body before it could be cancelled
        if not watch.gone:
            raise
        raise ClientDisconnected from error
    if watch.cut:
        raise ClientDisconnected


class CancelOnDisconnect:
    """ASGI middleware that cancels a request's handler once its client is gone.

    A job that the handler awaits is cancelled and undone first. If no response has begun, one of
    status 499 is made, for the log: there is nobody to read it. What runs after a complete
    response (background tasks) is left alone. It reads the body ahead of the handler, so a client
    that waits for "100 Continue" is told to go on.

    Args:
        app: The application around which it is.
        body_bytes: How much of a body is read ahead, where each piece that the server hands on
            counts as 256 bytes more than it has. While that much waits to be taken, a disconnect
            is not seen.

    Raises:
        TypeError, ValueError: `body_bytes` is no integer, or below 1.

    >>> from starlette.applications import Starlette
    >>> from starlette.middleware import Middleware
    >>> app = Starlette(middleware=[Middleware(CancelOnDisconnect)])
    """

    def __init__(self, app: ASGIApp, *, body_bytes: int = BODY_BYTES) -> None:
        self._app = app
        self._body_bytes = integer("body_bytes", body_bytes, least=1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watch = Watch(receive, self._body_bytes)
        sent = _Sent(send)

        async def send_and_see(message: Message) -> None:
            watch.answered |= _is_last(message)  # before the server can take it for a disconnect
            try:
                await sent(message)
            except (OSError, RuntimeError) as error:
                if not tells_of_a_lost_client(error):
                    raise
                await watch.lose()

        told = False
        try:
            async with watch.cancelling():
                await self._app(scope, watch.receive, send_and_see)
        except ClientDisconnect:  # the handler asked for the body before it could be cancelled
            if not watch.gone:
                raise
            told = True
        if (watch.cut or told) and not sent.begun:
            with suppress(OSError):  # servers may say so that the client is gone
                await _answer(CLIENT_CLOSED_REQUEST, "", scope, receive, send)


class Deadline:
    """ASGI middleware that ends a request when its time is up, and tells handlers how much is left.

    A client may name a time in a header. It only shortens: the smallest of that, `most` and the
    deadline of a middleware around this one holds. When it is reached, the handler is cancelled, a
    job that it awaits is undone, and the answer is 504 if none has begun. What goes on after the
    response, such as background tasks, is left alone. `deadline` tells a handler the seconds left,
    for the `timeout=` of jobs, which then end themselves in time.

    Args:
        app: The application around which it is.
        header: The header's name, or None for none.
        most: The most seconds that a request may take; None for no limit but the client's.
        seconds: Makes seconds of the header's value, and raises ValueError where it cannot, which
            is answered with 400. By default gRPC's form for ``grpc-timeout``, and a decimal number
            of seconds for other headers, such as 2 or 1.5.

    Raises:
        TypeError, ValueError: An argument is not what it may be: the message names it.

    >>> from starlette.applications import Starlette
    >>> from starlette.middleware import Middleware
    >>> app = Starlette(middleware=[Middleware(Deadline, header="x-timeout", most=20)])
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        header: str | None = GRPC_HEADER,
        most: float | None = None,
        seconds: Callable[[str], float] | None = None,
    ) -> None:
        self._app = app
        self._limit = Limit(header, most, seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        header = self._limit.header
        said = None if header is None else HTTPConnection(scope).headers.get(header)
        try:
            ends = self._limit.until(anyio.current_time(), said, scope.get(KEY))
        except ValueError as error:
            await _answer(400, f"the header {header} cannot be read: {error}", scope, receive, send)
            return
        if ends is None:
            await self._app(scope, receive, send)
            return
        sent = _Sent(send)
        late = False
        with anyio.CancelScope(deadline=ends) as time:

            async def send_in_time(message: Message) -> None:
                await sent(message)
                if _is_last(message):
                    time.deadline = math.inf

            try:
                await self._app({**scope, KEY: ends}, receive, send_in_time)
            except TimeoutError:  # of a job that was given the time left
                late = anyio.current_time() >= ends and not sent.begun
                if not late:
                    raise
        if (late or time.cancelled_caught) and not sent.begun:
            await _answer(504, "the time for this request is up", scope, receive, send)


def deadline(request: HTTPConnection) -> float | None:
    """The seconds that are left for a request, 0 at least; None where it has no deadline.

    For the `timeout=` of jobs, calls and streams. Deadlines come from the middleware `Deadline`.

    >>> async def endpoint(request):
    ...     return PlainTextResponse(await coordinator_of(request).run(
    ...         str, 42, timeout=deadline(request)))
    """
    ends = request.scope.get(KEY)
    return None if ends is None else max(0.0, ends - anyio.current_time())


def exception_handlers(
    *, overloaded: int = 503
) -> dict[type[Exception], Callable[[Request, Exception], Any]]:
    """Answers for what a coordinator raises, as Starlette and FastAPI take `exception_handlers`.

    `Overloaded` becomes the status `overloaded`, with ``Retry-After`` in whole seconds.
    `JobCancelled` becomes 499. While the coordinator stops, both that and what it refuses as
    `CoordinatorClosed` become 503.

    Args:
        overloaded: 503, or 429 to say that the client asks too much.

    Raises:
        TypeError, ValueError: `overloaded` is neither.

    >>> for error in exception_handlers(overloaded=429):
    ...     print(error.__name__)
    Overloaded
    JobCancelled
    CoordinatorClosed
    """
    refusals = Refusals(overloaded)

    async def answer(request: Request, error: Exception) -> Response:
        refusal = refusals.of(error, _coordinator_in(request.scope))
        return PlainTextResponse(refusal.text, refusal.status, refusal.headers)

    return {Overloaded: answer, JobCancelled: answer, CoordinatorClosed: answer}


def _coordinator_in(scope: Scope) -> Any:
    """What a lifespan left for this request, if one did."""
    own = getattr(getattr(scope.get("app"), "state", None), "coordinator", None)
    if own is not None and _is_mounted(scope):  # its program runs the lifespan of this one too
        return own
    found = scope.get("state", {}).get("coordinator")
    return own if found is None else found  # a server without state in its lifespan


def _is_mounted(scope: Scope) -> bool:
    """Whether the application that serves a request is within another one."""
    router = getattr(scope.get("app"), "router", None)
    return router is not None and scope.get("router", router) is not router


class _Sent:
    """A `send` that remembers whether a response has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def __call__(self, message: Message) -> None:
        self.begun = True
        await self._send(message)


def _is_last(message: Message) -> bool:
    kind = message["type"]
    return kind == "http.response.pathsend" or (
        kind == "http.response.body" and not message.get("more_body", False)
    )


async def _answer(status: int, text: str, scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(text, status)(scope, receive, send)
