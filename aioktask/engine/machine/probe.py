# SPDX-License-Identifier: MIT
# What a job would be refused, found out without a job: for `info`.
"""A trial of what the engine asks of the system."""

from __future__ import annotations

import contextlib
import threading

from aioktask.engine.machine.denials import denied
from aioktask.engine.machine.monitor import Monitor
from aioktask.engine.machine.os_threads import (
    NAME,
    be_like_the_process,
    bind_thread,
    cpu_time_ns,
    kernel_and_delay_ns,
    name_this_thread,
    set_thread_nice,
    start_thread,
    thread_nice_now,
)
from aioktask.engine.machine.topology import affinity_of, read_topology

__all__ = ["probe"]


def probe(share: str | None) -> dict[str, str]:
    """Ask once for all that the engine asks for, and tell what was refused to this process so far.

    Nothing is different afterwards: what is set is set on a thread that ends here.

    Args:
        share: The name of the process's set of slots, None for none.

    Returns:
        The error of each call that was refused, as by `denied`.
    """
    with contextlib.suppress(RuntimeError):  # noted
        start_thread(_ask, NAME).join()
    monitor = Monitor(read_topology())
    monitor.sample(0, share, {threading.get_native_id(): True})
    monitor.close()
    return denied()


def _ask() -> None:
    thread = threading.get_native_id()
    name_this_thread(f"{NAME} probe")
    be_like_the_process()
    nice = thread_nice_now(thread)
    if nice is not None:
        set_thread_nice(thread, min(nice + 1, 19))
    cpus = affinity_of(thread)
    if cpus is not None and len(cpus) > 1:
        bind_thread(thread, {min(cpus)})
    kernel_and_delay_ns()
    cpu_time_ns()
