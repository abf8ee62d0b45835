# SPDX-License-Identifier: MIT
# What becomes of jobs whose coordinator takes workers of Dask for gone that are there still: on a
# cluster in this process, where a call may be made to fail.

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import pickle
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

pytest.importorskip("distributed", reason="distributed is not installed")

from distributed import Client, Worker

from aioktask import failure
from aioktask.cluster import ClusterCoordinator, ClusterJob, WorkerLost, run_on_cluster
from aioktask.cluster import dask as carrier
from aioktask.cluster import dask_workers as there
from aioktask.cluster.messages import Leaves
from tests.cluster import work
from tests.cluster.dasks import Dask, cluster_here, dask_cluster
from tests.cluster.ledger import Ledger
from tests.support.gates import PATIENCE, eventually
from tests.support.servers import ROOT

pytestmark = pytest.mark.asyncio


def both_have_done(workers: Any) -> bool:
    return len(workers) == 2 and all(worker.units > 50 for worker in workers)


def unreachable(client: Any, monkeypatch: pytest.MonkeyPatch, *, scheduler: bool = True) -> Any:
    """A function that has the next command to a worker fail, once, and the scheduler as well."""
    run, run_on_scheduler, failing = client.run, client.run_on_scheduler, set[str]()

    async def run_or_fail(function: Any, *args: Any, workers: Any = None, **more: Any) -> Any:
        if function is carrier.deliver and failing & set(workers):
            failing.difference_update(workers)
            raise OSError("planted")
        return await run(function, *args, workers=workers, **more)

    async def run_there_or_fail(function: Any, *args: Any, **more: Any) -> Any:
        if function is carrier.take_for_gone and not scheduler:
            raise OSError("planted, too")
        return await run_on_scheduler(function, *args, **more)

    monkeypatch.setattr(client, "run", run_or_fail)
    monkeypatch.setattr(client, "run_on_scheduler", run_there_or_fail)
    return lambda worker: failing.add(worker.name.rpartition("/")[0])


async def test_what_a_worker_did_that_could_not_be_reached_is_not_undone_after_others_did_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.001)
    async with cluster_here(2) as (_, client, _):
        fail = unreachable(client, monkeypatch)
        async with ClusterCoordinator(client, max_threads=1) as coordinator:
            handle = coordinator.submit(ledger.job(idempotent=True))
            await eventually(lambda: both_have_done(handle.workers()))
            fail(handle.workers()[0])
            report = await handle
        await eventually(lambda: ledger.said("closed") == 2)
    assert [part.lost for part in report.workers].count("") == 1
    assert not ledger.counts("undone")
    ledger.check_done(twice=True)


async def test_what_a_worker_did_of_which_the_scheduler_cannot_be_told_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.001)
    async with cluster_here(2) as (_, client, _):
        fail = unreachable(client, monkeypatch, scheduler=False)
        async with ClusterCoordinator(client, max_threads=1) as coordinator:
            handle = coordinator.submit(ledger.job(idempotent=True))
            await eventually(lambda: both_have_done(handle.workers()))
            fail(handle.workers()[0])
            with pytest.raises(WorkerLost, match="planted") as caught:
                await handle
        await eventually(lambda: ledger.said("closed") == 2)
    assert failure(caught.value).unknown
    ledger.check(failure(caught.value))
    ledger.check_all_undone()


async def test_a_job_ends_whose_tasks_on_the_loop_were_all_cancelled(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.001)
    async with cluster_here(2) as (_, client, _):
        async with ClusterCoordinator(client, max_threads=1) as coordinator:
            handle = coordinator.submit(ledger.job())
            await eventually(lambda: both_have_done(handle.workers()))
            for task in list(coordinator._driver.carrier._tasks):  # type: ignore[attr-defined]
                task.cancel()
            with pytest.raises(WorkerLost, match="tasks of the client's loop were cancelled"):
                await handle
        await eventually(lambda: ledger.said("closed") == 2)
    ledger.check_all_undone()


async def test_a_worker_is_lost_whose_commands_are_delivered_no_more(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.001)
    async with cluster_here(2) as (_, client, _):
        async with ClusterCoordinator(client, max_threads=1) as coordinator:
            handle = coordinator.submit(ledger.job())
            await eventually(lambda: both_have_done(handle.workers()))
            own: Any = coordinator._driver.carrier
            for task in own._tasks - {own._beginning}:
                task.cancel()
            with pytest.raises(WorkerLost, match="the task that did was cancelled"):
                await handle
        await eventually(lambda: ledger.said("closed") == 2)
    ledger.check_all_undone()


