# SPDX-License-Identifier: MIT
# How a snapshot is taken: from what turns change, read without their lock.
#
# Guarantees: no lock of the engine's is taken and nothing is posted, so it may be called on any
# thread, in any line. A job that changes meanwhile may be seen as it was or as it is, but each job
# once, and none is missed that was submitted before and is not among those that ended long ago.
# What it costs grows with the jobs and threads that there are, by some microseconds each. Jobs that
# run elsewhere are those that `elsewhere` knows.
#
# Relies on two orders. Where jobs go from one place to the next, they are put there before they are
# taken out here; so the places are read in the order in which jobs pass them. And what is kept of a
# job that is over (`Run.past`, `State.past`) is there before it is over; so that is read last.
"""`snapshot`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from aioktask.engine.api import why_waiting
from aioktask.engine.api.elsewhere import jobs_elsewhere
from aioktask.engine.api.handle import Handle
from aioktask.engine.api.process import current_pool
from aioktask.engine.copies import items_of
from aioktask.engine.machine.os_threads import process_nice
from aioktask.engine.scheduling.caps import within_share
from aioktask.engine.state import admission, record
from aioktask.engine.state.dispatch import MOST_PAST
from aioktask.engine.state.group import RunGroup
from aioktask.engine.state.run import Run
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

__all__ = ["runs_of", "snapshot", "take_snapshot", "why_it_waits"]


def snapshot() -> Snapshot:
    """All there is to see of this process: jobs, helpers, limits, loops.

    Among the jobs are those that this process has on a cluster, with their workers.

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


def take_snapshot(
    pool: Pool,
    group: RunGroup | None = None,
    *,
    pause: Callable[[], object] | None = None,
) -> Snapshot:
    """What there is to see of the process.

    Args:
        pool: Of the process.
        group: Only its jobs are told, if one is given.
        pause: Called between two jobs, by who would not keep others from the GIL.
    """
    pool.adapter.want_holders()
    now, taken_at = time.perf_counter_ns(), time.time()
    having = why_waiting.Having(pool)
    stuck = _stuck_runs(pool, now)
    jobs: dict[int, JobStatus] = {}
    ended: dict[int, record.Ended] = {}
    runs = list(runs_of(pool))
    awaited = why_waiting.awaited(runs, pause)
    for run in runs:
        if (group is not None and run.group is not group) or run.refused:
            continue
        if pause is not None:
            pause()
        if run.past is not None:
            ended[run.number] = record.Ended._make(run.past)
        elif not run.over:  # else it passed the lane, and what is kept of it was before
            inside = awaited.get(run.number, [])
            waits_for = why_waiting.waits_for(pool, run, having, inside)
            jobs[run.number] = _job_status(run, now, waits_for, stuck.get(run.number, 0.0))
    for items in items_of(pool.state.past):
        kept = record.Ended._make(items)
        if (group is None or kept.group == group.number) and kept.number not in jobs:
            ended[kept.number] = kept
    over = [_ended_status(each, now) for each in ended.values()]
    if group is None:
        there, elsewhere_over = jobs_elsewhere(pause)
        jobs.update((each.number, each) for each in there)
        over += elsewhere_over
    over.sort(key=lambda each: each.ended or 0.0)
    return Snapshot(
        pid=os.getpid(),
        taken_at=taken_at,
        jobs=tuple(sorted(jobs.values(), key=lambda each: each.number)),
        ended=tuple(over[:MOST_PAST]),
        helpers=tuple(_threads(pool, now)),
        limits=_limits(pool),
        loops=tuple(_loops(pool, now)),
        coordinator_limits=None if group is None else dict(group.tunables),
    )


# Jobs.


def why_it_waits(handle: Handle[Any]) -> str:
    """What a job that is not over waits for, in words, as a snapshot tells; empty for nothing."""
    pool, run = current_pool(), handle._run
    inside = why_waiting.awaited(runs_of(pool)).get(run.number, [])
    return why_waiting.waits_for(pool, run, why_waiting.Having(pool), inside)


def runs_of(pool: Pool) -> Iterator[Run]:
    """Every run that is not over, once: on its way, in the lane, or taken in; and some that are."""
    state = pool.state
    found: dict[int, Run] = {run.number: run for run in items_of(state.lane.waiting)}
    # A turn holds what it takes out of a queue in its outbox. It may put it into the inbox, or take
    # it from there; so the outbox is read before and after that.
    for each in [*state.out.dropped, *items_of(pool.inbox)]:
        _add_posted(found, each)
    for helper in list(state.helpers):
        at = helper.express
        if at is not None:
            found.setdefault(at.number, at)
    for settled in items_of(state.lane.settled):
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


def _job_status(run: Run, now: int, waits_for: str, stuck: float) -> JobStatus:
    """How a run stands.

    Args:
        run: It is not over, or was not a moment ago.
        now: When the snapshot was begun.
        waits_for: What it waits for.
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
    if waits_for and not told.threads and phase == "running":
        progress = replace(progress, eta=None)  # nobody knows when it goes on
    loan = run.entry.loan if run.begun else None
    error, error_chunk = record.why_it_fails(run)
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
        waits_for=waits_for,
        stuck=stuck,
        lender=None if loan is None else _lender(run, loan),
        error=error,
        error_chunk=error_chunk,
        part=run.is_part,
    )


def _lender(run: Run, loan: int) -> int | None:
    """The number of the job whose chunk waits for the run so urgently, if one does."""
    for each in why_waiting.waits_of(run):
        if each.run is not None and each.run.urgency <= loan:
            return each.run.number
    return None


def _ended_status(told: record.Ended, now: int) -> JobStatus:
    first = told.first_claim
    elapsed = max(told.last_chunk - first, 0) / 1e9 if first else 0.0
    rate = told.done / elapsed if elapsed > 0 else 0.0
    progress: Progress | StreamProgress
    if told.kind == "stream":
        progress = StreamProgress(
            told.done, told.size, 0, elapsed, rate, told.how, 0.0, told.errors
        )
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
        error=told.error,
        error_chunk=told.error_chunk,
        part=told.part,
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
        thread=thread.native,
        state="working",
        job=run.number if not run.over else None,
        since=max(now - stint.entered_at, 0) / 1e9,
        nice=process_nice() if helper is None else helper.nice,
        node=None if helper is None else helper.node,
        chunk=range(start, max(min(stint.chunk_stop(), stop), start)) if start < stop else None,
        stuck=stuck,
        stack=stack,
        depth=thread.depth,
    )


# Limits.


def _limits(pool: Pool) -> Limits:
    scheduler, adapter = pool.state.scheduler, pool.adapter
    cap, share = adapter.cap, adapter.share
    left = within_share(cap, share)
    lane = sum(each.express is not None for each in list(pool.state.lane.members))
    return Limits(
        threads=cap.threads,
        reason=cap.reason,
        share=None if left is cap else left.threads,
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
