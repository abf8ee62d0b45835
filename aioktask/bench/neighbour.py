# SPDX-License-Identifier: MIT
# What other processes notice of a job, and the job of them.
#
# A neighbour for each CPU does a lap, a fixed amount of work: alone, and beside a process that runs
# a job again and again, at several nice values, in turns. The job runs alone for a while before
# each lap and after it, so what it gets done beside the neighbours is compared with what it did in
# the same second; and it is seen how soon it is back at full speed.
"""`bench neighbour`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from aioktask.bench.processes import Child, Laps, cpus, laps, spinning, workers
from aioktask.bench.promises import PAIRS, Promise, Result
from aioktask.bench.sines import SIZE
from aioktask.bench.timeline import Timeline
from aioktask.figures.measure import Contender, alternate, interval, ratio
from aioktask.figures.table import Table

__all__ = ["Meeting", "Times", "meeting", "run"]

MILLI, MEGA = 1e3, 1e-6
NICES = (0, 10, 19)
BACKGROUND = 19
ALONE = "neighbours alone"
# A neighbour beside a job of nice 19 takes so much longer, at most.
SLOWER = 1.05
# Back at full speed: at such a share of what it was, over a window of so many seconds.
BACK, WINDOW = 0.9, 0.1
LENT_ROUNDS = 7

Progress = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Times:
    """How long what takes.

    Attributes:
        lead: The job alone, before the neighbours begin; its speed is that of the second half.
        lap: A lap of the neighbours, alone.
        tail: The job alone, after they have ended.
    """

    lead: float
    lap: float
    tail: float


@dataclass(frozen=True, slots=True)
class Meeting:
    """Neighbours and a job.

    Attributes:
        lap: Seconds that the neighbours took, the mean of them.
        before: Elements a second of the job, alone.
        beside: The same beside the neighbours.
        back: Seconds from the end of the last neighbour until the job is at full speed; as long as
            was watched if it was not.
    """

    lap: float
    before: float
    beside: float
    back: float


def run(quick: bool, progress: Progress) -> Result:
    """Neighbours and jobs, each beside the other; and a background job that someone waits for."""
    result = Result("neighbour", quick)
    times = Times(0.3, 0.1, 0.15) if quick else Times(0.5, 0.6, 0.8)
    rounds = 1 if quick else PAIRS
    with workers(1) as ([worker], _):
        with laps(times.lap) as neighbours:
            progress(f"neighbours and jobs: {rounds} rounds")
            alone, met = _meet(worker, neighbours, times, rounds)
            _tell(result, neighbours, alone, met, times)
        progress("a background job that someone waits for")
        _lent(result, worker, quick)
    return result


def _meet(
    worker: Child, neighbours: Laps, times: Times, rounds: int
) -> tuple[list[float], Mapping[int, Sequence[Meeting]]]:
    """Laps alone, and meetings by the job's nice, one a round that counts."""
    alone: list[float] = []
    met: dict[int, list[Meeting]] = {nice: [] for nice in NICES}

    def lap_alone() -> None:
        neighbours.begin()
        alone.append(statistics.mean(ended - began for began, ended in neighbours.end()))

    def meet(nice: int) -> None:
        worker.ask(do="repeat", nice=nice, size=4 * SIZE)
        time.sleep(times.lead)
        neighbours.begin()
        ran = neighbours.end()
        time.sleep(times.tail)
        worker.ask(do="stop")
        answer = worker.answer()
        met[nice].append(meeting(Timeline(answer["times"], answer["done"]), ran, times))

    contenders = [Contender(ALONE, lap_alone)]
    contenders += [Contender(f"nice {nice}", partial(meet, nice)) for nice in NICES]
    warm_ups = min(rounds - 1, 1)
    alternate(contenders, rounds, warm_ups=warm_ups)
    return alone[warm_ups:], {nice: found[warm_ups:] for nice, found in met.items()}


