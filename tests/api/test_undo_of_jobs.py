# SPDX-License-Identifier: MIT
# Undo: every unit that any chunk completed, once each; never one that no chunk reached.

from __future__ import annotations

import asyncio
import threading

import anyio
import pytest

from aioktask import (
    Coordinator,
    Job,
    JobCancelled,
    UndoFailed,
    current_chunk,
    failure,
    run_multithreaded,
    run_multithreaded_sync,
)
from tests.support.gates import Gate, eventually, units

pytestmark = [pytest.mark.anyio, pytest.mark.max_threads(2)]


class Work:
    """Chunks that are written down, one of which fails after it did a part."""

    def __init__(
        self, fails_at: int, advance_by: int = 0, error: BaseException | None = None
    ) -> None:
        self.fails_at = fails_at
        self.advance_by = advance_by
        self.error = error or ValueError("planted")
        self.lock = threading.Lock()
        self.done: list[tuple[int, int]] = []
        self.undone: list[tuple[int, int]] = []

    def chunk(self, start: int, stop: int) -> None:
        if start <= self.fails_at < stop:
            current_chunk().advance(start)  # nothing yet
            current_chunk().advance(start + self.advance_by)
            with self.lock:
                self.done.append((start, start + self.advance_by))
            raise self.error
        with self.lock:
            self.done.append((start, stop))

    def undo(self, start: int, stop: int) -> None:
        with self.lock:
            self.undone.append((start, stop))

    async def undo_async(self, start: int, stop: int) -> None:
        await anyio.lowlevel.checkpoint()
        self.undo(start, stop)


@pytest.mark.parametrize("fails_at", [0, 41, 99])
@pytest.mark.parametrize("advance_by", [0, 3])
@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_what_was_done_is_undone_exactly(fails_at: int, advance_by: int, kind: str) -> None:
    work = Work(fails_at, advance_by)
    undo = work.undo if kind == "plain" else work.undo_async
    with pytest.raises(ValueError, match="planted") as caught:
        await run_multithreaded(Job(work.chunk, 100, chunk=10, undo=undo))
    assert units(work.undone) == units(work.done)
    told = failure(caught.value)
    assert [unit for each in told.undone for unit in each] == units(work.done)
    start = fails_at - fails_at % 10
    assert told.unknown == (range(start + advance_by, start + 10),)
    assert told.done == ()


async def test_undo_is_cut_at_multiples_of_a_fixed_chunk_only() -> None:
    work = Work(95, advance_by=2)
    with pytest.raises(ValueError, match="planted"):
        await run_multithreaded(Job(work.chunk, 97, start=3, chunk=10, undo=work.undo))
    ends = {end for piece in work.undone for end in piece}
    assert all(end % 10 == 0 for end in ends - {3, 92})


async def test_undo_is_cut_at_multiples_of_align_and_min_chunk_only() -> None:
    work = Work(999)
    job = Job(work.chunk, 1000, start=5, align=8, min_chunk=20, undo=work.undo)
    with pytest.raises(ValueError, match="planted"):
        await run_multithreaded(job)
    ends = {end for piece in work.undone for end in piece}
    assert all(end % 24 == 0 or end % 8 == 0 for end in ends - {5})
    inner = {a for a, _ in work.undone} & {b for _, b in work.undone}
    assert all(end % 24 == 0 for end in inner)


async def test_plain_undo_runs_on_helpers_several_at_a_time() -> None:
    barrier = threading.Barrier(2, timeout=60)
    threads: set[int] = set()

    def undo(start: int, stop: int) -> None:
        if len(threads) < 2:
            threads.add(threading.get_ident())
            barrier.wait()

    work = Work(999)
    with pytest.raises(ValueError, match="planted"):
        await run_multithreaded(Job(work.chunk, 1000, chunk=100, max_threads=2, undo=undo))
    assert len(threads) == 2
    assert threading.get_ident() not in threads


async def test_a_coroutine_undo_runs_on_the_loop_of_the_submit() -> None:
    threads: set[int] = set()
    concurrent = 0

    async def undo(start: int, stop: int) -> None:
        nonlocal concurrent
        concurrent += 1
        assert concurrent == 1
        threads.add(threading.get_ident())
        await anyio.lowlevel.checkpoint()
        concurrent -= 1

    work = Work(999)
    with pytest.raises(ValueError, match="planted"):
        await run_multithreaded(Job(work.chunk, 1000, chunk=10, undo=undo))
    assert threads == {threading.get_ident()}


def test_a_coroutine_undo_without_a_loop_is_refused() -> None:
    async def undo(start: int, stop: int) -> None:
        pytest.fail("called")

    job = Job(lambda a, b: pytest.fail("called"), 10, undo=undo)
    with pytest.raises(TypeError, match="none is: pass an ordinary function"):
        run_multithreaded_sync(job)
    with Coordinator() as coordinator, pytest.raises(TypeError, match="none is"):
        coordinator.submit(job)


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_an_undo_that_raises_stops_no_other_and_tells_what_is_left(kind: str) -> None:
    work = Work(999)

    def undo(start: int, stop: int) -> None:
        if start <= 300 < stop:
            raise OSError(5, "stuck")
        work.undo(start, stop)

    async def undo_async(start: int, stop: int) -> None:
        undo(start, stop)

    job = Job(
        work.chunk,
        1000,
        chunk=10,
        max_threads=1,  # so that all before the failing chunk is done
        undo=undo if kind == "plain" else undo_async,
    )
    with pytest.raises(UndoFailed) as caught:
        await run_multithreaded(job)
    failed = caught.value
    assert failed.__cause__ is work.error
    assert [type(each) for each in failed.exceptions] == [OSError]
    left = [unit for each in failed.ranges for unit in each]
    assert 300 in left
    assert sorted(left + units(work.undone)) == units(work.done)
    assert failure(failed).done == failed.ranges


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_an_undo_that_raises_system_exit_is_wrapped(kind: str) -> None:
    def undo(start: int, stop: int) -> None:
        raise SystemExit(7)

    async def undo_async(start: int, stop: int) -> None:
        undo(start, stop)

    work = Work(15)
    job = Job(work.chunk, 20, chunk=10, undo=undo if kind == "plain" else undo_async, max_threads=1)
    with pytest.raises(UndoFailed) as caught:
        await run_multithreaded(job)
    (wrapped,) = caught.value.exceptions
    assert isinstance(wrapped, RuntimeError)
    assert isinstance(wrapped.__cause__, SystemExit)
    await run_multithreaded(Job(lambda a, b: None, 4, chunk=1))  # no helper died of it


