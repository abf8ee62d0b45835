# SPDX-License-Identifier: MIT
# What cannot begin in time is refused or ended before it begins, what is not over in time is
# cancelled and undone, and whoever asked is told which: jobs, calls, futures; awaited, submitted,
# in threads and in chunks.

from __future__ import annotations

import asyncio
import atexit
import contextlib
import copy
import gc
import logging
import math
import pickle
import random
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import anyio
import numpy as np
import pytest

import aioktask
from aioktask import (
    Coordinator,
    Job,
    JobCancelled,
    Overloaded,
    UndoFailed,
    failure,
    run_multithreaded,
    run_multithreaded_sync,
)
from aioktask.engine import events
from aioktask.engine.api.control import cancel_job
from aioktask.engine.api.process import current_pool
from aioktask.engine.events import Event, EventKind
from aioktask.engine.state.run import Run
from aioktask.engine.threads.keeper import Keeper
from aioktask.engine.threads.pool import Pool
from aioktask.observe.events import level_of
from tests.support.gates import Gate, eventually, let_go_of, turns_pass, units, until
from tests.support.harness import pool_at_rest
from tests.support.patient import Endless

pytestmark = pytest.mark.max_threads(2)

everywhere = pytest.mark.anyio

SOON = 0.01  # seconds in which nothing here is over by itself
RUNNING = 0.25  # likewise, but in which a job begins that finds a helper, on a busy machine too
LATE = 600.0  # seconds in which all is over


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    yield
    pool = current_pool()
    pool_at_rest()
    deadline = time.monotonic() + 60
    while len(pool.deadlines) or len(pool.state.root.gate):
        assert time.monotonic() < deadline, (pool.deadlines._due, pool.state.root.gate)
        pool.wake()


@contextlib.contextmanager
def all_threads_busy(coordinator: Coordinator | None = None) -> Iterator[Gate]:
    """Both helpers are in chunks, until the block is left or the gate is opened."""
    gate = Gate()
    (coordinator or Coordinator()).submit(Job(gate.chunk, 2, chunk=1, name="busy"))
    gate.wait_entered(2)
    try:
        yield gate
    finally:
        gate.open()


def nothing(start: int, stop: int) -> None:
    pass


# Past its time while it runs.


def test_a_job_that_is_cancelled_before_it_began_leaves_its_place_at_once() -> None:
    with Coordinator(2, max_queued=0) as coordinator, all_threads_busy(coordinator) as gate:
        for _ in range(20):
            waits = coordinator.submit(Job(lambda start, stop: None, 1))
            assert waits.cancel()
        last = coordinator.submit(Job(lambda start, stop: None, 1))
        with pytest.raises(Overloaded):
            coordinator.submit(Job(lambda start, stop: None, 1))
        gate.open()
        last.result()


@everywhere
async def test_an_awaited_job_past_its_time_is_undone_and_raises() -> None:
    endless = Endless(3)
    job = Job(endless.chunk, 10, chunk=1, undo=endless.undo, name="slow")
    with pytest.raises(TimeoutError, match=r"the job 'slow' was not over after 0\.25 s") as caught:
        await run_multithreaded(job, timeout=RUNNING)
    assert units(endless.undone) == units(endless.done)
    told = failure(caught.value)
    assert told.job is job
    assert told.done == ()
    assert units([(each.start, each.stop) for each in told.undone]) == units(endless.undone)


@everywhere
async def test_a_submitted_job_past_its_time_is_undone_and_every_waiter_is_told() -> None:
    endless = Endless()
    job = Job(endless.chunk, 4, chunk=1, undo=endless.undo)
    told: list[BaseException] = []
    async with Coordinator() as coordinator:
        handle = coordinator.submit(job, timeout=RUNNING)

        async def wait() -> None:
            with pytest.raises(TimeoutError) as caught:
                await handle
            told.append(caught.value)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            tasks.start_soon(wait)
    assert handle.done()
    with pytest.raises(TimeoutError):
        handle.result()
    assert told[0] is not told[1]  # each has a traceback of its own
    assert not handle.cancel() or handle.done()


