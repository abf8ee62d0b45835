# SPDX-License-Identifier: MIT
# Jobs on a real Dask cluster: a scheduler and workers as processes, on loopback. Everything runs on
# asyncio, since Dask does.

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("distributed", reason="distributed is not installed")

from distributed import Client

from aioktask import JobCancelled, UndoFailed, failure
from aioktask.cluster import (
    ClusterCoordinator,
    ClusterFailure,
    ClusterJob,
    Home,
    WorkerLost,
    run_on_cluster,
)
from tests.cluster import work
from tests.cluster.dasks import Dask, dask_cluster
from tests.cluster.ledger import Ledger
from tests.support.gates import eventually

pytestmark = pytest.mark.asyncio


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    """Two workers, for tests that kill nothing."""
    with dask_cluster(tmp_path_factory.mktemp("dask"), 2) as dask:
        yield dask


def all_running(workers: Any) -> bool:
    return len(workers) == 2 and all(worker.running for worker in workers)


def client_of(dask: Dask) -> Any:
    return Client(dask.address, asynchronous=True)


async def test_a_reduce_has_the_value_of_one_machine_bit_for_bit(two: Dask) -> None:
    from aioktask import Job, run_multithreaded

    here = Job(lambda start, stop: work.sines(start, stop, None), 200_001, reduce=work.add)
    async with client_of(two) as client:
        report = await run_on_cluster(ClusterJob(work.sines, 200_001, reduce=work.add), client)
    assert report.value == (await run_multithreaded(here)).value
    assert sum(part.units for part in report.workers) == 200_001


async def test_all_workers_take_part_and_none_of_it_runs_here(two: Dask, tmp_path: Path) -> None:
    fn = functools.partial(work.pid_once_two_came, str(tmp_path))
    async with client_of(two) as client:
        job = ClusterJob(fn, 2000, min_chunk=10, reduce=work.union)
        report = await run_on_cluster(job, client)
    assert len(report.value) == 2
    assert os.getpid() not in report.value


async def test_jobs_of_a_coordinator_share_the_workers(two: Dask) -> None:
    async with client_of(two) as client, ClusterCoordinator(client) as coordinator:
        handles = [
            coordinator.submit(ClusterJob(work.count, 5000, reduce=int.__add__)) for _ in range(4)
        ]
        handles[1].renice(5)
        assert [(await handle).value for handle in handles] == [5000] * 4
        assert len(coordinator.snapshot().workers) == 2


async def test_a_failed_job_is_undone_where_it_was_done(two: Dask, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    (tmp_path / "fail").touch()
    async with client_of(two) as client:
        with pytest.raises(OSError, match="planted") as caught:
            await run_on_cluster(ledger.job(), client)
    told = failure(caught.value)
    assert isinstance(told, ClusterFailure)
    assert not told.done
    ledger.check(told)
    assert [what for what, _ in ledger.lines()].count("closed") == 2


async def test_a_cancelled_caller_waits_for_the_undo(two: Dask, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.005)
    async with client_of(two) as client:
        task = asyncio.create_task(run_on_cluster(ledger.job(), client))
        await eventually(lambda: bool(ledger.counts("done")))
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        ledger.check(failure(caught.value))
        assert ledger.counts("undone") == ledger.counts("done")
        # The cluster is as it was.
        assert (await run_on_cluster(ClusterJob(work.count, 9, reduce=max), client)).value


async def test_a_cancel_stops_a_stretch_at_its_next_chunk(two: Dask, tmp_path: Path) -> None:
    folder = str(tmp_path)
    async with client_of(two) as client, ClusterCoordinator(client) as coordinator:
        handle = coordinator.submit(ClusterJob(work.until_cancelled, 99, setup=lambda: folder))
        await eventually(lambda: bool(list(tmp_path.iterdir())))
        assert handle.cancel()
        with pytest.raises(JobCancelled):
            await handle


async def test_two_jobs_run_on_a_worker_at_a_time_with_one_thread_of_dask(
    two: Dask, tmp_path: Path
) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    async with client_of(two) as client, ClusterCoordinator(client) as coordinator:
        handles = [
            coordinator.submit(
                ClusterJob(work.until_cancelled, 99, setup=functools.partial(str, str(folder)))
            )
            for folder in folders
        ]
        await eventually(lambda: all(all_running(handle.workers()) for handle in handles))
        for handle in handles:
            assert handle.cancel()
            with pytest.raises(JobCancelled):
                await handle


async def test_stretches_go_to_the_workers_that_homes_name(two: Dask, tmp_path: Path) -> None:
    homes = [Home(0, 3000, "w0"), Home(3000, 6000, "w1")]
    fn = functools.partial(work.pid_once_two_came, str(tmp_path))
    job = ClusterJob(fn, 6000, reduce=work.union, homes=homes, chunk=10)
    async with client_of(two) as client:
        report = await run_on_cluster(job, client)
        info = (await client.scheduler.identity())["workers"]
    began = {
        info[part.name.rpartition("/")[0]]["name"]: [
            home.start for home in homes if any(home.start in each for each in part.done)
        ]
        for part in report.workers
    }
    assert began == {"w0": [0], "w1": [3000]}


async def test_a_client_that_is_not_asynchronous_is_refused(two: Dask) -> None:
    with pytest.raises(TypeError, match=r"client must be a distributed.Client, got 7"):
        await run_on_cluster(ClusterJob(work.count, 9), 7)  # type: ignore[arg-type]
    client = await asyncio.to_thread(Client, two.address)
    try:
        with pytest.raises(TypeError, match="client must be asynchronous"):
            await run_on_cluster(ClusterJob(work.count, 9), client)
    finally:
        await asyncio.to_thread(client.close)


@pytest.mark.cluster
async def test_a_job_ends_whose_client_lost_its_connection_and_has_a_new_one_at_once(
    tmp_path: Path,
) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.01)
    with dask_cluster(tmp_path, 2) as dask:
        client = await client_of(dask)
        try:
            async with ClusterCoordinator(client) as coordinator:
                handle = coordinator.submit(ledger.job())
                await eventually(lambda: all_running(handle.workers()) and ledger.counts("done"))
                client.scheduler_comm.comm.abort()
                with pytest.raises(WorkerLost) as caught:
                    await handle
                await eventually(lambda: ledger.said("closed") == ledger.said("opened"))
        finally:
            # Dask's client does not expect an event together with the greeting of a scheduler.
            with contextlib.suppress(AssertionError):
                await client.close()
    ledger.check(failure(caught.value))
    ledger.check_all_undone()


