# SPDX-License-Identifier: MIT
# What a stream costs: items of some microseconds and of a millisecond, an item that comes alone,
# and padata's own use, packets that are encrypted and leave in order.
#
# Items do work that lets go of the GIL, since other work gains nothing from threads; what a stream
# costs work that holds it is told too. The cost above the work is what an item takes beyond its
# time in a plain loop, divided by the threads. Encryption writes into buffers that are made before,
# as a server's are: what memory costs that is allocated on one thread and freed on another is
# malloc's.
"""`bench ordered`."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import os
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from time import perf_counter, thread_time
from typing import Any

from aioktask import Job, map_ordered, map_ordered_sync, max_threads, run_multithreaded
from aioktask.bench.awaited import consecutive
from aioktask.bench.event_loops import loops
from aioktask.bench.peers import nothing
from aioktask.bench.promises import Promise, Result
from aioktask.figures.measure import Contender, Interval, alternate, interval, microseconds, ratio
from aioktask.figures.table import Table

__all__ = ["run"]

WIDE = 1024  # a window for items that cost next to nothing
NARROW = 64

STREAM, WIDE_STREAM = "map_ordered", f"map_ordered, window={WIDE}"
SYNC, POOL, EACH, JOB, PLAIN = (
    "map_ordered_sync",
    "executor.map",
    "to_thread, a task an item",
    "one unordered job",
    "a plain loop",
)

Item = Callable[[int], object]


def run(quick: bool, progress: Callable[[str], object]) -> Result:
    """The cost of a stream's items, beside the same work done otherwise.

    Args:
        quick: Some seconds only.
        progress: Called with a line about what is measured now.
    """
    result = Result("ordered", quick)
    rounds = 2 if quick else 15
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        pool = stack.enter_context(ThreadPoolExecutor(max_threads()))
        runner.get_loop().set_default_executor(pool)
        few, many = (40, 400) if quick else (200, 10_000)
        short, long = _hashes(10e-6), _hashes(1e-3)
        progress("items of 10 us")
        times = _items(result, "Items of 10 us", short, many, rounds, runner, pool)
        result.promises += [
            Promise(
                "an item of 10 us, cost above the work, of executor.map's",
                1 / 3,
                False,
                _above(times, STREAM, POOL),
            ),
            _share("an item of 10 us, speed of one unordered job", 0.9, times, STREAM),
            _share(f"the same, window={WIDE}", 0.9, times, WIDE_STREAM),
        ]
        progress("items of 1 ms")
        times = _items(result, "Items of 1 ms", long, few, rounds, runner, pool)
        result.promises.append(
            _share("an item of 1 ms, speed of one unordered job", 0.97, times, STREAM)
        )
        progress("items of 10 us that hold the GIL")
        _items(result, "Items of 10 us that hold the GIL", _sums(10e-6), many, rounds, runner, pool)
        progress("items that come alone")
        _alone(result, quick)
        _packets(result, quick, rounds, runner, pool, progress)
    return result


# The work.


def _hashes(seconds: float) -> Item:
    """A function of an item that takes so long, and lets go of the GIL."""
    data = bytes(max(int(_rate(lambda size: hashlib.sha256(bytes(size)), 1 << 20) * seconds), 2048))

    def one(item: int) -> None:
        hashlib.sha256(data).digest()

    return one


def _sums(seconds: float) -> Item:
    """A function of an item that takes so long, and holds the GIL."""
    numbers = range(max(int(_rate(lambda size: sum(range(size)), 1 << 20) * seconds), 1))

    def one(item: int) -> None:
        sum(numbers)

    return one


def _rate(work: Callable[[int], object], size: int) -> float:
    """Units a second."""
    taken = []
    for _ in range(5):
        began = perf_counter()
        work(size)
        taken.append(perf_counter() - began)
    return size / min(taken)


# Many items.


def _items(
    result: Result,
    title: str,
    one: Item,
    count: int,
    rounds: int,
    runner: asyncio.Runner,
    pool: ThreadPoolExecutor,
) -> dict[str, tuple[float, ...]]:
    """Measure so many items in every way; adds a table."""
    contenders = [
        _stream(STREAM, one, count, NARROW, runner),
        _stream(WIDE_STREAM, one, count, WIDE, runner),
        Contender(SYNC, partial(_sync, one, count), count),
        _job(one, count, runner),
        Contender(POOL, partial(_pool_map, pool, one, count), count),
        Contender(EACH, lambda: runner.run(_tasks(one, count)), count),
        Contender(PLAIN, partial(_plain, one, count), count),
    ]
    times = alternate(contenders, rounds)
    loop = alternate(contenders[:2], min(rounds, 5), clock=thread_time)
    work = statistics.median(times[PLAIN]) / max_threads()
    result.tables.append(
        Table(
            title,
            ("", "us an item", "above the work, us", "speed of the job", "loop's CPU, us an item"),
            [
                (
                    name,
                    microseconds(values),
                    (statistics.median(values) - work) * 1e6,
                    None if name == JOB else ratio(times[JOB], values),
                    microseconds(loop[name]) if name in loop else None,
                )
                for name, values in times.items()
            ],
            (f"{count:,} items; the window is {NARROW} where it is not said.",),
        )
    )
    result.samples[title] = times
    return times


def _stream(name: str, one: Item, count: int, window: int, runner: asyncio.Runner) -> Contender:
    return Contender(name, lambda: runner.run(_consume(one, count, window)), count)


async def _consume(one: Item, count: int, window: int) -> None:
    async with map_ordered(one, range(count), window=window) as results:
        async for _ in results:
            pass


def _sync(one: Item, count: int) -> None:
    with map_ordered_sync(one, range(count)) as results:
        for _ in results:
            pass


def _job(one: Item, count: int, runner: asyncio.Runner) -> Contender:
    def chunk(start: int, stop: int) -> None:
        for item in range(start, stop):
            one(item)

    job = Job(chunk, count)
    return Contender(JOB, lambda: runner.run(run_multithreaded(job)), count)


def _pool_map(pool: ThreadPoolExecutor, one: Item, count: int) -> None:
    for _ in pool.map(one, range(count)):
        pass


async def _tasks(one: Item, count: int) -> None:
    for start in range(0, count, NARROW):
        stop = min(start + NARROW, count)
        await asyncio.gather(*[asyncio.to_thread(one, item) for item in range(start, stop)])


def _plain(one: Item, count: int) -> None:
    for item in range(count):
        one(item)


def _above(times: dict[str, tuple[float, ...]], ours: str, theirs: str) -> Interval:
    """The ratio of two contenders' cost above the work, from the ratios within each round."""
    threads = max_threads()
    rounds = zip(times[ours], times[theirs], times[PLAIN], strict=True)
    return interval((a - work / threads) / (b - work / threads) for a, b, work in rounds)


