# SPDX-License-Identifier: MIT
# The commands that end runs: a cancel, a commit, the leaving of a coordinator, the exit.
#
# How a run ends was decided before, in one step, on the thread that asked for it (`Run.decide`).
# Turns only carry that out; a run that goes on after all, since the cancel came late, is left
# alone. Commands that close a coordinator, or the process, first take in what waits in the lane.
"""The ending of runs."""

from __future__ import annotations

import weakref
from contextvars import Context
from time import perf_counter_ns

from aioktask.engine.events import Event, EventKind
from aioktask.engine.state.admission import do_not_begin
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.group import Leaver, RunGroup
from aioktask.engine.state.lane_turns import admit_waiting
from aioktask.engine.state.run import CANCEL, SETTLED, SUCCESS, Run
from aioktask.engine.state.short import take_in_settled
from aioktask.engine.state.terms import Expiry
from aioktask.engine.state.waiting import begin_leaving, deadlock, end_leaving, let_leave
from aioktask.engine.state.workers import Waiter
from aioktask.errors import DeadlockError

# How many of the jobs that are left behind are named.
MOST_NAMED = 100


def cancel(state: State, run: Run) -> None:
    """Have a cancel that came in time take effect."""
    if run.over or run.cancelled or run.error is not None:
        return
    if run.decided is not CANCEL:
        return
    if not run.begun:
        if run.never_starts:  # the cancel was posted before the run, which is not going to come
            do_not_begin(state, run)
        if not run.settled:  # the helper that walks it, if one does, will find out
            return
        take_in_settled(state, run)
    run.cancelled = True
    if not run.never_starts:  # else no thread walks it
        state.signals.change()
    state.update(run)
    state.summon(perf_counter_ns())


def expire(state: State, run: Run) -> None:
    """End a run whose time has passed, unless its end is decided already.

    In a turn no run begins meanwhile. The keeper is told when to look again, if it should. A run
    that is done in time stays so, whenever its owner comes to take the result.
    """
    terms = run.terms
    if run.over or run.settled or run.decided is not None or terms is None:
        return
    found = terms.expired(run, state.most_threads(run.group), perf_counter_ns())
    if isinstance(found, Expiry):
        run.cancel(found)
        cancel(state, run)
        state.out.tell(run)
    elif found is not None:
        terms.deadlines.add(run.number, (expire_if_there, None, weakref.ref(run)), found)
        if run.decided is not None:  # on another thread, which dropped what was there before
            terms.deadlines.drop(run.number)
        state.out.look_by = found


def expire_if_there(state: State, run: None, referred: weakref.ref[Run]) -> None:
    """`expire` for a run that may be gone: what is due later holds nothing that a job holds."""
    found = referred()
    if found is not None:
        expire(state, found)


def committed(state: State, run: Run) -> None:
    """End a settled run whose owner took the result."""
    if run.phase is SETTLED and run.decided is SUCCESS:
        run.committed()
        state.end(run)


def undo_ended(state: State, run: Run, errors: tuple[tuple[range, BaseException], ...]) -> None:
    """Take in that the run's coroutine undo is through, and bring the run forward."""
    if run.over or not run.async_undo:
        return
    run.undo_ended(errors)
    state.update(run)


def leave_group(state: State, run: None, group: RunGroup, leaver: Leaver, cancels: bool) -> None:
    """Close a group, cancel its runs if asked to, and have the leaver woken when none is left.

    Where that wait would close a cycle of waits, the leaver's waiter is refused.
    """
    admit_waiting(state)
    group.closed = group.shut = True
    if cancels:
        cancel_group(state, None, group)
    if leaver.detects and leaver.stint is not None and leaver.stint.live:
        for each in group.runs:
            error = deadlock(state, leaver.stint.run, each)
            if error is not None or each is leaver.stint.run:
                waiting = leaver.stint.run.name
                leaver.waiter.refused = error or DeadlockError([waiting])
                state.out.waiters.append(leaver.waiter)
                return
    if leaver not in group.leavers:
        group.leavers.append(leaver)
    for each in list(group.runs):
        if leaver not in each.left_by:
            begin_leaving(state, each, leaver)
    let_leave(state, group)
    state.summon(perf_counter_ns())


def give_up_leaving(state: State, run: None, group: RunGroup, leaver: Leaver) -> None:
    """Wake a leaver whose time is up, unless no run is left. It comes after `leave_group`."""
    if not leaver.gone:
        leaver.gives_up = True
        stay_in_group(state, None, group, leaver)
        state.out.waiters.append(leaver.waiter)


def tell_stuck(
    state: State,
    run: Run,
    chunk: range | None,
    seconds: float,
    thread: int,
    stack: tuple[str, ...],
) -> None:
    """A command: tell that a thread has been at one chunk for long, or a coroutine undo.

    Args:
        state: The state.
        run: What it serves.
        chunk: The chunk; None where values are combined, and for a coroutine undo.
        seconds: For how long.
        thread: The kernel's number of the helper; 0 for a calling thread, and for no thread.
        stack: Where it is in the program, the innermost call last.
    """
    if run.over:
        return
    run.tell(
        EventKind.STUCK,
        chunk=chunk,
        seconds=seconds,
        undoing=run.undoing,
        stopping=run.stopping or run.cancel_asked,
        thread=thread,
        stack=stack,
    )
    state.out.tell(run)


def tell_left_behind(state: State, run: None, group: RunGroup) -> None:
    """A command: tell of the runs that are left although their coordinator was left."""
    names = tuple(each.name for each in list(group.runs))
    if names:
        details = {"jobs": names[:MOST_NAMED], "count": len(names)}
        event = Event(
            EventKind.LEFT_BEHIND, names[0], next(iter(group.runs)).number, details, False
        )
        state.out.events.append((Context(), event))


def stay_in_group(state: State, run: None, group: RunGroup, leaver: Leaver) -> None:
    """Have the leaver, which waits no more, lend the group's runs nothing."""
    if leaver in group.leavers:
        group.leavers.remove(leaver)
        for each in group.runs:
            end_leaving(state, each, leaver)


def cancel_group(state: State, run: None, group: RunGroup) -> None:
    """Close a group and cancel its runs."""
    admit_waiting(state)
    group.closed = group.shut = True
    for each in list(group.runs):
        each.cancel()
        cancel(state, each)


def close(state: State, run: None, waiter: Waiter) -> None:
    """At the exit of the interpreter: cancel all runs; `waiter` is woken when none is left."""
    admit_waiting(state)
    state.closing = True
    state.all_over = waiter
    for each in list(state.runs):
        each.cancel()
        cancel(state, each)
    settled = state.lane.settled
    while settled:
        each = settled.popleft()
        if each.cancel():
            cancel(state, each)
    if not state.runs:
        state.out.waiters.append(waiter)