async def test_the_scheduler_keeps_nothing_of_a_coordinator_that_was_left(two: Dask) -> None:
    async with client_of(two) as client:
        await run_on_cluster(ClusterJob(work.count, 9), client)
        events = await client.get_events()
    assert not [topic for topic in events if str(topic).startswith("aioktask-")]


@pytest.mark.parametrize(
    "stage",
    [
        "chunk",
        pytest.param("between", marks=pytest.mark.cluster),
        pytest.param("undo", marks=pytest.mark.cluster),
    ],
)
async def test_a_worker_is_killed(tmp_path: Path, stage: str) -> None:
    ledger = Ledger(tmp_path, stage, unit_seconds=0.002)
    if stage == "undo":
        (tmp_path / "fail").touch()
    with dask_cluster(tmp_path, 2) as dask:
        async with client_of(dask) as client:
            with pytest.raises((WorkerLost, UndoFailed)) as caught:
                await run_on_cluster(ledger.job(), client)
    told = failure(caught.value)
    ledger.check(told)
    assert isinstance(told, ClusterFailure)
    lost = [part for part in told.workers if part.lost]
    assert len(lost) == 1
    assert lost[0].unknown or lost[0].done


@pytest.mark.cluster
async def test_an_idempotent_job_outlives_its_workers_and_uses_one_that_joins(
    tmp_path: Path,
) -> None:
    ledger = Ledger(tmp_path)
    (tmp_path / "hold").touch()
    with dask_cluster(tmp_path, 2) as dask:
        async with client_of(dask) as client, ClusterCoordinator(client) as coordinator:
            handle = coordinator.submit(ledger.job(idempotent=True))
            await eventually(lambda: len(ledger.lines()) > 10)
            dask.kill("w0")
            dask.start_worker("w2")
            await eventually(lambda: len([w for w in handle.workers() if w.running]) == 2)
            await eventually(lambda: len(handle.workers()) == 3)
            (tmp_path / "hold").unlink()
            report = await handle
    assert set(ledger.counts("done")) == set(range(2000))
    assert len(report.workers) == 3
    assert sum(part.units for part in report.workers) == 2000
    assert len([part for part in report.workers if part.lost]) == 1


@pytest.mark.cluster
@pytest.mark.parametrize("how", ["retired", "retires itself"])
async def test_a_worker_that_is_retired_undoes_and_others_do_its_units(
    tmp_path: Path, how: str
) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.002)
    with dask_cluster(tmp_path, 2) as dask:
        async with client_of(dask) as client:
            task = asyncio.create_task(run_on_cluster(ledger.job(), client))
            await eventually(lambda: len(ledger.lines()) > 10)
            if how == "retired":
                await client.retire_workers(names=["w0"])
            else:
                await client.run(_close_gracefully, "w0")
            report = await task
    done, undone = ledger.counts("done"), ledger.counts("undone")
    assert {unit: done[unit] - undone[unit] for unit in range(2000)} == dict.fromkeys(
        range(2000), 1
    )
    assert sum(part.units for part in report.workers) == 2000


def _close_gracefully(name: str, dask_worker: Any) -> None:
    if dask_worker.name == name:
        dask_worker.loop.add_callback(dask_worker.close_gracefully)