def test_the_sync_form_past_its_time_is_undone_and_raises() -> None:
    endless = Endless(3)
    job = Job(endless.chunk, 10, chunk=1, undo=endless.undo)
    with pytest.raises(TimeoutError, match="was not over"):
        run_multithreaded_sync(job, timeout=RUNNING)
    assert units(endless.undone) == units(endless.done)


def test_the_sync_form_keeps_its_time_on_the_calling_thread_alone() -> None:
    endless = Endless()
    with pytest.raises(TimeoutError):
        run_multithreaded_sync(Job(endless.chunk, 4, chunk=1, max_threads=1), timeout=SOON)


@everywhere
async def test_a_call_that_returns_too_late_raises_and_its_value_is_dropped() -> None:
    gate = Gate()
    raised: list[BaseException] = []

    async def call() -> None:
        with pytest.raises(TimeoutError) as caught:
            await aioktask.run(gate.chunk, 0, 1, timeout=RUNNING, name="late")
        raised.append(caught.value)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await gate.entered()
        await eventually(lambda: _unwanted("late"))
        assert not raised  # it waits for the function all the same
        gate.open()
    assert raised


def _unwanted(name: str) -> bool:
    """Whether the run of this name has been cancelled."""
    return any(run.name == name and run.cancelled for run in list(current_pool().state.runs))


@everywhere
async def test_a_call_that_raises_too_late_is_told_of_the_time() -> None:
    endless = Endless()

    def fail() -> None:
        with contextlib.suppress(aioktask.ChunkCancelled):
            endless.chunk(0, 1)
        raise LookupError("too late")

    with pytest.raises(TimeoutError) as caught:
        await aioktask.run(fail, timeout=RUNNING)
    assert [type(each) for each in failure(caught.value).errors] == [LookupError]


@everywhere
async def test_an_undo_that_fails_after_the_time_has_that_as_its_cause() -> None:
    endless = Endless(2)

    def undo(start: int, stop: int) -> None:
        raise OSError("planted")

    job = Job(endless.chunk, 4, chunk=1, undo=undo)
    with pytest.raises(UndoFailed) as caught:
        await run_multithreaded(job, timeout=RUNNING)
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert units([(each.start, each.stop) for each in caught.value.ranges]) == units(endless.done)


@everywhere
async def test_undo_has_all_the_time_it_needs() -> None:
    endless, gate = Endless(2), Gate()

    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            job = Job(endless.chunk, 4, chunk=1, undo=gate.chunk)
            with pytest.raises(TimeoutError):
                await run_multithreaded(job, timeout=RUNNING)

        tasks.start_soon(run)
        await gate.entered()
        await turns_pass()
        gate.open()
    assert units(gate.done) == units(endless.done)


@everywhere
async def test_what_is_done_in_time_stays_done_whenever_its_owner_comes() -> None:
    """The loop is held up, so that the result is taken after the time."""
    gate = Gate()

    async def run() -> None:
        report = await run_multithreaded(Job(gate.chunk, 1, undo=gate.undo), timeout=0.2)
        assert report.chunks == 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await gate.entered()
        gate.open()
        pool = current_pool()
        deadline = time.monotonic() + 60
        while len(pool.deadlines):  # until it was looked at, in a turn
            assert time.monotonic() < deadline
            pool.wake()
    assert gate.done
    assert not gate.undone


@everywhere
async def test_the_owner_s_cancel_goes_before_a_time_that_has_passed() -> None:
    endless = Endless()
    with anyio.move_on_after(0) as scope:
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:

                async def run() -> None:
                    with anyio.CancelScope() as inner:
                        tasks.start_soon(_cancel_when, endless.began, inner)
                        await run_multithreaded(Job(endless.chunk, 2, chunk=1), timeout=LATE)
                    assert inner.cancelled_caught

                tasks.start_soon(run)
    assert not scope.cancelled_caught


async def _cancel_when(event: threading.Event, scope: anyio.CancelScope) -> None:
    await eventually(event.is_set)
    scope.cancel()


# Not begun in time.


