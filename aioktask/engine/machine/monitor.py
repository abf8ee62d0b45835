# SPDX-License-Identifier: MIT
# The sample of the machine that is taken every 0.1 s while there are jobs or helpers: what changed,
# and how much of the machine other processes want.
#
# It is for one thread at a time, holds no lock and decides nothing about jobs: its user decides
# what follows from a sample. What costs more than a few system calls is sampled less often. What
# the system refuses to tell counts as free, and never raises.
"""What happens around the process."""

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic_ns, perf_counter_ns

from aioktask.engine.machine.denials import note_denial
from aioktask.engine.machine.load import CpuLoad, idle_ns, pressure_us, thread_times_ns
from aioktask.engine.machine.os_threads import (
    may_lower,
    nice_can_be_set,
    process_nice,
    set_thread_nice,
    thread_nice_now,
)
from aioktask.engine.machine.slots import Slots, slots_path
from aioktask.engine.machine.topology import Topology, Watched

__all__ = ["Monitor", "Observation"]

# The topology is sampled this often, in ns: a quota that moved is followed within a second.
TOPOLOGY_NS = 250_000_000

# Errors that pass, after which sharing goes on: no locks, no descriptors, no memory for a while.
_SHORTAGES = (errno.ENOLCK, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)

# Threads that are asked how long they waited for a CPU, 8 us each; more would say no more.
MOST_ASKED = 32


@dataclass(frozen=True, slots=True)
class Observation:
    """What one sample found.

    Attributes:
        topology: The machine, if it changed.
        nice: That of the process's main thread; or where the sampling thread may not have it, its
            own, with which new threads begin.
        may_lower: Whether a helper may go back to the nice that it began with.
        load: What CPUs and background threads did since the last sample, if there was one lately.
        share: The most helpers for this process, by what others of the same set of slots want;
            None for no such limit.
    """

    topology: Topology | None
    nice: int
    may_lower: bool
    load: CpuLoad | None
    share: int | None


class Monitor:
    """Samples the machine, and remembers what the last sample found.

    Attributes:
        slots: The set of slots that the process takes part in, if any.
        slots_refused: Why the process takes no part, or not at present, though it should.
    """

    def __init__(self, topology: Topology) -> None:
        self._cpus = topology.cpus
        self._watched = Watched()
        self._topology_at = 0
        self._idle_at = self._idle_ns = 0
        self._pressure: int | None = None
        self._times: dict[int, tuple[int, int]] = {}
        self.slots: Slots | None = None
        self.slots_refused: OSError | None = None
        self._share: str | None = None
        self._nice_tried: int | None = None

    def doubt(self) -> None:
        """Have the next sample read the machine anew, whether it seems to have changed or not."""
        self._watched.doubt()
        self._topology_at = 0

    def sample(self, wish: int, share: str | None, helpers: Mapping[int, bool]) -> Observation:
        """Take a sample.

        Args:
            wish: How many helpers the process could use.
            share: The name of its set of slots; None to share with no other process.
            helpers: The kernel's numbers of the helpers, and whether each served background jobs
                since the last sample.
        """
        now = perf_counter_ns()
        topology = None
        if now - self._topology_at >= TOPOLOGY_NS:
            self._topology_at = now
            topology = self._watched.read()
            if topology is not None:
                self._cpus = topology.cpus
        nice = self._nice()
        return Observation(
            topology=topology,
            nice=nice,
            may_lower=may_lower(nice),
            load=self._load(now, helpers),
            share=self._slots(wish, share),
        )

    def _nice(self) -> int:
        """The process's nice, or that of this thread if it may not go back to the process's.

        New threads begin with this thread's. Where another process lowered the main thread's nice,
        they may not be allowed to have that.
        """
        process, thread = process_nice(), threading.get_native_id()
        own = thread_nice_now(thread)
        if own is not None and own > process and process != self._nice_tried:
            self._nice_tried = process
            set_thread_nice(thread, process)
            own = thread_nice_now(thread)
        return process if own is None or not nice_can_be_set() else max(own, process)

    def release(self) -> None:
        """Give up the slots for the time being, since there is nothing to do."""
        self._idle_at = 0
        if self.slots is not None:
            try:
                self.slots.release()
            except OSError as error:
                self._refused(error)

    def forget(self) -> None:
        """In a fork's child: have no part in the slots, which are the parent's and stay so."""
        if self.slots is not None:
            self.slots.forget()

    def close(self) -> None:
        """Give up the slots for good."""
        slots, self.slots = self.slots, None
        if slots is not None:
            try:
                slots.close()
            except OSError as error:  # the kernel drops them with the descriptor
                self.slots_refused = error

    def _load(self, now: int, helpers: Mapping[int, bool]) -> CpuLoad | None:
        """What happened since the last sample, if there was one lately."""
        idle, pressure = idle_ns(self._cpus), pressure_us()
        if idle is None:  # what is not known counts as free
            return CpuLoad(1, len(self._cpus), 0, 0)
        before, self._idle_at = self._idle_at, now
        idle_before, self._idle_ns = self._idle_ns, idle
        pressure_before, self._pressure = self._pressure, pressure
        asked = sorted(helpers, key=lambda thread: not helpers[thread])[:MOST_ASKED]
        times_before, self._times = self._times, thread_times_ns(asked)
        if not before:
            return None
        told = [
            each for each in asked if helpers[each] and each in self._times.keys() & times_before
        ]
        ran = sum(self._times[each][0] - times_before[each][0] for each in told)
        waited = sum(self._times[each][1] - times_before[each][1] for each in told)
        if told:  # the others are taken to be like them
            ran, waited = (each * sum(helpers.values()) // len(told) for each in (ran, waited))
        if pressure is not None and pressure == pressure_before:
            waited = 0  # no thread of the machine waited
        return CpuLoad(now - before, max(idle - idle_before, 0), ran, waited)

    def _slots(self, wish: int, share: str | None) -> int | None:
        """Take a share of the slots: how many; None where no other process is there, or no set."""
        if share != self._share:
            self.close()
            self._share, self.slots_refused = share, None
            if share is not None:
                try:
                    self.slots = Slots(slots_path(share))
                except OSError as error:
                    note_denial("open the slots", error.errno)
                    self.slots_refused = error
        if self.slots is None:
            return None
        try:
            allowed = self.slots.look(self._cpus, wish, monotonic_ns())
        except OSError as error:
            self._refused(error)
            return None
        self.slots_refused = None
        alone = self.slots.members <= 1 and allowed >= min(wish, len(self._cpus))
        return None if alone else allowed

    def _refused(self, error: OSError) -> None:
        """Share no longer, unless the next sample may succeed: a shortage passes."""
        note_denial("lock slots (F_OFD_SETLK)", error.errno)
        if error.errno not in _SHORTAGES:
            self.close()
        self.slots_refused = error
