# SPDX-License-Identifier: MIT
# What each benchmark's figures look like: a picture for the question that it asks, with what is
# promised drawn in, and another where one does not answer it.
#
# Pure: the JSON of a benchmark in, panels out, whether it was written a moment ago or last year.
# Ratios stand on a logarithmic axis, as dots with their intervals.
"""The pictures of a benchmark: `pictures(data)`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aioktask.bench import gil_bound, on_dask
from aioktask.bench.carried import MESSAGES
from aioktask.bench.cluster import CROWDED, LIMIT
from aioktask.bench.latency import LATER, LONGER, NICES, SHARE
from aioktask.bench.learning import COLD, PICTURED, PLAIN, WARM
from aioktask.bench.page import CHUNK, CLOSED, OPEN
from aioktask.bench.page import LATER as LATER_WHILE_LOOKED_AT
from aioktask.bench.promises import Promise
from aioktask.bench.serve import (
    AGAIN,
    AT_CAPACITY,
    AT_TWICE,
    BESIDE,
    EMPTY_WITHIN,
    KEPT,
    OF_THREADS,
    OVERLOAD,
    REFUSED_WITHIN,
)
from aioktask.bench.serving import PROCESSES, THREADS
from aioktask.bench.told import Told, as_interval
from aioktask.bench.ways import LARGE_CHUNKS, LEARNED, NOTHING, SMALL_CHUNKS, at_nice
from aioktask.figures.measure import Interval, interval, ratio
from aioktask.figures.panel import Bars, Dots, Mark, Panel, Picture, Reading, Row
from aioktask.figures.table import number
from aioktask.tune.curve_report import sweep_panel
from aioktask.tune.ladder import cell_name, cell_of

__all__ = ["PAUSES", "pictures"]

MILLI = 1e3
OURS = "aioktask"
# Of the demo's samples: what stands behind the work's title where pauses of the loop are told.
PAUSES = ": pauses of the loop"


def pictures(data: Mapping[str, Any]) -> dict[str, Picture]:
    """The pictures of a benchmark, or of the demo, by name: the first has the benchmark's.

    Args:
        data: The JSON that it wrote.
    """
    told = Told(data)
    return {
        name: Picture(title, panels, told.machine)
        for name, (title, panels) in _MADE[told.name](told).items()
        if panels
    }


Made = dict[str, tuple[str, list[Panel]]]


# overhead


def _overhead(told: Told) -> Made:
    short = []
    for promise in told.promises:
        found = re.fullmatch(
            r"(?:one short job awaited, of asyncio\.to_thread|the same, (.+)), on (\w+)",
            promise.text,
        )
        if found is not None:
            label = f"{found[2]}: {found[1] or 'time'}"
            short.append(Row(label, [_reading(promise)], _said(promise)))
    dots: list[Panel] = []
    if short:
        axis = "asyncio.to_thread = 1; to the left is better"
        dots.append(Dots("", axis, short, promise=_limits("promised at most", short)))
    title = "One short job awaited, against asyncio.to_thread"
    return {"overhead": (title, dots), "overhead-chunk": _empty_chunk(told)}


def _empty_chunk(told: Told) -> tuple[str, list[Panel]]:
    promise = _promise(told, "one empty chunk, 2 helpers, us")
    rows = []
    for name, cells in told.rows("One empty chunk").items():
        value = as_interval(cells["us a chunk"])
        if value is not None:
            promised = name == f"{OURS}, 2 helpers" and promise is not None
            limits = (promise.limit,) if promised and promise is not None else ()
            row = Row(name, [Reading(value, limits)], number(value.median), name.startswith(OURS))
            rows.append(row)
    title = "One empty chunk: what a call of an empty function costs"
    if not rows:
        return title, []
    axis = "microseconds a chunk; to the left is better"
    limit = _limits("promised at most, with 2 helpers", rows)
    return title, [Dots("", axis, rows, promise=limit)]


# what is learned


def _tune(told: Told) -> Made:
    promises = {promise.text: promise for promise in told.promises}
    rows = []
    for name in told.rows("Chunk sizes and threads, learned"):
        times = told.samples[name]
        best = next(each for each in times if cell_of(each) is not None)
        later, first = (ratio(times[best], times[each]) for each in (WARM, COLD))
        promise = promises.get(f"{name}: later runs, of the best of the sweep")
        readings = [
            Reading(later, () if promise is None else (promise.limit,)),
            Reading(first, ()),
        ]
        said = number(later.median) if promise is None else _said(promise)
        rows.append(Row(name, readings, said))
    axis = "speed, the best of the sweep = 1; to the right is better"
    series = ("later runs", "a first run")
    promised = _limits("promised at least, of later runs", rows)
    dots: list[Panel] = [Dots("", axis, rows, series, promised)]
    return {
        "tune": ("What is learned, against the best of a sweep", dots if rows else []),
        "tune-curves": ("Speed over the chunk size", _sweeps(told)),
    }


def _sweeps(told: Told) -> list[Panel]:
    summary = told.rows("Chunk sizes and threads, learned")
    panels: list[Panel] = []
    for name in PICTURED:
        sweep = told.samples.get(f"{name}, sweep")
        if sweep is not None:
            speed, chose = summary[name]["later"], cell_of(summary[name]["chose"] or "")
            marks = []
            if chose is not None:
                label = f"learned: {cell_name(*chose)}, {number(speed)}"
                marks.append(Mark(chose[0], float(speed), label))
            plain = told.samples[name][PLAIN]
            panels.append(sweep_panel(name, sweep, plain=plain, marks=marks))
    return panels


# the loop


def _latency(told: Told) -> Made:
    panels: list[Panel] = []
    found = _fresh(told, "asyncio")
    if found:
        rival = _rival(told, "asyncio")
        alone = found[NOTHING.name][0].median
        most = SHARE * found[rival][1].median if rival in found else None
        rows = []
        for name, (p99, worst) in found.items():
            promised = name in (LEARNED, SMALL_CHUNKS, LARGE_CHUNKS)
            readings = [
                Reading(p99, (alone + LATER,) if promised else ()),
                Reading(worst, (most,) if name == LEARNED and most is not None else ()),
            ]
            said = _both(p99, worst, kept=_kept(told, f"asyncio, {name}: "))
            rows.append(Row(name, readings, said, promised))
        promise = "promised at most: 99% 1 ms later than beside nothing"
        if most is not None:
            promise += f"; the worst a fifth of that of {rival}"
        series = ("99% of the ticks were at most so late", "the worst tick of half a second")
        axis = "lateness of a 1 ms ticker, ms; to the left is better"
        panels.append(Dots("", axis, rows, series, promise))
    title = "How late the event loop is beside a job that fills every CPU (asyncio)"
    return {
        "latency": (title, panels),
        "latency-nice": ("How late the event loop is, over the job's nice", _nices(told)),
    }


def _fresh(told: Told, loop: str) -> dict[str, tuple[Interval, Interval]]:
    """The 99% and the worst of a window by contender, of the fresh rounds where it was in them."""
    found = {}
    cells = told.rows(f"The loop: {loop}") | told.rows(f"The loop: {loop}, beside the rival")
    for name, row in cells.items():
        p99, worst = (as_interval(row.get(each)) for each in ("p99, ms", "worst of a window, ms"))
        if p99 is not None and worst is not None:
            found[name] = (p99, worst)
    return found


def _rival(told: Told, loop: str) -> str:
    start = f"{loop}, {LEARNED}: worst stall, of that of "
    texts = [each.text for each in told.promises if each.text.startswith(start)]
    return texts[0].removeprefix(start) if texts else ""


def _nices(told: Told) -> list[Panel]:
    panels: list[Panel] = []
    for where in ("alone on the machine", "beside CPU-bound neighbours"):
        title = f"The loop against the job's nice (asyncio), {where}"
        cells = told.rows(title)
        if not cells:
            continue
        without = as_interval(cells[NOTHING.name]["worst of a window, ms"])
        assert without is not None
        rows = []
        for name in (NOTHING.name, *[at_nice(nice).name for nice in NICES]):
            p99, worst = (as_interval(cells[name][e]) for e in ("p99, ms", "worst of a window, ms"))
            assert p99 is not None
            assert worst is not None
            promised = name != NOTHING.name and where.startswith("beside")
            limits = (without.median + LONGER,) if promised else ()
            start = f"beside neighbours, job at {name}: "
            said = _both(p99, worst, kept=not promised or _kept(told, start))
            label = "no job" if name == NOTHING.name else f"a job of {name}"
            rows.append(Row(label, [Reading(p99), Reading(worst, limits)], said))
        promise = "promised at most, of the worst: 20 ms longer than without a job"
        series = ("99% of the ticks were at most so late", "the worst tick of a window")
        axis = "lateness of a 1 ms ticker, ms"
        said = promise if where.startswith("beside") else ""
        panels.append(Dots(where[0].upper() + where[1:], axis, rows, series, said))
    return panels


def _both(p99: Interval, worst: Interval, *, kept: bool) -> str:
    return f"{number(p99.median)} / {number(worst.median)}{'' if kept else ', not kept'}"


def _kept(told: Told, start: str) -> bool:
    """Whether all promises are kept whose text begins so."""
    return all(each.kept for each in told.promises if each.text.startswith(start))


# others on the machine


def _neighbour(told: Told) -> Made:
    promise = told.promises[0]
    times, work = [], []
    for name, cells in told.rows("Neighbours and a job").items():
        slower, done = as_interval(cells["alone = 1"]), as_interval(cells["beside, alone = 1"])
        if slower is None or done is None:
            continue
        promised = name.endswith("nice 19")
        said = _said(promise) if promised else number(slower.median)
        times.append(Row(name, [_reading(promise) if promised else Reading(slower)], said))
        work.append(Row(name.removeprefix("beside "), [Reading(done)], number(done.median)))
    panels: list[Panel] = []
    if times:
        panels = [
            Dots(
                "What the neighbours notice",
                "time of their work, alone = 1; to the left is better",
                times,
                promise=_limits("promised at most, at nice 19", times),
            ),
            Dots(
                "What the job gets done beside them",
                "work in the same time, alone = 1; to the right is more",
                work,
            ),
        ]
    return {"neighbour": ("CPU-bound neighbours and a job that wants every CPU", panels)}


def _share(told: Told) -> Made:
    title = next(each for each in told.titles() if each.endswith("that share the machine"))
    promises = {promise.text.partition(": work done ")[2]: promise for promise in told.promises}
    rows = []
    for text, label in (
        ("in all, of one process alone", "all together, of one process alone"),
        (
            "a second of helpers' CPU time, of one process alone",
            "the same, a second of CPU time",
        ),
    ):
        if text in promises:
            rows.append(Row(label, [_reading(promises[text])], _said(promises[text])))
    limits = tuple(
        promises[text].limit
        for text in (
            "by the one that does least, of a quarter",
            "by the one that does most, of a quarter",
        )
        if text in promises
    )
    for name, cells in told.rows(title).items():
        share = as_interval(cells["of an even share"])
        if share is not None:
            label = f"{name.removesuffix(' of them')}, of an even share"
            rows.append(Row(label, [Reading(share, limits)], number(share.median)))
    axis = "work done; 1 is what one process alone does, or an even share"
    promise = _limits("promised: at least, and of each process at most", rows)
    panels: list[Panel] = [Dots("", axis, rows, promise=promise)] if rows else []
    return {"share": (f"{title[0].upper()}{title[1:]}", panels)}


# several processes


def _cluster(told: Told) -> Made:
    panels = [*_on_dask(told), *_gil_bound(told), *_carried(told), *_crowds(told)]
    return {"cluster": ("One job over several processes", panels)}


def _on_dask(told: Told) -> list[Panel]:
    columns = ("speed, no cluster = 1", "speed, the best of Dask's = 1")
    rows = []
    for name, cells in told.rows(on_dask.TITLE).items():
        engine, best = (as_interval(cells[column]) for column in columns)
        if engine is None or best is None or name == on_dask.ENGINE:
            continue
        ours = name in on_dask.OURS
        readings = [
            Reading(engine, (on_dask.OF_ENGINE,) if ours else ()),
            # The best of Dask's own is compared with itself no more than the engine is.
            Reading(best, (on_dask.OF_DASK,)) if ours else None,
        ]
        kept = _kept(told, f"{name.removeprefix(f'{OURS}: ')}: ")
        said = _both(engine, best, kept=kept) if ours else number(engine.median)
        rows.append(Row(name, readings, said, ours))
    if not rows:
        return []
    promise = f"promised at least: {on_dask.OF_ENGINE:g} of no cluster, {on_dask.OF_DASK:g} of Dask"
    series = (f"of {on_dask.ENGINE}", "of the best of Dask's own ways")
    axis = "speed, the other = 1; to the right is better"
    return [Dots(on_dask.TITLE, axis, rows, series, promise)]


def _gil_bound(told: Told) -> list[Panel]:
    rows = []
    for name, cells in told.rows(gil_bound.TITLE).items():
        speed = as_interval(cells["speed, a for loop = 1"])
        if speed is not None and name != gil_bound.LOOP:
            rows.append(Row(name, [Reading(speed)], number(speed.median), name.startswith(OURS)))
    axis = "speed, a for loop = 1; to the right is better"
    return [Dots(gil_bound.TITLE, axis, rows)] if rows else []


def _carried(told: Told) -> list[Panel]:
    rows = [
        Row(each.text.replace(MESSAGES, ", "), [_reading(each)], _said(each))
        for each in told.promises
        if MESSAGES in each.text
    ]
    axis = "messages, those of the same work in fewer chunks = 1"
    title = "Messages of a job in many chunks"
    return [Dots(title, axis, rows, promise=_limits("promised at most", rows))] if rows else []


def _crowds(told: Told) -> list[Panel]:
    panels: list[Panel] = []
    axis = "time lost, % of the ideal; to the left is better"
    crowds = [
        Row(
            each.text.removeprefix(CROWDED).partition(": ")[0],
            [_reading(each)],
            _said(each),
        )
        for each in told.promises
        if each.text.startswith(CROWDED)
    ]
    if crowds:
        title = f"{CROWDED.removesuffix(', ')}, the worst of all runs"
        panels.append(Dots(title, axis, crowds, promise=_limits("promised at most", crowds)))
    limits = []
    for name, cells in told.rows(LIMIT).items():
        lost = as_interval(cells["time lost, %"])
        if lost is not None:
            limits.append(Row(name, [Reading(lost)], number(lost.median)))
    if limits:
        panels.append(Dots("The same, with what messages cost", axis, limits))
    return panels


# streams


def _ordered(told: Told) -> Made:
    panels: list[Panel] = []
    for at_least, axis, text in (
        (True, "speed, what is named = 1; to the right is better", "promised at least"),
        (False, "cost, what is named = 1; to the left is better", "promised at most"),
    ):
        rows = [
            Row(each.text, [_reading(each)], _said(each))
            for each in told.promises
            if each.at_least is at_least
        ]
        if rows:
            panels.append(Dots("", axis, rows, promise=_limits(text, rows)))
    return {"ordered": ("A stream's items, against other ways to have them done", panels)}


# a server


def _serve(told: Told) -> Made:
    panels = [*_requests(told), *_overload(told)]
    return {"serve": ("A web server under load", panels)}


def _requests(told: Told) -> list[Panel]:
    found: dict[str, tuple[Interval, Interval]] = {}
    for name, row in (told.rows(BESIDE) | told.rows(AGAIN)).items():
        above, empty = (
            as_interval(row.get(e)) for e in ("p99 above service, ms", "empty: p99, ms")
        )
        if above is not None and empty is not None:
            found[name] = (above, empty)
    if not found:
        return []
    # The best of each kind is compared in fresh rounds.
    rivals = told.rows(AGAIN).keys()
    threads, processes = (
        [found[name][0].median * factor for name in names if name in rivals]
        for names, factor in ((THREADS, OF_THREADS), (PROCESSES, 1.0))
    )
    rows = []
    for name, (above, empty) in found.items():
        ours = name.startswith(OURS)
        readings = [
            Reading(above, (*threads, *processes) if ours else ()),
            Reading(empty, (EMPTY_WITHIN,) if ours else ()),
        ]
        rows.append(Row(name, readings, _both(above, empty, kept=_kept(told, f"{name}: ")), ours))
    promise = (
        f"promised at most: {OF_THREADS:.2g} of the best threads and no more than the best "
        f"processes; empty ones {EMPTY_WITHIN:.2g} ms"
    )
    series = ("interactive requests: 99% took at most so long above 5 ms", "empty requests: 99%")
    title = "Requests beside heavy ones that want every CPU"
    return [Dots(title, "ms; to the left is better", rows, series, promise)]


def _overload(told: Told) -> list[Panel]:
    cells = told.rows(OVERLOAD)
    rows = []
    for name in (AT_CAPACITY, AT_TWICE):
        if name not in cells:
            continue
        served, refused = (
            as_interval(cells[name][each]) for each in ("served: p99, ms", "503: p99, ms")
        )
        usual = as_interval(cells[AT_CAPACITY]["served: p99, ms"])
        if served is None or usual is None:
            continue
        limits = name == AT_TWICE
        readings = [
            Reading(served, (KEPT * usual.median,) if limits else ()),
            # Where nothing was refused there is no time of it, and 0 has no place on the axis.
            Reading(refused, (REFUSED_WITHIN,) if limits else ())
            if refused is not None and refused.low > 0
            else None,
        ]
        kept = "" if _kept(told, f"{name}: ") else ", not kept"
        said = f"{number(served.median)} / {number(refused.median) if refused else '-'}{kept}"
        rows.append(Row(name, readings, said))
    if not rows:
        return []
    promise = (
        f"promised at most: {KEPT:.4g} times that at the capacity; 503 within "
        f"{REFUSED_WITHIN:.2g} ms"
    )
    series = ("99% of what is served took at most so long", "99% of what is answered with 503")
    return [Dots("More interactive requests than can be served", "ms", rows, series, promise)]


# the live page


def _page(told: Told) -> Made:
    found = told.rows("The live page")
    panels: list[Panel] = []
    looks: tuple[tuple[str, str, str, str, Callable[[float], float], str], ...] = (
        (
            "p99, ms",
            "How late the loop is",
            "99% at most so many ms; to the left is better",
            "the loop's",
            lambda usual: usual + LATER_WHILE_LOOKED_AT,
            f"promised at most: {LATER_WHILE_LOOKED_AT:g} ms more while somebody looks",
        ),
        (
            "an empty chunk, us",
            "What an empty chunk costs",
            "microseconds; to the left is better",
            "an empty chunk's",
            lambda usual: usual * CHUNK,
            f"promised at most: {CHUNK:g} times as much while somebody looks",
        ),
    )
    for column, title, axis, about, limit, promised in looks:
        rows = []
        for name, cells in found.items():
            value = as_interval(cells.get(column))
            if value is None:
                continue
            shown, _, who = name.rpartition(", ")
            usual = as_interval(found.get(f"{shown}, {CLOSED}", {}).get(column))
            limits: tuple[float, ...] = ()
            said = number(value.median)
            if who == OPEN and usual is not None:
                limits = (limit(usual.median),)
                said += "" if _kept(told, f"{shown}: {about}") else ", not kept"
            rows.append(Row(name, [Reading(value, limits)], said))
        if rows:
            panels.append(Dots(title, axis, rows, promise=promised))
    return {"page": ("What the live page costs the process that it shows", panels)}


# arrays and memory


def _arrays(told: Told) -> Made:
    column = "speed, plain NumPy = 1"
    rows, series = [], [f"{OURS}, untuned", "", "asyncio.to_thread"]
    for title in told.titles():
        cells = told.rows(title)
        pool = next((each for each in cells if each.startswith("ThreadPoolExecutor")), "")
        series[1] = pool or series[1]
        promise = _promise(told, f"{title.partition(',')[0]}: speed, plain NumPy = 1")
        readings: list[Reading | None] = []
        for at, name in enumerate((series[0], pool, series[2])):
            value = as_interval(cells[name][column]) if name in cells else None
            limits = (promise.limit,) if at == 0 and promise is not None else ()
            readings.append(None if value is None else Reading(value, limits))
        said = "" if promise is None else _said(promise)
        rows.append(Row(title, readings, said))
    panels: list[Panel] = []
    if rows:
        axis = "speed, plain NumPy = 1; to the right is better"
        panels.append(Dots("", axis, rows, series, _limits(f"promised at least, of {OURS}", rows)))
    return {"arrays": ("Array work that nobody tuned, against plain NumPy", panels)}


def _memory(told: Told) -> Made:
    by_name: dict[str, list[Promise]] = {}
    for promise in told.promises:
        by_name.setdefault(promise.text.rpartition(": of ")[0], []).append(promise)
    rows = []
    for name, promises in by_name.items():
        loops = [each for each in promises if each.text.endswith("the best C loop")]
        # Where there are two calls that one would write, the faster of them.
        calls = [each for each in promises if each not in loops]
        call = min(calls, key=lambda each: each.reached.median, default=None)
        loop = loops[0] if loops else None
        said = [number(each.reached.median) for each in (loop, call) if each is not None]
        broken = "" if all(each.kept for each in promises) else ", not kept"
        readings = [None if each is None else _reading(each) for each in (loop, call)]
        rows.append(Row(name, readings, " / ".join(said) + broken))
    axis = f"speed of {OURS}, the other = 1; to the right is better"
    series = ("against the best of the C loops", "against the call that one would write")
    promised = _limits("promised at least", rows)
    panels: list[Panel] = [Dots("", axis, rows, series, promised)] if rows else []
    return {"memory": ("Memory operations that nobody tuned", panels)}


# the demo


def _demo(told: Told) -> Made:
    panels: list[Panel] = []
    for work, times in told.samples.items():
        pauses = told.samples.get(f"{work}{PAUSES}")
        if pauses is None:
            continue
        rows = [
            Row(
                way,
                [Reading(_milli(times[way])), Reading(_milli(pauses[way]))],
                ours=way == "run_multithreaded",
            )
            for way in times
        ]
        columns = ("it takes, ms", "the loop stands still, ms")
        panels.append(Bars(work, columns, rows))
    return {"demo": ("The same work, three ways", panels)}


_MADE: Mapping[str, Callable[[Told], Made]] = {
    "overhead": _overhead,
    "arrays": _arrays,
    "memory": _memory,
    "tune": _tune,
    "latency": _latency,
    "ordered": _ordered,
    "serve": _serve,
    "page": _page,
    "neighbour": _neighbour,
    "share": _share,
    "cluster": _cluster,
    "demo": _demo,
}


def _limits(text: str, rows: Iterable[Row]) -> str:
    """The text, and the limits that are promised in these rows; nothing where none is."""
    limits = {limit for row in rows for each in row.readings if each for limit in each.promised}
    if not limits:
        return ""
    return f"{text}: {', '.join(f'{limit:.4g}' for limit in sorted(limits))}"


def _milli(seconds: Iterable[float]) -> Interval:
    return interval(MILLI * each for each in seconds)


def _promise(told: Told, text: str) -> Promise | None:
    return next((each for each in told.promises if each.text == text), None)


def _reading(promise: Promise) -> Reading:
    return Reading(promise.reached, (promise.limit,))


def _said(promise: Promise) -> str:
    reached = number(promise.reached.median)
    return reached if promise.kept else f"{reached}, not kept"
