# SPDX-License-Identifier: MIT
# What is learned, against the best of everything that could have been chosen.
#
# For each workload: chunk sizes and thread counts are swept, coarsely and then around the best; the
# best is compared with the job that learns, begun anew and after earlier runs, in fresh rounds in
# which they take turns. So luck in the sweep does not count. Beside the expression, in the same
# rounds, stands what one would compile; and beside some jobs a short one that waits for its turn.
"""`bench tune`."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aioktask import Job, Learned, max_threads, run_multithreaded
from aioktask.bench import chosen
from aioktask.bench.beside import SERVED, Waits, lateness, short_jobs, waits_table
from aioktask.bench.compiled import Compiled
from aioktask.bench.promises import PAIRS, Promise, Result
from aioktask.bench.workloads import SUITE, Workload
from aioktask.engine.ranges.plan import leaf_size
from aioktask.figures.measure import Contender, alternate, interval, ratio
from aioktask.figures.table import Table
from aioktask.tune.ladder import (
    Cell,
    beside,
    cell_name,
    cells_of,
    ladder,
    thread_counts,
)

__all__ = ["LONG_JOBS", "run"]

MILLI = 1e3
PLAIN, RULE, COLD, WARM = "plain", "padata's rule", "learned, first run", "learned, later"
NUMEXPR, PRANGE, KERNEL = "numexpr", "numba, prange", "aioktask, numba's loop without the GIL"
# Runs before the later ones are timed.
RUNS_BEFORE = 8
SWEEP_ROUNDS = 3
COARSE = 4
# What a first run is promised, of the best, by the seconds of plain: it has the time to learn.
FIRST_RUNS = ((0.5, 0.90), (0.1, 0.75))
# Seconds of plain from which on something is promised: below, starting threads would count.
LONG_ENOUGH = 0.010
# Beside these a short job waits for its turn; beside the last for the GIL, so nothing is promised.
HOLDS_GIL = "pure Python, holds the GIL"
LONG_JOBS = ("expression", "fill", "sort rows", HOLDS_GIL)
SHORT_JOBS = 100
# Two opposite curves, for the picture.
PICTURED = ("expression", "fill")
LATENESS_RUNS = 5

Progress = Callable[[str], object]


@dataclass(slots=True)
class Bench:
    """One workload on one loop: makes contenders, and knows what each learned last."""

    name: str
    workload: Workload
    runner: asyncio.Runner
    quick: bool
    learned: dict[str, Learned] = field(default_factory=dict)

    @property
    def plain(self) -> Contender:
        """One call over everything."""
        asked = self.workload
        whole = partial(asked.work, asked.start, asked.start + asked.size)
        return Contender(PLAIN, whole, before=asked.before)

    def job(self, work: Callable[[int, int], Any] | None = None, **how: Any) -> Job[Any]:
        """All of the workload, or `work` over the same range."""
        asked = self.workload
        if asked.reduce is not None:
            how["reduce"] = asked.reduce
        how.setdefault("name", f"bench tune, {self.name}")
        return Job(work or asked.work, asked.size, start=asked.start, align=asked.align, **how)

    def contender(self, title: str, **how: Any) -> Contender:
        """A job for which something is said, or nothing."""
        job = self.job(**how)

        def once() -> None:
            self.learned[title] = self.runner.run(run_multithreaded(job)).learned

        return Contender(title, once, before=self.workload.before)

    def cell(self, cell: Cell) -> Contender:
        """A job with a fixed chunk size and number of threads."""
        chunk, threads = cell
        return self.contender(cell_name(chunk, threads), chunk=chunk, max_threads=threads)

    def warmed(self, contender: Contender) -> Contender:
        """The contender, after runs from which later ones learn."""
        for _ in range(2 if self.quick else RUNS_BEFORE):
            if contender.before is not None:
                contender.before()
            contender.run()
        return contender

    def chose(self, title: str) -> str | None:
        """What the last run came to, as a cell's name."""
        found = self.learned.get(title)
        return None if found is None else cell_name(found.chunk, found.threads)


def run(quick: bool, progress: Progress, only: str = "") -> Result:
    """Compare what is learned with the best of a sweep, on the suite or some of it.

    Args:
        quick: Small workloads and few rounds, to see that it works.
        progress: Called with a line about what is measured now.
        only: Workloads without this in their names are left out.

    Raises:
        UnknownOperation: All are.
    """
    wanted = chosen(only, SUITE)
    result = Result("tune", quick)
    summary: list[tuple[object, ...]] = []
    waits: list[Waits] = []
    with asyncio.Runner() as runner:
        for name, make in SUITE.items():
            if name in wanted:
                with make(0.01 if quick else 1.0) as workload:
                    bench = Bench(name, workload, runner, quick)
                    summary.append(_compare(result, bench, progress))
                    if name in LONG_JOBS:
                        progress(f"{name}: short jobs beside it")
                        waits.append(_waits(bench))
                    del bench, workload  # they hold the memory
        if waits:
            alone = runner.run(short_jobs("nothing", None, 3 if quick else SHORT_JOBS))
            _served(result, [alone, *waits])
    result.tables.insert(0, _summary(summary))
    return result


