# SPDX-License-Identifier: MIT
# The servers that `bench serve` loads: one application, served as a user would serve it, that has
# its work done by this library or in one of the ways that one would take instead.
#
# Each has three endpoints: one that does nothing, an interactive one, and a heavy one that keeps
# every CPU busy for a second if nothing else runs. Each way is set up as well as it can be: the
# heavy work is in a piece for each CPU, and what is interactive never waits behind it for a thread
# or a process. How much work there is stands in the environment, since a server may start processes
# of its own. It is uvicorn on uvloop, but for gunicorn's own way.
"""`python -m aioktask.bench.serving WAY PORT PARENT`: a server, until it is ended."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import logging
import math
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from aioktask import Coordinator, Job, Overloaded, run_multithreaded
from aioktask.bench.processes import cpus, die_with
from aioktask.bench.sines import Sines

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = [
    "BOUNDED",
    "DIRTY",
    "OURS",
    "PROCESSES",
    "SMALL_CHUNKS",
    "THREADS",
    "WAYS",
    "Amount",
    "Way",
    "environment",
    "missing",
    "work",
]

OURS, SMALL_CHUNKS, BOUNDED = "aioktask", "aioktask, 2^16 a chunk", "aioktask, bounded"
TO_THREAD, STARLETTE, ANYIO = "asyncio.to_thread", "run_in_threadpool", "anyio, a limiter each"
POOL, NICE_POOL = "process pools", "process pools, heavy at nice 10"
DIRTY = "gunicorn, dirty workers"
THREADS = (TO_THREAD, STARLETTE, ANYIO)
PROCESSES = (POOL, NICE_POOL, DIRTY)

VARIABLE = "AIOKTASK_BENCH_SERVE"
# Elements of the arrays: they stay in a CPU's cache. A call of NumPy goes over a part of them, as
# array code in blocks does.
LENGTH, BLOCK = 1 << 18, 1 << 14
NICE = 10


@dataclass(frozen=True, slots=True)
class Amount:
    """How much there is to do.

    Attributes:
        interactive: Elements of an interactive request.
        heavy: Elements of a heavy one.
        max_queued: How many requests may wait where they are bounded.
        max_wait: How long they may, in seconds.
    """

    interactive: int
    heavy: int
    max_queued: int
    max_wait: float


def environment(amount: Amount) -> dict[str, str]:
    """What a server is told, for `os.environ`."""
    return {VARIABLE: json.dumps(asdict(amount))}


def _amount() -> Amount:
    return Amount(**json.loads(os.environ[VARIABLE]))


_sines: list[Sines] = []


def work(start: int, stop: int) -> None:
    """Elements of this process's arrays, block by block."""
    if not _sines:
        _sines.append(Sines(length=LENGTH))
    sines = _sines[0]
    for low in range(start, stop, BLOCK):
        sines(low, min(low + BLOCK, stop))
    sines.restart()  # nobody reads the counts, which would only grow


def _pieces(size: int) -> list[tuple[int, int]]:
    """One for each CPU."""
    length = math.ceil(size / cpus())
    return [(start, min(start + length, size)) for start in range(0, size, length)]


@dataclass(frozen=True, slots=True)
class Way:
    """How requests are served.

    Attributes:
        interactive: Does the work of an interactive request.
        heavy: Does that of a heavy one.
    """

    interactive: Callable[[], Awaitable[object]]
    heavy: Callable[[], Awaitable[object]]


Call = Callable[..., Awaitable[object]]


def _calls(amount: Amount, interactive: Call, heavy: Call) -> Way:
    """A way to call single functions, by which the heavy work is done in pieces."""

    async def pieces() -> None:
        await asyncio.gather(*[heavy(work, *piece) for piece in _pieces(amount.heavy)])

    return Way(partial(interactive, work, 0, amount.interactive), pieces)


# The ways.


async def _aioktask(
    stack: AsyncExitStack, amount: Amount, chunk: int | None = None, **bounds: Any
) -> Way:
    # The machine is the server's own: what is heavy gives way to nobody outside of the process.
    everything = await stack.enter_async_context(Coordinator(give_way=False))
    requests = await stack.enter_async_context(Coordinator(**bounds))
    job = Job(work, amount.heavy, nice=NICE, chunk=chunk, name="heavy")
    return Way(
        partial(requests.run, work, 0, amount.interactive, name="interactive"),
        partial(run_multithreaded, job, coordinator=everything),
    )


async def _bounded(stack: AsyncExitStack, amount: Amount) -> Way:
    return await _aioktask(stack, amount, max_queued=amount.max_queued, max_wait=amount.max_wait)


async def _to_thread(stack: AsyncExitStack, amount: Amount) -> Way:
    return _calls(amount, asyncio.to_thread, asyncio.to_thread)


async def _starlette(stack: AsyncExitStack, amount: Amount) -> Way:
    from starlette.concurrency import run_in_threadpool

    return _calls(amount, run_in_threadpool, run_in_threadpool)


async def _anyio(stack: AsyncExitStack, amount: Amount) -> Way:
    def limited() -> Call:
        return partial(anyio.to_thread.run_sync, limiter=anyio.CapacityLimiter(cpus()))

    return _calls(amount, limited(), limited())


