# SPDX-License-Identifier: MIT
# How the keeper comes to be, without its thread: a test says what becomes of each that is started.

from __future__ import annotations

from collections.abc import Callable

import pytest

from aioktask.engine.threads import keeper as keeper_module
from aioktask.engine.threads.keeper import MOST_COMING, Keeper
from tests.support.meanwhile import Scene, play_at_each_bytecode


class _Kept:
    """Nobody: a keeper that finds it gone ends."""

    def turn(self) -> None:
        raise AssertionError("it is gone")

    def look_around(self) -> bool:
        raise AssertionError("it is gone")

    def look_at_calls(self) -> bool:
        raise AssertionError("it is gone")

    def next_deadline(self) -> int | None:
        raise AssertionError("it is gone")


Started = list[Callable[[], None]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """What threads were started to do, and do not do yet."""
    targets: Started = []
    monkeypatch.setattr(keeper_module, "start_thread", lambda target, name: targets.append(target))
    return targets


def test_not_more_than_a_few_threads_are_on_their_way_to_be_the_keeper(started: Started) -> None:
    """Who calls for it again and again before it runs does not start one thread for each call."""
    keeper = Keeper(_Kept())
    for _ in range(10 * MOST_COMING):
        keeper.wake()
    assert len(started) == MOST_COMING


def test_who_comes_too_late_makes_room_for_another(started: Started) -> None:
    keeper = Keeper(_Kept())
    for _ in range(MOST_COMING):
        keeper.wake()
    assert keeper._seat.acquire(blocking=False)
    for late in started:
        late()
    keeper.wake()
    assert len(started) == MOST_COMING + 1


def test_a_thread_that_could_not_be_started_is_not_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However often the system had none, it is asked again."""
    asked = 0

    def refuse(target: Callable[[], None], name: str) -> None:
        nonlocal asked
        asked += 1
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(keeper_module, "start_thread", refuse)
    keeper = Keeper(_Kept())
    for _ in range(2 * MOST_COMING):
        with pytest.raises(RuntimeError, match="new thread"):
            keeper.wake()
    assert asked == 2 * MOST_COMING


def test_who_died_as_it_began_makes_room_for_another(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper(_Kept())
    keeper.wake()

    def no_memory(self: Keeper) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "_keep_seated", no_memory)
        with pytest.raises(MemoryError):
            started.pop()()
    assert not keeper.running
    keeper.wake()
    began: list[Keeper] = []
    monkeypatch.setattr(Keeper, "_keep_seated", lambda self: began.append(self))
    started.pop()()
    assert began == [keeper]


class _Watch:
    """What a keeper without a thread finds as it asks when the next deadline is."""

    def __init__(self, dues: list[int | None]) -> None:
        self.dues = dues
        self.asked = 0

    def next_deadline(self) -> int | None:
        self.asked += 1
        return self.dues.pop(0) if len(self.dues) > 1 else self.dues[0]


NOW = 1_000_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module.time, "perf_counter_ns", lambda: NOW)


@pytest.mark.parametrize(
    ("dues", "pause", "expected"),
    [
        ([None], 0.1, 0.1),
        ([None], -1, -1),
        ([NOW + 50_000_000], 0.1, 0.05),
        ([NOW + 50_000_000], -1, 0.05),
        ([NOW + 500_000_000], 0.1, 0.1),
        ([NOW - 5, None], 0.1, 0.1),  # it was done as this asked
        ([NOW - 5, None], -1, 0.0),  # and there may be more to look at
        ([NOW - 5, NOW + 10_000_000], -1, 0.0),
        ([NOW - 5, NOW + 10_000_000], 0.1, 0.01),
    ],
)
@pytest.mark.usefixtures("clock")
def test_it_sleeps_until_it_looks_next_or_something_is_due(
    dues: list[int | None], pause: float, expected: float
) -> None:
    keeper = Keeper(_Kept())
    watch = _Watch(dues)
    assert keeper._until_deadline(watch, pause) == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.usefixtures("clock")
def test_who_adds_a_deadline_wakes_it_only_where_it_would_sleep_past_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    woken: list[None] = []
    keeper = Keeper(_Kept())
    monkeypatch.setattr(keeper, "wake", lambda: woken.append(None))
    keeper.see_by(NOW)
    assert len(woken) == 1  # it was not there at all
    keeper.running = True
    keeper._until_deadline(_Watch([NOW + 50_000_000]), 0.1)  # type: ignore[arg-type]
    keeper.see_by(NOW + 60_000_000)
    assert len(woken) == 1
    keeper.see_by(NOW + 40_000_000)
    assert len(woken) == 2
    keeper._until_deadline(_Watch([None]), -1)  # type: ignore[arg-type]
    keeper.see_by(NOW + 10**15)
    assert len(woken) == 3


@pytest.mark.usefixtures("clock")
def test_a_deadline_that_comes_as_it_goes_to_sleep_is_seen_by_one_of_the_two() -> None:
    """Before each bytecode of the keeper's another thread adds one, as `Pool.post_at` does."""

    def begin() -> Scene:
        keeper = Keeper(_Kept())
        keeper.running = True
        woken: list[None] = []
        keeper.wake = lambda: woken.append(None)  # type: ignore[method-assign]
        added: list[int] = []
        pauses: list[float] = []

        class Kept:
            def next_deadline(self) -> int | None:
                return added[0] if added else None

        def meanwhile() -> None:
            added.append(NOW + 50_000_000)
            keeper.see_by(added[0])

        def check() -> None:
            assert woken or pauses == [pytest.approx(0.05)]

        return Scene(
            lambda: pauses.append(keeper._until_deadline(Kept(), -1)),  # type: ignore[arg-type]
            meanwhile,
            check,
        )

    play_at_each_bytecode(begin, keeper_module)