@everywhere
async def test_what_has_not_begun_in_time_never_begins() -> None:
    begun: list[str] = []
    with all_threads_busy():
        async with Coordinator() as coordinator:
            with pytest.raises(Overloaded, match="the job 'late' had not begun after") as caught:
                await run_multithreaded(
                    Job(lambda a, b: begun.append("awaited"), 4, name="late"), timeout=SOON
                )
            assert caught.value.retry_after >= SOON
            assert failure(caught.value).job.name == "late"
            handle = coordinator.submit(Job(lambda a, b: begun.append("s"), 4), timeout=SOON)
            with pytest.raises(Overloaded):
                await handle
            with pytest.raises(Overloaded):
                await aioktask.run(begun.append, "called", timeout=SOON)
    assert not begun


@pytest.mark.parametrize("form", ["a thread", "a loop"])
def test_a_timeout_of_nothing_is_refused_at_once_and_always(form: str) -> None:
    begun: list[object] = []
    job = Job(lambda a, b: begun.append(a), 4, name="hurry")
    for timeout in (0, 0.0, 1e-12):
        call = (
            partial(run_multithreaded_sync, job, timeout=timeout)
            if form == "a thread"
            else partial(anyio.run, _awaiting, job, timeout)
        )
        with pytest.raises(
            Overloaded, match=f"it has no time left to begin, with a timeout of {timeout:g} s"
        ):
            call()
    with Coordinator() as coordinator, pytest.raises(Overloaded):
        coordinator.submit(job, timeout=0)
    assert not begun


async def _awaiting(job: Job[Any], timeout: float) -> None:
    await run_multithreaded(job, timeout=timeout)


@everywhere
async def test_a_coordinator_bounds_how_long_its_jobs_wait_to_begin() -> None:
    with all_threads_busy():
        async with Coordinator(max_wait=SOON) as coordinator:
            with pytest.raises(Overloaded, match="had not begun after"):
                await run_multithreaded(Job(nothing, 4), coordinator=coordinator)
            future = coordinator.executor().submit(pow, 2, 3)
            await eventually(future.done)
            assert isinstance(future.exception(), Overloaded)
    async with Coordinator(max_wait=LATE) as coordinator:
        endless = Endless()
        handle = coordinator.submit(Job(endless.chunk, 2, chunk=1))
        await eventually(endless.began.is_set)
        assert len(current_pool().deadlines) == 0  # what has begun is not looked at any more
        handle.cancel()


def test_a_future_that_waited_too_long_has_the_exception_and_its_callbacks_are_called() -> None:
    told: list[Future[Any]] = []
    with all_threads_busy(), Coordinator(max_wait=SOON) as coordinator:
        future = coordinator.executor().submit(pow, 2, 3)
        future.add_done_callback(told.append)
        error = future.exception(20)
        assert isinstance(error, Overloaded)
        assert not future.cancelled()
        until(lambda: told == [future])  # who waits for it may be told first


@everywhere
async def test_the_shorter_one_of_two_times_holds_and_then_the_other() -> None:
    """Begun before `max_wait` is over, and past its own time later."""
    endless = Endless()
    async with Coordinator(max_wait=0.5 * SOON) as coordinator:
        with pytest.raises((TimeoutError, Overloaded)) as caught:
            await run_multithreaded(
                Job(endless.chunk, 2, chunk=1), coordinator=coordinator, timeout=SOON
            )
    assert endless.began.is_set() == isinstance(caught.value, TimeoutError)


# Too many.


@everywhere
async def test_what_is_too_much_is_refused_by_the_call_itself_and_there_is_room_later() -> None:
    async with Coordinator(max_queued=1) as coordinator:
        executor = coordinator.executor()
        with all_threads_busy(coordinator):
            held = Gate()
            handles = [coordinator.submit(Job(held.chunk, 1, name="held")) for _ in range(2)]
            refused: list[Callable[[], object]] = [
                lambda: coordinator.submit(Job(nothing, 1, name="more")),
                lambda: executor.submit(nothing, 0, 1),
                lambda: list(executor.map(nothing, [0], [1])),
            ]
            for call in refused:
                with pytest.raises(Overloaded, match="1 job of its coordinator waits, and at most"):
                    call()
            with pytest.raises(Overloaded) as caught:
                await run_multithreaded(Job(nothing, 1), coordinator=coordinator)
            assert caught.value.queued == 1
            assert caught.value.retry_after == 1.0  # nothing is known of how fast jobs end
            with pytest.raises(Overloaded):
                await coordinator.run(pow, 2, 3)
            with pytest.raises(Overloaded):
                await anyio.to_thread.run_sync(
                    lambda: run_multithreaded_sync(Job(nothing, 1), coordinator=coordinator)
                )
            with pytest.raises(Overloaded):
                async with aioktask.map_ordered(abs, [1], coordinator=coordinator):
                    pass
        held.open()
        for handle in handles:
            await handle
        assert await coordinator.run(pow, 2, 3) == 8  # and there is room again


