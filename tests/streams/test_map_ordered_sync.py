# SPDX-License-Identifier: MIT
# `map_ordered_sync`, in threads without a loop and in chunks, over real helpers.

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import threading
import time
from collections.abc import Generator, Iterator
from time import perf_counter_ns
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aioktask
from aioktask import (
    ChunkCancelled,
    Coordinator,
    DeadlockError,
    Handle,
    Job,
    JobCancelled,
    current_chunk,
    map_ordered_sync,
    run_multithreaded_sync,
)
from aioktask.engine.api.feed import Feed
from aioktask.engine.api.process import current_pool
from aioktask.streams import _consumer
from aioktask.streams._consumer import SLOW_SOURCE_NS
from tests.streams.scenarios import SOURCES, Scenario, play_sync, scenarios
from tests.support.gates import LOOK_SECONDS, PATIENCE, Gate, until
from tests.support.harness import pool_at_rest
from tests.support.meanwhile import Scene, play_at_each_bytecode
from tests.support.patient import wait_until_unwanted


@pytest.fixture(autouse=True)
def _own_limit() -> Iterator[None]:
    yield
    aioktask.set_max_threads(None)


def double(item: int) -> int:
    return item * 2


def counted() -> Iterator[int]:
    item = 0
    while True:
        yield item
        item += 1


