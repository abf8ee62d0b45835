# SPDX-License-Identifier: MIT
# Turns of a pool that has no threads: the test takes them.

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path

import pytest

from aioktask import Job
from aioktask.engine.machine.monitor import Observation
from aioktask.engine.machine.quota import Quota
from aioktask.engine.machine.topology import Topology, read_topology
from aioktask.engine.priority import thread_nice
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.group import Leaver, RunGroup
from aioktask.engine.state.outbox import Source
from aioktask.engine.state.run import Run
from aioktask.engine.state.workers import Helper, ThreadWaiter
from aioktask.engine.threads import adapt, archive
from aioktask.engine.threads import pool as pool_module
from aioktask.engine.threads.archive import Reading
from aioktask.engine.threads.helper import HelperThread
from aioktask.engine.threads.pool import Pool
from aioktask.engine.tunables import NO_SHARE, Tunables
from tests.engine.state.turns import admit, idle_helper, stint_of
from tests.support.meanwhile import Scene, play_at_each_bytecode


def test_a_turn_applies_what_was_there_when_it_began() -> None:
    """A command whose application posts another one does not keep the turn, and the lock, busy."""
    pool = Pool(read_topology(), Tunables())
    applied: list[str] = []

    def post_another(state: State, run: None) -> None:
        applied.append("again")
        pool.inbox.append((post_another, None))

    pool.inbox.append((post_another, None))
    pool.inbox.append((lambda state, run: applied.append("once"), None))
    with pool.lock:
        pool.drain()
    assert applied == ["again", "once"]
    assert list(pool.inbox) == [(post_another, None)]


def test_a_helper_that_finds_a_cancelled_job_first_has_begun_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or it could be recalled while it walks, and two threads would have one stretch."""
    pool = Pool(read_topology(), Tunables(max_threads=1))
    state = pool.state
    monkeypatch.setattr(pool, "wake", lambda: None)
    monkeypatch.setattr(pool, "_have_started", lambda helper: None)
    monkeypatch.setattr(pool.adapter, "fit", lambda helper: True)
    runs = []
    for name in ("first", "cancelled", "next"):
        job = Job(lambda start, stop: None, 4, chunk=4, name=name)
        run = Run(job, state.root, nice=0, context=copy_context())
        pool.submit(run)
        runs.append(run)
    pool.turn()
    helper = next(iter(state.starting))
    thread = HelperThread(pool, helper)
    assert thread._come()
    stint = thread._begin()
    assert stint is not None
    assert stint.run is runs[0]
    assert runs[1].cancel()  # and its command is on the way
    assert not thread._come_back(stint, 4, stint.claimed_at + 1_000, [])
    following = helper.stint
    assert following is not None
    assert following.run is runs[2]
    assert not helper.called
    assert thread._begin() is following


def test_a_machine_that_was_read_long_ago_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """`max_threads` reads it, is interrupted, and meanwhile the keeper sees a newer one."""
    now = read_topology()
    old = replace(now, quota=Quota(150_000, 100_000, Path("cpu.max")))
    pool = Pool(now, Tunables())
    monkeypatch.setattr(pool, "wake", lambda: None)

    def slowly() -> Topology:
        pool.adapter.look_around()
        return old

    monkeypatch.setattr(adapt, "read_topology", slowly)
    pool.adapter.refresh()
    assert pool.adapter.topology == old
    pool.adapter.look_around()
    assert pool.adapter.topology == now


def test_a_helper_that_serves_the_background_while_the_keeper_looks_is_asked_then_or_the_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it used of the CPUs would count as others' else."""

    def begin() -> Scene:
        pool = Pool(read_topology(), Tunables(max_threads=1, share=NO_SHARE))
        state, adapter = pool.state, pool.adapter
        monkeypatch.setattr(pool, "wake", lambda: None)
        helper = idle_helper(state)
        asked: list[bool] = []

        def sample(wish: int, share: str | None, helpers: Mapping[int, bool]) -> Observation:
            asked.append(helpers[helper.native])
            return Observation(None, state.base_nice, state.may_lower, None, None)

        monkeypatch.setattr(adapter.monitor, "sample", sample)

        def serve() -> None:
            if not pool.lock.acquire(blocking=False):
                return  # no other thread takes a turn here
            job = Job(lambda start, stop: None, 1, chunk=1, nice=5)
            run = admit(state, Run(job, state.root, nice=5, context=copy_context()))
            stint = stint_of(helper)
            assert helper.in_background
            state.walked(stint, stint.stretch_stop, 1)
            state.reconsider(stint, 1)
            assert run.over
            pool.lock.release()
            served.append(None)

        served: list[None] = []

        def check() -> None:
            adapter.look_around()
            assert any(asked) == bool(served)

        return Scene(adapter.look_around, serve, check)

    play_at_each_bytecode(begin, adapt)


