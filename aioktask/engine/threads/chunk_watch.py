# SPDX-License-Identifier: MIT
# The keeper's look at what threads are at: which of them have been at one chunk for long.
#
# No thread is abandoned while it may touch the caller's memory, so a chunk that does not end holds
# up its job, a cancel, and a server's stop. This is how one learns which, and where it is. A chunk
# leaves no record as it begins; so the time is counted from the look that found the thread there.
#
# What is known of a thread's chunk is kept by numbers, so that nothing of a job that is over stays
# referred to.
"""Finding chunks that last."""

from __future__ import annotations

import sys
from time import perf_counter_ns
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from aioktask.engine.state import ending
from aioktask.engine.state.workers import Caller, Helper
from aioktask.engine.threads.helper import _OWN_FILES

if TYPE_CHECKING:
    from aioktask.engine.state.run import Run
    from aioktask.engine.state.stint import Stint
    from aioktask.engine.threads.pool import Pool

# The runs are asked for coroutine undos this often: there may be thousands of them.
UNDOS_NS = 1_000_000_000

# At most so many calls of a stack are told, the innermost ones.
MOST_CALLS = 40

# The number of a run, and of the thread; 0 for a coroutine undo.
Place = tuple[int, int]


class At(NamedTuple):
    """A thread at a chunk.

    Attributes:
        chunk: Where the chunk begins.
        since: When it was found there first, or began, in ns.
        tells_at: When it is told next, in ns; 0 for never.
        stack: Where it was in the program when that was told last.
    """

    chunk: int
    since: int
    tells_at: int
    stack: tuple[str, ...] = ()


class ChunkWatch:
    """What the keeper knows of the chunks that threads are at.

    Attributes:
        places: By run and thread; replaced as a whole, for any thread to read.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._undos_at = 0
        self.places: dict[Place, At] = {}

    def look(self) -> None:
        """On the keeper: see who is still where it was, and tell who has been for long."""
        now = perf_counter_ns()
        places: dict[Place, At] = {}
        state = self._pool.state
        for stint in list(state.serving):
            run = stint.run
            at_chunk = stint.live and stint.chunk_start < stint.stretch_stop
            if not at_chunk or run.over or stint in state.waiting:  # or it waits for another job
                continue
            place = run.number, id(stint.thread)
            places[place] = self._look_at(run, stint, self.places.get(place), now)
        if now - self._undos_at >= UNDOS_NS:
            self._undos_at = now
            for run in list(state.runs):
                if run.async_undo:
                    place = run.number, 0
                    places[place] = self._look_at(run, None, self.places.get(place), now)
        else:
            places |= {place: at for place, at in self.places.items() if not place[1]}
        self.places = places

    def rest(self) -> None:
        """On the keeper: forget all, as there is nothing to look after."""
        if self.places:
            self.places = {}

    def _look_at(self, run: Run, stint: Stint | None, before: At | None, now: int) -> At:
        state = self._pool.state
        after = run.group.tunables.get("stuck_after", state.tunables.stuck_after)
        chunk = 0 if stint is None else stint.chunk_start
        if before is None or before.chunk != chunk:
            since = now
            if stint is not None and chunk == stint.stretch_start:
                since = max(stint.claimed_at, stint.walked_at)
            before = At(chunk, since, 0)
        if after is None:
            return before._replace(tells_at=0)
        due = before.tells_at or before.since + int(after * 1e9)
        if now < due:
            return before._replace(tells_at=due)
        stack = () if stint is None else _stack_of(stint.thread)
        told = None if stint is None else range(chunk, max(stint.chunk_stop(), chunk))
        seconds = (now - before.since) / 1e9
        self._pool.inbox.append((ending.tell_stuck, run, told, seconds, stack))
        return At(chunk, before.since, before.since + 2 * (now - before.since), stack)


def _stack_of(thread: object) -> tuple[str, ...]:
    """Where a thread is in the program, the innermost call last; without what its variables are."""
    ident = thread.ident if isinstance(thread, (Helper, Caller)) else 0
    frames = sys._current_frames()
    frame = frames.get(ident)
    del frames
    calls: list[str] = []
    # From the frames around a chunk on nothing is of the job.
    while (
        frame is not None and frame.f_code.co_filename not in _OWN_FILES and len(calls) < MOST_CALLS
    ):
        calls.append(_call_of(frame))
        frame = frame.f_back
    return tuple(reversed(calls))


def _call_of(frame: FrameType) -> str:
    code = frame.f_code
    return f'File "{code.co_filename}", line {frame.f_lineno}, in {code.co_qualname}'
