# SPDX-License-Identifier: MIT
# Sections that are done when they are needed: each once, what is asked for first, and only that is
# waited for.

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.abc
import numpy as np
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import given, settings
from hypothesis import strategies as st

from aioktask import (
    Coordinator,
    DeadlockError,
    Handle,
    Job,
    JobCancelled,
    OnDemand,
    Part,
    arrays,
    current_chunk,
    failure,
    priority,
    run_multithreaded_sync,
    set_max_threads,
)
from aioktask.engine import events
from aioktask.engine.events import EventKind
from aioktask.engine.state.current import enclosing_run, local
from aioktask.ondemand import _sections, _work
from aioktask.ondemand._sections import Request, Sections
from tests.support.gates import (
    LOOK_SECONDS,
    PATIENCE,
    Gate,
    eventually,
    let_go_of,
    turns_pass,
    units,
    until,
)
from tests.support.meanwhile import Scene, play_at_each_line


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
            self.nices.append(run.entry.nice)
        if start in self.doors:
            self.arrived[start].set()
            assert self.doors[start].wait(PATIENCE), "the test never opened the door"
        with self.lock:
            self.done.append((start, stop))

    def open(self, *starts: int) -> None:
        for start in starts or self.doors:
            self.doors[start].set()

    async def at(self, start: int) -> None:
        """Until the section waits at its door."""
        with anyio.fail_after(PATIENCE):
            while not self.arrived[start].is_set():
                await anyio.sleep(LOOK_SECONDS)


@pytest.fixture
def one_thread() -> Iterator[None]:
    set_max_threads(1)
    yield
    set_max_threads(None)


@pytest.fixture
def two_threads() -> Iterator[None]:
    set_max_threads(2)
    yield
    set_max_threads(None)


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


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(-20, 19)), max_size=9))
def test_what_is_asked_for_comes_first_and_each_section_once(
    asked: list[tuple[int, int, int]],
) -> None:
    sections = Sections(0, 10, 1)
    for start, count, nice in asked:
        sections.ask(Request(range(start, min(start + count, 10)), nice))
    order = list(iter(sections.take, None))
    expected: list[int] = []
    for start, count, _ in sorted(asked, key=lambda each: each[2]):  # stable: who asked first
        expected += range(start, min(start + count, 10))
    expected += range(10)
    assert order == list(dict.fromkeys(expected))


def test_what_nobody_waits_for_any_more_falls_back_and_leaves_nothing() -> None:
    sections = Sections(0, 10, 1)
    for _ in range(100):
        withdrawn = Request(range(5, 9), -5)
        sections.ask(withdrawn)
        withdrawn.withdrawn = True
        assert sections.take_of(withdrawn) is None
    sections.ask(Request(range(7, 8), 0))
    assert len(sections._requests) == 1
    assert [sections.take() for _ in range(11)] == [7, 0, 1, 2, 3, 4, 5, 6, 8, 9, None]


def test_done_is_told_of_exactly_the_units_asked_for() -> None:
    sections = Sections(-3, 17, 4)  # -3 to 0, 0 to 4, ...
    assert sections.take_of(Request(range(1, 3), 0)) == 1
    sections.done(1)
    sections.done(2)
    assert sections.all_done(0, 8)
    assert sections.all_done(3, 5)
    assert sections.all_done(-2, -2)
    assert not sections.all_done(-1, 1)
    assert not sections.all_done(7, 9)
    assert sections.first_left() == 0
    assert sections.done_count() == 2


# the whole


@pytest.mark.parametrize("asked", [None, range(2, 4)])
@pytest.mark.parametrize("others", [None, range(2, 4)])
def test_a_finalizer_may_ask_and_take_in_any_line_of_who_takes(
    asked: range | None, others: range | None
) -> None:
    """And no section is taken twice."""

    def begin() -> Scene:
        sections = Sections(0, 6, 1)
        taken: list[int | None] = []

        def take(wanted: range | None) -> None:
            if wanted is not None:
                request = Request(wanted, 0)
                sections.ask(request)
                taken.append(sections.take_of(request))
            taken.append(sections.take())

        def check() -> None:
            while (index := sections.take()) is not None:
                taken.append(index)
            assert sorted(each for each in taken if each is not None) == list(range(6))

        return Scene(lambda: take(asked), lambda: take(others), check)

    play_at_each_line(begin, _sections)


