# SPDX-License-Identifier: MIT
# A coordinator for as long as an application runs: who gets it, and how it stops within the time
# that it is given.

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

pytest.importorskip("starlette", reason="aioktask.web needs Starlette")
pytest.importorskip("httpx", reason="the tests ask applications by httpx")

import httpx
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from aioktask import (
    Coordinator,
    CoordinatorClosed,
    Job,
    JobCancelled,
    Overloaded,
    UndoFailed,
    run_multithreaded,
)
from aioktask.web import coordinator_of, exception_handlers, lifespan
from tests.support.gates import CancelledGate, Gate, eventually, turns_pass, units

pytestmark = [pytest.mark.max_threads(2), pytest.mark.anyio]


@asynccontextmanager
async def client_of(app: Any, state: Any = None) -> AsyncIterator[Any]:
    """Asks an application whose lifespan runs, with the state that a server would keep of it."""

    async def with_state(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "state": dict(state or {})}, receive, send)

    transport = httpx.ASGITransport(app=with_state, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def open_once_cancelled(gate: CancelledGate) -> None:
    await eventually(gate.cancelled.is_set)
    gate.open()


async def name_of_coordinator(request: Request) -> Response:
    return PlainTextResponse(repr(coordinator_of(request)))


async def test_one_coordinator_is_there_while_the_application_runs_and_none_afterwards() -> None:
    app = Starlette(lifespan=lifespan(max_threads=1))
    async with app.router.lifespan_context(app) as state:
        coordinator = state["coordinator"]
        assert coordinator is app.state.coordinator
        assert coordinator.ready
        assert coordinator.max_threads == 1
        assert await coordinator.run(abs, -1) == 1
    assert not coordinator.ready
    with pytest.raises(CoordinatorClosed):
        coordinator.submit(Job(lambda start, stop: None, 1))


async def test_a_lifespan_of_ones_own_keeps_its_state_and_outlives_the_jobs() -> None:
    steps = []

    @asynccontextmanager
    async def own(app: Any) -> AsyncIterator[dict[str, Any]]:
        assert await app.state.coordinator.run(abs, -2) == 2
        yield {"table": "mine"}
        steps.append("let go")

    app = Starlette(lifespan=lifespan(own, finish=None))
    gate = Gate()
    async with anyio.create_task_group() as tasks:
        async with app.router.lifespan_context(app) as state:
            assert state["table"] == "mine"
            handle = state["coordinator"].submit(Job(gate.chunk, 10, chunk=10))
            await gate.entered()

            async def open_once_it_drains() -> None:
                await eventually(lambda: not state["coordinator"].ready)
                steps.append("opened")
                gate.open()

            tasks.start_soon(open_once_it_drains)
    assert handle.done()
    assert steps == ["opened", "let go"]


async def test_mounted_applications_and_dependencies_of_fastapi_get_the_same_coordinator() -> None:
    fastapi = pytest.importorskip("fastapi")
    inner = fastapi.FastAPI()
    given = fastapi.Depends(coordinator_of)

    @inner.get("/dependency")
    async def dependency(coordinator: Any = given) -> str:
        return repr(coordinator)

    app = Starlette(
        routes=[Route("/own", name_of_coordinator), Mount("/inner", inner)],
        lifespan=lifespan(max_threads=1),
    )
    async with app.router.lifespan_context(app) as state, client_of(app, state) as client:
        expected = repr(state["coordinator"])
        assert (await client.get("/own")).text == expected
        assert (await client.get("/inner/dependency")).json() == expected


async def ask(app: Any, state: Any, path: str) -> str:
    async with client_of(app, state) as client:
        answer: str = (await client.get(path)).text
    return answer


@pytest.mark.parametrize("own", [False, True])
async def test_a_mounted_application_whose_lifespan_does_not_run_gets_the_outermost_one(
    own: bool,
) -> None:
    inner = Starlette(
        routes=[Route("/", name_of_coordinator)], lifespan=lifespan() if own else None
    )
    app = Starlette(
        routes=[Mount("/outer", Starlette(routes=[Mount("/inner", inner)]))],
        lifespan=lifespan(max_threads=1),
    )
    async with app.router.lifespan_context(app) as state:
        assert await ask(app, state, "/outer/inner/") == repr(state["coordinator"])


async def test_a_mounted_application_whose_lifespan_runs_has_a_coordinator_of_its_own() -> None:
    inner = Starlette(routes=[Route("/", name_of_coordinator)], lifespan=lifespan(max_threads=1))
    app = Starlette(
        routes=[Route("/own", name_of_coordinator), Mount("/inner", inner)],
        lifespan=lifespan(lambda _: inner.router.lifespan_context(inner), max_threads=2),
    )
    async with app.router.lifespan_context(app) as state:
        assert "max_threads=2" in await ask(app, state, "/own")
        assert "max_threads=1" in await ask(app, state, "/inner/")


async def test_a_mounted_application_without_a_coordinator_says_whose_lifespan_it_takes() -> None:
    errors: list[str] = []

    async def endpoint(request: Request) -> Response:
        try:
            coordinator_of(request)
        except RuntimeError as error:
            errors.append(str(error))
        return PlainTextResponse("")

    inner = Starlette(routes=[Route("/", endpoint)], lifespan=lifespan())
    app = Starlette(routes=[Route("/own", endpoint), Mount("/inner", inner)])
    for path in ("/own", "/inner/"):
        await ask(app, None, path)
    own, mounted = errors
    assert "mounted" not in own
    assert "mounted, at '/inner'" in mounted
    assert "make that one with lifespan=aioktask.web.lifespan()" in mounted


async def test_a_server_without_state_in_its_lifespan_is_served_by_the_applications_state() -> None:
    app = Starlette(routes=[Route("/", name_of_coordinator)], lifespan=lifespan())
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.get("/")).text == repr(app.state.coordinator)


