# SPDX-License-Identifier: MIT
# Jobs inside of jobs: a chunk may run a job of its own, to any depth.
"""Add up the rows of some images, each image a job, each row a part of it."""

import numpy as np
from numpy.typing import NDArray

from aioktask import Coordinator, Job, Report, run_multithreaded_sync

rng = np.random.default_rng(0)
images: list[NDArray[np.float64]] = [rng.random((512, 2048)) for _ in range(8)]
sums = np.zeros(len(images))


def total(image: NDArray[np.float64]) -> Report[float]:
    def rows(start: int, stop: int) -> float:
        return float(np.sin(image[start:stop]).sum())

    # Combined in a fixed tree: the result never depends on which thread was first.
    job = Job(rows, len(image), chunk=16, reduce=lambda a, b: a + b, name="rows")
    # The chunk that waits for this takes part in it, so it needs no free helper: a nested job goes
    # on even when every helper is busy, or waits like this one.
    return run_multithreaded_sync(job)


def work(start: int, stop: int) -> None:
    for number in range(start, stop):
        sums[number] = total(images[number]).value


# Nested jobs belong to the coordinator of the chunk that runs them, and stay below its limit.
with Coordinator(max_threads=2) as coordinator:
    report = run_multithreaded_sync(Job(work, len(images), chunk=1), coordinator=coordinator)

expected = [np.sin(image).sum() for image in images]
assert np.allclose(sums, expected)
print(f"{len(images)} images in {report.elapsed * 1e3:.0f} ms")
