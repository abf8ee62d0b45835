# SPDX-License-Identifier: MIT
# Calls that block without using a CPU, each of which makes room for one helper more.
#
# Helpers are as many as the CPUs, and a call of a function that waits for a file or for DNS would
# keep one of them from jobs. The keeper looks at the threads of calls while something waits for
# helpers (`threads/call_watch`), and a turn takes in here which of them block. Only single calls
# count: how many chunks of a job may block at a time is said by its `max_threads`. A call that
# waits for a run is known to do so, and its run is owed a helper (`waiting`), so it does not count.
#
# Guarantees: `Scheduler.blocked` is the number of stints in `State.blocking`, at most the tunable
# `max_blocked`. All of them are served now: `dispatch.State.leave` takes a stint out.
"""Calls that block."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from time import perf_counter_ns
from typing import TYPE_CHECKING

from aioktask.engine.state.stint import Stint
from aioktask.engine.state.workers import Helper

if TYPE_CHECKING:
    from aioktask.engine.state.dispatch import State

# A thread, and when it began to serve the call that it is at.
Serving = tuple[int, int]


def calls_served(state: State) -> list[Serving]:
    """In a turn: the calls that threads of helpers are at, and that wait for no run."""
    return [key for key, _ in _calls(state)]


def _calls(state: State) -> Iterator[tuple[Serving, Stint]]:
    for stint in state.serving:
        thread = stint.thread
        if (
            stint.run.job.single_call
            and isinstance(thread, Helper)
            and not thread.called
            and stint not in state.waiting
        ):
            yield (thread.native, stint.entered_at), stint


def find_blocked(state: State, run: None, blocked: Collection[Serving]) -> None:
    """A command: take in which calls block, and have helpers come in their place."""
    before = state.scheduler.blocked
    state.blocking = {stint: None for key, stint in _calls(state) if key in blocked}
    state.count_blocked()
    if state.scheduler.blocked < before:
        state.signals.change()
    elif state.scheduler.blocked > before:
        state.summon(perf_counter_ns())
