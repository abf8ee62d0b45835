# SPDX-License-Identifier: MIT
# The pool of this process: made at its first use, ended at exit, forgotten in a fork's child.
#
# No lock guards it. Where several threads make a pool at the same time, or a signal handler does
# while its thread is making one, all use the one that is stored first; the others have started no
# thread yet.
#
# A fork copies only the thread that forks, whatever lines the others are at. So the child takes no
# lock of the parent's, and starts without a pool and without helpers. It neither continues the
# parent's jobs nor undoes them, since the memory may be shared.
"""The one pool of a process."""

from __future__ import annotations

import atexit
import os
from typing import Any

from aioktask.engine.machine.green_threads import refuse_green_threads
from aioktask.engine.machine.topology import read_topology
from aioktask.engine.state.current import local
from aioktask.engine.threads.pool import Pool
from aioktask.engine.tunables import checked, process_tunables, refuse_misspelt

_pools: dict[str, Pool] = {}  # the one there is
_calls: dict[str, tuple[str, Any]] = {}  # what calls have set: the call's text, and the value


def current_pool() -> Pool:
    """The pool of this process.

    Raises:
        ValueError: The pool is made by this call, and an ``AIOKTASK_`` variable has a value that it
            may not have, or a name that is almost that of one.
        RuntimeError: Threads are greenlets in this process.
    """
    refuse_green_threads()
    # Not by `get`, which takes the dictionary's lock where there is no GIL: a fork's child would
    # find it held for ever if another thread of its parent had it.
    try:
        return _pools["pool"]
    except KeyError:
        refuse_misspelt(os.environ)
        tunables = process_tunables(os.environ, dict(_calls))
        return _pools.setdefault("pool", Pool(read_topology(), tunables))


def max_threads() -> int:
    """The most threads that work on jobs in this process at a time.

    By default that is the number of CPUs that the process may use now: by its affinity, or by the
    smallest cgroup quota on the path to the root, rounded down, if that is less.
    ``AIOKTASK_MAX_THREADS`` replaces it. Threads that call `run_multithreaded_sync` always take
    part and may come on top.
    """
    pool = current_pool()
    pool.adapter.refresh()
    return pool.adapter.cap.threads


def set_max_threads(threads: int | None) -> None:
    """Change `max_threads`, also while jobs run; None goes back to `AIOKTASK_MAX_THREADS`,
    or else to what the machine gives.

    Helpers above a lower limit stop at the next chunk boundary.

    Raises:
        TypeError, ValueError: `threads` is no integer, or below 1.
    """
    _set(f"set_max_threads({threads})", max_threads=threads)


def configure(**values: Any) -> None:
    """Change tunables of the process, also while jobs run.

    Args:
        values: By name, as in the table of tunables in the documentation: `max_threads`,
            `max_threads_per_node`, `max_blocked`, `max_queued`, `max_wait`, `stuck_after`, `nice`,
            `give_way`, `share`, `learn`, `remember`, `initializer`, `limit_native_threads`,
            `trace`. What is not named stays as it is. They override ``AIOKTASK_`` variables of the
            same names.

    Raises:
        TypeError, ValueError: There is no such tunable, or a value is not what it may be; then
            nothing is changed.

    >>> configure(max_threads=0)
    Traceback (most recent call last):
        ...
    ValueError: configure(): max_threads must be at least 1, got 0

    An initializer is called in each helper before that takes work:

    >>> import asyncio, threading
    >>> from aioktask import run
    >>> mine = threading.local()
    >>> def prepare():
    ...     mine.device = "opened"
    >>> configure(initializer=prepare)
    >>> asyncio.run(run(lambda: mine.device))
    'opened'
    >>> configure(initializer=None)
    """
    _set("configure()", **values)


def tunables() -> dict[str, object]:
    """The process's tunables as they are now, by name."""
    return current_pool().adapter.tunables.data()


def _set(source: str, **values: Any) -> None:
    said: dict[str, tuple[str, Any] | None] = {}
    for name, value in checked(source, values).items():
        if name == "max_threads" and value is None:
            said[name] = None
        else:
            by = source if source != "configure()" else f"configure({name}={value!r})"
            said[name] = by, value
    # First, so that a wrong variable that no call replaces is refused before anything is changed.
    if "pool" not in _pools:
        refuse_misspelt(os.environ)
    process_tunables(os.environ, _without_none({**_calls, **said}))
    for name, found in said.items():  # one step each, so that a handler's call is not undone
        if found is None:
            _calls.pop(name, None)
        else:
            _calls[name] = found
    adapter = current_pool().adapter
    published: dict[str, tuple[str, Any]] | None = None
    while published != _calls:  # another thread, or a handler, may set something meanwhile
        published = dict(_calls)
        adapter.configure(process_tunables(os.environ, published))


def _without_none(
    calls: dict[str, tuple[str, Any] | None],
) -> dict[str, tuple[str, Any]]:
    return {name: found for name, found in calls.items() if found is not None}


def _at_exit() -> None:
    pool = _pools.get("pool")
    if pool is not None:
        pool.close()


def _after_fork_in_child() -> None:
    pool = _pools.pop("pool", None)
    if pool is None:
        return
    # A chunk that forked finds out by these two when it returns: see `end_child`.
    pool.dead = True
    pool.signals.change()
    pool.adapter.monitor.forget()
    pool.natives.forget()
    # The forking thread may be in a chunk: what it runs here is not nested in that.
    local.stint = None
    local.inside = False
    for stint in list(pool.state.serving):
        stint.live = False
    for helper in list(pool.state.helpers):
        if helper.express is not None:
            for stint in list(helper.express.stints.values()):
                stint.live = False


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
