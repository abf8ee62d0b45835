# SPDX-License-Identifier: MIT
# A coroutine undo: a task on the loop that was running at submit, or on a fresh one where that is
# gone.
#
# A turn cuts what is to be undone into pieces, which `CoroutineUndo` then owns; in the end a
# command tells the state which of them raised. A piece stays the first one until it is undone or
# noted as failed, so whatever strikes the task, no piece is forgotten: the successor finds that
# piece first, and counts it as not undone if the task had begun it. The lock `_working` is held
# while the task works, whichever way it leaves.
#
# No helper waits for it, though it would then be a plain undo to all others: that was tried, and
# 300 requests cancelled at once, whose undo waited for a peer, held 300 threads instead of 4.
"""Undo by coroutine functions."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections import deque
from time import perf_counter_ns
from typing import TYPE_CHECKING

from aioktask.engine.machine.os_threads import start_thread
from aioktask.engine.state import ending
from aioktask.engine.state.current import local
from aioktask.engine.state.run import Run
from aioktask.engine.threads.pool import Pool

if TYPE_CHECKING:
    from aioktask.engine.loops.loop import Loop


ITSELF, SUCCESSOR = "itself", "successor"

# After so many of the keeper's looks, a tenth of a second each, the loop is asked again.
LOOKS = 10

# A task that is not in `tasks` has begun before the loop called back so often, or never will.
PROBES = 3


class UndoLoop:
    """The loop on which a run's coroutine undo is to run: what the run knows of it."""

    __slots__ = ("_loop", "_pool", "_undo")

    def __init__(self, pool: Pool, loop: Loop) -> None:
        self._pool = pool
        self._loop = loop
        self._undo: CoroutineUndo | None = None

    def start_undo(self, run: Run) -> None:
        """Begin to undo the run's pieces; may be called again, where memory was short in here."""
        if self._undo is None:
            self._undo = CoroutineUndo(self._pool, run, self._loop, deque(run.undo_pieces), ())
        self._undo.start()


