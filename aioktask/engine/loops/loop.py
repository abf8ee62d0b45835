# SPDX-License-Identifier: MIT
# The loops: how a thread wakes one, once a job, and how a coroutine undo runs on one.
#
# A loop may be closed at any time, and then silently drops what was given to it. So what is posted
# to a loop is an object whose finalizer tells of the loss; finalizers run anywhere, and therefore
# only hand a function to the keeper.
"""asyncio, uvloop and trio."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.lowlevel

from aioktask.engine.helpers import start_blocked
from aioktask.engine.state.run import Run
from aioktask.engine.threads.pool import Pool

if TYPE_CHECKING:
    import trio

# anyio imports this at the first use of one of its functions on asyncio.
_ANYIO_ON_ASYNCIO = "anyio._backends._asyncio"

# How often a waiter looks for itself where a wake-up can be lost (uvloop issue 720: on
# free-threaded CPython, uvloop's call_soon_threadsafe has no lock).
LOOK_SECONDS = 0.05


class Posted:
    """A callback given to a loop. `lost` is called if the loop drops it without a call."""

    __slots__ = ("_callback", "_lost")

    def __init__(self, callback: Callable[[], None], lost: Callable[[], None] | None) -> None:
        self._callback = callback
        self._lost = lost

    def __call__(self) -> None:
        self._lost = None
        self._callback()

    def __del__(self) -> None:
        if self._lost is not None:
            self._lost()


class AsyncWaiter(Protocol):
    """A task that waits for a run."""

    nice: int

    def wake(self) -> None: ...

    def wait(self) -> Awaitable[object]: ...


class Loop(Protocol):
    """One running loop, as the engine uses it."""

    def waiter(self, nice: int, lost: Callable[[], None] | None = None) -> AsyncWaiter: ...

    async def checkpoint_if_cancelled(self) -> None: ...

    def post(self, callback: Callable[[], None], lost: Callable[[], None] | None) -> None: ...

    def spawn(self, undo: UndoTask) -> None: ...

    def is_running(self) -> bool: ...

    def is_closed(self) -> bool: ...

    def run_fresh(self, undo: UndoTask) -> None: ...

    def start_undo(self, run: Run) -> None: ...


class _Loop:
    """What the loops have in common: the start of a coroutine undo."""

    _pool: Pool

    def start_undo(self: Loop, run: Run) -> None:
        UndoTask(self._pool, run, self).start()  # type: ignore[attr-defined]


class AsyncioWaiter:
    __slots__ = ("_future", "_loop", "_lost", "_woken", "nice")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, nice: int, lost: Callable[[], None] | None
    ) -> None:
        self._loop = loop
        self._future = loop.create_future()
        self._lost = lost
        self._woken = False
        self.nice = nice
        if _wakeups_can_be_lost(loop):
            loop.call_later(LOOK_SECONDS, self._look)

    def wake(self) -> None:
        self._woken = True
        posted = Posted(self._set, self._lost)
        self._lost = None  # which refers to the run
        try:  # noqa: SIM105 - on the path of every short job
            self._loop.call_soon_threadsafe(posted)
        except RuntimeError:  # the loop is closed: `posted` tells of the loss
            pass

    def _look(self) -> None:
        if self._woken:
            self._set()
        if not self._future.done():
            self._loop.call_later(LOOK_SECONDS, self._look)

    def _set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def wait(self) -> Awaitable[object]:
        return self._future


class AsyncioLoop(_Loop):
    """An asyncio loop, uvloop's included."""

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop

    def waiter(self, nice: int, lost: Callable[[], None] | None = None) -> AsyncioWaiter:
        return AsyncioWaiter(self._loop, nice, lost)

    async def checkpoint_if_cancelled(self) -> None:
        # A native cancel that is pending is seen by a real suspension only; suspending always would
        # cost a turn of the loop. Where a Task does not tell, suspend.
        if getattr(asyncio.current_task(), "_must_cancel", True):
            await asyncio.sleep(0)
        if _ANYIO_ON_ASYNCIO in sys.modules:  # else nobody made a scope
            await anyio.lowlevel.checkpoint_if_cancelled()

    def post(self, callback: Callable[[], None], lost: Callable[[], None] | None) -> None:
        with contextlib.suppress(RuntimeError):  # closed: `Posted` tells of the loss
            self._loop.call_soon_threadsafe(Posted(callback, lost))

    def spawn(self, undo: UndoTask) -> None:
        # Not by create_task(context=...), which many task factories do not take.
        work = undo.work()
        try:
            undo.task = undo.run.context.copy().run(self._loop.create_task, work)
        except BaseException:
            work.close()
            raise

    def is_running(self) -> bool:
        return self._loop.is_running()

    def is_closed(self) -> bool:
        return self._loop.is_closed()

    def run_fresh(self, undo: UndoTask) -> None:
        with asyncio.Runner(loop_factory=type(self._loop)) as runner:
            runner.run(undo.work(), context=undo.run.context.copy())