async def test_a_request_without_a_coordinator_says_what_to_do() -> None:
    request = HTTPConnection({"type": "http", "app": Starlette(), "headers": []})
    with pytest.raises(RuntimeError, match=r"lifespan=aioktask\.web\.lifespan"):
        coordinator_of(request)


async def test_what_runs_at_the_stop_may_finish() -> None:
    gate = Gate()
    app = Starlette(lifespan=lifespan(finish=None))
    async with anyio.create_task_group() as tasks:
        async with app.router.lifespan_context(app):
            coordinator = app.state.coordinator
            handle = coordinator.submit(Job(gate.chunk, 10, chunk=5, undo=gate.undo))
            await gate.entered()

            async def open_once_it_drains() -> None:
                await eventually(lambda: not coordinator.ready)
                gate.open()

            tasks.start_soon(open_once_it_drains)
    await handle
    assert units(gate.done) == list(range(10))
    assert gate.undone == []


async def test_what_does_not_finish_in_time_is_cancelled_and_undone() -> None:
    gate = CancelledGate()
    app = Starlette(lifespan=lifespan(finish=0.0, undo=None))
    async with anyio.create_task_group() as tasks:
        async with app.router.lifespan_context(app):
            handle = app.state.coordinator.submit(Job(gate.chunk, 10, chunk=5, undo=gate.undo))
            await gate.entered()
            tasks.start_soon(open_once_cancelled, gate)
    with pytest.raises(JobCancelled):
        await handle
    assert units(gate.undone) == units(gate.done) != []


async def test_the_stop_takes_no_longer_than_it_may() -> None:
    gate = Gate()
    app = Starlette(lifespan=lifespan(finish=0.0, undo=0.0))
    async with app.router.lifespan_context(app):
        handle = app.state.coordinator.submit(Job(gate.chunk, 10, chunk=5, undo=gate.undo))
        await gate.entered()
    assert not handle.done()  # the chunk is still inside
    gate.open()
    with pytest.raises(JobCancelled):
        await handle
    assert units(gate.undone) == units(gate.done)


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_stop_that_is_cancelled_leaves_the_undo_its_time(*, at_once: bool) -> None:
    gate, undoing = CancelledGate(), Gate()

    def undo(start: int, stop: int) -> None:
        undoing.chunk(start, stop)

    async def serve(scope: anyio.CancelScope) -> None:
        with scope:
            async with lifespan(finish=None, undo=None)(Starlette()) as state:
                handle = state["coordinator"].submit(Job(gate.chunk, 10, chunk=5, undo=undo))
                handles.append(handle)
                await gate.entered()
                if at_once:
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()
        assert handle.done()

    handles: list[Any] = []
    scope = anyio.CancelScope()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve, scope)
        await gate.entered()
        if not at_once:
            await turns_pass()
            scope.cancel()
        await eventually(gate.cancelled.is_set)
        gate.open()
        await undoing.entered()
        await turns_pass()
        assert not handles[0].done()
        undoing.open()
    assert units(undoing.done) == units(gate.done) != []


async def test_an_error_of_the_application_undoes_at_once_and_goes_on_as_it_is() -> None:
    gate = CancelledGate()
    planted = OSError("planted")

    async def serve() -> None:
        async with lifespan(finish=None)(Starlette()) as state:
            state["coordinator"].submit(Job(gate.chunk, 10, chunk=5, undo=gate.undo))
            await gate.entered()
            raise planted

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_once_cancelled, gate)
        with pytest.raises(OSError, match="planted") as raised:
            await serve()
    assert raised.value is planted
    assert units(gate.undone) == units(gate.done) != []


