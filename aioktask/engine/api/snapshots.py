# SPDX-License-Identifier: MIT
# How a snapshot is taken: from what turns change, read without their lock.
#
# Guarantees: no lock is taken and nothing is posted, so it may be called on any thread, in any
# line. A job that changes meanwhile may be seen as it was or as it is, but each job once, and none
# is missed that was submitted before and is not among those that ended long ago. What it costs
# grows with the jobs and threads that there are, by some microseconds each.
#
# Relies on two orders. Where jobs go from one place to the next, they are put there before they are
# taken out here; so the places are read in the order in which jobs pass them. And what is kept of a
# job that is over (`Run.past`, `State.past`) is there before it is over; so that is read last.
"""`snapshot`."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import TypeVar

from aioktask.engine.api.process import current_pool
from aioktask.engine.machine.os_threads import process_nice
from aioktask.engine.scheduling.reasons import Kept, kept_from_threads
from aioktask.engine.state import admission, record
from aioktask.engine.state.dispatch import MOST_PAST
from aioktask.engine.state.group import RunGroup
from aioktask.engine.state.run import SETTLED, Run
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.workers import Caller, Helper
from aioktask.engine.threads.chunk_watch import At
from aioktask.engine.threads.pool import Pool
from aioktask.engine.tunables import NO_SHARE
from aioktask.job import Progress, StreamProgress
from aioktask.status import (
    HelperStatus,
    JobStatus,
    Limits,
    LoopStatus,
    SlotHolder,
    Slots,
    Snapshot,
)

__all__ = ["runs_of", "snapshot", "take_snapshot"]

T = TypeVar("T")

# How often a deque is read at once before its items are read one by one.
READS = 8


def snapshot() -> Snapshot:
    """All there is to see of this process: jobs, helpers, limits, loops.

    It takes no lock and changes no job, so it may be called at any time: on any thread, in a
    signal handler, a finalizer or a listener of events too. Who holds the slots of the machine is
    looked up by the library's own thread for some time after a call, so the first call does not
    tell of it. `Coordinator.snapshot` tells of one coordinator's jobs.

    Returns:
        Frozen values, which refer to nothing of the jobs.

    >>> from aioktask import Job, run_multithreaded_sync
    >>> report = run_multithreaded_sync(Job(lambda start, stop: None, 10, name="small"))
    >>> last = snapshot().ended[0]
    >>> last.name, last.phase, last.progress.done
    ('small', 'finished', 10)
    """
    return take_snapshot(current_pool())


def take_snapshot(pool: Pool, group: RunGroup | None = None) -> Snapshot:
    """What there is to see of the process, with the jobs of one group only if one is given."""
    pool.adapter.want_holders()
    now, taken_at = time.perf_counter_ns(), time.time()
    words = _cap_in_words(pool)
    stuck = _stuck_runs(pool, now)
    jobs: dict[int, JobStatus] = {}
    ended: dict[int, record.Ended] = {}
    for run in runs_of(pool):
        if (group is not None and run.group is not group) or run.refused:
            continue
        if run.past is not None:
            ended[run.number] = record.Ended._make(run.past)
        elif not run.over:  # else it passed the lane, and what is kept of it was before
            jobs[run.number] = _job_status(pool, run, now, words, stuck.get(run.number, 0.0))
    for items in _items(pool.state.past):
        kept = record.Ended._make(items)
        if (group is None or kept.group == group.number) and kept.number not in jobs:
            ended[kept.number] = kept
    latest = sorted(ended.values(), key=lambda each: each.ended_at, reverse=True)
    return Snapshot(
        pid=os.getpid(),
        taken_at=taken_at,
        jobs=tuple(sorted(jobs.values(), key=lambda each: each.number)),
        ended=tuple(_ended_status(each, now) for each in latest[:MOST_PAST]),
        helpers=tuple(_threads(pool, now)),
        limits=_limits(pool),
        loops=tuple(_loops(pool, now)),
        coordinator_limits=None if group is None else dict(group.tunables),
    )


def _items(queue: deque[T]) -> list[T]:
    """The items of a deque, those that others take out of it or add meanwhile perhaps among them.

    Without the GIL an iteration may be struck by another thread's step. Items are taken out on the
    left only, so one by one they are read from the right.
    """
    for _ in range(READS):
        try:
            return list(queue)
        except RuntimeError:
            continue
    found: list[T] = []
    try:
        while True:
            found.append(queue[-1 - len(found)])
    except IndexError:
        found.reverse()
        return found


# Jobs.


def runs_of(pool: Pool) -> Iterator[Run]:
    """Every run that is not over, once: on its way, in the lane, or taken in; and some that are."""
    state = pool.state
    found: dict[int, Run] = {run.number: run for run in _items(state.lane.waiting)}
    # A turn holds what it takes out of a queue in its outbox. It may put it into the inbox, or take
    # it from there; so the outbox is read before and after that.
    for each in [*state.out.dropped, *_items(pool.inbox)]:
        _add_posted(found, each)
    for helper in list(state.helpers):
        at = helper.express
        if at is not None:
            found.setdefault(at.number, at)
    for settled in _items(state.lane.settled):
        found.setdefault(settled.number, settled)
    for each in list(state.out.dropped):
        _add_posted(found, each)
    for run in list(state.runs):
        found.setdefault(run.number, run)
    return iter(found.values())


def _add_posted(found: dict[int, Run], each: object) -> None:
    """Add the run that this is, or that this command is to take in."""
    if type(each) is tuple and each and each[0] is admission.admit:
        each = each[1]
    if type(each) is Run:
        found.setdefault(each.number, each)


def _job_status(pool: Pool, run: Run, now: int, words: str, stuck: float) -> JobStatus:
    """How a run stands.

    Args:
        pool: Of the process.
        run: It is not over, or was not a moment ago.
        now: When the snapshot was begun.
        words: What limits the threads of the process, in words.
        stuck: How long a thread of it has been stuck.
    """
    told = record.progress(run)
    first = run.first_claim
    kind = record.kind_of(run)
    progress: Progress | StreamProgress = told
    phase = told.phase
    if run.growth is not None:
        progress = record.stream_progress(run)
        phase = progress.phase
    loan = run.entry.loan if run.begun else None
    return JobStatus(
        number=run.number,
        kind=kind,
        name=run.name,
        labels=run.labels,
        nice=run.nice,
        loan=loan,
        phase=phase,
        progress=progress,
        threads=told.threads,
        queued=max((first or now) - run.submitted_at, 0) / 1e9,
        elapsed=told.elapsed,
        age=max(now - run.submitted_at, 0) / 1e9,
        waits_for=_waits_for(pool, run, told.threads, words),
        stuck=stuck,
    )


def _waits_for(pool: Pool, run: Run, threads: int, words: str) -> str:
    """What a run waits for, in words."""
    if run.phase is SETTLED:
        return "whoever awaits it to take the result"
    if run.async_undo:
        return "its coroutine undo"
    if threads:
        stops = run.stopping or run.cancel_asked
        return "the chunks that run to end" if stops and not run.undoing else ""
    if not run.begun:
        return "" if run.first_claim else "a thread that takes it in"
    if run.awaits:
        return "what earlier runs learned, which is read from disk"
    if not run.claimable:
        if run.growth is not None and not run.stopping:
            return "items"
        return "its end to be noticed"
    kept = kept_from_threads(pool.state.scheduler, run.entry)
    if kept is Kept.BY_GROUP:
        return f"a thread: its coordinator has all of its {run.group.cap} at other jobs"
    if kept is Kept.BY_BACKGROUND:
        return "other processes, to which its nice has it leave the CPUs"
    if lacking := pool.state.scheduler.lacks_memory(run.entry):
        return lacking
    if kept is Kept.BY_PROCESS:
        return f"a thread: all of the process are at other jobs ({words})"
    return "a thread that is on its way"


def _cap_in_words(pool: Pool) -> str:
    cap, share = pool.adapter.cap, pool.adapter.share
    if share is not None and share < cap.threads:
        return f"{max(share, 1)}: what other busy processes leave of the slots"
    return f"{cap.threads}: {cap.reason}"


def _ended_status(told: record.Ended, now: int) -> JobStatus:
    first = told.first_claim
    elapsed = max(told.last_chunk - first, 0) / 1e9 if first else 0.0
    rate = told.done / elapsed if elapsed > 0 else 0.0
    progress: Progress | StreamProgress
    if told.kind == "stream":
        progress = StreamProgress(told.done, told.size, 0, elapsed, rate, told.how, 0.0)
    else:
        size = told.done if told.size is None else told.size
        progress = Progress(
            told.done, size, 0, told.chunks, elapsed, rate, told.how, told.undone, 0.0
        )
    return JobStatus(
        number=told.number,
        kind=told.kind,
        name=told.name,
        labels=told.labels,
        nice=told.nice,
        loan=None,
        phase=told.how,
        progress=progress,
        threads=told.threads,
        queued=((first or told.ended_at) - told.submitted_at) / 1e9,
        elapsed=elapsed,
        age=max(now - told.submitted_at, 0) / 1e9,
        ended=max(now - told.ended_at, 0) / 1e9,
        undone=told.undone,
    )


# Threads.


def _threads(pool: Pool, now: int) -> Iterator[HelperStatus]:
    """The threads of jobs, those that work first."""
    state, places = pool.state, pool.chunks.places
    serving = list(state.serving)
    by_thread: dict[object, Stint] = {}
    for stint in serving:  # the innermost one is the last that began
        by_thread[stint.thread] = stint
    idle: list[HelperStatus] = []
    for helper in list(state.helpers):
        work = by_thread.get(helper) or _in_lane(helper)
        if work is None or not work.live:
            idle.append(
                HelperStatus(
                    "helper", helper.native, "idle", None, 0.0, helper.nice, helper.node, None
                )
            )
        else:
            yield _working(work, helper, places, now)
    for stint in serving:
        if isinstance(stint.thread, Caller) and stint.live:
            yield _working(stint, stint.thread, places, now)
    yield from idle
    for helper in list(state.starting):
        yield HelperStatus("helper", 0, "starting", None, 0.0, helper.nice, None, None)


def _stuck_runs(pool: Pool, now: int) -> dict[int, float]:
    """How long, in seconds, the thread of each run is stuck that is for the longest time."""
    found: dict[int, float] = {}
    for (number, _), at in pool.chunks.places.items():
        if at.stuck:
            found[number] = max(found.get(number, 0.0), (now - at.since) / 1e9)
    return found


def _in_lane(helper: Helper) -> Stint | None:
    """What the helper is at in the lane."""
    run = helper.express
    return None if run is None else run.stints.get(helper)


def _working(
    stint: Stint, thread: Helper | Caller, places: dict[tuple[int, int], At], now: int
) -> HelperStatus:
    run = stint.run
    start, stop = stint.chunk_start, stint.stretch_stop
    at = places.get((run.number, id(thread)))
    stuck = 0.0
    stack: tuple[str, ...] = ()
    if at is not None and at.stuck and at.is_at(stint):
        stuck, stack = max(now - at.since, 0) / 1e9, at.stack
    helper = thread if isinstance(thread, Helper) else None
    return HelperStatus(
        kind="caller" if helper is None else "helper",
        thread=0 if helper is None else helper.native,
        state="working",
        job=run.number if not run.over else None,
        since=max(now - stint.entered_at, 0) / 1e9,
        nice=process_nice() if helper is None else helper.nice,
        node=None if helper is None else helper.node,
        chunk=range(start, max(min(stint.chunk_stop(), stop), start)) if start < stop else None,
        stuck=stuck,
        stack=stack,
    )


# Limits.


def _limits(pool: Pool) -> Limits:
    scheduler, adapter = pool.state.scheduler, pool.adapter
    cap = adapter.cap
    lane = sum(each.express is not None for each in list(pool.state.lane.members))
    return Limits(
        threads=cap.threads,
        reason=cap.reason,
        share=adapter.share,
        background=min(scheduler.background_cap, sys.maxsize),
        working=scheduler.running + lane,
        blocked=scheduler.blocked,
        slots=_slots(pool),
    )


def _slots(pool: Pool) -> Slots | None:
    adapter = pool.adapter
    name = adapter.tunables.share
    if name == NO_SHARE:
        return None
    slots, refused = adapter.monitor.slots, adapter.monitor.slots_refused
    holders = tuple(SlotHolder(pid, held) for pid, held in adapter.holders)
    return Slots(
        name=name,
        held=0 if slots is None else slots.held,
        busy=0 if slots is None else slots.members,
        refused="" if refused is None else str(refused),
        holders=holders,
    )


def _loops(pool: Pool, now: int) -> Iterator[LoopStatus]:
    for watched in pool.loops.loops():
        late, worst = watched.late(now)
        yield LoopStatus(watched.loop.kind, late / 1e9, worst / 1e9)
