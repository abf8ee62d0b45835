# SPDX-License-Identifier: MIT
# Streams on an event loop.
#
# `async for` closes nothing when it is left early, so a stream is an async context manager. An
# ordinary iterator is read in the call that asks for a value, an async one by a `SourceReader`.
"""`map_ordered`."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from time import perf_counter_ns
from types import TracebackType
from typing import (
    Any,
    Generic,
    Literal,
    Protocol,
    SupportsIndex,
    TypeGuard,
    TypeVar,
    cast,
    overload,
)

import anyio
import anyio.lowlevel

from aioktask.engine.api.coordinator import Coordinator
from aioktask.engine.api.submission import needed_loop
from aioktask.engine.loops.loop import AsyncWaiter, Loop
from aioktask.engine.loops.waiting import CALLS_OF_LEAVING
from aioktask.engine.priority import MOST_NICE
from aioktask.engine.stack import need_stack
from aioktask.job import StreamProgress
from aioktask.lazy import from_above
from aioktask.status import WorkerStatus
from aioktask.streams._consumer import PATIENCE_SECONDS, WINDOW, Consumer, Errors, Options
from aioktask.streams._exchange import NOTHING, Raised
from aioktask.streams._scope import Scope, close_iterator
from aioktask.streams._source import SourceReader

__all__ = ["Stream", "map_ordered"]

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

# A consumer that finds each value there lets the loop go on so often.
MOST_NS_A_TURN = 1_000_000


class ValuesHandle(Protocol):
    """What a program may ask a stream, and change, wherever its values are made."""

    @property
    def name(self) -> str: ...

    @property
    def nice(self) -> int: ...

    def renice(self, nice: SupportsIndex) -> None: ...

    def cancel(self) -> bool: ...

    def done(self) -> bool: ...

    def progress(self) -> StreamProgress: ...

    def workers(self) -> tuple[WorkerStatus, ...]: ...


class OpenValues(Protocol[R_co]):
    """An open stream of values, wherever they are made."""

    @property
    def handle(self) -> ValuesHandle: ...

    def __aiter__(self) -> AsyncIterator[R_co]: ...

    async def __anext__(self) -> R_co: ...


class Values(Protocol[R_co]):
    """A stream of values to enter, wherever they are made."""

    async def __aenter__(self) -> OpenValues[R_co]: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


# How many values are given between two looks at the clock: a few, until it is known what they take,
# and at most so many.
FEW_VALUES = 8
MOST_VALUES = 64


@overload
def map_ordered(
    fn: Callable[[T], R],
    items: Iterable[T] | AsyncIterable[T],
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
    on: None = ...,
) -> Stream[R]: ...


@overload
def map_ordered(
    fn: Callable[[T], R],
    items: Iterable[T] | AsyncIterable[T],
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
    on: None = ...,
) -> Stream[R | Exception]: ...


@overload
def map_ordered(
    fn: Callable[[T], R],
    items: Iterable[T] | AsyncIterable[T],
    *,
    window: SupportsIndex = ...,
    ordered: bool = ...,
    errors: Literal["raise"] = ...,
    nice: SupportsIndex | None = ...,
    name: str | None = ...,
    timeout: float | None = ...,
    labels: Mapping[str, str] | None = ...,
    on: object,
) -> Values[R]: ...


@overload
def map_ordered(
    fn: Callable[[T], R],
    items: Iterable[T] | AsyncIterable[T],
    *,
    window: SupportsIndex = ...,
    ordered: bool = ...,
    errors: Literal["yield"],
    nice: SupportsIndex | None = ...,
    name: str | None = ...,
    timeout: float | None = ...,
    labels: Mapping[str, str] | None = ...,
    on: object,
) -> Values[R | Exception]: ...


def map_ordered(
    fn: Callable[[T], R],
    items: Iterable[T] | AsyncIterable[T],
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
    on: object = None,
) -> Stream[Any] | Values[Any]:
    """Call a function for items as they come, on helpers, and give its values in their order.

    Use it as ``async with map_ordered(fn, items) as results`` and iterate over `results`. It runs
    on asyncio, uvloop and trio, and shares helpers with jobs and other streams by nice.

    Args:
        fn: An ordinary function of one item, called once for each, on helper threads. An awaitable
            or a generator that it returns is a `TypeError` in the item's place, since its work was
            not done.
        items: An iterable, an async iterable, or an anyio receive stream. An ordinary iterator is
            read on the loop's thread, while a value is asked for: one that blocks stops the loop,
            which is the caller's choice. An async one is read in a task of its own.
        window: The most items that are taken from the source and not yet given to the consumer. The
            source is not read while there are so many.
        ordered: Whether values come in the order of the items; else as they are done.
        errors: "raise": what `fn` raises arrives in its item's place, and ends the stream: once it
            is raised no further item is begun, and those after it that run are dropped as they end.
            "yield": an `Exception` that it raises is a value, and the stream
            goes on; what is no `Exception` ends it all the same.
        max_delay: The longest, in seconds, that an item may wait for others that go to a helper
            with it, and its value for others that the consumer is woken for: 0 for not at all. How
            many go at once is learned from what they cost: half a millisecond together at most,
            and a value that is there waits a millisecond; by default that alone decides.
        nice: The stream's share among jobs, -20 to 19. By default that of the `priority` block, the
            coordinator's or the process's, else 0.
        name: For errors, events and thread names; by default the function's name.
        coordinator: The one whose cap applies and that may end the stream. By default that of the
            chunk on behalf of which this is called, else none.
        timeout: How long the stream may take from when it is entered, in seconds; None for any
            time. One whose first item could not begin in time raises `Overloaded`, at the latest
            where a value is asked for; one that is not over in time is cancelled, and its consumer
            gets a `TimeoutError`.
        labels: Of the stream, as of a `Job`.
        on: Where the items are worked on, instead of here: a ``distributed.Client`` that was made
            with ``asynchronous=True``, for helpers of the workers of a Dask cluster. See below.

    Returns:
        The stream, an async context manager and, once entered, an async iterator.

    Raises:
        TypeError, ValueError: An argument is not what it may be: the message names it.

    **Errors.** What the source raises arrives after the values before it. What a signal handler
    raises in the call that asks for a value ends the stream. Where the stream's handle or its
    coordinator ends the stream, the consumer gets `JobCancelled`. One task at a time asks for a
    value: a second one gets a `RuntimeError`, and the first goes on. So does who asks, or waits for
    a value, when the scope was left before the stream had ended.

    **On a cluster.** Functions and items are pickled, and values come back through the scheduler.
    Window, order, errors and cancellation are those of a stream here, but that items which are on
    their way when one raises may begin. `coordinator` and `max_delay` are refused. It is seen as
    any stream is, and its `handle` is an `aioktask.cluster.ClusterStreamHandle`. A worker takes
    some items ahead; one that is gone may have done those that it had: each arrives as a
    `aioktask.cluster.WorkerLost` that names it, and is not sent again, since only the program knows
    whether it may be done twice: with ``errors="yield"`` it can tell those and go on.

    **Cancellation.** Entering, and each wait for a value, are checkpoints; so is about one call in
    a millisecond of those that find their value there. Cancelled while it waits for a value no
    value is lost: the next call gets it. Leaving is done whatever cancels meanwhile, which is
    raised then, or at the next checkpoint. Leaving the scope, early, by an exception or a
    cancellation, begins no further item, waits for those that run, whom
    ``current_chunk().check_cancelled()`` tells, and closes the source (``aclose`` or ``close``). It
    waits for nothing where a generator around it is closed by another task than that which entered;
    on trio that must not be where the source is async, as with any nursery in a generator.

    >>> import asyncio
    >>> async def main():
    ...     async with map_ordered(abs, range(-3, 3)) as results:
    ...         return [value async for value in results]
    >>> asyncio.run(main())
    [3, 2, 1, 0, 1, 2]
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
    if not isinstance(items, (AsyncIterable, Iterable)):
        raise TypeError(f"items must be an iterable or an async iterable, got {items!r}")
    if on is not None:
        on_cluster = from_above("aioktask.cluster.stream", "map_on_cluster")
        return cast("Values[Any]", on_cluster(options, items, on))
    return Stream(options, items)