async def test_an_undo_that_fails_at_the_stop_is_raised() -> None:
    gate = CancelledGate()

    def undo(start: int, stop: int) -> None:
        raise OSError("planted")

    async def serve() -> None:
        async with lifespan(finish=0.0)(Starlette()) as state:
            state["coordinator"].submit(Job(gate.chunk, 10, chunk=5, undo=undo))
            await gate.entered()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_once_cancelled, gate)
        with pytest.raises(UndoFailed):
            await serve()


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The signals that a handler of the application's own, or of its server, was called for."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


async def test_the_stop_begins_with_the_signal_and_the_servers_handler_hears_it_too(
    heard: list[int],
) -> None:
    gate = CancelledGate()
    servers = signal.getsignal(signal.SIGTERM)
    app = Starlette(lifespan=lifespan(finish=0.0))
    async with app.router.lifespan_context(app):
        coordinator = app.state.coordinator
        handle = coordinator.submit(Job(gate.chunk, 10, chunk=5, undo=gate.undo))
        await gate.entered()
        os.kill(os.getpid(), signal.SIGTERM)
        await eventually(lambda: not coordinator.ready)
        await eventually(gate.cancelled.is_set)  # while the application still runs
        gate.open()
        with pytest.raises(JobCancelled):
            await handle
        assert heard == [signal.SIGTERM]
    assert units(gate.undone) == units(gate.done)
    assert signal.getsignal(signal.SIGTERM) is servers


async def test_without_signals_to_stop_on_no_handler_is_touched(heard: list[int]) -> None:
    servers = signal.getsignal(signal.SIGTERM)
    app = Starlette(lifespan=lifespan(stop_on=()))
    async with app.router.lifespan_context(app):
        assert signal.getsignal(signal.SIGTERM) is servers


async def test_a_handler_that_came_later_stays(heard: list[int]) -> None:
    app = Starlette(lifespan=lifespan())
    async with app.router.lifespan_context(app):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


