# SPDX-License-Identifier: MIT
# The initializer of helpers: it is called in each before that takes work, and what it raises ends
# that helper and the runs that no other one serves, and wedges nothing.

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import cast

import pytest

import aioktask
from aioktask import (
    Coordinator,
    Job,
    UndoFailed,
    configure,
    run_multithreaded,
    run_multithreaded_sync,
)
from aioktask.engine.api.process import current_pool
from aioktask.engine.events import Event, EventKind
from aioktask.engine.state.current import local
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.workers import Helper
from aioktask.engine.threads.helper import HelperThread
from aioktask.engine.tunables import Tunables
from tests.support.gates import PATIENCE, Gate, until

pytestmark = pytest.mark.max_threads(3)


class Thread(threading.local):
    """What a thread has been prepared with."""

    prepared: str = ""


thread = Thread()


@pytest.fixture(autouse=True)
def _no_initializer_afterwards() -> Iterator[None]:
    thread.prepared = ""
    yield
    configure(initializer=None)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """The events of initializers that raised."""
    heard: list[Event] = []

    def listen(event: Event) -> None:
        if event.kind is EventKind.INITIALIZER_FAILED:
            heard.append(event)

    monkeypatch.setattr("aioktask.engine.events._listeners", [listen])
    return heard


class BoomError(Exception):
    pass


def raises() -> None:
    raise BoomError("no such device")


def test_each_helper_has_been_prepared_before_it_takes_work() -> None:
    called: list[int] = []

    def prepare() -> None:
        called.append(threading.get_ident())
        thread.prepared = "yes"

    configure(initializer=prepare)
    seen: set[tuple[int, str]] = set()
    all_in = threading.Barrier(3)

    def chunk(start: int, stop: int) -> None:
        if start < 3:
            all_in.wait(PATIENCE)
        seen.add((threading.get_ident(), thread.prepared))

    with Coordinator() as coordinator:
        coordinator.submit(Job(chunk, 30, chunk=1)).result()
        coordinator.submit(Job(lambda start, stop: None, 30, chunk=1)).result()
    assert {prepared for _, prepared in seen} == {"yes"}
    assert {ident for ident, _ in seen} <= set(called)
    assert len(called) == len(set(called))  # once each


def test_it_runs_as_the_program_s_own_code_which_may_run_jobs() -> None:
    inside: list[bool] = []
    done: list[int] = []

    def prepare() -> None:
        inside.append(local.inside)
        run_multithreaded_sync(Job(lambda start, stop: done.append(stop - start), 8, max_threads=1))

    configure(initializer=prepare)
    with Coordinator() as coordinator:
        coordinator.submit(Job(lambda start, stop: None, 1)).result(PATIENCE)
    assert set(inside) == {False}
    assert sum(done) == 8 * len(inside)


@pytest.mark.anyio
async def test_a_job_that_no_helper_serves_fails_by_it_and_the_next_may_do(
    told: list[Event],
) -> None:
    configure(initializer=raises)
    done: list[int] = []
    job = Job(lambda start, stop: done.append(start), 1, name="numbers")
    with pytest.raises(RuntimeError, match="the initializer raises raised BoomError") as caught:
        await run_multithreaded(job)
    assert isinstance(caught.value.__cause__, BoomError)
    with pytest.raises(RuntimeError, match="the initializer raises raised BoomError"):
        await aioktask.run(done.append, 1)
    assert done == []
    assert told
    for event in told:
        assert isinstance(event.details["error"], BoomError)
        assert event.details["initializer"] == "raises"
    configure(initializer=None)
    await run_multithreaded(job)
    assert done == [0]


def test_it_is_tried_again_by_itself(told: list[Event]) -> None:
    """What failed once may have been there only for a moment."""
    failures = iter([True])

    def prepare() -> None:
        if next(failures, False):
            raise BoomError

    configure(initializer=prepare)
    with Coordinator() as coordinator:
        with pytest.raises(RuntimeError):
            coordinator.submit(Job(lambda start, stop: None, 1)).result(PATIENCE)
        coordinator.submit(Job(lambda start, stop: None, 1)).result(PATIENCE)
    assert len(told) == 1


