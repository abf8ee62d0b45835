# SPDX-License-Identifier: MIT
# The scope that memory operations hold things by: whatever fails or is cancelled, and whenever,
# what was taken is given back before the caller hears of it.

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator

import anyio
import pytest

from aioktask import Coordinator, Job, JobCancelled, UndoFailed, run_multithreaded_sync
from aioktask.memory import _holding
from aioktask.memory._holding import Holding, Steps
from tests.support.gates import Gate, turns_pass
from tests.support.meanwhile import Scene, play_at_each_line

UNITS = 4


def nothing(start: int, stop: int) -> None:
    pass


class Thing(Holding):
    """Takes and gives back in two jobs each, and knows which units of them it holds."""

    def __init__(
        self,
        take: Callable[[int, int], object] = nothing,
        give: Callable[[int, int], object] = nothing,
        coordinator: Coordinator | None = None,
    ) -> None:
        super().__init__(coordinator)
        self.take = take
        self.give = give
        self.held: set[int] = set()
        self.lock = threading.Lock()

    def _taking(self) -> Steps:
        try:
            for base in (0, UNITS):
                yield Job(self.taken, UNITS, start=base, chunk=1, name="taking")
        except BaseException:
            yield from self._giving_back()
            raise

    def _giving_back(self) -> Steps:
        for base in (UNITS, 0):
            yield Job(self.given_back, UNITS, start=base, chunk=1, name="giving back")

    def taken(self, start: int, stop: int) -> None:
        with self.lock:
            self.held.update(range(start, stop))
        self.take(start, stop)

    def given_back(self, start: int, stop: int) -> None:
        self.give(start, stop)
        with self.lock:
            self.held.difference_update(range(start, stop))


class Fails:
    """A chunk that raises for one unit."""

    def __init__(self, unit: int, error: BaseException) -> None:
        self.unit = unit
        self.error = error

    def __call__(self, start: int, stop: int) -> None:
        if start == self.unit:
            raise self.error


ALL = set(range(2 * UNITS))


@pytest.mark.anyio
async def test_it_holds_all_of_it_inside_and_nothing_outside() -> None:
    thing = Thing()
    assert thing.held == set()
    async with thing as entered:
        assert entered is thing
        assert thing.held == ALL
    assert thing.held == set()


@pytest.mark.anyio
async def test_plain_calls_do_the_same() -> None:
    thing = await Thing()
    assert thing.held == ALL
    await thing.aclose()
    assert thing.held == set()
    await thing.aclose()


def test_a_thread_may_use_it() -> None:
    with Thing() as thing:
        assert thing.held == ALL
    assert thing.held == set()
    opened = Thing().open()
    assert opened.held == ALL
    opened.close()
    opened.close()
    assert opened.held == set()


def test_it_is_for_one_use() -> None:
    with Thing() as thing, pytest.raises(RuntimeError, match="Thing is open: make a new one"):
        thing.open()
    with pytest.raises(RuntimeError, match="Thing is closed: make a new one"):
        thing.open()
    never = Thing()
    never.close()
    with pytest.raises(RuntimeError, match="Thing is closed"):
        never.open()


@pytest.mark.parametrize("meanwhile", ["open", "close"])
@pytest.mark.parametrize("call", ["open", "close"])
def test_a_finalizer_may_open_and_close_it_in_any_line_of_the_same(
    call: str, meanwhile: str
) -> None:
    """It is taken once and given back once, whichever call does."""

    def begin() -> Scene:
        taken: list[int] = []
        given: list[int] = []
        thing = Thing(
            lambda start, stop: taken.append(start), lambda start, stop: given.append(start)
        )
        if call == "close":
            thing.open()

        def attempt(what: str) -> None:
            with contextlib.suppress(RuntimeError):  # it is in use elsewhere, or was
                getattr(thing, what)()

        def check() -> None:
            thing.close()
            assert sorted(taken) in ([], sorted(ALL))
            assert sorted(given) == sorted(taken)

        return Scene(lambda: attempt(call), lambda: attempt(meanwhile), check)

    play_at_each_line(begin, _holding)


@pytest.mark.anyio
async def test_the_sync_form_is_refused_under_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="await run_multithreaded"):
        Thing().open()


@pytest.mark.parametrize("unit", sorted(ALL))
@pytest.mark.anyio
async def test_what_fails_while_taking_gives_all_back(unit: int) -> None:
    error = OSError(12, "no memory")
    thing = Thing(Fails(unit, error))
    with pytest.raises(OSError, match="no memory") as info:
        async with thing:
            pytest.fail("it was entered")
    assert info.value is error
    assert thing.held == set()
    with pytest.raises(RuntimeError, match="is closed"):
        await thing


@pytest.mark.parametrize("unit", sorted(ALL))
def test_the_same_in_a_thread(unit: int) -> None:
    thing = Thing(Fails(unit, OSError(12, "no memory")))
    with pytest.raises(OSError, match="no memory"):
        thing.open()
    assert thing.held == set()


@pytest.mark.anyio
async def test_what_cannot_be_given_back_after_a_failure_is_an_undo_failed() -> None:
    error = OSError(12, "no memory")
    thing = Thing(Fails(UNITS + 1, error), Fails(2, OSError(5, "broken")))
    with pytest.raises(UndoFailed) as info:
        await thing
    assert info.value.__cause__ is error
    assert [str(each) for each in info.value.exceptions] == ["[Errno 5] broken"]
    assert info.value.ranges == (range(UNITS),)


