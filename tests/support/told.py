# SPDX-License-Identifier: MIT
# When the end of a job was told: to every listener that was there before this one.

from __future__ import annotations

import threading
from collections import Counter

from aioktask.engine import events
from aioktask.engine.events import Event, EventKind
from tests.support.patience import PATIENCE

_ENDS = (EventKind.FINISHED, EventKind.FAILED, EventKind.CANCELLED, EventKind.REFUSED)


class Ends:
    """How many jobs of which name have ended, as a listener hears of it.

    Listeners hear of an event one after the other, in the order in which they came. So what those
    before this one make of the end of a job is there when `wait_for` returns.
    """

    def __init__(self) -> None:
        self._ended: Counter[str] = Counter()
        self._more = threading.Condition()
        events.listen(self._hear, lambda: False)

    def _hear(self, event: Event) -> None:
        if event.kind in _ENDS:
            with self._more:
                self._ended[event.job] += 1
                self._more.notify_all()

    def wait_for(self, job: str, times: int = 1) -> None:
        """Wait until so many jobs of this name have ended, since the last `forget`."""
        with self._more:
            told = self._more.wait_for(lambda: self._ended[job] >= times, PATIENCE)
            assert told, f"{self._ended[job]} of {times} jobs {job!r} have ended: {self._ended}"

    def forget(self) -> None:
        """Begin to count anew."""
        with self._more:
            self._ended.clear()
