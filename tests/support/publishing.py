# SPDX-License-Identifier: MIT
# Processes of a test that publish their jobs: told to go on by a line, and heard line by line.
"""Processes that publish their jobs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ROOT", "Publishing"]

ROOT = Path(__file__).parents[2]


class Publishing:
    """A Python that publishes its jobs, from the moment on in which it says its first line.

    Args:
        arguments: Of the interpreter, after the option that makes warnings errors.
        first: The line that it says once its jobs are there.
        quiet: Whether what it writes to the standard error is dropped.
    """

    def __init__(self, arguments: Sequence[str], first: str, *, quiet: bool = False) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.fspath(ROOT), "AIOKTASK_PUBLISH": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            text=True,
        )
        assert self.hear() == first

    @property
    def pid(self) -> int:
        return self.process.pid

    def hear(self) -> str:
        """The next line that it says."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def say(self) -> None:
        """Have it go on, where it waits for that."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """End it, also one that is stopped."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
