# SPDX-License-Identifier: MIT
# Real servers with jobs running: a client that goes away has its job cancelled and undone, and
# SIGTERM ends the server with everything done or undone, and no worker killed.
#
# What was done and undone is read from the ledger, which the jobs write outside of the process.

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.gates import until
from tests.support.servers import PATIENCE, UVICORN_IS_PATIENT, Client, Server, ask
from tests.web.ledger import FILE, Ledger

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@dataclass(frozen=True)
class Command:
    """How a server is started, with the settings that it needs.

    Attributes:
        needs: The packages without which it is skipped.
        command: Of Python's.
        workers: How many processes serve.
        status: The exit status after SIGTERM.
        told: Whether the processes that serve get the signal too, so that the stop begins with it.
            Others stop once their requests have ended, or are cancelled.
    """

    needs: tuple[str, ...]
    command: tuple[str, ...]
    workers: int = 1
    status: int = 0
    told: bool = True


def uvicorn(*options: str, needs: tuple[str, ...] = (), workers: int = 1) -> Command:
    return Command(
        ("uvicorn", "starlette", *needs),
        (
            *("-m", "uvicorn", "tests.web.service:app", "--host", "127.0.0.1", "--port", "{port}"),
            *("--timeout-graceful-shutdown", "20", "--workers", str(workers)),
            *UVICORN_IS_PATIENT,
            *options,
        ),
        workers,
        # It raises the signal again once it has stopped; the parent of several workers does not.
        -signal.SIGTERM if workers == 1 else 0,
    )


def gunicorn(*options: str, needs: tuple[str, ...] = (), workers: int = 1) -> Command:
    return Command(
        ("gunicorn", "starlette", *needs),
        (
            *("-m", "gunicorn", "tests.web.service:app", "--bind", "127.0.0.1:{port}"),
            *("--worker-class", "asgi", "--workers", str(workers), "--graceful-timeout", "20"),
            # Its own cancel of a task whose client is gone, 3 s later, would hide ours.
            *("--asgi-disconnect-grace-period", "60", "--no-control-socket", *options),
        ),
        workers,
    )


def hypercorn(*options: str, needs: tuple[str, ...] = (), workers: int = 1) -> Command:
    return Command(
        ("hypercorn", "starlette", *needs),
        (
            *("-m", "hypercorn", "tests.web.service:app", "--bind", "127.0.0.1:{port}"),
            # Processes that it starts are not told of the signal: their requests are cancelled.
            *("--workers", str(workers), "--graceful-timeout", "1" if workers else "20", *options),
        ),
        max(workers, 1),
        # It knows of no SIGTERM on trio, where the lifespan's stop is all that there is.
        -signal.SIGTERM if "trio" in options and workers == 0 else 0,
        told=workers == 0,
    )


def aiohttp(*options: str) -> Command:
    return Command(
        ("aiohttp", "starlette"), ("-m", "tests.web.service_aiohttp", "{port}", *options)
    )


SERVERS = {
    "uvicorn": uvicorn("--loop", "asyncio", "--http", "h11"),
    "uvicorn+uvloop": uvicorn("--loop", "uvloop", needs=("uvloop",)),
    "uvicorn, workers": uvicorn(workers=2),
    "gunicorn": gunicorn("--asgi-loop", "asyncio"),
    "gunicorn+uvloop": gunicorn("--asgi-loop", "uvloop", needs=("uvloop",)),
    "gunicorn, workers, preload": gunicorn("--preload", workers=2),
    "hypercorn": hypercorn(workers=0),
    "hypercorn+uvloop": hypercorn("--worker-class", "uvloop", needs=("uvloop",), workers=0),
    "hypercorn+trio": hypercorn("--worker-class", "trio", needs=("trio",), workers=0),
    "hypercorn, workers": hypercorn(workers=2),
    "hypercorn+trio, worker": hypercorn("--worker-class", "trio", needs=("trio",), workers=1),
    "aiohttp": aiohttp(),
    "aiohttp, cancelling": aiohttp("--handler-cancellation"),
}


