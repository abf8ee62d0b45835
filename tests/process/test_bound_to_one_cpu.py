# SPDX-License-Identifier: MIT
# A process whose main thread is bound to one CPU of several is told so at its first job, once.

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two CPUs and Linux",
)

SCRIPT = """
import logging, os, sys
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(levelname)s %(message)s")
{before}
from aioktask import Job, run_multithreaded_sync
for _ in range(3):
    report = run_multithreaded_sync(Job(lambda start, stop: None, 100, chunk=1))
print("threads", report.peak_threads)
"""
BIND = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"


def lines(before: str, **environ: str) -> list[str]:
    inherited = {name: value for name, value in os.environ.items() if name[:8] != "AIOKTASK"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        env=inherited | environ,
    )
    return done.stdout.splitlines()


def test_a_process_bound_to_one_cpu_is_told_once() -> None:
    told, threads = lines(BIND)
    assert told.startswith("WARNING process_bound_to_one_cpu ")
    assert "OMP_PROC_BIND" in told
    assert threads == "threads 1"


@pytest.mark.parametrize(
    ("before", "environ"), [("", {}), (BIND, {"AIOKTASK_MAX_THREADS": "1"})], ids=["free", "meant"]
)
def test_others_are_told_nothing(before: str, environ: dict[str, str]) -> None:
    [threads] = lines(before, **environ)
    assert threads.startswith("threads ")
