# SPDX-License-Identifier: MIT
# The end of the interpreter and the end of a loop, with jobs running: nothing hangs, and nothing
# stays half done, unless the process is ended without the interpreter's knowledge.
#
# Real processes, judged by what they wrote into a file and by their exit status.

from __future__ import annotations

import signal
import sys
import time

import pytest

from tests.process.child import (
    LONG_JOB,
    ONCE,
    PRELUDE,
    RUN_MAIN,
    Child,
    on_each_loop,
)
from tests.support.gates import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and pipes of POSIX")

SUBMIT = """
handle = Coordinator().submit(job)
until(lambda: len(begun) == 3)
"""


def test_exit_cancels_undoes_and_joins_what_still_runs() -> None:
    with Child(LONG_JOB, SUBMIT) as child:
        assert child.end() == 0
        assert child.stderr() == ""
        assert child.undone_again(64) == 3


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("sys.exit(3)", 3),
        ("raise ValueError('the end')", 1),
        ("signal.raise_signal(signal.SIGINT)", -signal.SIGINT),
    ],
)
def test_every_orderly_end_undoes_and_keeps_its_status(ending: str, status: int) -> None:
    with Child(LONG_JOB, SUBMIT, ending) as child:
        assert child.end() == status
        assert child.undone_again(64) == 3


@pytest.mark.parametrize(
    ("ending", "status"),
    [("os._exit(4)", 4), ("signal.raise_signal(signal.SIGTERM); gate()", -signal.SIGTERM)],
)
def test_ends_that_the_interpreter_does_not_see_run_nothing(ending: str, status: int) -> None:
    program = """
        def fn(start, stop):
            if start < 3:
                fill(start, stop)
            else:
                fill_at_gate(start, stop)

        handle = Coordinator().submit(Job(fn, 6, chunk=1, max_threads=3, undo=clear))
        until(lambda: len(begun) == 3)
    """
    with Child(program, ending) as child:
        assert child.end() == status
        assert child.stderr() == ""
        assert child.counts(0, 6) == [ONCE] * 3 + [(0, 0)] * 3


def test_exit_names_the_jobs_that_it_waits_for() -> None:
    program = """
        import aioktask.engine.threads.pool

        aioktask.engine.threads.pool.EXIT_NOTICE_SECONDS = 0.1
        job = Job(fill_at_gate, 64, chunk=1, max_threads=3, undo=clear, name="numbers")
    """
    with Child(program, SUBMIT) as child:
        child.hear("begun", 3)
        until(child.stderr, "the notice")
        child.open(3)
        assert child.end() == 0
        assert child.stderr() == "aioktask: exit waits for the jobs 'numbers'\n"
        assert child.undone_again(64) == 3


def test_exit_ends_a_thread_that_waits_for_a_job() -> None:
    program = """
        def wait():
            try:
                handle.result()
            except JobCancelled:
                note("told")

        threading.Thread(target=wait, daemon=True).start()
        waiting = Coordinator().submit(Job(fill_when_unwanted, 1, start=64, undo=clear))
    """
    with Child(LONG_JOB, SUBMIT, program) as child:
        assert child.end() == 0, child.stderr()
        assert child.stderr() == ""


def test_exit_waits_for_a_thread_of_the_program_and_its_job() -> None:
    # A thread that is no daemon belongs to the program's life, and so do its jobs.
    program = """
        def work():
            run_multithreaded_sync(Job(fill_at_gate, 3, chunk=1, max_threads=3, undo=clear))
            note("returned")

        threading.Thread(target=work).start()
        until(lambda: len(begun) == 3)
        say("last")
    """
    with Child(program) as child:
        child.hear("last")
        child.open(3)
        assert child.end() == 0, child.stderr()
        assert child.counts(0, 3) == [ONCE] * 3
        assert child.notes()[-1] == ["returned"]


