# SPDX-License-Identifier: MIT
# What happens to jobs, as spans of OpenTelemetry (its API alone, of the extra `metrics`).
#
# One span a job, a child of whatever span was current where it was submitted. It is begun there,
# and is the current span in the job's own context, so spans that its functions begin, on any
# thread, are its children; it ends when the engine tells how the job ended, at the time that the
# event says.
#
# Guarantees: nothing is configured (no provider, no exporter); without a provider the API's spans
# do nothing. A span that was begun ends also when tracing was switched off meanwhile.
"""Traces of jobs, for OpenTelemetry."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from aioktask.extras import missing_package

try:
    from opentelemetry import context as otel_context
    from opentelemetry import trace
except ImportError as error:
    raise missing_package("aioktask.observe.traces", "opentelemetry-api", error) from error

from aioktask.checks import optional
from aioktask.engine import events
from aioktask.engine.events import Beginning, Event, EventKind
from aioktask.errors import CoordinatorClosed, Overloaded
from aioktask.observe.ends import end_of

__all__ = ["SPAN_NAME", "start"]

SPAN_NAME = "aioktask.job"

# What whoever submits a job, or waits for it, gets where it ended like this.
_ERRORS = {
    "timed_out": TimeoutError,
    "overloaded": Overloaded,
    "refused": CoordinatorClosed,
}

# Of the end of a job: figures that are attributes, in seconds where they are times.
_FIGURES = ("queued", "elapsed", "undoing", "lent", "chunks", "threads")


class _Open:
    """A span that was begun for a run of a job.

    Attributes:
        run: The run's number.
        span: The span.
        failed: Whether it says already which error the waiter of the job gets.
    """

    __slots__ = ("failed", "run", "span")

    def __init__(self, run: int, span: Any) -> None:
        self.run = run
        self.span = span
        self.failed = False

    def fail(self, kind: type, error: object = None) -> None:
        """Have the span be one of an error of this kind, unless it is."""
        if self.failed or not self.span.is_recording():
            return
        self.failed = True
        of_python = kind.__module__ == "builtins"
        name = kind.__qualname__ if of_python else f"{kind.__module__}.{kind.__qualname__}"
        self.span.set_attribute("error.type", name)
        told = name
        if error is not None:
            with contextlib.suppress(Exception):  # the class is the user's
                told = f"{name}: {error}"
        self.span.set_status(trace.Status(trace.StatusCode.ERROR, told))


# In the job's context, so also in those of jobs that its functions submit.
_open: ContextVar[_Open | None] = ContextVar("aioktask_open_span", default=None)

_tracer: Any = None
_listens = False


def start(tracer_provider: trace.TracerProvider | None = None) -> Callable[[], None]:
    """Have each job that is submitted from now on be a span.

    The span is of the kind ``INTERNAL`` and of the name ``aioktask.job``; what it says of the job
    are attributes that begin with ``aioktask.``, times among them in seconds, and ``error.type``; a
    label of the job is the attribute ``aioktask.label.`` and its name. Its parent is the span that
    is current where the job is submitted; in the job's own functions it is itself the current one.

    Nothing else is done: the application sets up OpenTelemetry. Spans end on threads that the event
    loop and chunks wait for, so they should go to an exporter by a `BatchSpanProcessor`.

    Args:
        tracer_provider: Which makes the spans; None for the application's, whenever that is set.

    Returns:
        A function that ends it: jobs that were submitted by then have their spans still. Without
        effect when it is called again.

    Raises:
        TypeError: `tracer_provider` is none.
        RuntimeError: It was started already, and not ended.

    >>> stop = start()
    >>> stop()
    """
    global _tracer, _listens
    optional("tracer_provider", tracer_provider, trace.TracerProvider)
    if _tracer is not None:
        raise RuntimeError("jobs are traced already: call what start() returned, then start()")
    tracer = _tracer = trace.get_tracer("aioktask", tracer_provider=tracer_provider)
    if not _listens:
        _listens = True
        events.listen(_hear, _wants_routine, _begin)

    def stop() -> None:
        global _tracer
        if _tracer is tracer:
            _tracer = None

    return stop


def _wants_routine() -> bool:
    return _tracer is not None


def _begin(job: Beginning) -> None:
    """Begin the span of a job, in the job's context, where it is the current one from now on."""
    tracer = _tracer
    if tracer is None:
        return
    attributes: dict[str, Any] = {
        "aioktask.name": job.job,
        "aioktask.kind": job.subject,
        "aioktask.run": job.run,
        "aioktask.nice": job.nice,
    }
    if job.size is not None:
        attributes["aioktask.size"] = job.size
    for label, value in job.labels.items():
        attributes[f"aioktask.label.{label}"] = value
    span = tracer.start_span(SPAN_NAME, kind=trace.SpanKind.INTERNAL, attributes=attributes)
    _open.set(_Open(job.run, span))
    otel_context.attach(trace.set_span_in_context(span))


def _hear(event: Event) -> None:
    """Have the span of the event's job say what happened."""
    found = _open.get()
    if found is None or found.run != event.run:  # submitted while jobs were not traced
        return
    span, kind, details = found.span, event.kind, event.details
    end = end_of(event)
    if end is not None:
        _end(found, event, end)
    elif kind in (EventKind.UNDONE, EventKind.UNDO_FAILED):
        _tell_of_undo(found, event)
    elif kind is EventKind.SUBMITTED:
        span.set_attributes(_plain({"chunk": details["chunk"], "planned": details["threads"]}))
    else:
        name = f"aioktask.{kind.value.removeprefix('job_')}"
        span.add_event(name, _plain(details), timestamp=event.at)


def _tell_of_undo(found: _Open, event: Event) -> None:
    """Tell of an undo, which is over, as of two moments."""
    span = found.span
    undoing, ranges = event.details["undoing"], event.details["ranges"]
    assert isinstance(undoing, float)
    assert isinstance(ranges, tuple)
    span.add_event("aioktask.undo_began", timestamp=event.at - int(undoing * 1e9))
    units = sum(each.stop - each.start for each in ranges)  # perhaps more than `len` can tell
    if event.kind is EventKind.UNDONE:
        told, outcome = {"aioktask.undone": units}, "undone"
    else:
        told, outcome = {"aioktask.still_done": units}, "undo_failed"
        found.fail(type(event.details["error"]), event.details["error"])
    span.add_event(f"aioktask.{outcome}", told, timestamp=event.at)
    span.set_attribute("aioktask.undo", outcome)


def _end(found: _Open, event: Event, end: str) -> None:
    span, details = found.span, event.details
    span.set_attribute("aioktask.end", end)
    if event.kind is EventKind.REFUSED:
        if end == "overloaded":
            waiting, retry_after = details["queued"], details["retry_after"]
            span.set_attributes({"aioktask.waiting": waiting, "aioktask.retry_after": retry_after})
        found.fail(_ERRORS[end])
        span.end(end_time=event.at)
        return
    span.set_attributes(_plain({each: details[each] for each in _FIGURES if each in details}))
    if event.kind is EventKind.FAILED:
        found.fail(type(details["error"]), details["error"])
    elif end in _ERRORS:
        found.fail(_ERRORS[end])
    span.end(end_time=event.at)


def _plain(details: Mapping[str, object]) -> dict[str, Any]:
    """What may be attributes."""
    return {
        f"aioktask.{name}": value
        for name, value in details.items()
        if isinstance(value, bool | int | float | str)
    }