@dataclass
class World:
    """A server that serves, and the ledger of its jobs."""

    server: Server
    ledger: Ledger
    command: Command
    clients: list[Client] = field(default_factory=list)

    def client(self, target: str) -> Client:
        """One that is gone when the test ends."""
        self.clients.append(Client(self.server.port, target))
        return self.clients[-1]

    def begin(self, target: str, name: str, units: int = 100_000) -> Client:
        """A client whose request's job, of so many units, has done some."""
        client = self.client(f"{target}?name={name}&units={units}")
        until(
            lambda: len(self.ledger.of(name).done) >= 3, f"the job {name} does something", PATIENCE
        )
        return client

    def ended(self, name: str) -> str:
        """How the request ended that ran this job."""
        until(lambda: self.ledger.of(name).end, f"the request of {name} ends", PATIENCE)
        return self.ledger.of(name).end


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., object]:
    """Starts a server, and skips the test where what it needs is missing."""

    @contextmanager
    def started(
        name: str, environment: Mapping[str, str] | None = None, options: Sequence[str] = ()
    ) -> Iterator[World]:
        command = SERVERS[name]
        for package in command.needs:
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed")
        ledger = Ledger(tmp_path / "ledger")
        settings = {FILE: str(ledger.path), **(environment or {})}
        with Server((*command.command, *options), "/ready", settings, tmp_path / "log") as server:
            until(
                lambda: len(ledger.processes("began")) == command.workers,
                "all workers serve",
                PATIENCE,
            )
            world = World(server, ledger, command)
            try:
                yield world
            finally:
                for client in world.clients:
                    client.leave()

    return started


@pytest.mark.parametrize("name", list(SERVERS))
def test_a_client_that_goes_away_has_its_job_undone(name: str, start) -> None:
    with start(name) as world:
        target = "/guarded" if name == "aiohttp" else "/heavy"
        world.begin(target, "left").leave()
        assert "Cancel" in world.ended("left")
        assert world.ledger.of("left").nothing_left
        assert ask(world.server.port, "/ready") == 200  # and the server serves on
        assert "Traceback" not in world.server.log()


@pytest.mark.parametrize("name", list(SERVERS))
def test_sigterm_ends_with_everything_undone_and_nobody_killed(name: str, start) -> None:
    with start(name) as world:
        awaited = world.begin("/heavy", "awaited")
        assert ask(world.server.port, "/submitted?name=submitted") == 200
        until(
            lambda: world.ledger.of("submitted").done, "the submitted job does something", PATIENCE
        )
        stream = world.client("/endless")
        world.server.terminate()
        assert world.server.wait() == world.command.status
        assert world.ledger.of("awaited").nothing_left
        assert world.ledger.of("submitted").nothing_left
        if world.command.told:
            assert awaited.answer()[0] == 503
            assert b"event: end" in stream.answer()[1]
            assert "Traceback" not in world.server.log()
        if name != "hypercorn+trio":
            stopped = world.ledger.processes("stopped")
            assert sorted(stopped) == sorted(world.ledger.processes("began"))
        for process in world.ledger.processes("began"):
            with pytest.raises(ProcessLookupError):
                os.kill(process, 0)
        assert "SIGKILL" not in world.server.log()


ONE_OF_EACH = ["uvicorn", "gunicorn", "hypercorn", "aiohttp"]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_what_can_finish_after_sigterm_finishes_and_is_answered(name: str, start) -> None:
    with start(name, {"AIOKTASK_TEST_FINISH": "30"}) as world:
        client = world.begin("/heavy", "short", units=200)
        world.server.terminate()
        assert client.answer()[0] == 200
        assert world.server.wait() == world.command.status
        told = world.ledger.of("short")
        assert set(told.done) == set(range(200))
        assert not told.undone


