# SPDX-License-Identifier: MIT
# The threads: how they are started, named, parked and woken. What they do is the pool's business.
#
# Every helper is started by one keeper thread, since a thread inherits its creator's nice, affinity
# and signal mask, and an unprivileged thread can never lower its nice again. The keeper has the
# process's own nice and affinity and blocks every signal. It also does what must not be done where
# it occurs: in a signal handler or a finalizer, which may interrupt the holder of a lock.
"""Helper threads."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Collection
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aioktask.engine.state.stint import Frame

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


def start_blocked(target: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread in which every signal is blocked from its first instruction on.

    Otherwise a SIGINT can land on it, and the main thread, blocked in a wait, never runs the
    handler; and a system call made through ctypes there fails with EINTR.
    """
    thread = threading.Thread(target=target, name=name, daemon=True)
    if not hasattr(signal, "pthread_sigmask"):
        thread.start()
        return thread
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return thread


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


class Keeper:
    """The thread that starts threads, and runs what must not run in a handler or finalizer."""

    def __init__(self) -> None:
        # SimpleQueue.put is reentrant: a signal handler or finalizer may interrupt another put.
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._watched: list[weakref.WeakMethod[Callable[[], bool]]] = []  # the keeper's own
        # Guards the making of the thread. Only tried: who holds it makes the thread for all.
        self._making = threading.Lock()

    def soon(self, function: Callable[[], None]) -> None:
        """Have `function` called on the keeper.

        Raises:
            RuntimeError: The keeper is not there yet, and the system has no thread for it.
        """
        if self._thread is None and self._making.acquire(blocking=False):
            try:
                if self._thread is None:
                    self._thread = start_blocked(self._keep, NAME)
            finally:
                self._making.release()
        self._queue.put(function)

    def watch(self, look: Callable[[], bool]) -> None:
        """Have `look`, a method, called every 0.1 s until it returns False or its owner is gone."""
        reference = weakref.WeakMethod(look)
        self.soon(lambda: self._watched.append(reference))

    def _keep(self) -> None:
        name_this_thread(f"{NAME} keeper")
        be_like_the_process()
        next_look = 0.0
        while True:
            if self._watched and time.monotonic() >= next_look:
                self._watched = [each for each in self._watched if _look(each)]
                next_look = time.monotonic() + WATCH_SECONDS
            try:
                function = self._queue.get(timeout=WATCH_SECONDS if self._watched else None)
            except Empty:
                continue
            if function is None:
                return
            try:
                function()
            except BaseException:  # without the keeper no helper would ever be started again
                traceback.print_exc()
            del function

    def stop(self) -> None:
        """End the thread after what it has been told, and wait for it."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()


def _look(reference: weakref.WeakMethod[Callable[[], bool]]) -> bool:
    """Call what is watched. A function of its own, so that nothing refers to it afterwards."""
    look = reference()
    try:
        return look is not None and look()
    except BaseException:  # without the keeper no helper would ever be started again
        traceback.print_exc()
        return False


class Parking:
    """A raw lock that one thread waits on until another opens it; opening twice is opening once."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, timeout: float = -1) -> bool:
        """Wait until it is open, and close it. False when `timeout` seconds passed instead."""
        return self._lock.acquire(timeout=timeout)

    def open(self) -> None:
        try:  # noqa: SIM105 - on the path of every short job
            self._lock.release()
        except RuntimeError:  # open already
            pass


class Helper:
    """One helper thread, as the pool sees it.

    Attributes:
        native: The kernel's number of the thread; 0 before it runs.
        nice: The thread's nice.
        node: The NUMA node that the thread is bound to, None for what the process may use.
        boost: The nice of who waits for a job that runs inside this helper's chunk, if that is
            lower than the job's.
        in_background: Whether it served a background job since the last look around.
        called: Whether it was given work while it was idle, and has not begun it yet.
    """

    __slots__ = (
        "boost",
        "called",
        "ends",
        "frame",
        "idle",
        "in_background",
        "native",
        "nice",
        "node",
        "parking",
        "relays",
        "thread",
    )

    def __init__(self, nice: int = 0) -> None:
        self.parking = Parking()
        self.native = 0
        self.nice = nice
        self.node: int | None = None
        self.boost: int | None = None
        self.in_background = False
        self.called = False
        self.frame: Frame | None = None  # what it serves or is about to
        self.idle = False  # whether it is among the idle ones, so may be given work
        self.ends = False  # whether it was woken to end
        self.relays = False  # whether it should wake more helpers before it works
        self.thread: threading.Thread | None = None


class Caller:
    """A thread that called `run_multithreaded_sync` and takes part in that run; its own waiter."""

    __slots__ = ("chunks", "frame", "nice", "parking", "quits")

    def __init__(self, nice: int, chunk: Frame | None = None) -> None:
        self.chunks: list[Frame] = []  # those that the thread is in, the innermost first
        self.nice = nice
        while chunk is not None:
            self.chunks.append(chunk)
            chunk = chunk.outer
        self.parking = Parking()
        self.frame: Frame | None = None  # what it serves or is about to
        self.quits = False  # whether it takes no further part: a second Ctrl-C

    def wake(self) -> None:
        self.parking.open()


class ThreadWaiter:
    """A thread that waits for a run and takes no part in it."""

    __slots__ = ("nice", "parking")

    def __init__(self, nice: int) -> None:
        self.parking = Parking()
        self.nice = nice

    def wake(self) -> None:
        self.parking.open()
