# SPDX-License-Identifier: MIT
# A limit that is raised while a job runs is used: whoever decides how many threads there are has
# one place to look.

from __future__ import annotations

import threading
import time

import pytest

from aioktask import Coordinator, Job

pytestmark = pytest.mark.max_threads(4)


@pytest.mark.parametrize("learn", ["both", "threads", "chunk", "nothing"])
@pytest.mark.parametrize("raised", ["handle", "coordinator"])
def test_a_limit_that_is_raised_while_the_job_runs_is_used(learn: str, raised: str) -> None:
    begun, four = threading.Event(), threading.Event()
    working = 0
    lock = threading.Lock()

    def fn(start: int, stop: int) -> None:
        nonlocal working
        begun.set()
        with lock:
            working += 1
            if working == 4:
                four.set()
        time.sleep(0.0005)  # the work: it scales with any number of threads
        with lock:
            working -= 1

    with Coordinator(None if raised == "handle" else 1) as coordinator:
        job = Job(
            fn,
            10**9,  # longer than the test, also in chunks of 1
            chunk=None if learn in ("both", "chunk") else 1,
            learn=learn,
            remember=False,
            max_threads=1 if raised == "handle" else None,
        )
        handle = coordinator.submit(job)
        assert begun.wait(10)
        if raised == "handle":
            handle.max_threads = 4
        else:
            coordinator.max_threads = 4
        came = four.wait(10)
        handle.cancel()
    assert came, "no four threads at a time"
