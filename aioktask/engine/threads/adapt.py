# SPDX-License-Identifier: MIT
# What goes on around the process, and what follows for its threads: caps, nice and CPUs.
#
# The keeper samples the machine every 0.1 s while there are jobs or helpers (`Monitor`), and what
# it finds is posted to the state; helpers follow at their next chunk boundary. A thread's nice and
# affinity are changed under the lock, so that the thread cannot have ended, and its number gone to
# another; the calls are quick.
"""Caps that follow the machine, and threads that fit what they do."""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING

from aioktask.engine.machine.available_memory import MemoryWatch
from aioktask.engine.machine.monitor import TOPOLOGY_NS, Monitor, Observation
from aioktask.engine.machine.os_threads import (
    NiceChange,
    be_like_the_process,
    bind_thread,
    may_lower,
    process_nice,
    set_thread_nice,
)
from aioktask.engine.machine.slot_holders import holders_of
from aioktask.engine.machine.topology import Topology, read_topology
from aioktask.engine.scheduling.caps import Cap, bound_to_one_cpu, process_cap
from aioktask.engine.scheduling.memory import MemoryBudget, less_reserve
from aioktask.engine.state import following
from aioktask.engine.state.group import RunGroup
from aioktask.engine.state.lending import nice_of, serves_background
from aioktask.engine.state.nodes import node_for
from aioktask.engine.state.workers import Helper
from aioktask.engine.tunables import NO_SHARE, Tunables

if TYPE_CHECKING:
    from aioktask.engine.threads.pool import Pool

# Who holds slots is looked for this often, and for so long after somebody wanted to know.
HOLDERS_NS = 1_000_000_000
HOLDERS_WANTED_NS = 3_000_000_000


# How often it is looked at how much memory is left while jobs ask for it, in ns: as often as at the
# quota.
MEMORY_NS = TOPOLOGY_NS


