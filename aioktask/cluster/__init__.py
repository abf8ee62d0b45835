# SPDX-License-Identifier: MIT
# The names for jobs on several processes and machines. What needs Dask (the extra `dask`) is
# imported when one of its names is asked for; the rest needs nothing beside the library.
"""One job over the processes of this machine, or over a Dask cluster."""

from typing import TYPE_CHECKING

__all__ = [
    "Blocks",
    "ClusterCoordinator",
    "ClusterFailure",
    "ClusterHandle",
    "ClusterJob",
    "ClusterReport",
    "ClusterSnapshot",
    "ClusterStreamHandle",
    "Home",
    "ProcessCoordinator",
    "WorkerLost",
    "WorkerPart",
    "WorkerStatus",
    "blocks_of",
    "files_by_host",
    "homes_of",
    "run_in_processes",
    "run_on_cluster",
    "task_executor",
]

# Where they are, for `aioktask.lazy`.
_NAMES = {
    "ClusterFailure": "aioktask.cluster.job",
    "ClusterHandle": "aioktask.cluster.handle",
    "ClusterJob": "aioktask.cluster.job",
    "ClusterReport": "aioktask.cluster.job",
    "ClusterSnapshot": "aioktask.cluster.job",
    "ClusterStreamHandle": "aioktask.cluster.stream_handle",
    "Home": "aioktask.cluster.job",
    "ProcessCoordinator": "aioktask.cluster.processes",
    "WorkerLost": "aioktask.cluster.job",
    "WorkerPart": "aioktask.cluster.job",
    "WorkerStatus": "aioktask.cluster.job",
    "files_by_host": "aioktask.cluster.job",
    "run_in_processes": "aioktask.cluster.processes",
}
_DASK = {
    **dict.fromkeys(("ClusterCoordinator", "run_on_cluster"), "aioktask.cluster.dask"),
    **dict.fromkeys(("Blocks", "blocks_of", "homes_of"), "aioktask.cluster.blocks"),
    "task_executor": "aioktask.cluster.executor",
}

if TYPE_CHECKING:
    from aioktask.cluster.blocks import Blocks, blocks_of, homes_of
    from aioktask.cluster.dask import ClusterCoordinator, run_on_cluster
    from aioktask.cluster.executor import task_executor
    from aioktask.cluster.handle import ClusterHandle
    from aioktask.cluster.job import (
        ClusterFailure,
        ClusterJob,
        ClusterReport,
        ClusterSnapshot,
        Home,
        WorkerLost,
        WorkerPart,
        WorkerStatus,
        files_by_host,
    )
    from aioktask.cluster.processes import ProcessCoordinator, run_in_processes
    from aioktask.cluster.stream_handle import ClusterStreamHandle
else:

    def __getattr__(name):
        from aioktask.lazy import load

        return load(__name__, _DASK if name in _DASK else _NAMES, name)

    def __dir__():
        return sorted({*globals(), *__all__})
