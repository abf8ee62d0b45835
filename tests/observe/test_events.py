# SPDX-License-Identifier: MIT
# What the library tells of its jobs: which events, in which order, at which level and where to,
# with structlog configured by the application and without.

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import structlog

import aioktask
from aioktask import (
    Coordinator,
    Job,
    JobCancelled,
    UndoFailed,
    run_multithreaded,
    run_multithreaded_sync,
)
from aioktask.engine import events
from aioktask.engine.events import Event, EventKind
from aioktask.engine.state.outbox import Outbox
from aioktask.engine.state.run import Run
from aioktask.observe.events import level_of
from tests.support.chunks import fail_at_seven, nothing, planted
from tests.support.gates import Gate, until

Told = MutableMapping[str, Any]


class Heard:
    """Events, as a structlog processor or a handler of logging collects them."""

    def __init__(self) -> None:
        self.events: list[Told] = []
        self.slow_to_hear = ""  # an event that takes long to be heard
        self._more = threading.Condition()

    def collect(self, logger: object, method: str, event: Told) -> Told:
        if event["event"] == self.slow_to_hear:
            time.sleep(0.002)
        with self._more:
            self.events.append({**event, "level": method})
            self._more.notify_all()
        raise structlog.DropEvent

    def of(self, job: str) -> list[Told]:
        return [event for event in self.events if event["job"] == job]

    def names(self, job: str) -> list[str]:
        return [event["event"] for event in self.of(job)]

    def wait_for(self, job: str, name: str) -> Told:
        """Wait until the event has come. It is told before or after the waiter wakes."""
        with self._more:
            assert self._more.wait_for(lambda: name in self.names(job), 20), self.events
        return next(event for event in self.of(job) if event["event"] == name)


class ToHeard(logging.Handler):
    def __init__(self, heard: Heard) -> None:
        super().__init__()
        self.heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        fields = record.__dict__["aioktask"]
        told = {"event": record.getMessage().split()[0], **fields}
        if record.exc_info:
            told["exc_info"] = record.exc_info[1]
        assert f"job={fields['job']!r}" in record.getMessage()
        with contextlib.suppress(structlog.DropEvent):
            self.heard.collect(None, record.levelname.lower(), told)


@pytest.mark.parametrize("kind", [EventKind.NOT_REMEMBERED, EventKind.NOT_KEPT])
@pytest.mark.parametrize(
    ("error", "level"),
    [(PermissionError(1, "no"), logging.WARNING), (ValueError("damaged"), logging.INFO)],
)
def test_of_lessons_on_disk_what_the_system_refused_is_a_warning(
    kind: EventKind, error: Exception, level: int
) -> None:
    assert level_of(Event(kind, "numbers", 0, {"error": error}, awaited=False)) == level


@pytest.fixture(params=["structlog", "logging"])
def heard(request: pytest.FixtureRequest) -> Iterator[Heard]:
    """The events, through each of the two ways."""
    heard = Heard()
    if request.param == "structlog":
        structlog.configure(processors=[structlog.contextvars.merge_contextvars, heard.collect])
        yield heard
        structlog.reset_defaults()
        return
    logger, handler = logging.getLogger("aioktask"), ToHeard(heard)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield heard
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)


def test_a_job_that_ends_well_is_told_in_three_events(heard: Heard) -> None:
    report = run_multithreaded_sync(Job(nothing, 100, chunk=10, name="numbers"))
    heard.wait_for("numbers", "job_finished")
    submitted, started, finished = heard.of("numbers")
    assert submitted["event"] == "job_submitted"
    assert submitted["size"] == 100
    assert submitted["chunk"] == 10
    assert submitted["threads"] >= 1
    assert started["event"] == "job_started"
    assert started["queued"] == report.queued
    assert finished["event"] == "job_finished"
    assert finished["chunks"] == report.chunks == 10
    assert finished["threads"] == report.peak_threads
    assert finished["elapsed"] == report.elapsed
    assert [event["level"] for event in heard.events] == ["debug", "debug", "info"]
    assert len({event["run"] for event in heard.events}) == 1


def test_a_call_of_an_executor_that_raised_is_a_job_that_finished(heard: Heard) -> None:
    with Coordinator() as coordinator:
        future = coordinator.executor().submit(planted, 0, 1)
        assert isinstance(future.exception(20), OSError)
        heard.wait_for("planted", "job_finished")
    assert heard.names("planted") == ["job_submitted", "job_started", "job_finished"]


