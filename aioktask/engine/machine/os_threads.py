# SPDX-License-Identifier: MIT
# What the operating system is asked about threads: to start one, name it, bind it to CPUs, give it
# a nice, and tell what it did. Each is one call or two; who asks, and when, is decided elsewhere.
#
# Linux gives each thread a nice of its own; elsewhere it is the process's, which nobody touches.
"""System calls about threads."""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import os
import resource
import sys
import threading
from collections.abc import Callable, Collection

__all__ = [
    "NAME",
    "be_like_the_process",
    "bind_thread",
    "kernel_and_delay_ns",
    "may_lower",
    "name_this_thread",
    "process_nice",
    "set_thread_nice",
    "start_thread",
]

# Of all threads of the engine that have nothing to do.
NAME = "aioktask"

_NAME_BYTES = 15  # of the kernel's name of a thread
_PR_SET_NAME = 15
_CAP_SYS_NICE = 23
_NICE_IS_OF_THREADS = sys.platform.startswith("linux")


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


def process_nice() -> int:
    """The nice of the process's main thread; 0 where that cannot be known."""
    try:
        return os.getpriority(os.PRIO_PROCESS, os.getpid())
    except (AttributeError, OSError):  # the main thread has ended, others go on
        return 0


def set_thread_nice(thread: int, nice: int) -> bool:
    """Give a thread of this process a nice; False where it may not have so low a one.

    Raises:
        OSError: There is no such thread (ESRCH).
    """
    if not _NICE_IS_OF_THREADS:
        return True
    try:
        os.setpriority(os.PRIO_PROCESS, thread, nice)
    except PermissionError:
        return False
    return True


def may_lower(nice: int) -> bool:
    """Whether a thread of this process that has a higher nice may go back to this one.

    By the limit (`RLIMIT_NICE`) or the capability (`CAP_SYS_NICE`). In a container the latter may
    be worth nothing: `set_thread_nice` finds out.
    """
    if not _NICE_IS_OF_THREADS:
        return True

    limit, _ = resource.getrlimit(resource.RLIMIT_NICE)
    if limit == resource.RLIM_INFINITY or 20 - limit <= nice:
        return True
    try:
        with open("/proc/self/status", "rb", buffering=0) as file:
            status = file.read()
    except OSError:
        return False
    _, found, rest = status.partition(b"CapEff:")
    return bool(found) and bool(int(rest.split()[0], 16) >> _CAP_SYS_NICE & 1)
