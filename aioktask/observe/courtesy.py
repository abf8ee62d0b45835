# SPDX-License-Identifier: MIT
# A thread that computes in Python beside a loop: it lets go of the GIL so often that the loop is
# late by no more than a fraction of a millisecond.
#
# Without this the loop would have to wait until the interpreter makes the thread let go, which is
# after 5 ms. `time.sleep(0)` does not help: the thread takes the GIL back before the one that waits
# for it has woken. So it sleeps, for the shortest time that is one.
#
# Where others compute in Python, too, it waits for the GIL after each sleep, 5 ms for each of them,
# as a loop does. Then it works for as long as it had to wait, up to what the interpreter lets any
# thread work: else an answer of 10 ms of work would take a second.
"""`Courtesy`: work beside a loop."""

from __future__ import annotations

import time

__all__ = ["Courtesy"]

# Works for so long at a time, and then sleeps for so long, in seconds; to which the kernel adds its
# timers' slack of 50 us.
WORKS = 200e-6
SLEEPS = 50e-6
# Where it had to wait, it works for as long, but no longer than this.
MOST_WORKS = 5e-3


class Courtesy:
    """Called between two small parts of the work, it sleeps if it is time to."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = 0.0

    def __call__(self) -> None:
        now = time.perf_counter()
        if now >= self._until:
            waited = 0.0
            if self._until:
                began = now
                time.sleep(SLEEPS)
                now = time.perf_counter()
                waited = now - began
            self._until = now + max(WORKS, min(waited, MOST_WORKS))
