# SPDX-License-Identifier: MIT
# What is told of a curve: tables, data for JSON, a picture to be drawn.
#
# Pure. The panel is made from names and samples alone, so that what another benchmark swept can be
# drawn as well.
"""A measured curve as tables, as data and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from aioktask import Learned
from aioktask.figures.measure import Interval, interval, ratio
from aioktask.figures.panel import Curves, Mark, Picture, Point, Series
from aioktask.figures.table import Table, number, render
from aioktask.tune.curve import BEST, COLD, ENOUGH, PLAIN, WARM, Curve
from aioktask.tune.ladder import Cell, cell_name, cell_of

__all__ = ["curve_data", "curve_picture", "curve_text", "sweep_panel"]

MILLI = 1e3
# The engine is told to have found the best where the interval reaches this.
AS_GOOD = 0.95


def curve_text(curve: Curve) -> str:
    """For reading."""
    return "\n\n".join(render(table) for table in (_sweep_table(curve), *_engine_tables(curve)))


def curve_data(curve: Curve) -> dict[str, object]:
    """For JSON: every single value, and what was made of it."""
    plain = curve.final[PLAIN]
    return {
        "name": curve.name,
        "size": curve.size,
        "measured": [curve.job.start, curve.job.stop],
        "best": {"chunk": curve.best[0], "threads": curve.best[1]},
        "speeds": {name: asdict(ratio(plain, times)) for name, times in curve.final.items()},
        "curve": [
            {"chunk": chunk, "threads": threads, **asdict(curve.speed((chunk, threads)))}
            for chunk, threads in curve.cells()
        ],
        "cold": asdict(curve.cold),
        "warm": asdict(curve.warm),
        "notes": [*curve.notes, _advice(curve)],
        "samples": {
            "sweep": {name: list(times) for name, times in curve.sweep.items()},
            "final": {name: list(times) for name, times in curve.final.items()},
        },
    }


def curve_picture(curve: Curve, machine: str) -> Picture:
    """What `--svg` draws: a line for each number of threads, and what the engine chose."""
    plain, rounds = curve.final[PLAIN], len(curve.sweep[PLAIN])
    warm, cold = (ratio(plain, curve.final[name]).median for name in (WARM, COLD))
    chosen = _chosen(curve.warm)
    panel = sweep_panel(
        "",
        curve.sweep,
        plain=curve.sweep[PLAIN],
        marks=[
            Mark(
                chosen[0],
                float(warm),
                f"the engine chose {_cell(chosen)}: {number(warm)} warm, {number(cold)} cold",
            )
        ],
    )
    part = "" if curve.job.size == curve.size else f"the first {curve.job.size:,} of "
    between = "the smallest and the largest" if rounds < ENOUGH else "95% intervals"
    return Picture(
        f"{curve.name}: speed by chunk size and threads",
        [panel],
        f"Over {part}{curve.size:,} units. Medians of {rounds} alternating rounds, with "
        f"{between}. {machine}",
    )


def sweep_panel(
    title: str,
    sweep: Mapping[str, Sequence[float]],
    *,
    plain: Sequence[float],
    marks: Sequence[Mark] = (),
) -> Curves:
    """A panel from a sweep's samples.

    Args:
        title: Above it.
        sweep: Seconds by contender; those named "CHUNK x THREADS" are drawn, others are not.
        plain: Seconds of one plain call: of the same rounds, or of others when there are not as
            many.
        marks: What to point out: a chunk size and the speed with it.
    """
    lines: dict[int, list[Point]] = {}
    for name, times in sweep.items():
        cell = cell_of(name)
        if cell is not None:
            speed = _speed(plain, times)
            point = Point(cell[0], speed.median, speed.low, speed.high)
            lines.setdefault(cell[1], []).append(point)
    return Curves(
        title,
        "chunk, in units",
        "speed, one plain call = 1",
        [
            Series(_threads(threads), sorted(lines[threads], key=lambda point: point.x))
            for threads in sorted(lines)
        ],
        marks,
    )


def _speed(plain: Sequence[float], times: Sequence[float]) -> Interval:
    if len(plain) == len(times):
        return ratio(plain, times)
    once = statistics.median(plain)
    return interval(once / seconds for seconds in times)


def _sweep_table(curve: Curve) -> Table:
    cells = curve.cells()
    threads = sorted({each for _, each in cells})
    chosen = _chosen(curve.warm)
    rows = []
    for chunk in sorted({each for each, _ in cells}):
        alone = statistics.median(curve.sweep[cell_name(chunk, 1)])
        marked = [_marked(curve, (chunk, each), chosen) for each in threads]
        rows.append((chunk, alone * MILLI * min(chunk / curve.job.size, 1), *marked))
    plain = statistics.median(curve.sweep[PLAIN]) * MILLI
    return Table(
        f"{curve.name}: speed over {curve.job.size:,} units, one plain call = 1",
        ("chunk", "ms a chunk", *map(_threads, threads)),
        rows,
        (
            f"{curve.name}({curve.job.start}, {curve.job.stop}) takes {number(plain)} ms. "
            f"Medians of {len(curve.sweep[PLAIN])} rounds. * is the best, < what the engine chose.",
        ),
    )


def _marked(curve: Curve, cell: Cell, chosen: Cell) -> str | None:
    if cell_name(*cell) not in curve.sweep:
        return None
    sign = ("*" if cell == curve.best else "") + ("<" if cell == chosen else "")
    return f"{number(curve.speed(cell).median)} {sign:2}"


def _engine_tables(curve: Curve) -> list[Table]:
    plain, best = curve.final[PLAIN], curve.final[BEST]
    rows: list[tuple[object, ...]] = []
    for name, what in (
        (PLAIN, ""),
        (BEST, _cell(curve.best)),
        (COLD, _cell(_chosen(curve.cold))),
        (WARM, _cell(_chosen(curve.warm))),
    ):
        times = curve.final[name]
        rows.append(
            (name, what, statistics.median(times) * MILLI, ratio(plain, times), ratio(best, times))
        )
    tables = [
        Table(
            f"What the engine chooses, against the best, in {len(plain)} fresh rounds",
            ("", "chunk x threads", "ms", "speed, plain = 1", "speed, best = 1"),
            rows,
            (*curve.notes, _advice(curve)),
        )
    ]
    if curve.warm.curve:
        tables.append(
            Table(
                "What the engine measured while it ran, one thread against itself",
                ("chunk", "speed, in use = 1", "samples"),
                [(each.chunk, each.speed, each.samples or "in use") for each in curve.warm.curve],
            )
        )
    return tables


def _advice(curve: Curve) -> str:
    """What follows for the user's job."""
    if curve.job.reduce is not None and curve.job.chunk is None:
        return (
            "reduce: the engine keeps to the leaves that the job's description gives. Another size "
            "is had with chunk=, and combines the values in another order."
        )
    if curve.job.chunk is not None:
        return f"The job fixes its chunk size ({curve.job.chunk:,}), so no size is learned."
    if curve.warm.holds_gil:
        return (
            "The function holds the GIL: more threads do not help it, and the engine uses one. "
            "Call something that releases it (NumPy, zlib, hashlib, ctypes, numba with nogil), run "
            "it on a free-threaded build of Python, or in processes."
        )
    if ratio(curve.final[PLAIN], curve.final[BEST]).high < 1:
        return (
            "One plain call is faster than any way of splitting it: it is too little work for a "
            "job, or threads do not help it."
        )
    if ratio(curve.final[BEST], curve.final[WARM]).high >= AS_GOOD:
        return "There is nothing to set: without chunk= the engine is as good as the best."
    chunk, threads = curve.best
    return (
        f"chunk={chunk}, max_threads={threads} is better here than what the engine chose, "
        f"{ratio(curve.final[WARM], curve.final[BEST])} times as fast."
    )


def _chosen(learned: Learned) -> Cell:
    return learned.chunk, learned.threads


def _cell(cell: Cell) -> str:
    return f"{cell[0]:,} x {cell[1]}"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
