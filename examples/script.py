# SPDX-License-Identifier: MIT
# A script without an event loop: array work on all CPUs, the calling thread taking part.
"""Fill an array, calculate with it, and add it up."""

import time
from typing import Any

import numpy as np

from aioktask import Job, Report, arrays, run_multithreaded_sync


def told(what: str, report: Report[Any]) -> None:
    """What a report tells: how the job was split, and how long it took."""
    print(
        f"{what:8} {report.elapsed * 1e3:7.1f} ms, "
        f"{report.chunks:4} chunks, {report.peak_threads} threads at most"
    )


# Functions of `aioktask.arrays` return a ready job. Nothing happens before it is run.
x = np.empty(1 << 23)
told("fill", run_multithreaded_sync(arrays.fill(x, 0.5)))

# `apply` calls a function with some rows of the arrays at a time. It runs on several threads at
# once, so it must make each row of the result from that row alone, as NumPy's functions do.
y = np.empty_like(x)
applied = arrays.apply(lambda rows: np.sqrt(rows * rows + 1.0) * np.exp(-rows) + rows, x, out=y)
told("apply", run_multithreaded_sync(applied))

# The value of a reduce is the same bit for bit on any number of threads.
total = run_multithreaded_sync(arrays.reduce(np.add, y))
told("reduce", total)
again = run_multithreaded_sync(arrays.reduce(np.add, y, max_threads=1))
assert total.value == again.value


# The same by hand: a job is a function over a range, called once for each chunk of it. Here the
# chunk is so small that what NumPy calculates in between stays in the CPU's cache.
def work(start: int, stop: int) -> None:
    rows = x[start:stop]
    y[start:stop] = np.sqrt(rows * rows + 1.0) * np.exp(-rows) + rows


told("by hand", run_multithreaded_sync(Job(work, len(x), chunk=1 << 14)))

began = time.perf_counter()
work(0, len(x))
print(f"plainly  {(time.perf_counter() - began) * 1e3:7.1f} ms")
print(f"the sum is {float(np.asarray(total.value)):.6f}")
