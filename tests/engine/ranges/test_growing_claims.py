# SPDX-License-Identifier: MIT
# A range that grows while it is claimed, against a model that keeps a note of each unit.

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aioktask.engine.ranges.claims import Claims, GrowingClaims

OWNERS = range(4)


class GrowingClaimsModel(RuleBasedStateMachine):
    """Somebody adds units, and several owners claim, walk as far as they like, and give back."""

    def __init__(self) -> None:
        super().__init__()
        self.claims = GrowingClaims()
        self.stop = 0
        self.free: set[int] = set()
        self.held: dict[int, range] = {}
        self.walked: set[int] = set()

    @rule(units=st.integers(-3, 20))
    def grow(self, units: int) -> None:
        stop = self.stop + units
        self.claims.grow(stop)
        self.free |= set(range(self.stop, stop))
        self.stop = max(self.stop, stop)

    @rule(most=st.integers(0, 30))
    def trim(self, most: int) -> None:
        self.claims.trim(most)
        kept = {unit for piece in self.claims.free for unit in range(*piece)}
        assert kept <= self.free
        assert len(kept) == min(most, len(self.free))
        self.free = kept

    @rule(owner=st.sampled_from(OWNERS), units=st.integers(1, 12))
    def claim(self, owner: int, units: int) -> None:
        if owner in self.held or not self.free:
            return
        start, first_stop, stop = self.claims.take(1, units)
        assert first_stop == start + 1
        assert start < stop <= start + units
        taken = range(start, stop)
        assert set(taken) <= self.free, "units that are not free were claimed"
        self.free -= set(taken)
        self.held[owner] = taken

    @rule(owner=st.sampled_from(OWNERS), share=st.floats(0, 1))
    def come_back(self, owner: int, share: float) -> None:
        if owner not in self.held:
            return
        held = self.held.pop(owner)
        stands = held.start + round(len(held) * share)
        self.claims.give_back(stands, held.stop)
        self.walked |= set(range(held.start, stands))
        self.free |= set(range(stands, held.stop))

    @invariant()
    def every_unit_is_free_or_held_or_walked(self) -> None:
        assert {unit for piece in self.claims.free for unit in range(*piece)} == self.free
        assert sum(stop - start for start, stop in self.claims.free) == len(self.free)
        assert self.claims.left == len(self.free)

    @invariant()
    def free_ranges_stay_few(self) -> None:
        assert len(self.claims.free) <= len(OWNERS) + 1


TestGrowingClaims = GrowingClaimsModel.TestCase


def test_free_ranges_do_not_grow_in_number_with_the_range() -> None:
    claims = GrowingClaims()
    for stop in range(10, 10_000, 10):
        claims.grow(stop)
        start, _, end = claims.take(1, 8)
        claims.give_back(start + 5, end)  # the walk ended early, as it does when something changes
        while claims.left > 4:
            claims.take(1, 4)
        assert len(claims.free) <= 4


def test_what_may_grow_says_so_until_it_is_closed() -> None:
    assert not Claims([range(10)], 1).open
    claims = GrowingClaims()
    assert claims.open
    assert not claims.left
    claims.grow(3)
    claims.close()
    assert not claims.open
    assert claims.left == 3


def test_what_is_given_up_does_not_come_back_by_growing() -> None:
    claims = GrowingClaims()
    claims.grow(5)
    claims.clear()
    assert not claims.left
    assert not claims.open
