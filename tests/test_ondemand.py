# SPDX-License-Identifier: MIT
# Sections that are done when they are needed: each once, what is asked for first, and only that is
# waited for.

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioktask import (
    Coordinator,
    DeadlockError,
    Job,
    JobCancelled,
    OnDemand,
    Part,
    arrays,
    current_chunk,
    failure,
    priority,
    run_multithreaded_sync,
)
from aioktask.engine.frame import enclosing_run
from aioktask.ondemand._sections import Sections
from tests.gates import PATIENCE, turns_pass, units


class Doors:
    """A job's function whose sections wait, each at a door of its own, if that is shut."""

    def __init__(self, *shut: int) -> None:
        self.lock = threading.Lock()
        self.begun: list[int] = []
        self.done: list[tuple[int, int]] = []
        self.nices: list[int] = []
        self.doors = {start: threading.Event() for start in shut}
        self.arrived = {start: threading.Event() for start in shut}

    def __call__(self, start: int, stop: int) -> None:
        run = enclosing_run()
        assert run is not None
        with self.lock:
            self.begun.append(start)
        if start in self.doors:
            self.arrived[start].set()
            assert self.doors[start].wait(PATIENCE), "the test never opened the door"
        with self.lock:
            self.done.append((start, stop))
            self.nices.append(run.entry.nice)

    def open(self, *starts: int) -> None:
        for start in starts or self.doors:
            self.doors[start].set()

    async def at(self, start: int) -> None:
        """Until the section waits at its door."""
        with anyio.fail_after(PATIENCE):
            while not self.arrived[start].is_set():
                await anyio.lowlevel.checkpoint()


# the sections themselves


@given(st.integers(-50, 50), st.integers(0, 100), st.integers(1, 30))
def test_sections_are_the_range_cut_at_multiples(start: int, size: int, section: int) -> None:
    sections = Sections(start, start + size, section)
    bounds = [sections.bounds(index) for index in range(sections.count)]
    assert units(bounds) == list(range(start, start + size))
    for first, last in bounds:
        assert first < last
        assert first == start or first % section == 0
        assert last == start + size or last % section == 0


@given(st.data())
def test_sections_that_cover_a_stretch_are_those_that_meet_it(data: st.DataObject) -> None:
    start = data.draw(st.integers(-50, 50))
    sections = Sections(start, start + data.draw(st.integers(1, 100)), data.draw(st.integers(1, 9)))
    first = data.draw(st.integers(start, sections.stop))
    last = data.draw(st.integers(first, sections.stop))
    meets = [
        index
        for index in range(sections.count)
        if set(range(*sections.bounds(index))) & set(range(first, last))
    ]
    assert list(sections.covering(first, last)) == meets


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-20, 19)), max_size=30))
def test_what_is_urged_comes_first_and_each_section_once(urged: list[tuple[int, int]]) -> None:
    sections = Sections(0, 10, 1)
    for index, nice in urged:
        sections.urge(index, nice)
    order: list[tuple[int, int | None]] = []
    while (found := sections.next()) is not None:
        sections.take(found[0])
        order.append(found)
    assert sorted(index for index, _ in order) == list(range(10))
    asked = {index for index, _ in urged}
    assert {index for index, _ in order[: len(asked)]} == asked
    best = [min(nice for i, nice in urged if i == index) for index, _ in order[: len(asked)]]
    assert best == sorted(best)
    rest = [index for index, _ in order[len(asked) :]]
    assert rest == sorted(rest)


# the whole


@pytest.mark.anyio
async def test_leaving_normally_has_done_every_section_once() -> None:
    doors = Doors()
    async with OnDemand(Job(doors, 1001, start=-3), section=10) as d:
        assert repr(d).startswith("<OnDemand 'Doors'") or "OnDemand" in repr(d)
    assert units(doors.done) == list(range(-3, 998))
    assert all(start % 10 == 0 for start, _ in doors.done if start != -3)
    progress = d.progress()
    assert (progress.done, progress.size, progress.threads) == (1001, 1001, 0)
    assert progress.chunks == len(doors.done)
    assert progress.elapsed > 0
    await d.ensure(-3, 998)
    await d.wait()


def test_the_same_in_a_thread() -> None:
    doors = Doors()
    with OnDemand(Job(doors, 100), section=7, first=20) as d:
        assert set(range(20)) <= set(units(doors.done))
        d.ensure_sync(50, 60)
        assert set(range(50, 60)) <= set(units(doors.done))
    assert units(doors.done) == list(range(100))
    d.wait_sync()


