# SPDX-License-Identifier: MIT
# Real web servers in processes of their own, on a loopback port, and clients that can go away.
#
# What a server or a job reached is asked again and again, with a limit of time: these are other
# processes, which have nothing to wait on together.

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.support.gates import until
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parents[2]

# On a machine that others load a new worker of uvicorn's takes more than the usual 5 s to begin.
UVICORN_IS_PATIENT = ("--timeout-worker-healthcheck", f"{PATIENCE:.0f}")


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class Client:
    """One connection, on which one request was sent."""

    def __init__(
        self, port: int, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        lines = [f"{'POST' if body else 'GET'} {target} HTTP/1.1", "Host: test"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        lines += ["Connection: close", f"Content-Length: {len(body)}", "", ""]
        self._socket.sendall("\r\n".join(lines).encode() + body)

    def leave(self) -> None:
        """Go away without having read anything."""
        self._socket.close()

    def hear(self, what: bytes) -> None:
        """Read until this came, of an answer that goes on."""
        received = b""
        while what not in received:
            data = self._socket.recv(65536)
            assert data, f"the answer ended without {what!r}: {received[-2000:]!r}"
            received += data

    def answer(self) -> tuple[int, bytes]:
        """The status, and all that came after it; a status of 0 where nothing came."""
        received = b""
        with self._socket, contextlib.suppress(ConnectionResetError):
            while data := self._socket.recv(65536):
                received += data
        if not received:
            return 0, b""
        return int(received.split()[1]), received.partition(b"\r\n\r\n")[2]


def ask(port: int, target: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> int:
    """The status of one request, 0 where nobody answers."""
    try:
        return Client(port, target, headers, body).answer()[0]
    except OSError:
        return 0


class Server:
    """A server that was started by a command line, from where it answers to its end.

    Args:
        command: Of Python's, with ``{port}`` where the port is to be.
        ready: What it answers with status 200 once it serves.
        environment: Beside that of the test.
        log: Where it writes what it says.
        port: Of the loopback interface; a free one where none is given.
    """

    def __init__(
        self,
        command: Sequence[str],
        ready: str,
        environment: Mapping[str, str],
        log: Path,
        port: int | None = None,
    ) -> None:
        self.port = free_port() if port is None else port
        self._ready = ready
        self._log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, *(part.format(port=self.port) for part in command)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, for the end
            )

    def __enter__(self) -> Server:
        try:
            until(self._serves, f"the server answers; it says: {self.log()}", PATIENCE)
        except BaseException:
            self.end_all()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end_all()
        if error is not None:
            print(self.log())

    def _serves(self) -> bool:
        assert self.process.poll() is None, f"the server ended: {self.log()}"
        return ask(self.port, self._ready) == 200

    def log(self) -> str:
        """All that it said."""
        return self._log.read_text(errors="replace")

    def terminate(self) -> None:
        """Send SIGTERM to the process that was started, as an orchestrator does."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit status, as `subprocess` tells it."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server does not end: {self.log()}") from None

    def end_all(self) -> None:
        """End what is left of its group, so that no test leaves a process behind."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
