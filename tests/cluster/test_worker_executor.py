# SPDX-License-Identifier: MIT
# The executor of a coordinator as that of a Dask worker, in this process, and by the preload script
# of the documentation in a process of its own.

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="distributed is not installed")

from distributed import Client, Scheduler, Worker, get_worker, rejoin, secede, worker_client

from aioktask import Coordinator, Job, current_chunk, run_multithreaded_sync, snapshot
from aioktask.cluster import task_executor
from tests.cluster.dasks import dask_cluster
from tests.support.gates import eventually

pytestmark = pytest.mark.asyncio

CLUSTER_DOC = Path(__file__).parents[2] / "docs" / "cluster.md"


@contextlib.asynccontextmanager
async def worker_with(executor: Any, nthreads: int = 2) -> AsyncIterator[tuple[Any, Any]]:
    """A client and a worker whose tasks an executor does, both here."""
    async with (
        Scheduler(dashboard_address=":0", port=0, host="127.0.0.1") as scheduler,
        Worker(
            scheduler.address, executor=executor, nthreads=nthreads, dashboard_address=":0"
        ) as worker,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        yield client, worker


def in_a_chunk(number: int) -> tuple[int, str]:
    current_chunk()
    assert get_worker() is not None
    return number * number, threading.current_thread().name


@pytest.mark.parametrize("made_by", ["coordinator.executor", "task_executor"])
async def test_tasks_run_on_helpers(made_by: str) -> None:
    async with Coordinator() as coordinator:
        executor = (
            task_executor(coordinator) if made_by == "task_executor" else coordinator.executor()
        )
        async with worker_with(executor) as (client, _):
            told = await client.gather(client.map(in_a_chunk, range(20)))
    assert [value for value, _ in told] == [number * number for number in range(20)]
    assert not any("Dask" in name for _, name in told)


def nested(number: int) -> int:
    report = run_multithreaded_sync(
        Job(lambda start, stop: stop - start, number, reduce=int.__add__)
    )
    return report.value


@pytest.mark.max_threads(1)
async def test_a_job_that_a_task_runs_takes_the_tasks_thread_along() -> None:
    async with Coordinator() as coordinator, worker_with(coordinator.executor()) as (client, _):
        assert await client.submit(nested, 1000) == 1000


def fail() -> None:
    raise OSError(28, "planted")


async def test_what_a_task_raises_comes_to_its_future() -> None:
    async with Coordinator() as coordinator, worker_with(coordinator.executor()) as (client, _):
        with pytest.raises(OSError, match="planted"):
            await client.submit(fail)


GATES: dict[str, threading.Event] = {}


def wait_at(gate: str) -> str:
    GATES[gate + " begun"].set()
    assert GATES[gate].wait(60)
    return "passed"


@pytest.fixture
def gate() -> Any:
    GATES.clear()
    GATES["gate"], GATES["gate begun"] = threading.Event(), threading.Event()
    yield GATES["gate"]
    GATES["gate"].set()


async def test_a_future_that_is_cancelled_leaves_the_worker_as_it_was(gate: Any) -> None:
    async with Coordinator() as coordinator:
        async with worker_with(coordinator.executor(), nthreads=1) as (client, _):
            running = client.submit(wait_at, "gate")
            waiting = client.submit(in_a_chunk, 3, pure=False)
            await eventually(GATES["gate begun"].is_set)
            await waiting.cancel()  # which was not begun
            await running.cancel()  # which goes on, and nobody gets what it returns
            assert (running.status, waiting.status) == ("cancelled", "cancelled")
            gate.set()
            assert (await client.submit(in_a_chunk, 5, pure=False))[0] == 25


async def test_closing_the_worker_waits_for_the_task_that_runs(gate: Any) -> None:
    async with Coordinator() as coordinator:
        executor = coordinator.executor()
        async with worker_with(executor) as (client, worker):
            future = client.submit(wait_at, "gate")
            await eventually(GATES["gate begun"].is_set)
            closing = asyncio.create_task(worker.close(nanny=False))
            await eventually(lambda: "shut down" in repr(executor))
            assert not closing.done()
            gate.set()
            await closing
            del future
        # The executor alone was shut down.
        assert coordinator.executor().submit(pow, 2, 3).result(60) == 8


def asks_other_tasks() -> int:
    with worker_client() as client:
        return int(client.submit(pow, 7, 2).result())


def secedes_and_comes_back() -> str:
    secede()
    rejoin()
    secede()
    return "back"


async def test_tasks_may_wait_for_other_tasks_with_one_thread_of_dask() -> None:
    async with worker_with(task_executor(), nthreads=1) as (client, _):
        assert await client.submit(asks_other_tasks) == 49
        assert await client.submit(secedes_and_comes_back) == "back"
        assert await client.submit(asks_other_tasks, pure=False) == 49


async def test_tasks_are_jobs_that_can_be_seen(gate: Any) -> None:
    async with Coordinator() as coordinator:
        async with worker_with(coordinator.executor(nice=5)) as (client, _):
            future = client.submit(wait_at, "gate")
            await eventually(GATES["gate begun"].is_set)
            assert 5 in [job.nice for job in snapshot().jobs]
            gate.set()
            assert await future == "passed"


async def test_an_executor_needs_a_coordinator() -> None:
    with pytest.raises(TypeError, match="coordinator must be"):
        task_executor(7)  # type: ignore[arg-type]


async def test_the_preload_script_of_the_documentation(tmp_path: Path) -> None:
    script = re.search(r"```python\n(# helpers\.py.*?)```", CLUSTER_DOC.read_text(), re.DOTALL)
    assert script is not None
    preload = tmp_path / "helpers.py"
    preload.write_text(script[1])
    with dask_cluster(tmp_path, 0) as dask:
        dask.start_worker("w0", "--preload", str(preload))
        dask.wait_for_worker("w0")
        async with Client(dask.address, asynchronous=True) as client:
            value, thread = await client.submit(in_a_chunk, 4)
    assert value == 16
    assert "Dask" not in thread
