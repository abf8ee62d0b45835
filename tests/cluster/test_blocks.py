# SPDX-License-Identifier: MIT
# Jobs whose data are the blocks of a persisted Dask array, and files of hosts, on a real cluster of
# two worker processes: where stretches ran, and that no block came to the client.

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

pytest.importorskip("distributed", reason="distributed is not installed")
pytest.importorskip("dask.array", reason="dask is not installed")

import dask.array as da
from distributed import Client, wait

from aioktask import arrays
from aioktask.cluster import (
    ClusterCoordinator,
    ClusterJob,
    Home,
    blocks_of,
    files_by_host,
    homes_of,
    run_on_cluster,
)
from aioktask.cluster import blocks as asked
from tests.cluster import work
from tests.cluster.dasks import Dask
from tests.support.gates import PATIENCE, eventually

pytestmark = pytest.mark.asyncio

BLOCK = 250  # rows
CLUSTER_DOC = Path(__file__).parents[2] / "docs" / "cluster.md"


@pytest_asyncio.fixture
async def client(two: Dask) -> AsyncIterator[Any]:
    async with Client(two.address, asynchronous=True) as client:
        yield client


NUMBERS = np.arange(8 * BLOCK * 3, dtype=float).reshape(-1, 3)


def of_number(number: int) -> Any:
    return NUMBERS[number * BLOCK : (number + 1) * BLOCK]


async def spread(client: Any, places: list[str]) -> Any:
    """An array whose blocks are on the workers that `places` names, one after the other."""
    futures = [
        client.submit(of_number, number, workers=[place], pure=False)
        for number, place in enumerate(places)
    ]
    blocks = [da.from_delayed(each, (BLOCK, 3), float) for each in futures]
    # Persisted where the pieces are.
    array = client.persist(da.concatenate(blocks), optimize_graph=False)
    await wait(array)
    return array


async def blocks_by_worker(client: Any, array: Any) -> dict[str, set[int]]:
    """By the address of each worker, the numbers of the blocks of one column that it has."""
    found: dict[str, set[int]] = {}
    for key, addresses in (await client.who_has(array)).items():
        for address in addresses:
            found.setdefault(address, set()).add(key[1])
    return found


