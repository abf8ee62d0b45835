# SPDX-License-Identifier: MIT
"""Multithreaded jobs for asyncio, after the Linux kernel's ktask and padata."""

from typing import TYPE_CHECKING

__all__ = [
    "Chunk",
    "ChunkCancelled",
    "Coordinator",
    "CoordinatorClosed",
    "DeadlockError",
    "Failure",
    "Handle",
    "HelperThreadPoolExecutor",
    "Job",
    "JobCancelled",
    "Learned",
    "OnDemand",
    "Overloaded",
    "Part",
    "Plan",
    "Progress",
    "Report",
    "Snapshot",
    "Speed",
    "StreamProgress",
    "Timeline",
    "UndoFailed",
    "arrays",
    "configure",
    "current_chunk",
    "failure",
    "files",
    "map_ordered",
    "map_ordered_sync",
    "max_threads",
    "memory",
    "plan",
    "priority",
    "run",
    "run_multithreaded",
    "run_multithreaded_sync",
    "set_max_threads",
    "snapshot",
    "tunables",
]

# Where they are, for `aioktask.lazy`.
_NAMES = {
    "Chunk": "aioktask.job",
    "ChunkCancelled": "aioktask.errors",
    "Coordinator": "aioktask.engine.api.coordinator",
    "CoordinatorClosed": "aioktask.errors",
    "DeadlockError": "aioktask.errors",
    "Failure": "aioktask.job",
    "Handle": "aioktask.engine.api.handle",
    "HelperThreadPoolExecutor": "aioktask.engine.api.executor",
    "Job": "aioktask.job",
    "JobCancelled": "aioktask.errors",
    "Learned": "aioktask.job",
    "OnDemand": "aioktask.ondemand",
    "Overloaded": "aioktask.errors",
    "Part": "aioktask.job",
    "Plan": "aioktask.engine.ranges.plan",
    "Progress": "aioktask.job",
    "Report": "aioktask.job",
    "Snapshot": "aioktask.status",
    "Speed": "aioktask.job",
    "StreamProgress": "aioktask.job",
    "Timeline": "aioktask.timeline",
    "UndoFailed": "aioktask.errors",
    "arrays": "aioktask.arrays",
    "configure": "aioktask.engine.api.process",
    "current_chunk": "aioktask.engine.state.current",
    "failure": "aioktask.job",
    "files": "aioktask.files",
    "map_ordered": "aioktask.streams",
    "map_ordered_sync": "aioktask.streams",
    "max_threads": "aioktask.engine.api.process",
    "memory": "aioktask.memory",
    "plan": "aioktask.engine.api.run_job",
    "priority": "aioktask.engine.priority",
    "run": "aioktask.engine.api.run_job",
    "run_multithreaded": "aioktask.engine.api.run_job",
    "run_multithreaded_sync": "aioktask.engine.api.run_job",
    "set_max_threads": "aioktask.engine.api.process",
    "snapshot": "aioktask.engine.api.snapshots",
    "tunables": "aioktask.engine.api.process",
}

if TYPE_CHECKING:
    from aioktask import arrays, files, memory
    from aioktask.engine.api.coordinator import Coordinator
    from aioktask.engine.api.executor import HelperThreadPoolExecutor
    from aioktask.engine.api.handle import Handle
    from aioktask.engine.api.process import configure, max_threads, set_max_threads, tunables
    from aioktask.engine.api.run_job import plan, run, run_multithreaded, run_multithreaded_sync
    from aioktask.engine.api.snapshots import snapshot
    from aioktask.engine.priority import priority
    from aioktask.engine.ranges.plan import Plan
    from aioktask.engine.state.current import current_chunk
    from aioktask.errors import (
        ChunkCancelled,
        CoordinatorClosed,
        DeadlockError,
        JobCancelled,
        Overloaded,
        UndoFailed,
    )
    from aioktask.job import (
        Chunk,
        Failure,
        Job,
        Learned,
        Part,
        Progress,
        Report,
        Speed,
        StreamProgress,
        failure,
    )
    from aioktask.ondemand import OnDemand
    from aioktask.status import Snapshot
    from aioktask.streams import map_ordered, map_ordered_sync
    from aioktask.timeline import Timeline
else:

    def __getattr__(name):
        from aioktask.lazy import load

        return load(__name__, _NAMES, name)

    def __dir__():
        return sorted({*globals(), *__all__})
