# SPDX-License-Identifier: MIT
# The workers of one session: the part of each, who may be given a stretch, and how fast they are.
#
# Pure. Guarantees that who is hungry, how many are there and how fast they are together follow from
# one place, whatever becomes of a worker. Relies on the session for saying what becomes of it.
"""A session's members."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from aioktask.cluster.messages import Joined, Stretch
from aioktask.cluster.plan import Rates, Taker

__all__ = ["Member", "Members", "Sent"]

# What was measured last counts so much beside what was measured before.
NEW_RATE = 0.5


@dataclass(slots=True)
class Sent:
    """A stretch that a worker has."""

    stretch: Stretch
    told_at: float  # when its progress was heard last; when it was sent, before
    tell_every: float  # how often it is to be told of, in seconds
    began_at: float | None = None
    done: int = 0
    pace: float | None = None  # units a second of late
    recalled: bool = False
    threads: int = 0
    waits_for: str = ""  # in words, where no thread works on it


@dataclass(slots=True)
class Member:
    """A worker's part."""

    name: str
    host: str
    number: int  # in the order in which they came
    taker: Taker
    state: Literal["opening", "open", "closed", "lost"] = "opening"
    pid: int | None = None
    threads: int = 0
    sent: list[Sent] = field(default_factory=list)  # the one that runs, and the next
    done: tuple[range, ...] = ()
    undone: tuple[range, ...] = ()
    unknown: tuple[range, ...] = ()
    stretches: int = 0
    chunks: int = 0
    busy: float = 0.0
    cpu_time: float = 0.0
    most_threads: int = 0
    lost: str = ""
    undoing: bool = False
    undo_raised: bool = False
    half_undone: tuple[range, ...] = ()  # of what is unknown: its undo was struck
    leaves: bool = False  # it said that it goes, and may undo by itself from then on

    @property
    def there(self) -> bool:
        """Whether it has the session, or makes its data."""
        return self.state in ("opening", "open")

    @property
    def running(self) -> range | None:
        """The stretch that it is at."""
        if self.sent and self.sent[0].began_at is not None:
            return self.sent[0].stretch.range
        return None

    def sent_as(self, lease: str) -> Sent | None:
        """The stretch that it has by this lease."""
        return next((each for each in self.sent if each.stretch.lease == lease), None)

    def seconds_left(self, now: float) -> float:
        """How long it needs for what it has, by how fast it has been of late."""
        rate = self.taker.rate
        seconds = 0.0
        for sent in self.sent:
            left = len(sent.stretch.range) - sent.done
            quiet = now - sent.told_at
            pace = rate if sent.pace is None else sent.pace
            needed = 0.0 if pace is None else left / pace if pace > 0 else float("inf")
            if pace is None or quiet > 2 * sent.tell_every:
                # One that says nothing for so long is expected to say nothing for as long again.
                needed = max(needed, quiet)
            seconds += needed
        return seconds


class Members:
    """All workers that a session ever had, in the order in which they came.

    Attributes:
        there: How many have the session, or make its data.
        total_rate: Of those that were measured and are there together, in units a second.
        measured: How many those are.
        known: By which names homes may name one of them, or one that was.
    """

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.there = 0
        self.total_rate = 0.0
        self.measured = 0
        self._all: dict[str, Member] = {}
        self._hungry: dict[str, None] = {}  # in the order in which they are fed

    def __iter__(self) -> Iterator[Member]:
        return iter(self._all.values())

    def __len__(self) -> int:
        return len(self._all)

    def get(self, name: str) -> Member | None:
        """The worker of this name, if it ever was one."""
        return self._all.get(name)

    def join(self, joined: Joined) -> None:
        """One more is there."""
        taker = Taker(joined.names | {joined.worker, joined.host})
        self._all[joined.worker] = Member(joined.worker, joined.host, len(self._all), taker)
        self.known |= taker.names
        self.there += 1

    def present(self) -> list[Member]:
        """Those that are there."""
        return [each for each in self if each.there]

    def gone(self, member: Member, state: Literal["closed", "lost"]) -> None:
        """This one is there no more, and is given nothing."""
        if member.there:
            self.there -= 1
        member.state = state
        self.sated(member)
        if member.taker.rate is not None:
            self.measured -= 1
            member.taker.rate = None
            self._sum_up()

    # Who has less than two stretches, and may be given one.

    def hunger(self, member: Member) -> None:
        """It may be given a stretch from now on, after those that wait for one already."""
        self._hungry[member.name] = None

    def sated(self, member: Member) -> None:
        """It is given nothing more."""
        self._hungry.pop(member.name, None)

    def all_sated(self) -> None:
        """Nobody is given anything more."""
        self._hungry.clear()

    def hungry(self) -> list[Member]:
        """Those that may be given a stretch, in their order."""
        return [self._all[name] for name in self._hungry]

    def idle(self) -> list[Member]:
        """Those of them that have none at all."""
        return [each for each in self.hungry() if not each.sent]

    def any_idle(self) -> bool:
        return any(not self._all[name].sent for name in self._hungry)

    # How fast they are.

    def measure(self, member: Member, units: int, seconds: float) -> None:
        """It did so many units in so many seconds."""
        if not units or seconds <= 0:
            return
        rate, before = units / seconds, member.taker.rate
        if before is None:
            self.measured += 1
        else:
            rate = NEW_RATE * rate + (1 - NEW_RATE) * before
        member.taker.rate = rate
        self.total_rate += rate - (before or 0.0)
        if before is not None and self.total_rate < before:
            self._sum_up()

    def _sum_up(self) -> None:
        """Have the total be right where much of it went: what is left could be rounding alone."""
        self.total_rate = sum(each.taker.rate or 0.0 for each in self)

    def rates(self) -> Callable[[], Rates]:
        """For one look: the rates of those that are there, made where they are asked for first."""
        found: list[Rates] = []

        def rates() -> Rates:
            if not found:
                found.append(Rates([each.taker for each in self.present()]))
            return found[0]

        return rates