@pytest.mark.anyio
async def test_what_is_ensured_goes_before_the_rest() -> None:
    doors = Doors(0)
    async with OnDemand(Job(doors, 10, max_threads=1), section=1) as d:
        await doors.at(0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(d.ensure, 7, 9)
            await turns_pass()
            tasks.start_soon(d.ensure, 4, 5)
            await turns_pass()
            doors.open()
    assert doors.begun[:2] == [0, 7]
    assert set(doors.begun[2:4]) == {8, 4}
    assert doors.begun[4:] == [1, 2, 3, 5, 6, 9]


@pytest.mark.anyio
async def test_a_section_has_its_waiters_priority_and_lends_it_to_what_is_in_its_way() -> None:
    doors = Doors(0)
    async with OnDemand(Job(doors, 6, max_threads=1, nice=10), section=1) as d:
        await doors.at(0)

        async def ensure(start: int, nice: int) -> None:
            with priority(nice):
                await d.ensure(start, start + 1)

        async with anyio.create_task_group() as tasks:
            for start, nice in ((2, 5), (4, -5), (3, 0)):
                tasks.start_soon(ensure, start, nice)
                await turns_pass()
            assert d._running[0].nice == -5  # it is in the way of the most urgent waiter
            doors.open()
    # Which of three goes first is a matter of shares; all of them go before the background.
    assert set(doors.begun[1:4]) == {2, 3, 4}
    nices = dict(zip(doors.begun, doors.nices, strict=True))
    assert nices[0] == nices[4] == -5
    assert nices[3] <= 0
    assert nices[2] <= 5
    assert nices[1] == nices[5] == 10


@pytest.mark.anyio
async def test_it_waits_only_for_what_it_asked_for() -> None:
    doors = Doors(0)
    async with OnDemand(Job(doors, 10), section=1) as d:
        await doors.at(0)
        with anyio.fail_after(PATIENCE):
            await d.ensure(5, 8)
        assert {5, 6, 7} <= set(units(doors.done))
        assert 0 not in units(doors.done)
        await d.ensure(3, 3)  # nothing
        doors.open()


@pytest.mark.anyio
async def test_a_section_that_runs_is_waited_for_and_not_run_again() -> None:
    doors = Doors(0)
    async with OnDemand(Job(doors, 4), section=2) as d:
        await doors.at(0)
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(d.ensure, 0, 1)
            await turns_pass()
            doors.open()
    assert sorted(doors.begun) == [0, 2]


@pytest.mark.anyio
async def test_a_first_stretch_is_done_before_it_is_entered() -> None:
    doors = Doors()
    async with OnDemand(Job(doors, 100), section=10, first=35):
        assert set(range(40)) <= set(units(doors.done))


@pytest.mark.anyio
async def test_a_cancelled_ensure_loses_nothing() -> None:
    doors = Doors(0, 5)
    async with OnDemand(Job(doors, 8, max_threads=1), section=1) as d:
        await doors.at(0)
        for start in (5, 0):
            with anyio.move_on_after(0.0) as scope:
                await d.ensure(start, start + 1)
            assert scope.cancelled_caught
        doors.open()
    assert units(doors.done) == list(range(8))


@pytest.mark.anyio
async def test_once_done_it_does_not_yield_and_cannot_be_cancelled() -> None:
    async with OnDemand(Job(Doors(), 8), section=1, first=8) as d:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await d.ensure(0, 8)
        assert not scope.cancelled_caught


@settings(max_examples=20)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 30)), max_size=8), max_size=4)
)
def test_threads_that_ensure_at_once_have_each_section_done_once(
    plans: list[list[tuple[int, int]]],
) -> None:
    values = np.zeros(100, np.int64)
    wrong: list[Any] = []

    def initialise(start: int, stop: int) -> None:
        values[start:stop] += 1

    def uses(plan: list[tuple[int, int]]) -> None:
        for start, count in plan:
            stop = min(100, start + count)
            try:
                d.ensure_sync(start, stop)
            except BaseException as error:
                wrong.append(error)
            if not (values[start:stop] == 1).all():
                wrong.append((start, stop))

    with OnDemand(Job(initialise, 100), section=3) as d:
        threads = [threading.Thread(target=uses, args=(plan,)) for plan in plans]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert not wrong
    assert (values == 1).all()


# inside chunks


@pytest.mark.anyio
async def test_a_chunk_may_ensure_when_every_helper_is_taken() -> None:
    """It needs no free helper: the waiting chunk's thread makes room for one."""
    doors = Doors()
    served: list[int] = []

    def request(start: int, stop: int) -> None:
        d.ensure_sync(start, stop)
        assert set(range(start, stop)) <= set(units(doors.done))
        served.append(start)

    async with Coordinator() as coordinator, OnDemand(Job(doors, 64), section=1) as d:
        await coordinator.submit(Job(request, 64, chunk=1, nice=-1))
    assert sorted(served) == list(range(64))


