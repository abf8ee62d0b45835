# SPDX-License-Identifier: MIT
# Thousands of real signals at random times, over each way of running a loop and in the sync form.
#
# A program makes one round after another: a timer of the kernel is set to a random time, signals
# are unblocked, jobs run on a loop, signals are blocked. In the end later jobs must run, and the
# handler must have run. So each signal interrupts a job, or the loop that it runs on.
#
# A handler that raises in the middle of a loop's own code can break that loop, whatever runs on it:
# trio then thinks it still runs, asyncio has dropped a callback, as test_loops_own.py shows. So a
# handler of the program's own raises only where the library, the program or a loop that waits is
# interrupted, and so does Ctrl-C over asyncio and uvloop. Over trio it is left to what that makes
# of it, and a loop that says it is broken ends the program, which is started again for the rounds
# that are left.

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="timers and signals of POSIX")

ROOT = Path(__file__).parents[2]
FEW = 200
THOUSAND = 1_000
MANY = 10_000
SECONDS_A_ROUND = 0.05
BROKEN_LOOP = 3  # the status of a program whose loop broke

PROGRAM = """
import asyncio, contextlib, ctypes, faulthandler, gc, linecache, logging, os, random, signal, sys
import threading, time
from aioktask import Coordinator, Job, JobCancelled, UndoFailed, run_multithreaded
from aioktask import run_multithreaded_sync
import aioktask

way, kind, first, rounds, seed = sys.argv[1:3] + [int(each) for each in sys.argv[3:]]
faulthandler.enable(all_threads=True)
faulthandler.dump_traceback_later(float(os.environ["SECONDS"]), exit=True)
logging.disable()
sys.unraisablehook = lambda found: None
number = signal.SIGINT if kind == "interrupt" else signal.SIGALRM
signal.signal(signal.SIGINT, signal.default_int_handler)
handled = struck = spared = 0
turn = 0
running = []  # what a handler cancels
LIBRARY = os.path.dirname(aioktask.__file__)

class Alarm(Exception):
    pass

def raises(number, frame):
    global handled, spared
    handled += 1
    if may_raise(frame):
        raise Alarm
    spared += 1

def may_raise(frame):
    file = frame.f_code.co_filename
    if file.startswith(LIBRARY) or file == "<string>":
        return True
    line = linecache.getline(file, frame.f_lineno or 0)
    # A loop that waits: in trio nothing may be raised there.
    return way != "trio" and (
        "._selector.poll(" in line or "._loop.run_until_complete(" in line and way == "uvloop"
    )

def cancels(number, frame):
    global handled
    handled += 1
    for each in list(running):
        each.cancel()

if kind != "interrupt":
    signal.signal(signal.SIGALRM, raises if kind == "raises" else cancels)
elif way in ("asyncio", "bare", "uvloop"):
    # Python's handler, and the one that asyncio's Runner puts in its place, but for where they
    # would raise inside the loop: see tests/interruption/test_loops_own.py.
    interrupts = signal.default_int_handler
    on_sigint = asyncio.Runner._on_sigint

    def fair(number, frame):
        if may_raise(frame):
            interrupts(number, frame)

    def fair_in_runner(self, number, frame, main_task):
        if (self._interrupt_count == 0 and not main_task.done()) or may_raise(frame):
            on_sigint(self, number, frame, main_task)

    signal.default_int_handler = fair
    signal.signal(signal.SIGINT, fair)
    asyncio.Runner._on_sigint = fair_in_runner
strikes = (Alarm, KeyboardInterrupt, JobCancelled, asyncio.CancelledError, UndoFailed)

class Timer:
    # A timer of the kernel that sends a signal to this process, once.
    def __init__(self, number):
        self.libc = ctypes.CDLL(None, use_errno=True)
        event = (ctypes.c_int * 16)(0, 0, number)
        self.timer = ctypes.c_void_p()
        assert self.libc.timer_create(time.CLOCK_MONOTONIC, event, ctypes.byref(self.timer)) == 0
    def set(self, seconds):
        when = (ctypes.c_long * 4)(0, 0, 0, int(seconds * 1e9))
        assert self.libc.timer_settime(self.timer, 0, when, None) == 0

after = 0  # seconds from the beginning of the jobs to the signal

def arm():
    if after:
        timer.set(after)

def fn(start, stop):
    pass

def job():
    return Job(fn, 8, chunk=2, undo=fn)

async def main():
    arm()
    if way != "trio":
        running.append(asyncio.current_task())
    async with Coordinator() as coordinator:
        handle = coordinator.submit(job())
        running.append(handle)
        await run_multithreaded(job())
        await handle

def sync():
    arm()
    with Coordinator() as coordinator:
        handle = coordinator.submit(job())
        running.append(handle)
        run_multithreaded_sync(job())
        handle.result()

def bare():
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    try:
        loop.run_until_complete(main())
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()

def one():
    if way == "thread":
        sync()
    elif way == "asyncio":
        asyncio.run(main())
    elif way == "uvloop":
        uvloop.run(main())
    elif way == "trio":
        trio.run(main)
    elif way == "bare":
        bare()
    else:
        error = shell.run_cell("await main()", silent=True).error_in_exec
        if error is not None:
            raise error

if way == "uvloop":
    import uvloop
if way == "trio":
    import trio
if way == "ipython":
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell.instance()
    shell.showtraceback = lambda *args, **kwargs: None
    shell.user_ns["main"] = main

def attempt():
    # In here the signal comes, and only here.
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        one()
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})

def tells_of_a_strike(error):
    left, seen = [error], set()
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, strikes):
            return True
        left += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
    return False

def broken(error):
    return isinstance(error, RuntimeError) and any(
        words in str(error)
        for words in ("is already running", "from inside a run()", "close a running event loop",
                      "while another loop is running", "cannot be called from a running event")
    )

def guarded(depth):
    # A signal that comes as attempt() unblocks or blocks it is caught one level further up.
    global struck
    try:
        if depth:
            guarded(depth - 1)
        else:
            attempt()
    except BaseException as error:
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        if broken(error):
            leave(BROKEN)
        if not tells_of_a_strike(error):
            raise
        struck += 1

def leave(status):
    print("round", turn, "struck", struck, "handled", handled, "spared", spared, flush=True)
    if status:
        os._exit(status)

BROKEN = 3
signal.pthread_sigmask(signal.SIG_BLOCK, {number})
run_multithreaded_sync(job())
rng = random.Random(seed)
timer = Timer(number)
begun = time.monotonic()
guarded(4)
usual = time.monotonic() - begun  # and the first time, it imports
begun = time.monotonic()
guarded(4)
usual = min(usual, time.monotonic() - begun, 0.005)
def one_round():
    global after
    running.clear()
    after = 1e-6 + rng.random() * usual
    if rng.random() < 0.1:  # at any time, as the loop begins and ends too
        timer.set(after)
        after = 0
    guarded(4)
    after = 0
    timer.set(0)
    if number in signal.sigpending():
        guarded(4)

turn = first
while turn < rounds:
    try:
        while turn < rounds:
            one_round()
            turn += 1
    except strikes:  # which another thread took, that leaves signals unblocked
        turn += 1
handler = signal.getsignal(number)
if handler is not signal.default_int_handler and kind == "interrupt":
    leave(BROKEN)
signal.signal(number, signal.SIG_IGN)
running.clear()
enough = rounds - first > 20  # else a loop broke in the last of them
assert struck or kind == "cancels" or not enough, "no signal did anything"
assert handled or kind == "interrupt" or not enough, "no handler ran"
assert run_multithreaded_sync(job()).chunks == 4
if asyncio._get_running_loop() is not None:
    leave(BROKEN)
assert asyncio.run(run_multithreaded(job())).chunks == 4
with Coordinator() as coordinator:
    assert coordinator.submit(job()).result(timeout=10).chunks == 4
leave(0)
"""


