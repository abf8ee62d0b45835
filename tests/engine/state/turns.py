# SPDX-License-Identifier: MIT
# A state without threads: the test takes the turns, and each is over when it asks for the outbox.

from __future__ import annotations

from contextvars import copy_context
from typing import Any

from aioktask import Job
from aioktask.engine.priority import MOST_NICE
from aioktask.engine.state import admission
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.group import RunGroup
from aioktask.engine.state.outbox import Outbox
from aioktask.engine.state.run import Run
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.waiting import add_waiter, remove_waiter
from aioktask.engine.state.workers import Caller, Helper, ThreadWaiter, Waiter
from aioktask.engine.tunables import Tunables


def a_state(cap: int, **tunables: Any) -> State:
    return State(cap, Tunables(**tunables))


def a_run(job: Job[Any], group: RunGroup | None = None, parent: Stint | None = None) -> Run:
    """A run of the job that no turn has taken in."""
    return Run(job, group or RunGroup(), nice=job.nice, context=copy_context(), parent=parent)


def admit(
    state: State,
    run: Run,
    waiter: Waiter | None = None,
    caller: Caller | None = None,
    *,
    nested: bool = False,
) -> Run:
    """Have the state take the run in."""
    admission.admit(state, run, waiter, caller, nested, False)
    assert run in state.runs
    return run


def outbox_of(state: State) -> Outbox:
    """What was said since this was asked last."""
    out, state.out = state.out, Outbox()
    return out


def idle_helper(state: State, nice: int = 0) -> Helper:
    """A helper that was started and looked for work."""
    helper = Helper(nice)
    helper.native = 1
    state.helpers[helper] = None
    state.find_work(helper, 0)
    return helper


def stint_of(thread: Helper | Caller) -> Stint:
    """What the thread serves."""
    assert thread.stint is not None
    return thread.stint


class ChunkWaits:
    """A chunk of `waiting` that waits for `awaited`, from now until it ends."""

    def __init__(self, state: State, waiting: Run, awaited: Run, *, detects: bool = True) -> None:
        self._state = state
        self._awaited = awaited
        self._waiter = ThreadWaiter(MOST_NICE)  # which lends nothing: its chunk's job does
        stint = waiting.stint_of(self)
        stint.live = True
        add_waiter(state, awaited, self._waiter, stint, detects)
        assert self._waiter.refused is None

    def end(self) -> None:
        remove_waiter(self._state, self._awaited, self._waiter)
