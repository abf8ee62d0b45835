# SPDX-License-Identifier: MIT
# Jobs that declare memory, in a real cgroup with a limit: they stay alive where the same jobs
# without a word are killed, and follow the limit while they run. As root, on v1 and on v2.

from __future__ import annotations

import contextlib
import signal
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.process.cgroups import cgroup, join
from tests.process.child import RUN_MAIN as RUN
from tests.process.child import Child, on_each_loop

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and /sys")

MIB = 1 << 20
THREADS = {"AIOKTASK_MAX_THREADS": "16"}

TAKERS = """
    import mmap

    MIB = 1 << 20
    PAGES = bytes(16 * MIB)
    begin_together = None
    live, peak, lock = 0, 0, threading.Lock()
    over = threading.Event()

    def inside(by):
        global live, peak
        with lock:
            live += by
            peak = max(peak, live)

    def take(start, stop):
        inside(1)
        with mmap.mmap(-1, 16 * MIB) as taken:
            taken.write(PAGES)
            if begin_together is not None:
                begin_together.wait()
        inside(-1)
        note("done", start, stop)

    def stay(start, stop):
        inside(1)
        over.wait()
        inside(-1)
"""


def memory_group() -> AbstractContextManager[Path]:
    """A cgroup of its own with a memory controller."""
    return cgroup(
        "memory",
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max"),
    )


def set_limit(group: Path, size: int) -> None:
    """Allow so many bytes; no swap beside them where the kernel can be told so."""
    if (group / "memory.max").exists():
        (group / "memory.max").write_text(str(size))
        with contextlib.suppress(OSError):
            (group / "memory.swap.max").write_text("0")
    else:
        (group / "memory.limit_in_bytes").write_text(str(size))


@on_each_loop
def test_chunks_that_declare_what_they_take_stay_within_the_limit(loop: str) -> None:
    main = f"""
        gate()
        async def main():
            await run_multithreaded(Job(take, 24, chunk=1, memory=16 * MIB))
        {RUN[loop]}
        say("peak", peak)
    """
    with memory_group() as group, Child(TAKERS, main, environ=THREADS) as child:
        set_limit(group, 160 * MIB)
        join(group, child)
        child.open()
        assert child.end() == 0, child.stderr()
        assert child.counts(0, 24) == [(1, 0)] * 24
        assert 2 <= int(child.hear_line("peak")) <= 10


def test_chunks_that_do_not_declare_it_are_killed_there() -> None:
    """The control: were it otherwise, the tests above would prove nothing."""
    main = """
        gate()
        begin_together = threading.Barrier(16)  # each stays until all have taken theirs
        run_multithreaded_sync(Job(take, 16, chunk=1))
    """
    with memory_group() as group, Child(TAKERS, main, environ=THREADS) as child:
        set_limit(group, 160 * MIB)
        join(group, child)
        child.open()
        assert child.end() == -signal.SIGKILL


def test_several_jobs_that_declare_memory_share_what_is_left() -> None:
    main = """
        gate()
        with Coordinator() as coordinator:
            for start in range(0, 24, 3):
                job = Job(take, 3, start=start, chunk=1, memory=16 * MIB, nice=start % 5)
                coordinator.submit(job)
        say("peak", peak)
    """
    with memory_group() as group, Child(TAKERS, main, environ=THREADS) as child:
        set_limit(group, 160 * MIB)
        join(group, child)
        child.open()
        assert child.end() == 0, child.stderr()
        assert child.counts(0, 24) == [(1, 0)] * 24
        assert 2 <= int(child.hear_line("peak")) <= 10


def test_a_limit_that_moves_is_followed_in_both_directions() -> None:
    """Chunks that declare much and take nothing, so that the limit alone says how many run."""
    main = """
        gate()
        with Coordinator() as coordinator:
            handle = coordinator.submit(Job(stay, 1000, chunk=1, memory=100 * MIB))
            until(lambda: live == 4)
            say("few")
            until(lambda: live == 8)
            say("more")
            gate()
            from aioktask.engine.api.process import current_pool
            budget = current_pool().state.scheduler.memory
            until(lambda: budget.left < 0)
            peak = 0
            over.set()
            handle.result()
            assert 1 <= peak, peak
            say("plan", aioktask.plan(Job(stay, 1000, chunk=1, memory=100 * MIB)).threads)
            say("why", aioktask.plan(Job(stay, 1000, chunk=1, memory=100 * MIB)).limited_by)
    """
    with memory_group() as group, Child(TAKERS, main, environ=THREADS) as child:
        set_limit(group, 520 * MIB)
        join(group, child)
        child.open()
        child.hear("few")
        set_limit(group, 950 * MIB)
        child.hear("more")
        set_limit(group, 270 * MIB)
        child.open()
        assert child.end() == 0, child.stderr()
        assert 1 <= int(child.hear_line("plan")) <= 2
        why = child.hear_line("why")
        assert why.startswith("memory: ")
        assert str(group) in why
        assert why.endswith("100 MiB a chunk")
