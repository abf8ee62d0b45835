# SPDX-License-Identifier: MIT
# `map_ordered` on a loop, over real helpers.

from __future__ import annotations

import asyncio
import dataclasses
import gc
import hashlib
import itertools
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from time import perf_counter_ns
from types import FrameType
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings

import aioktask
from aioktask import (
    ChunkCancelled,
    Coordinator,
    Job,
    JobCancelled,
    current_chunk,
    map_ordered,
    run_multithreaded,
)
from aioktask.engine import events
from aioktask.engine.api.process import current_pool
from aioktask.engine.state import growing
from aioktask.streams._consumer import PATIENCE_SECONDS, Consumer
from tests.streams.scenarios import ASYNC_SOURCES, Ledger, Planted, Scenario, play, scenarios
from tests.support.gates import PATIENCE, Gate, eventually
from tests.support.harness import pool_at_rest

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _own_limit() -> Iterator[None]:
    yield
    aioktask.set_max_threads(None)


@given(scenario=scenarios(ASYNC_SOURCES))
@settings(max_examples=80)
async def test_whatever_happens_values_come_once_in_order_and_nothing_outlives_the_scope(
    scenario: Scenario,
) -> None:
    ledger, raised = await play(scenario)
    pool_at_rest()
    ledger.check(raised)


def double(item: int) -> int:
    return item * 2


async def counted(stop: int | None = None) -> AsyncIterator[int]:
    item = 0
    while stop is None or item < stop:
        yield item
        item += 1


async def test_a_receive_stream_is_read_and_closed() -> None:
    send, receive = anyio.create_memory_object_stream[int](4)

    async def sender() -> None:
        async with send:
            for item in range(100):
                await send.send(item)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sender)
        async with map_ordered(double, receive, window=8) as results:
            assert [value async for value in results] == [2 * item for item in range(100)]
        with pytest.raises(anyio.ClosedResourceError):
            receive.receive_nowait()


async def test_a_source_that_waits_for_each_value_is_not_held_up() -> None:
    # Each item comes when the value before it was given: none may wait for others. So many that
    # there is no time for the keeper to find them.
    given = [anyio.Event() for _ in range(1000)]

    async def source() -> AsyncIterator[int]:
        for item, event in enumerate(given):
            yield item
            await event.wait()

    async with map_ordered(double, source()) as results:
        with anyio.fail_after(PATIENCE):
            async for value in results:
                given[value // 2].set()
    assert value == 1998


async def test_an_iterator_that_waits_for_its_items_to_be_worked_on_is_not_held_up() -> None:
    worked = [threading.Event() for _ in range(12)]

    def work(item: int) -> int:
        worked[item].set()
        return item

    def source() -> Iterator[int]:
        for item, event in enumerate(worked):
            yield item
            assert event.wait(PATIENCE), "helpers were never told of the item"

    async with map_ordered(work, source()) as results:
        assert [value async for value in results] == list(range(12))


async def test_an_iterator_is_read_on_the_loops_thread_while_a_value_is_asked_for() -> None:
    asked, taken = False, []

    def source() -> Iterator[int]:
        for item in range(100):
            assert asked
            taken.append(threading.get_ident())
            yield item

    async with map_ordered(double, source(), window=4) as results:
        for _ in range(10):
            asked = True
            await anext(results)
            asked = False
            await eventually(lambda: results.handle.progress().done == len(taken))
    assert set(taken) == {threading.get_ident()}


async def test_an_async_source_is_read_in_one_task_although_no_value_is_asked_for() -> None:
    tasks = []

    async def source() -> AsyncIterator[int]:
        try:
            for item in range(100):
                tasks.append(anyio.get_current_task())
                yield item
        finally:
            tasks.append(anyio.get_current_task())

    async with map_ordered(double, source(), window=4) as results:
        await eventually(lambda: results.handle.progress().done == 4)
    assert len(tasks) == 5
    assert len(set(tasks)) == 1
    assert tasks[0] != anyio.get_current_task()


async def test_what_an_async_source_gave_is_worked_on_although_there_is_no_room_for_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # No helper comes for so few items by itself, and nobody looks for what was not posted.
    monkeypatch.setattr(Consumer, "_enough", property(lambda consumer: 100))
    monkeypatch.setattr(growing, "share_out", lambda state, run: None)

    async def source() -> AsyncIterator[int]:
        await eventually(lambda: bool(current_pool().state.growing))  # it is taken in
        for item in range(100):
            yield item

    async with map_ordered(double, source(), window=5) as results:
        await eventually(lambda: results.handle.progress().done == 5)


async def test_one_item_that_lasts_does_not_stop_those_inside_the_window() -> None:
    aioktask.set_max_threads(2)
    gate, done, taken = threading.Event(), [], []

    def work(item: int) -> int:
        if item == 40:
            assert gate.wait(PATIENCE)
        done.append(item)
        return item

    def source() -> Iterator[int]:
        for item in range(200):
            taken.append(item)
            yield item

    given = []
    async with map_ordered(work, source(), window=32) as results:

        async def consume() -> None:
            async for value in results:
                given.append(value)  # noqa: PERF401 - it is looked at meanwhile

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consume)
            await eventually(lambda: len(given) == 40)
            await eventually(lambda: set(done) >= set(range(72)) - {40})
            assert len(taken) == 72, "the source is read up to the window, and not further"
            assert len(given) == 40
            gate.set()
    assert given == list(range(200))


