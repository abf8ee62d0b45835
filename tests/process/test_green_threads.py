# SPDX-License-Identifier: MIT
# Where threads are greenlets, a job is refused in one clear error, and nothing is done to the
# thread that they all are.

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from types import ModuleType

import pytest

from aioktask.engine.machine.green_threads import refuse_green_threads

needs_gevent = pytest.mark.skipif(
    importlib.util.find_spec("gevent") is None,
    reason="gevent is not installed (it has no wheels for free-threaded Python)",
)

FORMS = {
    "sync": "aioktask.run_multithreaded_sync(job)",
    "awaited": "asyncio.run(aioktask.run_multithreaded(job))",
    "handle": "aioktask.Coordinator().submit(job)",
    "on demand": "aioktask.OnDemand(job).__enter__()",
}

REFUSED = """
import asyncio, os, aioktask
ran = []
job = aioktask.Job(lambda start, stop: ran.append(start), 60, chunk=1)
nice = os.getpriority(os.PRIO_PROCESS, 0)
for _ in range(3):
    try:
        {form}
    except RuntimeError as error:
        assert "gevent has replaced" in str(error), error
        assert "patch_all(thread=False, queue=False)" in str(error), error
    else:
        raise AssertionError("it ran")
assert ran == []
assert os.getpriority(os.PRIO_PROCESS, 0) == nice
print("refused")
"""

WORKS = """
import os, threading, time, aioktask
threads = set()
def chunk(start, stop):
    threads.add(threading.get_native_id())
    time.sleep(0.001)
aioktask.set_max_threads(2)
report = aioktask.run_multithreaded_sync(aioktask.Job(chunk, 60, chunk=1))
assert report.peak_threads == 2, report
assert len(threads) == 2, threads
print("works")
"""


def told(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_gevent
@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_under_gevent_s_patches_every_way_to_run_a_job_is_refused(form: str) -> None:
    patch = "from gevent import monkey; monkey.patch_all()"
    assert told(patch + REFUSED.format(form=form)) == "refused"


@needs_gevent
def test_patches_that_come_after_the_import_are_noticed() -> None:
    patch = "import aioktask; aioktask.Job; from gevent import monkey; monkey.patch_all()"
    assert told(patch + REFUSED.format(form=FORMS["sync"])) == "refused"


@needs_gevent
def test_patches_that_come_after_a_job_are_noticed() -> None:
    patch = WORKS + "from gevent import monkey; monkey.patch_all()"
    assert told(patch + REFUSED.format(form=FORMS["sync"])) == "works\nrefused"


@needs_gevent
@pytest.mark.parametrize(
    "unpatched",
    [
        "import gevent",
        "import gevent.monkey",
        "from gevent import monkey; monkey.patch_all(thread=False, queue=False)",
    ],
)
def test_jobs_run_beside_gevent_where_threads_are_threads(unpatched: str) -> None:
    assert told(unpatched + WORKS) == "works"


@pytest.mark.parametrize("patched", [True, False])
def test_patches_of_eventlet_are_noticed(monkeypatch: pytest.MonkeyPatch, patched: bool) -> None:
    patcher = ModuleType("eventlet.patcher")
    patcher.is_monkey_patched = lambda name: patched and name == "thread"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "eventlet.patcher", patcher)
    if not patched:
        refuse_green_threads()
        return
    with pytest.raises(RuntimeError, match=r"eventlet has replaced .*_patch\(thread=False\)"):
        refuse_green_threads()


@pytest.mark.parametrize("patcher", ["gevent.monkey", "eventlet.patcher"])
def test_a_library_that_is_half_imported_has_patched_nothing(
    monkeypatch: pytest.MonkeyPatch, patcher: str
) -> None:
    monkeypatch.setitem(sys.modules, patcher, ModuleType(patcher))
    refuse_green_threads()