def test_threads_that_have_no_archive_answer_each_question_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the system has no thread for it, whoever asks answers, several at a time."""

    def begin() -> Scene:
        pool = Pool(read_topology(), Tunables())
        monkeypatch.setattr(pool, "wake", lambda: None)
        readings = [Reading(Source("/nowhere", (number,), 0)) for number in range(2)]
        pool.archive._wanted += readings

        def check() -> None:
            assert sorted(command[3] for command in pool.inbox) == [(0,), (1,)]
            assert all(each.parking.wait(0) for each in readings)

        return Scene(pool.archive._without_thread, pool.archive._without_thread, check)

    play_at_each_bytecode(begin, archive)


@pytest.mark.parametrize(
    ("error", "taken"), [(RecursionError("deep"), False), (RuntimeError("no thread"), True)]
)
def test_a_thread_at_the_end_of_its_stack_takes_no_turn_for_want_of_a_keeper(
    error: RuntimeError, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would come to the end of that in the middle: runs would be neither taken in nor over."""
    pool = Pool(read_topology(), Tunables())
    applied: list[str] = []

    def wake() -> None:
        raise error

    monkeypatch.setattr(pool.keeper, "wake", wake)
    with contextlib.nullcontext() if taken else pytest.raises(RecursionError, match="deep"):
        pool.post(lambda state, run: applied.append("here"), None)
    assert bool(applied) == taken
    assert bool(pool.inbox) != taken


def test_waiting_for_the_lock_makes_stretches_no_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the chunks took counts, not when they were claimed."""
    pool = Pool(read_topology(), Tunables(max_threads=1))
    state = pool.state
    monkeypatch.setattr(pool, "wake", lambda: None)
    monkeypatch.setattr(pool, "_have_started", lambda helper: None)
    monkeypatch.setattr(pool.adapter, "fit", lambda helper: True)
    job = Job(lambda start, stop: None, 1000, chunk=1)
    pool.submit(Run(job, state.root, nice=0, context=copy_context()))
    pool.turn()
    thread = HelperThread(pool, next(iter(state.starting)))
    assert thread._come()
    stint = thread._begin()
    assert stint is not None
    taken = [stint.stretch_stop - stint.stretch_start]
    for _ in range(4):
        position = stint.walk(pool.signals)
        now = stint.walked_at + 1000
        stint.claimed_at = now - 2_000_000  # so long it waited before it could begin to walk
        stint.slice_end = now + 1_000_000
        assert thread._come_back(stint, position, now, [])
        taken.append(stint.stretch_stop - stint.stretch_start)
    assert taken == [taken[0] * 2**times for times in range(5)]


@pytest.mark.parametrize("how", ["run", "group", "leave"])
def test_a_cancel_ends_walks_at_their_next_chunk_before_any_turn(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that would take the turn may wait for the GIL, or for a CPU, meanwhile."""
    pool = Pool(read_topology(), Tunables(max_threads=1))
    monkeypatch.setattr(pool, "wake", lambda: None)
    monkeypatch.setattr(pool, "_have_started", lambda helper: None)
    monkeypatch.setattr(pool.adapter, "fit", lambda helper: True)
    begun = []

    def fn(start: int, stop: int) -> None:
        begun.append(start)
        if start != 3:
            return
        if how == "run":
            assert pool.cancel(run)
        elif how == "group":
            pool.cancel_group(group)
        else:
            pool.leave(group, Leaver(ThreadWaiter(0), None, detects=False), cancels=True)

    group = RunGroup()
    run = Run(Job(fn, 100, chunk=1), group, nice=0, context=copy_context())
    pool.submit(run)
    pool.turn()
    helper = next(iter(pool.state.starting))
    thread = HelperThread(pool, helper)
    assert thread._come()
    stint = thread._begin()
    assert stint is not None
    stint.stretch_stop = 50  # it has a long stretch
    assert stint.walk(pool.signals) == 4
    assert begun == [0, 1, 2, 3]


