# SPDX-License-Identifier: MIT
# A real child process that runs jobs, judged by what it did to a file both can see.

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

import aioktask
from tests.support.patience import PATIENCE

PRELUDE = (
    f"""
PATIENCE = {PATIENCE}
"""
    + """
import asyncio, functools, os, select, signal, sys, threading, time
import aioktask
from aioktask import (
    ChunkCancelled, Coordinator, Job, JobCancelled, current_chunk, failure, run_multithreaded,
    run_multithreaded_sync,
)

# A shell that starts the tests in the background has them ignore SIGINT, and this would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

_log = os.open(os.environ["TEST_LOG"], os.O_WRONLY | os.O_APPEND)

def note(*words):
    os.write(_log, (" ".join(map(str, (os.getpid(), *words))) + "\\n").encode())

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

# Not in a read that blocks: a signal may come between the interpreter's last look and the system
# call, whose handler would wait for as long as that.
os.set_blocking(0, False)

def gate():
    while True:
        select.select([0], [], [], 0.05)
        try:
            os.read(0, 1)
        except BlockingIOError:  # not yet, or another thread was quicker
            continue
        return

def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "this never came"
        time.sleep(0.001)

async def until_async(condition):
    import anyio
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "this never came"
        await anyio.sleep(0.001)

def unwanted():
    try:
        current_chunk().check_cancelled()
    except ChunkCancelled:
        return True
    return False

begun = []  # the chunks that began, of the functions below

def begin(start, stop):
    begun.append(start)
    say("begun")

def fill(start, stop):
    note("done", start, stop)

def fill_at_gate(start, stop):
    begin(start, stop)
    gate()
    note("done", start, stop)

def fill_when_unwanted(start, stop):
    begin(start, stop)
    until(unwanted)
    note("done", start, stop)

def clear(start, stop):
    note("undone", start, stop)

def kind_of_loop():
    if "trio" in sys.modules and sys.modules["trio"].lowlevel.in_trio_run():
        return "trio"
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]

async def clear_async(start, stop):
    import anyio
    await anyio.sleep(0)
    note("undone", start, stop)
    note("loop", kind_of_loop())
"""
)

# How a program runs its `main()` on each kind of loop.
RUN_MAIN = {
    "asyncio": "asyncio.run(main())",
    "uvloop": "import uvloop; uvloop.run(main())",
    "trio": "import trio; trio.run(main)",
}

on_each_loop = pytest.mark.parametrize("loop", list(RUN_MAIN))


class Child:
    """A program in a process of its own. Use it with `with`: what is left of it is killed."""

    def __init__(
        self,
        *program: str,
        prelude: str = PRELUDE,
        options: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.log = Path(self._folder.name, "log")
        self.log.touch()
        self._stderr = Path(self._folder.name, "stderr")
        self._said = b""
        self._heard: Counter[str] = Counter()
        source = prelude + "\n".join(textwrap.dedent(each) for each in program)
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", *options, "-X", "faulthandler", "-c", source],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
                start_new_session=True,
                env={
                    **os.environ,
                    "AIOKTASK_MAX_THREADS": "4",
                    "OPENBLAS_NUM_THREADS": "1",
                    "PYTHONPATH": os.pathsep.join(
                        [str(Path(aioktask.__file__).parents[1]), *sys.path]
                    ),
                    "TEST_LOG": str(self.log),
                    **(environ or {}),
                },
            )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self._folder.cleanup()

    def stderr(self) -> str:
        return self._stderr.read_text()

    def hear(self, word: str, times: int = 1) -> None:
        """Wait until the child has said `word` that often since this was asked last."""
        while self._heard[word] < times:
            self._listen(word)
        self._heard[word] -= times

    def hear_line(self, start: str) -> str:
        """Wait until the child says a line that begins with `start`, and return the rest of it."""
        while True:
            for line in self._heard:
                if self._heard[line] and line.startswith(start):
                    self._heard[line] -= 1
                    return line.removeprefix(start).strip()
            self._listen(start)

    def _listen(self, word: str) -> None:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            self._hangs(f"it never said {word!r}")
        said = self.process.stdout.read(65536)
        assert said, f"the child ended and never said {word!r}:\n{self.stderr()}"
        *lines, self._said = (self._said + said).split(b"\n")
        self._heard.update(line.decode() for line in lines)

    def _hangs(self, what: str) -> NoReturn:
        """Fail, with the stacks of the child's threads."""
        self.process.send_signal(signal.SIGABRT)
        self.process.wait()
        pytest.fail(f"{what}:\n{self.stderr()}")

    def open(self, times: int = 1) -> None:
        """Let the child through a gate."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"." * times)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for the end of the child; its exit status, or a signal's number below zero."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(PATIENCE)
        self._hangs("it never ended")

    def notes(self, pid: int | None = None) -> list[list[str]]:
        """What was noted, in order, by one process or all."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [words for number, *words in lines if pid is None or int(number) == pid]

    def counts(self, start: int, stop: int) -> list[tuple[int, int]]:
        """How often each unit was done and undone."""
        done: Counter[int] = Counter()
        undone: Counter[int] = Counter()
        for what, *rest in self.notes():
            if what in ("done", "undone"):
                (done if what == "done" else undone).update(range(int(rest[0]), int(rest[1])))
        assert all(start <= unit < stop for unit in (done | undone))
        return [(done[unit], undone[unit]) for unit in range(start, stop)]

    def undone_again(self, size: int) -> int:
        """How many units were done and undone; the others must not have been touched."""
        counts = Counter(self.counts(0, size))
        assert set(counts) <= {(0, 0), (1, 1)}, counts
        return counts[1, 1]


ONCE = (1, 0)

LONG_JOB = """
job = Job(fill_when_unwanted, 64, chunk=1, max_threads=3, undo=clear, name="numbers")
"""
