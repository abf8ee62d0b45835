# SPDX-License-Identifier: MIT
# The protocol of posting, of turns and of parking: the real code, a line at a time, in any order.
#
# Small plays, each of a few threads. Every one of them is run with one preemption at each of its
# lines, and with any preemptions that hypothesis finds. When nobody can go on, nothing may be left
# to do; the keeper's look around every 0.1 s does not happen, since nothing may need it.

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aioktask.engine.state import admission, ending
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.group import Leaver, RunGroup
from aioktask.engine.state.run import Run
from aioktask.engine.state.workers import ThreadWaiter
from aioktask.errors import JobCancelled
from aioktask.job import Report
from tests.engine.threads.stepping import ALL, Actor, Play, Stage, staged
from tests.support.lines import AT_LINES

# Puts the threads of a play on the stage; what it returns is asserted when nobody can go on.
Plot = Callable[[Stage], Callable[[], None]]


def assert_at_rest(stage: Stage) -> None:
    """Nothing waits to be done: no command, no job, no thread that is counted somewhere."""
    pool, state = stage.pool, stage.pool.state
    # The two that may wait for the next turn, since nobody waits for them.
    late = (ending.committed, admission.admit)
    assert all(command[0] in late for command in pool.inbox), pool.inbox
    stage.spawn(lambda: pool.post(lambda state, run: None, None), "last")
    stage.run_on()
    assert not pool.inbox
    assert not state.runs
    assert not state.serving
    assert state.scheduler.running == 0
    assert not state.starting
    assert {*state.idle, *state.lane.members} == set(state.helpers)
    assert not state.lane.waiting
    assert not any(each.express for each in state.helpers)
    assert not pool.lock.locked()


def assert_ended(play: Play) -> None:
    """It ended in one way, which is the one that was told to all."""
    run, outcome = play.run, play.outcome
    if not play.accepted:
        assert play.accepted is False
        assert sum(play.done) == 0
        return
    assert run.ended
    assert max(play.done) <= 1
    if play.in_time:
        assert isinstance(outcome, JobCancelled)
        assert play.undone == (play.done if play.has_undo else [0] * len(play.done))
    elif isinstance(outcome, Report):
        assert play.done == [1] * len(play.done)
        assert not any(play.undone)
    else:
        assert type(outcome) is ValueError
        assert str(outcome) == "planted"


# The plays.


def two_jobs(stage: Stage) -> Callable[[], None]:
    plays = [Play(stage), Play(stage, undo=True)]
    for each in plays:
        stage.spawn(each.own, "owner")
    return lambda: [assert_ended(each) for each in plays] and None


SUBMITTED, BEGUN, ALL_DONE = "submitted", "begun", "all done"


def cancelled(when: str, *, fails: bool = False, undo: bool = False) -> Plot:
    """A job, and a thread that cancels it as soon as this is so."""

    def plot(stage: Stage) -> Callable[[], None]:
        play = Play(stage, fails=fails, undo=undo)
        run = play.run

        def is_so() -> bool:
            if when is SUBMITTED:
                return play.accepted is not None
            return run.ended or (run.settled if when is ALL_DONE else any(play.done))

        def cancel() -> None:
            stage.wait_until(is_so)
            play.cancel()

        stage.spawn(cancel, "canceller")
        stage.spawn(play.own, "owner")

        def ended() -> None:
            assert_ended(play)
            assert play.in_time is not None

        return ended

    return plot


def left(stage: Stage) -> Callable[[], None]:
    """A coordinator that is left beside two threads that submit, one of which leaves it."""
    group = RunGroup()
    mine, after, other = (Play(stage, group=group) for _ in range(3))
    waiter = ThreadWaiter(0)
    leaver = Leaver(waiter, None, detects=False)

    def leave() -> None:
        mine.submit()
        stage.pool.leave(group, leaver, cancels=False)
        while not leaver.gone:
            waiter.parking.wait()
        after.submit()

    stage.spawn(leave, "leaver")
    stage.spawn(other.own, "owner")

    def ended() -> None:
        assert leaver.gone
        assert not group.runs
        assert mine.accepted
        assert mine.done == [1] * len(mine.done), "what was accepted before is not refused later"
        assert_ended(other)
        assert after.accepted is False
        assert sum(after.done) == 0
        assert after.run.refused

    return ended


