# SPDX-License-Identifier: MIT
# What is learned, against the best of everything that could have been chosen.
#
# For each workload: chunk sizes and thread counts are swept, coarsely and then around the best; the
# best is compared with the job that learns, begun anew and after earlier runs, in fresh rounds in
# which they take turns. So luck in the sweep does not count.
"""`bench tune`."""

from __future__ import annotations

import asyncio
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aioktask import Job, max_threads, run_multithreaded
from aioktask.bench.measure import PAIRS, Contender, Promise, Result, alternate, ratio
from aioktask.bench.table import Table
from aioktask.bench.workloads import SUITE, Workload
from aioktask.engine.plan import leaf_size
from aioktask.job import Learned

__all__ = ["run"]

MILLI = 1e3
PLAIN, RULE, COLD, WARM = "plain", "padata's rule", "learned, first run", "learned, later"
# Runs before the later ones are timed.
RUNS_BEFORE = 8
SWEEP_ROUNDS = 3
COARSE = 4
# A first run of at least so many seconds has had time to learn.
LONG = 0.5


@dataclass(frozen=True, slots=True)
class Choice:
    """A fixed chunk size and number of threads."""

    chunk: int
    threads: int

    def __str__(self) -> str:
        return f"{self.chunk} x {self.threads}"


def run(
    quick: bool, progress: Callable[[str], object], only: frozenset[str] | None = None
) -> Result:
    """Compare what is learned with the best of a sweep, on the suite or some of it."""
    result = Result("tune", quick)
    summary: list[tuple[object, ...]] = []
    with asyncio.Runner() as runner:
        for name, make in SUITE.items():
            if only is None or name in only:
                progress(name)
                with make(0.01 if quick else 1.0) as workload:
                    summary.append(_compare(result, name, workload, runner, quick))
    headers = ("", "plain, ms", RULE, "best of the sweep", "", COLD, WARM, "chose")
    notes = (
        "Speeds, plain = 1. The best is a chunk size in units and a number of threads, by sweep.",
        f"Of a first run nothing is remembered; later means after {RUNS_BEFORE} runs.",
    )
    result.tables.insert(0, Table("Chunk sizes and threads, learned", headers, summary, notes))
    return result


def _compare(
    result: Result, name: str, workload: Workload, runner: asyncio.Runner, quick: bool
) -> tuple[object, ...]:
    learned: list[Learned] = []

    def contender(title: str, **how: Any) -> Contender:
        job = _job(workload, title if how.get("remember") is False else name, **how)

        def once() -> None:
            learned[:] = [runner.run(run_multithreaded(job)).learned]

        return Contender(title, once, before=workload.before)

    stop = workload.start + workload.size
    whole = functools.partial(workload.work, workload.start, stop)
    plain = Contender(PLAIN, whole, before=workload.before)
    rounds = 1 if quick else SWEEP_ROUNDS
    sweep: dict[str, Sequence[float]] = {}
    choices: dict[str, Choice] = {}
    asked = _coarse(workload)
    while asked:
        fixed = [contender(str(each), chunk=each.chunk, max_threads=each.threads) for each in asked]
        choices |= {str(each): each for each in asked}
        sweep |= alternate(fixed, rounds)
        best = choices[min(sweep, key=lambda each: statistics.median(sweep[each]))]
        asked = [each for each in _around(workload, best) if str(each) not in choices]
    result.samples[f"{name}, sweep"] = sweep
    warm = contender(WARM)
    for _ in range(2 if quick else RUNS_BEFORE):
        if warm.before is not None:
            warm.before()
        warm.run()
    rival = contender(str(best), chunk=best.chunk, max_threads=best.threads)
    contenders = [
        plain,
        contender(RULE, learn="nothing"),
        rival,
        contender(COLD, remember=False),
        warm,
    ]
    times = alternate(contenders, 2 if quick else PAIRS, warm_ups=0)
    result.samples[name] = times
    warm.run()  # to ask it what it chose
    _promise(result, name, times, rival.name)
    speeds = {each: ratio(times[PLAIN], times[each]) for each in times}
    return (
        name,
        MILLI * statistics.median(times[PLAIN]),
        speeds[RULE].median,
        speeds[rival.name].median,
        rival.name,
        speeds[COLD].median,
        speeds[WARM].median,
        f"{learned[0].chunk} x {learned[0].threads}",
    )


def _promise(result: Result, name: str, times: Mapping[str, Sequence[float]], best: str) -> None:
    def of(rival: str, ours: str, limit: float, text: str) -> None:
        reached = ratio(times[rival], times[ours])
        result.promises.append(Promise(f"{name}: {text}", limit, True, reached))

    of(best, WARM, 0.95, "later runs, of the best of the sweep")
    if statistics.median(times[COLD]) >= LONG:
        of(best, COLD, 0.90, "a first run, of the best of the sweep")
    of(PLAIN, WARM, 0.97, "later runs, of plain")
    of(PLAIN, COLD, 0.97, "a first run, of plain")


def _job(workload: Workload, name: str, **how: Any) -> Job[Any]:
    if workload.reduce is not None:
        how["reduce"] = workload.reduce
    return Job(
        workload.work,
        workload.size,
        start=workload.start,
        align=workload.align,
        name=name,
        **how,
    )


def _coarse(workload: Workload) -> list[Choice]:
    """Every fourth power of two from the least size up to an even share, and that."""
    counts = [1]
    while counts[-1] < max_threads():
        counts.append(min(2 * counts[-1], max_threads()))
    found = []
    for threads in counts:
        if workload.reduce is not None:  # its leaves are given
            found.append(Choice(leaf_size(_job(workload, "leaf")), threads))
            continue
        grain = workload.align
        even = -(-workload.size // (threads * grain)) * grain
        chunk = grain * max(workload.least // grain, 1)
        while chunk < even:
            found.append(Choice(chunk, threads))
            chunk *= COARSE
        found.append(Choice(even, threads))
    return found


def _around(workload: Workload, best: Choice) -> list[Choice]:
    """Half and twice the best size."""
    if workload.reduce is not None:
        return []
    sizes = [best.chunk * 2, best.chunk // 2 // workload.align * workload.align]
    return [
        Choice(chunk, best.threads)
        for chunk in sizes
        if workload.align <= chunk <= -(-workload.size // best.threads) + workload.align
    ]
