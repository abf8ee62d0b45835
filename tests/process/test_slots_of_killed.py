# SPDX-License-Identifier: MIT
# Slots of processes that are killed: the kernel gives them to the others, at once and all of them.
#
# Real processes. A process whose end was waited for has lost its locks by then.

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from aioktask.engine.machine.slots import Slots, slots_path
from tests.process.child import Child

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="locks of Linux")

CPUS = frozenset(range(4))

PRELUDE = """
import os, random, signal, subprocess, sys, time
from aioktask.engine.machine.slots import Slots

CPUS = frozenset(range(4))
path = os.environ["TEST_SLOTS"]

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def gate():
    os.read(0, 1)
"""

HOLD_ALL = """
slots = Slots(path)
assert slots.look(CPUS, 4, time.monotonic_ns()) == 4
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return slots_path("test", tmp_path)


def child(path: Path, *program: str) -> Child:
    return Child(*program, prelude=PRELUDE, environ={"TEST_SLOTS": str(path)})


def kill(holder: Child) -> None:
    holder.process.kill()
    assert holder.end() == -9


def test_killed_holders_slots_are_free(path: Path) -> None:
    mine = Slots(path)
    with child(path, HOLD_ALL, "say('held'); gate()") as holder:
        holder.hear("held")
        assert mine.look(CPUS, 4, 0) == 1
        assert (mine.held, mine.members) == (0, 2)
        kill(holder)
    assert mine.look(CPUS, 4, 0) == 4
    assert (mine.held, mine.members) == (4, 1)
    mine.close()


FORK = """
number = os.fork()
if number == 0:
    {in_child}
    say("forked", os.getpid())
    gate()
    os._exit(0)
gate()
"""


@pytest.mark.parametrize("forgets", [True, False])
def test_killed_holders_slots_are_free_while_its_child_lives_if_that_forgot_them(
    path: Path, forgets: bool
) -> None:
    in_child = "slots.forget()" if forgets else "pass"
    mine = Slots(path)
    with child(path, HOLD_ALL, FORK.format(in_child=in_child)) as holder:
        number = int(holder.hear_line("forked "))
        # Forgetting frees none of the parent's.
        assert mine.look(CPUS, 4, 0) == 1
        assert mine.held == 0
        kill(holder)
        assert mine.look(CPUS, 4, 0) == (4 if forgets else 1)
        os.kill(number, 0)
    mine.close()


def test_closed_slots_are_free_also_while_a_child_lives_that_did_not_forget(path: Path) -> None:
    mine = Slots(path)
    program = FORK.format(in_child="pass"), "slots.close(); say('closed'); gate()"
    with child(path, HOLD_ALL, *program) as holder:
        number = int(holder.hear_line("forked "))
        assert mine.look(CPUS, 4, 0) == 1
        # One of the two goes through: the child ends there, or the parent closes and waits.
        holder.open(2)
        holder.hear("closed")
        assert mine.look(CPUS, 4, 0) == 4
        os.kill(number, 0)
    mine.close()


def test_program_that_a_holder_starts_keeps_none(path: Path) -> None:
    start = """
    other = subprocess.Popen(["sleep", "60"], close_fds=False)
    say("held")
    gate()
    """
    mine = Slots(path)
    with child(path, HOLD_ALL, start) as holder:
        holder.hear("held")
        kill(holder)
        assert mine.look(CPUS, 4, 0) == 4
    mine.close()


RANDOM_KILLS = """
# Holders look as fast as they can, so that a kill finds them anywhere.
def hold(ready):
    slots = Slots(path)
    while True:
        some = frozenset(random.sample(range(4), random.randint(1, 4)))
        slots.look(random.choice((some, CPUS)), random.randint(0, 5), time.monotonic_ns())
        if ready >= 0:
            os.close(ready)
            ready = -1

def holders(count):
    ready, ready_here = os.pipe()
    numbers = []
    for _ in range(count):
        number = os.fork()
        if number == 0:
            try:
                mine.forget()
                os.close(ready)
                hold(ready_here)
            finally:
                os._exit(1)
        numbers.append(number)
    os.close(ready_here)
    # The end of the pipe: all have looked.
    assert os.read(ready, 1) == b""
    os.close(ready)
    return numbers

random.seed(int(os.environ["TEST_SEED"]))
mine = Slots(path)
killed = most = 0
while killed < int(os.environ["TEST_KILLS"]):
    numbers = holders(random.randint(1, 6))
    random.shuffle(numbers)
    for number in numbers:
        for _ in range(random.randint(0, 30)):
            may = mine.look(CPUS, 4, time.monotonic_ns())
            assert 1 <= may <= 4 and may == max(mine.held, 1)
            most = max(most, mine.members)
        os.kill(number, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == -signal.SIGKILL
        killed += 1
    if random.random() < 0.5:
        mine.release()
    assert mine.look(CPUS, 4, time.monotonic_ns()) == 4, (killed, mine.held)
    assert (mine.held, mine.members) == (4, 1)
assert most > 1
say("lost none")
"""


@pytest.mark.parametrize("kills", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_random_kills_of_holders_lose_no_slot(path: Path, kills: int) -> None:
    environ = {"TEST_SLOTS": str(path), "TEST_KILLS": str(kills), "TEST_SEED": str(kills)}
    with Child(RANDOM_KILLS, prelude=PRELUDE, environ=environ) as driver:
        assert driver.process.wait(110) == 0, driver.stderr()
        driver.hear("lost none")
        assert driver.stderr() == ""
