# SPDX-License-Identifier: MIT
# What turns do after exceptions: one in a turn, and those that ended an owner's call too early.
#
# An exception may strike a turn in any line: memory was short. After `recover` the run that the
# turn was about is over, as are those that it left half-way, and whoever waited for them is woken;
# no thread serves a run that is over; all that is counted beside runs and stints agrees with them
# again. That is why each count in `State` can be derived from its runs, stints and helpers, and is
# made anew in `rebuild`. And after `find_unattended` no run goes on whose owner is gone.
"""Recovery after exceptions."""

from __future__ import annotations

import weakref
from collections import deque
from time import perf_counter_ns

from aioktask.engine.scheduling.waits import Waits
from aioktask.engine.state.admission import do_not_begin
from aioktask.engine.state.callers import caller_left, hand_over
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.ending import cancel, committed
from aioktask.engine.state.run import SETTLED, SUCCESS, Run
from aioktask.engine.state.workers import Caller

# Of how many runs one look finds out whether their owner is still there.
ATTENDANCE_LOOKS = 256

# And how many that settled in the lane, where thousands may come in the time between two looks.
SETTLED_LOOKS = 8192


def recover(state: State, run: Run | None, error: BaseException) -> None:
    """Go on after an exception that struck in the middle of a change, which was about this run.

    The run ends by the exception, since how much of it is done is not known any more. All that is
    counted beside runs and stints is counted anew.
    """
    # Another one too, if a claim in the same turn left it half-way.
    half_way = [each for each in state.runs if each.version & 1 and each is not run]
    if run is not None and run.begun:
        half_way.append(run)
    elif run is not None and not run.over:
        do_not_begin(state, run, error)
    for each in half_way:
        if not each.over:
            _break_down(state, each, error)
    for stint in list(state.serving):
        caller = stint.thread
        has_none = stint.stretch_start >= stint.stretch_stop
        guest = stint.run.growth is not None and isinstance(caller, Caller)  # needs none
        if stint.run.over or not stint.live or (has_none and not guest):
            stint.live = False  # it may be live where it was struck before it had a stretch
            del state.serving[stint]
            if isinstance(caller, Caller):
                caller.serving = caller.stint = None
                if not (caller.quits or stint.run.over):
                    stint.run.caller = caller
        elif isinstance(caller, Caller) and caller.serving is not stint:
            hand_over(state, stint)
    rebuild(state)
    if run is not None and run in state.runs:
        state.end(run)
    elif run is not None and run.begun:  # struck just after it was taken out
        state.forget(run)


def _break_down(state: State, run: Run, error: BaseException) -> None:
    """End a run that a turn left half-way, whoever serves it."""
    for stint in [each for each in state.serving if each.run is run]:
        stint.live = False
        del state.serving[stint]
        if isinstance(stint.thread, Caller):
            stint.thread.serving = stint.thread.stint = None
            state.out.parkings.append(stint.thread.parking)
    run.break_down(error)


def rebuild(state: State) -> None:
    """Count anew what is counted outside of runs and stints."""
    state.idle = deque(helper for helper in state.idle if helper.idle)
    for helper in state.helpers:
        stint = helper.stint
        if stint is None or (helper.called and stint not in state.serving):
            helper.idle = helper in state.idle
            state.rest(helper)
        elif helper.called:  # and perhaps not woken yet
            state.out.parkings.append(helper.parking)
    state.out.starts = [helper for helper in state.starting if not helper.asked_for]
    state.blocking = {stint: None for stint in state.blocking if stint in state.serving}
    state.count_blocked()
    entries = [run.entry for run in state.runs]
    waiting = [
        (wait, run)
        for run in state.runs
        for wait in (*run.waiters.values(), *run.left_by.values())
        if wait.stint is not None and wait.run is not None and wait.run.begun and not wait.run.over
    ]
    state.growing = {run: None for run in state.runs if run.growth is not None}
    for run in state.growing:
        run.guests = sum(
            each.run is run and isinstance(each.thread, Caller) for each in state.serving
        )
    state.waits, state.waiting = Waits(), {}
    for run in state.runs:
        run.entry.owed = 0
    for wait, run in waiting:
        assert wait.stint is not None
        assert wait.run is not None
        run.entry.owed += 1
        state.waiting[wait.stint] = state.waiting.get(wait.stint, 0) + 1
        if wait.detects:
            state.waits.add(wait.run, run)
    state.memory_runs = {run: None for run in state.runs if run.entry.memory}
    state.scheduler.rebuild(entries, [(stint.run.entry, stint.seat) for stint in state.serving])
    state.count_waiting_for_memory()
    state.loans.rebuild(
        entries,
        [(run.entry, waiter.nice) for run in state.runs for waiter in run.waiters],
        [(wait.run.entry, run.entry) for wait, run in waiting if wait.run is not None],
    )
    for run in list(state.runs):
        if run.over:
            state.scheduler.set_idle(run.entry)
            state.end(run)
        else:
            state.update(run)
    state.signals.change()
    state.summon(perf_counter_ns())


def find_unattended(state: State, run: None) -> None:
    """End the runs whose owner is gone, and the stretches of callers that are gone.

    Their calls ended early, since exceptions struck faster than they could act. A call may have
    cancelled its run before.
    """
    # Weakly, or each run were referred to from here until its turn in the round, also when it is
    # over, and for good where no look follows.
    unasked = state.unasked
    if not unasked:
        unasked.extend(map(weakref.ref, state.runs))
    for _ in range(min(len(unasked), ATTENDANCE_LOOKS)):
        each = unasked.popleft()()
        if each is None:
            continue
        if each.cancel_asked and not (each.cancelled or each.over):
            cancel(state, each)  # the thread that cancelled was struck before it could post that
        if each.over or each.attended is None:
            continue
        if each.group.leavers and each.phase is SETTLED and each.decided is SUCCESS:
            # Its owner is about to say so, or a signal handler in the middle of that waits for it.
            committed(state, each)
            continue
        if each.attended.locked():
            continue
        if each.cancel():
            cancel(state, each)
        elif each.phase is SETTLED:
            committed(state, each)
    settled = state.lane.settled
    for _ in range(min(len(settled), SETTLED_LOOKS)):
        each = settled[0]  # it stays there, for snapshots to find, while this looks at it
        assert each.attended is not None
        if not each.cancel_asked and each.attended.locked():
            settled.rotate(-1)
            continue
        if each.cancel():  # or it was cancelled while it settled, so that a turn left it alone
            cancel(state, each)
        elif each.terms is not None:  # as in `Run.committed`
            each.terms.ended(each, perf_counter_ns())
        settled.popleft()
    for stint in list(state.serving):
        caller = stint.thread
        if isinstance(caller, Caller) and not caller.present.locked():
            caller_left(state, stint.run, caller, None)
