# SPDX-License-Identifier: MIT
# A coordinator that is drained takes nothing more, and what runs goes on. A shutdown comes back
# when all is undone, or its time is up, with what is left; leaving after that waits for nothing.

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest

import aioktask
from aioktask import (
    Coordinator,
    Handle,
    Job,
    JobCancelled,
    UndoFailed,
    map_ordered,
    run_multithreaded,
    run_multithreaded_sync,
)
from aioktask.engine import events
from aioktask.engine.api import coordinator as coordinator_module
from aioktask.engine.api.process import current_pool
from aioktask.engine.events import Event, EventKind
from aioktask.engine.threads.pool import Pool
from tests.support.gates import Gate, eventually, units
from tests.support.harness import pool_at_rest

pytestmark = pytest.mark.max_threads(2)

everywhere = pytest.mark.anyio

SOON = 0.01
LATE = 600.0

CLOSED = "drained, left or shut down: it takes no more jobs"


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    yield
    pool_at_rest()
    assert len(current_pool().deadlines) == 0


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """What is told from now on."""
    told: list[Event] = []
    monkeypatch.setattr(events, "_listeners", [told.append])
    return told


def nothing(start: int, stop: int) -> None:
    pass


# Drained.


@everywhere
async def test_a_drained_coordinator_takes_nothing_more_and_what_runs_goes_on() -> None:
    gate = Gate()
    async with Coordinator() as coordinator:
        executor = coordinator.executor()
        assert coordinator.ready
        handle = coordinator.submit(Job(gate.chunk, 4, chunk=1))
        await gate.entered(2)
        coordinator.drain()
        coordinator.drain()  # as often as one likes
        assert not coordinator.ready
        assert not handle.done()
        for call in (
            lambda: coordinator.submit(Job(nothing, 1)),
            lambda: coordinator.submit(Job(nothing, 1), timeout=LATE),
            lambda: executor.submit(nothing, 0, 1),
            coordinator.executor,
        ):
            with pytest.raises(RuntimeError, match=CLOSED):
                call()
        with pytest.raises(RuntimeError, match=CLOSED):
            await run_multithreaded(Job(nothing, 1), coordinator=coordinator)
        with pytest.raises(RuntimeError, match=CLOSED):
            await coordinator.run(pow, 2, 3)
        with pytest.raises(RuntimeError, match=CLOSED):
            async with map_ordered(abs, [1], coordinator=coordinator):
                pass
        gate.open()
        report = await handle
    assert report.chunks == 4


def test_jobs_that_were_submitted_before_it_was_drained_are_done() -> None:
    gate = Gate()
    done: list[int] = []
    with Coordinator(1) as coordinator:
        coordinator.submit(Job(gate.chunk, 1))
        gate.wait_entered()
        coordinator.submit(Job(lambda a, b: done.append(a), 3, chunk=1))
        coordinator.drain()
        gate.open()
    assert sorted(done) == [0, 1, 2]


def test_chunks_of_a_drained_coordinator_still_submit_their_jobs() -> None:
    gate = Gate()
    values: list[object] = []
    with Coordinator() as coordinator:
        executor = coordinator.executor()

        def chunk(start: int, stop: int) -> None:
            gate.chunk(start, stop)
            run_multithreaded_sync(Job(lambda a, b: values.append(a), 2, chunk=1))
            coordinator.submit(Job(nothing, 2)).result()
            values.append(executor.submit(pow, 2, 3).result())

        handle = coordinator.submit(Job(chunk, 1))
        gate.wait_entered()
        coordinator.drain()
        gate.open()
        handle.result()
    assert sorted(values, key=str) == [0, 1, 8]


@everywhere
async def test_an_open_stream_of_a_drained_coordinator_goes_on() -> None:
    async with Coordinator() as coordinator:
        async with map_ordered(abs, range(-200, 0), window=4, coordinator=coordinator) as results:
            values = [await anext(results)]
            coordinator.drain()
            values += [value async for value in results]
    assert values == list(range(200, 0, -1))


@everywhere
async def test_a_drained_coordinator_is_left_as_any_other() -> None:
    gate = Gate()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - leaving is the subject
        async with Coordinator() as coordinator:
            handle = coordinator.submit(Job(gate.chunk, 8, chunk=1, undo=gate.undo))
            await gate.entered(2)
            coordinator.drain()
            gate.open()
            raise ZeroDivisionError
    with contextlib.suppress(JobCancelled):
        handle.result()
        return  # it was over by then
    assert units(gate.undone) == units(gate.done)


def test_one_that_was_left_is_not_ready() -> None:
    with Coordinator() as coordinator:
        assert coordinator.ready
    assert not coordinator.ready


# Shut down in a time.


@everywhere
async def test_a_shutdown_that_is_through_in_time_leaves_nothing() -> None:
    gate = Gate()
    async with Coordinator() as coordinator:
        coordinator.submit(Job(gate.chunk, 2, chunk=1))
        async with anyio.create_task_group() as tasks:
            left: list[object] = []

            async def shut_down() -> None:
                left.append(await coordinator.shutdown(timeout=LATE))

            tasks.start_soon(shut_down)
            await gate.entered(2)
            gate.open()
        assert left == [()]
        assert len(current_pool().deadlines) == 0
        assert await coordinator.shutdown() == ()  # and without a time


