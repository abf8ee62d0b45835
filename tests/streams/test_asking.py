# SPDX-License-Identifier: MIT
# Who may ask a stream on a loop for values, and when; which of these calls let the loop go on; and
# what a cancel meets while the scope is left.

from __future__ import annotations

import contextlib
import itertools
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from functools import partial
from types import FrameType
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aioktask import JobCancelled, map_ordered
from aioktask.streams import Stream, _async
from aioktask.streams._source import SourceReader
from tests.streams.scenarios import Planted
from tests.support.gates import PATIENCE, Gate, eventually, turns_pass
from tests.support.harness import pool_at_rest

pytestmark = pytest.mark.anyio

LEFT = "the scope of the stream 'left' was left before its last value"


def double(item: int) -> int:
    return item * 2


async def counted(stop: int) -> AsyncIterator[int]:
    for item in range(stop):
        yield item


async def ask_by_for(results: Any, given: list[int]) -> None:
    async for value in results:
        given.append(value)  # noqa: PERF401 - it is looked at meanwhile


async def ask_by_anext(results: Any, given: list[int]) -> None:
    with contextlib.suppress(StopAsyncIteration):
        while True:
            given.append(await anext(results))


Ask = Callable[[Any, list[int]], Awaitable[None]]
WAYS: tuple[Ask, ...] = (ask_by_for, ask_by_anext)


# One task at a time.


@pytest.mark.parametrize("entered", ["first", "second", "neither"])
@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("second", WAYS)
async def test_a_second_task_that_asks_is_refused_and_the_first_one_goes_on(
    entered: str, first: Ask, second: Ask
) -> None:
    gate, given = Gate(), []

    def work(item: int) -> int:
        if item == 2:
            gate.chunk(item, item + 1)
        return item

    async def wait() -> None:
        await first(results, given)

    async def be_refused() -> None:
        await eventually(lambda: given == [0, 1])  # from then on the other one waits
        with pytest.raises(RuntimeError, match="two tasks ask for values of the stream 'shared'"):
            await second(results, [])
        gate.open()

    async with map_ordered(work, range(5), name="shared") as results:
        async with anyio.create_task_group() as tasks:
            for name, task in (("first", wait), ("second", be_refused)):
                if name != entered:
                    tasks.start_soon(task)
            if entered == "first":
                await wait()
            elif entered == "second":
                await be_refused()
    assert given == list(range(5))


async def test_a_second_task_is_refused_where_the_first_lets_the_loop_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_async, "MOST_NS_A_TURN", 0)  # at each value
    given: list[int] = []
    refused: list[str] = []

    async def ask() -> None:
        try:
            await ask_by_anext(results, given)
        except RuntimeError as error:
            refused.append(str(error))

    async with map_ordered(double, counted(100), window=100) as results:
        await eventually(lambda: results.handle.progress().done == 100)  # nobody has to wait
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            tasks.start_soon(ask)
    assert given == [2 * item for item in range(100)]
    assert len(refused) == 1
    assert "two tasks ask for values of the stream" in refused[0]


async def test_tasks_may_ask_one_after_the_other() -> None:
    lock, given = anyio.Lock(), []

    async def work() -> None:
        while True:
            async with lock:
                try:
                    value = await anext(results)
                except StopAsyncIteration:
                    return
                given.append(value)
            await anyio.lowlevel.checkpoint()

    async with map_ordered(double, range(200)) as results:
        async for value in results:
            given.append(value)
            if value == 20:
                break
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(work)
        assert [value async for value in results] == []
    assert given == [2 * item for item in range(200)]


# Inside the scope.


@pytest.mark.parametrize("way", WAYS)
async def test_a_stream_that_was_left_early_is_not_asked_any_more(way: Ask) -> None:
    async with map_ordered(double, range(3), name="left") as results:
        assert await anext(results) == 0

    async def ask() -> None:
        with pytest.raises(RuntimeError, match=LEFT):
            await way(results, [])

    await ask()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
    with pytest.raises(RuntimeError, match="entered already"):
        async with results:
            pass


async def test_who_waits_for_a_value_is_told_at_once_that_the_scope_is_left() -> None:
    gate = Gate()

    def work(item: int) -> None:
        gate.chunk(item, item + 1)

    async def ask(way: Ask) -> None:
        with pytest.raises(RuntimeError, match=LEFT):
            await way(results, [])
        gate.open()  # for which the scope waits

    for way in WAYS:
        async with anyio.create_task_group() as tasks:
            async with map_ordered(work, range(3), name="left") as results:
                tasks.start_soon(ask, way)
                await gate.entered()
        gate = Gate()


