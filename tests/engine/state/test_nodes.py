# SPDX-License-Identifier: MIT
"""Which helper serves which node's parts, on simulated machines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask import Job, Part
from aioktask.engine.ranges.plan import node_of, spans
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.nodes import node_for
from aioktask.engine.state.run import Run
from aioktask.engine.state.workers import Helper
from tests.engine.state.turns import a_run, a_state, admit, stint_of

CHUNK = 8


def machine(*cpus: int) -> State:
    """Nodes of so many CPUs each."""
    state = a_state(sum(cpus))
    first = 0
    for node, count in enumerate(cpus):
        if count:
            state.node_cpus[node] = frozenset(range(first, first + count))
        first += count
    return state


def submit(state: State, *sizes: int, nodes: list[int | None] | None = None) -> Run:
    """A job with a part on each node in turn."""
    parts, start = [], 0
    for index, size in enumerate(sizes):
        node = index if nodes is None else nodes[index]
        parts.append(Part(start, start + size, node))
        start += size
    return admit(
        state, a_run(Job(lambda start, stop: None, start, chunk=CHUNK, parts=parts, nice=0))
    )


def helper(state: State, node: int | None = None) -> Helper:
    """A helper that was started, and that an earlier job has perhaps left bound to a node."""
    made = Helper()
    made.native = 1
    made.node = node
    state.helpers[made] = None
    state.find_work(made, 0)
    made.node = node_for(state, made)
    return made


def walk(state: State, who: Helper, now: int) -> int | None:
    """Its stretch ends; the node of the stretch, None if it has none."""
    stint = who.stint
    if stint is None:
        return None
    node = node_of(stint.run.job, stint.stretch_start)
    if not state.walked(stint, stint.stretch_stop, now):
        state.reconsider(stint, now)
        who.node = node_for(state, who)
    return node


@given(cpus=st.lists(st.integers(1, 4), min_size=1, max_size=4), data=st.data())
def test_a_helper_serves_its_own_node_while_that_has_work(
    cpus: list[int], data: st.DataObject
) -> None:
    state = machine(*cpus)
    sizes = [data.draw(st.integers(1, 400)) for _ in cpus]
    run = submit(state, *sizes)
    helpers = [helper(state) for _ in range(sum(cpus))]
    left = list(sizes)
    now = 0
    while not run.over:
        who = data.draw(st.sampled_from([each for each in helpers if each.stint is not None]))
        stint = stint_of(who)
        for node, count in enumerate(cpus):
            serving = [each.stint for each in helpers if each.stint and each.stint.node == node]
            assert len(serving) <= count, "no more are bound to a node than it has CPUs"
        node = node_of(run.job, stint.stretch_start)
        assert node is not None
        if stint.node is not None and not stint.off_node:
            assert node == stint.node
        left[node] -= stint.stretch_stop - stint.stretch_start
        now += 1_000_000
        walk(state, who, now)
    assert left == [0] * len(cpus)


def test_helpers_spread_over_nodes_by_their_cpus() -> None:
    state = machine(2, 4)
    submit(state, 10_000, 10_000)
    placed = [helper(state).node for _ in range(6)]
    assert (placed.count(0), placed.count(1)) == (2, 4)
    assert placed[:3].count(1) == 2


def test_who_has_nothing_left_goes_where_there_is_a_cpu_else_helps_from_where_it_is() -> None:
    state = machine(2, 2)
    state.scheduler.cap = 3
    submit(state, CHUNK, 100 * CHUNK)
    first = helper(state)
    others = [helper(state), helper(state)]
    assert first.node == 0
    assert [each.node for each in others] == [1, 1]
    walk(state, first, 1)
    stint = stint_of(first)
    assert stint.off_node
    assert first.node == 0, "the other node's CPUs are busy"
    assert node_of(stint.run.job, stint.stretch_start) == 1
    state = machine(2, 2)
    submit(state, CHUNK, 100 * CHUNK)
    lone, other = helper(state), helper(state)
    assert (lone.node, other.node) == (0, 1)
    walk(state, lone, 1)
    assert lone.node == 1
    assert not stint_of(lone).off_node


def test_a_node_without_cpus_is_served_from_elsewhere() -> None:
    state = machine(2, 0)
    run = submit(state, 4 * CHUNK, 4 * CHUNK)
    who = helper(state)
    seen = []
    now = 0
    while not run.over:
        now += 1_000_000
        seen.append(walk(state, who, now))
    assert seen == sorted(seen, key=lambda node: node or 0)
    assert set(seen) == {0, 1}


@pytest.mark.parametrize("before", [None, 0, 1])
@pytest.mark.parametrize("limit", [1, 3])
def test_a_limit_for_each_node_is_kept(limit: int, before: int | None) -> None:
    """Also where an earlier job left all helpers bound to one node."""
    state = machine(4, 4)
    state.node_limit = limit
    submit(state, 10_000, 10_000)
    bound = [helper(state, before).node for _ in range(8)]
    assert (bound.count(0), bound.count(1)) == (limit, limit)
    assert all(each.stint is not None for each in state.helpers), "the others help from anywhere"


def test_parts_without_a_node_bind_nobody() -> None:
    state = machine(2, 2)
    submit(state, 100, 100, nodes=[None, None])
    assert helper(state).node is None


def test_the_parts_of_a_reduce_keep_the_leaf_that_they_begin_in() -> None:
    parts = [Part(0, 10, 0), Part(10, 20, 1), Part(20, 64, 0)]
    job = Job(lambda a, b: 0, 64, chunk=16, parts=parts, reduce=lambda a, b: a + b)
    pieces = spans(job, 16)
    assert [(each.start, each.stop) for each in pieces] == [(0, 16), (16, 32), (32, 64)]
    assert [node_of(job, each.start) for each in pieces] == [0, 1, 0]