class CoroutineUndo:
    """A coroutine undo on its way through a loop.

    Attributes:
        context: That of the run.
        tasks: The asyncio task that does it, until that is done: asyncio itself keeps tasks by weak
            references only. Emptied in the end, since asyncio tells of a task's exception once
            nothing refers to the task, and that exception refers to this object.
    """

    __slots__ = (
        "__weakref__",
        "_began",
        "_errors",
        "_in_hand",
        "_left",
        "_looks",
        "_loop",
        "_over",
        "_pieces",
        "_pool",
        "_probes",
        "_run",
        "_spawned",
        "_undo",
        "_working",
        "context",
        "tasks",
    )

    def __init__(
        self,
        pool: Pool,
        run: Run,
        loop: Loop,
        pieces: deque[range],
        errors: tuple[tuple[range, BaseException], ...],
    ) -> None:
        self._pool = pool
        self._run = run
        self._loop = loop
        self._pieces = pieces
        self._errors = list(errors)
        self._undo = run.job.undo
        self._working = threading.Lock()
        self._began = self._spawned = False
        # What is begun. While it is the first of the pieces it may be undone in part.
        self._in_hand: range | None = None
        self._looks = 0
        self._probes = 0  # how often the loop called back since the task should have begun
        self._over: dict[str, str] = {}  # who ended it: this task, or who took its place
        self.context = run.context
        self.tasks: set[object] = set()

    def start(self) -> None:
        """Have the loop begin; or a fresh one, at the exit of the interpreter."""
        if self._over:
            return
        self._run.undo_task = self
        if self._pool.state.closing and not self._loop.is_running():
            self._elsewhere_soon()
            return
        self._loop.post(self._spawn, self._lost)
        self._pool.keeper.watch(self._on_its_way)

    def rescue(self) -> None:
        """At exit: do not wait for a loop that runs no more."""
        if not self._loop.is_running():
            self._elsewhere_soon()

    def _elsewhere_soon(self) -> None:
        """Go on elsewhere. May be called from a finalizer."""
        self._pool.keeper.soon(self._go_on_elsewhere)

    def _on_its_way(self) -> bool:
        """On the keeper, at each look: go on elsewhere if the loop was closed or the task died.

        A loop tells of neither, nor of a call that a signal handler's exception ended, which is
        posted again. Returns whether to look again.
        """
        if self._over:
            self.tasks.clear()
            return False
        self._looks += 1
        if self._loop.is_closed() or self._has_died():
            self._go_on_elsewhere()
        elif not self._spawned and self._looks % LOOKS == 0:
            self._loop.post(self._spawn, None)
        return not self._over

    def _has_died(self) -> bool:
        # Asked in this order: a task that begins meanwhile is not taken for one that has ended.
        should_work = self._began or self._probes >= PROBES
        if self._working.locked():
            return False
        if should_work:
            return True
        if self._spawned and not self.tasks:  # it was cancelled before it began, or is trio's
            self._loop.post(self._probe, None)
        return False

    def _probe(self) -> None:
        """On the loop: count that it still runs, so a task spawned before should have begun."""
        self._probes += 1

    def _spawn(self) -> None:
        if self._spawned or self._over:
            return
        try:
            self._loop.spawn(self)
            self._spawned = True
        except TypeError:  # a task factory that takes other arguments: a fresh loop has none
            self._elsewhere_soon()
        except Exception:
            self._elsewhere_soon()
            raise  # whatever it was, a signal handler's perhaps: the loop tells of it

    def _lost(self) -> None:
        """The loop dropped the call that was to spawn the task."""
        if not self._spawned:
            self._elsewhere_soon()

    async def work(self) -> None:
        """Undo piece by piece. A cancellation of this task costs one piece, not the rest."""
        with self._working:  # no `try` in here: an exception in that line would leave it held
            self._began = True
            await self._undo_pieces()
            self._end()

    async def _undo_pieces(self) -> None:
        pieces, errors = self._pieces, self._errors
        piece: range | None = None
        while pieces and not self._over:
            try:
                piece = pieces[0]
                self._in_hand = piece
                if self._over:  # who takes over says so first, and then looks what is in hand
                    return
                began = perf_counter_ns()
                await self._undo_piece(piece)
                pieces.popleft()
                if self._run.trace is not None:
                    self._run.trace.piece(piece, began, perf_counter_ns(), self._run.nice)
                if not self._over:  # else it counts as not undone
                    self._run.undone_units += piece.stop - piece.start
            except GeneratorExit:
                raise
            except BaseException as error:
                if piece is None or self._over or not pieces or pieces[0] is not piece:
                    raise  # the error is not this piece's: the loop tells of it
                errors.append((piece, error))
                pieces.popleft()

    async def _undo_piece(self, piece: range) -> None:
        undo = self._undo
        assert undo is not None
        result = undo(piece.start, piece.stop)
        if not inspect.isawaitable(result):
            raise TypeError(
                f"the coroutine undo of the job {self._run.name!r} returned "
                f"{type(result).__name__}, which cannot be awaited"
            )
        await result

    def _end(self) -> None:
        if not self._over:  # in this order: to tell twice does no harm, and not to tell would
            self._pool.post(ending.undo_ended, self._run, tuple(self._errors))
            self._over.setdefault("by", ITSELF)

    def _go_on_elsewhere(self) -> None:
        """On the keeper: what was in hand counts as not undone; a fresh loop does the rest."""
        if self._over or self._over.setdefault("by", SUCCESSOR) is not SUCCESSOR:
            return
        pieces, errors = self._pieces.copy(), tuple(self._errors)
        if pieces and pieces[0] is self._in_hand:
            if not errors or errors[-1][0] is not pieces[0]:
                error = RuntimeError("the event loop was closed while the undo ran on it")
                errors = (*errors, (pieces[0], error))
            pieces.popleft()
        self.tasks.clear()
        following = CoroutineUndo(self._pool, self._run, self._loop, pieces, errors)
        self._run.undo_task = following
        try:
            start_thread(following._live, "aioktask undo")
        except RuntimeError:  # no thread can be started any more
            following.run_fresh()

    def _live(self) -> None:
        """Run in a thread of its own, where user code may wait for the engine."""
        local.inside = False
        self.run_fresh()

    def run_fresh(self) -> None:
        """Run in a fresh loop, on the calling thread."""
        try:
            self._loop.run_fresh(self)
        except BaseException as error:
            # No fresh loop could be had: nothing of the rest is undone.
            with contextlib.suppress(IndexError):
                while not self._over:
                    self._errors.append((self._pieces[0], error))
                    self._pieces.popleft()
            self._end()
