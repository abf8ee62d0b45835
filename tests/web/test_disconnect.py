# SPDX-License-Identifier: MIT
# A client that goes away: the handler is cancelled, its job undone, and whatever the handler reads
# of the request is what the client sent.

from __future__ import annotations

import asyncio
import contextlib
import gc
import tracemalloc
import weakref
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="aioktask.web needs Starlette")

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from aioktask import Job, UndoFailed, run_multithreaded
from aioktask.web import CancelOnDisconnect, cancel_on_disconnect
from aioktask.web._disconnect import MESSAGE_BYTES
from tests.support.gates import CancelledGate, eventually, turns_pass, units
from tests.web.exchange import Exchange

pytestmark = pytest.mark.max_threads(2)

anywhere = pytest.mark.anyio
on_asyncio = pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})],
    ids=["asyncio", "asyncio+uvloop"],
)


def application(endpoint: Any, *middleware: Middleware, methods: Any = ("GET", "POST")) -> Any:
    return Starlette(
        routes=[Route("/", endpoint, methods=list(methods))], middleware=list(middleware)
    )


async def pass_on(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    return response


BASE = Middleware(BaseHTTPMiddleware, dispatch=pass_on)
CANCEL = Middleware(CancelOnDisconnect)


async def leave_while_a_job_runs(app: Any, gate: CancelledGate) -> Exchange:
    """A client that goes while two chunks of the gate's job are inside."""
    exchange = Exchange()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exchange.run, app)
        await gate.entered(2)
        exchange.leave()
        await eventually(gate.cancelled.is_set)
        assert exchange.status is None
        assert not gate.undone
        gate.open()
    return exchange


@anywhere
@pytest.mark.parametrize(
    "middleware",
    [(CANCEL,), (BASE, CANCEL), (CANCEL, BASE), (BASE, BASE, CANCEL, BASE)],
    ids=["alone", "inside", "outside", "between"],
)
async def test_the_job_of_a_client_that_goes_is_undone_before_the_request_ends(
    middleware: tuple[Middleware, ...],
) -> None:
    gate = CancelledGate()

    async def endpoint(request: Request) -> Response:
        await run_multithreaded(Job(gate.chunk, 1000, chunk=10, undo=gate.undo))
        raise AssertionError("the job went on")

    exchange = await leave_while_a_job_runs(application(endpoint, *middleware), gate)
    assert exchange.status == 499
    assert exchange.body == b""
    assert len(gate.done) == 2
    assert units(gate.undone) == units(gate.done)


@anywhere
@pytest.mark.parametrize("middleware", [(), (BASE,), (CANCEL,)], ids=["none", "base", "both"])
async def test_one_endpoint_can_watch_for_its_client_and_never_answers_null(
    middleware: tuple[Middleware, ...],
) -> None:
    gate = CancelledGate()

    async def endpoint(request: Request) -> Response:
        async with cancel_on_disconnect(request):
            await run_multithreaded(Job(gate.chunk, 1000, chunk=10, undo=gate.undo))
        raise AssertionError("the block was left as if it had ended")

    exchange = await leave_while_a_job_runs(application(endpoint, *middleware), gate)
    assert exchange.status == 499
    assert units(gate.undone) == units(gate.done)


@anywhere
async def test_an_undo_that_fails_is_raised_and_not_taken_for_a_disconnect() -> None:
    gate = CancelledGate()

    def undo(start: int, stop: int) -> None:
        raise OSError("planted")

    async def endpoint(request: Request) -> Response:
        await run_multithreaded(Job(gate.chunk, 1000, chunk=10, undo=undo))
        raise AssertionError("the job went on")

    with pytest.raises(ExceptionGroup) as raised:
        await leave_while_a_job_runs(application(endpoint, CANCEL), gate)
    assert raised.group_contains(UndoFailed)


@anywhere
@pytest.mark.parametrize("watched", ["middleware", "block"])
async def test_an_exception_of_the_handler_goes_on_as_it_is(watched: str) -> None:
    planted = OSError(5, "planted")

    async def endpoint(request: Request) -> Response:
        if watched == "block":
            async with cancel_on_disconnect(request):
                raise planted
        raise planted

    with pytest.raises(OSError, match="planted") as raised:
        await Exchange().run(application(endpoint, *([CANCEL] if watched == "middleware" else [])))
    assert raised.value is planted


@anywhere
async def test_what_runs_after_a_complete_response_is_left_alone() -> None:
    """Servers tell of a disconnect then too, though the client may still be there."""
    ran = []

    async def later() -> None:
        await turns_pass()
        await anyio.lowlevel.checkpoint()
        ran.append("later")

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("done", background=BackgroundTask(later))

    exchange = Exchange()
    await exchange.run(application(endpoint, CANCEL))
    assert exchange.status == 200
    assert ran == ["later"]


