# SPDX-License-Identifier: MIT
# What drives jobs, and the scope that owns them, over workers of this process.

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from types import FrameType
from typing import Any

import anyio
import pytest

from aioktask import DeadlockError, JobCancelled, UndoFailed, failure, snapshot
from aioktask.cluster import (
    ClusterFailure,
    ClusterHandle,
    ClusterJob,
    ClusterReport,
    Home,
    coordinator,
    driver,
)
from aioktask.cluster.coordinator import Fleet, enter_here, leave_here, run_owned
from aioktask.cluster.messages import Ended, Joined
from tests.cluster.here import Here
from tests.support.gates import PATIENCE, Gate, eventually, turns_pass, until

# As it is first imported it changes how the exceptions are pickled whose classes there are by then.
with contextlib.suppress(ImportError):
    importlib.import_module("distributed")

GATES: dict[int, Gate] = {}  # by number, since functions are pickled


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = GATES[0] = Gate()
    yield made
    made.open()
    del GATES[0]


def through_gate(start: int, stop: int, data: object) -> None:
    GATES[0].chunk(start, stop)


def undo_of_gate(start: int, stop: int, data: object) -> None:
    GATES[0].undo(start, stop)


@contextlib.contextmanager
def entered(carrier: Here) -> Iterator[Fleet]:
    fleet = Fleet(carrier)
    enter_here(fleet)
    try:
        yield fleet
    except BaseException as error:
        leave_here(fleet, error)
        raise
    leave_here(fleet, None)


@pytest.mark.anyio
async def test_closing_a_generator_lets_go_of_its_workers_once_its_jobs_are_undone(
    gate: Gate,
) -> None:
    carrier = Here()
    handles: list[ClusterHandle[Any]] = []

    async def states() -> AsyncIterator[None]:
        async with Fleet(carrier) as fleet:
            job = ClusterJob(through_gate, 2, chunk=1, undo=undo_of_gate)
            handles.append(fleet.submit(job))
            while True:
                yield

    async with contextlib.aclosing(states()) as each:
        await anext(each)
        await gate.entered(1)
    assert not handles[0].done()
    assert not carrier.ended.is_set()
    gate.open()
    await eventually(carrier.ended.is_set)
    assert handles[0].done()
    assert gate.undone == gate.done


def test_a_coroutine_that_is_closed_while_it_leaves_lets_go_of_its_workers(gate: Gate) -> None:
    carrier = Here()

    async def leave() -> None:
        async with Fleet(carrier) as fleet:
            fleet.submit(ClusterJob(through_gate, 1))
            await anyio.to_thread.run_sync(gate.wait_entered)
            closing = fleet.shutdown()
            closing.send(None)  # so that it waits
            closing.close()
            assert not carrier.ended.is_set()
            gate.open()
            await eventually(carrier.ended.is_set)

    anyio.run(leave)
    until(carrier.ended.is_set)


class NoNotesError(Exception):
    """One that takes no notes, and no attributes."""

    def add_note(self, text: str) -> None:
        raise RuntimeError("no notes")

    def __setattr__(self, name: str, value: object) -> None:
        raise RuntimeError("no attributes")


def fail_without_notes(start: int, stop: int, data: object) -> None:
    raise NoNotesError("x")


class NoMoreError(Exception):
    """One whose pickle makes no exception."""

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, ("no exception",)


def fail_with_no_exception(start: int, stop: int, data: object) -> None:
    raise NoMoreError("gone")


class NoClassError(Exception):
    """One that does not say of which class it is, in the thread that drives its job."""

    @property
    def __class__(self) -> Any:
        if threading.current_thread().name == "aioktask-cluster":
            raise RuntimeError("no class")
        return type(self)


def fail_with_no_class(start: int, stop: int, data: object) -> None:
    raise NoClassError("x")


def nothing(start: int, stop: int, data: object) -> None:
    pass


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (fail_without_notes, NoNotesError),
        (fail_with_no_exception, RuntimeError),
        (fail_with_no_class, NoClassError),
    ],
)
def test_an_exception_of_an_odd_class_fails_its_job_as_any_other(
    fn: Any, kind: type[BaseException]
) -> None:
    with entered(Here()) as fleet:
        handle = fleet.submit(ClusterJob(fn, 1, undo=nothing))
        with pytest.raises(kind) as caught:
            handle.result(60)
        assert failure(caught.value).unknown == (range(1),)


