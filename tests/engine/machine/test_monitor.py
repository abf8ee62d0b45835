# SPDX-License-Identifier: MIT
# The monitor takes what it is refused for not known: slots that cannot be shared are shared no
# more, unless it is for a shortage, which passes.

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest

from aioktask.engine.machine import monitor as module
from aioktask.engine.machine import slots
from aioktask.engine.machine.monitor import Monitor
from aioktask.engine.machine.os_threads import NiceChange
from aioktask.engine.machine.topology import read_topology
from tests.engine.machine.test_os_threads import nothing_denied

__all__ = ["nothing_denied"]

pytestmark = pytest.mark.skipif(not slots._SETLK, reason="no locks of open file descriptions here")


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Monitor:
    monkeypatch.setattr(module, "slots_path", lambda name: tmp_path / name)
    return Monitor(read_topology())


def sample(monitor: Monitor) -> int | None:
    return monitor.sample(2, "some", {threading.get_native_id(): True}).share


class Refusal:
    """Every lock is refused, and the tries are counted: those of the test's thread alone."""

    def __init__(self, error: int) -> None:
        self.error, self.tries = error, 0
        self.asked, self.thread = slots.fcntl.fcntl, threading.get_ident()

    def __call__(self, fd: int, command: int, flock: bytes) -> Any:
        if threading.get_ident() != self.thread:
            return self.asked(fd, command, flock)
        self.tries += 1
        raise OSError(self.error, "no")


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS, errno.EBADF])
def test_locks_that_are_denied_are_asked_for_no_more(
    monkeypatch: pytest.MonkeyPatch, monitor: Monitor, error: int
) -> None:
    assert sample(monitor) is None
    assert monitor.slots is not None
    refusal = Refusal(error)
    with monkeypatch.context() as patch:
        patch.setattr(slots.fcntl, "fcntl", refusal)
        assert sample(monitor) is None
        tries = refusal.tries
        assert tries
        assert sample(monitor) is None
        assert refusal.tries == tries
    assert monitor.slots is None
    assert monitor.slots_refused is not None
    assert monitor.slots_refused.errno == error


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOMEM])
def test_locks_that_are_short_are_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, monitor: Monitor, error: int
) -> None:
    sample(monitor)
    with monkeypatch.context() as patch:
        patch.setattr(slots.fcntl, "fcntl", Refusal(error))
        sample(monitor)
        assert monitor.slots_refused is not None
    sample(monitor)
    assert monitor.slots_refused is None
    assert monitor.slots is not None
    assert monitor.slots.held
    monitor.close()


def test_a_close_that_is_refused_closes_all_the_same(
    monkeypatch: pytest.MonkeyPatch, monitor: Monitor
) -> None:
    sample(monitor)
    held = monitor.slots
    assert held is not None
    with monkeypatch.context() as patch:
        patch.setattr(slots.fcntl, "fcntl", Refusal(errno.EPERM))
        monitor.release()
        monitor.close()
    assert monitor.slots is None
    with pytest.raises(ValueError, match="closed"):
        held.look(frozenset({0}), 1, 0)


def test_without_a_folder_for_slots_none_are_shared(
    monkeypatch: pytest.MonkeyPatch, monitor: Monitor
) -> None:
    def nowhere(name: str) -> Path:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(module, "slots_path", nowhere)
    assert sample(monitor) is None
    assert monitor.slots is None
    assert monitor.slots_refused is not None


@pytest.mark.parametrize(
    ("process", "own", "may", "found"),
    [
        (0, 0, False, 0),
        (5, 0, False, 5),
        (-5, 0, False, 0),
        (-5, 0, True, -5),
        (-5, None, False, -5),
    ],
)
def test_the_nice_is_one_that_new_threads_may_have(
    monkeypatch: pytest.MonkeyPatch,
    monitor: Monitor,
    process: int,
    own: int | None,
    may: bool,
    found: int,
) -> None:
    nice, tries = own, []
    # What is patched is asked by the keepers of other coordinators, too.
    mine = threading.get_native_id()

    def change(thread: int, wanted: int) -> NiceChange:
        nonlocal nice
        if thread != mine:
            return NiceChange.TOO_LOW
        tries.append(wanted)
        if not may:
            return NiceChange.TOO_LOW
        nice = wanted
        return NiceChange.DONE

    monkeypatch.setattr(module, "process_nice", lambda: process)
    monkeypatch.setattr(module, "thread_nice_now", lambda thread: nice)
    monkeypatch.setattr(module, "set_thread_nice", change)
    for _ in range(3):
        assert monitor.sample(0, None, {}).nice == found
    assert len(tries) == (own is not None and own > process)  # it is asked for once
