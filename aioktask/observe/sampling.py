# SPDX-License-Identifier: MIT
# What there is of threads, limits, jobs and loops at one moment, looked at now and then.
#
# There are no events of these. The engine's keeper looks, at most once a second, and only while the
# process has jobs or helpers: then it is awake anyway, and its last look finds nothing left. It
# takes no lock; what turns change meanwhile may be seen as it was or as it is. Of a job it costs a
# glance, where a snapshot costs some microseconds, which is too much for a crowd of them in every
# second.
"""Samples of what the engine has."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aioktask.engine.api.elsewhere import open_elsewhere
from aioktask.engine.api.process import current_pool
from aioktask.engine.scheduling.caps import Decider, within_share
from aioktask.engine.threads.pool import Pool

__all__ = ["Sample", "Sampler", "sample"]

# How often it is looked, while there is anything to see.
SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What there was at one moment.

    Attributes:
        working: Helpers that serve jobs.
        blocked: Further ones that do, and whose calls block without using a CPU.
        idle: Helpers that wait for work.
        starting: Helpers that are on their way.
        limit: The most helpers.
        decider: What decides that.
        waiting: Jobs none of whose chunks has begun.
        running: Those that are under way, an undo included.
        late: How late loops were at the worst of the last 10 seconds, in seconds, the latest of
            each kind; of those that coordinators were entered in.
    """

    working: int
    blocked: int
    idle: int
    starting: int
    limit: int
    decider: Decider
    waiting: int
    running: int
    late: Mapping[str, float]


def sample(pool: Pool) -> Sample:
    """What the pool has now. May be called on any thread."""
    state = pool.state
    helpers = list(state.helpers)
    at_work = sum(each.stint is not None or each.express is not None for each in helpers)
    blocked = min(len(state.blocking), at_work)
    cap = within_share(pool.adapter.cap, pool.adapter.share)
    runs = list(state.runs)
    begun = sum(run.first_claim > 0 for run in runs)
    in_lane = sum(each.express is not None for each in helpers)
    waiting_elsewhere, begun_elsewhere = open_elsewhere()
    late: dict[str, float] = {}
    now = time.perf_counter_ns()
    for watched in pool.loops.loops():
        kind, worst = watched.loop.kind, watched.late(now)[1] / 1e9
        late[kind] = max(worst, late.get(kind, 0.0))
    return Sample(
        working=at_work - blocked,
        blocked=blocked,
        idle=len(helpers) - at_work,
        starting=len(state.starting),
        limit=cap.threads,
        decider=cap.decider,
        waiting=len(runs) - begun + len(state.lane.waiting) + waiting_elsewhere,
        running=begun + in_lane + begun_elsewhere,
        late=late,
    )


class Sampler:
    """Has samples taken from the first event on, and in each process after a fork too.

    Args:
        take: Called with each sample, on the keeper.
    """

    def __init__(self, take: Callable[[Sample], None]) -> None:
        self._take = take
        self._process = 0  # the one in which the keeper looks, if it does
        self._next = 0.0
        self.ended = False

    def see_to_it(self) -> None:
        """Have samples be taken from now on, unless they are."""
        process = os.getpid()
        if self._process == process:
            return
        pool = current_pool()
        if not pool.state.closing:  # at exit no thread can be started
            self._process = process
            self._next = 0.0
            pool.keeper.watch(self.look)

    def look(self) -> bool:
        """On the keeper, at each of its looks: take a sample if it is time; False to end that."""
        if self.ended:
            return False
        pool = current_pool()
        if pool.state.busy or any(open_elsewhere()):
            now = time.monotonic()
            if now >= self._next:
                self._next = now + SECONDS
                self._take(sample(pool))
            return True
        # An event that comes from here on has the keeper look again; so the sample comes after it.
        self._process = 0
        self._take(sample(pool))
        return False