@pytest.mark.parametrize("undo", [None, undo_of_gate])
def test_a_step_that_raises_ends_its_job_and_names_what_may_be_done(gate: Gate, undo: Any) -> None:
    carrier = Here()
    with entered(carrier) as fleet:
        handle = fleet.submit(ClusterJob(first_through_gate, 3, chunk=1, undo=undo))
        gate.wait_entered()
        until(lambda: handle.progress().done == 1)
        name = handle._run.session.name
        nonsense: Any = (None,)
        carrier.hear(Ended(name, "w0", f"{name}.2", "done", done=nonsense))
        with pytest.raises((TypeError, AttributeError)) as caught:
            handle.result(60)
        gate.open()
    told = failure(caught.value)
    assert told.done == (() if undo else (range(1),))
    assert told.unknown == (range(3) if undo else range(1, 3),)


def first_through_gate(start: int, stop: int, data: object) -> None:
    if start:
        GATES[0].chunk(start, stop)


def close_through_gate(data: object) -> None:
    GATES[0].chunk(0, 0)


def ten() -> int:
    return 10


@pytest.mark.anyio
async def test_a_cancellation_that_comes_while_data_is_closed_is_told_that_all_is_done(
    gate: Gate,
) -> None:
    async with Fleet(Here()) as fleet:
        job = ClusterJob(nothing, 10, setup=ten, close=close_through_gate, undo=undo_of_gate)
        caught: list[BaseException] = []
        reports: list[ClusterReport[Any]] = []

        async def run() -> None:
            try:
                reports.append(await run_owned(fleet, job, None))
            except BaseException as error:
                caught.append(error)
                raise

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await gate.entered(1)
            group.cancel_scope.cancel()
            gate.open()
    if not caught:  # trio, where the cancellation comes at the next checkpoint
        assert [part.units for part in reports[0].workers] == [10]
        return
    told = failure(caught[0])
    assert isinstance(told, ClusterFailure)
    assert (told.done, told.undone, told.unknown) == ((range(10),), (), ())
    assert [part.units for part in told.workers] == [10]


def made_slowly() -> BaseException:
    if threading.current_thread().name == "aioktask-cluster":
        GATES[0].chunk(0, 0)
    return SlowError("made")


class SlowError(Exception):
    """One that is made anew slowly where its pickle is read."""

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return made_slowly, ()


def fail_slowly(*given: object) -> None:
    raise SlowError("first")


def fail_second(start: int, stop: int, data: object) -> None:
    if start:
        raise ValueError("so that the first unit is undone")


@pytest.mark.parametrize(
    "options",
    [
        {"setup": fail_slowly},
        {"fn": fail_slowly},
        {"close": fail_slowly, "setup": ten},
        {"undo": fail_slowly},
    ],
    ids=["setup", "fn", "close", "undo"],
)
def test_an_exception_that_is_made_anew_slowly_keeps_nobody_from_looking(
    gate: Gate, options: dict[str, Any]
) -> None:
    with entered(Here()) as fleet:
        fn = fail_second if "undo" in options else nothing
        handle = fleet.submit(ClusterJob(**{"fn": fn, "size": 2, "chunk": 1, **options}))
        gate.wait_entered()
        lock = fleet._driver.lock
        if seen := lock.acquire(timeout=5):
            lock.release()
        gate.open()
        assert seen
        with pytest.raises((SlowError, UndoFailed)):
            handle.result(60)


@pytest.mark.parametrize("way", ["result", "watch", "await", "with"])
def test_what_the_driver_calls_may_not_wait_for_what_it_drives(way: str) -> None:
    handles: list[ClusterHandle[Any]] = []
    submitted = threading.Event()

    async def wait() -> None:
        await handles[0]

    def wait_for_it() -> None:
        if way == "result":
            handles[0].result()
        elif way == "watch":
            list(handles[0].watch())
        elif way == "await":
            asyncio.run(wait())
        else:
            leave_here(fleet, None)

    caught: list[DeadlockError] = []

    def homes(workers: object) -> list[Home]:
        assert submitted.wait(PATIENCE)
        try:
            wait_for_it()
        except DeadlockError as error:
            caught.append(error)
        return []

    with entered(Here()) as fleet:
        handles.append(fleet.submit(ClusterJob(nothing, 1, homes=homes, name="waits")))
        submitted.set()
        with contextlib.suppress(JobCancelled):
            handles[0].result(PATIENCE)
    assert [error.jobs for error in caught] == [("waits",)]