async def test_the_item_that_holds_the_stream_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "STALLED_NS", 1)
    heard: list[events.Event] = []
    monkeypatch.setattr(events, "_listeners", (heard.append,))
    monkeypatch.setattr(events, "_wishes", (lambda: True,))
    gate = threading.Event()

    def work(item: int) -> int:
        if item == 2:
            assert gate.wait(PATIENCE)
        return item

    def stalls() -> list[int]:
        return [each.details["item"] for each in heard if each.kind is events.EventKind.STALLED]

    async with map_ordered(work, range(5)) as results:
        assert [await anext(results) for _ in range(2)] == [0, 1]
        async with anyio.create_task_group() as tasks:

            async def tell() -> None:
                await eventually(lambda: 2 in stalls())
                gate.set()

            tasks.start_soon(tell)
            assert [value async for value in results] == [2, 3, 4]


async def test_a_stream_begins_with_what_the_last_one_of_its_function_learned() -> None:
    name, lessons = "a stream that learns", current_pool().state.lessons._found

    def is_kept() -> bool:
        return any(name in key for key in lessons)

    async with map_ordered(double, range(200), name=name) as results:
        assert [value async for value in results] == [2 * item for item in range(200)]
    await eventually(is_kept)
    async with map_ordered(double, (), name=name) as results:  # which learns nothing itself
        assert results._consumer is not None
        pacing = results._consumer.feed.growth.pacing
        await eventually(lambda: pacing.scaling is not None)
        assert pacing.unit_ns > 0


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("delay", [0, PATIENCE_SECONDS / 2])
async def test_nothing_waits_for_what_is_looked_for_too_late(ordered: bool, delay: float) -> None:
    async with map_ordered(double, range(1000), max_delay=delay, ordered=ordered) as results:
        async for _ in results:
            assert results._consumer.patience == 1  # type: ignore[union-attr]
            assert results._consumer._enough == 1  # type: ignore[union-attr]
    async with map_ordered(double, range(1000), ordered=ordered) as results:
        found = [results._consumer.patience async for _ in results]  # type: ignore[union-attr]
    assert max(found) > 1, "quick items are never waited for together"


async def test_values_come_as_they_are_done_where_order_is_of_no_matter() -> None:
    aioktask.set_max_threads(2)
    gate = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert gate.wait(PATIENCE)
        return item

    given = []
    async with map_ordered(work, range(50), ordered=False, window=8) as results:
        async for value in results:
            given.append(value)
            if len(given) == 49:
                assert 0 not in given
                gate.set()
    assert given[-1] == 0
    assert sorted(given) == list(range(50))


async def test_a_stream_whose_consumer_is_slow_costs_another_one_nothing() -> None:
    aioktask.set_max_threads(1)
    async with map_ordered(double, counted(), window=4) as slow:
        assert await anext(slow) == 0
        async with map_ordered(double, range(1000), window=4) as quick:
            with anyio.fail_after(PATIENCE):
                assert [value async for value in quick] == [2 * item for item in range(1000)]
        assert await anext(slow) == 2


async def test_streams_and_jobs_share_helpers() -> None:
    aioktask.set_max_threads(1)
    stop = threading.Event()

    def until_stopped(start: int, end: int) -> None:
        if stop.is_set():
            current_chunk().check_cancelled()

    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(until_stopped, 1 << 60, chunk=1))
        await eventually(lambda: handle.progress().done > 0)
        async with map_ordered(double, range(300)) as results:
            with anyio.fail_after(PATIENCE):
                assert [value async for value in results] == [2 * item for item in range(300)]
        assert not handle.done()
        handle.cancel()


