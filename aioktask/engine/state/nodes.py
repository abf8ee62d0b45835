# SPDX-License-Identifier: MIT
# On which NUMA node a helper serves a job whose parts lie on nodes.
#
# A helper is bound to the node whose parts it takes. No node has more helpers bound to it than it
# has CPUs for them, or than the coordinator or the process allows; a helper that finds no room
# serves from where it is. Called in turns; nothing here but `place` changes anything, and that the
# stint alone. The threads are bound by `threads/adapt`.
"""The node of a helper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aioktask.engine.ranges.claims import PartedClaims
from aioktask.engine.state.run import Run
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.workers import Helper

if TYPE_CHECKING:
    from aioktask.engine.state.dispatch import State


def node_for(state: State, helper: Helper) -> int | None:
    """The node that the helper's thread should be bound to now."""
    stint = helper.stint
    if stint is None or stint.node not in state.node_cpus:
        return None
    return stint.node


def place(state: State, stint: Stint, helper: Helper) -> None:
    """Choose the node whose parts the helper serves, and whether it is bound there.

    It is the node with the fewest helpers for its CPUs, of those that have room. Without room
    anywhere the helper serves from where it is, bound there only where that node has room for it.
    """
    claims = stint.run.sweep.claims
    stint.off_node = False
    stint.node = None
    if not isinstance(claims, PartedClaims):
        return
    there = dict.fromkeys(state.node_cpus, 0)
    for other in state.serving:
        if other.node in there and isinstance(other.thread, Helper):
            there[other.node] += 1
    room = {
        node: (there[node] / len(state.node_cpus[node]), node != helper.node, node)
        for node in claims.nodes
        if node in there and there[node] < _limit_of(state, stint.run, node)
    }
    if room:
        stint.node = min(room, key=room.__getitem__)
    else:
        home, stint.off_node = helper.node, True
        if home in there and there[home] < _limit_of(state, stint.run, home):
            stint.node = home


def migrates(stint: Stint) -> bool:
    """Whether the stint's node has nothing left, so that its thread should go to another."""
    claims = stint.run.sweep.claims
    return isinstance(claims, PartedClaims) and not claims.left_at(stint.node)


def _limit_of(state: State, run: Run, node: int) -> int:
    """The most helpers that may be bound to the node for this run."""
    limit = run.group.tunables.get("max_threads_per_node") or state.node_limit
    return limit or len(state.node_cpus[node])
