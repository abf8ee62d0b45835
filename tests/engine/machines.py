# SPDX-License-Identifier: MIT
# Machines that do not exist: they say what a stretch of chunks costs, and time passes accordingly.
#
# The controller cannot tell: it gets the same figures as in a run. Deterministic for a seed, and
# quick, so its choices can be judged against every fixed size on 256 CPUs.

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from aioktask.engine.learning.scaling import Scaling
from aioktask.engine.learning.sizing import STRETCH_NS, Sizes
from aioktask.engine.learning.stretch import MOST_CHUNKS

CLAIM_NS = 5_000.0
CALL_NS = 300.0

# Chunk size, position, threads at work, thread, time: nanoseconds a unit.
Cost = Callable[[int, int, int, int, float], float]


@dataclass(frozen=True)
class Machine:
    """What work costs, and what disturbs it.

    Attributes:
        cost: Of one unit, in nanoseconds.
        threads: How many there are.
        noise: The standard deviation of the logarithm of what a stretch takes.
        spikes: How often a thread is held up in a millisecond.
        spike_ns: For how long then, on average.
        holds_gil: Whether threads take turns.
    """

    cost: Cost
    threads: int = 2
    noise: float = 0.05
    spikes: float = 0.01
    spike_ns: float = 2e6
    holds_gil: bool = False


@dataclass
class Outcome:
    """What a simulated run came to: how long it took, and what was learned."""

    ns: float = 0.0
    sizes: Sizes | None = None
    scaling: Scaling | None = None
    levels: list[int] = field(default_factory=list)
    longest_ns: float = 0.0


def curve(points: Mapping[int, float]) -> Callable[[int], float]:
    """A function of the chunk size, linear over its logarithm between the points."""
    powers = sorted(points)

    def at(chunk: int) -> float:
        power = min(max(math.log2(chunk), powers[0]), powers[-1])
        for a, b in pairwise(powers):
            if power <= b:
                return points[a] + (points[b] - points[a]) * (power - a) / (b - a)
        return points[powers[-1]]

    return at


def by_size(points: Mapping[int, float]) -> Cost:
    cost = curve(points)
    return lambda chunk, position, active, thread, now: cost(chunk)


def simulate(
    machine: Machine,
    size: int,
    *,
    grain: int = 1,
    seed: int = 0,
    chunk: int | None = None,
    threads: int | None = None,
    sizes: Sizes | None = None,
    scaling: Scaling | None = None,
    learn_threads: bool = False,
    alone: bool = True,
    begin: int = 0,
    cut: int | None = None,
) -> Outcome:
    """Run a job: with a fixed `chunk` on so many `threads`, or learning.

    Its range begins at `begin`; the pieces that end it are multiples of `cut`, or of the grain.
    """
    noise = random.Random(seed)
    most = threads or machine.threads
    out = Outcome()
    if chunk is None:
        out.sizes = Sizes(size, grain, most) if sizes is None else sizes.for_next_run(size)
        out.sizes.be_alone(alone)
        if learn_threads:
            out.scaling = Scaling(most) if scaling is None else scaling.for_next_run(most)
    paces = [out.sizes.new_pace() for _ in range(most)] if out.sizes is not None else []
    level = most if out.scaling is None else out.scaling.level
    position = 0
    flight: dict[int, tuple[int, int, float, float]] = {}  # thread: start, stop, began, ends
    what: dict[int, tuple[int, int]] = {}  # thread: number of the size, threads at the claim
    events = [(thread * 50_000.0, thread) for thread in range(most)]
    parked: list[int] = []
    while events:
        now, thread = heapq.heappop(events)
        if thread in flight:
            start, stop, began, _ = flight.pop(thread)
            number, active = what[thread]
            wall, units = int(now - began), stop - start
            out.ns = max(out.ns, now)
            if out.sizes is not None:
                steady = active == len(flight) + 1
                out.sizes.measured(paces[thread], number if steady else -1, units, wall)
                if out.scaling is not None:
                    cpu = wall // active if machine.holds_gil else wall
                    out.scaling.served(active, wall, wall - cpu, cpu, 0)
                    left = size - position
                    used = number == out.sizes.best and out.sizes.settled
                    if steady and used and out.scaling.measured(active, units, wall, left):
                        out.sizes.disturbed()
                        out.levels.append(out.scaling.level)
                    level = out.scaling.level
        while parked and len(events) + 1 < level:
            heapq.heappush(events, (now + 50_000.0, parked.pop()))
        if position == size:
            continue
        if len(flight) >= level:
            parked.append(thread)
            continue
        active = len(flight) + 1
        if out.sizes is not None:
            ahead = sum(
                int((b - a) * max(ends - now, 0) / (ends - began))
                for a, b, began, ends in flight.values()
            )
            sharers = max(active, level)
            piece, count, number = out.sizes.pick(
                paces[thread], size - position, sharers, ahead, cut or grain
            )
        else:
            assert chunk is not None
            lasts = chunk * machine.cost(chunk, position, most, thread, now) + CALL_NS
            fair = (size - position) // (2 * most * chunk)
            piece, number = chunk, 0
            count = max(1, min(int(STRETCH_NS / lasts), MOST_CHUNKS, fair))
        free = number < 0 or (out.sizes is not None and number > out.sizes.best)
        end = position - (begin + position) % ((cut or grain) if free else piece) + piece
        stop = min(end + piece * (count - 1), size)
        sharing = min(level, most) if machine.holds_gil else 1
        points = 16 if piece > 40_000 else min(8, count)
        cost = sum(
            machine.cost(piece, position + (stop - position) * i // points, level, thread, now)
            for i in range(points)
        )
        lasts = CLAIM_NS + CALL_NS * count + (stop - position) * cost / points * sharing
        lasts *= math.exp(noise.gauss(0, machine.noise))
        if noise.random() < 1 - math.exp(-lasts / 1e6 * machine.spikes):
            lasts += noise.expovariate(1 / machine.spike_ns)
        out.longest_ns = max(out.longest_ns, lasts / count)
        flight[thread] = (position, stop, now, now + lasts)
        what[thread] = (number, active)
        position = stop
        heapq.heappush(events, (now + lasts, thread))
    return out


def best_fixed(machine: Machine, size: int, *, grain: int = 1, least: int = 1) -> float:
    """Nanoseconds with the best fixed size, in powers of two from `least` up to an even share."""
    even = -(-size // machine.threads)
    chunk, found = max(grain, least), []
    while chunk < even:
        found.append(simulate(machine, size, grain=grain, chunk=chunk, seed=99).ns)
        chunk *= 2
    found.append(simulate(machine, size, grain=grain, chunk=even, seed=99).ns)
    return min(found)