@pytest.mark.parametrize(
    ("how", "raised"), [("closed", "WorkerLost"), ("interrupted", "KeyboardInterrupt")]
)
async def test_a_program_goes_on_whose_loop_ends_under_a_job(
    tmp_path: Path, how: str, raised: str
) -> None:
    async with cluster_here(2) as (scheduler, _, _):
        program = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.cluster.unlooped", scheduler.address, tmp_path, how),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            async with asyncio.timeout(PATIENCE):
                said, _ = await program.communicate()
        finally:
            if program.returncode is None:
                program.kill()
                await program.wait()
        assert said.decode().split() == [raised]
        ledger = Ledger(tmp_path)
        await eventually(lambda: ledger.said("closed") == 2)
    ledger.check_all_undone()


def held(scheduler: Any, name: str) -> tuple[asyncio.Event, asyncio.Event]:
    """Have calls of a method of the scheduler wait: an event that one came, one to let it go."""
    came, go = asyncio.Event(), asyncio.Event()
    method = getattr(scheduler, name)

    async def wait_first(*given: Any, **named: Any) -> Any:
        came.set()
        await go.wait()
        return await method(*given, **named)

    setattr(scheduler, name, wait_first)
    scheduler.handlers[name] = wait_first
    return came, go


async def test_a_coordinator_that_is_left_as_it_begins_leaves_nothing_on_workers() -> None:
    async with cluster_here(1) as (scheduler, client, (worker,)):
        before = set(worker.plugins)
        came, go = held(scheduler, "register_worker_plugin")
        coordinator = ClusterCoordinator(client)
        await coordinator.__aenter__()
        await came.wait()
        leaving = asyncio.create_task(coordinator.__aexit__(None, None, None))
        own: Any = coordinator._driver.carrier
        await eventually(lambda: own._gone)
        for _ in range(20):  # so that what is left too early is left before it has begun
            await asyncio.sleep(0.001)
        go.set()
        await leaving
        await eventually(lambda: set(worker.plugins) == before)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert set(worker.plugins) == before
        assert not [name for name in scheduler.worker_plugins if name == own._id]
        assert own._id not in scheduler.plugins


@pytest.mark.parametrize("what", ["register_worker_plugin", "broadcast"])
async def test_letting_go_that_takes_too_long_goes_on_when_the_coordinator_was_left(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(carrier, "ENDING_SECONDS", 0.01)
    async with cluster_here(1) as (scheduler, client, (worker,)):
        before = set(worker.plugins)
        if what == "register_worker_plugin":
            came, go = held(scheduler, what)
        async with ClusterCoordinator(client) as coordinator:
            if what == "register_worker_plugin":
                await came.wait()
            else:
                await eventually(lambda: bool(coordinator.snapshot().workers))
                came, go = held(scheduler, what)
        await came.wait()
        go.set()
        own: Any = coordinator._driver.carrier
        await eventually(lambda: own._id not in scheduler.plugins)
        assert not [name for name in scheduler.worker_plugins if name == own._id]
        assert set(worker.plugins) == before


async def test_a_worker_undoes_as_it_leaves_though_all_threads_of_its_loop_are_busy(
    tmp_path: Path,
) -> None:
    ledger, hold = Ledger(tmp_path, unit_seconds=0.001), threading.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    busy = loop.run_in_executor(None, hold.wait, PATIENCE)
    try:
        async with cluster_here(2) as (_, client, _):
            async with ClusterCoordinator(client, max_threads=1) as coordinator:
                handle = coordinator.submit(ledger.job())
                await eventually(lambda: both_have_done(handle.workers()))
                leaves = handle.workers()[0].name
                await client.retire_workers([leaves.rpartition("/")[0]])
                report = await handle
                assert not busy.done()
                hold.set()  # Dask waits for such a thread, too, where a worker is closed
                parts = {part.name: part for part in report.workers}
                assert parts[leaves].lost == "left the cluster"
                assert not parts[leaves].done
    finally:
        hold.set()
        await busy


async def test_a_worker_is_lost_that_said_what_cannot_be_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.001)
    async with cluster_here(2) as (_, client, _):
        async with ClusterCoordinator(client, max_threads=1) as coordinator:
            handle = coordinator.submit(ledger.job())
            await eventually(lambda: both_have_done(handle.workers()))
            own: Any = coordinator._driver.carrier
            name = handle.workers()[0].name
            own._said(own._addresses[name], name, own._heard[name] + 1, b"no pickle")
            with pytest.raises(WorkerLost, match="said something that cannot be read"):
                await handle
        await eventually(lambda: ledger.said("closed") == 2)
    ledger.check_all_undone()


