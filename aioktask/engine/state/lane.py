# SPDX-License-Identifier: MIT
# The lane: where jobs the size of a request pass without a turn.
#
# A job of one chunk, awaited, at the lane's nice, needs no queue, cut, learning or account while
# nothing else waits for helpers. So a turn that leaves helpers idle opens the lane for some of
# them, its members. The submitting thread appends such a job to `waiting` and wakes a member that
# is `parked`; the member claims it, walks it, ends it and wakes its waiter, and no turn is taken.
#
# The lane is open between turns only. Every turn closes it first (`lane_turns`), so it finds an
# ordinary state: a job that a member is at has become a run that this helper serves, and a member
# that is at none is idle. Unclaimed jobs stay in `waiting` while the turn lasts; where it does not
# open the lane again they go to the front of the inbox. The leaving of a coordinator, and the exit,
# have them taken in first.
#
# Three rules make that right, whatever the order of threads' lines:
#
# - A member writes into `Helper.express` what it is about to claim, then looks whether it is still
#   a member (`Helper.in_lane`), then claims (`Run.decide_entrance`). A turn takes the membership
#   away, then reads `express`, then claims. So no helper claims a job that the turn did not see.
# - Whether a run that a member walks is ended by that member or by turns is decided in one step
#   (`one_chunk.decide_ender`): by the member when the chunk is done, or by the turn that adopts the
#   run.
# - A member that has nothing to do appends itself to `parked`, then looks into `waiting`. A thread
#   that submits appends to `waiting`, looks whether the lane is still open, then into `parked`. If
#   the lane is closed, or no member is parked while further helpers may be had, it posts the job as
#   any other, too; the job is taken in once. A member that takes a job takes itself out of
#   `parked`, and wakes another where more jobs wait.
"""The lane of short jobs."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from aioktask.engine.state.group import RunGroup
from aioktask.engine.state.workers import Helper, Waiter

if TYPE_CHECKING:
    from aioktask.engine.state.run import Run

# A lane through which nothing came so many times one after the other is not opened again.
MOST_UNUSED = 64


class Lane:
    """Jobs that helpers serve without turns, and those helpers.

    Attributes:
        root: The group of jobs without a coordinator. Only they may have an undo, since no leaver
            waits for a job that has settled in the lane; and only where nobody hears of them, since
            the owner that commits such a job tells nothing.
        open: Whether jobs may be appended; changed by turns, and False during each.
        nice: That of the jobs, not above 0.
        cap: The process's, with what blocked calls make room for; jobs of a coordinator whose cap
            is lower do not pass.
        full: Whether no further helper could serve its jobs.
        waiting: Jobs that no member has claimed, and some that were claimed a moment ago.
        parked: Members that are waiting for one, or are about to.
        members: The helpers; turns' own.
        former: The members when the present turn began.
        expected: Whether a short job is expected soon, so that the lane is worth opening.
        used: Whether one came since the lane was opened.
        passed: Whether one came since the keeper looked.
        settled: Jobs with an undo that are done, and whose owners may not have taken the result.
    """

    __slots__ = (
        "_unused",
        "cap",
        "expected",
        "former",
        "full",
        "members",
        "nice",
        "open",
        "parked",
        "passed",
        "root",
        "settled",
        "used",
        "waiting",
    )

    def __init__(self, root: RunGroup) -> None:
        self.root = root
        self.open = False
        self.nice = self.cap = 0
        self.full = False
        self.waiting: deque[Run] = deque()
        self.parked: deque[Helper] = deque()
        self.settled: deque[Run] = deque()
        self.members: list[Helper] = []
        self.former: list[Helper] = []
        self.expected = self.used = self.passed = False
        self._unused = 0

    def takes(self, run: Run, group: RunGroup, waiter: Waiter) -> bool:
        """Whether a job that is submitted now may pass, as far as is known of it."""
        return (
            self.open
            and not group.closed
            and run.nice == self.nice
            and self.may_serve(group)
            and waiter.nice >= run.nice  # else it has a loan
            and (not run.hold or (group is self.root and not run.heard))
            and run.parent_stint is None
            and run.only_chunk > 0
        )

    def may_serve(self, group: RunGroup) -> bool:
        """Whether members may serve jobs of this group: asked once more before each claim."""
        return not group.shut and (group.cap is None or group.cap >= self.cap)

    def wake_one(self) -> bool:
        """Wake a member that waits for a job, if one does."""
        while True:
            try:
                helper = self.parked.popleft()
            except IndexError:
                return False
            if helper.in_lane:
                helper.parking.unpark()
                return True

    def join(self, helper: Helper) -> bool:
        """On a member's thread: be woken for the next job; False where one waits already."""
        self.parked.append(helper)
        return not self.waiting

    def step_out(self, helper: Helper) -> None:
        """On a member's thread: take the member out of `parked`, however often it is there."""
        parked = self.parked
        try:
            while True:
                parked.remove(helper)
        except ValueError:
            return

    def expect(self, nice: int) -> None:
        """In a turn: take in that a job of this nice came that could have passed."""
        self.expected = True
        self.nice = nice
        self._unused = 0

    def close(self) -> None:
        """In a turn: end all memberships; the turn then sees to each helper in `members`."""
        self.open = False
        for helper in self.members:
            helper.in_lane = False
        self.parked.clear()
        if self.used:
            self.used = False
            self.passed = True
            self._unused = 0
        else:
            self._unused += 1
            self.expected = self._unused < MOST_UNUSED
