# SPDX-License-Identifier: MIT
# The executor of a coordinator: what its docstring promises beside what the standard library's own
# tests ask for, and random programs against a model.

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import gc
import itertools
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, _base
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aioktask
from aioktask import (
    Coordinator,
    DeadlockError,
    Job,
    JobCancelled,
    current_chunk,
    run_multithreaded,
    run_multithreaded_sync,
)
from aioktask.engine.api import executor as executor_module
from aioktask.engine.api.executor import HelperThreadPoolExecutor
from aioktask.engine.api.process import current_pool
from aioktask.engine.machine.os_threads import EngineThread
from tests.conftest import LOOPS
from tests.support.gates import LOOK_SECONDS, PATIENCE, Gate, until

HELPERS = 2

pytestmark = pytest.mark.max_threads(HELPERS)


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    with Coordinator() as entered:
        yield entered


@pytest.fixture
def busy(coordinator: Coordinator) -> Iterator[Gate]:
    """No helper is free until the gate is opened."""
    gate = Gate()
    handle = coordinator.submit(Job(gate.chunk, HELPERS, chunk=1))
    gate.wait_entered(HELPERS)
    yield gate
    gate.open()
    handle.result()


def test_it_is_a_thread_pool_executor_by_class_and_by_name(coordinator: Coordinator) -> None:
    executor = coordinator.executor()
    assert isinstance(executor, ThreadPoolExecutor)
    assert "ThreadPoolExecutor" in str(type(executor))
    assert executor._max_workers == HELPERS
    coordinator.max_threads = 1
    assert executor._max_workers == 1
    assert not executor._threads


@pytest.mark.parametrize("nice", [20, "1", 1.5])
def test_a_wrong_nice_is_refused(coordinator: Coordinator, nice: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="nice must be"):
        coordinator.executor(nice)


def test_a_call_finds_the_context_of_the_code_that_submits(coordinator: Coordinator) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    variable.set(3)
    assert coordinator.executor().submit(variable.get).result(PATIENCE) == 3


def test_its_calls_have_its_nice(coordinator: Coordinator) -> None:
    def nice() -> int:
        pool = current_pool()
        pool.take_turn(None, lambda: None)  # closes the lane, so that the call is an ordinary run
        return next(run.nice for run in list(pool.state.runs))

    assert coordinator.executor(nice=4).submit(nice).result(PATIENCE) == 4


def test_what_a_call_raises_is_its_futures_as_it_is(coordinator: Coordinator) -> None:
    error = KeyError("here")

    def fail() -> None:
        raise error

    future = coordinator.executor().submit(fail)
    assert future.exception(PATIENCE) is error
    assert not hasattr(error, "__notes__")
    with pytest.raises(KeyError, match="here"):
        future.result()


def test_a_done_callback_may_wait_for_another_call(coordinator: Coordinator) -> None:
    executor, other = coordinator.executor(), coordinator.executor()
    found: list[object] = []

    def callback(future: Future[int]) -> None:
        found.append(other.submit(pow, future.result(), 2).result(PATIENCE))

    gate = Gate()
    future = executor.submit(lambda: gate.chunk(0, 1) or 3)
    future.add_done_callback(callback)
    gate.open()
    future.result(PATIENCE)
    executor.shutdown()  # waits for callbacks
    assert found == [9]


@pytest.mark.usefixtures("_no_room_for_blocked_calls")
def test_done_callbacks_run_in_the_chunk_of_the_call_or_in_the_thread_that_cancels(
    coordinator: Coordinator,
) -> None:
    ran: list[tuple[object, object]] = []

    def callback(future: Future[Any]) -> None:
        try:
            ran.append((threading.current_thread(), current_chunk()))
        except RuntimeError:
            ran.append((threading.current_thread(), None))

    executor, gate, threads = coordinator.executor(), Gate(), []

    def call() -> None:
        threads.append(threading.current_thread())
        gate.chunk(0, 1)

    running = [executor.submit(call) for _ in range(HELPERS)]
    gate.wait_entered(HELPERS)
    for each in running:
        each.add_done_callback(callback)
    queued = executor.submit(pytest.fail, "it was called")
    queued.add_done_callback(callback)
    queued.cancel()
    assert ran == [(threading.current_thread(), None)]
    ran.clear()
    gate.open()
    executor.shutdown()
    assert {thread for thread, _ in ran} == set(threads)
    assert all(chunk is not None for _, chunk in ran)