def test_the_end_waits_for_what_a_finalizer_asked_for_in_any_line_of_who_asks() -> None:
    def begin() -> Scene:
        gate = threading.Event()
        scope = contextlib.ExitStack()
        d = scope.enter_context(OnDemand(Job(lambda a, b: gate.wait(PATIENCE), 8), section=1))
        asked: list[Handle[None] | None] = []

        def ask(wanted: range) -> None:
            asked.append(d._work.ask(Request(wanted, 0), takes_part=False))

        def check() -> None:
            under_way = d._work.under_way()
            gate.set()
            scope.close()
            assert len(asked) == 2
            assert all(each in under_way for each in asked)

        return Scene(lambda: ask(range(4, 6)), lambda: ask(range(6, 8)), check)

    play_at_each_line(begin, _work)


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
    # Between requests it is a matter of shares; all of them go before the background.
    assert set(doors.begun[1:4]) == {7, 8, 4}
    assert doors.begun[4:] == [1, 2, 3, 5, 6, 9]


@pytest.mark.anyio
async def test_the_more_urgent_waiter_is_served_first_and_at_its_priority() -> None:
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
            doors.open()
    assert doors.begun == [0, 4, 3, 2, 1, 5]


@pytest.mark.anyio
@pytest.mark.usefixtures("two_threads")
async def test_a_request_has_the_nice_of_its_waiter() -> None:
    doors = Doors(0)
    async with Coordinator() as coordinator:
        job = Job(doors, 6, nice=10, max_threads=1)  # the background's only thread is at the door
        async with OnDemand(job, section=1, coordinator=coordinator) as d:
            await doors.at(0)
            with priority(-5):
                await d.ensure(4, 5)
            doors.open()
    assert doors.begun == [0, 4, 1, 2, 3, 5]
    assert doors.nices == [10, -5, 10, 10, 10, 10]


@pytest.mark.anyio
async def test_who_ensures_a_section_that_runs_lends_its_priority_to_it() -> None:
    doors = Doors(0)
    async with OnDemand(Job(doors, 4, nice=19, max_threads=1), section=1) as d:
        await doors.at(0)
        run = d._work.running[0]._run
        assert run.entry.loan is None

        async def ensure() -> None:
            with priority(0):
                await d.ensure(0, 1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ensure)
            await eventually(lambda: run.entry.loan == 0)
            await eventually(lambda: run.lent != "no")  # in the same turn, but after that
            assert d._work._background.entry.loan is None, "the sections after it stay as they are"
            doors.open()


@pytest.mark.usefixtures("two_threads")
def test_it_waits_for_no_other_section_though_that_is_in_the_way() -> None:
    doors = Doors(0, 1)
    with OnDemand(Job(doors, 10), section=1) as d:
        for start in (0, 1):
            assert doors.arrived[start].wait(PATIENCE)
        thread = threading.Thread(target=d.ensure_sync, args=(5, 6))
        thread.start()
        doors.open(1)
        thread.join(PATIENCE)
        assert not thread.is_alive()
        doors.open(0)


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
async def test_what_a_cancelled_ensure_asked_for_falls_back() -> None:
    doors = Doors(0)
    async with OnDemand(Job(doors, 8, max_threads=1), section=1) as d:
        await doors.at(0)
        with anyio.move_on_after(0.0):
            await d.ensure(5, 8)
        doors.open()
    assert doors.begun == list(range(8))


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