@pytest.mark.parametrize("slow", ["job_submitted", "job_started", ""])
@pytest.mark.parametrize("fn", [nothing, fail_at_seven])
def test_events_of_a_job_come_in_order_whichever_threads_tell_them(
    heard: Heard, fn: Callable[[int, int], None], slow: str
) -> None:
    heard.slow_to_hear = slow
    last = "job_failed" if fn is fail_at_seven else "job_finished"
    middle = ["job_undone"] if fn is fail_at_seven else []
    with Coordinator() as coordinator:
        for number in range(100):
            job = Job(fn, 8, chunk=1, max_threads=1, undo=nothing, name=f"job {number}")
            coordinator.submit(job)
            heard.wait_for(job.name, last)
    for number in range(100):
        names = heard.names(f"job {number}")
        assert names == ["job_submitted", "job_started", *middle, last], number


def test_a_result_that_is_taken_in_the_middle_of_a_turn_is_told_after_what_came_before(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = Outbox.tell

    def tell_and_be_taken(out: Outbox, run: Run) -> None:
        tell(out, run)
        if run.settled and run.decided is None:
            for owner in run.waiters:
                owner.wake()
            until(lambda: run.decided is not None)

    monkeypatch.setattr(Outbox, "tell", tell_and_be_taken)
    run_multithreaded_sync(Job(nothing, 0, undo=nothing, name="numbers"))
    heard.wait_for("numbers", "job_finished")
    assert heard.names("numbers") == ["job_submitted", "job_finished"]


def test_each_run_of_a_job_has_a_number_of_its_own(heard: Heard) -> None:
    job = Job(nothing, 10, name="numbers")
    for _ in range(3):
        run_multithreaded_sync(job)
    numbers = [event["run"] for event in heard.of("numbers")]
    assert len(set(numbers)) == 3
    told = ["job_submitted", "job_started", "job_learned", "job_finished"]
    assert all(numbers.count(number) == len(told) for number in numbers)
    assert heard.names("numbers") == told * 3


def test_an_empty_job_is_submitted_and_finished_and_never_started(heard: Heard) -> None:
    run_multithreaded_sync(Job(nothing, 0, name="numbers"))
    assert heard.names("numbers") == ["job_submitted", "job_finished"]


@pytest.mark.parametrize(
    ("undo", "names"),
    [
        (None, ["job_failed"]),
        (nothing, ["job_undone", "job_failed"]),
        (planted, ["job_undo_failed", "job_failed"]),
    ],
    ids=["without undo", "undone", "undo failed"],
)
def test_a_failure_is_told_once_with_its_error_and_what_was_undone(
    heard: Heard, undo: Callable[[int, int], None] | None, names: list[str]
) -> None:
    job = Job(fail_at_seven, 10, chunk=1, max_threads=1, undo=undo, name="numbers")
    with pytest.raises((ValueError, UndoFailed)):
        run_multithreaded_sync(job)
    heard.wait_for("numbers", "job_failed")
    assert heard.names("numbers") == ["job_submitted", "job_started", *names]
    failed = heard.of("numbers")[-1]
    assert isinstance(failed["error"], ValueError)
    assert failed["chunk"] == range(7, 8)
    assert failed["level"] == "info"  # who waits is told by the exception
    if undo is nothing:
        assert heard.wait_for("numbers", "job_undone")["ranges"] == (range(7),)
    if undo is planted:
        undo_failed = heard.wait_for("numbers", "job_undo_failed")
        assert undo_failed["ranges"] == (range(7),)
        assert isinstance(undo_failed["error"], UndoFailed)
        assert undo_failed["level"] == "error"


@pytest.mark.parametrize(
    ("undo", "names"),
    [
        (None, ["job_cancelled"]),
        (nothing, ["job_undone", "job_cancelled"]),
        (planted, ["job_undo_failed", "job_cancelled"]),
    ],
    ids=["without undo", "undone", "undo failed"],
)
def test_a_cancelled_job_is_told_once_however_often_it_is_cancelled(
    heard: Heard, undo: Callable[[int, int], None] | None, names: list[str]
) -> None:
    begun, opened = threading.Event(), threading.Event()

    def fn(start: int, stop: int) -> None:
        begun.set()
        assert opened.wait(60)

    handle = Coordinator().submit(Job(fn, 8, chunk=1, max_threads=1, undo=undo, name="numbers"))
    assert begun.wait(60)
    for _ in range(3):
        handle.cancel()
    opened.set()
    with pytest.raises((JobCancelled, UndoFailed)):
        handle.result()
    handle.cancel()
    cancelled = heard.wait_for("numbers", "job_cancelled")
    assert heard.names("numbers") == ["job_submitted", "job_started", *names]
    assert cancelled["undone"] == ((range(1),) if undo is nothing else ())
    assert cancelled["done"] == (() if undo is nothing else (range(1),))


def test_a_job_cancelled_before_it_began_is_never_started(heard: Heard) -> None:
    begun, opened = threading.Event(), threading.Event()

    def fn(start: int, stop: int) -> None:
        begun.set()
        assert opened.wait(60)

    with Coordinator(max_threads=1) as coordinator:
        coordinator.submit(Job(fn, 1))
        assert begun.wait(60)
        queued = coordinator.submit(Job(nothing, 8, undo=nothing, name="numbers"))
        assert queued.cancel()
        heard.wait_for("numbers", "job_cancelled")
        opened.set()
    assert heard.names("numbers") == ["job_submitted", "job_cancelled"]


def test_a_failure_that_nobody_waits_for_is_told_at_once_as_an_error(heard: Heard) -> None:
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(fail_at_seven, 10, chunk=1, name="numbers"))
        failed = heard.wait_for("numbers", "job_failed")  # nothing else asks for it
        assert failed["level"] == "error"
        assert isinstance(failed["error"], ValueError)
        with pytest.raises(ValueError, match="planted"):
            handle.result()
    assert heard.names("numbers").count("job_failed") == 1


