# SPDX-License-Identifier: MIT
# The spans of jobs, as OpenTelemetry's own SDK records them.

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import anyio
import pytest

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

import aioktask
from aioktask import (
    Coordinator,
    CoordinatorClosed,
    Job,
    JobCancelled,
    Overloaded,
    UndoFailed,
    map_ordered,
    run,
    run_multithreaded,
    run_multithreaded_sync,
)
from aioktask.engine import events
from aioktask.engine.events import Beginning
from aioktask.observe import traces
from tests.support.alone import sharing_with_nobody
from tests.support.chunks import fail_at_seven, nothing, planted
from tests.support.gates import Gate, until
from tests.support.told import Ends

traces.start()()  # so that what these tests hear with comes after it
ENDS = Ends()


class Recorded:
    """What an application's own provider records."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("application")

    def spans(self, job: str) -> list[ReadableSpan]:
        """The spans of jobs of this name that have ended."""
        return [
            span
            for span in self.exporter.get_finished_spans()
            if (span.attributes or {}).get("aioktask.name") == job
        ]

    def of(self, job: str) -> ReadableSpan:
        """The one span of a job that has ended, or is about to."""
        ENDS.wait_for(job)
        [span] = self.spans(job)
        return span

    def named(self, name: str) -> ReadableSpan:
        """The one span of this name, of the application's own."""
        [span] = [each for each in self.exporter.get_finished_spans() if each.name == name]
        return span


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    ENDS.forget()
    recorded = Recorded()
    stop = traces.start(recorded.provider)
    yield recorded
    stop()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    assert span.attributes is not None
    return dict(span.attributes)


def is_child(span: ReadableSpan, parent: ReadableSpan | trace.Span) -> bool:
    of = parent.get_span_context()
    assert of is not None
    return (
        span.parent is not None
        and span.parent.span_id == of.span_id
        and span.parent.trace_id == of.trace_id
    )


def test_a_job_is_one_internal_span_that_says_how_it_went(recorded: Recorded) -> None:
    before = time.time_ns()
    job = Job(nothing, 100, chunk=10, max_threads=2, nice=3, name="a")
    report = run_multithreaded_sync(job)
    span = recorded.of("a")
    after = time.time_ns()
    assert span.name == "aioktask.job"
    assert span.kind is trace.SpanKind.INTERNAL
    assert span.parent is None
    assert span.status.status_code is trace.StatusCode.UNSET
    told = attributes(span)
    assert isinstance(told.pop("aioktask.run"), int)
    assert told == {
        "aioktask.name": "a",
        "aioktask.kind": "job",
        "aioktask.nice": 3,
        "aioktask.size": 100,
        "aioktask.chunk": 10,
        "aioktask.planned": min(2, aioktask.max_threads()),
        "aioktask.end": "finished",
        "aioktask.queued": report.queued,
        "aioktask.elapsed": report.elapsed,
        "aioktask.chunks": 10,
        "aioktask.threads": report.peak_threads,
    }
    assert span.start_time is not None
    assert span.end_time is not None
    assert before <= span.start_time <= span.end_time <= after
    [started] = [event for event in span.events if event.name == "aioktask.started"]
    lasted = (span.end_time - started.timestamp) / 1e9
    assert span.start_time <= started.timestamp
    assert lasted >= report.elapsed


@pytest.mark.anyio
@pytest.mark.max_threads(2)
async def test_the_span_is_a_child_of_the_submitter_s_and_the_parent_of_its_chunks_spans(
    recorded: Recorded,
) -> None:
    job_of_chunk: list[trace.Span] = []
    threads: set[int] = set()
    barrier = threading.Barrier(2)

    def fn(start: int, stop: int) -> None:
        if start < 2:
            barrier.wait(60)  # so that two threads take part
        threads.add(threading.get_ident())
        job_of_chunk.append(trace.get_current_span())
        with recorded.tracer.start_as_current_span(f"chunk {start}"):
            pass

    job = Job(fn, 4, chunk=1, max_threads=2, name="a")
    async with Coordinator(2) as coordinator:
        with recorded.tracer.start_as_current_span("request") as submitter, sharing_with_nobody():
            await coordinator.submit(job)
            assert trace.get_current_span() is submitter, "the submitter's own context is as ever"
    span = recorded.of("a")
    assert is_child(span, submitter)
    assert len(threads) == 2
    for number in range(4):
        assert is_child(recorded.named(f"chunk {number}"), span)
    assert [each.get_span_context() for each in job_of_chunk] == [span.get_span_context()] * 4


