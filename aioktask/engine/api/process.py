# SPDX-License-Identifier: MIT
# The pool of this process: made at its first use, ended at exit, forgotten in a fork's child.
#
# A fork copies only the thread that forks. So the pool's lock is held across the fork, which makes
# the copied state whole, and the child then starts with no pool at all: it has no helpers, and the
# parent's jobs are none of its business. Nothing is undone there, since the memory may be shared.
"""The one pool of a process."""

from __future__ import annotations

import atexit
import os
import threading
from typing import Any

from aioktask.engine.state.stint import local
from aioktask.engine.threads.pool import Pool
from aioktask.engine.topology import read_topology
from aioktask.engine.tunables import checked, process_tunables

_making = threading.Lock()  # guards the making of _pool
_pool: Pool | None = None
_calls: dict[str, tuple[str, Any]] = {}  # what calls have set: by whom, and to what


def current_pool() -> Pool:
    """The pool of this process.

    Raises:
        ValueError: It is made now, and one of the ``AIOKTASK_`` variables is set to something else
            than it may be.
    """
    global _pool
    pool = _pool
    if pool is None:
        with _making:
            pool = _pool
            if pool is None:
                tunables = process_tunables(os.environ, _calls)
                pool = _pool = Pool(read_topology(), tunables)
    return pool


def max_threads() -> int:
    """The most threads that work on jobs in this process at a time.

    By default the CPUs that the process may use: its affinity, or the smallest cgroup quota on the
    path to the root, rounded down, if that is less, as they are now; ``AIOKTASK_MAX_THREADS``
    replaces it. Threads that call `run_multithreaded_sync` always take part and may come on top.
    """
    pool = current_pool()
    pool.around.refresh()
    return pool.around.cap.threads


def set_max_threads(threads: int | None) -> None:
    """Change `max_threads`, also while jobs run; None goes back to the default.

    Helpers above a lower limit stop at the next chunk boundary.

    Raises:
        TypeError, ValueError: `threads` is no integer, or below 1.
    """
    _set(f"set_max_threads({threads})", max_threads=threads)


def configure(**values: Any) -> None:
    """Change tunables of the process, also while jobs run.

    Args:
        values: By name, as in the table of tunables in the documentation: `max_threads`,
            `max_threads_per_node`, `nice`, `give_way`, `share`, `learn`, `remember`. What is not
            named stays as it is. They go before ``AIOKTASK_`` variables of the same names.

    Raises:
        TypeError, ValueError: There is no such tunable, or a value is not what it may be; then
            nothing is changed.

    >>> configure(max_threads=0)
    Traceback (most recent call last):
        ...
    ValueError: configure(): max_threads must be at least 1, got 0
    """
    _set("configure()", **values)


def tunables() -> dict[str, object]:
    """The process's tunables as they are now, by name."""
    return current_pool().around.tunables.data()


def _set(source: str, **values: Any) -> None:
    global _calls
    before, calls = _calls, dict(_calls)
    for name, value in checked(source, values).items():
        if name == "max_threads" and value is None:
            calls.pop(name, None)
        else:
            said = source if source != "configure()" else f"configure({name}={value!r})"
            calls[name] = said, value
    _calls = calls
    try:
        current_pool().around.configure(process_tunables(os.environ, calls))
    except ValueError:  # of a variable: then nothing is changed
        _calls = before
        raise


def _at_exit() -> None:
    if _pool is not None:
        _pool.close()


def _before_fork() -> None:
    _making.acquire()
    if _pool is not None:
        _pool.lock.acquire()


def _after_fork_in_parent() -> None:
    if _pool is not None:
        _pool.lock.release()
    _making.release()


def _after_fork_in_child() -> None:
    global _pool
    if _pool is not None:
        # A chunk that forked finds out by these two when it returns: see Pool._end_child.
        _pool.dead = True
        _pool.around.lookout.forget()
        _pool.signals.generation += 1
        # The forking thread may be in a chunk: what it runs here is not nested in that.
        local.frame = None
        for frame in _pool.state.serving:
            frame.live = False
        _pool.lock.release()
        _pool = None
    _making.release()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