async def _pools(stack: AsyncExitStack, amount: Amount, nice: int = 0) -> Way:
    loop = asyncio.get_running_loop()

    async def pool(nice: int) -> Call:
        context = get_context("spawn")
        made = stack.enter_context(
            ProcessPoolExecutor(cpus(), context, _start, (os.getpid(), nice))
        )
        call = partial(loop.run_in_executor, made)
        await asyncio.gather(*[call(work, 0, 1 << 20) for _ in range(4 * cpus())])
        return call

    return _calls(amount, await pool(0), await pool(nice))


def _start(parent: int, nice: int) -> None:
    die_with(parent)
    os.nice(nice)


async def _dirty(stack: AsyncExitStack, amount: Amount) -> Way:
    from gunicorn.dirty.client import DirtyClient, get_dirty_socket_path

    # A client has one request at a time on its connection.
    idle: list[Any] = []

    async def call(fn: Callable[[int, int], object], start: int, stop: int) -> None:
        client = idle.pop() if idle else DirtyClient(get_dirty_socket_path(), timeout=60)
        await client.execute_async(f"{__name__}:DirtyWork", "work", start, stop)
        idle.append(client)

    async def close() -> None:
        for client in idle:
            await client.close_async()

    stack.push_async_callback(close)
    # What is interactive would wait there: a request goes to the worker whose turn it is, and waits
    # for what that has in hand.
    return _calls(amount, asyncio.to_thread, call)


WAYS: dict[str, Callable[[AsyncExitStack, Amount], Awaitable[Way]]] = {
    OURS: _aioktask,
    SMALL_CHUNKS: partial(_aioktask, chunk=1 << 16),
    BOUNDED: _bounded,
    TO_THREAD: _to_thread,
    STARLETTE: _starlette,
    ANYIO: _anyio,
    POOL: _pools,
    NICE_POOL: partial(_pools, nice=NICE),
    DIRTY: _dirty,
}


def missing(way: str) -> str:
    """What would have to be installed; empty where all is there."""
    needed = ["starlette", "uvicorn", "uvloop", "httptools"]
    if way == DIRTY:
        # Older ones have no such workers.
        needed = [*needed, "gunicorn", "gunicorn.dirty"]
    for package in needed:
        if importlib.util.find_spec(package) is None:
            return package
    return ""


# The application and its servers.


def application(name: str) -> Any:
    """The application that works in the way of this name."""
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    ways: list[Way] = []

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            ways.append(await WAYS[name](stack, _amount()))
            yield

    async def empty(request: Request) -> Response:
        return PlainTextResponse("")

    async def interactive(request: Request) -> Response:
        await ways[0].interactive()
        return PlainTextResponse("")

    async def heavy(request: Request) -> Response:
        await ways[0].heavy()
        return PlainTextResponse("")

    async def overloaded(request: Request, error: Exception) -> Response:
        assert isinstance(error, Overloaded)
        again = {"retry-after": str(math.ceil(error.retry_after))}
        return PlainTextResponse(str(error), 503, again)

    endpoints = {"/empty": empty, "/interactive": interactive, "/heavy": heavy}
    return Starlette(
        routes=[Route(path, endpoint) for path, endpoint in endpoints.items()],
        exception_handlers={Overloaded: overloaded},
        lifespan=lifespan,
    )


def _uvicorn(name: str, port: int) -> None:
    import uvicorn

    class Server(uvicorn.Server):  # type: ignore[misc]
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                print("ready", flush=True)

    config = uvicorn.Config(
        application(name), port=port, loop="uvloop", http="httptools", log_level="warning"
    )
    Server(config).run()


def _gunicorn(name: str, port: int) -> None:
    from gunicorn.app.base import BaseApplication

    class Server(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            for key, value in {
                "bind": f"127.0.0.1:{port}",
                "worker_class": "asgi",
                "asgi_loop": "uvloop",
                "dirty_apps": [f"{__name__}:DirtyWork"],
                "dirty_workers": cpus(),
                "loglevel": "warning",
                "control_socket_disable": True,
                "post_worker_init": lambda worker: print("ready", flush=True),
            }.items():
                if key in self.cfg.settings:  # older ones have no control socket
                    self.cfg.set(key, value)

        def load(self) -> object:
            return application(name)

    # Its processes cancel what they have in hand as they end, of which asyncio's streams tell.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    Server().run()


def _dirty_app() -> type:
    from gunicorn.dirty.app import DirtyApp

    class DirtyWork(DirtyApp):  # type: ignore[misc]
        """What gunicorn's dirty workers do for the application."""

        def work(self, start: int, stop: int) -> None:
            work(start, stop)

    return DirtyWork


def __getattr__(name: str) -> Any:
    if name == "DirtyWork":  # which gunicorn asks this module for
        return _dirty_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main(arguments: Sequence[str]) -> None:
    """Serve in the way that is named, on a port, as long as the parent is there."""
    name, port, parent = arguments
    die_with(int(parent))
    if name == DIRTY:
        _gunicorn(name, int(port))
    else:
        _uvicorn(name, int(port))


if __name__ == "__main__":
    # Under its own name: other processes import from there what they are to call.
    serving = importlib.import_module("aioktask.bench.serving")

    serving.main(sys.argv[1:])
