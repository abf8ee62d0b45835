# SPDX-License-Identifier: MIT
# The keeper's look at the threads of calls: which of them block without using a CPU.
#
# It costs a turn, and some microseconds a call. So there is one only while something waits for
# helpers, or a call that was found to block may have gone on; and the keeper comes by often only
# where one is found to block, or was a moment ago.
"""Finding calls that block."""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING

from aioktask.engine.machine.load import sleeping_threads, thread_runs
from aioktask.engine.scheduling.blocked import LONG_NS, SHORT_NS, CallThread, ThreadLook
from aioktask.engine.state.blocking import Serving, calls_served, find_blocked

if TYPE_CHECKING:
    from aioktask.engine.threads.pool import Pool

# After a call was found to block while others waited, more of them are expected for so long.
EXPECTED_NS = 1_000_000_000

# So many quick looks that find none are followed by slow ones: the helpers are busy, not blocked.
QUICK_LOOKS = 3


class CallWatch:
    """What the keeper knows of the threads that are at calls."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._threads: dict[Serving, CallThread] = {}
        self._blocked: set[Serving] = set()  # as it was posted last
        self._soon = False
        self._quick_looks = QUICK_LOOKS  # that are left
        self._came_at = self._looked_at = 0
        self._found_at = -EXPECTED_NS

    def look(self) -> bool:
        """Look, if something waits; whether the keeper should come by again soon.

        Called on the keeper, as often as that comes by.
        """
        now = perf_counter_ns()
        if now - self._came_at < (SHORT_NS if self._soon else LONG_NS):
            return self._soon
        self._came_at = now
        state = self._pool.state
        waits = state.scheduler.anybody_waits or bool(state.lane.waiting)
        if waits or (self._blocked and now - self._looked_at >= LONG_NS):
            self._looked_at = now
            self._look_at_threads()
            if self._blocked and waits:
                self._found_at = now
        elif not self._blocked:
            self._threads.clear()
        expected = now - self._found_at < EXPECTED_NS
        if expected or not waits:
            self._quick_looks = QUICK_LOOKS
        elif self._quick_looks:
            self._quick_looks -= 1
        self._soon = expected or bool(waits and self._threads and self._quick_looks)
        return self._soon

    def _look_at_threads(self) -> None:
        pool = self._pool
        calls = pool.take_turn(None, calls_served, pool.state)
        told = thread_runs({thread for thread, _ in calls})
        now = perf_counter_ns()
        threads: dict[Serving, CallThread] = {}
        for each in calls:
            if each[0] in told:
                seen = ThreadLook(now, *told[each[0]])
                known = threads[each] = self._threads.get(each) or CallThread(seen)
                known.look(seen)
        self._threads = threads
        seem = [each for each, thread in threads.items() if thread.blocked]
        sleeping = sleeping_threads({thread for thread, _ in seem})
        blocked = {each for each in seem if each[0] in sleeping}
        if blocked != self._blocked:
            pool.inbox.append((find_blocked, None, blocked))
            self._blocked = blocked
            pool.turn()