@anywhere
async def test_a_response_that_has_begun_is_cut_and_no_other_one_sent() -> None:
    exchange = Exchange()

    class Values:
        def __aiter__(self) -> Values:
            return self

        async def __anext__(self) -> bytes:
            if exchange.status is not None:
                exchange.leave()
            await anyio.lowlevel.checkpoint()
            return b"value"

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(Values())

    await exchange.run(application(endpoint, CANCEL))
    assert exchange.status == 200
    assert all(message.get("more_body", True) for message in exchange.sent)


@anywhere
async def test_a_server_that_refuses_to_send_to_nobody_is_not_an_error() -> None:
    exchange = Exchange()

    async def refuse(message: Any) -> None:
        raise OSError("the client is gone")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        exchange.leave()
        await anyio.sleep_forever()

    await CancelOnDisconnect(app)(exchange.scope, exchange.receive, refuse)


@anywhere
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("watched", ["middleware", "block"])
async def test_a_client_that_goes_in_the_middle_of_its_body_is_no_error_of_the_handler(
    watched: str, pieces: int
) -> None:
    """Also where the handler asks for what will never come before it could be cancelled."""

    async def endpoint(request: Request) -> Response:
        if watched == "middleware":
            return Response(await request.body())
        async with cancel_on_disconnect(request):
            return Response(await request.body())

    exchange = Exchange([b"piece"] * pieces)
    exchange._arrived[-1]["more_body"] = True
    exchange.leave()
    await exchange.run(application(endpoint, *([CANCEL] if watched == "middleware" else [])))
    assert exchange.status == 499


@anywhere
@pytest.mark.parametrize(
    "error", [RuntimeError("...; the handler is closed"), OSError("broken pipe")], ids=repr
)
@pytest.mark.parametrize("last", [False, True])
async def test_what_a_server_raises_as_it_sends_to_a_client_that_went_is_no_error(
    error: Exception, last: bool
) -> None:
    """Also where the server never tells of it otherwise."""
    exchange = Exchange()
    sent: list[Any] = []

    async def lost(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            raise error

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"value", "more_body": not last})
        assert last, "it went on"

    await CancelOnDisconnect(app)(exchange.scope, exchange.receive, lost)
    assert len(sent) == 2


@anywhere
async def test_what_a_server_raises_as_it_sends_to_a_client_that_is_there_is_raised() -> None:
    exchange, planted = Exchange(), RuntimeError("too much content")

    async def refuse(message: Any) -> None:
        raise planted

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    with pytest.raises(RuntimeError) as raised:
        await CancelOnDisconnect(app)(exchange.scope, exchange.receive, refuse)
    assert raised.value is planted


bodies = st.lists(st.binary(max_size=40), max_size=8)


@given(body=bodies, bound=st.integers(1, 60), watched=st.sampled_from(["middleware", "block"]))
def test_the_body_arrives_whole_and_no_more_than_the_bound_is_read_ahead(
    body: list[bytes], bound: int, watched: str
) -> None:
    longest = max(map(len, body), default=0)
    exchange: Exchange

    async def read(request: Request) -> bytes:
        taken = b""
        async for piece in request.stream():
            taken += piece
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
                assert exchange.read - len(taken) < bound + longest
        return taken

    async def endpoint(request: Request) -> Response:
        if watched == "middleware":
            return Response(await read(request))
        async with cancel_on_disconnect(request, body_bytes=bound):
            return Response(await read(request))

    async def main() -> None:
        nonlocal exchange
        exchange = Exchange(body)
        middleware = [Middleware(CancelOnDisconnect, body_bytes=bound)]
        await exchange.run(application(endpoint, *(middleware if watched == "middleware" else [])))
        assert exchange.status == 200
        assert exchange.body == b"".join(body)

    anyio.run(main)


@anywhere
async def test_pieces_of_one_byte_are_read_ahead_in_no_more_memory_than_is_said() -> None:
    bound, size = 1 << 16, 4096
    exchange = Exchange([b"x"] * size)

    async def endpoint(request: Request) -> Response:
        gc.collect()
        tracemalloc.start()
        try:
            async with cancel_on_disconnect(request, body_bytes=bound):
                before = None
                while exchange.read != before:
                    before = exchange.read
                    await turns_pass()
                taken, _ = tracemalloc.get_traced_memory()
                assert 0 < exchange.read <= bound // MESSAGE_BYTES
                assert taken < bound + 16_384
                return Response(await request.body())
        finally:
            tracemalloc.stop()

    await exchange.run(application(endpoint))
    assert exchange.body == b"x" * size


@anywhere
async def test_empty_pieces_are_not_kept_and_keep_no_disconnect_from_being_seen() -> None:
    async def endpoint(request: Request) -> Response:
        async with cancel_on_disconnect(request, body_bytes=1):
            await anyio.sleep_forever()
        raise AssertionError("the block was left as if it had ended")

    exchange = Exchange([b""] * 1000)
    exchange._arrived[-1]["more_body"] = True
    exchange.leave()
    await exchange.run(application(endpoint))
    assert exchange.status == 499