async def test_a_stream_that_had_ended_by_itself_gives_nothing_afterwards() -> None:
    def fail(item: int) -> int:
        raise Planted(item)

    async with map_ordered(double, range(3)) as whole:
        assert [value async for value in whole] == [0, 2, 4]
    async with map_ordered(fail, range(3)) as failed:
        with pytest.raises(Planted):
            await anext(failed)
    async with map_ordered(double, counted(3)) as cancelled:
        cancelled.handle.cancel()
        with pytest.raises(JobCancelled):
            [_ async for _ in cancelled]
    for results in (whole, failed, cancelled):
        assert [value async for value in results] == []
        with pytest.raises(StopAsyncIteration):
            await anext(results)


# Checkpoints.


@types.coroutine
def noting(awaitable: Awaitable[Any], suspensions: list[object]) -> Generator[Any, Any, Any]:
    """Await something, and note each time that the loop goes on meanwhile."""
    steps: Any = awaitable.__await__()
    sent = None
    while True:
        try:
            wanted = steps.send(sent)
        except StopIteration as stop:
            return stop.value
        suspensions.append(wanted)
        sent = yield wanted


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("each_ns", "items"),
    [(1_000, 10_000), (20_000, 1_000), (300_000, 200), (1_000_000, 100), (5_000_000, 100)],
)
async def test_about_one_call_in_a_millisecond_is_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, is_async: bool, each_ns: int, items: int
) -> None:
    now = 0
    monkeypatch.setattr(_async, "perf_counter_ns", lambda: now)
    suspensions: list[object] = []
    waited, went_on = [], []  # when a call had to wait, and when one let the loop go on
    source = counted(items) if is_async else range(items)
    async with map_ordered(double, source, window=items) as results:
        exchange, values = results._consumer.exchange, aiter(results)  # type: ignore[union-attr]
        for number in range(items):
            if number < results._consumer.taken:  # type: ignore[union-attr]
                await eventually(partial(exchange.has, number))
            there, before = exchange.has(number), len(suspensions)
            assert await noting(values.__anext__(), suspensions) == 2 * number
            if len(suspensions) > before:
                (went_on if there else waited).append(now)
            now += each_ns
    assert went_on
    times = sorted(waited + went_on)
    gaps = [after - before for before, after in itertools.pairwise([*times, now])]
    # The first values are too few to know how long they take: some, and the one waited for.
    assert all(gap <= 1_500_000 + each_ns for gap in gaps[1:])
    assert gaps[0] <= (_async.FEW_VALUES + 1) * each_ns + 1_500_000
    for before, after in itertools.pairwise(times):
        assert after not in went_on or after - before >= 1_000_000


async def test_a_cancel_reaches_a_consumer_that_finds_each_value_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = given = 0
    monkeypatch.setattr(_async, "perf_counter_ns", lambda: now)
    with anyio.CancelScope() as scope:
        async with map_ordered(double, range(1000), window=1000) as results:
            async for _ in results:
                scope.cancel()
                given += 1
                now += 100_000
    assert scope.cancelled_caught
    assert given <= 20
    pool_at_rest()


@pytest.mark.parametrize("is_async", [False, True])
async def test_leaving_is_no_checkpoint(is_async: bool) -> None:
    reached = []
    with anyio.CancelScope() as scope:
        async with map_ordered(double, counted(3) if is_async else range(3)) as results:
            assert [value async for value in results] == [0, 2, 4]
            await eventually(results.handle.done)
            scope.cancel()
        reached.append("left")
        await anyio.lowlevel.checkpoint()
        reached.append("the next one")
    assert scope.cancelled_caught
    assert reached == ["left"]


@pytest.mark.parametrize("by_error", [False, True])
async def test_a_cancel_while_the_scope_is_left_is_told_when_no_item_runs_any_more(
    by_error: bool,
) -> None:
    # On asyncio as the scope is left, in place of an exception that it is left by; on trio at the
    # next checkpoint.
    gate, left = Gate(), []

    async def cancel_and_open() -> None:
        await eventually(lambda: ": over" in repr(results))
        scope.cancel()
        await turns_pass()
        assert not left
        gate.open()

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            try:
                async with map_ordered(
                    lambda item: gate.chunk(item, item + 1), counted(9)
                ) as results:
                    await gate.entered()
                    tasks.start_soon(cancel_and_open)
                    if by_error:
                        raise Planted("body")
            except Planted:
                pass
            finally:
                left.extend(gate.done)
            await anyio.lowlevel.checkpoint()
            raise AssertionError("the cancel was lost")
    assert scope.cancelled_caught
    assert left
    pool_at_rest()