async def test_a_value_is_not_lost_where_its_wait_is_cancelled() -> None:
    gate = Gate()

    def work(item: int) -> int:
        if item == 3:
            gate.chunk(item, item + 1)
        return item

    async with map_ordered(work, range(10)) as results:
        given = [await anext(results) for _ in range(3)]
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anext(results)
        assert scope.cancelled_caught
        gate.open()
        given += [value async for value in results]
    assert given == list(range(10))


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_cancel_at_any_step_leaves_nothing_behind(is_async: bool) -> None:
    for steps in range(25):
        ledger = Ledger(
            Scenario(
                size=None,
                source="",
                window=3,
                ordered=True,
                errors="raise",
                max_delay=None,
                source_fails_at=None,
                fails=frozenset(),
                slow=frozenset(range(1000)),
                pauses=frozenset(),
                leaves_after=None,
                leaves_by="cancel",
            )
        )
        source: Any = ledger.items_async(anyio.lowlevel.checkpoint) if is_async else ledger.items()

        async def consume(scope: anyio.CancelScope, ledger: Ledger, source: Any) -> None:
            with scope:
                async with map_ordered(ledger.call, source, window=3) as results:
                    async for value in results:
                        ledger.give(value)
                        await anyio.lowlevel.checkpoint()

        scope = anyio.CancelScope()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consume, scope, ledger, source)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            scope.cancel()
        ledger.leave()
        assert ledger.values == [10 * item for item in range(ledger.given)]
        assert ledger.closed or not ledger.taken
        if is_async:
            await source.aclose()
        else:
            source.close()
        pool_at_rest()
        assert not ledger.wrong


async def test_leaving_tells_the_items_that_run_and_waits_for_them() -> None:
    gate, told = Gate(), []

    def work(item: int) -> None:
        if item:
            gate.chunk(item, item + 1)
            try:
                current_chunk().check_cancelled()
            except ChunkCancelled:
                told.append(item)
                raise

    async with map_ordered(work, range(2)) as results:
        await anext(results)
        await gate.entered()

        def open_late() -> None:
            gate.open()

        timer = threading.Timer(0.01, open_late)
        timer.start()
    assert told == [1]
    timer.join()


async def test_the_handle_cancels_and_tells_progress() -> None:
    gate = Gate()

    def work(item: int) -> int:
        if item == 5:
            gate.chunk(item, item + 1)
        return item

    async with map_ordered(work, counted(), window=8) as results:
        handle = results.handle
        assert [await anext(results) for _ in range(5)] == list(range(5))
        await gate.entered()
        await eventually(lambda: handle.progress().done == 12)
        progress = handle.progress()
        assert progress.size is None
        assert progress.threads
        assert not handle.done()
        assert handle.cancel()
        assert handle.cancel()
        gate.open()
        with pytest.raises(JobCancelled):
            async for _ in results:
                pass
        with pytest.raises(StopAsyncIteration):
            await anext(results)
    assert handle.done()


@pytest.mark.parametrize("errors", ["raise", "yield"])
async def test_an_item_that_is_told_of_a_cancel_ends_the_stream_by_it(errors: str) -> None:
    gate, raised = Gate(), threading.Event()

    def work(item: int) -> None:
        gate.chunk(item, item + 1)
        try:
            current_chunk().check_cancelled()
        finally:
            raised.set()

    options: Any = {"errors": errors}
    async with map_ordered(work, range(1), **options) as results:
        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                with pytest.raises(JobCancelled):
                    await anext(results)

            async def cancel() -> None:
                await gate.entered()
                results.handle.cancel()
                gate.open()
                assert raised.wait(PATIENCE)  # the loop stands still, so the outcome is there first

            tasks.start_soon(ask)
            tasks.start_soon(cancel)


async def test_a_cancel_is_told_although_every_item_that_was_read_is_given() -> None:
    read: list[int] = []
    more = anyio.Event()

    async def source() -> AsyncIterator[int]:
        for item in range(100):
            read.append(item)
            yield item
            await more.wait()

    async with map_ordered(double, source()) as results:
        assert await anext(results) == 0
        results.handle.cancel()
        more.set()
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        assert len(read) <= 2
        with pytest.raises(JobCancelled):
            await anext(results)


class Struck(Exception):  # noqa: N818 - what a signal handler raises
    """Raised between two lines."""


