# SPDX-License-Identifier: MIT
# Calls that block without using a CPU take no helper from others: each makes room for one more, up
# to a ceiling. Barriers that more calls must reach than there are helpers tell; nothing is timed.

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

import aioktask
from aioktask import Coordinator, Job, configure, run_multithreaded
from aioktask.engine.api.process import current_pool
from aioktask.engine.machine.load import sleeping_threads, thread_runs
from aioktask.engine.threads import call_watch
from tests.support.gates import PATIENCE, Gate, eventually

HELPERS = 2

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.max_threads(HELPERS),
    pytest.mark.skipif(
        not thread_runs([threading.get_native_id()]),
        reason="the kernel does not tell how often a thread is run (/proc/self/task/TID/schedstat)",
    ),
]


@pytest.fixture(autouse=True)
def _usual_ceiling() -> Iterator[None]:
    yield
    configure(max_blocked=32)


@pytest.mark.parametrize("coordinated", [False, True])
async def test_more_calls_than_helpers_that_wait_for_each_other_all_get_through(
    coordinated: bool,
) -> None:
    calls = HELPERS + 10
    barrier = threading.Barrier(calls)
    passed: list[int] = []
    async with Coordinator() as coordinator, anyio.create_task_group() as tasks:
        run = coordinator.run if coordinated else aioktask.run
        for _ in range(calls):
            tasks.start_soon(_pass, run, barrier, passed)
    assert sorted(passed) == list(range(calls))


def test_calls_of_an_executor_that_wait_for_each_other_all_get_through() -> None:
    calls = HELPERS + 10
    barrier = threading.Barrier(calls)
    with Coordinator() as coordinator, coordinator.executor() as executor:
        passed = executor.map(barrier.wait, [PATIENCE] * calls)
        assert sorted(passed) == list(range(calls))


async def _pass(run: Any, barrier: threading.Barrier, passed: list[int]) -> None:
    passed.append(await run(barrier.wait, PATIENCE))


async def test_a_job_gets_a_helper_while_calls_block_all_of_them() -> None:
    gate = Gate()
    async with anyio.create_task_group() as tasks:
        for _ in range(HELPERS):
            tasks.start_soon(aioktask.run, gate.chunk, 0, 1)
        await gate.entered(HELPERS)
        with anyio.fail_after(PATIENCE):
            report = await run_multithreaded(Job(lambda start, stop: None, 1000, chunk=1))
        assert report.chunks == 1000
        assert gate.done == []
        gate.open()


async def test_the_room_is_gone_when_the_calls_are_over() -> None:
    gate = Gate()
    scheduler = current_pool().state.scheduler
    async with anyio.create_task_group() as tasks:
        for _ in range(HELPERS + 3):
            tasks.start_soon(aioktask.run, gate.chunk, 0, 1)
        await gate.entered(HELPERS + 3)
        assert scheduler.blocked >= 3
        gate.open()
    await eventually(lambda: scheduler.blocked == 0 and scheduler.running == 0)


async def test_a_call_that_goes_on_has_its_room_taken_back() -> None:
    gate, ends = Gate(), threading.Event()
    pool = current_pool()

    def block_then_compute() -> None:
        gate.chunk(0, 1)
        while not ends.is_set():
            sum(range(1000))

    async with anyio.create_task_group() as tasks:
        for _ in range(HELPERS):
            tasks.start_soon(aioktask.run, block_then_compute)
        await gate.entered(HELPERS)
        await run_multithreaded(Job(lambda start, stop: None, 1, chunk=1))  # by the room there is
        gate.open()
        await eventually(lambda: pool.state.scheduler.blocked == 0)
        assert len(gate.done) == HELPERS
        ends.set()


async def test_a_call_whose_thread_could_run_and_gets_no_cpu_makes_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its times stand still too, since the kernel adds such a wait when it is over."""
    gate = Gate()
    pool = current_pool()

    def show(state: str) -> None:
        for thread in os.listdir("/proc/self/task"):
            task = tmp_path / "proc/self/task" / thread
            task.mkdir(parents=True, exist_ok=True)
            (task / "schedstat").write_text("50 60 7\n")
            (task / "new").write_text(f"{thread} (x) {state} 1\n")
            (task / "new").rename(task / "stat")

    async with anyio.create_task_group() as tasks:
        for _ in range(HELPERS):
            tasks.start_soon(aioktask.run, gate.chunk, 0, 1)
        await gate.entered(HELPERS)
        show("R")
        monkeypatch.setattr(call_watch, "thread_runs", partial(thread_runs, root=tmp_path))
        monkeypatch.setattr(
            call_watch, "sleeping_threads", partial(sleeping_threads, root=tmp_path)
        )
        look, looks = pool._calls._look_at_threads, []
        monkeypatch.setattr(pool._calls, "_look_at_threads", lambda: looks.append(look()))
        tasks.start_soon(aioktask.run, gate.chunk, 0, 1)
        await eventually(lambda: len(looks) >= 4)
        assert not pool.state.blocking
        assert pool.state.scheduler.running == HELPERS
        show("S")
        await gate.entered()
        monkeypatch.undo()
        gate.open()


async def test_the_ceiling_holds() -> None:
    configure(max_blocked=1)
    gate = Gate()
    scheduler = current_pool().state.scheduler
    async with anyio.create_task_group() as tasks:
        for _ in range(HELPERS + 2):
            tasks.start_soon(aioktask.run, gate.chunk, 0, 1)
        await gate.entered(HELPERS + 1)
        await eventually(lambda: len(current_pool().state.blocking) == HELPERS + 1)
        assert (scheduler.blocked, scheduler.running) == (1, HELPERS + 1)
        gate.open()
    assert len(gate.done) == HELPERS + 2


async def test_the_cap_of_a_coordinator_holds_whether_its_calls_block_or_not() -> None:
    gate, others = Gate(), Gate()
    async with Coordinator(1) as coordinator, anyio.create_task_group() as tasks:
        group = coordinator.scope()[1]
        for _ in range(3):
            tasks.start_soon(coordinator.run, gate.chunk, 0, 1)
        await gate.entered()
        for _ in range(HELPERS + 1):  # one of which runs by the room that the blocked call makes
            tasks.start_soon(aioktask.run, others.chunk, 0, 1)
        await others.entered(HELPERS + 1)
        assert group.threads == 1
        others.open()
        gate.open()
    assert len(gate.done) == 3


async def test_chunks_of_a_job_that_block_are_bounded_by_the_cap() -> None:
    gate = Gate()
    pool = current_pool()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_multithreaded, Job(gate.chunk, 4, chunk=1))
        await gate.entered(HELPERS)
        look = pool._calls.look
        seen = []

        def watch() -> bool:
            seen.append(None)
            return look()

        pool._calls.look = watch  # type: ignore[method-assign]
        await eventually(lambda: len(seen) >= 4)
        del pool._calls.look
        assert not pool.state.blocking
        assert pool.state.scheduler.running == HELPERS
        gate.open()
