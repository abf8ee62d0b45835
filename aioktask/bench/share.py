# SPDX-License-Identifier: MIT
# Several processes with jobs that each want every CPU, as the workers of a server on one machine.
#
# One process alone and all of them take turns; what each gets done is told by itself, over time by
# a clock that they share. They share one set of slots, of this run's name. At last one of them is
# killed while it holds slots, and it is seen how soon the others make up for it.
"""`bench share`."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from aioktask.bench.processes import Child, cpus, workers
from aioktask.bench.promises import PAIRS, Promise, Result
from aioktask.bench.timeline import Timeline, together
from aioktask.engine.machine.slots import slots_path
from aioktask.figures.measure import Contender, Interval, alternate, interval, ratio
from aioktask.figures.table import Table

__all__ = ["Stretch", "Times", "run", "stretch"]

MEGA, MILLI = 1e-6, 1e3
PROCESSES = 4
# Elements of one run of a job: about 20 ms on two CPUs.
RUN = 1 << 22
# What is promised: of one process alone, of a fair share, seconds.
AT_LEAST, LEAST, MOST, BACK_WITHIN = 0.95, 0.9, 1.1, 1.0
# Slots are back when the others do so much of what one process does alone, over so many seconds.
BACK, WINDOW = 0.9, 0.25
KILLS = 5

Progress = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Stretch:
    """What processes did in the time in which all of them ran.

    Attributes:
        rates: Elements a second, of each.
        cpu: Elements a second of helpers' CPU time, of all.
        wall: The same of helpers' wall time.
    """

    rates: tuple[float, ...]
    cpu: float
    wall: float

    @property
    def rate(self) -> float:
        """Elements a second, of all."""
        return sum(self.rates)

    @property
    def shares(self) -> list[float]:
        """What each did, of an even share; 0 where nothing was done."""
        even = self.rate / len(self.rates) or 1.0
        return [rate / even for rate in self.rates]


@dataclass(frozen=True, slots=True)
class Times:
    """How long what takes, in seconds.

    Attributes:
        alone: One process.
        together: All of them.
        settle: From the begin of either until work counts: until jobs have their threads.
    """

    alone: float = 1.5
    together: float = 2.5
    settle: float = 0.2


@dataclass(slots=True)
class _Found:
    alone: list[Stretch] = field(default_factory=list)
    together: list[Stretch] = field(default_factory=list)


def run(quick: bool, progress: Progress) -> Result:
    """One process alone and four together; then one is killed."""
    result = Result("share", quick)
    rounds = 1 if quick else PAIRS
    name = f"bench-{os.getpid()}"
    environ = {"AIOKTASK_SHARE": name}
    with _tidied(name):
        with workers(PROCESSES, environ) as (children, _):
            progress(f"{PROCESSES} processes, alone and together: {rounds} rounds")
            found = _alternate(children, rounds, Times(0.2, 0.3, 0.0) if quick else Times())
            _tell(result, found)
        full = statistics.median(each.rate for each in found.alone)
        kills = 1 if quick else KILLS
        progress(f"kill -9 of one: {kills} times")
        back = list(_killed(environ, kills, full, 0.2 if quick else 1.0, 0.5 if quick else 2.0))
    _tell_killed(result, back)
    return result


@contextmanager
def _tidied(name: str) -> Iterator[None]:
    """The file of the slots is gone afterwards."""
    try:
        yield
    finally:
        slots_path(name).unlink(missing_ok=True)


def _alternate(children: Sequence[Child], rounds: int, times: Times) -> _Found:
    found = _Found()

    def alone() -> None:
        child = children[len(found.alone) % len(children)]
        found.alone.append(stretch(_ran([child], times.alone), times.settle))

    def all_of_them() -> None:
        found.together.append(stretch(_ran(children, times.together), times.settle))

    warm_ups = min(rounds - 1, 1)
    contenders = [Contender("alone", alone), Contender("together", all_of_them)]
    alternate(contenders, rounds, warm_ups=warm_ups)
    return _Found(found.alone[warm_ups:], found.together[warm_ups:])


def _ran(children: Sequence[Child], seconds: float) -> list[Mapping[str, object]]:
    """What the workers tell after they ran for so long."""
    for child in children:
        child.ask(do="repeat", nice=0, size=RUN, runs=1)
    time.sleep(seconds)
    return _stopped(children)


def _stopped(children: Sequence[Child]) -> list[Mapping[str, object]]:
    for child in children:
        child.ask(do="stop")
    return [child.answer() for child in children]


def stretch(told: Sequence[Mapping[str, object]], settle: float) -> Stretch:
    """What workers did, from what they tell of it: see `worker.repeat`."""
    lines = [_line(each) for each in told]
    start, stop = max(line.times[0] for line in lines), min(line.times[-1] for line in lines)
    start += settle
    ended = sum(_number(each, "ended") for each in told)
    cpu, wall = (sum(_number(each, what) for each in told) for what in ("cpu_time", "busy"))
    return Stretch(
        tuple(line.rate(start, stop) for line in lines),
        ended / cpu,
        ended / wall,
    )


def _line(told: Mapping[str, object]) -> Timeline:
    times, done = told["times"], told["done"]
    assert isinstance(times, list)
    assert isinstance(done, list)
    return Timeline(times, done)


def _number(told: Mapping[str, object], what: str) -> float:
    value = told[what]
    assert isinstance(value, int | float)
    return value


def _tell(result: Result, found: _Found) -> None:
    alone, all_four = found.alone, found.together
    of_each = [[each.shares[at] for each in all_four] for at in range(PROCESSES)]
    rows: list[tuple[object, ...]] = [_row("one process alone", alone, None)]
    rows.append(_row(f"{PROCESSES} processes together", all_four, None))
    for at, shares in enumerate(of_each):
        rate = MEGA * statistics.median(each.rates[at] for each in all_four)
        rows.append((f"  process {at + 1} of them", rate, None, None, interval(shares)))
    headers = ("", "million/s", "a second of CPU time", "of wall time", "of an even share")
    notes = (
        f"Each process has jobs that want every CPU ({cpus()}), one after the other, at the "
        "default settings; all share one set of slots. Work in million elements, a second; of CPU "
        "time and of wall time: of the helpers, while they serve a job.",
    )
    title = f"{PROCESSES} processes that share the machine"
    result.tables.append(Table(title, headers, rows, notes))
    result.samples["elements a second"] = {
        "alone": [each.rate for each in alone],
        **{f"process {at + 1}": [each.rates[at] for each in all_four] for at in range(PROCESSES)},
    }
    result.samples["elements a second of helpers' CPU time"] = {
        "alone": [each.cpu for each in alone],
        "together": [each.cpu for each in all_four],
    }
    least = min(of_each, key=statistics.median)
    most = max(of_each, key=statistics.median)
    text = f"{PROCESSES} processes: work done"
    for what, over, under in (
        ("in all", [each.rate for each in all_four], [each.rate for each in alone]),
        (
            "a second of helpers' CPU time",
            [each.cpu for each in all_four],
            [each.cpu for each in alone],
        ),
    ):
        told = f"{text} {what}, of one process alone"
        result.promises.append(Promise(told, AT_LEAST, True, ratio(over, under)))
    result.promises += [
        Promise(f"{text} by the one that does least, of a quarter", LEAST, True, interval(least)),
        Promise(f"{text} by the one that does most, of a quarter", MOST, False, interval(most)),
    ]


def _row(name: str, found: Sequence[Stretch], share: Interval | None) -> tuple[object, ...]:
    rates = interval(MEGA * each.rate for each in found)
    cpu = statistics.median(each.cpu for each in found)
    wall = statistics.median(each.wall for each in found)
    return (name, rates, MEGA * cpu, MEGA * wall, share)


# kill -9


def _crowd() -> int:
    """So many processes that each has a slot of its own, but at least two."""
    return max(min(PROCESSES, cpus()), 2)


def _killed(
    environ: Mapping[str, str], kills: int, full: float, lead: float, tail: float
) -> Iterator[float]:
    """Seconds from each kill until the others do what one process alone does, as long at most.

    Args:
        environ: With the name of the slots.
        kills: How often.
        full: Elements a second of one process alone.
        lead: Seconds for which all run before.
        tail: Seconds for which the others are watched.
    """
    with workers(0, environ) as (there, one_more):
        for _ in range(kills):
            while len(there) < _crowd():
                there.append(one_more())
            for child in there:
                child.ask(do="repeat", nice=0, size=RUN)
            time.sleep(lead)
            victim = there.pop(0)
            when = time.monotonic()
            victim.kill()
            time.sleep(tail)
            others = together([_line(each) for each in _stopped(there)])
            back = others.reaches(BACK * full, since=when, window=WINDOW)
            yield tail if back is None else back


def _tell_killed(result: Result, back: Sequence[float]) -> None:
    rows = [(f"one of {_crowd()} is killed", interval(MILLI * each for each in back))]
    notes = (
        f"Until the others, together, do {BACK} of what one process alone did, over "
        f"{MILLI * WINDOW:.0f} ms, to the end of these; {len(back)} times. There are as many "
        "processes as CPUs, if not more than four, so that each has slots to leave.",
    )
    title = "Slots of a process that is killed"
    result.tables.append(Table(title, ("", "back after, ms"), rows, notes))
    result.samples["seconds until the slots are back"] = {"killed": list(back)}
    text = "slots of a process that is killed: seconds until they are back"
    result.promises.append(Promise(text, BACK_WITHIN, False, interval(back)))
