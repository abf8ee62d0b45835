# SPDX-License-Identifier: MIT
# What is seen of jobs on workers: in snapshots, on the page, in top, by metrics, traces and logs,
# and by their handles; and that changes from there reach them.

from __future__ import annotations

import functools
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aioktask
from aioktask import CoordinatorClosed, JobCancelled, Overloaded
from aioktask.cluster import ClusterHandle, ClusterJob, Home, ProcessCoordinator
from aioktask.cluster.messages import Began, Joined, Opened, Progressed, Run
from aioktask.cluster.session import Decision, Session
from aioktask.engine import events
from aioktask.engine.events import Event, EventKind
from aioktask.observe.events import level_of
from aioktask.observe.processes import Told, ask, publish
from aioktask.status import JobStatus
from aioktask.top._lines import lines_of
from aioktask.top._rows import detail
from aioktask.top._view import view_of, view_of_page
from aioktask.web._page.told import Processes
from tests.cluster import work
from tests.support.gates import until


@pytest.fixture(scope="module")
def fleet() -> Iterator[ProcessCoordinator]:
    with ProcessCoordinator(2, max_threads=2) as coordinator:
        yield coordinator
        coordinator._cancel_all()


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Path]:
    """A file: chunks stay as long as it is there."""
    file = tmp_path / "hold"
    file.touch()
    yield file
    file.unlink(missing_ok=True)


def staying(hold: Path, name: str, size: int = 1000, **options: Any) -> ClusterJob[None]:
    """A job whose chunks stay as long as the file is there, and may be cancelled."""
    fn = functools.partial(work.stay, str(hold.parent))
    return ClusterJob(fn, size, name=name, chunk=10, **options)


def threads_in(hold: Path) -> set[str]:
    """The threads in which chunks have begun."""
    return {each.name for each in hold.parent.iterdir() if each.name.split("-")[0].isdecimal()}


def seen(name: str) -> JobStatus | None:
    """The job of this name, as a snapshot of the process has it while it is not over."""
    return next((each for each in aioktask.snapshot().jobs if each.name == name), None)


def number_of(name: str) -> int:
    found = seen(name)
    assert found is not None
    return found.number


def both_work(name: str) -> bool:
    found = seen(name)
    return found is not None and [each.running is not None for each in found.workers] == [True] * 2


def test_a_snapshot_of_the_process_has_the_job_with_its_workers(
    fleet: ProcessCoordinator, hold: Path
) -> None:
    handle = fleet.submit(staying(hold, "shown", labels={"of": "test"}))
    assert seen("shown") is not None  # from the first moment on
    until(lambda: both_work("shown"))
    found = seen("shown")
    assert found is not None
    assert (found.kind, found.phase, dict(found.labels)) == ("job", "running", {"of": "test"})
    assert [each.name for each in found.workers] == ["process-1", "process-2"]
    assert all(each.state == "open" and each.threads == 2 for each in found.workers)
    hold.unlink()
    handle.result()
    assert seen("shown") is None
    [over] = [each for each in aioktask.snapshot().ended if each.number == found.number]
    assert (over.phase, over.progress.done) == ("finished", 1000)
    assert sum(each.units for each in over.workers) == 1000
    assert over.ended is not None
    assert over.ended < 30


def test_a_page_renices_and_cancels_it_by_its_number(fleet: ProcessCoordinator, hold: Path) -> None:
    handle = fleet.submit(staying(hold, "changed"))
    until(lambda: both_work("changed"))
    publisher = publish()
    try:
        number = number_of("changed")
        renice = {"do": "renice", "number": number, "nice": 7}
        assert ask(os.getpid(), renice).answer is True
        assert handle.nice == 7
        assert ask(os.getpid(), {"do": "cancel", "number": number}).answer is True
        with pytest.raises(JobCancelled):
            handle.result()
        assert ask(os.getpid(), {"do": "cancel", "number": number}).answer is False
        assert ask(os.getpid(), renice).answer is False
    finally:
        publisher.close()