@pytest.mark.anyio
async def test_tasks_that_submit_at_a_time_have_their_jobs_for_children_each(
    recorded: Recorded,
) -> None:
    requests: dict[int, trace.Span] = {}

    async def serve(number: int) -> None:
        with recorded.tracer.start_as_current_span(f"request {number}") as request:
            requests[number] = request
            for _ in range(3):
                await run_multithreaded(Job(nothing, 1, chunk=1, name=f"job {number}"))

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(serve, number)
    for number, request in requests.items():
        ENDS.wait_for(f"job {number}", 3)
        spans = recorded.spans(f"job {number}")
        assert len(spans) == 3
        assert all(is_child(span, request) for span in spans)


def test_a_job_in_a_chunk_is_a_child_of_that_chunk_s_job(recorded: Recorded) -> None:
    inner = Job(nothing, 4, chunk=1, name="inner")

    def fn(start: int, stop: int) -> None:
        run_multithreaded_sync(inner)

    run_multithreaded_sync(Job(fn, 3, chunk=1, name="outer"))
    outer = recorded.of("outer")
    ENDS.wait_for("inner", 3)
    spans = recorded.spans("inner")
    assert len(spans) == 3
    assert all(is_child(span, outer) for span in spans)


@pytest.mark.parametrize(
    ("undo", "outcome", "error"),
    [
        (None, None, "ValueError"),
        (nothing, "undone", "ValueError"),
        (planted, "undo_failed", "aioktask.errors.UndoFailed"),
    ],
    ids=["without undo", "undone", "undo failed"],
)
def test_a_job_that_fails_is_an_error_of_the_kind_that_its_waiter_gets(
    recorded: Recorded,
    undo: Callable[[int, int], None] | None,
    outcome: str | None,
    error: str,
) -> None:
    job = Job(fail_at_seven, 10, chunk=1, max_threads=1, undo=undo, name="a")
    with pytest.raises((ValueError, UndoFailed)) as caught:
        run_multithreaded_sync(job)
    span = recorded.of("a")
    told = attributes(span)
    assert told["error.type"] == error
    assert told["error.type"].endswith(type(caught.value).__qualname__)
    assert told["aioktask.end"] == "failed"
    assert told.get("aioktask.undo") == outcome
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.status.description == f"{error}: {caught.value}"
    if outcome is None:
        assert "aioktask.undoing" not in told
        return
    began, ended = (each for each in span.events if "undo" in each.name)
    assert began.name == "aioktask.undo_began"
    assert ended.name == f"aioktask.{outcome}"
    units = "aioktask.undone" if outcome == "undone" else "aioktask.still_done"
    assert dict(ended.attributes or {}) == {units: 7}
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time <= began.timestamp <= ended.timestamp <= span.end_time
    assert abs((ended.timestamp - began.timestamp) / 1e9 - told["aioktask.undoing"]) < 1e-6


@pytest.mark.parametrize("undo", [None, nothing])
def test_a_job_that_was_cancelled_is_no_error(
    recorded: Recorded, undo: Callable[[int, int], None] | None
) -> None:
    gate = Gate()
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 8, chunk=1, max_threads=1, undo=undo, name="a"))
        gate.wait_entered()
        handle.cancel()
        gate.open()
        with pytest.raises(JobCancelled):
            handle.result()
    span = recorded.of("a")
    told = attributes(span)
    assert told["aioktask.end"] == "cancelled"
    assert told.get("aioktask.undo") == (None if undo is None else "undone")
    assert "error.type" not in told
    assert span.status.status_code is trace.StatusCode.UNSET


@pytest.mark.anyio
async def test_a_coroutine_undo_is_in_the_span_of_its_job(recorded: Recorded) -> None:
    async def undo(start: int, stop: int) -> None:
        with recorded.tracer.start_as_current_span(f"undo {start}"):
            await anyio.lowlevel.checkpoint()

    def fn(start: int, stop: int) -> None:
        aioktask.current_chunk().advance(stop)
        raise ValueError("planted")

    job = Job(fn, 8, chunk=8, undo=undo, name="a")
    with pytest.raises(ValueError, match="planted"):
        await run_multithreaded(job)
    assert is_child(recorded.named("undo 0"), recorded.of("a"))


@pytest.mark.anyio
async def test_a_call_is_a_span_too(recorded: Recorded) -> None:
    assert await run(divmod, 7, 2, name="a") == (3, 1)
    told = attributes(recorded.of("a"))
    assert told["aioktask.kind"] == "call"
    assert told["aioktask.end"] == "finished"
    with pytest.raises(ZeroDivisionError):
        await run(divmod, 7, 0, name="b")
    told = attributes(recorded.of("b"))
    assert told["aioktask.kind"] == "call"
    assert told["error.type"] == "ZeroDivisionError"


