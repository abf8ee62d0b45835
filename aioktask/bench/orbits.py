# SPDX-License-Identifier: MIT
# The work of `bench cluster`: Kepler's equation for many orbits, from an array in one file to an
# array in another, which every process of the machine opens for itself.
#
# Guarantees that an orbit takes the same time, about 0.3 us of a CPU, however many a call has: it
# works in pieces that stay in a CPU's caches. So what is compared is who is told what when, and not
# who has found the better chunk for the caches.
"""Anomalies of orbits, in files: `solve`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Files", "make_files", "opened", "solve", "solved"]

ECCENTRICITY = 0.6
ITERATIONS = 12
# Orbits that are in the caches at a time.
PIECE = 1 << 13

Anomalies = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Files:
    """The two arrays, as a process has opened them.

    Attributes:
        mean: Mean anomalies: what is given.
        eccentric: Eccentric anomalies: what is asked for.
    """

    mean: Anomalies
    eccentric: Anomalies


def make_files(folder: Path, count: int) -> None:
    """Make the files of so many orbits."""
    mean = np.random.default_rng(1609).uniform(0.0, 2 * np.pi, count)
    np.save(folder / "mean.npy", mean)
    np.save(folder / "eccentric.npy", np.zeros(count))


@functools.cache
def opened(folder: str) -> Files:
    """The files in a folder; once in each process."""
    mean = np.load(Path(folder, "mean.npy"), mmap_mode="r")
    eccentric = np.load(Path(folder, "eccentric.npy"), mmap_mode="r+")
    return Files(np.asarray(mean), np.asarray(eccentric))


def solved(mean: Anomalies) -> Anomalies:
    """Eccentric anomalies, by Newton's method.

    >>> found = solved(np.array([0.0, np.pi]))
    >>> bool(np.allclose(found, [0.0, np.pi]))
    True
    """
    found = np.empty_like(mean)
    for start in range(0, len(mean), PIECE):
        given = mean[start : start + PIECE]
        at = given + ECCENTRICITY * np.sin(given)
        for _ in range(ITERATIONS):
            excess = at - ECCENTRICITY * np.sin(at) - given
            at -= excess / (1 - ECCENTRICITY * np.cos(at))
        found[start : start + PIECE] = at
    return found


def solve(start: int, stop: int, files: Files) -> None:
    """Solve the orbits of a range."""
    files.eccentric[start:stop] = solved(files.mean[start:stop])
