# SPDX-License-Identifier: MIT
# How much was done when: counts that only grow, at moments, from one process or several.
#
# Pure. Between two moments work is taken to go on evenly; before the first nothing was done, after
# the last nothing more. Moments are seconds of CLOCK_MONOTONIC, which all processes share.
"""Work over time: `Timeline`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Timeline", "together"]


@dataclass(frozen=True, slots=True)
class Timeline:
    """What was done by when.

    Attributes:
        times: Seconds, ascending; at least one.
        done: Units done by then.

    >>> line = Timeline((0.0, 1.0, 2.0), (0.0, 10.0, 40.0))
    >>> line.at(1.5), line.rate(0.0, 2.0), line.reaches(30.0, since=0.0, window=0.5)
    (25.0, 20.0, 1.5)
    """

    times: Sequence[float]
    done: Sequence[float]

    def at(self, time: float) -> float:
        """Units done by `time`."""
        after = bisect_right(self.times, time)
        if after == 0:
            return self.done[0]
        if after == len(self.times):
            return self.done[-1]
        before, next_one = self.times[after - 1], self.times[after]
        part = (time - before) / (next_one - before)
        return self.done[after - 1] + part * (self.done[after] - self.done[after - 1])

    def rate(self, start: float, stop: float) -> float:
        """Units a second from `start` to `stop`."""
        return (self.at(stop) - self.at(start)) / (stop - start)

    def reaches(self, rate: float, *, since: float, window: float) -> float | None:
        """Seconds from `since` to the end of the first window that has such a rate.

        Args:
            rate: Units a second.
            since: No window begins before.
            window: Its length in seconds. Windows begin a tenth of it apart.

        Returns:
            None if no window up to the last moment has it.
        """
        step = 0
        while (begin := since + step * window / 10) + window <= self.times[-1] + 1e-9:
            # A rate that is the same all the time is reached, whatever rounding makes of it.
            if self.rate(begin, begin + window) >= rate * (1 - 1e-9):
                return begin + window - since
            step += 1
        return None


def together(lines: Sequence[Timeline]) -> Timeline:
    """What several did in all, by each moment that any of them knows."""
    times = sorted({time for line in lines for time in line.times})
    return Timeline(times, [sum(line.at(time) for line in lines) for time in times])
