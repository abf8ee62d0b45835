# SPDX-License-Identifier: MIT
# The soak: a real server with two workers under a mixed load, with clients that go away, run out of
# time and send rubbish; and in the middle, under load, new workers for old ones.
#
# What two workers hold is looked at from outside and told by themselves, in moments in which there
# is nothing to do: once they are warm, and once more after as much load again and more. What their
# jobs did is in a ledger, which has to account for each of them when all processes are gone.
"""Two workers under load, for minutes."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from aioktask.engine.machine.slots import Slots, slots_path
from tests.soak import ledger
from tests.soak.clients import PATIENCE, Crowd, request
from tests.support.gates import eventually
from tests.support.servers import UVICORN_IS_PATIENT

ROOT = Path(__file__).parents[2]
WORKERS = 2
# What uvicorn gives requests when it stops, in whole seconds: more than the application gives jobs.
GRACE = 30
CLIENTS = 12

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc"),
    *[
        pytest.mark.skipif(
            importlib.util.find_spec(package) is None, reason=f"{package} is not installed"
        )
        for package in ("starlette", "uvicorn")
    ],
]

# How the load is divided: until the old workers are warm, until they go, until the new ones are
# warm, until the end.
PARTS = (0.15, 0.35, 0.15, 0.35)

# What two looks at a process may differ in though nothing is lost between them.
#
# Memory: malloc keeps what was freed for each thread, and what ran at the same time decides how
# much; that is a few MiB however long it runs. 8 KiB for each of a thousand jobs would be seen.
MORE_MEMORY = 8 << 20
# Objects that the collector knows: what is remembered of the last jobs that ended, and the
# interpreter's caches. One for every fourth job would be seen.
MORE_OBJECTS, OBJECTS_A_JOB = 300, 0.25
# How many requests there are in two minutes even on a slow machine.
LEAST_REQUESTS = 2500


@dataclass(frozen=True)
class Look:
    """What a worker holds in a moment in which it has nothing to do.

    Attributes:
        pid: Of the worker.
        threads: How many threads it has, its helpers apart.
        helpers: How many helpers.
        most_helpers: How many it may have.
        files: What is open, but for what it reads of /proc and /sys, for moments.
        memory: Bytes of it that are in memory.
        objects: How many objects the collector knows.
        jobs: How many jobs it has had.
    """

    pid: int
    threads: int
    helpers: int
    most_helpers: int
    files: list[str]
    memory: int
    objects: int
    jobs: int


class Server:
    """Uvicorn with two workers."""

    def __init__(self, folder: Path) -> None:
        self.ledger = folder / "ledger"
        self.ledger.touch()
        self._log = folder / "log"
        self.share = f"soak-{os.getpid()}"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        command = [sys.executable, "-m", "uvicorn", "tests.soak.app:app", "--port", str(self.port)]
        command += ["--workers", str(WORKERS), "--timeout-graceful-shutdown", str(GRACE)]
        command += UVICORN_IS_PATIENT
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "AIOKTASK_SHARE": self.share,
            ledger.FILE: str(self.ledger),
        }
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(
                [*command, "--no-access-log"],
                cwd=ROOT,
                env=environ,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, for the end
            )

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def end_all(self) -> None:
        """End what is left, so that no test leaves a process behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        slots_path(self.share).unlink(missing_ok=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path)
    try:
        yield started
    finally:
        started.end_all()
        print(started.log())  # which is shown where the test fails


