# SPDX-License-Identifier: MIT
# What follows for runs where something about them changes while they run: their nice, their limit,
# what the coordinator or the process sets, what the machine and other processes leave.
#
# A thread that makes a change publishes the new value first (on the run, its group, the adapter),
# then posts one of these commands, which read it: so of many changes the last one holds, whatever
# the order of the commands. Guarantees: when the turn is over, the queues agree with what was
# published; helpers come back at their next chunk to choose anew, since the generation is another;
# and callers that the limits kept out are asked again.
"""What follows from changes."""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter_ns
from typing import Protocol

from aioktask.engine.machine.available_memory import AvailableMemory
from aioktask.engine.machine.load import CpuLoad
from aioktask.engine.priority import MOST_NICE
from aioktask.engine.scheduling.background import BackgroundShare
from aioktask.engine.scheduling.caps import Cap, threads_within
from aioktask.engine.scheduling.memory import less_reserve
from aioktask.engine.state.callers import ask_caller
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.group import RunGroup
from aioktask.engine.state.lending import helpers_of, lend
from aioktask.engine.state.run import Run
from aioktask.engine.state.settings import gives_way
from aioktask.engine.tunables import Tunables


class Wanted(Protocol):
    """What is set for the process as a whole, as it was published last."""

    tunables: Tunables
    share: int | None

    @property
    def cap(self) -> Cap:
        """The most helpers."""


def renice(state: State, run: Run) -> None:
    """Have the run go on at another nice, which it has published.

    Shares follow in this turn, threads after it or at their next chunk.
    """
    if run.over or not run.begun or run.nice == run.entry.nice:
        return
    state.scheduler.set_nice(run.entry, run.nice)
    yields = gives_way(run.nice, run.group, state.tunables)
    state.scheduler.set_gives_way(run.entry, yields)
    lend(state, state.loans.reckon(run.entry))
    state.out.renices += helpers_of(run)
    state.signals.change()
    state.summon(perf_counter_ns())


def set_run_limit(state: State, run: Run) -> None:
    """Have the run go on under another limit of threads, which it has published."""
    if run.over or not run.begun:
        return
    _move_limit(state, run)
    state.signals.change()
    state.summon(perf_counter_ns())


def set_group(state: State, run: None, group: RunGroup) -> None:
    """Have a coordinator's runs follow other tunables, which its group has published."""
    state.scheduler.set_group_cap(group, group.tunables.get("max_threads"))
    _reconsider_runs(state, group.runs)


def configure(state: State, run: None, wanted: Wanted) -> None:
    """Have all runs follow other tunables of the process; its cap follows from them.

    Helpers that were prepared by another initializer end when they have nothing in hand.
    """
    state.tunables = wanted.tunables
    state.natives += 1  # after that: a helper reads them in the other order
    state.starts_again_at = 0
    for helper in list(state.idle):
        if helper.initializer is not state.tunables.initializer:
            state.dismiss(helper)
            state.out.parkings.append(helper.parking)
    state.node_limit = wanted.tunables.max_threads_per_node
    state.count_blocked()
    set_caps(state, wanted.cap.threads, wanted.share)
    _reconsider_runs(state, state.runs)


def limit_anew(state: State, run: None) -> None:
    """Have helpers limit native libraries anew before they serve on: some were loaded."""
    state.natives += 1
    state.signals.change()


def native_threads_rest(state: State) -> bool:
    """In a turn: whether no helper works, so that the process may have its native threads back.

    A helper limits them again then before it serves.
    """
    if state.runs or state.lane.waiting:
        return False
    state.natives += 1
    return True


def follow_machine(
    state: State, run: None, node_cpus: dict[int, frozenset[int]], cap: int, share: int | None
) -> None:
    """Have all runs follow a change of the machine, or of what other processes leave of it."""
    state.node_cpus = node_cpus
    set_caps(state, cap, share)


def set_caps(state: State, cap: int, share: int | None) -> None:
    """Set the process's caps, and have all runs follow them.

    Args:
        cap: What the machine and the user give.
        share: What other processes leave of it; None for all.
    """
    state.cap = cap
    state.scheduler.cap = threads_within(cap, share)
    for run in list(state.runs):
        _move_limit(state, run)
    state.signals.change()
    state.summon(perf_counter_ns())


def _reconsider_runs(state: State, runs: Iterable[Run]) -> None:
    """Have these runs follow tunables: whether they give way, and their limits."""
    for run in list(runs):
        if run.entry.gives_way or run.entry.nice > 0:
            yields = gives_way(run.entry.nice, run.group, state.tunables)
            state.scheduler.set_gives_way(run.entry, yields)
        _move_limit(state, run)
    state.signals.change()
    state.summon(perf_counter_ns())


def _move_limit(state: State, run: Run) -> None:
    """Have the run, and the queue, follow caps or a limit that have changed."""
    run.caps_moved(state.most_threads(run.group))
    if state.follow_limit(run):
        ask_caller(state, run)


def follow_nice(state: State, run: None, base: int, may_lower: bool) -> None:
    """Follow the process's own nice, and what it may do about those of its threads."""
    if base != state.base_nice:
        state.base_nice = base
        state.out.renices += state.helpers
        state.signals.change()
    if not may_lower:
        state.may_lower_again = True
    state.may_lower = may_lower and state.may_lower_again


def memory_seen(state: State, run: None, found: AvailableMemory | None, now: int) -> None:
    """Give runs that declare memory what is left of it, if that could be read."""
    if found is None:
        state.scheduler.memory.look_failed()
    else:
        state.scheduler.look_at_memory(less_reserve(found.limits), pressed=found.pressed)
        state.memory_seen_at = now
    for each in list(state.memory_runs):
        ask_caller(state, each)
    state.summon(perf_counter_ns())


def sampled(state: State, run: None, load: CpuLoad | None, cpus: int) -> None:
    """Give background jobs what others left of the CPUs since the last sample, if it is known."""
    nices = [run.entry.nice for run in state.runs if run.entry.gives_way]
    background, scheduler = state.background, state.scheduler
    if load is None:
        state.background = background = BackgroundShare()
    else:
        background.look(load, cpus, min(nices, default=MOST_NICE))
    cap = scheduler.cap if background.threads >= cpus else background.threads
    if cap == scheduler.background_cap:
        return
    scheduler.background_cap = cap
    state.signals.change()
    for each in list(state.runs):
        ask_caller(state, each)
    state.summon(perf_counter_ns())