@pytest.mark.anyio
async def test_a_stream_is_one_span_however_many_items_it_has(recorded: Recorded) -> None:
    with recorded.tracer.start_as_current_span("request") as request:
        async with map_ordered(abs, range(50), name="a") as results:
            assert [value async for value in results] == list(range(50))
    span = recorded.of("a")
    assert is_child(span, request)
    told = attributes(span)
    assert told["aioktask.kind"] == "stream"
    assert told["aioktask.end"] == "finished"
    assert "aioktask.size" not in told


def test_a_call_of_an_executor_is_a_child_of_who_submitted_it(recorded: Recorded) -> None:
    def call() -> trace.SpanContext:
        return trace.get_current_span().get_span_context()

    with Coordinator() as coordinator:
        executor = coordinator.executor()
        assert isinstance(executor, ThreadPoolExecutor)
        with recorded.tracer.start_as_current_span("request") as request:
            future = executor.submit(call)
        found = future.result(60)
    ENDS.wait_for(call.__qualname__)
    [span] = [each for each in recorded.exporter.get_finished_spans() if each.attributes]
    assert span.name == traces.SPAN_NAME
    assert span.get_span_context() == found
    assert is_child(span, request)


@pytest.mark.parametrize("begins", [True, False])
def test_a_job_whose_time_has_passed_is_an_error_of_the_kind_that_its_waiter_gets(
    recorded: Recorded, begins: bool
) -> None:
    gate = Gate()
    with Coordinator(max_threads=1) as coordinator:
        if not begins:
            coordinator.submit(Job(gate.chunk, 1, name="before"))
            gate.wait_entered()
        handle = coordinator.submit(
            Job(gate.chunk, 8, chunk=1, undo=gate.undo, name="a", max_threads=1), timeout=0.05
        )
        if begins:
            gate.wait_entered()
        until(lambda: handle._run.cancel_asked)
        gate.open()
        with pytest.raises((TimeoutError, Overloaded)) as caught:
            handle.result()
    span = recorded.of("a")
    told = attributes(span)
    assert told["aioktask.end"] == ("timed_out" if begins else "overloaded")
    assert told.get("aioktask.undo") == ("undone" if begins else None)
    assert told["error.type"].split(".")[-1] == type(caught.value).__name__
    assert span.status.status_code is trace.StatusCode.ERROR


def test_a_job_that_is_refused_is_a_span_of_an_instant(recorded: Recorded) -> None:
    gate = Gate()
    with Coordinator(max_threads=1, max_queued=0) as coordinator:
        coordinator.submit(Job(gate.chunk, 1, name="before"))
        gate.wait_entered()
        with recorded.tracer.start_as_current_span("request") as request:
            with pytest.raises(Overloaded) as caught:
                coordinator.submit(Job(nothing, 1, name="a"))
        gate.open()
    span = recorded.of("a")
    assert is_child(span, request)
    told = attributes(span)
    assert told["aioktask.end"] == "overloaded"
    assert told["error.type"] == "aioktask.errors.Overloaded"
    assert told["aioktask.waiting"] == caught.value.queued
    assert told["aioktask.retry_after"] == caught.value.retry_after


def test_a_job_that_a_closed_coordinator_refuses_is_a_span_of_an_instant(
    recorded: Recorded,
) -> None:
    with Coordinator() as coordinator:
        coordinator.drain()
        with pytest.raises(CoordinatorClosed):
            coordinator.submit(Job(nothing, 1, name="a"))
        span = recorded.of("a")
    told = attributes(span)
    assert told["aioktask.end"] == "refused"
    assert told["error.type"] == "aioktask.errors.CoordinatorClosed"


def test_labels_of_a_job_are_attributes(recorded: Recorded) -> None:
    run_multithreaded_sync(Job(nothing, 4, chunk=1, name="a", labels={"request": "7f3a"}))
    assert attributes(recorded.of("a"))["aioktask.label.request"] == "7f3a"


def test_a_loan_is_told_with_its_nice(recorded: Recorded) -> None:
    gate = Gate()
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 1, nice=10, name="a"))
        gate.wait_entered()

        def wait() -> None:
            with aioktask.priority(2):
                handle.result()

        thread = threading.Thread(target=wait)
        thread.start()
        entry = handle._run.entry
        until(lambda: entry.loan_taken or handle._run.lent == "at a chunk boundary")
        lent = entry.loan_taken  # else no thread may go back to a lower nice here
        gate.open()
        thread.join()
    span = recorded.of("a")
    events = [event for event in span.events if event.name == "aioktask.lent"]
    assert len(events) == lent
    assert [dict(event.attributes or {}) for event in events] == [{"aioktask.nice": 2}] * lent
    assert (attributes(span).get("aioktask.lent", 0) > 0) == lent