def in_order(stage: Stage) -> Callable[[], None]:
    """Threads that post several commands each; one of the commands posts in its turn."""
    heard: list[tuple[int, int]] = []

    def note(state: State, run: Run | None, thread: int, number: int) -> None:
        heard.append((thread, number))
        if (thread, number) == (0, 0):  # a finalizer that runs in the turn, say
            stage.pool.post(note, None, 2, 0)
            stage.pool.post(note, None, 2, 1)

    def post(thread: int) -> None:
        for number in range(3):
            stage.pool.post(note, None, thread, number)

    stage.spawn(lambda: post(0), "poster")
    stage.spawn(lambda: post(1), "poster")

    def ended() -> None:
        for thread, count in ((0, 3), (1, 3), (2, 2)):
            numbers = [number for which, number in heard if which == thread]
            assert numbers == list(range(count)), "each once, and in the order of its thread"

    return ended


def two_posts(stage: Stage) -> Callable[[], None]:
    """Two threads that post a command each to a keeper that is there."""
    heard: list[int] = []
    stage.spawn(lambda: stage.pool.post(lambda state, run: None, None), "first")
    stage.run_on()

    def note(state: State, run: Run | None, thread: int) -> None:
        heard.append(thread)

    for thread in range(2):
        stage.spawn(lambda thread=thread: stage.pool.post(note, None, thread), "poster")  # type: ignore[misc]

    def ended() -> None:
        assert sorted(heard) == [0, 1]

    return ended


def waited_for(chunk: int) -> Plot:
    """A job whose first or second chunk waits, by means of its own, for what another job does."""

    def plot(stage: Stage) -> Callable[[], None]:
        second = Play(stage)

        def wait(start: int) -> None:
            if start == chunk:
                stage.wait_until(lambda: any(second.done))

        first = Play(stage, max_threads=1, before=wait)

        def own_second() -> None:
            stage.wait_until(lambda: bool(first.done[0] if chunk else stage.pool.state.serving))
            second.own()

        stage.spawn(own_second, "owner")
        stage.spawn(first.own, "owner")

        def ended() -> None:
            assert_ended(first)
            assert_ended(second)

        return ended

    return plot


def after_a_rest(stage: Stage) -> Callable[[], None]:
    """A job that comes when the helpers of another one are about to end."""
    first, second = Play(stage), Play(stage)

    def own_both() -> None:
        first.own()
        second.own()

    stage.spawn(own_both, "owner")

    def ended() -> None:
        assert_ended(first)
        assert_ended(second)

    return ended


# Jobs of one chunk, which pass the lane once one of them has opened it.


def opened(stage: Stage, helpers: int = 2) -> None:
    """Have the lane be open, with so many members."""
    plays = [Play(stage, 1, before=lambda _: meet()) for _ in range(helpers)]
    met = [0]

    def meet() -> None:
        met[0] += 1
        stage.wait_until(lambda: met[0] >= helpers)

    for each in plays:
        stage.spawn(each.own, "opener")
    stage.run_on()
    last = Play(stage, 1)
    stage.spawn(last.own, "opener")
    stage.run_on()
    for each in (*plays, last):
        assert_ended(each)
    assert len(stage.pool.state.lane.members) == helpers


def lane(stage: Stage, after: int = 0) -> Callable[[], None]:
    """Three threads that submit jobs to the lane."""
    opened(stage)
    threads = [[Play(stage, 1) for _ in range(2)] for _ in range(3)]

    def own(plays: list[Play]) -> None:
        for each in plays:
            each.own()

    for plays in threads:
        stage.spawn(partial(own, plays), "owner")
    return lambda: [assert_ended(each) for plays in threads for each in plays] and None


