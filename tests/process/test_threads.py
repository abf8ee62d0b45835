# SPDX-License-Identifier: MIT
# The threads themselves: how many there are and when, what they are called, on which CPUs and at
# which nice they run, as Python sees them and as the kernel does.

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest

from aioktask.engine.priority import gil_is_on, thread_nice
from tests.process.child import Child
from tests.support.gates import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

THREADS = """
def kernel_name():
    with open(f"/proc/self/task/{threading.get_native_id()}/comm", "rb") as file:
        return file.read().removesuffix(b"\\n")

def helpers():
    main = threading.main_thread()
    return [
        thread for thread in threading.enumerate()
        if thread is not main and thread.name != "aioktask keeper"
    ]
"""


def kernel_names(child: Child) -> list[str]:
    """What the kernel calls the child's threads, but for the main one."""
    names = []
    for task in Path(f"/proc/{child.process.pid}/task").iterdir():
        if task.name != str(child.process.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
                names.append((task / "comm").read_text().removesuffix("\n"))
    return sorted(names)


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("numbers", b"numbers"),
        ("exactly fifteen", b"exactly fifteen"),
        ("the archive of photographs", b"the archive of "),
        ("größer", "größer".encode()),
        ("aufgeräumt äöü", "aufgeräumt äöü".encode()[:15]),
    ],
)
def test_helpers_are_named_after_the_job_they_serve(name: str, kernel: bytes) -> None:
    program = f"""
        def fn(start, stop):
            until(lambda: begun.append(start) or len(set(begun)) == 3)
            assert threading.current_thread().name == {name!r}, threading.current_thread().name
            assert threading.current_thread().daemon
            assert kernel_name() == {kernel!r}, kernel_name()
            note("named", start)

        Coordinator().submit(Job(fn, 3, chunk=1, max_threads=3, name={name!r})).result()
    """
    with Child(THREADS, program) as child:
        assert child.end() == 0, child.stderr()
        assert sorted(child.notes()) == [["named", "0"], ["named", "1"], ["named", "2"]]


def test_a_helper_takes_the_name_of_its_next_job_and_its_own_when_idle() -> None:
    program = """
        for name in ("first", "second", "first"):
            job = Job(fill_at_gate, 2, chunk=1, max_threads=2, name=name)
            handle = Coordinator().submit(job)
            until(lambda: len(begun) == 2)
            assert [thread.name for thread in helpers()].count(name) == 2
            say(name)
            handle.result()
            begun.clear()
            until(lambda: {thread.name for thread in helpers()} == {"aioktask"})
            say("idle")
            gate()
    """
    with Child(THREADS, program) as child:
        for name in ("first", "second", "first"):
            child.hear(name)
            assert kernel_names(child).count(name) == 2
            child.open(2)
            child.hear("idle")
            until(lambda: kernel_names(child).count("aioktask") >= 2, "idle names")
            assert name not in kernel_names(child)
            child.open()
        assert child.end() == 0, child.stderr()


def test_a_calling_thread_keeps_its_name() -> None:
    program = """
        names = set()

        def fn(start, stop):
            names.add((threading.current_thread().name, kernel_name()))

        before = threading.current_thread().name, kernel_name()
        run_multithreaded_sync(Job(fn, 64, chunk=1, max_threads=1, name="numbers"))
        assert names == {before}
        assert (threading.current_thread().name, kernel_name()) == before
    """
    with Child(THREADS, program) as child:
        assert child.end() == 0, child.stderr()


def test_importing_starts_no_thread() -> None:
    program = """
        import os, sys
        import numpy
        before = len(os.listdir("/proc/self/task"))
        import aioktask, threading
        aioktask.plan(aioktask.Job(print, 100))
        aioktask.Coordinator(max_threads=2)
        assert len(os.listdir("/proc/self/task")) == before
        assert threading.active_count() == 1
    """
    with Child(program, prelude="") as child:
        assert child.end() == 0, child.stderr()


# Runs `submit` on a thread that was made worse than its process in one way.
FROM_A_WORSE_THREAD = """
def submit():
    make_worse()
    note("threads", aioktask.max_threads())
    Coordinator().submit(Job(fn, 8, chunk=1, max_threads=4)).result()

thread = threading.Thread(target=submit)
thread.start()
thread.join()
"""


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="one CPU cannot be restricted further",
)
@pytest.mark.parametrize("variable", ["", "4"])
def test_helpers_have_the_affinity_of_the_process_whoever_submits_first(variable: str) -> None:
    program = """
        def make_worse():
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            assert len(os.sched_getaffinity(0)) == 1

        def fn(start, stop):
            note("cpus", len(os.sched_getaffinity(0)))
    """
    cpus = str(len(os.sched_getaffinity(0)))
    with Child(program, FROM_A_WORSE_THREAD, environ={"AIOKTASK_MAX_THREADS": variable}) as child:
        assert child.end() == 0, child.stderr()
        notes = child.notes()
        assert [words for words in notes if words[0] == "cpus"] == [["cpus", cpus]] * 8


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="one CPU cannot be restricted further",
)
def test_the_cap_is_that_of_the_process_whoever_asks_first() -> None:
    # The process's affinity (or quota), not that of the thread that happened to come first.
    worse = """
        def work():
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            note("threads", aioktask.max_threads())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    """
    seen = []
    for program in ("note('threads', aioktask.max_threads())", worse):
        with Child(program, environ={"AIOKTASK_MAX_THREADS": ""}) as child:
            assert child.end() == 0, child.stderr()
            seen.append(child.notes())
    assert seen[0] == seen[1]


