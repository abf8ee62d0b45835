# SPDX-License-Identifier: MIT
# A program that runs one job on a Dask cluster, for tests that kill it, or that have it on a host
# of its own:
#
#   python -m tests.cluster.program ADDRESS FOLDER
#
# In the folder it finds `order`, a pickle of the job and of more arguments, and writes `outcome`, a
# pickle of what came of it.
"""Run a job, and write down how it ended."""

from __future__ import annotations

import asyncio
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import Client

from aioktask import failure
from aioktask.cluster import ClusterCoordinator, ClusterJob, ClusterReport
from aioktask.job import Failure


@dataclass(frozen=True)
class Outcome:
    """What came of it: a report; or else what was raised, and what that tells."""

    report: ClusterReport[Any] | None
    error: str = ""
    told: Failure | None = None


def write_order(folder: Path, job: ClusterJob[Any]) -> None:
    (folder / "order").write_bytes(pickle.dumps(job))


def read_outcome(folder: Path) -> Outcome | None:
    """What came of it, once it is there."""
    path = folder / "outcome"
    if not path.exists():
        return None
    outcome = pickle.loads(path.read_bytes())
    assert isinstance(outcome, Outcome)
    return outcome


async def run(address: str, folder: Path) -> None:
    job = pickle.loads((folder / "order").read_bytes())
    async with Client(address, asynchronous=True) as client:
        async with ClusterCoordinator(client, max_threads=1) as coordinator:
            try:
                outcome = Outcome(await coordinator.submit(job))
            except Exception as error:
                outcome = Outcome(None, f"{type(error).__name__}: {error}", failure(error))
            new = folder / "outcome.new"
            new.write_bytes(pickle.dumps(outcome))
            new.rename(folder / "outcome")


if __name__ == "__main__":
    # By its name, so that what is pickled can be read elsewhere.
    from tests.cluster import program

    asyncio.run(program.run(sys.argv[1], Path(sys.argv[2])))
