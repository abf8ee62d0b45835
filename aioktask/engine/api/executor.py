# SPDX-License-Identifier: MIT
# An executor of the standard library whose threads are the helpers: what a program asks of it. Each
# of its calls is a `Submitted`, which has the future and is told of the run's end.
"""The executor of a coordinator."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, SupportsIndex, TypeVar, cast

from aioktask.checks import name_of, nice_value
from aioktask.engine.api.call import job_of_call
from aioktask.engine.api.future import HelperFuture, Submitted
from aioktask.engine.api.scope import Scope
from aioktask.engine.api.submission import new_run
from aioktask.engine.state.current import local

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
    - **A fork's child** has the futures of its parent as they were at the fork. One that was done
      then is as good as any; asking another one, waiting for it or cancelling it is a
      `RuntimeError`, since its call is the parent's. A call that forks and returns in the child
      ends that process, as a chunk does, and calls back nobody there.

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
        state = "shut down" if self._shutdown or self._coordinator._closed else "open"
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
            RuntimeError: The executor was shut down, the coordinator drained, left or shut down, or
                the interpreter exits.
            Overloaded: The call could not begin in time, by what the coordinator or the process
                sets. Where that is found later, its future has it.
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
            Overloaded: A call was refused; the others are cancelled where they have not begun.
            TypeError, ValueError: `buffersize` is no integer, or below 1.
        """
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        until = None if timeout is None else time.monotonic() + timeout
        arguments = zip(*iterables, strict=False)
        futures: deque[Future[T]] = deque()
        try:
            for each in itertools.islice(arguments, buffersize):
                futures.append(self.submit(fn, *each))
        except BaseException:  # refused: nobody gets those that were not
            _drop_all(futures)
            raise

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
                _drop_all(futures)

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
                if future is not None:
                    future.drop()
        if wait:
            for call in pending:
                call.until_ended()


def _drop_all(futures: deque[Future[T]]) -> None:
    while futures:
        cast("HelperFuture", futures.popleft()).drop()


def _result(future: Future[T], timeout: float | None) -> T:
    """What the future's call returned; the future is cancelled where that does not come."""
    try:
        return future.result(timeout)
    except BaseException:
        cast("HelperFuture", future).drop()
        raise
    finally:
        del future  # which an exception's traceback would lead to