@everywhere
@pytest.mark.parametrize("cancel", [False, True])
async def test_a_shutdown_whose_time_is_up_says_what_is_left_and_leaving_does_not_wait(
    cancel: bool, heard: list[Event]
) -> None:
    gate = Gate()
    async with Coordinator() as coordinator:
        handle = coordinator.submit(
            Job(gate.chunk, 2, chunk=1, undo=gate.undo, name="long", labels={"request": "7"})
        )
        await gate.entered(2)
        for timeout in (SOON, 0):  # as often as one likes
            left = await coordinator.shutdown(cancel=cancel, timeout=timeout)
            assert [each.name for each in left] == ["long"]
            assert left[0].labels == {"request": "7"}
            assert left[0].phase == ("stopping" if cancel else "running")
        assert not coordinator.ready
    assert not handle.done()  # and the coordinator has been left
    await eventually(lambda: EventKind.LEFT_BEHIND in [each.kind for each in heard])
    told = next(each for each in heard if each.kind is EventKind.LEFT_BEHIND)
    assert told.details == {"jobs": ("long",), "count": 1}
    gate.open()
    if cancel:
        with pytest.raises(JobCancelled):
            await handle
        assert units(gate.undone) == units(gate.done) == [0, 1]
    else:
        assert (await handle).chunks == 2


@everywhere
async def test_leaving_by_an_exception_after_that_cancels_and_does_not_wait() -> None:
    gate = Gate()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - leaving is the subject
        async with Coordinator() as coordinator:
            handle = coordinator.submit(Job(gate.chunk, 2, chunk=1, undo=gate.undo))
            await gate.entered(2)
            await coordinator.shutdown(timeout=SOON)
            raise ZeroDivisionError
    assert not handle.done()
    gate.open()
    with pytest.raises(JobCancelled):
        await handle
    assert units(gate.undone) == [0, 1]


@everywhere
async def test_what_ended_before_it_was_left_is_not_left_behind(heard: list[Event]) -> None:
    gate = Gate()
    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 2, chunk=1))
        await gate.entered(2)
        assert await coordinator.shutdown(timeout=SOON)
        gate.open()
        await handle
    pool_at_rest()
    assert EventKind.LEFT_BEHIND not in [each.kind for each in heard]


