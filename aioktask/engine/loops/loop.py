# SPDX-License-Identifier: MIT
# Which loop runs on a thread, and what the engine asks of one.
#
# A loop may be closed at any time, and then silently drops what was given to it. So what is posted
# to a loop is an object whose finalizer tells of the loss; what it calls only posts to the engine.
"""The loops that the engine knows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from aioktask.engine.loops.asyncio_loop import AsyncioLoop
from aioktask.engine.loops.trio_loop import TrioLoop
from aioktask.engine.machine.imported import imported
from aioktask.errors import DeadlockError

if TYPE_CHECKING:
    from aioktask.engine.loops.coroutine_undo import CoroutineUndo


class AsyncWaiter(Protocol):
    """A task that waits. It may be woken more than once, and without a reason.

    Attributes:
        left: Whether it waits no more, so that nothing need be sent to its loop.
    """

    nice: int
    refused: DeadlockError | None
    left: bool

    def wake(self) -> None:
        """Wake the task, on any thread."""

    @property
    def heard(self) -> bool:
        """Whether no wake-up is on its way."""

    def renew(self) -> None:
        """Be ready to wait again."""

    def wait(self) -> Awaitable[object]:
        """Wait until woken since `renew`."""

    def watch(self, lost: Callable[[], None]) -> None:
        """Have `lost` be called if the loop drops the wake-up that is next."""

    def wake_after(self, seconds: float) -> Callable[[], object] | None:
        """Have the task be woken after this time too, at the latest.

        Returns:
            What prevents that; None where this loop has no timer that is worth it.
        """


class Loop(Protocol):
    """One running loop, as the engine uses it.

    Attributes:
        shields_at_once: Whether every wait below a cancelled scope is cancelled at once again.
    """

    shields_at_once: bool

    @property
    def kind(self) -> str:
        """ "asyncio", "uvloop" or "trio"."""
        ...

    @property
    def identity(self) -> object:
        """What is the same for all objects about one running loop, and for no others."""

    def without_task(self) -> Loop:
        """The same loop, without what refers to the running task."""
        ...

    def waiter(self, nice: int, lost: Callable[[], None] | None = None) -> AsyncWaiter:
        """A waiter for the running task; `lost` is called if the loop drops the wake-up."""

    @property
    def may_be_cancelled(self) -> bool:
        """Whether a cancellation may be pending, so that a look for it is worth it."""

    async def checkpoint_if_cancelled(self) -> None:
        """Raise the cancellation that is pending, if one is."""

    def post(self, callback: Callable[[], None], lost: Callable[[], None] | None) -> None:
        """Have the loop call `callback`; `lost` is called if the loop drops that call.

        Neither is called where a loop takes nothing at the moment: who posts asks later, and again.
        """

    def spawn(self, undo: CoroutineUndo) -> None:
        """Run an undo in a task of its own. Called on the loop's thread."""

    def is_running(self) -> bool:
        """Whether the loop runs."""

    def current_task(self) -> object:
        """The task that runs on this thread now.

        Raises:
            RuntimeError: No loop of this kind runs here.
        """
        ...

    def is_closed(self) -> bool:
        """Whether the loop will never run again."""

    def run_fresh(self, undo: CoroutineUndo) -> None:
        """Run an undo in a new loop of the same kind, on the calling thread."""


def running_loop() -> Loop | None:
    """The loop that runs on this thread, if any."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        loop = None
    if loop is not None and (task := asyncio.current_task(loop)) is not None:
        return AsyncioLoop(loop, task)
    trio = imported("trio")  # also one that is a guest on an asyncio loop
    if trio is not None and trio.lowlevel.in_trio_task():
        return TrioLoop()
    return None if loop is None else AsyncioLoop(loop)


def refuse_running_loop(what: str, instead: str) -> None:
    """Raise if this thread runs a loop, which a blocking call would stop.

    Raises:
        RuntimeError: This thread runs a loop.
    """
    trio = imported("trio")
    running = trio is not None and trio.lowlevel.in_trio_run()
    if not running:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
    raise RuntimeError(f"{what} would block the event loop of this thread: {instead}")
