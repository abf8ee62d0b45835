# SPDX-License-Identifier: MIT
# A scheduler and workers of Dask as processes of this machine, on loopback alone.

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import Hosts, children_of, kill, only_child
from tests.cluster.ledger import NAME
from tests.support.gates import PATIENCE
from tests.support.servers import ROOT

# What is not there is given up soon: Dask's own default is 30 s.
SHORT = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s"}
# The everyday run of `make cluster` leaves out what differs little from what it has.
whole_only = pytest.mark.skipif(
    os.environ.get("AIOKTASK_TEST_CLUSTER") != "whole",
    reason="AIOKTASK_TEST_CLUSTER=whole runs it",
)


class Dask:
    """A scheduler and its workers.

    Args:
        folder: Where their logs are, and a file `pid-NAME` for each.
        hosts: Each of them is on a host of its own name there. On loopback where this is None.
        settings: Of Dask's, in their environment, for all of them.
    """

    def __init__(
        self,
        folder: Path,
        hosts: Hosts | None = None,
        settings: Mapping[str, str] = SHORT,
    ) -> None:
        self.folder = folder
        self.hosts = hosts
        self.settings = settings
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.pids: dict[str, int] = {}
        self.address = ""

    def start(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a process of Python's, with a log."""
        before = dying_with_this_one() if self.hosts is None else self.hosts.inside(name)
        with open(self.folder / f"{name}.log", "w") as log:
            process = subprocess.Popen(
                [*before, sys.executable, "-m", *arguments],
                stdout=log,
                stderr=log,
                text=True,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "DASK_TEMPORARY_DIRECTORY": str(self.folder),
                    NAME: name,
                    **self.settings,
                },
                cwd=self.folder,
            )
        self.processes[name] = process
        pid = process.pid if self.hosts is None else only_child(process.pid)
        self.pids[name] = pid
        (self.folder / f"pid-{name}").write_text(str(pid if self.hosts is None else inner(pid)))
        return process

    def _line(self, name: str, pattern: str) -> re.Match[str]:
        """The first line of a process's log that matches."""
        deadline = time.monotonic() + PATIENCE
        while True:
            text = (self.folder / f"{name}.log").read_text()
            match = re.search(pattern, text)
            if match:
                return match
            assert self.processes[name].poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.005)

    def start_scheduler(self) -> str:
        self.start(
            "scheduler",
            "distributed.cli.dask_scheduler",
            *("--host", self._host("scheduler"), "--port", "0", "--no-dashboard"),
        )
        self.address = self._line("scheduler", r"Scheduler at:\s+(tcp://\S+)")[1]
        return self.address

    def start_worker(
        self,
        name: str,
        *more: str,
        nanny: bool = False,
    ) -> subprocess.Popen[str]:
        return self.start(
            name,
            "distributed.cli.dask_worker",
            self.address,
            *("--host", self._host(name), "--name", name, "--nthreads", "1", "--no-dashboard"),
            "--nanny" if nanny else "--no-nanny",
            *more,
        )

    def _host(self, name: str) -> str:
        return "127.0.0.1" if self.hosts is None else self.hosts.addresses[name]

    def wait_for_worker(self, name: str) -> None:
        self._line(name, r"Registered to:")

    def kill(self, name: str, how: int = signal.SIGKILL) -> None:
        os.kill(self.pids[name], how)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def stop(self) -> None:
        """Kill all of them, and what they started."""
        for pid in self.pids.values():
            for child in children_of(pid):
                kill(child)
            kill(pid)
        for process in self.processes.values():
            process.wait()


@functools.cache
def dying_with_this_one() -> tuple[str, ...]:
    """What has a command be killed where the thread that started it ends, if that can be had."""
    return ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()


def inner(pid: int) -> int:
    """The number of a process in its own namespace."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^NSpid:.*\t(\d+)$", status, re.MULTILINE)
    assert found is not None, status
    return int(found[1])


@contextlib.contextmanager
def dask_cluster(
    folder: Path,
    workers: int,
    hosts: Hosts | None = None,
    *,
    nanny: bool = False,
    settings: Mapping[str, str] = SHORT,
) -> Iterator[Dask]:
    """A scheduler with so many workers: w0, w1 and so on."""
    dask = Dask(folder, hosts, settings)
    try:
        dask.start_scheduler()
        for number in range(workers):
            dask.start_worker(f"w{number}", nanny=nanny)
        for number in range(workers):
            dask.wait_for_worker(f"w{number}")
        yield dask
    finally:
        dask.stop()


def names(parts: Any) -> set[str]:
    return {part.name for part in parts}


@contextlib.asynccontextmanager
async def cluster_here(workers: int) -> AsyncIterator[tuple[Any, Any, list[Any]]]:
    """A scheduler, a client of it, and so many workers, all on the loop of the test."""
    from distributed import Client, Scheduler, Worker

    async with (
        contextlib.AsyncExitStack() as stack,
        Scheduler(dashboard_address=":0", port=0, host="127.0.0.1") as scheduler,
    ):
        there = [
            await stack.enter_async_context(
                Worker(scheduler.address, nthreads=1, name=f"w{number}", dashboard_address=":0")
            )
            for number in range(workers)
        ]
        async with Client(scheduler.address, asynchronous=True) as client:
            yield scheduler, client, there
        await stack.aclose()