@pytest.mark.parametrize("max_threads", [None, 1])
def test_sections_may_need_others(max_threads: int | None) -> None:
    order: list[int] = []

    def initialise(start: int, stop: int) -> None:
        if start > 0:
            d.ensure_sync(start - 1, start)
        order.append(start)

    with OnDemand(Job(initialise, 20, max_threads=max_threads), section=1) as d:
        d.ensure_sync(19, 20)
    assert order == list(range(20))


def test_a_section_that_ensures_itself_is_a_deadlock_told() -> None:
    def initialise(start: int, stop: int) -> None:
        if start == 2:
            d.ensure_sync(2, 3)

    d = OnDemand(Job(initialise, 4), section=1)
    with pytest.raises(DeadlockError), d:
        d.wait_sync()
    assert d.failed == (range(2, 3),)
    d.ensure_sync(0, 2)
    with pytest.raises(DeadlockError):
        d.ensure_sync(2, 3)


def test_sections_that_ensure_each_other_are_a_deadlock_told() -> None:
    both = threading.Barrier(2, timeout=PATIENCE)

    def initialise(start: int, stop: int) -> None:
        both.wait()
        d.ensure_sync(1 - start, 2 - start)

    d = OnDemand(Job(initialise, 2), section=1)
    with pytest.raises(DeadlockError), d:
        d.wait_sync()
    assert len(d.failed) == 2


def test_a_job_within_a_section_that_needs_the_section_is_a_deadlock_told() -> None:
    def initialise(start: int, stop: int) -> None:
        run_multithreaded_sync(Job(lambda a, b: d.ensure_sync(start, stop), 1))

    d = OnDemand(Job(initialise, 1))
    with pytest.raises(DeadlockError), d:
        pass


# what fails


class Broken(Exception):  # noqa: N818 - as a user may name one
    pass


def breaks_at(*starts: int) -> Callable[[int, int], None]:
    def initialise(start: int, stop: int) -> None:
        if start in starts:
            raise Broken(start)

    return initialise


@pytest.mark.anyio
async def test_an_error_reaches_who_ensures_its_section_and_who_waits_for_all() -> None:
    d = OnDemand(Job(breaks_at(3, 5), 10, name="tables"), section=1)

    async def uses() -> None:
        async with d:
            await d.ensure(0, 3)
            for _ in range(3):
                with pytest.raises(Broken) as of_section:
                    await d.ensure(5, 7)
                assert of_section.value.args == (5,)
            with pytest.raises(Broken):
                await d.ensure(0, 4)
            await d.ensure(6, 10)

    with pytest.raises(Broken) as info:
        await uses()
    assert info.value.args == (3,)
    assert d.failed == (range(3, 4), range(5, 6))
    assert failure(info.value).chunk == range(3, 4)
    assert len(info.value.__notes__) == 1
    assert "tables" in info.value.__notes__[0]
    with pytest.raises(Broken):
        await d.wait()


@pytest.mark.anyio
async def test_an_error_in_the_first_stretch_ends_it() -> None:
    doors = Doors(3)

    def initialise(start: int, stop: int) -> None:
        doors(start, stop)
        if start == 0:
            doors.open()
            raise Broken

    with pytest.raises(Broken):
        async with OnDemand(Job(initialise, 1000, max_threads=2), section=1, first=2):
            pytest.fail("it was entered")
    assert len(doors.begun) < 1000


@pytest.mark.anyio
async def test_leaving_by_an_exception_begins_nothing_more() -> None:
    doors = Doors(0)
    d = OnDemand(Job(doors, 10, max_threads=1), section=1)

    async def uses() -> None:
        async with d:
            await doors.at(0)
            doors.open()
            raise Broken

    with pytest.raises(Broken):
        await uses()
    assert units(doors.done)[0] == 0
    begun = len(doors.begun)
    await turns_pass()
    assert len(doors.begun) == begun < 10
    await d.ensure(0, 1)
    with pytest.raises(JobCancelled):
        await d.ensure(9, 10)
    with pytest.raises(JobCancelled):
        await d.wait()