@pytest.mark.parametrize("name", ["uvicorn", "gunicorn", "hypercorn+trio"])
def test_one_endpoint_watches_for_its_client_behind_a_middleware_of_starlettes(
    name: str, start
) -> None:
    with start(name, {"AIOKTASK_TEST_MIDDLEWARE": "base"}) as world:
        world.begin("/guarded", "left").leave()
        assert "Cancel" in world.ended("left")
        assert world.ledger.of("left").nothing_left
        assert ask(world.server.port, "/ready") == 200
        assert "Traceback" not in world.server.log()


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_deadline_that_a_client_names_ends_its_job(name: str, start) -> None:
    with start(name) as world:
        client = Client(world.server.port, "/heavy?name=late", {"X-Timeout": "0.3"})
        assert client.answer()[0] == 504
        assert world.ended("late")
        assert world.ledger.of("late").nothing_left
        assert ask(world.server.port, "/ready", {"X-Timeout": "soon"}) == 400


@pytest.mark.parametrize("name", ["uvicorn", "gunicorn", "hypercorn", "hypercorn+trio"])
def test_a_large_body_arrives_whole_below_the_middleware(name: str, start) -> None:
    body = bytes(range(256)) * 8192
    with start(name) as world:
        status, answer = Client(world.server.port, "/length", body=body).answer()
        assert (status, str(len(body)).encode() in answer) == (200, True)


@pytest.mark.parametrize("name", ["uvicorn, workers", "gunicorn, workers, preload"])
def test_a_rolling_restart_undoes_what_runs_and_serves_on(name: str, start) -> None:
    with start(name) as world:
        client = world.begin("/heavy", "running")
        old = world.ledger.processes("began")
        world.server.process.send_signal(signal.SIGHUP)
        assert world.ended("running") == "JobCancelled"
        assert client.answer()[0] == 503
        assert world.ledger.of("running").nothing_left
        until(
            lambda: sorted(world.ledger.processes("stopped")) == sorted(old),
            "all old workers stop",
            PATIENCE,
        )
        until(
            lambda: len(world.ledger.processes("began")) == 2 * len(old),
            "all new workers serve",
            PATIENCE,
        )
        until(lambda: ask(world.server.port, "/ready") == 200, "it serves on", PATIENCE)
        world.server.terminate()
        assert world.server.wait() == world.command.status
        assert "SIGKILL" not in world.server.log()


def test_without_signals_uvicorn_cancels_its_tasks_and_the_lifespan_undoes(start) -> None:
    limit = ("--timeout-graceful-shutdown", "1")
    with start("uvicorn", {"AIOKTASK_TEST_SIGNALS": "none"}, limit) as world:
        world.begin("/heavy", "awaited")
        assert ask(world.server.port, "/submitted?name=submitted") == 200
        world.server.terminate()
        assert world.server.wait() == world.command.status
        assert world.ledger.of("awaited").nothing_left
        assert world.ledger.of("submitted").nothing_left


def test_without_signals_gunicorn_kills_a_worker_before_its_lifespan_ends(start) -> None:
    """Why the stop begins with the signal: nothing that runs in the worker could undo."""
    limit = ("--graceful-timeout", "1")
    with start("gunicorn", {"AIOKTASK_TEST_SIGNALS": "none"}, limit) as world:
        world.begin("/heavy", "running")
        world.server.terminate()
        world.server.wait()
        assert world.ledger.of("running").done
        assert not world.ledger.of("running").undone
        assert world.ledger.processes("stopped") == []


@pytest.mark.slow
def test_the_supervisor_of_uvicorn_keeps_a_worker_whose_chunk_holds_the_gil(start) -> None:
    """It kills one that does not answer for 5 s. The interpreter lets the one that answers in."""
    with start("uvicorn, workers") as world:
        assert ask(world.server.port, "/spinning?seconds=12") == 200
        assert len(world.ledger.processes("began")) == world.command.workers
        assert "died" not in world.server.log()
