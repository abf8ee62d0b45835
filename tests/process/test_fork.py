# SPDX-License-Identifier: MIT
# Forks, from every place and at every moment: the child runs jobs of its own, has no part in its
# parent's, and undoes nothing of them, since the memory may be shared.
#
# Real processes, judged by what they wrote into a file, by whom, and by their exit status.

from __future__ import annotations

import os

import pytest

from tests.process.child import ONCE, Child

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork(2)")

# Python 3.12 and later warn of any fork beside threads; that it goes well is what is tested here.
OPTIONS = ["-W", "ignore:This process:DeprecationWarning"]

IN_CHILD = """
import faulthandler, traceback, warnings

parent = os.getpid()

def fork(function, end=os._exit):
    \"\"\"Run a function in a child, which ends itself if that hangs; the child's number.\"\"\"
    number = os.fork()
    if number:
        return number
    faulthandler.register(signal.SIGALRM, chain=True)  # tells where it hangs, before it is ended
    signal.alarm(15)
    try:
        function()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    end(0)

def status_of(number):
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])

def run_own_jobs():
    assert os.getpid() != parent
    ran = []
    fn = lambda start, stop: ran.append(stop - start)
    run_multithreaded_sync(Job(fn, 16, chunk=1, max_threads=2))
    Coordinator().submit(Job(fn, 16, chunk=1, max_threads=2)).result()
    asyncio.run(run_own_job_on_loop(fn))
    assert sum(ran) == 48, ran

async def run_own_job_on_loop(fn):
    await run_multithreaded(Job(fn, 16, chunk=1, max_threads=2, undo=lambda start, stop: None))

def tasks():
    return len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 1
"""

RUNNING_JOB = """
coordinator = Coordinator(max_threads=2)
job = Job(fill_at_gate, 4, chunk=1, undo=clear, name="numbers")
handle = coordinator.submit(job)
until(lambda: len(begun) == 2)
"""

END = """
assert status_of(number) == 0
say("forked")
handle.result()
"""


def forks(*program: str) -> Child:
    return Child(IN_CHILD, *program, options=OPTIONS)


def assert_parent_unaffected(child: Child, size: int = 4) -> None:
    """Its job is done, once a unit, by itself, and nothing is undone anywhere."""
    assert child.counts(0, size) == [ONCE] * size
    own = [words for words in child.notes(child.process.pid) if words[0] == "done"]
    assert len(own) == size


def end_of_running_job(child: Child) -> None:
    child.hear("forked")
    child.open(4)
    assert child.end() == 0, child.stderr()
    assert child.stderr() == ""
    assert_parent_unaffected(child)


@pytest.mark.parametrize("end", ["os._exit", "sys.exit"])
def test_child_starts_without_helpers_and_runs_jobs_of_its_own(end: str) -> None:
    # With sys.exit, the child's interpreter runs its exit hooks.
    program = f"""
        def in_child():
            assert threading.active_count() == 1
            assert tasks() == 1
            run_own_jobs()

        number = fork(in_child, {end})
    """
    with forks(RUNNING_JOB, program, END) as child:
        end_of_running_job(child)


def test_inherited_handles_raise_and_name_the_job() -> None:
    program = """
        async def wait():
            await handle

        async def next_state():
            await anext(watch)

        watch = handle.watch(1000)
        assert next(watch).phase == "running"

        def in_child():
            for use in (
                handle.cancel,
                handle.progress,
                handle.watch,
                lambda: next(watch),
                lambda: asyncio.run(next_state()),
                handle.result,
                lambda: handle.result(timeout=0.1),
                lambda: handle.renice(5),
                lambda: setattr(handle, "max_threads", 1),
                lambda: asyncio.run(wait()),
            ):
                try:
                    use()
                except RuntimeError as error:
                    assert "'numbers'" in str(error), error
                else:
                    raise AssertionError(use)
            assert handle.job is job

        number = fork(in_child)
    """
    with forks(RUNNING_JOB, program, END) as child:
        end_of_running_job(child)


def test_a_coordinator_of_the_parent_is_an_empty_one_in_the_child() -> None:
    program = """
        def in_child():
            assert coordinator.max_threads == 2
            with coordinator:
                handle = coordinator.submit(Job(lambda start, stop: time.sleep(0.001), 8, chunk=1))
                assert handle.result().peak_threads <= 2
                run_multithreaded_sync(Job(lambda start, stop: None, 8), coordinator=coordinator)
            # Left now, in the child alone, and without waiting for the parent's job.
            try:
                coordinator.submit(Job(lambda start, stop: None, 8))
            except RuntimeError:
                return
            raise AssertionError

        number = fork(in_child)
        coordinator.submit(Job(lambda start, stop: None, 8))
    """
    with forks(RUNNING_JOB, program, END) as child:
        end_of_running_job(child)


