# SPDX-License-Identifier: MIT
# How a run comes in: taken in with its split and with what is learned of its function, or not at
# all.
#
# `admit` is the one command for it, also for jobs that leave the lane. A run comes in once, however
# often it is posted; one that was refused, or cancelled before it came, or that cannot be cut, is
# over at once, and its waiters are woken. A job of one chunk takes the short way (`short`)
# where that leaves the same state.
#
# A run whose function may have left a lesson on disk is taken in as any other, but no chunk of it
# begins until the file was read, by a thread that turns ask for it (`threads/archive.py`), or for
# PATIENCE_NS. Such a run is one that has nothing to claim for the moment: it may be cancelled,
# awaited, reniced and left as all others.
"""The beginning of runs."""

from __future__ import annotations

from time import perf_counter_ns

from aioktask.engine.events import EventKind
from aioktask.engine.learning.lessons import Asked, Key, Lesson, key_of
from aioktask.engine.learning.pacing import pacing_of
from aioktask.engine.ranges.plan import Split, split
from aioktask.engine.state.callers import enter_caller, enter_guest
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.outbox import Source
from aioktask.engine.state.run import ADMITTED, CANCEL, FAILURE, REFUSED, Run, Wait
from aioktask.engine.state.settings import gives_way, learns, remembers
from aioktask.engine.state.short import begin_at_once
from aioktask.engine.state.waiting import begin_leaving, begin_waiting
from aioktask.engine.state.workers import Caller, Helper, Waiter

# How long a run waits for what is on disk: some times as long as a slow disk needs.
PATIENCE_NS = 100_000_000

# What was seen of the memory before the first run that asks for some holds for it so long.
SEEN_LATELY_NS = 500_000_000


def admit(
    state: State,
    run: Run,
    waiter: Waiter | None,
    caller: Caller | None,
    nested: bool,
    detects: bool,
) -> None:
    """Take a run in, unless it was refused or cancelled before.

    Args:
        run: It may have been cancelled already.
        waiter: Who waits for it from the beginning.
        caller: Who begins to serve it at once, if there is anything to claim; of a run that grows
            the guest.
        nested: Whether a chunk of the same coordinator submits it: such a run is never refused,
            since its chunk would fail while its coordinator waits for it.
        detects: Whether the chunk that the run is for waits itself.
    """
    if run.begun or run.over:
        if waiter is not None and run.over:  # it was cancelled before it came
            state.out.waiters.append(waiter)
        return
    group, helper = run.group, state.turner
    refuses = (group.shut or state.closing) and not nested
    if state.ended or refuses:
        if isinstance(run.decide_entrance(REFUSED), Helper):  # it took the run out of the lane
            return
    elif (found := run.decide_entrance(ADMITTED)) is not ADMITTED:
        if found is not REFUSED:  # a helper took it out of the lane
            return
        refuses = True
    elif (
        caller is None
        and helper is not None
        and helper.idle
        and begin_at_once(state, run, waiter, helper, perf_counter_ns())
    ):
        if waiter is not None and (group is state.root or not run.hold):
            state.lane.expect(run.nice)
        return
    if waiter is not None:
        run.waiters.setdefault(waiter, Wait(run.parent_stint, detects=detects))
    if state.ended or refuses:
        do_not_begin(state, run)
        return
    try:
        _begin_run(state, run)
    except BaseException as error:
        do_not_begin(state, run, error)
        state.out.tell(run)
        return
    if state.runs:
        state.expect_others(run.submitted_at)
    state.runs[run] = None
    if run.growth is not None:
        state.growing[run] = None
    if run.entry.memory:
        _expect_memory(state, run)
    group.runs[run] = None
    state.scheduler.add(run.entry)
    if run.growth is None:
        run.caller = caller  # which will serve it, whether or not helpers can
    for each, wait in run.waiters.items():
        begin_waiting(state, run, each, wait)
    for leaver in group.leavers:
        begin_leaving(state, run, leaver)
    if run.growth is not None and caller is not None:
        enter_guest(state, run, caller)
    run.cancelled = run.cancel_asked
    if state.advice is not None:
        run.tell(EventKind.BOUND_TO_ONE_CPU, advice=state.advice)
        state.advice = None
    if not run.claimable:
        state.update(run)
    else:
        state.scheduler.set_ready(run.entry)
        state.signals.change()
        now = perf_counter_ns()
        if caller is not None:
            enter_caller(state, run, caller, now)
        state.summon(now)
    state.out.tell(run)


