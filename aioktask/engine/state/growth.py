# SPDX-License-Identifier: MIT
# A run whose range grows while it is worked on: what is known of its end, and of who waits for it.
#
# A unit of such a run is leave to take one item of a stream, whichever is next: so a unit that a
# thread holds, and has not begun, keeps no particular item from others. Whoever adds items
# publishes the new end here, on its own thread, and posts `growing.follow` now and then; turns
# follow, also those of threads that serve the run, and at the latest those of the keeper. It adds
# an item before it publishes the unit for it, so there is always a unit for each item. Where there
# are more of them, since a calling thread took items without, turns drop what is too much.
"""The growing end of a run's range."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from aioktask.engine.learning.lessons import Key
from aioktask.engine.learning.pacing import GrowingPacing
from aioktask.engine.ranges.claims import GrowingClaims


class Tally(NamedTuple):
    """What whoever adds units knows of them.

    Attributes:
        done: How many items are done, on helpers and on a calling thread.
        size: How many there will be; None where that is not known.
        raised: Whether what was raised for an item, or by the source, ends the stream, once the
            consumer comes to that.
        failed: Whether the consumer has.
        errors: For how many items `fn` raised, as far as the consumer has come, with the one that
            ends the stream.
        error: What ended the stream, as `told_of_error` has it; empty where nothing did.
    """

    done: int = 0
    size: int | None = None
    raised: bool = False
    failed: bool = False
    errors: int = 0
    error: str = ""


class Growth:
    """How far the range of a run has grown.

    Turns change `claims`, `pacing` and `told`; whoever adds items sets all else.

    Attributes:
        code: What identifies the function that the items are given to, for lessons.
        stop: The end of the range, which only moves up.
        closed: Whether nothing will be added any more.
        pending: The items that no thread has begun, each with its number, the next one first.
        head: The number of the item that the stream's consumer waits for, -1 while it waits for
            none that was added.
        waits_since: When it began to wait, in ns.
        told: The number of the last item that was told to hold the stream up.
        has: Tells whether what became of an item is there, which the consumer did not take yet.
        tally: Counts the items, which the units that were claimed say little of. What it tells at
            the end is kept in its place, so that it leads nowhere any more. On any thread.
        is_abandoned: Tells whether whoever adds items never comes back, as where the loop is closed
            under it: the waiter of such a loop leads to its task, which thus stays referred to, and
            so nothing else ends the run. The keeper asks, without the lock.
    """

    __slots__ = (
        "claims",
        "closed",
        "code",
        "has",
        "head",
        "is_abandoned",
        "pacing",
        "pending",
        "stop",
        "tally",
        "told",
        "waits_since",
    )

    def __init__(
        self,
        code: Key,
        pending: Sequence[tuple[int, object]],
        longest_ns: int | None,
    ) -> None:
        self.code = code
        self.claims = GrowingClaims()
        self.pacing = GrowingPacing(longest_ns)
        self.pending = pending
        self.stop = 0
        self.closed = False
        self.head = self.told = -1
        self.waits_since = 0
        self.has: Callable[[int], bool] = _nothing_is_there
        self.tally: Callable[[], Tally] = Tally
        self.is_abandoned: Callable[[], bool] = bool

    def head_lasts(self, now: int) -> int:
        """How long the consumer has waited for an item that a thread is at, in ns; else 0."""
        head, since = self.head, self.waits_since
        if head < 0 or self.has(head):
            return 0
        try:
            if self.pending[0][0] <= head:
                return 0
        except IndexError:  # all have begun
            pass
        return now - since


def _nothing_is_there(number: int) -> bool:
    return False
