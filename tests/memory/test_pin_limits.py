# SPDX-License-Identifier: MIT
# Pins under RLIMIT_MEMLOCK and after a fork: each test is a function that runs in a fresh process,
# without privileges where it does not say otherwise. The refusals are the kernel's own.

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest

from aioktask.memory import _locks, _pin
from aioktask.memory._kernel import libc, memlock
from aioktask.memory._kernel.libc import PAGE
from aioktask.memory._kernel.memlock import Allowance
from aioktask.memory._pin import pin
from aioktask.memory._pin_owners import PinnedPages
from tests.memory.lock_state import (
    address_of,
    become_nobody,
    flags_of,
    in_a_child,
    locked_pages,
    not_here,
    resident_pages,
    vm_locked,
)
from tests.memory.sweep import shim

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_MEMLOCK of Linux")

PAGES = 16
CLONE_NEWUSER = 0x10000000


def private(pages: int = PAGES) -> mmap.mmap:
    memory = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory.madvise(mmap.MADV_DONTFORK)  # joined with no other mapping
    return memory


def part(memory: mmap.mmap, start: int, stop: int) -> Any:
    return np.frombuffer(memory, np.uint8)[start * PAGE : stop * PAGE]


def state_of(memory: mmap.mmap) -> tuple[object, ...]:
    return flags_of(memory), vm_locked(), _locks.of_this_process()._pages


def limit(nbytes: int) -> None:
    """The soft limit, which the process may raise again."""
    resource.setrlimit(
        resource.RLIMIT_MEMLOCK, (nbytes, resource.getrlimit(resource.RLIMIT_MEMLOCK)[1])
    )


def refused(call: Callable[[], object]) -> OSError:
    with pytest.raises(OSError, match=r".") as info:
        call()
    return info.value


def scenario_the_limit_is_exact() -> None:
    memory = private()
    before = state_of(memory)
    limit(PAGES * PAGE)
    with pin(memory):
        assert locked_pages(memory) == resident_pages(memory) == set(range(PAGES))
    limit(PAGES * PAGE + PAGE - 1)  # no whole page more
    with pin(memory):
        pass
    limit(PAGES * PAGE - 1)
    with shim() as calls:
        error = refused(pin(memory).open)
    assert error.errno == errno.ENOMEM
    assert f"{PAGES * PAGE} bytes were to be locked, 0 are locked" in str(error)
    assert f"RLIMIT_MEMLOCK allows {PAGES * PAGE - 1}: raise the limit" in str(error)
    assert set(calls.names) <= {"ioctl", "any_locked"}
    assert state_of(memory) == before
    assert resident_pages(memory) == set(range(PAGES))
    limit(0)
    error = refused(pin(memory).open)
    assert error.errno == errno.EPERM
    with pin(b""):
        pass
    assert state_of(memory) == before


def scenario_pages_do_not_count_twice() -> None:
    memory = private()
    before = state_of(memory)
    limit(12 * PAGE)
    with pin(part(memory, 0, 8)):
        with pin(part(memory, 4, 12)), pin(part(memory, 0, 12)):
            assert vm_locked() == 12 * PAGE
            error = refused(pin(memory).open)
            assert f"{4 * PAGE} bytes were to be locked, {12 * PAGE} are locked" in str(error)
        assert vm_locked() == 8 * PAGE
        libc.mlock2(address_of(memory) + 12 * PAGE, 4 * PAGE, on_fault=True)
        with pin(part(memory, 4, 8)), pin(part(memory, 13, 16)):
            assert vm_locked() == 12 * PAGE
        assert locked_pages(memory) == {*range(8), *range(12, 16)}
    libc.munlock(address_of(memory), PAGES * PAGE)
    assert state_of(memory) == before