@pytest.mark.anyio
async def test_when_giving_back_fails_it_is_open_still_and_may_be_tried_again() -> None:
    fails = Fails(2, OSError(5, "broken"))
    thing = await Thing(give=fails)
    with pytest.raises(OSError, match="broken"):
        await thing.aclose()
    assert 2 in thing.held
    fails.unit = -1
    await thing.aclose()
    assert thing.held == set()


@pytest.mark.parametrize("base", [0, UNITS])
@pytest.mark.anyio
async def test_a_cancel_while_taking_gives_all_back_and_goes_on(base: int) -> None:
    gate = Gate()
    thing = Thing(lambda start, stop: gate.chunk(start, stop) if start >= base else None)
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:

            async def cancels() -> None:
                await gate.entered()
                scope.cancel()
                gate.open()

            tasks.start_soon(cancels)
            async with thing:
                pytest.fail("it was entered")
        assert scope.cancelled_caught
        assert thing.held == set()


@pytest.mark.anyio
async def test_a_cancel_while_giving_back_waits_for_the_end_of_it() -> None:
    gate = Gate()
    thing = Thing(give=gate.chunk)
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:

            async def cancels() -> None:
                await gate.entered()
                scope.cancel()
                gate.open()

            tasks.start_soon(cancels)
            async with thing:
                pass
            await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert thing.held == set()


@pytest.mark.anyio
async def test_it_gives_back_in_a_scope_that_is_cancelled_already() -> None:
    thing = await Thing()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await thing.aclose()
    assert thing.held == set()


@pytest.mark.asyncio
async def test_any_number_of_cancels_of_asyncio_are_outlived() -> None:
    gate = Gate()
    thing = Thing(give=gate.chunk)

    async def hold() -> None:
        async with thing:
            pass

    task = asyncio.create_task(hold())
    await gate.entered()
    for _ in range(5):
        task.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert thing.held == set()


@pytest.mark.asyncio
async def test_a_cancel_after_a_failure_goes_on_when_all_is_given_back() -> None:
    gate = Gate()
    thing = Thing(Fails(UNITS, OSError(12, "no memory")), gate.chunk)

    async def opens() -> None:
        await thing

    task = asyncio.create_task(opens())
    await gate.entered()
    task.cancel()
    gate.open()
    with pytest.raises(asyncio.CancelledError) as info:
        await task
    assert thing.held == set()
    assert isinstance(info.value.__cause__, OSError)


@pytest.mark.anyio
async def test_a_coordinator_that_ended_does_not_keep_it_from_giving_back() -> None:
    coordinator = Coordinator()
    async with coordinator:
        thing = await Thing(coordinator=coordinator)
    assert thing.held == ALL
    await thing.aclose()
    assert thing.held == set()


@pytest.mark.anyio
async def test_a_coordinator_that_ends_a_job_of_it_has_all_given_back() -> None:
    gate = Gate()
    coordinator = Coordinator()
    thing = Thing(gate.chunk, coordinator=coordinator)

    async def ends() -> None:
        await gate.entered()
        tasks.start_soon(functools.partial(coordinator.shutdown, cancel=True))
        await turns_pass()
        gate.open()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ends)
        with pytest.raises(JobCancelled):
            await thing
        assert thing.held == set()


def test_within_a_chunk_of_another_job() -> None:
    held: list[set[int]] = []

    def chunk(start: int, stop: int) -> None:
        with Thing() as thing:
            held.append(set(thing.held))
        held.append(set(thing.held))

    run_multithreaded_sync(Job(chunk, 1))
    assert held == [ALL, set()]


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler, also where the shell that began the tests had SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_giving_back_in_the_main_thread_waits_for_the_end_of_it() -> None:
    struck = threading.Event()

    def give(start: int, stop: int) -> None:
        if not struck.is_set():
            struck.set()
            os.kill(os.getpid(), signal.SIGINT)

    thing = Thing(give=give).open()
    with pytest.raises(KeyboardInterrupt):
        thing.close()
    assert thing.held == set()


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_taking_gives_all_back() -> None:
    struck = threading.Event()

    def take(start: int, stop: int) -> None:
        if start == UNITS + 1 and not struck.is_set():
            struck.set()
            os.kill(os.getpid(), signal.SIGINT)

    thing = Thing(take)
    with pytest.raises(KeyboardInterrupt):
        thing.open()
    assert thing.held == set()


def test_one_that_is_never_closed_warns() -> None:
    things: list[Thing] = [Thing().open()]
    with pytest.warns(ResourceWarning, match="Thing was never closed"):
        things.clear()


def test_a_coroutine_that_is_dropped_gives_back_in_its_thread() -> None:
    """As at the end of a loop that was not shut down."""
    gate = Gate()
    thing = Thing(lambda start, stop: gate.chunk(start, stop) if start >= UNITS else None)

    async def opens() -> None:
        await thing

    coroutine = opens()
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        task = loop.create_task(coroutine)
        loop.run_until_complete(gate.entered())
        assert thing.held > set(range(UNITS))
        coroutine.close()
        assert thing.held == set()
        gate.open()
        # What becomes of a task whose coroutine was closed behind its back.
        task.cancel()
        with pytest.raises((RuntimeError, asyncio.CancelledError)):
            loop.run_until_complete(task)