async def test_what_strikes_as_the_scope_is_left_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As a signal handler raises between two lines.
    closed, close_values = [], Stream._close_values
    strikes = [KeyboardInterrupt("planted")]

    async def source() -> AsyncIterator[int]:
        try:
            for item in range(1000):
                yield item
                await anyio.lowlevel.checkpoint()
        finally:
            closed.append(True)

    def strike(stream: Stream[int]) -> None:
        if strikes:
            raise strikes.pop()
        close_values(stream)

    monkeypatch.setattr(Stream, "_close_values", strike)
    with pytest.raises(KeyboardInterrupt, match="planted"):
        async with map_ordered(double, source()) as results:
            assert await anext(results) == 0
    assert closed
    pool_at_rest()


@pytest.mark.parametrize("where", [SourceReader.end, Stream._leave], ids=["end", "leave"])
async def test_what_strikes_in_any_line_of_leaving_ends_an_async_source_all_the_same(
    where: Any,
) -> None:
    struck, at_line = True, 0
    while struck:
        struck, at_line = False, at_line + 1
        closed: list[bool] = []
        lines = 0

        async def source(closed: list[bool] = closed) -> AsyncIterator[int]:
            try:
                yield 0
                await anyio.sleep_forever()
            finally:
                closed.append(True)

        def trace(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal struck, lines
            if frame.f_code is not where.__code__:
                return None
            if event == "line" and not struck:
                lines += 1
                if lines == at_line:  # noqa: B023 - of this turn
                    struck = True
                    raise KeyboardInterrupt("planted")
            return trace

        try:
            with anyio.CancelScope():  # which the reader's own must have been left in
                async with map_ordered(double, source()) as results:
                    assert await anext(results) == 0
                    sys.settrace(trace)
        except KeyboardInterrupt:
            assert struck
        finally:
            sys.settrace(None)
        assert closed == [True]
        pool_at_rest()
    assert at_line > 5


async def test_who_leaves_is_not_cancelled_with_who_waits() -> None:
    gate, waits, reached = Gate(), anyio.CancelScope(), []

    async def ask() -> None:
        with waits, contextlib.suppress(RuntimeError):  # the scope may be left before
            await anext(results)

    async def cancel_and_open() -> None:
        await eventually(lambda: ": over" in repr(results))
        waits.cancel()
        await turns_pass()
        gate.open()

    async with anyio.create_task_group() as tasks:
        async with map_ordered(lambda item: gate.chunk(item, item + 1), range(9)) as results:
            tasks.start_soon(ask)
            await gate.entered()
            tasks.start_soon(cancel_and_open)
        reached.append("left")
        await anyio.lowlevel.checkpoint()
        reached.append("the next checkpoint")
    assert reached == ["left", "the next checkpoint"]
    pool_at_rest()


async def test_a_generator_that_another_task_closes_waits_for_no_item_of_its_stream() -> None:
    gate, closed, ended = Gate(), [], []

    def work(item: int) -> int:
        if item:
            try:
                gate.chunk(item, item + 1)
            finally:
                ended.append(item)
        return item

    def source() -> Generator[int, None, None]:
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    async def values() -> Any:
        async with map_ordered(work, source()) as results:
            async for value in results:
                yield value

    generator = values()
    assert await anext(generator) == 0
    await gate.entered()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(generator.aclose)
    assert closed
    assert not ended
    gate.open()
    await anyio.lowlevel.checkpoint()
    pool_at_rest()


# Wake-ups.


class LosesOne:
    """A loop, or trio's token of one, that loses the first call that a thread gives it."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self.lost: list[object] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)

    def call_soon_threadsafe(self, callback: object, *args: object, **options: object) -> object:
        if not self.lost:
            self.lost.append(callback)  # which would tell of the loss, were it let go of
            return None
        return self.target.call_soon_threadsafe(callback, *args, **options)

    def run_sync_soon(self, callback: object, *args: object) -> None:
        if not self.lost:
            self.lost.append(callback)
            return
        self.target.run_sync_soon(callback, *args)


async def test_a_wakeup_that_the_loop_lost_is_sent_again() -> None:
    gate = Gate()

    def work(item: int) -> int:
        if item:
            gate.chunk(item, item + 1)
        return item

    async def open_it() -> None:
        await gate.entered()
        await turns_pass()
        gate.open()

    async with map_ordered(work, itertools.count(), window=2) as results:  # no end wakes it too
        assert await anext(results) == 0
        waiter = results._waiter
        where = "_token" if hasattr(waiter, "_token") else "_loop"
        loses = LosesOne(getattr(waiter, where))
        setattr(waiter, where, loses)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_it)
            with anyio.fail_after(PATIENCE):
                assert await anext(results) == 1
    assert len(loses.lost) == 1
