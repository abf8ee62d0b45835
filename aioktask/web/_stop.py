# SPDX-License-Identifier: MIT
# How the coordinator of a server stops: it takes nothing more, lets what runs finish for a while,
# then cancels and undoes the rest, and never takes longer than it was given.
#
# Servers run the end of a lifespan after all requests have ended, and some are killed before that.
# So the stop can begin with the signal: the handler is put before the one that the server has
# installed, calls that one too, and is taken away again. A loop's own handlers
# (`add_signal_handler`) hear of signals by a descriptor, whichever handler Python runs. Where the
# signal would have ended the process at once, it does so when the stop is through.
"""Stopping within a grace period."""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext
from types import FrameType
from typing import Any

import anyio

from aioktask.checks import integer, listed
from aioktask.engine.api.coordinator import Coordinator
from aioktask.engine.loops.loop import running_loop
from aioktask.engine.tunables import TUNABLES
from aioktask.web._deadline import checked_seconds

# What Kubernetes gives by default is 30 s from SIGTERM on, and so does gunicorn.
FINISH = 10.0
UNDO = 15.0

# For how long a server that does not handle the signal may still answer requests and end by
# itself, once all is done or undone.
LINGER = 2.0

# As far as the system has them.
_NEVER_HANDLED = {getattr(signal, name) for name in ("SIGKILL", "SIGSTOP") if hasattr(signal, name)}


class Service:
    """The coordinator that a server has while it runs, and how it is stopped.

    Args:
        what: What makes it, for errors.
        own: The names of the arguments of that, beside the settings.
        finish: For how many seconds what runs may go on once the stop begins; None for no limit.
        undo: For how many seconds what is then cancelled may be undone; None for no limit.
        stop_on: The signals with which the stop begins.
        settings: Those of the `Coordinator`.

    Raises:
        TypeError, ValueError: An argument is not what it may be: the message names it.
    """

    def __init__(
        self,
        what: str,
        own: Sequence[str],
        finish: float | None,
        undo: float | None,
        stop_on: Iterable[int],
        settings: dict[str, Any],
    ) -> None:
        self._finish = checked_seconds("finish", finish)
        self._undo = checked_seconds("undo", undo)
        self._stop_on = [_catchable(each) for each in listed("stop_on", stop_on)]
        known = [each.name for each in TUNABLES.values() if each.scoped]
        if unknown := [name for name in settings if name not in known]:
            raise TypeError(
                f"{what} has no argument {', '.join(map(repr, unknown))}; there are "
                f"{', '.join(own)}, and those of Coordinator: {', '.join(known)}"
            )
        self._settings = settings
        Coordinator(**settings)  # raises: a setting is not what it may be

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Running]:
        """A coordinator for as long as the block runs, stopped at its end at the latest.

        An exception of the block goes on as it is, once all is undone or the time is up.

        Raises:
            UndoFailed: An undo failed, and no waiter has been given that yet.
        """
        error: BaseException | None = None
        async with Coordinator(**self._settings) as coordinator:
            running = Running(coordinator, self._finish, self._undo)
            async with self._hearing(running) if self._stop_on else nullcontext():
                try:
                    yield running
                except anyio.get_cancelled_exc_class():
                    raise
                except BaseException as raised:
                    error = raised
                await running.stop(at_once=error is not None)
        try:
            if error is not None or (error := running.error) is not None:
                raise error
        finally:
            running.error = error = None  # their tracebacks lead here

    @asynccontextmanager
    async def _hearing(self, running: Running) -> AsyncIterator[None]:
        """Begin the stop when a signal comes while the block runs."""
        loop = running_loop()
        assert loop is not None
        told = anyio.Event()

        def begin() -> None:  # in a signal handler
            running.coordinator.drain()
            loop.post(told.set, None)

        async def stop_when_told() -> None:
            await told.wait()
            await running.stop()
            await anyio.sleep(LINGER)
            handlers.raise_unhandled()

        handlers = Handlers(self._stop_on, begin)
        try:
            with handlers:
                async with anyio.create_task_group() as group:
                    group.start_soon(stop_when_told)
                    yield
                    group.cancel_scope.cancel()
        finally:  # also where the lifespan was cancelled before the stop was through
            handlers.raise_unhandled()


def _catchable(number: object) -> int:
    """A signal with which a stop can begin.

    Raises:
        TypeError, ValueError: It is no signal, or no program can handle it.
    """
    found = integer("each signal of stop_on", number)
    if found not in signal.valid_signals():
        raise ValueError(f"stop_on must be signals, such as (signal.SIGTERM,), got {number!r}")
    if found in _NEVER_HANDLED:
        raise ValueError(f"stop_on: no program can handle {signal.Signals(found).name}")
    return found


class Running:
    """A coordinator and its stop, of which there is one, whoever begins it.

    As a context manager it stops the coordinator at the end of the block, before what is around
    that block goes. It opens no scope of anyio's: aiohttp enters and leaves contexts at different
    depths of a task.

    Attributes:
        error: What the stop raised, for whoever leaves last.
    """

    def __init__(self, coordinator: Coordinator, finish: float | None, undo: float | None) -> None:
        self.coordinator = coordinator
        self.error: Exception | None = None
        self._finish = finish
        self._undo = undo
        self._begun = False
        self._stopped = anyio.Event()

    async def stop(self, *, at_once: bool = False) -> None:
        """Take nothing more, let what runs finish, then cancel and undo the rest, each in its time.

        Where that has begun already, wait for its end.

        Args:
            at_once: Whether what runs is given no time to finish.

        **Cancellation** cancels the jobs, waits until they are undone, and goes on.
        """
        if self._begun:
            await self._stopped.wait()
            return
        self._begun = True
        coordinator = self.coordinator
        coordinator.drain()
        try:
            try:
                left = await coordinator.shutdown(timeout=0.0 if at_once else self._finish)
                if left:
                    await coordinator.shutdown(cancel=True, timeout=self._undo)
            except anyio.get_cancelled_exc_class():
                # What is being undone has all of its time, whatever was left of the other.
                with anyio.CancelScope(shield=True):
                    await coordinator.shutdown(cancel=True, timeout=self._undo)
                raise
        except Exception as error:
            self.error = error
        finally:
            self._stopped.set()

    async def __aenter__(self) -> Coordinator:
        return self.coordinator

    async def __aexit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        await self.stop(at_once=kind is not None)


class Handlers:
    """Has a function be called in a block when a signal comes, before the handler that is there.

    Where there is none but the default, the signal does not end the process by itself. Handlers
    can be set in the main thread only: in other threads this does nothing.
    """

    def __init__(self, signals: Iterable[int], call: Callable[[], object]) -> None:
        self._signals = signals
        self._call = call
        self._before: dict[int, Any] = {}
        self._unhandled: list[int] = []

    def __enter__(self) -> Handlers:
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                before = signal.getsignal(number)
                if before not in (None, signal.SIG_IGN):  # None: not Python's, so left alone
                    self._before[number] = before
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *raised: object) -> None:
        for number, before in self._before.items():
            if signal.getsignal(number) == self._handle:  # nobody has come after
                signal.signal(number, before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._call()
        before = self._before[number]
        if callable(before):
            before(number, frame)
        else:
            self._unhandled.append(number)

    def raise_unhandled(self) -> None:
        """Have the signals that came do what they would have done at once without this."""
        for number in self._unhandled:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
