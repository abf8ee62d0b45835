# SPDX-License-Identifier: MIT
# Ctrl-C while the main thread takes part in a job.
#
# A handler runs in the main thread between any two instructions, so perhaps while it holds the
# pool's lock, or right after a chunk returned, where a KeyboardInterrupt would look as if the chunk
# had raised it. So for the time of `run_multithreaded_sync` Python's own handler is replaced, as
# asyncio.Runner does, by one that has the keeper cancel the job. A second Ctrl-C raises, but only
# where no lock is held.
"""SIGINT during a synchronous run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType

from aioktask.engine.helpers import Caller
from aioktask.engine.state.run import Run
from aioktask.engine.state.stint import Frame
from aioktask.engine.threads.pool import Pool

# Engine code in which no lock is held and nothing is half done: here a second Ctrl-C may raise; and
# engine code that, while it calls the user's, holds none.
_SAFE: frozenset[CodeType] = frozenset(
    function.__code__ for function in (Frame.walk, Frame.walk_reduce, Pool.wait_parked)
)
_CALLS_OUT = _SAFE | {Frame._combine.__code__, Pool._merge.__code__}


class Interrupts:
    """What Ctrl-C asked for: `cancelled` after the first, `given_up` after the second.

    `raised` once that became a KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.cancelled = False
        self.given_up = False
        self.raised = False


@contextmanager
def interrupts_cancel(pool: Pool, run: Run, caller: Caller) -> Iterator[Interrupts]:
    """In the main thread under Python's default handler, have SIGINT cancel the run."""
    asked = Interrupts()
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield asked
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        if not asked.cancelled:
            asked.cancelled = True
            pool.keeper.soon(_cancel(pool, run))
            return
        asked.given_up = caller.quits = True
        pool.keeper.soon(caller.wake)
        if frame is None or _may_raise(frame):
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)
    try:
        yield asked
    finally:
        if signal.getsignal(signal.SIGINT) is handle:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if asked.cancelled and not asked.raised:  # it came too late, or the job was refused
            raise KeyboardInterrupt


def _cancel(pool: Pool, run: Run) -> Callable[[], None]:
    def cancel() -> None:
        pool.cancel(run)

    return cancel


def _may_raise(frame: FrameType) -> bool:
    """Whether the interrupted code holds no lock: the user's, or some of the engine's."""
    safe = _SAFE
    step: FrameType | None = frame
    while step is not None:
        if step.f_globals.get("__name__", "").startswith("aioktask.engine"):
            return step.f_code in safe
        safe = _CALLS_OUT
        step = step.f_back
    return True
