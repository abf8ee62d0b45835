# SPDX-License-Identifier: MIT
# Threads are started without waiting for them, and what the system refuses about them is taken as
# it is: asked for once, noted, and never raised.

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from errno import EACCES, EINVAL, ENOSYS, EPERM, ESRCH

import pytest

from aioktask.engine.machine import denials, os_threads
from aioktask.engine.machine.os_threads import (
    NiceChange,
    bind_thread,
    cpu_time_ns,
    kernel_and_delay_ns,
    may_lower,
    name_this_thread,
    nice_can_be_set,
    process_nice,
    set_thread_nice,
    start_thread,
    thread_nice_now,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="threads have a nice on Linux alone")


@pytest.fixture(autouse=True)
def nothing_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a fresh process, for each test."""
    monkeypatch.setattr(denials, "_first", {})
    monkeypatch.setattr(os_threads, "_nice_denied", False)


def raising(error: BaseException, asked: list[object] | None = None) -> Callable[..., int]:
    def call(*arguments: object, **options: object) -> int:
        if asked is not None:
            asked.append(arguments)
        raise error

    return call


# Starting


def test_a_thread_keeps_nothing_of_its_starter_s_context() -> None:
    """Free-threaded Python has a thread begin with a copy of it since 3.14."""
    variable: ContextVar[str] = ContextVar("variable", default="of nobody")
    seen: list[str] = []
    variable.set("the starter's")
    start_thread(lambda: seen.append(variable.get()), "a name").join()
    assert seen == ["of nobody"]


def test_a_thread_is_started_under_its_name_and_joined() -> None:
    seen: list[tuple[str, bool]] = []

    def target() -> None:
        current = threading.current_thread()
        seen.append((current.name, current.daemon))

    thread = start_thread(target, "a name")
    thread.join()
    assert seen == [("a name", True)]
    assert not thread.is_alive()


@linux
def test_the_kernel_knows_a_thread_by_its_name_from_the_begin() -> None:
    seen: list[str] = []

    def target() -> None:
        with open("/proc/thread-self/comm") as file:
            seen.append(file.read())

    start_thread(target, "of two words").join()
    assert seen == ["of two words\n"]


def test_a_start_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # A thread that ends before it has run any Python code, as for want of memory.
    def start(*arguments: object, **options: object) -> None:
        return None

    for name in ("_start_new_thread", "_start_joinable_thread"):
        if hasattr(threading, name):
            monkeypatch.setattr(threading, name, start)
    monkeypatch.setattr(os_threads, "BEGIN_SECONDS", 0.01)
    thread = start_thread(pytest.fail, "never runs")
    assert not thread.is_alive()
    thread.join()
    monkeypatch.undo()
    with threading._active_limbo_lock:  # type: ignore[attr-defined]
        threading._limbo.pop(thread, None)  # type: ignore[attr-defined]


def test_a_thread_is_seen_by_the_hooks_of_debuggers_and_profilers() -> None:
    seen = []
    threading.setprofile(lambda frame, event, argument: seen.append(frame.f_code.co_name))
    try:

        def target_of_the_test() -> None:
            pass

        start_thread(target_of_the_test, "seen").join()
    finally:
        threading.setprofile(None)
    assert "target_of_the_test" in seen


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signal masks are of POSIX")
@pytest.mark.parametrize("blocked", [set(), {signal.SIGUSR1}], ids=["none", "SIGUSR1"])
def test_a_thread_has_the_signal_mask_of_who_starts_it(blocked: set[signal.Signals]) -> None:
    seen = []
    before = signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    try:
        start_thread(lambda: seen.append(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "").join()
        assert seen == [blocked] == [signal.pthread_sigmask(signal.SIG_BLOCK, ())]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), MemoryError(), OSError(EPERM, "no")]
)
def test_a_thread_that_cannot_be_started_is_a_runtime_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(threading.Thread, "start", raising(error))
    with pytest.raises(RuntimeError, match="can't start new thread"):
        start_thread(pytest.fail, "never runs")
    assert list(denials.denied()) == ["start a thread"]


# Nice


@linux
@pytest.mark.parametrize("error", [EPERM, EACCES, ENOSYS, EINVAL])
def test_a_higher_nice_that_is_refused_is_asked_for_once(
    monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(os, "setpriority", raising(OSError(error, os.strerror(error)), asked))
    monkeypatch.setattr(os, "getpriority", lambda *arguments: 0)
    assert nice_can_be_set()
    for nice in (5, 0, 19):
        assert set_thread_nice(threading.get_native_id(), nice) is NiceChange.DENIED
    assert not nice_can_be_set()
    assert len(asked) == 1
    assert denials.denied() == {
        "setpriority, a thread's nice": denials.errno.errorcode[error] + f" ({os.strerror(error)})"
    }


@linux
@pytest.mark.parametrize("error", [EPERM, EACCES])
def test_only_a_lower_nice_that_is_refused_is_a_reason_to_use_another_thread(
    monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    monkeypatch.setattr(os, "setpriority", raising(PermissionError(error, "no")))
    monkeypatch.setattr(os, "getpriority", lambda *arguments: 10)
    assert set_thread_nice(threading.get_native_id(), 9) is NiceChange.TOO_LOW
    assert nice_can_be_set()
    assert denials.denied() == {}


@linux
@pytest.mark.parametrize("error", [ProcessLookupError(ESRCH, "no"), OverflowError()])
def test_a_thread_that_has_ended_needs_no_nice(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(os, "setpriority", raising(error))
    assert set_thread_nice(threading.get_native_id() + 1, 5) is NiceChange.GONE
    assert nice_can_be_set()


@linux
def test_no_such_thread_is_a_denial_to_the_thread_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "setpriority", raising(ProcessLookupError(ESRCH, "no")))
    assert set_thread_nice(threading.get_native_id(), 5) is NiceChange.DENIED
    assert not nice_can_be_set()


@linux
def test_a_thread_can_be_given_a_nice() -> None:
    seen = []

    def target() -> None:
        thread = threading.get_native_id()
        nice = min(process_nice() + 1, 19)
        seen.append((set_thread_nice(thread, nice), thread_nice_now(thread) == nice))

    start_thread(target, "nice").join()
    assert seen == [(NiceChange.DONE, True)]


def test_no_nice_is_known_where_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpriority", raising(OSError(EPERM, "no")), raising=False)
    assert process_nice() == 0
    assert thread_nice_now(1) is None


@linux
def test_where_no_nice_can_be_set_none_has_to_be_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os_threads, "_nice_denied", True)
    assert may_lower(0)


@linux
def test_who_cannot_ask_for_its_rights_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os_threads.resource, "getrlimit", raising(OSError(EPERM, "no")))
    monkeypatch.setattr(os_threads, "read_bytes", lambda path: b"")
    assert not may_lower(0)
    monkeypatch.setattr(os_threads, "read_bytes", lambda path: b"CapEff:\t0000000000800000\n")
    assert may_lower(0)


# The rest


@pytest.mark.parametrize("error", [OSError(EPERM, "no"), OverflowError()])
def test_cpus_that_are_refused_are_a_false(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", raising(error), raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", raising(error), raising=False)
    assert not bind_thread(0, {0})
    assert "sched_getaffinity, a thread's CPUs" in denials.denied()


@pytest.mark.skipif(os_threads._prctl is None, reason="prctl is Linux's")
def test_a_name_that_the_kernel_refuses_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(option: int, name: bytes) -> int:
        asked.append(name)
        os_threads.ctypes.set_errno(EPERM)
        return -1

    monkeypatch.setattr(os_threads, "_prctl", refuse)
    name = threading.current_thread().name
    try:
        for each in ("one", "two"):
            name_this_thread(each)
            assert threading.current_thread().name == each
    finally:
        threading.current_thread().name = name
    assert asked == [b"one"]
    assert denials.denied() == {
        "prctl(PR_SET_NAME), a thread's name": "EPERM (Operation not permitted)"
    }


@pytest.mark.skipif(os_threads._prctl is None, reason="prctl is Linux's")
def test_a_name_for_which_memory_is_short_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """ctypes tells that as an error of the arguments. The job goes on, and no call is refused."""
    short = raising(os_threads.ctypes.ArgumentError("argument 2: MemoryError: "))
    monkeypatch.setattr(os_threads, "_prctl", short)
    monkeypatch.setattr(threading.current_thread(), "name", threading.current_thread().name)
    name_this_thread("one")
    assert os_threads._prctl is short
    assert denials.denied() == {}


def test_times_that_are_refused_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os_threads.time, "thread_time_ns", raising(OSError(ENOSYS, "no")))
    monkeypatch.setattr("builtins.open", raising(OSError(EACCES, "no")))
    assert cpu_time_ns() == 0
    assert kernel_and_delay_ns() == (0, 0)
    monkeypatch.undo()
    assert cpu_time_ns() > 0