def signals(way: str, kind: str, rounds: int) -> None:
    """Have a program take so many signals, and judge how it ends."""
    seed = int(os.environ.get("AIOKTASK_TEST_SEED", "0")) or random.SystemRandom().randrange(10**6)
    first = broken = 0
    while True:
        program = subprocess.run(
            [sys.executable, "-c", PROGRAM, way, kind, str(first), str(rounds), str(seed)],
            cwd=ROOT,
            env={
                **os.environ,
                "AIOKTASK_MAX_THREADS": "3",
                "OPENBLAS_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
                "SECONDS": str(15 + SECONDS_A_ROUND * rounds),
            },
            capture_output=True,
            text=True,
        )
        told = f"{way} {kind} {first} with AIOKTASK_TEST_SEED={seed}: status {program.returncode}"
        print(told, program.stdout.strip())
        if program.returncode != BROKEN_LOOP:
            break
        broken += 1
        first = int(program.stdout.split()[1]) + 1
        assert broken < 20 + rounds / 20, "loops break again and again"
    assert program.returncode == 0, f"{told}\n{program.stdout}\n{program.stderr[-6000:]}"


WAYS = ["thread", "asyncio", "bare", "uvloop", "trio", "ipython"]
KINDS = ["interrupt", "raises", "cancels"]

on_each_way = pytest.mark.parametrize("way", WAYS)
of_each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _ipython_is_optional(way: str) -> None:
    if way == "ipython":
        pytest.importorskip("IPython")


@pytest.mark.parametrize(
    ("way", "kind"),
    [("thread", "cancels"), ("asyncio", "cancels"), ("uvloop", "cancels"), ("trio", "cancels")],
)
def test_hundreds_of_signals_are_outlived(way: str, kind: str) -> None:
    """After signals at random times the program ends, and jobs that come later run."""
    signals(way, kind, FEW)


@pytest.mark.sweep
@pytest.mark.parametrize("way", ["thread", "asyncio", "bare", "uvloop", "trio"])
@pytest.mark.parametrize("kind", ["interrupt", "raises"])
def test_a_thousand_signals_that_raise_are_outlived(way: str, kind: str) -> None:
    """After Ctrl-C, or a handler that raises, a thousand times, later jobs run."""
    signals(way, kind, THOUSAND)


@pytest.mark.sweep
@pytest.mark.skipif(
    os.environ.get("AIOKTASK_TEST_SWEEP") != "whole", reason="a part of the whole sweep: make sweep"
)
@on_each_way
@of_each_kind
def test_thousands_of_signals_are_outlived(way: str, kind: str) -> None:
    """After thousands of signals at random times the program ends, and later jobs run."""
    signals(way, kind, MANY)
