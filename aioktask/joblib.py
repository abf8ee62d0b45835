# SPDX-License-Identifier: MIT
# The backend "aioktask" of joblib, on the executor of a coordinator. Importing it registers the
# backend, and needs joblib, which the library itself does not.
"""Joblib on the helpers: importing this registers the backend "aioktask".

>>> import aioktask.joblib
>>> import joblib
>>> with joblib.parallel_backend("aioktask", n_jobs=2):
...     joblib.Parallel()(joblib.delayed(pow)(number, 2) for number in range(4))
[0, 1, 4, 9]
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, SupportsIndex

from aioktask.checks import optional
from aioktask.engine.api.coordinator import Coordinator
from aioktask.engine.api.executor import HelperThreadPoolExecutor
from aioktask.extras import missing_package

try:
    from joblib._parallel_backends import AutoBatchingMixin, ParallelBackendBase, SequentialBackend
    from joblib.parallel import register_parallel_backend
except ImportError as error:
    raise missing_package("aioktask.joblib", "joblib", error) from error

__all__ = ["AioktaskBackend"]


class AioktaskBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """A backend of joblib whose workers are the helpers.

    They share memory (``require="sharedmem"``), so it is for work that releases the GIL. A nested
    `joblib.Parallel` works in the thread that calls it.

    Args:
        coordinator: Whose jobs the calls are, and whose cap bounds them; ``n_jobs`` then says how
            the work is cut. Without one, at most ``n_jobs`` helpers work at a time.
        nice: Of the calls, as of jobs.
        options: What joblib itself passes.
    """

    supports_retrieve_callback = True
    supports_sharedmem = True
    uses_threads = True

    def __init__(
        self, coordinator: Coordinator | None = None, nice: SupportsIndex = 0, **options: Any
    ) -> None:
        super().__init__(**options)
        self._given = optional("coordinator", coordinator, Coordinator)
        self._nice = nice
        self._executor: HelperThreadPoolExecutor | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many helpers may work at a time: `n_jobs`, from the end where it is negative."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        most = (self._given or Coordinator()).executor()._max_workers
        if n_jobs is None:
            return 1
        return max(most + 1 + n_jobs, 1) if n_jobs < 0 else min(n_jobs, most)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        """Begin a call of `joblib.Parallel`; how many helpers may work for it."""
        self.parallel = parallel
        workers = self.effective_n_jobs(n_jobs)
        coordinator = Coordinator(workers) if self._given is None else self._given
        self._executor = coordinator.executor(self._nice)
        return workers

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Future[Any]], object] | None = None
    ) -> Future[Any]:
        """Have a helper call `func`, and then `callback` with the future."""
        executor = self._executor
        if executor is None:
            raise RuntimeError("the call of joblib.Parallel is over")
        future = executor.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # its name before joblib 1.5

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """What the call returned, or raised."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel the calls that have not begun, since one failed; be ready for others, or not.

        Those that run are waited for before others come.
        """
        executor = self._executor
        if executor is None:
            return
        executor.shutdown(wait=ensure_ready, cancel_futures=True)
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)

    def terminate(self) -> None:
        """End a call of `joblib.Parallel`, and wait for what of it runs."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(cancel_futures=True)

    def get_nested_backend(self) -> tuple[SequentialBackend, None]:
        """What a call inside a call uses: no helper, since it would be waited for by polling."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None


register_parallel_backend("aioktask", AioktaskBackend)