@pytest.mark.parametrize("waits", [False, True])
async def test_what_strikes_between_a_value_and_its_count_ends_the_stream(waits: bool) -> None:
    gate = threading.Event()

    def work(item: int) -> int:
        if item == 1 and waits:
            assert gate.wait(PATIENCE)
        return item

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_name != "_generate":
            return None
        if frame.f_locals.get("number") == 1 and frame.f_locals.get("outcome") == 1:
            sys.settrace(None)
            raise Struck
        return trace

    taken = []

    def source() -> Iterator[int]:
        for item in range(6):
            taken.append(item)
            yield item

    async with map_ordered(work, source()) as results:
        assert await anext(results) == 0
        if not waits:  # a source that is slow is read on when the next value is asked for
            await eventually(lambda: results.handle.progress().done == len(taken))
        traced = sys.gettrace()
        sys.settrace(trace)
        results._values.ag_frame.f_trace = trace  # type: ignore[union-attr]
        gate.set()
        try:
            with pytest.raises(Struck):
                await anext(results)
        finally:
            sys.settrace(traced)
        with anyio.fail_after(PATIENCE):
            assert [value async for value in results] == []


async def test_the_size_is_known_when_the_source_has_ended() -> None:
    async with map_ordered(double, range(10)) as results:
        async for _ in results:
            pass
        progress = results.handle.progress()
    assert (progress.done, progress.size) == (10, 10)
    assert results.handle.progress().rate > 0


async def test_a_stream_has_the_nice_that_is_asked_for_and_is_reniced() -> None:
    with aioktask.priority(7):
        async with map_ordered(double, range(3), nice=3) as given:
            assert given.handle.nice == 3
            given.handle.renice(9)
            assert given.handle.nice == 9
            assert [value async for value in given] == [0, 2, 4]
        async with map_ordered(double, range(3)) as inherited:
            assert inherited.handle.nice == 7
    async with Coordinator(nice=5) as coordinator:
        async with map_ordered(double, range(3), coordinator=coordinator) as scoped:
            assert scoped.handle.nice == 5
            assert scoped.handle.max_threads is None
            scoped.handle.max_threads = 1
            assert scoped.handle.max_threads == 1
            assert [value async for value in scoped] == [0, 2, 4]
    with pytest.raises(ValueError, match="nice"):
        scoped.handle.renice(20)


async def test_the_nice_of_the_process_is_that_of_streams_that_say_nothing() -> None:
    before = aioktask.tunables()["nice"]
    aioktask.configure(nice=3)
    try:
        async with map_ordered(double, range(3)) as results:
            assert results.handle.nice == 3
            assert [value async for value in results] == [0, 2, 4]
        async with map_ordered(double, range(3), nice=1) as results:
            assert results.handle.nice == 1
        async with Coordinator(nice=5) as coordinator:
            async with map_ordered(double, range(3), coordinator=coordinator) as results:
                assert results.handle.nice == 5
        with aioktask.priority(7):
            async with map_ordered(double, range(3)) as results:
                assert results.handle.nice == 7
    finally:
        aioktask.configure(nice=before)
    async with map_ordered(double, range(3)) as results:
        assert results.handle.nice == 0


async def test_two_streams_of_different_nice_share_a_helper_by_it() -> None:
    aioktask.set_max_threads(1)
    block = bytes(1 << 17)
    used = [0, 0]  # a helper's time, in ns

    def work(stream: int) -> Callable[[int], None]:
        def hash_it(item: int) -> None:
            before = perf_counter_ns()
            hashlib.sha256(block).digest()  # without the GIL
            used[stream] += perf_counter_ns() - before

        return hash_it

    async def consume(results: Any) -> None:
        async for _ in results:
            pass

    items = itertools.count
    async with (
        map_ordered(work(0), items(), window=1024, nice=0) as urgent,
        map_ordered(work(1), items(), window=1024, nice=5) as other,
    ):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consume, urgent)
            tasks.start_soon(consume, other)
            await eventually(lambda: sum(used) > 500_000_000)
            found = used[0] / used[1]
            tasks.cancel_scope.cancel()
    # Five steps of nice are three times the share, in slices of 10 ms.
    assert 2 < found < 4.5


async def test_helpers_bear_the_name_of_the_stream_that_they_serve() -> None:
    names: set[str] = set()

    def work(item: int) -> None:
        names.add(threading.current_thread().name)

    async with map_ordered(work, range(20), name="packets") as results:
        async for _ in results:
            pass
    assert names == {"packets"}
    names.clear()
    async with map_ordered(work, range(20)) as results:
        async for _ in results:
            pass
    assert names == {work.__qualname__}


