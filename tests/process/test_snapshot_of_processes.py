# SPDX-License-Identifier: MIT
# What a snapshot tells where there are several processes: who holds the slots that they share, and
# what a fork's child sees.

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from aioktask.engine.machine.slots import slots_path

BUSY = """
import os, sys, threading, time
import aioktask
from aioktask import Coordinator, Job

gate = threading.Event()

def work(start, stop):
    gate.wait(60)

def seen(condition):
    deadline = time.monotonic() + 60
    while not condition(found := aioktask.snapshot()):
        assert time.monotonic() < deadline, found.limits
        time.sleep(0.02)
    return found
"""

TWO = f"""{BUSY}
with Coordinator() as coordinator:
    coordinator.submit(Job(work, 64, chunk=1))
    print(os.getpid(), flush=True)
    other = int(sys.stdin.readline())
    both = {{os.getpid(), other}}
    found = seen(lambda each: both == {{one.pid for one in each.limits.slots.holders}})
    slots = found.limits.slots
    held = {{each.pid: each.held for each in slots.holders}}
    assert slots.name == os.environ["AIOKTASK_SHARE"]
    assert slots.held == held[os.getpid()] and held[other] >= 1, slots
    assert slots.busy == 2 and slots.refused == "", slots
    assert found.limits.share is not None and found.limits.share < found.limits.threads
    print("seen", flush=True)
    sys.stdin.readline()
    gate.set()
# At rest nobody holds any, and nobody is named that did.
seen(lambda each: each.limits.slots.held == 0 and not each.limits.slots.holders)
print("done", flush=True)
"""


@pytest.mark.skipif(
    not Path("/proc/self/fdinfo").is_dir() or len(os.sched_getaffinity(0)) < 2,
    reason="the system tells of no locks (/proc), or there is one CPU",
)
def test_processes_that_share_slots_are_shown_with_what_each_holds() -> None:
    name = f"test-{uuid.uuid4().hex[:12]}"
    environ = {**os.environ, "AIOKTASK_SHARE": name}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TWO],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        )
        for _ in range(2)
    ]
    try:
        pids = [child.stdout.readline() for child in children if child.stdout]
        for child, other in zip(children, reversed(pids), strict=True):
            assert child.stdin is not None
            child.stdin.write(other)
            child.stdin.flush()
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "seen\n"
        for child in children:
            assert child.communicate("\n", timeout=60)[0] == "done\n"
            assert child.returncode == 0
    finally:
        for child in children:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        slots_path(name).unlink(missing_ok=True)


FORK = f"""{BUSY}
coordinator = Coordinator()
with coordinator:
    coordinator.submit(Job(work, 2, chunk=1, name="of the parent"))
    before = seen(lambda each: each.limits.working)
    child = os.fork()
    if not child:
        status = 1
        try:
            found, own = aioktask.snapshot(), coordinator.snapshot()
            assert found.pid == os.getpid() != before.pid
            assert not (found.jobs or found.ended or found.helpers or found.loops), found
            assert not own.jobs
            aioktask.run_multithreaded_sync(Job(lambda start, stop: None, 2, name="of the child"))
            assert [each.name for each in aioktask.snapshot().ended] == ["of the child"]
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [each.name for each in aioktask.snapshot().jobs] == ["of the parent"]
    gate.set()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forks_child_sees_its_own_jobs_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK],
        env={**os.environ, "AIOKTASK_SHARE": "off"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
