# SPDX-License-Identifier: MIT
# What the library tells in events, as an application hears it that configures logging alone.

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.gates import PATIENCE


class Told(logging.Handler):
    """The events that are told while it listens, of all threads."""

    def __init__(self) -> None:
        super().__init__()
        self._events: list[tuple[str, dict[str, Any]]] = []
        self._came = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = record.__dict__["aioktask"]
        with self._came:
            self._events.append((record.getMessage().split()[0], fields))
            self._came.notify_all()

    def of(self, event: str, job: str) -> list[dict[str, Any]]:
        """The fields of these events of the jobs of this name that were told by now."""
        with self._came:
            return [
                fields for kind, fields in self._events if kind == event and fields["job"] == job
            ]

    def wait(self, event: str, job: str, count: int = 1) -> list[dict[str, Any]]:
        """Until so many of them were told. Blocks the thread."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.of(event, job)) >= count, PATIENCE), (
                f"{event} of {job} was told {len(self.of(event, job))} times, not {count}"
            )
        return self.of(event, job)


@contextmanager
def listening(level: int = logging.WARNING) -> Iterator[Told]:
    """Hear what is told at this level and above."""
    logger = logging.getLogger("aioktask")
    told, before = Told(), logger.level
    logger.addHandler(told)
    logger.setLevel(level)
    try:
        yield told
    finally:
        logger.setLevel(before)
        logger.removeHandler(told)
