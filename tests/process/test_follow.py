# SPDX-License-Identifier: MIT
# What happens around a process while its jobs run: affinity, a quota that moves, neighbours that
# want the CPUs, other processes of the same set of slots. With real processes and cgroups.

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from aioktask.engine.machine.slots import Slots, slots_path
from tests.process.cgroups import cgroup, join
from tests.process.child import Child

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and /sys")

CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
several_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="one CPU: there is nothing to share")

ENDLESS = """
    import pathlib

    counts = [0] * 100_000

    def fn(start, stop):
        for unit in range(start, stop):
            counts[unit] += 1
        end = time.monotonic() + 0.001
        while time.monotonic() < end and not handles_end:
            pass

    handles_end = []

    def helpers():
        found = []
        for task in pathlib.Path("/proc/self/task").iterdir():
            try:
                name = (task / "comm").read_text().strip()
            except (FileNotFoundError, ProcessLookupError):  # it has ended since it was listed
                continue
            if name == "endless":
                found.append(int(task.name))
        return found

    def start(coordinator, **how):
        # Nothing learned: the function holds the GIL, and here the caps alone say how many threads.
        job = Job(fn, len(counts), chunk=1, learn="nothing", name="endless", **how)
        return coordinator.submit(job)

    def end(handle):
        handles_end.append(True)  # the rest goes quickly
        handle.result()
        assert set(counts) == {1}, "every chunk once, whatever moved"
"""
NATURAL = {"AIOKTASK_MAX_THREADS": ""}


@several_cpus
def test_the_affinity_is_followed_in_both_directions() -> None:
    main = f"""
        cpus = set({CPUS})
        with Coordinator() as coordinator:
            handle = start(coordinator)
            until(lambda: handle.progress().threads == len(cpus))
            for allowed in ({{min(cpus)}}, cpus, {{max(cpus)}}, cpus):
                os.sched_setaffinity(os.getpid(), allowed)  # of the main thread alone
                until(lambda: aioktask.max_threads() == len(allowed))
                until(lambda: handle.progress().threads == len(allowed))
                until(lambda: all(os.sched_getaffinity(each) == allowed for each in helpers()))
            end(handle)
    """
    with Child(ENDLESS, main, environ=NATURAL) as child:
        assert child.end() == 0, child.stderr()


@several_cpus
def test_a_job_that_learns_its_threads_gets_more_when_there_are_more() -> None:
    main = f"""
        cpus = set({CPUS})
        os.sched_setaffinity(os.getpid(), {{min(cpus)}})
        done = []
        def fn(start, stop):
            time.sleep(0.001)  # so that more threads are of use
            done.append(start)
        with Coordinator() as coordinator:
            job = Job(fn, 10**6, chunk=1, learn="threads", name="endless")
            handle = coordinator.submit(job)
            until(lambda: len(done) > 20)
            assert handle.progress().threads == 1
            os.sched_setaffinity(os.getpid(), cpus)
            until(lambda: handle.progress().threads > 1)
            handle.cancel()
    """
    with Child(ENDLESS, main, environ=NATURAL) as child:
        assert child.end() == 0, child.stderr()


def quota_group() -> AbstractContextManager[Path]:
    """A cgroup of its own with a CPU controller."""
    return cgroup(
        "CPU",
        ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us"),
        ("/sys/fs/cgroup/cpu,cpuacct", "cpu.cfs_quota_us"),
        ("/sys/fs/cgroup", "cpu.max"),
    )


def set_quota(group: Path, quota_us: int | None) -> None:
    """So much CPU time in each 100 ms."""
    if (group / "cpu.max").exists():
        (group / "cpu.max").write_text(f"{quota_us or 'max'} 100000")
    else:
        (group / "cpu.cfs_quota_us").write_text(str(quota_us or -1))


def throttled(group: Path) -> int:
    words = (group / "cpu.stat").read_text().split()
    return int(words[words.index("nr_throttled") + 1])


@several_cpus
def test_a_quota_is_followed_in_both_directions() -> None:
    main = """
        gate()
        with Coordinator() as coordinator:
            handle = start(coordinator)
            until(lambda: handle.progress().threads == aioktask.max_threads() > 1)
            many = aioktask.max_threads()
            for threads in (1, many):
                say("at", threads)
                until(lambda: aioktask.max_threads() == threads)
                until(lambda: handle.progress().threads == threads)
            end(handle)
    """
    with quota_group() as group, Child(ENDLESS, main, environ=NATURAL) as child:
        join(group, child)
        child.open()
        child.hear("at 1")
        set_quota(group, 150_000)
        child.hear(f"at {len(CPUS)}")
        set_quota(group, None)
        assert child.end() == 0, child.stderr()


