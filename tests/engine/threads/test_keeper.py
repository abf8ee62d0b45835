# SPDX-License-Identifier: MIT
# How the keeper comes to be, without its thread: a test says what becomes of each that is started.

from __future__ import annotations

from collections.abc import Callable

import pytest

from aioktask.engine.threads import keeper as keeper_module
from aioktask.engine.threads.keeper import MOST_COMING, Keeper


class _Kept:
    """Nobody: a keeper that finds it gone ends."""

    def turn(self) -> None:
        raise AssertionError("it is gone")

    def look_around(self) -> bool:
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
