# SPDX-License-Identifier: MIT
# How much of the machine background jobs may use, so that they give way to other processes.
#
# Pure: figures in, a number of threads out. A job of high nice should take from its neighbours what
# a thread of that nice would, but its threads cannot be of that nice: one that is preempted while
# it holds the GIL would keep the event loop waiting. So what is free is measured instead: what was
# idle, and what background threads used without being kept from it by others. Where nothing is free
# a job keeps the share that the kernel would give to its nice, as one thread that pauses between
# chunks until its CPU time is paid for.
"""The share of background jobs."""

from __future__ import annotations

from aioktask.engine.machine.load import CpuLoad
from aioktask.engine.scheduling.queue import NICE_0_WEIGHT, weight

__all__ = ["BackgroundShare"]

# So much of a CPU is always taken by something: a machine that is idle but for that is all free.
SLACK = 0.2

# Paid in advance at most, so that a pause is not followed by a burst.
MOST_CREDIT_NS = 20_000_000


class BackgroundShare:
    """The threads that all background jobs together may have.

    Attributes:
        threads: How many at present.
        pausing: Whether it is one thread that pauses between chunks.
    """

    __slots__ = ("_credit_ns", "pausing", "threads")

    def __init__(self) -> None:
        # Until the first look nothing is known: one thread takes no other's place for long.
        self._credit_ns = 0
        self.pausing = False
        self.threads = 1

    def look(self, seen: CpuLoad, cpus: int, nice: int) -> None:
        """Find the number of threads from what was seen.

        Args:
            seen: What CPUs and background threads did since the last look.
            cpus: How many this process may use.
            nice: Of the most urgent background job.
        """
        ran = seen.used_ns + seen.delay_ns
        # A thread that waits as long as it runs shares its CPU: nothing of that was free. Nor is
        # what a thread used after a pause where little was idle: the kernel lets it go first then,
        # whoever it displaces.
        contended = min(2 * seen.delay_ns / ran, 1.0) if ran else 0.0
        if self.pausing and seen.idle_ns < seen.used_ns:
            contended = 1.0
        free = (seen.idle_ns + seen.used_ns * (1.0 - contended)) / max(seen.elapsed_ns, 1)
        free = min(free, float(cpus))
        kept = weight(nice) / (NICE_0_WEIGHT + weight(nice))
        share = free + kept * (cpus - free)
        self.threads = min(int(share + SLACK), cpus)
        self.pausing = not self.threads
        if not self.pausing:
            self._credit_ns = 0
            return
        self._credit_ns += round(share * seen.elapsed_ns)
        self._credit_ns = min(self._credit_ns, MOST_CREDIT_NS)
        self.threads = int(self._credit_ns > 0)

    def stop(self) -> None:
        """Let no thread work on until the next look, after one found its CPU taken by others."""
        self.pausing = True
        self._credit_ns = self.threads = 0

    def charge(self, used_ns: int) -> None:
        """Pay for the CPU time that a background thread used."""
        if self.pausing:
            self._credit_ns -= used_ns
            self.threads = int(self._credit_ns > 0)
