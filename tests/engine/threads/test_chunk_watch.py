# SPDX-License-Identifier: MIT
# Since when a thread is at a chunk, by what the keeper saw in its looks: no thread, no clock.

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aioktask import Job
from aioktask.engine.state.stint import Stint
from aioktask.engine.threads.chunk_watch import At, _now_at
from tests.engine.state.turns import a_run

TIMES = st.integers(1, 10**6)


def a_stint(chunk: int, claimed_at: int, walked_at: int = 0, *, first: bool = True) -> Stint:
    """A thread's part in a run, at this chunk of its stretch."""
    run = a_run(Job(lambda start, stop: None, 100, chunk=1))
    stint: Any = run.stint_of(object())
    stint.chunk_start = chunk
    stint.stretch_start = chunk if first else chunk - 1
    stint.claimed_at, stint.walked_at = claimed_at, walked_at
    stint.stretch_stop, stint.live = chunk + 1, True
    found: Stint = stint
    return found


@given(claimed=TIMES, walked=TIMES, later=TIMES)
def test_the_first_chunk_of_a_stretch_counts_from_its_beginning(
    claimed: int, walked: int, later: int
) -> None:
    begun = max(claimed, walked)
    at = _now_at(a_stint(3, claimed, walked), None, begun + later)
    assert (at.chunk, at.since, at.stuck) == (3, begun, False)


@given(claimed=TIMES, looks=st.lists(TIMES, min_size=1, max_size=5))
def test_a_later_chunk_counts_from_the_look_that_found_it(claimed: int, looks: list[int]) -> None:
    stint = a_stint(3, claimed, first=False)
    at, now = None, claimed
    first = claimed + looks[0]
    for each in looks:
        now += each
        at = _now_at(stint, at, now)
        assert at.since == first


@given(claimed=TIMES, later=TIMES)
def test_another_chunk_and_the_same_one_of_another_stretch_count_anew(
    claimed: int, later: int
) -> None:
    """The undo of a chunk begins where the chunk did, and so does each item of a guest."""
    before = At(3, claimed, claimed, tells_at=claimed + 1, stack=("there",))
    same = a_stint(3, claimed)
    assert _now_at(same, before, claimed + later) is before
    assert before.is_at(same)
    for stint in (a_stint(4, claimed), a_stint(3, claimed, claimed + later)):
        at = _now_at(stint, before, claimed + later)
        assert not at.stuck
        assert at.stack == ()
        assert at.since >= claimed
        assert not before.is_at(stint)
    same.stretch_stop = same.chunk_start  # it waits for something to do
    assert not before.is_at(same)
