# SPDX-License-Identifier: MIT
# The way of a run's helpers through a tree: how long one has its turn, and which directory is next.
#
# The kernel locks a directory while an entry of it is removed, so helpers share directories, never
# the entries of one. Each helper walks a branch, a path of directories, depth first, and gives a
# subdirectory away when another has nothing to do. So what is known of the tree at a time is one
# path for each helper, with at most NAMES names on all of it: in a directory with more
# subdirectories the others are read again later.
#
# The size of the work is not known, so the job's units are turns: a turn lasts SLICE seconds, so
# that helpers serve other jobs too and a cancel is seen; turns become longer as they get fewer, and
# the last one goes on to the end. When nothing is left, turns return at once.
"""The walk of several helpers through one tree, in turns."""

from __future__ import annotations

import os
import time

from aioktask.engine.state.current import current_chunk
from aioktask.errors import add_note
from aioktask.files._branches import Branches
from aioktask.files._directories import Directory, OpenDirectories
from aioktask.files._removal import Removal, Removed
from aioktask.files._root import Root

__all__ = ["TURNS", "Walk"]

# Those that find nothing left cost 0.1 us each at the end.
TURNS = 1024
SLICE = 0.010
# A turn lasts twice as long after each so many: the last of 1024 begins after 11 hours of work.
TURNS_OF_A_LENGTH = 64


class Walk:
    """One run of the job. A branch is a path of directories, the deepest last.

    Args:
        root: The directory that the tree is.
        tree: What is open of it; closed when the walk is over.
        removal: What is done on the way.
    """

    def __init__(self, root: Root, tree: OpenDirectories, removal: Removal) -> None:
        self._root = root
        self._above: Directory | None = None  # what the root is in, once that is open
        self._open = tree
        self._removal = removal
        self._branches: Branches[list[Directory]] = Branches([])  # of the first the root is opened
        self._errors: list[BaseException] = []

    def __del__(self) -> None:
        self._open.close_all()

    def removed(self) -> Removed:
        """What the walk has removed. If the tree is gone, the next run means what is there then."""
        if self._above is not None and not self._above.kept:
            self._root.forget()
        return self._removal.removed()

    def turns(self, start: int, stop: int) -> None:
        """The chunk function: so many turns of one helper. The last goes on until all is done."""
        if self._branches.ended:
            return
        for turn in range(start, stop):
            length = SLICE * 2 ** (turn // TURNS_OF_A_LENGTH)
            deadline = float("inf") if turn == TURNS - 1 else time.monotonic() + length
            # Branch after branch, many of which are short: else the turns would not last.
            while self._work(deadline):
                pass

    def _work(self, deadline: float) -> bool:
        """Walk one branch; whether there is something left, and time for it."""
        branch = self._branches.take(deadline)
        if branch is None:
            return False
        try:
            if not branch:
                branch = self._first_branch()
            self._walk(branch, deadline)
        except BaseException as error:
            self._errors.append(error)
            self._branches.end()
            raise
        finally:
            if self._branches.give_back(*[branch] if branch else []):
                self._tell_what_is_gone()
                self._open.close_all()
        return not self._branches.ended and time.monotonic() < deadline

    def _first_branch(self) -> list[Directory]:
        try:
            found = self._root.open(self._open)
        except OSError as error:
            self._removal.tell(os.open, self._root.path, error)
            return []
        if found is None:
            return []
        self._above, opened = found
        return [self._open.enter(self._above, self._root.name, opened)]

    def _walk(self, branch: list[Directory], deadline: float) -> None:
        while branch:
            if self._branches.ended:
                return
            here = branch[-1]
            if here.entries is None and not here.names and here.more:
                self._removal.begin_reading(here)
            if here.entries is not None:
                self._removal.read(here)
            elif here.names:
                child = self._removal.remove_small(here)
                if child is not None:
                    branch.append(child)
                    self._open.close_far_above(branch)
            else:
                branch.pop()
                self._leave(here, goes_on=bool(branch))
            if self._branches.wanted:
                self._give_away(branch)
            current_chunk().check_cancelled()
            if time.monotonic() >= deadline:
                return

    def _leave(self, here: Directory, *, goes_on: bool) -> None:
        """The directory has been read: remove it, unless others are in it still, and go up.

        Args:
            here: The directory.
            goes_on: Whether the parent is on the same branch, and so is the next.
        """
        descriptor = self._open.leave(here, goes_on=goes_on, borrowed=False)
        while descriptor is not None:
            assert here.parent is not None
            self._removal.remove_directory(here.parent, here.name, descriptor)
            here.parent.entered.discard(here.name)
            here = here.parent
            descriptor = self._open.leave(here, goes_on=goes_on, borrowed=True)

    def _give_away(self, branch: list[Directory]) -> None:
        """A subdirectory as near to the root as can be, for a helper that has nothing to do."""
        for here in branch:
            if here.names and here.needed:
                name = here.names.pop()
                opened = self._removal.open_within(here, name)
                if opened is not None:
                    self._branches.add([self._open.enter(here, name, opened)])
                return

    def _tell_what_is_gone(self) -> None:
        """When no helper works on it any more, so that it is true."""
        removed = self._removal.removed()
        gone = f"{removed.files:,} files and {removed.directories:,} directories"
        while self._errors:
            add_note(self._errors.pop(), f"remove_tree: {gone} had been removed")
