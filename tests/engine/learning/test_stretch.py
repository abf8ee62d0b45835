# SPDX-License-Identifier: MIT
# The length of a stretch: within its bounds, never a jump up, down at once.

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.learning.stretch import MOST_CHUNKS, TARGET_NS, chunks_at_once

CHUNKS = st.integers(1, MOST_CHUNKS)
WALL_NS = st.integers(0, 10**6) | st.integers(0, 10**12)


@given(chunks=CHUNKS, wall_ns=WALL_NS)
def test_a_stretch_is_one_to_256_chunks_and_at_most_twice_the_last(
    chunks: int, wall_ns: int
) -> None:
    assert 1 <= chunks_at_once(chunks, wall_ns) <= min(2 * chunks, MOST_CHUNKS)


@given(chunks=CHUNKS, wall_ns=WALL_NS)
def test_a_stretch_of_several_chunks_is_expected_to_last_the_target_at_most(
    chunks: int, wall_ns: int
) -> None:
    following = chunks_at_once(chunks, wall_ns)
    assert following == 1 or following * wall_ns <= TARGET_NS * chunks


@given(chunks=CHUNKS, wall_ns=WALL_NS)
def test_a_stretch_is_as_long_as_it_may_be(chunks: int, wall_ns: int) -> None:
    following = chunks_at_once(chunks, wall_ns)
    if following < min(2 * chunks, MOST_CHUNKS):
        assert (following + 1) * wall_ns > TARGET_NS * chunks


@given(chunks=CHUNKS, quicker=WALL_NS, slower=WALL_NS)
def test_slower_chunks_never_make_a_longer_stretch(chunks: int, quicker: int, slower: int) -> None:
    quicker, slower = sorted((quicker, slower))
    assert chunks_at_once(chunks, slower) <= chunks_at_once(chunks, quicker)


@given(cost_ns=st.integers(1, 10**9))
def test_from_one_chunk_a_steady_cost_is_settled_on_in_a_few_steps(cost_ns: int) -> None:
    best = max(min(TARGET_NS // cost_ns, MOST_CHUNKS), 1)
    chunks = 1
    for _ in range(MOST_CHUNKS.bit_length()):
        chunks = chunks_at_once(chunks, chunks * cost_ns)
    # Within a factor of 2, and there to stay: rounding takes at most a chunk at each step.
    assert best / 2 <= chunks <= best
    again = chunks_at_once(chunks, chunks * cost_ns)
    assert again >= chunks


@given(chunks=CHUNKS)
def test_chunks_that_become_slow_are_taken_one_by_one_at_once(chunks: int) -> None:
    assert chunks_at_once(chunks, chunks * TARGET_NS) == 1
    assert chunks_at_once(1, TARGET_NS) == 1


@pytest.mark.parametrize(
    ("chunks", "wall_ns", "following"),
    [
        (1, 0, 2),  # a clock that did not move
        (256, 0, 256),
        (200, 0, 256),
        (1, 50_000, 2),
        (1, 50_001, 1),
        (8, 1_000, 16),
        (64, 500_000, 12),
        (1, 5_000_000, 1),
    ],
)
def test_examples(chunks: int, wall_ns: int, following: int) -> None:
    assert chunks_at_once(chunks, wall_ns) == following