async def test_a_signal_that_is_ignored_stays_ignored(heard: list[int]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    app = Starlette(lifespan=lifespan())
    async with app.router.lifespan_context(app):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


async def test_a_signal_that_nobody_else_handles_ends_the_process_after_the_stop() -> None:
    program = """if True:
        import asyncio, os, signal
        from starlette.applications import Starlette
        from aioktask.web import lifespan

        async def main():
            async with lifespan(finish=1, undo=1)(Starlette()):
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(0)
            print("still there")

        asyncio.run(main())
    """
    found = await anyio.run_process([sys.executable, "-W", "error", "-c", program], check=False)
    assert (found.returncode, found.stdout, found.stderr) == (-signal.SIGTERM, b"", b"")


async def test_a_signal_is_not_lost_where_the_lifespan_is_cancelled_before_its_end() -> None:
    program = """if True:
        import os, signal
        import anyio
        from starlette.applications import Starlette
        from aioktask.web import lifespan

        async def main():
            with anyio.CancelScope() as scope:
                async with lifespan(finish=1, undo=1)(Starlette()):
                    os.kill(os.getpid(), signal.SIGTERM)
                    scope.cancel()
                    await anyio.sleep(0)
            print("still there")

        anyio.run(main)
    """
    found = await anyio.run_process([sys.executable, "-W", "error", "-c", program], check=False)
    assert (found.returncode, found.stdout, found.stderr) == (-signal.SIGTERM, b"", b"")


async def test_an_application_in_another_thread_hears_no_signal_and_works() -> None:
    app = Starlette(lifespan=lifespan())
    failed: list[BaseException] = []

    async def main() -> None:
        async with app.router.lifespan_context(app):
            assert await app.state.coordinator.run(abs, -3) == 3

    def thread() -> None:
        try:
            anyio.run(main)
        except BaseException as error:
            failed.append(error)

    other = threading.Thread(target=thread)
    other.start()
    await anyio.to_thread.run_sync(other.join)
    assert failed == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_threads": 0}, "max_threads must be at least 1, got 0"),
        ({"max_queued": -1}, "max_queued must be at least 0, got -1"),
        ({"max_queued": "1"}, "max_queued must be an integer, got '1'"),
        ({"max_wait": 0}, "max_wait must be above 0 seconds and finite, got 0"),
        ({"max_wait": True}, "max_wait must be a number of seconds, got True"),
        (
            {"max_queue": 2},
            r"lifespan\(\) has no argument 'max_queue'; there are inner, .*max_queued",
        ),
        ({"share": None}, r"lifespan\(\) has no argument 'share'; there are inner, finish, undo, "),
        ({"finish": -1}, "finish"),
        ({"undo": "long"}, "undo"),
        ({"undo": float("nan")}, "undo"),
        ({"inner": 3}, "inner"),
        ({"stop_on": 15}, "stop_on"),
        ({"stop_on": [0]}, "stop_on must be signals, such as .*, got 0"),
        ({"stop_on": [-1]}, "stop_on must be signals, such as .*, got -1"),
        ({"stop_on": [True]}, "each signal of stop_on must be an integer, got True"),
        ({"stop_on": ["SIGTERM"]}, "each signal of stop_on must be an integer, got 'SIGTERM'"),
        ({"stop_on": [15.0]}, "each signal of stop_on must be an integer, got 15.0"),
        ({"stop_on": [signal.SIGKILL]}, "stop_on: no program can handle SIGKILL"),
    ],
)
async def test_nonsense_is_refused_before_there_is_an_application(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        lifespan(**arguments)


class TestAnswers:
    """What clients are told of refused and cancelled jobs."""

    @staticmethod
    def app(endpoint: Any, **options: Any) -> Starlette:
        return Starlette(
            routes=[Route("/", endpoint)],
            exception_handlers=exception_handlers(**options),
            lifespan=lifespan(max_queued=0, finish=0.0),
        )

    @pytest.mark.parametrize("status", [429, 503])
    async def test_overloaded_says_when_to_come_again(self, status: int) -> None:
        async def endpoint(request: Request) -> Response:
            raise Overloaded("too much", 7, 2.3)

        app = self.app(endpoint, overloaded=status)
        async with app.router.lifespan_context(app) as state, client_of(app, state) as client:
            answer = await client.get("/")
        assert (answer.status_code, answer.headers["retry-after"]) == (status, "3")

    async def test_a_full_queue_is_answered(self) -> None:
        gate = Gate()

        async def endpoint(request: Request) -> Response:
            coordinator = coordinator_of(request)
            await run_multithreaded(Job(gate.chunk, 4, chunk=1), coordinator=coordinator)
            return PlainTextResponse("done")

        app = self.app(endpoint)
        statuses = []
        async with app.router.lifespan_context(app) as state, client_of(app, state) as client:

            async def ask() -> None:
                statuses.append((await client.get("/")).status_code)

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(ask)
                await eventually(lambda: 503 in statuses)
                gate.open()
        assert sorted(statuses) == [200, 200, 503]

    async def test_a_job_that_somebody_cancelled_is_499(self) -> None:
        gate = CancelledGate()

        async def endpoint(request: Request) -> Response:
            handle = coordinator_of(request).submit(Job(gate.chunk, 4, chunk=1))
            await gate.entered()
            handle.cancel()
            gate.open()
            await handle
            raise AssertionError

        app = self.app(endpoint)
        async with app.router.lifespan_context(app) as state, client_of(app, state) as client:
            assert (await client.get("/")).status_code == 499

    async def test_a_service_that_stops_sends_clients_elsewhere(self) -> None:
        async def endpoint(request: Request) -> Response:
            coordinator_of(request).drain()
            await coordinator_of(request).run(abs, -1)
            raise AssertionError

        app = self.app(endpoint)
        async with app.router.lifespan_context(app) as state, client_of(app, state) as client:
            answer = await client.get("/")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")

    async def test_so_does_one_whose_server_keeps_no_state(self) -> None:
        async def endpoint(request: Request) -> Response:
            coordinator_of(request).drain()
            await coordinator_of(request).run(abs, -1)
            raise AssertionError

        app = self.app(endpoint)
        async with app.router.lifespan_context(app), client_of(app) as client:
            answer = await client.get("/")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")

    async def test_another_coordinator_that_takes_nothing_more_is_answered_alike(self) -> None:
        async def endpoint(request: Request) -> Response:
            async with Coordinator() as other:
                other.drain()
                await other.run(abs, -1)
            raise AssertionError

        app = self.app(endpoint)
        async with app.router.lifespan_context(app) as state, client_of(app, state) as client:
            assert (await client.get("/")).status_code == 503

    async def test_other_statuses_are_refused(self) -> None:
        with pytest.raises(ValueError, match="429 or 503"):
            exception_handlers(overloaded=500)
        for value in (503.0, True, "503", None):
            with pytest.raises((TypeError, ValueError), match="overloaded must be "):
                exception_handlers(overloaded=value)  # type: ignore[arg-type]
