# SPDX-License-Identifier: MIT
# What the operating system is asked about threads: to start one, name it, bind it to CPUs, give it
# a nice, and tell what it did. Each is one call or two; who asks, and when, is decided elsewhere.
#
# Any of these calls may be refused, by a sandbox or for want of something: then the answer says so,
# the denial is noted, and nothing but a thread that cannot be started raises. What a sandbox
# refuses once it refuses always, so a nice or a name is not asked for again.
#
# Linux gives each thread a nice of its own; elsewhere it is the process's, which is left alone.
"""System calls about threads."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextvars import Context
from enum import Enum
from typing import Any

from aioktask.engine.machine.denials import note_denial
from aioktask.engine.machine.kernel_files import read_bytes
from aioktask.engine.machine.topology import affinity_of

if sys.platform != "win32":
    import resource

__all__ = [
    "NAME",
    "NiceChange",
    "be_like_the_process",
    "bind_thread",
    "cpu_time_ns",
    "kernel_and_delay_ns",
    "may_lower",
    "name_this_thread",
    "nice_can_be_set",
    "process_nice",
    "set_thread_nice",
    "start_thread",
    "thread_nice_now",
]

_CAPABILITIES = re.compile(rb"^CapEff:\s*([0-9a-f]+)$", re.MULTILINE)

# The name of the engine's threads that have nothing to do.
NAME = "aioktask"

_NAME_BYTES = 15  # of the kernel's name of a thread
_PR_SET_NAME = 15
_CAP_SYS_NICE = 23
_ON_LINUX = sys.platform.startswith("linux")

# Starting a thread.


# How long `join` waits for a thread that was started to run its first line.
BEGIN_SECONDS = 5.0


def _empty_context() -> dict[str, Any]:
    """What `threading.Thread` is told for an empty context, which is all there is before 3.14."""
    return {"context": Context()} if sys.version_info >= (3, 14) else {}


class _Unawaited(threading.Event):
    """An event that `threading.Thread.start` does not wait for."""

    def wait(self, timeout: float | None = None) -> bool:
        return True


class EngineThread(threading.Thread):
    """A thread of the engine, whose `start` does not wait until it runs.

    `threading.Thread.start` waits, without a limit, for an event that the new thread sets in Python
    code. For want of memory that event may never be set, and where a signal handler raises in this
    wait, the caller would not know of a thread that runs.

    It begins in an empty context. Since Python 3.14 a free-threaded build gives a thread a copy of
    its starter's otherwise, and the engine's threads would keep that program's values for ever.
    """

    def __init__(self, target: Callable[[], None], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True, **_empty_context())
        # CPython's own name for it, in 3.11 to 3.15 at least. Without it `start` waits as ever.
        self._unawaited = _Unawaited() if hasattr(self, "_started") else None
        if self._unawaited is not None:
            self._started = self._unawaited

    def run(self) -> None:
        """Call the target, under the thread's name in the kernel too."""
        _name_in_kernel(self.name)
        super().run()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the thread's end, but no longer than BEGIN_SECONDS for its first line."""
        if self._unawaited is not None:
            most = BEGIN_SECONDS if timeout is None else min(timeout, BEGIN_SECONDS)
            if not threading.Event.wait(self._unawaited, most):
                return
        super().join(timeout)


