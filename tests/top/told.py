# SPDX-License-Identifier: MIT
# What a process would tell of jobs, made from the library's own values; and processes that do.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aioktask.job import JobPhase, Progress, StreamProgress
from aioktask.observe.data import snapshot_data
from aioktask.observe.processes import Told
from aioktask.status import HelperStatus, JobStatus, Limits, LoopStatus, Snapshot
from tests.support.publishing import Publishing

HOSTILE = (
    "[red]a[/red]\x1b[2J\x1b]0;x\x07\nb\t日本語e\u0301\u0301\u0301\u0301\u0301\u202e\u200d👩🏽"
)


def job(
    number: int = 1,
    name: str = "fill",
    *,
    phase: JobPhase = "running",
    done: int = 40,
    size: int | None = 100,
    stream: bool = False,
    labels: Mapping[str, str] | None = None,
    **more: Any,
) -> JobStatus:
    progress: Progress | StreamProgress
    if stream or size is None:
        progress = StreamProgress(done, size, 1, 2.0, done / 2, phase)
    else:
        progress = Progress(done, size, 1, done, 2.0, done / 2, phase, more.pop("undone", 0))
    given = {"nice": 0, "loan": None, "threads": 1, "queued": 0.5, "elapsed": 2.0, "age": 2.5}
    return JobStatus(
        number=number,
        kind="stream" if stream else "job",
        name=name,
        labels=labels or {},
        phase=phase,
        progress=progress,
        **{**given, **more},
    )


def answer(
    pid: int,
    *jobs: JobStatus,
    ended: tuple[JobStatus, ...] = (),
    helpers: tuple[HelperStatus, ...] = (),
    command: str = "/usr/bin/python work.py",
    advice: tuple[tuple[str, str], ...] = (),
    share: int | None = None,
    blocked: int = 0,
) -> Told:
    """What a process with these jobs answers."""
    limits = Limits(4, "the affinity allows 4", share, 4, 1, blocked, None)
    loops = (LoopStatus("asyncio", 0.0003, 0.012),)
    data = snapshot_data(Snapshot(pid, 1.0, jobs, ended, helpers, limits, loops))
    data["command"] = command
    data["advice"] = [{"event": "e", "job": name, "text": text} for name, text in advice]
    return Told(pid, data)


# Has a job at a gate, which ends when it is cancelled, and one of the same name that waits for it.
PROGRAM = """
import sys, threading
from aioktask import Coordinator, Job, JobCancelled, current_chunk

went = threading.Event()

def waits(start, stop):
    print("at", flush=True)
    while not went.wait(0.005):
        current_chunk().check_cancelled()

with Coordinator(max_threads=1) as coordinator:
    name = sys.argv[1]
    first = coordinator.submit(Job(waits, 1, name=name, labels={"who": name}))
    second = coordinator.submit(Job(lambda start, stop: None, 1, name="after " + name))
    try:
        first.result()
    except JobCancelled:
        print("cancelled", first.nice, flush=True)
    sys.stdin.read()
"""


class Child(Publishing):
    """A process that publishes a job at a gate, and one that waits for its thread.

    Args:
        name: Of the first job.
    """

    def __init__(self, name: str) -> None:
        super().__init__(["-c", PROGRAM, name], "at")