def lane_beside(**options: object) -> Plot:
    """A job that passes the lane, while another one comes that cannot, or is cancelled, or both."""

    def plot(stage: Stage) -> Callable[[], None]:
        opened(stage)
        undo = bool(options.get("undo"))
        play = Play(stage, 1, fails=bool(options.get("fails")), undo=undo)
        other = Play(stage, 3 if options.get("long", True) else 1)
        when = options.get("cancelled")

        def cancel() -> None:
            stage.wait_until(lambda: play.accepted is not None)
            if when is ALL_DONE:
                stage.wait_until(lambda: play.run.settled or play.run.ended)
            play.cancel()

        if options.get("cancelled"):
            stage.spawn(cancel, "canceller")
        stage.spawn(play.own, "owner")
        stage.spawn(other.own, "owner")

        def ended() -> None:
            assert_ended(play)
            assert_ended(other)

        return ended

    return plot


def lane_waited_for(stage: Stage) -> Callable[[], None]:
    """Jobs in the lane, each of whose chunks waits until the next one's has begun."""
    opened(stage)
    begun = [False, False]

    def wait(which: int) -> Callable[[int], None]:
        def before(_: int) -> None:
            begun[which] = True
            stage.wait_until(lambda: all(begun))

        return before

    plays = [Play(stage, 1, before=wait(which)) for which in range(2)]
    for each in plays:
        stage.spawn(each.own, "owner")
    return lambda: [assert_ended(each) for each in plays] and None


def lane_left(stage: Stage) -> Callable[[], None]:
    """A coordinator whose jobs pass the lane, and that is left meanwhile."""
    opened(stage)
    group = RunGroup()
    mine, after, other = (Play(stage, 1, group=group) for _ in range(3))
    waiter = ThreadWaiter(0)
    leaver = Leaver(waiter, None, detects=False)

    def leave() -> None:
        mine.submit(ThreadWaiter(0))
        stage.pool.leave(group, leaver, cancels=False)
        while not leaver.gone:
            waiter.parking.wait()
        assert mine.done == [1], "who leaves has waited for it"
        after.submit(ThreadWaiter(0))

    stage.spawn(leave, "leaver")
    stage.spawn(other.own, "owner")

    def ended() -> None:
        assert leaver.gone
        assert mine.accepted
        assert_ended(other)
        assert after.accepted is False
        assert sum(after.done) == 0

    return ended


PLAYS: dict[str, Plot] = {
    "lane": lane,
    "lane beside a job": lane_beside(),
    "lane, cancelled": lane_beside(cancelled=SUBMITTED),
    "lane, cancelled and failing": lane_beside(cancelled=SUBMITTED, fails=True),
    "lane with undo": lane_beside(undo=True),
    "lane with undo, cancelled": lane_beside(undo=True, cancelled=SUBMITTED, long=False),
    "lane with undo, cancelled when done": lane_beside(undo=True, cancelled=ALL_DONE, long=False),
    "lane with undo, failing": lane_beside(undo=True, fails=True),
    "lane, waited for": lane_waited_for,
    "lane, left": lane_left,
    "two jobs": two_jobs,
    "cancelled": cancelled(SUBMITTED),
    "cancelled with undo": cancelled(BEGUN, undo=True),
    "cancelled when all is done": cancelled(ALL_DONE, undo=True),
    "cancelled and failing": cancelled(BEGUN, fails=True, undo=True),
    "left": left,
    "in order": in_order,
    "after a rest": after_a_rest,
    "waited for by a helper that begins": waited_for(0),
    "waited for by a helper that goes on": waited_for(1),
}

PLAYED = pytest.mark.parametrize("plot", PLAYS.values(), ids=PLAYS)
WITH_GIL_OR_WITHOUT = pytest.mark.parametrize("gil", [True, False], ids=["GIL", "no GIL"])


def finish(stage: Stage, ended: Callable[[], None]) -> None:
    stage.run_on()
    stuck = [each for each in stage.actors if not each.done and each.name.split()[0] != "aioktask"]
    assert not stuck, (stuck, stage.pool)
    assert not [each.raised for each in stage.actors if each.raised is not None]
    ended()
    assert_at_rest(stage)