def raise_for_all(*given: object, **named: object) -> None:
    raise ZeroDivisionError("planted")


def test_a_waiter_and_a_hook_that_raise_keep_no_other_waiter_waiting(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", raise_for_all)
    woken = threading.Event()
    with entered(Here()) as fleet:
        handle = fleet.submit(ClusterJob(through_gate, 1))
        handle._run.add_waiter(raise_for_all)
        handle._run.add_waiter(woken.set)
        gate.open()
        assert woken.wait(PATIENCE)
        assert fleet.submit(ClusterJob(nothing, 1)).result(PATIENCE).chunks == 1


@pytest.mark.parametrize("ruined", [False, True])
def test_what_a_step_raises_is_reported_while_others_may_look(
    monkeypatch: pytest.MonkeyPatch, ruined: bool
) -> None:
    reported: list[object] = []
    seen: list[bool] = []
    with entered(Here()) as fleet:
        driver = fleet._driver

        def look() -> None:
            seen.append(driver.lock.acquire(timeout=5))
            if seen[-1]:
                driver.lock.release()

        def hook(args: threading.ExceptHookArgs) -> None:
            looks = threading.Thread(target=look)
            looks.start()
            looks.join()
            reported.append(args.exc_type)

        monkeypatch.setattr(threading, "excepthook", hook)
        if ruined:
            run = fleet.submit(ClusterJob(nothing, 1))._run
            monkeypatch.setattr(run.session, "ruin", raise_for_all)
            driver.post(run, raise_for_all)  # type: ignore[arg-type]
        else:
            driver._steps.put(raise_for_all)  # type: ignore[arg-type]
        until(lambda: reported)
    assert (reported, seen) == ([ZeroDivisionError], [True])


def test_a_message_that_cannot_be_taken_ends_the_jobs_and_not_the_driver(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_type))
    carrier = Here()
    with entered(carrier) as fleet:
        handles = [fleet.submit(ClusterJob(through_gate, 1)) for _ in range(2)]
        gate.wait_entered()
        nonsense: Any = ["unhashable"]
        carrier.hear(Joined(nonsense, "localhost"))
        errors = []
        for handle in handles:
            with pytest.raises(RuntimeError, match="the coordinator of the job") as caught:
                handle.result(PATIENCE)
            errors.append(caught.value)
        assert reported == [TypeError]
        assert failure(errors[0]).unknown == (range(1),)
        gate.open()
        assert fleet.submit(ClusterJob(nothing, 1)).result(PATIENCE).chunks == 1


LINES = 60  # more than a submission has


def test_a_ctrl_c_in_any_line_of_a_submission_leaves_no_job_behind() -> None:
    struck = 0
    with entered(Here()) as fleet:
        for line in range(LINES):
            left = line

            def strike(frame: FrameType, event: str, arg: object) -> Any:
                nonlocal left
                if frame.f_code.co_filename not in (coordinator.__file__, driver.__file__):
                    return None
                if event == "line":
                    left -= 1
                    if left == -1:
                        raise KeyboardInterrupt
                return strike

            before = sys.gettrace()
            sys.settrace(strike)
            try:
                fleet._submit(ClusterJob(nothing, 1, name="ghost"), None, owned=False)
            except KeyboardInterrupt:
                struck += 1
            else:
                break
            finally:
                sys.settrace(before)
            until(lambda: all(run.over for run in fleet._runs), seconds=5)
            assert [job.name for job in snapshot().jobs if job.name == "ghost"] == []
            assert fleet.snapshot().jobs == ()
    assert 5 < struck < LINES - 1


def refuse_to_undo(start: int, stop: int, data: object) -> None:
    raise ValueError(f"{start} stays")


def fail_odd(start: int, stop: int, data: object) -> None:
    if start % 2:
        raise ValueError("so that the unit before is undone")


