# SPDX-License-Identifier: MIT
# Processes that a benchmark has beside itself: neighbours that use a CPU each, and workers that run
# jobs.
#
# Each is gone when its block ends, however it ends, and dies with the process that started it, also
# when that is killed; the thread that starts them has to outlive them, since its end is what the
# kernel tells them of. They stay in the session they come from: where the kernel groups processes
# by session (sched_autogroup), nice counts within a session only. Each is a process group of its
# own, so that Ctrl-C ends it by way of the block alone.
"""CPU-bound neighbours: `spinning`, `laps`; workers: `workers`."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aioktask

__all__ = [
    "DIE",
    "Child",
    "Laps",
    "cpus",
    "die_with",
    "laps",
    "python_program",
    "spinning",
    "started",
    "workers",
]

PR_SET_PDEATHSIG = 1

# For processes that need nothing of this package: they are there in some milliseconds.
DIE = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
if hasattr(libc, "prctl"):
    libc.prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit()
print("ready", flush=True)
"""
SPIN = DIE + "if {nice}:\n    os.nice({nice})\nwhile True: pass\n"
# A lap: so many rounds of a loop, and when it began and ended.
LAPS = (
    DIE
    + """
for line in sys.stdin:
    began = time.monotonic()
    for _ in range(int(line)):
        pass
    print(began, time.monotonic(), flush=True)
"""
)
LAPS_IN_C = r"""
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

int main(int count, char **arguments)
{
    long long rounds;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (count < 2 || getppid() != atoi(arguments[1]))
        return 0;
    for (puts("ready"), fflush(stdout); scanf("%lld", &rounds) == 1; fflush(stdout)) {
        double began = now();
        for (volatile long long at = 0; at < rounds; at++)
            ;
        printf("%.9f %.9f\n", began, now());
    }
    return 0;
}
"""


def cpus() -> int:
    """How many CPUs this process may use: a neighbour for each."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def die_with(parent: int) -> None:
    """End this process when `parent`, which started it, ends; at once if it has ended already."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


@dataclass(frozen=True, slots=True)
class Child:
    """A process that is told lines and answers with lines."""

    process: subprocess.Popen[str]

    def tell(self, line: str) -> None:
        """Send it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """The process's next line, when it comes.

        Raises:
            ChildProcessError: It ended instead.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            raise ChildProcessError(f"{self.process.args!r} ended with status {status}")
        return line.rstrip("\n")

    def ask(self, **what: Any) -> None:
        """Tell it as JSON; `answer` waits for what comes of it."""
        self.tell(json.dumps(what))

    def answer(self) -> Any:
        """The process's next line, read as JSON."""
        return json.loads(self.hear())

    def kill(self) -> None:
        """End it with SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait()


@contextmanager
def started(
    commands: Sequence[Sequence[str]], environ: Mapping[str, str] | None = None
) -> Iterator[list[Child]]:
    """Processes that have said that they are ready; afterwards they are gone.

    Args:
        commands: What to run; this process's id is added, for `die_with`.
        environ: Added to the environment.
    """
    with ExitStack() as stack:
        children = []
        for command in commands:
            process = subprocess.Popen(
                [*command, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                process_group=0,
                env={**os.environ, **(environ or {})},
            )
            child = Child(process)
            stack.callback(_gone, child)
            children.append(child)
        for child in children:
            child.hear()
        yield children


def _gone(child: Child) -> None:
    child.kill()
    for pipe in (child.process.stdin, child.process.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):  # a line that it was never sent
            pipe.close()


@contextmanager
def spinning(count: int | None = None, nice: int = 0) -> Iterator[list[Child]]:
    """CPU-bound processes, as many as there are CPUs: pure Python, so much nicer than this one."""
    program = SPIN.format(nice=nice)
    with started([python_program(program)] * (cpus() if count is None else count)) as children:
        yield children


@dataclass(frozen=True, slots=True)
class Laps:
    """Neighbours that have a fixed amount of work.

    Attributes:
        children: One for each CPU.
        rounds: How much a lap is.
        written_in: "C" or "Python".
    """

    children: Sequence[Child]
    rounds: int
    written_in: str

    def begin(self) -> None:
        """A lap of all of them."""
        for child in self.children:
            child.tell(str(self.rounds))

    def end(self) -> list[tuple[float, float]]:
        """When each began and ended, when all have."""
        pairs = [child.hear().split() for child in self.children]
        return [(float(began), float(ended)) for began, ended in pairs]


@contextmanager
def laps(seconds: float, count: int | None = None) -> Iterator[Laps]:
    """Neighbours, one for each CPU, whose lap takes so long when they are alone, about."""
    number = cpus() if count is None else count
    with ExitStack() as stack:
        with tempfile.TemporaryDirectory(prefix="aioktask-") as directory:
            command = _compiled(Path(directory))
            children = stack.enter_context(started([command or python_program(LAPS)] * number))
        language = "Python" if command is None else "C"
        yield Laps(children, _rounds(children, seconds), language)


def _rounds(children: Sequence[Child], seconds: float) -> int:
    """So many that the fastest of them takes as long, all running."""
    rounds = 10_000
    while True:
        trial = Laps(children, rounds, "")
        trial.begin()
        took = min(ended - began for began, ended in trial.end())
        if took > seconds / 8:
            return max(int(rounds * seconds / took), 1)
        rounds *= 4


def _compiled(directory: Path) -> list[str] | None:
    """The program in C; None if there is no compiler, or it cannot make it."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc"))), None)
    if compiler is None:
        return None
    source, target = directory / "laps.c", directory / "laps"
    source.write_text(LAPS_IN_C)
    command = [compiler, "-O2", "-o", str(target), str(source)]
    made = subprocess.run(command, capture_output=True, check=False)
    return [str(target)] if made.returncode == 0 else None


def python_program(program: str) -> list[str]:
    """The command for a program that needs nothing of this package, nor any other one."""
    return [sys.executable, "-I", "-S", "-c", program]


@contextmanager
def workers(
    count: int, environ: Mapping[str, str] | None = None
) -> Iterator[tuple[list[Child], Callable[[], Child]]]:
    """Processes that run `aioktask.bench.worker`, and a function that starts one more."""
    home = str(Path(aioktask.__file__).parents[1])
    path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    changed = {**(environ or {}), "PYTHONPATH": path}
    command = [sys.executable, "-m", "aioktask.bench.worker"]
    with ExitStack() as stack:

        def one_more() -> Child:
            return stack.enter_context(started([command], changed))[0]

        yield stack.enter_context(started([command] * count, changed)), one_more
