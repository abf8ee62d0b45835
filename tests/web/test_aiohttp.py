# SPDX-License-Identifier: MIT
# A coordinator in an application of aiohttp, asked over a real connection. On asyncio and uvloop,
# the loops that aiohttp runs on.

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

pytest.importorskip("aiohttp", reason="aioktask.web.aiohttp needs aiohttp")

from aiohttp import ClientConnectionError, ClientResponse, ClientSession, TCPConnector, web

from aioktask import Job, JobCancelled, Overloaded, UndoFailed, run_multithreaded
from aioktask.web.aiohttp import (
    cancel_on_disconnect,
    cleanup_ctx,
    coordinator_of,
    deadline,
    deadlines,
    errors,
)
from tests.support.gates import PATIENCE, CancelledGate, Gate, eventually, units

pytestmark = [
    pytest.mark.max_threads(2),
    pytest.mark.anyio,
    pytest.mark.parametrize(
        "anyio_backend",
        [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})],
        ids=["asyncio", "asyncio+uvloop"],
    ),
]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Client:
    """Asks an application over connections of its own."""

    def __init__(self, runner: web.AppRunner, session: ClientSession, port: int) -> None:
        self.runner = runner
        self._session = session
        self._port = port

    async def get(self, path: str, **options: Any) -> ClientResponse:
        """The answer, its body read."""
        async with self._session.get(f"http://127.0.0.1:{self._port}{path}", **options) as answer:
            await answer.read()
            return answer

    async def get_raw(self, path: str) -> bytes:
        """All that comes on a connection, until that ends."""
        stream = await anyio.connect_tcp("127.0.0.1", self._port)
        async with stream:
            await stream.send(f"GET {path} HTTP/1.1\r\nhost: test\r\n\r\n".encode())
            got = b""
            with anyio.fail_after(PATIENCE):
                async for part in stream:
                    got += part
            return got


@asynccontextmanager
async def serving(app: web.Application, *, cancellation: bool = False) -> AsyncIterator[Client]:
    """A server of this application, as `run_app` starts and ends it, and a client of it."""
    runner = web.AppRunner(app, handler_cancellation=cancellation)
    await runner.setup()
    try:
        listener = socket.create_server(("127.0.0.1", 0))
        await web.SockSite(runner, listener).start()
        async with ClientSession(connector=TCPConnector(force_close=True)) as session:
            yield Client(runner, session, listener.getsockname()[1])
    finally:
        await runner.cleanup()


@asynccontextmanager
async def client_of(
    handler: Handler, *middlewares: Any, cancellation: bool = False, **settings: Any
) -> AsyncIterator[Client]:
    """Asks an application that has this handler and a coordinator."""
    app = web.Application(middlewares=middlewares)
    app.cleanup_ctx.append(cleanup_ctx(**settings))
    app.router.add_route("*", "/", handler)
    async with serving(app, cancellation=cancellation) as client:
        yield client


async def open_once_cancelled(gate: CancelledGate) -> None:
    await eventually(gate.cancelled.is_set)
    gate.open()


async def test_handlers_and_mounted_applications_get_the_coordinator_and_no_one_afterwards() -> (
    None
):
    found = []

    async def handler(request: web.Request) -> web.Response:
        found.append(coordinator_of(request))
        return web.Response(text=str(await coordinator_of(request).run(abs, -1)))

    inner = web.Application()
    inner.router.add_get("/", handler)
    app = web.Application()
    app.cleanup_ctx.append(cleanup_ctx(max_threads=1))
    app.add_subapp("/inner", inner)
    app.router.add_get("/", handler)
    async with serving(app) as client:
        for path in ("/", "/inner/"):
            assert await (await client.get(path)).text() == "1"
        assert found[0] is found[1]
        assert found[0].max_threads == 1
    assert not found[0].ready


async def test_a_request_without_a_coordinator_says_what_to_do() -> None:
    said = []

    async def handler(request: web.Request) -> web.Response:
        with pytest.raises(RuntimeError) as raised:
            coordinator_of(request)
        said.append(str(raised.value))
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handler)
    async with serving(app) as client:
        await client.get("/")
    assert "cleanup_ctx.append" in said[0]


@pytest.mark.parametrize("how", ["block", "handler_cancellation"])
async def test_the_job_of_a_client_that_goes_is_undone(how: str) -> None:
    gate = CancelledGate()
    ended = []

    async def run(request: web.Request) -> None:
        await run_multithreaded(Job(gate.chunk, 1000, chunk=10, undo=gate.undo))

    async def handler(request: web.Request) -> web.Response:
        try:
            if how == "block":
                async with cancel_on_disconnect(request):
                    await run(request)
            await run(request)
        except BaseException as error:
            ended.append(type(error).__name__)
            raise
        raise AssertionError("the job went on")

    async with client_of(handler, cancellation=how != "block") as client:
        with anyio.CancelScope() as gone:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.get, "/")
                await gate.entered(2)
                gone.cancel()
        await open_once_cancelled(gate)
        await eventually(lambda: bool(ended))
    assert ended == ["ClientDisconnected" if how == "block" else "CancelledError"]
    assert units(gate.undone) == units(gate.done) != []


async def test_an_exception_of_a_watched_block_goes_on_as_it_is() -> None:
    planted = OSError("planted")
    raised = []

    async def handler(request: web.Request) -> web.Response:
        try:
            async with cancel_on_disconnect(request):
                raise planted
        except OSError as error:
            raised.append(error)
        return web.Response()

    async with client_of(handler) as client:
        assert (await client.get("/")).status == 200
    assert raised == [planted]


