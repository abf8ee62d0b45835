# SPDX-License-Identifier: MIT
# Where a stream's consumer and the threads that work for it meet: items in, outcomes out.
#
# The consumer's thread adds items at the end of `pending`; whichever thread has leave to begin one
# takes the first. So items are begun in their order, and no thread holds one that it is not at.
# Each outcome is left under its item's number, or in a queue where order is of no matter, and who
# waits for exactly that is woken once.
#
# No lock: each step is one of a `deque` or a `dict`, atomic with and without the GIL. Who waits
# says so first, and looks for the outcome then; who leaves an outcome does the reverse. So one of
# the two sees the other. Guarantees that each item is worked on once, or not at all after `stop`.
"""Items and outcomes of a stream."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, Generic, TypeVar

from aioktask.checks import check_done
from aioktask.engine.raised import told_of_error
from aioktask.engine.scheduling.queue import SLICE_NS
from aioktask.engine.state.current import local
from aioktask.engine.state.record import raisable
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.workers import Parking, Waiter
from aioktask.errors import ChunkCancelled

__all__ = ["NOTHING", "Exchange", "Raised"]

T = TypeVar("T")
R = TypeVar("R")

# How long a helper waits for a further item before it rests: some times what a loop takes to give
# values that are there, and take items in their place.
LINGER_SECONDS = 0.0002

# The number under which a consumer waits that takes outcomes in any order.
ANY = -1


class _Nothing:
    """The outcome that is not there yet."""


NOTHING = _Nothing()


def over(*_: object) -> Any:
    """In the place of what a stream that is over called."""
    raise RuntimeError("the stream is over")


def never(stint: Stint) -> bool:
    """In the place of what says whether a thread may wait for a further item."""
    return False


class Raised:
    """The outcome of an item for which the function raised.

    Attributes:
        error: What it raised.
        number: The item's number.
        ends: Whether it ends the stream, although errors are yielded: it was no `Exception`, also
            where a `RuntimeError` has its place.
    """

    __slots__ = ("ends", "error", "number")

    def __init__(self, error: BaseException, number: int, *, ends: bool = False) -> None:
        self.error = error
        self.number = number
        self.ends = ends


class Exchange(Generic[T, R]):
    """What one stream's threads share.

    Args:
        fn: The user's function.
        name: The stream's.
        ordered: Whether outcomes are taken in the order of the items.
        ends_at_error: Whether no item is begun after one for which `fn` raised.
        wake: Wakes a waiter.
        close: Has the run be over when what was begun has ended. Called by the thread on which the
            item raised that ends the stream, since the consumer may not come back for long.
        may_linger: Whether nothing else waits for the helper that is in this stint.

    Attributes:
        pending: The items that no thread has begun, each with its number.
        last: The number of the last item that may be begun: that of the first one by whose
            exception the stream ends, -1 once it was left.
    """

    __slots__ = (
        "_close",
        "_ends_at_error",
        "_enough",
        "_fn",
        "_lingering",
        "_may_linger",
        "_name",
        "_ordered",
        "_outcomes",
        "_plain",
        "_queue",
        "_waiting",
        "_wake",
        "ended_by",
        "last",
        "pending",
    )

    def __init__(
        self,
        fn: Callable[[T], R],
        *,
        name: str,
        ordered: bool,
        ends_at_error: bool,
        wake: Callable[[Waiter], object],
        close: Callable[[], object],
        may_linger: Callable[[Stint], bool],
    ) -> None:
        self._fn = fn
        self._name = name
        self._plain: type | None = None  # of the last value, which was checked
        self._ordered = ordered
        self._ends_at_error = ends_at_error
        self._wake = wake
        self._close = close
        self._may_linger = may_linger
        self._lingering: deque[Parking] = deque()  # of the helpers that wait for an item
        self.pending: deque[tuple[int, T]] = deque()
        self._outcomes: dict[int, Any] = {}  # by number, where order matters
        self._queue: deque[Any] = deque()  # where it does not
        self._enough = 1  # outcomes for which the consumer is woken, where order does not matter
        self._waiting: dict[int, Waiter] = {}  # by the number of the outcome that is waited for
        self.last = sys.maxsize
        self.ended_by = ""  # what `fn` raised for that item, in words

    # On the threads that work.

    def work(self, start: int, stop: int, here: bool = False, lingers: bool = True) -> None:
        """Work on the next item, if there is one: what a unit of the run is leave to do.

        Args:
            start: The number of the unit, which says nothing of the item's.
            stop: One more.
            here: Whether this is the consumer's own thread, where signal handlers may raise: what
                is no `Exception` goes through then, and ends the stream.
            lingers: Whether the thread may wait a while for a further item.
        """
        pending = self.pending
        try:
            number, item = pending.popleft()
        except IndexError:
            return
        if number > self.last:  # it was added after the others were dropped
            return
        try:
            outcome: Any = self._fn(item)
            if type(outcome) is not self._plain:
                self._plain = check_done(outcome, "fn", self._name, "stream")
        except BaseException as error:
            cancelled = issubclass(type(error), ChunkCancelled)  # the consumer hears why
            if here and not isinstance(error, Exception) and not cancelled:
                self.stop()
                raise
            outcome = self._raised(error, number)
        del item
        if self._ordered:
            self._outcomes[number] = outcome
            waiter = self._waiting.pop(number, None)
        else:
            self._queue.append(outcome)
            enough = len(self._queue) >= self._enough
            waiter = self._waiting.pop(ANY, None) if enough else None
        del outcome
        if waiter is not None and not here:  # else that is this thread, which looks itself
            self._wake(waiter)
        if number >= self.last:
            self._close()
        if not pending and lingers:
            self._linger()

    def _linger(self) -> None:
        """Wait on this helper for further items, as long as nothing else waits for it.

        Where items come one by one, or in bursts, the next is often there before the helper could
        rest, and be woken by a turn again. `wake_lingering` wakes it, without a turn.
        """
        stint = local.stint
        if stint is None:
            return
        begun = perf_counter_ns()
        waited = 0
        while not self.ended and self._may_linger(stint):
            parking = Parking()  # who takes the last one out may be struck before it opens that
            self._lingering.append(parking)
            before = perf_counter_ns()
            woken = not self.pending and parking.wait(LINGER_SECONDS)
            waited += perf_counter_ns() - before
            if not woken:
                try:
                    self._lingering.remove(parking)
                except ValueError:  # somebody is just waking it, for an item
                    woken = True
                if not (woken or self.pending):
                    break
            while self.pending and self._may_linger(stint):
                self.work(0, 1, lingers=False)
            if perf_counter_ns() - begun > SLICE_NS:
                break
        stint.leave_out(waited, perf_counter_ns() - begun)

    def _raised(self, error: BaseException, number: int) -> Raised:
        ends = not isinstance(error, Exception)
        if self._ends_at_error or ends:
            # A `ChunkCancelled` says that the stream was cancelled.
            if number < self.last and not issubclass(type(error), ChunkCancelled):
                self.ended_by = told_of_error(error)
            self.stop(number)
        trace = error.__traceback__
        error = raisable(error)
        if trace is not None:  # without the frame here, which has the item
            BaseException.with_traceback(error, trace.tb_next)  # its class may refuse attributes
        return Raised(error, number, ends=ends)

    # On the consumer's.

    def stop(self, last: int = -1) -> None:
        """Have no item after the one with this number be begun. Those that wait are dropped."""
        self.last = min(self.last, last)
        self.pending.clear()

    @property
    def ended(self) -> bool:
        """Whether the stream ends by what `fn` raised, or was left."""
        return self.last < sys.maxsize

    @property
    def ends_early(self) -> bool:
        """Whether the stream ends by what `fn` raised, which the consumer may not have yet."""
        return 0 <= self.last < sys.maxsize

    @property
    def lingers(self) -> bool:
        """Whether a helper waits for an item."""
        return bool(self._lingering)

    def wake_lingering(self, items: int, each: int) -> int:
        """Wake helpers that linger, for so many items of which one helper takes `each`.

        Returns:
            For how many items no helper was woken.
        """
        while items > 0:
            try:
                parking = self._lingering.popleft()
            except IndexError:
                break
            parking.unpark()
            items -= each
        return items

    def let_go(self) -> None:
        """Let go of the function, and of outcomes that nobody took, once no thread works any more.

        Of the consumer too, which refers to this: nothing is left that only the collector finds.
        """
        self._outcomes.clear()
        self._queue.clear()
        self._fn = self._wake = self._close = over
        self._may_linger = never

    def has(self, number: int) -> bool:
        """Whether the outcome with this number is there, or any where order is of no matter."""
        return number in self._outcomes if self._ordered else bool(self._queue)

    def take(self, number: int) -> Any:
        """Take the outcome out; `NOTHING` where it is not there."""
        if self._ordered:
            return self._outcomes.pop(number, NOTHING)
        try:
            return self._queue.popleft()
        except IndexError:
            return NOTHING

    def await_outcomes(self, number: int, count: int, waiter: Waiter) -> bool:
        """Have `waiter` be woken when so many outcomes are there, by what is likely.

        Where order matters that is when the last of them is there, from `number` on. Who calls this
        then looks for the first, and looks again after a while where `count` is above 1.

        Returns:
            False where nothing wakes the waiter any more, since the last one is there already.
        """
        if not self._ordered:
            self._enough = count
            self._waiting[ANY] = waiter
            return True
        last = number + count - 1
        self._waiting[last] = waiter
        return last not in self._outcomes

    def await_nothing(self) -> None:
        """Have nobody be woken."""
        self._waiting.clear()

    @property
    def ready(self) -> int:
        """How many outcomes nobody has taken."""
        return len(self._outcomes) if self._ordered else len(self._queue)
