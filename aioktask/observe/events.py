# SPDX-License-Identifier: MIT
# Events of jobs, as structlog events: "job_started" and so on, with their figures as fields.
#
# The library configures nothing. While the application has not configured structlog either, events
# go to logging.getLogger("aioktask"), since structlog that is not configured prints. An application
# that configured it has imported it, so this library need not, which would take 0.2 s.
"""Structured events."""

from __future__ import annotations

import logging
import os
import sys
from types import ModuleType

from aioktask.engine import events
from aioktask.engine.events import Event, EventKind

_logger = logging.getLogger("aioktask")

_ROUTINE = (
    EventKind.SUBMITTED,
    EventKind.STARTED,
    EventKind.LENT,
    EventKind.LENT_NO_MORE,
    EventKind.LEARNED,
)
_ADVICE = (
    EventKind.HOLDS_GIL,
    EventKind.STALLED,
    EventKind.STUCK,
    EventKind.BOUND_TO_ONE_CPU,
    EventKind.HOMES_UNKNOWN,
    EventKind.LEFT_BEHIND,
)
# What the system refused is worth a warning; a file that is damaged, or a function that was changed
# since, is not.
_LESSONS = (EventKind.NOT_REMEMBERED, EventKind.NOT_KEPT)
# A refusal is told to whoever submits.
_ENDINGS = (EventKind.FINISHED, EventKind.CANCELLED, EventKind.UNDONE, EventKind.REFUSED)


def level_of(event: Event) -> int:
    """The logging level: a failure that somebody waits for is told to them, so only noted here."""
    if event.kind in _ROUTINE:
        return logging.DEBUG
    if event.kind in _LESSONS:
        return logging.WARNING if isinstance(event.details["error"], OSError) else logging.INFO
    if event.kind in _ADVICE:
        return logging.WARNING
    if "expired" in event.details and not event.awaited:  # nobody else is told
        return logging.WARNING
    if event.kind in _ENDINGS or (event.kind is EventKind.FAILED and event.awaited):
        return logging.INFO
    return logging.ERROR


def log(event: Event) -> None:
    """Send an event to structlog, or to logging where that is not configured."""
    level = level_of(event)
    # What the program's own function raised where nobody can catch it comes with its traceback.
    shown = event.details["error"] if event.kind is EventKind.INITIALIZER_FAILED else None
    structlog = _configured_structlog()
    if structlog is not None:
        fields = _fields(event)
        if shown is not None:
            fields["exc_info"] = shown
        structlog.get_logger(_logger.name).log(level, event.kind.value, **fields)
    elif _logger.isEnabledFor(level):
        fields = _fields(event)
        told = " ".join(f"{key}={value!r}" for key, value in fields.items())
        error = shown if isinstance(shown, BaseException) else None
        _logger.log(
            level, "%s %s", event.kind.value, told, extra={"aioktask": fields}, exc_info=error
        )


def _fields(event: Event) -> dict[str, object]:
    fields = {"job": event.job, "run": event.run, **event.details}
    if event.labels:
        fields["labels"] = dict(event.labels)
    return fields


def wants_routine() -> bool:
    """Whether the application would see that a job finished."""
    return _configured_structlog() is not None or _logger.isEnabledFor(logging.INFO)


def _configured_structlog() -> ModuleType | None:
    """structlog, if the application has configured it."""
    structlog = sys.modules.get("structlog")
    # It may be about to be imported, in another thread.
    is_configured = getattr(structlog, "is_configured", None)
    return structlog if is_configured is not None and is_configured() else None


events.listen(log, wants_routine)

if "AIOKTASK_PUBLISH" in os.environ:
    from aioktask.observe.processes import publish_if_asked

    publish_if_asked()