async def test_the_stop_begins_while_requests_run_and_they_are_told() -> None:
    gate = CancelledGate()

    async def handler(request: web.Request) -> web.Response:
        await run_multithreaded(
            Job(gate.chunk, 1000, chunk=10, undo=gate.undo), coordinator=coordinator_of(request)
        )
        raise AssertionError("the job went on")

    statuses = []
    async with anyio.create_task_group() as tasks:
        async with client_of(handler, errors(), finish=0.0) as client:

            async def ask() -> None:
                statuses.append((await client.get("/")).status)

            tasks.start_soon(ask)
            await gate.entered(2)
            tasks.start_soon(open_once_cancelled, gate)
            await client.runner.cleanup()
            await eventually(lambda: bool(statuses))
    assert statuses == [503]
    assert units(gate.undone) == units(gate.done) != []


async def test_an_undo_that_fails_at_the_stop_is_raised() -> None:
    gate = CancelledGate()

    def undo(start: int, stop: int) -> None:
        raise OSError("planted")

    app = web.Application()
    app.cleanup_ctx.append(cleanup_ctx(finish=0.0))
    runner = web.AppRunner(app)
    await runner.setup()
    coordinator = next(running.coordinator for running in app.values())
    handle = coordinator.submit(Job(gate.chunk, 10, chunk=5, undo=undo))
    await gate.entered()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_once_cancelled, gate)
        with pytest.raises(UndoFailed):
            await runner.cleanup()
    assert handle.done()


@pytest.mark.parametrize("status", [429, 503])
async def test_overloaded_says_when_to_come_again(status: int) -> None:
    async def handler(request: web.Request) -> web.Response:
        raise Overloaded("too much", 7, 2.3)

    async with client_of(handler, errors(overloaded=status)) as client:
        answer = await client.get("/")
    assert (answer.status, answer.headers["Retry-After"]) == (status, "3")


async def test_a_job_that_somebody_cancelled_is_499() -> None:
    async def handler(request: web.Request) -> web.Response:
        raise JobCancelled("the job was cancelled")

    async with client_of(handler, errors()) as client:
        assert (await client.get("/")).status == 499


@pytest.mark.parametrize("ended_by", ["middleware", "job"])
async def test_time_that_is_up_has_the_job_undone_and_is_answered_with_504(ended_by: str) -> None:
    gate = CancelledGate()

    async def handler(request: web.Request) -> web.Response:
        left = deadline(request) if ended_by == "job" else None
        job = Job(gate.chunk, 1000, chunk=10, undo=gate.undo)
        # Shielded, the job alone ends in time.
        with anyio.CancelScope(shield=ended_by == "job"):
            await run_multithreaded(job, timeout=left)
        raise AssertionError("the job went on")

    async with client_of(handler, deadlines(header="x-timeout", most=60)) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_once_cancelled, gate)
            answer = await client.get("/", headers={"X-Timeout": "0.2"})
    assert answer.status == 504
    assert units(gate.undone) == units(gate.done) != []


async def test_a_handler_is_told_the_seconds_left_and_clients_only_shorten() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(deadline(request))

    async with client_of(handler, deadlines(most=100)) as client:
        for said, most in {"7S": 7, "500S": 100, "1H": 100}.items():
            answer = await client.get("/", headers={"grpc-timeout": said})
            assert 0 < await answer.json() <= most
        assert (await client.get("/", headers={"grpc-timeout": "soon"})).status == 400
    async with client_of(handler) as client:
        assert await (await client.get("/")).json() is None


async def test_a_client_that_is_gone_gets_no_answer() -> None:
    """The exception of the disconnect is answered with a status that the connection swallows."""

    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        async with cancel_on_disconnect(request):
            await anyio.sleep_forever()
        raise AssertionError("the block was left as if it had ended")

    async with client_of(handler) as client:
        with pytest.raises(ClientConnectionError):
            await client.get("/")


async def test_nonsense_is_refused_at_once() -> None:
    gate: Any = Gate()
    for make in (
        lambda: cleanup_ctx(finish=gate),
        lambda: cleanup_ctx(max_threads=0),
        lambda: cleanup_ctx(max_queued=-1),
        lambda: errors(overloaded=True),
        lambda: deadlines(header=None),
        lambda: errors(overloaded=500),
    ):
        with pytest.raises((TypeError, ValueError)):
            make()
    with pytest.raises(
        TypeError, match=r"^cleanup_ctx\(\) has no argument 'max_queue'; .*max_queued"
    ):
        cleanup_ctx(max_queue=1)


async def _begun(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"first")
    return response


@pytest.mark.parametrize("ended_by", ["deadline", "overloaded"])
async def test_a_response_that_has_begun_is_cut_and_no_other_one_written_into_it(
    ended_by: str,
) -> None:
    async def streaming(request: web.Request) -> web.StreamResponse:
        response = await _begun(request)
        if ended_by == "deadline":
            await anyio.sleep_forever()
        else:
            raise Overloaded("no room", 1, 1.0)
        return response

    app = web.Application(middlewares=[deadlines(most=0.2, header=None), errors()])
    app.router.add_get("/", streaming)
    async with serving(app) as client:
        got = await client.get_raw("/")
    assert b"first" in got
    assert got.count(b"HTTP/1.1") == 1