def start_thread(target: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread, without waiting until it runs.

    The thread is like any that the caller might start: it has the caller's signal mask, nice and
    affinity, and debuggers and profilers see it under its name. A signal handler may raise here
    after the thread was made, so code that must know of the thread learns of it from the target,
    not from what this returns.

    Args:
        target: What the thread calls.
        name: Its name, as by `name_this_thread`.

    Raises:
        RuntimeError: The system has no more threads for this process.
    """
    try:
        thread = EngineThread(target, name)
        thread.start()
    except RecursionError:  # no fault of the system's
        raise
    except (MemoryError, OSError, RuntimeError) as error:
        note_denial("start a thread", errno.EAGAIN)
        if isinstance(error, RuntimeError):
            raise
        raise RuntimeError("can't start new thread") from error
    return thread


# What it is called, where it runs and how urgently.


def _find_prctl() -> Callable[[int, bytes], int] | None:
    if not _ON_LINUX:
        return None
    try:
        # PyDLL keeps the GIL: giving it up and waiting for it costs far more than this call.
        prctl = ctypes.PyDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return None
    prctl.argtypes = [ctypes.c_int, ctypes.c_char_p]
    prctl.restype = ctypes.c_int
    return prctl


_prctl = _find_prctl()


def name_this_thread(name: str) -> None:
    """Name the calling thread, for Python and (its first 15 bytes) for the kernel."""
    thread = threading.current_thread()
    if thread.name != name:
        thread.name = name
        _name_in_kernel(name)


def _name_in_kernel(name: str) -> None:
    global _prctl
    prctl = _prctl  # another thread may find out meanwhile that it is refused
    if prctl is not None:
        kernel_name = name.encode("utf-8", "replace")[:_NAME_BYTES].replace(b"\0", b"?")
        try:
            refused = prctl(_PR_SET_NAME, kernel_name)
        except ctypes.ArgumentError:  # so ctypes says that memory was short; a name is no matter
            return
        if refused:
            note_denial("prctl(PR_SET_NAME), a thread's name", ctypes.get_errno())
            _prctl = None


def bind_thread(thread: int, cpus: Collection[int]) -> bool:
    """Bind a thread of this process to these CPUs; False where that cannot be, at present or ever.

    A thread that is bound so already is left alone, so that it goes on following its cgroup.
    """
    if not hasattr(os, "sched_setaffinity"):
        return False
    if affinity_of(thread) == cpus:
        return True
    try:
        os.sched_setaffinity(thread, cpus)
    except (OSError, OverflowError) as error:
        # Also where none of them is online any more (EINVAL), or the thread has ended (ESRCH).
        note_denial("sched_setaffinity, a thread's CPUs", getattr(error, "errno", None))
        return False
    return True


def be_like_the_process() -> None:
    """Take the nice and affinity of the process's main thread, as far as this is allowed."""
    process, thread = os.getpid(), threading.get_native_id()
    cpus = affinity_of(process)
    if cpus is not None:
        bind_thread(thread, cpus)
    if _ON_LINUX:
        nice = _nice_of(process)
        if nice is not None and thread_nice_now(thread) != nice:
            set_thread_nice(thread, nice)


class NiceChange(Enum):
    """What became of the wish to give a thread another nice."""

    DONE = "it has that nice"
    TOO_LOW = "it may not go back to so low a nice; a new thread of the process might have it"
    DENIED = "no thread of this process may be given a nice, and nobody should ask again"
    GONE = "there is no such thread"


_nice_denied = False


def nice_can_be_set() -> bool:
    """Whether threads may be given a nice at all, as far as this is known by now.

    What is True may become False, and what is False stays so. Without it every thread runs at the
    nice that it began with, which is that of the thread that started it.
    """
    return _ON_LINUX and not _nice_denied


def set_thread_nice(thread: int, nice: int) -> NiceChange:
    """Give a thread of this process a nice.

    The answer is DENIED off Linux, and after a denial, without asking the system again.

    Args:
        thread: The kernel's number of it.
        nice: -20 to 19.
    """
    global _nice_denied
    if not nice_can_be_set():
        return NiceChange.DENIED
    try:
        os.setpriority(os.PRIO_PROCESS, thread, nice)
    except OverflowError:  # no thread's number
        return NiceChange.GONE
    except OSError as error:
        if error.errno == errno.ESRCH and thread != threading.get_native_id():
            return NiceChange.GONE
        now = thread_nice_now(thread)
        if isinstance(error, PermissionError) and now is not None and nice < now:
            return NiceChange.TOO_LOW
        # Any thread may have a higher nice (setpriority(2)), so it is the call that is refused.
        _nice_denied = True
        note_denial("setpriority, a thread's nice", error.errno)
        return NiceChange.DENIED
    return NiceChange.DONE


def thread_nice_now(thread: int) -> int | None:
    """The nice of a thread of this process; None where that cannot be known, or off Linux."""
    return _nice_of(thread) if _ON_LINUX else None


def process_nice() -> int:
    """The nice of the process's main thread; 0 where that cannot be known."""
    return _nice_of(os.getpid()) or 0  # it cannot where the main thread has ended, others go on


def _nice_of(thread: int) -> int | None:
    if sys.platform == "win32":
        return None
    try:
        return os.getpriority(os.PRIO_PROCESS, thread)
    except (OSError, OverflowError) as error:
        note_denial("getpriority, a thread's nice", getattr(error, "errno", None))
        return None


def may_lower(nice: int) -> bool:
    """Whether a thread of this process that has a higher nice may go back to this one.

    The limit (`RLIMIT_NICE`) or the capability (`CAP_SYS_NICE`) allows it. In a container the
    latter may be worth nothing, which `set_thread_nice` finds out.
    """
    if not nice_can_be_set():
        return True  # none ever has a higher one
    try:
        limit, _ = resource.getrlimit(resource.RLIMIT_NICE)
        if limit == resource.RLIM_INFINITY or 20 - limit <= nice:
            return True
    except OSError as error:
        note_denial("getrlimit(RLIMIT_NICE)", error.errno)
    found = _CAPABILITIES.search(read_bytes("/proc/self/status"))
    return found is not None and bool(int(found[1], 16) >> _CAP_SYS_NICE & 1)


# What it did.


def cpu_time_ns() -> int:
    """The CPU time of the calling thread; 0 where the system does not tell."""
    try:
        return time.thread_time_ns()
    except OSError as error:
        note_denial("clock_gettime, a thread's CPU time", error.errno)
        return 0


def kernel_and_delay_ns() -> tuple[int, int]:
    """How long the kernel worked for the calling thread, and how long that waited for a CPU.

    Both are 0 where the system does not tell.
    """
    try:
        with open("/proc/thread-self/schedstat", "rb", buffering=0) as file:
            delay = int(file.read().split()[1])
        return int(resource.getrusage(resource.RUSAGE_THREAD).ru_stime * 1e9), delay
    except OSError as error:
        note_denial("read /proc/thread-self/schedstat, or getrusage", error.errno)
    except (AttributeError, IndexError, NameError, ValueError):
        pass
    return 0, 0
