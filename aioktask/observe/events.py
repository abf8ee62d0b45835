# SPDX-License-Identifier: MIT
# Events of jobs, as structlog events: "job_started" and so on, with their figures as fields.
#
# The library configures nothing. While the application has not configured structlog either, events go to
# logging.getLogger("aioktask"), since structlog that is not configured prints.
"""Structured events."""

from __future__ import annotations

import logging

import structlog

from aioktask.engine import events
from aioktask.engine.events import Event, EventKind

LOGGER = "aioktask"

_LEVELS = {
    EventKind.SUBMITTED: logging.DEBUG,
    EventKind.STARTED: logging.DEBUG,
    EventKind.FINISHED: logging.INFO,
    EventKind.CANCELLED: logging.INFO,
    EventKind.UNDONE: logging.INFO,
    EventKind.UNDO_FAILED: logging.ERROR,
}


def level_of(event: Event) -> int:
    """The logging level: a failure that somebody waits for is told to them, so only noted here."""
    if event.kind is EventKind.FAILED:
        return logging.INFO if event.awaited else logging.ERROR
    return _LEVELS[event.kind]


def log(event: Event) -> None:
    """Send an event to structlog, or to logging where that is not configured."""
    level = level_of(event)
    name = f"job_{event.kind.value}"
    if structlog.is_configured():
        structlog.get_logger(LOGGER).log(
            level, name, job=event.job, run=event.run, **event.details
        )
        return
    logger = logging.getLogger(LOGGER)
    if logger.isEnabledFor(level):
        fields = {"job": event.job, "run": event.run, **event.details}
        told = " ".join(f"{key}={value!r}" for key, value in fields.items())
        logger.log(level, "%s %s", name, told, extra={"aioktask": fields})


def start() -> None:
    """Listen to the engine."""
    events.listen(log)