@pytest.mark.usefixtures("one_thread")
def test_a_task_may_ensure_on_behalf_of_a_chunk_that_holds_the_only_helper() -> None:
    done: list[int] = []

    def initialise(start: int, stop: int) -> None:
        if start == 0:
            portal.call(d.ensure, 5, 6)
        done.append(start)

    d = OnDemand(Job(initialise, 8), section=1)  # before its sections begin, which need it
    with start_blocking_portal() as portal, d:
        d.ensure_sync(0, 1)
        assert done[:2] == [5, 0]
    assert sorted(done) == list(range(8))


@pytest.mark.usefixtures("one_thread")
def test_a_loop_that_runs_in_a_chunk_never_does_a_section_itself() -> None:
    threads: dict[int, threading.Thread] = {}

    def initialise(start: int, stop: int) -> None:
        threads[start] = threading.current_thread()
        if start == 0:
            anyio.run(d.ensure, 5, 7)

    d = OnDemand(Job(initialise, 8), section=1)
    with d:
        d.ensure_sync(0, 1)
    assert threads[0] not in (threads[5], threads[6])


def test_a_chunk_does_itself_what_nobody_has_begun() -> None:
    doors = Doors(0)
    threads: list[threading.Thread] = []

    def request(start: int, stop: int) -> None:
        assert doors.arrived[0].wait(PATIENCE)
        d.ensure_sync(4, 5)
        doors.open()

    def initialise(start: int, stop: int) -> None:
        doors(start, stop)
        threads.append(threading.current_thread())
        assert current_chunk().start == start

    with OnDemand(Job(initialise, 8, max_threads=1), section=1) as d:
        run_multithreaded_sync(Job(request, 1, max_threads=1))
    assert doors.begun[:2] == [0, 4]
    assert threads[0] is threading.current_thread()


def test_sections_may_need_others_many_deep() -> None:
    order: list[int] = []

    def initialise(start: int, stop: int) -> None:
        if start > 0:
            d.ensure_sync(start - 1, start)
        order.append(start)

    d = OnDemand(Job(initialise, 300), section=1)
    with d:
        d.ensure_sync(299, 300)
    assert order == list(range(300))


@pytest.mark.parametrize("max_threads", [None, 1])
def test_sections_may_need_others(max_threads: int | None) -> None:
    order: list[int] = []

    def initialise(start: int, stop: int) -> None:
        if start > 0:
            d.ensure_sync(start - 1, start)
        order.append(start)

    d = OnDemand(Job(initialise, 20, max_threads=max_threads), section=1)
    with d:
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


def test_a_section_that_waits_for_all_is_a_deadlock_told() -> None:
    d = OnDemand(Job(lambda start, stop: d.wait_sync(), 4), section=1)
    with pytest.raises(DeadlockError), d:
        pass
    assert len(d.failed) == 4


# beside others


@pytest.mark.usefixtures("one_thread")
def test_what_is_asked_for_at_a_low_priority_goes_before_the_background_still() -> None:
    doors = Doors(0)

    def busy(start: int, stop: int) -> None:
        doors(start, stop)
        until = time.perf_counter() + 0.002
        while time.perf_counter() < until:
            pass

    with OnDemand(Job(busy, 10), section=1) as d:
        assert doors.arrived[0].wait(PATIENCE)
        waiting = threading.Thread(target=lambda: ensures_at(19, d, 5, 9))
        waiting.start()
        while not d._sections._requests:
            pass
        doors.open()
        waiting.join(PATIENCE)
    assert doors.begun == [0, 5, 6, 7, 8, 1, 2, 3, 4, 9]


def ensures_at(nice: int, d: OnDemand, start: int, stop: int) -> None:
    with priority(nice):
        d.ensure_sync(start, stop)


