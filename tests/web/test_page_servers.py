# SPDX-License-Identifier: MIT
# The live page on real servers: all workers are on it, and it never keeps a server from ending.

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the page needs Starlette")
pytest.importorskip("uvicorn", reason="the page is served with uvicorn")

from aioktask.web._page.access import Token
from tests.support.gates import until
from tests.support.servers import PATIENCE, UVICORN_IS_PATIENT, Client, Server

UVICORN = ["-m", "uvicorn", "--port", "{port}", "--log-level", "warning", *UVICORN_IS_PATIENT]
GUNICORN = ["-m", "gunicorn", "-b", "127.0.0.1:{port}", "-k", "asgi", "--graceful-timeout", "30"]
HYPERCORN = ["-m", "hypercorn", "-b", "127.0.0.1:{port}", "--graceful-timeout", "30"]
APP = "tests.web.page_service:app"
ALONE = "tests.web.page_service:alone"
SERVERS = {
    "uvicorn": [*UVICORN, APP],
    "uvicorn, workers": [*UVICORN, "--workers", "2", APP],
    "uvicorn without a coordinator": [*UVICORN, ALONE],
    "gunicorn": [*GUNICORN, APP],
    "gunicorn, workers": [*GUNICORN, "--workers", "2", APP],
    "gunicorn without a coordinator": [*GUNICORN, ALONE],
    "hypercorn": [*HYPERCORN, "--workers", "0", APP],
    # It tells its workers of no signal, and cancels what still runs after this time, in seconds.
    "hypercorn, workers": [*HYPERCORN, "--workers", "2", "--graceful-timeout", "1", APP],
    "hypercorn without a coordinator": [*HYPERCORN, "--workers", "0", ALONE],
    "hypercorn on trio": [*HYPERCORN, "--workers", "0", "-k", "trio", APP],
    "serve": ["-m", "aioktask", "serve", "--port", "{port}", "--allow", "test"],
}
READY = {"serve": "/"}
# Less than the 10 s and more that a server would wait for a stream.
PROMPT_SECONDS = 5.0


@pytest.fixture(autouse=True)
def runtime_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Not pytest's own: the path of a Unix socket has 108 bytes at most.
    with tempfile.TemporaryDirectory(prefix="aioktask-") as found:
        monkeypatch.setenv("XDG_RUNTIME_DIR", found)
        yield


def bearer() -> dict[str, str]:
    return {"Authorization": f"Bearer {Token().value}"}


def state(server: Server) -> Any:
    status, body = Client(server.port, "/jobs/state", bearer()).answer()
    assert status == 200, body
    return json.loads(body)["state"]


def workers(server: Server) -> set[int]:
    """The processes that have begun to serve, as the page tells."""
    jobs = state(server)["jobs"]
    return {job["pid"] for job in jobs if job["name"] == f"of {job['pid']}"}


def command_of(kind: str) -> list[str]:
    """The command that starts a server; skips the test where it is not installed."""
    command = SERVERS[kind]
    pytest.importorskip(command[1], reason=f"this is a test of {command[1]}")
    if "trio" in command:
        pytest.importorskip("trio", reason="this is a test of trio")
    return command


@pytest.mark.parametrize("more", ["", "--preload"])
@pytest.mark.parametrize("kind", ["uvicorn, workers", "gunicorn, workers", "hypercorn, workers"])
def test_all_workers_are_on_the_page_whichever_answers(
    kind: str, more: str, tmp_path: Path
) -> None:
    if more and "gunicorn" not in kind:
        pytest.skip("only gunicorn can load the application before it forks")
    with Server([*command_of(kind), *more.split()], "/ready", {}, tmp_path / "log") as server:
        until(lambda: len(workers(server)) == 2, "both workers are on the page", PATIENCE)


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_ends_at_once_while_streams_are_open(kind: str, tmp_path: Path) -> None:
    prefix = "" if kind == "serve" else "/jobs"
    with Server(command_of(kind), READY.get(kind, "/ready"), {}, tmp_path / "log") as server:
        if "workers" in kind:  # one that is not ready yet may never hear of the signal
            until(lambda: len(workers(server)) == 2, "both workers serve", PATIENCE)
        streams = [Client(server.port, f"{prefix}/events", bearer()) for _ in range(3)]
        for each in streams:
            each.hear(b"event: state")
        began = time.monotonic()
        server.terminate()
        server.wait()
        assert time.monotonic() - began < PROMPT_SECONDS, server.log()
        for each in streams:
            if kind != "hypercorn, workers":
                each.hear(b"event: end\ndata: stop")
            each.leave()


def test_the_handler_of_signals_is_put_back_with_the_last_stream() -> None:
    import signal

    from aioktask.web._page.stopping import Stops

    def own(number: int, frame: object) -> None:
        heard.append(number)

    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, own)
    try:
        stops = Stops()
        for _ in range(3):  # streams that overlap leave nothing behind
            one, other = stops.hearing(lambda: heard.append(1)), stops.hearing(lambda: None)
            one.__enter__()
            other.__enter__()
            one.__exit__(None, None, None)
            other.__exit__(None, None, None)
            assert signal.getsignal(signal.SIGTERM) is own
        with stops.hearing(lambda: heard.append(-1)):
            signal.raise_signal(signal.SIGTERM)
        assert heard == [-1, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("chains", [False, True])
def test_streams_of_a_later_server_of_the_process_hear_of_its_stop_once(chains: bool) -> None:
    import signal

    from aioktask.web._page.stopping import Stops

    heard: list[str] = []
    first: Any = None

    def server(number: int, frame: Any) -> None:
        heard.append("server")
        if chains and callable(first):
            first(number, frame)

    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append("first server"))
    try:
        stops = Stops()
        with stops.hearing(lambda: heard.append("early")):
            first = signal.signal(signal.SIGTERM, server)
            with stops.hearing(lambda: heard.append("late")):
                signal.raise_signal(signal.SIGTERM)
        both = ["early", "late", "server"]
        assert heard == [*both, *["first server"] * chains]
        assert signal.getsignal(signal.SIGTERM) is server
        for _ in range(100):  # what lies beneath does not grow
            heard.clear()
            with stops.hearing(lambda: heard.append("stream")):
                signal.raise_signal(signal.SIGTERM)
            assert heard == ["stream", "server", *["first server"] * chains]
            assert signal.getsignal(signal.SIGTERM) is server
        assert stops.installed == []
    finally:
        signal.signal(signal.SIGTERM, before)


def serve(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """What `python -m aioktask serve` says that does not get as far as to serve."""
    program = f"import sys\n{before}\nfrom aioktask.__main__ import main\nmain(sys.argv[1:])"
    command = [sys.executable, "-W", "error", "-c", program, "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port", "70000"], "--port must be from 0 to 65535, got 70000"),
        (["--allow", "*"], "without scheme, port or \\*, got '\\*'"),
        (["--address", "192.0.2.1"], "192.0.2.1, port 8765: .*assign"),
    ],
)
def test_serve_refuses_nonsense_in_one_line(arguments: list[str], told: str) -> None:
    done = serve(*arguments)
    assert done.returncode == 2
    assert re.search(told, done.stderr)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("missing", ["uvicorn", "starlette"])
def test_serve_says_which_extra_brings_what_is_missing(missing: str) -> None:
    done = serve(before=f"sys.modules[{missing!r}] = None")
    assert done.returncode == 2
    assert "pip install 'aioktask[server]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_token_of_all_pages_is_printed_without_a_server() -> None:
    done = serve("--token", before="sys.modules['uvicorn'] = sys.modules['starlette'] = None")
    assert done.stdout == Token().value + "\n"