@anywhere
async def test_the_end_of_a_body_comes_to_the_handler_where_that_is_an_empty_piece() -> None:
    async def endpoint(request: Request) -> Response:
        async with cancel_on_disconnect(request):
            await turns_pass()
            return Response(await request.body())

    exchange = Exchange([b"", b"one", b"", b"two", b""])
    await exchange.run(application(endpoint))
    assert exchange.body == b"onetwo"


@anywhere
async def test_a_body_is_read_before_in_and_after_a_block_that_watches() -> None:
    async def endpoint(request: Request) -> Response:
        stream = request.stream()
        taken = [await anext(stream)]
        async with cancel_on_disconnect(request, body_bytes=1):
            taken.append(await anext(stream))
            await turns_pass()  # meanwhile the third piece is read, and not the fourth
        taken += [piece async for piece in stream]
        return Response(b"".join(taken))

    exchange = Exchange([b"one ", b"two ", b"three ", b"four"])
    await exchange.run(application(endpoint))
    assert exchange.body == b"one two three four"


@anywhere
async def test_a_handler_that_asks_is_told_of_the_disconnect() -> None:
    """`request.is_disconnected` and `receive` work below the middleware as above it."""
    exchange = Exchange()
    told = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive, send)
        assert await request.body() == b""
        assert not await request.is_disconnected()
        with anyio.CancelScope(shield=True):
            exchange.leave()
            await turns_pass()
            told.append(await request.is_disconnected())
            told.append((await receive())["type"])

    await exchange.run(CancelOnDisconnect(app))
    assert told == [True, "http.disconnect"]


@anywhere
async def test_what_the_server_raises_as_it_is_asked_comes_to_the_handler() -> None:
    async def broken() -> Any:
        await anyio.lowlevel.checkpoint()
        raise OSError("the server's")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(OSError, match="the server's"):
            await receive()

    exchange = Exchange()
    await CancelOnDisconnect(app)(exchange.scope, broken, exchange.send)


@on_asyncio
@anywhere
async def test_a_server_that_cancels_the_task_has_the_job_undone_too() -> None:
    gate = CancelledGate()

    async def endpoint(request: Request) -> Response:
        async with cancel_on_disconnect(request):
            await run_multithreaded(Job(gate.chunk, 1000, chunk=10, undo=gate.undo))
        raise AssertionError("the job went on")

    exchange = Exchange()
    task = asyncio.ensure_future(exchange.run(application(endpoint, CANCEL)))
    await gate.entered(2)
    task.cancel()
    await eventually(gate.cancelled.is_set)
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert units(gate.undone) == units(gate.done)
    assert exchange.sent == []


@anywhere
async def test_other_kinds_of_connections_pass() -> None:
    passed = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["type"])

    for kind in ("lifespan", "websocket"):
        await CancelOnDisconnect(app)({"type": kind}, None, None)
    assert passed == ["lifespan", "websocket"]


@pytest.mark.parametrize("bound", [0, -1, 1.5, True, "much"])
def test_a_bound_that_is_none_is_refused(bound: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="body_bytes"):
        CancelOnDisconnect(PlainTextResponse("done"), body_bytes=bound)


@anywhere
async def test_nothing_of_a_watched_request_is_kept_by_a_cycle() -> None:
    """What a handler raised lets go of the request at once, without the collector."""
    requests = []

    async def endpoint(request: Request) -> Response:
        requests.append(weakref.ref(request))
        async with cancel_on_disconnect(request):
            raise OSError("planted")
        raise AssertionError

    app = application(endpoint, CANCEL)

    async def ask() -> None:
        with contextlib.suppress(OSError):
            await Exchange().run(app)

    await ask()
    gc.disable()
    try:
        requests.clear()
        await ask()
        await turns_pass()
        assert requests[0]() is None
    finally:
        gc.enable()


@anywhere
@pytest.mark.parametrize("asks", [False, True])
async def test_what_the_server_raised_as_it_was_asked_keeps_nothing_by_a_cycle(asks: bool) -> None:
    class Broken:
        async def __call__(self) -> Any:
            await anyio.lowlevel.checkpoint()
            raise OSError("the server's")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await turns_pass()
        if asks:
            with pytest.raises(OSError, match="the server's"):
                await receive()

    async def ask() -> weakref.ref[Broken]:
        broken, exchange = Broken(), Exchange()
        await CancelOnDisconnect(app)(exchange.scope, broken, exchange.send)
        return weakref.ref(broken)

    await ask()
    gc.disable()
    try:
        kept = await ask()
        await turns_pass()
        assert kept() is None
    finally:
        gc.enable()