async def facts(server: Server) -> Mapping[str, int]:
    """What one of the workers tells of itself: whichever takes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request("/facts"))
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    found: Mapping[str, int] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


async def workers(server: Server, *, besides: frozenset[int] = frozenset()) -> dict[int, Look]:
    """What each worker holds, once nothing is left to be done; those of `besides` are gone.

    Raises:
        AssertionError: They do not come to rest, or do not answer.
    """
    found: dict[int, Look] = {}
    end = time.monotonic() + PATIENCE
    busy: Mapping[str, int] = {}
    while len(found) < WORKERS:
        assert time.monotonic() < end, f"only {list(found)} of the workers are at rest: {busy}"
        with contextlib.suppress(OSError, ValueError):  # while workers are exchanged
            told = await facts(server)
            if told["jobs"] or told["slots"]:
                busy = told
            elif told["pid"] not in besides:
                found[told["pid"]] = look(told)
        await asyncio.sleep(0.02)
    return found


def look(told: Mapping[str, int]) -> Look:
    """A worker as it is now, from outside and as it tells of itself."""
    process = Path("/proc") / str(told["pid"])
    files = []
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            target = str(descriptor.readlink())
            if not target.startswith(("/proc/", "/sys/")):
                files.append(target)
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return Look(
        pid=told["pid"],
        threads=int(status["Threads"]) - told["helpers"],
        helpers=told["helpers"],
        most_helpers=told["most_helpers"],
        files=sorted(files),
        memory=int(status["VmRSS"].split()[0]) << 10,
        objects=told["objects"],
        jobs=told["numbered"],
    )


def compare(warm: Mapping[int, Look], later: Mapping[int, Look]) -> None:
    """Nothing grew.

    Raises:
        AssertionError: Something did.
    """
    assert warm.keys() == later.keys(), "a worker went and came that nobody asked to"
    for pid, now in later.items():
        before = warm[pid]
        print(f"{before}\n{now}")
        kinds = [sorted(map(kind, each.files)) for each in (before, now)]
        assert kinds[0] == kinds[1], "descriptors"
        assert now.threads <= before.threads, "threads beside the helpers"
        assert now.helpers <= now.most_helpers
        assert now.memory <= before.memory + MORE_MEMORY, "memory"
        jobs = now.jobs - before.jobs
        assert now.objects <= before.objects + MORE_OBJECTS + OBJECTS_A_JOB * jobs, "objects"


def kind(target: str) -> str:
    """What is open, without its number: ``socket``, ``pipe``, or a path."""
    return target.partition(":[")[0]


async def soak(server: Server, crowd: Crowd, seconds: float) -> None:
    """The load, with the looks and the new workers."""
    warming, old, warming_again, new = (part * seconds for part in PARTS)

    async def load(seconds: float) -> None:
        async with crowd.coming(CLIENTS):
            await asyncio.sleep(seconds)

    first = await workers(server)
    await load(warming)
    warm = await workers(server)
    await load(old)
    compare(warm, await workers(server))

    async with crowd.coming(CLIENTS):
        crowd.workers_end = True
        server.process.send_signal(signal.SIGHUP)  # SIGTERM to one after the other
        await eventually(lambda: not any(map(running, first)), "the old workers end", PATIENCE)
    crowd.workers_end = False
    await load(warming_again)
    warm = await workers(server, besides=frozenset(first))
    await load(new)
    compare(warm, await workers(server))

    async with crowd.coming(CLIENTS):
        crowd.workers_end = True
        server.process.terminate()
        await eventually(lambda: server.process.poll() is not None, "the server ends", PATIENCE)


def running(pid: int) -> bool:
    """Whether there is still such a process of ours."""
    return Path(f"/proc/{pid}").exists()


def test_two_workers_under_load_lose_nothing(
    server: Server, request: pytest.FixtureRequest
) -> None:
    seconds: float = request.config.getoption("--soak-seconds")
    seed = request.config.getoption("--soak-seed")
    seed = random.randrange(1 << 30) if seed is None else seed
    print(f"--soak-seed={seed}")
    crowd = Crowd(server.port, seed)
    asyncio.run(soak(server, crowd, seconds))
    print(f"{sum(crowd.served.values())} requests: {crowd.served}; statuses: {crowd.statuses}")
    assert server.process.returncode == 0
    jobs = ledger.read(server.ledger)
    faults = {name: found for name, job in jobs.items() if (found := job.faults())}
    ends: dict[str, int] = {}
    for job in jobs.values():
        for end in job.ends:
            ends[end] = ends.get(end, 0) + 1
    print(f"{len(jobs)} jobs: {ends}")
    assert not faults, f"of {len(jobs)} jobs {len(faults)} are not accounted for: {faults}"
    # Else it would not have seen what it is for.
    assert {"done", "CancelledError", "TimeoutError", "Broken"} <= ends.keys()
    assert sum(crowd.served.values()) > LEAST_REQUESTS * seconds / 120
    assert "Traceback" not in server.log()
    assert "exceeded" not in server.log(), "uvicorn gave up waiting"
    assert "jobs_left_behind" not in server.log(), "jobs could not be undone in time"
    path = slots_path(server.share)
    cpus = frozenset(os.sched_getaffinity(0))
    assert Slots(path).look(cpus, len(cpus), time.monotonic_ns()) == len(cpus), "slots"