def test_an_initializer_that_only_makes_a_coroutine_has_prepared_nothing(heard: Heard) -> None:
    async def prepare() -> None:
        raise AssertionError("nobody awaits it")

    aioktask.configure(initializer=lambda: prepare())
    try:
        with (
            Coordinator() as coordinator,
            pytest.raises(RuntimeError, match="raised TypeError"),
        ):
            coordinator.submit(Job(nothing, 1, name="numbers")).result()
        told = heard.wait_for("", "helper_initializer_failed")
    finally:
        aioktask.configure(initializer=None)
    assert "returned a coroutine, so its work was not done" in str(told["exc_info"])


def test_an_initializer_that_raised_is_an_error_with_its_traceback(heard: Heard) -> None:
    def prepare() -> None:
        raise OSError("no device")

    aioktask.configure(initializer=prepare)
    try:
        with Coordinator() as coordinator:
            with pytest.raises(RuntimeError, match=r"the initializer .*prepare raised OSError"):
                coordinator.submit(Job(nothing, 1, name="numbers")).result()
        told = heard.wait_for("", "helper_initializer_failed")
    finally:
        aioktask.configure(initializer=None)
    assert told["level"] == "error"
    assert str(told["initializer"]).endswith("prepare")
    error = told["exc_info"]
    assert isinstance(error, OSError)
    assert error.__traceback__ is not None
    assert error.__traceback__.tb_frame.f_code is prepare.__code__


def test_a_failed_undo_is_an_error_even_if_somebody_waits(heard: Heard) -> None:
    job = Job(fail_at_seven, 10, chunk=1, max_threads=1, undo=planted, name="numbers")
    with pytest.raises(UndoFailed):
        run_multithreaded_sync(job)
    assert heard.wait_for("numbers", "job_undo_failed")["level"] == "error"


@pytest.mark.anyio
async def test_a_failure_that_a_task_waits_for_is_only_noted(heard: Heard) -> None:
    opened = threading.Event()

    def fn(start: int, stop: int) -> None:
        assert opened.wait(60)
        raise ValueError("planted")

    async def wait() -> None:
        with pytest.raises(ValueError, match="planted"):
            await handle

    async with Coordinator() as coordinator, anyio.create_task_group() as tasks:
        handle = coordinator.submit(Job(fn, 1, name="numbers"))
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        opened.set()
    assert heard.wait_for("numbers", "job_failed")["level"] == "info"


@pytest.mark.anyio
async def test_an_awaited_job_tells_the_same_on_every_loop(heard: Heard) -> None:
    await run_multithreaded(Job(nothing, 100, chunk=10, undo=nothing, name="numbers"))
    heard.wait_for("numbers", "job_finished")
    assert heard.names("numbers") == ["job_submitted", "job_started", "job_finished"]
    with pytest.raises(ValueError, match="planted"):
        await run_multithreaded(
            Job(fail_at_seven, 10, chunk=1, max_threads=1, undo=nothing, name="numbers, again")
        )
    heard.wait_for("numbers, again", "job_failed")
    assert heard.names("numbers, again") == [
        "job_submitted",
        "job_started",
        "job_undone",
        "job_failed",
    ]