@pytest.mark.usefixtures("one_thread")
def test_who_waits_on_behalf_of_a_chunk_has_the_priority_of_its_job() -> None:
    nices: dict[int, int] = {}

    def initialise(start: int, stop: int) -> None:
        frame = local.stint
        assert frame is not None
        assert frame.outer is not None
        nices[start] = frame.outer.run.entry.nice

    doors = Doors(0)

    def section(start: int, stop: int) -> None:
        doors(start, stop)
        initialise(start, stop)

    job = Job(section, 8, nice=9, max_threads=1)
    with Coordinator() as coordinator:
        with OnDemand(job, section=1, coordinator=coordinator) as d:
            assert doors.arrived[0].wait(PATIENCE)
            request = Job(lambda start, stop: anyio.run(d.ensure, 5, 6), 1, nice=-7)
            run_multithreaded_sync(request)
            doors.open()
    assert nices[5] == -7
    assert nices[0] == 9


@pytest.mark.anyio
async def test_sections_see_the_context_of_who_entered() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="nobody's")
    seen: dict[int, str] = {}
    doors = Doors(0)

    def initialise(start: int, stop: int) -> None:
        doors(start, stop)
        seen[start] = variable.get()
        variable.set("a section's")

    variable.set("of who entered")
    async with OnDemand(Job(initialise, 8, max_threads=1), section=1) as d:
        await doors.at(0)
        variable.set("of who ensures")
        doors.open()
        await d.ensure(5, 6)
    assert set(seen.values()) == {"of who entered"}


@pytest.mark.anyio
@pytest.mark.usefixtures("two_threads")
async def test_waiting_for_all_includes_what_others_do_meanwhile() -> None:
    doors = Doors(0, 3)
    waited = False

    async def wait() -> None:
        nonlocal waited
        await d.wait()
        waited = True

    async with Coordinator() as coordinator:
        job = Job(doors, 6, max_threads=1)
        async with OnDemand(job, section=1, coordinator=coordinator) as d:
            await doors.at(0)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await turns_pass()
                tasks.start_soon(d.ensure, 3, 4)
                await doors.at(3)
                doors.open(0)
                await eventually(lambda: (5, 6) in doors.done)
                await turns_pass()
                assert not waited
                doors.open(3)


@pytest.mark.usefixtures("one_thread")
def test_the_background_leaves_a_more_urgent_job_its_share() -> None:
    order: list[str] = []

    def busy(name: str, seconds: float) -> None:
        order.append(name)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass

    with Coordinator() as coordinator:
        background = Job(lambda start, stop: busy("section", 0.02), 1000, nice=19)
        d = OnDemand(background, section=1).__enter__()
        try:
            d.ensure_sync(0, 1)
            job = Job(lambda start, stop: busy("job", 0.001), 100, chunk=1)
            coordinator.submit(job).result()
        finally:
            d.__exit__(Broken, Broken(), None)
    last = len(order) - order[::-1].index("job")
    assert order[order.index("job") : last].count("section") <= 3


