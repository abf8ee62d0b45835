# SPDX-License-Identifier: MIT
# A call that was submitted to an executor: the chunk function of its run, and its future.
#
# A submitted call is a run of one chunk that nobody owns. The chunk calls the function and sets the
# future, so done callbacks run in the chunk, where code of the program may do whatever it likes.
# The run's waiter (`Submitted`) sets the future only where the run ended without that: it was
# cancelled, or the engine failed.
#
# The engine hears of a thread that waits for a future inside a chunk by `_Waiters`, the list in
# which `concurrent.futures` keeps who waits: so `result`, `exception`, `wait` and `as_completed`
# all have the awaited run owed a helper. Only the first two can raise a `DeadlockError`. Of a loop
# in a chunk, whose task awaits the future, it hears where a done callback is added.
#
# A fork's child has a copy of each future, as it was at the fork, of whose call it will never hear.
# One that was done there is as good as any; what asks the others raises. No lock of the parent's is
# taken for that, since a thread that is not there may hold it.
#
# Memory may end in any line of `concurrent.futures`, after a future is done and before all who wait
# have heard. So the run's waiter tells those who have not; and the future's lock is let go of by
# code that needs no memory.
#
# Who holds that lock may wait for the engine, in a finalizer that runs in `concurrent.futures`. So
# the run's waiter, which a helper wakes before it begins what it was given, never waits for it.
"""Submitted calls and their futures."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from threading import Condition, RLock
from typing import Any

from aioktask.engine.api.submission import park_until
from aioktask.engine.loops.loop import running_loop
from aioktask.engine.priority import MOST_NICE
from aioktask.engine.state import waiting
from aioktask.engine.state.current import enclosing_stint, local, refuse_waiting
from aioktask.engine.state.lane_turns import wait_for_call
from aioktask.engine.state.run import Run
from aioktask.engine.state.workers import ThreadWaiter
from aioktask.engine.threads.pool import Pool
from aioktask.errors import ChunkCancelled, DeadlockError

__all__ = ["HelperFuture", "Submitted"]

_Work = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Submitted:
    """A call that was submitted: the chunk function of its run, and the waiter for that.

    Attributes:
        run: Its run; None when that is over.
        future: Of the call; None when the run is over.
        nice: That of the run, so that nothing is lent.
        ended: Whether the run is over, and the future's callbacks have been called.
        heard: Whether no wake-up is due: it had to be put off.
    """

    __slots__ = (
        "__weakref__",
        "_pending",
        "_watchers",
        "_work",
        "ended",
        "future",
        "heard",
        "nice",
        "pool",
        "refused",
        "run",
    )

    def __init__(
        self,
        pool: Pool,
        pending: dict[Submitted, None],
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.pool = pool
        self._pending = pending
        self._work: _Work | None = (fn, args, kwargs)  # until it begins, or is over
        self._watchers: deque[ThreadWaiter] = deque()
        self.run: Run | None = None
        self.nice = 0
        self.refused: DeadlockError | None = None
        self.ended = False
        self.heard = True
        self.future: HelperFuture | None = HelperFuture(self)

    def __call__(self, start: int, stop: int) -> None:
        future, work = self.future, self._work
        self._work = None
        if future is None or work is None or not future.begins():
            return
        fn, args, kwargs = work
        try:
            try:
                value = fn(*args, **kwargs)
            except BaseException as error:
                if not self.pool.dead:
                    future.set_exception(self._told(error))
            else:
                # Not where it forked, in the child, which ends here: callbacks are the parent's.
                if not self.pool.dead:
                    future.set_result(value)
                del value
        finally:
            del self, future, work, fn, args, kwargs  # which the exception's traceback leads to

    def _told(self, error: BaseException) -> BaseException:
        """The exception, or a `JobCancelled` where it says that the call is not wanted."""
        run = self.run
        if issubclass(type(error), ChunkCancelled) and run is not None and run.unwanted():
            return run.cancellation()
        return error

    # The waiter for the run: see `state.workers.Waiter`.

    def wake(self) -> None:
        run = self.run
        if run is None or not run.over:  # it may be called without a reason
            return
        future = self.future
        if future is not None and not future.is_free:
            if self.heard:
                self.heard = False
                self.pool.keeper.watch(self._comes_again)  # whoever holds the lock waits perhaps
            return
        try:
            if future is not None and future._state not in _DONE:  # the run ended without the call
                if run.verdict is not None:
                    future.fail(run.verdict)
                elif run.expired or not future.cancel():
                    future.fail(run.cancellation())
        finally:  # whatever a callback raises
            if future is None or future._state in _DONE:
                if future is not None:
                    future.tell_again()  # of what was struck half-way
                self.end()

    def _comes_again(self) -> bool:
        """On the keeper: end it if that can be done now; whether to come again."""
        self.wake()
        return not self.ended

    def end(self) -> None:
        """Let go of everything, and wake who waits for that; again, where memory was short."""
        self._pending.pop(self, None)
        self.ended = self.heard = True
        while self._watchers:
            try:
                self._watchers[0].parking.unpark()
                self._watchers.popleft()
            except IndexError:  # another thread was quicker
                break
        self.future = self._work = None
        self.run = None  # last, since `wake` asks for it

    def until_ended(self) -> None:
        """Wait in this thread until the run is over; not at all in a fork's child.

        Raises:
            DeadlockError: The run waits for the calling chunk.
        """
        pool, future, run = self.pool, self.future, self.run
        if pool.dead:
            return
        refuse_waiting("shutting down an executor")
        if future is not None:
            future.wait_in_chunk(None)
        watcher, stint = ThreadWaiter(MOST_NICE), enclosing_stint()
        self._watchers.append(watcher)
        try:
            if run is not None and stint is not None:  # as `wait_in_chunk` does
                pool.post(wait_for_call, run, watcher, stint, local.stint is not None)
            park_until(pool, watcher, lambda: self.ended, None)
        finally:
            if not self.ended:
                with contextlib.suppress(ValueError):
                    self._watchers.remove(watcher)
                if run is not None:
                    pool.post(waiting.remove_waiter, run, watcher)


_DONE = ("CANCELLED", "CANCELLED_AND_NOTIFIED", "FINISHED")


class _Condition(Condition):
    """A condition whose lock is let go of by that itself, in C.

    `Condition.__exit__` is Python, whose call may find no memory: then the lock is held for ever.
    """

    __slots__ = ("__enter__", "__exit__")

    def __init__(self) -> None:
        lock = RLock()
        super().__init__(lock)
        self.__enter__ = lock.__enter__  # type: ignore[method-assign]
        self.__exit__ = lock.__exit__  # type: ignore[method-assign]


class HelperFuture(Future[Any]):
    """The future of a submitted call."""

    def __init__(self, call: Submitted) -> None:
        self._pool = call.pool
        super().__init__()
        self._condition = _Condition()
        self._call = call
        self._waiters: _Waiters = _Waiters(call)
        self._loop_waits = False  # whether the engine knows that a loop in a chunk may wait

    @property
    def _condition(self) -> Condition:
        """What guards it, also for `concurrent.futures`: in a fork's child one of the child's."""
        if not self._pool.dead:
            return self._parents_condition
        found: Condition = self.__dict__.setdefault(f"_condition_of_{os.getpid()}", _Condition())
        return found

    @_condition.setter
    def _condition(self, condition: Condition) -> None:
        self._parents_condition = condition

    def refuse_the_parents(self) -> None:
        """Raise where it will never be done, since its call is that of another process.

        Raises:
            RuntimeError: This is a fork's child, and it was not done at the fork.
        """
        if self._pool.dead and self._state not in _DONE:
            raise RuntimeError("the future belongs to the parent of this forked process")

    def done(self) -> bool:
        self.refuse_the_parents()
        return super().done()

    def cancelled(self) -> bool:
        self.refuse_the_parents()
        return super().cancelled()

    def running(self) -> bool:
        self.refuse_the_parents()
        return super().running()

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        self.refuse_the_parents()
        super().add_done_callback(fn)
        # As asyncio does to await it, where nobody is among the `_waiters`. How long it waits is
        # not known: until the call is over.
        if self._loop_waits or self.done() or self._pool.dead:
            return
        run, stint = self._call.run, enclosing_stint()
        if run is None or stint is None or running_loop() is None:
            return
        self._loop_waits = True
        self._pool.post(wait_for_call, run, ThreadWaiter(MOST_NICE), stint, False)

    def cancel(self) -> bool:
        self.refuse_the_parents()
        try:
            return super().cancel()
        finally:  # whatever a callback, or a signal handler, raises
            if self.cancelled():
                self.tell_cancelled()
                run = self._call.run
                if run is not None and not self._pool.dead:
                    self._pool.cancel(run)

    def drop(self) -> None:
        """Cancel it, if it can be: where nobody would hear that it cannot."""
        if not self._pool.dead:
            self.cancel()

    def tell_cancelled(self) -> None:
        """Tell those who wait of a cancel, as the thread of an executor does, if one came."""
        with self._condition:
            if self._state == "CANCELLED":
                self.set_running_or_notify_cancel()

    @property
    def is_free(self) -> bool:
        """Whether it can be ended, and those who wait be told, without waiting for its lock."""
        if self._all_heard:
            return True
        lock = self._parents_condition
        if not lock.acquire(blocking=False):
            return False
        lock.release()
        return True

    @property
    def _all_heard(self) -> bool:
        """Whether it is done, and nobody is to be told so; whoever comes now finds that it is."""
        if self._state not in _DONE or self._state == "CANCELLED":
            return False
        parked = self._parents_condition._waiters  # type: ignore[attr-defined]
        return not (parked or self._waiters.unheard)

    def tell_again(self) -> None:
        """Once it is done, tell those who wait and have not heard, since something struck."""
        if self._all_heard:
            return
        with self._condition:
            self.tell_cancelled()
            for each in self._waiters:
                if self in getattr(each, "finished_futures", ()):
                    _let_hear(each)
                elif self._state != "FINISHED":
                    each.add_cancelled(self)
                elif self._exception is not None:
                    each.add_exception(self)
                else:
                    each.add_result(self)
            self._condition.notify_all()

    def begins(self) -> bool:
        """On a helper: have the future be running; False if it was cancelled before."""
        with self._condition:
            self.tell_cancelled()  # by a cancel that was struck half-way
            return not self.cancelled() and self.set_running_or_notify_cancel()

    def fail(self, error: BaseException) -> None:
        """Set an exception, unless the future is done."""
        with contextlib.suppress(InvalidStateError):
            self.set_exception(error)

    def result(self, timeout: float | None = None) -> Any:
        try:
            return super().result(self.wait_in_chunk(timeout))
        finally:
            del self  # which the exception's traceback would lead to

    def exception(self, timeout: float | None = None) -> BaseException | None:
        return super().exception(self.wait_in_chunk(timeout))

    def wait_in_chunk(self, timeout: float | None) -> float | None:
        """In a chunk, wait until the future is done; returns what is left of the time elsewhere.

        Raises:
            DeadlockError: The call waits for the calling chunk.
            RuntimeError: The future is a forked parent's; or this is called inside the engine.
        """
        pool = self._pool
        if self.done():
            return timeout
        refuse_waiting("waiting for a future")
        if enclosing_stint() is None:
            return timeout
        waiter = ChunkWaiter(MOST_NICE)
        with self._condition:
            if self.done():
                return timeout
            self._waiters.append(waiter)
        try:
            park_until(pool, waiter, self.done, timeout)
        finally:
            with self._condition:
                self._waiters.remove(waiter)
        return 0


def _let_hear(waiter: Any) -> None:
    """Wake a waiter of `concurrent.futures` that was told, and struck before it could act on it."""
    if getattr(waiter, "num_pending_calls", 0):
        waiter._decrement_pending_calls()
    else:
        waiter.event.set()


class ChunkWaiter(ThreadWaiter):
    """A chunk's thread that waits for a future; a waiter of `concurrent.futures`, too."""

    __slots__ = ()

    def add_result(self, future: Future[Any]) -> None:
        self.parking.unpark()

    add_exception = add_cancelled = add_result