def may_lower_nice() -> bool:
    try:
        import resource
    except ImportError:
        return False
    return os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20


@pytest.mark.skipif(not may_lower_nice(), reason="an unprivileged thread cannot lower its nice")
def test_helpers_are_a_little_above_the_process_whoever_submits_first() -> None:
    program = """
        def nice():
            return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

        def make_worse():
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5 + nice())

        def fn(start, stop):
            note("nice", nice())
    """
    with Child(program, FROM_A_WORSE_THREAD) as child:
        assert child.end() == 0, child.stderr()
        base = os.getpriority(os.PRIO_PROCESS, 0)
        nice = str(thread_nice(0, base, gil=gil_is_on()))
        assert [words for words in child.notes() if words[0] == "nice"] == [["nice", nice]] * 8


def test_idle_helpers_retire_and_come_back() -> None:
    program = """
        import aioktask.engine.threads.helper

        aioktask.engine.threads.helper.IDLE_SECONDS = 0.02
        for turn in range(3):
            job = Job(fill_at_gate, 3, chunk=1, max_threads=3, name="numbers")
            handle = Coordinator().submit(job)
            until(lambda: len(begun) == 3)
            begun.clear()
            assert len(helpers()) >= 3
            say("work")
            handle.result()
            until(lambda: not helpers())
            assert threading.active_count() == 2  # this one and the keeper
            say("alone")
            gate()
    """
    with Child(THREADS, program) as child:
        for _ in range(3):
            child.hear("work")
            assert kernel_names(child).count("numbers") == 3
            child.open(3)
            child.hear("alone")
            until(lambda: len(kernel_names(child)) == 1, "the end of the helpers")
            child.open()
        assert child.end() == 0, child.stderr()


def test_helpers_of_short_jobs_go_by_their_own_name_when_idle_and_retire() -> None:
    """They wait without a timeout, so that the keeper has to see to both."""
    program = """
        import aioktask.engine.threads.helper
        from aioktask.engine.api.process import current_pool

        async def jobs():
            for _ in range(20):
                await run_multithreaded(Job(fill, 1, chunk=1, name="numbers"))

        asyncio.run(jobs())
        assert current_pool().state.lane.members
        assert [each.name for each in helpers()] == ["numbers"]
        until(lambda: [each.name for each in helpers()] == ["aioktask"])
        aioktask.engine.threads.helper.IDLE_SECONDS = 0.02
        until(lambda: not helpers())
        asyncio.run(jobs())
        assert len(helpers()) == 1
    """
    with Child(THREADS, program) as child:
        assert child.end() == 0, child.stderr()
        assert child.counts(0, 1) == [(40, 0)]


def test_jobs_in_a_row_while_helpers_retire_lose_no_work() -> None:
    # The race between a helper that goes and work that comes.
    program = """
        import aioktask.engine.threads.helper

        helper = aioktask.engine.threads.helper
        helper.IDLE_SECONDS = helper.HUNGRY_SECONDS = 0.0005
        for turn in range(300):
            Coordinator().submit(Job(fill, 2, start=2 * turn, chunk=1)).result(60)
            until(lambda start=time.perf_counter(): time.perf_counter() - start > turn * 1e-5)
    """
    with Child(program) as child:
        assert child.end() == 0, child.stderr()
        assert child.counts(0, 600) == [(1, 0)] * 600


def test_the_variable_sets_how_many_helpers_work_at_a_time() -> None:
    program = """
        assert aioktask.max_threads() == 3
        together = threading.Barrier(3)
        running, peak, lock = 0, 0, threading.Lock()

        def fn(start, stop):
            global running, peak
            with lock:
                running += 1
                peak = max(peak, running)
            together.wait()
            with lock:
                running -= 1

        with Coordinator() as coordinator:
            handles = [coordinator.submit(Job(fn, 6, chunk=1)) for _ in range(2)]
        assert peak == 3, peak
        assert max(handle.result().peak_threads for handle in handles) <= 3
        until(lambda: len(helpers()) <= 3)  # others may have set out to be the keeper
    """
    with Child(THREADS, program, environ={"AIOKTASK_MAX_THREADS": "3"}) as child:
        assert child.end() == 0, child.stderr()


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", " "])
def test_a_wrong_variable_is_named_before_any_work(value: str) -> None:
    program = """
        async def main():
            await run_multithreaded(job)

        job = Job(fill, 8, chunk=8)
        for use in (
            lambda: run_multithreaded_sync(job),
            lambda: Coordinator().submit(job),
            lambda: asyncio.run(main()),
            lambda: aioktask.plan(job),
            aioktask.max_threads,
        ):
            try:
                use()
            except ValueError as error:
                note("refused", *str(error).split())
        assert threading.active_count() == 1
        aioktask.set_max_threads(2)  # a call goes before the variable
        run_multithreaded_sync(job)
    """
    with Child(program, environ={"AIOKTASK_MAX_THREADS": value}) as child:
        assert child.end() == 0, child.stderr()
        *refused, done = child.notes()
        assert done == ["done", "0", "8"]
        assert len(refused) == 5
        for words in refused:
            assert words[:2] == ["refused", "AIOKTASK_MAX_THREADS"]
            assert words[-1].strip("'") == value.strip()
