# SPDX-License-Identifier: MIT
# Huge pages for a test: the pool of 2 MiB pages is made larger for as long as the test needs it.
#
# The pool is the machine's, so a lock on a file keeps other test runs out, and what a run took is
# given back by the run itself, also when the test failed. A run that is killed leaves its pages.

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

__all__ = ["HUGE", "grow_pool", "huge_pages"]

HUGE = 2 << 20
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
LOCK = Path(tempfile.gettempdir(), "aioktask-hugepages.lock")

_depth = 0


@contextmanager
def grow_pool(pages: int) -> Iterator[None]:
    """So many 2 MiB pages that are free, nobody else's, for the time of the block.

    Skips the test, with the reason, where the machine has none to give.
    """
    with _locked():
        before = _figure("nr_hugepages") - _figure("surplus_hugepages")
        try:
            _grow(before, pages)
            yield
        finally:
            if _figure("nr_hugepages") - _figure("surplus_hugepages") != before:
                (POOL / "nr_hugepages").write_text(str(before))


@contextmanager
def _locked() -> Iterator[None]:
    """Alone on this machine. Within this process it nests, for a test that asks twice."""
    global _depth
    try:
        lock = LOCK.open("a")
    except OSError as error:
        pytest.skip(f"needs a lock on the huge page pool: {error}")
    with lock:
        if not _depth:
            fcntl.flock(lock, fcntl.LOCK_EX)
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1


def _grow(before: int, pages: int) -> None:
    missing = pages - (_figure("free_hugepages") - _figure("resv_hugepages"))
    if missing <= 0:
        return
    if not os.access(POOL / "nr_hugepages", os.W_OK):
        pytest.skip(f"needs {pages} huge pages of 2 MiB, and may not make the pool larger")
    try:
        (POOL / "nr_hugepages").write_text(str(before + missing))
    except OSError as error:
        pytest.skip(f"needs {pages} huge pages of 2 MiB: {error}")
    if _figure("free_hugepages") - _figure("resv_hugepages") < pages:
        pytest.skip(f"needs {pages} huge pages of 2 MiB, and the kernel found fewer")


def _figure(name: str) -> int:
    if not POOL.is_dir():
        pytest.skip("this kernel has no huge pages of 2 MiB")
    return int((POOL / name).read_text())


@pytest.fixture
def huge_pages() -> Iterator[Callable[[int], None]]:
    """`huge_pages(n)` sees to it that so many 2 MiB pages are free, until the test ends."""
    with ExitStack() as stack:
        yield lambda pages: stack.enter_context(grow_pool(pages))