def test_nothing_is_called_with_the_lock_held(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[EventKind] = []

    def listener(event: events.Event) -> None:
        assert not d._lock._is_owned() or d.progress()
        heard.append(event.kind)

    monkeypatch.setattr(events, "_listeners", (listener,))
    monkeypatch.setattr(events, "_wishes", (lambda: True,))
    d = OnDemand(Job(lambda start, stop: None, 4), section=1)
    with d:
        d.ensure_sync(3, 4)
    assert heard.count(EventKind.FINISHED) >= 5  # the background and each section


def test_it_keeps_nothing_alive() -> None:
    doors = Doors()
    gone = weakref.ref(doors)
    with OnDemand(Job(doors, 10), section=1) as d:
        d.ensure_sync(5, 7)
    del d, doors
    assert let_go_of(gone)  # a helper may still be on its way out of a chunk


@pytest.mark.anyio
@settings(max_examples=20)
@given(
    asked=st.lists(
        st.tuples(st.integers(0, 99), st.integers(0, 30), st.integers(0, 9)), max_size=20
    )
)
async def test_tasks_that_ensure_and_are_cancelled_lose_nothing(
    asked: list[tuple[int, int, int]],
) -> None:
    values = np.zeros(100, np.int64)

    def initialise(start: int, stop: int) -> None:
        values[start:stop] += 1

    async def use(start: int, count: int, turns: int) -> None:
        stop = min(100, start + count)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def cancels() -> None:
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()

                tasks.start_soon(cancels)
                with priority(turns):
                    await d.ensure(start, stop)
                assert (values[start:stop] == 1).all()

    async with OnDemand(Job(initialise, 100), section=3) as d, anyio.create_task_group() as tasks:
        for each in asked:
            tasks.start_soon(use, *each)
    assert (values == 1).all()


# what fails


class Broken(Exception):  # noqa: N818 - as a user may name one
    pass


def breaks_at(*starts: int) -> Callable[[int, int], None]:
    def initialise(start: int, stop: int) -> None:
        if start in starts:
            raise Broken(start)

    return initialise


# RecursionError is a RuntimeError, as is what says that the coordinator takes no more jobs.
@pytest.mark.anyio
@pytest.mark.parametrize("kind", [MemoryError, RecursionError, KeyboardInterrupt])
async def test_what_strikes_the_helper_at_a_section_reaches_who_ensures_it(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It strikes outside of the section's own function, as where memory is short."""
    struck = kind("planted")

    def strike(*args: object, **kwargs: object) -> None:
        raise struck

    monkeypatch.setattr(_work, "run_here", strike)
    for ask in (lambda d: d.ensure(0, 1), lambda d: d.ensure(2, 3), lambda d: d.wait()):
        table = OnDemand(Job(lambda a, b: None, 3, max_threads=1), section=1)
        with pytest.raises(kind) as info:
            async with table:
                await ask(table)
        assert info.value is struck


def test_whoever_asks_waits_for_what_tells_of_a_strike_in_any_line_of_who_is_struck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And is told neither that the section was cancelled, nor asks a run that is not over."""

    def strike(*args: object, **kwargs: object) -> None:
        raise MemoryError("planted")

    def begin() -> Scene:
        gate = Gate()
        scope = contextlib.ExitStack()
        d = OnDemand(Job(gate.chunk, 2, max_threads=1), section=1)
        scope.enter_context(contextlib.suppress(MemoryError, JobCancelled))
        scope.enter_context(d)
        scope.callback(gate.open)
        gate.wait_entered()
        work, found = d._work, set()

        def call() -> None:
            with monkeypatch.context() as patched, contextlib.suppress(MemoryError):
                patched.setattr(_work, "run_here", strike)
                work._do_next(None, 0, work._background)

        def ask() -> None:
            if 1 in work.running or 1 in work._failed:
                left = work.left_of(1, None)
                assert left is not None
                assert not left.done()
                found.add(left)

        def check() -> None:
            ask()
            assert found
            work.stop()
            scope.close()

        return Scene(call, ask, check)

    play_at_each_line(begin, _work)


@pytest.mark.parametrize("breaks", [False, True])
def test_a_section_may_end_in_any_line_of_who_asks_for_it(breaks: bool) -> None:
    def begin() -> Scene:
        gate = Gate()
        scope = contextlib.ExitStack()

        def fn(start: int, stop: int) -> None:
            gate.chunk(start, stop)
            if breaks:
                raise Broken(start)

        d = OnDemand(Job(fn, 1), section=1)
        scope.enter_context(contextlib.suppress(Broken))
        scope.enter_context(d)
        scope.callback(gate.open)
        gate.wait_entered()
        running = d._work.running[0]

        def ask() -> None:
            try:
                assert d._work.left_of(0, None) in (None, running)
            except Broken:
                assert breaks

        def end() -> None:
            gate.open()
            until(running.done)

        def end_unless_locked() -> None:
            if not d._work.lock._is_owned():  # type: ignore[attr-defined]
                end()

        def check() -> None:
            end()
            with pytest.raises(Broken) if breaks else contextlib.nullcontext():
                assert d._work.left_of(0, None) is None
            d._work.stop()
            scope.close()

        return Scene(ask, end_unless_locked, check)

    play_at_each_line(begin, _work)


@pytest.mark.anyio
@pytest.mark.parametrize("returned", ["coroutine", "generator"])
async def test_a_function_that_does_its_work_later_has_not_done_it(returned: str) -> None:
    async def later() -> None:
        raise AssertionError("nobody awaits it")

    def fn(start: int, stop: int) -> Any:
        return later() if returned == "coroutine" else (each for each in range(start, stop))

    async def use(table: OnDemand) -> None:
        async with table:
            with pytest.raises(TypeError, match=f"'later' returned a {returned}"):
                await table.ensure(0, 10)
            await table.wait()

    table = OnDemand(Job(fn, 10, chunk=5, name="later"))
    with pytest.raises(TypeError, match="so its work was not done"):
        await use(table)
    assert table.failed == (range(5), range(5, 10))


@pytest.mark.anyio
async def test_what_is_asked_for_while_the_coordinator_drains_is_done_by_what_goes_on() -> None:
    doors = Doors(0)
    async with Coordinator(max_threads=1) as coordinator:
        async with OnDemand(Job(doors, 40, chunk=10), coordinator=coordinator) as table:
            await doors.at(0)
            coordinator.drain()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(table.ensure, 30, 40)
                await turns_pass()
                doors.open()
            assert doors.begun[1] == 30
    assert units(doors.done) == list(range(40))


def test_what_is_in_use_does_not_end_since_its_background_had_no_thread_in_time() -> None:
    wait, doors, tables = 1.0, Doors(), list[OnDemand]()

    def chunk(start: int, stop: int) -> None:
        until(lambda: tables)
        tables[0].ensure_sync(0, 10)
        over = time.monotonic() + 1.2 * wait
        until(lambda: time.monotonic() > over)
        tables[0].ensure_sync(90, 100)

    with Coordinator(max_threads=1, max_wait=wait) as coordinator:
        handle = coordinator.submit(Job(chunk, 1))
        until(lambda: handle.progress().threads)
        with OnDemand(Job(doors, 100, chunk=10), coordinator=coordinator) as table:
            tables.append(table)
            handle.result()
    assert units(doors.done) == list(range(100))


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


def test_an_error_is_told_any_number_of_times_as_it_was_the_first_time() -> None:
    d = OnDemand(Job(breaks_at(0), 1, name="table"))
    with pytest.raises(Broken), d:
        pass
    for start in range(9):
        request = Job(lambda start, stop: d.ensure_sync(0, 1), 1, start=start, name="request")
        with pytest.raises(Broken) as info:
            run_multithreaded_sync(request)
        assert len(info.value.__notes__) == 2  # of the section, and of this request
        depth = len(info.traceback)
        with pytest.raises(Broken) as info:
            d.ensure_sync(0, 1)
        assert len(info.value.__notes__) == 1
        assert len(info.traceback) < depth < 20
        assert failure(info.value).job.name == "table"


@pytest.mark.anyio
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancel_while_it_ends_leaves_no_section_running() -> None:
    doors = Doors(0, 1)

    async def leaves() -> None:
        async with OnDemand(Job(doors, 10), section=1):
            await doors.at(0)
            await doors.at(1)
            raise Broken

    task = asyncio.create_task(leaves())
    await doors.at(0)
    await doors.at(1)
    await turns_pass()
    task.cancel()
    await turns_pass()
    doors.open(0)
    await eventually(lambda: (0, 1) in doors.done)
    await turns_pass()
    assert not task.done()
    doors.open(1)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(doors.done) == [(0, 1), (1, 2)]


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
async def test_leaving_by_an_exception_ends_requests_too() -> None:
    doors = Doors(0)
    d = OnDemand(Job(doors, 10, max_threads=1), section=1)

    async def ensures() -> None:
        with pytest.raises(JobCancelled):
            await d.ensure(5, 8)

    async def leaves(tasks: anyio.abc.TaskGroup) -> None:
        async with d:
            await doors.at(0)
            tasks.start_soon(ensures)
            await turns_pass()
            raise Broken

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_later, doors, d)
        with pytest.raises(Broken):
            await leaves(tasks)
    assert doors.begun == [0]


async def open_later(doors: Doors, d: OnDemand) -> None:
    await eventually(lambda: "closed" in repr(d))
    doors.open()


@pytest.mark.anyio
async def test_waiting_after_the_end_tells_a_failure_before_what_was_not_begun() -> None:
    doors = Doors(0, 1)

    def initialise(start: int, stop: int) -> None:
        if start == 5:
            raise Broken
        doors(start, stop)

    d = OnDemand(Job(initialise, 10, max_threads=1), section=1)

    async def fails() -> None:
        with pytest.raises(Broken):
            await d.ensure(5, 6)

    async def leaves() -> None:
        async with d:
            await doors.at(0)
            async with anyio.create_task_group() as others:
                others.start_soon(fails)
                await turns_pass()
                doors.open(0)
            await doors.at(1)
            raise KeyError

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_later, doors, d)
        with pytest.raises(KeyError):
            await leaves()
    assert doors.begun == [0, 1]
    with pytest.raises(Broken):
        await d.wait()


@pytest.mark.usefixtures("one_thread")
def test_a_loop_that_is_gone_ends_it() -> None:
    doors = Doors(0)
    d = OnDemand(Job(doors, 10), section=1)

    async def body() -> None:
        async with d:
            await asyncio.sleep(3600)

    with asyncio.Runner() as runner:
        coroutine = body()
        runner.run(first_step_of(coroutine))
        assert doors.arrived[0].wait(PATIENCE)
    coroutine.close()
    deadline = time.monotonic() + PATIENCE
    while "closed" not in repr(d) and time.monotonic() < deadline:
        pass
    doors.open()
    with pytest.raises(JobCancelled):
        d.wait_sync()
    assert doors.begun == [0]


async def first_step_of(coroutine: Coroutine[Any, Any, None]) -> None:
    coroutine.send(None)


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
                await anyio.sleep(LOOK_SECONDS)
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
    doors = Doors(0)
    coordinator = Coordinator(max_threads=1)
    d = OnDemand(Job(doors, 4), section=1, coordinator=coordinator)

    async def ensures(start: int) -> None:
        with pytest.raises(JobCancelled):
            await d.ensure(start, 4)

    async def leaves() -> None:
        async with d, anyio.create_task_group() as tasks:
            await doors.at(0)
            tasks.start_soon(ensures, 1)
            await turns_pass()
            tasks.start_soon(functools.partial(coordinator.shutdown, cancel=True))
            await turns_pass()
            tasks.start_soon(ensures, 3)
            doors.open()

    with pytest.raises(JobCancelled), anyio.fail_after(PATIENCE):
        await leaves()
    assert doors.done == [(0, 1)]


@pytest.mark.parametrize("noticed", [False, True])
def test_nothing_begins_once_the_coordinator_has_ended(noticed: bool) -> None:
    doors = Doors(0)
    coordinator = Coordinator(max_threads=1)
    d = OnDemand(Job(doors, 9, max_threads=1), section=1, coordinator=coordinator)

    def request(start: int, stop: int) -> None:
        with pytest.raises(JobCancelled):
            d.ensure_sync(5, 6)

    async def ends() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(functools.partial(coordinator.shutdown, cancel=True))
            await turns_pass()
            doors.open()

    def leaves() -> None:
        with d:
            assert doors.arrived[0].wait(PATIENCE)
            anyio.run(ends)
            # False: as if the end came between the look at it and the run.
            d._work._background.cancelled = noticed
            run_multithreaded_sync(Job(request, 1))
            d._work._background.cancelled = True
            assert d.progress().threads == 0

    with pytest.raises(JobCancelled):
        leaves()
    assert doors.begun == [0]


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
    with pytest.raises(RuntimeError, match="entered already"):
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