class TrioWaiter:
    __slots__ = ("_event", "_lost", "_token", "nice")

    def __init__(
        self, token: trio.lowlevel.TrioToken, nice: int, lost: Callable[[], None] | None
    ) -> None:
        self._token = token
        self._event = sys.modules["trio"].Event()
        self._lost = lost
        self.nice = nice

    def wake(self) -> None:
        posted = Posted(self._event.set, self._lost)
        self._lost = None
        with contextlib.suppress(sys.modules["trio"].RunFinishedError):
            self._token.run_sync_soon(posted)

    def wait(self) -> Awaitable[object]:
        waiting: Coroutine[Any, Any, None] = self._event.wait()
        return waiting


class TrioLoop(_Loop):
    """A trio run."""

    def __init__(self, pool: Pool) -> None:
        import trio

        self._pool = pool
        self._token = trio.lowlevel.current_trio_token()
        self._finished = trio.RunFinishedError

    def waiter(self, nice: int, lost: Callable[[], None] | None = None) -> TrioWaiter:
        return TrioWaiter(self._token, nice, lost)

    async def checkpoint_if_cancelled(self) -> None:
        await anyio.lowlevel.checkpoint_if_cancelled()

    def post(self, callback: Callable[[], None], lost: Callable[[], None] | None) -> None:
        with contextlib.suppress(self._finished):
            self._token.run_sync_soon(Posted(callback, lost))

    def spawn(self, undo: UndoTask) -> None:
        import trio

        async def shielded() -> None:
            # The end of the main task cancels system tasks.
            with trio.CancelScope(shield=True):
                await undo.work()

        trio.lowlevel.spawn_system_task(shielded, context=undo.run.context.copy())

    def is_running(self) -> bool:
        try:
            self._token.run_sync_soon(_nothing)
        except self._finished:
            return False
        return True

    def is_closed(self) -> bool:
        return not self.is_running()

    def run_fresh(self, undo: UndoTask) -> None:
        import trio

        trio.run(undo.work)


