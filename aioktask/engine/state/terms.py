# SPDX-License-Identifier: MIT
# The terms on which a run is taken in: how many may wait, how long it may wait to begin, and by
# when it has to be over. Few runs have any.
#
# What is refused at submit is decided on the submitting thread, before anything is posted. What
# becomes due later is found by the keeper and decided in a turn (`ending.expire`), where it is
# certain whether the run has begun.
"""The terms of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from aioktask.errors import Overloaded

if TYPE_CHECKING:
    from aioktask.engine.scheduling.deadlines import Deadlines
    from aioktask.engine.scheduling.gate import Gate
    from aioktask.engine.state.run import Run


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

    __slots__ = ("deadlines", "gate", "max_wait", "most_queued", "timeout")

    def __init__(
        self,
        gate: Gate,
        deadlines: Deadlines[tuple[Any, ...]],
        most_queued: int | None,
        max_wait: float | None,
        timeout: float | None,
    ) -> None:
        self.gate = gate
        self.deadlines = deadlines
        self.most_queued = most_queued
        self.max_wait = max_wait
        self.timeout = timeout

    @property
    def patience(self) -> float | None:
        """How long the run may wait to begin, in seconds; None for any time."""
        if self.max_wait is None or self.timeout is None:
            return self.timeout if self.max_wait is None else self.max_wait
        return min(self.max_wait, self.timeout)

    def refuse_or_enter(self, run: Run, threads: int, *, always: bool) -> int | None:
        """Count a run that is submitted, unless it may not come.

        Args:
            run: The run.
            threads: How many may serve jobs of its coordinator.
            always: Whether it may come in any case.

        Returns:
            When to look at it for the first time, in ns; None for never.

        Raises:
            Overloaded: It may not come.
        """
        most, patience = self.most_queued, self.patience
        if always:
            most, wait = None, None
        else:
            wait = patience
        refusal = self.gate.enter(run.number, threads, most, wait, run.submitted_at)
        if refusal is not None:
            if refusal.wait is None:
                why = f"{_jobs(refusal.queued)}, and at most {most} may"
            else:
                why = f"it would wait about {refusal.wait:.3g} s to begin, and may {patience:.3g} s"
            raise Overloaded(
                f"the job {run.name!r} was refused: {why}; try again in "
                f"{refusal.retry_after:.3g} s",
                refusal.queued,
                refusal.retry_after,
            )
        return None if patience is None else run.submitted_at + int(patience * 1e9)

    def began(self, run: Run, now: int) -> None:
        """Take in that the first chunk of the run begins."""
        self.gate.begin(run.number, now)
        if self.timeout is None:
            self.deadlines.drop(run.number)

    def ended(self, run: Run, now: int) -> None:
        """Take in that the run is over, or never begins."""
        self.gate.end(run.number, now)
        self.deadlines.drop(run.number)

    def expired(self, run: Run, threads: int, now: int) -> Expiry | int | None:
        """What follows for a run, in a turn, where a time has passed.

        Returns:
            Why it is to be ended; or when to look again, in ns; or None for never.
        """
        passed = (now - run.submitted_at) / 1e9
        patience = self.patience
        if not run.first_claim and patience is not None and passed >= patience:
            gate = self.gate
            queued, retry_after = gate.queued(threads), gate.retry_after(threads, now)
            message = (
                f"the job {run.name!r} had not begun after {patience:.3g} s: {_jobs(queued)}; "
                f"try again in {retry_after:.3g} s"
            )
            return Expiry(message, (queued, retry_after))
        if self.timeout is None:
            return None
        if passed >= self.timeout:
            return Expiry(f"the job {run.name!r} was not over after {self.timeout:.3g} s", None)
        return run.submitted_at + int(self.timeout * 1e9)


def _jobs(count: int) -> str:
    return (
        "1 job of its coordinator waits" if count == 1 else f"{count} jobs of its coordinator wait"
    )
