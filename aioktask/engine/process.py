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

from aioktask.checks import integer
from aioktask.engine.frame import local
from aioktask.engine.limits import process_cap, process_learning
from aioktask.engine.pool import Pool
from aioktask.engine.topology import read_topology

_making = threading.Lock()  # guards the making of _pool
_pool: Pool | None = None
_override: int | None = None


def current_pool() -> Pool:
    """The pool of this process.

    Raises:
        ValueError: It is made now, and ``AIOKTASK_MAX_THREADS``, ``AIOKTASK_LEARN`` or
            ``AIOKTASK_REMEMBER`` is set to something else than it may be.
    """
    global _pool
    pool = _pool
    if pool is None:
        with _making:
            pool = _pool
            if pool is None:
                cap = process_cap(read_topology(), os.environ, _override)
                pool = _pool = Pool(cap, process_learning(os.environ))
    return pool


def max_threads() -> int:
    """The most threads that work on jobs in this process at a time.

    By default the CPUs that the process may use: its affinity, or the smallest cgroup quota on the
    path to the root, rounded down, if that is less; ``AIOKTASK_MAX_THREADS`` replaces it. Threads
    that call `run_multithreaded_sync` always take part and may come on top.
    """
    return current_pool().cap.threads


def set_max_threads(threads: int | None) -> None:
    """Change `max_threads`, also while jobs run; None goes back to the default.

    Helpers above a lower limit stop at the next chunk boundary.

    Raises:
        TypeError, ValueError: `threads` is no integer, or below 1.
    """
    global _override
    override = None if threads is None else integer("max_threads", threads, least=1)
    cap = process_cap(read_topology(), os.environ, override)
    _override = override
    current_pool().set_cap(cap)


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