@pytest.mark.cluster
async def test_a_worker_that_is_terminated_undoes_though_nobody_hears_of_it(
    tmp_path: Path,
) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.002)
    with dask_cluster(tmp_path, 2) as dask:
        async with client_of(dask) as client:
            task = asyncio.create_task(run_on_cluster(ledger.job(), client))
            await eventually(lambda: len(ledger.lines()) > 10)
            for name in ("w0", "w1"):
                dask.kill(name, signal.SIGTERM)
            with pytest.raises(WorkerLost) as caught:
                await task
            for name in ("w0", "w1"):
                await asyncio.to_thread(dask.processes[name].wait, 30)
    assert failure(caught.value).unknown
    assert ledger.counts("done") == ledger.counts("undone")


def both_have_done(workers: Any) -> bool:
    return len(workers) == 2 and all(worker.units > 50 for worker in workers)


@pytest.mark.cluster
@pytest.mark.parametrize("nanny", [False, True])
async def test_what_a_terminated_worker_did_is_done_again_and_not_undone_after_that(
    tmp_path: Path, nanny: bool
) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.002)
    with dask_cluster(tmp_path, 1) as dask:
        dask.start_worker("ends", *(["--nanny"] if nanny else []))
        dask.wait_for_worker("ends")
        async with client_of(dask) as client, ClusterCoordinator(client) as coordinator:
            handle = coordinator.submit(ledger.job(idempotent=True))
            await eventually(lambda: both_have_done(handle.workers()))
            dask.kill("ends", signal.SIGTERM)
            report = await handle
            await asyncio.to_thread(dask.processes["ends"].wait, 30)
    assert sum(part.units for part in report.workers) == 2000
    assert [part.units for part in report.workers if part.lost] == [0]
    done, undone = ledger.counts("done"), ledger.counts("undone")
    assert all(done[unit] > undone[unit] for unit in range(2000))
    assert [what for what, _ in ledger.lines()].count("closed") == 2


@pytest.mark.cluster
async def test_workers_undo_when_the_client_goes_away(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.005)
    with dask_cluster(tmp_path, 2) as dask:
        client = await client_of(dask)
        coordinator = ClusterCoordinator(client)
        await coordinator.__aenter__()
        handle = coordinator.submit(ledger.job())
        await eventually(lambda: all_running(handle.workers()) and len(ledger.lines()) > 10)
        await client.close()
        with pytest.raises(WorkerLost) as caught:
            await handle
        with anyio.fail_after(60):
            while [what for what, _ in ledger.lines()].count("closed") < 2:
                await anyio.sleep(0.001)
        await coordinator.__aexit__(None, None, None)
    assert ledger.counts("done") == ledger.counts("undone")
    assert failure(caught.value).unknown


@pytest.mark.cluster
async def test_workers_undo_when_the_scheduler_is_killed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.005)
    with dask_cluster(tmp_path, 2) as dask:
        async with client_of(dask) as client:
            task = asyncio.create_task(run_on_cluster(ledger.job(), client))
            await eventually(lambda: [what for what, _ in ledger.lines()].count("opened") == 2)
            dask.kill("scheduler")
            with pytest.raises(WorkerLost) as caught:
                await task
            told = failure(caught.value)
            assert told.unknown
            with anyio.fail_after(60):
                while [what for what, _ in ledger.lines()].count("closed") < 2:
                    await anyio.sleep(0.001)
    assert ledger.counts("done") == ledger.counts("undone")
    known = set(range(2000)) - {unit for each in told.unknown for unit in each}
    known -= {unit for each in told.done for unit in each}
    assert not any(ledger.counts("done")[unit] for unit in known)


EXAMPLE = Path(__file__).parents[2] / "examples" / "cluster" / "sum_of_sines.py"


async def test_the_example_has_the_same_bits_in_threads_processes_and_on_a_cluster(
    two: Dask,
) -> None:
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(EXAMPLE), two.address],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    values = [line.split()[1] for line in lines if not line.startswith(" ")]
    assert len(values) == 3
    assert len(set(values)) == 1
    assert sum("process-" in line for line in lines) == 2
    assert sum("tcp://" in line for line in lines) == 2


@pytest.mark.cluster
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_starts_a_cluster_that_runs_jobs(end: signal.Signals) -> None:
    if signal.getsignal(end) is signal.SIG_IGN:
        pytest.skip(f"{end.name} is ignored here, as in jobs of shells in the background")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "aioktask", "cluster", "1", "--port", "0", "--dashboard-port", "0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        name, address = line.split()
        assert name == "scheduler:"
        assert address.startswith("tcp://127.0.0.1:")
        async with Client(address, asynchronous=True) as client:
            job = ClusterJob(work.count, 5000, reduce=int.__add__)
            assert (await run_on_cluster(job, client)).value == 5000
    finally:
        process.send_signal(end)
        _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    assert b"Traceback" not in errors
    assert b"leaked" not in errors


async def test_the_command_says_that_its_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = await asyncio.to_thread(
            subprocess.run,
            [
                *(sys.executable, "-m", "aioktask", "cluster", "1"),
                *("--port", port, "--dashboard-port", "0"),
            ],
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert f"127.0.0.1, port {port}: [Errno 98] Address already in use" in ended.stderr