@pytest.mark.anyio
async def test_jobs_the_size_of_a_request_tell_what_all_others_tell(heard: Heard) -> None:
    for number in range(50):
        job = Job(nothing, 1, chunk=1, name=f"job {number}")
        report = await run_multithreaded(job)
        finished = heard.wait_for(job.name, "job_finished")
        assert heard.names(job.name) == ["job_submitted", "job_started", "job_finished"]
        submitted, started, _ = heard.of(job.name)
        assert (submitted["size"], submitted["chunk"], submitted["threads"]) == (1, 1, 1)
        assert started["queued"] == finished["queued"] == report.queued
        assert finished["elapsed"] == report.elapsed
        assert (finished["chunks"], finished["threads"]) == (1, 1)
    with pytest.raises(OSError, match="planted"):
        await run_multithreaded(Job(planted, 1, chunk=1, name="numbers"))
    heard.wait_for("numbers", "job_failed")
    assert heard.names("numbers") == ["job_submitted", "job_started", "job_failed"]


@pytest.mark.anyio
async def test_a_short_job_that_lasts_is_told_of_while_it_does(heard: Heard) -> None:
    gate = Gate()
    for _ in range(5):  # so that the next one passes the lane
        await run_multithreaded(Job(nothing, 1, chunk=1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_multithreaded, Job(gate.chunk, 1, chunk=1, name="numbers"))
        await gate.entered()
        heard.wait_for("numbers", "job_started")  # whoever takes a turn tells of it
        assert heard.names("numbers") == ["job_submitted", "job_started"]
        gate.open()
    heard.wait_for("numbers", "job_finished")
    assert heard.names("numbers") == ["job_submitted", "job_started", "job_finished"]


@pytest.mark.anyio
async def test_a_coroutine_undo_is_told_as_any_other(heard: Heard) -> None:
    async def undo(start: int, stop: int) -> None:
        await anyio.lowlevel.checkpoint()

    job = Job(fail_at_seven, 10, chunk=1, max_threads=1, undo=undo, name="numbers")
    with pytest.raises(ValueError, match="planted"):
        await run_multithreaded(job)
    heard.wait_for("numbers", "job_failed")
    names = ["job_submitted", "job_started", "job_undone", "job_failed"]
    assert heard.names("numbers") == names


def test_nested_jobs_are_told_each_by_its_own_name(heard: Heard) -> None:
    inner = Job(nothing, 8, chunk=1, name="inner")

    def fn(start: int, stop: int) -> None:
        run_multithreaded_sync(inner)

    run_multithreaded_sync(Job(fn, 3, chunk=1, name="outer"))
    assert heard.names("outer") == ["job_submitted", "job_started", "job_finished"]
    assert sorted(heard.names("inner")) == sorted(
        ["job_submitted", "job_started", "job_finished"] * 3
    )


@pytest.fixture
def configured() -> Iterator[Heard]:
    heard = Heard()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, heard.collect])
    yield heard
    structlog.reset_defaults()


def requests_of(heard: Heard, job: str) -> list[object]:
    return [event.get("request") for event in heard.of(job)]


def test_events_carry_what_the_submitter_bound(configured: Heard) -> None:
    with structlog.contextvars.bound_contextvars(request=1):
        handle = Coordinator().submit(
            Job(fail_at_seven, 10, chunk=1, max_threads=1, undo=nothing, name="numbers")
        )
    configured.wait_for("numbers", "job_failed")
    assert requests_of(configured, "numbers") == [1, 1, 1, 1]
    assert handle.done()


def test_events_carry_what_their_own_submitter_bound_and_no_other(configured: Heard) -> None:
    # Jobs of several requests on one helper: the end of one is where the next one starts.
    begun, opened = threading.Event(), threading.Event()

    def fn(start: int, stop: int) -> None:
        begun.set()
        assert opened.wait(60)

    with Coordinator(max_threads=1) as coordinator:
        for request in range(5):
            with structlog.contextvars.bound_contextvars(request=request):
                coordinator.submit(Job(fn, 1, name=f"job {request}"))
            assert begun.wait(60)
        coordinator.submit(Job(fn, 1, name="job of nobody"))
        opened.set()
    for request in range(5):
        configured.wait_for(f"job {request}", "job_finished")
        assert requests_of(configured, f"job {request}") == [request] * 3
    configured.wait_for("job of nobody", "job_finished")
    assert requests_of(configured, "job of nobody") == [None] * 3


def test_a_cancel_from_elsewhere_is_told_with_what_the_submitter_bound(configured: Heard) -> None:
    begun, opened = threading.Event(), threading.Event()

    def fn(start: int, stop: int) -> None:
        begun.set()
        assert opened.wait(60)

    with Coordinator(max_threads=1) as coordinator:
        coordinator.submit(Job(fn, 1))
        assert begun.wait(60)
        with structlog.contextvars.bound_contextvars(request=1):
            handle = coordinator.submit(Job(nothing, 8, name="numbers"))
        with structlog.contextvars.bound_contextvars(request=2):
            assert handle.cancel()
        configured.wait_for("numbers", "job_cancelled")
        opened.set()
    assert requests_of(configured, "numbers") == [1, 1]


