# SPDX-License-Identifier: MIT
# Seeing where runs stand, again and again, until they are over.
#
# A watch is registered with its run only while somebody waits in it for the next state: `break`
# closes no iterator, so one that is left early must hold nothing. It lends no nice, and it does not
# count as one who is told how the run ends, since it is not.
"""Watching runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel

from aioktask.engine.api.submission import needed_loop, park_until
from aioktask.engine.loops.loop import refuse_running_loop
from aioktask.engine.loops.waiting import wait_until
from aioktask.engine.priority import MOST_NICE, submitted_nice
from aioktask.engine.state import waiting
from aioktask.engine.state.current import enclosing_stint, local, refuse_own, refuse_waiting
from aioktask.engine.state.run import Run
from aioktask.engine.state.workers import ThreadWaiter, Waiter
from aioktask.engine.threads.pool import Pool
from aioktask.job import Progress, StreamProgress

__all__ = ["Watch", "wait_and_look", "wait_and_look_in_thread"]

State = TypeVar("State", bound=Progress | StreamProgress)


class Watch(Generic[State]):
    """The states of a job or a stream, one each interval, and the last one when it is over.

    What `Handle.watch` returns: iterate over it with ``async for`` in a task, or with ``for`` in a
    thread without a loop. It may be left at any time, and asked again later.
    """

    __slots__ = ("__weakref__", "_ended", "_interval", "_next_at", "_pool", "_read", "_run")

    def __init__(self, pool: Pool, run: Run, read: Callable[[], State], interval: float) -> None:
        self._pool = pool
        self._run = run
        self._read = read
        self._interval = interval
        self._next_at = -1.0  # on the clock of time.monotonic(); the first state is told at once
        self._ended = False

    def __repr__(self) -> str:
        return f"<Watch of {self._run.name!r}>"

    def __aiter__(self) -> Watch[State]:
        return self

    async def __anext__(self) -> State:
        if self._ended:
            raise StopAsyncIteration
        await anyio.lowlevel.checkpoint()
        left = self._left()
        if left > 0:
            self._read()  # refused in a fork's child, where nobody would wake us
            await wait_and_look(self._pool, (self._run,), left, _once, watches=True)
        if self._ended:  # another task has been told meanwhile
            raise StopAsyncIteration
        return self._state()

    def __iter__(self) -> Watch[State]:
        return self

    def __next__(self) -> State:
        if self._ended:
            raise StopIteration
        refuse_running_loop("iterating over a watch with `for`", "use `async for`")
        left = self._left()
        if left > 0:
            self._read()
            wait_and_look_in_thread(self._pool, (self._run,), left, _once, watches=True)
        if self._ended:  # another thread has been told meanwhile
            raise StopIteration
        return self._state()

    def _left(self) -> float:
        """Seconds until the next state is due."""
        return 0.0 if _is_over(self._run) else self._next_at - time.monotonic()

    def _state(self) -> State:
        state = self._read()
        self._ended = state.over
        self._next_at = time.monotonic() + self._interval
        return state


def _once() -> bool:
    return False


def _is_over(run: Run) -> bool:
    """Whether nothing of what is told of the run changes any more."""
    return run.over or run.never_starts


async def wait_and_look(
    pool: Pool, runs: Sequence[Run], interval: float, look: Callable[[], bool], *, watches: bool
) -> None:
    """Wait until all of these runs are over; a checkpoint.

    Args:
        pool: Theirs.
        runs: Any number of them.
        interval: Seconds.
        look: Called so often meanwhile; the wait ends early where it returns False.
        watches: Whether the caller is not going to be told how they ended.
    """
    loop = needed_loop("watching a job")
    await loop.checkpoint_if_cancelled()
    outer = enclosing_stint()
    waiter = loop.waiter(_nice(watches=watches))

    def over() -> bool:
        return all(map(_is_over, runs))

    try:
        for run in runs:
            pool.post(waiting.add_waiter, run, waiter, outer, False, watches)
        while not over():
            with anyio.move_on_after(interval):
                await wait_until(waiter, over)
            if not over() and not look():
                return
    finally:
        waiter.left = True
        _leave(pool, runs, waiter)


def wait_and_look_in_thread(
    pool: Pool,
    runs: Sequence[Run],
    interval: float,
    look: Callable[[], bool],
    *,
    watches: bool,
) -> None:
    """As `wait_and_look`, in this thread.

    Raises:
        DeadlockError: A run would never be over: it waits for the calling chunk's job.
        RuntimeError: The calling code runs inside the engine, where nothing may wait.
    """
    refuse_waiting("watching a job")
    refuse_own(tuple(runs))
    outer = enclosing_stint()
    waiter = ThreadWaiter(_nice(watches=watches))
    detects = local.stint is not None

    def over() -> bool:
        return all(map(_is_over, runs))

    try:
        for run in runs:
            pool.post(waiting.add_waiter, run, waiter, outer, detects, watches)
        while not park_until(pool, waiter, over, interval):
            if not look():
                return
    finally:
        _leave(pool, runs, waiter)


def _nice(*, watches: bool) -> int:
    """What the caller lends: that of the block that it is in, if it waits for the end."""
    if watches or enclosing_stint() is not None:  # a chunk's job lends instead
        return MOST_NICE
    return submitted_nice(MOST_NICE)


def _leave(pool: Pool, runs: Sequence[Run], waiter: Waiter) -> None:
    for run in runs:
        if not run.over:
            pool.post(waiting.remove_waiter, run, waiter)
