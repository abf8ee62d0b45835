# SPDX-License-Identifier: MIT
# A run that is fed: its range grows while it is worked on, and one scope owns it.
#
# For the modules that stand on the engine. The scope adds units, waits for what it likes, and ends
# the run as it is left: by `close` where all was added, else by `cancel`; then it waits for the
# end. Nothing is undone, so who leaves need not ask how the run ended.
"""Runs that are fed while they run."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import SupportsIndex

from aioktask.engine.api.coordinator import Coordinator
from aioktask.engine.api.handle import Handle
from aioktask.engine.api.process import current_pool
from aioktask.engine.api.scope import group_in
from aioktask.engine.api.submission import new_run, park_until
from aioktask.engine.api.watch import Watch
from aioktask.engine.learning.lessons import code_of
from aioktask.engine.loops.loop import AsyncWaiter, Loop
from aioktask.engine.loops.waiting import wait_until_shielded
from aioktask.engine.scheduling.queue import BACKGROUND
from aioktask.engine.state import growing, waiting
from aioktask.engine.state.current import enclosing_stint, local
from aioktask.engine.state.growth import Growth
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.workers import Caller, ThreadWaiter, Waiter
from aioktask.job import Job, Labels, StreamProgress
from aioktask.telling import stream_card
from aioktask.timeline import Timeline

__all__ = ["Feed", "StreamHandle"]


class Feed:
    """A run over units that are added while it runs, each leave to do what is next.

    Args:
        fn: Called as a job's function, for one unit at a time: it does what is next, if anything.
        function: The user's, which it calls.
        pending: What is next, each with its number: looked at, never changed.
        name: Of the run.
        nice: Of the run; None for what the coordinator or the process says, else 0.
        longest_ns: How long a unit may wait for others that go to a helper with it, in ns: 0 for
            not at all, None for what is best.
        coordinator: The one whose cap applies.
        timeout: How long the stream may take, in seconds; None for any time.
        labels: Of the run.

    Attributes:
        growth: What is known of the range's end.
    """

    __slots__ = ("_job", "_outer", "_pool", "_run", "growth")

    def __init__(
        self,
        fn: Callable[[int, int], object],
        function: Callable[..., object],
        pending: Sequence[tuple[int, object]],
        *,
        name: str,
        nice: int | None,
        longest_ns: int | None,
        coordinator: Coordinator | None,
        timeout: float | None,
        labels: Labels,
    ) -> None:
        self._pool = pool = current_pool()
        self._outer = outer = enclosing_stint()
        group = group_in(pool, coordinator, outer)
        self._job: Job[None] = Job(fn, 0, name=name, nice=nice or 0, labels=labels)
        self._run = run = new_run(
            pool, group, self._job, None, parent=outer, owned=False, timeout=timeout
        )
        self.growth = run.growth = Growth(code_of(function), pending, longest_ns)
        run.limit = sys.maxsize
        if nice is not None:
            run.nice = nice

    def submit(self, waiter: Waiter, *, detects: bool, caller: Caller | None = None) -> None:
        """Have a turn take the run in. `waiter` is woken when it stops and when it is over.

        Args:
            waiter: Who waits for it.
            detects: Whether the enclosing chunk itself waits.
            caller: A calling thread that takes part from the beginning.

        Raises:
            RuntimeError: The coordinator, or the process, takes no more jobs.
            Overloaded: It could not begin in time.
        """
        run, outer = self._run, self._outer
        nested = outer is not None and outer.run.group is run.group
        try:
            self._pool.submit(run, waiter=waiter, caller=caller, nested=nested, detects=detects)
        except BaseException:
            self._pool.cancel(run)
            raise

    def handle(self) -> StreamHandle:
        """The run's handle."""
        return StreamHandle(Handle(self._pool, self._run, self._job))

    # Adding units.

    def grow(self) -> None:
        """Have helpers come for what was added: `Growth.stop` moved up."""
        if not self._pool.dead:
            self._pool.grow(self._run)

    @property
    def may_grow_later(self) -> bool:
        """Whether what was added may be left to the helpers that serve the run already.

        It may wait for the keeper then, where they were just about to leave.
        """
        return self._pool.may_grow_later(self._run)

    def may_linger(self, stint: Stint) -> bool:
        """Whether nothing else waits for the helper that is in this stint of the run."""
        pool = self._pool
        return (
            pool.signals.generation == stint.generation
            and stint.seat.account is not BACKGROUND
            and not pool.state.scheduler.anybody_waits
        )

    def close(self) -> None:
        """Add nothing any more: the run is over when all that was added is done."""
        self.growth.closed = True
        self.grow()

    def cancel(self) -> None:
        """Begin no further unit; those that run may find out by `check_cancelled`."""
        if not self._pool.dead:
            self._pool.cancel(self._run)

    def wake(self, waiter: Waiter) -> None:
        """Wake a waiter, and see to it that it hears."""
        self._pool.wake_waiter(waiter)

    def let_go(self) -> None:
        """Let go of the chunk that this was made in, once no unit runs any more."""
        self._outer = None

    # How it ends.

    @property
    def over(self) -> bool:
        """Whether no unit runs, and none will: in a fork's child none of its parent's does."""
        return self._run.ended or self._run.refused or self._pool.dead

    @property
    def stopping(self) -> bool:
        """Whether no further unit begins, although the run was not closed."""
        run = self._run
        if run.cancel_asked or run.stopping or self._pool.dead:
            return True
        return run.over and not self.growth.closed

    def reason(self) -> BaseException:
        """Why it stops: what struck the engine, or a new exception that tells of the cancel."""
        run = self._run
        if self._pool.dead:
            return RuntimeError(
                f"the stream {run.name!r} belongs to the parent of this forked process"
            )
        return run.cancellation() if run.error is None else run.error

    async def until_over(self, loop: Loop, waiter: AsyncWaiter) -> asyncio.CancelledError | None:
        """Wait until it is over, across any number of cancels; returns asyncio's first one."""
        if self.over:
            return None
        self._pool.post(waiting.add_waiter, self._run, waiter, None, False)
        return await wait_until_shielded(loop, waiter, lambda: self.over)

    def until_over_in_thread(self) -> None:
        """Wait in this thread until it is over."""
        if self.over:
            return
        waiter = ThreadWaiter(self._run.nice)
        self._pool.post(waiting.add_waiter, self._run, waiter, None, False)
        park_until(self._pool, waiter, lambda: self.over, None)

    # A thread that takes part.

    def submit_with_thread(self, caller: Caller, *, detects: bool) -> None:
        """Submit the run, and have the calling thread serve it, by `do_in_thread`.

        Raises:
            RuntimeError: The coordinator, or the process, takes no more jobs.
            Overloaded: It could not begin in time.
        """
        caller.quits = True  # it takes no stretches from turns
        caller.present.acquire()
        self.submit(caller, detects=detects, caller=caller)
        self.turn(caller)

    def leave_thread(self, caller: Caller) -> None:
        """Have the calling thread serve the run no more."""
        self.forget_thread(caller)
        self.turn(caller)

    def forget_thread(self, caller: Caller) -> None:
        """Have a thread serve the run no more, on any thread and in any line of it."""
        if not self._pool.dead:
            self._pool.post(growing.caller_goes, self._run, caller)
        with contextlib.suppress(RuntimeError):  # it was let go of before
            caller.present.release()

    def do_in_thread(self, caller: Caller, action: Callable[[], None]) -> None:
        """Do a unit's work on the calling thread, as a chunk of the run, unless it is cancelled."""
        run, stint = self._run, caller.serving
        if stint is None:  # no turn took the run in yet, or memory was short in that one
            stint = run.stint_of(caller)
        outer = stint.outer = local.stint
        inside = local.inside
        try:
            stint.walked_at = perf_counter_ns()  # by which one item is told from the next
            stint.first_chunk_stop = stint.stretch_stop = 1
            # Whoever cancels decides by this too whether the run is over at once.
            if not run.may_start() or run.cancel_asked:
                return
            local.stint = stint
            local.inside = False
            stint.context.run(action)
        finally:
            local.stint = outer
            local.inside = inside
            stint.first_chunk_stop = stint.stretch_stop = 0
            stint.outer = None

    def turn(self, caller: Caller) -> None:
        """Apply what was posted, where this thread may do so."""
        if not (caller.main or self._pool.dead):
            self._pool.turn_on_caller()

    def park(self, caller: Caller) -> None:
        """Wait until the caller is woken."""
        self._pool.wait_parked(caller, -1)


