# SPDX-License-Identifier: MIT
# Which slots each busy process of a machine may have.
#
# Pure: the busy processes, what each may use and wishes, and the time in; CPUs out. Guarantees:
# every process computes the same answer from the same facts, so none has to ask another; no slot
# that a process could use is left unused; and a process that gets less than it wishes gets as much
# as any other, but for one slot that goes round.
"""Fair shares of a machine's slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["EPOCH_NS", "Member", "divide", "neighbours"]

# The slots that are left over when all have the same go round, one step in so much time. A slot
# that changes hands lies idle for half the time between two looks: less often would waste less,
# and be less fair to jobs that are over before it comes round.
EPOCH_NS = 500_000_000


@dataclass(frozen=True, slots=True)
class Member:
    """A busy process.

    Attributes:
        row: Its number; no two have the same.
        cpus: The CPUs that it may use.
        wish: How many slots it could use, at least 1.
    """

    row: int
    cpus: frozenset[int]
    wish: int


def neighbours(mine: Member, others: Sequence[Member]) -> tuple[Member, ...]:
    """The members that compete with `mine` for CPUs, directly or by others, and `mine`, by row."""
    near, far = [mine], list(others)
    cpus = mine.cpus
    while found := [member for member in far if not cpus.isdisjoint(member.cpus)]:
        far = [member for member in far if cpus.isdisjoint(member.cpus)]
        near += found
        cpus = cpus.union(*(member.cpus for member in found))
    return tuple(sorted(near, key=lambda member: member.row))


# Asked at every look, and the answer is most often the last one.
@lru_cache(maxsize=4)
def divide(members: tuple[Member, ...], epoch: int) -> tuple[frozenset[int], ...]:
    """The CPUs whose slots each member is to have, in the order of `members`.

    Of `n` CPUs that all `m` may use, and all wish for, each is given ``n // m``, and ``n % m`` of
    them one more, which goes round from epoch to epoch. What some do not wish for is divided among
    the rest in the same way. Where some may use other CPUs than the rest this holds only nearly:
    then the members choose in rounds, each the CPU that is least in demand.

    Args:
        members: Of one neighbourhood; in the same order wherever this is asked.
        epoch: How many `EPOCH_NS` the machine's clock has counted.
    """
    given = _in_turns(members, [member.wish for member in members], epoch)
    counts = [len(cpus) for cpus in given]
    # The same numbers, dealt without going round: a member that keeps its number keeps its CPUs.
    steady = _in_turns(members, counts, 0)
    chosen = steady if [len(cpus) for cpus in steady] == counts else given
    return tuple(frozenset(cpus) for cpus in chosen)


def _in_turns(members: Sequence[Member], wishes: Sequence[int], epoch: int) -> list[list[int]]:
    demand: dict[int, float] = {}
    for member in members:
        for cpu in member.cpus:
            demand[cpu] = demand.get(cpu, 0.0) + 1 / len(member.cpus)
    # Last the CPU that it would take first.
    free = [sorted(m.cpus, key=lambda cpu: (demand[cpu], cpu), reverse=True) for m in members]
    given: list[list[int]] = [[] for _ in members]
    used: set[int] = set()

    def can_take(index: int) -> bool:
        while free[index] and free[index][-1] in used:
            free[index].pop()
        return bool(free[index]) and len(given[index]) < wishes[index]

    while active := [index for index in range(len(members)) if can_take(index)]:
        # Only in the last round does it matter who is first.
        first = epoch % len(active)
        for index in active[first:] + active[:first]:
            if can_take(index):
                cpu = free[index].pop()
                used.add(cpu)
                given[index].append(cpu)
    return given
