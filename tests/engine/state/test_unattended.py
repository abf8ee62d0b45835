# SPDX-License-Identifier: MIT
# Runs whose owners are gone: each is found within a round of looks, which holds no run itself.

from __future__ import annotations

import gc
import weakref
from contextvars import copy_context

import pytest

from aioktask import Job
from aioktask.engine.state.ending import cancel
from aioktask.engine.state.recovery import ATTENDANCE_LOOKS, find_unattended
from aioktask.engine.state.run import Run
from tests.engine.state.turns import a_run, a_state, admit, outbox_of


def nothing(start: int, stop: int) -> None: ...


@pytest.mark.parametrize(
    "count", [1, ATTENDANCE_LOOKS - 1, ATTENDANCE_LOOKS, ATTENDANCE_LOOKS + 1, 600]
)
def test_every_run_whose_owner_is_gone_is_ended_in_one_round_of_looks(count: int) -> None:
    state = a_state(1)
    runs = [
        Run(Job(nothing, 10), state.root, nice=0, context=copy_context(), owned=True)
        for _ in range(count)
    ]
    for run in runs:
        admit(state, run)
    for look in range(-(-count // ATTENDANCE_LOOKS)):
        assert not all(run.cancelled for run in runs), f"before look {look}"
        find_unattended(state, None)
    assert all(run.cancelled for run in runs)


@pytest.mark.parametrize("count", [1, ATTENDANCE_LOOKS, ATTENDANCE_LOOKS + 1])
def test_a_look_for_owners_keeps_no_run_that_ends_before_the_next_one(count: int) -> None:
    state = a_state(1)
    runs = [admit(state, a_run(Job(nothing, 10), state.root)) for _ in range(count)]
    find_unattended(state, None)
    there = [weakref.ref(run) for run in runs]
    while runs:
        assert runs[-1].cancel()
        cancel(state, runs[-1])
        assert runs.pop().over
    outbox_of(state)
    gc.collect()
    assert not any(each() for each in there)