def took(report: Any) -> dict[str, set[int]]:
    """By the address of each worker, the numbers of the blocks whose rows it did."""
    return {
        part.name.rpartition("/")[0]: {unit // BLOCK for each in part.done for unit in each}
        for part in report.workers
    }


def total(start: int, stop: int, blocks: Any) -> float:
    rows = blocks.rows(start, stop)
    assert rows.shape == (stop - start, 3)
    assert rows[0, 0] == 3 * start
    return float(rows.sum())


async def test_rows_are_worked_on_where_their_blocks_are(client: Any) -> None:
    array = await spread(client, ["w0", "w1", "w1", "w0"] * 2)
    job = ClusterJob(
        total,
        len(array),
        reduce=float.__add__,
        setup=blocks_of(array),
        homes=homes_of(array),
        chunk=BLOCK,  # so that no rate is measured by a few rows, and misleads the other worker
    )
    report = await run_on_cluster(job, client)
    assert report.value == NUMBERS.sum()
    there = await blocks_by_worker(client, array)
    assert len(there) == 2
    assert took(report) == there


def local_or_not(start: int, stop: int, blocks: Any) -> set[bool]:
    rows = blocks.rows(start, stop)
    return {rows.base is not None and not rows.flags.owndata}


async def test_a_block_that_is_there_is_read_where_it_lies_and_cannot_be_written_to(
    client: Any,
) -> None:
    array = await spread(client, ["w0", "w1"])
    options: Any = {"setup": blocks_of(array), "homes": homes_of(array)}
    job = ClusterJob(local_or_not, len(array), reduce=set.union, chunk=10, **options)
    assert (await run_on_cluster(job, client)).value == {True}
    job = ClusterJob(write, len(array), **options)
    with pytest.raises(ValueError, match="read-only"):
        await run_on_cluster(job, client)


def write(start: int, stop: int, blocks: Any) -> None:
    blocks.rows(start, stop)[:] = 0


def slow_until_helped(start: int, stop: int, data: tuple[Any, str]) -> float:
    """Work that takes long in the first worker until the second one has begun, too."""
    blocks, folder = data
    open(os.path.join(folder, str(os.getpid())), "w").close()
    until = time.monotonic() + 0.06
    while len(os.listdir(folder)) < 2 and time.monotonic() < until:
        time.sleep(0.001)
    return total(start, stop, blocks)


async def test_a_home_that_is_far_behind_is_helped_by_who_gets_its_blocks(
    client: Any, tmp_path: Path
) -> None:
    array = await spread(client, ["w0"] * 8)
    setup, folder = blocks_of(array), str(tmp_path)
    job = ClusterJob(
        slow_until_helped,
        len(array),
        reduce=float.__add__,
        setup=lambda: (setup(), folder),
        homes=homes_of(array),
        max_threads=1,
        chunk=5,
    )
    report = await run_on_cluster(job, client)
    assert report.value == NUMBERS.sum()
    assert len(await blocks_by_worker(client, array)) == 1  # none was moved for good
    assert [part.units > 0 for part in report.workers] == [True, True]


async def test_rows_that_lie_in_several_blocks_are_put_together(client: Any) -> None:
    array = client.persist(da.from_array(NUMBERS, chunks=(70, 2)))
    await wait(array)
    job = ClusterJob(
        total, len(array), reduce=float.__add__, setup=blocks_of(array), homes=homes_of(array),
        chunk=100,
    )  # fmt: skip
    assert (await run_on_cluster(job, client)).value == NUMBERS.sum()


def of_blocks(start: int, stop: int, blocks: Any) -> float:
    for number in range(start, stop):
        assert (blocks.block(number) == NUMBERS[blocks.slices(number)]).all()
    return float(sum(blocks.block(number).sum() for number in range(start, stop)))


async def test_units_may_be_blocks(client: Any) -> None:
    array = client.persist(da.from_array(NUMBERS, chunks=(500, 2)))
    await wait(array)
    options: Any = {
        "setup": blocks_of(array, units="blocks"),
        "homes": homes_of(array, units="blocks"),
    }
    job = ClusterJob(of_blocks, array.npartitions, reduce=float.__add__, **options)
    assert (await run_on_cluster(job, client)).value == NUMBERS.sum()


async def test_what_is_no_persisted_dask_array_is_refused(client: Any) -> None:
    lazy = da.from_array(NUMBERS, chunks=(500, 3))
    with pytest.raises(ValueError, match=r"4 of the 4 blocks .* client.persist\(array\)"):
        homes_of(lazy)
    with pytest.raises(TypeError, match=r"must be a dask.array.Array, got ndarray"):
        homes_of(NUMBERS)
    with pytest.raises(ValueError, match=r"compute_chunk_sizes\(\) first"):
        blocks_of(lazy[lazy[:, 0] > 5])
    with pytest.raises(ValueError, match="units must be 'rows' or 'blocks', got 'rowz'"):
        homes_of(lazy, units="rowz")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="blocks on workers of Dask, and this is none"):
        blocks_of(client.persist(lazy))()
    with pytest.raises(ValueError, match=r"4 of the 4 blocks .* client.persist\(array\)"):
        blocks_of(lazy)


async def test_masked_arrays_are_refused_whose_mask_would_be_lost() -> None:
    masked = np.ma.masked_array(np.arange(4.0), mask=[0, 1, 0, 1])
    with pytest.raises(TypeError, match=r"masked array.*da\.ma\.filled"):
        homes_of(da.from_array(masked, chunks=2))
    with pytest.raises(TypeError, match="masked array"):  # behind a meta that is none
        asked._read_only(masked)


