# SPDX-License-Identifier: MIT
# The sweep: public calls of the library, interrupted at their lines, each time in a process of its
# own. See tests/interruption/__main__.py for how to repeat one strike.

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfd, memfd and fork")

WHOLE = os.environ.get("AIOKTASK_TEST_SWEEP") == "whole"
ROOT = Path(__file__).parents[2]


def sweep(*arguments: str) -> None:
    """Run the sweep in a process that has no threads, which forks its children."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.interruption", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout)
    if done.returncode:
        pytest.fail(f"see what the sweep printed; the end of it: {done.stdout[-1500:]}", False)


# The kinds of which every strike that was tried leaves nothing behind. `alarm_soon` is not among
# them: it may raise in a loop's own code, where a callback of asyncio's is lost.
PROVED = (
    "alarm,audit,call,finalizer,helper_call,helper_error,hook,interrupt,kill,log,memory,opcode,"
    "recursion,weakref_callback"
)
# Those too, but a trial takes a second or more: here of the sync form and of coordinators only.
EVERYWHERE = "call_everywhere,collector,helper_call_everywhere,profile"
SEED = os.environ.get("AIOKTASK_TEST_SEED", "2026")


def test_a_few_strikes_leave_nothing_behind() -> None:
    """A small part of the sweep, in the everyday run."""
    kinds = "alarm,interrupt,call"
    sample = ("--sample", "0.06", "--seconds", "60")
    sweep("--seed", SEED, *sample, "--kinds", kinds, "--repeat", "2")


@pytest.mark.sweep
def test_strikes_at_any_line_leave_nothing_behind() -> None:
    """After an exception or a call at any line of the library the four questions have answers."""
    if WHOLE:
        sweep("--whole")
    else:
        sample = ("--sample", "0.3", "--seconds", "180")
        sweep("--seed", SEED, *sample, "--kinds", PROVED, "--repeat", "2")


@pytest.mark.sweep
@pytest.mark.skipif(WHOLE, reason="a part of the whole sweep")
def test_calls_at_every_line_leave_nothing_behind() -> None:
    """A tracing or profiling function, or the collector, calls the library again and again."""
    only = ("--only", "thread/", "--state", "warm")
    sample = ("--sample", "0.3", "--seconds", "60")
    sweep("--seed", SEED, *sample, "--kinds", EVERYWHERE, "--repeat", "2", *only)