async def test_a_coordinator_caps_and_ends_its_streams() -> None:
    gate, cancelled = Gate(), anyio.Event()
    coordinator = Coordinator(1)

    def work(item: int) -> None:
        gate.chunk(item, item + 1)

    async with map_ordered(work, counted(), coordinator=coordinator) as results:
        async with anyio.create_task_group() as tasks:

            async def consume() -> None:
                with pytest.raises(JobCancelled):
                    await anext(results)
                cancelled.set()  # although the item is not done yet

            tasks.start_soon(consume)
            await gate.entered()
            assert results.handle.progress().threads == 1
            async with anyio.create_task_group() as ending:
                ending.start_soon(lambda: coordinator.shutdown(cancel=True))
                await cancelled.wait()
                gate.open()
    with pytest.raises(RuntimeError, match="coordinator"):
        async with map_ordered(double, range(3), coordinator=coordinator):
            raise AssertionError("a coordinator that was shut down takes nothing")


variable: ContextVar[str] = ContextVar("variable")


async def test_items_have_the_context_of_who_entered() -> None:
    variable.set("entered")

    def work(item: int) -> str:
        return variable.get()

    async with map_ordered(work, range(5)) as results:
        variable.set("changed")
        assert [value async for value in results] == ["entered"] * 5


async def test_an_item_may_run_a_stream_and_a_job_of_its_own() -> None:
    def work(item: int) -> int:
        with aioktask.map_ordered_sync(double, range(item)) as results:
            inner = sum(results)
        report = aioktask.run_multithreaded_sync(
            Job(lambda start, stop: stop - start, item + 1, reduce=lambda a, b: a + b, chunk=1)
        )
        return inner + report.value

    aioktask.set_max_threads(1)
    async with map_ordered(work, range(20)) as results:
        with anyio.fail_after(PATIENCE):
            assert [value async for value in results] == [
                item * (item - 1) + item + 1 for item in range(20)
            ]


async def test_a_consumer_that_finds_each_value_there_lets_others_go_on() -> None:
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        async with map_ordered(double, counted()) as results:
            async for value in results:
                if turns > 50:
                    break
                assert value < 10_000_000, "the loop stands still"
        tasks.cancel_scope.cancel()


async def test_what_is_no_exception_ends_the_stream_in_its_place() -> None:
    def work(item: int) -> int:
        if item == 4:
            raise SystemExit("planted")
        return item

    async with map_ordered(work, range(10), errors="yield") as results:
        assert [await anext(results) for _ in range(4)] == [0, 1, 2, 3]
        with pytest.raises(SystemExit, match="planted"):
            await anext(results)


@pytest.mark.parametrize("error", [StopIteration, GeneratorExit, asyncio.CancelledError])
async def test_what_would_be_misread_is_a_runtime_error(error: type[BaseException]) -> None:
    def work(item: int) -> int:
        raise error

    with pytest.raises(RuntimeError):
        async with map_ordered(work, range(10)) as results:
            await anext(results)


async def test_no_item_is_begun_after_one_that_ends_the_stream() -> None:
    aioktask.set_max_threads(1)
    taken, called = threading.Event(), []

    def source() -> Iterator[int]:
        for item in range(20):
            if item == 19:
                taken.set()
            yield item

    def work(item: int) -> None:
        called.append(item)
        assert taken.wait(PATIENCE)
        raise Planted(item)

    async with map_ordered(work, source(), window=20) as results:
        with pytest.raises(Planted):
            await anext(results)
    assert called == [0]


async def test_an_item_that_comes_after_one_that_ended_the_stream_is_not_begun() -> None:
    called = []

    def work(item: int) -> None:
        called.append(item)
        raise Planted(item)

    async def source() -> AsyncIterator[int]:
        yield 0
        await eventually(lambda: results.handle.progress().done == 1)  # nobody takes the outcome
        yield 1

    async with map_ordered(work, source()) as results:
        # Until all helpers have gone that would have come for it.
        await eventually(lambda: results._consumer.taken == 2)  # type: ignore[union-attr]
        await eventually(lambda: not results.handle.progress().threads)
        with pytest.raises(Planted):
            await anext(results)
    assert called == [0]


async def test_an_error_names_its_item_and_ends_the_stream() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("planted")
        return item

    async with map_ordered(work, range(10), name="halves") as results:
        assert [await anext(results), await anext(results)] == [0, 1]
        with pytest.raises(ValueError, match="planted") as caught:
            await anext(results)
        assert caught.value.__notes__ == ["raised for the item 2 of the stream 'halves'"]
        assert [value async for value in results] == []


