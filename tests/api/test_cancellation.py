# SPDX-License-Identifier: MIT
# Cancellation at every moment: the waiter comes back with all done, or with all undone. Never
# between.

from __future__ import annotations

import asyncio
import threading

import anyio
import pytest

from aioktask import (
    ChunkCancelled,
    Coordinator,
    Job,
    JobCancelled,
    UndoFailed,
    current_chunk,
    failure,
    run_multithreaded,
)
from aioktask.engine.loops import asyncio_loop
from tests.support.gates import Gate, eventually, turns_pass, units

pytestmark = pytest.mark.max_threads(2)

anywhere = pytest.mark.anyio
on_asyncio = pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})],
    ids=["asyncio", "asyncio+uvloop"],
)


class SlowUndo:
    """A coroutine undo that waits in the middle until the test lets it go on."""

    def __init__(self) -> None:
        self.began = anyio.Event()
        self.go_on = anyio.Event()
        self.undone: list[tuple[int, int]] = []

    async def undo(self, start: int, stop: int) -> None:
        self.began.set()
        await self.go_on.wait()
        self.undone.append((start, stop))


@anywhere
async def test_a_cancelled_waiter_waits_for_running_chunks_and_the_undo() -> None:
    gate = Gate()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_multithreaded, Job(gate.chunk, 100, chunk=10, undo=gate.undo))
            await gate.entered(2)
            scope.cancel()
            with anyio.CancelScope(shield=True):
                await turns_pass()
                assert gate.undone == []
                gate.open()
    assert scope.cancelled_caught
    assert len(gate.done) == 2
    assert units(gate.undone) == units(gate.done)


@anywhere
async def test_without_undo_a_cancel_ends_the_job_and_what_is_done_stays() -> None:
    gate = Gate()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_multithreaded, Job(gate.chunk, 100, chunk=10))
            await gate.entered(2)
            scope.cancel()
            await turns_pass()
            gate.open()
    assert scope.cancelled_caught
    assert len(gate.done) == 2


@anywhere
async def test_a_coroutine_undo_is_not_stopped_by_further_cancels() -> None:
    gate, slow = Gate(), SlowUndo()
    outer = anyio.CancelScope()
    with outer:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_multithreaded, Job(gate.chunk, 100, chunk=10, undo=slow.undo))
            await gate.entered(2)
            tasks.cancel_scope.cancel()
            await turns_pass()
            gate.open()
            with anyio.CancelScope(shield=True):
                await slow.began.wait()
                outer.cancel()
                await turns_pass()
                assert slow.undone == []
                slow.go_on.set()
    assert units(slow.undone) == units(gate.done)


@on_asyncio
@anywhere
async def test_native_cancels_are_counted_and_only_the_first_goes_on() -> None:
    gate, slow = Gate(), SlowUndo()
    task = asyncio.create_task(run_multithreaded(Job(gate.chunk, 100, chunk=10, undo=slow.undo)))
    await gate.entered(2)
    task.cancel("first")
    await asyncio.sleep(0)
    task.cancel("second")
    gate.open()
    await slow.began.wait()
    task.cancel("third")
    await asyncio.sleep(0)
    assert not task.done()
    slow.go_on.set()
    with pytest.raises(asyncio.CancelledError, match="first"):
        await task
    assert task.cancelling() == 3
    assert units(slow.undone) == units(gate.done)


@on_asyncio
@anywhere
async def test_a_timeout_becomes_a_timeout_error_after_the_undo() -> None:
    gate = Gate()

    async def limited() -> None:
        async with asyncio.timeout(None) as limit:
            job = asyncio.ensure_future(gate.entered(2))
            job.add_done_callback(lambda _: limit.reschedule(asyncio.get_running_loop().time()))
            job.add_done_callback(lambda _: asyncio.get_running_loop().call_later(0.01, gate.open))
            await run_multithreaded(Job(gate.chunk, 100, chunk=10, undo=gate.undo))

    with pytest.raises(TimeoutError):
        await limited()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert units(gate.undone) == units(gate.done)


@on_asyncio
@anywhere
async def test_a_failing_sibling_in_a_task_group_undoes_the_job() -> None:
    gate = Gate()

    async def sibling() -> None:
        await gate.entered(2)
        asyncio.get_running_loop().call_later(0.01, gate.open)
        raise ValueError("sibling")

    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - what is left by an exception is the subject
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run_multithreaded(Job(gate.chunk, 99, chunk=9, undo=gate.undo)))
            tasks.create_task(sibling())
    assert [str(each) for each in caught.value.exceptions] == ["sibling"]
    assert units(gate.undone) == units(gate.done)


