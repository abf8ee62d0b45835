# SPDX-License-Identifier: MIT
# What the calling thread is doing for the engine: the chunk that it works on, and whether it is in
# the engine's own code.
#
# A thread of the program may wait for the engine. A helper or the keeper may hold the lock, or be
# counted as idle, so code of the program that happens to run there (a finalizer, a weak reference
# callback, a listener of events) must not wait for the engine. `inside` says so; on such a thread
# it is False only while a job's own function runs.
"""The current chunk of a thread."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING

from aioktask.engine.machine.os_threads import EngineThread
from aioktask.errors import DeadlockError
from aioktask.job import Chunk

if TYPE_CHECKING:
    from aioktask.engine.state.run import Run
    from aioktask.engine.state.stint import Stint


class _Local(threading.local):
    """What is known of the calling thread.

    Attributes:
        stint: The stint whose chunk the thread works on, the innermost one.
        inside: Whether it runs code of the engine in which nothing may wait: on a thread of the
            engine, in a turn, or while listeners hear of events.
        takes_part: The runs that the thread takes part in as their caller, the innermost last.
    """

    stint: Stint | None = None
    inside = True  # until it is known
    takes_part: tuple[Run, ...] = ()

    def __init__(self) -> None:
        # Set in each thread at its first look here. In one of the engine's that may be a look by a
        # profiling function before the first line, which must not wait: others wait for that line.
        self.inside = isinstance(threading.current_thread(), EngineThread)


local = _Local()

# The stint for code that runs on behalf of a chunk elsewhere, with a copy of its context: a task
# that the chunk started on some loop and waits for. Weak, since contexts live long.
enclosing: ContextVar[weakref.ref[Stint] | None] = ContextVar("aioktask_enclosing", default=None)


def enclosing_stint() -> Stint | None:
    """The stint whose chunk this code runs in, or on behalf of, if that may still be there."""
    stint = local.stint
    if stint is not None:
        return stint
    reference = enclosing.get()
    stint = None if reference is None else reference()
    if stint is None or not stint.live:
        return None
    return None if stint.run.over else stint


def enclosing_run() -> Run | None:
    """The run of `enclosing_stint`."""
    stint = enclosing_stint()
    return None if stint is None else stint.run


def refuse_waiting(what: str) -> None:
    """Raise where a wait would keep the engine from working.

    Raises:
        RuntimeError: The calling code runs inside the engine, on one of its threads: a finalizer or
            a weak reference callback that the collector called there, or a listener of events.
    """
    if local.inside:
        raise RuntimeError(
            f"{what} was called by a finalizer, a callback or a listener that runs inside the "
            "engine, on one of its threads, where nothing may wait: submit the job instead, or "
            "leave the call to a thread of the program"
        )


def refuse_own(awaited: Iterable[Run]) -> None:
    """Raise where the calling thread would wait for a run that it takes part in.

    The waits of chunks are checked in turns (`waiting.deadlock`). This is for a signal handler that
    is called between two chunks: the run goes on when the handler returns, and not before.

    Raises:
        DeadlockError: The thread would wait for itself.
    """
    if not local.takes_part:
        return
    for run in awaited:
        if run in local.takes_part:
            raise DeadlockError([run.name])


def current_chunk() -> Chunk:
    """The chunk that the calling thread works on.

    Raises:
        RuntimeError: The thread works on none: outside of a job, in an undo or in `reduce`.

    >>> from aioktask import Job, run_multithreaded_sync
    >>> def show(start, stop):
    ...     print(current_chunk())
    >>> _ = run_multithreaded_sync(Job(show, 8, chunk=8))
    Chunk(0, 8)
    """
    stint = local.stint
    if stint is None or stint.run.undoing or stint.reducing:
        raise RuntimeError("there is no current chunk: this thread does not run a job's fn now")
    return Chunk(stint.chunk_start, stint.chunk_stop(), stint)