def test_exit_hooks_may_run_jobs_until_the_library_has_ended() -> None:
    before = """
        import atexit

        def too_late():
            try:
                Coordinator().submit(Job(fill, 1))
            except RuntimeError as error:
                note("refused", *str(error).split())

        atexit.register(too_late)
    """
    after = """
        atexit.register(lambda: run_multithreaded_sync(Job(fill, 8, chunk=1)))
        run_multithreaded_sync(Job(fill_at_gate, 1, start=8))
    """
    with Child(before, PRELUDE, after, prelude="") as child:  # hooks run last in, first out
        child.open()
        assert child.end() == 0, child.stderr()
        assert child.counts(0, 9) == [ONCE] * 9
        assert child.notes()[-1][:4] == ["refused", "the", "interpreter", "is"]


@on_each_loop
def test_exit_runs_a_coroutine_undo_in_a_fresh_loop_of_its_kind(loop: str) -> None:
    program = f"""
        job = Job(fill_when_unwanted, 64, chunk=1, max_threads=3, undo=clear_async, name="numbers")

        async def main():
            Coordinator().submit(job)
            await until_async(lambda: len(begun) == 3)

        {RUN_MAIN[loop]}
    """
    with Child(program) as child:
        assert child.end() == 0
        assert child.stderr() == ""
        assert child.undone_again(64) == 3
        assert {words[1] for words in child.notes() if words[0] == "loop"} == {loop}


CLOSED_LOOP = """
opened = threading.Event()
undone = []

def fn(start, stop):
    begin(start, stop)
    opened.wait()
    note("done", start, stop)

def undo_plainly(start, stop):
    clear(start, stop)
    undone.extend(range(start, stop))

async def undo_in_loop(start, stop):
    await clear_async(start, stop)
    undone.extend(range(start, stop))
"""