@everywhere
async def test_an_open_stream_takes_a_place_only_while_it_has_an_item() -> None:
    """As where many clients keep a connection open, and seldom send anything."""
    gate = Gate()

    def at_gate(item: int) -> int:
        gate.chunk(item, item + 1)
        return item

    async with Coordinator(max_threads=1, max_queued=0) as coordinator:
        counted = coordinator.scope()[1].gate
        async with contextlib.AsyncExitStack() as stack:
            streams = []
            for _ in range(5):
                send, receive = anyio.create_memory_object_stream[int](4)
                stack.enter_context(send)
                scope = aioktask.map_ordered(at_gate, receive, coordinator=coordinator)
                results = await stack.enter_async_context(scope)
                streams.append((send, results))
                await eventually(lambda: len(counted) == 0)
            assert await coordinator.run(pow, 2, 3) == 8
            send, results = streams[0]
            async with anyio.create_task_group() as tasks:
                got: list[int] = []

                async def take() -> None:
                    got.append(await anext(aiter(results)))

                tasks.start_soon(take)
                await send.send(7)
                await eventually(lambda: len(counted) == 1)
                with pytest.raises(Overloaded):
                    coordinator.submit(Job(nothing, 1))
                gate.open()
            assert got == [7]
            await eventually(lambda: len(counted) == 0)
            assert await coordinator.run(pow, 2, 3) == 8
        assert not counted._resting


@everywhere
async def test_the_process_bounds_jobs_without_a_coordinator_together() -> None:
    aioktask.configure(max_queued=0)
    try:
        with all_threads_busy() as gate:
            async with anyio.create_task_group() as tasks:

                async def call() -> None:
                    await run_multithreaded(Job(gate.chunk, 1))

                tasks.start_soon(call)
                tasks.start_soon(call)
                await eventually(lambda: len(current_pool().state.root.gate) == 2)
                with pytest.raises(Overloaded):
                    await aioktask.run(nothing, 0, 1)
                gate.open()
    finally:
        aioktask.configure(max_queued=None)


def test_a_map_that_is_refused_half_way_cancels_what_it_had_submitted() -> None:
    begun: list[int] = []
    with Coordinator(max_queued=3) as coordinator:
        executor = coordinator.executor()
        with all_threads_busy(coordinator):
            with pytest.raises(Overloaded):
                executor.map(begun.append, range(10))
            executor.shutdown()
    assert not begun


def test_jobs_of_its_own_chunks_are_never_refused() -> None:
    """Else a chunk that was admitted would fail, which needs no free helper to go on."""
    values: list[object] = []
    with Coordinator(1, max_queued=0, max_wait=SOON) as coordinator:
        executor = coordinator.executor()

        def chunk(start: int, stop: int) -> None:
            inner = Job(lambda a, b: values.append(a), 3, chunk=1)
            run_multithreaded_sync(inner)
            coordinator.submit(inner).result()
            values.append(executor.submit(pow, 2, 3).result())
            values.extend(executor.map(abs, [-1, -2]))
            with aioktask.map_ordered_sync(abs, [-3]) as results:
                values.extend(results)

        coordinator.submit(Job(chunk, 1)).result()
    assert len(values) == 3 + 3 + 1 + 2 + 1


def test_a_nested_job_waits_longer_than_the_coordinator_says() -> None:
    """Its one thread is busy at the chunk that submits it."""
    gate = Gate()
    with Coordinator(1, max_wait=SOON) as coordinator:

        def chunk(start: int, stop: int) -> None:
            handle = coordinator.submit(Job(nothing, 1))
            pool = current_pool()
            assert len(pool.deadlines) == 0
            gate.chunk(start, stop)
            assert not handle.done()

        handle = coordinator.submit(Job(chunk, 1))
        gate.wait_entered()
        gate.open()
        handle.result()