async def test_a_worker_that_says_that_it_leaves_after_dask_forgot_it_is_lost_and_undoes_nothing(
    tmp_path: Path,
) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.001)
    async with cluster_here(2) as (scheduler, client, workers):
        async with ClusterCoordinator(client, max_threads=1) as coordinator:
            handle = coordinator.submit(ledger.job(idempotent=True))
            await eventually(lambda: both_have_done(handle.workers()))
            own: Any = coordinator._driver.carrier
            plugins = [worker.plugins[own._id] for worker in workers]
            ended = plugins[0].station.name
            address = own._addresses[ended]
            # What its connection's end does, and what it says next, in one batch of events.
            scheduler.plugins[own._id].remove_worker(
                scheduler, address, stimulus_id="handle-worker-cleanup-1.5"
            )
            number = plugins[0].number + 1
            leaves = ["said", address, ended, number, pickle.dumps([Leaves(ended)])]
            scheduler.log_event(own._id, leaves)
            report = await handle
    parts = {part.name: part for part in report.workers}
    assert parts[ended].lost == "is gone: its connection to the scheduler ended"
    assert not parts[ended].units
    assert not ledger.counts("undone")
    ledger.check_done(twice=True)


async def test_a_worker_that_asks_once_the_coordinator_is_forgotten_undoes_nothing(
    tmp_path: Path,
) -> None:
    ledger, held = Ledger(tmp_path, unit_seconds=0.001), asyncio.Event()

    async def is_dead_for_all_it_knows() -> bool:
        await held.wait()
        return False

    async with cluster_here(2) as (scheduler, client, workers):
        async with ClusterCoordinator(client, max_threads=1) as coordinator:
            handle = coordinator.submit(ledger.job(idempotent=True))
            await eventually(lambda: both_have_done(handle.workers()))
            own: Any = coordinator._driver.carrier
            workers[0].plugins[own._id]._scheduler_is_dead = is_dead_for_all_it_knows
            scheduler.stream_comms[workers[0].address].abort()
            report = await handle
        assert there._question(own._id) not in scheduler.handlers
        held.set()
        await workers[0].finished()
    assert [part.lost for part in report.workers].count("") == 1
    assert ledger.said("closed") == 2
    assert not ledger.counts("undone")
    ledger.check_done(twice=True)


async def test_a_worker_that_is_taken_for_gone_lets_go_while_the_scheduler_can_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.001)
    async with cluster_here(2) as (_, client, workers):
        fail = unreachable(client, monkeypatch)
        async with ClusterCoordinator(client, max_threads=1) as coordinator:
            handle = coordinator.submit(ledger.job(idempotent=True))
            await eventually(lambda: both_have_done(handle.workers()))
            own: Any = coordinator._driver.carrier
            lost = handle.workers()[0]
            fail(lost)
            await handle
            await eventually(lambda: ledger.said("closed") == 2)
            has = {worker.address: own._id in worker.plugins for worker in workers}
            assert not has.pop(lost.name.rpartition("/")[0])
            assert list(has.values()) == [True]
    assert not ledger.counts("undone")
    ledger.check_done(twice=True)
    assert [each for each in caplog.records if each.levelname in ("ERROR", "CRITICAL")] == []


async def test_a_command_that_fails_as_a_worker_is_retired_leaves_it_time_to_undo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.001)
    (tmp_path / "hold-undo").touch()
    monkeypatch.setattr(carrier, "LOOK_SECONDS", 0.01)
    async with cluster_here(2) as (_, client, workers):
        run, begun, ended = client.run, asyncio.Event(), asyncio.Event()

        async def run_until_retired(function: Any, *args: Any, **more: Any) -> Any:
            if function is carrier.deliver and own._addresses.get(leaves) in more["workers"]:
                begun.set()
                await eventually(lambda: ledger.said("undoing") == 1)
                ended.set()
                raise OSError("planted")
            return await run(function, *args, **more)

        async with ClusterCoordinator(client, max_threads=1) as coordinator:
            handle = coordinator.submit(ledger.job())
            await eventually(lambda: both_have_done(handle.workers()))
            own: Any = coordinator._driver.carrier
            leaves = workers[0].plugins[own._id].station.name
            monkeypatch.setattr(client, "run", run_until_retired)
            handle.renice(3)  # so that a command goes to both
            await asyncio.wait_for(begun.wait(), 60)
            await client.retire_workers([workers[0].address])
            await asyncio.wait_for(ended.wait(), 60)
            await asyncio.sleep(20 * carrier.LOOK_SECONDS)  # what it would have been given
            (tmp_path / "hold-undo").unlink()
            report = await handle
    parts = {part.name: part for part in report.workers}
    assert parts[leaves].lost == "left the cluster"
    assert not parts[leaves].done
    ledger.check_done()