def test_a_done_callback_of_a_future_that_is_done_runs_at_once(coordinator: Coordinator) -> None:
    future = coordinator.executor().submit(int)
    future.result(PATIENCE)
    ran: list[object] = []
    future.add_done_callback(lambda done: ran.append((done, threading.current_thread())))
    assert ran == [(future, threading.current_thread())]


def test_events_tell_of_a_call_that_raised_as_of_a_job_that_finished(
    coordinator: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise KeyError

    caplog.set_level(logging.DEBUG, logger="aioktask")
    executor = coordinator.executor()
    for _ in range(5):  # the later ones come when the lane is open
        assert isinstance(executor.submit(fails).exception(PATIENCE), KeyError)
    executor.shutdown()

    def told() -> list[str]:
        return [text.split()[0] for text in caplog.messages if fails.__qualname__ in text]

    until(lambda: told().count("job_finished") >= 5)
    assert told().count("job_finished") == 5
    assert not {"job_failed", "job_cancelled"} & set(told())


# Cancelling.


def test_a_queued_call_is_cancelled_and_who_waits_is_told(
    coordinator: Coordinator, busy: Gate
) -> None:
    future = coordinator.executor().submit(pytest.fail, "it was called")
    told: list[Future[Any]] = []
    future.add_done_callback(told.append)
    waiting = threading.Thread(target=lambda: told.extend(concurrent.futures.wait([future]).done))
    waiting.start()
    assert future.cancel()
    assert future.cancel()
    waiting.join(PATIENCE)
    assert told == [future, future]
    assert list(concurrent.futures.as_completed([future])) == [future]
    with pytest.raises(CancelledError):
        future.result()


def test_a_call_that_runs_is_not_cancelled(coordinator: Coordinator) -> None:
    gate = Gate()
    future = coordinator.executor().submit(gate.chunk, 0, 1)
    gate.wait_entered()
    assert future.running()
    assert not future.cancel()
    gate.open()
    assert future.result(PATIENCE) is None
    assert not future.cancel()


@pytest.mark.parametrize("how", ["left by an exception", "shut down"])
def test_a_coordinator_that_cancels_ends_its_calls(how: str) -> None:
    gate = Gate()

    def call() -> None:
        gate.chunk(0, 1)
        current_chunk().check_cancelled()

    def end() -> list[Future[None]]:
        futures: list[Future[None]] = []
        try:
            with Coordinator(1) as coordinator:
                executor = coordinator.executor()
                futures += (executor.submit(call) for _ in range(3))
                gate.wait_entered()
                futures[2].add_done_callback(lambda _: gate.open())
                if how == "shut down":
                    asyncio.run(coordinator.shutdown(cancel=True))
                else:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        with pytest.raises(RuntimeError, match="takes no more jobs"):
            executor.submit(call)
        return futures

    running, *queued = end()
    with pytest.raises(JobCancelled):
        running.result(0)
    assert all(each.cancelled() for each in queued)


@pytest.mark.usefixtures("busy")
def test_callbacks_of_a_call_that_its_coordinator_ended_run_in_the_engine_and_may_not_wait() -> (
    None
):
    found: list[object] = []

    def callback(future: Future[Any]) -> None:
        found.append(threading.current_thread())
        try:
            run_multithreaded_sync(Job(print, 1))
        except RuntimeError as error:
            found.append(str(error))

    def leave() -> None:
        with Coordinator() as other:
            other.executor().submit(pytest.fail, "it was called").add_done_callback(callback)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave()
    thread, refusal = found
    assert isinstance(thread, EngineThread)
    assert "where nothing may wait" in str(refusal)


class Struck(BaseException):
    """What a signal handler might raise."""


def strike(_: object) -> None:
    raise Struck


def shuts_down(executor: Any) -> bool:
    """Whether a shutdown ends."""
    thread = threading.Thread(target=executor.shutdown, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return not thread.is_alive()


@pytest.mark.parametrize("cancels", [True, False])
def test_a_callback_that_raises_keeps_no_call_from_its_end(cancels: bool) -> None:
    gate = Gate()
    with Coordinator(1) as coordinator:
        executor = coordinator.executor()
        running = executor.submit(gate.chunk, 0, 1)
        gate.wait_entered()
        queued = executor.submit(int)
        queued.add_done_callback(strike)
        if cancels:
            with pytest.raises(Struck):
                queued.cancel()
        else:
            pool, group = coordinator.scope()
            pool.cancel_group(group)
        concurrent.futures.wait([queued], PATIENCE)
        gate.open()
        running.result(PATIENCE)
        assert shuts_down(executor)
    assert queued.cancelled()
    assert not executor._pending


def test_a_future_that_a_callback_strikes_as_it_is_cancelled_is_told_of(
    coordinator: Coordinator, busy: Gate
) -> None:
    future = coordinator.executor().submit(pytest.fail, "it was called")
    future.add_done_callback(strike)
    with pytest.raises(Struck):
        future.cancel()
    assert concurrent.futures.wait([future], 0).done == {future}
    assert list(concurrent.futures.as_completed([future], PATIENCE)) == [future]


@pytest.mark.parametrize("ends", ["the call", "the run"])
def test_who_waits_is_told_of_a_future_that_was_cancelled_by_half(
    coordinator: Coordinator, busy: Gate, ends: str
) -> None:
    """Where nothing comes of the rest of `cancel`, the end of the call does it."""
    executor = coordinator.executor()
    future: Any = executor.submit(pytest.fail, "it was called")
    waiter = threading.Thread(target=concurrent.futures.wait, args=([future],), daemon=True)
    waiter.start()
    assert Future.cancel(future)
    if ends == "the run":
        current_pool().cancel(future._call.run)
    busy.open()
    waiter.join(PATIENCE)
    assert not waiter.is_alive()
    assert shuts_down(executor)


def is_gone(gone: threading.Event) -> bool:
    """Whether it comes. Without the GIL an object may wait for its own thread to go."""
    deadline = time.monotonic() + PATIENCE
    while not gone.is_set() and time.monotonic() < deadline:
        gc.collect()
        time.sleep(LOOK_SECONDS)
    return gone.is_set()


def test_nothing_keeps_what_a_call_was_given_or_made(coordinator: Coordinator, busy: Gate) -> None:
    class Big:
        pass

    executor = coordinator.executor()
    big, gone = Big(), threading.Event()
    weakref.finalize(big, gone.set)
    cancelled = executor.submit(print, big)
    del big
    cancelled.cancel()
    assert is_gone(gone), "a cancelled future keeps its arguments"
    busy.open()
    for fails in (False, True):
        big, gone = Big(), threading.Event()
        weakref.finalize(big, gone.set)
        future = executor.submit(lambda given, fails=fails: given.missing if fails else None, big)
        del big
        failed = future.exception(PATIENCE)
        assert (failed is not None) == fails
        del future, failed
        assert is_gone(gone), "a future that is gone keeps its arguments"


@pytest.mark.parametrize("heard", [False, True])
def test_the_exception_of_a_future_keeps_nothing_of_the_submitters_context(
    coordinator: Coordinator, heard: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Big:
        pass

    variable: contextvars.ContextVar[Big] = contextvars.ContextVar("variable")
    executor, gone = coordinator.executor(), threading.Event()

    def submit() -> Future[object]:
        big = Big()
        weakref.finalize(big, gone.set)
        variable.set(big)
        return executor.submit(lambda: {}["missing"])

    if heard:
        caplog.set_level(logging.DEBUG, logger="aioktask")
    for _ in range(10):  # the later ones come when the lane is open
        gone.clear()
        future = contextvars.Context().run(submit)
        error = future.exception(PATIENCE)
        assert isinstance(error, KeyError)
        assert is_gone(gone), "the exception keeps a context"


# Memory that ends: where exactly, the sweep of tests/interruption tries out.


class ShortOfMemory:
    """A waiter of `concurrent.futures` that memory ends for the first time that it is told."""

    def __init__(self, waiter: Any) -> None:
        self.waiter = waiter
        self.told = 0

    def add_result(self, future: Future[Any]) -> None:
        self.told += 1
        if self.told == 1:
            raise MemoryError
        self.waiter.add_result(future)

    add_exception = add_cancelled = add_result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.waiter, name)


@pytest.mark.parametrize("ends", ["by its value", "by its exception", "by a cancel"])
def test_who_waits_is_told_by_the_end_of_the_call_where_memory_ended_as_it_was_to_be(
    ends: str, coordinator: Coordinator, busy: Gate
) -> None:
    executor = coordinator.executor()
    future: Any = executor.submit(divmod, 1, 0 if ends == "by its exception" else 1)
    behind = _base._AsCompletedWaiter()  # type: ignore[attr-defined]
    struck = ShortOfMemory(behind)
    future._waiters.append(struck)
    waiting = threading.Thread(
        target=concurrent.futures.wait, args=([future], PATIENCE), daemon=True
    )
    waiting.start()

    def block() -> None:
        with contextlib.suppress(CancelledError):
            future.exception(PATIENCE)

    blocked = threading.Thread(target=block, daemon=True)
    blocked.start()
    until(lambda: len(future._waiters) >= 2 and future._condition._waiters)
    if ends == "by a cancel":
        with pytest.raises(MemoryError):
            future.cancel()
    busy.open()
    for each in (waiting, blocked):
        each.join(PATIENCE)
        assert not each.is_alive()
    assert shuts_down(executor)
    assert behind.finished_futures == [future]
    assert struck.told == 2


def test_the_lock_of_a_future_is_let_go_of_without_a_call_of_python(
    coordinator: Coordinator,
) -> None:
    """Such a call may find no memory, and then the lock would be held for ever."""
    future: Any = coordinator.executor().submit(int)
    condition = future._condition
    assert type(condition).__exit__.__get__(condition) == condition._lock.__exit__
    called: list[str] = []
    sys.setprofile(lambda frame, event, _: called.append(f"{event} {frame.f_code.co_name}"))
    try:
        with condition:
            pass
    finally:
        sys.setprofile(None)
    assert not [each for each in called if each.startswith("call ")]


# Shutting down.


def test_a_shutdown_is_of_this_executor_alone(coordinator: Coordinator) -> None:
    one, other = coordinator.executor(), coordinator.executor()
    with one:
        first = one.submit(int)
    assert first.done()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        one.submit(int)
    one.shutdown()
    assert other.submit(int).result(PATIENCE) == 0
    assert run_multithreaded_sync(Job(print, 0), coordinator=coordinator).chunks == 0


def test_shutdown_waits_or_not_and_cancels_or_not(coordinator: Coordinator, busy: Gate) -> None:
    waited, cancelled = coordinator.executor(), coordinator.executor()
    kept = waited.submit(int)
    dropped = [cancelled.submit(pytest.fail, "it was called") for _ in range(3)]
    waited.shutdown(wait=False)
    assert not kept.done()
    cancelled.shutdown(cancel_futures=True)  # waits for nothing that runs
    assert all(each.cancelled() for each in dropped)
    busy.open()
    waited.shutdown()
    assert kept.result(0) == 0


def test_a_call_that_is_cancelled_while_it_is_submitted_ends(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turn that ends it comes before the call does, which then passes the lane."""
    pool = current_pool()
    lane, submit = pool.state.lane, pool.submit
    passed: list[bool] = []

    def submit_late(run: Any, **how: Any) -> None:
        executor.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + PATIENCE
        while not run.over and time.monotonic() < deadline:
            pool.turn()
        assert run.over
        lane.expect(run.nice)
        pool.take_turn(None, lambda: None)
        submit(run, **how)
        passed.append(run.lane_waiter is not None)

    for _ in range(50):
        coordinator.executor().submit(int).result(PATIENCE)
        executor = coordinator.executor()
        with monkeypatch.context() as patch:
            patch.setattr(pool, "submit", submit_late)
            future = executor.submit(pytest.fail, "it was called")
        assert future.cancelled()
        shuts = threading.Thread(target=executor.shutdown, daemon=True)
        shuts.start()
        shuts.join(PATIENCE)
        assert not shuts.is_alive()
    assert any(passed)


def test_a_shutdown_in_one_of_its_own_calls_is_a_deadlock(coordinator: Coordinator) -> None:
    executor = coordinator.executor()
    with pytest.raises(DeadlockError):
        executor.submit(executor.shutdown).result(PATIENCE)


def test_a_shutdown_in_a_callback_of_one_of_its_calls_is_a_deadlock(
    coordinator: Coordinator,
) -> None:
    raised: list[BaseException] = []

    def callback(_: Future[None]) -> None:
        try:
            executor.shutdown()
        except BaseException as error:
            raised.append(error)

    for _ in range(10):  # the later ones come when the lane is open
        executor, gate = coordinator.executor(), Gate()
        future = executor.submit(gate.chunk, 0, 1)
        gate.wait_entered()
        future.add_done_callback(callback)
        gate.open()
        assert shuts_down(executor)
        assert isinstance(raised.pop(), DeadlockError)
        assert not executor._pending


def test_leaving_a_coordinator_waits_for_calls() -> None:
    with Coordinator() as coordinator:
        futures = [coordinator.executor().submit(pow, 2, each) for each in range(20)]
    assert [each.result(0) for each in futures] == [2**each for each in range(20)]


# Waiting in chunks.


@pytest.fixture
def _no_room_for_blocked_calls() -> Iterator[None]:
    """A call that waits for a future is one that the engine knows to wait, not one that blocks."""
    aioktask.configure(max_blocked=0)
    yield
    aioktask.configure(max_blocked=32)


@pytest.mark.usefixtures("_no_room_for_blocked_calls")
@pytest.mark.parametrize("cap", [1, 2])
def test_a_chunk_that_waits_for_a_future_needs_no_free_helper(cap: int) -> None:
    aioktask.set_max_threads(cap)
    with Coordinator() as coordinator:
        executor = coordinator.executor()

        def depth(left: int) -> int:
            return 1 + executor.submit(depth, left - 1).result(PATIENCE) if left else 0

        for _ in range(10):  # the later ones come when the lane is open
            assert executor.submit(depth, 20).result(PATIENCE) == 20
        found: list[int] = []
        job = Job(lambda a, b: found.append(executor.submit(depth, 3).result(PATIENCE)), 4, chunk=1)
        assert run_multithreaded_sync(job, coordinator=coordinator).chunks == 4
        assert found == [3] * 4


@pytest.mark.usefixtures("_no_room_for_blocked_calls")
@pytest.mark.parametrize("how", ["wait", "as_completed", "exception", "result with a timeout"])
def test_each_way_to_wait_for_a_future_is_known(how: str) -> None:
    aioktask.set_max_threads(1)
    ways: dict[str, Callable[[Future[int]], object]] = {
        "wait": lambda future: concurrent.futures.wait([future]),
        "as_completed": lambda future: list(concurrent.futures.as_completed([future])),
        "exception": lambda future: future.exception(),
        "result with a timeout": lambda future: future.result(PATIENCE),
    }
    with Coordinator() as coordinator:
        executor = coordinator.executor()

        # In chunks, of which none is found to block.
        def chunk(start: int, stop: int) -> None:
            future = executor.submit(pow, 2, start)
            ways[how](future)
            assert future.result(0) == 2**start

        handle = coordinator.submit(Job(chunk, 5, chunk=1))
        assert handle.result(PATIENCE).chunks == 5
    scheduler = current_pool().state.scheduler
    assert current_pool().take_turn(None, lambda: scheduler.running) == 0


@pytest.mark.usefixtures("_no_room_for_blocked_calls")
def test_a_loop_in_a_chunk_may_await_a_future() -> None:
    aioktask.set_max_threads(1)
    found: list[int] = []
    with Coordinator() as coordinator:
        executor = coordinator.executor()

        async def awaits(start: int) -> int:
            loop = asyncio.get_running_loop()
            return sum([await loop.run_in_executor(executor, pow, 2, start) for _ in range(2)])

        def chunk(start: int, stop: int) -> None:
            found.append(asyncio.run(asyncio.wait_for(awaits(start), PATIENCE)))

        assert coordinator.submit(Job(chunk, 3, chunk=1)).result(PATIENCE).chunks == 3
    assert sorted(found) == [2, 4, 8]
    pool = current_pool()
    assert pool.take_turn(None, lambda: dict(pool.state.waiting)) == {}


def test_a_wait_in_a_chunk_that_times_out_is_over(coordinator: Coordinator) -> None:
    executor, gate = coordinator.executor(), Gate()
    slow = executor.submit(gate.chunk, 0, 1)
    gate.wait_entered()

    def impatient() -> None:
        with pytest.raises(TimeoutError):
            slow.result(0.001)

    executor.submit(impatient).result(PATIENCE)
    gate.open()
    slow.result(PATIENCE)
    pool = current_pool()
    assert pool.take_turn(None, lambda: (dict(pool.state.waiting), bool(pool.state.waits))) == (
        {},
        False,
    )


@pytest.mark.parametrize("way", ["result", "exception"])
def test_waits_in_a_circle_are_refused(way: str, coordinator: Coordinator) -> None:
    executor = coordinator.executor()
    futures: list[Future[Any]] = []
    both = threading.Barrier(2)

    def wait_for(index: int) -> None:
        both.wait(PATIENCE)
        getattr(futures[1 - index], way)(PATIENCE)

    begin = threading.Event()

    def first() -> None:
        begin.wait(PATIENCE)
        wait_for(0)

    futures += (executor.submit(first), executor.submit(wait_for, 1))
    begin.set()
    refused = [each.exception(PATIENCE) for each in futures]
    assert any(isinstance(each, DeadlockError) for each in refused)


def test_a_shutdown_in_a_job_that_one_of_its_calls_waits_for_is_a_deadlock(
    coordinator: Coordinator,
) -> None:
    """Whichever of the two waits begins last."""
    executor, both = coordinator.executor(), threading.Barrier(2)
    raised: list[BaseException] = []

    def refused(wait: Callable[[], object]) -> None:
        both.wait(PATIENCE)
        try:
            wait()
        except DeadlockError as error:
            raised.append(error)

    handle = coordinator.submit(Job(lambda a, b: refused(executor.shutdown), 1, name="shuts"))
    call = executor.submit(refused, lambda: handle.result(PATIENCE))
    call.result(PATIENCE)
    handle.result(PATIENCE)
    assert len(raised) == 1


# Mapping.


@given(st.integers(0, 30), st.none() | st.integers(1, 5), st.integers(0, 31))
@settings(max_examples=60)
def test_map_yields_in_order_and_reads_no_more_than_it_may(
    items: int, buffersize: int | None, consumed: int
) -> None:
    read = given_out = 0

    def source() -> Iterator[int]:
        nonlocal read
        for each in range(items):
            read += 1
            if buffersize is not None:  # and one that is on its way to the consumer
                assert read - given_out <= buffersize + 1
            yield each

    with Coordinator() as coordinator, coordinator.executor() as executor:
        results = executor.map(pow, source(), itertools.repeat(2), buffersize=buffersize)
        assert read == (items if buffersize is None else min(items, buffersize))
        seen = []
        for value in itertools.islice(results, consumed):
            given_out += 1
            seen.append(value)
        assert seen == [each**2 for each in range(items)][:consumed]
        if buffersize is not None:
            assert read <= min(items, given_out + buffersize)
        results.close()  # type: ignore[attr-defined]


def test_map_without_a_buffer_asks_no_iterable_again_that_has_ended(
    coordinator: Coordinator,
) -> None:
    ended: list[int] = []

    class Source:
        def __init__(self) -> None:
            self.left = 3

        def __iter__(self) -> Source:
            return self

        def __next__(self) -> int:
            if not self.left:
                ended.append(1)
                raise StopIteration
            self.left -= 1
            return self.left

    assert list(coordinator.executor().map(str, Source())) == ["2", "1", "0"]
    assert ended == [1]


def test_map_reads_an_endless_source_as_far_as_the_buffer(coordinator: Coordinator) -> None:
    with coordinator.executor() as executor:
        results = executor.map(str, itertools.count(), buffersize=3)
        assert list(itertools.islice(results, 50)) == [str(each) for each in range(50)]


@pytest.mark.parametrize("buffersize", [None, 2])
def test_map_gives_up_where_a_value_does_not_come_in_time_and_cancels_the_rest(
    buffersize: int | None, coordinator: Coordinator, busy: Gate
) -> None:
    submitted: list[Future[Any]] = []

    class Noting(HelperThreadPoolExecutor):
        def submit(self, *given: Any, **named: Any) -> Future[Any]:
            submitted.append(super().submit(*given, **named))
            return submitted[-1]

    executor = Noting(coordinator)
    results = executor.map(str, range(5), timeout=0.001, chunksize=3, buffersize=buffersize)
    with pytest.raises(TimeoutError):
        next(results)
    assert len(submitted) == (5 if buffersize is None else buffersize)
    assert all(each.cancelled() for each in submitted)
    assert list(results) == []


@pytest.mark.parametrize("buffersize", [None, 2])
def test_the_time_for_a_value_of_map_is_counted_from_the_call(
    buffersize: int | None, coordinator: Coordinator, busy: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So who takes values slowly may find that it is over; a value that has come is given."""
    now = 0.0
    monkeypatch.setattr(executor_module, "time", SimpleNamespace(monotonic=lambda: now))
    executor = coordinator.executor()
    results = executor.map(str, range(5), timeout=60, buffersize=buffersize)
    busy.open()
    assert next(results) == "0"
    if buffersize is None:
        executor.shutdown()  # all have come
        now = 61.0
        assert list(results) == ["1", "2", "3", "4"]
        return
    now, blocks = 61.0, Gate()
    handle = coordinator.submit(Job(blocks.chunk, HELPERS, chunk=1))
    blocks.wait_entered(HELPERS)
    with pytest.raises(TimeoutError):
        list(results)
    blocks.open()
    handle.result(PATIENCE)


@pytest.mark.parametrize(
    ("buffersize", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)]
)
def test_a_wrong_buffersize_is_refused(
    coordinator: Coordinator, buffersize: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="buffersize must be"):
        coordinator.executor().map(str, pytest.fail, buffersize=buffersize)


# As a loop's default executor.


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_a_loop_takes_it_and_its_end_leaves_the_coordinator_open(
    kind: str, coordinator: Coordinator
) -> None:
    factory: Any = asyncio.new_event_loop
    if kind == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop
    executor = coordinator.executor()

    async def main() -> list[object]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(executor)
        name = await asyncio.to_thread(lambda: threading.current_thread().__class__.__name__)
        addresses = await loop.getaddrinfo("127.0.0.1", 80)
        cancelled = loop.run_in_executor(None, pow, 2, 3)
        return [name, bool(addresses), await cancelled]

    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(main()) == ["EngineThread", True, 8]
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)
    assert coordinator.executor().submit(int).result(PATIENCE) == 0


@pytest.mark.anyio
@pytest.mark.parametrize(
    "anyio_backend",
    [LOOPS["asyncio"], LOOPS["asyncio+uvloop"]],
    ids=["asyncio", "asyncio+uvloop"],
)
@pytest.mark.parametrize("steps", range(6))
async def test_an_awaited_future_that_is_cancelled_at_any_step_is_never_half_done(
    steps: int,
) -> None:
    began: list[int] = []
    async with Coordinator() as coordinator:
        executor = coordinator.executor()
        future = executor.submit(began.append, 1)
        task = asyncio.ensure_future(asyncio.wrap_future(future))
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        task.cancel()
        await asyncio.wait([task])
        await run_multithreaded(Job(lambda a, b: executor.shutdown(), 1, chunk=1))
    assert future.done()
    assert len(began) == (not future.cancelled())


# Random programs.

SUBMIT = st.tuples(st.just("submit"), st.sampled_from(["value", "error", "nested"]))
CANCEL = st.tuples(st.just("cancel"), st.integers(0, 100))
RESULT = st.tuples(st.just("result"), st.integers(0, 100))
SHUTDOWN = st.tuples(st.just("shutdown"), st.booleans())


@given(
    st.lists(SUBMIT | SUBMIT | CANCEL | RESULT | SHUTDOWN, max_size=25),
    st.booleans(),
    st.integers(1, 3),
)
@settings(max_examples=120)
def test_any_program_ends_as_the_model_says(
    steps: list[tuple[str, Any]], in_turn: bool, cap: int
) -> None:
    """Each call is made once, or its future was cancelled; in turn: one after the other."""
    calls: list[int] = []
    aioktask.set_max_threads(cap)

    with Coordinator(1 if in_turn else None) as coordinator:
        executor = coordinator.executor()

        def call(number: int, kind: str) -> int:
            calls.append(number)
            if kind == "error":
                raise LookupError(number)
            if kind == "nested" and not executor._shutdown:
                return 1000 + number
            return number if kind == "value" else 1000 + number

        futures: list[tuple[Future[int], str]] = []
        cancelled: set[int] = set()
        shut = False
        for step, what in steps:
            if step == "submit" and shut:
                with pytest.raises(RuntimeError, match="after shutdown"):
                    executor.submit(call, 0, what)
            elif step == "submit":
                futures.append((executor.submit(call, len(futures), what), what))
            elif step == "cancel" and futures:
                number = what % len(futures)
                if futures[number][0].cancel():
                    cancelled.add(number)
                else:
                    assert number not in cancelled
            elif step == "result" and futures:
                number = what % len(futures)
                future, kind = futures[number]
                if number in cancelled:
                    assert future.cancelled()
                elif kind == "error":
                    assert isinstance(future.exception(PATIENCE), LookupError)
                else:
                    assert future.result(PATIENCE) % 1000 == number
            elif step == "shutdown":
                shut = True
                executor.shutdown(cancel_futures=what)
                assert all(future.done() for future, _ in futures)
                cancelled |= {
                    number for number, (future, _) in enumerate(futures) if future.cancelled()
                }
    assert all(future.done() for future, _ in futures)
    assert {n for n, (future, _) in enumerate(futures) if future.cancelled()} == cancelled
    assert sorted(calls) == sorted(set(range(len(futures))) - cancelled)
    if in_turn:
        assert calls == sorted(calls)
    executor.shutdown()
    assert not executor._pending


def test_who_holds_a_future_s_lock_keeps_no_helper_from_work(
    coordinator: Coordinator, busy: Gate
) -> None:
    """As a finalizer that runs in the middle of `concurrent.futures.wait`, and waits for a job."""
    future = coordinator.executor().submit(pow, 7, 2)
    call = future._call  # type: ignore[attr-defined]
    together = threading.Barrier(HELPERS)
    with future._condition:
        assert call.pool.cancel(call.run)  # the run ends without the call
        busy.open()
        coordinator.submit(Job(lambda a, b: together.wait(PATIENCE), HELPERS, chunk=1)).result(
            PATIENCE
        )
        assert not call.heard
    with pytest.raises((CancelledError, JobCancelled)):
        future.result(PATIENCE)
    until(lambda: call.heard)  # who waits for the future may be told first