def in_thread(action: Any) -> Any:
    """What `action` returns in a thread of its own, or raises."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(action())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    assert found, "the thread does not come back"
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


@given(scenario=scenarios(SOURCES), main=st.booleans())
@settings(max_examples=80)
def test_whatever_happens_values_come_once_in_order_and_nothing_outlives_the_scope(
    scenario: Scenario, main: bool
) -> None:
    if scenario.leaves_by == "cancel" and scenario.size is not None:
        scenario.leaves_by = "break"  # the values may all be there before the cancel
    ledger, raised = play_sync(scenario) if main else in_thread(lambda: play_sync(scenario))
    pool_at_rest()
    ledger.check(raised)


@pytest.mark.parametrize("cap", ["the process", "the coordinator"])
def test_the_calling_thread_works_beyond_every_cap(cap: str) -> None:
    # The only helper that there may be is held by another job.
    aioktask.set_max_threads(1 if cap == "the process" else 4)
    gate = Gate()
    threads, items = set(), []

    def work(item: int) -> int:
        threads.add(threading.get_ident())
        items.append(item)
        return item

    with Coordinator(1 if cap == "the coordinator" else None) as coordinator:
        coordinator.submit(Job(gate.chunk, 1, chunk=1))
        gate.wait_entered()
        with map_ordered_sync(work, range(100), window=4, coordinator=coordinator) as results:
            assert list(results) == list(range(100))
        gate.open()
    assert threads == {threading.get_ident()}
    assert items == list(range(100)), "it works on the items that are next"


def test_the_calling_thread_works_beyond_the_limit_of_the_stream() -> None:
    gate, consumer, threads = Gate(), threading.get_ident(), set()

    def work(item: int) -> int:
        if threading.get_ident() != consumer:
            threads.add(threading.get_ident())
            gate.chunk(item, item + 1)
        elif not threads:
            gate.wait_entered()
        elif item > 20:
            gate.open()
        return item

    aioktask.set_max_threads(4)
    with map_ordered_sync(work, range(40)) as results:
        results.handle.max_threads = 1
        assert list(results) == list(range(40))
    assert len(threads) == 1


def test_an_item_of_the_calling_thread_is_finished_before_a_value_that_comes_meanwhile() -> None:
    aioktask.set_max_threads(1)
    gate, consumer = Gate(), threading.get_ident()
    held: list[int] = []  # the helper's item
    came_in: list[int] = []  # the item of this thread in which its value came
    finished: list[int] = []

    def work(item: int) -> int:
        if threading.get_ident() != consumer:
            held.append(item)
            gate.chunk(item, item + 1)
            return item
        if not finished:
            gate.wait_entered()
        if item > held[0] and not came_in:
            came_in.append(item)
            before = results.handle.progress().done
            gate.open()
            until(lambda: results.handle.progress().done != before)
        finished.append(item)
        return item

    with map_ordered_sync(work, range(40)) as results:
        for value in results:
            if value == held[0]:
                assert came_in[0] in finished
                break
    assert value < came_in[0]


def test_what_a_handler_raises_that_is_no_exception_ends_the_stream() -> None:
    gate, consumer = Gate(), threading.get_ident()

    def work(item: int) -> None:
        signal.pthread_kill(consumer, signal.SIGUSR1)
        if threading.get_ident() != consumer:
            gate.chunk(item, item + 1)

    def handler(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def consume() -> None:
        with map_ordered_sync(work, range(1)) as results:
            with pytest.raises(KeyboardInterrupt):
                next(results)  # at once, although the item is not done
            assert list(results) == []
            gate.open()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        consume()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_what_is_no_exception_goes_on_at_once_from_the_calling_thread() -> None:
    aioktask.set_max_threads(1)
    gate, is_in, armed = Gate(), threading.Event(), False

    def work(item: int) -> None:
        if threading.get_ident() == consumer:
            if armed:
                raise SystemExit("planted")
        elif item:
            is_in.set()
            gate.chunk(item, item + 1)

    consumer = threading.get_ident()
    with map_ordered_sync(work, counted()) as results:
        next(results)
        assert is_in.wait(PATIENCE)
        armed = True
        with pytest.raises(SystemExit, match="planted"):
            list(results)  # although an item before it is not done
        assert not gate.done
        assert list(results) == []
        gate.open()


def test_a_stream_in_a_chunk_belongs_to_the_coordinator_of_its_job() -> None:
    found = []

    def chunk(start: int, stop: int) -> None:
        with map_ordered_sync(double, [1]) as results:
            group = results.handle._handle._run.group
            found.append((group, results.handle.nice))

    with Coordinator(nice=5) as coordinator:
        handle = coordinator.submit(Job(chunk, 1, chunk=1))
        group = handle._run.group
        handle.result(PATIENCE)
    assert found == [(group, 5)]
    assert group is not current_pool().state.root


def test_helpers_work_ahead_while_the_consumer_does_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Or some items are taken only when the next value is asked for, where one was slow to come.
    monkeypatch.setattr("aioktask.streams._consumer.SLOW_SOURCE_NS", 1 << 60)
    gate, begun = threading.Event(), threading.Semaphore(0)

    def work(item: int) -> int:
        begun.release()
        if item and threading.get_ident() != consumer:
            assert gate.wait(PATIENCE)
        return item

    consumer = threading.get_ident()
    aioktask.set_max_threads(2)
    with map_ordered_sync(work, range(3)) as results:
        values = iter(results)
        assert next(values) == 0
        for _ in range(3):
            assert begun.acquire(timeout=PATIENCE)
        gate.set()
        assert list(values) == [1, 2]


@pytest.mark.parametrize("depth", [0, 1, 2], ids=["outside", "in a chunk", "in an item of one"])
def test_whoever_leaves_waits_for_the_items_that_run_elsewhere(depth: int) -> None:
    aioktask.set_max_threads(3)
    told, ended = threading.Event(), threading.Event()
    begun = threading.Event()

    def leave() -> None:
        here = threading.get_ident()

        def work(item: int) -> int:
            if item and threading.get_ident() != here and not begun.is_set():
                begun.set()
                with contextlib.suppress(ChunkCancelled):
                    wait_until_unwanted()
                told.set()
                for _ in range(20):  # whoever does not wait is gone by then
                    time.sleep(LOOK_SECONDS)
                ended.set()
            return item

        with map_ordered_sync(work, counted(), ordered=False) as results:
            for _ in results:
                if begun.is_set():
                    break
        assert told.is_set()
        assert ended.is_set()

    if depth == 0:
        leave()
    elif depth == 1:
        run_multithreaded_sync(Job(lambda start, stop: leave(), 1, chunk=1))
    else:
        with map_ordered_sync(lambda item: leave(), [0]) as outer:
            assert list(outer) == [None]


def test_a_stream_inside_a_chunk_needs_no_helper_and_is_told_of_a_cancel() -> None:
    aioktask.set_max_threads(1)
    handles: list[Handle[None]] = []
    begun = threading.Event()

    def chunk(start: int, stop: int) -> None:
        def work(item: int) -> None:
            begun.set()
            assert handles or item < 10**7
            current_chunk().check_cancelled()

        with map_ordered_sync(work, counted()) as results:
            for _ in results:
                pass

    with Coordinator() as coordinator:
        handles.append(coordinator.submit(Job(chunk, 1, chunk=1)))
        assert begun.wait(PATIENCE)
        handles[0].cancel()
        with pytest.raises(JobCancelled):
            handles[0].result(PATIENCE)
    pool_at_rest()


def test_an_item_that_waits_for_the_enclosing_job_is_a_deadlock() -> None:
    handles: list[Handle[None]] = []
    ready = threading.Event()

    def chunk(start: int, stop: int) -> None:
        assert ready.wait(PATIENCE)

        def work(item: int) -> None:
            handles[0].result(PATIENCE)

        with map_ordered_sync(work, range(1)) as results:
            list(results)

    with Coordinator() as coordinator:
        handles.append(coordinator.submit(Job(chunk, 1, chunk=1)))
        ready.set()
        with pytest.raises(DeadlockError):
            handles[0].result(PATIENCE)


def test_an_item_may_wait_for_a_job_that_has_no_helper() -> None:
    aioktask.set_max_threads(1)

    def chunk(start: int, stop: int) -> None:
        def work(item: int) -> int:
            with Coordinator() as inner:
                return int(
                    inner.submit(Job(lambda a, b: b - a, 5, chunk=1, reduce=int.__add__))
                    .result(PATIENCE)
                    .value
                )

        with map_ordered_sync(work, range(4)) as results:
            assert list(results) == [5] * 4

    run_multithreaded_sync(Job(chunk, 1, chunk=1))
    pool_at_rest()


@pytest.mark.parametrize("main", [False, True])
def test_a_cancel_from_another_thread_ends_a_consumer_that_waits(main: bool) -> None:
    gate = Gate()

    def work(item: int) -> None:
        gate.chunk(item, item + 1)

    def consume() -> None:
        with map_ordered_sync(work, range(1)) as results:

            def cancel() -> None:
                gate.wait_entered()
                results.handle.cancel()
                gate.open()

            thread = threading.Thread(target=cancel)
            thread.start()
            with contextlib.suppress(JobCancelled):
                assert list(results) == [None], "its value may have come before the cancel"
            thread.join()

    if main:
        consume()
    else:
        in_thread(consume)
    pool_at_rest()


def test_a_cancel_is_over_although_the_consumer_does_not_ask_for_values() -> None:
    with map_ordered_sync(double, counted(), window=2) as results:
        assert next(results) == 0
        assert results.handle.cancel()
        finished = threading.Event()

        def until_over() -> None:
            pool = current_pool()
            while not results.handle.done():
                pool.wake()
            finished.set()

        threading.Thread(target=until_over).start()
        assert finished.wait(PATIENCE)


def test_a_source_that_takes_its_time_is_not_read_on_after_a_cancel() -> None:
    taken: list[int] = []
    gate = Gate()

    def work(item: int) -> None:
        gate.chunk(item, item + 1)

    def source() -> Iterator[int]:
        for item in range(64):
            taken.append(item)
            until = perf_counter_ns() + 10 * SLOW_SOURCE_NS
            while perf_counter_ns() < until:
                pass
            if item == 5:
                gate.wait_entered()
                results.handle.cancel()
            yield item

    with map_ordered_sync(work, source()) as results:
        with pytest.raises(JobCancelled):
            next(results)
        gate.open()
    assert len(taken) <= 7


def test_a_stream_is_not_over_while_its_consumer_works_on_an_item() -> None:
    aioktask.set_max_threads(1)
    gate, found = Gate(), []

    def work(item: int) -> None:
        pool_drained()  # it is taken in
        results.handle.cancel()
        pool_drained()
        found.append(results.handle.done())

    with Coordinator() as coordinator:
        coordinator.submit(Job(gate.chunk, 1, chunk=1))
        gate.wait_entered()
        with map_ordered_sync(work, range(5)) as results, contextlib.suppress(JobCancelled):
            next(results)
        assert results.handle.done()
        gate.open()
    assert found == [False]


@pytest.mark.parametrize("way", ["handle", "coordinator"])
def test_a_stream_that_is_cancelled_before_a_turn_takes_it_in_is_not_over_while_an_item_runs(
    way: str,
) -> None:
    pool, found = current_pool(), []
    coordinator = Coordinator()

    here = threading.get_ident()

    def work(item: int) -> None:
        if threading.get_ident() == here:  # else the turn gave it to a helper before it cancelled
            if way == "handle":
                results.handle.cancel()
            else:
                pool.cancel_group(results.handle._handle._run.group)
            pool.lock.release()
        pool_drained()
        found.append(results.handle.done())

    pool.lock.acquire()  # as another thread does that takes a turn
    with contextlib.suppress(JobCancelled):
        with map_ordered_sync(work, range(5), coordinator=coordinator) as results:
            next(results)
    assert results.handle.done()
    assert found
    assert not any(found)
    pool_at_rest()


def pool_drained() -> None:
    """Until all that was posted before is applied."""
    applied = threading.Event()
    current_pool().post(lambda state, run: applied.set(), None)
    assert applied.wait(PATIENCE)


# Python drops what a handler raises inside a finalizer or a callback of the collector, and tells.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_ends_the_stream_and_waits_for_what_runs() -> None:
    running: set[int] = set()
    raised: list[int] = []
    wanted, left = threading.Event(), False

    def work(item: int) -> int:
        try:
            running.add(item)
            if item == 8:
                wanted.set()
            return item
        finally:
            running.discard(item)

    def interrupt() -> None:
        while wanted.wait(PATIENCE) and not left:
            wanted.clear()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def handler(number: int, frame: object) -> None:
        raised.append(number)
        raise KeyboardInterrupt

    def consume() -> None:
        with map_ordered_sync(work, counted()) as results:
            for _ in results:
                if raised:  # and yet here: Python has dropped it
                    raised.clear()
                    wanted.set()

    before = signal.signal(signal.SIGINT, handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            consume()
    finally:
        left = True
        wanted.set()
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert not running
    pool_at_rest()


@pytest.mark.parametrize("strikes", [1, 2])
def test_the_second_ctrl_c_while_the_scope_is_left_gives_up_waiting(strikes: int) -> None:
    aioktask.set_max_threads(1)
    gate, is_in = Gate(), threading.Event()
    handled, raised, ended = threading.Semaphore(0), [], []
    consumer = threading.get_ident()

    def work(item: int) -> None:
        if item and threading.get_ident() != consumer:
            is_in.set()
            try:
                gate.chunk(item, item + 1)
            finally:
                ended.append(item)

    def handler(number: int, frame: FrameType | None) -> None:
        handled.release()
        while frame is not None and frame.f_code is not Feed.until_over_in_thread.__code__:
            ours = frame.f_globals["__name__"].startswith(("aioktask", "threading"))
            if frame.f_code.co_name == "__del__" or not ours:
                return  # Python would drop what is raised in a finalizer
            frame = frame.f_back
        if frame is not None and len(raised) < strikes:
            raised.append(number)
            raise KeyboardInterrupt

    def interrupt() -> None:
        while len(raised) < strikes:
            signal.pthread_kill(consumer, signal.SIGINT)
            assert handled.acquire(timeout=PATIENCE)
        if strikes == 1:
            gate.open()

    def consume() -> None:
        with map_ordered_sync(work, counted()) as results:
            next(results)
            assert is_in.wait(PATIENCE)
            thread.start()

    before = signal.signal(signal.SIGINT, handler)
    thread = threading.Thread(target=interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            consume()
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert len(ended) == (strikes == 1)
    gate.open()
    pool_at_rest()


def a_generator_around(fn: Any) -> Generator[int, None, None]:
    with map_ordered_sync(fn, counted()) as results:
        yield from results


@pytest.mark.parametrize("main", [False, True])
def test_a_generator_around_a_stream_may_be_closed_in_a_turn(main: bool) -> None:
    # As where the collector finds one that was abandoned. An item runs until it is closed.
    closed, is_in = threading.Event(), threading.Event()

    def work(item: int) -> int:
        if item and threading.get_ident() != consumer[0]:
            is_in.set()
            assert closed.wait(PATIENCE), "the stream waits, in a turn, for an item"
        return item

    def consume() -> Generator[int, None, None]:
        consumer.append(threading.get_ident())
        values = a_generator_around(work)
        assert next(values) == 0
        assert is_in.wait(PATIENCE)
        return values

    consumer: list[int] = []
    values = consume() if main else in_thread(consume)

    def close(state: object, run: object) -> None:
        values.close()
        closed.set()

    current_pool().post(close, None)
    assert closed.wait(PATIENCE)
    pool_at_rest()


def test_a_stream_is_not_entered_where_nothing_may_wait() -> None:
    found: list[BaseException] = []

    def enter(state: object, run: object) -> None:
        try:
            map_ordered_sync(double, [1]).__enter__()
        except BaseException as error:
            found.append(error)

    current_pool().post(enter, None)
    pool_drained()
    assert isinstance(found[0], RuntimeError)


def test_a_generator_around_a_stream_may_be_closed_in_an_item_of_that_stream() -> None:
    begun, closed = threading.Event(), threading.Event()
    consumer = threading.get_ident()

    def work(item: int) -> int:
        if item and threading.get_ident() != consumer:
            assert begun.wait(PATIENCE)
            with contextlib.suppress(ValueError):  # another item is just at it
                values.close()
                closed.set()
        return item

    values = a_generator_around(work)
    assert next(values) == 0
    begun.set()
    assert closed.wait(PATIENCE), "the item waits for itself"
    pool_at_rest()


def test_a_generator_around_a_stream_may_be_closed_in_an_item_on_its_own_thread() -> None:
    aioktask.set_max_threads(1)
    gate, is_in = Gate(), threading.Event()

    def work(item: int) -> int:
        if item and threading.get_ident() != consumer:
            is_in.set()
            gate.chunk(item, item + 1)
        return item

    def close(item: int) -> None:
        values.close()
        gate.open()

    consumer = threading.get_ident()
    values = a_generator_around(work)
    assert next(values) == 0
    assert is_in.wait(PATIENCE)  # from now on no helper is free
    with map_ordered_sync(close, range(1)) as results:
        assert list(results) == [None]
    pool_at_rest()
    assert gate.done, "to close it waited for an item that waited for this thread"


def test_an_iterator_that_waits_for_its_items_to_be_worked_on_is_not_held_up() -> None:
    worked = [threading.Event() for _ in range(12)]

    def work(item: int) -> int:
        worked[item].set()
        return item

    def source() -> Iterator[int]:
        for item, event in enumerate(worked):
            yield item
            assert event.wait(PATIENCE), "helpers were never told of the item"

    with map_ordered_sync(work, source()) as results:
        assert list(results) == list(range(12))


def test_a_thread_that_runs_a_loop_is_refused() -> None:
    async def main() -> None:
        with (
            pytest.raises(RuntimeError, match="async with map_ordered"),
            map_ordered_sync(double, [1]),
        ):
            pass

    asyncio.run(main())


def test_an_async_source_is_refused() -> None:
    async def source() -> Any:
        yield 1

    with pytest.raises(TypeError, match="items"):
        map_ordered_sync(double, source())  # type: ignore[type-var]


@pytest.mark.parametrize("errors", ["raise", "yield"])
def test_what_was_not_done_is_an_error_in_its_items_place(errors: str) -> None:
    async def later() -> None:
        pass

    def work(item: int) -> Any:
        return later() if item == 2 else item

    options: Any = {"errors": errors}
    with map_ordered_sync(work, range(4), name="lazy", **options) as results:
        assert [next(results), next(results)] == [0, 1]
        if errors == "raise":
            with pytest.raises(TypeError, match="fn of the stream 'lazy' returned a coroutine"):
                next(results)
        else:
            assert isinstance(next(results), TypeError)
            assert next(results) == 3
    gc.collect()  # a coroutine that was not closed would be told of, which is an error here
    with pytest.raises(TypeError, match="got the async"):
        map_ordered_sync(later, [1])  # type: ignore[arg-type]


def test_a_stream_that_was_left_early_is_not_asked_any_more() -> None:
    with map_ordered_sync(double, range(3), name="left") as results:
        values = iter(results)
        assert next(values) == 0
    for ask in (lambda: next(results), lambda: next(values), lambda: list(results)):
        with pytest.raises(RuntimeError, match="the stream 'left' was left before its last value"):
            ask()


def test_a_stream_that_had_ended_by_itself_gives_nothing_afterwards() -> None:
    def fail(item: int) -> int:
        raise ValueError("planted")

    with map_ordered_sync(double, range(3)) as whole:
        assert list(whole) == [0, 2, 4]
    with map_ordered_sync(fail, range(3)) as failed, pytest.raises(ValueError, match="planted"):
        next(failed)
    assert list(whole) == list(failed) == []


def test_the_nice_of_the_process_is_that_of_streams_that_say_nothing() -> None:
    before = aioktask.tunables()["nice"]
    aioktask.configure(nice=3)
    try:
        with map_ordered_sync(double, range(3)) as results:
            assert results.handle.nice == 3
            assert list(results) == [0, 2, 4]
    finally:
        aioktask.configure(nice=before)


def test_a_stream_is_used_once_and_not_before_its_scope() -> None:
    stream = map_ordered_sync(double, range(3))
    with pytest.raises(RuntimeError, match="not entered"):
        next(stream)
    with pytest.raises(RuntimeError, match="not entered"):
        _ = stream.handle
    with stream as results:
        assert next(results) == 0
        assert "1 given" in repr(results)
    with pytest.raises(RuntimeError, match="entered already"):
        stream.__enter__()


def test_a_coordinator_that_is_shut_takes_no_stream() -> None:
    with Coordinator() as coordinator:
        pass
    with (
        pytest.raises(RuntimeError, match="coordinator"),
        map_ordered_sync(double, [1], coordinator=coordinator),
    ):
        pass
    pool_at_rest()


def test_a_stream_whose_source_raised_never_looks_as_if_all_was_well() -> None:
    def begin() -> Scene:
        results = map_ordered_sync(int, iter(()))
        results.__enter__()
        consumer: Any = results._consumer
        consumer.end_source(OSError("no more"))

        def no_value() -> None:
            with pytest.raises(OSError, match="no more"):
                consumer.no_value()

        def looks() -> None:
            tally = consumer._tally()
            assert tally.raised or tally.failed
            assert "no more" in tally.error

        return Scene(no_value, looks, lambda: results.__exit__(None, None, None))

    play_at_each_bytecode(begin, _consumer)


@pytest.mark.parametrize("here", [True, False])
def test_a_cancel_that_an_item_finds_out_is_told_as_one_on_any_thread(here: bool) -> None:
    own, begun = threading.get_ident(), threading.Event()

    def fn(item: int) -> None:
        if (threading.get_ident() == own) != here:
            begun.wait(60)
            return
        begun.set()
        while True:  # until it raises
            current_chunk().check_cancelled()

    def consume() -> None:
        with map_ordered_sync(fn, range(8)) as results:
            cancelling = threading.Thread(target=lambda: begun.wait(60) and results.handle.cancel())
            cancelling.start()
            try:
                list(results)
            finally:
                cancelling.join()

    with pytest.raises(JobCancelled):
        consume()
