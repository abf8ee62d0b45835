# SPDX-License-Identifier: MIT
# What the kernel says of locks on memory, and a child process to try limits and privileges in.

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from aioktask.memory._kernel.libc import PAGE
from tests.support.patience import PATIENCE

NOBODY = 65534
SKIPPED = "skipped: "
FLAGS = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) |^VmFlags: (.*)$", re.MULTILINE)
VM_LCK = re.compile(r"^VmLck:\s+(\d+) kB", re.MULTILINE)

Pages = dict[int, frozenset[str]]


def address_of(memory: Any) -> int:
    return int(np.frombuffer(memory, np.uint8).ctypes.data)


def vm_locked() -> int:
    """How many bytes are locked in this process."""
    found = VM_LCK.search(Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def flags_of(memory: Any) -> Pages:
    """The flags in smaps of each page that `memory` touches, by its number from the first one."""
    data = np.frombuffer(memory, np.uint8)
    start = data.ctypes.data // PAGE * PAGE
    stop = data.ctypes.data + data.nbytes
    found: Pages = {}
    first = last = 0
    for begins, ends, flags in FLAGS.findall(Path("/proc/self/smaps").read_text()):
        if begins:
            first, last = int(begins, 16), int(ends, 16)
            continue
        for page in range(max(first, start), min(last, stop), PAGE):
            found[(page - start) // PAGE] = frozenset(flags.split())
    return found


def locked_pages(memory: Any) -> set[int]:
    """The numbers of the pages that are locked, on fault or at once."""
    return {page for page, flags in flags_of(memory).items() if "lo" in flags}


def resident_pages(memory: Any) -> set[int]:
    data = np.frombuffer(memory, np.uint8)
    start = data.ctypes.data // PAGE * PAGE
    nbytes = data.ctypes.data + data.nbytes - start
    vector = np.empty(-(-nbytes // PAGE), np.uint8)
    # Not by `_kernel.libc`, where a test may count the calls.
    arguments = ctypes.c_void_p(start), ctypes.c_size_t(nbytes), ctypes.c_void_p(vector.ctypes.data)
    assert ctypes.CDLL(None).mincore(*arguments) == 0
    return {int(page) for page in np.flatnonzero(vector & 1)}


def in_a_child(scenario: Callable[[], None], *, privileged: bool = False) -> None:
    """Call a function of a test module in a fresh process, by its name, and have it pass there.

    Unless `privileged`, the process gives up root before, and all capabilities with it.
    """
    code = (
        f"import {scenario.__module__} as module, tests.memory.lock_state as lock_state\n"
        f"if not {privileged}:\n    lock_state.become_nobody()\n"
        f"module.{scenario.__name__}()\n"
        f"print('passed')"
    )
    told = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=Path(__file__).parents[2],
        # A process with threads cannot enter a user namespace.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if told.stdout.startswith(SKIPPED):
        pytest.skip(told.stdout.removeprefix(SKIPPED).strip())
    assert (told.returncode, told.stdout, told.stderr) == (0, "passed\n", ""), told.stderr


def not_here(reason: str) -> NoReturn:
    """End the child: its test is skipped, for this reason."""
    print(f"{SKIPPED}{reason}")
    sys.exit()


def become_nobody() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
