# SPDX-License-Identifier: MIT
# What goes on around the process, and what follows for its threads: caps, nice and CPUs.
#
# The keeper looks around every 0.1 s while there are jobs or helpers (`Lookout`), and what it finds
# is brought into the state here, under the pool's lock; helpers follow at their next chunk
# boundary. A thread's nice and affinity are changed under the lock too, so that none of them can
# have ended, and its number gone to another: these are quick calls.
"""Caps that follow the machine, and threads that fit what they do."""

from __future__ import annotations

import threading
from time import perf_counter_ns
from typing import Protocol

from aioktask.engine.helpers import Helper, Keeper, be_like_the_process, bind_thread
from aioktask.engine.lookout import Lookout, Sight
from aioktask.engine.priority import process_nice, set_thread_nice
from aioktask.engine.scheduling.caps import Cap, process_cap
from aioktask.engine.state.dispatch import Outbox, RunGroup, State
from aioktask.engine.topology import Topology, read_topology
from aioktask.engine.tunables import Tunables


class Host(Protocol):
    """The pool."""

    dead: bool

    @property
    def lock(self) -> threading.Lock: ...

    @property
    def state(self) -> State: ...

    @property
    def keeper(self) -> Keeper: ...

    def send(self, outbox: Outbox) -> None: ...


class Surroundings:
    """What is known of the machine and of what the user set.

    Attributes:
        tunables: The process's.
        topology: The machine as it was seen last.
        cap: The most helpers, and why.
        share: The most helpers by what other processes want; None where they want nothing.
        lookout: The keeper's own.
        watching: Whether the keeper looks around.
    """

    def __init__(self, host: Host, topology: Topology, tunables: Tunables) -> None:
        self._host = host
        self.topology = topology
        self.tunables = tunables
        self.cap = cap_of(topology, tunables)
        self.share: int | None = None
        self.lookout = Lookout(topology)
        self.watching = False
        host.state.base_nice = process_nice()
        self._set_nodes()

    def gives_way(self, nice: int, group: RunGroup) -> bool:
        """Whether a job of this nice leaves the CPUs to other processes."""
        return nice > 0 and bool(group.tunables.get("give_way", self.tunables.give_way))

    def configure(self, tunables: Tunables) -> None:
        """Other tunables of the process, also while jobs run."""
        outbox = Outbox()
        with self._host.lock:
            self.tunables = tunables
            self._reconsider_runs(outbox)
        self._host.send(outbox)

    def _reconsider_runs(self, outbox: Outbox) -> None:
        for run in self._host.state.runs:
            group = run.entry.group
            assert isinstance(group, RunGroup)
            if run.entry.gives_way or run.entry.nice > 0:
                gives_way = self.gives_way(run.entry.nice, group)
                self._host.state.scheduler.set_gives_way(run.entry, gives_way)
        self._apply_caps(outbox)

    def refresh(self) -> None:
        """Look at the machine again, if the keeper does not."""
        if self.watching:
            return
        topology = read_topology()
        outbox = Outbox()
        with self._host.lock:
            self.topology = topology
            self._apply_caps(outbox)
        self._host.send(outbox)

    def _set_nodes(self) -> None:
        nodes = {node.id: node.cpus & self.topology.cpus for node in self.topology.nodes}
        self._host.state.node_cpus = {node: cpus for node, cpus in nodes.items() if cpus}
        self._host.state.node_limit = self.tunables.max_threads_per_node

    def _apply_caps(self, outbox: Outbox) -> None:
        """Bring the caps in line with what they follow from."""
        self._set_nodes()
        self.cap = cap_of(self.topology, self.tunables)
        cap = self.cap.threads
        for run in self._host.state.runs:
            group_cap = run.entry.group.cap
            run.cap_moved(cap if group_cap is None else min(cap, group_cap))
            limit = min(run.limit, run.threads_learned)
            if limit != run.entry.limit:
                self._host.state.scheduler.set_limit(run.entry, limit)
        self._host.state.scheduler.cap = cap if self.share is None else max(min(cap, self.share), 1)
        self._host.state.signals.generation += 1
        self._host.state.summon(perf_counter_ns(), outbox)

    def set_group(self, group: RunGroup, cap: int | None) -> None:
        """A coordinator was told other tunables."""
        outbox = Outbox()
        with self._host.lock:
            self._host.state.scheduler.set_group_cap(group, cap)
            self._reconsider_runs(outbox)
        self._host.send(outbox)

    # The look around, by the keeper.

    def watch(self) -> None:
        with self._host.lock:
            if self.watching or self._host.dead:
                return
            self.watching = True
        try:
            self._host.keeper.watch(self._look_around)
        except RuntimeError:  # the system has no more threads for us
            self.watching = False

    def _look_around(self) -> bool:
        """Follow what changed; False when there is nobody whom it would concern."""
        state = self._host.state
        with self._host.lock:
            if self._host.dead or not (state.runs or state.helpers or state.starting):
                self.watching = False
                self.lookout.release()
                return False
            wish = state.scheduler.wish(self.cap.threads)
            share = self.tunables.share
            helpers = {each.native: each.in_background for each in state.helpers}
            for each in state.helpers:
                each.in_background = state.serves_background(each)
        self._follow(self.lookout.look(wish, share, helpers))
        return True

    def _follow(self, sight: Sight) -> None:
        outbox = Outbox()
        state = self._host.state
        if sight.topology is not None:
            be_like_the_process()  # here, on the keeper, whose affinity new helpers get
        with self._host.lock:
            if sight.nice != state.base_nice:
                state.base_nice = sight.nice
                outbox.renices += state.helpers
                self._host.state.signals.generation += 1
            if not sight.may_lower:
                state.may_lower_again = True
            state.may_lower = sight.may_lower and state.may_lower_again
            if sight.topology is not None:
                self.topology = sight.topology
                self._set_nodes()
                for helper in state.helpers:
                    self.bind(helper)
            if sight.topology is not None or sight.share != self.share:
                self.share = sight.share
                self._apply_caps(outbox)
            state.looked(sight.looked, len(self.topology.cpus), outbox)
        self._host.send(outbox)

    def set_nices(self, outbox: Outbox) -> None:
        with self._host.lock:
            for helper in outbox.renices:
                if helper in self._host.state.helpers:
                    self._set_nice(helper)  # if refused, it is exchanged where it stands next
        outbox.renices.clear()

    def fit(self, helper: Helper) -> bool:
        """Give the thread the nice and the CPUs for what it is to do; False as for `_set_nice`."""
        if not self._set_nice(helper) and not self._host.state.no_more_threads:
            return False
        if self._host.state.node_of(helper) != helper.node:
            self.bind(helper)
        return True

    def bind(self, helper: Helper) -> None:
        """Bind the thread to its node, else to what the process may use."""
        helper.node = self._host.state.node_of(helper)
        cpus = (
            self.topology.cpus if helper.node is None else self._host.state.node_cpus[helper.node]
        )
        bind_thread(helper.native, cpus)

    def _set_nice(self, helper: Helper) -> bool:
        """Give the helper's thread the nice that it should have; False where that is refused."""
        nice = self._host.state.nice_of(helper)
        if nice == helper.nice or not helper.native:
            return True
        if not set_thread_nice(helper.native, nice):
            return False
        helper.nice = nice
        return True


def cap_of(topology: Topology, tunables: Tunables) -> Cap:
    """The process's cap: what the user says, else what the machine gives."""
    source = tunables.sources.get("max_threads", "")
    return process_cap(topology, tunables.max_threads, source)
