# SPDX-License-Identifier: MIT
# A program in a pseudo-terminal, and what a person would see on its screen.

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tests.support.patience import PATIENCE


class Terminal:
    """A terminal in which a Python program runs, with two gates that it may wait at.

    ``wait_at_gate(number=0)`` is defined for the program.

    Args:
        program: Its source.
        stdout: Where its standard output goes; by default to the terminal.
        columns, rows: Of the screen.
    """

    def __init__(
        self, program: str, *, stdout: Any = None, columns: int = 80, rows: int = 24
    ) -> None:
        import pyte

        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        pipes = [os.pipe(), os.pipe()]
        gates, self._gates = [each[0] for each in pipes], [each[1] for each in pipes]
        defined = f"""
import os
def wait_at_gate(number=0):
    assert os.read({gates}[number], 1)
"""
        environment = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", defined + program],
            stdin=theirs,
            stdout=theirs if stdout is None else stdout,
            stderr=theirs,
            pass_fds=gates,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        for each in gates:
            os.close(each)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)
        for each in self._gates:
            os.close(each)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def open_gate(self, times: int = 1, number: int = 0) -> None:
        """Let so many waits at the gate go on."""
        os.write(self._gates[number], b"x" * times)

    @property
    def lines(self) -> list[str]:
        """What stands on the screen, without blanks at the ends."""
        return "\n".join(each.rstrip() for each in self._screen.display).rstrip().split("\n")

    @property
    def cursor_is_shown(self) -> bool:
        return not self._screen.cursor.hidden

    def until(self, seen: Callable[[list[str]], bool]) -> list[str]:
        """Wait until the screen is like that; the lines."""
        ends = time.monotonic() + PATIENCE
        while not seen(self.lines):
            assert time.monotonic() < ends, self.lines
            assert self._read(), self.lines
        return self.lines

    def end(self, status: int = 0) -> list[str]:
        """Wait until the program has ended; the lines that it leaves."""
        ends = time.monotonic() + PATIENCE
        while self._read():
            assert time.monotonic() < ends, self.lines
        assert self.process.wait(PATIENCE) == status, self.lines
        return self.lines

    def _read(self) -> bool:
        """Take in what the program wrote meanwhile, if anything; whether more may come."""
        if not select.select([self._ours], [], [], 0.2)[0]:
            return True
        try:
            found = os.read(self._ours, 1 << 16)
        except OSError:  # the program has closed its end
            return False
        self.raw += found
        self._stream.feed(found)
        return bool(found)
