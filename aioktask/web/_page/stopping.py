# SPDX-License-Identifier: MIT
# How open streams hear that their server is told to stop, which waits for them.
#
# While there is a stream, a handler of this module is called before the one that the server has
# installed for a signal, and calls that one. However many streams come and go, there is one more
# only where another handler was installed meanwhile, as by the next server of the process: it may
# call the one that was there before or not, so the first stream after it puts one before it again.
# Only the newest one tells streams, so each is told once.
# A process that ends by the signal itself is left alone, and so are loops outside the main thread,
# where no handler can be set.
"""Hearing that the server stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Stops"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stops:
    """Calls functions when the process is told to stop.

    >>> stops = Stops()
    >>> before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    >>> with stops.hearing(lambda: print("told")):
    ...     signal.raise_signal(signal.SIGTERM)
    told
    >>> stops.installed
    []
    >>> _ = signal.signal(signal.SIGTERM, before)
    """

    def __init__(self) -> None:
        self._calls: dict[object, Callable[[], object]] = {}
        self._newest: dict[int, _Handler] = {}

    @property
    def installed(self) -> list[int]:
        """The signals for which its handler is installed."""
        return sorted(
            number
            for number, handler in self._newest.items()
            if signal.getsignal(number) is handler
        )

    @contextmanager
    def hearing(self, call: Callable[[], object]) -> Iterator[None]:
        """Have it be called, in a signal handler, if the process is told to stop in the block."""
        key = object()
        self._calls[key] = call
        in_main = threading.current_thread() is threading.main_thread()
        if in_main:
            self._install()
        try:
            yield
        finally:
            del self._calls[key]
            if in_main and not self._calls:
                self._remove()

    def _install(self) -> None:
        for number in SIGNALS:
            before = signal.getsignal(number)
            if before is not self._newest.get(number) and callable(before):
                self._newest[number] = _Handler(self._tell, before)
                signal.signal(number, self._newest[number])

    def _remove(self) -> None:
        for number in self.installed:  # elsewhere somebody has come after
            signal.signal(number, self._newest.pop(number).before)

    def _tell(self, handler: _Handler, number: int) -> None:
        if self._newest.get(number) is handler:
            for call in list(self._calls.values()):
                call()


class _Handler:
    """A handler of a signal, with the one that was there before."""

    def __init__(self, tell: Callable[[_Handler, int], None], before: Callable[..., Any]) -> None:
        self._tell = tell
        self.before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._tell(self, number)
        self.before(number, frame)