def test_a_nested_job_keeps_its_own_time_also_where_the_coordinator_was_drained() -> None:
    endless = Endless()
    raised: list[BaseException] = []
    with Coordinator() as coordinator:
        drained = threading.Event()

        def chunk(start: int, stop: int) -> None:
            assert drained.wait(60)
            for timeout in (RUNNING, 0):
                with pytest.raises((TimeoutError, Overloaded)) as caught:
                    run_multithreaded_sync(Job(endless.chunk, 2, chunk=1), timeout=timeout)
                raised.append(caught.value)

        handle = coordinator.submit(Job(chunk, 1))
        coordinator.drain()
        drained.set()
        handle.result()
    assert [type(each) for each in raised] == [TimeoutError, Overloaded]


def test_chunks_of_a_job_past_its_time_are_told_through_what_they_wait_for() -> None:
    endless = Endless()

    def chunk(start: int, stop: int) -> None:
        run_multithreaded_sync(Job(endless.chunk, 2, chunk=1))

    with pytest.raises(TimeoutError):
        run_multithreaded_sync(Job(chunk, 1), timeout=RUNNING)


# What a refusal leaves behind: nothing.


class _Function:
    def __call__(self, start: int, stop: int) -> None:
        pass

    def of_item(self, item: int) -> None:
        pass


Refused = Callable[[Coordinator, _Function, "float | None"], object]


def _submitted(coordinator: Coordinator, fn: _Function, timeout: float | None) -> object:
    return coordinator.submit(Job(fn, 10), timeout=timeout)


def _given_to_an_executor(coordinator: Coordinator, fn: _Function, timeout: float | None) -> object:
    return coordinator.executor().submit(fn, 0, 1)


def _run_here(coordinator: Coordinator, fn: _Function, timeout: float | None) -> object:
    return run_multithreaded_sync(Job(fn, 10), coordinator=coordinator, timeout=timeout)


def _streamed(coordinator: Coordinator, fn: _Function, timeout: float | None) -> None:
    with aioktask.map_ordered_sync(fn.of_item, [1], coordinator=coordinator, timeout=timeout):
        pass


def _awaited(coordinator: Coordinator, fn: _Function, timeout: float | None) -> None:
    _stepped(run_multithreaded(Job(fn, 10), coordinator=coordinator, timeout=timeout))


def _called(coordinator: Coordinator, fn: _Function, timeout: float | None) -> None:
    _stepped(coordinator.run(fn, 0, 1, timeout=timeout))