def _compare(result: Result, bench: Bench, progress: Progress) -> tuple[object, ...]:
    name = bench.name
    progress(f"{name}: sweep")
    sweep, best = _sweep(bench)
    result.samples[f"{name}, sweep"] = sweep
    rounds = 2 if bench.quick else PAIRS
    progress(f"{name}: {rounds} rounds beside the best, {cell_name(*best)}")
    rival = bench.cell(best)
    contenders = [
        bench.plain,
        bench.contender(RULE, learn="nothing"),
        rival,
        bench.contender(COLD, remember=False),
        bench.warmed(bench.contender(WARM)),
    ]
    with _compiled(bench) as (peers, told):
        times = alternate([*contenders, *peers], rounds, warm_ups=1 if peers else 0)
        result.samples[name] = times
        rows = [_row(bench, each, times) for each in times]
        rows += [(peer, None, None, why) for peer, why in told.missing.items()]
        headers = ("", "ms", "speed, plain = 1", "chunk x threads")
        notes = (f"The best of {len(sweep)} in a sweep is {rival.name}.", *told.notes)
        if bench.workload.note:
            notes += (bench.workload.note,)
        result.tables.append(Table(name, headers, rows, notes))
        result.promises += _promises(name, times, rival.name)
        if peers:
            _lateness(result, bench, told)
    progress(f"{name}: " + "; ".join(map(_short, rows)))
    speed = {each: ratio(times[PLAIN], times[each]).median for each in times}
    of_best = {each: ratio(times[rival.name], times[each]).median for each in (COLD, WARM)}
    return (
        name,
        MILLI * statistics.median(times[PLAIN]),
        speed[RULE],
        speed[rival.name],
        rival.name,
        speed[COLD],
        speed[WARM],
        of_best[COLD],
        of_best[WARM],
        bench.chose(WARM),
    )


def _row(
    bench: Bench, title: str, times: Mapping[str, Sequence[float]]
) -> tuple[object, object, object, object]:
    speed = 1 if title == PLAIN else ratio(times[PLAIN], times[title])
    return (title, MILLI * statistics.median(times[title]), speed, bench.chose(title))


def _short(row: tuple[object, ...]) -> str:
    title, milli, *_, chose = row
    return f"{title} {milli:.0f} ms" if isinstance(milli, float) else f"{title} {chose}"


def _summary(rows: Sequence[tuple[object, ...]]) -> Table:
    headers = "plain, ms", "rule", "best", "", "first", "later", "first/best", "later/best", "chose"
    return Table(
        "Chunk sizes and threads, learned",
        ("", *headers),
        rows,
        (
            "Speeds, plain = 1; then what is learned against the best. Rule: padata's, four chunks "
            "a thread. Best: of a sweep over chunk sizes, in units, and numbers of threads.",
            "First: nothing is remembered, as in a fresh process. Later: after "
            f"{RUNS_BEFORE} runs, with what the last of them chose.",
        ),
    )


def _promises(name: str, times: Mapping[str, Sequence[float]], best: str) -> Iterator[Promise]:
    """What is promised about a workload that takes long enough."""

    def of(rival: str, ours: str, limit: float, text: str) -> Promise:
        return Promise(f"{name}: {text}", limit, True, ratio(times[rival], times[ours]))

    plain = statistics.median(times[PLAIN])
    if plain < LONG_ENOUGH:
        return
    yield of(best, WARM, 0.95, "later runs, of the best of the sweep")
    for long, limit in FIRST_RUNS:
        if plain >= long:
            yield of(best, COLD, limit, "a first run, of the best of the sweep")
            break
    yield of(PLAIN, WARM, 0.97, "later runs, of plain")
    yield of(PLAIN, COLD, 0.97, "a first run, of plain")
    if PRANGE in times and KERNEL in times:
        yield of(PRANGE, KERNEL, 0.95, f"{KERNEL}, of prange")


# the sweep