class Stream(Scope[Iterable[Any] | AsyncIterable[Any]], Generic[R]):
    """An open stream of values: what ``async with map_ordered(...)`` gives."""

    __slots__ = (
        "_asked",
        "_in_a_turn",
        "_iterator",
        "_looked_at",
        "_looked_given",
        "_loop",
        "_own_values",
        "_reader",
        "_task",
        "_turn_ends",
        "_values",
        "_waiter",
    )

    _entered_by = "async with map_ordered(...)"

    def __init__(
        self, options: Options[Any, Any], items: Iterable[Any] | AsyncIterable[Any]
    ) -> None:
        super().__init__(options, items)
        self._iterator: Iterator[Any] | None = None  # of an ordinary source
        self._reader: SourceReader | None = None  # of an async one
        self._loop: Loop
        self._task: weakref.ref[Any]  # that entered
        self._waiter: AsyncWaiter
        # Two generators of the same values, in turn: see `__aiter__`.
        self._own_values: AsyncGenerator[R, None] | None = None
        self._values: AsyncGenerator[R, None] | None = None
        self._asked = False  # whether a task waits in one of them
        self._turn_ends = 0  # when the loop should go on
        self._looked_at = self._looked_given = 0  # when that was asked, and how many were given
        self._in_a_turn = FEW_VALUES  # how many values are likely given until then

    async def __aenter__(self) -> Stream[R]:
        items = self._unused_items()
        need_stack(CALLS_OF_LEAVING)
        loop = self._loop = needed_loop("map_ordered()")
        await loop.checkpoint_if_cancelled()
        self._task = weakref.ref(loop.current_task())
        self._items = None
        consumer: Consumer[Any, Any] = Consumer(self._options)
        # It lends nothing: the stream's own nice counts, which may change.
        waiter = self._waiter = loop.waiter(MOST_NICE)
        try:
            consumer.feed.growth.is_abandoned = loop.without_task().is_closed
            consumer.feed.submit(waiter, detects=False)
            self._consumer = consumer
            if isinstance(items, AsyncIterable):
                self._reader = SourceReader(consumer, waiter, items.__aiter__())
                await self._reader.begin()
            else:
                self._iterator = iter(items)
            return self
        except BaseException as error:
            consumer.stop()
            if self._reader is not None and not issubclass(type(error), GeneratorExit):
                await self._reader.end()
            raise

    def __aiter__(self) -> AsyncIterator[R]:
        # A generator is what `async for` gets a value from in the least time, and the task that
        # entered is nearly always the one that asks. Python itself refuses a second task in one
        # generator, in words that nobody understands; so others ask by `__anext__`.
        consumer = self._open()
        if not self._is_in_its_task():
            return self
        self._own_values = values = self._going_on(self._own_values, consumer)
        return values

    async def __anext__(self) -> R:
        consumer = self._open()
        if self._asked and not consumer.over:
            raise self._asked_twice()
        self._values = values = self._going_on(self._values, consumer)
        return await values.__anext__()

    def _going_on(
        self, values: AsyncGenerator[R, None] | None, consumer: Consumer[Any, Any]
    ) -> AsyncGenerator[R, None]:
        """The generator, or another one where an exception has ended it, or none was made."""
        if values is None or getattr(values, "ag_frame", None) is None:
            return self._generate(consumer)
        return values

    async def _generate(self, consumer: Consumer[Any, Any]) -> AsyncGenerator[R, None]:
        source, reader, take = self._iterator, self._reader, consumer.exchange.take
        until_look = 0  # how many values to give before the source and the loop have their turn
        refused = False
        try:
            while not consumer.over:
                if self._asked:
                    refused = True
                    raise self._asked_twice()
                if until_look <= 0:
                    until_look = MOST_VALUES if source is None else consumer.fill(source)
                    until_look = min(until_look, self._likely_in_a_turn(consumer))
                    if self._looked_at >= self._turn_ends and consumer.exchange.has(consumer.given):
                        await self._let_loop_go_on(consumer)
                until_look -= 1
                number = consumer.given
                outcome = take(number)
                if outcome is NOTHING:
                    if source is not None:  # up to the whole window, now that there is time
                        until_look = min(consumer.fill(source), self._in_a_turn)
                    outcome = await self._wait(consumer)
                    if outcome is NOTHING:
                        consumer.no_value()
                        return
                if type(outcome) is Raised:
                    outcome = consumer.raised(outcome)
                consumer.given = number + 1
                if reader is not None:
                    reader.value_given()
                yield outcome
                del outcome
        except BaseException as error:
            outcome = None  # which may be what is raised, whose traceback leads here
            # What a signal handler raised may have struck between a value and its count. A cancel
            # comes where this waits only, and a second task is refused before anything is done.
            harmless = GeneratorExit, anyio.get_cancelled_exc_class()
            if not (refused or issubclass(type(error), harmless)):
                consumer.over = True
            raise

    def _asked_twice(self) -> RuntimeError:
        return RuntimeError(
            f"two tasks ask for values of the stream {self._options.name!r} at once: have one task "
            "iterate over it and pass the values on, through a queue or a memory object stream, or "
            "hold a lock around each `anext`"
        )

    def _likely_in_a_turn(self, consumer: Consumer[Any, Any]) -> int:
        """How many values to give before the clock is looked at again: this looks at it now.

        As many as are likely given in half a turn, by what they took since the last look.
        """
        given, now = consumer.given, perf_counter_ns()
        if given > self._looked_given:
            took = max(now - self._looked_at, 1)
            likely = (given - self._looked_given) * MOST_NS_A_TURN // (2 * took)
            self._in_a_turn = max(min(likely, MOST_VALUES), 1)
        self._looked_at, self._looked_given = now, given
        return self._in_a_turn

    def _turn_begins(self, consumer: Consumer[Any, Any]) -> None:
        self._looked_at, self._looked_given = perf_counter_ns(), consumer.given
        self._turn_ends = self._looked_at + MOST_NS_A_TURN

    async def _let_loop_go_on(self, consumer: Consumer[Any, Any]) -> None:
        """Be a checkpoint, although the value is there."""
        consumer.post()
        self._asked = True
        try:
            await anyio.lowlevel.checkpoint()
        finally:
            self._asked = False
        self._turn_begins(consumer)

    async def _wait(self, consumer: Consumer[Any, Any]) -> Any:
        """Wait for the outcome that is next; `NOTHING` where none comes any more."""
        waiter, exchange, number = self._waiter, consumer.exchange, consumer.given
        patience = consumer.patience
        cancel_timer: Callable[[], object] | None = None
        if patience > 1:
            cancel_timer = waiter.wake_after(PATIENCE_SECONDS)
            if cancel_timer is None:
                patience = 1
        try:
            self._asked = True
            consumer.wait_begins()
            while True:
                waiter.renew()
                waits = exchange.await_outcomes(number, patience, waiter)
                outcome = exchange.take(number)
                if outcome is not NOTHING or consumer.exhausted or consumer.over:
                    return outcome
                consumer.raise_if_stopped()
                if not waits and patience > 1:
                    patience = 1
                    continue
                waiter.watch(consumer.feed.cancel)
                await waiter.wait()
                patience = 1
        finally:
            self._asked = False
            if cancel_timer is not None:
                cancel_timer()
            consumer.wait_ends()
            self._turn_begins(consumer)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._leave(error)
        except GeneratorExit:
            raise
        except BaseException:  # a signal handler may have raised in there, before all was done
            await self._leave(error)
            raise

    async def _leave(self, error: BaseException | None) -> None:
        consumer = self._entered()
        consumer.stop()
        consumer.feed.wake(self._waiter)  # another task may wait for a value
        self._close_values()
        if issubclass(type(error), GeneratorExit) and not self._is_in_its_task():  # nobody can wait
            if self._reader is not None:
                self._reader.forget()
            close_iterator(self._iterator)
            return
        struck = await self._see_to_its_end(consumer)
        try:
            if self._reader is not None:
                await self._reader.end()
        finally:
            try:
                close_iterator(self._iterator)
            finally:
                self._let_go_of_all(consumer)
                try:
                    if _goes_before(struck, error):  # it must not be lost
                        raise struck
                finally:
                    del struck

    def _let_go_of_all(self, consumer: Consumer[Any, Any]) -> None:
        """Let go of what is the program's, and of the task, once none of it is needed any more."""
        self._iterator = None
        if self._reader is not None and self._reader.over:  # else it was struck, and is ended anew
            self._reader = None
        self._loop = self._loop.without_task()
        consumer.let_go()

    def _is_in_its_task(self) -> bool:
        """Whether the task that entered runs now: its loop may be gone, or close a generator."""
        try:
            return self._task() is self._loop.current_task()
        except RuntimeError:  # no loop runs here
            return False

    def _close_values(self) -> None:
        """Close the generators of the values, which wait for nothing as they are closed."""
        both = self._own_values, self._values
        self._own_values = self._values = None
        for values in both:
            if values is not None:
                with contextlib.suppress(StopIteration, RuntimeError):  # another task is in it
                    values.aclose().send(None)

    async def _see_to_its_end(self, consumer: Consumer[Any, Any]) -> BaseException | None:
        """Wait for the items that run, whatever strikes meanwhile; returns the first that did."""
        first: BaseException | None = None
        waiter = self._loop.waiter(MOST_NICE)  # another task may wait with the stream's own
        while not consumer.feed.over:
            try:
                cancelled = await consumer.feed.until_over(self._loop, waiter)
                if first is None:
                    first = cancelled
            except GeneratorExit:
                raise
            except BaseException as another:  # a signal handler raised in here
                if not _goes_before(first, another):
                    first = another
        self._waiter.left = waiter.left = True
        return first


def _goes_before(
    struck: BaseException | None, error: BaseException | None
) -> TypeGuard[BaseException]:
    """Whether what came while a scope was left is raised, and not what it was left by.

    A cancel gives way to what is no `Exception` itself, as another cancel or a Ctrl-C.
    """
    if struck is None:
        return False
    if isinstance(struck, asyncio.CancelledError):
        return error is None or isinstance(error, (Exception, GeneratorExit))
    return True
