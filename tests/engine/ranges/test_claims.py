# SPDX-License-Identifier: MIT
# Claiming and giving back, against a model that keeps a note of each unit: it is free, held by one
# owner or walked, whatever the owners do.

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aioktask.engine.learning.stretch import MOST_CHUNKS, chunks_at_once
from aioktask.engine.ranges.claims import Claims, PartedClaims
from aioktask.engine.ranges.plan import count_chunks, cut
from tests.engine.ranges.claiming import claim

OWNERS = range(4)


@st.composite
def spans(draw: st.DrawFn, most: int = 120) -> list[range]:
    """Ascending ranges: adjacent as parts are, or apart as what must be undone may be."""
    edges = draw(st.lists(st.integers(-most, most), unique=True, max_size=6).map(sorted))
    whole = [range(a, b) for a, b in itertools.pairwise(edges)]
    return [each for each in whole if draw(st.booleans())] if draw(st.booleans()) else whole


def end_of_chunks(start: int, stop: int, chunk: int, walked: int) -> int:
    """Where an owner stands who walked so many chunks of its stretch."""
    return min(start - start % chunk + chunk * walked, stop)


class ClaimsModel(RuleBasedStateMachine):
    """Several owners that claim, walk as far as they like, and give back the rest."""

    @initialize(ranges=spans(), chunk=st.integers(1, 12))
    def begin(self, ranges: list[range], chunk: int) -> None:
        self.claims = Claims(ranges, chunk)
        self.chunk = chunk
        self.ranges = ranges
        self.edges = {each.start for each in ranges} | {each.stop for each in ranges}
        self.free = {unit for each in ranges for unit in each}
        self.held: dict[int, tuple[int, int]] = {}
        self.walked: set[int] = set()

    @rule(owner=st.sampled_from(OWNERS), chunks=st.integers(1, 20), sharers=st.integers(1, 8))
    def claim(self, owner: int, chunks: int, sharers: int) -> None:
        if owner in self.held:
            return
        left = len(self.free)
        stretch = claim(self.claims, chunks, sharers)
        if stretch is None:
            assert not self.free, "nothing to be had while units are free"
            return
        start, stop = stretch
        units = set(range(start, stop))
        assert units
        assert units <= self.free, "a stretch holds units that are not free"
        assert start % self.chunk == 0 or start in self.edges
        assert stop % self.chunk == 0 or stop in self.edges
        number = count_chunks(start, stop, self.chunk)
        assert number <= chunks
        assert number == 1 or len(units) * 2 * sharers <= left, "more than a fair share"
        for piece in cut(start, stop, self.chunk):
            inside = self.edges & set(range(piece.start + 1, piece.stop))
            assert not inside, f"the chunk {piece} crosses the edges {inside}"
        self.free -= units
        self.held[owner] = stretch

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def walk_and_give_back(self, data: Any) -> None:
        owner = data.draw(st.sampled_from(sorted(self.held)))
        start, stop = self.held.pop(owner)
        number = count_chunks(start, stop, self.chunk)
        position = start
        if walked := data.draw(st.integers(0, number)):
            position = end_of_chunks(start, stop, self.chunk, walked)
        self.claims.give_back(position, stop)
        units = set(range(start, position))
        assert not units & self.walked, "units were walked twice"
        self.walked |= units
        self.free |= set(range(position, stop))

    @rule()
    def walk_all_that_is_held(self) -> None:
        for start, stop in self.held.values():
            self.claims.give_back(stop, stop)
            self.walked |= set(range(start, stop))
        self.held.clear()

    @invariant()
    def every_unit_is_free_held_or_walked(self) -> None:
        units = [unit for start, stop in self.claims.free for unit in range(start, stop)]
        assert len(units) == len(set(units)), "free ranges overlap"
        assert set(units) == self.free
        assert self.claims.left == len(units)
        held = [unit for stretch in self.held.values() for unit in range(*stretch)]
        assert len(held) == len(set(held)), "two owners hold the same unit"
        whole = {unit for each in self.ranges for unit in each}
        assert self.free | set(held) | self.walked == whole
        assert len(self.free) + len(held) + len(self.walked) == len(whole)

    @invariant()
    def no_free_range_is_empty(self) -> None:
        assert all(start < stop for start, stop in self.claims.free)


TestClaimsModel = ClaimsModel.TestCase
TestClaimsModel.settings = settings(stateful_step_count=40)


@given(ranges=spans(), chunk=st.integers(1, 12))
def test_one_chunk_at_a_time_gives_every_chunk_of_the_cut_in_order(
    ranges: list[range], chunk: int
) -> None:
    claims = Claims(ranges, chunk)
    stretches = list(iter(lambda: claim(claims, 1, 1), None))
    expected = [piece for each in ranges for piece in cut(each.start, each.stop, chunk)]
    assert [range(*stretch) for stretch in stretches] == expected
    assert claims.left == 0


@given(
    ranges=spans(),
    chunk=st.integers(1, 12),
    chunks=st.integers(1, 300),
    sharers=st.integers(1, 300),
)
def test_a_claim_takes_a_fair_part_at_most_but_one_chunk_at_least(
    ranges: list[range], chunk: int, chunks: int, sharers: int
) -> None:
    claims = Claims(ranges, chunk)
    left = claims.left
    while (stretch := claim(claims, chunks, sharers)) is not None:
        size = stretch[1] - stretch[0]
        assert claims.left == left - size < left
        assert count_chunks(*stretch, chunk) == 1 or size <= left / (2 * sharers)
        left = claims.left
    assert left == 0
    assert claims.free == []


