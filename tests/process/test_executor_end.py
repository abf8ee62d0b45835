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
assert began.wait(15)
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
