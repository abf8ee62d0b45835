# SPDX-License-Identifier: MIT
# A call of the scheduler that an exception ends in the middle, as Ctrl-C may: `rebuild` mends it.
# Each call is struck at each of its lines, in a world that has everything; what was rebuilt is
# compared with a scheduler that was told the same from the start.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aioktask.engine.machine.available_memory import MemoryLimit
from aioktask.engine.scheduling import queue
from aioktask.engine.scheduling.queue import (
    SLICE_NS,
    Account,
    Counted,
    Entry,
    Group,
    Scheduler,
    Seat,
)
from tests.engine.scheduling.tracing import strike
from tests.support.lines import AT_LINES

Serving = tuple[Entry, Seat]


class World:
    """Jobs of every kind, in coordinators of every kind, with threads in every seat.

    Every other job of a kind declares so much memory, of which there is some more.
    """

    def __init__(self, memory: int = 0) -> None:
        self.memory = memory
        self.scheduler = scheduler = Scheduler(9)
        scheduler.background_cap = 3
        scheduler.look_at_memory([MemoryLimit("", 7 * memory, 99)], pressed=False)
        self.groups = {"open": Group(), "capped": Group(3), "full": Group(1)}
        self.entries: dict[str, Entry] = {}
        self.serving: list[Serving] = []
        for group in self.groups:
            for name in ("plain", "served", "low", "lent", "background", "owed", "undo", "idle"):
                self.add(f"{group} {name}", group, 10 if name in ("low", "lent") else 0)
        for name, entry in self.entries.items():
            if "served" in name:
                scheduler.charge(entry, SLICE_NS)
            elif "lent" in name:
                scheduler.set_loan(entry, -3)
            elif "background" in name:
                scheduler.set_gives_way(entry, True)
            elif "owed" in name:
                scheduler.owe(entry, 1)
            elif "undo" in name:
                scheduler.set_idle(entry)
                scheduler.set_ready(entry, undoing=True)
            elif "idle" in name:
                scheduler.set_idle(entry)
        for name in ("open served", "open lent", "open lent", "open background", "full undo"):
            self.enter(name)
        self.enter("capped undo", Counted.IN_PROCESS)
        self.enter("capped background", Counted.IN_GROUP)

    def add(self, name: str, group: str, nice: int = 0) -> None:
        entry = self.entries[name] = Entry(name, self.groups[group], nice, 2)
        if len(self.entries) % 2:
            entry.memory = self.memory
        self.scheduler.add(entry)
        self.scheduler.set_ready(entry)

    def enter(self, name: str, counted: Counted = Counted.NOWHERE) -> None:
        entry = self.entries[name]
        self.serving.append((entry, self.scheduler.enter(entry, counted)))

    def fresh(self) -> World:
        """A world of its own that is told the same as is true of this one, by whole calls."""
        other = World.__new__(World)
        scheduler = other.scheduler = Scheduler(self.scheduler.cap)
        scheduler.background_cap = self.scheduler.background_cap
        scheduler.look_at_memory([MemoryLimit("", 7 * self.memory, 99)], pressed=False)
        other.groups = {name: Group(group.cap) for name, group in self.groups.items()}
        other.entries, other.serving = {}, []
        names = {group: name for name, group in self.groups.items()}
        for name, entry in self.entries.items():
            made = Entry(name, other.groups[names[entry.group]], entry.nice, entry.limit)
            other.entries[name] = made
            made.sequence, made.served = entry.sequence, entry.served
            # A thread that came before the undo is there only where that does not count.
            made.memory = 0 if entry.undoing else entry.memory
        for entry, seat in self.serving:
            made = other.entries[entry.run]
            scheduler.set_loan(made, 0 if seat.account is Account.LENT else None)
            scheduler.set_gives_way(made, seat.account is Account.BACKGROUND)
            other.enter(entry.run, seat.counted)
            assert other.serving[-1][1] == seat
        for name, entry in self.entries.items():
            made = other.entries[name]
            scheduler.set_loan(made, entry.loan)
            scheduler.set_gives_way(made, entry.gives_way)
            scheduler.owe(made, entry.owed)
            made.runtime, made.loan_runtime = entry.runtime, entry.loan_runtime
            made.memory = entry.memory
            if entry.ready:
                scheduler.set_ready(made, undoing=entry.undoing)
        return other

    def picture(self) -> dict[str, object]:
        """All that the scheduler, its groups and its entries hold, with names for objects."""
        scheduler = self.scheduler
        return {
            "counts": (scheduler.running, scheduler.background, scheduler.cap),
            "queues": picture_of(scheduler._queues),
            "owed": names_of(scheduler._owed),
            "memory": (
                scheduler.memory.held,
                scheduler.memory.chunks,
                {entry.run for entry in scheduler._memory_ready},
                picture_of(scheduler._memory_queues),
                names_of(scheduler._memory_owed),
            ),
            "groups": {
                name: (
                    group.cap,
                    group.threads,
                    {entry.run for entry in group.ready},
                    picture_of(group.queues),
                    names_of(group.delegates[:2]),
                    group.delegates[2],
                    picture_of(group.memory_queues),
                    names_of(group.memory_delegates[:2]),
                    group.memory_delegates[2],
                )
                for name, group in self.groups.items()
            },
            "entries": {
                name: (
                    entry.threads,
                    entry.loan_taken,
                    names_of([entry.key, entry.owed_key]),
                    entry.key is not None and entry.key in entry.queue,
                )
                for name, entry in self.entries.items()
            },
        }


