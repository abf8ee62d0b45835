# SPDX-License-Identifier: MIT
# Streams in a thread without a loop, which takes part: while the value that it wants is not there,
# it works on the items that are next.
"""`map_ordered_sync`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from threading import get_ident
from types import TracebackType
from typing import Any, Generic, Literal, SupportsIndex, TypeVar, overload

from aioktask.engine.api.coordinator import Coordinator
from aioktask.engine.api.submission import is_main_thread
from aioktask.engine.loops.loop import refuse_running_loop
from aioktask.engine.priority import MOST_NICE
from aioktask.engine.state.current import local, refuse_waiting
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.workers import Caller
from aioktask.streams._consumer import WINDOW, Consumer, Errors, Options
from aioktask.streams._exchange import NOTHING, Raised
from aioktask.streams._scope import Scope, close_iterator

__all__ = ["SyncStream", "map_ordered_sync"]

T = TypeVar("T")
R = TypeVar("R")


@overload
def map_ordered_sync(
    fn: Callable[[T], R],
    items: Iterable[T],
    *,
    window: SupportsIndex = ...,
    ordered: bool = ...,
    errors: Literal["raise"] = ...,
    max_delay: float | None = ...,
    nice: SupportsIndex | None = ...,
    name: str | None = ...,
    coordinator: Coordinator | None = ...,
    timeout: float | None = ...,
    labels: Mapping[str, str] | None = ...,
) -> SyncStream[R]: ...


@overload
def map_ordered_sync(
    fn: Callable[[T], R],
    items: Iterable[T],
    *,
    window: SupportsIndex = ...,
    ordered: bool = ...,
    errors: Literal["yield"],
    max_delay: float | None = ...,
    nice: SupportsIndex | None = ...,
    name: str | None = ...,
    coordinator: Coordinator | None = ...,
    timeout: float | None = ...,
    labels: Mapping[str, str] | None = ...,
) -> SyncStream[R | Exception]: ...


def map_ordered_sync(
    fn: Callable[[T], R],
    items: Iterable[T],
    *,
    window: SupportsIndex = WINDOW,
    ordered: bool = True,
    errors: Errors = "raise",
    max_delay: float | None = None,
    nice: SupportsIndex | None = None,
    name: str | None = None,
    coordinator: Coordinator | None = None,
    timeout: float | None = None,
    labels: Mapping[str, str] | None = None,
) -> SyncStream[Any]:
    """Call a function for items as they come, on helpers and the calling thread: `map_ordered` for
    scripts and for chunks.

    Use it as ``with map_ordered_sync(fn, items) as results`` and iterate over `results`, in the
    thread that entered it. Where the next value is not there, that thread works on the items that
    are next, beyond every cap; so inside a chunk no free helper is needed. An item that it works on
    when its value is done by another thread is finished first.

    Args:
        fn, items, window, ordered, errors, max_delay, nice, name, coordinator, timeout, labels: As
            in `map_ordered`, but `items` is an ordinary iterable, read by the calling thread.

    Returns:
        The stream, a context manager and, once entered, an iterator.

    Raises:
        TypeError, ValueError: An argument is not what it may be: the message names it.
        RuntimeError: On entering: this thread runs an event loop, or the coordinator takes no more
            jobs; or a finalizer or callback enters inside the engine, where nothing may wait.

    **Errors** arrive as in `map_ordered`. What is no `Exception`, and is raised by `fn` on the
    calling thread or by a signal handler, goes on at once and ends the stream.

    **Leaving** begins no further item, waits for those that run and closes the source. An exception
    that a signal handler raises meanwhile, such as a Ctrl-C, is raised when they are done; a second
    one gives up waiting. Left on another thread or in another chunk than it was entered, as where
    the collector closes a generator that is in the scope, it does not wait: those that run may
    wait for what that thread is at.

    >>> with map_ordered_sync(len, ["a", "bcd", "ef"]) as results:
    ...     print(list(results))
    [1, 3, 2]
    """
    options: Options[Any, Any] = Options(
        fn,
        window=window,
        ordered=ordered,
        errors=errors,
        max_delay=max_delay,
        nice=nice,
        name=name,
        coordinator=coordinator,
        timeout=timeout,
        labels=labels,
    )
    if not isinstance(items, Iterable):
        raise TypeError(f"items must be an iterable, got {items!r}")
    return SyncStream(options, items)


class SyncStream(Scope[Iterable[Any]], Generic[R]):
    """An open stream of values: what ``with map_ordered_sync(...)`` gives."""

    __slots__ = ("_caller", "_generator", "_iterator", "_stint", "_thread", "_value")

    _entered_by = "with map_ordered_sync(...)"

    def __init__(self, options: Options[Any, Any], items: Iterable[Any]) -> None:
        super().__init__(options, items)
        self._iterator: Iterator[Any]
        self._caller: Caller
        self._thread: int  # that entered
        self._stint: Stint | None  # of the chunk in which that was
        self._generator: Iterator[R] | None = None
        self._value: Any = None  # the last one that was given, until the next one is asked for

    def __enter__(self) -> SyncStream[R]:
        items = self._unused_items()
        refuse_running_loop("map_ordered_sync()", "use `async with map_ordered(...)` instead")
        refuse_waiting("map_ordered_sync()")
        self._items = None
        consumer: Consumer[Any, Any] = Consumer(self._options)
        stint = self._stint = local.stint
        self._thread = get_ident()
        caller = self._caller = Caller(MOST_NICE, stint, main=is_main_thread())
        try:
            consumer.feed.submit_with_thread(caller, detects=stint is not None)
            self._iterator = iter(items)
            self._consumer = consumer
            return self
        except BaseException:
            consumer.stop()
            consumer.feed.leave_thread(caller)
            consumer.let_go()  # nothing was begun: no item was taken
            raise

    def _let_go(self, consumer: Consumer[Any, Any]) -> None:
        super()._let_go(consumer)
        consumer.feed.forget_thread(self._caller)

    def __iter__(self) -> Iterator[R]:
        return self._values()

    def __next__(self) -> R:
        return next(self._values())

    def _values(self) -> Iterator[R]:
        consumer, values = self._open(), self._generator
        if values is None:
            values = self._generator = self._generate(consumer)
        return values

    def _generate(self, consumer: Consumer[Any, Any]) -> Iterator[R]:
        source, take = self._iterator, consumer.exchange.take
        until_fill = 0  # how many values to give before the source has its turn
        try:
            while not consumer.over:
                if until_fill <= 0:
                    until_fill = consumer.fill(source)
                until_fill -= 1
                number = consumer.given
                outcome = take(number)
                if outcome is NOTHING:
                    until_fill = consumer.fill(source)
                    outcome = self._wait(consumer)
                    if outcome is NOTHING:
                        consumer.no_value()
                        return
                if type(outcome) is Raised:
                    outcome = consumer.raised(outcome)
                consumer.given = number + 1
                self._value = outcome
                del outcome
                yield self._value
                self._value = None
            consumer.refuse_if_left()
        finally:
            consumer.over = True
            self._value = outcome = None  # it may be what is raised, whose traceback leads here

    def _wait(self, consumer: Consumer[Any, Any]) -> Any:
        """Work until the outcome that is next is there; `NOTHING` where none comes any more."""
        caller, exchange, feed = self._caller, consumer.exchange, consumer.feed
        number = consumer.given
        outcome: Any = NOTHING
        work = partial(exchange.work, 0, 1, here=True, lingers=False)
        try:
            consumer.wait_begins()
            while True:
                exchange.await_outcomes(number, 1, caller)
                outcome = exchange.take(number)
                if outcome is not NOTHING or consumer.exhausted:
                    return outcome
                consumer.raise_if_stopped()
                if caller.refused is not None:
                    raise caller.refused
                if exchange.pending:
                    feed.do_in_thread(caller, work)
                else:
                    feed.park(caller)
        finally:
            consumer.wait_ends()
            outcome = None  # which may be what `fn` raised in this thread, beyond this frame

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        consumer = self._entered()
        if not self._may_wait():
            self._let_go(consumer)
            close_iterator(self._iterator)
            return
        try:
            consumer.stop()
            consumer.feed.leave_thread(self._caller)
            consumer.feed.until_over_in_thread()
        except BaseException:  # a signal handler raised in here
            consumer.stop()
            consumer.feed.leave_thread(self._caller)
            consumer.feed.until_over_in_thread()
            raise
        finally:
            try:
                close_iterator(self._iterator)
            finally:
                self._end(consumer)

    def _end(self, consumer: Consumer[Any, Any]) -> None:
        """Let go of what is the program's."""
        self._generator = self._value = None
        self._iterator = iter(())
        self._stint = self._caller.serving = None
        self._caller.stints.clear()
        consumer.let_go()

    def _may_wait(self) -> bool:
        """Whether the scope is left where it was entered, so that none that runs waits for this."""
        if local.inside or get_ident() != self._thread:
            return False
        return local.stint is self._stint
