# SPDX-License-Identifier: MIT
# The executor of a coordinator as that of a Dask worker.
#
# `Coordinator.executor()` does for that already, but for tasks that ask Dask for a place outside of
# its threads: `secede`, `rejoin`, and so `worker_client`. Those reach into Dask's own kind of
# executor, by a variable of the thread. Here they find one that says yes: a helper whose call waits
# makes room for another one by itself.
"""An executor for workers of Dask."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, SupportsIndex, TypeVar

from aioktask.checks import optional
from aioktask.engine.api.coordinator import Coordinator
from aioktask.engine.api.executor import HelperThreadPoolExecutor
from aioktask.extras import missing_package

try:
    from distributed.threadpoolexecutor import thread_state
except ImportError as error:
    raise missing_package("an executor for a Dask worker", "distributed", error) from error

__all__ = ["TaskThreadPoolExecutor", "task_executor"]

T = TypeVar("T")
P = ParamSpec("P")


def task_executor(
    coordinator: Coordinator | None = None, *, nice: SupportsIndex = 0
) -> HelperThreadPoolExecutor:
    """An executor for a ``distributed.Worker``, whose tasks helpers do then.

    It is ``coordinator.executor(nice)``, and its tasks may also call ``secede``, ``rejoin`` and
    ``worker_client`` of ``distributed``. Tasks keep to the limits of the process, share helpers
    with its jobs, and a job that a task runs takes its thread along. How many tasks run at a time
    is for Dask to say, by its ``--nthreads``.

    Args:
        coordinator: Whose calls tasks are; one of its own by default.
        nice: Of tasks, as of jobs.

    Raises:
        TypeError, ValueError: `coordinator` is none, or `nice` not from -20 to 19.
    """
    given = optional("coordinator", coordinator, Coordinator)
    return TaskThreadPoolExecutor(Coordinator() if given is None else given, nice)


class TaskThreadPoolExecutor(HelperThreadPoolExecutor):
    """What `task_executor` makes."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a helper do a task: see `HelperThreadPoolExecutor.submit`."""

        def task() -> T:
            # A task inside of another one's chunk, on the same thread, finds it there already.
            before = getattr(thread_state, "executor", None)
            thread_state.executor = before or _Place()
            try:
                return fn(*args, **kwargs)
            finally:
                if before is None:
                    del thread_state.executor

        return super().submit(task)


class _Place:
    """What ``secede`` and ``rejoin`` find of the executor that the thread is of."""

    def __init__(self) -> None:
        self._threads = self
        self._rejoin_lock = threading.Lock()
        self._rejoin_list = self

    def remove(self, thread: threading.Thread) -> None:
        """The thread leaves: nothing of the engine's changes."""

    def _adjust_thread_count(self) -> None:
        """Another helper comes where this one waits."""

    def append(self, waiting: tuple[threading.Thread, threading.Event]) -> None:
        """The thread comes back, and need not wait."""
        waiting[1].set()

    def submit(self, fn: Callable[[], Any]) -> None:
        """Dask has somebody look who waits: nobody does."""
