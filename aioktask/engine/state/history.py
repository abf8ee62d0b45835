# SPDX-License-Identifier: MIT
# What threads served of late, for who looks: kept only while somebody wants it.
#
# Turns add to it as a thread leaves a run, and helpers as they end a job of the lane. What a thread
# serves without a gap is one entry, so a job that goes on for an hour is one.
"""The last minutes of the threads."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from aioktask.engine.scheduling.queue import LENT
from aioktask.engine.state.workers import Helper

if TYPE_CHECKING:
    from aioktask.engine.state.run import Run
    from aioktask.engine.state.stint import Stint

# So many entries are kept: some minutes of two busy threads, and a megabyte.
MOST_ENTRIES = 8192

# What a thread serves after so short a gap counts as going on.
GAP_NS = 2_000_000


class Served(NamedTuple):
    """A thread that served one run for a while. Times are in ns, of `time.perf_counter_ns`.

    Attributes:
        thread: The kernel's number of the thread; 0 for one of the program's own.
        run: The number of the run.
        name: Of the run.
        kind: "work" or "undo".
        lent: Whether at the nice of a waiter.
        start: When it began.
        stop: When it left.
    """

    thread: int
    run: int
    name: str
    kind: str
    lent: bool
    start: int
    stop: int


class History:
    """What threads served, the last entries. Any thread may ask."""

    __slots__ = ("_entries", "_last")

    def __init__(self) -> None:
        self._entries: deque[Served] = deque(maxlen=MOST_ENTRIES)
        self._last: dict[int, Served] = {}  # by thread, those that may go on

    def served(self, stint: Stint, run: Run, now: int) -> None:
        """Take in that the stint's thread served the run from when it entered it until now."""
        thread = stint.thread.native if isinstance(stint.thread, Helper) else 0
        lent = stint.seat.account is LENT
        kind = "undo" if run.undoing else "work"
        last = self._last.get(thread)
        start = stint.entered_at
        if (
            last is not None
            and (last.run, last.kind, last.lent) == (run.number, kind, lent)
            and 0 <= start - last.stop <= GAP_NS
        ):
            self._last[thread] = last._replace(stop=now)
            return
        if last is not None:
            self._entries.append(last)
        if len(self._last) > MOST_ENTRIES:  # threads that are gone long ago
            self._last.clear()
        self._last[thread] = Served(thread, run.number, run.name, kind, lent, start, now)

    def since(self, at: int) -> list[Served]:
        """What ended at this time or later."""
        found = [*self._entries.copy(), *self._last.copy().values()]
        return [each for each in found if each.stop >= at]