def _stepped(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run it where the exception leads to no task, which would lead to the exception."""

    async def main() -> bool:
        with contextlib.suppress(Overloaded):
            await coroutine
            return False
        return True

    if LOOP.run_until_complete(main()):
        raise Overloaded("", 0, 0)


LOOP = asyncio.new_event_loop()
atexit.register(LOOP.close)


@pytest.mark.parametrize(
    ("refused", "timeout"),
    [
        *((each, None) for each in (_submitted, _given_to_an_executor, _run_here, _streamed)),
        *((each, None) for each in (_awaited, _called)),
        *((each, 0) for each in (_submitted, _run_here, _streamed, _awaited, _called)),
    ],
)
def test_a_refused_job_leaves_nothing_behind(refused: Refused, timeout: float | None) -> None:
    with Coordinator(max_queued=0) as coordinator, all_threads_busy(coordinator):
        pool, group = coordinator.scope()
        held = Gate()
        coordinator.submit(Job(held.chunk, 1))  # for the one thread more
        function = _Function()
        watch = weakref.ref(function)
        before = len(group.gate), list(pool.state.past)
        gc.collect()
        gc.disable()
        try:
            with contextlib.suppress(Overloaded):
                refused(coordinator, function, timeout)
                pytest.fail("it was not refused")
            del function
            pool.wake()  # what was posted of it, if anything, is let go of
            if refused is _streamed:
                assert let_go_of(watch)  # a stream is a cycle, refused or not
            else:
                until(lambda: watch() is None)
        finally:
            gc.enable()
            held.open()
        assert (len(group.gate), list(pool.state.past)) == before
        assert len(pool.deadlines) == 0


def test_a_call_that_is_struck_before_anybody_knows_its_job_is_not_counted_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A handler raises as the job is counted, and another one as it is to be cancelled."""

    def strike(pool: Pool, *arguments: object) -> None:
        raise ZeroDivisionError

    with Coordinator(max_queued=0) as coordinator:
        _, group = coordinator.scope()
        with monkeypatch.context() as patch:
            patch.setattr(Pool, "post_at", strike)
            patch.setattr(Pool, "cancel", strike)
            with pytest.raises(ZeroDivisionError):
                coordinator.submit(Job(nothing, 1), timeout=LATE)
        gc.collect()
        assert len(group.gate) == 0


@everywhere
async def test_a_time_far_away_costs_nothing_once_the_job_is_over() -> None:
    pool = current_pool()
    for _ in range(50):
        await aioktask.run(nothing, 0, 1, timeout=LATE)
    for _ in range(2000):
        await aioktask.run(nothing, 0, 1, timeout=LATE)
    assert len(pool.deadlines) == 0
    await eventually(lambda: len(pool.deadlines._heap) + len(pool.deadlines._new) <= 200)


# Races.


@everywhere
async def test_each_job_runs_whole_or_is_undone_or_never_begins_whenever_its_time_ends() -> None:
    """Times around those that a job takes to begin and to end, in the lane and out of it."""
    rng = random.Random(11)
    ends: dict[str, int] = {}
    for _ in range(300):
        done: list[int] = []
        undone: list[int] = []
        many = rng.random() < 0.3
        holds = rng.random() < 0.5
        job = Job(
            lambda a, b, done=done: done.extend(range(a, b)),
            8 if many else 1,
            chunk=1,
            undo=(lambda a, b, undone=undone: undone.extend(range(a, b))) if holds else None,
        )
        try:
            await run_multithreaded(job, timeout=rng.choice([1e-6, 2e-5, 1e-4, 3e-4, 1e-3]))
        except Overloaded:
            end = "overloaded"
            assert not done
        except TimeoutError:
            end = "timed out"
            assert sorted(done) == sorted(undone) or not holds
        else:
            end = "done"
            assert sorted(done) == list(range(job.size))
            assert not undone
        ends[end] = ends.get(end, 0) + 1
        assert len(current_pool().state.runs) <= 1
    # Free-threaded, no job waits long enough to be refused where nothing else runs.
    assert "done" in ends, ends
    assert len(ends) > 1, ends


def test_a_handle_s_cancel_and_the_time_agree_on_one_end() -> None:
    rng = random.Random(7)
    with Coordinator() as coordinator:
        for _ in range(200):
            endless = Endless()
            handle = coordinator.submit(
                Job(endless.chunk, 2, chunk=1, undo=endless.undo),
                timeout=rng.choice([1e-5, 1e-4, 3e-4]),
            )
            spin = time.perf_counter() + rng.choice([0, 1e-4, 3e-4])
            while time.perf_counter() < spin:
                pass
            in_time = handle.cancel()
            with pytest.raises((JobCancelled, TimeoutError, Overloaded)) as caught:
                handle.result()
            if isinstance(caught.value, JobCancelled):
                assert in_time
            if isinstance(caught.value, Overloaded):
                assert not endless.began.is_set()
            with pytest.raises(type(caught.value)):  # all waiters are told the same
                handle.result()


def test_many_threads_with_times_leave_nothing_behind() -> None:
    rng = random.Random(3)
    plans = [[rng.choice([1e-5, 1e-4, 1e-3, LATE]) for _ in range(60)] for _ in range(4)]
    ends: list[str] = []

    def work(times: list[float]) -> None:
        for each in times:
            done: list[int] = []
            try:
                run_multithreaded_sync(
                    Job(lambda a, b, done=done: done.append(a), 3, chunk=1), timeout=each
                )
            except (Overloaded, TimeoutError) as error:
                ends.append(type(error).__name__)
            else:
                assert sorted(done) == [0, 1, 2]
                ends.append("done")

    threads = [threading.Thread(target=work, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == 240


# Whoever calls, and from where.


def test_a_signal_handler_may_submit_with_a_time_and_drain() -> None:
    done: list[int] = []
    with Coordinator(max_queued=100) as coordinator:

        def handler(number: int, frame: object) -> None:
            coordinator.submit(Job(lambda a, b: done.append(a), 1), timeout=LATE)
            with contextlib.suppress(Overloaded):
                coordinator.submit(Job(lambda a, b: done.append(a), 1), timeout=0)
            coordinator.drain()

        before = signal.signal(signal.SIGUSR1, handler)
        try:
            signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert not coordinator.ready
    assert done == [0]


class _Garbage:
    """What calls, when the collector ends it."""

    def __init__(self, ended: Callable[[], object]) -> None:
        self.me = self
        self.ended = ended

    def __del__(self) -> None:
        self.ended()


def test_a_finalizer_may_submit_with_a_time_and_drain() -> None:
    done: list[int] = []
    with Coordinator() as coordinator:

        def submit() -> None:
            coordinator.submit(Job(lambda a, b: done.append(a), 1), timeout=LATE)
            coordinator.drain()

        _Garbage(submit)
        gc.collect()
        assert not coordinator.ready
    assert done == [0]


def test_where_the_system_has_no_thread_for_the_keeper_the_job_runs_without_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(keeper: Keeper, due: int) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Keeper, "see_by", refuse)
    run_multithreaded_sync(Job(nothing, 4, chunk=1), timeout=LATE)


def test_a_deadline_is_kept_although_the_keeper_sleeps_for_long() -> None:
    """It is woken for a time before that at which it would look next."""
    endless = Endless()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        run_multithreaded_sync(Job(endless.chunk, 2, chunk=1), timeout=RUNNING)
    assert time.monotonic() - began < 20


# Wrong arguments.


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (-1, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (True, TypeError),
        ("1", TypeError),
        (1j, TypeError),
        (np.True_, TypeError),
    ],
)
def test_a_time_that_makes_no_sense_is_refused_before_any_work(
    value: Any, kind: type[Exception]
) -> None:
    begun: list[object] = []
    job = Job(lambda a, b: begun.append(a), 1)
    with Coordinator() as coordinator:
        over = coordinator.submit(Job(nothing, 1))
        for call in (
            lambda: over.result(value),
            lambda: anyio.run(partial(aioktask.run, begun.append, 1, timeout=value)),
            lambda: anyio.run(partial(coordinator.run, begun.append, 1, timeout=value)),
            lambda: aioktask.map_ordered_sync(begun.append, [1], timeout=value),
            lambda: run_multithreaded_sync(job, timeout=value),
            lambda: coordinator.submit(job, timeout=value),
            lambda: anyio.run(_awaiting, job, value),
            lambda: aioktask.map_ordered(abs, [1], timeout=value),
            lambda: anyio.run(_shutting_down, coordinator, value),
        ):
            with pytest.raises(kind, match="timeout must be"):
                call()
        for make in (aioktask.map_ordered, aioktask.map_ordered_sync):
            with pytest.raises(kind, match="max_delay must be"):
                make(begun.append, [1], max_delay=value)
        for name in ("max_wait", "stuck_after"):
            for say in (Coordinator, coordinator.configure, aioktask.configure):
                with pytest.raises(kind, match=f"{name} must be"):
                    say(**{name: value})
    assert not begun


async def _shutting_down(coordinator: Coordinator, timeout: float) -> None:
    await coordinator.shutdown(timeout=timeout)


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="max_wait must be above 0 seconds"):
        Coordinator(max_wait=0)
    with pytest.raises(ValueError, match="max_queued must be at least 0, got -1"):
        Coordinator(max_queued=-1)
    for value in (1.5, math.nan, True, "1", b"1", [1]):
        for say in (Coordinator, Coordinator().configure, aioktask.configure):
            with pytest.raises(TypeError, match="max_queued must be an integer, got "):
                say(max_queued=value)
    with pytest.raises(TypeError):
        Coordinator().configure(max_waits=1)


