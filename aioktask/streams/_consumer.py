# SPDX-License-Identifier: MIT
# What a stream's consumer keeps count of: the window, the end of the source, what is to be posted.
#
# All of it belongs to the consumer's thread, or its loop. Guarantees that at most `window` items
# are taken from the source and not given to the consumer, at any moment. An item is given when the
# call that asks for a value returns it; so room is counted before the source is asked, and one item
# at a time.
#
# Items that were taken need not go to helpers one by one: what is posted is that there are more of
# them. That is done when there are as many as a helper takes at once by what they cost, before
# anything waits, and after each item of a source that takes its time.
"""The consumer's side of a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from time import perf_counter_ns
from typing import Generic, Literal, SupportsIndex, TypeVar

from aioktask.checks import (
    check_arguments,
    check_flag,
    check_function,
    check_name,
    integer,
    name_of,
    nice_value,
    optional,
    seconds,
)
from aioktask.engine.api.coordinator import Coordinator
from aioktask.engine.api.feed import Feed, StreamHandle
from aioktask.engine.raised import told_of_error
from aioktask.engine.state.growth import Tally
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.workers import Waiter
from aioktask.engine.threads.keeper import WATCH_SECONDS
from aioktask.errors import ChunkCancelled, add_note
from aioktask.job import NO_LABELS, Labels
from aioktask.streams._exchange import Exchange, Raised, over

__all__ = ["PATIENCE_SECONDS", "WINDOW", "Consumer", "Errors", "Options"]

T = TypeVar("T")
R = TypeVar("R")

Errors = Literal["raise", "yield"]

WINDOW = 64

# A consumer that waits for several values at once looks after this time whether the first is there.
PATIENCE_SECONDS = 0.001
# How many threads are reckoned with for what is there by then: there may be more, or one.
PATIENCE_THREADS = 2

# A source that took so long for an item may take as long for the next one, and what it gave must
# not wait for that.
SLOW_SOURCE_NS = 20_000

# Where the value that is wanted is there already, so many items are taken in addition to as many as
# were given: some, so that the window fills, and few, so that a slow source does not hold it up.
FEW_ITEMS = 2


class Options(Generic[T, R]):
    """The arguments of a stream, checked.

    Raises:
        TypeError, ValueError: One is not what it may be: the message names it.
    """

    def __init__(
        self,
        fn: Callable[[T], R],
        *,
        window: SupportsIndex,
        ordered: bool,
        errors: object,
        max_delay: float | None,
        nice: SupportsIndex | None,
        name: str | None,
        coordinator: Coordinator | None,
        timeout: float | None,
        labels: Mapping[str, str] | None,
    ) -> None:
        check_function("fn", fn)
        check_arguments("fn", fn, "item")
        self.fn = fn
        self.window = integer("window", window, least=1)
        self.ordered = check_flag("ordered", ordered)
        if errors not in ("raise", "yield"):
            kind = ValueError if type(errors) is str else TypeError
            raise kind(f"errors must be 'raise' or 'yield', got {errors!r}")
        self.yields_errors = errors == "yield"
        self.longest_ns = None if max_delay is None else int(seconds("max_delay", max_delay) * 1e9)
        self.nice = None if nice is None else nice_value("nice", nice)
        self.name = name_of(fn) if name is None else check_name(name)
        self.coordinator = optional("coordinator", coordinator, Coordinator)
        self.timeout = None if timeout is None else seconds("timeout", timeout)
        self.labels = NO_LABELS if labels is None else Labels(labels)


class Consumer(Generic[T, R]):
    """The counts of one stream, and what both forms of it do alike.

    Attributes:
        given: How many values the consumer has: the number of the one that is next.
        taken: How many items were taken from the source.
        source_ended: Whether no item comes any more.
        over: Whether no value comes any more.
        left: Whether the scope was left before that.
        failed: Whether what `fn` or the source raised ends the stream.
    """

    def __init__(self, options: Options[T, R]) -> None:
        self.options = options
        self.given = self.taken = 0
        self.source_ended = self.over = self.left = self.failed = False
        self._source_error: BaseException | None = None
        self._errors = 0  # for how many of the items that were given `fn` raised, and went on
        self._error = ""  # what ended the stream, in words
        self._posted = 0  # how many items helpers may know of
        self._most_unposted = max(options.window // 2, 1)
        self._waits = False  # whether the consumer waits for a value
        self.exchange: Exchange[T, R] = Exchange(
            options.fn,
            name=options.name,
            ordered=options.ordered,
            ends_at_error=not options.yields_errors,
            wake=self._wake,
            close=self._close,
            may_linger=self._may_linger,
        )
        self.feed = Feed(
            self.exchange.work,
            options.fn,
            self.exchange.pending,
            name=options.name,
            nice=options.nice,
            longest_ns=options.longest_ns,
            coordinator=options.coordinator,
            timeout=options.timeout,
            labels=options.labels,
        )
        self._growth = self.feed.growth
        self._growth.has = self.exchange.has
        self._growth.tally = self._tally
        self.handle: StreamHandle = self.feed.handle()

    def _wake(self, waiter: Waiter) -> None:
        self.feed.wake(waiter)

    def _close(self) -> None:
        self.feed.close()

    def _may_linger(self, stint: Stint) -> bool:
        return self.feed.may_linger(stint)

    def _tally(self) -> Tally:
        done = self.given + self.exchange.ready
        size = self.taken if self.source_ended else None
        source_error = self._source_error  # once: the consumer may take it meanwhile
        raised = source_error is not None or self.exchange.ends_early
        ended_by = self.exchange.ended_by  # counts at once, wherever the consumer is
        error = self._error or ended_by
        if source_error is not None and not error:
            error = told_of_error(source_error)
        errors = self._errors + bool(ended_by)
        return Tally(done, size, raised, self.failed, errors, error)

    # The source.

    @property
    def has_room(self) -> bool:
        """Whether one item more may be taken."""
        return self.taken - self.given < self.options.window

    def take(self, item: T) -> None:
        """Take in an item that the source gave."""
        number = self.taken
        self.exchange.pending.append((number, item))
        self.taken = self._growth.stop = number + 1
        if self._waits and number == self.given:  # the consumer waits for it from now on
            self._watch_head()

    def fill(self, source: Iterator[T]) -> int:
        """Take items from an ordinary iterator, while there is room and as long as is reasonable.

        What the iterator raises, if it is an `Exception`, arrives after the values before it.

        Returns:
            How many values may be given before this is to be called again.
        """
        window = self.options.window
        if self.source_ended:
            return window
        exchange, number, taken = self.exchange, self.given, self.taken
        limit = number + window
        growth, enough = self._growth, self._enough
        if exchange.has(number):  # what was given meanwhile, and some more
            limit = min(limit, taken + enough + FEW_ITEMS)
        add = exchange.pending.append
        before = perf_counter_ns()
        while taken < limit and taken <= exchange.last:
            try:
                item = next(source)
            except StopIteration:
                self.end_source(None)
                return window
            except Exception as error:
                self.end_source(error)
                return window
            add((taken, item))
            self.taken = growth.stop = taken = taken + 1
            now = perf_counter_ns()
            slow = now - before > SLOW_SOURCE_NS
            if slow or (taken - self._posted >= enough and self._may_post):
                self.post()
                if slow and (exchange.has(number) or self.feed.stopping):
                    return 1
                now = perf_counter_ns()
            before = now
        return min(enough, max((taken - number) // 2, 1))

    def end_source(self, error: BaseException | None) -> None:
        """Take in that the source has come to its end, or raised."""
        if error is not None and error.__traceback__ is not None:
            # Without the frame here; its class may refuse attributes.
            BaseException.with_traceback(error, error.__traceback__.tb_next)
        self.source_ended = True
        self._source_error = error
        self._posted = self.taken
        self.feed.close()

    @property
    def wants_post(self) -> bool:
        """Whether so many items were taken that helpers should come for them."""
        return self.taken - self._posted >= self._enough and self._may_post

    @property
    def _may_post(self) -> bool:
        """Whether helpers would come for more items, which they do not find by themselves."""
        return self.exchange.lingers or not self.feed.may_grow_later

    @property
    def _enough(self) -> int:
        """For how many items helpers should come.

        A source that blocks, and may wait for what becomes of its items, would hold up those that
        helpers do not know of until the keeper looks.
        """
        longest_ns = self.options.longest_ns
        if longest_ns is not None and longest_ns < WATCH_SECONDS * 1e9:
            return 1
        return min(self._growth.pacing.at_once, self._most_unposted)

    def post(self) -> None:
        """Have helpers come for what was taken."""
        unposted = self.taken - self._posted
        if unposted > 0:
            self._posted = self.taken
            if self.exchange.wake_lingering(unposted, self._growth.pacing.at_once) > 0:
                self.feed.grow()

    # Values.

    @property
    def exhausted(self) -> bool:
        """Whether every item that there will ever be was given."""
        return self.source_ended and self.given == self.taken

    @property
    def patience(self) -> int:
        """How many values the consumer should wait for at once, so that it is woken less often.

        Helpers have them done in about a millisecond, and they are no more than half of what was
        taken.
        """
        longest_ns = self.options.longest_ns
        if longest_ns is not None and longest_ns < PATIENCE_SECONDS * 1e9:
            return 1
        pacing = self._growth.pacing
        likely = int(PATIENCE_THREADS * PATIENCE_SECONDS * 1e9 / max(pacing.unit_ns, 1.0))
        return max(min(max(pacing.together, likely), (self.taken - self.given) // 2), 1)

    def wait_begins(self) -> None:
        """Take in that the consumer waits for a value."""
        self._waits = True
        self.post()
        if self.given < self.taken:
            self._watch_head()

    def wait_ends(self) -> None:
        """Take in that the consumer waits no more."""
        self._waits = False
        self._growth.head = -1
        self.exchange.await_nothing()

    def _watch_head(self) -> None:
        """Have it be told where the item that the consumer waits for holds the stream up."""
        if self.options.ordered:
            growth = self._growth
            growth.waits_since = perf_counter_ns()
            growth.head = self.given

    def raised(self, outcome: Raised) -> Exception:
        """What the consumer is given for an item for which `fn` raised.

        Raises:
            BaseException: What `fn` raised, which ends the stream.
            JobCancelled: It raised since the stream was cancelled from outside.
        """
        error = outcome.error
        if issubclass(type(error), ChunkCancelled):  # the item was told, and the consumer hears why
            self.raise_if_stopped()
        if self.options.yields_errors and not outcome.ends and isinstance(error, Exception):
            self._errors += 1
            return error
        self._error = told_of_error(error)
        self.over = self.failed = True
        self.given += 1
        name = self.options.name
        add_note(error, f"raised for the item {outcome.number} of the stream {name!r}")
        try:
            raise error
        finally:
            del error, outcome, self  # which the exception's traceback leads to

    def no_value(self) -> None:
        """Take in that there is none any more; the caller then tells the consumer so.

        Raises:
            BaseException: What the source raised, once.
            RuntimeError: The scope was left meanwhile.
        """
        self.refuse_if_left()
        self.over = True
        error = self._source_error
        if error is not None:
            # In this order: a helper may ask meanwhile whether it is over well, see `_tally`.
            self._error = told_of_error(error)
            self.failed = True
            self._source_error = None
            try:
                raise error
            finally:
                del error, self

    def raise_if_stopped(self) -> None:
        """Raise why no further value comes, if the stream was cancelled from outside, or broke.

        Raises:
            JobCancelled: Its handle, its coordinator or the exit of the interpreter ended it.
            BaseException: What struck the engine.
        """
        if self.feed.stopping:
            self.over = True
            raise self.feed.reason()

    def refuse_if_left(self) -> None:
        """Raise where a value is asked for once the scope was left: there may have been more.

        Raises:
            RuntimeError: The scope was left before the stream was over.
        """
        if self.left:
            raise RuntimeError(
                f"the scope of the stream {self.options.name!r} was left before its last value: "
                "iterate inside the block that entered it, or make a new stream"
            )

    def let_go(self) -> None:
        """Let go of all that is the program's, once no thread works any more.

        Whoever keeps the stream or its handle keeps none of it, and it goes without the collector.
        """
        self.exchange.let_go()
        self.options.fn = over
        self._source_error = None
        self.feed.let_go()

    def stop(self) -> None:
        """Begin nothing more: the consumer leaves."""
        self.left = self.left or not self.over
        self.over = True
        self.exchange.stop()
        if self.exhausted:
            self.feed.close()  # again: nothing is pending now
        else:
            self.feed.cancel()
