# SPDX-License-Identifier: MIT
# The tree of a reduce: whatever the order in which leaves arrive and whoever makes them, the
# operands meet as in a recursive tree over the leaf index. Combining is string concatenation with
# brackets, neither associative nor commutative, so the value spells out the tree.

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.learning.stretch import chunks_at_once
from aioktask.engine.ranges.claims import Claims
from aioktask.engine.ranges.tree import Node, Tree, push
from tests.engine.ranges.claiming import claim


def combine(left: str, right: str) -> str:
    return f"({left} {right})"


def expected(first: int, stop: int) -> str:
    """The value of the leaves first to stop: halves meet at the largest power of two inside."""
    leaves = stop - first
    if leaves == 1:
        return str(first)
    half = 1 << ((leaves - 1).bit_length() - 1)
    return combine(expected(first, first + half), expected(first + half, stop))


def bring_in(tree: Tree, level: int, index: int, value: str) -> None:
    """Offer a value, and what becomes of it, until it waits."""
    while (pair := tree.offer(level, index, value)) is not None:
        level, index, left, right = pair
        value = combine(left, right)


class Maker:
    """One thread of a reduce: makes the leaves of its stretch, then brings what it has to the tree.

    The same calls in the same order as a walk and a merge of the engine.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.stack: list[Node] = []

    def make(self, leaf: int) -> None:
        level, index, value = 0, leaf, str(leaf)
        while (pair := push(self.stack, level, index, value)) is not None:
            level, left, right = pair
            value = combine(left, right)
            index >>= 1

    def merge(self) -> None:
        while self.stack:
            bring_in(self.tree, *self.stack.pop())


def reduce_by_makers(
    leaves: int, makers: int, rng: random.Random, look: Callable[[Tree, list[Maker]], None]
) -> str:
    """Reduce with several makers that claim, are interrupted and give back at random."""
    tree = Tree(leaves)
    team = [Maker(tree) for _ in range(makers)]
    claims = Claims([range(leaves)], 1)
    held: dict[int, tuple[int, int, int]] = {}
    asked = dict.fromkeys(range(makers), 1)
    interrupted = rng.random() / 2
    while claims.free or held:
        each = rng.randrange(makers)
        if each not in held:
            if (stretch := claim(claims, asked[each], len(held) + 1)) is not None:
                held[each] = (stretch[0], *stretch)
            continue
        first, position, stop = held.pop(each)
        team[each].make(position)
        position += 1
        look(tree, team)
        if position < stop and rng.random() >= interrupted:
            held[each] = (first, position, stop)
            continue
        team[each].merge()
        claims.give_back(position, stop)
        asked[each] = chunks_at_once(position - first, rng.choice([0, (position - first) * 1000]))
        look(tree, team)
    assert list(tree.waiting) == [(tree.top + 1, 0)]
    value: str = tree.value()
    return value


@given(leaves=st.integers(1, 300), order=st.randoms(use_true_random=False))
def test_leaves_in_any_order_make_the_same_tree(leaves: int, order: random.Random) -> None:
    tree = Tree(leaves)
    arrivals = list(range(leaves))
    order.shuffle(arrivals)
    for leaf in arrivals:
        bring_in(tree, 0, leaf, str(leaf))
    assert tree.value() == expected(0, leaves)


@pytest.mark.parametrize("leaves", range(1, 40))
def test_leaves_in_order_and_in_reverse_make_the_same_tree(leaves: int) -> None:
    for arrivals in (range(leaves), reversed(range(leaves))):
        tree = Tree(leaves)
        for leaf in arrivals:
            bring_in(tree, 0, leaf, str(leaf))
        assert tree.value() == expected(0, leaves)


@given(
    leaves=st.integers(1, 300),
    cuts=st.sets(st.integers(1, 299), max_size=20),
    order=st.randoms(use_true_random=False),
)
def test_stretches_in_any_order_make_the_same_tree(
    leaves: int, cuts: set[int], order: random.Random
) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < leaves), leaves]
    stretches = list(itertools.pairwise(edges))
    order.shuffle(stretches)
    maker = Maker(Tree(leaves))
    for start, stop in stretches:
        for leaf in range(start, stop):
            maker.make(leaf)
        maker.merge()
    assert maker.tree.value() == expected(0, leaves)


@given(
    leaves=st.integers(1, 120),
    makers=st.integers(1, 8),
    order=st.randoms(use_true_random=False),
)
def test_several_makers_with_offers_in_flight_make_the_same_tree(
    leaves: int, makers: int, order: random.Random
) -> None:
    # `reduce` runs outside the lock: between an offer that found its sibling and the offer of the
    # result, others offer.
    tree = Tree(leaves)
    arrivals: list[Node] = [(0, leaf, str(leaf)) for leaf in range(leaves)]
    order.shuffle(arrivals)
    flying: list[Node] = []
    while arrivals or flying:
        if flying and (not arrivals or len(flying) == makers or order.random() < 0.5):
            node = flying.pop(order.randrange(len(flying)))
        else:
            node = arrivals.pop()
        if (pair := tree.offer(*node)) is not None:
            level, index, left, right = pair
            flying.append((level, index, combine(left, right)))
    assert tree.value() == expected(0, leaves)


@given(
    leaves=st.integers(1, 400),
    makers=st.integers(1, 8),
    rng=st.randoms(use_true_random=False),
)
def test_makers_that_claim_and_give_back_make_the_same_tree(
    leaves: int, makers: int, rng: random.Random
) -> None:
    assert reduce_by_makers(leaves, makers, rng, lambda tree, team: None) == expected(0, leaves)


@pytest.mark.parametrize("makers", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("leaves", [1, 2, 3, 100, 1000, 4096])
def test_few_values_wait_whoever_makes_the_leaves(leaves: int, makers: int) -> None:
    # In the tree at most one for each maker and level; on a maker's own stack, until its stretch
    # ends, the left and the right flank of that stretch, each at most one a level.
    levels = leaves.bit_length()
    in_tree, in_all = [0], [0]

    def look(tree: Tree, team: list[Maker]) -> None:
        on_stacks = sum(len(maker.stack) for maker in team)
        in_tree.append(len(tree.waiting))
        in_all.append(len(tree.waiting) + on_stacks)

    for seed in range(4):
        reduce_by_makers(leaves, makers, random.Random(seed), look)
    assert max(in_tree) <= makers * levels
    assert max(in_all) <= 2 * makers * levels


@given(start=st.integers(0, 5000), leaves=st.integers(1, 256))
def test_a_stack_holds_two_values_a_level_at_most(start: int, leaves: int) -> None:
    maker = Maker(Tree(start + leaves))
    most = 0
    for leaf in range(start, start + leaves):
        maker.make(leaf)
        levels = [level for level, _, _ in maker.stack]
        assert all(levels.count(level) <= 2 for level in levels)
        most = max(most, len(levels))
    assert most <= 2 * leaves.bit_length()


@given(leaves=st.integers(1, 2**40), level=st.integers(0, 40), index=st.integers(0, 2**40))
def test_a_node_climbs_to_the_highest_that_holds_the_same_leaves(
    leaves: int, level: int, index: int
) -> None:
    tree = Tree(leaves)
    assert 1 << tree.top >= leaves > (1 << tree.top) >> 1
    if level > tree.top or index << level >= leaves:
        return
    upper, place = tree.climb(level, index)

    def leaves_of(level: int, index: int) -> range:
        return range(index << level, min((index + 1) << level, leaves))

    assert leaves_of(upper, place) == leaves_of(level, index)
    assert upper == tree.top or leaves_of(upper + 1, place >> 1) != leaves_of(level, index)


@given(leaves=st.integers(2, 200), data=st.data())
def test_an_offer_gives_the_parents_place_and_its_operands_left_to_right(
    leaves: int, data: st.DataObject
) -> None:
    left = data.draw(st.integers(0, (leaves - 2) // 2)) * 2
    first, second = data.draw(st.permutations([left, left + 1]))
    tree = Tree(leaves)
    assert tree.offer(0, first, str(first)) is None
    assert tree.offer(0, second, str(second)) == (1, left >> 1, str(left), str(left + 1))
    assert not tree.waiting, "what is being combined still waits"


def test_a_stack_only_joins_true_siblings() -> None:
    stack: list[Node] = []
    assert push(stack, 0, 1, "1") is None  # a right one without its left
    assert push(stack, 0, 2, "2") is None  # 1 and 2 are neighbours, not siblings
    assert push(stack, 0, 3, "3") == (1, "2", "3")
    assert push(stack, 1, 1, "(2 3)") is None
    assert stack == [(0, 1, "1"), (1, 1, "(2 3)")]
    assert push(stack, 0, 1, "again") is None  # the top is of another level
    assert push([(0, 0, "0")], 0, 3, "3") is None  # two apart
    assert push([(0, 3, "3")], 0, 2, "2") is None  # siblings, but the top is the right one


def test_the_value_of_one_leaf_is_the_leaf() -> None:
    tree = Tree(1)
    assert tree.offer(0, 0, "0") is None
    assert tree.value() == "0"