@pytest.mark.parametrize("value", [np.float32(600), np.int64(600), 600, 1e300, 10**400, 1e9])
def test_any_number_of_seconds_is_taken_however_long(value: Any) -> None:
    assert run_multithreaded_sync(Job(nothing, 4), timeout=value).chunks


# What is told.


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_an_event_says_that_the_time_was_over_loudly_where_nobody_else_hears(
    begun: bool, awaited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Event] = []
    monkeypatch.setattr(events, "_listeners", [told.append])
    endless = Endless()
    job = Job(endless.chunk, 1, name="late")
    with contextlib.nullcontext() if begun else all_threads_busy():
        if awaited:
            with pytest.raises((TimeoutError, Overloaded)):
                anyio.run(_awaiting, job, RUNNING if begun else SOON)
        else:
            handle = Coordinator().submit(job, timeout=RUNNING if begun else SOON)
            deadline = time.monotonic() + 60
            while not handle.done():
                assert time.monotonic() < deadline
    pool_at_rest()
    event = next(each for each in told if each.kind is EventKind.CANCELLED and each.job == "late")
    expected = "was not over after" if begun else "had not begun after"
    assert expected in str(event.details["expired"])
    assert level_of(event) == (logging.INFO if awaited else logging.WARNING)


def test_the_exception_can_be_copied_and_sent_between_processes() -> None:
    with all_threads_busy(), pytest.raises(Overloaded) as caught:
        run_multithreaded_sync(Job(nothing, 4), timeout=0)
    error = caught.value
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is Overloaded
        assert (str(other), other.queued, other.retry_after) == (
            str(error),
            error.queued,
            error.retry_after,
        )
    assert str(error).startswith(
        "the job 'nothing' was refused: it has no time left to begin, with"
    )


