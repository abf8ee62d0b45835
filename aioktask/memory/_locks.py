# SPDX-License-Identifier: MIT
# The locks on memory that this process has made and must undo, with the calls that make them.
#
# mlock and munlock change the address space, which they have to themselves meanwhile: two threads
# are no faster at it than one, and whoever maps memory or faults waits. So they are called for a
# piece at a time.
#
# What is locked already is let alone, and so is hugetlbfs, which the kernel never swaps and never
# marks as locked: neither is unlocked in the end. Whether there is a lock is asked of msync, which
# looks at mappings and not at pages. Which kind of lock it is need not be known, as nothing here
# changes it.
"""Locking pages that several owners may hold, and unlocking them with the last."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Hashable, Sequence

from aioktask.memory._kernel import libc, memlock
from aioktask.memory._kernel.libc import PAGE
from aioktask.memory._kernel.mappings import Mapping, mappings_between
from aioktask.memory._kernel.signals import uninterrupted
from aioktask.memory._pin_owners import PinnedPages

__all__ = ["Locks", "of_this_process"]


class Locks:
    """The locks of one process."""

    def __init__(self) -> None:
        # Held to change _pages, and to unlock what they say meanwhile; to read them it need not be.
        # In any line under it a finalizer may let go of another pin, on the same thread: then they
        # are others in the end, and what followed from the old ones is found out anew.
        self._lock = threading.RLock()
        self._pages = PinnedPages()

    def __repr__(self) -> str:
        return f"<Locks: {self._pages.stretches}>"

    def hold(self, owner: Hashable, start: int, stop: int) -> list[Mapping]:
        """Note that `owner` holds pages, and which of them are not locked by anybody.

        Args:
            owner: Kept until it has let go of all of them. It keeps the memory mapped.
            start: The address of the first page.
            stop: One past the last.

        Returns:
            The mappings that they are of.

        Raises:
            OSError: They may not be locked, or are not mapped.
        """
        with self._lock:
            while True:
                before = self._pages
                # Not before: an owner that lets go changes which pages are of one mapping.
                mappings = mappings_between(start, stop)
                if sum(each.stop - each.start for each in mappings) != stop - start:
                    what = f"{start:#x} to {stop:#x} is not mapped throughout"
                    raise OSError(errno.ENOMEM, f"{os.strerror(errno.ENOMEM)}: {what}")
                free = before.free(start, stop)
                unlocked = [each for pages in free for each in _unlocked(pages, mappings)]
                if refusal := memlock.allowance().refusal(sum(map(len, unlocked))):
                    raise refusal
                held = before.held_by(owner, start, stop, unlocked)
                # In a line without a call, which nothing interrupts.
                self._pages = held if self._pages is before else self._pages
                if self._pages is held:
                    return mappings

    def lock(self, start: int, stop: int) -> None:
        """Lock what is held between two addresses and was not locked before, on fault.

        Nobody unlocks it meanwhile, since it is held. Another owner may be about to lock the same
        pages: that is not waited for, but done twice.

        Raises:
            OSError: As mlock2(2); some of it may be locked.
        """
        for each in self._pages.unlocking(start, stop):
            try:
                uninterrupted(libc.mlock2, each.start, len(each), on_fault=True)
            except OSError as error:
                known = memlock.allowance()
                error.add_note(
                    f"{known.locked} bytes are locked in this process, and RLIMIT_MEMLOCK is "
                    f"{known.limit}: {memlock.WHAT_TO_DO}"
                )
                raise

    def let_go(self, owner: Hashable, start: int, stop: int) -> None:
        """Unlock the pages between two addresses that nobody but `owner` holds.

        May be repeated. What it does not hold, it does not touch.

        Raises:
            OSError: As munlock(2); it holds them still.
        """
        with self._lock:
            while True:
                before = self._pages
                left, unlock = before.without(owner, start, stop)
                for each in unlock:
                    uninterrupted(libc.munlock, each.start, len(each))
                self._pages = left if self._pages is before else self._pages  # as in `hold`
                if self._pages is left:
                    return
                self.lock(start, stop)  # what is held and was unlocked here


_locks = Locks()


def of_this_process() -> Locks:
    """Those of the calling process. A fork's child has none, and so lets go of none."""
    return _locks


def _forget() -> None:
    global _locks
    _locks = Locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _unlocked(pages: range, mappings: Sequence[Mapping]) -> list[range]:
    """The parts of the pages that can be locked and are not."""
    found = []
    for each in mappings:
        part = range(max(each.start, pages.start), min(each.stop, pages.stop))
        if not part or each.page != PAGE:
            continue
        if not uninterrupted(libc.any_locked, part.start, len(part)):
            found.append(part)
    return found
