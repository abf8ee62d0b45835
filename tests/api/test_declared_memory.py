# SPDX-License-Identifier: MIT
# Jobs that declare what memory a chunk takes. Here they declare more than any machine has, so that
# one chunk runs at a time, or so little that all run; the amounts in between, and limits that move,
# are in tests/process/test_memory_limits.py.

from __future__ import annotations

import threading

import anyio
import pytest

from aioktask import (
    Coordinator,
    Job,
    JobCancelled,
    failure,
    plan,
    run_multithreaded,
    run_multithreaded_sync,
)
from aioktask.engine.api.process import current_pool
from aioktask.engine.machine import available_memory
from tests.support.gates import LOOK_SECONDS, PATIENCE, Gate, eventually, units

pytestmark = [pytest.mark.anyio, pytest.mark.max_threads(4)]

EVERYTHING = 1 << 60
LITTLE = 1


class Live:
    """A function that counts how many of its chunks run at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.done: list[tuple[int, int]] = []

    def chunk(self, start: int, stop: int) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        threading.Event().wait(0.001)  # room for others to come in between
        with self.lock:
            self.now -= 1
            self.done.append((start, stop))


async def test_a_chunk_that_fits_nowhere_runs_alone_and_the_job_is_done() -> None:
    live = Live()
    report = await run_multithreaded(Job(live.chunk, 20, chunk=1, memory=EVERYTHING))
    assert live.most == 1
    assert report.peak_threads == 1
    assert units(live.done) == list(range(20))


def test_the_calling_thread_takes_part_under_the_same_budget() -> None:
    live = Live()
    run_multithreaded_sync(Job(live.chunk, 20, chunk=1, memory=EVERYTHING))
    assert live.most == 1
    assert units(live.done) == list(range(20))


async def test_chunks_that_fit_run_all_at_once() -> None:
    barrier = threading.Barrier(4, timeout=PATIENCE)
    await run_multithreaded(
        Job(lambda start, stop: barrier.wait(), 4, chunk=1, memory=LITTLE, learn="nothing")
    )


async def test_all_jobs_that_declare_memory_share_it_whatever_their_coordinators() -> None:
    live = Live()
    async with Coordinator() as one, Coordinator(max_threads=2) as other:
        for number in range(12):
            job = Job(live.chunk, 2, chunk=1, memory=EVERYTHING, nice=number % 3)
            (one, other)[number % 2].submit(job)
    assert live.most == 1
    assert len(live.done) == 24


def test_calling_threads_share_it_too() -> None:
    live = Live()
    job = Job(live.chunk, 20, chunk=1, memory=EVERYTHING)
    threads = [threading.Thread(target=run_multithreaded_sync, args=(job,)) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(PATIENCE)
    assert live.most == 1
    assert len(live.done) == 60


async def test_a_job_that_waits_for_memory_holds_no_other_job_up() -> None:
    gate = Gate()
    async with Coordinator() as coordinator:
        holder = coordinator.submit(Job(gate.chunk, 1, memory=EVERYTHING))
        await gate.entered()
        waits = coordinator.submit(Job(gate.chunk, 3, chunk=1, memory=LITTLE + EVERYTHING))
        await run_multithreaded(Job(lambda start, stop: None, 100, chunk=1))
        assert waits.progress().threads == 0
        gate.open()
        await waits
        await holder


async def test_none_that_wants_less_goes_before_one_that_waits_for_room() -> None:
    gate = Gate()
    order: list[str] = []
    async with Coordinator() as coordinator:
        coordinator.submit(Job(gate.chunk, 1, memory=LITTLE))
        await gate.entered()
        big = Job(lambda start, stop: order.append("big"), 1, memory=EVERYTHING)
        small = Job(lambda start, stop: order.append("small"), 1, memory=LITTLE)
        first = coordinator.submit(big)
        await eventually(lambda: current_pool().state.scheduler.first_of_memory() is not None)
        second = coordinator.submit(small)
        await run_multithreaded(Job(lambda start, stop: None, 100, chunk=1))
        assert order == []
        gate.open()
        await first
        await second
    assert order == ["big", "small"]


async def test_why_a_job_waits_is_told() -> None:
    gate = Gate()
    async with Coordinator() as coordinator:
        coordinator.submit(Job(gate.chunk, 1, memory=EVERYTHING))
        await gate.entered()
        waits = coordinator.submit(Job(gate.chunk, 1, memory=3 << 30, name="waits"))
        scheduler = current_pool().state.scheduler
        await eventually(lambda: scheduler.first_of_memory() is not None)
        behind = coordinator.submit(Job(gate.chunk, 1, memory=LITTLE, name="behind"))
        told = {}
        with anyio.fail_after(PATIENCE):
            while not told.get("behind", "").startswith("memory"):
                await anyio.sleep(LOOK_SECONDS)
                told = {job.name: job.waits_for for job in coordinator.snapshot().jobs}
        assert told["waits"].startswith("memory: 0 bytes left")
        assert told["waits"].endswith("3 GiB a chunk")
        assert told["behind"].startswith("memory: 0 bytes left")
        gate.open()
        await waits
        await behind
        assert scheduler.first_of_memory() is None


async def test_a_job_that_waits_for_memory_is_cancelled_at_once() -> None:
    gate = Gate()
    async with Coordinator() as coordinator:
        coordinator.submit(Job(gate.chunk, 1, memory=EVERYTHING))
        await gate.entered()
        waits = coordinator.submit(Job(gate.chunk, 9, memory=EVERYTHING))
        assert waits.cancel()
        with pytest.raises(JobCancelled) as caught:
            await waits
        assert failure(caught.value).remaining == (range(9),)
        gate.open()


async def test_an_undo_is_not_bounded_by_the_memory_of_chunks() -> None:
    barrier = threading.Barrier(2, timeout=PATIENCE)

    def fail_at_last(start: int, stop: int) -> None:
        if start == 39:
            raise OSError("planted")

    def undo(start: int, stop: int) -> None:
        if start in (0, 38):  # two pieces that are undone at once, or never
            barrier.wait()

    job = Job(fail_at_last, 40, chunk=1, memory=EVERYTHING, undo=undo)
    with pytest.raises(OSError, match="planted") as caught:
        await run_multithreaded(job)
    assert failure(caught.value).undone == (range(39),)


async def test_chunks_that_hold_memory_and_wait_for_jobs_that_want_some_do_not_wait_for_ever() -> (
    None
):
    inner, outer = Live(), Live()

    def nest(start: int, stop: int) -> None:
        run_multithreaded_sync(Job(inner.chunk, 3, chunk=1, memory=EVERYTHING))
        outer.chunk(start, stop)

    await run_multithreaded(Job(nest, 4, chunk=1, memory=LITTLE, learn="nothing"))
    assert inner.most == 1
    assert len(inner.done) == 12


async def test_chunks_without_memory_do_not_make_room_for_those_that_they_nest() -> None:
    inner = Live()

    def nest(start: int, stop: int) -> None:
        run_multithreaded_sync(Job(inner.chunk, 3, chunk=1, memory=EVERYTHING))

    await run_multithreaded(Job(nest, 4, chunk=1, learn="nothing"))
    assert inner.most == 1
    assert len(inner.done) == 12


async def test_a_chunk_whose_nested_job_declares_nothing_makes_no_room_while_it_waits() -> None:
    live = Live()

    def nest(start: int, stop: int) -> None:
        with live.lock:
            live.now += 1
            live.most = max(live.most, live.now)
        run_multithreaded_sync(Job(lambda start, stop: None, 50, chunk=1))
        with live.lock:
            live.now -= 1

    await run_multithreaded(Job(nest, 10, chunk=1, memory=EVERYTHING))
    assert live.most == 1


async def test_nothing_is_read_for_jobs_that_declare_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[object] = []
    before = available_memory.try_read
    monkeypatch.setattr(
        available_memory, "try_read", lambda file: (read.append(file), before(file))[1]
    )
    await run_multithreaded(Job(lambda start, stop: None, 100, chunk=1))
    assert plan(Job(print, 100)).threads == 4
    assert read == []
    plan(Job(print, 100, memory=LITTLE))
    assert read


def test_a_plan_says_that_memory_decides() -> None:
    made = plan(Job(print, 100, chunk=1, memory=EVERYTHING))
    assert made.threads == 1
    assert made.limited_by.startswith("memory: ")
    assert made.limited_by.endswith("1024 PiB a chunk")
    assert "memory" not in plan(Job(print, 100, chunk=1, memory=LITTLE)).limited_by
