# SPDX-License-Identifier: MIT
# Snapshots that another thread takes in the middle of a turn: the job is in each of them
# once, as one that is under way or one that is over, and never goes back.

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from types import SimpleNamespace
from typing import Any

import pytest

from aioktask import Job, JobCancelled, Snapshot
from aioktask.engine.api import snapshots, why_waiting
from aioktask.engine.api.snapshots import take_snapshot
from aioktask.engine.machine.topology import read_topology
from aioktask.engine.priority import thread_nice
from aioktask.engine.state import (
    admission,
    dispatch,
    ending,
    lane_turns,
    one_chunk,
    recovery,
    short,
)
from aioktask.engine.state import run as run_module
from aioktask.engine.state.admission import admit
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.run import Run
from aioktask.engine.state.workers import ThreadWaiter
from aioktask.engine.threads import pool as pool_module
from aioktask.engine.threads.pool import Pool
from aioktask.engine.tunables import Tunables
from tests.engine.state.turns import a_run, a_state, idle_helper, outbox_of
from tests.support.meanwhile import Scene, play_at_each_bytecode, play_at_each_line


@pytest.fixture(autouse=True)
def _no_jobs_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that other tests' carriers remember are told before jobs of the states' own clocks."""
    monkeypatch.setattr(snapshots, "jobs_elsewhere", lambda pause: ((), []))


def nothing(start: int, stop: int) -> None:
    """A job's function, or its undo."""


def where(found: Snapshot, run: Run) -> str:
    """Whether the job is under way or over, in a snapshot in which it is once."""
    (place,) = [
        place
        for place, jobs in (("under way", found.jobs), ("over", found.ended))
        for each in jobs
        if each.number == run.number
    ]
    return place


class Looks:
    """Who takes a snapshot meanwhile, and sees to it that the job does not go back."""

    def __init__(self, pool: Any, run: Run) -> None:
        self._pool, self._run = pool, run
        self._seen = "under way"

    def __call__(self) -> None:
        before, self._seen = self._seen, where(take_snapshot(self._pool), self._run)
        assert (before, self._seen) != ("over", "under way")


def without_threads(monkeypatch: pytest.MonkeyPatch) -> Pool:
    """A pool that starts no thread: the test takes its turns."""
    pool = Pool(TOPOLOGY, Tunables(max_threads=1, share="off"))
    monkeypatch.setattr(pool.keeper, "wake", lambda: None)
    monkeypatch.setattr(pool.keeper, "soon", lambda errand: None)
    return pool


def around(state: State) -> Any:
    """As much of a pool as a snapshot reads, around a state without threads."""
    pool = Pool(TOPOLOGY, Tunables(max_threads=1, share="off"))
    return SimpleNamespace(
        state=state,
        inbox=deque(),
        adapter=pool.adapter,
        chunks=pool.chunks,
        loops=pool.loops,
    )


TOPOLOGY = read_topology()

MODULES = (admission, dispatch, ending, pool_module, recovery, run_module, short)
LANE_MODULES = (lane_turns, one_chunk, recovery, sys.modules[__name__])


