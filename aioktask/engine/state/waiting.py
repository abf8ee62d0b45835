# SPDX-License-Identifier: MIT
# The waiters of runs, and what follows as long as they wait.
#
# A waiter lends the run its nice. Where it waits inside a chunk, that chunk holds a thread that
# does nothing: so the run is owed a helper beyond the caps, and its job runs at the nice of the
# waiting one. A leaver waits for each of its group's runs in the same way.
#
# Guarantees: no wait that is let in is for ever. One that would close a cycle of waits is refused
# (`deadlock`), and runs that no thread will ever serve fail (`end_unservable`). All that is counted
# here is derived from `Run.waiters` and `Run.left_by`, so `recovery.rebuild` can count it anew.
"""Waiters of runs and groups."""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING

from aioktask.engine.state.group import Leaver, RunGroup
from aioktask.engine.state.lending import helper_beneath, lend
from aioktask.engine.state.run import Run, Wait, WatchingWait
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.workers import Helper, Waiter
from aioktask.errors import DeadlockError

if TYPE_CHECKING:
    from aioktask.engine.state.dispatch import State


def add_waiter(
    state: State,
    run: Run,
    waiter: Waiter,
    stint: Stint | None,
    detects: bool,
    watches: bool = False,
) -> None:
    """Have `waiter` woken when the run is over; or at once, when it would wait for ever.

    Args:
        run: What it waits for.
        waiter: Who waits.
        stint: The chunk that it waits in, or on behalf of; that may have a helper more.
        detects: Whether the chunk itself waits, so that a cycle is a deadlock: then the waiter
            is refused.
        watches: Whether it is not told how the run ended, so that somebody else has to be.
    """
    if run.over:
        state.out.waiters.append(waiter)
        return
    if waiter in run.waiters:
        return
    if stint is not None and not stint.live:
        stint = None
    if detects and stint is not None:
        error = deadlock(state, stint.run, run)
        if error is not None:
            waiter.refused = error
            state.out.waiters.append(waiter)
            return
    kind = WatchingWait if watches else Wait
    wait = run.waiters[waiter] = kind(stint, detects=detects)
    if run.begun:  # else when it begins
        begin_waiting(state, run, waiter, wait)
        state.summon(perf_counter_ns())


def remove_waiter(state: State, run: Run, waiter: Waiter) -> None:
    """Have `waiter`, which waits no more, lend the run nothing."""
    wait = run.waiters.pop(waiter, None)
    if wait is not None and run.begun and not run.over:
        lend(state, state.loans.remove_waiter(run.entry, waiter.nice))
        end_wait(state, run, wait)


def begin_waiting(state: State, run: Run, waiter: Waiter, wait: Wait) -> None:
    """Count a waiter of a run that has begun."""
    lend(state, state.loans.add_waiter(run.entry, waiter.nice))
    _begin_wait(state, run, wait)


def begin_leaving(state: State, run: Run, leaver: Leaver) -> None:
    """Count that the leaver waits for this run of its group."""
    wait = Wait(leaver.stint, detects=leaver.detects)
    run.left_by[leaver] = wait
    _begin_wait(state, run, wait)


def end_leaving(state: State, run: Run, leaver: Leaver) -> None:
    """Count no more that the leaver waits for this run."""
    wait = run.left_by.pop(leaver, None)
    if wait is not None:
        end_wait(state, run, wait)


def let_leave(state: State, group: RunGroup) -> None:
    """Wake the group's leavers, if none of its runs is left."""
    if group.runs or not group.leavers:
        return
    for leaver in group.leavers:
        untold, group.undo_failed = group.undo_failed, {}
        leaver.undo_failed = list(untold.values())
        leaver.gone = True
        state.out.waiters.append(leaver.waiter)
    group.leavers = []


def deadlock(state: State, waiting: Run, awaited: Run) -> DeadlockError | None:
    """Why a chunk of `waiting` may not wait for `awaited`, if that would never end."""
    cycle = state.waits.chain(awaited, waiting)
    if not cycle:
        return None
    return DeadlockError([waiting.name, *(run.name for run in cycle[:-1])])


def _begin_wait(state: State, run: Run, wait: Wait) -> None:
    """Count a chunk that waits for this run, which is lent the chunk's nice, and owed a helper."""
    stint, waiting = wait.stint, wait.run
    if stint is None or waiting is None or waiting.over or not waiting.begun:
        wait.stint = None
        return
    if wait.detects:
        state.waits.add(waiting, run)
    state.waiting[stint] = state.waiting.get(stint, 0) + 1
    if state.memory_runs:
        state.count_waiting_for_memory()
    state.scheduler.owe(run.entry, 1)
    lend(state, state.loans.begin(waiting.entry, run.entry))
    if state.no_more_threads:
        end_unservable(state)


def end_wait(state: State, run: Run, wait: Wait) -> None:
    """Count a chunk no more that waited for this run."""
    stint, wait.stint, waiting = wait.stint, None, wait.run
    if stint is None or waiting is None:
        return
    if wait.detects:
        state.waits.remove(waiting, run)
    left = state.waiting.pop(stint, 1) - 1
    if left:
        state.waiting[stint] = left
    if state.memory_runs:
        state.count_waiting_for_memory()
    state.scheduler.owe(run.entry, -1)
    lend(state, state.loans.end(waiting.entry, run.entry))


def end_unservable(state: State, error: BaseException | None = None) -> None:
    """End the runs that no thread will ever serve, since no more can be had.

    Where all helpers wait for runs that no thread serves, none of them will ever come free.
    """
    if state.starting or state.idle or state.starts_again_at:
        return
    blocked = all(_blocked(helper, state.waiting) for helper in state.helpers)
    if not blocked:
        return
    for run in list(state.runs):
        if not run.claimable or run.entry.threads or run.caller is not None:
            continue
        if state.helpers and not run.entry.owed:
            continue
        wanting = RuntimeError(state.refusal)
        wanting.__cause__ = error
        run.no_helper(wanting)
        state.update(run)


def _blocked(helper: Helper, waiting: dict[Stint, int]) -> bool:
    """Whether the helper's chunk, or one that runs inside it on its thread, waits for a run."""
    stint = helper.stint
    if stint is None:
        return False
    return any(helper_beneath(each) is helper for each in waiting)
