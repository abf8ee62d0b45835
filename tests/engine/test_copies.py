# SPDX-License-Identifier: MIT
# Copies of deques that other threads change meanwhile.

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aioktask.engine.copies import READS, items_of


class Struck(deque[int]):
    """One whose iteration another thread's step strikes, so many times."""

    def __init__(self, items: range, times: int) -> None:
        super().__init__(items)
        self.times = times

    def __iter__(self) -> Iterator[int]:
        self.times -= 1
        if self.times >= 0:
            raise RuntimeError("deque mutated during iteration")
        return super().__iter__()


@pytest.mark.parametrize("times", [0, 1, READS - 1, READS, READS + 1])
@pytest.mark.parametrize("size", [0, 1, 5])
def test_a_copy_has_all_items_in_order_however_often_it_is_struck(times: int, size: int) -> None:
    assert items_of(Struck(range(size), times)) == list(range(size))


class Shifted(Struck):
    """One that is never read at once, and to which another thread adds before each read."""

    def __init__(self, items: range, added: list[int]) -> None:
        super().__init__(items, 10**9)
        self.added = iter(added)
        self.next = items.stop

    def __getitem__(self, index: Any) -> Any:
        for _ in range(next(self.added, 0)):
            self.append(self.next)
            self.next += 1
        return super().__getitem__(index)


@given(size=st.integers(0, 6), added=st.lists(st.integers(0, 3), max_size=40))
@example(size=5, added=[0, 1])
@example(size=5, added=[1] * 100)
def test_no_item_is_told_twice_and_none_is_missing_however_many_are_added_meanwhile(
    size: int, added: list[int]
) -> None:
    found = items_of(Shifted(range(size), added))
    assert len(found) == len(set(found))
    assert [each for each in found if each < size] == list(range(size))


def test_a_copy_comes_to_an_end_where_items_are_added_without_one() -> None:
    found = items_of(Shifted(range(5), [1] * 100_000))
    assert len(found) == len(set(found)) < 10_000


def test_a_ring_is_copied_while_another_thread_adds_to_it() -> None:
    """What was there all the while is in it, in order; without the GIL this strikes iterations."""
    ring: deque[int] = deque(maxlen=32)
    over = threading.Event()

    def add() -> None:
        number = 0
        while not over.is_set():
            ring.append(number)
            number += 1

    thread = threading.Thread(target=add)
    thread.start()
    try:
        for _ in range(2000):
            found = items_of(ring)
            assert found == sorted(found)
            assert len(found) <= 2 * 32
    finally:
        over.set()
        thread.join()