@on_asyncio
@anywhere
async def test_a_cancel_just_after_the_last_chunk_undoes_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The wake-up has come, and the task is cancelled before it runs."""
    gate = Gate()
    gate.open()
    plain_set = asyncio_loop.AsyncioWaiter._set

    def set_and_cancel(waiter: asyncio_loop.AsyncioWaiter) -> None:
        plain_set(waiter)
        task.cancel()

    task = asyncio.create_task(run_multithreaded(Job(gate.chunk, 50, chunk=5, undo=gate.undo)))
    monkeypatch.setattr(asyncio_loop.AsyncioWaiter, "_set", set_and_cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert units(gate.done) == list(range(50))
    assert units(gate.undone) == list(range(50))


@on_asyncio
@anywhere
async def test_a_cancel_that_was_asked_before_the_call_starts_nothing() -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await run_multithreaded(Job(lambda a, b: pytest.fail("called"), 10))

    task = asyncio.create_task(main())
    with pytest.raises(asyncio.CancelledError):
        await task


@on_asyncio
@anywhere
async def test_cancels_at_any_turn_leave_all_done_or_all_undone() -> None:
    for turn in range(60):
        gate = Gate()
        gate.open()
        job = Job(gate.chunk, 40, chunk=2, undo=gate.undo)
        task = asyncio.create_task(run_multithreaded(job))
        for _ in range(turn):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            assert units(gate.undone) == units(gate.done)
        else:
            assert (units(gate.done), gate.undone) == (list(range(40)), [])


@anywhere
async def test_an_undo_that_fails_takes_the_place_of_the_cancellation() -> None:
    gate = Gate()

    def undo(start: int, stop: int) -> None:
        raise OSError(5, "cannot undo")

    kept: list[UndoFailed] = []

    async def wait() -> None:
        try:
            await run_multithreaded(Job(gate.chunk, 100, chunk=10, undo=undo))
        except UndoFailed as failed:
            kept.append(failed)

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await gate.entered(2)
            scope.cancel()
            await turns_pass()
            gate.open()
    (failed,) = kept
    assert isinstance(failed.__cause__, anyio.get_cancelled_exc_class())
    assert [unit for each in failed.ranges for unit in each] == units(gate.done)


@anywhere
async def test_check_cancelled_ends_a_chunk_early() -> None:
    entered = threading.Event()
    cancelled = threading.Event()
    ended: list[str] = []

    def chunk(start: int, stop: int) -> None:
        current_chunk().check_cancelled()
        entered.set()
        assert cancelled.wait(60)
        try:
            current_chunk().check_cancelled()
        except Exception:
            pytest.fail("ChunkCancelled must pass `except Exception`")
        finally:
            ended.append("early")

    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(chunk, 1))
        await eventually(entered.is_set)
        assert handle.cancel()
        cancelled.set()
        with pytest.raises(JobCancelled) as caught:
            await handle
    assert ended == ["early"]
    assert failure(caught.value).unknown == (range(1),)


@anywhere
async def test_a_chunk_that_swallows_its_cancellation_counts_as_done() -> None:
    gate = Gate()

    def chunk(start: int, stop: int) -> None:
        gate.chunk(start, stop)
        try:
            current_chunk().check_cancelled()
        except ChunkCancelled:
            return

    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(chunk, 10, chunk=10, undo=gate.undo))
        await gate.entered()
        handle.cancel()
        gate.open()
        with pytest.raises(JobCancelled) as caught:
            await handle
    assert gate.undone == [(0, 10)] or units(gate.undone) == list(range(10))
    assert failure(caught.value).undone == (range(10),)


@anywhere
async def test_another_chunk_s_failure_is_seen_by_check_cancelled() -> None:
    failed = threading.Event()

    def chunk(start: int, stop: int) -> None:
        if start == 0:
            both.wait()
            failed.set()
            raise ValueError("planted")
        both.wait()
        failed.wait(60)
        while True:  # until the failure is known
            current_chunk().check_cancelled()

    both = threading.Barrier(2, timeout=60)
    with pytest.raises(ValueError, match="planted") as caught:
        await run_multithreaded(Job(chunk, 2, chunk=1))
    assert failure(caught.value).errors == ()


@anywhere
async def test_cancel_of_a_handle_tells_whether_it_came_in_time() -> None:
    gate = Gate()
    async with Coordinator(max_threads=1) as coordinator:
        running = coordinator.submit(Job(gate.chunk, 10, chunk=1, undo=gate.undo))
        await gate.entered()
        waiting = coordinator.submit(Job(lambda a, b: pytest.fail("called"), 10))
        assert waiting.cancel()  # not started: nothing runs
        assert waiting.done()
        with pytest.raises(JobCancelled):
            await waiting
        assert running.cancel()
        assert running.cancel()  # any number of times
        gate.open()
        with pytest.raises(JobCancelled) as caught:
            await running
        assert running.cancel()
        assert units(gate.undone) == units(gate.done)
        assert [unit for each in failure(caught.value).undone for unit in each] == units(gate.done)
        done = coordinator.submit(Job(lambda a, b: None, 1))
        await done
        assert not done.cancel()


@anywhere
async def test_cancel_of_a_failing_job_comes_too_late() -> None:
    slow, gate = SlowUndo(), Gate()
    gate.open()

    def chunk(start: int, stop: int) -> None:
        gate.chunk(start, stop)
        if start == 5:
            raise ValueError("planted")

    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(chunk, 10, chunk=1, undo=slow.undo, max_threads=1))
        await slow.began.wait()
        assert not handle.cancel()
        slow.go_on.set()
        with pytest.raises(ValueError, match="planted"):
            await handle


@anywhere
async def test_cancelling_a_waiter_of_a_handle_detaches_it_only() -> None:
    gate = Gate()
    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 4, chunk=1))
        await gate.entered(2)
        with anyio.move_on_after(0) as scope:
            await handle
        assert scope.cancelled_caught
        gate.open()
        assert (await handle).chunks == 4


@anywhere
async def test_leaving_a_coordinator_by_an_exception_cancels_and_undoes() -> None:
    gate = Gate()
    with pytest.raises(KeyError):  # noqa: PT012 - what is left by an exception is the subject
        async with Coordinator() as coordinator:
            handle = coordinator.submit(Job(gate.chunk, 100, chunk=10, undo=gate.undo))
            await gate.entered(2)
            threading.Timer(0.05, gate.open).start()
            raise KeyError("leaving")
    assert handle.done()
    assert units(gate.undone) == units(gate.done)


@anywhere
async def test_cancelled_while_leaving_a_coordinator_undoes_its_jobs() -> None:
    gate = Gate()
    with anyio.CancelScope() as scope:
        async with Coordinator() as coordinator:
            handle = coordinator.submit(Job(gate.chunk, 100, chunk=10, undo=gate.undo))
            await gate.entered(2)
            scope.cancel()
            threading.Timer(0.05, gate.open).start()
    assert scope.cancelled_caught
    assert handle.done()
    assert units(gate.undone) == units(gate.done)


@anywhere
@on_asyncio
async def test_the_error_of_a_timeout_says_where_the_failure_stands() -> None:
    """It is asyncio's own; the cancellation that it was made of came out of the job."""
    loop, gate = asyncio.get_running_loop(), Gate()

    def expire() -> None:
        timeout.reschedule(loop.time() - 1)  # it comes with the next turn of the loop
        gate.open()

    def chunk(start: int, stop: int) -> None:
        loop.call_soon_threadsafe(expire)
        gate.chunk(start, stop)

    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(None) as timeout:
            await run_multithreaded(Job(chunk, 1, name="slow"))
    with pytest.raises(LookupError, match=r"TimeoutError was not raised by a job") as refused:
        failure(caught.value)
    assert str(refused.value).endswith(
        ", but the CancelledError behind it was: failure(error.__cause__) tells of that"
    )
    assert caught.value.__cause__ is not None
    assert failure(caught.value.__cause__).job.name == "slow"


@anywhere
async def test_the_awaiter_of_a_cancelled_coordinator_s_job_gets_job_cancelled() -> None:
    gate = Gate()
    coordinator = Coordinator()
    outcome: list[BaseException] = []

    async def wait() -> None:
        try:
            await run_multithreaded(
                Job(gate.chunk, 50, chunk=5, undo=gate.undo), coordinator=coordinator
            )
        except BaseException as error:
            outcome.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await gate.entered(2)
        tasks.start_soon(lambda: coordinator.shutdown(cancel=True))
        await turns_pass()
        gate.open()
    assert [type(each) for each in outcome] == [JobCancelled]
    assert units(gate.undone) == units(gate.done)
