# SPDX-License-Identifier: MIT
"""The graph of waits, against all paths through it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.scheduling.waits import Waits

WAITS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=15)


def is_reached(waits: list[tuple[int, int]], start: int, goal: int) -> bool:
    """Whether the goal is the start, or what that waits for, and so on."""
    reached = {start}
    for _ in waits:
        reached |= {awaited for waiting, awaited in waits if waiting in reached}
    return goal in reached


@given(under_way=WAITS, over=WAITS, start=st.integers(0, 6), goal=st.integers(0, 6))
def test_a_chain_is_found_where_there_is_one_and_each_step_of_it_is_a_wait(
    under_way: list[tuple[int, int]], over: list[tuple[int, int]], start: int, goal: int
) -> None:
    waits: Waits[int] = Waits()
    for wait in [*over, *under_way]:
        waits.add(*wait)
    for wait in over:
        waits.remove(*wait)
    assert bool(waits) == bool(under_way)
    chain = waits.chain(start, goal)
    assert bool(chain) == is_reached(under_way, start, goal)
    if chain:
        assert (chain[0], chain[-1]) == (start, goal)
        assert all(wait in under_way for wait in pairwise(chain))


def test_what_several_chunks_wait_for_is_waited_for_until_the_last_of_them_waits_no_more() -> None:
    waits: Waits[str] = Waits()
    waits.add("outer", "inner")
    waits.add("outer", "inner")
    waits.remove("outer", "inner")
    assert waits.chain("outer", "inner") == ["outer", "inner"]
    waits.remove("outer", "inner")
    assert waits.chain("outer", "inner") == []
    with pytest.raises(KeyError):
        waits.remove("outer", "inner")
