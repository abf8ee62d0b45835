# SPDX-License-Identifier: MIT
# All there is to see of a process's jobs, as frozen values: what `snapshot()` returns.
#
# Nothing here knows of threads or of the engine. Whatever shows something (a page, a terminal,
# metrics, a bar) reads these values and nothing else. Times are in seconds; those that say how long
# something has lasted end at `Snapshot.taken_at`.
"""Snapshots of jobs, helpers and limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from aioktask.job import JobPhase, Progress, StreamProgress
from aioktask.markup import card, table
from aioktask.telling import bar_of, told

__all__ = [
    "HelperStatus",
    "JobStatus",
    "Limits",
    "LoopStatus",
    "SlotHolder",
    "Slots",
    "Snapshot",
    "WorkerStatus",
]

Kind = Literal["job", "stream", "call"]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """Another process that works on a job, on this machine or another one, as it is now.

    Attributes:
        name: Of the worker: an address, or for a process of this machine "process-1" and so on.
        host: Of its machine.
        pid: Of its process; None where that is not known, as before it has its data.
        threads: The most helpers that it has.
        state: "opening" while it makes its data, then "open"; "closed", or "lost" when it is gone.
        running: What it works on now, of the job in question; None for nothing.
        units: How many units of that job it has done, and not undone.
        rate: Units a second, as it was measured last; 0 before.
        working: How many of its helpers work on that job now, as it told last.
        waits_for: In words, what it waits for; empty where it waits for nothing.
        lost: Why it is gone; empty where it is not.
    """

    name: str
    host: str
    pid: int | None
    threads: int
    state: Literal["opening", "open", "closed", "lost"]
    running: range | None = None
    units: int = 0
    rate: float = 0.0
    working: int = 0
    waits_for: str = ""
    lost: str = ""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """One job, stream or call.

    Attributes:
        number: Of this run in the process; the events of the job have it as `run`.
        kind: "job", "stream", or "call" of a single function.
        name: The job's name.
        labels: The job's labels.
        nice: Its nice, as it was asked for last.
        loan: The nice of a waiter that is lent to it, if that is more urgent; else None.
        phase: "waiting" until its first chunk begins, then "running"; "stopping" where no further
            chunk begins and some have not ended; "undoing"; "settled" where all is done and the
            caller could still cancel. Of one that is over how it ended: "finished", "failed",
            "cancelled", "overloaded" (it did not begin in time), "timed out", or "undo failed".
        progress: Where it stands; without a time left where it waits and has no thread.
        threads: How many threads work on it now; of one that is over the most that ever did.
        queued: How long it has waited, or did, until its first chunk began.
        elapsed: How long it has worked, or did, since then.
        age: How long ago it was submitted.
        ended: How long ago it was over; None where it is not.
        undone: How many units were undone, of one that is over.
        waits_for: In words, what it waits for, and which limit decides that; empty where it waits
            for nothing.
        stuck: How long a thread of it has been at one chunk, or its coroutine undo has gone on,
            where that was told as longer than `stuck_after`; else 0.
        lender: The number of the job whose chunk waits for it and lends it the loan; None where
            there is no loan, or who waits is no job.
        workers: Of a job that other processes work on, those processes; `threads` adds up theirs.
        error: Why it fails or failed: the class of what was raised and its text in one line, of at
            most 200 characters. The class alone where only code of the program could tell the text.
            Empty where nothing was raised.
        error_chunk: The chunk that raised it; None where that was no chunk of a job.
        part: Whether it is a part of a job of another process, as a stretch is in a worker, or the
            undo of one. That process tells of the job as a whole, so the page and `top` leave such
            parts out of their lists.
    """

    number: int
    kind: Kind
    name: str
    labels: Mapping[str, str]
    nice: int
    loan: int | None
    phase: JobPhase
    progress: Progress | StreamProgress
    threads: int
    queued: float
    elapsed: float
    age: float
    ended: float | None = None
    undone: int = 0
    waits_for: str = ""
    stuck: float = 0.0
    lender: int | None = None
    workers: tuple[WorkerStatus, ...] = ()
    error: str = ""
    error_chunk: range | None = None
    part: bool = False


@dataclass(frozen=True, slots=True)
class HelperStatus:
    """One thread that works on jobs, or is there for them.

    Attributes:
        kind: "helper", or "caller" for a thread of the program that takes part in a job.
        thread: The kernel's number of the thread; 0 while it starts. A helper that takes part in a
            job inside a chunk of another one is told a second time for it, as a caller.
        state: "working", "idle" or "starting".
        job: The number of the job that it works on; None for none.
        since: How long it has worked on that, or 0.
        nice: The thread's nice.
        node: The NUMA node that it is bound to; None for none.
        chunk: The chunk that it is at, or about to begin; None for none.
        stuck: How long it has been at that chunk, where that was told as longer than
            `stuck_after`; else 0.
        stack: Where it was in the program when that was told last, the innermost call last. Empty
            without the GIL, where the interpreter cannot tell of a thread that runs.
        depth: In how many chunks of other jobs the thread is meanwhile, one inside the other.
    """

    kind: Literal["helper", "caller"]
    thread: int
    state: Literal["working", "idle", "starting"]
    job: int | None
    since: float
    nice: int
    node: int | None
    chunk: range | None
    stuck: float = 0.0
    stack: tuple[str, ...] = ()
    depth: int = 0


@dataclass(frozen=True, slots=True)
class SlotHolder:
    """A process that holds slots of the set that this one shares.

    Attributes:
        pid: Its number.
        held: How many slots.
    """

    pid: int
    held: int


@dataclass(frozen=True, slots=True)
class Slots:
    """The set of slots that this process shares with the user's others.

    Attributes:
        name: Of the set.
        held: How many slots this process holds.
        busy: How many processes want some of the CPUs of this one, itself included; 0 while it has
            nothing to do.
        refused: Why it takes no part although it should; else empty.
        holders: The processes that hold slots, this one included. They are looked for within a
            second where a snapshot was taken and other processes are busy; else this is empty.
    """

    name: str
    held: int
    busy: int
    refused: str = ""
    holders: tuple[SlotHolder, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """What limits the threads of the process.

    Attributes:
        threads: The most helpers.
        reason: What decides that, in words.
        share: The most of them while other processes want the same CPUs, where that is less; at
            least 1. None otherwise.
        background: The most of them for jobs that leave the CPUs to other processes.
        working: How many threads work on jobs now.
        blocked: How many of those are in calls that block without using a CPU, for each of which
            there may be one more.
        slots: The slots that it shares; None where it shares with nobody.
    """

    threads: int
    reason: str
    share: int | None
    background: int
    working: int
    blocked: int
    slots: Slots | None


@dataclass(frozen=True, slots=True)
class LoopStatus:
    """How late an event loop is, in which a coordinator was entered, while there are jobs.

    Attributes:
        kind: "asyncio", "uvloop" or "trio".
        late: How long the loop took to come to the last callback that another thread gave it, or
            has taken by now where it has not come to it.
        worst: The longest of the last 10 seconds.
    """

    kind: str
    late: float
    worst: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there is to see at one moment.

    Attributes:
        pid: Of the process.
        taken_at: When, in seconds since the epoch.
        jobs: Those that are not over, the oldest first.
        ended: The last ones that are, at most 100, the latest first.
        helpers: The threads, those that work first.
        limits: Of the process.
        loops: The loops that are looked after.
        coordinator_limits: Where the snapshot is that of a coordinator, what it sets, by name.
    """

    pid: int
    taken_at: float
    jobs: tuple[JobStatus, ...]
    ended: tuple[JobStatus, ...]
    helpers: tuple[HelperStatus, ...]
    limits: Limits
    loops: tuple[LoopStatus, ...]
    coordinator_limits: Mapping[str, object] | None = None

    def _repr_html_(self) -> str:
        """What a notebook shows: the jobs that are not over, the last ones that are, the limits."""
        limits = self.limits
        heads = ("number", "kind", "job", "", "", "", "threads", "nice", "waits for")
        jobs = [_row(each) for each in (*self.jobs, *self.ended[:_MOST_ENDED])]
        figures = [
            ("process", self.pid),
            ("threads", f"{limits.working} work, {limits.threads} at most: {limits.reason}"),
            ("jobs", f"{len(self.jobs)} under way"),
        ]
        return card("Snapshot", table(jobs, heads) if jobs else "no jobs", figures=figures)


# So many jobs that are over are shown.
_MOST_ENDED = 10


def _row(job: JobStatus) -> tuple[object, ...]:
    shown = told(job.name, job.progress)
    labels = " ".join(f"{name}={value}" for name, value in job.labels.items())
    nice = job.nice if job.loan is None else f"{job.nice}, lent {job.loan}"
    return (
        job.number,
        job.kind,
        f"{job.name} {labels}".rstrip(),
        *bar_of(shown),
        job.threads,
        nice,
        job.waits_for,
    )