def test_the_page_and_top_list_its_workers(fleet: ProcessCoordinator, hold: Path) -> None:
    handle = fleet.submit(staying(hold, "listed"))
    until(lambda: both_work("listed"))
    number = number_of("listed")
    publisher = publish()
    try:
        told = ask(os.getpid(), {"do": "snapshot"})
    finally:
        publisher.close()
    page = Processes()
    page.hear([told], 1.0)
    state = json.loads(json.dumps(page.message(1.0)))
    rows = [each for each in state["workers"] if each["job"] == number]
    assert [(each["name"], each["of"], each["state"]) for each in rows] == [
        ("process-1", "listed", "open"),
        ("process-2", "listed", "open"),
    ]
    for view in (view_of([told]), view_of_page(state)):
        [row] = [each for each in view.jobs if each.number == number]
        text = "\n".join("".join(part for part, _ in line) for line in detail(row, view))
        assert "process-1 on localhost: open" in text
        assert "process-2 on localhost: open" in text
        assert any("process-2 on localhost" in line for line in lines_of(view, 1.0, 120))
    handle.cancel()


def test_an_answer_without_workers_is_read_as_one_of_an_older_version(
    fleet: ProcessCoordinator,
) -> None:
    publisher = publish()
    try:
        told = ask(os.getpid(), {"do": "snapshot"})
    finally:
        publisher.close()
    answer = {name: each for name, each in told.answer.items() if "workers" not in name}
    page = Processes()
    page.hear([Told(told.pid, answer)], 1.0)
    message = page.message(1.0)
    assert (message["workers"], message["left_out_workers"]) == ([], 0)
    assert message["processes"][0]["state"] == "alive"
    del message["workers"]
    assert view_of_page(message).processes[0].workers == ()


def test_it_tells_why_it_waits(hold: Path) -> None:
    folder = str(hold.parent)
    setup = functools.partial(work.second_waits, folder)
    with ProcessCoordinator(1) as coordinator:
        (hold.parent / "first").touch()  # so the one worker waits too
        handle = coordinator.submit(ClusterJob(work.count, 10, setup=setup, name="opens"))
        until(lambda: (hold.parent / "hold").exists() and any_waits(hold.parent))
        found = seen("opens")
        assert found is not None
        assert (found.phase, found.threads) == ("waiting", 0)
        assert found.waits_for == "the first of 1 workers to have its data, as setup() returns"
        assert "setup() has not returned" in found.workers[0].waits_for
        hold.unlink()
        handle.result()


def test_it_tells_why_a_stretch_has_no_thread(hold: Path) -> None:
    with ProcessCoordinator(1, max_threads=1) as coordinator:
        first = coordinator.submit(staying(hold, "has it", 10))
        until(lambda: len(threads_in(hold)) == 1)
        handle = coordinator.submit(ClusterJob(work.count, 10, name="has none"))
        until(lambda: (job := seen("has none")) is not None and "thread" in job.waits_for)
        found = seen("has none")
        assert found is not None
        why = "a thread: its coordinator's 1 is at a part of has it"
        assert (found.workers[0].working, found.workers[0].waits_for) == (0, why)
        assert (found.phase, found.threads) == ("running", 0)
        assert found.waits_for == f"{why}, in its worker"
        assert found.progress.eta is None
        hold.unlink()
        assert handle.result().workers[0].units == 10
        first.result()


def test_what_few_workers_wait_for_is_told_as_theirs_and_nothing_where_one_works() -> None:
    decision = Decision()
    session = Session("s", ClusterJob(work.count, 1000), b"", decision=decision, now=0.0)
    orders = session.start(0.0, [Joined(name, "here") for name in "abc"])
    assert {each.pid for each in session.workers()} == {None}
    for name in "abc":
        orders += session.hear(Opened("s", name, 1, 1), 0.0)
    leases = {}
    for name, order in orders:
        if isinstance(order, Run):
            leases.setdefault(name, order.stretch.lease)
    for name in "ab":
        session.hear(Began("s", name, leases[name]), 0.0)
        session.hear(Progressed("s", name, leases[name], 0, 0, "a thread"), 0.3)
    assert session.waits_for() == "a thread, in 2 of 3 workers"
    session.hear(Progressed("s", "a", leases["a"], 1, 1), 0.5)
    assert session.waits_for() == ""
    assert [each.waits_for for each in session.workers()][:2] == ["", "a thread"]


def any_waits(folder: Path) -> bool:
    return any(each.name.startswith("waits-") for each in folder.iterdir())


def test_a_worker_that_makes_its_data_does_not_hold_up_the_end(hold: Path) -> None:
    folder = str(hold.parent)
    job = ClusterJob(
        functools.partial(work.count_beside_a_waiting_one, folder),
        100,
        setup=functools.partial(work.second_waits, folder),
        close=functools.partial(work.say_closed, folder),
        reduce=int.__add__,
    )
    with ProcessCoordinator(2, max_threads=1) as coordinator:
        handle = coordinator.submit(job)
        assert handle.result(30.0).value == 100
        assert hold.exists()
        hold.unlink()
        closed = "closed-"
        until(lambda: sum(each.name.startswith(closed) for each in hold.parent.iterdir()) == 2)