def scenario_the_kernel_refuses_at_each_piece() -> None:
    memory = private()
    libc.mlock2(address_of(memory) + 5 * PAGE, PAGE, on_fault=True)
    with pin(part(memory, 9, 11)):
        before = state_of(memory)
        reached = set()
        with (
            mock.patch.object(_pin, "PIECE", 2 * PAGE),
            # As for who cannot know.
            mock.patch.object(memlock, "allowance", return_value=Allowance(None, 0, True)),
        ):
            for pages in range(3, PAGES):
                limit(pages * PAGE)
                with shim() as calls:
                    error = refused(pin(memory).open)
                assert error.errno == errno.ENOMEM
                assert str(error).startswith("[Errno 12] Cannot allocate memory: mlock2(")
                assert any("RLIMIT_MEMLOCK is" in each for each in error.__notes__)
                assert state_of(memory) == before
                reached.add(calls.names.count("mlock2"))
            assert len(reached) > 5
            limit(PAGES * PAGE)
            with pin(memory):
                assert locked_pages(memory) == set(range(PAGES))
        assert state_of(memory) == before


def scenario_a_capability_of_a_user_namespace_does_not_help() -> None:
    c_library = ctypes.CDLL(None, use_errno=True)
    if c_library.unshare(CLONE_NEWUSER) != 0:
        not_here(f"needs a user namespace: {os.strerror(ctypes.get_errno())}")
    assert memlock.allowance().privileged
    memory = private()
    before = state_of(memory)
    limit(4 * PAGE)
    error = refused(pin(memory).open)
    assert (error.errno, "mlock2(" in str(error)) == (errno.ENOMEM, True)
    assert state_of(memory) == before


def scenario_who_has_the_capability_is_let_through() -> None:
    if os.geteuid() != 0 or not memlock.allowance().privileged:
        not_here("needs root with CAP_IPC_LOCK")
    memory = private()
    limit(0)
    with pin(memory):
        assert locked_pages(memory) == set(range(PAGES))
    become_nobody()
    assert not memlock.allowance().privileged
    assert refused(pin(memory).open).errno == errno.EPERM


def in_a_fork(check: Callable[[], None]) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            check()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def scenario_a_fork_has_no_locks_and_leaves_the_parents_alone() -> None:
    # Not kept out of the child as the others are.
    memory = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    unopened = pin(part(memory, 2, 6))
    pinned = pin(part(memory, 0, 8)).open()

    def child() -> None:
        assert vm_locked() == 0
        assert _locks.of_this_process()._pages == PinnedPages()
        with unopened:
            assert locked_pages(memory) == set(range(2, 6))
            pinned.close()
            assert locked_pages(memory) == set(range(2, 6))
        assert locked_pages(memory) == set()

    in_a_fork(child)
    assert locked_pages(memory) == set(range(8))
    pinned.close()
    assert locked_pages(memory) == set()


def scenario_a_fork_while_another_thread_locks() -> None:
    """The child is not stuck on what the other thread was about to let go of."""
    memory = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    inside, go_on = threading.Event(), threading.Event()

    def action(_: int, name: str) -> None:
        if name == "any_locked" and not inside.is_set():
            inside.set()
            assert go_on.wait(60)

    def child() -> None:
        with pin(memory):
            assert locked_pages(memory) == set(range(PAGES))

    with shim(action):
        thread = threading.Thread(target=lambda: pin(memory).open().close())
        thread.start()
        assert inside.wait(60)
        in_a_fork(child)
        go_on.set()
        thread.join()
    assert locked_pages(memory) == set()


UNPRIVILEGED = [
    scenario_the_limit_is_exact,
    scenario_pages_do_not_count_twice,
    scenario_the_kernel_refuses_at_each_piece,
    scenario_a_capability_of_a_user_namespace_does_not_help,
]
AS_WE_ARE = [
    scenario_who_has_the_capability_is_let_through,
    scenario_a_fork_has_no_locks_and_leaves_the_parents_alone,
    scenario_a_fork_while_another_thread_locks,
]


@pytest.mark.parametrize("scenario", UNPRIVILEGED, ids=lambda each: each.__name__[9:])
def test_without_privileges(scenario: Callable[[], None]) -> None:
    in_a_child(scenario)


@pytest.mark.parametrize("scenario", AS_WE_ARE, ids=lambda each: each.__name__[9:])
def test_in_a_process_of_its_own(scenario: Callable[[], None]) -> None:
    in_a_child(scenario, privileged=True)