async def test_what_closing_the_source_raises_is_raised() -> None:
    class Source:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def __aiter__(self) -> Source:
            return self

        async def __anext__(self) -> int:
            return 1

        async def aclose(self) -> None:
            raise self.error

    error = OSError(5, "planted")
    with pytest.raises(OSError, match="planted") as caught:
        async with map_ordered(double, Source(error)) as results:
            assert await anext(results) == 2
    assert caught.value is error

    class Ordinary:
        def __iter__(self) -> Ordinary:
            return self

        def __next__(self) -> int:
            return 1

        def close(self) -> None:
            raise error

    with pytest.raises(OSError, match="planted"):
        async with map_ordered(double, Ordinary()) as results:
            assert await anext(results) == 2


async def test_a_stream_is_used_once_and_not_before_its_scope() -> None:
    stream = map_ordered(double, range(3))
    with pytest.raises(RuntimeError, match="not entered"):
        await anext(stream)
    with pytest.raises(RuntimeError, match="not entered"):
        _ = stream.handle
    assert "not entered" in repr(stream)
    async with stream as results:
        assert await anext(results) == 0
        assert "1 given" in repr(results)
    with pytest.raises(RuntimeError, match="entered already"):
        async with stream:
            pass


async def test_nothing_of_a_stream_is_held_when_it_is_over() -> None:
    class Item:
        pass

    watched: list[weakref.ref[Item]] = []

    def source() -> Iterator[Item]:
        for _ in range(20):
            item = Item()
            watched.append(weakref.ref(item))
            yield item
            del item

    def work(item: Item) -> Item:
        return item

    async with map_ordered(work, source(), window=4) as results:
        async for value in results:
            del value
            if len(watched) > 15:
                break
    pool_at_rest()

    def gone() -> bool:
        gc.collect()
        return not any(watch() for watch in watched)

    await eventually(gone)


async def test_a_scope_that_is_cancelled_begins_nothing() -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with map_ordered(double, range(3)):
            raise AssertionError("the scope was entered")
    pool_at_rest()


async def double_async(item: int) -> int:
    return item * 2


class DoublesAsync:
    async def __call__(self, item: int) -> int:
        return item * 2


class Later:
    """What is awaited, and may be cancelled, as a future."""

    cancelled = False

    def cancel(self) -> None:
        Later.cancelled = True

    def __await__(self) -> Iterator[None]:
        yield


@pytest.mark.parametrize("errors", ["raise", "yield"])
@pytest.mark.parametrize(
    ("lazy", "kind"),
    [
        (double_async, "coroutine"),
        (DoublesAsync(), "coroutine"),
        (lambda item: (each for each in [item]), "generator"),
        (counted, "async_generator"),
        (lambda item: Later(), "Later"),
    ],
)
async def test_what_was_not_done_is_an_error_in_its_items_place(
    errors: str, lazy: Callable[[int], Any], kind: str
) -> None:
    Later.cancelled = False

    def work(item: int) -> Any:
        return lazy(item) if item == 2 else item

    options: Any = {"errors": errors}
    async with map_ordered(work, range(4), name="lazy", **options) as results:
        assert [await anext(results), await anext(results)] == [0, 1]
        message = f"fn of the stream 'lazy' returned a {kind}, so its work was not done"
        if errors == "raise":
            with pytest.raises(TypeError, match=message):
                await anext(results)
        else:
            error = await anext(results)
            assert isinstance(error, TypeError)
            assert message in str(error)
            assert await anext(results) == 3
            del error
    gc.collect()  # a coroutine that was not closed would be told of, which is an error here
    assert Later.cancelled or kind != "Later"


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"window": 2.5}, TypeError, "window"),
        ({"ordered": 1}, TypeError, "ordered"),
        ({"errors": "ignore"}, ValueError, "errors"),
        ({"errors": None}, TypeError, "errors"),
        ({"max_delay": -1}, ValueError, "max_delay"),
        ({"max_delay": float("nan")}, ValueError, "max_delay"),
        ({"max_delay": True}, TypeError, "max_delay"),
        ({"max_delay": "1"}, TypeError, "max_delay"),
        ({"nice": 20}, ValueError, "nice"),
        ({"name": 3}, TypeError, "name"),
        ({"coordinator": 3}, TypeError, "coordinator"),
        ({"items": 3}, TypeError, "items"),
        ({"fn": 3}, TypeError, "fn"),
        ({"fn": counted}, TypeError, "fn"),
        ({"fn": double_async}, TypeError, "fn runs on a helper thread and must be an ordinary"),
        ({"fn": partial(double_async)}, TypeError, "ordinary function, got the async double_async"),
        ({"fn": DoublesAsync()}, TypeError, "ordinary function, got the async DoublesAsync"),
        ({"fn": lambda item: (yield item)}, TypeError, "calling the generator function"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"fn": double, "items": [1], **wrong}
    with pytest.raises(error, match=message):
        map_ordered(arguments.pop("fn"), arguments.pop("items"), **arguments)


