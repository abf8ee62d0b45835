# SPDX-License-Identifier: MIT
# How fast one function is over chunk sizes and threads, beside what the engine chooses by itself.
#
# All are compared with one plain call over the range, within a round. The best is chosen on those
# rounds, and the engine is compared with it on fresh ones, or luck would count. Probes and a first
# round say how much there is time for; whatever is left out is said in a note.
"""The curve of a function over chunk sizes and threads."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

from aioktask import Job, Learned, failure, max_threads, run_multithreaded
from aioktask.engine.ranges.plan import most_threads, round_up
from aioktask.figures.measure import Contender, Interval, alternate, ratio
from aioktask.tune.ladder import Cell, beside, cell_name, cell_of, cells_of, ladder, scheme
from aioktask.tune.target import TargetError, copy_of, told

__all__ = ["BEST", "COLD", "ENOUGH", "PLAIN", "WARM", "Curve", "measure", "time_text"]

PLAIN = "one plain call"
BEST = "best of the sweep"
COLD = "the engine, cold"
WARM = "the engine, warm"

# Seconds of a call that tells what a unit costs, and of one that need not be repeated.
PROBE = 5e-3
LONG_PROBE = 1.0
# Rounds where nothing else is asked for: as many of these as there is time for. With fewer than 6
# there are no 95% intervals.
LEAST_ROUNDS, ENOUGH, MOST_ROUNDS = 3, 6, 15
# Runs before the engine counts as warm.
TO_LEARN = 5
# Rounds that are kept free for the comparison in the end, and what they and the learning before
# them are: passes of one plain call, and of jobs.
LAST_ROUNDS = ENOUGH + 1
LAST_JOBS = 3 * LAST_ROUNDS + TO_LEARN + 1
# A range whose units cost so many times what the probes said is planned anew.
SURPRISE = 1.5

Progress = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Curve:
    """What was found.

    Attributes:
        name: What was measured, as it was asked for.
        job: The job it is about: a part of the one asked for where that takes too long.
        size: Units of the one asked for.
        sweep: Seconds of a pass, by contender, rounds in parallel: `PLAIN`, and every cell.
        final: The same on fresh rounds: `PLAIN`, `BEST`, `COLD` and `WARM`.
        best: The fastest cell of the sweep.
        cold: What the engine learned within the last run that knew nothing.
        warm: What it knew after the last of many.
        notes: What a reader has to know.
    """

    name: str
    job: Job[Any]
    size: int
    sweep: Mapping[str, Sequence[float]]
    final: Mapping[str, Sequence[float]]
    best: Cell
    cold: Learned
    warm: Learned
    notes: tuple[str, ...]

    def cells(self) -> list[Cell]:
        """What was swept, by size and then by threads."""
        return sorted(cell for name in self.sweep if (cell := cell_of(name)) is not None)

    def speed(self, cell: Cell) -> Interval:
        """Of a cell of the sweep, one plain call being 1."""
        return ratio(self.sweep[PLAIN], self.sweep[cell_name(*cell)])


def measure(
    name: str,
    job: Job[Any],
    *,
    seconds: float = 30.0,
    rounds: int | None = None,
    progress: Progress = lambda line: None,
    clock: Callable[[], float] = perf_counter,
) -> Curve:
    """Measure the curve of a job's function in about the time given.

    Args:
        name: What to call it in errors and in the report.
        job: What to run. Its function is called for the same ranges again and again.
        seconds: How long all may take. It takes longer where a few chunks do.
        rounds: How often each contender runs; by default as often as there is time for, 3 to 15.
        progress: Called with a line about what is measured now.
        clock: Seconds.

    Raises:
        TargetError: The function raised; the message names the range.
    """
    with asyncio.Runner() as runner:
        subject = _Subject(name, job, runner, clock)
        return _measured(subject, _Budget(seconds, rounds, clock(), clock), progress)


@dataclass(slots=True)
class _Subject:
    """What is measured, and how it is run and timed."""

    name: str
    job: Job[Any]
    runner: asyncio.Runner
    clock: Callable[[], float]

    @property
    def grain(self) -> int:
        return round_up(self.job.min_chunk, self.job.align)

    @property
    def threads(self) -> int:
        return min(max_threads(), most_threads(self.job))

    def cells(self, sizes: Iterable[int]) -> list[Cell]:
        return cells_of(sizes, self.job.size, self.grain, self.threads)

    def timed(self, units: int) -> float:
        """Seconds of one plain call over so many units from the start."""
        began = self.clock()
        self.call(units)
        return self.clock() - began

    def call(self, units: int) -> None:
        start = self.job.start
        try:
            self.job.bind().fn(start, start + units)
        except Exception as error:
            raise self._raised(start, start + units, error) from error

    def run(self, job: Job[Any]) -> Learned:
        try:
            return self.runner.run(run_multithreaded(job)).learned
        except Exception as error:
            chunk = failure(error).chunk
            if chunk is None:
                raise
            raise self._raised(chunk.start, chunk.stop, error) from error

    def _raised(self, start: int, stop: int, error: BaseException) -> TargetError:
        return TargetError(f"{self.name}({start}, {stop}) raised {told(error)}")

    def alternate(
        self, contenders: Sequence[Contender], rounds: int, warm_ups: int = 1
    ) -> Mapping[str, Sequence[float]]:
        return alternate(contenders, rounds, warm_ups=warm_ups, clock=self.clock)

    def plain(self) -> Contender:
        return Contender(PLAIN, lambda: self.call(self.job.size))

    def fixed(self, cell: Cell) -> Contender:
        job = copy_of(self.job, chunk=cell[0], max_threads=cell[1], learn=None)
        return Contender(cell_name(*cell), lambda: self.run(job))


class _Learner:
    """Runs the job as it is and keeps what the last run learned."""

    def __init__(self, subject: _Subject, remember: bool) -> None:
        name = f"tune {subject.name}"  # a memory of its own
        self._job = copy_of(subject.job, remember=remember, name=name)
        self._subject = subject
        self.run()

    def run(self) -> None:
        self.learned = self._subject.run(self._job)


@dataclass(frozen=True, slots=True)
class _Budget:
    """How long all may take, and how often each contender is to run if that was said."""

    seconds: float
    asked: int | None
    began: float
    clock: Callable[[], float]

    def rounds(self, each: float, keep: float = 0.0) -> int:
        """How many rounds of so many seconds there is time for when some are kept for later."""
        if self.asked is not None:
            return self.asked
        left = self.seconds - (self.clock() - self.began) - keep
        least = LEAST_ROUNDS if LEAST_ROUNDS * each <= self.seconds else 1
        return min(max(int(left / max(each, 1e-9)), least), MOST_ROUNDS)


def _measured(subject: _Subject, budget: _Budget, progress: Progress) -> Curve:
    size, notes = subject.job.size, list[str]()
    progress(f"what a unit costs: calls of {subject.name} from {subject.job.start:,} on")
    cost, factor = _fitted(subject, budget)
    if subject.job.size < size:
        notes.append(
            f"Measured on the first {subject.job.size:,} of {size:,} units: one call for all of "
            f"them would take about {time_text(cost * size)}, too long to be repeated in "
            f"{budget.seconds:.4g} s. --seconds gives more time, --start and SIZE choose another "
            "part."
        )
    if factor > 2:
        notes.append("Every other chunk size was left out, but not those beside the best.")
    once = cost * subject.job.size
    progress(f"a first round; one plain call takes {time_text(once)}")
    contenders, first = _contenders(subject, cost, factor)
    last_round = once + 3 * min(first)
    keep = LAST_ROUNDS * last_round + TO_LEARN * min(first)
    swept = budget.rounds(once + sum(first), keep)
    pairs = f"{len(contenders)} pairs of chunk size and threads"
    progress(f"{swept} rounds of {pairs}, {time_text(once + sum(first))} each")
    sweep = subject.alternate([subject.plain(), *contenders.values()], swept, warm_ups=0)
    best = max(contenders, key=lambda cell: ratio(sweep[PLAIN], sweep[cell_name(*cell)]).median)
    progress(f"the engine by itself, against {cell_name(*best)}")
    cold, warm = _Learner(subject, remember=False), _Learner(subject, remember=True)
    for _ in range(TO_LEARN - 1):
        warm.run()
    compared = budget.rounds(last_round, last_round)
    fresh = [subject.plain(), replace(contenders[best], name=BEST)]
    fresh += [Contender(COLD, cold.run), Contender(WARM, warm.run)]
    final = subject.alternate(fresh, compared)
    fewest = min(swept, compared)
    if fewest < ENOUGH:
        notes.append(
            f"Only {fewest} {'round' if fewest == 1 else 'rounds'}: what stands for an interval "
            "is the smallest and the largest value."
        )
    return Curve(
        name=subject.name,
        job=subject.job,
        size=size,
        sweep=sweep,
        final=final,
        best=best,
        cold=cold.learned,
        warm=warm.learned,
        notes=tuple(notes),
    )


def _contenders(
    subject: _Subject, cost: float, factor: int
) -> tuple[dict[Cell, Contender], list[float]]:
    """What takes turns, and how long each took the first time, or would have."""
    sizes = ladder(subject.job.size, subject.grain, cost, subject.threads, factor)
    contenders = {cell: subject.fixed(cell) for cell in subject.cells(sizes)}
    look = subject.alternate([*contenders.values()], 1, warm_ups=0)
    first = [look[cell_name(*cell)][0] for cell in contenders]
    if factor > 2:
        best = min(contenders, key=lambda cell: look[cell_name(*cell)][0])
        more = subject.cells(beside(best[0], subject.grain, sizes))
        contenders |= {cell: subject.fixed(cell) for cell in more}
        first += [statistics.mean(first)] * len(more)
    return contenders, first


def _fitted(subject: _Subject, budget: _Budget) -> tuple[float, int]:
    """Cut the job to what fits into the time: what a unit costs, and how wide the ladder is."""
    cost = _probed(subject)
    while True:
        made = scheme(
            subject.job.size,
            subject.grain,
            cost,
            subject.threads,
            seconds=budget.seconds,
            rounds=1 + (budget.asked or LEAST_ROUNDS),  # there is a first one
            plain=LAST_ROUNDS,
            jobs=LAST_JOBS,
        )
        if made.units < subject.job.size:
            subject.job = copy_of(subject.job, size=made.units)
        took = _least(subject, made.units, subject.timed(made.units))
        if took < SURPRISE * cost:
            return took, made.factor
        cost = took  # the probes saw the cheap end of the range


def _probed(subject: _Subject) -> float:
    """Seconds of a unit, by calls that become longer until the clock can tell."""
    units = min(subject.grain, subject.job.size)
    while True:
        took = subject.timed(units)
        if took >= PROBE or units == subject.job.size:
            return _least(subject, units, took)
        units = min(2 * units, subject.job.size)


def _least(subject: _Subject, units: int, took: float) -> float:
    """Seconds of a unit in a call of so many; the first one may have paid for what is made once."""
    if took < LONG_PROBE:
        took = min(took, subject.timed(units))
    return max(took, 1e-9) / units


def time_text(seconds: float) -> str:
    """Seconds in a unit that suits them.

    >>> time_text(90), time_text(0.25), time_text(0.00002)
    ('1.5 min', '250 ms', '20 us')
    """
    for least, factor, unit in ((60, 1 / 60, "min"), (1, 1, "s"), (1e-3, 1e3, "ms")):
        if seconds >= least:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
