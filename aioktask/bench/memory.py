# SPDX-License-Identifier: MIT
# Memory operations, with nothing tuned, against what a user would write (one plain call, or one in
# each of a pool's threads over an even share) and against the best of C loops.
#
# The best C loop is chosen by a sweep over thread counts and chunk sizes, and compared on fresh
# rounds in which it, the library and the plain calls take turns on the same memory. On a virtual
# machine the host may take dropped memory back, and the first touch after that is slow: everyone is
# warmed up. Relies on Linux; without a compiler the C loop's cells say so.
"""`bench memory`."""

from __future__ import annotations

import asyncio
import functools
import shutil
import statistics
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from aioktask import max_threads
from aioktask.bench import chosen, cloops
from aioktask.bench.operations import (
    GIB,
    Operation,
    Subject,
    Tree,
    address_of,
    anonymous,
    fitting,
    operations,
    populate_plainly,
    tree_kinds,
    trees,
)
from aioktask.bench.promises import PAIRS, Promise, Result
from aioktask.figures.measure import Contender, alternate, ratio
from aioktask.figures.table import Table, size_text

__all__ = ["address_of", "anonymous", "fitting", "populate_plainly", "run", "slices", "sweep"]

OURS = "aioktask"
SWEEP_ROUNDS = 3
CHUNKS = tuple(1 << shift for shift in range(18, 30, 2))  # 256 KiB to 256 MiB
STEP = 2 << 20  # even shares are whole huge pages
# Seconds of one plain call from which on something is promised: below, a job's own cost counts.
LONG_ENOUGH = 0.010
HEADERS = ("", "GiB/s", "speed of aioktask, this = 1")


def run(quick: bool, progress: Callable[[str], object], only: str = "") -> Result:
    """Each operation as a table of its own, and the promises.

    Args:
        quick: As `bench.run` takes it.
        progress: As `bench.run` takes it.
        only: Operations without this in their names are left out.

    Raises:
        UnknownOperation: All are.
    """
    every = operations(quick)
    of_trees = [each.name for each in tree_kinds(quick)]
    asked = chosen(only, [*(each.name for each in every), *of_trees])
    wanted = [each for each in every if each.name in asked]
    names = [name for name in of_trees if name in asked]
    result = Result("memory", quick)
    try:
        loop: cloops.CLoop | str = cloops.compile_loop()
    except cloops.NoCompiler as reason:
        loop = str(reason)
    rounds = 2 if quick else 2 * PAIRS + 1
    for operation in wanted:
        progress(operation.name)
        try:
            with operation.subject() as subject, asyncio.Runner() as runner:
                _compare(result, operation, subject, loop, runner, rounds)
                del subject  # its jobs hold the memory
        except OSError as error:
            row = (f"cannot be done here: {error}", None)
            result.tables.append(Table(operation.name, ("", ""), [row]))
    rounds = 2 if quick else PAIRS
    if names:
        progress("trees of files")
    with trees(quick, 2 * (rounds + 1), only) as found, asyncio.Runner() as runner:
        for tree in found:
            progress(tree.name)
            _remove(result, tree, runner, rounds)
    return result


def _compare(
    result: Result,
    operation: Operation,
    subject: Subject,
    loop: cloops.CLoop | str,
    runner: asyncio.Runner,
    rounds: int,
) -> None:
    ours = Contender(OURS, _awaited(subject.ours, runner), before=subject.before)
    plain = [Contender(name, call, before=subject.before) for name, call in subject.plain.items()]
    best = None if isinstance(loop, str) else _best(subject, loop, quick=result.quick)
    with ThreadPoolExecutor(max_threads()) as pool:
        shared = slices(subject, pool, max_threads())
        times = alternate([ours, *([] if best is None else [best]), shared, *plain], rounds)

    def row(name: str) -> tuple[object, ...]:
        speed = subject.nbytes / statistics.median(times[name]) / GIB
        return (name, speed, 1 if name == OURS else ratio(times[name], times[OURS]))

    rows = [row(name) for name in times]
    if best is None:
        rows.append(("the best C loop", None, str(loop)))
    rivals = [(best, "the best C loop", 0.95)] if best is not None else []
    rivals += [(shared, shared.name, 0.95), *((each, each.name, 1.0) for each in plain)]
    notes = []
    if statistics.median(times[plain[0].name]) < LONG_ENOUGH:
        notes.append(
            "One call takes less than 10 ms: nothing is promised of that, a job costs more."
        )
        rivals = []
    for each, name, limit in rivals:
        share = ratio(times[each.name], times[OURS])
        result.promises.append(Promise(f"{operation.name}: of {name}", limit, True, share))
    title = f"{operation.name}, {size_text(subject.nbytes)}, {max_threads()} threads"
    result.tables.append(Table(title, HEADERS, rows, tuple(notes)))
    result.samples[operation.name] = times


