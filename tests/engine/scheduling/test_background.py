# SPDX-License-Identifier: MIT
"""How background jobs give way, against a simulated machine with neighbours."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.machine.load import CpuLoad
from aioktask.engine.scheduling.background import MOST_CREDIT_NS, BackgroundShare
from aioktask.engine.scheduling.queue import NICE_0_WEIGHT, weight

PERIOD_NS = 100_000_000
CHUNK_NS = 2_000_000


class Machine:
    """CPUs that neighbours of nice 0 share with background threads of a nice a little above.

    Neighbours spread over the CPUs and run all the time. A background thread runs on an idle CPU if
    there is one, else it gets a quarter of a neighbour's.
    """

    def __init__(self, cpus: int, neighbours: int) -> None:
        self.cpus = cpus
        self.neighbours = neighbours
        self.used_ns = self.taken_ns = 0.0

    def period(self, share: BackgroundShare) -> CpuLoad:
        """One period of background work as `share` admits it, a chunk at a time."""
        idle = max(self.cpus - self.neighbours, 0)
        used = delay = taken = 0.0
        position = 0
        while share.threads and position < PERIOD_NS:
            threads = share.threads
            on_idle = min(threads, idle)
            contending = threads - on_idle
            used_now = (on_idle + contending / 4) * CHUNK_NS
            taken += contending / 4 * CHUNK_NS
            delay += contending * 3 / 4 * CHUNK_NS
            used += used_now
            share.charge(round(used_now))
            position += CHUNK_NS
        self.used_ns += used
        self.taken_ns += taken
        # Something always runs: a tenth of a CPU is nobody's that is asked.
        unused = max(idle * PERIOD_NS - (used - taken) - PERIOD_NS // 10, 0)
        return CpuLoad(PERIOD_NS, round(unused), round(used), round(delay))


def run(machine: Machine, share: BackgroundShare, periods: int, nice: int) -> None:
    for _ in range(periods):
        share.look(machine.period(share), machine.cpus, nice)


@given(cpus=st.integers(1, 256), nice=st.integers(1, 19), before=st.integers(0, 300))
def test_an_idle_machine_is_used_whole_within_two_looks(cpus: int, nice: int, before: int) -> None:
    """Whatever was there before."""
    share = BackgroundShare()
    run(Machine(cpus, before), share, 5, nice)
    run(Machine(cpus, 0), share, 3, nice)
    assert share.threads == cpus
    assert not share.pausing


@given(cpus=st.integers(1, 64), nice=st.integers(1, 19), extra=st.integers(0, 3))
def test_neighbours_on_every_cpu_lose_no_more_than_to_a_thread_of_that_nice(
    cpus: int, nice: int, extra: int
) -> None:
    machine = Machine(cpus, cpus + extra)
    share = BackgroundShare()
    run(machine, share, 5, nice)
    machine.taken_ns = 0.0
    periods = 400
    run(machine, share, periods, nice)
    kept = weight(nice) / (NICE_0_WEIGHT + weight(nice))
    taken = machine.taken_ns / (periods * PERIOD_NS * cpus)
    assert taken <= kept * 1.05
    assert taken > 0, "it must go on for ever, slowly"


@given(cpus=st.integers(2, 64), data=st.data())
def test_idle_cpus_are_used_beside_neighbours_on_the_others(cpus: int, data: st.DataObject) -> None:
    neighbours = data.draw(st.integers(1, cpus - 1))
    machine = Machine(cpus, neighbours)
    share = BackgroundShare()
    run(machine, share, 5, 19)
    assert share.threads >= cpus - neighbours
    machine.taken_ns = 0.0
    run(machine, share, 20, 19)
    assert machine.taken_ns <= 0.05 * 20 * PERIOD_NS * cpus


@given(st.lists(st.tuples(*[st.integers(0, 10**12)] * 4)), st.integers(1, 300))
def test_any_figures_give_a_number_of_threads(
    figures: list[tuple[int, int, int, int]], cpus: int
) -> None:
    share = BackgroundShare()
    for each in figures:
        share.look(CpuLoad(*each), cpus, 19)
        assert 0 <= share.threads <= cpus
        share.charge(MOST_CREDIT_NS)
        assert not share.pausing or share.threads == 0


@given(cpus=st.integers(1, 64))
def test_after_a_stop_nobody_works_until_the_next_look(cpus: int) -> None:
    share = BackgroundShare()
    run(Machine(cpus, 0), share, 3, 19)
    assert share.threads == cpus
    share.stop()
    assert share.threads == 0
    share.charge(1_000_000)
    assert share.threads == 0
    run(Machine(cpus, 0), share, 1, 19)
    assert share.threads == cpus
