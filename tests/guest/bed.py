# SPDX-License-Identifier: MIT
# One boot of the guest machine, from the first test that asks to the end of the session.
#
# Boots once, with all the tests that will be asked for. Whatever happens, a question for a test's
# reports has an answer in bounded time: its reports, or the reason why there are none. QEMU never
# outlives this process, however that ends; its exit code says nothing and is not looked at.
#
# A machine whose pulse has stopped is frozen: its kernel lets no process run on some CPU. That is
# told apart from a test that hangs, since it is the emulated kernel's doing and not the test's.
"""Boot the guest and wait for its reports."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.guest.kit import prepare
from tests.guest.machine import MACHINE, Limits, check_host
from tests.guest.reports import Stream, tail
from tests.support.cache import cache_directory
from tests.support.packages import Unavailable

if TYPE_CHECKING:
    import pytest

__all__ = ["Bed", "as_child"]

# Lines of a log: for the test that was running, which may have printed every thread's stack, and
# for those after it.
_TAIL = 80
_SHORT_TAIL = 10
# How often the pulse is felt, in seconds.
_FEEL = 5.0
_KEPT_RUNS = 5


def as_child(command: Sequence[str]) -> list[str]:
    """The command, to be killed with the thread that starts it, also where that cannot do it.

    Raises:
        Unavailable: There is no setpriv here.
    """
    if shutil.which("setpriv") is None:
        raise Unavailable("needs setpriv (Debian: util-linux)")
    return ["setpriv", "--pdeathsig", "KILL", *command]


class Bed:
    """The guest machine of one session.

    Args:
        request: What the guest is to do: the `nodeids` of its tests and the `options` of pytest.
        limits: How long it may take.
        say: Told what goes on while there is nothing to see.

    Attributes:
        frozen: Whether it ended because its pulse had stopped.
    """

    def __init__(
        self,
        config: pytest.Config,
        request: dict[str, list[str]],
        limits: Limits,
        say: Callable[[str], None],
    ) -> None:
        self.request = request
        self._stream = Stream(config)
        self._limits = limits
        self.say = say
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._booted_at = 0.0
        self._heard_at = 0.0
        self._ready_after: float | None = None
        self.frozen = False

    @property
    def running(self) -> str | None:
        """The test that the guest has begun and not ended, as far as it told."""
        return self._stream.running

    def boot(self) -> None:
        """Start the machine; its tests begin some seconds later.

        Raises:
            Unavailable: This machine cannot run it.
        """
        self._folder = _new_folder()
        self._channel, theirs = socket.socketpair()
        with theirs, (self._folder / "qemu.log").open("wb") as log:
            command, environment = self.command(self._folder, theirs.fileno())
            self.say(f"booting; its console is logged in {self._folder / 'console.log'}")
            # In a session of its own: Ctrl-C is for this process to hear, which then ends it.
            self._process = subprocess.Popen(
                as_child(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._booted_at = self._heard_at = time.monotonic()

    def command(self, folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
        """What to run as the machine, with what it needs in `folder`, and its environment.

        Args:
            port: The descriptor that it is to send its messages to.
        """
        check_host(MACHINE)
        kit = prepare(self.say)
        initramfs = folder / "initramfs"
        kit.write_initramfs(initramfs, self.request)
        arguments = MACHINE.arguments(
            kernel=kit.vmlinux, initramfs=initramfs, image=kit.image, scratch=kit.scratch
        )
        arguments += MACHINE.channels(
            console=f"file:{folder / 'console.log'}", pulse=f"file:{folder / 'pulse'}", port=port
        )
        return [*kit.qemu, *arguments], kit.environment

    def reports(self, nodeid: str) -> list[pytest.TestReport] | str:
        """The phases of a test, or why there are none. Blocks until one or the other is known."""
        while True:
            found = self._stream.reports(nodeid)
            if found is not None:
                return found
            if self._stream.end is not None:
                self.stop()
                lines = _TAIL if self._stream.running in (nodeid, None) else _SHORT_TAIL
                return "\n\n".join([self._stream.explain(nodeid), *self._last_words(lines)])
            self._listen()

    def _listen(self) -> None:
        """Take the next messages, or find that there will be none."""
        assert self._channel is not None
        silence, awaited = (
            (self._limits.test, "message")
            if self._stream.ready
            else (self._limits.boot, "test to begin")
        )
        now = time.monotonic()
        until_silent = self._heard_at + silence - now
        until_over = self._booted_at + self._limits.whole - now
        patience = max(0, min(until_silent, until_over, _FEEL))
        if select.select([self._channel], [], [], patience)[0]:
            self._hear(self._channel.recv(1 << 16))
        elif (stopped := self._without_pulse()) > self._limits.pulse:
            self.frozen = True
            self._stream.close(f"it froze: for {stopped:.0f} s no process ran on some CPU")
        elif patience == _FEEL:
            return
        elif until_over < until_silent:
            self._stream.close(f"all in all it took more than {self._limits.whole:g} s")
        else:
            self._stream.close(f"in {silence:g} s there was no {awaited}")

    def _without_pulse(self) -> float:
        """Seconds since the last beat; 0 where none was felt yet."""
        assert self._folder is not None
        try:
            beaten = (self._folder / "pulse").stat()
        except FileNotFoundError:
            return 0.0
        return time.time() - beaten.st_mtime if beaten.st_size else 0.0

    def _hear(self, received: bytes) -> None:
        if not received:
            self._stream.close("the machine stopped")
            return
        self._heard_at = time.monotonic()
        self._stream.feed(received)
        if self._stream.ready and self._ready_after is None:
            self._ready_after = self._heard_at - self._booted_at

    def _last_words(self, lines: int) -> list[str]:
        assert self._folder is not None
        out = []
        for name in ("console.log", "qemu.log"):
            path = self._folder / name
            text = path.read_text(errors="replace") if path.exists() else ""
            if text.strip():
                out.append(f"The end of {path}:\n{tail(text, lines)}")
        return out

    def summary(self) -> str:
        """One line: how long it took to the first test, and where the logs are."""
        ready = self._ready_after
        boot = "no test began" if ready is None else f"{ready:.1f} s from power to the first test"
        return f"{boot}; logs in {self._folder}"

    def stop(self) -> None:
        """End the machine, whatever it is doing. The logs stay."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._folder is not None:
            (self._folder / "initramfs").unlink(missing_ok=True)


def _new_folder() -> Path:
    """A folder for a run's logs; those of the last runs stay, older ones go."""
    runs = cache_directory("guest") / "runs"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        earlier = sorted(runs.iterdir(), key=lambda run: run.stat().st_mtime)
        for run in earlier[: -_KEPT_RUNS + 1]:
            shutil.rmtree(run)
        return Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=runs))
    except OSError as error:
        raise Unavailable(f"cannot write to {runs}: {error}") from error