def slices(subject: Subject, pool: ThreadPoolExecutor, threads: int) -> Contender:
    """What a user would write: so many threads of a pool, each with one call over an even share.

    Shares are whole huge pages, so that no two threads meet in one.
    """
    share = -(-subject.nbytes // (threads * STEP)) * STEP
    offsets = range(0, subject.nbytes, share)
    lengths = [min(share, subject.nbytes - offset) for offset in offsets]

    def call() -> None:
        list(pool.map(subject.part, offsets, lengths))

    return Contender(f"ThreadPoolExecutor, {threads} slices", call, before=subject.before)


def _best(subject: Subject, loop: cloops.CLoop, *, quick: bool) -> Contender:
    """The C loop, number of threads and chunk size that are fastest here."""
    contenders = []
    for kind in subject.loops:
        for threads, chunk in sweep(subject.nbytes, max_threads(), subject.least):
            name = f"C loop {kind.name.lower()}, {threads} threads, {size_text(chunk)}"
            call = functools.partial(
                loop,
                kind,
                subject.address,
                subject.nbytes,
                chunk,
                threads,
                subject.source,
                subject.file,
            )
            contenders.append(Contender(name, call, before=subject.before))
    times = alternate(contenders, 1 if quick else SWEEP_ROUNDS, warm_ups=0 if quick else 1)
    return min(contenders, key=lambda each: statistics.median(times[each.name]))


def sweep(nbytes: int, most: int, least: int) -> list[tuple[int, int]]:
    """Numbers of threads up to `most`, each with chunk sizes up to all of it shared evenly.

    >>> [(threads, size_text(chunk)) for threads, chunk in sweep(1 << 23, 2, 1 << 20)]
    [(1, '1 MiB'), (1, '4 MiB'), (1, '8 MiB'), (2, '1 MiB'), (2, '4 MiB')]
    """
    counts = [1]
    while counts[-1] < most:
        counts.append(min(2 * counts[-1], most))
    found = []
    for threads in counts:
        even = -(-nbytes // (threads * STEP)) * STEP
        found += [(threads, chunk) for chunk in CHUNKS if least <= chunk < even]
        found.append((threads, even))
    return found


def _remove(result: Result, tree: Tree, runner: asyncio.Runner, rounds: int) -> None:
    ours = Contender(OURS, _awaited(tree.ours, runner), before=tree.make)
    plain = Contender(
        "shutil.rmtree", functools.partial(shutil.rmtree, tree.path), before=tree.make
    )
    times = alternate([ours, plain], rounds)
    share = ratio(times[plain.name], times[OURS])
    rows: list[tuple[object, ...]] = [
        (name, 1e3 * statistics.median(times[name]), 1 if name == OURS else share) for name in times
    ]
    headers = ("", "ms", "speed of aioktask, this = 1")
    result.tables.append(Table(tree.name, headers, rows))
    result.promises.append(Promise(f"{tree.name}: of shutil.rmtree", 1.0, True, share))
    result.samples[tree.name] = times


def _awaited(function: Callable[[], object], runner: asyncio.Runner) -> Callable[[], object]:
    def call() -> object:
        return runner.run(cast("Coroutine[Any, Any, object]", function()))

    return call