def test_a_coordinator_that_the_parent_left_is_a_new_one_in_the_child() -> None:
    program = """
        with Coordinator() as left:
            pass

        def in_child():
            assert left.executor().submit(pow, 2, 3).result() == 8
            with left:
                left.submit(Job(lambda start, stop: None, 8))
            try:
                with left:
                    raise AssertionError
            except RuntimeError as error:
                assert "left or shut down" in str(error), error

        number = fork(in_child)
    """
    with forks(RUNNING_JOB, program, END) as child:
        end_of_running_job(child)


def test_leaving_a_parents_coordinator_in_the_child_cancels_nothing() -> None:
    program = """
        job = Job(fill_at_gate, 4, chunk=1, undo=clear, name="numbers")
        with Coordinator(max_threads=2) as coordinator:
            handle = coordinator.submit(job)
            until(lambda: len(begun) == 2)
            number = os.fork()
            if not number:
                signal.alarm(15)
                sys.exit(0)  # leaves the block by an exception
            assert status_of(number) == 0
            say("forked")
    """
    with forks(program) as child:
        end_of_running_job(child)


# The unit 3 of 16 forks; the parent waits for its child there.
FORKING_CHUNK = """
def fn(start, stop):
    note("done", start, stop)
    if start == 3:
        number = os.fork()
        if not number:
            signal.alarm(15)
            in_child()
            return
        note("status", status_of(number))

job = Job(fn, 16, chunk=1, max_threads=1, undo=clear, name="numbers")
"""

RUN_JOB = {
    "helper": "Coordinator(max_threads=1).submit(job).result()",
    "caller": "run_multithreaded_sync(job)",
    "caller in a coordinator": "run_multithreaded_sync(job, coordinator=Coordinator(1))",
    "loop": "asyncio.run(main())",
    "nested": "run_multithreaded_sync(Job(lambda start, stop: run_multithreaded_sync(job), 1))",
}

MAIN = """
async def main():
    await run_multithreaded(job)
"""

on_each_thread = pytest.mark.parametrize("run", list(RUN_JOB.values()), ids=list(RUN_JOB))


@on_each_thread
@pytest.mark.parametrize("end", ["pass", "raise ValueError('lost')", "sys.exit(0)"])
def test_a_chunk_that_comes_back_in_the_child_ends_that_process(run: str, end: str) -> None:
    program = f"""
        def in_child():
            {end}

        {run}
    """
    with forks(FORKING_CHUNK, MAIN, program) as child:
        assert child.end() == 0, child.stderr()
        assert_parent_unaffected(child, 16)
        assert ["status", "70"] in child.notes()
        [line] = child.stderr().splitlines()
        assert line.startswith("aioktask: a chunk of the job 'numbers' forked")


def test_an_undo_that_comes_back_in_the_child_ends_that_process() -> None:
    program = """
        def undo(start, stop):
            if not os.fork():
                signal.alarm(15)
                return
            note("status", os.waitstatus_to_exitcode(os.wait()[1]))
            note("undone", start, stop)

        def fn(start, stop):
            if start == 3:
                raise ValueError("planted")
            note("done", start, stop)

        try:
            run_multithreaded_sync(Job(fn, 4, chunk=1, max_threads=1, undo=undo, name="numbers"))
        except ValueError:
            note("raised")
    """
    with forks(program) as child:
        assert child.end() == 0, child.stderr()
        assert child.counts(0, 4) == [(1, 1)] * 3 + [(0, 0)]
        assert child.notes()[-1] == ["raised"]
        statuses = [words[1] for words in child.notes() if words[0] == "status"]
        assert statuses == ["70"] * len(statuses) != []


@on_each_thread
@pytest.mark.parametrize("work", ["pass", "run_own_jobs()"])
def test_a_chunk_whose_child_ends_itself_is_as_good_as_any(run: str, work: str) -> None:
    program = f"""
        def in_child():
            try:
                {work}
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)

        {run}
    """
    with forks(FORKING_CHUNK, MAIN, program) as child:
        assert child.end() == 0, child.stderr()
        assert child.stderr() == ""
        assert_parent_unaffected(child, 16)
        assert ["status", "0"] in child.notes()


def test_multiprocessing_works_beside_running_jobs() -> None:
    program = """
        import multiprocessing

        processes = [
            multiprocessing.get_context("fork").Process(target=run_own_jobs) for _ in range(3)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0, process.exitcode
        number = fork(run_own_jobs)
    """
    with forks(RUNNING_JOB, program, END) as child:
        end_of_running_job(child)


