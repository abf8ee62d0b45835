# SPDX-License-Identifier: MIT
# Turns of a pool that has no threads: the test takes them.

from __future__ import annotations

from aioktask.engine.machine.topology import read_topology
from aioktask.engine.state.dispatch import State
from aioktask.engine.threads.pool import Pool
from aioktask.engine.tunables import Tunables


def test_a_turn_applies_what_was_there_when_it_began() -> None:
    """A command whose application posts another one does not keep the turn, and the lock, busy."""
    pool = Pool(read_topology(), Tunables())
    applied: list[str] = []

    def post_another(state: State, run: None) -> None:
        applied.append("again")
        pool.inbox.append((post_another, None))

    pool.inbox.append((post_another, None))
    pool.inbox.append((lambda state, run: applied.append("once"), None))
    with pool.lock:
        pool.drain()
    assert applied == ["again", "once"]
    assert list(pool.inbox) == [(post_another, None)]
