# SPDX-License-Identifier: MIT
# The page as an ASGI application: what is asked at which address, and how it is answered.
#
# Guarantees: nothing is answered to a host that is not allowed; every answer carries the headers
# that keep a browser from running or showing anything of elsewhere; addresses are relative, so it
# works wherever it is mounted and whatever a proxy takes away; a stream ends when this process's
# server is told to stop or its coordinator drains, and after a minute in any case, since servers
# wait for open answers, and browsers come again by themselves.
#
# Needs Starlette, for requests, answers and routes; it has no lifespan and starts no task, so it
# runs on each loop, in whatever it is mounted in.
"""The page's addresses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote

import anyio
import anyio.lowlevel

from aioktask.extras import missing_package

try:
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
    from starlette.routing import Route, Router
except ImportError as error:
    raise missing_package("aioktask.web.page", "starlette", error) from error

from aioktask.checks import integer, nice_value
from aioktask.engine.loops.loop import running_loop
from aioktask.observe.processes import Told, ask, publish
from aioktask.web._deadline import KEY as DEADLINE
from aioktask.web._lost import tells_of_a_lost_client
from aioktask.web._page.access import (
    Access,
    Authorize,
    Hosts,
    Token,
    authorized,
    host_of,
    is_cross_site,
)
from aioktask.web._page.gather import Gatherer, Message, Reader
from aioktask.web._page.stopping import Stops

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Page", "page"]

# The longest body of a request, in bytes, and how long it may take to come.
BODY_BYTES = 4096
BODY_SECONDS = 10.0

# A stream says something at least as often, and ends after so long, in seconds.
HEARTBEAT_SECONDS = 5.0
STREAM_SECONDS = 60.0

# So long before the deadline of a middleware around it, in seconds.
BEFORE_DEADLINE_SECONDS = 2.0

# How long a browser waits before it comes again, in ms.
RETRY_MS = 1000

# Where Starlette keeps the handlers of exceptions of the application around.
_OUTER_HANDLERS = "starlette.exception_handlers"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

STATIC = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/stream.js": ("stream.js", "text/javascript"),
    "/view.js": ("view.js", "text/javascript"),
    "/timeline.js": ("timeline.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
}


def page(*, hosts: Iterable[str] = (), authorize: Authorize | None = None) -> ASGIApp:
    """The live page of all processes of this user that publish their jobs, as an ASGI application.

    This process publishes its own from now on, and so do children that it forks; others do by
    ``AIOKTASK_PUBLISH=1``. So each worker of a server that mounts the page is on it, whichever of
    them answers.

    Without `authorize`, who has the token may see and change everything. It stands in the file
    ``page.token``, which only this user may read, and ``python -m aioktask serve`` prints it.

    Args:
        hosts: Names and addresses, without port, under which the page may be asked for, beside
            those of the loopback interface. Nothing is answered under other ones.
        authorize: What the application's own login lets a request do: called with its ASGI scope,
            it returns "none", "read" or "write", or an awaitable of that.

    Returns:
        What Starlette and FastAPI `mount`, or a server runs by itself.

    Raises:
        TypeError, ValueError: An argument is not what it may be: the message names it.
        OSError: This process cannot publish, or the token cannot be made or read.

    >>> from starlette.applications import Starlette
    >>> app = Starlette()
    >>> app.mount("/jobs", page(hosts=["jobs.example.com"]))
    """
    made = Page(hosts, authorize)
    publish(in_children=True)
    return made


class Page:
    """The application. It publishes nothing itself: see `page`."""

    def __init__(self, hosts: Iterable[str] = (), authorize: Authorize | None = None) -> None:
        if isinstance(hosts, str):
            raise TypeError(f"hosts must be a list of names, got the string {hosts!r}")
        if authorize is not None and not callable(authorize):
            raise TypeError(f"authorize must be a function of a scope, got {authorize!r}")
        self._hosts = Hosts(hosts)
        self._authorize = authorize
        self.token = Token() if authorize is None else None
        self._gatherer = Gatherer()
        self._static = _read_static()
        self._router = Router(
            [
                *(Route(path, partial(self._get_static, path)) for path in STATIC),
                Route("/events", self._get_events),
                Route("/state", self._get_state),
                Route("/login", self._post_login, methods=["POST"]),
                Route("/logout", self._post_logout, methods=["POST"]),
                Route("/cancel", self._post_cancel, methods=["POST"]),
                Route("/renice", self._post_renice, methods=["POST"]),
            ],
            redirect_slashes=False,
        )

    def answers(self, host: str) -> bool:
        """Whether a request for this host is answered."""
        return self._hosts.allow(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._router(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        scope = _without_slash(scope)

        async def send_safely(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_RAW_HEADERS]}
            await send(message)

        try:
            answer = self._refusal(scope)
            if answer is None:
                await self._routed(scope, receive, send_safely)
        except HTTPException as refusal:
            answer = PlainTextResponse(refusal.detail, refusal.status_code, refusal.headers)
        except ClientDisconnect:
            return
        if answer is not None:
            await answer(scope, receive, send_safely)

    def _refusal(self, scope: Scope) -> Response | None:
        """What is answered without a further look, if anything."""
        host = host_of(scope)
        if host is None or not self._hosts.allow(host):
            return PlainTextResponse(
                "This host is not answered here. Whoever runs the page lists the names under "
                "which it is asked for.",
                403,
            )
        if scope["method"] not in ("GET", "HEAD") and is_cross_site(scope, data=False):
            return PlainTextResponse("This was asked for by another site.", 403)
        root, path = scope.get("root_path", ""), scope["path"]
        if path == root or not path:  # as "/jobs" in place of "/jobs/": addresses are relative
            # Not the name alone: where that is a parameter's value, it may look like another site.
            name = quote(root.rpartition("/")[2], safe="")
            return RedirectResponse(f"./{name}/" if name else "/", 307)
        return None

    async def _routed(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Its handlers of exceptions would put refusals into another form.
        inner = {key: value for key, value in scope.items() if key != _OUTER_HANDLERS}
        await self._router(inner, receive, send)

    # What anybody may have: files, and a way to log in.

    async def _get_static(self, path: str, request: Request) -> Response:
        content, kind = self._static[path]
        return Response(content, media_type=kind)

    async def _post_login(self, request: Request) -> Response:
        if self.token is None:
            return PlainTextResponse("The application's own login decides here.", 404)
        body = await _body(request)
        said = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
        if not self.token.is_right(said):
            return PlainTextResponse("That is not the token.", 403)
        response = Response(status_code=204)
        self._set_cookie(request, response, self.token.cookie)
        return response

    async def _post_logout(self, request: Request) -> Response:
        response = Response(status_code=204)
        if self.token is not None:
            self._set_cookie(request, response, "", max_age=0)
        return response

    def _set_cookie(
        self, request: Request, response: Response, value: str, max_age: int | None = None
    ) -> None:
        assert self.token is not None
        # Without a path the browser takes that of the page, as it knows it: a proxy may have taken
        # a part of it away.
        response.set_cookie(
            self.token.cookie_name,
            value,
            max_age=max_age,
            path=None,
            secure=request.scope.get("scheme") == "https",
            httponly=True,
            samesite="strict",
        )

    # What needs access.

    async def _access(self, request: Request) -> Access:
        if self._authorize is not None:
            return await authorized(self._authorize, request.scope)
        assert self.token is not None
        return self.token.access(request.scope, request.cookies)

    async def _need(self, request: Request, wanted: Access) -> Access:
        """What the request may do, which is at least that.

        Raises:
            HTTPException: It may not.
        """
        if is_cross_site(request.scope, data=True):
            raise HTTPException(403, "This was asked for by another site.")
        access = await self._access(request)
        if access == "none" and self.token is not None:
            raise HTTPException(401, "A token is needed.", {"WWW-Authenticate": "Bearer"})
        if access == "none" or (wanted == "write" and access != "write"):
            raise HTTPException(403, "The application's login does not allow this.")
        return access

    async def _get_state(self, request: Request) -> Response:
        access = await self._need(request, "read")
        message = None
        with self._gatherer.reading() as reader, anyio.move_on_after(HEARTBEAT_SECONDS):
            while message is None or message.marks is None:
                message = await reader.next(HEARTBEAT_SECONDS) or message
        if message is None:
            return PlainTextResponse("The processes do not answer in time.", 503)
        parts = (
            b'{"access":',
            json.dumps(access).encode(),
            b',"state":',
            message.state,
            b',"marks":',
            message.marks or b"[]",
            b"}",
        )
        return Response(b"".join(parts), media_type="application/json")

    async def _get_events(self, request: Request) -> Response:
        access = await self._need(request, "read")
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        return _Events(self._gatherer, access)

    async def _post_cancel(self, request: Request) -> Response:
        await self._need(request, "write")
        asked = await _json(request)
        pid, number = _integer(asked, "pid"), _integer(asked, "job")
        told = await _passed_on(pid, {"do": "cancel", "number": number})
        return _answer(told, "It is over already.")

    async def _post_renice(self, request: Request) -> Response:
        await self._need(request, "write")
        asked = await _json(request)
        pid, number = _integer(asked, "pid"), _integer(asked, "job")
        try:
            nice = nice_value("nice", asked.get("nice"))
        except (TypeError, ValueError) as error:
            raise HTTPException(400, str(error)) from None
        told = await _passed_on(pid, {"do": "renice", "number": number, "nice": nice})
        return _answer(told, "It is over already.")


_stops = Stops()  # there is one, since handlers are the process's


class _Events(Response):  # type: ignore[misc]
    """An answer that goes on: each message as it comes, until the server stops."""

    def __init__(self, gatherer: Gatherer, access: Access) -> None:
        super().__init__(media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._gatherer = gatherer
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def say(*parts: bytes) -> None:
            body = b"".join(parts)
            await send_on({"type": "http.response.body", "body": body, "more_body": True})

        async def send_on(message: Any) -> None:
            try:
                await send(message)
            except (OSError, RuntimeError) as error:
                if not tells_of_a_lost_client(error):
                    raise
                group.cancel_scope.cancel()
                await anyio.lowlevel.checkpoint()

        async def leave_with_client() -> None:
            try:
                while (await receive())["type"] != "http.disconnect":
                    pass
            except (OSError, RuntimeError) as error:
                if not tells_of_a_lost_client(error):
                    raise
            group.cancel_scope.cancel()

        async def tell(reader: Reader) -> None:
            hello = json.dumps({"access": self._access}).encode()
            await say(b"retry: %d\nevent: hello\ndata: " % RETRY_MS, hello, b"\n\n")
            while not stopping.is_set() and not _drains(scope):
                message = await reader.next(HEARTBEAT_SECONDS)
                if message is None:
                    await say(b": still there\n\n")
                else:
                    await say(*_as_events(message))

        async def leave_with_server() -> None:
            await stopping.wait()
            telling.cancel()

        stopping = anyio.Event()
        loop = running_loop()
        assert loop is not None
        stop = partial(loop.post, stopping.set, None)  # called in a signal handler
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        with _stops.hearing(stop), self._gatherer.reading() as reader:
            async with anyio.create_task_group() as group:
                group.start_soon(leave_with_client)
                group.start_soon(leave_with_server)
                await send_on(start)
                with anyio.move_on_after(_stream_seconds(scope)) as telling:
                    await tell(reader)
                # A server that has lost its client may never take this.
                with anyio.move_on_after(1.0):
                    over = stopping.is_set() or _drains(scope)
                    await say(b"event: end\ndata: %s\n\n" % (b"stop" if over else b"again"))
                    await send_on({"type": "http.response.body", "body": b"", "more_body": False})
                group.cancel_scope.cancel()


def _stream_seconds(scope: Scope) -> float:
    """How long a stream may last: it ends by itself before a deadline that it stands under."""
    ends = scope.get(DEADLINE)
    if ends is None:
        return STREAM_SECONDS
    left: float = ends - anyio.current_time() - BEFORE_DEADLINE_SECONDS
    return min(STREAM_SECONDS, max(left, 0.0))


def _as_events(message: Message) -> tuple[bytes, ...]:
    state = (b"event: state\ndata: ", message.state, b"\n\n")
    if message.marks is None:
        return state
    return (b"event: marks\ndata: ", message.marks, b"\n\n", *state)


def _without_slash(scope: Scope) -> Scope:
    """The scope, with no slash at the end of its root path, which its path may begin with."""
    root, path = scope.get("root_path", ""), scope["path"]
    short = root.rstrip("/")
    if short == root:
        return scope
    if path.startswith(f"{root}/"):  # as servers have it that put the one before the other
        path = short + path[len(root) :]
    return {**scope, "root_path": short, "path": path}


def _drains(scope: Scope) -> bool:
    """Whether the coordinator of the application that serves this request stops."""
    found = scope.get("state", {}).get("coordinator")
    if found is None and "app" in scope:
        found = getattr(getattr(scope["app"], "state", None), "coordinator", None)
    return found is not None and not getattr(found, "ready", True)


def _read_static() -> dict[str, tuple[bytes, str]]:
    folder = files("aioktask.web._page") / "static"
    return {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in STATIC.items()}


_RAW_HEADERS = [
    (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in HEADERS.items()
]


# What requests bring.


async def _body(request: Request) -> bytes:
    """The body of a request.

    Raises:
        HTTPException: It is too long, or takes too long to come.
    """
    found = b""
    with anyio.move_on_after(BODY_SECONDS) as time:
        async with aclosing(request.stream()) as parts:
            async for part in parts:
                found += part
                if len(found) > BODY_BYTES:
                    raise HTTPException(413, f"The body is longer than {BODY_BYTES} bytes.")
    if time.cancelled_caught:
        raise HTTPException(408, "The body did not come in time.")
    return found


async def _json(request: Request) -> Mapping[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "The body must be application/json.")
    try:
        found = json.loads(await _body(request))
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"The body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise HTTPException(400, f"The body must be an object, got {type(found).__name__}.")
    return found


def _integer(asked: Mapping[str, Any], name: str) -> int:
    """A number that a request names, 0 at least.

    Raises:
        HTTPException: It names none.
    """
    try:
        return integer(name, asked.get(name), least=0)
    except (TypeError, ValueError) as error:
        raise HTTPException(400, str(error)) from None


async def _passed_on(pid: int, request: Mapping[str, object]) -> Told:
    """What the process says to a request, asked on another thread than the loop's."""
    try:
        return await anyio.to_thread.run_sync(ask, pid, request, abandon_on_cancel=True)
    except OSError as error:  # there is no directory of sockets
        return Told(pid, None, str(error))


def _answer(told: Told, if_not: str) -> Response:
    if told.answer is None:
        return PlainTextResponse(f"Process {told.pid}: {told.problem}.", 502)
    return JSONResponse({"done": bool(told.answer), "text": "" if told.answer else if_not})
