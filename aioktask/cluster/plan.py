# SPDX-License-Identifier: MIT
# Which stretch a worker takes next, and whose stretch is called back.
#
# Pure: rates and ranges in, ranges out. Guarantees that every unit of the free range is handed out
# once, that stretches end on multiples of the grain, homes and ends apart, and that a worker takes
# from another's home only where that is far behind. Relies on the caller to give back what was not
# done.
"""Sizes of stretches, and homes."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass

from aioktask.cluster.job import Home
from aioktask.engine.ranges.plan import round_up

__all__ = ["FreeRange", "Rates", "Taker", "fair_units", "shortest", "worth_recalling"]

# A stretch is this part of what would be the worker's even share of what is free: with one running
# and one sent, half of what was left is committed, and the other half corrects what was guessed.
PART = 1 / 4
# Before anything was measured a worker gets this part of its even share, to be measured by.
PROBE = 1 / 64
# A stretch lasts at least so long, in seconds, many times what it takes to hear of it; and of many
# workers so long that together they end so many a second: each is three messages of about 0.3 ms,
# which all pass one client, and on Dask one scheduler.
SHORTEST = 0.05
STRETCHES_A_SECOND = 1000
# A home is far behind where its own workers need so many times as long as all workers together
# need for what is free, and so many seconds more. Below two: of two equal workers with one home the
# second one would halve the time.
FAR_BEHIND = 1.75
FAR_BEHIND_SECONDS = 1.0


@dataclass(slots=True)
class Taker:
    """A worker as the plan sees it.

    Attributes:
        names: By which homes may name it: its own, and its host's.
        rate: Units a second; None before it was measured.
    """

    names: frozenset[str]
    rate: float | None = None


def fair_units(
    free: int, rate: float | None, total_rate: float, measured: int, workers: int, grain: int
) -> int:
    """How many units a worker takes of a free range.

    Args:
        free: Units that nobody has.
        rate: The worker's, in units a second; None where it was not measured.
        total_rate: Of all workers that were measured, together.
        measured: How many those are.
        workers: How many workers there are.
        grain: Never less than this.

    >>> fair_units(6400, None, 0.0, 0, 10, 1), fair_units(8000, 100.0, 400.0, 4, 4, 1)
    (10, 500)
    """
    workers = max(workers, 1)
    if not measured:
        return max(int(free / workers * PROBE), grain)
    typical = total_rate / measured
    every = total_rate + typical * (workers - measured)
    if rate is None:  # as if it were an ordinary one, but to be measured first
        return max(int(free * typical / every * PROBE), int(typical * shortest(workers)), grain)
    return max(int(free * rate / every * PART), int(rate * shortest(workers)), grain)


def shortest(workers: int) -> float:
    """How long a stretch lasts at the least, in seconds, with so many workers.

    >>> shortest(2), shortest(1000)
    (0.05, 1.0)
    """
    return max(SHORTEST, workers / STRETCHES_A_SECOND)


def worth_recalling(seconds_left: float, workers: int) -> bool:
    """Whether a stretch that ends so late is worth messages while another worker is idle.

    >>> worth_recalling(0.1, 2), worth_recalling(0.9, 2), worth_recalling(0.9, 1000)
    (False, True, False)
    """
    return seconds_left > max(4 * SHORTEST, shortest(workers))


class Rates:
    """How fast workers are, all together and at each home: made for one look at the free range.

    One that was not measured counts as an ordinary one.

    Args:
        takers: All workers that there are.

    Attributes:
        measured: Whether any was.
        total: Units a second, of all.
        none_behind: Set where no home was far behind: so nobody looks for one again meanwhile.
    """

    def __init__(self, takers: Sequence[Taker]) -> None:
        known = [each.rate for each in takers if each.rate]
        typical = sum(known) / len(known) if known else 1.0
        self.measured = bool(known)
        self.none_behind = False
        self._rates = [each.rate or typical for each in takers]
        self.total = sum(self._rates)
        self._by_name: dict[str, list[int]] = {}  # the places of the workers that it names
        for place, taker in enumerate(takers):
            for name in taker.names:
                self._by_name.setdefault(name, []).append(place)
        self._own: dict[frozenset[str], float] = {}

    def own(self, where: frozenset[str]) -> float:
        """Of the workers at a home together; 0 where there is none."""
        found = self._own.get(where)
        if found is None:
            places = {place for name in where for place in self._by_name.get(name, ())}
            found = self._own[where] = sum(self._rates[place] for place in sorted(places))
        return found

    def far_behind(self, needed: float, usual: float) -> bool:
        """Whether a home that needs so many seconds is, where all that is free needs `usual`.

        One without workers always is. Of the others nobody knows before anything was measured.
        """
        if needed == math.inf:
            return True
        return self.measured and needed > FAR_BEHIND * usual + FAR_BEHIND_SECONDS


class FreeRange:
    """What of a range nobody has, by where its data is.

    Attributes:
        units: How many units that is.
    """

    def __init__(self, start: int, stop: int, grain: int, homes: Iterable[Home] = ()) -> None:
        self.units = 0
        self._grain = grain
        # Edges are moved to those of the grain, which nothing may be cut within: a home keeps the
        # grain that it begins in.
        self._homes: list[Home] = []
        for home in homes:
            first = max(round_up(home.start, grain), start) if home.start > start else start
            last = min(round_up(home.stop, grain), stop)
            if first < last:
                self._homes.append(Home(first, last, home.where))
        self._stops = [home.stop for home in self._homes]
        # Which homes each name is of, and the place of each in the range.
        self._named: dict[str, list[frozenset[str]]] = {}
        self._places: dict[frozenset[str], int] = {}
        for home in self._homes:
            if home.where not in self._places:
                self._places[home.where] = len(self._places)
                for name in home.where:
                    self._named.setdefault(name, []).append(home.where)
        self._by_home: dict[frozenset[str], deque[range]] = {}
        self._units: dict[frozenset[str], int] = {}
        reached = start
        for home in self._homes:
            self._put(_ANYWHERE, range(reached, home.start), front=False)
            self._put(home.where, range(home.start, home.stop), front=False)
            reached = home.stop
        self._put(_ANYWHERE, range(reached, stop), front=False)

    def _put(self, where: frozenset[str], piece: range, *, front: bool) -> None:
        if not piece:
            return
        ranges = self._by_home.setdefault(where, deque())
        if front:
            ranges.appendleft(piece)
        else:
            ranges.append(piece)
        self._units[where] = self._units.get(where, 0) + len(piece)
        self.units += len(piece)

    def give_back(self, pieces: Sequence[range]) -> None:
        """What was handed out and not done is free again, and next."""
        for piece in reversed(pieces):
            for where, part in reversed(self._cut_by_home(piece)):
                self._put(where, part, front=True)

    def _cut_by_home(self, piece: range) -> list[tuple[frozenset[str], range]]:
        found: list[tuple[frozenset[str], range]] = []
        reached = piece.start
        for number in range(bisect_right(self._stops, piece.start), len(self._homes)):
            home = self._homes[number]
            if home.start >= piece.stop:
                break
            start, stop = max(home.start, piece.start), min(home.stop, piece.stop)
            if reached < start:
                found.append((_ANYWHERE, range(reached, start)))
            found.append((home.where, range(start, stop)))
            reached = stop
        if reached < piece.stop:
            found.append((_ANYWHERE, range(reached, piece.stop)))
        return found

    def drop(self) -> None:
        """Nothing is free any more: the job ends."""
        self._by_home.clear()
        self._units.clear()
        self.units = 0

    def home_of(self, unit: int) -> frozenset[str]:
        """The names of the home that a unit is of; none where it is at home anywhere."""
        return self._cut_by_home(range(unit, unit + 1))[0][0]

    def unknown(self, known: Set[str]) -> frozenset[str]:
        """The names of homes of which nobody has one.

        Args:
            known: By which names homes may name the workers that there are, or were.
        """
        return frozenset().union(*(each for each in self._places if each.isdisjoint(known)))

    def ranges(self) -> list[range]:
        """All that is free, in no order."""
        return [piece for ranges in self._by_home.values() for piece in ranges]

    def take(self, taker: Taker, units: int, rates: Callable[[], Rates]) -> range | None:
        """Hand out a stretch of about so many units, from where the worker should take it.

        Args:
            taker: The worker.
            units: How many.
            rates: Tells those of all workers that there are, for how far behind a home is.

        Returns:
            The stretch, which lies in one home; None where the worker should take nothing.
        """
        where = self._home_for(taker, rates)
        if where is None:
            return None
        ranges = self._by_home[where]
        whole = ranges.popleft()
        # No crumb is left that would be a stretch of its own.
        end = whole.start + units
        end += -end % self._grain
        if whole.stop - end < self._grain:
            end = whole.stop
        taken = range(whole.start, end)
        if end < whole.stop:
            ranges.appendleft(range(end, whole.stop))
        elif not ranges:
            del self._by_home[where]
        self._units[where] -= len(taken)
        self.units -= len(taken)
        if not self._units[where]:
            del self._units[where]
        return taken

    def _home_for(self, taker: Taker, rates: Callable[[], Rates]) -> frozenset[str] | None:
        if not self._by_home:
            return None
        if len(self._by_home) == 1 and _ANYWHERE in self._by_home:
            return _ANYWHERE
        own = {
            where
            for name in taker.names
            for where in self._named.get(name, ())
            if where in self._by_home
        }
        if own:  # of equal ones the first, whatever the order of a set
            return max(own, key=lambda where: (self._units[where], -self._places[where]))
        if _ANYWHERE in self._by_home:
            return _ANYWHERE
        return self._far_behind(rates())

    def any_takes(
        self, idle: Set[str], piece: range, seconds_left: float, rates: Callable[[], Rates]
    ) -> bool:
        """Whether one of some workers would take a stretch of another one, if that were free.

        Args:
            idle: By which homes may name these workers.
            piece: The stretch, which lies in one home.
            seconds_left: How long the one that has it would need.
            rates: Tells those of all workers that there are.
        """
        where = self._cut_by_home(piece)[0][0]
        if where == _ANYWHERE or not where.isdisjoint(idle):
            return True
        found = rates()
        usual = _seconds(self.units + len(piece), found.total)
        there = _seconds(self._units.get(where, 0) + len(piece), found.own(where))
        return found.far_behind(max(there, seconds_left), usual)

    def _far_behind(self, rates: Rates) -> frozenset[str] | None:
        """The home that would be done last, if that is far behind the rest."""
        if rates.none_behind:
            return None
        needed = {where: _seconds(units, rates.own(where)) for where, units in self._units.items()}
        last = max(needed, key=needed.__getitem__)
        if rates.far_behind(needed[last], _seconds(self.units, rates.total)):
            return last
        rates.none_behind = True
        return None


_ANYWHERE: frozenset[str] = frozenset()


def _seconds(units: int, rate: float) -> float:
    return units / rate if rate > 0 else math.inf
