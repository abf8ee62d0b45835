# SPDX-License-Identifier: MIT
# Runs whose range grows: how turns follow its end, how a calling thread leaves, and what keeps one
# long unit from holding up others.
#
# Such a run has nothing to claim from time to time, and then stands in no queue; each time that
# units were added it comes back, at the end of the line if it used its share. It is over when it
# was closed and all that was claimed is done, or by a cancel. A calling thread that takes part
# takes items itself, and no units: it counts as serving the run, beyond every cap, from the turn
# that takes the run in until it goes, so that what it waits for in an item is known to wait for.
"""Runs that grow."""

from __future__ import annotations

from time import perf_counter_ns

from aioktask.engine.events import EventKind
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.run import Run
from aioktask.engine.state.workers import Caller

# At most so often a growing run that has no helper has the walks of other runs end: their stretches
# would get short where many streams get their items one by one.
INTERRUPT_NS = 1_000_000

# An item holds its stream up where it lasts so much longer than others did.
STALLED_NS = 1_000_000_000


def follow(state: State, run: Run) -> None:
    """Have the run's range end where its `Growth` says, and helpers come for what was added."""
    if not (run.begun and run.working):
        return
    run.follow_growth()
    if not run.claimable:
        state.update(run)
        return
    state.scheduler.set_ready_again(run.entry)
    now = perf_counter_ns()
    state.summon(now)
    if run.entry.threads or not run.claimable:
        return
    if now - state.interrupted_at > INTERRUPT_NS:  # else at the end of a slice
        state.interrupted_at = now
        state.signals.change()


def share_out(state: State, run: None) -> None:
    """Have helpers come for units that nobody posted, and for those that threads hold and do not
    come to; and tell what lasts."""
    now = perf_counter_ns()
    for each in list(state.growing):
        if each.working and state.free_more(each, now):
            state.scheduler.set_ready_again(each.entry)
        _tell_of_head(state, each, now)
    state.summon(now)


def _tell_of_head(state: State, run: Run, now: int) -> None:
    """Tell, once, that an item holds up the stream whose consumer waits for it."""
    growth = run.growth
    if growth is None or not run.working:
        return
    head, waited = growth.head, growth.head_lasts(now)
    if waited - growth.pacing.unit_ns > STALLED_NS and head != growth.told:
        growth.told = head
        run.tell(EventKind.STALLED, item=head, waited=waited / 1e9)
        state.out.tell(run)


def caller_goes(state: State, run: Run, caller: Caller) -> None:
    """Have a calling thread serve the run no more; its time counts for nobody's share."""
    stint = run.stints.get(caller)
    if stint is not None and stint in state.serving:
        state.let_guest_go(stint)