class _Waiters(list[Any]):
    """Those who wait for a future. The engine hears of the ones that are in a chunk.

    Who tells them that it is done iterates over this, and comes to each that has not heard, until
    it could be told.

    Attributes:
        unheard: Those who have not heard, whom it was not done for when they came.
    """

    def __init__(self, call: Submitted) -> None:
        self._call = call
        self._told: dict[Any, ThreadWaiter] = {}
        self.unheard: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        return self._each_unheard() if self.unheard else iter(())

    def _each_unheard(self) -> Iterator[Any]:
        while self.unheard:
            yield self.unheard[0]
            self.unheard.popleft()  # which needs no memory

    def append(self, waiter: Any) -> None:
        future = self._call.future
        if future is not None:
            future.refuse_the_parents()
            if future._state not in ("CANCELLED_AND_NOTIFIED", "FINISHED"):  # else it sees that
                self.unheard.append(waiter)
        super().append(waiter)
        run, stint = self._call.run, enclosing_stint()
        if run is None or run.over or stint is None or self._call.pool.dead:
            return
        known = waiter if isinstance(waiter, ChunkWaiter) else ThreadWaiter(MOST_NICE)
        self._told[waiter] = known
        detects = known is waiter and local.stint is not None
        self._call.pool.post(wait_for_call, run, known, stint, detects)

    def remove(self, waiter: Any) -> None:
        super().remove(waiter)
        with contextlib.suppress(ValueError):
            self.unheard.remove(waiter)
        known = self._told.pop(waiter, None)
        run = self._call.run
        if known is not None and run is not None:
            self._call.pool.post(waiting.remove_waiter, run, known)
