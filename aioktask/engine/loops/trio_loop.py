# SPDX-License-Identifier: MIT
# trio: how a thread wakes a task once a job, and how a coroutine undo runs there.
#
# trio takes a callback under a lock of the run, and a finalizer that Python calls there may wait
# for a job. So a thread of the engine waits for that lock for a moment only; what it could not post
# is posted later, by the keeper, which asks whether a waiter has heard and an undo has begun.
"""trio."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio.lowlevel

from aioktask.engine.loops.posted import Posted
from aioktask.errors import DeadlockError

if TYPE_CHECKING:
    import trio

    from aioktask.engine.loops.coroutine_undo import CoroutineUndo


# How long to wait for the lock of a trio run, in seconds: it is held for some microseconds.
LOCK_SECONDS = 0.02


def _call_soon(token: trio.lowlevel.TrioToken, callback: Callable[[], None]) -> bool:
    """Have a trio run call back; False where its lock was not to be had in time.

    The main thread waits for it as long as it takes: a signal handler that raises there between two
    steps would leave the lock held, and what others do for the holder goes on without that thread.

    Raises:
        trio.RunFinishedError: The run has ended.
    """
    lock = getattr(getattr(token, "_reentry_queue", None), "lock", None)
    if lock is None or threading.current_thread() is threading.main_thread():
        token.run_sync_soon(callback)
        return True
    if not lock.acquire(timeout=LOCK_SECONDS):
        return False
    try:
        token.run_sync_soon(callback)
    finally:
        lock.release()
    return True


class TrioWaiter:
    """A task of a trio run that waits."""

    __slots__ = ("_event", "_lost", "_token", "_woken", "left", "nice", "refused")

    def __init__(
        self, token: trio.lowlevel.TrioToken, nice: int, lost: Callable[[], None] | None
    ) -> None:
        self._token = token
        self._event = sys.modules["trio"].Event()
        self._lost = lost
        self._woken = False
        self.left = False
        self.nice = nice
        self.refused: DeadlockError | None = None

    def wake(self) -> None:
        if self.left:
            return
        self._woken = True
        posted = Posted(self._set, self._lost)
        try:
            if not _call_soon(self._token, posted):
                posted.withdraw()
                return  # the keeper finds that it has not heard
        except sys.modules["trio"].RunFinishedError:
            self._woken = False  # nobody hears, ever; `posted` tells of the loss
        except BaseException:  # memory was short
            posted.withdraw()
            raise
        self._lost = None  # which refers to the run

    def _set(self) -> None:
        self._event.set()
        self._woken = False

    @property
    def heard(self) -> bool:
        return not self._woken or self.left

    def renew(self) -> None:
        if self._event.is_set():
            self._event = sys.modules["trio"].Event()

    def watch(self, lost: Callable[[], None]) -> None:
        self._lost = lost

    def wake_after(self, seconds: float) -> None:
        return None  # trio has no timer without a task, and a scope costs more than it saves

    def wait(self) -> Awaitable[object]:
        return _protected_wait()(self._event)


async def _wait(event: trio.Event) -> None:
    await event.wait()


@functools.cache
def _protected_wait() -> Callable[[trio.Event], Awaitable[None]]:
    """`_wait` with Ctrl-C held off except where it blocks.

    A Ctrl-C that struck inside trio's own `Event.wait` left the task among the event's waiters, and
    to wake it once too often is an internal error of trio's.
    """
    protect: Any = sys.modules["trio"].lowlevel.enable_ki_protection
    protected: Callable[[trio.Event], Awaitable[None]] = protect(_wait)
    return protected


class TrioLoop:
    """A trio run."""

    __slots__ = ("_finished", "_token")
    # Every wait below a cancelled scope is cancelled again at once.
    shields_at_once = True

    def __init__(self) -> None:
        import trio

        self._token = trio.lowlevel.current_trio_token()
        self._finished = trio.RunFinishedError

    @property
    def kind(self) -> str:
        return "trio"

    @property
    def identity(self) -> object:
        return self._token

    def without_task(self) -> TrioLoop:
        return self

    @property
    def may_be_cancelled(self) -> bool:
        return True

    def waiter(self, nice: int, lost: Callable[[], None] | None = None) -> TrioWaiter:
        return TrioWaiter(self._token, nice, lost)

    async def checkpoint_if_cancelled(self) -> None:
        await anyio.lowlevel.checkpoint_if_cancelled()

    def post(self, callback: Callable[[], None], lost: Callable[[], None] | None) -> None:
        posted = Posted(callback, lost, completed=True)
        with contextlib.suppress(self._finished):
            if not _call_soon(self._token, posted):
                posted.withdraw()  # the keeper posts it anew

    def spawn(self, undo: CoroutineUndo) -> None:
        import trio

        async def shielded() -> None:
            # The end of the main task cancels system tasks.
            with trio.CancelScope(shield=True):
                await undo.work()

        trio.lowlevel.spawn_system_task(shielded, context=undo.context.copy())

    def current_task(self) -> object:
        return sys.modules["trio"].lowlevel.current_task()

    def is_running(self) -> bool:
        try:
            _call_soon(self._token, _nothing)  # whose lock is not free is not at its end
        except self._finished:
            return False
        return True

    def is_closed(self) -> bool:
        return not self.is_running()

    def run_fresh(self, undo: CoroutineUndo) -> None:
        import trio

        trio.run(undo.work)


def _nothing() -> None:
    """A callback that does nothing."""
