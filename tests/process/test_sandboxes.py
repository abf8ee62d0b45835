# SPDX-License-Identifier: MIT
# Sandboxes: each system call that the engine makes is answered with each error that it may have,
# from the first job on or once there are helpers; and whole environments as they exist. Whatever is
# refused, jobs run with what there is, or fail with an error that says what was refused.
#
# Each case is a child of its own, since no filter can be taken off again. They are forked, one
# after another, from a process that has imported everything, so a case takes a tenth of a second.

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import aioktask
from aioktask.engine.machine.slots import slots_path
from tests.process.child import ONCE, Child
from tests.support import denial

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's"),
    pytest.mark.skipif(not denial.supported(), reason="no seccomp here, or not for this machine"),
]

# In each case: first a line for each step, in JSON, then the exit status.
CASES = '''
import asyncio, ctypes, faulthandler, json, os, resource, signal, sys, threading, time
import anyio, numpy
from aioktask import (
    ChunkCancelled, Coordinator, Job, JobCancelled, current_chunk, run_multithreaded,
    run_multithreaded_sync,
)
from aioktask.engine.machine.denials import denied
from tests.support import denial
from tests.support.gates import until

libc = ctypes.CDLL(None, use_errno=True)

class Work:
    """Units that are done and undone."""

    def __init__(self, fails=False):
        self.counts, self.fails = [0] * 64, fails

    def do(self, start, stop):
        if self.fails and start == 40:
            raise OSError(5, "planted")
        for unit in range(start, stop):
            self.counts[unit] += 1

    def undo(self, start, stop):
        for unit in range(start, stop):
            self.counts[unit] -= 1

    def job(self, **options):
        return Job(self.do, 64, chunk=4, undo=self.undo, **options)

    def check(self, count):
        assert self.counts == [count] * 64, self.counts

def sync():
    work = Work()
    run_multithreaded_sync(work.job())
    work.check(1)

def in_a_loop():
    work = Work()
    asyncio.run(run_multithreaded(work.job()))
    work.check(1)

def in_the_background():
    work = Work()
    asyncio.run(run_multithreaded(work.job(nice=19)))
    work.check(1)

def undone():
    work = Work(fails=True)
    try:
        asyncio.run(run_multithreaded(work.job()))
    except OSError as error:
        assert error.errno == 5 and "planted" in str(error), error
    else:
        raise AssertionError("it did not fail")
    work.check(0)

def nested():
    works = [Work() for _ in range(3)]
    run_multithreaded_sync(
        Job(lambda start, stop: run_multithreaded_sync(works[start].job()), 3, chunk=1)
    )
    for work in works:
        work.check(1)

def waited_for_in_chunks():
    works = [Work() for _ in range(8)]
    def outer(start, stop):
        asyncio.run(run_multithreaded(works[start].job()))
    asyncio.run(run_multithreaded(Job(outer, 8, chunk=1)))
    for work in works:
        work.check(1)

def reniced():
    work = Work()
    gate = threading.Event()
    def fn(start, stop):
        gate.wait(60)
        work.do(start, stop)
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(fn, 64, chunk=4))
        for nice in (19, 0, 10, -5):
            handle.renice(nice)
        gate.set()
        handle.result(60)
    work.check(1)

def cancelled():
    begun = threading.Event()
    def fn(start, stop):
        begun.set()
        try:
            while True:
                current_chunk().check_cancelled()
                time.sleep(0.001)
        except ChunkCancelled:
            return
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(fn, 64, chunk=4))
        until(lambda: begun.is_set() or handle.done())
        if not handle.cancel():
            return handle.result(0)
        try:
            handle.result(60)
        except JobCancelled:
            return
    raise AssertionError("it was not cancelled")

STEPS = (
    sync, in_a_loop, undone, nested, waited_for_in_chunks, in_the_background, reniced, cancelled
)

def sandbox(case):
    if "deny" in case:
        denial.deny(case["deny"])
    elif "allow_all_but" in case:
        denial.allow_only(denial.numbers().keys() - set(case["allow_all_but"]))
    if "mounts" in case:
        assert libc.unshare(0x00020000) == 0, "no mounts here"  # CLONE_NEWNS
        assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
        for kind, place, flags, options in case["mounts"]:
            done = libc.mount(b"none", place.encode(), kind.encode(), flags, options.encode())
            assert done == 0, "no mounts here"
    if "user" in case:
        os.setgroups([])
        os.setgid(case["user"])
        os.setuid(case["user"])

def run(case):
    faulthandler.dump_traceback_later(12)
    signal.alarm(15)
    if case.get("late"):  # there are helpers
        together = threading.Barrier(3)
        asyncio.run(run_multithreaded(Job(lambda a, b: together.wait(60), 3, chunk=1)))
    sandbox(case)
    for step in STEPS:
        try:
            step()
            print(json.dumps([step.__name__, "done", ""]), flush=True)
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            print(json.dumps([step.__name__, "failed", told]), flush=True)
    print(json.dumps(["denied", "are", denied()]), flush=True)

for line in sys.stdin:
    case = json.loads(line)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        os.dup2(theirs, 1)
        os.dup2(theirs, 2)
        os.close(theirs)
        run(case)
        break  # and out by the end of the program
    os.close(theirs)
    with open(ours) as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([said, status]), flush=True)
'''