@pytest.mark.anyio
async def test_leaving_by_an_exception_tells_the_sections_that_run() -> None:
    seen = threading.Event()
    entered = threading.Event()

    def initialise(start: int, stop: int) -> None:
        entered.set()
        while True:
            current_chunk().check_cancelled()
            seen.wait(0.001)

    async def uses() -> None:
        async with OnDemand(Job(initialise, 10, max_threads=1), section=1):
            while not entered.is_set():
                await anyio.lowlevel.checkpoint()
            raise Broken

    with pytest.raises(Broken), anyio.fail_after(PATIENCE):
        await uses()


@pytest.mark.anyio
async def test_a_cancel_while_leaving_ends_it_and_goes_on() -> None:
    doors = Doors(0)
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:

            async def cancels() -> None:
                await doors.at(0)
                scope.cancel()
                await turns_pass()
                doors.open()

            tasks.start_soon(cancels)
            async with OnDemand(Job(doors, 10, max_threads=1), section=1):
                pass
        assert scope.cancelled_caught
    assert len(doors.done) < 10


@pytest.mark.anyio
async def test_sections_that_are_ended_from_outside_leave_nobody_waiting() -> None:
    """As at the exit of the interpreter: one section runs, the other has no helper yet."""
    doors = Doors(0)
    d = OnDemand(Job(doors, 4, max_threads=1), section=1)

    async def ensures(start: int) -> None:
        with pytest.raises(JobCancelled):
            await d.ensure(start, 4)

    async def leaves() -> None:
        async with d, anyio.create_task_group() as tasks:
            await doors.at(0)
            tasks.start_soon(ensures, 1)
            await turns_pass()
            tasks.start_soon(functools.partial(d._coordinator.shutdown, cancel=True))
            await turns_pass()
            tasks.start_soon(ensures, 3)
            doors.open()

    with pytest.raises(JobCancelled), anyio.fail_after(PATIENCE):
        await leaves()
    assert doors.done == [(0, 1)]


# what is refused


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: OnDemand(print), TypeError, "needs a Job"),  # type: ignore[arg-type]
        (lambda: OnDemand(Job(print, 9, undo=print)), ValueError, "no job with undo"),
        (
            lambda: OnDemand(Job(max, 9, reduce=max)),  # type: ignore[arg-type]
            ValueError,
            "no job with a result",
        ),
        (
            lambda: OnDemand(arrays.reduce(np.add, np.zeros(9))),  # type: ignore[arg-type]
            ValueError,
            "no job with a result",
        ),
        (lambda: OnDemand(Job(print, 9, parts=[Part(0, 9)])), ValueError, "no job with parts"),
        (lambda: OnDemand(Job(print, 9), section=0), ValueError, "section must be at least 1"),
        (lambda: OnDemand(Job(print, 9, align=4), section=6), ValueError, "multiple of align"),
        (lambda: OnDemand(Job(print, 9), first=10), ValueError, "at most the job's size 9"),
        (lambda: OnDemand(Job(print, 9), first=1.5), TypeError, "first must be an integer"),  # type: ignore[arg-type]
    ],
)
def test_nonsense_is_refused_when_it_is_made(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.anyio
async def test_it_is_for_one_use_and_for_its_own_range() -> None:
    d = OnDemand(Job(Doors(), 10, start=5))
    with pytest.raises(RuntimeError, match="not entered yet"):
        await d.ensure(5, 6)
    with pytest.raises(RuntimeError, match="not entered yet"):
        await d.wait()
    with pytest.raises(RuntimeError, match="async with"):
        d.__enter__()
    async with d:
        for start, stop in ((4, 6), (5, 16), (7, 6)):
            with pytest.raises(ValueError, match="within 5 to 15"):
                await d.ensure(start, stop)
        with pytest.raises(TypeError, match="start must be an integer"):
            await d.ensure(5.0, 6)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="await ensure"):
            d.ensure_sync(5, 6)
    with pytest.raises(RuntimeError, match="is closed: make a new one"):
        async with d:
            pass


def test_an_empty_range_is_done() -> None:
    with OnDemand(Job(print, 0)) as d:
        d.ensure_sync(0, 0)
    assert d.progress().size == 0


@given(
    st.integers(0, 10**6), st.integers(1, 64), st.integers(1, 5000), st.none() | st.integers(1, 99)
)
def test_a_section_is_by_default_a_256th_that_is_worth_it(
    size: int, align: int, min_chunk: int, chunks: int | None
) -> None:
    chunk = None if chunks is None else chunks * align * -(-min_chunk // align)
    d = OnDemand(Job(print, size, align=align, min_chunk=min_chunk, chunk=chunk))
    section = d._sections.section
    assert section % align == 0
    assert section >= min_chunk
    assert d._sections.count <= 258 or chunk is not None
    if chunk is not None:
        assert section == chunk