# A pool whose lane is open, and whose helpers' threads are the test.


class LanePool:
    """A pool with one idle helper, a member of the lane, whose thread is the test.

    The tests may run at any nice, below which no helper is.

    Attributes:
        waiter: Of the jobs that are submitted.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pool = pool = Pool(read_topology(), Tunables(max_threads=1))
        monkeypatch.setattr(pool, "wake", lambda: None)
        monkeypatch.setattr(pool, "_have_started", lambda helper: None)
        monkeypatch.setattr(pool.adapter, "fit", lambda helper: True)
        self.waiter = ThreadWaiter(0)
        self.submit()  # no lane yet: it has a helper started
        pool.turn()
        self.helper = next(iter(pool.state.starting))
        self.thread = HelperThread(pool, self.helper)
        assert self.thread._come()
        stint = self.thread._begin()
        assert stint is not None
        self.helper.nice = thread_nice(0, pool.state.base_nice, gil=pool.state.gil)
        pool.state.lane.expect(0)
        assert not self.thread._come_back(stint, 1, stint.claimed_at + 1_000, [])
        assert self.helper.in_lane

    def submit(self) -> Run:
        job = Job(lambda start, stop: None, 1, chunk=1)
        state = self.pool.state
        run = Run(job, state.root, nice=0, context=copy_context(), owned=True)
        self.pool.submit(run, waiter=self.waiter)
        return run


@pytest.mark.parametrize("process", [0, 5, 19])
def test_a_helper_at_the_nice_of_its_process_is_a_member_of_the_lane(
    process: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapt, "process_nice", lambda: process)
    world = LanePool(monkeypatch)
    assert world.pool.state.base_nice == process
    assert world.helper.in_lane


def test_jobs_that_wait_in_the_lane_count_where_slots_are_wished_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = LanePool(monkeypatch)
    assert world.pool.adapter._wish() == 0
    world.pool.state.lane.waiting.append(world.submit())
    assert world.pool.adapter._wish() == 1


def test_a_helper_that_finds_itself_at_a_job_of_the_lane_says_that_it_was_struck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command that would have told was lost, for want of memory, with what struck."""
    world = LanePool(monkeypatch)
    run = world.submit()
    assert run.decide_entrance(world.helper) is world.helper
    world.helper.express = run
    assert world.thread._serve_lane()
    world.pool.turn()
    assert run.over
    assert "was struck" in str(run.error)
    assert world.helper.idle or world.helper.in_lane


def test_members_leave_the_lane_though_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    world = LanePool(monkeypatch)
    state = world.pool.state
    left = pool_module.leave_lane
    calls = []

    def struck(state: State, member: Helper, now: int) -> None:
        calls.append(member)
        if len(calls) == 1:
            raise MemoryError
        left(state, member, now)

    monkeypatch.setattr(pool_module, "leave_lane", struck)
    world.pool.take_turn(None, lambda: None)
    assert calls
    assert world.helper.in_lane or world.helper in state.idle
    run = world.submit()
    world.pool.turn(world.helper)
    assert run.begun or run in state.lane.waiting
