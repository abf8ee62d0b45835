# SPDX-License-Identifier: MIT
"""Multithreaded jobs for asyncio, after the Linux kernel's ktask and padata."""

from aioktask import arrays, files, memory
from aioktask.engine.api.coordinator import Coordinator
from aioktask.engine.api.handle import Handle
from aioktask.engine.api.process import configure, max_threads, set_max_threads, tunables
from aioktask.engine.api.run_job import plan, run_multithreaded, run_multithreaded_sync
from aioktask.engine.plan import Plan
from aioktask.engine.priority import priority
from aioktask.engine.state.current import current_chunk
from aioktask.errors import ChunkCancelled, DeadlockError, JobCancelled, UndoFailed
from aioktask.job import Chunk, Failure, Job, Learned, Part, Progress, Report, Speed, failure
from aioktask.observe import events as _events
from aioktask.ondemand import OnDemand

__all__ = [
    "Chunk",
    "ChunkCancelled",
    "Coordinator",
    "DeadlockError",
    "Failure",
    "Handle",
    "Job",
    "JobCancelled",
    "Learned",
    "OnDemand",
    "Part",
    "Plan",
    "Progress",
    "Report",
    "Speed",
    "UndoFailed",
    "arrays",
    "configure",
    "current_chunk",
    "failure",
    "files",
    "max_threads",
    "memory",
    "plan",
    "priority",
    "run_multithreaded",
    "run_multithreaded_sync",
    "set_max_threads",
    "tunables",
]

_events.start()