# The queue.


def at_workers(handles: list[ClusterHandle[None]]) -> list[str]:
    return [each.name for each in handles if each.workers()]


def test_a_thousand_submits_are_a_few_jobs_at_the_workers_and_the_rest_in_order_of_nice(
    hold: Path,
) -> None:
    from aioktask.cluster.driver import MOST_AT_ONCE

    with ProcessCoordinator(1, max_threads=1) as coordinator:
        handles = [coordinator.submit(staying(hold, f"first {n}")) for n in range(MOST_AT_ONCE)]
        until(lambda: len(at_workers(handles)) == MOST_AT_ONCE)
        nices = [3, 12, 1, 7]
        queued = [coordinator.submit(staying(hold, f"{nice}", nice=nice)) for nice in nices]
        crowd = [coordinator.submit(staying(hold, "crowd", nice=19)) for _ in range(1000)]
        until(lambda: seen("crowd") is not None)
        assert at_workers(queued) == []
        assert at_workers(crowd) == []
        waiting = seen("12")
        assert waiting is not None
        assert (
            waiting.waits_for
            == f"its turn: {MOST_AT_ONCE} jobs of its coordinator are at the workers"
        )
        queued[1].renice(2)
        for number, expected in enumerate(["1", "12", "3", "7"]):
            before = at_workers(queued)
            handles[number].cancel()
            until(lambda n=number: len(at_workers(queued)) == n + 1)  # type: ignore[misc]
            assert set(at_workers(queued)) - set(before) == {expected}
        assert at_workers(crowd) == []
        urgent = coordinator.submit(staying(hold, "urgent", nice=-5))
        until(lambda: at_workers([urgent]) == ["urgent"])  # it waits for none of those
        assert crowd[0].cancel()
        with pytest.raises(JobCancelled):
            crowd[0].result()
        late = coordinator.submit(staying(hold, "late", nice=19), timeout=0.05)
        with pytest.raises(Overloaded, match="did not begin within") as caught:
            late.result()
        assert caught.value.queued >= 1000
        began = time.monotonic()
        coordinator._cancel_all()
    assert time.monotonic() - began < 30
    assert seen("crowd") is None


# Handles.


def test_a_limit_of_threads_holds_at_once_in_all_workers(
    fleet: ProcessCoordinator, hold: Path
) -> None:
    handle = fleet.submit(staying(hold, "limited", 100_000, max_threads=1))
    until(lambda: len(threads_in(hold)) == 2)
    assert handle.max_threads == 1
    handle.max_threads = 2
    until(lambda: len(threads_in(hold)) == 4)
    assert handle.max_threads == 2
    with pytest.raises(ValueError, match="max_threads must be at least 1, got 0"):
        handle.max_threads = 0
    handle.cancel()


def test_a_timeline_has_every_unit_once_and_what_was_undone(
    fleet: ProcessCoordinator, tmp_path: Path
) -> None:
    handle = fleet.submit(ClusterJob(work.count, 5000, name="drawn", min_chunk=10))
    handle.result()
    drawn = handle.timeline()
    units = sorted(unit for each in drawn.stretches for unit in range(each.first, each.last))
    assert units == list(range(5000))
    assert {each.name for each in drawn.threads} <= {"process-1", "process-2"}
    assert all(0 <= each.start <= each.stop <= drawn.seconds for each in drawn.stretches)
    failing = ClusterJob(work.fail_late, 1000, undo=work.undo_nothing, chunk=10)
    failed = fleet.submit(failing)
    with pytest.raises(OSError, match="planted") as caught:
        failed.result()
    told = aioktask.failure(caught.value)
    assert told is not None
    undone = [each for each in failed.timeline().stretches if each.kind == "undo"]
    assert sum(each.last - each.first for each in undone) == sum(map(len, told.undone)) > 0


def test_a_notebook_shows_the_workers_and_nothing_that_was_named_as_markup(
    fleet: ProcessCoordinator, hold: Path
) -> None:
    handle = fleet.submit(staying(hold, "<b>bold</b>"))
    until(lambda: both_work("<b>bold</b>"))
    shown = handle._repr_html_()
    assert "process-1" in shown
    assert "&lt;b&gt;bold" in shown
    assert "<b>bold" not in shown
    handle.cancel()


# Events.


