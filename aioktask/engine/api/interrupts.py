# SPDX-License-Identifier: MIT
# Ctrl-C while the main thread takes part in a job.
#
# A handler runs in the main thread between any two instructions, so perhaps right after a chunk
# returned, where a KeyboardInterrupt would look as if the chunk had raised it. So for the time of
# `run_multithreaded_sync` Python's own handler is replaced, as asyncio.Runner does, by one that
# cancels the job. A second Ctrl-C raises, wherever it strikes.
"""SIGINT during a synchronous run."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from aioktask.engine.state import record
from aioktask.engine.state.run import Run
from aioktask.engine.state.workers import Caller
from aioktask.job import set_failure, told_of

if TYPE_CHECKING:
    from aioktask.engine.threads.pool import Pool


class Interrupts:
    """A block in which SIGINT cancels the run, in the main thread under Python's default handler.

    Attributes:
        cancelled: Whether a first SIGINT came, which cancels the run.
        given_up: Whether a second one came, after which the call waits no more.
    """

    __slots__ = ("_caller", "_pool", "_raised", "_run", "_stands_in", "cancelled", "given_up")

    def __init__(self, pool: Pool, run: Run, caller: Caller) -> None:
        self._pool = pool
        self._run = run
        self._caller = caller
        self.cancelled = self.given_up = self._raised = False
        self._stands_in = False

    def __enter__(self) -> Interrupts:
        if self._caller.main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._stands_in = True
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._stands_in:
            return
        self.step_back()
        if self.cancelled and not self._raised and not issubclass(type(error), KeyboardInterrupt):
            raise KeyboardInterrupt  # it came too late, or the job was refused

    def step_back(self) -> None:
        """Restore Python's own handler, unless the program has set another one since."""
        if signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        attended = self._run.attended
        if attended is not None and not attended.locked():
            # The call ended without a cancel, since exceptions struck faster than it could act.
            self.step_back()
            signal.default_int_handler(number, frame)
        if not self.cancelled:
            self.cancelled = True
            self._pool.cancel(self._run)
            return
        self.given_up = self._caller.quits = True
        self._caller.wake()
        raise KeyboardInterrupt

    def conclude(self) -> None:
        """Raise the KeyboardInterrupt that was asked for, if one was.

        Raises:
            UndoFailed: In its place, where the undo failed.
        """
        run = self._run
        if self.given_up and not run.over:
            self._raised = True
            raise KeyboardInterrupt(record.what_is_left(run))
        if not self.cancelled:
            return
        interrupt = KeyboardInterrupt()
        told = told_of(run.cancellation())
        if told is not None:
            set_failure(interrupt, told)
        self._raised = True
        run.raise_failed_undo(interrupt)
        raise interrupt
