# SPDX-License-Identifier: MIT
# What is known of the machine, and for how long it holds.

from __future__ import annotations

from aioktask.engine.api.snapshots import take_snapshot
from aioktask.engine.machine.topology import read_topology
from aioktask.engine.threads.pool import Pool
from aioktask.engine.tunables import Tunables


def test_nobody_is_told_to_hold_slots_once_the_process_rests() -> None:
    pool = Pool(read_topology(), Tunables())
    pool.adapter._rests = False  # as after a look around
    pool.adapter.holders = ((1, 2),)
    slots = take_snapshot(pool).limits.slots
    assert slots is not None
    assert [(each.pid, each.held) for each in slots.holders] == [(1, 2)]
    pool.adapter.rest()
    slots = take_snapshot(pool).limits.slots
    assert slots is not None
    assert not slots.holders