@pytest.mark.parametrize("options", [{}, {"undo": nothing}], ids=["plain", "with an undo"])
def test_a_job_that_a_turn_takes_in_and_ends_is_found_once(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    def begin() -> Scene:
        pool = without_threads(monkeypatch)
        run = a_run(Job(nothing, 4, chunk=2, **options), pool.state.root)
        pool.submit(run)

        def take_in_and_end() -> None:
            pool.turn()
            assert run in pool.state.runs
            pool.cancel(run)
            pool.turn()
            assert run.over

        looks = Looks(pool, run)
        return Scene(take_in_and_end, looks, looks)

    play_at_each_line(begin, *MODULES)


def test_a_job_whose_result_its_owner_takes_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin() -> Scene:
        pool = without_threads(monkeypatch)
        job = Job(nothing, 0, undo=nothing)
        run = Run(job, pool.state.root, nice=0, context=copy_context(), owned=True)
        assert run.attended is not None
        run.attended.acquire()
        pool.submit(run, waiter=ThreadWaiter(0))

        def settle_and_commit() -> None:
            pool.turn()
            assert run.settled
            assert pool.commit(run)
            pool.turn()
            assert run.over

        looks = Looks(pool, run)
        return Scene(settle_and_commit, looks, looks)

    play_at_each_line(begin, *MODULES)


def opened(job: Job[Any], settle: bool = False) -> tuple[Any, Run]:
    """A state whose lane is open, for one helper, and a job that waits there."""
    state = a_state(1)
    helper = idle_helper(state, thread_nice(0, state.base_nice, gil=state.gil))
    pool = around(state)
    state.lane.expect(0)
    lane_turns.settle_lane(state, pool.inbox)
    assert state.lane.open
    outbox_of(state)
    run = Run(job, state.root, nice=0, context=copy_context(), owned=True)
    assert run.attended is not None
    run.attended.acquire()
    run.lane_waiter = ThreadWaiter(0)
    state.lane.waiting.append(run)
    if settle:
        claim(pool, run)
        helper.express = run
        state.lane.waiting.remove(run)
    return pool, run


def claim(pool: Any, run: Run) -> None:
    """What the helper of the lane does before it walks the job."""
    (helper,) = pool.state.helpers
    assert run.decide_entrance(helper) is helper
    one_chunk.enter(run, run.stint_of(helper), run.only_chunk, 1)
    assert run.may_start()


def close(pool: Any) -> None:
    """The beginning of a turn."""
    state = pool.state
    lane_turns.close_lane(state, 0)
    for helper in list(state.lane.members):
        lane_turns.leave_lane(state, helper, 0)
    state.lane.members.clear()


def leave_to_inbox(pool: Any, run: Run) -> None:
    """Turns that find the lane closed, and take in what waited there."""
    close(pool)
    pool.state.lane.expected = False
    lane_turns.settle_lane(pool.state, pool.inbox)
    while pool.inbox:
        command = pool.inbox[0]
        pool.state.out.dropped.append(command)
        pool.inbox.popleft()
        command[0](pool.state, *command[1:])
    assert run in pool.state.runs


def end_in_lane(pool: Any, run: Run) -> None:
    """What the helper does that ends the job."""
    (helper,) = pool.state.helpers
    assert one_chunk.end(run, run.stints[helper], 2, 1, 1, pool.state.past)
    if run.hold:
        pool.state.lane.settled.append(run)
    helper.express = None


def end_and_commit(pool: Any, run: Run) -> None:
    end_in_lane(pool, run)
    assert Pool.commit(pool, run)
    recovery.find_unattended(pool.state, None)


def end_and_look_for_owner(pool: Any, run: Run) -> None:
    """The owner is there, so the run stays where it is."""
    end_in_lane(pool, run)
    recovery.find_unattended(pool.state, None)
    assert run in pool.state.lane.settled


def end_and_cancel(pool: Any, run: Run) -> None:
    end_in_lane(pool, run)
    close(pool)
    assert run.cancel()
    ending.cancel(pool.state, run)
    assert run in pool.state.runs
    recovery.find_unattended(pool.state, None)


def come_back_late(pool: Any, run: Run) -> None:
    """A helper whose job a turn makes an ordinary one as it comes back."""
    (helper,) = pool.state.helpers
    lane_turns.adopt_late(pool.state, helper, 3)
    assert run in pool.state.runs


@pytest.mark.parametrize(
    ("act", "claimed", "undo"),
    [
        (leave_to_inbox, False, False),
        (end_in_lane, True, False),
        (end_and_commit, True, True),
        (end_and_look_for_owner, True, True),
        (end_and_cancel, True, True),
        (come_back_late, True, False),
    ],
)
def test_a_job_of_the_lane_is_found_once(
    act: Callable[[Any, Run], None], claimed: bool, undo: bool
) -> None:
    def begin() -> Scene:
        job = Job(nothing, 1, chunk=1, undo=nothing if undo else None)
        pool, run = opened(job, settle=claimed)
        looks = Looks(pool, run)
        return Scene(lambda: act(pool, run), looks, looks)

    play_at_each_bytecode(begin, *LANE_MODULES)


def test_a_job_that_a_turn_is_moving_while_a_snapshot_is_taken_is_found_once() -> None:
    """It is in no queue for a moment: in the first play before the snapshot, in the second from
    the middle of it on."""

    def leaves_the_lane() -> Scene:
        pool, run, command = on_its_way()
        pool.state.out.dropped.append(run)  # it was taken out of the lane

        def end_turn() -> None:
            pool.inbox.appendleft(command)
            outbox_of(pool.state)

        return Scene(lambda: where(take_snapshot(pool), run), end_turn)

    def is_taken_in() -> Scene:
        pool, run, command = on_its_way()
        pool.inbox.append(command)

        def take_out() -> None:
            pool.state.out.dropped.append(command)
            pool.inbox.popleft()

        return Scene(lambda: where(take_snapshot(pool), run), take_out)

    play_at_each_bytecode(leaves_the_lane, snapshots, why_waiting)
    play_at_each_bytecode(is_taken_in, snapshots, why_waiting)


def on_its_way() -> tuple[Any, Run, tuple[Any, ...]]:
    """A job that nothing holds yet, and the command that has it taken in."""
    pool = around(a_state(1))
    run = a_run(Job(nothing, 4), pool.state.root)
    return pool, run, (admit, run, None, None, False, False)


def test_a_job_that_was_refused_is_found_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin() -> Scene:
        pool = without_threads(monkeypatch)
        group = a_run(Job(nothing, 1)).group
        group.closed = True
        run = a_run(Job(nothing, 4), group)

        def refuse() -> None:
            with contextlib.suppress(RuntimeError):
                pool.submit(run)
            pool.turn()
            assert run.over

        def look() -> None:
            found = take_snapshot(pool)
            assert run.number not in {each.number for each in found.ended}
            if run.refused:
                assert not found.jobs

        return Scene(refuse, look, look)

    play_at_each_line(begin, *MODULES)


def test_an_admitted_job_whose_cancel_came_first_is_over_once() -> None:
    state = a_state(1)
    run = a_run(Job(nothing, 4), state.root)
    assert run.cancel()
    ending.cancel(state, run)
    with contextlib.suppress(JobCancelled):
        admit(state, run, None, None, False, False)
    assert [items[0] for items in state.past] == [run.number]
