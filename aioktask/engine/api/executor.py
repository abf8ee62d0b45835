# SPDX-License-Identifier: MIT
# An executor of the standard library whose threads are the helpers.
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
"""The executor of a coordinator."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from typing import Any, ParamSpec, SupportsIndex, TypeVar

from aioktask.checks import name_of, nice_value
from aioktask.engine.api.call import job_of_call
from aioktask.engine.api.scope import Scope
from aioktask.engine.api.submission import new_run, park_until
from aioktask.engine.loops.loop import running_loop
from aioktask.engine.priority import MOST_NICE
from aioktask.engine.state import waiting
from aioktask.engine.state.current import enclosing_stint, local, refuse_waiting
from aioktask.engine.state.lane_turns import wait_for_call
from aioktask.engine.state.run import Run
from aioktask.engine.state.workers import ThreadWaiter
from aioktask.engine.threads.pool import Pool
from aioktask.errors import ChunkCancelled, DeadlockError

__all__ = ["HelperThreadPoolExecutor"]

T = TypeVar("T")
P = ParamSpec("P")


class HelperThreadPoolExecutor(ThreadPoolExecutor):
    """A `concurrent.futures.ThreadPoolExecutor` without threads of its own: helpers do its calls.

    `Coordinator.executor` makes one. It goes wherever such an executor does:
    ``loop.set_default_executor`` (and so `asyncio.to_thread`, ``loop.getaddrinfo``), Dask, a
    library that takes one. Its calls are jobs of one chunk of the coordinator: they share the
    helpers by nice, keep to the limits, and find the submitting code's context variables. One that
    blocks without using a CPU makes room for another helper, as in `aioktask.run`. All that the
    standard library documents of executors and futures holds. What is otherwise:

    - **Shutdown** ends this executor alone. The coordinator goes on, and so do its other executors;
      asyncio shuts a default executor down when `asyncio.run` ends.
    - **A coordinator** that is left waits for the calls. One that is left by an exception, or shut
      down with ``cancel=True``, cancels the futures whose calls have not begun, and waits for the
      others, in which ``current_chunk().check_cancelled()`` tells. After that `submit` is refused.
    - **Exit of the interpreter**: calls that have not begun are cancelled, as jobs are; the
      standard library's executor would still do them. Those that run are waited for.
    - **No initializer**, and no thread names of its own, since helpers serve everybody.
      ``_max_workers`` is how many helpers there may be at this moment, ``_threads`` is empty.
    - **A wait in a chunk** for a future of this executor has the call served beyond the caps, so it
      needs no free helper. `Future.result` and `Future.exception` raise `DeadlockError` in a chunk
      for which the call waits itself.
    - **Done callbacks** run in the chunk of the call, or in the thread that cancels its future.
      Where the call ends otherwise before it begins (its coordinator is left by an exception, the
      interpreter exits), they run in a thread of the engine, in which what would wait raises.
    - `map` takes ``buffersize`` on every version of Python, and holds at most so many calls.
    - **Events** tell of a call that raised as of a job that finished: its future has the exception.

    **Interruption.** `submit` and ``Future.cancel`` return at once, wherever they are called.

    Args:
        coordinator: Whose calls they are.
        nice: Of the calls, as of jobs.
    """

    _threads: frozenset[Any] = frozenset()
    _broken = False

    def __init__(self, coordinator: Scope, nice: SupportsIndex = 0) -> None:
        # Not the base class's, which would make a queue for threads that never come.
        self._coordinator = coordinator
        self._nice = nice_value("nice", nice)
        self._shutdown = False
        self._pending: dict[Submitted, None] = {}

    def __repr__(self) -> str:
        state = "shut down" if self._shutdown else "open"
        return f"<{type(self).__name__} of {self._coordinator!r}: {state}>"

    @property
    def _max_workers(self) -> int:  # type: ignore[override]
        pool, group = self._coordinator.scope()
        threads = pool.adapter.cap.threads
        most = group.tunables.get("max_threads")
        return threads if most is None else min(threads, most)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a helper call ``fn(*args, **kwargs)``, whether or not anyone waits.

        Raises:
            RuntimeError: The executor was shut down, the coordinator left or shut down, or the
                interpreter exits.
        """
        pool, group = self._coordinator.scope()
        call = Submitted(pool, self._pending, fn, args, kwargs)
        future = call.future
        assert future is not None
        run = new_run(
            pool, group, job_of_call(call, self._nice, name_of(fn)), None, parent=None, owned=False
        )
        call.run = run
        call.nice = run.nice
        outer = local.stint
        try:
            # In this order: `shutdown` sets what is asked here, then looks at the calls.
            self._pending[call] = None
            if self._shutdown:
                raise RuntimeError("cannot schedule new futures after shutdown")
            nested = outer is not None and outer.run.group is group
            pool.submit(run, waiter=call, nested=nested)
        except BaseException:  # refused, or struck by a signal handler: nobody gets the future
            call.end()
            pool.cancel(run)
            raise
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Call `fn` for the items of the iterables, and yield what it returns in their order.

        Args:
            fn: The function.
            iterables: Where its arguments come from. Without `buffersize` all are read at once.
            timeout: Seconds from this call in which each value has to come.
            chunksize: As in the standard library, of no effect with threads.
            buffersize: The most calls that were submitted and whose value has not been taken out
                for the consumer; the iterables are read only as far. None for no limit.

        Raises:
            TimeoutError: A value did not come in time.
            TypeError, ValueError: `buffersize` is no integer, or below 1.
        """
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        until = None if timeout is None else time.monotonic() + timeout
        arguments = zip(*iterables, strict=False)
        futures = deque(self.submit(fn, *each) for each in itertools.islice(arguments, buffersize))

        def results() -> Iterator[T]:
            try:
                while futures:
                    left = None if until is None else until - time.monotonic()
                    value = [_result(futures[0], left)]
                    futures.popleft()
                    # Without a buffer they have ended, and are not asked again.
                    for each in itertools.islice(arguments, buffersize is not None):
                        futures.append(self.submit(fn, *each))
                    yield value.pop()  # the consumer's alone from here on
            finally:
                while futures:
                    futures.popleft().cancel()

        return results()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. The coordinator stays as it is. May be called again.

        Args:
            wait: Whether to wait for the calls that there are, and their futures' callbacks.
            cancel_futures: Whether to cancel those that have not begun.

        Raises:
            DeadlockError: It would wait for the call, or the job, that it is called in.
        """
        self._shutdown = True
        pending = list(self._pending)
        if cancel_futures:
            for call in pending:
                future = call.future
                # Not in a fork's child, where a thread that is not there may hold its lock.
                if future is not None and not call.pool.dead:
                    future.cancel()
        if wait:
            for call in pending:
                call.until_ended()


