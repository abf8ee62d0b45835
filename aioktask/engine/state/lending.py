# SPDX-License-Identifier: MIT
# At which nice a helper serves: that of its job, or of a more urgent waiter who lends it.
#
# `scheduling/loans` counts who lends what to whom. When that changed, `lend` has it take effect: on
# a thread that serves the run already, else on the next one that comes. It guarantees that a helper
# that was called for the run, and has not begun, does not hold the loan up: it is recalled.
# Called in turns; the threads get their nice by `threads/adapt`, once the turn is over.
"""The nice of a helper."""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING

from aioktask.engine.priority import thread_nice
from aioktask.engine.scheduling.queue import BACKGROUND, LENT, Entry
from aioktask.engine.state.run import Run
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.workers import Caller, Helper

if TYPE_CHECKING:
    from aioktask.engine.state.dispatch import State


def lend(state: State, entries: list[Entry]) -> None:
    """Have the loans of these entries, which changed, take effect."""
    if not entries:
        return
    now = perf_counter_ns()
    for entry in entries:
        run = entry.run
        if run is None:
            continue
        state.out.renices += helpers_of(run)
        state.signals.change()
        if run.over:
            continue
        if entry.loan is None:
            run.loan_ends(now)
        elif entry.loan_taken:
            run.has_loan(now)
        if not entry.loan_offered:
            tell_of_loan(state, run)
            continue
        for stint in list(run.stints.values()):
            if stint.live and isinstance(stint.thread, Helper) and stint.thread.called:
                recall(state, stint.thread, now)
        for stint in run.stints.values():
            helper = helper_beneath(stint)
            if stint.live and helper is not None and can_serve_at(state, helper, run.urgency):
                stint.seat = state.scheduler.take_loan(entry, stint.seat)
                note_loan(run, now)
                if stint.thread is not helper:
                    helper.boost = run.urgency
                break
        else:
            if entry.threads and run.lent == "no":
                run.lent = "at a chunk boundary"
        tell_of_loan(state, run)
    state.summon(now)


def tell_of_loan(state: State, run: Run) -> None:
    """Take what the run has to tell, if anything."""
    if run.news:
        state.out.tell(run)


def recall(state: State, helper: Helper, now: int) -> None:
    """Take back the work of a helper that was called and has not begun it."""
    stint = helper.stint
    assert stint is not None
    stint.run.walked(stint, stint.chunk_start, now)
    state.leave(stint, now, began=False)
    state.rest(helper)


def nice_of(state: State, helper: Helper) -> int:
    """The nice that the helper's thread should have now; its present one while it is idle."""
    stint = helper.stint
    if stint is None or not state.may_set_nice:
        return helper.nice
    run = stint.run
    if run.over:
        return helper.nice
    nice = run.urgency if stint.seat.account is LENT else run.entry.nice
    if helper.boost is not None:
        nice = min(nice, helper.boost)
    return thread_nice(nice, state.base_nice, gil=state.gil)


def can_serve_at(state: State, helper: Helper, nice: int) -> bool:
    """Whether the helper's thread can have the nice that a job of this nice wants, or must do."""
    if state.no_more_threads or state.may_lower or not state.may_set_nice:
        return True
    return helper.nice <= thread_nice(nice, state.base_nice, gil=state.gil)


def serves_background(helper: Helper) -> bool:
    """Whether the helper serves a job that gives way to other processes."""
    stint = helper.stint
    return stint is not None and stint.seat.account is BACKGROUND


def urgency_offered(entry: Entry) -> int:
    """The nice at which the next thread would serve the job."""
    return entry.loan if entry.loan is not None and not entry.loan_taken else entry.nice


def helpers_of(run: Run) -> list[Helper]:
    """The helpers whose threads walk the run's chunks."""
    beneath = (helper_beneath(stint) for stint in run.stints.values() if stint.live)
    return [helper for helper in beneath if helper is not None]


def helper_beneath(stint: Stint) -> Helper | None:
    """The helper on whose thread the stint's chunks run; None for a thread of the program's own."""
    thread = stint.thread
    if isinstance(thread, Caller) and thread.stints:
        thread = thread.stints[-1].thread
    return thread if isinstance(thread, Helper) else None


def note_loan(run: Run, now: int) -> None:
    """Note that a thread has the nice of the run's waiter; the first time, how soon it got it."""
    if run.lent == "no":
        run.lent = "at once"
    run.has_loan(now)
