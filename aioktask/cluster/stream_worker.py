# SPDX-License-Identifier: MIT
# What a stream on a cluster has its workers run, on the loop of each: calls of `client.run`.
#
# Guarantees that each item is one call on the helpers of the worker's process, and that a stream
# that was left has none begun. Outcomes are bytes, so that an exception of the program's that
# cannot be pickled is told as well as it can be.
"""Items of streams, on workers."""

from __future__ import annotations

import asyncio
import functools
import pickle
from collections.abc import Callable, Coroutine
from typing import Any

from aioktask.cluster.packing import packed, packed_error
from aioktask.engine.api.process import max_threads
from aioktask.engine.api.run_job import run

__all__ = ["call", "stop_calls", "threads"]

# What runs, by the stream's token and the worker: several may be in one process.
_running: dict[tuple[str, str], set[asyncio.Task[Any]]] = {}
# Streams that were left: what of them comes later is not called. The oldest are forgotten.
_stopped: dict[tuple[str, str], None] = {}
_MOST_STOPPED = 1000


def threads() -> int:
    return max_threads()


@functools.lru_cache(maxsize=16)
def _function(data: bytes) -> Callable[[Any], Any]:
    found: Callable[[Any], Any] = pickle.loads(data)
    return found


async def call(
    token: str, fn: bytes, item: bytes, name: str, nice: int | None, dask_worker: Any
) -> bytes:
    """Call the function for an item on a helper; what it returned, or raised."""
    place = (token, dask_worker.address)
    if place in _stopped:
        return pickle.dumps(("dropped", None))
    try:
        called = run(_function(fn), pickle.loads(item), nice=nice, name=name)
    except BaseException as error:
        return pickle.dumps(("error", packed_error(error)))
    task = asyncio.get_running_loop().create_task(_told(called))
    running = _running.setdefault(place, set())
    running.add(task)
    try:
        await asyncio.wait([task])
    finally:
        task.cancel()  # where Dask cancels this, since the worker closes
        running.discard(task)
        if not running:
            _running.pop(place, None)
    if task.cancelled():
        return pickle.dumps(("dropped", None))
    value, raised = task.result()
    if raised is None:
        try:
            return pickle.dumps(("value", packed(value)))
        except BaseException as refused:
            raised = refused
    return pickle.dumps(("error", packed_error(raised)))


async def _told(called: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
    """What this returned, or raised. A SystemExit that left its task would end the worker."""
    try:
        return await called, None
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return None, error


def stop_calls(token: str, dask_worker: Any) -> None:
    """Call nothing more for a stream, and tell what runs that it is not wanted."""
    place = (token, dask_worker.address)
    _stopped[place] = None
    while len(_stopped) > _MOST_STOPPED:
        del _stopped[next(iter(_stopped))]
    for task in list(_running.get(place, ())):
        task.cancel()
