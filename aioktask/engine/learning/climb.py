# SPDX-License-Identifier: MIT
# The climb: how a function's first run comes from small chunks to about the best ones.
#
# Pure. The run begins with chunks so small that it does not matter what they cost. They are made
# larger step by step, by all helpers at once, as long as that is no slower; one step down is the
# end. So each size costs a stretch or two, the last one too, however short the run is: nothing is
# tried that is much larger than what was measured. The search goes on from where the climb ended.
"""The climb to larger chunks in a first run."""

from __future__ import annotations

from aioktask.engine.learning.curve import Curve
from aioktask.engine.learning.scores import Pace

__all__ = ["Climb"]

# A step was wrong if chunks got so much slower by it.
SLOWER = 0.8
# A larger chunk may last this part of a helper's share of what is left.
STEP_SHARE = 1 / 8
# Where a step made chunks so much faster, time goes into the call and not into the units, so that
# the next ones will last no longer.
CALL_COSTS = 1.5


class Climb:
    """The climb of one run.

    Attributes:
        over: Whether it has ended.
        step: By how many numbers of sizes the size in use became larger in the last step.
    """

    __slots__ = ("_curve", "_gain", "_leader", "_ready", "over", "step")

    def __init__(self, curve: Curve, *, over: bool = False) -> None:
        self._curve = curve
        self._leader: Pace | None = None  # the helper that decides on the next step
        self._ready = False  # whether it has measured the size in use
        self._gain = CALL_COSTS  # how much faster it became by the last step
        self.over = over
        self.step = 0

    def measured(self, pace: Pace, gain: float) -> bool:
        """Take in a stretch of the size in use; whether it told what the last step brought.

        If so, and if the climb is over now, the step was wrong.

        Args:
            pace: The helper's, with the stretch.
            gain: How much faster it was than the helper's last one of the size before.
        """
        judges = pace is self._leader and self.step > 0
        if judges:
            self._gain = gain
            self.over = gain < SLOWER
        elif self._leader is None or pace.known:
            # The leader may be gone, or held up: then one that knows the size takes its place.
            self._leader, self._gain, self.step = pace, CALL_COSTS, 0
        else:
            return False
        self._ready = not self.over
        return judges

    def next(self, pace: Pace, share: float, rate: float, probe: float) -> int:
        """By how many numbers of sizes the helper should have chunks become larger now, often 0.

        Args:
            pace: The helper's.
            share: Units that are left for each helper.
            rate: Units a nanosecond.
            probe: How long a stretch lasts at present, in nanoseconds.
        """
        if pace is not self._leader or not self._ready:
            return 0
        self._ready = False
        curve = self._curve
        self.step = 2 if curve.size_of(curve.best + 2) <= probe * rate else 1
        units = curve.size_of(curve.best + self.step)
        too_long = units > curve.longest_ns * rate and self._gain < CALL_COSTS
        if curve.best + self.step > curve.top or units > STEP_SHARE * share or too_long:
            self.over = True
            return 0
        return self.step