@everywhere
async def test_a_later_shutdown_without_a_time_waits_and_then_nothing_is_left() -> None:
    gate = Gate()
    coordinator = Coordinator()
    coordinator.submit(Job(gate.chunk, 2, chunk=1))
    await gate.entered(2)
    assert await coordinator.shutdown(timeout=0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(coordinator.shutdown)
        await eventually(lambda: bool(coordinator.scope()[1].leavers))
        gate.open()
    assert await coordinator.shutdown(timeout=0) == ()
    assert not coordinator.scope()[1].given_up


@everywhere
async def test_of_two_shutdowns_at_once_each_has_its_own_time() -> None:
    gate = Gate()
    coordinator = Coordinator()
    handle = coordinator.submit(Job(gate.chunk, 2, chunk=1))
    await gate.entered(2)
    ends: list[tuple[str, int]] = []

    async def shut_down(name: str, timeout: float) -> None:
        ends.append((name, len(await coordinator.shutdown(timeout=timeout))))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(shut_down, "patient", LATE)
        tasks.start_soon(shut_down, "hasty", SOON)
        await eventually(lambda: bool(ends))
        assert not handle.done()
        gate.open()
    assert ends == [("hasty", 1), ("patient", 0)]


@everywhere
async def test_a_shutdown_that_gives_up_lends_nothing_any_more() -> None:
    gate = Gate()
    coordinator = Coordinator()
    coordinator.submit(Job(gate.chunk, 2, chunk=1))
    await gate.entered(2)
    for _ in range(20):  # as often before a turn knows of it as after
        await coordinator.shutdown(timeout=0)
    _, group = coordinator.scope()
    assert group.leavers == []
    assert [run.left_by for run in group.runs] == [{}]
    gate.open()


@everywhere
@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_turn_hears_of_who_leaves_before_it_hears_that_the_time_is_up(
    cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who has given up would be counted as one that waits, until the last job ends."""
    told: list[str] = []

    def noting(name: str, does: Callable[..., object]) -> Callable[..., object]:
        def note(*args: Any, **options: Any) -> object:
            told.append(name)
            return does(*args, **options)

        return note

    for name in ("leave", "post_at"):
        monkeypatch.setattr(Pool, name, noting(name, getattr(Pool, name)))
    coordinator = Coordinator()
    with anyio.CancelScope() as scope:
        if cancelled:
            scope.cancel()
        await coordinator.shutdown(timeout=LATE)
    assert told == ["leave", "post_at"] * (1 + cancelled)


@everywhere
async def test_a_cancelled_shutdown_cancels_the_jobs_and_waits_no_longer_than_its_time() -> None:
    gate = Gate()
    coordinator = Coordinator()
    handle = coordinator.submit(Job(gate.chunk, 2, chunk=1, undo=gate.undo))
    await gate.entered(2)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await coordinator.shutdown(timeout=SOON)
    assert scope.cancelled_caught
    assert not handle.done()
    assert handle._run.cancel_asked
    assert [each.phase for each in await coordinator.shutdown(timeout=0)] == ["stopping"]
    gate.open()
    with pytest.raises(JobCancelled):
        await handle
    assert units(gate.undone) == [0, 1]


@everywhere
async def test_a_cancelled_shutdown_waits_for_the_undo_while_there_is_time() -> None:
    gate = Gate()
    coordinator = Coordinator()
    handle = coordinator.submit(Job(gate.chunk, 2, chunk=1, undo=gate.undo))
    await gate.entered(2)
    async with anyio.create_task_group() as tasks:

        async def shut_down() -> None:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await coordinator.shutdown(timeout=LATE)
            assert scope.cancelled_caught
            assert handle.done()

        scopes: list[anyio.CancelScope] = []
        tasks.start_soon(shut_down)
        await eventually(lambda: bool(coordinator.scope()[1].leavers))
        scopes[0].cancel()
        await eventually(lambda: handle._run.cancel_asked)
        gate.open()
    assert units(gate.undone) == units(gate.done) == [0, 1]
    assert len(current_pool().deadlines) == 0


# Failures of undo that nobody was told of.


def _fails_to_undo(coordinator: Coordinator) -> Handle[None]:
    def fail(start: int, stop: int) -> None:
        raise LookupError("planted")

    def undo(start: int, stop: int) -> None:
        raise OSError("planted")

    def chunk(start: int, stop: int) -> None:
        if start == 1:
            fail(start, stop)

    return coordinator.submit(Job(chunk, 2, chunk=1, undo=undo, max_threads=1))


@everywhere
@pytest.mark.parametrize("timeout", [0, LATE, None])
async def test_an_undo_that_failed_is_told_by_the_shutdown_whatever_its_time(
    timeout: float | None,
) -> None:
    coordinator = Coordinator()
    handle = _fails_to_undo(coordinator)
    await eventually(handle.done)
    with pytest.raises(UndoFailed):
        await coordinator.shutdown(timeout=timeout)
    assert await coordinator.shutdown(timeout=0) == ()


@everywhere
@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_undo_that_failed_as_the_time_was_up_is_told_all_the_same(
    cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last job ends between the turn that gives up and the task that it wakes."""
    gate = Gate()
    coordinator = Coordinator()

    def undo(start: int, stop: int) -> None:
        raise OSError("planted")

    def chunk(start: int, stop: int) -> None:
        if start == 1:
            gate.chunk(start, stop)
            raise LookupError("planted")

    handle = coordinator.submit(Job(chunk, 2, chunk=1, undo=undo, max_threads=1))
    await gate.entered()
    ended: list[bool] = []

    def end_it(group: Any, leaver: Any) -> bool:
        if not ended:
            assert not leaver.gone
            ended.append(True)
            gate.open()
            deadline = time.monotonic() + 60
            while group.runs:
                assert time.monotonic() < deadline
        return ask(group, leaver)

    ask = coordinator_module._ended_meanwhile
    monkeypatch.setattr(coordinator_module, "_ended_meanwhile", end_it)
    with anyio.CancelScope() as scope:
        if cancelled:
            scope.cancel()
        with pytest.raises(UndoFailed):
            await coordinator.shutdown(timeout=SOON)
    assert handle.done()
    assert not coordinator.scope()[1].given_up


@everywhere
async def test_an_undo_that_fails_after_the_time_is_told_as_the_coordinator_is_left() -> None:
    gate = Gate()
    coordinator = Coordinator()

    def undo(start: int, stop: int) -> None:
        raise OSError("planted")

    with pytest.raises(UndoFailed):  # noqa: PT012 - leaving is the subject
        async with coordinator:
            handle = coordinator.submit(Job(gate.chunk, 2, chunk=1, undo=undo))
            await gate.entered(2)
            assert await coordinator.shutdown(cancel=True, timeout=SOON)
            gate.open()
            await eventually(handle.done)


@everywhere
async def test_a_stream_whose_source_goes_on_is_left_by_a_shutdown() -> None:
    more = anyio.Event()

    async def source() -> AsyncIterator[int]:
        yield 0
        await more.wait()
        yield 1

    coordinator = Coordinator()
    async with map_ordered(abs, source(), coordinator=coordinator, name="open") as results:
        assert await anext(results) == 0
        left = await coordinator.shutdown(timeout=SOON)
        assert [(each.name, each.kind) for each in left] == [("open", "stream")]
        more.set()
        assert [value async for value in results] == [1]
    assert await coordinator.shutdown(timeout=LATE) == ()


def test_a_process_that_exits_is_not_ready() -> None:
    coordinator = Coordinator()
    state = current_pool().state
    state.closing = True
    try:
        assert not coordinator.ready
    finally:
        state.closing = False
    assert coordinator.ready
    assert aioktask.max_threads() == 2
