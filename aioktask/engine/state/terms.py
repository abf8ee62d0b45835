# SPDX-License-Identifier: MIT
# The terms on which a run is taken in: how many may wait, how long it may wait to begin, and by
# when it has to be over. Few runs have any.
#
# What is refused at submit is decided on the submitting thread, before anything is posted. What
# becomes due later is found by the keeper and decided in a turn (`ending.expire`), where it is
# certain whether the run has begun.
#
# A stream that nothing was added to yet waits for its source, and not for a thread: no limit of a
# queue or of a wait holds for it until there is an item that could begin.
"""The terms of runs."""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from aioktask.errors import Overloaded

if TYPE_CHECKING:
    from aioktask.engine.scheduling.deadlines import Deadlines
    from aioktask.engine.scheduling.gate import Gate
    from aioktask.engine.state.run import Run

# How often it is looked, at the most, whether a stream has an item that could begin.
ITEMS_NS = 100_000_000


class Expiry(NamedTuple):
    """Why a run was ended by time.

    Attributes:
        message: What a waiter is told.
        overloaded: How many jobs waited and when to come again, in seconds, where no chunk of the
            run had begun; None where one had.
    """

    message: str
    overloaded: tuple[int, float] | None

    def exception(self) -> Overloaded | TimeoutError:
        """A new exception for a waiter."""
        if self.overloaded is None:
            return TimeoutError(self.message)
        return Overloaded(self.message, *self.overloaded)


