# SPDX-License-Identifier: MIT
# Priority inheritance: what nice a job is lent by those who wait for it.
#
# Called under the pool's lock. A job that somebody more urgent waits for has a loan of that nice in
# the scheduler, for one thread at a time. Who waits inside a chunk of another job waits as urgently
# as that job is, a loan of its own included: so a loan goes on through jobs that wait for jobs, and
# it follows a renice of any of them. It ends with the wait.
"""Loans of nice from waiters to the jobs they wait for."""

from __future__ import annotations

from aioktask.engine.scheduling.queue import Scheduler
from aioktask.engine.state.run import Run

Counts = dict[Run, dict[Run, int]]


class Lending:
    """Who waits for whom on behalf of chunks, and the loans that follow."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._awaits: Counts = {}
        self._awaited_by: Counts = {}

    def begin(self, waiting: Run, awaited: Run) -> list[Run]:
        """A chunk of `waiting` waits for `awaited`; the runs whose loan changed."""
        _count(self._awaits, waiting, awaited, 1)
        _count(self._awaited_by, awaited, waiting, 1)
        return self.reckon(awaited)

    def end(self, waiting: Run, awaited: Run) -> list[Run]:
        """It waits no more."""
        _count(self._awaits, waiting, awaited, -1)
        _count(self._awaited_by, awaited, waiting, -1)
        return self.reckon(awaited)

    def reckon(self, run: Run) -> list[Run]:
        """Bring the loans in line after a change of who waits for the run, or of its nice."""
        changed = []
        left = [run]
        first = True
        while left:
            each = left.pop()
            if self._settle(each):
                changed.append(each)
            elif not first:
                continue
            first = False
            left.extend(self._awaits.get(each, ()))
        return changed

    def _settle(self, run: Run) -> bool:
        entry = run.entry
        most_urgent = min(
            [
                *(waiter.nice for waiter in run.waiters),
                *(waiting.urgency for waiting in self._awaited_by.get(run, ())),
            ],
            default=entry.nice,
        )
        loan = most_urgent if most_urgent < entry.nice else None
        if loan == entry.loan:
            return False
        self._scheduler.set_loan(entry, loan)
        return True


def _count(counts: Counts, key: Run, other: Run, change: int) -> None:
    inner = counts.setdefault(key, {})
    inner[other] = inner.get(other, 0) + change
    if not inner[other]:
        del inner[other]
    if not inner:
        del counts[key]