def test_a_job_that_was_submitted_before_the_end_has_its_span_still() -> None:
    ENDS.forget()
    recorded, gate = Recorded(), Gate()
    stop = traces.start(recorded.provider)
    with Coordinator() as coordinator:
        coordinator.submit(Job(gate.chunk, 1, name="a"))
        gate.wait_entered()
        stop()
        stop()
        coordinator.submit(Job(fail_at_seven, 8, chunk=1, name="later"))
        gate.open()
    assert attributes(recorded.of("a"))["aioktask.end"] == "finished"
    ENDS.wait_for("later")
    assert recorded.spans("later") == []
    assert not aioktask.engine.events.routine_is_heard()


def test_a_job_in_a_chunk_of_a_traced_job_does_not_end_that_one_s_span() -> None:
    ENDS.forget()
    recorded = Recorded()
    stop = traces.start(recorded.provider)

    def fn(start: int, stop_: int) -> None:
        stop()
        with pytest.raises(ValueError, match="planted"):
            run_multithreaded_sync(Job(fail_at_seven, 8, chunk=1, name="inner"))

    run_multithreaded_sync(Job(fn, 1, name="outer"))
    assert attributes(recorded.of("outer"))["aioktask.end"] == "finished"
    assert recorded.spans("inner") == []


def test_the_context_of_who_submits_stays_as_it_is(recorded: Recorded) -> None:
    """It may be that of several jobs, none of which is in another one."""
    context = copy_context()
    found = [
        events.prepared(context, Beginning("a", number, "job", 1, 0)).run(trace.get_current_span)
        for number in range(2)
    ]
    assert context.run(trace.get_current_span) is trace.INVALID_SPAN
    assert [span.parent for span in found if isinstance(span, ReadableSpan)] == [None, None]


def test_what_is_sampled_out_is_not_recorded() -> None:
    ENDS.forget()
    recorded = Recorded(sampler=ALWAYS_OFF)
    stop = traces.start(recorded.provider)
    try:
        with pytest.raises(ValueError, match="planted"):
            run_multithreaded_sync(Job(fail_at_seven, 8, chunk=1, undo=nothing, name="a"))
        ENDS.wait_for("a")
    finally:
        stop()
    assert recorded.exporter.get_finished_spans() == ()


def test_an_error_that_cannot_be_shown_is_told_by_its_kind(recorded: Recorded) -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            raise LookupError("planted")

    def fn(start: int, stop: int) -> None:
        raise OddError

    with pytest.raises(OddError):
        run_multithreaded_sync(Job(fn, 1, name="a"))
    span = recorded.of("a")
    name = f"{OddError.__module__}.{OddError.__qualname__}"
    assert attributes(span)["error.type"] == span.status.description == name


def test_a_provider_that_fails_breaks_no_job(capfd: pytest.CaptureFixture[str]) -> None:
    ENDS.forget()

    class Broken:
        def start_span(self, *args: Any, **options: Any) -> Any:
            raise LookupError("planted")

    class Failing(TracerProvider):
        def get_tracer(self, *args: Any, **options: Any) -> Any:
            return Broken()

    stop = traces.start(Failing())
    try:
        assert run_multithreaded_sync(Job(nothing, 4, chunk=1, name="a")).chunks == 4
        ENDS.wait_for("a")
    finally:
        stop()
    assert "LookupError: planted" in capfd.readouterr().err


def test_what_is_asked_wrongly_is_refused(recorded: Recorded) -> None:
    with pytest.raises(TypeError, match="tracer_provider must be a TracerProvider or None"):
        traces.start("jaeger")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="traced already"):
        traces.start()


def test_without_a_provider_nothing_is_set_up_and_jobs_run_as_ever() -> None:
    program = (
        "import sys\n"
        "from aioktask import *\n"
        "from aioktask.observe import traces\n"
        "stop = traces.start()\n"
        "from opentelemetry import trace\n"
        "assert run_multithreaded_sync(Job(lambda start, stop: None, 4, chunk=1)).chunks == 4\n"
        "print(type(trace.get_tracer_provider()).__name__)\n"
        "print(*[each for each in sys.modules if each.startswith('opentelemetry.sdk')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stdout.split() == ["ProxyTracerProvider"]
    assert done.stderr == ""
