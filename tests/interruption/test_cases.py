# SPDX-License-Identifier: MIT
# Small programs that hung or went wrong once, each standing for its kind: what a handler or a
# finalizer calls, an exception inside the engine, recursion, threads that are not to be had.
#
# Each is a real process, judged by what it says and by whether it ends by itself.

from __future__ import annotations

import os
import random
import signal
import sys

import pytest

from tests.process.child import RUN_MAIN, Child, on_each_loop

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")

ALARM = """
import random

class Alarm(Exception):
    pass

def fire(seconds):
    signal.setitimer(signal.ITIMER_REAL, seconds)

def empty(start, stop):
    pass

def later_jobs_run():
    assert run_multithreaded_sync(Job(empty, 4, chunk=1)).chunks == 4
    assert asyncio.run(run_multithreaded(Job(empty, 4, chunk=1))).chunks == 4
    with Coordinator() as coordinator:
        assert coordinator.submit(Job(empty, 4, chunk=1)).result(timeout=10).chunks == 4
    assert "jobs=0" in repr(coordinator)
"""

USES_OF_A_HANDLE = [
    "progress()",
    "cancel()",
    "renice(3)",
    "done()",
    "result(timeout=0)",
    "watch().__next__()",
]


@pytest.mark.parametrize("use", USES_OF_A_HANDLE)
def test_a_signal_handler_uses_a_handle_in_the_thread_that_runs_jobs(use: str) -> None:
    program = f"""
        calls = 0
        stop = threading.Event()
        with Coordinator() as coordinator:
            handle = coordinator.submit(Job(lambda a, b: stop.wait(), 100, chunk=1, max_threads=1))

            def on_alarm(number, frame):
                global calls
                calls += 1
                try:
                    handle.{use}
                except (TimeoutError, JobCancelled):
                    pass
                fire(random.uniform(1e-5, 5e-4))

            signal.signal(signal.SIGALRM, on_alarm)
            fire(1e-4)
            while calls < 2000:
                run_multithreaded_sync(Job(empty, 3, chunk=1))
            fire(0)
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            stop.set()
            handle.cancel()
        later_jobs_run()
    """
    with Child(ALARM, program) as child:
        assert child.end() == 0, child.stderr()


def test_a_finalizer_that_the_collector_runs_cancels_a_job() -> None:
    program = """
        import gc
        finalized = 0
        enough, second, lists = 3000, 1000, 20
        if not getattr(sys, "_is_gil_enabled", lambda: True)():
            # There the collector comes after 512 objects of a thread, if the second threshold is 0,
            # and stops all threads, which takes some milliseconds.
            enough, second, lists = 100, 0, 600
        stop = threading.Event()

        class Resource:
            def __init__(self):
                self.me = self

            def __del__(self):
                global finalized
                finalized += 1
                handle.cancel()
                Resource()  # for the next collection, which the engine may cause

        with Coordinator() as coordinator:
            handle = coordinator.submit(Job(lambda a, b: stop.wait(), 100, chunk=1, max_threads=1))
            Resource()
            while finalized < enough:
                gc.set_threshold(random.randrange(1, 30), second, 1000)
                run_multithreaded_sync(
                    Job(lambda a, b: [[] for _ in range(lists)], 30, chunk=1, undo=empty)
                )
            stop.set()
        gc.set_threshold(0)
        later_jobs_run()
    """
    with Child(ALARM, program) as child:
        assert child.end() == 0, child.stderr()


def test_alarms_that_raise_leave_later_jobs_and_the_exit_alone() -> None:
    program = """
        def on_alarm(number, frame):
            raise Alarm

        run_multithreaded_sync(Job(empty, 8, chunk=1))
        signal.signal(signal.SIGALRM, on_alarm)
        raised = 0
        until_stop = time.monotonic() + 10
        while raised < 1000 and time.monotonic() < until_stop:
            try:
                try:
                    fire(random.uniform(1e-5, 4e-4))
                    run_multithreaded_sync(Job(empty, 8, chunk=1, undo=empty))
                finally:
                    fire(0)
            except Alarm:
                raised += 1
        assert raised > 20, raised
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        later_jobs_run()
    """
    with Child(ALARM, program) as child:
        assert child.end() == 0, child.stderr()


def test_an_interrupt_as_submit_calls_return_leaves_the_pool_whole() -> None:
    # One fork for each function of the library that returns during a submit.
    program = """
        library = os.path.dirname(aioktask.__file__)
        aioktask.max_threads()

        def submit_struck(number):
            returned = 0

            def trace(frame, event, argument):
                def at(frame, event, argument):
                    nonlocal returned
                    if event == "return":
                        returned += 1
                        if returned == number:
                            sys.settrace(None)
                            raise KeyboardInterrupt
                    return at

                code = frame.f_code
                if code.co_filename.startswith(library) and not code.co_flags & 0x2A0:
                    return at

            sys.settrace(trace)
            try:
                Coordinator().submit(Job(empty, 10, chunk=1))
            except KeyboardInterrupt:
                pass
            sys.settrace(None)
            return returned >= number

        number, struck, children = 0, True, []
        while struck:
            number += 2 if number < 20 else 15  # a sample; the sweep has all
            child = os.fork()
            if not child:
                if not submit_struck(number):
                    os._exit(9)
                later_jobs_run()
                sys.exit(0)
            watch = os.pidfd_open(child)
            import select
            if not select.select([watch], [], [], 6)[0]:
                os.kill(child, signal.SIGABRT)
                say("hangs after return", number)
            os.close(watch)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            struck = status != 9
            assert status in (0, 9), (number, status)
        assert number > 20
    """
    with Child(ALARM, program) as child:
        assert child.end() == 0, child.stderr()