def test_a_fair_part_is_as_large_as_was_asked_for_while_much_is_left() -> None:
    claims = Claims([range(1000)], 1)
    assert claim(claims, 100, 5) == (0, 100)
    assert claim(claims, 100, 5) == (100, 190)
    assert claim(claims, 50, 5) == (190, 240)


def test_the_edges_of_a_range_may_be_short_and_stay_where_they_are() -> None:
    claims = Claims([range(3, 21)], 8)
    assert [claim(claims, 1, 1) for _ in range(4)] == [(3, 8), (8, 16), (16, 21), None]


def test_what_comes_back_next_to_a_free_range_is_one_with_it_again() -> None:
    claims = Claims([range(64)], 4)
    start, stop = claim(claims, 8, 1)  # type: ignore[misc]
    claims.give_back(start + 4, stop)
    assert claims.free == [(4, 64)]


def test_an_edge_between_parts_that_is_no_multiple_stays_an_edge() -> None:
    claims = Claims([range(10), range(10, 40)], 4)
    assert claim(claims, 1, 1) == (0, 4)
    assert claim(claims, 1, 1) == (4, 8)
    assert claim(claims, 1, 1) == (8, 10)
    claims.give_back(8, 10)
    assert claim(claims, 9, 1) == (8, 10)
    assert claim(claims, 1, 1) == (10, 12)


def test_giving_back_nothing_changes_nothing() -> None:
    claims = Claims([range(8)], 4)
    assert claim(claims, 1, 1) == (0, 4)
    claims.give_back(4, 4)
    assert claims.free == [(4, 8)]
    assert claims.left == 4


def test_after_clear_nothing_is_free() -> None:
    claims = Claims([range(8), range(20, 28)], 4)
    claims.clear()
    assert claims.left == 0
    assert claim(claims, 1, 1) is None


def test_empty_ranges_are_no_work() -> None:
    assert claim(Claims([], 4), 1, 1) is None
    assert claim(Claims([range(3, 3), range(4, 2)], 4), 1, 1) is None


@pytest.mark.parametrize("owners", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("seed", range(8))
def test_the_number_of_free_ranges_does_not_grow_with_the_number_of_chunks(
    owners: int, seed: int
) -> None:
    # Owners ask for what tuning tells them and are interrupted at random. What an owner gives back
    # is shorter than its stretch, and it asks for twice what it walked at most, so the ranges that
    # it adds halve in size: log2(MOST_CHUNKS) of them for each owner, and one more.
    rng = random.Random(seed)
    parts = rng.randint(1, 4)
    size = 20_000
    inner = sorted(rng.sample(range(1, size), parts - 1))
    claims = Claims([range(a, b) for a, b in itertools.pairwise([0, *inner, size])], 1)
    held: dict[int, tuple[int, int]] = {}
    asked = dict.fromkeys(range(owners), 1)
    done, most_free = 0, 0
    interrupted, halfway = rng.random(), rng.random()
    while claims.free or held:
        owner = rng.randrange(owners)
        if owner in held:
            start, stop = held.pop(owner)
            walked = stop - start
            if rng.random() < interrupted:
                walked = rng.randint(1, walked) if rng.random() < halfway else 1
            claims.give_back(start + walked, stop)
            done += walked
            asked[owner] = chunks_at_once(walked, rng.choice([0, walked * 1000, 10**6]))
        elif (stretch := claim(claims, asked[owner], len(held) + 1)) is not None:
            held[owner] = stretch
        most_free = max(most_free, len(claims.free))
    assert done == size
    if owners == 1:
        assert most_free <= parts
    assert most_free <= parts + owners * MOST_CHUNKS.bit_length()


@given(st.data())
def test_parts_are_taken_from_the_own_node_first_and_nothing_is_lost(data: st.DataObject) -> None:
    """Any threads on any nodes, taking and giving back: own node, then nobody's, then others'."""
    edges = sorted(data.draw(st.sets(st.integers(0, 300), min_size=2, max_size=7)))
    parts = [
        (range(a, b), data.draw(st.sampled_from([0, 1, 2, None])))
        for a, b in itertools.pairwise(edges)
    ]
    owner = {unit: node for each, node in parts for unit in each}
    claims = PartedClaims(parts, data.draw(st.integers(1, 40)))
    free, done = set(owner), set()
    while claims.left:
        node = data.draw(st.sampled_from([0, 1, 2, None]))
        wanted = [each for each in (node, None) if any(owner[unit] == each for unit in free)]
        taken = claim(claims, data.draw(st.integers(1, 5)), 2, node)
        assert taken is not None
        start, stop = taken
        units = set(range(start, stop))
        assert units <= free
        assert len({owner[unit] for unit in units}) == 1  # a stretch lies in one part
        if wanted:
            assert owner[start] == wanted[0]
        free -= units
        kept = data.draw(st.integers(start + 1, stop))
        claims.give_back(kept, stop)
        free |= set(range(kept, stop))
        done |= set(range(start, kept))
        assert claims.left == len(free)
        for each in (0, 1, 2, None):
            assert claims.left_at(each) == sum(owner[unit] == each for unit in free)
        assert {unit for piece in claims.free for unit in range(*piece)} == free
    assert done == set(owner)
    claims.clear()
    assert not claims.left
    assert not claims.nodes
