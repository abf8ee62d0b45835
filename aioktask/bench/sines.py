# SPDX-License-Identifier: MIT
# The work beside which a loop, a neighbour or another process is measured: sines, which fill a CPU
# from its caches, release the GIL, and count what is done.
#
# The range may be longer than the arrays: it goes round and round in them. So memory is no matter
# of the size of a job, and what is measured is CPU time, not the memory's speed.
"""np.sin over a range of any length."""

from __future__ import annotations

import numpy as np

__all__ = ["LARGE", "SIZE", "SMALL", "Sines"]

# One run of a job: about 0.6 s of one CPU.
SIZE = 1 << 26
# Elements of a chunk, small (0.15 ms) and large (10 ms).
SMALL, LARGE = 1 << 14, 1 << 20
LENGTH = 1 << 22


class Sines:
    """A function for chunks, `sines(start, stop)`, that counts elements.

    While `on` is false it returns at once and counts nothing: so those who cannot be cancelled are
    soon at their end.

    Args:
        size: Elements of one run of a job.
        length: Of the arrays.
    """

    def __init__(self, size: int = SIZE, length: int = LENGTH) -> None:
        self.size = size
        self.length = length
        self.on = True
        self._x = np.linspace(0.0, 1e3, length)
        self._out = np.zeros(length)
        # Appended to by several threads, which is one step on every build of Python.
        self._done: list[int] = []

    def __call__(self, start: int, stop: int) -> None:
        if not self.on:
            return
        for low, high in self._stretches(start, stop):
            np.sin(self._x[low:high], out=self._out[low:high])
        self._done.append(stop - start)

    def with_gil(self, start: int, stop: int) -> None:
        """Count as far in Python: a function that holds the GIL."""
        for _ in range(start, stop):
            pass
        self._done.append(stop - start)

    @property
    def done(self) -> int:
        """Elements of the chunks that are done, since the last `restart`."""
        return sum(self._done)

    def restart(self) -> None:
        """Count from 0, and be on."""
        self._done = []
        self.on = True

    def _stretches(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Where the range lies in the arrays: one stretch, or more if it goes over their end."""
        found = []
        while start < stop:
            low = start % self.length
            high = min(self.length, low + stop - start)
            found.append((low, high))
            start += high - low
        return found
