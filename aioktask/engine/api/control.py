# SPDX-License-Identifier: MIT
# How a job is changed by whoever has no handle of it: a page, a terminal, by the number that
# snapshots and events tell.
"""Changes to jobs by number."""

from __future__ import annotations

from aioktask.checks import integer, nice_value
from aioktask.engine.api import elsewhere
from aioktask.engine.api.process import current_pool
from aioktask.engine.api.snapshots import runs_of
from aioktask.engine.state.history import History, Served
from aioktask.engine.state.run import Run
from aioktask.engine.threads.pool import Pool

__all__ = ["cancel_job", "history_since", "keep_history", "renice_job"]


def cancel_job(number: int) -> bool:
    """Cancel the job of this number, as its handle would.

    Returns:
        Whether it came in time; False where there is no such job, or not any more.

    Raises:
        TypeError: `number` is no integer.
    """
    pool = current_pool()
    run = _run(pool, number)
    if run is not None:
        return pool.cancel(run) and not run.expired
    other = elsewhere.find(number)
    return other is not None and other.cancel()


def renice_job(number: int, nice: int) -> bool:
    """Change the nice of the job of this number, as its handle would.

    Returns:
        Whether there is such a job.

    Raises:
        TypeError, ValueError: `number` is no integer, or `nice` none from -20 to 19.
    """
    value = nice_value("nice", nice)
    pool = current_pool()
    run = _run(pool, number)
    if run is not None:
        if run.over:
            return False
        pool.renice(run, value)
        return True
    other = elsewhere.find(number)
    if other is None:
        return False
    other.renice(value)
    return True


def _run(pool: Pool, number: int) -> Run | None:
    wanted = integer("number", number)
    return next((run for run in runs_of(pool) if run.number == wanted), None)


def keep_history(*, keep: bool = True) -> None:
    """Have it be kept from now on what threads serve, or no longer."""
    state = current_pool().state
    if keep:
        state.history = state.history or History()
    else:
        state.history = None


def history_since(at: int) -> list[Served]:
    """What threads served that ended at this time or later, in ns of `time.perf_counter_ns`.

    Empty where it is not kept.
    """
    history = current_pool().state.history
    return [] if history is None else history.since(at)