@PLAYED
@WITH_GIL_OR_WITHOUT
@settings(
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=max(settings().max_examples // 4, 40),
)
@given(schedule=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 40)), max_size=30))
def test_nothing_waits_for_ever_whoever_goes_on(
    plot: Plot, gil: bool, schedule: list[tuple[int, int]]
) -> None:
    """In any order of the threads' lines, and whenever the time of helpers that are idle passes."""
    with staged(gil=gil) as stage:
        ended = plot(stage)
        for who, lines in schedule:
            able: list[Actor] = [*stage.ready(), *stage.impatient()]
            if not able:
                break
            stage.step(able[who % len(able)], lines)
        finish(stage, ended)


def perform(stage: Stage, stops: tuple[int, ...]) -> bool:
    """Have each thread run until it waits, but stop whoever runs after so many lines in all.

    Who was stopped goes on when all others wait, or are stopped in their turn.

    Returns:
        Whether there was a line for each stop.
    """
    order = list(stage.actors)
    passed = 0
    left = list(stops)
    while ready := stage.ready():
        order += [each for each in stage.actors if each not in order]
        actor = next(each for each in order if each in ready)
        lines = left[0] - passed if left else ALL
        rest = stage.step(actor, lines)
        if rest < 0:
            passed = left.pop(0)
            order.remove(actor)
            order.append(actor)
        else:
            passed += lines - rest
    return not left


@AT_LINES
@PLAYED
def test_nothing_waits_for_ever_where_one_thread_stops_at_any_line(plot: Plot, step: int) -> None:
    """Each thread stops once, at each of its lines, until all others wait."""
    number = 0
    stopped = True
    while stopped:
        with staged() as stage:
            ended = plot(stage)
            stopped = perform(stage, (number,))
            finish(stage, ended)
        number += step
    assert number > 50


@AT_LINES
def test_what_two_threads_post_is_applied_where_any_two_stop_at_any_lines(step: int) -> None:
    """Two threads that post a command each; they and who takes the turn stop twice in all."""
    first = 0
    more = True
    while more:
        second = first
        stopped = True
        while stopped:
            with staged() as stage:
                ended = two_posts(stage)
                stopped = perform(stage, (first, second))
                finish(stage, ended)
            second += step
        more = second > first + step
        first += step
    assert first > 20


@WITH_GIL_OR_WITHOUT
def test_a_helper_whose_time_passes_at_any_moment_leaves_no_command_behind(gil: bool) -> None:
    """It retires while somebody submits: that thread stops at each of its lines meanwhile."""
    line = 0
    while True:
        with staged(cap=1, gil=gil) as stage:
            first, second = Play(stage), Play(stage)
            stage.spawn(first.own, "owner")
            stage.run_on()
            owner = stage.spawn(second.own, "owner")
            came_to_its_end = stage.step(owner, line) >= 0
            while (waiting := stage.impatient()) and stage.pool.state.helpers:
                stage.step(waiting[0], ALL)
            finish(stage, partial(assert_ended, second))
        if came_to_its_end:
            break
        line += 1
    assert line > 5


@pytest.mark.parametrize("gil", [True, False])
def test_helpers_that_were_in_the_lane_wake_others_before_they_work(gil: bool) -> None:
    """Or the others would come when a chunk ends, which may last."""
    with staged(cap=6, gil=gil) as stage:
        opened(stage, 6)
        inside: list[int] = []

        def meet(start: int) -> None:
            inside.append(start)
            stage.wait_until(lambda: len(inside) >= 6)

        short = [Play(stage, 1, before=meet) for _ in range(6)]
        for each in short:
            stage.spawn(each.own, "owner")
        stage.run_on()
        assert inside == [0] * 6
        assert len(stage.pool.state.lane.members) == 6
        inside.clear()
        long = Play(stage, 6, before=meet)
        stage.spawn(long.own, "owner")
        stage.run_on()
        met = len(inside)
        inside += [-1] * (6 - met)  # so that the play ends
        stage.run_on()
        for each in (*short, long):
            assert_ended(each)
        assert met == 6