def test_endless_recursion_through_jobs_ends_in_recursion_error() -> None:
    program = """
        def fn(start, stop):
            run_multithreaded_sync(Job(fn, 1))

        for _ in range(2):
            try:
                run_multithreaded_sync(Job(fn, 1))
            except RecursionError:
                say("RecursionError")
        try:
            asyncio.run(run_multithreaded(Job(fn, 1)))
        except RecursionError:
            say("RecursionError")
        later_jobs_run()
    """
    with Child(ALARM, program) as child:
        child.hear("RecursionError", 3)
        assert child.end() == 0, child.stderr()


def test_a_recursion_error_at_any_depth_leaves_no_run_behind() -> None:
    program = """
        caught = 0

        def deeper(depth):
            if depth:
                return deeper(depth - 1)
            return run_multithreaded_sync(Job(empty, 4, chunk=1, max_threads=2))

        for depth in range(880, 1000):
            try:
                deeper(depth)
            except RecursionError:
                caught += 1
        assert caught > 5, caught
        later_jobs_run()
    """
    with Child(ALARM, program) as child:
        assert child.end() == 0, child.stderr()


ENTERED = {
    "coordinator": "Coordinator()",
    "on demand": "aioktask.OnDemand(Job(empty, 4), section=2)",
    "stream": "aioktask.map_ordered(abs, ())",
}


@pytest.mark.parametrize("scope", list(ENTERED.values()), ids=list(ENTERED))
@on_each_loop
def test_a_scope_is_entered_at_no_depth_at_which_it_could_not_be_left(
    loop: str, scope: str
) -> None:
    """Where it is given a job by code that is less deep. Leaving would try again for ever."""
    program = f"""
        import anyio.lowlevel, itertools
        entered = refused = 0

        def soon(call):
            if kind_of_loop() == "trio":
                sys.modules["trio"].lowlevel.current_trio_token().run_sync_soon(call)
            else:
                asyncio.get_running_loop().call_soon(call)

        async def deeper(depth):
            global entered
            if depth:
                return await deeper(depth - 1)
            made = []
            soon(lambda: made.append({scope}))
            while not made:
                await anyio.lowlevel.checkpoint()
            async with made[0] as scope:
                entered += 1
                if isinstance(scope, Coordinator):
                    soon(lambda: made.append(scope.submit(Job(empty, 4, chunk=1))))
                    while len(made) < 2:
                        await anyio.lowlevel.checkpoint()

        async def main():
            global refused
            await run_multithreaded(Job(empty, 4, chunk=1))  # what is imported late was then
            for depth in itertools.count(900):
                before = entered
                try:
                    await deeper(depth)
                except RuntimeError:  # a RecursionError, of which anyio makes that there is no loop
                    refused += 1
                if entered == before and refused > 40:
                    return

        {RUN_MAIN[loop]}
        say(entered, refused)
        assert entered and refused, (entered, refused)
        later_jobs_run()
    """
    with Child(ALARM, program) as child:
        assert child.end() == 0, child.stderr()


@pytest.mark.parametrize("turn", range(4))
@on_each_loop
def test_ctrl_c_between_and_during_awaited_jobs_ends_the_program(loop: str, turn: int) -> None:
    program = f"""
        async def main():
            await run_multithreaded(Job(empty, 8, chunk=2))
            say("running")
            while True:
                await run_multithreaded(Job(empty, 8, chunk=2, undo=empty))

        try:
            {RUN_MAIN[loop]}
        except KeyboardInterrupt:
            say("KeyboardInterrupt")
        later_jobs_run()
    """
    with Child(ALARM, program) as child:
        child.hear("running")
        # Any moment will do, and another one each time.
        for _ in range(random.randrange(1000)):
            os.sched_yield()
        child.signal(signal.SIGINT)
        child.hear("KeyboardInterrupt")
        assert child.end() == 0, child.stderr()


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_NPROC counts threads")
@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="becomes a user without other processes"
)
@pytest.mark.parametrize("inner", ["asyncio.run(run_multithreaded(job))", "coordinated(job)"])
def test_a_wait_for_want_of_a_helper_fails_instead_of_hanging(inner: str) -> None:
    program = f"""
        import resource
        import encodings.idna  # what cannot be read any more as another user
        os.setgid(65534)
        os.setuid(65534)
        job = Job(empty, 10, chunk=1)

        def coordinated(job):
            with Coordinator() as coordinator:
                coordinator.submit(job).result()

        def outer(start, stop):
            {inner}

        mine = len(os.listdir("/proc/self/task"))
        resource.setrlimit(resource.RLIMIT_NPROC, (mine + 2, mine + 2))  # a keeper and a helper
        try:
            report = asyncio.run(run_multithreaded(Job(outer, 10, chunk=1)))
        except RuntimeError as error:
            assert "helper" in str(error), error
            say("refused")
        else:
            assert report.chunks == 10
            say("done")
    """
    with Child(ALARM, program) as child:
        assert child.end() == 0, child.stderr()