class Terms:
    """The terms of one run.

    Attributes:
        gate: Counts the runs of its coordinator.
        deadlines: What the keeper looks at.
        most_queued: How many jobs may wait for a thread; None for any number.
        max_wait: How long the run may wait to begin, in seconds; None for any time.
        timeout: How long it has in all, in seconds; None for any time.
    """

    __slots__ = (
        "_counted",
        "_items_since",
        "_rests",
        "deadlines",
        "gate",
        "max_wait",
        "most_queued",
        "timeout",
    )

    def __init__(
        self,
        gate: Gate,
        deadlines: Deadlines[tuple[Any, ...]],
        most_queued: int | None,
        max_wait: float | None,
        timeout: float | None,
    ) -> None:
        self._counted: int | None = None  # the number of the run, from when the gate may count it
        self.gate = gate
        self.deadlines = deadlines
        self.most_queued = most_queued
        self.max_wait = max_wait
        self.timeout = timeout
        self._rests = False  # whether the gate was told that there is nothing to do
        self._items_since = 0  # since when a stream was seen to have an item, in ns; 0 for not yet

    def __del__(self) -> None:
        # Else the gate would count for ever what was let go of without an end: exceptions struck
        # a call before it had posted its run, and again before it could cancel that.
        if self._counted is not None:
            self.gate.end(self._counted, perf_counter_ns())

    def refuse_or_enter(self, run: Run, threads: int, *, nested: bool) -> int | None:
        """Count a run that is submitted, unless it may not come.

        Args:
            run: The run.
            threads: How many may serve jobs of its coordinator.
            nested: Whether a chunk of the same coordinator submits it. That was admitted, and would
                fail if this was not: so only the time that it says itself is a limit.

        Returns:
            When to look at it for the first time, in ns; None for never.

        Raises:
            Overloaded: It may not come.
        """
        gate, now = self.gate, run.submitted_at
        if self.timeout is not None and self.timeout * 1e9 < 1:
            queued, retry_after = gate.queued(threads), gate.retry_after(threads, now)
            why = f"it has no time left to begin, with a timeout of {self.timeout:.3g} s"
            raise _refused(run, why, queued, retry_after)
        if nested:
            self.most_queued = self.max_wait = None
        patience = self._patience
        self._counted = run.number
        refusal = gate.enter(
            run.number,
            run.nice if run.growth is None else None,
            threads,
            self.most_queued,
            None if nested else patience,
            now,
        )
        if refusal is not None:
            self._counted = None
            if refusal.wait is not None:
                why = f"it would wait about {refusal.wait:.3g} s to begin, and may {patience:.3g} s"
            elif self.most_queued:
                why = f"{_jobs(refusal.queued)}, and at most {self.most_queued} may (max_queued)"
            else:
                why = (
                    "its coordinator has as many jobs under way as threads for them, and none may "
                    "wait (max_queued=0)"
                )
            raise _refused(run, why, refusal.queued, refusal.retry_after)
        return None if patience is None else now + int(patience * 1e9)

    @property
    def _patience(self) -> float | None:
        """How long the run may wait to begin, in seconds; None for any time."""
        if self.max_wait is None or self.timeout is None:
            return self.timeout if self.max_wait is None else self.max_wait
        return min(self.max_wait, self.timeout)

    def began(self, run: Run, now: int) -> None:
        """Take in that the first chunk of the run begins."""
        self.gate.begin(run.number, now)
        if self.timeout is None:
            self.deadlines.drop(run.number)

    def follow(self, run: Run, *, has_something: bool) -> None:
        """Take in whether a stream that is open has items, in a turn."""
        if has_something is self._rests:
            self._rests = not has_something
            if has_something:
                self.gate.wake(run.number)
            else:
                self.gate.rest(run.number, perf_counter_ns())

    def wait_no_more(self) -> None:
        """The run may take any time to begin: what it is for has begun by another way."""
        self.max_wait = None

    def ended(self, run: Run, now: int) -> None:
        """Take in that the run is over, or never begins; may be called again."""
        self._counted = None
        self.gate.end(run.number, now)
        self.deadlines.drop(run.number)

    def expired(self, run: Run, threads: int, now: int) -> Expiry | int | None:
        """What follows for a run, in a turn, where a time has passed.

        Returns:
            Why it is to be ended; or when to look again, in ns; or None for never.
        """
        until = None if self.timeout is None else run.submitted_at + int(self.timeout * 1e9)
        is_late = until is not None and now >= until
        if run.first_claim or not self._has_something(run, now):
            if is_late:
                kind = "job" if run.growth is None else "stream"
                message = f"the {kind} {run.name!r} was not over after {self.timeout:.3g} s"
                return Expiry(message, None)
            if run.first_claim or self.max_wait is None:
                return until
            return _earlier(until, now + max(int(self.max_wait * 1e9), ITEMS_NS))
        since = self._items_since or run.submitted_at
        begins_by = None if self.max_wait is None else since + int(self.max_wait * 1e9)
        if is_late or (begins_by is not None and now >= begins_by):
            return self._overload(run, threads, (now - since) / 1e9, now)
        return _earlier(until, begins_by)

    def _has_something(self, run: Run, now: int) -> bool:
        """Whether there is a chunk that could begin."""
        if run.growth is None:
            return True
        if not run.growth.stop:
            return False
        self._items_since = self._items_since or now
        return True

    def _overload(self, run: Run, threads: int, waited: float, now: int) -> Expiry:
        gate = self.gate
        # One that comes now would wait as long, whatever the number of jobs says.
        queued, retry_after = gate.queued(threads), max(gate.retry_after(threads, now), waited)
        kind = "job" if run.growth is None else "stream"
        message = (
            f"the {kind} {run.name!r} had not begun after {waited:.3g} s: {_jobs(queued)}; "
            f"try again in {retry_after:.3g} s"
        )
        return Expiry(message, (queued, retry_after))


def _earlier(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)


def _refused(run: Run, why: str, queued: int, retry_after: float) -> Overloaded:
    kind = "job" if run.growth is None else "stream"
    message = f"the {kind} {run.name!r} was refused: {why}; try again in {retry_after:.3g} s"
    return Overloaded(message, queued, retry_after)


def _jobs(count: int) -> str:
    return (
        "1 job of its coordinator waits" if count == 1 else f"{count} jobs of its coordinator wait"
    )