async def test_where_none_had_the_library_one_that_came_since_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with cluster_here(1) as (_, client, _):
        run, answered = client.run, asyncio.Event()

        async def run_late(function: Any, *args: Any, **more: Any) -> Any:
            if function is exec:
                await eventually(lambda: bool(coordinator.snapshot().workers))
                answered.set()
                return {"tcp://1.2.3.4:5": ModuleNotFoundError("planted")}
            return await run(function, *args, **more)

        monkeypatch.setattr(client, "run", run_late)
        async with ClusterCoordinator(client) as coordinator:
            await answered.wait()
            report = await coordinator.submit(ClusterJob(work.count, 1000, reduce=int.__add__))
    assert report.value == 1000


async def test_a_worker_is_lost_whose_address_has_a_name_where_the_scheduler_has_none(
    tmp_path: Path,
) -> None:
    ledger = Ledger(tmp_path, unit_seconds=0.001)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with cluster_here(1) as (scheduler, client, _):
        named = Worker(
            scheduler.address,
            nthreads=1,
            port=port,
            contact_address=f"tcp://localhost:{port}",
            dashboard_address=":0",
        )
        async with named, ClusterCoordinator(client, max_threads=1) as coordinator:
            handle = coordinator.submit(ledger.job(idempotent=True))
            await eventually(lambda: both_have_done(handle.workers()))
            scheduler.stream_comms[f"tcp://127.0.0.1:{port}"].abort()
            report = await handle
    lost = {part.name.rpartition("/")[0]: part.lost for part in report.workers if part.lost}
    assert lost == {f"tcp://localhost:{port}": "is gone: its connection to the scheduler ended"}
    assert not ledger.counts("undone")
    ledger.check_done(twice=True)


async def test_a_job_that_begins_after_a_worker_said_that_it_leaves_has_no_part_there() -> None:
    async with cluster_here(2) as (_, client, workers):
        async with ClusterCoordinator(client, max_threads=1) as coordinator:
            await eventually(lambda: len(coordinator.snapshot().workers) == 2)
            leaving, _ = coordinator.snapshot().workers
            own: Any = coordinator._driver.carrier
            plugin = next(
                worker.plugins[own._id]
                for worker in workers
                if worker.plugins[own._id].station.name == leaving.name
            )
            assert await plugin._say_that_it_leaves()
            report = await coordinator.submit(ClusterJob(work.count, 1000, reduce=int.__add__))
            assert report.value == 1000
            assert leaving.name not in [part.name for part in report.workers]


async def test_the_scheduler_keeps_nothing_of_what_was_said() -> None:
    async with cluster_here(1) as (scheduler, client, _):
        async with ClusterCoordinator(client) as coordinator:
            await coordinator.submit(ClusterJob(work.count, 1000, reduce=int.__add__))
            own: Any = coordinator._driver.carrier
            assert own._id in scheduler.plugins
            assert own._heard
            assert not await client.get_events(own._id)
            assert await client.get_events("all")


@pytest.mark.parametrize("comes_back", [False, True])
async def test_a_scheduler_is_dead_that_refuses_a_connection_twice(
    monkeypatch: pytest.MonkeyPatch, *, comes_back: bool
) -> None:
    plugin: Any = there.StationPlugin("name", None)
    ask, asked = plugin._is_refused, []

    async def ask_and_say() -> bool:
        asked.append(await ask())
        if comes_back:
            server.listen()
        return asked[-1]

    monkeypatch.setattr(there, "REFUSED_SECONDS", 0.01)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # and does not listen
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        plugin.worker = SimpleNamespace(scheduler=SimpleNamespace(address=address))
        plugin._is_refused = ask_and_say
        assert await plugin._scheduler_is_dead() is not comes_back
    assert asked == [True, not comes_back]