def _share(
    text: str, least: float, times: dict[str, tuple[float, ...]], ours: str, of: str = JOB
) -> Promise:
    return Promise(text, least, True, ratio(times[of], times[ours]))


# One item.


def _alone(result: Result, quick: bool) -> None:
    """An item that comes when the value before it was given, beside a job of one chunk."""
    count, rounds = (20, 2) if quick else (500, 31)
    job = Job(nothing, 1, chunk=1)

    rows: list[tuple[object, ...]] = []
    for name, factory in loops().items():
        if factory is None:
            rows.append((name, "not installed", None, None, None))
            continue
        with asyncio.Runner(loop_factory=factory) as runner:
            times = alternate(
                [
                    _stream("stream", _no_work, count, 1, runner),
                    consecutive("job", runner, count, run_multithreaded, job),
                    consecutive("to_thread", runner, count, asyncio.to_thread, nothing, 0, 1),
                ],
                rounds,
            )
        share = ratio(times["stream"], times["job"])
        figures = [microseconds(each) for each in times.values()]
        rows.append((name, *figures, share))
        result.samples[f"an item that comes alone, on {name}"] = times
        text = f"an item that comes alone, of a short awaited job, on {name}"
        result.promises.append(Promise(text, 1.5, False, share))
    result.tables.append(
        Table(
            "An item that comes alone",
            ("", "of a stream, us", "a job of one chunk, us", "to_thread, us", "stream / job"),
            rows,
            ("A window of one: each item comes when the value before it was given.",),
        )
    )


def _no_work(item: int) -> None:
    """Do nothing for an item."""


# Packets.


def _packets(
    result: Result,
    quick: bool,
    rounds: int,
    runner: asyncio.Runner,
    pool: ThreadPoolExecutor,
    progress: Callable[[str], object],
) -> None:
    """Packets that are encrypted by AES-GCM, and leave in order."""
    if importlib.util.find_spec("cryptography") is None:
        missing = "not installed: pip install cryptography"
        rows: list[tuple[object, ...]] = [("cryptography", missing, None, None)]
        result.tables.append(Table("Packets, AES-GCM", ("", "", "", ""), rows))
        return
    for text, size, count in (("1 MiB", 1 << 20, 300), ("64 KiB", 1 << 16, 4000)):
        progress(f"packets of {text}")
        count = max(count // 20, 4) if quick else count
        one = _encryption(size)
        contenders = [
            _stream(STREAM, one, count, NARROW, runner),
            Contender(SYNC, partial(_sync, one, count), count),
            Contender(POOL, partial(_pool_map, pool, one, count), count),
            Contender(EACH, lambda one=one, count=count: runner.run(_tasks(one, count)), count),  # type: ignore[misc]
            Contender("in the loop", partial(_plain, one, count), count),
        ]
        times = alternate(contenders, rounds)
        loop = alternate([contenders[0], contenders[-1]], min(rounds, 5), clock=thread_time)
        result.tables.append(_packet_table(text, size, count, times, loop))
        result.samples[f"packets of {text}"] = times
        least = 1.8 if size == 1 << 20 else 1.0
        result.promises.append(
            _share(f"packets of {text}, of the loop doing it", least, times, STREAM, "in the loop")
        )


def _packet_table(
    text: str,
    size: int,
    count: int,
    times: dict[str, tuple[float, ...]],
    loop: dict[str, tuple[float, ...]],
) -> Table:
    return Table(
        f"Packets of {text}, AES-GCM",
        ("", "us a packet", "GiB/s", "of the loop doing it", "loop's CPU, us a packet"),
        [
            (
                name,
                microseconds(values),
                interval(size / each / (1 << 30) for each in values),
                None if name == "in the loop" else ratio(times["in the loop"], values),
                microseconds(loop[name]) if name in loop else None,
            )
            for name, values in times.items()
        ],
        (f"{count:,} packets, each into one of {NARROW + 2} buffers.",),
    )


def _encryption(size: int) -> Item:
    """Encrypts one packet, always the same, into the buffer that is next."""
    aead: Any = importlib.import_module("cryptography.hazmat.primitives.ciphers.aead")
    cipher = aead.AESGCM(os.urandom(16))
    packet = os.urandom(size)
    buffers: Sequence[bytearray] = [bytearray(size + 16) for _ in range(NARROW + 2)]

    def one(item: int) -> None:
        buffer = buffers[item % len(buffers)]
        cipher.encrypt_into(item.to_bytes(12, "big"), packet, None, buffer)

    return one