Case = dict[str, object]


class Outcome(NamedTuple):
    """What became of a case: its steps, all that it said, and its exit status."""

    steps: dict[str, tuple[str, object]]
    said: str
    status: int

    def problem(self, *, may_say: str = "") -> str:
        """What is wrong: nothing, if every step was done and the exit status is 0.

        A step may have failed, too, with an error that says `may_say`.
        """
        failed = [
            f"{name}: {told}"
            for name, (what, told) in self.steps.items()
            if what == "failed" and not (may_say and may_say in str(told))
        ]
        if self.status or "denied" not in self.steps:
            return f"exit status {self.status}\n{self.said[-2000:]}"
        return f"{len(failed)} steps failed, the first one {failed[0]}" if failed else ""


SHARE = f"denials-{os.getpid()}"


def environ() -> dict[str, str]:
    root = str(Path(aioktask.__file__).parents[1])
    return {
        **os.environ,
        "AIOKTASK_MAX_THREADS": "3",
        "AIOKTASK_SHARE": SHARE,
        "AIOKTASK_GIVE_WAY": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([root, *sys.path]),
    }


class Sandboxes:
    """The process that has imported everything, and is forked for each case."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CASES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ(),
        )

    def run(self, case: Case) -> Outcome:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(case), file=self.process.stdin, flush=True)
        said, status = json.loads(self.process.stdout.readline())
        lines = [json.loads(line) for line in said.splitlines() if line.startswith('["')]
        return Outcome({name: (what, told) for name, what, told in lines}, said, status)


@pytest.fixture(scope="module")
def sandboxes() -> Iterator[Sandboxes]:
    made = Sandboxes()
    with made.process:
        yield made
        assert made.process.stdin is not None
        made.process.stdin.close()
    slots_path(SHARE).unlink(missing_ok=True)


EVERYWHERE = ("EPERM", "EACCES", "ENOSYS", "EINVAL", "ESRCH", "EMFILE", "ENOMEM")

# What the engine calls, and the errors of the manuals. Not EINTR: Python repeats such a call.
CALLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "the affinity is read": (("sched_getaffinity",), ("EFAULT",)),
    "the affinity is set": (("sched_setaffinity",), ("EFAULT",)),
    "the nice is read": (("getpriority",), ()),
    "the nice is set": (("setpriority",), ()),
    "limits are read": (("prlimit64", "getrlimit"), ("EFAULT",)),
    "resource usage is read": (("getrusage",), ("EFAULT",)),
    "the CPU time is read": (("clock_gettime",), ("EFAULT", "ENODEV", "ENOTSUP")),
    "a thread is named": (("prctl",), ("EFAULT", "EBADF", "EBUSY", "ENXIO", "EOPNOTSUPP")),
    "files are opened": (
        ("openat", "open"),
        ("EIO", "ELOOP", "ENAMETOOLONG", "ENFILE", "ENODEV", "ENOENT", "ENXIO", "EOVERFLOW"),
    ),
    "files are looked at": (
        ("newfstatat", "fstat", "stat", "lstat", "statx", "access", "faccessat", "faccessat2"),
        ("EBADF", "EFAULT", "EIO", "ELOOP", "ENOENT", "EOVERFLOW"),
    ),
    "files are locked": (("fcntl",), ("EAGAIN", "EBADF", "EDEADLK", "ENOLCK", "EOVERFLOW")),
    "a thread asks who it is": (("gettid",), ()),
    "the user is asked for": (("geteuid",), ()),
}
THREADS = ("clone", "clone3")
MEMORY_OF_THREADS = ("mprotect",)


# Once there are helpers the same code is run, so a few errors will do.
LATE = ("EPERM", "ENOSYS", "EMFILE")


def case(calls: Sequence[str], error: str, *, late: bool = False) -> Case:
    return {"deny": {name: getattr(errno, error) for name in calls}, "late": late}


def problems(outcomes: Mapping[str, Outcome], *, may_say: str = "") -> str:
    found = {name: each.problem(may_say=may_say) for name, each in outcomes.items()}
    return "\n".join(f"{name}: {text}" for name, text in found.items() if text)


@pytest.mark.parametrize("late", [False, True], ids=["at first", "with helpers"])
@pytest.mark.parametrize("what", CALLS)
def test_jobs_run_where_it_is_refused_that(sandboxes: Sandboxes, what: str, late: bool) -> None:
    calls, errors = CALLS[what]
    names = LATE if late else (*EVERYWHERE, *errors)
    outcomes = {name: sandboxes.run(case(calls, name, late=late)) for name in names}
    assert problems(outcomes) == ""


@pytest.mark.parametrize("late", [False, True], ids=["at first", "with helpers"])
@pytest.mark.parametrize("calls", [THREADS, MEMORY_OF_THREADS], ids=["threads", "their memory"])
def test_where_no_thread_starts_jobs_run_on_those_there_are_or_say_so(
    sandboxes: Sandboxes, calls: Sequence[str], late: bool
) -> None:
    names = LATE if late else (*EVERYWHERE, "EAGAIN", "ENOSPC", "EUSERS")
    outcomes = {name: sandboxes.run(case(calls, name, late=late)) for name in names}
    assert problems(outcomes, may_say="start new thread") == ""
    # Here the calling thread takes part.
    assert {each.steps["sync"][0] for each in outcomes.values()} == {"done"}
    assert {each.steps["nested"] for each in outcomes.values()} == {("done", "")}


ENVIRONMENTS: Mapping[str, Case] = {
    "systemd's SystemCallFilter=~@resources": {
        "deny": dict.fromkeys(denial.RESOURCES, errno.EPERM)
    },
    "systemd's SystemCallFilter=@system-service": {
        "allow_all_but": sorted(denial.NOT_FOR_SERVICES)
    },
    "systemd's SystemCallFilter=@system-service ~@resources": {
        "allow_all_but": sorted(denial.NOT_FOR_SERVICES | denial.RESOURCES)
    },
    "Docker's default profile": {
        "deny": {**dict.fromkeys(denial.NOT_IN_DOCKER, errno.EPERM), "clone3": errno.ENOSYS}
    },
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_jobs_run_under_the_filters_of(sandboxes: Sandboxes, name: str) -> None:
    outcome = sandboxes.run(ENVIRONMENTS[name])
    assert outcome.problem() == ""
    [denied] = [told for told in outcome.steps["denied"] if isinstance(told, dict)]
    assert ("setpriority, a thread's nice" in denied) == ("~@resources" in name)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
@pytest.mark.parametrize(
    "mount",
    [("proc", "/proc", 0, "hidepid=2"), ("tmpfs", "/dev/shm", 1, "")],
    ids=["hidepid=2 on /proc", "a read-only /dev/shm"],
)
@pytest.mark.parametrize("user", [65534, 0], ids=["nobody", "root"])
def test_jobs_run_with(sandboxes: Sandboxes, mount: tuple[str, str, int, str], user: int) -> None:
    outcome = sandboxes.run({"mounts": [mount], **({"user": user} if user else {})})
    if "no mounts here" in outcome.said:
        pytest.skip("no mount can be made here")
    assert outcome.problem() == ""


def test_what_was_denied_is_noted(sandboxes: Sandboxes) -> None:
    outcome = sandboxes.run(case(("setpriority",), "EPERM"))
    assert outcome.problem() == ""
    told = {"setpriority, a thread's nice": "EPERM (Operation not permitted)"}
    assert outcome.steps["denied"] == ("are", told)


INFO = """
import json, runpy, sys
from tests.support import denial
denied = json.loads(sys.argv.pop(1))
if denied:
    denial.deny(denied)
