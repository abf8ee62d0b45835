# SPDX-License-Identifier: MIT
# kill -9 of a worker's nanny, of Dask's scheduler and of the program itself, at every stage of a
# job: before the first stretch, in one, between two, in the undo, and as the data is closed. What
# workers did is in a file outside of all of them, and what is told of it is held against that.
#
# The same of workers is in test_processes.py and test_dask.py.

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="distributed is not installed")

from distributed import Client

from aioktask import UndoFailed, failure
from aioktask.cluster import ClusterCoordinator, ClusterReport, WorkerLost
from aioktask.job import Failure
from tests.cluster import program
from tests.cluster.dasks import Dask, dask_cluster, dying_with_this_one, whole_only
from tests.cluster.ledger import STAGES, Ledger
from tests.support.gates import eventually, until
from tests.support.servers import ROOT

pytestmark = pytest.mark.cluster

SIZE = 2000
# Workers look after the scheduler by its connection, and Dask takes its time to close them.
ENDING_SECONDS = 60.0


every_stage = pytest.mark.parametrize("stage", STAGES)
both_ways = pytest.mark.parametrize(
    ("stage", "idempotent"),
    [pytest.param(stage, False, id=stage) for stage in STAGES]
    + [
        pytest.param(
            stage, True, id=f"{stage}-idempotent", marks=[] if stage == "chunk" else [whole_only]
        )
        for stage in STAGES
    ],
)


def ledger_of(folder: Path, stage: str, victim: str) -> Ledger:
    """A ledger whose victim is killed at a stage; for one in the undo a chunk fails."""
    if stage == "undo":
        (folder / "fail").touch()
    return Ledger(folder, stage, unit_seconds=0.001, victim=victim)


async def ended(dask: Dask, ledger: Ledger, **options: Any) -> ClusterReport[None] | BaseException:
    """What came of the ledger's job."""
    client = await Client(dask.address, asynchronous=True)
    try:
        async with ClusterCoordinator(client, max_threads=1) as coordinator:
            handle = coordinator.submit(ledger.job(SIZE, **options))
            try:
                return await handle
            except Exception as error:
                return error
    finally:
        # It would wait for a scheduler that is gone.
        await client.close(timeout=0.5)


def checked(
    ledger: Ledger, outcome: ClusterReport[None] | BaseException, twice: bool
) -> Failure | None:
    """What is told of a job that failed; it, or that all is done, is true by the ledger."""
    if not isinstance(outcome, BaseException):
        ledger.check_done(SIZE, twice=twice)
        return None
    told = failure(outcome)
    ledger.check(told, twice=twice)
    return told


@pytest.mark.asyncio
@both_ways
async def test_a_nanny_is_killed_and_its_worker_with_it(
    tmp_path: Path, stage: str, idempotent: bool
) -> None:
    ledger = ledger_of(tmp_path, stage, "nanny")
    with dask_cluster(tmp_path, 2, nanny=True) as dask:
        outcome = await ended(dask, ledger, idempotent=idempotent)
    told = checked(ledger, outcome, idempotent)
    if stage == "undo":
        assert isinstance(outcome, UndoFailed)
        assert told is not None
        assert told.unknown
    elif stage == "setup" or (idempotent and stage != "close"):
        assert told is None
    else:
        assert isinstance(outcome, WorkerLost)
        assert told is not None
        assert told.unknown


@pytest.mark.asyncio
@both_ways
async def test_workers_undo_and_the_program_is_told_where_the_scheduler_is_killed(
    tmp_path: Path, stage: str, idempotent: bool
) -> None:
    ledger = ledger_of(tmp_path, stage, "scheduler")
    with dask_cluster(tmp_path, 2) as dask:
        outcome = await ended(dask, ledger, idempotent=idempotent)
        for name in ("w0", "w1"):
            await asyncio.to_thread(dask.processes[name].wait, ENDING_SECONDS)
    checked(ledger, outcome, idempotent)
    assert isinstance(outcome, UndoFailed if stage == "undo" else WorkerLost)
    assert ledger.said("opened") == ledger.said("closed")
    # Who was told to close keeps what is done, and of an idempotent job who can tell nobody.
    if stage != "close" and not idempotent:
        ledger.check_all_undone()


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Dask]:
    with dask_cluster(tmp_path, 2) as dask:
        yield dask


def all_closed(ledger: Ledger) -> bool:
    return 0 < ledger.said("opened") == ledger.said("closed")


@pytest.mark.asyncio
@every_stage
async def test_workers_of_dask_undo_where_the_program_is_killed(
    two: Dask, tmp_path: Path, stage: str
) -> None:
    ledger = ledger_of(tmp_path, stage, "client")
    program.write_order(tmp_path, ledger.job(SIZE))
    client = two.start("client", "tests.cluster.program", two.address, str(tmp_path))
    assert await asyncio.to_thread(client.wait, ENDING_SECONDS) == -9
    await eventually(lambda: all_closed(ledger), "all workers closed their data")
    if stage != "close":  # who was told to close keeps what is done
        ledger.check_all_undone()
    assert program.read_outcome(tmp_path) is None


PROCESSES = """
import sys
from pathlib import Path
from aioktask.cluster import ProcessCoordinator
from tests.cluster.ledger import Ledger

if __name__ == "__main__":
    ledger = Ledger(Path(sys.argv[1]), sys.argv[2], unit_seconds=0.001, victim="client")
    with ProcessCoordinator(2, max_threads=1) as coordinator:
        coordinator.submit(ledger.job(2000)).result()
"""


@every_stage
def test_processes_undo_where_the_program_is_killed(tmp_path: Path, stage: str) -> None:
    ledger = ledger_of(tmp_path, stage, "client")
    script = tmp_path / "script.py"
    script.write_text(PROCESSES)
    client = subprocess.Popen(
        [*dying_with_this_one(), sys.executable, str(script), str(tmp_path), stage],
        env={"PYTHONPATH": str(ROOT)},
    )
    (tmp_path / "pid-client").write_text(str(client.pid))
    assert client.wait(ENDING_SECONDS) == -9
    until(lambda: all_closed(ledger), "all workers closed their data")
    if stage != "close":
        ledger.check_all_undone()
