# SPDX-License-Identifier: MIT
# Random streams: what the source, the function and the consumer do, and the check of what came of
# it. Nothing here sleeps: pauses are turns of the loop, or of the system's scheduler.

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import strategies as st

from aioktask import JobCancelled, map_ordered, map_ordered_sync
from aioktask.streams import StreamHandle

MOST_ITEMS = 60

SOURCES = ("list", "iterator")
ASYNC_SOURCES = (*SOURCES, "async", "late")


class Planted(Exception):  # noqa: N818 - one of the program under test
    """What a scenario's function, source or consumer raises."""


@dataclass
class Scenario:
    """What happens, by the numbers of items.

    Attributes:
        size: Items that the source has; None for a source without end.
        source: "list", "iterator", "async" or "late" (async, suspending at each item).
        source_fails_at: The item in whose place the source raises.
        fails: The items for which the function raises.
        slow: The items at which the function lets other threads go on.
        pauses: The values after which the consumer lets the loop go on.
        leaves_after: After how many values the consumer leaves.
        leaves_by: "break", "raise" or "cancel".
    """

    size: int | None
    source: str
    window: int
    ordered: bool
    errors: str
    max_delay: float | None
    source_fails_at: int | None
    fails: frozenset[int]
    slow: frozenset[int]
    pauses: frozenset[int]
    leaves_after: int | None
    leaves_by: str


ITEMS = st.integers(0, MOST_ITEMS)
SOME_ITEMS = st.frozensets(ITEMS, max_size=8)


@st.composite
def scenarios(draw: st.DrawFn, sources: tuple[str, ...]) -> Scenario:
    size = draw(st.one_of(st.none(), ITEMS))
    source = draw(st.sampled_from(sources))
    if size is None and source == "list":
        source = "iterator"
    fails = st.just(None) if source == "list" else st.one_of(st.none(), ITEMS)
    leaves = ITEMS if size is None else st.one_of(st.none(), ITEMS)
    return Scenario(
        size=size,
        source=source,
        window=draw(st.sampled_from([1, 2, 3, 8, 64])),
        ordered=draw(st.booleans()),
        errors=draw(st.sampled_from(["raise", "yield"])),
        max_delay=draw(st.sampled_from([None, 0, 0.001])),
        source_fails_at=draw(fails),
        fails=draw(st.one_of(st.just(frozenset()), SOME_ITEMS)),
        slow=draw(SOME_ITEMS),
        pauses=draw(SOME_ITEMS),
        leaves_after=draw(leaves),
        leaves_by=draw(st.sampled_from(["break", "raise", "cancel"])),
    )