def test_the_exception_of_one_that_expired_can_be_sent_too() -> None:
    with all_threads_busy(), Coordinator() as coordinator:
        handle = coordinator.submit(Job(nothing, 4), timeout=SOON)
        with pytest.raises(Overloaded) as caught:
            handle.result()
    other = pickle.loads(pickle.dumps(caught.value))
    assert (str(other), other.queued) == (str(caught.value), caught.value.queued)


def test_a_cancel_after_the_time_had_passed_came_too_late() -> None:
    gate = Gate()
    with Coordinator(1) as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 2, chunk=1), timeout=SOON)
        gate.wait_entered()
        until(lambda: handle._run.expired)
        assert not handle.cancel()  # while its chunk runs to end
        gate.open()
        with pytest.raises(TimeoutError):
            handle.result()
        assert not handle.cancel()
        assert not cancel_job(handle._run.number)
        other = Gate()
        cancelled = coordinator.submit(Job(other.chunk, 1))
        other.wait_entered()
        assert cancelled.cancel()
        other.open()
        with pytest.raises(JobCancelled):
            cancelled.result()
        assert cancelled.cancel()  # as it did before


def test_when_to_come_again_follows_from_how_fast_jobs_end() -> None:
    with Coordinator(1, max_queued=8) as coordinator:
        turns = [Gate() for _ in range(9)]
        for gate in turns:
            coordinator.submit(Job(gate.chunk, 1))
        for gate in turns[:5]:
            gate.wait_entered()
            gate.open()
        turns[5].wait_entered()
        for gate in turns[:5]:
            coordinator.submit(Job(gate.chunk, 1))
        with pytest.raises(Overloaded) as caught:
            coordinator.submit(Job(nothing, 1))
        assert caught.value.queued == 8
        assert 0.001 <= caught.value.retry_after < 60
        for gate in turns:
            gate.open()


def test_a_run_without_terms_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What most jobs never use, they do not carry."""
    made: list[Run] = []
    submit = Pool.submit

    def note(pool: Pool, run: Run, **options: Any) -> None:
        made.append(run)
        submit(pool, run, **options)

    monkeypatch.setattr(Pool, "submit", note)
    run_multithreaded_sync(Job(nothing, 4))
    assert [run.terms for run in made] == [None]
    assert sys.getrefcount(made[0].group.gate) > 0
    assert len(made[0].group.gate) == 0
