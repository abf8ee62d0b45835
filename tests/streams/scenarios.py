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

    @property
    def options(self) -> Any:
        """What is asked of `map_ordered`, or of `map_ordered_sync`."""
        return {
            "window": self.window,
            "ordered": self.ordered,
            "errors": self.errors,
            "max_delay": self.max_delay,
        }


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
        given: Values that the consumer has, with those that it dropped.
        calls: How often the function was called, by item.
        running: Calls that have not returned.
        closed: Whether the source was closed, or came to its end.
        left: Whether the scope was left.
        wrong: What was done and must not be. It is noted here, since what helpers and sources raise
            may reach nobody.
    """

    scenario: Scenario
    taken: int = 0
    given: int = 0
    values: list[Any] = field(default_factory=list)
    calls: dict[int, int] = field(default_factory=dict)
    running: int = 0
    closed: bool = False
    left: bool = False
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _source: Any = None  # referred to, so that the collector does not close it

    def call(self, item: int) -> int:
        """The function of the stream."""
        with self.lock:
            self.calls[item] = self.calls.get(item, 0) + 1
            self.running += 1
            if self.left:
                self.wrong.append(f"item {item} was begun after the scope was left")
        try:
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
        if number - self.given >= scenario.window:
            self.wrong.append(f"item {number} was read with the window full")
        if number == scenario.source_fails_at and (
            scenario.size is None or number <= scenario.size
        ):
            raise Planted("source")
        if number == scenario.size:
            return None
        self.taken += 1
        return number

    def source(self) -> Any:
        """The source of the stream."""
        match self.scenario.source:
            case "list":
                self.taken = self.scenario.size or 0
                self._source = list(range(self.taken))
            case "iterator":
                self._source = self.items()
            case "async":
                self._source = self.items_async()
            case _:
                self._source = self.items_async(anyio.lowlevel.checkpoint)
        return self._source

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
        return len(self.values) == self.scenario.leaves_after

    def drop(self, values: Iterator[Any]) -> None:
        """Let values be given that nobody looks at."""
        for _ in values:
            self.given += 1

    def leave(self) -> None:
        """Take in that the scope was left."""
        self.left = True
        if self.running:
            self.wrong.append("a call outlives the scope")

    def check(self, raised: BaseException | None) -> None:
        """Compare what was done with what was to be done, once the scope is left."""
        scenario = self.scenario
        cancelled = isinstance(raised, JobCancelled)
        assert not self.wrong
        if scenario.source != "list" and scenario.leaves_after != 0:
            assert self.closed, "the source was left open"
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
        return len(self.values) == self.scenario.leaves_after


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
    with anyio.CancelScope() as scope:
        try:
            async with map_ordered(ledger.call, ledger.source(), **scenario.options) as results:
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
            ledger.leave()
    return ledger, raised


def play_sync(
    scenario: Scenario, controls: dict[int, Control] | None = None
) -> tuple[Ledger, BaseException | None]:
    """Run a scenario in this thread; what was done, and what was raised."""
    ledger = Ledger(scenario)
    raised: BaseException | None = None
    try:
        with map_ordered_sync(ledger.call, ledger.source(), **scenario.options) as results:
            if scenario.leaves_after != 0:
                for value in results:
                    if ledger.give(value):
                        if scenario.leaves_by == "break":
                            break
                        if scenario.leaves_by == "cancel":
                            results.handle.cancel()
                            with pytest.raises(JobCancelled):
                                ledger.drop(iter(results))
                        raise Planted("consumer")
                    if controls and (control := controls.get(ledger.given)) is not None:
                        control(results.handle)
    except (Planted, JobCancelled) as error:
        raised = error
    ledger.leave()
    return ledger, raised