async def test_units_that_are_rows_here_and_blocks_there_are_refused(client: Any) -> None:
    array = client.persist(da.from_array(NUMBERS, chunks=(500, 3)))
    setup = blocks_of(array, units="blocks")
    with pytest.raises(ValueError, match=r"blocks_of\(units='blocks'\) and homes_of\(units='rows'"):
        ClusterJob(total, 4, setup=setup, homes=homes_of(array))
    assert ClusterJob(total, 4, setup=setup, homes=homes_of(array, units="blocks")).size == 4


async def test_blocks_that_nobody_has_any_more_are_told(client: Any) -> None:
    array = await spread(client, ["w0", "w1"])
    setup = blocks_of(array)
    await client.cancel(array, force=True)
    job = ClusterJob(total, len(array), reduce=float.__add__, setup=setup)
    with pytest.raises(LookupError, match="hold on to the array until it is over"):
        await run_on_cluster(job, client)


async def test_homes_are_not_asked_for_on_dasks_loop(client: Any) -> None:
    array = await spread(client, ["w0", "w1"])
    with pytest.raises(RuntimeError, match="cannot be called on that loop"):
        homes_of(array)(())


async def test_what_dask_does_not_tell_in_time_is_waited_for_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = asyncio.Event()

    async def wait_for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(asked, "ASK_SECONDS", 0.05)
    loop = asyncio.get_running_loop()
    with pytest.raises(TimeoutError, match=r"Dask did not tell the weather in 0.05 s: look"):
        await asyncio.to_thread(asked._wait_for, loop, wait_for_ever(), "the weather")
    await asyncio.wait_for(ended.wait(), PATIENCE)


async def test_the_chunks_of_the_documented_reduce_divide_its_blocks() -> None:
    text = CLUSTER_DOC.read_text()
    block = re.search(r"chunks=\(([0-9_]+),", text)
    chunk = re.search(r"^    chunk=([0-9_]+),", text, re.MULTILINE)
    assert block is not None
    assert chunk is not None
    assert int(block[1]) % int(chunk[1]) == 0


async def test_files_go_to_the_hosts_that_have_them(client: Any, tmp_path: Path) -> None:
    # Hosts and workers alike may be named: here both workers are on one host.
    paths, homes = files_by_host({"w0": ["a", "b"], "w1": ["c"], socket.gethostname(): ["d"]})
    assert homes == (Home(0, 2, "w0"), Home(2, 3, "w1"), Home(3, 4, socket.gethostname()))
    job = ClusterJob(work.pid, len(paths), reduce=work.union, homes=homes)
    report = await run_on_cluster(job, client)
    info = (await client.scheduler.identity())["workers"]
    by_name = {
        info[part.name.rpartition("/")[0]]["name"]: {unit for each in part.done for unit in each}
        for part in report.workers
    }
    assert by_name["w0"] - {3} == {0, 1}
    assert by_name["w1"] - {3} == {2}


async def test_workers_go_by_their_name_their_address_and_their_hosts_name(client: Any) -> None:
    async with ClusterCoordinator(client) as coordinator:
        await eventually(lambda: len(coordinator.snapshot().workers) == 2)
        there = list(coordinator._driver.workers.values())
    addresses = set(await client.nthreads())
    for joined in there:
        assert joined.names & addresses
        assert joined.names & {"w0", "w1"}
        assert socket.gethostname() in joined.names


async def test_apply_on_a_cluster_runs_on_the_helpers_of_the_workers(client: Any) -> None:
    array = await spread(client, ["w0", "w1"])
    made = arrays.apply(where_it_ran, array)
    pids = set(np.unique(await client.compute(made)))
    assert len(pids) == 2
    assert os.getpid() not in pids


def where_it_ran(rows: Any) -> Any:
    import threading

    from aioktask import current_chunk

    if len(rows) > 1:  # else it is the row of ones, in the client
        current_chunk()
        assert "Dask" not in threading.current_thread().name
    return np.full(len(rows), os.getpid())