async def test_a_coordinator_of_a_closed_client_is_refused_and_leaves_no_thread() -> None:
    async with cluster_here(1) as (_, client, _):
        await client.close()
        coordinator = ClusterCoordinator(client)
        own: Any = coordinator._driver.carrier
        with pytest.raises(Exception, match=r"closed|running"):
            await coordinator.__aenter__()
        await eventually(lambda: own._watch.ident and not own._watch.is_alive())


@contextlib.contextmanager
def lacking(dask: Dask, folder: Path) -> Iterator[None]:
    """What is started within this cannot import this package."""
    package = folder / "lacking" / "aioktask"
    package.mkdir(parents=True, exist_ok=True)
    planted = "No module named 'aioktask'"
    (package / "__init__.py").write_text(
        f"raise ModuleNotFoundError({planted!r}, name='aioktask')\n"
    )
    before = dask.settings
    dask.settings = {**before, "PYTHONPATH": str(package.parent)}
    yield
    dask.settings = before


async def test_a_scheduler_without_the_library_is_told_at_once(tmp_path: Path) -> None:
    dask = Dask(tmp_path)
    try:
        with lacking(dask, tmp_path):
            dask.start_scheduler()
        async with Client(dask.address, asynchronous=True) as client:
            with anyio.fail_after(60), pytest.raises(WorkerLost) as caught:
                await run_on_cluster(ClusterJob(work.count, 10), client)
    finally:
        dask.stop()
    assert f"the scheduler {LACKS}" in str(caught.value)


async def test_a_worker_without_the_library_is_named_and_others_do_its_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "hold").touch()
    job = ClusterJob(functools.partial(work.stay, str(tmp_path)), 100, name="stays")
    with dask_cluster(tmp_path, 0) as dask:
        with lacking(dask, tmp_path):
            dask.start_worker("bare")
            dask.wait_for_worker("bare")
        async with Client(dask.address, asynchronous=True) as client:
            with anyio.fail_after(60):
                with pytest.raises(WorkerLost, match=NEEDS):
                    await run_on_cluster(job, client)
            dask.start_worker("w0")
            dask.wait_for_worker("w0")
            async with ClusterCoordinator(client) as coordinator:
                handle = coordinator.submit(job)
                await eventually(lambda: sum(bool(each.lost) for each in handle.workers()) == 1)
                (tmp_path / "hold").unlink()
                report = await handle
    assert sorted(part.units for part in report.workers) == [0, 100]
    assert [part.lost for part in report.workers if not part.units] == [LACKS]
    told = [each.getMessage() for each in caplog.records if each.name == "aioktask"]
    assert sum(LACKS in each for each in told) == 2


LACKS = "cannot import aioktask (No module named 'aioktask'): pip install 'aioktask[dask]' there"
NEEDS = r"the worker 'tcp://.*' cannot import aioktask .*pip install"


async def test_a_client_that_is_closed_is_refused_in_words_of_its_own() -> None:
    async with cluster_here(0) as (_, client, _):
        pass
    with pytest.raises(RuntimeError, match="the client is closed, so no coordinator can use it"):
        await run_on_cluster(ClusterJob(work.count, 10), client)


@pytest.mark.parametrize(
    ("stimulus", "told"),
    [
        ("handle-worker-cleanup-1796060124.38", "is gone: its connection to the scheduler ended"),
        ("something-new-1796060124.38", "is gone"),
    ],
)
async def test_what_dask_calls_an_end_is_told_in_words(stimulus: str, told: str) -> None:
    assert carrier._why_gone(stimulus) == told


async def test_who_is_let_go_of_twice_leaves_no_error_in_the_log_of_the_scheduler(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with cluster_here(1) as (scheduler, client, _):
        async with ClusterCoordinator(client) as coordinator:
            await eventually(lambda: bool(coordinator.snapshot().workers))
            name = coordinator._driver.carrier._id  # type: ignore[attr-defined]
            watcher = scheduler.plugins[name]
            watcher.remove_client(scheduler, client.id)  # as where the program's loop is ended
            assert not there.take_for_gone(name, "w", "is silent", dask_scheduler=scheduler)
            await eventually(lambda: name not in scheduler.plugins)
        assert not watcher.gone
    assert [each for each in caplog.records if each.levelname in ("ERROR", "CRITICAL")] == []
