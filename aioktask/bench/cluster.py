# SPDX-License-Identifier: MIT
# One job over several processes, against Dask's own ways, pools of processes, and the ideal.
#
# On loopback all of a cluster shares this machine's CPUs, so what is compared is all the work that
# there is. What no machine here has, a thousand workers, is simulated: the real session decides, in
# a clock of its own. What a message costs is measured, and the simulation then says where that is
# the limit.
"""`bench cluster`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping

from aioktask.bench.carried import Cost, measure_messages
from aioktask.bench.crowd import HAPPENINGS, QUIET, crowd
from aioktask.bench.gil_bound import measure_gil_bound
from aioktask.bench.on_dask import measure_on_dask
from aioktask.bench.promises import PAIRS, Promise, Result
from aioktask.figures.measure import interval
from aioktask.figures.table import Table

__all__ = ["CROWDED", "LIMIT", "SIMULATED", "run"]

SIMULATED = "Simulated workers, and what happens to them"
LIMIT = "Where messages are the limit"
# What promises about simulated workers begin with.
CROWDED = "10 to 1,000 simulated workers, "
# How many workers, and with how many seeds.
CROWDS = {10: PAIRS, 30: PAIRS, 100: 5, 300: 3, 1000: 3}
# A hurried run has no more.
HURRIED = 30
# How long the job takes if nothing is lost, in seconds.
SECONDS = 60.0
# Time lost that is promised, in percent of the ideal: where nothing happens, and where things do.
ALONE, BESIDE = 5.0, 10.0
MICRO = 1e6

Progress = Callable[[str], object]


def run(quick: bool, progress: Progress) -> Result:
    """On Dask, in processes, and simulated."""
    result = Result("cluster", quick)
    if importlib.util.find_spec("distributed") is None:
        missing = [("Dask", "distributed is not installed")]
        result.tables.append(Table("A job that only computes", ("", ""), missing))
    else:
        measure_on_dask(result, quick, progress)
    measure_gil_bound(result, quick, progress)
    costs = measure_messages(result, quick, progress)
    _simulate(result, quick, progress)
    _find_limit(result, costs, quick, progress)
    return result


def _simulate(result: Result, quick: bool, progress: Progress) -> None:
    rows: list[tuple[object, ...]] = []
    worst = dict.fromkeys(HAPPENINGS, 0.0)
    for workers, seeds in CROWDS.items():
        if quick and workers > HURRIED:
            break
        progress(f"{workers:,} simulated workers")
        lost: dict[str, list[float]] = {}
        for happens in HAPPENINGS:
            found = [crowd(workers, happens, seed) for seed in range(1 if quick else seeds)]
            lost[happens] = [each.lost for each in found]
            worst[happens] = max(worst[happens], *lost[happens])
            rows.append(
                (
                    f"{workers:,} workers: {happens}",
                    interval(lost[happens]),
                    max(lost[happens]),
                    interval(each.messages for each in found),
                    interval(MICRO * each.deciding for each in found),
                )
            )
        result.samples[f"time lost with {workers:,} simulated workers, %"] = lost
    columns = ("", "time lost, %", "worst", "messages a worker", "to decide, us a message")
    notes = (
        f"A job of {SECONDS:.0f} s on workers whose speeds are from 1 to 4 of something. "
        "Stragglers become ten times as slow, losses take along what they had in hand, and what "
        "joins does as much as an old one; each befalls a tenth of the workers. Time lost is "
        "against the ideal: nobody ever waits, nothing is done twice and all end at one moment. "
        "All times but the last column's are simulated: there the real coordinator decides.",
    )
    result.tables.append(Table(SIMULATED, columns, rows, notes))
    for happens in HAPPENINGS:
        limit = ALONE if happens == QUIET else BESIDE
        text = f"{CROWDED}{happens}: time lost, %, the worst of all"
        result.promises.append(Promise(text, limit, False, interval([worst[happens]])))


def _find_limit(result: Result, costs: Mapping[str, Cost], quick: bool, progress: Progress) -> None:
    """How much later a job ends since all messages go through one client."""
    rows: list[tuple[object, ...]] = []
    for carrier, cost in costs.items():
        for workers in CROWDS:
            if quick and workers > HURRIED:
                break
            progress(f"{workers:,} simulated workers, with messages of {carrier}")
            found = crowd(workers, QUIET, 0, seconds=SECONDS, service=cost.narrowest)
            took = (1.0 + found.lost / 100.0) * SECONDS
            busy = 100.0 * found.messages * workers * cost.narrowest / took
            rows.append((f"{carrier}, {workers:,} workers", found.lost, busy))
    columns = ("", "time lost, %", "busy with messages, % of the time")
    notes = (
        f"The job of {SECONDS:.0f} s again, to whose workers nothing happens. Each message takes "
        "as long as was measured above, in the client's process or the scheduler's, whichever "
        "takes longer, one after the other.",
    )
    result.tables.append(Table(LIMIT, columns, rows, notes))