def picture_of(queues: queue.Queues) -> object:
    return names_of(queues.foreground), names_of(queues.background), queues.served


def names_of(keys: Any) -> list[object]:
    return [key and (*key[:-1], key[-1].run) for key in keys]


def leave(world: World, name: str, account: Account) -> None:
    """End the first thread that serves the entry on this account."""
    entry = world.entries[name]
    serving = next(
        (each, seat) for each, seat in world.serving if each is entry and seat.account is account
    )
    world.serving.remove(serving)
    world.scheduler.leave(entry, SLICE_NS, serving[1])


def take_loan(world: World, name: str) -> None:
    """Move the entry's only thread to a loan."""
    entry = world.entries[name]
    number, seat = next(
        (number, seat) for number, (each, seat) in enumerate(world.serving) if each is entry
    )
    world.scheduler.set_loan(entry, -7)
    world.serving[number] = (entry, Seat(Account.LENT, seat.counted))
    world.scheduler.take_loan(entry, seat)


def rebuild(world: World) -> None:
    world.scheduler.rebuild(world.entries.values(), world.serving)


CALLS: dict[str, Callable[[World], object]] = {
    "add and set_ready": lambda world: world.add("new", "capped"),
    "enter the last but one": lambda world: world.enter("open plain"),
    "enter the last": lambda world: world.enter("open served"),
    "enter what is lent": lambda world: world.enter("capped lent"),
    "enter what is owed": lambda world: world.enter("full owed"),
    "enter the background": lambda world: world.enter("capped background"),
    "leave": lambda world: leave(world, "open served", Account.OWN),
    "leave what was lent": lambda world: leave(world, "open lent", Account.LENT),
    "leave the background": lambda world: leave(world, "open background", Account.BACKGROUND),
    "leave what was full": lambda world: leave(world, "full undo", Account.OWN),
    "leave while counted": lambda world: leave(world, "capped background", Account.OWN),
    "take a loan": lambda world: take_loan(world, "open background"),
    "wanted": lambda world: world.scheduler.wanted(6),
    "wish": lambda world: world.scheduler.wish(12),
    "rebuild": rebuild,
    "look at memory": lambda world: world.scheduler.look_at_memory((), pressed=True),
    **{
        f"{name} of {of}": lambda world, of=of, call=call: call(  # type: ignore[misc]
            world.scheduler, world.entries[of]
        )
        for of in ("open lent", "capped background", "full owed", "capped undo", "open idle")
        for name, call in {
            "charge": lambda scheduler, entry: scheduler.charge(entry, SLICE_NS),
            "set_idle": Scheduler.set_idle,
            "set_ready": Scheduler.set_ready,
            "set_nice": lambda scheduler, entry: scheduler.set_nice(entry, -4),
            "set_limit": lambda scheduler, entry: scheduler.set_limit(entry, 1),
            "set_gives_way": lambda scheduler, entry: scheduler.set_gives_way(entry, True),
            "set_loan": lambda scheduler, entry: scheduler.set_loan(entry, -9),
            "owe": lambda scheduler, entry: scheduler.owe(entry, 1),
        }.items()
    },
    **{
        f"set_group_cap {cap} of {group}": lambda world, cap=cap, group=group: (  # type: ignore[misc]
            world.scheduler.set_group_cap(world.groups[group], cap)
        )
        for group in ("open", "capped", "full")
        for cap in (None, 1, 2)
    },
}


@AT_LINES
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("went_through", [False, True])
@pytest.mark.parametrize("memory", [0, 2])
def test_a_call_struck_at_any_line_is_mended(
    call: Callable[[World], object], went_through: bool, memory: int, step: int
) -> None:
    """Whether the threads are counted as they were before the call or as they are after it."""
    line = 0
    while True:
        world = World(memory)
        before = list(world.serving)
        struck = strike(lambda: call(world), queue, line)  # noqa: B023
        if struck and went_through:
            after = World(memory)
            call(after)
            world.serving = [
                (world.entries[entry.run], *rest)  # type: ignore[misc]
                for entry, *rest in after.serving
                if entry.run in world.entries
            ]
        elif struck:
            world.serving = before
        cap = world.scheduler.cap
        rebuild(world)
        assert world.picture() == world.fresh().picture()
        assert world.scheduler.cap == cap == 9
        if not struck:
            break
        line += step
    assert line > 1
