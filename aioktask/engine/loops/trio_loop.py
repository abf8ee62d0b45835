# SPDX-License-Identifier: MIT
# trio: how a thread wakes a task once a job, and how a coroutine undo runs there.
"""trio."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio.lowlevel

from aioktask.engine.loops.posted import Posted
from aioktask.errors import DeadlockError

if TYPE_CHECKING:
    import trio

    from aioktask.engine.loops.coroutine_undo import CoroutineUndo


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
            self._token.run_sync_soon(posted)
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
        with contextlib.suppress(self._finished):
            self._token.run_sync_soon(Posted(callback, lost, completed=True))

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
            self._token.run_sync_soon(_nothing)
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