class Adapter:
    """What is known of the machine and of what the user set.

    Values that other threads read here are replaced as a whole, never changed.

    Attributes:
        tunables: The process's.
        topology: The machine as it was seen last.
        share: The most helpers by what other processes want; None where they want nothing.
        holders: Processes that hold slots, each with how many, where that was asked for of late.
        monitor: The keeper's own.
        quiet_looks: At how many looks in a row nothing was to be done; the keeper's own.
    """

    def __init__(self, pool: Pool, topology: Topology, tunables: Tunables) -> None:
        self._pool = pool
        self.topology = topology
        self.tunables = tunables
        self.share: int | None = None
        self.monitor = Monitor(topology)
        self.holders: tuple[tuple[int, int], ...] = ()
        self._holders_wanted = self._holders_at = 0
        self.quiet_looks = 0
        self._memory = MemoryWatch()  # the keeper's own
        self._memory_at = 0
        self._rests = True
        self._followed = topology  # what the keeper saw last
        state = pool.state
        state.base_nice = process_nice()
        state.may_lower = may_lower(state.base_nice)  # the keeper's first sample may come late
        state.node_cpus = _cpus_by_node(topology)
        state.node_limit = tunables.max_threads_per_node
        state.advice = bound_to_one_cpu(topology, tunables.max_threads)

    @property
    def cap(self) -> Cap:
        """The most helpers, and why, before shares with other processes."""
        return find_cap(self.topology, self.tunables)

    def configure(self, tunables: Tunables) -> None:
        """Have the process follow other tunables, also while jobs run."""
        self.tunables = tunables
        self._pool.post_once((following.configure,), following.configure, None, self)

    def set_group(self, group: RunGroup) -> None:
        """Have a coordinator's jobs follow other tunables, which its group has already."""
        self._pool.post_once((following.set_group, group), following.set_group, None, group)

    def refresh(self) -> None:
        """Look at the machine again, if the keeper does not."""
        if not self._rests:
            return
        topology = read_topology()
        if topology != self.topology:
            self._follow_topology(topology)

    def room_for_chunks(self, wanted: int) -> tuple[int | None, str]:
        """How many further chunks of so many bytes would run at once, at least 1, and why.

        On any thread. None where there is no limit.
        """
        state, budget = self._pool.state, MemoryBudget()
        found = MemoryWatch().look(perf_counter_ns())
        if found is not None:
            budget.look(less_reserve(found.limits), pressed=False, step=wanted)
        if state.memory_runs and state.scheduler.memory.known:
            budget = state.scheduler.memory
        left = budget.left
        return (None if left is None else max(left // wanted, 1)), budget.reason(wanted)

    def _follow_topology(self, topology: Topology) -> None:
        self.topology = topology
        self._pool.post(
            following.follow_machine, None, _cpus_by_node(topology), self.cap.threads, self.share
        )

    # The look around, by the keeper.

    def look_around(self) -> None:
        """Sample the machine, and post what follows from what changed."""
        self._rests = False
        wish, asked = self._pool.take_turn(None, self._look_at_state)
        self.quiet_looks = 0 if wish else self.quiet_looks + 1
        share = None if self.tunables.share == NO_SHARE else self.tunables.share
        if self.topology is not self._followed:  # a `refresh`, which may have read it long ago
            self._followed = self.topology
            self.monitor.doubt()
        self._follow(self.monitor.sample(wish, share, asked))
        self._find_holders()

    def want_holders(self) -> None:
        """Have the keeper find out, for a while, which processes hold slots. On any thread."""
        self._holders_wanted = perf_counter_ns()

    def _find_holders(self) -> None:
        """Find out who holds slots, if somebody wants to know: some ms with hundreds of processes.

        Where no other process is busy nobody has to be looked for.
        """
        slots, now = self.monitor.slots, perf_counter_ns()
        if slots is None or slots.members <= 1 or now - self._holders_wanted > HOLDERS_WANTED_NS:
            self.holders = ()
        elif now - self._holders_at > HOLDERS_NS:
            self._holders_at = now
            self.holders = holders_of(slots.path)

    def _look_at_state(self) -> tuple[int, dict[int, bool]]:
        """In a turn: the wish, and of each helper whether it served the background meanwhile."""
        wish, helpers = self._wish(), self._pool.state.helpers
        served = {each.native: each.in_background for each in helpers}
        for each in helpers:
            each.in_background = serves_background(each)
        return wish, served

    def _wish(self) -> int:
        """How many threads would serve jobs if no other process wanted any."""
        state, cap = self._pool.state, self.cap.threads
        lane = state.lane
        try:
            wish = state.scheduler.wish(cap) + len(lane.waiting)
            if lane.passed:  # whether or not one is there at this moment
                lane.passed, wish = False, max(wish, 1)
            return min(wish, cap)
        except BaseException as error:  # which may have struck in the middle of the counting
            self._pool.recover(None, error)
            raise

    def look_at_memory(self) -> None:
        """Look how much memory is left, if it is time to, and post that."""
        now = perf_counter_ns()
        if now - self._memory_at >= MEMORY_NS or not self._pool.state.scheduler.memory.known:
            self._memory_at = now
            self._pool.inbox.append((following.memory_seen, None, self._memory.look(now), now))

    def rest(self) -> None:
        """Let other processes have the slots while there is nothing to look after."""
        if not self._rests:
            self._rests = True
            self.holders = ()
            self.monitor.release()

    def close(self) -> None:
        """Give back what the monitor holds."""
        self.monitor.close()

    def _follow(self, seen: Observation) -> None:
        pool, state = self._pool, self._pool.state
        if seen.nice != state.base_nice or seen.may_lower != state.may_lower:
            pool.inbox.append((following.follow_nice, None, seen.nice, seen.may_lower))
        moved = seen.share != self.share
        self.share = seen.share
        if seen.topology is not None:
            be_like_the_process()  # here, on the keeper, whose affinity new helpers get
            self._followed = seen.topology
            self._follow_topology(seen.topology)
            with pool.lock:
                state.node_cpus = _cpus_by_node(seen.topology)
                for helper in state.helpers:
                    self.bind(helper)
        elif moved:
            self._follow_topology(self.topology)
        pool.inbox.append((following.sampled, None, seen.load, len(self.topology.cpus)))

    # Threads that fit what they do: called in turns, or with the lock.

    def set_nices(self, helpers: list[Helper]) -> None:
        """Give the threads of these helpers the nice that they should have.

        Where that is refused, a helper is exchanged when it next begins to serve.
        """
        with self._pool.lock:
            for helper in helpers:
                if helper in self._pool.state.helpers:
                    self._set_nice(helper)

    def fit(self, helper: Helper) -> bool:
        """Give the thread the nice and the CPUs for what it is to do.

        False where it may not have so low a nice, and another thread may.
        """
        state = self._pool.state
        if not self._set_nice(helper) and not state.no_more_threads and state.may_set_nice:
            return False
        if node_for(state, helper) != helper.node:
            self.bind(helper)
        return True

    def bind(self, helper: Helper) -> None:
        """Bind the thread to its node, else to what the process may use."""
        helper.node = node_for(self._pool.state, helper)
        cpus = (
            self.topology.cpus if helper.node is None else self._pool.state.node_cpus[helper.node]
        )
        bind_thread(helper.native, cpus)

    def _set_nice(self, helper: Helper) -> bool:
        """Give the helper's thread the nice that it should have; False where that is too low."""
        state = self._pool.state
        nice = nice_of(state, helper)
        if nice == helper.nice or not helper.native:
            return True
        change = set_thread_nice(helper.native, nice)
        if change is NiceChange.DONE:
            helper.nice = nice
        elif change is NiceChange.DENIED:
            state.may_set_nice = False
        return change is not NiceChange.TOO_LOW or helper.nice <= helper.born_nice


def _cpus_by_node(topology: Topology) -> dict[int, frozenset[int]]:
    nodes = {node.id: node.cpus & topology.cpus for node in topology.nodes}
    return {node: cpus for node, cpus in nodes.items() if cpus}


def find_cap(topology: Topology, tunables: Tunables) -> Cap:
    """The process's cap: what the user says, else what the machine gives."""
    source = tunables.sources.get("max_threads", "")
    return process_cap(topology, tunables.max_threads, source)
