# SPDX-License-Identifier: MIT
# How jobs and their coordinators end where a Ctrl-C, a listener or an odd exception comes at any
# moment: over workers of this process.

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import pytest

from aioktask import CoordinatorClosed, JobCancelled, UndoFailed, current_chunk
from aioktask.cluster import ClusterJob, Home, coordinator, driver, session
from aioktask.cluster.coordinator import Fleet, enter_here, leave_here, run_owned
from aioktask.cluster.messages import Close, Command, Joined
from aioktask.cluster.run import ClusterRun
from aioktask.engine import events
from aioktask.engine.api.control import cancel_job
from aioktask.engine.events import Beginning, Event, EventKind
from tests.cluster.here import Here
from tests.support.gates import PATIENCE, CancelledGate, Gate, eventually, turns_pass, until


def nothing(start: int, stop: int, data: object) -> None:
    pass


def until_cancelled(start: int, stop: int, data: object) -> None:
    while True:
        current_chunk().check_cancelled()
        time.sleep(0.001)


def first_until_cancelled(start: int, stop: int, data: object) -> None:
    if start:
        until_cancelled(start, stop, data)


UNDONE: list[int] = []


def undo(start: int, stop: int, data: object) -> None:
    UNDONE.extend(range(start, stop))


Listens = Callable[..., None]


@pytest.fixture
def listens(monkeypatch: pytest.MonkeyPatch) -> Listens:
    """Has a listener be told of all events, and another one of all jobs that come."""

    def add(listener: Any, prepare: Callable[[Beginning], object] = lambda beginning: None) -> None:
        monkeypatch.setattr(events, "_listeners", [*events._listeners, listener])
        monkeypatch.setattr(events, "_wishes", [*events._wishes, lambda: True])
        monkeypatch.setattr(events, "_preparers", [*events._preparers, prepare])

    return add


def test_jobs_that_are_cancelled_before_they_are_taken_in_take_nobodys_turn(
    listens: Listens,
) -> None:
    told: dict[int, list[EventKind]] = {}

    def hear(event: Event) -> None:
        told.setdefault(event.run, []).append(event.kind)

    def cancel(beginning: Beginning) -> None:
        if beginning.job == "ghost":
            assert cancel_job(beginning.run)

    listens(hear, cancel)
    fleet = Fleet(Here())
    enter_here(fleet)
    ghosts = [ClusterJob(nothing, 10, name="ghost") for _ in range(driver.MOST_AT_ONCE)]
    handles = [fleet.submit(ghost) for ghost in ghosts]
    for handle in handles:
        with pytest.raises(JobCancelled):
            handle.result(PATIENCE)
    assert fleet.submit(ClusterJob(nothing, 10)).result(PATIENCE).chunks
    both = [EventKind.SUBMITTED, EventKind.CANCELLED]
    assert [told[handle._run.number] for handle in handles] == [both] * len(handles)
    fleet._end_when_idle()
    assert fleet._driver.ended.wait(PATIENCE)


class Struck:
    """Raises a KeyboardInterrupt, once, in this thread, at one line of some functions.

    Args:
        line: Which one of those that are come to, from 0.
        codes: Of the functions; of all of these files where it names files.
    """

    def __init__(self, line: int, *codes: CodeType | str) -> None:
        self.left = line
        self.codes = codes
        self.struck = False

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code not in self.codes and frame.f_code.co_filename not in self.codes:
            return None
        if event == "line" and not self.struck:
            self.left -= 1
            if self.left < 0:
                self.struck = True
                raise KeyboardInterrupt
        return self._trace

    def __enter__(self) -> Struck:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *how: object) -> None:
        sys.settrace(self._before)


LINES = 200  # more than any of what is struck has


def test_a_cancel_that_a_ctrl_c_strikes_is_made_good_by_the_next_one() -> None:
    with contextlib.closing(Entered()) as entered:
        for line in range(LINES):
            handle = entered.fleet.submit(ClusterJob(until_cancelled, 1))
            with Struck(line, ClusterRun.cancel.__code__) as struck:
                with contextlib.suppress(KeyboardInterrupt):
                    assert handle.cancel()
            assert handle.cancel() or handle.done()
            with pytest.raises(JobCancelled):
                handle.result(PATIENCE)
            if not struck.struck:
                break
    assert 2 < line < LINES - 1


class Entered:
    """A coordinator in a thread without a loop."""

    def __init__(self, carrier: Here | None = None) -> None:
        self.fleet = Fleet(carrier or Here())
        enter_here(self.fleet)

    def close(self) -> None:
        leave_here(self.fleet, None)


def test_a_job_ends_whose_owner_a_ctrl_c_strikes_as_it_commits() -> None:
    sent: list[Command] = []

    class Recorded(Here):
        def send(self, worker: str, command: Command) -> None:
            sent.append(command)
            super().send(worker, command)

    async def own(line: int) -> bool:
        async with Fleet(Recorded()) as fleet:
            with Struck(line, ClusterRun.commit.__code__) as struck:
                with contextlib.suppress(KeyboardInterrupt):
                    async with asyncio.timeout(PATIENCE):
                        await run_owned(fleet, ClusterJob(nothing, 1), None)
        return struck.struck

    for line in range(LINES):
        sent.clear()
        if not asyncio.run(own(line)):
            break
        assert sum(isinstance(each, Close) for each in sent) == 1
    assert 1 < line < LINES - 1