@several_cpus
def test_under_a_quota_of_one_cpu_and_a_half_a_job_is_throttled_no_more_than_a_thread() -> None:
    spin = """
        def fn(start, stop):
            end = time.thread_time() + 0.01
            while time.thread_time() < end:
                pass
        gate()
    """
    found = []
    for main in (
        "for i in range(100): fn(i, i + 1)",
        "run_multithreaded_sync(Job(fn, 100, chunk=1))",
        "import anyio; anyio.run(run_multithreaded, Job(fn, 100, chunk=1))",
    ):
        with quota_group() as group, Child(spin, main, environ=NATURAL) as child:
            set_quota(group, 150_000)
            join(group, child)
            child.open()
            assert child.end() == 0, child.stderr()
            found.append(throttled(group))
    thread, *jobs = found
    assert max(jobs) <= thread + 1


@contextlib.contextmanager
def busy_cpus() -> Iterator[list[subprocess.Popen[bytes]]]:
    """A process on each CPU that never rests."""
    program = "while True: pass"
    spinners = [subprocess.Popen([sys.executable, "-c", program]) for _ in CPUS]
    try:
        yield spinners
    finally:
        for each in spinners:
            each.kill()
        for each in spinners:
            each.wait()


def test_a_background_job_gives_way_and_still_goes_on() -> None:
    main = """
        from aioktask.engine.api.process import current_pool
        aioktask.configure(give_way=True)
        with Coordinator() as coordinator:
            handle = start(coordinator, nice=19)
            pool = current_pool()
            until(lambda: pool.state.background.pausing and not handle.progress().threads)
            before = handle.progress().done
            until(lambda: handle.progress().done > before)
            handle.renice(0)  # it is no background job any more
            until(lambda: handle.progress().threads == aioktask.max_threads())
            handle.renice(19)
            until(lambda: not handle.progress().threads)
            def wait():
                with aioktask.priority(0):
                    handle.result()
            threading.Thread(target=wait, daemon=True).start()
            for _ in range(3):  # lent, it does not pause
                before = handle.progress().done
                until(lambda: handle.progress().threads and handle.progress().done > before)
            assert pool.state.scheduler.background == 0
            end(handle)
    """
    with busy_cpus(), Child(ENDLESS, main, environ=NATURAL) as child:
        assert child.end() == 0, child.stderr()


@several_cpus
def test_processes_share_slots_and_get_them_back_from_one_that_was_killed() -> None:
    main = """
        with Coordinator() as coordinator:
            handle = start(coordinator)
            many = aioktask.max_threads()
            until(lambda: handle.progress().threads == many)
            say("all")
            gate()
            until(lambda: handle.progress().threads < many)
            say("fewer")
            gate()
            until(lambda: handle.progress().threads == many)
            say("again")
            end(handle)
    """
    name = f"test-{os.getpid()}"
    environ = {**NATURAL, "AIOKTASK_SHARE": name}
    other = """
        with Coordinator() as coordinator:
            handle = start(coordinator)
            until(lambda: handle.progress().threads)
            say("runs")
            gate()
    """
    try:
        with Child(ENDLESS, main, environ=environ) as first:
            first.hear("all")
            first.open()
            with Child(ENDLESS, other, environ=environ) as second:
                second.hear("runs")
                first.hear("fewer")
                second.signal(signal.SIGKILL)
                second.process.wait()
            first.open()
            first.hear("again")
            assert first.end() == 0, first.stderr()
    finally:
        slots_path(name).unlink(missing_ok=True)


def test_a_forked_child_keeps_none_of_the_slots_of_a_parent_that_is_killed() -> None:
    main = """
        from aioktask.engine.api.process import current_pool
        with Coordinator() as coordinator:
            handle = start(coordinator)
            monitor = current_pool().adapter.monitor
            until(lambda: monitor.slots is not None and monitor.slots.held)
            if os.fork() == 0:
                say("forked")
                signal.pause()
            gate()
    """
    name = f"test-{os.getpid()}-fork"
    path = slots_path(name)
    try:
        with Child(ENDLESS, main, environ={**NATURAL, "AIOKTASK_SHARE": name}) as child:
            child.hear("forked")
            slots = Slots(path)
            cpus = frozenset(CPUS)
            assert slots.busy() == 1
            child.signal(signal.SIGKILL)
            child.process.wait()
            assert slots.busy() == 0
            assert slots.look(cpus, len(cpus), time.monotonic_ns()) == slots.held == len(cpus)
            slots.close()
    finally:
        path.unlink(missing_ok=True)


def test_a_set_that_cannot_be_shared_is_told_and_does_no_harm(tmp_path: Path) -> None:
    path = slots_path(f"test-{os.getpid()}-bad")
    path.symlink_to(tmp_path)
    try:
        main = """
            run_multithreaded_sync(Job(fn, 100_000, chunk=1000))
            from aioktask.engine.api.process import current_pool
            until(lambda: current_pool().adapter.monitor.slots_refused)
            note("refused", current_pool().adapter.monitor.slots_refused.errno)
        """
        environ = {"AIOKTASK_SHARE": f"test-{os.getpid()}-bad"}
        with Child(ENDLESS, main, environ=environ) as child:
            assert child.end() == 0, child.stderr()
            assert child.notes()[-1][0] == "refused"
    finally:
        path.unlink()
