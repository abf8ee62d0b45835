# SPDX-License-Identifier: MIT
# Executors at the exit of the interpreter and after a fork. Real processes.

from __future__ import annotations

import os

import pytest

from tests.process.child import PRELUDE, Child

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork(2)")

OPTIONS = ["-W", "ignore:This process:DeprecationWarning"]

ONE_HELPER = {"AIOKTASK_MAX_THREADS": "1", "AIOKTASK_MAX_BLOCKED": "0"}

CALLS = """
coordinator = Coordinator()
executor = coordinator.executor()
began = threading.Event()

def call(number):
    began.set()
    gate()
    say("called", number)
    return number

futures = [executor.submit(call, number) for number in range(3)]
for number, future in enumerate(futures):
    future.add_done_callback(lambda done, number=number: say(number, done.cancelled()))
assert began.wait(60)
"""


def test_exit_waits_for_calls_that_run_and_cancels_the_others() -> None:
    with Child(CALLS, environ=ONE_HELPER) as child:
        child.hear("1 True")
        child.hear("2 True")
        child.open()
        child.hear("called 0")
        child.hear("0 False")
        assert child.end() == 0
        assert child.stderr() == ""


def test_callbacks_of_calls_that_exit_cancels_run_in_the_engine_and_may_not_wait() -> None:
    program = """
        def callback(future):
            say(type(threading.current_thread()).__name__, future.cancelled())
            try:
                run_multithreaded_sync(Job(print, 1))
            except RuntimeError as error:
                say("where nothing may wait" in str(error) or error)

        queued = coordinator.executor().submit(print)
        queued.add_done_callback(callback)
    """
    with Child(CALLS, program, environ=ONE_HELPER) as child:
        child.hear("EngineThread True")
        child.hear("True")
        child.open()
        assert child.end() == 0
        assert child.stderr() == ""


def test_a_submit_after_the_end_is_refused() -> None:
    # Registered before the library's own hook, so called after that.
    early = """
import atexit

executors = []

def late():
    try:
        executors[0].submit(say, "called")
    except RuntimeError as error:
        say(error)

atexit.register(late)
"""
    program = """
        executors.append(Coordinator().executor())
        executors[0].submit(int).result()
    """
    with Child(program, prelude=early + PRELUDE) as child:
        child.hear("the interpreter is exiting: no job can be submitted")
        assert child.end() == 0
        assert child.stderr() == ""


def test_a_forked_child_has_an_executor_of_its_own_and_no_part_in_its_parents_calls() -> None:
    program = """
        number = os.fork()
        if not number:
            signal.alarm(15)
            try:
                futures[0].result()
            except RuntimeError as error:
                say(error)
            executor.shutdown()  # of the parent's calls it waits for none
            say(Coordinator().executor().submit(pow, 2, 3).result())
            os._exit(0)
        say(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]))
    """
    with Child(CALLS, program, options=OPTIONS, environ=ONE_HELPER) as child:
        child.hear("the future belongs to the parent of this forked process")
        child.hear("8")
        child.hear("0")
        child.open(3)  # the exit may find that the next call has begun
        assert child.end() == 0
        assert child.stderr() == ""


# A parent's futures, of which a thread holds the locks when it forks. There is one helper, so that
# nothing comes of the last one until the gate is opened.
HELD = """
coordinator = Coordinator()
executor = coordinator.executor()
over = executor.submit(pow, 2, 3)
over.result()
failed = executor.submit(int, "x")
failed.exception()
running = executor.submit(lambda: (say("runs"), gate()))
until(running.running)
queued, cancelled = executor.submit(int), executor.submit(int)
cancelled.cancel()
futures = [over, failed, cancelled, running, queued]
theirs = executor.map(str, range(3))  # an iterator that the child drops
held, forked = threading.Event(), threading.Event()

def hold():
    for each in futures:
        each._condition.acquire()
    held.set()
    forked.wait(60)
    for each in futures:
        each._condition.release()

def refused(call):
    try:
        call()
    except RuntimeError as error:
        assert str(error) == "the future belongs to the parent of this forked process", error
    else:
        raise AssertionError(call)

def in_child(asks):
    signal.alarm(15)
    try:
        asks()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def ask_in_a_child(asks):
    held.clear(), forked.clear()
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    number = os.fork()
    if not number:
        in_child(asks)
    status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    forked.set()
    thread.join()
    say("child", status)
"""

ASKS = {
    "what is done": """
        def asks():
            assert over.done() and not over.cancelled() and not over.running()
            assert over.result() == 8 and over.exception() is None
            assert isinstance(failed.exception(), ValueError)
            assert cancelled.cancelled() and cancelled.cancel() and not over.cancel()
            called = []
            over.add_done_callback(called.append)
            assert called == [over]
            assert concurrent.futures.wait([over, failed, cancelled]).not_done == set()
            assert set(concurrent.futures.as_completed([over, cancelled])) == {over, cancelled}
    """,
    "what is not": """
        def asks():
            for each in (running, queued):
                for call in (each.done, each.cancelled, each.running, each.cancel, each.result,
                             each.exception, lambda: each.result(0), lambda: each.exception(0),
                             lambda: each.add_done_callback(print),
                             lambda: concurrent.futures.wait([over, each]),
                             lambda: list(concurrent.futures.as_completed([each]))):
                    refused(call)
            refused(lambda: next(theirs))
    """,
    "what only looks": """
        def asks():
            assert "finished returned int" in repr(over) and "pending" in repr(queued)
            theirs.close()
            executor.shutdown(cancel_futures=True)
    """,
    "the child of the child": """
        def asks():
            # It holds the locks of its own, too, of which its child has other ones again.
            with over._condition, queued._condition:
                number = os.fork()
                if not number:
                    thread = threading.Thread(target=in_child, args=(grandchild,))
                    thread.start()
                    thread.join()
            assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 0

        def grandchild():
            assert over.done() and over.result() == 8
            refused(queued.cancel)
    """,
}


@pytest.mark.parametrize("asks", list(ASKS.values()), ids=list(ASKS))
def test_a_child_asks_its_parents_futures_whoever_holds_their_locks(asks: str) -> None:
    program = "import concurrent.futures, traceback\n" + HELD
    with Child(program, asks, "ask_in_a_child(asks)", options=OPTIONS, environ=ONE_HELPER) as child:
        child.hear("child 0")
        child.open(1)
        assert child.end() == 0, child.stderr()
        assert child.stderr() == ""


@pytest.mark.parametrize("end", ["return 1", "raise ValueError('lost')", "sys.exit(0)"])
def test_a_call_that_comes_back_in_the_child_ends_that_process_and_calls_nobody(end: str) -> None:
    program = f"""
        parent = os.getpid()

        def call():
            number = os.fork()
            if not number:
                signal.alarm(15)
                {end}
            return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])

        with Coordinator() as coordinator:
            executor = coordinator.executor()
            for _ in range(3):  # the later ones pass the lane
                future = executor.submit(call)
                future.add_done_callback(lambda _: note("called back", os.getpid() == parent))
                say("status", future.result())
    """
    with Child(program, options=OPTIONS, environ=ONE_HELPER) as child:
        child.hear("status 70", 3)
        assert child.end() == 0
        assert child.notes() == [["called", "back", "True"]] * 3
        lines = child.stderr().splitlines()
        assert len(lines) == 3
        assert all("call' forked and returned in the child process" in each for each in lines)