@pytest.mark.parametrize("task", ["kept", "dropped"])
@pytest.mark.parametrize("undo", ["undo_plainly", "undo_in_loop"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_job_is_undone_whose_loop_was_closed_while_it_ran(
    loop: str, undo: str, task: str
) -> None:
    # Nobody is left to take the result: that counts as cancelled.
    program = f"""
        import gc, {loop}

        loop = {loop}.new_event_loop()
        job = Job(fn, 3, chunk=1, max_threads=3, undo={undo}, name="numbers")
        task = loop.create_task(run_multithreaded(job))
        loop.run_until_complete(until_async(lambda: len(begun) == 3))
        loop.close()
        if {task == "dropped"}:
            del task
            gc.collect()
        opened.set()
        until(lambda: len(undone) == 3)
        run_multithreaded_sync(Job(fill, 4, start=3, chunk=1))
        note("after")
    """
    with Child(CLOSED_LOOP, program) as child:
        assert child.end() == 0, child.stderr()
        assert child.counts(0, 7) == [(1, 1)] * 3 + [ONCE] * 4
        assert child.notes()[-1] == ["after"]
        kinds = {words[1] for words in child.notes() if words[0] == "loop"}
        assert kinds == ({loop} if undo == "undo_in_loop" else set())


UNDO_CUT_SHORT = """
begun_undo = []

async def undo(start, stop):
    if not begun_undo:
        begun_undo.append(range(start, stop))
        await asyncio.Event().wait()  # for ever: the loop ends first
    await undo_in_loop(start, stop)

async def main():
    handle = Coordinator().submit(Job(fn, 2, chunk=1, max_threads=2, undo=undo, name="numbers"))
    await until_async(lambda: len(begun) == 2)
    handle.cancel()
    opened.set()
    await until_async(lambda: begun_undo)
    return handle
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_rest_of_an_undo_whose_loop_was_closed_in_the_middle_runs_elsewhere(loop: str) -> None:
    program = f"""
        import gc, {loop}

        loop = {loop}.new_event_loop()
        handle = loop.run_until_complete(main())
        loop.close()
        del loop
        gc.collect()
        try:
            handle.result()
        except aioktask.UndoFailed as failed:
            assert failed.ranges == (begun_undo[0],), failed.ranges
            assert isinstance(failed.__cause__, JobCancelled)
            note("told")
    """
    with Child(CLOSED_LOOP, UNDO_CUT_SHORT, program) as child:
        assert child.end() == 0, child.stderr()
        assert child.notes()[-1] == ["told"]
        assert sorted(child.counts(0, 2)) == [(1, 0), (1, 1)]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_exit_finishes_an_undo_whose_loop_was_closed_in_the_middle(loop: str) -> None:
    program = f"""
        import {loop}

        loop = {loop}.new_event_loop()
        handle = loop.run_until_complete(main())
        loop.close()
    """
    with Child(CLOSED_LOOP, UNDO_CUT_SHORT, program) as child:
        assert child.end() == 0, child.stderr()
        assert sorted(child.counts(0, 2)) == [(1, 0), (1, 1)]


@on_each_loop
@pytest.mark.parametrize("undo", ["undo_plainly", "undo_in_loop"])
def test_a_handle_outlives_its_loop(loop: str, undo: str) -> None:
    program = f"""
        async def main():
            job = Job(fn, 3, chunk=1, max_threads=3, undo={undo}, name="numbers")
            ends = Coordinator().submit(job)
            await until_async(lambda: len(begun) == 3)
            job = Job(fill_when_unwanted, 1, start=3, undo={undo}, name="numbers")
            is_cancelled = Coordinator().submit(job)
            await until_async(lambda: len(begun) == 4)
            handles.extend([ends, is_cancelled])

        handles = []
        {RUN_MAIN[loop]}
        assert handles[1].cancel()
        try:
            handles[1].result()
        except JobCancelled:
            note("told")
        opened.set()
        handles[0].result()
    """
    with Child(CLOSED_LOOP, program) as child:
        assert child.end() == 0, child.stderr()
        assert child.counts(0, 4) == [ONCE] * 3 + [(1, 1)]
        assert ["told"] in child.notes()
        kinds = {words[1] for words in child.notes() if words[0] == "loop"}
        assert kinds == ({loop} if undo == "undo_in_loop" else set())


def test_a_program_without_jobs_starts_no_thread_and_ends_with_none() -> None:
    program = """
        import atexit, os
        atexit.register(lambda: print("threads", len(os.listdir("/proc/self/task")), flush=True))
        import numpy, structlog, anyio
        import aioktask
    """
    with Child(program, prelude="") as child:
        assert child.hear_line("threads") == "1"
        assert child.end() == 0
        assert child.stderr() == ""


# Both helpers are members of the lane at the end, and wait for the next job without a timeout.
SHORT_JOBS = """
        from aioktask.engine.api.process import current_pool

        async def jobs():
            both = threading.Barrier(2)
            await run_multithreaded(Job(lambda start, stop: both.wait() and None, 2, chunk=1))
            for _ in range(20):
                await run_multithreaded(Job(fill, 1, chunk=1))
            assert len(current_pool().state.lane.members) == 2

        aioktask.set_max_threads(2)
        asyncio.run(jobs())
"""


@pytest.mark.parametrize(
    "jobs", ["", "run_multithreaded_sync(Job(fill, 64, chunk=1))", SHORT_JOBS.strip()]
)
def test_idle_helpers_do_not_delay_the_exit(jobs: str) -> None:
    program = f"""
        {jobs}
        say("last")
    """
    with Child(program) as child:
        child.hear("last")
        before = time.monotonic()
        assert child.end() == 0
        assert time.monotonic() - before < 1
        assert child.stderr() == ""


@on_each_loop
def test_jobs_that_a_shutdown_left_are_undone_by_the_exit_of_the_interpreter(loop: str) -> None:
    """The loop is over before they are, and a deadline is due that nobody will look at."""
    program = """
        async def main():
            async with Coordinator() as coordinator:
                coordinator.submit(job, timeout=3600)
                await until_async(lambda: len(begun) == 3)
                left = await coordinator.shutdown(timeout=0.01)
                note("left", *(each.name for each in left))
            note("gone")
    """
    with Child(LONG_JOB, program, RUN_MAIN[loop]) as child:
        assert child.end() == 0, child.stderr()
        assert ["left", "numbers"] in child.notes()
        assert ["gone"] in child.notes()
        assert child.notes().index(["gone"]) < min(
            number for number, words in enumerate(child.notes()) if words[0] == "undone"
        )
        assert child.undone_again(64) == 3
        assert "jobs_left_behind" in child.stderr()
