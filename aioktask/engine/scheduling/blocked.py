# SPDX-License-Identifier: MIT
# Which calls block without using a CPU: what looks at their threads tell.
#
# Pure. A thread that sleeps in the kernel for a file, DNS or a lock is not run by it at all. One
# that waits for the GIL is: it wakes every few milliseconds to ask for it. So over a short time
# only a thread that was never run counts as blocked, and over a long one also a thread that was run
# now and then, for less than a hundredth of the time (it polls, or reads from a slow peer).
#
# A thread that could run and gets no CPU looks the same until it gets one, since only then does the
# kernel add that wait. So of a thread that seems blocked it has to be asked whether it sleeps.
"""Calls that block."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["LONG_NS", "SHORT_NS", "CallThread", "ThreadLook"]

# Between two looks at a thread, at least: twice as long as a thread waits for the GIL before it
# asks for it, by default.
SHORT_NS = 10_000_000

# Over so long a thread may have been run: with the GIL, many threads get it in turns of 5 ms.
LONG_NS = 90_000_000
USED = 1 / 100


class ThreadLook(NamedTuple):
    """What the kernel told of a thread at one moment.

    Attributes:
        at: When, in ns.
        ran: How long the thread ran, in ns.
        waited: How long it could run and had no CPU, in ns, without the wait that lasts.
        times: How often it was run.
    """

    at: int
    ran: int
    waited: int
    times: int


class CallThread:
    """A thread that is at a call, as looks at it show.

    Attributes:
        blocked: Whether the call blocks, as far as is known, if its thread sleeps now.
    """

    __slots__ = ("_last", "_seldom", "_since", "blocked")

    def __init__(self, first: ThreadLook) -> None:
        self._last = self._since = first
        self._seldom = False  # whether it was hardly run during the last `LONG_NS`
        self.blocked = False

    def look(self, seen: ThreadLook) -> bool:
        """Take in a later look; whether the call blocks, if its thread sleeps now."""
        last, since = self._last, self._since
        if seen.at - last.at < SHORT_NS:
            return self.blocked
        self._last = seen
        if seen.at - since.at >= LONG_NS:
            used = seen.ran - since.ran + seen.waited - since.waited
            self._seldom = used < (seen.at - since.at) * USED
            self._since = seen
        self.blocked = self._seldom or seen[1:] == last[1:]
        return self.blocked