runpy.run_module("aioktask", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("calls", "told"),
    [
        ((), "nothing that jobs ask of the system"),
        (("setpriority",), "setpriority, a thread's nice: EPERM (Operation not permitted)"),
        (("prctl",), "prctl(PR_SET_NAME), a thread's name: EPERM (Operation not permitted)"),
        (("fcntl",), "open the slots: EPERM (Operation not permitted)"),
        (("clone", "clone3"), "start a thread: EAGAIN (Resource temporarily unavailable)"),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, tuple) else "",
)
def test_info_tells_what_is_denied(calls: Sequence[str], told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INFO, json.dumps(dict.fromkeys(calls, errno.EPERM)), "info"],
        env=environ(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    slots_path(SHARE).unlink(missing_ok=True)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("denied")]
    assert line.split(maxsplit=1)[1] == told


@pytest.mark.skipif(os.geteuid() != 0, reason="only root lowers the nice of others")
def test_jobs_run_where_the_main_thread_was_reniced_below_what_new_threads_may_have() -> None:
    program = """
        from aioktask.engine.api.process import current_pool
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

        def until_the_engine_knows(start, stop):
            say("helpers are there")
            monitor = current_pool().adapter.monitor
            until(lambda: monitor._nice_tried == -5)
            fill(start, stop)

        Coordinator().submit(Job(until_the_engine_knows, 8, chunk=8)).result(60)
        for turn in range(1, 4):
            Coordinator().submit(Job(fill, 8, start=8 * turn, chunk=1, nice=turn)).result(60)
    """
    with Child(program) as child:
        child.hear("helpers are there")
        os.setpriority(os.PRIO_PROCESS, child.process.pid, -5)
        assert child.end() == 0, child.stderr()
        assert child.counts(0, 32) == [ONCE] * 32


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes a user without rights")
def test_jobs_run_where_the_first_thread_that_submits_has_a_higher_nice_than_the_main_one() -> None:
    program = """
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

        def submit():
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 7)
            Coordinator().submit(Job(fill, 8, chunk=1)).result(60)

        thread = threading.Thread(target=submit)
        thread.start()
        thread.join()
        for turn in range(1, 4):
            Coordinator().submit(Job(fill, 8, start=8 * turn, chunk=1, nice=turn)).result(60)
    """
    with Child(program) as child:
        assert child.end() == 0, child.stderr()
        assert child.counts(0, 32) == [ONCE] * 32