@pytest.fixture
def heard() -> Iterator[list[Event]]:
    """The events of all jobs in this process, while the test runs."""
    found: list[Event] = []
    HEARERS.append(found)
    yield found
    HEARERS.remove(found)


HEARERS: list[list[Event]] = []


def _hear(event: Event) -> None:
    for each in HEARERS:
        each.append(event)


events.listen(_hear, lambda: bool(HEARERS))


def kinds(heard: list[Event], name: str) -> list[str]:
    return [each.kind.value for each in heard if each.job == name]


def test_events_tell_of_its_life_as_of_any_job(
    fleet: ProcessCoordinator, hold: Path, heard: list[Event]
) -> None:
    fleet.submit(ClusterJob(work.count, 1000, name="lives")).result()
    assert kinds(heard, "lives") == ["job_submitted", "job_started", "job_finished"]
    end = next(each for each in heard if each.job == "lives" and each.kind is EventKind.FINISHED)
    assert {"elapsed", "queued", "chunks", "threads"} <= set(end.details)
    handle = fleet.submit(staying(hold, "ends", undo=work.undo_nothing))
    until(lambda: both_work("ends"))
    handle.cancel()
    with pytest.raises(JobCancelled):
        handle.result()
    assert kinds(heard, "ends")[-1] == "job_cancelled"
    failing = ClusterJob(work.fail_late, 1000, undo=work.undo_nothing, chunk=10, name="fails")
    with pytest.raises(OSError, match="planted"):
        fleet.submit(failing).result()
    assert kinds(heard, "fails") == ["job_submitted", "job_started", "job_undone", "job_failed"]
    failed = next(each for each in heard if each.kind is EventKind.FAILED)
    assert failed.details["worker"] in ("process-1", "process-2")


def test_homes_that_no_worker_has_are_told_once_with_the_names_that_there_are(
    fleet: ProcessCoordinator, heard: list[Event]
) -> None:
    homes = [Home(0, 500, "proces-1"), Home(500, 900, "process-2"), Home(900, 1000, ["x", "y"])]
    fleet.submit(ClusterJob(work.count, 1000, chunk=10, homes=homes, name="mistyped")).result()
    told = [each for each in heard if each.kind is EventKind.HOMES_UNKNOWN]
    (event,) = told
    assert event.details["homes"] == ("proces-1", "x", "y")
    assert event.details["workers"] == ("localhost", "process-1", "process-2")
    assert level_of(event) == logging.WARNING
    known = [Home(0, 500, ["proces-1", "process-1"]), Home(500, 600, "localhost")]
    fleet.submit(ClusterJob(work.count, 1000, homes=known)).result()
    assert [each for each in heard if each.kind is EventKind.HOMES_UNKNOWN] == told


def test_metrics_count_its_end(fleet: ProcessCoordinator) -> None:
    pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")
    from prometheus_client import CollectorRegistry

    from aioktask.observe import metrics

    registry = CollectorRegistry()
    stop = metrics.start(registry)
    try:
        fleet.submit(ClusterJob(work.count, 1000, name="counted")).result()
        of = {"name": "counted", "kind": "job", "end": "finished", "undo": "none"}
        assert registry.get_sample_value("aioktask_jobs_total", of) == 1
        ran = registry.get_sample_value(
            "aioktask_job_run_seconds_count", {"name": "counted", "kind": "job"}
        )
        assert ran == 1
    finally:
        stop()


def test_a_trace_has_a_span_of_it_below_the_one_that_submitted(fleet: ProcessCoordinator) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from aioktask.observe import traces

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    stop = traces.start(provider)
    try:
        with provider.get_tracer("test").start_as_current_span("outer") as outer:
            fleet.submit(ClusterJob(work.count, 1000, name="traced")).result()
        with pytest.raises(CoordinatorClosed):
            refused().submit(ClusterJob(work.count, 1000, name="turned away"))
    finally:
        stop()
    spans = {
        (each.attributes or {}).get("aioktask.name"): each for each in exporter.get_finished_spans()
    }
    span = spans["traced"]
    assert span.attributes is not None
    assert span.attributes["aioktask.end"] == "finished"
    assert span.parent is not None
    assert span.parent.span_id == outer.get_span_context().span_id
    assert spans["turned away"].attributes["aioktask.end"] == "refused"  # type: ignore[index]
    assert seen("turned away") is None


def refused() -> ProcessCoordinator:
    """A coordinator that takes no more jobs."""
    coordinator = ProcessCoordinator(1)
    with coordinator:
        pass
    return coordinator
