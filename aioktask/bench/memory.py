# SPDX-License-Identifier: MIT
# Memory operations: the library's jobs against a C loop with the same chunk size and threads.
#
# Populated memory is dropped between runs, outside of the timing. On a virtual machine the host may
# take dropped memory back, and the first touch after that is slow: everyone is warmed up and takes
# turns on the same mapping. Relies on Linux; without a compiler the C loop's cells say so.
"""`bench memory`."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import gc
import mmap
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aioktask import Job, max_threads, memory, plan, run_multithreaded
from aioktask.bench import cloops
from aioktask.bench.machine import available_memory
from aioktask.bench.measure import (
    PAIRS,
    Contender,
    Interval,
    Promise,
    Result,
    alternate,
    ratio,
)
from aioktask.bench.table import Table, size_text
from aioktask.memory._libc import Advice, madvise, zero

__all__ = ["address_of", "anonymous", "fitting", "populate_plainly", "run"]

GIB = 1 << 30
FIXED_CHUNK = 32 << 20


@contextmanager
def anonymous(nbytes: int, *, huge: bool) -> Iterator[mmap.mmap]:
    """Private anonymous memory, in small pages or, where there are some, transparent huge ones."""
    memory_map = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        with suppress(AttributeError, OSError):  # a system without huge pages has small ones anyway
            memory_map.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        yield memory_map
    finally:
        gc.collect()  # tasks and tracebacks hang in cycles, and may hold a job over this memory
        memory_map.close()


def address_of(memory_map: mmap.mmap) -> int:
    """Where the mapping begins."""
    byte = ctypes.c_char.from_buffer(memory_map)
    return ctypes.addressof(byte)


def populate_plainly(memory_map: mmap.mmap, nbytes: int | None = None) -> None:
    """One call over its first `nbytes`, or all of it."""
    length = len(memory_map) if nbytes is None else nbytes
    madvise(address_of(memory_map), length, Advice.MADV_POPULATE_WRITE)


def fitting(nbytes: int) -> int:
    """So much, or as much of it as leaves half of what is available."""
    available = available_memory()
    while available is not None and nbytes > available // 2:
        nbytes //= 2
    return nbytes


@dataclass(frozen=True, slots=True)
class Operation:
    """What is compared.

    Attributes:
        name: In tables.
        job: The library's job over a mapping, with this chunk size or its own.
        loop: The number of the C loop.
        plain: One call over all of it, by name.
        huge: Whether in huge pages.
        drop: Whether the memory must be dropped before each run.
        nbytes: How much.
    """

    name: str
    job: Callable[[mmap.mmap, int | None], Job[None]]
    loop: int
    plain: Mapping[str, Callable[[mmap.mmap], object]]
    huge: bool
    drop: bool
    nbytes: int


def run(quick: bool, progress: Callable[[str], object]) -> Result:
    """Populate in small and in huge pages, and clear."""
    result = Result("memory", quick)
    try:
        loop: cloops.CLoop | str = cloops.compile_loop()
    except cloops.NoCompiler as reason:
        loop = str(reason)
    for operation in _operations(quick):
        progress(operation.name)
        try:
            _compare(result, operation, loop, 2 if quick else 2 * PAIRS + 1)
        except OSError as error:
            row = (f"cannot be done here: {error}", None)
            result.tables.append(Table(operation.name, ("", ""), [row]))
    return result


def _operations(quick: bool) -> list[Operation]:
    large, small = (fitting(128 << 20 if quick else gib * GIB) for gib in (2, 1))
    one_madvise = {"one madvise over all": lambda m: populate_plainly(m)}
    whole: dict[str, Callable[[mmap.mmap], object]] = {
        "one memset over all": lambda m: zero(address_of(m), len(m)),
        "ndarray.fill(0)": lambda m: np.frombuffer(m, np.uint8).fill(0),
    }

    def populate(m: mmap.mmap, chunk: int | None) -> Job[None]:
        return memory.populate(m, chunk=chunk)

    def clear(m: mmap.mmap, chunk: int | None) -> Job[None]:
        return memory.clear(m, chunk=chunk)

    call, clearing = cloops.POPULATE, cloops.CLEAR
    return [
        Operation("populate, 4 KiB pages", populate, call, one_madvise, False, True, small),
        Operation("populate, huge pages", populate, call, one_madvise, True, True, large),
        Operation("clear, huge pages", clear, clearing, whole, True, False, large),
    ]


@dataclass(frozen=True, slots=True)
class Race:
    """What was measured of an operation.

    Attributes:
        times: Seconds by contender.
        pairs: The library's job and the C loop with the same chunk size, by name, and that size.
        huge_bytes: How much of the process was in transparent huge pages when all was populated.
    """

    times: Mapping[str, Sequence[float]]
    pairs: Sequence[tuple[str, str, int]]
    huge_bytes: int


def _race(operation: Operation, loop: cloops.CLoop | str, rounds: int) -> Race:
    with ExitStack() as stack:
        memory_map = stack.enter_context(anonymous(operation.nbytes, huge=operation.huge))
        runner = stack.enter_context(asyncio.Runner())
        populate_plainly(memory_map)
        huge_bytes = _huge_bytes()
        drop = (lambda: memory_map.madvise(mmap.MADV_DONTNEED)) if operation.drop else None
        contenders: list[Contender] = []
        pairs: list[tuple[str, str, int]] = []
        for chunk in (None, FIXED_CHUNK):
            ours, size = _job(operation, memory_map, chunk, runner)
            if pairs and size == pairs[0][2]:
                continue  # the rule's chunk is of the fixed size
            name = f"aioktask, chunk {size_text(size)}{' by rule' if chunk is None else ''}"
            contenders.append(Contender(name, ours, before=drop))
            pairs.append((name, f"C loop, chunk {size_text(size)}", size))
            if not isinstance(loop, str):
                theirs = functools.partial(
                    loop,
                    operation.loop,
                    address_of(memory_map),
                    operation.nbytes,
                    size,
                    max_threads(),
                )
                contenders.append(Contender(pairs[-1][1], theirs, before=drop))
        for name, call in operation.plain.items():
            contenders.append(Contender(name, functools.partial(call, memory_map), before=drop))
        times = alternate(contenders, rounds)
        contenders.clear()  # the jobs hold the memory
        del ours
    return Race(times, pairs, huge_bytes)


def _job(
    operation: Operation, memory_map: mmap.mmap, chunk: int | None, runner: asyncio.Runner
) -> tuple[Callable[[], object], int]:
    job = operation.job(memory_map, chunk)
    return lambda: runner.run(run_multithreaded(job)), plan(job).chunk


def _compare(result: Result, operation: Operation, loop: cloops.CLoop | str, rounds: int) -> None:
    race = _race(operation, loop, rounds)
    base = next(iter(operation.plain))

    def row(name: str, share: Interval | None = None) -> tuple[object, ...]:
        seconds = race.times[name]
        speed = operation.nbytes / statistics.median(seconds) / GIB
        return (name, speed, 1 if name == base else ratio(race.times[base], seconds), share)

    rows: list[tuple[object, ...]] = []
    for ours, theirs, size in race.pairs:
        if isinstance(loop, str):
            rows += [row(ours), (theirs, loop, None, None)]
            continue
        share = ratio(race.times[theirs], race.times[ours])
        rows += [row(ours, share), row(theirs)]
        text = f"{operation.name}, chunk {size_text(size)}: speed, C loop = 1"
        result.promises.append(Promise(text, 0.95, True, share))
    rows += [row(name) for name in operation.plain]
    notes = [f"{size_text(race.huge_bytes)} of the process were in transparent huge pages."]
    if operation.drop:
        notes.append("Dropped before each run, not timed.")
    title = f"{operation.name}, {size_text(operation.nbytes)}, {max_threads()} threads"
    headers = ("", "GiB/s", f"speed, {base} = 1", "speed, the C loop = 1")
    result.tables.append(Table(title, headers, rows, tuple(notes)))
    result.samples[operation.name] = race.times


def _huge_bytes() -> int:
    """How much of this process's memory is in transparent huge pages now."""
    with suppress(OSError):
        text = Path("/proc/self/smaps_rollup").read_text()
        match = re.search(r"^AnonHugePages:\s+(\d+) kB", text, re.MULTILINE)
        if match:
            return int(match[1]) * 1024
    return 0
