# SPDX-License-Identifier: MIT
# A thread that computes in Python beside a loop: it lets go of the GIL so often that the loop is
# late by no more than a fraction of a millisecond.
#
# Without this the loop would have to wait until the interpreter makes the thread let go, which is
# after 5 ms. `time.sleep(0)` does not help: the thread takes the GIL back before the one that waits
# for it has woken. So it sleeps, for the shortest time that is one.
"""`Courtesy`: work beside a loop."""

from __future__ import annotations

import time

__all__ = ["Courtesy"]

# Works for so long at a time, and then sleeps for so long, in seconds; to which the kernel adds its
# timers' slack of 50 us.
WORKS = 200e-6
SLEEPS = 50e-6


class Courtesy:
    """Called between two small parts of the work, it sleeps if it is time to."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = 0.0

    def __call__(self) -> None:
        now = time.perf_counter()
        if now >= self._until:
            if self._until:
                time.sleep(SLEEPS)
                now = time.perf_counter()
            self._until = now + WORKS
