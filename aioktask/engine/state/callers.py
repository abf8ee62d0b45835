# SPDX-License-Identifier: MIT
# Threads of the program that called the sync form and take part in that run, as turns see them.
#
# A caller may serve its run whatever the caps: only the job's own limit keeps it out, the cap on
# background jobs, and the budget of memory where the job declares some. It counts as one more
# running thread, unless it is inside a chunk already.
# A turn that claims a stretch for it hands that over; the thread walks it and posts how far it
# came, or that it takes no further part. What it posts of a stretch that turns have taken back
# meanwhile does nothing.
#
# A guest takes no stretches: it serves a run that grows, and takes that run's items itself.
"""Callers that serve their runs."""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING

from aioktask.engine.scheduling.queue import IN_GROUP, IN_PROCESS, NOWHERE, Counted
from aioktask.engine.state.group import RunGroup
from aioktask.engine.state.run import Run
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.workers import Caller

if TYPE_CHECKING:
    from aioktask.engine.state.dispatch import State


def _counted(caller: Caller, group: RunGroup) -> Counted:
    """Where the thread counts as running, by the chunks that it is in."""
    if not caller.stints:
        return NOWHERE
    return IN_GROUP if any(chunk.run.group is group for chunk in caller.stints) else IN_PROCESS


def enter_caller(state: State, run: Run, caller: Caller, now: int) -> bool:
    """Let the calling thread take part, if it may and gets a stretch; whether it does."""
    if caller.quits or not run.claimable or run.entry.threads >= run.entry.limit:
        return False
    if not caller.stints and not state.scheduler.may_enter(run.entry):
        return False
    if run.entry.memory and not state.scheduler.memory_admits(run.entry):
        return False
    stint = run.stint_of(caller)
    stint.counted = _counted(caller, run.group)
    run.caller = None
    if not state.enter(stint, now):
        state.leave(stint, now, began=False)
        return False
    hand_over(state, stint)
    return True


def enter_guest(state: State, run: Run, caller: Caller) -> None:
    """Have a calling thread serve a run that grows, whose items it takes itself.

    It may be at an item already, which it begins without waiting for the turn that takes the run
    in. So it counts from that turn on, lest a cancel call the run over that came before the turn.
    """
    if run.over or run.never_starts:
        return
    stint = run.stint_of(caller)
    if stint in state.serving:
        return
    run.guests += 1
    state.follow_limit(run)
    stint.counted = IN_GROUP  # so that it takes nobody's place under a cap
    stint.seat = state.scheduler.enter(run.entry, stint.counted)
    state.serving[stint] = None
    caller.serving = stint
    run.enter(stint, perf_counter_ns())


def ask_caller(state: State, run: Run) -> None:
    """Have a calling thread that waits for more chunks take some, if it may now."""
    if run.caller is not None:
        enter_caller(state, run, run.caller, perf_counter_ns())


def hand_over(state: State, stint: Stint) -> None:
    """Give a calling thread the stretch that was claimed for it."""
    caller = stint.thread
    assert isinstance(caller, Caller)
    caller.serving = caller.stint = stint
    state.out.parkings.append(caller.parking)


def caller_walked(state: State, run: Run, stint: Stint, position: int, now: int) -> None:
    """A command: the calling thread walked its stretch up to `position`, and wants the next one."""
    if stint not in state.serving:
        return
    if state.walked(stint, position, now):
        hand_over(state, stint)
    else:
        state.reconsider(stint, now)


def caller_raised(state: State, run: Run, stint: Stint, error: BaseException, now: int) -> None:
    """A command: the function that the calling thread called raised `error`."""
    if stint not in state.serving:
        return
    state.raised(stint, error, now)
    state.reconsider(stint, now)


def caller_left(state: State, run: Run, caller: Caller, error: BaseException | None) -> None:
    """A command: the calling thread takes no further part.

    Args:
        run: What it took part in.
        caller: The thread. A stretch that it had begun ends where it stands: the chunk there is
            one that failed.
        error: Why it left, in the middle of a chunk.
    """
    caller.quits = True
    if run.caller is caller:
        run.caller = None
    stint = caller.serving
    if stint is None or stint not in state.serving:
        return
    if run.growth is not None:
        state.let_guest_go(stint)
        return
    now = perf_counter_ns()
    begun = caller.stint is None and stint.chunk_start < stint.stretch_stop
    if begun:
        if error is None:
            error = RuntimeError("the calling thread left in a chunk")
        state.raised(stint, error, now)
    else:
        stint.run.walked(stint, stint.chunk_start, now)
    caller.stint = None
    state.leave(stint, now, began=begun)
    state.summon(now)