def tell_refused(state: State, run: None, refused: Run) -> None:
    """A command: tell the news of a run that was refused at submit."""
    state.out.tell(refused)


def _expect_memory(state: State, run: Run) -> None:
    """Have it be known how much memory is left, now that there is a run that asks for it."""
    memory = state.scheduler.memory
    if not state.memory_runs and perf_counter_ns() - state.memory_seen_at > SEEN_LATELY_NS:
        memory.forget()
    state.memory_runs[run] = None
    state.out.looks = state.out.looks or not memory.known


def do_not_begin(state: State, run: Run, error: BaseException | None = None) -> None:
    """End a run that did not begin: by an error, or else as one that was cancelled."""
    if run.decide(CANCEL if error is None else FAILURE) is CANCEL:
        run.cancelled = True
    if error is not None and run.first_claim:  # it was in the lane, and has begun there
        run.break_down(error)
    else:
        run.do_not_begin(error)
    if run.past is not None and not run.refused:  # else it was never taken in
        state.past.append(run.past)
    state.out.waiters += run.waiters
    run.waiters = {}
    if run.lane_waiter is not None:
        state.out.waiters.append(run.lane_waiter)
        run.lane_waiter = None
    state.out.ended.append(run)


def _begin_run(state: State, run: Run) -> None:
    """Have the run begin, under the cap of the process and of its coordinator."""
    job, group = run.job, run.group
    tunables, lessons, cap = state.tunables, state.lessons, state.most_threads(group)
    wanted = learns(job, group, tunables)
    key: Key | None = None
    lesson: Lesson | None = None
    growth = run.growth
    if growth is not None:
        threads = min(run.limit, cap)
        if wanted in ("both", "threads") and growth.pacing.scaling is None:
            if remembers(job, group, tunables):
                key = (growth.code, run.name, threads)
                lesson = lessons.get(key)
            growth.pacing.learn_threads(threads, lesson)
        run.begin(Split(threads, 1, ()), growth.pacing, key, lessons)
        run.entry.gives_way = gives_way(run.nice, group, tunables)
        return
    cut = split(job, cap)
    where = wanted != "nothing" and remembers(job, group, tunables)
    if where:
        key = key_of(job, cut.threads)
        lesson = lessons.get(key)
    pacing = pacing_of(job, cut.threads, wanted, lesson)
    if not pacing.learns:
        key = None
    directory = awaits = ""
    if key is not None and isinstance(where, str):
        directory = where
        # In this order: what strikes in between leaves no run waiting for what nobody asks for.
        state.reads = True
        readings = state.out.readings
        readings.append(Source(directory, key, run.number))
        asked = lessons.ask(directory, key)
        if asked is not Asked.NOW:  # else also where it is known, so that the archive is there
            readings.pop()
        if lesson is None and asked is not Asked.ANSWERED:
            awaits = wanted
    run.begin(cut, pacing, key, lessons, directory=directory, awaits=awaits)
    run.entry.gives_way = gives_way(run.nice, group, tunables)


def lesson_read(state: State, run: None, directory: str, key: Key, lesson: Lesson | None) -> None:
    """A command: have runs begin that wait for what this directory has of their function."""
    state.lessons.answered(directory, key, lesson)
    for each in list(state.runs):
        if each.awaits and each.directory == directory and each.key == key:
            _begin_to_work(state, each)


def wait_no_longer(state: State, run: None) -> None:
    """A command: have runs begin that waited long enough for what is on disk.

    Whatever keeps the answer, a file system that hangs or an exception on its way, no job waits for
    it longer than this.
    """
    now = perf_counter_ns()
    for each in list(state.runs):
        if each.awaits and now - each.submitted_at > PATIENCE_NS:
            assert each.key is not None
            state.lessons.answered(each.directory, each.key, None)  # the next ones do not wait
            _begin_to_work(state, each)


def _begin_to_work(state: State, run: Run) -> None:
    """Have chunks of a run begin, with what is known by now of its function."""
    assert run.key is not None
    lesson = state.lessons.get(run.key)
    pacing = None
    if lesson is not None:
        pacing = pacing_of(run.job, run.threads_planned, run.awaits, lesson)
    run.lesson_came(pacing)
    state.follow_limit(run)
    state.update(run)
    state.signals.change()
    state.summon(perf_counter_ns())
    state.out.tell(run)
