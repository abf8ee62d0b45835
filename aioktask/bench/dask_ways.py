# SPDX-License-Identifier: MIT
# A Dask cluster on loopback, and the two ways that Dask itself has to solve orbits on it.
#
# Workers have a CPU each, as far as there are enough; the scheduler and this process, which is the
# client, may use all of them. All ways read and write the same files, and end when every orbit is
# in the file. The data goes through no scheduler: workers open the files, as Dask's documentation
# has it for memory-mapped arrays.
"""The rivals of the cluster benchmark: `WAYS`."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
from distributed import Client

import aioktask
from aioktask.bench.orbits import Anomalies, opened, solve, solved
from aioktask.bench.processes import Child, started

__all__ = ["WAYS", "Way", "dask_cluster"]

# Solves the orbits in the files of a folder, so many of them, in so many pieces.
Way = Callable[[Client, str, int, int], None]


@contextmanager
def dask_cluster(workers: int) -> Iterator[tuple[str, Child]]:
    """A scheduler's address, and its process; so many workers are there, and gone afterwards."""
    there = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    home = str(Path(aioktask.__file__).parents[1])
    path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    variables = {"PYTHONPATH": path, "DASK_LOGGING__DISTRIBUTED": "error"}
    command = [sys.executable, "-m", "aioktask.bench.dask_process"]
    with ExitStack() as stack:

        def start(cpus: list[int], *scheduler: str) -> tuple[str, Child]:
            whole = [*command, ",".join(map(str, cpus)), *scheduler]
            [child] = stack.enter_context(started([whole], variables))
            return str(json.loads(child.hear())), child

        address, process = start(there)
        for number in range(workers):
            start([there[number % len(there)]], address)
        yield address, process


def _client_map(client: Client, folder: str, count: int, pieces: int) -> None:
    edges = _edges(count, pieces)
    found = client.map(_solve_piece, edges[:-1], edges[1:], folder=folder, pure=False)
    client.gather(found)


def _solve_piece(start: int, stop: int, *, folder: str) -> None:
    solve(start, stop, opened(folder))


def _map_blocks(client: Client, folder: str, count: int, pieces: int) -> None:
    edges = _edges(count, pieces)
    sizes = tuple(b - a for a, b in itertools.pairwise(edges))
    given = dask.array.map_blocks(
        _read_block, folder, chunks=(sizes,), dtype=float, meta=np.empty(0)
    )
    found = given.map_blocks(solved, dtype=float, meta=np.empty(0))
    with client.as_current():
        dask.array.store(found, _Target(folder), lock=False, return_stored=False)


def _read_block(folder: str, block_info: Mapping[Any, Any]) -> Anomalies:
    [(start, stop)] = block_info[None]["array-location"]
    return opened(folder).mean[start:stop]


class _Target:
    """What Dask stores into: the file of the folder, in whatever process that is."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __setitem__(self, where: Any, values: Anomalies) -> None:
        opened(self.folder).eccentric[where] = values


def _edges(count: int, pieces: int) -> list[int]:
    """Where pieces of an even size begin and end."""
    return [count * at // pieces for at in range(pieces + 1)]


WAYS: Mapping[str, Way] = {"dask.array.map_blocks": _map_blocks, "client.map": _client_map}
