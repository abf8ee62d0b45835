# SPDX-License-Identifier: MIT
# Jobs on a LocalCluster of Dask whose scheduler and workers are in this process: quick, for what
# needs no process that can be killed. Workers that join and that are retired amid a job.

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="distributed is not installed")

from distributed import Client, LocalCluster

from aioktask import failure
from aioktask.cluster import ClusterCoordinator
from tests.cluster.ledger import Ledger
from tests.support.gates import eventually

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def local_cluster(workers: int) -> AsyncIterator[tuple[LocalCluster, Client]]:
    async with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=False,
            asynchronous=True,
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        yield cluster, client


def running(handle: Any) -> int:
    return sum(bool(worker.running) for worker in handle.workers())


async def test_a_worker_that_joins_in_the_middle_takes_part(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    (tmp_path / "hold").touch()
    async with local_cluster(1) as (cluster, client):
        async with ClusterCoordinator(client, max_threads=1) as coordinator:
            handle = coordinator.submit(ledger.job())
            await eventually(lambda: ledger.counts("done"))
            cluster.scale(2)
            await eventually(lambda: running(handle) == 2, "the second worker works")
            (tmp_path / "hold").unlink()
            report = await handle
    ledger.check_done()
    assert sorted(bool(part.units) for part in report.workers) == [True, True]


async def test_a_worker_that_is_retired_in_the_middle_undoes_and_others_do_its_units(
    tmp_path: Path,
) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.002)
    async with local_cluster(2) as (_, client):
        async with ClusterCoordinator(client, max_threads=1) as coordinator:
            handle = coordinator.submit(ledger.job())
            await eventually(lambda: sum(bool(worker.units) for worker in handle.workers()) == 2)
            address = handle.workers()[0].name.rpartition("/")[0]
            await client.retire_workers(workers=[address])
            report = await handle
    ledger.check_done()
    assert ledger.counts("undone")
    assert sum(part.units for part in report.workers) == 2000


async def test_a_failed_job_is_undone_on_each_worker(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    (tmp_path / "fail").touch()
    async with local_cluster(2) as (_, client):
        async with ClusterCoordinator(client, max_threads=1) as coordinator:
            with pytest.raises(OSError, match="planted") as caught:
                await coordinator.submit(ledger.job())
    ledger.check(failure(caught.value))
    ledger.check_all_undone()