def meeting(job: Timeline, ran: Sequence[tuple[float, float]], times: Times) -> Meeting:
    """What came of it.

    Args:
        job: What the job did.
        ran: When each neighbour began and ended.
        times: How long the job was alone, before and after.
    """
    first, last = min(began for began, _ in ran), max(ended for _, ended in ran)
    before = job.rate(first - times.lead / 2, first)
    # While all of them ran; from the first to the last if some had ended before others began.
    begin, end = max(began for began, _ in ran), min(ended for _, ended in ran)
    if begin >= end:
        begin, end = first, last
    back = job.reaches(BACK * before, since=last, window=min(WINDOW, times.tail / 2))
    lap = statistics.mean(ended - began for began, ended in ran)
    return Meeting(lap, before, job.rate(begin, end), times.tail if back is None else back)


def _tell(
    result: Result,
    neighbours: Laps,
    alone: Sequence[float],
    met: Mapping[int, Sequence[Meeting]],
    times: Times,
) -> None:
    laps_of = {nice: [each.lap for each in found] for nice, found in met.items()}
    slower = {nice: ratio(laps_of[nice], alone) for nice in met}
    rows: list[tuple[object, ...]] = [
        (ALONE, MILLI * statistics.median(alone), 1, None, None, None)
    ]
    for nice, found in met.items():
        # On a machine that is too busy the job may have done nothing before.
        shares = [each.beside / each.before for each in found if each.before]
        rows.append(
            (
                f"beside a job at nice {nice}",
                MILLI * statistics.median(laps_of[nice]),
                slower[nice],
                MEGA * statistics.median(each.before for each in found),
                interval(shares) if shares else None,
                interval(MILLI * each.back for each in found),
            )
        )
    headers = (
        "",
        "neighbour, ms",
        "alone = 1",
        "job alone, million/s",
        "beside, alone = 1",
        "back after, ms",
    )
    notes = (
        f"{cpus()} neighbours, one for each CPU, with a fixed amount of work (a loop in "
        f"{neighbours.written_in}); the job is in another process, wants every CPU, and runs again "
        "and again. It is alone before and after the neighbours.",
        f"Back: from the end of the last neighbour to the end of the first {MILLI * WINDOW:.0f} ms "
        f"in which the job has {BACK} of the speed that it had before; {MILLI * times.tail:.0f} ms "
        "are watched.",
    )
    result.tables.append(Table("Neighbours and a job", headers, rows, notes))
    result.samples["seconds of a neighbour"] = {
        ALONE: alone,
        **{f"nice {nice}": found for nice, found in laps_of.items()},
    }
    for what in ("before", "beside", "back"):
        result.samples[f"the job: {what}"] = {
            f"nice {nice}": [getattr(each, what) for each in found] for nice, found in met.items()
        }
    text = f"a neighbour beside a job at nice {BACKGROUND}: its time, alone = 1"
    result.promises.append(Promise(text, SLOWER, False, slower[BACKGROUND]))


def _lent(result: Result, worker: Child, quick: bool) -> None:
    """How long a background job takes that someone awaits."""
    size = SIZE // (64 if quick else 8)
    rounds = 1 if quick else LENT_ROUNDS
    took: dict[str, list[float]] = {}

    def contender(name: str, waiter: int) -> Contender:
        took[name] = []

        def once() -> None:
            worker.ask(do="once", nice=BACKGROUND, size=size, waiter=waiter)
            took[name].append(worker.answer()["seconds"])

        return Contender(name, once)

    alternate([contender("alone on the machine", BACKGROUND)], rounds)
    low, high = f"awaited at nice {BACKGROUND}", "awaited at nice 0"
    with spinning():
        alternate([contender(low, BACKGROUND), contender(high, 0)], rounds)
    counted = {name: seconds[1:] for name, seconds in took.items()}
    rows = [
        (
            name,
            interval(MILLI * each for each in seconds),
            MILLI * max(seconds),
            ratio(counted[low], seconds) if name == high else None,
        )
        for name, seconds in counted.items()
    ]
    headers = ("", "until it is done, ms", "longest, ms", "speed, of nice 19")
    notes = (
        f"A job of {size:,} elements, submitted at nice {BACKGROUND}, {rounds} times each; awaited "
        f"beside a CPU-bound process for each CPU, at the waiter's nice. What waits at nice 0 "
        "lends its priority to one helper at a time.",
    )
    result.tables.append(Table("A background job that someone waits for", headers, rows, notes))
    result.samples["seconds of a background job"] = counted