@pytest.mark.parametrize("cause", [None, ValueError("why")])
def test_a_ctrl_c_in_any_line_of_leaving_lets_go_of_the_workers(
    cause: BaseException | None,
) -> None:
    inside = (
        *(coordinator._wait_here.__code__, coordinator._end_here.__code__),
        ClusterRun.wait.__code__,
        *(ClusterRun.cancel.__code__, Fleet._cancel_all.__code__, Fleet.drain.__code__),
        *(Fleet._let_go.__code__, Fleet._raise_undo_failed.__code__),
    )
    for line in range(LINES):
        UNDONE.clear()
        carrier = Here()
        fleet = Fleet(carrier)
        enter_here(fleet)
        job = ClusterJob(first_until_cancelled, 2, chunk=1, undo=undo)
        handle = fleet.submit(job)
        until(lambda handle=handle: handle.progress().done == 1)
        if cause is None:
            handle.cancel()
        with Struck(line, *inside) as struck, contextlib.suppress(KeyboardInterrupt):
            leave_here(fleet, cause)
        until(carrier.ended.is_set)
        assert handle.done()
        assert UNDONE == [0]
        if not struck.struck:
            break
    assert 5 < line < LINES - 1


@pytest.mark.parametrize("cancels", [True, False])
def test_a_ctrl_c_in_any_line_of_leaving_a_loop_lets_go_of_the_workers(cancels: bool) -> None:
    inside = (
        *(Fleet._end_all.__code__, Fleet._cancel_all.__code__, Fleet.drain.__code__),
        *(ClusterRun.cancel.__code__, Fleet._end.__code__, Fleet._let_go.__code__),
    )

    async def leave(carrier: Here, line: int) -> Struck:
        struck = Struck(line, *inside)
        try:
            async with Fleet(carrier) as fleet:
                handle = fleet.submit(ClusterJob(first_until_cancelled, 2, chunk=1, undo=undo))
                await eventually(lambda: handle.progress().done == 1)
                struck.__enter__()
                if not cancels:
                    await fleet.shutdown(cancel=True)
                raise ZeroDivisionError
        except (KeyboardInterrupt, ZeroDivisionError):
            pass
        finally:
            struck.__exit__()
        await eventually(carrier.ended.is_set)
        assert handle.done()
        assert UNDONE == [0]
        return struck

    for line in range(2 if cancels else 0, LINES):  # nothing can guard a function's first line
        UNDONE.clear()
        if not asyncio.run(leave(Here(), line)).struck:
            break
    assert 5 < line < LINES - 1


class OddError(BaseException):
    """One that raises where anything of it is looked at."""

    def __getattribute__(self, name: str) -> Any:
        raise ZeroDivisionError(name)


def test_a_listener_that_raises_what_cannot_be_told_keeps_nobody_waiting(
    listens: Listens, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[int] = []
    hooked: list[object] = []

    def hook(args: threading.ExceptHookArgs) -> None:
        hooked.append(args.exc_type)
        raise OddError

    monkeypatch.setattr(threading, "excepthook", hook)
    monkeypatch.setattr(threading, "__excepthook__", hook)

    def raise_oddly(event: Event) -> None:
        if threading.current_thread().name == "aioktask-cluster":
            raised.append(event.run)
            raise OddError

    listens(raise_oddly)
    carrier = Here()
    with contextlib.closing(Entered(carrier)) as entered:
        for _ in range(2):
            assert entered.fleet.submit(ClusterJob(nothing, 10)).result(PATIENCE).chunks
    assert carrier.ended.is_set()
    assert hooked == [OddError] * 2 * len(raised) != []


def test_a_thread_that_dies_ends_its_jobs_and_lets_go_of_its_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hooked: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: hooked.append(args.exc_type))

    def strike(error: BaseException) -> None:
        raise MemoryError("planted")

    carrier = Here()
    fleet = Fleet(carrier)
    enter_here(fleet)
    monkeypatch.setattr(fleet._driver, "_struck", strike)
    handle = fleet.submit(ClusterJob(until_cancelled, 1))
    until(lambda: handle.progress().phase == "running")
    nonsense: Any = ["unhashable"]
    carrier.hear(Joined(nonsense, "localhost"))
    with pytest.raises(CoordinatorClosed):
        handle.result(PATIENCE)
    until(carrier.ended.is_set)
    with pytest.raises(CoordinatorClosed):
        fleet.submit(ClusterJob(nothing, 1))
    leave_here(fleet, None)
    assert hooked == [MemoryError]


class NoClassError(Exception):
    """One that does not say of which class it is."""

    @property
    def __class__(self) -> Any:
        raise ValueError("who asks?")


