# SPDX-License-Identifier: MIT
# Programs that do what is allowed and seldom seen: each once hung a helper, lost work or broke a
# cap.

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
from collections.abc import Callable
from typing import Any, Never

import anyio
import pytest

import aioktask
from aioktask import (
    Coordinator,
    Handle,
    Job,
    JobCancelled,
    current_chunk,
    failure,
    map_ordered,
    map_ordered_sync,
    run_multithreaded,
    run_multithreaded_sync,
)
from tests.support.gates import Gate, turns_pass, units

pytestmark = [pytest.mark.anyio, pytest.mark.max_threads(1)]

on_asyncio = pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})],
    ids=["asyncio", "asyncio+uvloop"],
)


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int


class NoNotesError(Exception):
    __notes__ = ()


@pytest.mark.parametrize("error", [FrozenError(5), NoNotesError(5)])
async def test_exceptions_that_refuse_attributes_are_raised_as_they_are(error: Exception) -> None:
    def fail(start: int, stop: int) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await run_multithreaded(Job(fail, 3))
    assert caught.value is error
    assert failure(error).chunk is not None


class EmptyError(Exception):
    """Has a length, and so is false."""

    def __len__(self) -> int:
        return 0


class ClasslessError(Exception):
    @property
    def __class__(self) -> type:  # type: ignore[override]
        raise RuntimeError("it says of no class")

    def with_traceback(self, trace: object) -> Never:
        raise RuntimeError("it takes no traceback")


@pytest.mark.parametrize("kind", [EmptyError, ClasslessError])
@pytest.mark.parametrize(
    "options",
    [{}, {"undo": lambda start, stop: None}, {"chunk": 1}],
    ids=["alone", "undo", "chunk"],
)
def test_odd_exceptions_are_raised_as_they_are(
    kind: type[Exception], options: dict[str, Any]
) -> None:
    error = kind("planted")

    def fail(start: int, stop: int) -> None:
        raise error

    assert raised_by(lambda: run_multithreaded_sync(Job(fail, 3, **options))) is error
    with Coordinator() as coordinator:
        assert raised_by(coordinator.submit(Job(fail, 3, **options)).result) is error


def raised_by(call: Callable[[], object]) -> BaseException | None:
    """What the call raises, which pytest's own way to catch it would ask for its class."""
    try:
        call()
    except BaseException as error:
        return error
    return None


async def test_an_exception_that_is_false_is_none_the_less_raised() -> None:
    error = EmptyError("planted")

    def fail(item: int) -> None:
        raise error

    with pytest.raises(EmptyError):
        await run_multithreaded(Job(lambda start, stop: fail(start), 3))
    with pytest.raises(EmptyError):
        await aioktask.run(fail, 0)
    with pytest.raises(EmptyError):
        async with map_ordered(fail, range(3)) as results:
            await anext(results)
    with pytest.raises(EmptyError):
        await anyio.to_thread.run_sync(lambda: list_of(fail))


def list_of(fn: Callable[[int], object]) -> list[object]:
    with map_ordered_sync(fn, range(3)) as values:
        return list(values)


async def test_a_name_that_no_encoding_takes_is_no_obstacle() -> None:
    name = os.fsdecode(b"caf\xe9.dat")
    assert (await run_multithreaded(Job(lambda a, b: None, 3, name=name))).chunks > 0


async def test_a_chunk_that_raises_generator_exit_does_not_end_the_waiter_s_coroutine() -> None:
    def fail(start: int, stop: int) -> None:
        raise GeneratorExit

    with pytest.raises(RuntimeError, match="GeneratorExit"):
        await run_multithreaded(Job(fail, 1))


async def test_reduce_has_no_current_chunk() -> None:
    def add(a: int, b: int) -> int:
        with pytest.raises(RuntimeError, match="no current chunk"):
            current_chunk()
        return a + b

    assert (await run_multithreaded(Job(lambda a, b: 1, 4, chunk=1, reduce=add))).value == 4


@on_asyncio
async def test_a_task_factory_of_its_own_does_not_lose_the_undo() -> None:
    undone: list[tuple[int, int]] = []

    async def undo(start: int, stop: int) -> None:
        undone.append((start, stop))

    def fail(start: int, stop: int) -> None:
        if start == 3:
            raise OSError("planted")

    loop = asyncio.get_running_loop()
    loop.set_task_factory(lambda loop, coro: asyncio.Task(coro, loop=loop))  # type: ignore[arg-type]
    try:
        with pytest.raises(OSError, match="planted"):
            await run_multithreaded(Job(fail, 4, chunk=1, undo=undo))
    finally:
        loop.set_task_factory(None)
    assert units(undone) == [0, 1, 2]


