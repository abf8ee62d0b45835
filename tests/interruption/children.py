# SPDX-License-Identifier: MIT
# Children: forks of this process, which is prepared (everything imported, no pool yet), a few at a
# time, each with a time limit. What hangs is asked for the stacks of its threads and then killed.
#
# A child returns from `Children.run` into the caller, as `Ended`, up to the end of its program: the
# exit of its interpreter is one of the questions.
"""Run trials in forked processes."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

LIMIT_SECONDS = float(os.environ.get("AIOKTASK_SWEEP_LIMIT", "10"))
# A child that has taken so long probably hangs and uses no CPU: others may run beside it.
SLOW_SECONDS = 1.0
MOST_SLOW = 40
# What has come to its limit is asked so often whether it still works: it does if it used more than
# so much CPU time (in ticks of 10 ms) meanwhile. The keeper that looks around uses less.
LOOK_SECONDS = 2.0
IDLE_TICKS = 10

# A child ends with its parent, however that ends.
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


# A quick end comes after the hooks of `atexit`, which is where the library ends, and spares the
# 45 ms of freeing all modules.
_quick = False

# Called in a child after the library's own hook of `atexit`.
at_end: list[Callable[[], None]] = []


def _leave() -> None:
    for act in at_end:
        act()
    if _quick:
        sys.stderr.flush()
        os._exit(0)


# The background job of a trial holds one helper, and what other processes do changes nothing here.
os.environ.update(
    AIOKTASK_MAX_THREADS="4",
    AIOKTASK_SHARE="off",
    AIOKTASK_GIVE_WAY="0",
    OPENBLAS_NUM_THREADS="1",
)

# Before the library's own, so that it runs after that.
assert "aioktask" not in sys.modules, "import this before the library"
atexit.register(_leave)


class InChild(BaseException):
    """Takes a child's thread of control up to the end of its program."""


class Say:
    """Where a child says what stage it has come to, in a file that the parent reads."""

    def __init__(self, file: int) -> None:
        self.file = file
        self.last = ""

    def __call__(self, stage: str) -> None:
        self.last = stage
        os.write(self.file, (stage + "\n").encode())

    def verdict(self, verdict: Any) -> None:
        os.write(self.file, (json.dumps(verdict) + "\n").encode())


@dataclass
class Child:
    task: Any
    pid: int
    watch: int  # of its end
    said: int
    errors: int
    begun: float
    stabbed: bool = False
    begun_to_die: float = 0.0
    used: int = 0  # CPU time, as it was looked at last
    used_at: float = 0.0


@dataclass(frozen=True)
class Result:
    """How a child ended. `status` is below zero for a signal; `verdict` None if it said none."""

    task: Any
    status: int
    stage: str
    verdict: Any
    stderr: str
    seconds: float
    hung: bool


class Children:
    """Runs `work(task, say)` in a fork for each task."""

    def __init__(
        self,
        work: Callable[[Any, Say], Any],
        at_a_time: int = 2,
        quick: Callable[[Any], bool] = lambda task: False,
    ) -> None:
        self._work = work
        self._quick = quick  # which tasks end after the hooks of `atexit`
        self._at_a_time = at_a_time
        self._running: dict[int, Child] = {}

    def run(self, tasks: Iterable[Any]) -> Iterator[Result]:
        """The results, as they come."""
        left = iter(tasks)
        more = True
        while more or self._running:
            while more and self._room():
                task = next(left, None)
                if task is None:
                    more = False
                    break
                self._start(task)
            yield from self._ended()

    def _room(self) -> bool:
        now = time.monotonic()
        slow = sum(now - each.begun > SLOW_SECONDS for each in self._running.values())
        return len(self._running) - slow < self._at_a_time and slow < MOST_SLOW

    def _start(self, task: Any) -> None:
        said, errors = os.memfd_create("said"), os.memfd_create("stderr")
        pid = os.fork()
        if not pid:
            _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
            os.dup2(errors, 2)
            devnull = os.open(os.devnull, os.O_RDWR)
            os.dup2(devnull, 0)
            os.dup2(devnull, 1)
            faulthandler.enable(file=2, all_threads=True)
            self._running.clear()
            global _quick
            _quick = self._quick(task)
            say = Say(said)
            verdict = self._work(task, say)
            if verdict is not None:
                say.verdict(verdict)
            raise InChild
        self._running[pid] = Child(task, pid, os.pidfd_open(pid), said, errors, time.monotonic())

    def _ended(self) -> Iterator[Result]:
        if not self._running:
            return
        watches = {child.watch: child for child in self._running.values()}
        poll = select.poll()
        for watch in watches:
            poll.register(watch, select.POLLIN)
        for watch, _ in poll.poll(50):
            child = watches[watch]
            _, status = os.waitpid(child.pid, 0)
            del self._running[child.pid]
            yield self._result(child, os.waitstatus_to_exitcode(status))
        now = time.monotonic()
        for child in self._running.values():
            if not child.stabbed and now - child.begun > LIMIT_SECONDS and not _works(child, now):
                child.stabbed = True
                os.kill(child.pid, signal.SIGABRT)  # faulthandler tells the stacks
                child.begun_to_die = now
            elif child.stabbed and now - child.begun_to_die > 2:
                os.kill(child.pid, signal.SIGKILL)

    def _result(self, child: Child, status: int) -> Result:
        said = _contents(child.said).splitlines()
        verdict = None
        if said and said[-1].startswith(("{", "[")):
            with contextlib.suppress(json.JSONDecodeError):
                verdict = json.loads(said.pop())
        stderr = _contents(child.errors)
        for file in (child.watch, child.said, child.errors):
            os.close(file)
        return Result(
            child.task,
            status,
            said[-1] if said else "",
            verdict,
            stderr,
            time.monotonic() - child.begun,
            child.stabbed,
        )


def _works(child: Child, now: float) -> bool:
    """Whether a thread of it has something to do, on a machine that is busy.

    What spins is given some time.
    """
    if now - child.begun > 4 * LIMIT_SECONDS:
        return False
    if now - child.used_at > LOOK_SECONDS:
        with open(f"/proc/{child.pid}/stat", "rb") as file:
            stat = file.read().rpartition(b")")[2].split()
        used = int(stat[11]) + int(stat[12])
        works = used - child.used > IDLE_TICKS
        child.used, child.used_at = used, now
        return works
    return True


def _contents(file: int) -> str:
    return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")