class ClosedError(Exception):
    """One that says that it closes a generator."""

    @property
    def __class__(self) -> Any:
        return GeneratorExit


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [NoClassError, ClosedError])
@pytest.mark.parametrize("way", ["left", "owned"])
async def test_an_exception_of_any_class_ends_jobs_and_lets_go_of_the_workers(
    kind: type[Exception], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    UNDONE.clear()
    carrier = Here()
    job = ClusterJob(first_until_cancelled, 2, chunk=1, undo=undo)

    async def raise_it(*given: Any) -> None:
        await eventually(lambda: fleet._runs[0].progress().done == 1)
        raise kind("why")

    kinds: list[object] = []
    try:
        async with Fleet(carrier) as fleet:
            if way == "owned":
                with monkeypatch.context() as patched:
                    patched.setattr(coordinator, "until", raise_it)
                    await run_owned(fleet, job, None)
            else:
                fleet.submit(job)
                await raise_it()
    except BaseException as error:
        kinds.append(type(error))
    assert kinds == [kind]
    assert carrier.ended.is_set()
    assert UNDONE == [0]


GATE: list[Gate] = []


def through_gate(start: int, stop: int, data: object) -> None:
    GATE[-1].chunk(start, stop)


def test_a_cancellation_that_comes_as_an_odd_exception_leaves_is_not_lost() -> None:
    gate = CancelledGate()
    GATE.append(gate)
    kinds: list[object] = []

    async def leave() -> None:
        try:
            async with Fleet(Here()) as fleet:
                fleet.submit(ClusterJob(through_gate, 1))
                await gate.entered()
                raise NoClassError
        except BaseException as error:
            kinds.append(type(error))

    async def cancel() -> None:
        leaving = asyncio.create_task(leave())
        await eventually(gate.cancelled.is_set)
        leaving.cancel()
        await turns_pass()
        gate.open()
        await asyncio.wait([leaving])

    asyncio.run(cancel())
    assert kinds == [asyncio.CancelledError]


class NamelessMeta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise ZeroDivisionError("who asks?")


class NamelessError(StopIteration, metaclass=NamelessMeta):
    """One whose class does not tell its name, and that would end a coroutine."""


class TextlessError(BaseException):
    """One that has no text."""

    def __str__(self) -> str:
        raise ValueError("no text")


def raise_nameless(workers: object) -> list[Home]:
    raise NamelessError


def raise_textless(start: int, stop: int, data: object) -> None:
    raise TextlessError


def fail_second(start: int, stop: int, data: object) -> None:
    if start:
        raise ValueError("so that the first unit is undone")


def test_homes_that_raise_what_has_no_name_fail_their_job_alone() -> None:
    with contextlib.closing(Entered()) as entered:
        handle = entered.fleet.submit(ClusterJob(nothing, 10, homes=raise_nameless))
        with pytest.raises(RuntimeError, match="raised NamelessError"):
            handle.result(PATIENCE)
        assert entered.fleet.submit(ClusterJob(nothing, 10)).result(PATIENCE).chunks


def test_an_undo_that_raises_what_has_no_text_is_told_as_any_other() -> None:
    with contextlib.closing(Entered()) as entered:
        job = ClusterJob(fail_second, 2, chunk=1, undo=raise_textless)
        with pytest.raises(UndoFailed) as caught:
            entered.fleet.submit(job).result(PATIENCE)
    assert caught.value.ranges == (range(1),)
    assert "TextlessError" in str(caught.value.exceptions[0])


def test_a_session_is_over_whatever_its_end_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def strike(*given: object) -> None:
        raise MemoryError("planted")

    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    monkeypatch.setattr(session, "raisable", strike)
    with contextlib.closing(Entered()) as entered:
        handle = entered.fleet.submit(ClusterJob(nothing, 10, homes=raise_nameless))
        with pytest.raises(MemoryError, match="planted"):
            handle.result(PATIENCE)


@contextlib.contextmanager
def opened_at_last(gate: Gate) -> Iterator[None]:
    try:
        yield
    finally:
        gate.open()


def test_a_job_gets_its_turn_where_those_at_the_workers_are_made_less_urgent() -> None:
    gate = Gate()
    GATE.append(gate)
    with contextlib.closing(Entered()) as entered, opened_at_last(gate):
        jobs = [ClusterJob(through_gate, 1) for _ in range(driver.MOST_AT_ONCE)]
        handles = [entered.fleet.submit(job) for job in jobs]
        gate.wait_entered()
        ninth = entered.fleet.submit(ClusterJob(nothing, 1))
        until(lambda: entered.fleet._driver.waiting == 1)
        for handle in handles:
            handle.renice(10)
        until(lambda: not entered.fleet._driver.waiting)
        gate.open()
        ninth.result(PATIENCE)


async def no_homes(workers: object) -> list[Home]:
    return []


def test_homes_must_be_an_ordinary_function() -> None:
    with pytest.raises(TypeError, match=r"homes is called by .* got the async no_homes"):
        ClusterJob(nothing, 10, homes=no_homes)  # type: ignore[arg-type]