async def test_a_loop_inside_a_chunk_may_leave_a_coordinator() -> None:
    done: list[tuple[int, int]] = []

    async def inner() -> None:
        async with Coordinator() as coordinator:
            coordinator.submit(Job(lambda a, b: done.append((a, b)), 4, chunk=1))

    await run_multithreaded(Job(lambda a, b: asyncio.run(inner()), 2, chunk=1))
    assert units(done) == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_a_thread_started_by_a_chunk_may_wait_on_its_behalf() -> None:
    done: list[tuple[int, int]] = []
    async with Coordinator() as coordinator:

        def chunk(start: int, stop: int) -> None:
            handle = coordinator.submit(Job(lambda a, b: done.append((a, b)), 4, chunk=1))
            asyncio.run(asyncio.to_thread(handle.result))  # type: ignore[arg-type]

        await run_multithreaded(Job(chunk, 2, chunk=1))
    assert len(done) == 8


async def test_no_job_outlives_its_coordinator() -> None:
    entered, leaving = threading.Event(), threading.Event()
    late: list[Handle[Any]] = []
    async with Coordinator() as coordinator:

        def chunk(start: int, stop: int) -> None:
            entered.set()
            assert leaving.wait(60)
            late.append(coordinator.submit(Job(lambda a, b: None, 50, chunk=1)))

        coordinator.submit(Job(chunk, 1))
        await anyio.to_thread.run_sync(entered.wait)
        threading.Timer(0.05, leaving.set).start()
    assert late[0].done()


async def test_a_nested_job_counts_in_the_coordinator_it_is_given_to() -> None:
    aioktask.set_max_threads(4)
    peaks: list[int] = []
    async with Coordinator(max_threads=1) as narrow:

        def chunk(start: int, stop: int) -> None:
            job = Job(lambda a, b: None, 3000, chunk=1)
            peaks.append(run_multithreaded_sync(job, coordinator=narrow).peak_threads)

        await run_multithreaded(Job(chunk, 1))
    assert peaks == [1]


async def test_work_that_an_undo_runs_is_not_cancelled() -> None:
    gate = Gate()
    undone: list[tuple[int, int]] = []

    def careful(start: int, stop: int) -> None:
        current_chunk().check_cancelled()
        undone.append((start, stop))

    def undo(start: int, stop: int) -> None:
        run_multithreaded_sync(Job(careful, stop - start, start=start, chunk=1))

    def fail(start: int, stop: int) -> None:
        if start == 3:
            gate.chunk(start, stop)
            raise OSError("planted")

    def outer(start: int, stop: int) -> None:
        with pytest.raises(OSError, match="planted"):
            run_multithreaded_sync(Job(fail, 4, chunk=1, undo=undo))

    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(outer, 1))
        await gate.entered()
        handle.cancel()
        gate.open()
        with pytest.raises(JobCancelled):
            await handle
    assert units(undone) == [0, 1, 2]


@on_asyncio
async def test_a_cancel_while_a_coordinator_is_left_by_an_exception_is_not_lost() -> None:
    gate = Gate()

    async def main() -> None:
        async with Coordinator() as coordinator:
            coordinator.submit(Job(gate.chunk, 1))
            await gate.entered()
            leaving.set()
            raise ValueError("planted")

    leaving = asyncio.Event()
    task = asyncio.create_task(main())
    await leaving.wait()
    await turns_pass()
    task.cancel()
    await turns_pass()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_what_a_job_holds_is_finalized_outside_the_lock() -> None:
    handles: list[Handle[Any]] = []
    seen: list[int] = []

    class Asks:
        def __call__(self, start: int, stop: int) -> None:
            pass

        def __del__(self) -> None:
            seen.append(handles[0].progress().size)  # takes the lock

    with Coordinator() as coordinator:
        handles.append(coordinator.submit(Job(lambda a, b: None, 7)))
        coordinator.submit(Job(Asks(), 1))
    assert seen == [7]


def test_a_machine_without_threads_ends_the_job_and_recovers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a fresh pool, since helpers that are there already would serve."""
    from aioktask.engine.api import process
    from aioktask.engine.machine.topology import read_topology
    from aioktask.engine.threads import helper as helper_module
    from aioktask.engine.threads import keeper as keeper_module
    from aioktask.engine.threads import pool as pool_module
    from aioktask.engine.tunables import Tunables

    def refuse(target: object, name: str) -> None:
        raise RuntimeError("can't start new thread")

    tunables = Tunables(max_threads=2, sources={"max_threads": "the test"})
    fresh = pool_module.Pool(read_topology(), tunables)
    monkeypatch.setitem(process._pools, "pool", fresh)
    with monkeypatch.context() as patch:
        for module in (keeper_module, helper_module):
            patch.setattr(module, "start_thread", refuse)
        coordinator = Coordinator()
        handle = coordinator.submit(Job(lambda a, b: None, 10))
        with pytest.raises(RuntimeError, match="can't start new thread") as caught:
            handle.result()
        assert "for want of a helper" in caught.value.__notes__[0]
        assert run_multithreaded_sync(Job(lambda a, b: None, 10, chunk=1)).chunks == 10
    assert coordinator.submit(Job(lambda a, b: None, 10, chunk=1)).result().chunks == 10
    fresh.close()