class StreamHandle:
    """A stream's handle, by which a program asks about it and changes it while it is open.

    Every method returns at once, wherever it is called: on any thread, in a signal handler, a
    finalizer or a listener of events too. To wait for a stream is to leave its scope.

    Raises:
        RuntimeError: From every method, where the stream belongs to the parent of this forked
            process.
    """

    __slots__ = ("_handle",)

    def __init__(self, handle: Handle[None]) -> None:
        self._handle = handle

    def __repr__(self) -> str:
        return repr(self._handle)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return stream_card(self.name, self.progress(), self.nice)

    @property
    def name(self) -> str:
        """The stream's name."""
        return self._handle.name

    @property
    def nice(self) -> int:
        """The stream's nice, as it was asked for last."""
        return self._handle.nice

    @property
    def max_threads(self) -> int | None:
        """The most helpers for this stream; None until it is set, which may be while it runs."""
        limit = self._handle.max_threads
        return None if limit == sys.maxsize else limit

    @max_threads.setter
    def max_threads(self, threads: SupportsIndex) -> None:
        self._handle.max_threads = threads

    def renice(self, nice: SupportsIndex) -> None:
        """Change the stream's nice, and so its share among jobs, as `Handle.renice` does.

        Raises:
            TypeError, ValueError: `nice` is no integer, or not from -20 to 19.
        """
        self._handle.renice(nice)

    def cancel(self) -> bool:
        """End the stream without waiting: no item is begun, and its consumer gets `JobCancelled`.

        Items that run finish; `current_chunk().check_cancelled()` tells them.

        Returns:
            Whether it came in time: False when the stream was over, or ended by its time, before.
        """
        return self._handle.cancel()

    def done(self) -> bool:
        """Whether the stream is over: no item runs, and none will be begun."""
        return self._handle.done()

    def timeline(self) -> Timeline | None:
        """Which thread has been at how many items when, while the stream is open.

        None where its coordinator or the process does not set `trace`, and when it is over.
        """
        return self._handle.timeline()

    def progress(self) -> StreamProgress:
        """Where the stream stands."""
        return self._handle.stream_progress()

    def watch(self, interval: float = 0.1) -> Watch[StreamProgress]:
        """Where the stream stands, again and again until it is over, as `Handle.watch` does.

        It is over when its last item is done, which may be before the consumer has its value, or
        when its scope was left.

        Args:
            interval: Seconds from one state to the next, above 0.

        Raises:
            TypeError, ValueError: `interval` is no number, or not above 0 and finite.

        **Cancellation**: each state is a checkpoint; cancelled while it waits, the stream goes on.
        """
        return self._handle.watch_by(self.progress, interval)

    def as_handle(self) -> Handle[None]:
        """For modules that stand on the engine: the handle of the stream's run."""
        return self._handle