def test_all_undo_failures_that_nobody_was_given_are_raised_as_one() -> None:
    fleet = Fleet(Here())
    enter_here(fleet)
    handles = [
        fleet.submit(ClusterJob(fail_odd, 2, start=start, chunk=1, undo=refuse_to_undo))
        for start in (0, 10, 20)
    ]
    with pytest.raises(UndoFailed):  # so this one is told
        handles[0].result(PATIENCE)
    with pytest.raises(UndoFailed, match="undo of 2 jobs failed") as caught:
        leave_here(fleet, None)
    assert caught.value.ranges == (range(10, 11), range(20, 21))
    assert [str(each.exceptions[0]) for each in caught.value.exceptions] == [  # type: ignore[attr-defined]
        "10 stays",
        "20 stays",
    ]
    assert all(handle._run.told for handle in handles)


@pytest.mark.parametrize(
    ("fn", "undo", "told", "chunk"),
    [
        (fail_second, None, "ValueError: so that the first unit is undone", range(1, 2)),
        (fail_second, refuse_to_undo, "ValueError: 0 stays", None),
        (nothing, None, "", None),
    ],
    ids=["fn", "undo", "none"],
)
def test_a_snapshot_tells_why_a_job_failed(fn: Any, undo: Any, told: str, chunk: object) -> None:
    with entered(Here()) as fleet:
        handle = fleet.submit(ClusterJob(fn, 2, chunk=1, undo=undo))
        with contextlib.suppress(ValueError, UndoFailed):
            handle.result(PATIENCE)
        found = handle._run.status()
        ended = next(job for job in snapshot().ended if job.number == found.number)
    assert (found.error, found.error_chunk) == (ended.error, ended.error_chunk) == (told, chunk)


def test_a_snapshot_tells_no_error_of_a_job_that_was_cancelled(gate: Gate) -> None:
    with entered(Here()) as fleet:
        handle = fleet.submit(ClusterJob(through_gate, 2))
        gate.wait_entered()
        handle.cancel()
        gate.open()
        with pytest.raises(JobCancelled):
            handle.result(PATIENCE)
        found = handle._run.status()
    assert (found.phase, found.error, found.error_chunk) == ("cancelled", "", None)


class SlowToEnd(Here):
    """One that lets go of its workers only when the gate is open."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def end(self) -> None:
        self.gate.chunk(0, 0)
        super().end()


@pytest.mark.anyio
async def test_whoever_leaves_second_waits_until_the_workers_are_let_go_of(gate: Gate) -> None:
    fleet = Fleet(SlowToEnd(gate))
    left: list[str] = []

    async def leave(name: str) -> None:
        await fleet.shutdown()
        left.append(name)

    async with anyio.create_task_group() as group, fleet:
        group.start_soon(leave, "first")
        await gate.entered(1)
        group.start_soon(leave, "second")
        await turns_pass()
        assert left == []
        gate.open()
    assert sorted(left) == ["first", "second"]


@pytest.mark.anyio
async def test_a_coordinator_that_was_not_entered_is_shut_down_at_once() -> None:
    fleet = Fleet(Here())
    with anyio.fail_after(60):
        await fleet.shutdown()


class NeverBegins(Here):
    def begin(self, hear: Any) -> None:
        raise ConnectionRefusedError("planted")


def test_a_carrier_that_does_not_begin_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())
    with pytest.raises(ConnectionRefusedError), entered(NeverBegins()):
        pass
    until(lambda: not [each for each in set(threading.enumerate()) - before if each.is_alive()])


def test_where_there_is_no_thread_to_drive_the_carrier_does_not_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    carrier = Here()
    fleet = Fleet(carrier)
    monkeypatch.setattr(fleet._driver._thread, "start", no_threads)
    with pytest.raises(RuntimeError, match="can't start"):
        enter_here(fleet)
    assert carrier.stations == {}
    leave_here(fleet, None)


def no_threads() -> None:
    raise RuntimeError("can't start new thread")


def test_a_second_ctrl_c_while_it_leaves_has_the_workers_let_go_of_in_the_background(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    carrier = Here()
    fleet = Fleet(carrier)
    enter_here(fleet)
    handle = fleet.submit(ClusterJob(through_gate, 2, chunk=1, undo=undo_of_gate))
    gate.wait_entered()
    monkeypatch.setattr(handle._run, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        leave_here(fleet, None)
    assert not carrier.ended.is_set()
    gate.open()
    until(carrier.ended.is_set)
    assert handle.done()
    assert gate.undone == gate.done


def interrupted(seconds: float | None = None) -> bool:
    raise KeyboardInterrupt