def _sweep(bench: Bench) -> tuple[dict[str, Sequence[float]], Cell]:
    """Times by cell, every fourth power of two first, then beside the best until it is the best."""
    rounds = 1 if bench.quick else SWEEP_ROUNDS
    plain = alternate([bench.plain], rounds)[PLAIN]  # which warms the memory up for all
    cells = _cells(bench, statistics.median(plain) / bench.workload.size)
    sweep: dict[str, Sequence[float]] = {}
    asked = dict.fromkeys(cells)
    while asked:
        sweep |= alternate([bench.cell(each) for each in asked], rounds, warm_ups=0)
        best = min(cells, key=lambda each: statistics.median(sweep[cell_name(*each)]))
        asked = dict.fromkeys(each for each in _around(bench, best) if each not in cells)
        cells += asked
    return sweep, best


def _cells(bench: Bench, cost: float) -> list[Cell]:
    """Sizes from about 10 us a chunk to an even share, with all numbers of threads.

    Args:
        bench: Whose workload is cut.
        cost: Seconds of a unit.
    """
    size, grain, most = bench.workload.size, bench.workload.align, max_threads()
    if bench.workload.reduce is not None:  # its leaves are given
        return [(leaf_size(bench.job()), threads) for threads in thread_counts(most)]
    return cells_of(ladder(size, grain, cost, most, COARSE), size, grain, most)


def _around(bench: Bench, best: Cell) -> list[Cell]:
    """Half and twice the best size, on as many threads."""
    if bench.workload.reduce is not None:
        return []
    chunk, threads = best
    grain = bench.workload.align
    even = -(-bench.workload.size // (threads * grain)) * grain
    return [(size, threads) for size in beside(chunk, grain, [even])]


# what one would compile


@dataclass(frozen=True, slots=True)
class Told:
    """The compiled rivals, which of them are missing, and what is to be said of them."""

    found: Compiled | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@contextmanager
def _compiled(bench: Bench) -> Iterator[tuple[list[Contender], Told]]:
    if bench.workload.compiled is None:
        yield [], Told()
        return
    with bench.workload.compiled() as found:
        peers, missing = [], {}
        for name, call in ((NUMEXPR, found.numexpr), (PRANGE, found.prange)):
            if isinstance(call, str):
                missing[name] = call
            else:
                peers.append(Contender(name, call))
        if isinstance(found.chunk, str):
            missing[KERNEL] = found.chunk
        else:
            peers.append(bench.warmed(bench.contender(KERNEL, work=found.chunk, name=KERNEL)))
        note = f"numba runs its threads by {found.layer}; numexpr, numba and aioktask have as many."
        yield peers, Told(found, missing, (note,) if found.layer else ())


def _lateness(result: Result, bench: Bench, told: Told) -> None:
    """How long the loop stands still while the expression is worked on."""
    found = told.found
    assert found is not None
    # The calls block whoever makes them, so also a loop: that is what is shown.
    ways: dict[str, Callable[[], Any]] = {"nothing": partial(asyncio.sleep, 0.1)}
    for name, call in ((NUMEXPR, found.numexpr), (PRANGE, found.prange)):
        if not isinstance(call, str):
            ways[name] = partial(_on_the_loop, call)
    ways[WARM] = partial(run_multithreaded, bench.job())
    if not isinstance(found.chunk, str):
        ways[KERNEL] = partial(run_multithreaded, bench.job(found.chunk, name=KERNEL))
    late: dict[str, list[float]] = {name: [] for name in ways}
    runs = 1 if bench.quick else LATENESS_RUNS
    for _ in range(runs):
        for name, way in ways.items():
            late[name].append(bench.runner.run(lateness(way)))
    rows = [(each, MILLI * max(late[each]), MILLI * statistics.median(late[each])) for each in late]
    headers = ("beside", "worst, ms", "median of the worst of a run, ms")
    notes = (f"How late a ticker of 1 ms was, in {runs} runs; each is called on the loop.",)
    result.tables.append(Table(f"The loop beside the {bench.name}", headers, rows, notes))
    result.samples[f"{bench.name}, lateness of a ticker"] = late


async def _on_the_loop(call: Callable[[], object]) -> None:
    call()


# short jobs


def _waits(bench: Bench) -> Waits:
    job = bench.job()
    return bench.runner.run(
        short_jobs(bench.name, lambda: run_multithreaded(job), 3 if bench.quick else SHORT_JOBS)
    )


def _served(result: Result, waits: Sequence[Waits]) -> None:
    result.tables.append(waits_table(waits))
    for each in waits:
        times = {"until it is done": each.done, "until a helper takes it": each.queued}
        result.samples[f"a short job beside {each.name}"] = times
        if each.name in LONG_JOBS and each.name != HOLDS_GIL:
            text = f"a short job beside {each.name}: the longest wait of {len(each.done)}, ms"
            worst = interval([MILLI * max(each.done)])
            result.promises.append(Promise(text, MILLI * SERVED, False, worst))
