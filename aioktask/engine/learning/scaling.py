# SPDX-License-Identifier: MIT
# How many threads a function gains from, found out while it works.
#
# Pure: measurements in, a number of threads out. What all threads get done together is compared
# with what half of them do, in windows that follow each other, until the answer is certain.
# A job whose threads stand in each other's way (memory bandwidth, a lock in the kernel, the GIL)
# keeps those that help, and from time to time looks whether more help again.
"""The search for the number of threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

MILLISECOND = 1_000_000

# How long each thread is measured in a window.
WINDOW_NS = 5 * MILLISECOND
# Longer where threads wait for each other, since each wait lasts the switch interval, 5 ms.
WINDOW_WAITING_NS = 20 * MILLISECOND
WINDOW_STRETCHES = 1
KEPT_WINDOWS = 3

# Fewer threads are as good when they get so much of it done, this many times. They are not when
# they get less done twice, or once far less.
AS_GOOD = 0.96
TIMES = 3
DOUBTS = 2
FAR_LESS = 0.88
# More are better when they get so much more done, this many times.
BETTER = 1.05
TIMES_MORE = 2

# A trial may take this part of what is left: with half the threads it costs half of that.
TRIAL_SHARE = 1 / 30
# How many windows pass before the next look: at first, and at most, when looks find nothing.
FIRST_PAUSE = 50
MOST_PAUSE = 200

# Threads that wait for so much of their time, and not for a CPU, wait for each other.
WAITING = 0.3
WAITING_SURE_NS = 10 * MILLISECOND
# What all threads did counts up to so long, in sum; beyond that all of it counts half. So what is
# remembered of a function from run to run is bounded, and what it does lately counts most.
MOST_CLOCK_NS = 1_000_000 * MILLISECOND
# They wait in the kernel if that is where they spend so much of their CPU time.
MOSTLY_SYSTEM = 0.5
# They wait for one thing, such as the GIL, if together they use about one CPU. Then fewer are as
# good if they get so much of it done in one window, and more are better only by so much.
ONE_CPU = (0.8, 1.2)
TURNS_AS_GOOD = 0.85
TURNS_BETTER = 1.2


class Scaling:
    """The number of threads of one run, and what is known of it.

    Attributes:
        most: The most there may be.
        level: How many the job gains from, or is trying, now.
        holds_gil: Whether threads were let go that had waited for each other.
    """

    __slots__ = (
        "_busy_ns",
        "_confirms",
        "_done",
        "_doubts",
        "_downwards",
        "_elapsed_ns",
        "_from",
        "_pairs",
        "_pause",
        "_pause_left",
        "_served_ns",
        "_stretches",
        "_system_ns",
        "_units",
        "_urged",
        "_waited_ns",
        "_wall_ns",
        "holds_gil",
        "level",
        "most",
    )

    def __init__(self, most: int, first_look: int = 1) -> None:
        """
        Args:
            most: The most threads there may be.
            first_look: After how many windows fewer are tried, unless threads wait for each other.
        """
        self.most = most
        self.level = most
        self.holds_gil = False
        self._done: dict[int, deque[float]] = {}  # units a nanosecond, by number of threads
        self._units = self._wall_ns = self._stretches = 0  # of this window
        # Sums over threads, where there were several: how long they served, waited, had a CPU, and
        # of that were in the kernel; and the time served, divided by their number.
        self._served_ns = self._waited_ns = self._busy_ns = self._system_ns = 0
        self._elapsed_ns = 0.0
        self._from: int | None = None  # the level that this one is compared with
        self._confirms: int | None = None  # the level that did as well, until it is confirmed
        self._urged = False  # whether threads that waited were compared with fewer
        self._pairs = self._doubts = 0  # windows in which fewer were as good, and not
        self._downwards = True  # whether the next look, below the most, is at fewer
        self._pause = FIRST_PAUSE
        self._pause_left = first_look

    def for_next_run(self, most: int) -> Scaling:
        """What the next run of the function begins with, when it may have so many threads."""
        following = Scaling(most)
        if most == self.most:
            following.level = self._from or self.level  # not one that is only tried
            following.holds_gil = self.holds_gil
            following._downwards = self._downwards
            following._urged = self._urged
            following._pause, following._pause_left = self._pause, self._pause_left
            following._served_ns, following._waited_ns = self._served_ns, self._waited_ns
            following._busy_ns, following._system_ns = self._busy_ns, self._system_ns
            following._elapsed_ns = self._elapsed_ns
        return following

    def kept(self) -> dict[str, Any]:
        """What of it is kept on disk for the function's next process: numbers, in JSON's terms."""
        return {
            "level": self._from or self.level,
            "holds_gil": self.holds_gil,
            "downwards": self._downwards,
            "urged": self._urged,
            "pause": self._pause,
            "pause_left": max(self._pause_left, 0),
            "served_ns": self._served_ns,
            "waited_ns": self._waited_ns,
            "busy_ns": self._busy_ns,
            "system_ns": self._system_ns,
            "elapsed_ns": self._elapsed_ns,
        }

    @classmethod
    def of_kept(cls, kept: Mapping[str, Any], most: int) -> Scaling:
        """The scaling of a run that left this, which was checked: see `learning.kept`."""
        scaling = cls(most)
        scaling.level = kept["level"]
        scaling.holds_gil = kept["holds_gil"]
        scaling._downwards, scaling._urged = kept["downwards"], kept["urged"]
        scaling._pause, scaling._pause_left = kept["pause"], kept["pause_left"]
        scaling._served_ns, scaling._waited_ns = kept["served_ns"], kept["waited_ns"]
        scaling._busy_ns, scaling._system_ns = kept["busy_ns"], kept["system_ns"]
        scaling._elapsed_ns = kept["elapsed_ns"]
        return scaling

    def widen(self, most: int) -> None:
        """Take in that there may be `most` threads; a job that had all there were gets them."""
        if most <= self.most:
            return
        if self.level == self.most and not self.holds_gil:
            self.level = most
        self.most = most
        self._from = self._confirms = None
        self._units = self._wall_ns = self._stretches = 0

    @property
    def waiting(self) -> bool:
        """Whether threads wait for each other, or for something else."""
        return self._served_ns > WAITING_SURE_NS and self._waited_ns > WAITING * self._served_ns

    @property
    def _wait_for_gil(self) -> bool:
        """Whether threads wait for the GIL, or what looks like it: outside of the kernel."""
        return self.waiting and self._system_ns < MOSTLY_SYSTEM * self._busy_ns

    @property
    def _take_turns(self) -> bool:
        """Whether threads wait for something that only one of them has at a time."""
        least, most = ONE_CPU
        used = self._busy_ns / self._elapsed_ns if self._elapsed_ns else 0.0
        return self._wait_for_gil and least <= used <= most

    @property
    def urgent(self) -> bool:
        """Whether fewer threads must be tried before all else, since they wait for each other."""
        return not self._urged and self.level > 1 and self.waiting

    def served(
        self, threads: int, wall_ns: int, waited_ns: int, cpu_ns: int, system_ns: int
    ) -> None:
        """Take in what one thread did while it served the job.

        Args:
            threads: How many served the job.
            wall_ns: How long the thread served.
            waited_ns: How long it neither worked nor waited for a CPU.
            cpu_ns: Its CPU time.
            system_ns: What of that was in the kernel, whose locks are no fault of the function's.
        """
        if threads > 1 and self.level > 1:
            self._served_ns += wall_ns
            self._elapsed_ns += wall_ns / threads
            self._waited_ns += waited_ns
            self._busy_ns += cpu_ns
            self._system_ns += system_ns
            while self._longest_clock() > MOST_CLOCK_NS:
                self._served_ns //= 2
                self._elapsed_ns /= 2
                self._waited_ns //= 2
                self._busy_ns //= 2
                self._system_ns //= 2

    def _longest_clock(self) -> float:
        """The largest of the sums; any of them, where they come from a file."""
        sums = self._served_ns, self._waited_ns, self._busy_ns, self._system_ns, self._elapsed_ns
        return max(map(abs, sums))

    def measured(self, threads: int, units: int, wall_ns: int, left: int) -> bool:
        """Learn from a stretch that one of so many threads finished; whether the level changed.

        Args:
            threads: How many served the job from its beginning to its end.
            units: How much it was.
            wall_ns: How long it took.
            left: Units that nobody has claimed.
        """
        if threads != self.level or self.most == 1:
            return False
        self._units += units
        self._wall_ns += wall_ns
        self._stretches += 1
        window = WINDOW_WAITING_NS if self.waiting else WINDOW_NS
        if self._wall_ns < self.level * window or self._stretches < self.level * WINDOW_STRETCHES:
            return False
        done = self.level * self._units / max(self._wall_ns, 1)
        each_ns = self._wall_ns / self.level
        self._units = self._wall_ns = self._stretches = 0
        self._done.setdefault(self.level, deque(maxlen=KEPT_WINDOWS)).append(done)
        before = self.level
        if self._confirms is not None:
            # The range may have become easier meanwhile, which is no merit of fewer threads.
            as_good = median(self._done[self._confirms]) >= AS_GOOD * done
            self._from, tried, self._confirms = self.level, self._confirms, None
            self._decide(tried if as_good else self.level, found=as_good)
        elif self._from is not None:
            self._compare(self._from, done)
        else:
            self._pause_left -= 1
            time_left = left / done if done else 0.0
            short = each_ns <= TRIAL_SHARE * time_left or self.waiting
            if self.urgent or (self._pause_left <= 0 and short):
                self._look()
        return self.level != before

    def _look(self) -> None:
        """Begin to try half the threads, or twice as many, whichever is due."""
        self._from = self.level
        self._pairs = self._doubts = 0
        if self.level > 1 and (self._downwards or self.level == self.most):
            self.level //= 2
        else:
            self.level = min(self.level * 2, self.most)

    def _compare(self, other: int, done: float) -> None:
        """Decide between the level that is tried and the one before."""
        tried = self.level
        known = median(self._done[other])
        if tried > other:
            self._pairs += 1
            if done < (TURNS_BETTER if self.holds_gil else BETTER) * known:
                self._decide(other, found=False)
            elif self._pairs == TIMES_MORE:
                self._decide(tried, found=True)
        elif self._take_turns and done >= TURNS_AS_GOOD * known:
            self._decide(tried, found=True)
        elif done < AS_GOOD * known:
            self._doubts += 1
            if self._doubts == DOUBTS or done < FAR_LESS * known:
                self._decide(other, found=False)
        else:
            self._pairs += 1
            if self._pairs == TIMES or (self.waiting and done >= BETTER * known):
                self._confirms, self._from, self.level = tried, None, other

    def _decide(self, level: int, *, found: bool) -> None:
        """Stay at this level until the next look, which is soon after a change."""
        was = self._from or self.level
        self._urged = self._urged or self.waiting
        if found and level > was:
            self.holds_gil = self._urged = False
            self._served_ns = self._waited_ns = self._busy_ns = self._system_ns = 0
            self._elapsed_ns = 0.0
        elif found and self._wait_for_gil:
            self.holds_gil = True
        self._downwards = found and level < was and level > 1
        self.level = level
        self._from = None
        self._pause = FIRST_PAUSE if found else min(2 * self._pause, MOST_PAUSE)
        if self.holds_gil:
            self._pause = MOST_PAUSE
        self._pause_left = 1 if self._downwards else self._pause
