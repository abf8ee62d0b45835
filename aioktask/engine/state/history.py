# SPDX-License-Identifier: MIT
# What threads served of late, for who looks: kept only while somebody wants it.
#
# Turns add to it as a thread leaves a run, and helpers as they end a job of the lane. What a thread
# serves without a gap is one entry, so a job that goes on for an hour is one.
"""The last minutes of the threads."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from aioktask.engine.copies import items_of
from aioktask.engine.scheduling.queue import LENT
from aioktask.engine.state.workers import Caller, Helper

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
        thread: The kernel's number of the thread.
        depth: In how many chunks of other runs it was meanwhile, one inside the other.
        run: The number of the run.
        name: Of the run.
        kind: "work" or "undo".
        lent: Whether at the nice of a waiter.
        start: When it began.
        stop: When it left.
        failed: Whether it left since a chunk of it had raised.
    """

    thread: int
    depth: int
    run: int
    name: str
    kind: str
    lent: bool
    start: int
    stop: int
    failed: bool


class History:
    """What threads served, the last entries. Any thread may ask."""

    __slots__ = ("_entries", "_last")

    def __init__(self) -> None:
        self._entries: deque[Served] = deque(maxlen=MOST_ENTRIES)
        # By thread and depth, those that may go on.
        self._last: dict[tuple[int, int], Served] = {}

    def served(self, stint: Stint, run: Run, now: int) -> None:
        """Take in that the stint's thread served the run from when it entered it until now."""
        thread = stint.thread
        assert isinstance(thread, Helper | Caller)
        key = thread.native, thread.depth
        lent = stint.seat.account is LENT
        kind = "undo" if run.undoing else "work"
        last = self._last.get(key)
        start = stint.entered_at
        if (
            last is not None
            and (last.run, last.kind, last.lent) == (run.number, kind, lent)
            and 0 <= start - last.stop <= GAP_NS
            and not last.failed
        ):
            self._last[key] = last._replace(stop=now, failed=stint.failed)
            return
        if last is not None:
            self._entries.append(last)
        if len(self._last) > MOST_ENTRIES:  # threads that are gone long ago
            self._last.clear()
        self._last[key] = Served(*key, run.number, run.name, kind, lent, start, now, stint.failed)

    def since(self, at: int) -> list[Served]:
        """What ended at this time or later."""
        found = [*items_of(self._entries), *self._last.copy().values()]
        return [each for each in found if each.stop >= at]
