# SPDX-License-Identifier: MIT
# How a run of one chunk, which one thread has, begins and ends without a claim.
#
# A job the size of a request is such a run. Where it passes the lane, the helper that walks it ends
# it, on its own thread and outside of turns, unless turns have taken the run over; which of the two
# is decided in one step (`decide_ender`). Outside of the lane turns call what is here.
"""Runs of one chunk."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from aioktask.engine.ranges.claims import Claims
from aioktask.engine.scheduling.queue import Entry
from aioktask.engine.state import record
from aioktask.engine.state.run import DONE, SETTLED, SUCCESS, WORK, Run
from aioktask.engine.state.sweep import Sweep

if TYPE_CHECKING:
    from aioktask.engine.state.stint import Stint
    from aioktask.engine.state.workers import Helper

# What is kept of runs that are over: see `State.past`.
Past = deque[tuple[Any, ...]]

# Who ends a run that a helper took out of the lane: that helper, or turns.
HELPER, TURNS = "helper", "turns"


def begin(run: Run, chunk: int, cap: int) -> None:
    """Have a turn take in a run that is one chunk.

    Its only thread, which comes in the same turn, has that chunk: nothing is free.

    Args:
        run: The run.
        chunk: The size that chunks of the job have.
        cap: The most threads that the run could have, were it longer.
    """
    run.entry = Entry(run, run.group, run.nice, run.limit)
    run.sweep = Sweep(run.fn, Claims((), chunk))
    run.threads_planned = min(run.limit, cap)
    run.begun = True


def enter(run: Run, stint: Stint, chunk: int, now: int) -> None:
    """Have the stint's thread serve the run from now on, with the one chunk that it is."""
    job = run.job
    run.peak_threads = 1
    run.first_claim = stint.entered_at = stint.claimed_at = now
    if run.terms is not None:
        run.terms.began(run, now)
    stint.chunk = chunk
    stint.chunk_start = stint.stretch_start = job.start
    stint.first_chunk_stop = stint.stretch_stop = job.start + job.size
    stint.live = True


def tell_of_begin(run: Run, threads: int) -> None:
    """Have a run that is one chunk tell that it came in and, if its chunk may begin, that it began.

    Args:
        run: The run.
        threads: How many it could have.
    """
    run.tell_submitted(run.only_chunk, threads)
    if run.may_have_begun:
        run.tell_started()


def decide_ender(run: Run, who: str) -> str:
    """Have `who`, its helper or turns, end a run of the lane, unless decided; returns who does."""
    decided: str = run.decisions.setdefault("ender", who)
    return decided


def end(run: Run, stint: Stint, now: int, cpu: int, cap: int, past: Past) -> bool:
    """End a run of the lane whose one chunk is done, on its helper's thread.

    From then on only its owner has to do with it, and what it held is dropped. A run with an undo
    is settled: a cancel may still come, and make an ordinary run of it.

    Args:
        run: The run.
        stint: The helper's.
        now: When the chunk ended.
        cpu: CPU time of the chunk, in ns.
        cap: The most threads that the run could have had, were it longer.
        past: Where it is remembered for a while that it ended.

    Returns:
        False where turns have to end it: it was cancelled, or has become theirs.
    """
    if run.bound.value is not None:
        try:
            run.value = run.bound.value()
        except BaseException:  # turns ask again, and know what to do
            return False
    decided = run.decisions
    if run.hold:
        if "end" in decided or decided.setdefault("ender", HELPER) is not HELPER:
            return False
    elif (
        decided.setdefault("end", SUCCESS) is not SUCCESS
        or decided.setdefault("ender", HELPER) is not HELPER
    ):
        return False
    _end(run, stint, now, cpu, cap, past)
    run.drop()
    return True


def end_struck(run: Run, helper: Helper, now: int, cap: int, past: Past) -> bool:
    """End a run of the lane, in a turn, at whose end an exception struck this helper.

    Returns:
        False where the helper had not come to end it.
    """
    if run.decisions.get("ender") is not HELPER or run.never_starts:
        return False
    if run.phase is WORK:
        _end(run, run.stints.get(helper), now, 0, cap, past)
    return True


def _end(run: Run, stint: Stint | None, now: int, cpu: int, cap: int, past: Past) -> None:
    """End the run, or go on to do so after an exception; then the stint may be gone already."""
    if run.report is None:
        assert stint is not None
        threads = min(run.limit, cap)
        run.report = record.report_of_one_chunk(run, stint, run.value, now, cpu, threads)
    if not run.hold:
        if run.heard:
            run.news.clear()  # of what an exception struck half-way
            tell_of_begin(run, min(run.limit, cap))
            run.tell_of_success()
        past.append(record.ended_in_lane(run, now, now))  # first: who finds it over finds that
        run.let_go()
        run.phase = DONE
    elif stint is not None:
        stint.live = False
        run.phase = SETTLED