async def an_item_and_no_more() -> AsyncIterator[int]:
    yield 1
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancel_that_the_source_raises_is_not_its_end() -> None:
    async def source() -> AsyncIterator[int]:
        for item in range(5):
            yield item
        task = asyncio.create_task(asyncio.sleep(PATIENCE))
        await asyncio.sleep(0)
        task.cancel()
        await task

    async with map_ordered(double, source()) as results:
        assert [await anext(results) for _ in range(5)] == [0, 2, 4, 6, 8]
        with pytest.raises(RuntimeError, match="source raised CancelledError"):
            await anext(results)


async def test_a_cancel_around_the_scope_is_not_the_end_of_the_source() -> None:
    async def source() -> AsyncIterator[int]:
        yield 0
        await anyio.sleep(PATIENCE)

    with anyio.CancelScope() as scope:
        async with map_ordered(double, source()) as results:
            with anyio.CancelScope(shield=True):
                assert await anext(results) == 0
                scope.cancel()
                with pytest.raises(RuntimeError, match="source raised Cancelled"):
                    await anext(results)


class FailsToClose:
    def __iter__(self) -> FailsToClose:
        return self

    def __next__(self) -> int:
        return 1

    def close(self) -> None:
        raise OSError(5, "planted")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("items", [lambda: range(10), FailsToClose])
async def test_a_cancel_while_the_scope_is_left_by_an_exception_is_not_lost(items: Any) -> None:
    gate = Gate()

    def work(item: int) -> None:
        gate.chunk(item, item + 1)

    async def leave() -> None:
        async with map_ordered(work, items()) as results:
            asking = asyncio.create_task(ask(results))
            await gate.entered()
            asking.cancel()
            asyncio.get_running_loop().call_soon(cancel_and_open)
            if items is not FailsToClose:
                raise Planted("body")

    async def ask(results: Any) -> None:
        await anext(results)

    def cancel_and_open() -> None:
        task.cancel()
        gate.open()

    task = asyncio.create_task(leave())
    with pytest.raises(asyncio.CancelledError):
        await task
    pool_at_rest()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_who_leaves_does_not_get_the_cancel_of_who_waits() -> None:
    for _ in range(20):  # the wait of one may be over before the other waits
        await leave_while_another_waits()


async def leave_while_another_waits() -> None:
    gate = Gate()

    def work(item: int) -> None:
        gate.chunk(item, item + 1)

    async def ask(results: Any) -> None:
        await anext(results)

    def cancel_and_open() -> None:
        asking.cancel()
        gate.open()

    async with map_ordered(work, range(10)) as results:
        asking = asyncio.create_task(ask(results))
        await gate.entered()
        asyncio.get_running_loop().call_soon(cancel_and_open)
    with pytest.raises((asyncio.CancelledError, RuntimeError)):  # or else it was left
        await asking


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_generator_around_a_stream_is_closed_as_the_scope_is_left(is_async: bool) -> None:
    gate, closed = Gate(), []

    def work(item: int) -> int:
        if item:
            gate.chunk(item, item + 1)
        return item

    async def source() -> AsyncIterator[int]:
        try:
            for item in range(1000):
                yield item
        finally:
            closed.append(True)

    async def values() -> AsyncGenerator[int, None]:
        async with map_ordered(work, source() if is_async else range(1000)) as results:
            async for value in results:
                yield value

    generator = values()
    assert await anext(generator) == 0
    await gate.entered()
    timer = threading.Timer(0.01, gate.open)
    timer.start()
    await generator.aclose()
    assert gate.done, "closing it waited for no item"
    timer.join()
    pool_at_rest()
    assert closed == [True] * is_async
    await anyio.lowlevel.checkpoint()  # and nobody is cancelled


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_generator_around_a_stream_may_be_closed_by_another_task() -> None:
    # As asyncio does after a `break`.
    closed = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        try:
            for item in range(1000):
                yield item
        finally:
            closed.set()

    async def values() -> AsyncGenerator[int, None]:
        async with map_ordered(double, source()) as results:
            async for value in results:
                yield value

    async def consume() -> None:
        generator = values()
        assert await anext(generator) == 0
        await asyncio.create_task(close_it(generator))
        await closed.wait()
        await anyio.lowlevel.checkpoint()

    async def close_it(generator: AsyncGenerator[int, None]) -> None:
        await generator.aclose()

    await asyncio.wait_for(asyncio.create_task(consume()), PATIENCE)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("source", [counted, an_item_and_no_more])