async def test_undo_runs_before_the_chunks_of_other_jobs() -> None:
    order: list[str] = []
    gate = Gate()

    def chunk(start: int, stop: int) -> None:
        gate.chunk(start, stop)
        if start == 1:
            raise ValueError("planted")

    async with Coordinator(max_threads=1) as coordinator:
        failing = coordinator.submit(
            Job(chunk, 10, chunk=1, undo=lambda a, b: order.append("undo"), nice=19)
        )
        await gate.entered()
        other = coordinator.submit(Job(lambda a, b: order.append("chunk"), 1, nice=-20))
        gate.open()
        with pytest.raises(ValueError, match="planted"):
            await failing
        await other
    assert "undo" in order


async def test_a_job_without_undo_keeps_what_is_done() -> None:
    work = Work(50)
    with pytest.raises(ValueError, match="planted") as caught:
        await run_multithreaded(Job(work.chunk, 100, chunk=10))
    told = failure(caught.value)
    assert [unit for each in told.done for unit in each] == units(work.done)
    assert told.undone == ()


async def test_leaving_a_coordinator_raises_an_undo_failure_that_nobody_saw() -> None:
    def undo(start: int, stop: int) -> None:
        raise OSError(5, "stuck")

    work = Work(5)
    with pytest.raises(UndoFailed):
        async with Coordinator() as coordinator:
            coordinator.submit(Job(work.chunk, 10, chunk=1, undo=undo, max_threads=1))


async def test_leaving_a_coordinator_does_not_raise_a_chunk_s_error() -> None:
    work = Work(5)
    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(work.chunk, 10, chunk=1, undo=work.undo))
    with pytest.raises(ValueError, match="planted"):
        await handle


async def test_undo_of_a_cancelled_handle_is_told_in_its_failure() -> None:
    gate = Gate()
    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 100, chunk=10, undo=gate.undo))
        await gate.entered(2)
        handle.cancel()
        gate.open()
        with pytest.raises(JobCancelled) as caught:
            await handle
    told = failure(caught.value)
    assert told.chunk is None
    assert [unit for each in told.undone for unit in each] == units(gate.done)


async def test_a_failure_in_a_nested_job_undoes_both_and_tells_both() -> None:
    inner, outer = Work(3), Work(-1)

    def nest(start: int, stop: int) -> None:
        if start == 2:
            run_multithreaded_sync(Job(inner.chunk, 6, chunk=1, undo=inner.undo, name="inner"))
        outer.chunk(start, stop)

    with pytest.raises(ValueError, match="planted") as caught:
        await run_multithreaded(Job(nest, 4, chunk=1, undo=outer.undo, name="outer"))
    assert units(inner.undone) == units(inner.done)
    assert units(outer.undone) == units(outer.done)
    told = failure(caught.value)
    assert told.job.name == "outer"
    assert told.inner is not None
    assert (told.inner.job.name, told.inner.chunk) == ("inner", range(3, 4))


@pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})],
    ids=["asyncio", "asyncio+uvloop"],
)
async def test_a_cancel_of_the_undo_s_own_task_costs_one_piece() -> None:
    """As asyncio.run does when it ends: it cancels every task, the undo's too."""
    began = asyncio.Event()
    undone: list[tuple[int, int]] = []

    async def undo(start: int, stop: int) -> None:
        if not began.is_set():
            began.set()
            await asyncio.sleep(3600)
        undone.append((start, stop))

    before = asyncio.all_tasks()
    work = Work(99)
    waiter = asyncio.create_task(run_multithreaded(Job(work.chunk, 100, chunk=10, undo=undo)))
    await began.wait()
    (undoing,) = asyncio.all_tasks() - before - {waiter}
    undoing.cancel()
    with pytest.raises(UndoFailed) as caught:
        await waiter
    left = [unit for each in caught.value.ranges for unit in each]
    assert left
    assert sorted(left + units(undone)) == units(work.done)


def test_an_undo_failure_whose_only_waiter_s_loop_is_gone_is_raised_by_leaving() -> None:
    gate = Gate()

    def fail(start: int, stop: int) -> None:
        if start:
            gate.chunk(start, stop)
            raise KeyError("planted")

    def undo(start: int, stop: int) -> None:
        raise OSError(5, "stuck")

    coordinator = Coordinator()
    handle = coordinator.submit(Job(fail, 2, chunk=1, max_threads=1, undo=undo))
    loop = asyncio.new_event_loop()

    async def wait() -> None:
        await handle

    waiting = loop.create_task(wait())
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.run_until_complete(asyncio.to_thread(gate.wait_entered))
    loop.run_until_complete(eventually(lambda: bool(handle._run.waiters)))  # by a turn
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    gate.open()
    with pytest.raises(UndoFailed):
        with coordinator:
            pass
    del waiting