@dataclass
class Ledger:
    """What one run of a scenario did.

    Attributes:
        taken: Items that the source gave.
        given: Values that the consumer has.
        calls: How often the function was called, by item.
        running: Calls that have not returned.
        closed: Whether the source was closed, or came to its end.
        left: Whether the scope was left.
    """

    scenario: Scenario
    taken: int = 0
    given: int = 0
    values: list[Any] = field(default_factory=list)
    calls: dict[int, int] = field(default_factory=dict)
    running: int = 0
    closed: bool = False
    left: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def call(self, item: int) -> int:
        """The function of the stream."""
        with self.lock:
            self.calls[item] = self.calls.get(item, 0) + 1
            self.running += 1
        try:
            assert not self.left, "an item was begun after the scope was left"
            if item in self.scenario.slow:
                for _ in range(20):
                    os.sched_yield()
            if item in self.scenario.fails:
                raise Planted(item)
            return item * 10
        finally:
            with self.lock:
                self.running -= 1

    def take(self) -> int | None:
        """What the source gives next; None at its end."""
        scenario, number = self.scenario, self.taken
        assert number - self.given < scenario.window, "the source was read with the window full"
        if number == scenario.source_fails_at and (
            scenario.size is None or number <= scenario.size
        ):
            raise Planted("source")
        if number == scenario.size:
            return None
        self.taken += 1
        return number

    def items(self) -> Iterator[int]:
        try:
            while (item := self.take()) is not None:
                yield item
        finally:
            self.closed = True

    async def items_async(self, checkpoint: Any = None) -> AsyncIterator[int]:
        try:
            while True:
                if checkpoint is not None:
                    await checkpoint()
                item = self.take()
                if item is None:
                    return
                yield item
        finally:
            self.closed = True

    def give(self, value: Any) -> bool:
        """Take in what the consumer was given; whether it is to leave now."""
        assert self.given < self.taken
        self.given += 1
        self.values.append(value)
        return self.given == self.scenario.leaves_after

    def check(self, raised: BaseException | None) -> None:
        """Compare what was done with what was to be done, once the scope is left."""
        scenario = self.scenario
        cancelled = isinstance(raised, JobCancelled)
        assert not self.running, "a call outlives the scope"
        assert all(count == 1 for count in self.calls.values()), "an item was worked on twice"
        assert set(self.calls) <= set(range(self.taken))
        ends = [end for end in (scenario.size, scenario.source_fails_at) if end is not None]
        items = min(ends) if ends else None
        failing = sorted(scenario.fails if scenario.errors == "raise" else ())
        failing = [each for each in failing if items is None or each < items]
        got = [value.args[0] * 10 if isinstance(value, Planted) else value for value in self.values]
        assert all(
            isinstance(value, Planted) == (number // 10 in scenario.fails)
            for value, number in zip(self.values, got, strict=True)
        )
        if scenario.ordered:
            assert got == [each * 10 for each in range(len(got))], "values in another order"
            if failing:
                items = failing[0]
        else:
            assert len(set(got)) == len(got)
            assert {each // 10 for each in got} <= set(self.calls)
        if cancelled:
            return
        if self.left_early:
            assert len(got) == scenario.leaves_after
        elif not failing:
            assert len(got) == items, "values are missing"
            assert (raised is not None) == (
                scenario.source_fails_at is not None
                and (scenario.size is None or scenario.source_fails_at <= scenario.size)
            )
        elif scenario.ordered:
            assert len(got) == items
            assert isinstance(raised, Planted)
            assert raised.args == (failing[0],)
        else:
            assert isinstance(raised, Planted)
            assert raised.args[0] in failing

    @property
    def left_early(self) -> bool:
        return self.given == self.scenario.leaves_after


Control = Callable[[StreamHandle], object]


async def play(
    scenario: Scenario, controls: dict[int, Control] | None = None
) -> tuple[Ledger, BaseException | None]:
    """Run a scenario on the loop; what was done, and what was raised.

    Args:
        scenario: What happens.
        controls: What is done with the handle after so many values.
    """
    ledger = Ledger(scenario)
    raised: BaseException | None = None
    source: Any = ledger.items()
    if scenario.source == "list":
        source = list(range(scenario.size or 0))
        ledger.taken = len(source)
    elif scenario.source == "async":
        source = ledger.items_async()
    elif scenario.source == "late":
        source = ledger.items_async(anyio.lowlevel.checkpoint)
    with anyio.CancelScope() as scope:
        try:
            async with map_ordered(
                ledger.call,
                source,
                window=scenario.window,
                ordered=scenario.ordered,
                errors=scenario.errors,  # type: ignore[call-overload]
                max_delay=scenario.max_delay,
            ) as results:
                if scenario.leaves_after != 0:
                    async for value in results:
                        if ledger.give(value):
                            if scenario.leaves_by == "break":
                                break
                            if scenario.leaves_by == "raise":
                                raise Planted("consumer")
                            scope.cancel()
                            await anyio.lowlevel.checkpoint()
                            raise AssertionError("the cancel did not come")
                        if controls and (control := controls.get(ledger.given)) is not None:
                            control(results.handle)
                        if ledger.given in scenario.pauses:
                            await anyio.lowlevel.checkpoint()
        except (Planted, JobCancelled) as error:
            raised = error
        finally:
            ledger.left = True
    return ledger, raised


def play_sync(
    scenario: Scenario, controls: dict[int, Control] | None = None
) -> tuple[Ledger, BaseException | None]:
    """Run a scenario in this thread; what was done, and what was raised."""
    ledger = Ledger(scenario)
    raised: BaseException | None = None
    source: Any = ledger.items()
    if scenario.source == "list":
        source = list(range(scenario.size or 0))
        ledger.taken = len(source)
    try:
        with map_ordered_sync(
            ledger.call,
            source,
            window=scenario.window,
            ordered=scenario.ordered,
            errors=scenario.errors,  # type: ignore[call-overload]
            max_delay=scenario.max_delay,
        ) as results:
            if scenario.leaves_after != 0:
                for value in results:
                    if ledger.give(value):
                        if scenario.leaves_by == "break":
                            break
                        if scenario.leaves_by == "cancel":
                            results.handle.cancel()
                            with pytest.raises(JobCancelled):
                                list(results)
                        raise Planted("consumer")
                    if controls and (control := controls.get(ledger.given)) is not None:
                        control(results.handle)
    except (Planted, JobCancelled) as error:
        raised = error
    ledger.left = True
    return ledger, raised
