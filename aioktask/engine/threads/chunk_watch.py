# SPDX-License-Identifier: MIT
# The keeper's look at what threads are at: which of them have been at one chunk for long.
#
# No thread is abandoned while it may touch the caller's memory, so a chunk that does not end holds
# up its job, a cancel, and a server's stop. This is how one learns which, and where it is. A chunk
# leaves no record as it begins; so where its stretch has several, the time is counted from the look
# that found the thread there. A chunk that waits for another job is not stuck, and its time is
# counted anew when that is over.
#
# What is known of a thread's chunk is kept by numbers, so that nothing of a job that is over stays
# referred to. Relies on the GIL for a stack alone: without it the frames of a thread that runs
# change while they are read, which may end the process, so none is read then.
"""Finding chunks that last."""

from __future__ import annotations

import os
import sys
from time import perf_counter_ns
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from aioktask.engine.priority import gil_is_on
from aioktask.engine.state import ending
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.workers import Caller, Helper

if TYPE_CHECKING:
    from aioktask.engine.state.run import Run
    from aioktask.engine.threads.pool import Pool

# The runs are asked for coroutine undos this often: there may be thousands of them.
UNDOS_NS = 1_000_000_000

# At most so many calls of a stack are told, the innermost ones.
MOST_CALLS = 40

# Where the engine's own frames are from.
_ENGINE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")

_NO_STACK: tuple[str, ...] = ()

# The number of a run, and of the thread; 0 for a coroutine undo.
Place = tuple[int, int]


class At(NamedTuple):
    """A thread at a chunk, or a coroutine undo.

    Attributes:
        chunk: Where the chunk begins.
        begun: When its stretch was begun, in ns; with `chunk` that tells it from all others.
        since: Since when it has been at that, in ns.
        tells_at: When it is told again, in ns; 0 where it was not told yet.
        stack: Where it was in the program when that was told last.
    """

    chunk: int
    begun: int
    since: int
    tells_at: int = 0
    stack: tuple[str, ...] = ()

    @property
    def stuck(self) -> bool:
        """Whether it was told."""
        return self.tells_at > 0

    def is_at(self, stint: Stint) -> bool:
        """Whether this is where the stint's thread is now."""
        return _at_work(stint) and self.chunk == stint.chunk_start and self.begun == _begun(stint)


def _at_work(stint: Stint) -> bool:
    """Whether the stint's thread is at a chunk, or about to begin one."""
    return stint.live and (stint.chunk_start < stint.stretch_stop or stint.reducing)


def _begun(stint: Stint) -> int:
    """When the stint's stretch, or the item of a calling thread, was begun."""
    return max(stint.claimed_at, stint.walked_at)


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
        news: list[tuple[Any, ...]] = []
        before = self.places
        state = self._pool.state
        for stint in list(state.serving):
            run = stint.run
            if run.over or not _at_work(stint):
                continue
            place = run.number, id(stint.thread)
            at = _now_at(stint, before.get(place), now)
            if stint in state.waiting:  # for another job, which is looked at itself
                places[place] = At(at.chunk, at.begun, now)
            else:
                places[place] = self._looked(run, stint, at, now, news)
        if now - self._undos_at >= UNDOS_NS:
            self._undos_at = now
            for run in list(state.runs):
                if run.async_undo:
                    place = run.number, 0
                    at = before.get(place) or At(0, 0, now)
                    places[place] = self._looked(run, None, at, now, news)
        else:
            places |= {place: at for place, at in before.items() if not place[1]}
        self.places = places  # first: who hears of one finds it in a snapshot
        self._pool.inbox += news

    def rest(self) -> None:
        """On the keeper: forget all, as there is nothing to look after."""
        if self.places:
            self.places = {}

    def _looked(
        self, run: Run, stint: Stint | None, at: At, now: int, news: list[tuple[Any, ...]]
    ) -> At:
        """Add to the news where a thread, or a coroutine undo, has been long enough where it is."""
        state = self._pool.state
        after = run.group.tunables.get("stuck_after", state.tunables.stuck_after)
        if after is None:
            return At(at.chunk, at.begun, at.since)
        lasts = now - at.since
        if lasts < int(after * 1e9) or now < at.tells_at:
            return at
        chunk: range | None = None
        thread, stack = 0, _NO_STACK
        if stint is not None:
            if not stint.reducing:
                chunk = range(at.chunk, max(stint.chunk_stop(), at.chunk))
            who = stint.thread
            thread = who.native if isinstance(who, (Helper, Caller)) else 0
            stack = _stack_of(stint.thread)
        news.append((ending.tell_stuck, run, chunk, lasts / 1e9, thread, stack))
        return At(at.chunk, at.begun, at.since, at.since + 2 * lasts, stack)


def _now_at(stint: Stint, before: At | None, now: int) -> At:
    """Where the stint's thread is, and since when, by what the last look found."""
    chunk, begun = stint.chunk_start, _begun(stint)
    if before is not None and before.chunk == chunk and before.begun == begun:
        return before
    return At(chunk, begun, begun if chunk == stint.stretch_start else now)


def _stack_of(thread: object) -> tuple[str, ...]:
    """Where a thread is in the program, the innermost call last; without what its variables are."""
    if not gil_is_on() or not isinstance(thread, (Helper, Caller)):
        return _NO_STACK
    frame = sys._current_frames().get(thread.ident)
    calls: list[str] = []
    # The chunk may have called the engine. From the frames around it on nothing is of the job.
    while frame is not None and _is_engines(frame):
        frame = frame.f_back
    while frame is not None and not _is_engines(frame) and len(calls) < MOST_CALLS:
        calls.append(_call_of(frame))
        frame = frame.f_back
    return tuple(reversed(calls))


def _is_engines(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_ENGINE)


def _call_of(frame: FrameType) -> str:
    code = frame.f_code
    return f'File "{code.co_filename}", line {frame.f_lineno}, in {code.co_qualname}'
