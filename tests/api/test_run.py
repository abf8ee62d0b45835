# SPDX-License-Identifier: MIT
# One call on a helper: its value and its exception as they are, never abandoned, never called after
# a cancel. On asyncio, uvloop and trio.

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import aioktask
from aioktask import (
    ChunkCancelled,
    Coordinator,
    Job,
    JobCancelled,
    current_chunk,
    failure,
    priority,
    run_multithreaded,
)
from aioktask.engine.api.process import current_pool
from aioktask.engine.state.current import enclosing_run
from tests.support.gates import PATIENCE, Gate, eventually, turns_pass
from tests.support.patient import wait_until_unwanted

pytestmark = [pytest.mark.anyio, pytest.mark.max_threads(2)]


async def in_no_coordinator(fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return await aioktask.run(fn, *args, **options)


async def in_a_coordinator(fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
    async with Coordinator(1) as coordinator:
        return await coordinator.run(fn, *args, **options)


either = pytest.mark.parametrize("run", [in_no_coordinator, in_a_coordinator])


@either
async def test_what_the_function_returns_comes_back_as_it_is(run: Any) -> None:
    value = object()
    assert await run(lambda *args: (args, value), 1, "two") == ((1, "two"), value)
    assert await run(functools.partial(int, "ff", base=16)) == 255
    assert await run(dict.fromkeys, "a") == {"a": None}
    assert await run(type(None)) is None
    coroutine = await run(lambda: asyncio.sleep(0))  # a value as any other
    coroutine.close()


@either
async def test_it_is_called_once_on_a_helper_while_the_loop_stays_alive(run: Any) -> None:
    gate = Gate()
    threads: list[int] = []

    def call() -> None:
        threads.append(threading.get_ident())
        gate.chunk(0, 1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, call)
        await gate.entered()
        gate.open()
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


@either
async def test_what_the_function_raises_is_raised_as_it_is_without_a_note(run: Any) -> None:
    error = OSError(12, "no memory")

    def fail() -> None:
        raise error

    with pytest.raises(OSError, match="no memory") as caught:
        await run(fail, name="reading")
    assert caught.value is error
    assert not hasattr(error, "__notes__")
    assert failure(error).job.name == "reading"
    names = [entry.name for entry in caught.traceback]
    assert names[-1] == "fail"
    assert "__call__" not in names


@either
async def test_the_call_has_the_name_of_its_function_or_the_given_one(run: Any) -> None:
    def fail() -> None:
        raise LookupError

    for fn in (fail, functools.partial(fail)):
        with pytest.raises(LookupError) as caught:
            await run(fn)
        assert failure(caught.value).job.name == fail.__qualname__
        with pytest.raises(LookupError) as caught:
            await run(fn, name="reading")
        assert failure(caught.value).job.name == "reading"


@either
@pytest.mark.parametrize("given", [None, "reading"])
async def test_events_and_threads_have_its_name(
    run: Any, given: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    def thread_name() -> str:
        return threading.current_thread().name

    name = given or thread_name.__qualname__
    caplog.set_level(logging.DEBUG, logger="aioktask")
    for _ in range(3):  # the later ones pass the lane
        assert await run(thread_name, name=given) == name
    told = f"job_finished job={name!r}"
    await eventually(lambda: sum(text.startswith(told) for text in caplog.messages) == 3)


async def test_it_is_of_the_coordinator_that_is_given_or_of_the_chunk_around_it() -> None:
    def groups() -> list[object]:
        """Whose call this is, and whose the one that it makes in a loop of its own."""
        own = enclosing_run()
        assert own is not None
        return [own.group]

    def nested() -> list[object]:
        return [*groups(), *asyncio.run(aioktask.run(groups))]

    async with Coordinator() as coordinator, Coordinator() as other:
        mine, others = coordinator.scope()[1], other.scope()[1]
        assert await aioktask.run(nested, coordinator=coordinator) == [mine, mine]
        assert await coordinator.run(nested) == [mine, mine]
        assert await other.run(nested) == [others, others]
        root = current_pool().state.root
        assert await aioktask.run(nested) == [root, root]


async def test_it_is_lent_the_nice_of_the_chunk_that_waits_and_lends_it_on() -> None:
    def is_lent(name: str) -> int | None:
        """What the run of this name is lent, once it is: the wait may begin after it does."""
        pool, until = current_pool(), time.monotonic() + PATIENCE
        while time.monotonic() < until:
            loans = pool.take_turn(
                None, lambda: [each.entry.loan for each in pool.state.runs if each.name == name]
            )
            if loans and loans != [None]:
                return loans[0]
        return None

    found: dict[str, int | None] = {}

    def background(start: int, stop: int) -> None:
        found["job"] = is_lent("background")

    def call() -> None:
        found["call"] = is_lent("call")
        job = Job(background, 1, nice=12, name="background")
        coordinator.submit(job).result(PATIENCE)

    def chunk(start: int, stop: int) -> None:
        asyncio.run(coordinator.run(call, nice=10, name="call"))

    async with Coordinator() as coordinator:
        job = Job(chunk, 1, nice=3, name="waits")
        await run_multithreaded(job, coordinator=coordinator)
    assert found == {"call": 3, "job": 3}


def test_without_a_loop_nothing_is_called() -> None:
    with pytest.raises(RuntimeError, match="loop"):
        aioktask.run(pytest.fail, "it was called").send(None)


@either
@pytest.mark.parametrize("misread", [StopIteration, asyncio.CancelledError, GeneratorExit])
async def test_what_would_be_misread_is_the_cause_of_a_runtime_error(
    run: Any, misread: type[BaseException]
) -> None:
    def fail() -> None:
        raise misread

    with pytest.raises(RuntimeError, match=misread.__name__) as caught:
        await run(fail)
    assert isinstance(caught.value.__cause__, misread)


async def never_called() -> None:
    pytest.fail("it was called")


def never_iterated() -> Any:
    yield pytest.fail("it was called")


@either
@pytest.mark.parametrize(
    ("fn", "options", "error", "match"),
    [
        (never_called, {}, TypeError, "fn runs on a helper thread .* async never_called"),
        (functools.partial(never_called), {}, TypeError, "async never_called"),
        (never_iterated, {}, TypeError, "generator function never_iterated"),
        (5, {}, TypeError, "fn must be callable, got 5"),
        (print, {"nice": 20}, ValueError, "nice must be from -20 to 19, got 20"),
        (print, {"nice": 1.5}, TypeError, "nice must be an integer, got 1.5"),
        (print, {"name": 5}, TypeError, "name must be a string, got 5"),
    ],
)
async def test_what_makes_no_sense_is_refused_before_any_work(
    run: Any, fn: Any, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        await run(fn, **options)


@either
async def test_a_keyword_argument_of_the_function_is_refused_with_the_way_to_pass_it(
    run: Any,
) -> None:
    with pytest.raises(TypeError) as caught:
        await run(sorted, [2, 3], reverse=True)
    what = "Coordinator.run()" if run is in_a_coordinator else "run()"
    assert str(caught.value) == (
        f"{what} takes no argument 'reverse': where it is one of sorted, pass "
        "functools.partial(sorted, reverse=...)"
    )
    assert await run(functools.partial(sorted, reverse=True), [2, 3]) == [3, 2]


async def test_a_coordinator_that_was_left_takes_no_calls() -> None:
    async with Coordinator() as coordinator:
        pass
    with pytest.raises(RuntimeError, match="takes no more jobs"):
        await coordinator.run(print)


async def test_leaving_a_coordinator_by_an_exception_ends_its_calls() -> None:
    gate = Gate()
    outcomes: list[object] = []

    def call() -> None:
        gate.chunk(0, 1)
        wait_until_unwanted()

    async def wait(coordinator: Coordinator) -> None:
        try:
            await coordinator.run(call)
        except JobCancelled as error:
            outcomes.append(type(error))

    async def leave(tasks: anyio.abc.TaskGroup) -> None:
        async with Coordinator(1) as coordinator:
            tasks.start_soon(wait, coordinator)
            await gate.entered()
            tasks.start_soon(wait, coordinator)
            await turns_pass()
            gate.open()
            raise ZeroDivisionError

    async with anyio.create_task_group() as tasks:
        with pytest.raises(ZeroDivisionError):
            await leave(tasks)
    assert outcomes == [JobCancelled, JobCancelled]
    assert len(gate.done) == 1


@either
async def test_the_call_finds_the_context_of_its_caller(run: Any) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("here")

    def call() -> str:
        found = variable.get()
        variable.set("there")
        return found

    assert await run(call) == "here"
    assert variable.get() == "here"


async def test_the_nice_is_that_of_the_call_or_of_the_block_around_it() -> None:
    def nice_of_this() -> int:
        (nice,) = [run.nice for run in list(current_pool().state.runs)]
        return nice

    # A job as well, so that no call passes the lane, where turns would not see it.
    async with Coordinator(nice=3) as coordinator:
        assert await aioktask.run(_seen, nice_of_this, nice=7) == 7
        with priority(-2):
            assert await aioktask.run(_seen, nice_of_this, nice=7) == -2
        assert await coordinator.run(_seen, nice_of_this) == 3


def _seen(look: Callable[[], int]) -> int:
    pool = current_pool()
    pool.take_turn(None, lambda: None)  # closes the lane, so that the call is an ordinary run
    return look()


@either
async def test_a_call_that_is_cancelled_before_it_starts_is_never_made(run: Any) -> None:
    gate = Gate()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_multithreaded, Job(gate.chunk, 2, chunk=1))
        await gate.entered(2)  # no helper is free
        async with anyio.create_task_group() as inner:
            inner.start_soon(run, pytest.fail, "it was called")
            await turns_pass()
            inner.cancel_scope.cancel()
        gate.open()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await run(pytest.fail, "it was called")
    assert scope.cancelled_caught


@either
async def test_a_call_that_runs_is_waited_for_and_told(run: Any) -> None:
    gate = Gate()
    told: list[bool] = []

    def call() -> None:
        gate.chunk(0, 1)
        try:
            current_chunk().check_cancelled()
        except ChunkCancelled:
            told.append(True)
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, call)
        await gate.entered()
        tasks.cancel_scope.cancel()
        await turns_pass()
        with anyio.CancelScope(shield=True):
            await turns_pass()
        assert gate.done == []
        gate.open()
    assert told == [True]


@either
@pytest.mark.parametrize("steps", range(12))
async def test_a_cancel_at_any_step_leaves_no_call_behind(run: Any, steps: int) -> None:
    began: list[int] = []
    ended: list[int] = []

    def call() -> None:
        began.append(1)
        ended.append(1)

    for _ in range(5):
        began.clear()
        ended.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, call)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert len(began) == len(ended) <= 1
        await turns_pass()
        assert len(began) == len(ended) <= 1


async def test_the_limits_of_coordinator_and_process_hold() -> None:
    gate = Gate()
    async with anyio.create_task_group() as tasks:
        async with Coordinator(1) as coordinator:
            for _ in range(3):
                tasks.start_soon(coordinator.run, gate.chunk, 0, 1)
            await gate.entered()
            pool = current_pool()
            group = coordinator.scope()[1]
            await eventually(lambda: len(group.runs) == 3)
            assert pool.take_turn(None, lambda: group.threads) == 1
            gate.open()
    assert len(gate.done) == 3


async def test_nothing_keeps_the_arguments_or_the_value_of_a_call_that_is_over() -> None:
    import gc
    import weakref

    class Big:
        pass

    big = Big()
    seen = weakref.ref(big)
    result = weakref.ref(await aioktask.run(lambda given: [given][0], big))
    assert result() is big
    del big
    await eventually(lambda: gc.collect() >= 0 and seen() is None)


@pytest.mark.parametrize("begins", [False, True])
async def test_a_cancellation_keeps_neither_the_arguments_nor_the_value(begins: bool) -> None:
    import gc
    import weakref

    class Big:
        pass

    gate, busy = Gate(), Gate()
    caught: list[BaseException] = []
    seen: list[weakref.ref[Big]] = []

    def call(given: Big) -> Big:
        gate.chunk(0, 1)
        made = Big()
        seen.append(weakref.ref(made))
        return made

    async def wait() -> None:
        big = Big()
        seen.append(weakref.ref(big))
        made = [big]
        del big
        try:
            await aioktask.run(call, made.pop())
        except anyio.get_cancelled_exc_class() as error:
            caught.append(error)
            raise

    async with anyio.create_task_group() as tasks:
        if not begins:
            tasks.start_soon(run_multithreaded, Job(busy.chunk, 2, chunk=1))
            await busy.entered(2)  # no helper is free
        async with anyio.create_task_group() as inner:
            inner.start_soon(wait)
            if begins:
                await gate.entered()
            else:
                await turns_pass()
            inner.cancel_scope.cancel()
            await turns_pass()
            gate.open()
        busy.open()
    assert failure(caught[0]).job is not None
    assert len(seen) == 1 + begins
    await eventually(lambda: gc.collect() >= 0 and not any(each() for each in seen))