def _result(future: Future[T], timeout: float | None) -> T:
    """What the future's call returned; the future is cancelled where that does not come."""
    try:
        return future.result(timeout)
    except BaseException:
        future.cancel()
        raise
    finally:
        del future  # which an exception's traceback would lead to


_Work = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Submitted:
    """A call that was submitted: the chunk function of its run, and the waiter for that.

    Attributes:
        run: Its run; None when that is over.
        future: Of the call; None when the run is over.
        nice: That of the run, so that nothing is lent.
        ended: Whether the run is over, and the future's callbacks have been called.
    """

    __slots__ = (
        "_pending",
        "_watchers",
        "_work",
        "ended",
        "future",
        "nice",
        "pool",
        "refused",
        "run",
    )

    heard = True

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
                future.set_exception(self._told(error))
            else:
                future.set_result(value)
                del value
        finally:
            del self, future, work, fn, args, kwargs  # which the exception's traceback leads to

    def _told(self, error: BaseException) -> BaseException:
        """The exception, or a `JobCancelled` where it says that the call is not wanted."""
        run = self.run
        if isinstance(error, ChunkCancelled) and run is not None and run.unwanted():
            return run.cancellation()
        return error

    # The waiter for the run: see `state.workers.Waiter`.

    def wake(self) -> None:
        run = self.run
        if run is None or not run.over:  # it may be called without a reason
            return
        future = self.future
        try:
            if future is not None and not future.done():  # the run ended without the call
                if run.verdict is not None:
                    future.fail(run.verdict)
                elif not future.cancel():
                    future.fail(run.cancellation())
        finally:  # whatever a callback raises
            if future is None or future.done():
                if future is not None:
                    future.tell_cancelled()  # by a cancel that was struck half-way
                self.end()

    def end(self) -> None:
        """Let go of everything, and wake who waits for that."""
        self._pending.pop(self, None)
        self.future = self.run = self._work = None
        self.ended = True
        while self._watchers:
            try:
                self._watchers.popleft().parking.unpark()
            except IndexError:
                return

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


class HelperFuture(Future[Any]):
    """The future of a submitted call."""

    def __init__(self, call: Submitted) -> None:
        super().__init__()
        self._pool = call.pool
        self._call = call
        self._waiters: list[Any] = _Waiters(call)
        self._loop_waits = False  # whether the engine knows that a loop in a chunk may wait

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
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
        try:
            return super().cancel()
        finally:  # whatever a callback, or a signal handler, raises
            if self.cancelled():
                self.tell_cancelled()
                run = self._call.run
                if run is not None and not self._pool.dead:
                    self._pool.cancel(run)

    def tell_cancelled(self) -> None:
        """Tell those who wait of a cancel, as the thread of an executor does, if one came."""
        with self._condition:
            if self._state == "CANCELLED":
                self.set_running_or_notify_cancel()

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
        if pool.dead:  # where a thread that is not there may hold the lock
            if self._state in _DONE:
                return timeout
            raise RuntimeError("the future belongs to the parent of this forked process")
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


class ChunkWaiter(ThreadWaiter):
    """A chunk's thread that waits for a future; a waiter of `concurrent.futures`, too."""

    __slots__ = ()

    def add_result(self, future: Future[Any]) -> None:
        self.parking.unpark()

    add_exception = add_cancelled = add_result


class _Waiters(list[Any]):
    """Those who wait for a future. The engine hears of the ones that are in a chunk."""

    def __init__(self, call: Submitted) -> None:
        self._call = call
        self._told: dict[Any, ThreadWaiter] = {}

    def append(self, waiter: Any) -> None:
        super().append(waiter)
        run, stint = self._call.run, enclosing_stint()
        if run is None or run.over or stint is None:
            return
        known = waiter if isinstance(waiter, ChunkWaiter) else ThreadWaiter(MOST_NICE)
        self._told[waiter] = known
        detects = known is waiter and local.stint is not None
        self._call.pool.post(wait_for_call, run, known, stint, detects)

    def remove(self, waiter: Any) -> None:
        super().remove(waiter)
        known = self._told.pop(waiter, None)
        run = self._call.run
        if known is not None and run is not None:
            self._call.pool.post(waiting.remove_waiter, run, known)
