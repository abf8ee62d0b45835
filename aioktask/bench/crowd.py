# SPDX-License-Identifier: MIT
# What becomes of a job on a crowd of workers: how much time is lost against the ideal, and how many
# messages it takes.
#
# Pure: the same seed makes the same crowd, and the real session decides in a simulated clock. The
# ideal is that no worker ever waits, none does anything twice, and all end at one moment.
"""Simulated crowds of workers: `crowd`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from aioktask.bench.simulated import Simulation, covered_once, nothing
from aioktask.cluster.job import ClusterJob

__all__ = ["HAPPENINGS", "QUIET", "Crowd", "crowd", "ideal_seconds"]

QUIET = "nothing happens"
# What happens to a tenth of the workers each, at some moment.
HAPPENINGS = (QUIET, "stragglers", "joins", "losses", "stragglers, joins and losses")
TENTH = 10
# A straggler has so much of the speed that it had.
SLOW = 0.1
UNITS = 10_000_000


@dataclass(frozen=True, slots=True)
class Crowd:
    """How a job went.

    Attributes:
        lost: How much longer it took than the ideal, in percent of that.
        messages: How many were heard and sent, for each worker that there was when it began.
        deciding: Seconds, real ones, that the session took for each of them.
    """

    lost: float
    messages: float
    deciding: float


def crowd(
    workers: int, happens: str, seed: int, *, seconds: float = 60.0, service: float = 0.0
) -> Crowd:
    """Run a job on so many workers, whose speeds are from 1 to 4 of something.

    Args:
        workers: How many there are when it begins.
        happens: One of `HAPPENINGS`.
        seed: Of their speeds, and of what happens to whom and when.
        seconds: What the workers would need together if nothing happened.
        service: How long the coordinator's side needs for a message, in seconds.

    Raises:
        RuntimeError: A unit was not done, or the job never ends.
    """
    rng = random.Random(f"{workers} {happens} {seed}")
    shares = [rng.uniform(1, 4) for _ in range(workers)]
    rates = [share * UNITS / seconds / sum(shares) for share in shares]
    job = ClusterJob(nothing, UNITS, idempotent=True, name=happens)
    simulation = Simulation(job, service=service)
    changes: list[tuple[float, float]] = []  # when, and by how much the rate of all is another

    def join(name: str, rate: float) -> None:
        changes.append((simulation.now, rate))
        simulation.join(name, rate)

    def straggle(name: str) -> None:
        worker = simulation.workers[name]
        changes.append((simulation.now, (SLOW - 1) * worker.rate))
        simulation.set_rate(name, SLOW * worker.rate)

    def lose(name: str) -> None:
        changes.append((simulation.now, -simulation.workers[name].rate))
        simulation.lose(name)

    def then(when: float, what: Callable[..., None], *arguments: object) -> None:
        simulation.at(when, lambda: what(*arguments))

    for number, rate in enumerate(rates):
        then(0.0, join, f"w{number}", rate)
    some = max(workers // TENTH, 1)
    chosen = rng.sample(range(workers), 3 * some)
    for kind in HAPPENINGS[1:-1]:
        victims = [chosen.pop() for _ in range(some)]
        for number in victims if kind in happens else ():
            when = rng.uniform(seconds / 60, 0.9 * seconds)
            if kind == "stragglers":
                then(when, straggle, f"w{number}")
            elif kind == "losses":
                then(when, lose, f"w{number}")
            else:
                then(when, join, f"late{number}", rates[number])
    simulation.run()
    if not covered_once([piece for _, piece in simulation.done], range(UNITS)):
        raise RuntimeError(f"a unit was not done once, on {workers} workers with seed {seed}")
    messages = simulation.heard + simulation.commands
    return Crowd(
        100.0 * (simulation.now / ideal_seconds(UNITS, changes) - 1.0),
        messages / workers,
        simulation.deciding / messages,
    )


def ideal_seconds(units: float, changes: Iterable[tuple[float, float]]) -> float:
    """When so many units would be done if no worker ever waited and nothing was done twice.

    Args:
        units: How many.
        changes: When the rate of all workers together changes, and by how much, in units a second;
            it is 0 at first.

    >>> ideal_seconds(100, [(0, 10), (5, 40)])
    6.0
    """
    left, now, rate = float(units), 0.0, 0.0
    for when, change in sorted(changes):
        if rate > 0 and left <= (when - now) * rate:
            break
        left -= (when - now) * rate
        now, rate = when, rate + change
    return now + left / rate
