# SPDX-License-Identifier: MIT
# asyncio, uvloop included: how a thread wakes a task once a job, and how a coroutine undo runs
# there.
"""asyncio and uvloop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from aioktask.engine.loops.posted import Posted
from aioktask.engine.priority import gil_is_on
from aioktask.errors import DeadlockError

if TYPE_CHECKING:
    from aioktask.engine.loops.coroutine_undo import CoroutineUndo

# anyio imports this at the first use of one of its functions on asyncio.
_ANYIO_ON_ASYNCIO = "anyio._backends._asyncio"

# How often a waiter itself looks whether it was woken, where a wake-up can be lost (uvloop issue
# 720: on free-threaded CPython, uvloop's call_soon_threadsafe has no lock).
LOOK_SECONDS = 0.05


class AsyncioWaiter:
    """A task of an asyncio loop that waits."""

    __slots__ = ("_future", "_loop", "_lost", "_woken", "left", "nice", "refused")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, nice: int, lost: Callable[[], None] | None
    ) -> None:
        self._loop = loop
        self._future = loop.create_future()
        self._lost = lost
        self._woken = False
        self.left = False
        self.nice = nice
        self.refused: DeadlockError | None = None
        if wakeups_can_be_lost(loop):
            loop.call_later(LOOK_SECONDS, self._look)

    def wake(self) -> None:
        if self.left:
            return
        self._woken = True
        posted = None if self._lost is None else Posted(self._set, self._lost)
        try:
            self._loop.call_soon_threadsafe(self._set if posted is None else posted)
        except BaseException as error:
            # Where the loop is closed, `posted` tells of the loss; else memory or stack was short.
            if not isinstance(error, RuntimeError) or isinstance(error, RecursionError):
                if posted is not None:
                    posted.withdraw()
                raise
        self._lost = None  # which refers to the run

    def _look(self) -> None:
        if self._woken:
            self._set()
        if not self._future.done():
            self._loop.call_later(LOOK_SECONDS, self._look)

    def _set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)
        self._woken = False

    @property
    def heard(self) -> bool:
        # On a loop that is closed nobody hears, ever.
        return not self._woken or self.left or self._loop.is_closed()

    def renew(self) -> None:
        if self._future.done():
            self._future = self._loop.create_future()
            if wakeups_can_be_lost(self._loop):
                self._loop.call_later(LOOK_SECONDS, self._look)

    def wait(self) -> Awaitable[object]:
        return self._future

    def watch(self, lost: Callable[[], None]) -> None:
        self._lost = lost

    def wake_after(self, seconds: float) -> Callable[[], object]:
        return self._loop.call_later(seconds, self._set).cancel


class AsyncioLoop:
    """An asyncio loop, uvloop's included."""

    __slots__ = ("_loop", "_task")
    # asyncio cancels a task once; only below a cancelled scope of anyio's is each further wait
    # cancelled too.
    shields_at_once = False

    def __init__(
        self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[object] | None = None
    ) -> None:
        self._loop = loop
        self._task = task  # which runs now

    @property
    def kind(self) -> str:
        return "uvloop" if type(self._loop).__module__.startswith("uvloop") else "asyncio"

    @property
    def identity(self) -> object:
        return self._loop

    def without_task(self) -> AsyncioLoop:
        return AsyncioLoop(self._loop)

    @property
    def may_be_cancelled(self) -> bool:
        # A native cancel that is pending. Where a Task does not tell, it may be.
        return getattr(self._task, "_must_cancel", True) or _ANYIO_ON_ASYNCIO in sys.modules

    def waiter(self, nice: int, lost: Callable[[], None] | None = None) -> AsyncioWaiter:
        return AsyncioWaiter(self._loop, nice, lost)

    async def checkpoint_if_cancelled(self) -> None:
        # A native cancel that is pending is seen by a real suspension only; suspending always would
        # cost a turn of the loop. Where a Task does not tell, suspend.
        if getattr(self._task, "_must_cancel", True):
            await asyncio.sleep(0)
        if _ANYIO_ON_ASYNCIO in sys.modules:  # else nobody made a scope
            try:
                await anyio.lowlevel.checkpoint_if_cancelled()
            except RuntimeError as error:
                # At the end of the stack anyio says that no loop runs.
                raise RecursionError("maximum recursion depth exceeded") from error

    def post(self, callback: Callable[[], None], lost: Callable[[], None] | None) -> None:
        try:
            self._loop.call_soon_threadsafe(Posted(callback, lost, completed=True))
        except RecursionError:
            raise
        except RuntimeError:  # closed: `Posted` tells of the loss
            pass

    def spawn(self, undo: CoroutineUndo) -> None:
        # Not by create_task(context=...), which many task factories do not take.
        work = undo.work()
        try:
            task = undo.context.copy().run(self._loop.create_task, work)
            undo.tasks.add(task)
            task.add_done_callback(undo.tasks.discard)
        except BaseException:
            work.close()
            raise

    def current_task(self) -> object:
        return asyncio.current_task()

    def is_running(self) -> bool:
        return self._loop.is_running()

    def is_closed(self) -> bool:
        return self._loop.is_closed()

    def run_fresh(self, undo: CoroutineUndo) -> None:
        with asyncio.Runner(loop_factory=type(self._loop)) as runner:
            runner.run(undo.work(), context=undo.context.copy())


def wakeups_can_be_lost(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether ``call_soon_threadsafe`` of this loop may lose a call."""
    return not gil_is_on() and type(loop).__module__.startswith("uvloop")