def test_where_some_helpers_fail_the_others_do_the_job(told: list[Event]) -> None:
    first = threading.Lock()

    def prepare() -> None:
        if not first.acquire(blocking=False):
            raise BoomError
        thread.prepared = "yes"

    configure(initializer=prepare)
    gate = Gate()
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 8, chunk=1))
        gate.wait_entered()
        until(lambda: told)
        assert len(current_pool().state.helpers) == 1
        gate.open()
        assert handle.result(PATIENCE).peak_threads == 1
    assert sorted(gate.done) == [(unit, unit + 1) for unit in range(8)]


def test_the_calling_thread_does_its_job_alone_where_no_helper_comes(told: list[Event]) -> None:
    configure(initializer=raises)
    ran: set[int] = set()
    report = run_multithreaded_sync(
        Job(lambda start, stop: ran.add(threading.get_ident()), 200, chunk=1)
    )
    assert report.peak_threads == 1
    assert ran == {threading.get_ident()}
    assert len(told) <= 3  # and not one for each stretch


def test_it_may_exit_its_thread_as_well(told: list[Event]) -> None:
    """What is no Exception goes no further either."""

    def leaves() -> None:
        raise SystemExit

    configure(initializer=leaves)
    with Coordinator() as coordinator:
        with pytest.raises(RuntimeError, match="leaves raised SystemExit"):
            coordinator.submit(Job(lambda start, stop: None, 1)).result(PATIENCE)


def test_set_while_a_job_runs_it_holds_from_the_next_chunk_on() -> None:
    def first() -> None:
        thread.prepared = "first"

    def second() -> None:
        thread.prepared = "second"

    configure(initializer=first)
    gate = Gate()
    begun: list[str] = []
    changed = threading.Event()

    def chunk(start: int, stop: int) -> None:
        begun.append(f"{thread.prepared} {'after' if changed.is_set() else 'before'}")
        gate.chunk(start, stop)

    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(chunk, 60, chunk=1, max_threads=2))
        gate.wait_entered(2)
        configure(initializer=second)
        state = current_pool().state
        until(lambda: state.tunables.initializer is second)
        changed.set()
        gate.open()
        handle.result(PATIENCE)
    assert begun.count("first before") == 2
    assert set(begun) == {"first before", "second after"}
    assert len(begun) == 60


def test_idle_helpers_that_were_prepared_otherwise_end() -> None:
    with Coordinator() as coordinator:
        coordinator.submit(Job(lambda start, stop: None, 1)).result(PATIENCE)

        def prepare() -> None:
            thread.prepared = "yes"

        configure(initializer=prepare)
        seen: list[str] = []
        for _ in range(5):
            coordinator.submit(Job(lambda start, stop: seen.append(thread.prepared), 1)).result()
        assert seen == ["yes"] * 5


@pytest.mark.anyio
async def test_short_calls_too_run_on_prepared_helpers() -> None:
    """They pass without turns, on helpers that wait for them."""
    for _ in range(50):
        await aioktask.run(len, "")

    def prepare() -> None:
        thread.prepared = "yes"

    configure(initializer=prepare)
    for _ in range(50):
        assert await aioktask.run(lambda: thread.prepared) == "yes"


def test_an_undo_that_no_helper_can_do_names_what_is_left() -> None:
    gate = Gate()
    with Coordinator() as coordinator:
        handle = coordinator.submit(
            Job(gate.chunk, 4, chunk=1, max_threads=1, undo=gate.undo, name="numbers")
        )
        gate.wait_entered()
        configure(initializer=raises)
        gate.open()
        with pytest.raises(UndoFailed) as caught:
            handle.result(PATIENCE)
        assert [list(each) for each in caught.value.ranges] == [[0]]


@pytest.mark.parametrize("wrong", [3, "module:function", True])
def test_what_cannot_be_called_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"configure\(\): initializer must be callable"):
        configure(initializer=wrong)


def test_a_coroutine_function_is_refused() -> None:
    async def prepare() -> None: ...

    with pytest.raises(TypeError, match="must be an ordinary function"):
        configure(initializer=prepare)


def test_a_helper_that_limits_libraries_misses_no_change_that_comes_meanwhile() -> None:
    """It asks for the number of the change first, which is written last."""
    asked: list[str] = []

    class Spied:
        @property
        def natives(self) -> int:
            asked.append("natives")
            return 1

        @property
        def tunables(self) -> Tunables:
            asked.append("tunables")
            return Tunables(limit_native_threads=False)

    pool = current_pool()
    thread = HelperThread(pool, Helper())
    thread._state = cast("State", Spied())
    thread._limit_natives()
    assert asked[0] == "natives"
    assert asked.count("natives") == 1
