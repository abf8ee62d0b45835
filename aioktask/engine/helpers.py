# SPDX-License-Identifier: MIT
# The threads: how they are started, named, parked and woken. What they do is the pool's business.
#
# Every helper is started by one keeper thread, since a thread inherits its creator's nice, affinity
# and signal mask, and an unprivileged thread can never lower its nice again. The keeper has the
# process's own nice and affinity and blocks every signal. It also does what must not be done where
# it occurs: in a signal handler or a finalizer, which may interrupt the holder of a lock.
"""Helper threads."""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import os
import resource
import sys
import threading
from collections.abc import Callable, Collection

NAME = "aioktask"
WATCH_SECONDS = 0.1
_NAME_BYTES = 15  # of the kernel's name of a thread
_PR_SET_NAME = 15


def kernel_and_delay_ns() -> tuple[int, int]:
    """How long the kernel worked for this thread, and how long it waited for a CPU.

    Both 0 where nobody tells.
    """
    try:
        with open("/proc/thread-self/schedstat", "rb", buffering=0) as file:
            delay = int(file.read().split()[1])
        return int(resource.getrusage(resource.RUSAGE_THREAD).ru_stime * 1e9), delay
    except (OSError, AttributeError, IndexError, ValueError):
        return 0, 0


def _find_prctl() -> Callable[[int, bytes], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        # PyDLL keeps the GIL: giving it up and waiting for it costs far more than this call.
        prctl = ctypes.PyDLL(None).prctl
    except (OSError, AttributeError):
        return None
    prctl.argtypes = [ctypes.c_int, ctypes.c_char_p]
    prctl.restype = ctypes.c_int
    return prctl


_prctl = _find_prctl()


def name_this_thread(name: str) -> None:
    """Name the calling thread, for Python and (its first 15 bytes) for the kernel."""
    thread = threading.current_thread()
    if thread.name == name:
        return
    thread.name = name
    if _prctl is not None:
        _prctl(_PR_SET_NAME, name.encode("utf-8", "replace")[:_NAME_BYTES].replace(b"\0", b"?"))


def start_thread(target: Callable[[], None], name: str) -> None:
    """Start a daemon thread, and wait for nothing.

    Raises:
        RuntimeError: The system has no more threads for this process.
    """
    _thread.start_new_thread(target, ())


def bind_thread(thread: int, cpus: Collection[int]) -> bool:
    """Bind a thread of this process to these CPUs; False where that cannot be, at present or ever.

    A thread that is bound so already is left alone, so that it goes on following its cgroup.
    """
    if not hasattr(os, "sched_setaffinity"):
        return False
    try:
        if os.sched_getaffinity(thread) != cpus:
            os.sched_setaffinity(thread, cpus)
    except OSError:  # none of them is online any more, or the thread has ended
        return False
    return True


def be_like_the_process() -> None:
    """Take the nice and affinity of the process's main thread, as far as this is allowed."""
    process = os.getpid()
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, os.sched_getaffinity(process))
    with contextlib.suppress(OSError):
        mine = threading.get_native_id()
        nice = os.getpriority(os.PRIO_PROCESS, process)
        if sys.platform.startswith("linux") and os.getpriority(os.PRIO_PROCESS, mine) != nice:
            os.setpriority(os.PRIO_PROCESS, mine, nice)