class UndoTask:
    """A coroutine undo on its way through a loop, or through a fresh one when that is gone."""

    __slots__ = ("__weakref__", "_pool", "loop", "piece", "run", "taken_over", "task")

    def __init__(self, pool: Pool, run: Run, loop: Loop) -> None:
        self._pool = pool
        self.run = run
        self.loop = loop
        self.piece: range | None = None  # what is being undone now
        self.taken_over = False  # whether another task goes on where this one stood
        self.task: object = None  # asyncio itself keeps tasks by weak references only

    def start(self) -> None:
        self.run.undo_task = self
        if self._pool.state.closing and not self.loop.is_running():
            self._pool.keeper.soon(self.go_on_elsewhere)
            return
        self.loop.post(self._spawn, self._lost)
        self._pool.keeper.watch(self._on_its_way)

    def _on_its_way(self) -> bool:
        """On the keeper, now and then: a loop that is closed tells nobody of the tasks on it."""
        if not self.taken_over and self.loop.is_closed():
            self.go_on_elsewhere()
        return not self.taken_over

    def _spawn(self) -> None:
        try:
            self.loop.spawn(self)
        except Exception:  # a task factory that takes other arguments, say: a fresh loop has none
            self._lost()

    async def work(self) -> None:
        """Undo piece by piece. A cancellation of this task costs one piece, not the rest."""
        undo = self.run.job.undo
        assert undo is not None
        while not self.taken_over and (piece := self._pool.next_undo(self.run)) is not None:
            self.piece = piece
            try:
                result = undo(piece.start, piece.stop)
                assert isinstance(result, Awaitable)
                await result
            except GeneratorExit:
                raise
            except BaseException as error:
                self._pool.async_undo_raised(self.run, piece, error)
            self.piece = None
        if not self.taken_over:
            self.taken_over = True
            self._pool.async_undo_ended(self.run)

    def _lost(self) -> None:
        """The loop dropped this task before it began. Called from a finalizer."""
        self._pool.keeper.soon(self.go_on_elsewhere)

    def rescue(self) -> None:
        """At exit: do not wait for a loop that runs no more."""
        if not self.loop.is_running():
            self._pool.keeper.soon(self.go_on_elsewhere)

    def go_on_elsewhere(self) -> None:
        """On the keeper: what was in hand counts as not undone; a fresh loop does the rest."""
        if self.taken_over:
            return
        self.taken_over = True
        if self.piece is not None:
            error = RuntimeError("the event loop was closed while the undo ran on it")
            self._pool.async_undo_raised(self.run, self.piece, error)
        successor = UndoTask(self._pool, self.run, self.loop)
        self.run.undo_task = successor
        try:
            start_blocked(successor.run_fresh, "aioktask undo")
        except RuntimeError:  # no thread can be started any more
            successor.run_fresh()

    def run_fresh(self) -> None:
        try:
            self.loop.run_fresh(self)
        except BaseException as error:
            # No fresh loop could be had: nothing of the rest is undone.
            while (piece := self._pool.next_undo(self.run)) is not None:
                self._pool.async_undo_raised(self.run, piece, error)
            if not self.taken_over:
                self.taken_over = True
                self._pool.async_undo_ended(self.run)


def _nothing() -> None:
    """A callback that does nothing."""


def running_loop(pool: Pool) -> Loop | None:
    """The loop that runs on this thread, if any."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        loop = None
    if loop is not None and asyncio.current_task(loop) is not None:
        return AsyncioLoop(pool, loop)
    trio = sys.modules.get("trio")  # also one that is a guest on an asyncio loop
    if trio is not None and trio.lowlevel.in_trio_task():
        return TrioLoop(pool)
    return None if loop is None else AsyncioLoop(pool, loop)


def refuse_running_loop(what: str, instead: str) -> None:
    """Raise if this thread runs a loop, which a blocking call would stop.

    Raises:
        RuntimeError: It does.
    """
    trio = sys.modules.get("trio")
    running = trio is not None and trio.lowlevel.in_trio_run()
    if not running:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
    raise RuntimeError(f"{what} would block the event loop of this thread: {instead}")


def _wakeups_can_be_lost(loop: asyncio.AbstractEventLoop) -> bool:
    gil = getattr(sys, "_is_gil_enabled", None)
    return gil is not None and not gil() and type(loop).__module__.startswith("uvloop")


async def wait_over(pool: Pool, loop: Loop, run: Run, nice: int, *, watches: bool = False) -> None:
    """Wait until the run is over. A cancellation detaches the waiter."""
    while not run.over:
        waiter = loop.waiter(nice)
        if not pool.add_waiter(run, waiter, watches=watches):
            return
        try:
            await waiter.wait()
        except GeneratorExit:  # the collector may be at work here, in a thread that has the lock
            pool.keeper.soon(partial(pool.remove_waiter, run, waiter))
            raise
        except BaseException:
            pool.remove_waiter(run, waiter)
            raise


async def wait_over_shielded(
    pool: Pool, loop: Loop, run: Run, nice: int, *, watches: bool = False
) -> asyncio.CancelledError | None:
    """The same across any number of cancellations; the first of asyncio's own is returned."""
    first: asyncio.CancelledError | None = None
    # The scope keeps anyio and trio from cancelling again and again; asyncio's own cancel passes
    # it.
    with contextlib.ExitStack() as scopes:
        scopes.enter_context(anyio.CancelScope(shield=True))
        while not run.over:
            try:
                await wait_over(pool, loop, run, nice, watches=watches)
            except asyncio.CancelledError as cancelled:
                first = first or cancelled
            except GeneratorExit:  # the loop is gone, so the scope cannot be left in its task
                scopes.pop_all()
                raise
    return first