def test_a_listener_that_raises_breaks_no_job(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(logger: object, method: str, event: Told) -> Told:
        raise LookupError("planted in the listener")

    structlog.configure(processors=[fail])
    try:
        report = run_multithreaded_sync(Job(nothing, 100, chunk=10))
        with pytest.raises(ValueError, match="planted"):
            run_multithreaded_sync(Job(fail_at_seven, 10, chunk=1, max_threads=1, undo=nothing))
        with Coordinator() as coordinator:
            coordinator.submit(Job(nothing, 100))
    finally:
        structlog.reset_defaults()
    assert report.chunks == 10
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "aioktask: a listener failed at job_finished of the job 'nothing' (run " in captured.err
    assert "LookupError: planted in the listener" in captured.err
    run_multithreaded_sync(Job(nothing, 100))


def test_an_error_that_cannot_be_shown_keeps_no_event_from_other_listeners(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Unshown(Exception):  # noqa: N818
        def __repr__(self) -> str:
            raise LookupError("planted in the repr")

    def fail(start: int, stop: int) -> None:
        raise Unshown

    heard: list[str] = []
    listener = lambda event: heard.append(event.kind.value)  # noqa: E731
    events._listeners.append(lambda event: repr(event))
    events._listeners.append(listener)
    try:
        with pytest.raises(Unshown):
            run_multithreaded_sync(Job(fail, 1))
    finally:
        del events._listeners[-2:]
    assert "job_failed" in heard
    assert "a listener failed at job_failed of the job" in capfd.readouterr().err


def test_what_is_not_wanted_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "aioktask"):
        run_multithreaded_sync(Job(nothing, 10))
        with pytest.raises(ValueError, match="planted"):
            run_multithreaded_sync(Job(fail_at_seven, 10, chunk=1))
    assert caplog.records == []
    with caplog.at_level(logging.INFO, "aioktask"):
        run_multithreaded_sync(Job(nothing, 10))
    assert [record.getMessage().split()[0] for record in caplog.records] == ["job_finished"]


def run_program(program: str) -> subprocess.CompletedProcess[str]:
    """A program in a process where nothing has configured structlog or logging."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(aioktask.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )


JOBS = """
import structlog
from aioktask import Coordinator, Job, run_multithreaded_sync

assert not structlog.is_configured()

def fn(start, stop):
    if start == 7:
        raise ValueError("planted")

run_multithreaded_sync(Job(lambda start, stop: None, 10))
with Coordinator() as coordinator:
    handle = coordinator.submit(Job(fn, 10, chunk=1, name="numbers"))
    {also}
assert not structlog.is_configured()
"""


CONFIGURED_LATER = """
import sys
from aioktask import Job, run_multithreaded_sync

def run(name):
    run_multithreaded_sync(Job(lambda start, stop: None, 10, name=name))

run("before")
assert "structlog" not in sys.modules
import structlog
run("imported")
structlog.configure(processors=[structlog.processors.KeyValueRenderer(key_order=["event", "job"])])
run("configured")
"""


def test_structlog_is_used_once_the_application_has_configured_it_and_not_imported_before() -> None:
    ended = run_program(CONFIGURED_LATER)
    assert ended.stderr == ""
    told = [line.split()[:2] for line in ended.stdout.splitlines()]
    assert ["event='job_finished'", "job='configured'"] in told
    assert all(job == "job='configured'" for _, job in told)


def test_the_library_configures_nothing_and_prints_nothing() -> None:
    ended = run_program(
        JOBS.format(also="") + "import logging; assert not logging.getLogger('aioktask').handlers"
    )
    assert ended.stdout == ""
    [line] = ended.stderr.splitlines()  # Python's own last resort for what nobody handles
    assert line.startswith("job_failed job='numbers'")
    assert "planted" in line


def test_structlog_configured_while_a_program_runs_is_used_from_then_on() -> None:
    ended = run_program(
        JOBS.format(also="")
        + "structlog.configure(processors=[structlog.processors.JSONRenderer()])\n"
        + "run_multithreaded_sync(Job(lambda start, stop: None, 10, chunk=5, name='later'))\n"
    )
    events = ended.stdout.splitlines()
    assert ['"event": "job_finished"' in line for line in events] == [False, False, True]
    assert all('"job": "later"' in line for line in events)