def test_forks_of_several_threads_while_jobs_are_submitted_find_every_lock_free() -> None:
    program = """
        stop = threading.Event()
        failed = []

        def submit(first):
            while not stop.is_set():
                run_multithreaded_sync(Job(lambda start, stop: None, 64, chunk=1, max_threads=3))
                with Coordinator() as coordinator:
                    handles = [
                        coordinator.submit(Job(lambda start, stop: None, 8, chunk=1))
                        for _ in range(4)
                    ]
                    handles[0].cancel()

        def in_child():
            run_multithreaded_sync(Job(lambda start, stop: None, 64, chunk=1, max_threads=3))
            Coordinator().submit(Job(lambda start, stop: None, 8, chunk=1)).result()

        def fork_often():
            for _ in range(25):
                status = status_of(fork(in_child))
                if status:
                    failed.append(status)

        submitters = [threading.Thread(target=submit, args=(first,)) for first in range(2)]
        forkers = [threading.Thread(target=fork_often) for _ in range(2)]
        for thread in submitters + forkers:
            thread.start()
        for thread in forkers:
            thread.join()
        stop.set()
        for thread in submitters:
            thread.join()
        assert not failed, failed
    """
    with forks(program) as child:
        assert child.end() == 0, child.stderr()
        assert child.stderr() == ""


def test_chunks_that_fork_while_jobs_are_submitted_find_every_lock_free() -> None:
    # The child of a chunk needs the lock that its parent's other threads use all the time.
    program = """
        stop = threading.Event()

        def submit():
            while not stop.is_set():
                run_multithreaded_sync(Job(lambda start, stop: None, 64, chunk=1, max_threads=3))

        def fn(start, stop):
            number = os.fork()
            if not number:
                signal.alarm(5)
                return
            note("status", status_of(number))

        submitters = [threading.Thread(target=submit) for _ in range(3)]
        for thread in submitters:
            thread.start()
        Coordinator().submit(Job(fn, 50, chunk=1, max_threads=2)).result()
        stop.set()
        for thread in submitters:
            thread.join()
    """
    with forks(program) as child:
        assert child.end() == 0, child.stderr()
        assert child.notes() == [["status", "70"]] * 50


def test_the_child_takes_no_lock_of_a_parents_future() -> None:
    program = """
        executor = coordinator.executor()
        future = executor.submit(int)  # the helpers are at the job
        held, forked = threading.Event(), threading.Event()

        def hold():
            with future._condition:
                held.set()
                forked.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(60)

        def in_child():
            executor.shutdown(cancel_futures=True)
            try:
                future.result()
            except RuntimeError as error:
                assert "parent" in str(error), error
            else:
                raise AssertionError

        number = fork(in_child)
        forked.set()
        thread.join()
    """
    with forks(RUNNING_JOB, program, END) as child:
        end_of_running_job(child)


@pytest.mark.parametrize("form", ["sync", "async", "thread"])
def test_a_child_leaves_the_scope_of_a_stream_of_its_parent(form: str) -> None:
    program = """
        import threading
        from aioktask import map_ordered, map_ordered_sync

        def leave_sync():
            with map_ordered_sync(abs, range(1000)) as results:
                next(results)
                child = os.fork() == 0
                if child:
                    signal.alarm(15)
                else:
                    assert list(results) == list(range(1, 1000))
            return child

        async def leave_async():
            async with map_ordered(abs, range(1000)) as results:
                await anext(results)
                child = os.fork() == 0
                if child:
                    signal.alarm(15)
                else:
                    assert [value async for value in results] == list(range(1, 1000))
            if child:
                os._exit(0)  # what the loop polls is the parent's too
            return False

        def leave_in_thread():
            if leave_sync():
                run_own_jobs()
                os._exit(0)

        if FORM == "thread":
            thread = threading.Thread(target=leave_in_thread)
            thread.start()
            thread.join()
            child = False
        else:
            child = leave_sync() if FORM == "sync" else asyncio.run(leave_async())
        if child:
            run_own_jobs()
            os._exit(0)
        pid, status = os.wait()
        assert status == 0, status
    """
    with forks(f"FORM = {form!r}", program) as child:
        assert child.end() == 0, child.stderr()
        assert child.stderr() == ""


def test_the_child_keeps_times_and_limits_of_its_own() -> None:
    """Its keeper is another one, and nothing of the parent's is due or waits in it."""
    program = """
        def endless(start, stop):
            until(unwanted)

        parents = Coordinator(max_queued=0)
        held = parents.submit(Job(lambda start, stop: gate(), 1), timeout=3600)

        def in_child():
            from aioktask.engine.api.process import current_pool

            assert len(current_pool().deadlines) == 0
            try:
                run_multithreaded_sync(Job(endless, 2, chunk=1), timeout=0.01)
            except TimeoutError:
                note("late")
            assert parents.ready
            parents.submit(Job(lambda start, stop: note("admitted"), 1)).result()
            parents.drain()
            assert not parents.ready

        number = fork(in_child)
        assert parents.ready
    """
    with forks(RUNNING_JOB, program, END) as child:
        child.hear("forked")
        child.open(5)
        assert child.end() == 0, child.stderr()
        assert ["late"] in child.notes()
        assert ["admitted"] in child.notes()
        assert_parent_unaffected(child)