async def test_the_engine_ends_what_a_closed_loop_leaves(source: Callable[[], Any]) -> None:
    async def forever() -> None:
        async with map_ordered(double, source()) as results:
            async for _ in results:
                given.set()

    # No task is collected here, as none may be where the engine refers to it.
    loop = asyncio.new_event_loop()
    task = loop.create_task(forever())

    async def until_given() -> None:
        await given.wait()

    def in_thread() -> None:
        loop.run_until_complete(until_given())
        loop.close()

    given = asyncio.Event()
    await anyio.to_thread.run_sync(in_thread)
    await eventually(lambda: not current_pool().state.growing)
    del task
    gc.collect()


class Held:
    """What a task holds."""


CLOSED_LOOP = """
import asyncio, threading, weakref
from aioktask import map_ordered
from tests.support.gates import let_go_of

begun, gate = threading.Event(), threading.Event()

class Held: pass

def work(item):
    begun.set()
    gate.wait(60)

async def forever(held):
    async with map_ordered(work, range(3)) as results:
        async for _ in results:
            pass

async def until_begun():
    while not begun.is_set():
        await asyncio.sleep(0)

def close_a_loop():
    held = Held()
    loop = asyncio.new_event_loop()
    task = loop.create_task(forever(held))
    task._log_destroy_pending = False
    loop.run_until_complete(until_begun())
    loop.close()
    return weakref.ref(held)

watch = close_a_loop()
gate.set()
print("gone" if let_go_of(watch) else "held")
"""


def test_what_a_closed_loop_leaves_is_not_held() -> None:
    # In a process of its own, where nobody else refers to what tasks leave.
    command = [sys.executable, "-W", "ignore", "-c", CLOSED_LOOP]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "gone\n", done.stdout + done.stderr


async def test_the_events_of_a_stream_are_those_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[events.Event] = []
    monkeypatch.setattr(events, "_listeners", (heard.append,))
    monkeypatch.setattr(events, "_wishes", (lambda: True,))
    async with map_ordered(double, range(3), name="told") as results:
        async for _ in results:
            pass
    await eventually(lambda: len(heard) >= 3)
    kinds = [event.kind for event in heard if event.job == "told"]
    assert kinds == [
        events.EventKind.SUBMITTED,
        events.EventKind.STARTED,
        events.EventKind.FINISHED,
    ]


async def test_a_job_may_wait_for_a_stream_on_its_loop() -> None:
    # One helper, which the chunk holds while it waits for the loop: the stream is owed one.
    aioktask.set_max_threads(1)
    given: list[int] = []

    async def consume() -> None:
        async with map_ordered(double, range(20)) as results:
            given.extend([value async for value in results])

    token = anyio.lowlevel.current_token()

    def chunk(start: int, stop: int) -> None:
        anyio.from_thread.run(consume, token=token)

    with anyio.fail_after(PATIENCE):
        await run_multithreaded(Job(chunk, 1, chunk=1))
    assert given == [2 * item for item in range(20)]


@pytest.mark.anyio
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("kind", [asyncio.CancelledError, GeneratorExit])
async def test_what_is_no_exception_ends_a_stream_that_yields_errors(
    kind: type[BaseException], ordered: bool
) -> None:
    def fn(item: int) -> int:
        if item == 1:
            raise kind
        return item

    with anyio.fail_after(60), pytest.raises(RuntimeError, match=f"raised {kind.__name__}"):
        await all_of(fn, range(100), ordered=ordered, errors="yield")


async def all_of(fn: Callable[[int], int], source: Any, **options: Any) -> list[Any]:
    async with map_ordered(fn, source, **options) as results:
        return [each async for each in results]


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):  # noqa: N818
    """One whose class refuses attributes, the traceback among them."""

    what: str


@pytest.mark.anyio
async def test_an_error_whose_class_refuses_attributes_comes_as_it_is() -> None:
    def fn(item: int) -> int:
        if item == 1:
            raise Frozen("one")
        return item

    assert await all_of(fn, range(4), errors="yield") == [0, Frozen("one"), 2, 3]
    with pytest.raises(Frozen, match="one"):
        await all_of(fn, range(4))

    def source() -> Iterator[int]:
        yield 0
        raise Frozen("source")

    with pytest.raises(Frozen, match="source"):
        await all_of(fn, source())
