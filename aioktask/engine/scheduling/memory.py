# SPDX-License-Identifier: MIT
# How many chunks of jobs that declare memory may run at once: the budget that all of them share.
#
# Pure: what was seen of the machine in, whether one more chunk fits out. The rule:
#
# 1. Running chunks hold what they declare, from before they begin until they have ended, whether
#    they have taken it yet or not. One more may begin while the sum stays within the room.
# 2. The room is what would be left if none of them ran. That is never seen while some do: of what
#    they declare, a part is in the usage of the machine already, and nobody can tell how much. With
#    L bytes left and S declared by those that run, the room is from L (nothing was taken yet) to
#    L + S (all was). So a look moves it by as little as puts it in between. What chunks take and
#    give back moves nothing, and is not counted twice; what others take or give back does. Each
#    limit has a room of its own, which also moves as the limit itself does; the least one holds.
# 3. Under memory pressure there is a ceiling: half of what chunks declare that run then. Each look
#    without pressure raises it by a chunk, until it is above the room.
# 4. A sixteenth of each limit stays free, for what the program itself takes between two looks: the
#    stacks of threads, results, page tables. At a limit that is full to the last page any of these
#    gets the process killed.
# 5. One chunk fits always, however little is left. So does one of a job that chunks wait for, where
#    all that run wait: they would wait for ever. Before the first look nothing fits.
#
# Guarantees: where chunks take no more than they declare, and nobody else takes any memory, they
# never take more together than was left, but for the one chunk of the fifth rule.
"""The budget of declared memory."""

from __future__ import annotations

from collections.abc import Iterable

from aioktask.engine.machine.available_memory import MemoryLimit

__all__ = ["MemoryBudget", "in_units", "less_reserve"]


def in_units(count: int) -> str:
    """A number of bytes, to be read.

    >>> in_units(3 << 29), in_units(1000), in_units(-5 << 20)
    ('1.5 GiB', '1000 bytes', '-5 MiB')
    """
    for shift, unit in ((50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if abs(count) >= 1 << shift:
            return f"{count / (1 << shift):.4g} {unit}"
    return f"{count} bytes"


# The part of a limit that stays free.
RESERVE = 16


def less_reserve(limits: Iterable[MemoryLimit]) -> list[MemoryLimit]:
    """These limits without the part that stays free.

    >>> less_reserve([MemoryLimit("memory.max", 500, 1600)])
    [MemoryLimit(source='memory.max', left=400, total=1500)]
    """
    return [
        MemoryLimit(source, left - total // RESERVE, total - total // RESERVE)
        for source, left, total in limits
    ]


class MemoryBudget:
    """What is known of the memory, and what running chunks hold of it.

    Attributes:
        known: Whether there was a look.
        room: Bytes for all chunks together; None where there is no limit.
        source: The file of the limit that decides, for people.
        ceiling: Bytes that pressure leaves them; None without pressure.
        held: Bytes that running chunks have declared.
        chunks: How many these are.
        waiting: How many of them wait for jobs, so that they will not end before those.
    """

    __slots__ = (
        "_rooms",
        "_step",
        "ceiling",
        "chunks",
        "held",
        "known",
        "room",
        "source",
        "waiting",
    )

    def __init__(self) -> None:
        self.known = False
        self.room: int | None = None
        self.ceiling: int | None = None
        self.source = ""
        self._rooms: dict[str, tuple[int, int]] = {}  # by source: the room, and the limit in all
        self.held = self.chunks = self.waiting = 0
        self._step = 1

    def __repr__(self) -> str:
        return f"<MemoryBudget {self.held} held of {self.limit}, {self.chunks} chunks>"

    @property
    def limit(self) -> int | None:
        """Bytes that running chunks may hold in all; None for no limit."""
        if self.room is None or self.ceiling is None:
            return self.ceiling if self.room is None else self.room
        return min(self.room, self.ceiling)

    @property
    def left(self) -> int | None:
        """Bytes that further chunks may hold; below 0 where there is less room than before."""
        limit = self.limit
        return None if limit is None else limit - self.held

    def fits(self, wanted: int, *, owed: bool = False) -> bool:
        """Whether one more chunk may begin.

        Args:
            wanted: What it declares, in bytes.
            owed: Whether chunks wait for its job.
        """
        if not self.known:
            return False
        if self.chunks <= (self.waiting if owed else 0):
            return True
        left = self.left
        return left is None or wanted <= left

    def hold(self, wanted: int, chunks: int) -> None:
        """Take in that so many more (or fewer) chunks run that declare so many bytes each."""
        self.held += chunks * wanted
        self.chunks += chunks

    def look(self, limits: Iterable[MemoryLimit], *, pressed: bool, step: int) -> None:
        """Take in what a look found.

        Args:
            limits: Those that there are, with what is left of each.
            pressed: Whether tasks wait for memory.
            step: What the next chunk declares that waits; 0 where none does.
        """
        before, self._rooms = self._rooms, {}
        self.room, self.source = None, ""
        for source, left, total in limits:
            room, total_before = before.get(source, (left, total))
            room += total - total_before
            room = min(max(room, left), left + self.held)
            self._rooms[source] = room, total
            if self.room is None or room < self.room:
                self.room, self.source = room, source
        self.known = True
        self._step = step or self._step
        if pressed:
            # Not again before those have ended that the last time was about.
            if self.ceiling is None or self.held <= self.ceiling:
                self.ceiling = self.held // 2
        elif self.ceiling is not None:
            self.ceiling += self._step
            if self.room is None or self.ceiling >= self.room:
                self.ceiling = None

    def look_failed(self) -> None:
        """Take in that nothing could be read: what was known holds; else one chunk at a time."""
        if not self.known:
            self.known, self.room = True, 0

    def forget(self) -> None:
        """Have what was known be too old to be used."""
        self.known = False
        self.room = self.ceiling = None
        self._rooms = {}

    def reason(self, wanted: int) -> str:
        """Why no further chunk that declares so many bytes begins, for people."""
        if not self.known:
            return "memory: not known yet"
        left = self.left
        if left is None:
            return ""
        by = f" by {self.source}" if self.source else ""
        if self.ceiling is not None and self.limit == self.ceiling:
            by = " while other work waits for memory"
        return f"memory: {in_units(max(left, 0))} left{by}, {in_units(wanted)} a chunk"
