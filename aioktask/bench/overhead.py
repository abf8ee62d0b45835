# SPDX-License-Identifier: MIT
# What the engine costs where the work costs nothing: a chunk, a crowd that goes away, a job's
# memory. What it costs to await a short job is measured in `awaited`.
#
# Each chunk is one call of the same empty function, in a job that carries an `undo=`, since that is
# what the bookkeeping is for. A crowd is told as a whole, by how long it keeps the loop.
"""`bench overhead`."""

from __future__ import annotations

import asyncio
import gc
import statistics
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from pathlib import Path
from time import perf_counter

import aioktask
from aioktask import Job, Report, configure, run_multithreaded, set_max_threads, tunables
from aioktask.bench.awaited import measure_short_jobs, measure_single_calls
from aioktask.bench.event_loops import loops
from aioktask.bench.peers import PEERS, nothing
from aioktask.bench.promises import PAIRS, Promise, Result, against_best
from aioktask.bench.segments import measure_segments
from aioktask.figures.measure import (
    Contender,
    Interval,
    alternate,
    interval,
    microseconds,
    ratio,
    turns,
)
from aioktask.figures.table import Table

__all__ = ["run"]

HELPERS = (1, 2, 4, 16)
MILLI = 1e3
KIB = 1 << 10


def run(quick: bool, progress: Callable[[str], object], *, segments: bool = False) -> Result:
    """The cost of an empty chunk, a short awaited job and a crowd; the memory that a job adds.

    Args:
        quick: Some seconds only.
        progress: Called with a line about what is measured now.
        segments: Only where the time of a short awaited job goes, on both threads.
    """
    result = Result("overhead", quick)
    with _all_helpers():
        if segments:
            measure_segments(result, loops(), 200 if quick else 5000, progress)
            return result
        # First, while there are as many helpers as usual.
        measure_short_jobs(result, quick, progress)
        measure_single_calls(result, quick, progress)
        _crowds(result, quick, progress)
        with _threads(max(HELPERS)):
            _empty_chunk(result, quick, progress)
            _memory(result, quick, progress)
    return result


@contextmanager
def _all_helpers() -> Iterator[None]:
    """Give up no helper to other processes: so many are waited for, or named in a table."""
    before = tunables()["share"]
    configure(share="off")
    try:
        yield
    finally:
        configure(share=before)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    set_max_threads(threads)
    try:
        yield
    finally:
        set_max_threads(None)


def _empty_chunk(result: Result, quick: bool, progress: Callable[[str], object]) -> None:
    chunks = 20_000 if quick else 500_000
    rounds = 2 if quick else 11
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        present = [peer for peer in PEERS if not peer.missing]
        ours = {threads: _engine(runner, chunks, threads) for threads in HELPERS}
        loop = Contender("a for loop, no threads", lambda: _plain_loop(chunks), chunks)
        rivals = []
        for peer in present:
            amount = max(peer.chunks // 20, 20) if quick else peer.chunks
            work = stack.enter_context(peer.opened(2))
            rivals.append(Contender(peer.name, lambda w=work, n=amount: w(n), amount))  # type: ignore[misc]
        progress(f"empty chunks: {rounds} rounds")
        times = alternate([*ours.values(), loop, *rivals], rounds)
        progress("empty chunks: pairs with the best peer")
        pairs = 3 if quick else PAIRS
        best, fresh = against_best(ours[2], rivals, sweep=times, pairs=pairs)
    share = ratio(fresh[ours[2].name], fresh[best.name])
    two = statistics.median(times[ours[2].name])
    result.tables.append(
        Table(
            "One empty chunk",
            ("", "helpers", "us a chunk", "times aioktask with 2"),
            [
                *[(e.name, n, microseconds(times[e.name]), None) for n, e in ours.items()],
                (loop.name, None, microseconds(times[loop.name]), None),
                *[
                    (peer.name, 2, microseconds(times[peer.name]), _times(times[peer.name], two))
                    if not peer.missing
                    else (peer.name, 2, "not installed", None)
                    for peer in PEERS
                ],
            ],
            (
                f"Each chunk is one call of an empty function; {chunks:,} chunks a job for "
                "aioktask, with undo=; fewer for the peers, which are slow.",
                f"The best peer is {best.name}: {pairs} fresh pairs with it give the ratio below.",
            ),
        )
    )
    result.samples["empty chunk"] = times
    result.samples["empty chunk, pairs with the best peer"] = fresh
    result.promises += [
        Promise("one empty chunk, 2 helpers, us", 0.3, False, microseconds(fresh[ours[2].name])),
        Promise(f"the same, of {best.name}", 1 / 50, False, share),
    ]


def _engine(runner: asyncio.Runner, chunks: int, threads: int) -> Contender:
    job = Job(nothing, chunks, chunk=1, max_threads=threads, undo=nothing)
    name = f"aioktask, {threads} helper{'s' * (threads > 1)}"
    return Contender(name, lambda: runner.run(run_multithreaded(job)), chunks)


def _plain_loop(chunks: int) -> None:
    for start in range(chunks):
        nothing(start, start + 1)


def _crowds(result: Result, quick: bool, progress: Callable[[str], object]) -> None:
    """How long the loop is kept when many tasks that wait are cancelled in one go."""
    crowd = 200 if quick else 5_000
    rounds = 2 if quick else 6
    progress(f"crowds: {rounds} rounds")
    kept: dict[str, list[float]] = {name: [] for name in _CROWDS}
    gc.collect()
    gc.freeze()  # else a full collection amid a crowd visits all that this benchmark has imported
    try:
        with asyncio.Runner() as runner:
            for order in turns(len(kept), rounds):
                for name in [list(kept)[at] for at in order]:
                    gc.collect()
                    kept[name].append(runner.run(_kept(_CROWDS[name], crowd)))
    finally:
        gc.unfreeze()
    bare = kept[BARE]
    rows: list[tuple[object, ...]] = []
    for name, seconds in kept.items():
        later = interval((a - b) * MILLI for a, b in zip(seconds, bare, strict=True))
        beside = (None, None) if name == BARE else (later, ratio(seconds, bare))
        rows.append((name, interval(each * MILLI for each in seconds), *beside))
    result.samples["crowds, seconds that the loop is kept"] = {
        name: tuple(values) for name, values in kept.items()
    }
    result.tables.append(
        Table(
            f"{crowd:,} tasks, cancelled in one go",
            ("they wait for", "the loop is kept, ms", "longer than futures, ms", "of futures"),
            rows,
            (
                "Kept: the longest that a callback of the loop had to wait, on asyncio, from the "
                "first cancel on until all tasks are done. The collector does not visit what the "
                "benchmark itself had before.",
            ),
        )
    )


@asynccontextmanager
async def _bare_futures(tasks: int) -> AsyncIterator[list[asyncio.Task[object]]]:
    loop = asyncio.get_running_loop()

    async def wait() -> object:
        return await loop.create_future()

    yield [asyncio.ensure_future(wait()) for _ in range(tasks)]


@asynccontextmanager
async def _one_job(tasks: int) -> AsyncIterator[list[asyncio.Task[object]]]:
    release = threading.Event()
    async with aioktask.Coordinator() as coordinator:
        handle = coordinator.submit(Job(lambda start, stop: release.wait(60), 1, chunk=1))

        async def wait() -> object:
            return await handle

        yield [asyncio.ensure_future(wait()) for _ in range(tasks)]
        release.set()


@asynccontextmanager
async def _own_jobs(tasks: int) -> AsyncIterator[list[asyncio.Task[object]]]:
    begun, release = threading.Semaphore(0), threading.Event()
    helpers = aioktask.max_threads()
    job = Job(nothing, 1, chunk=1)

    def keep_a_helper(start: int, stop: int) -> None:
        begun.release()
        release.wait(60)

    async with aioktask.Coordinator() as coordinator:
        coordinator.submit(Job(keep_a_helper, helpers, chunk=1))
        for _ in range(helpers):
            await asyncio.to_thread(begun.acquire)
        yield [asyncio.ensure_future(run_multithreaded(job)) for _ in range(tasks)]
        release.set()


Crowd = Callable[[int], AbstractAsyncContextManager[list[asyncio.Task[object]]]]

BARE = "futures that nobody sets"

_CROWDS: dict[str, Crowd] = {
    "one job, awaited by all": _one_job,
    "a job each": _own_jobs,
    BARE: _bare_futures,
}


async def _kept(crowd: Crowd, size: int) -> float:
    """Seconds that the loop is kept at most while such a crowd is cancelled."""
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        while True:
            begun = perf_counter()
            await asyncio.sleep(0)
            worst = max(worst, perf_counter() - begun)

    async with crowd(size) as tasks:
        await asyncio.sleep(0.5)  # until the engine has nothing to do but wait
        ticking = asyncio.ensure_future(tick())
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        ticking.cancel()
    return worst


def _memory(result: Result, quick: bool, progress: Callable[[str], object]) -> None:
    most = max(HELPERS)
    rows: list[tuple[object, ...]] = []
    for chunks in (1000, 20_000 if quick else 1_000_000):
        progress(f"memory of a job of {chunks:,} chunks")
        engine, everything, threads = _job_memory(chunks, most)
        rows.append((f"{chunks:,} chunks", threads, engine / KIB, everything / KIB))
        once = Interval(engine / KIB, engine / KIB, engine / KIB, 1)
        text = f"memory the engine adds at {chunks:,} chunks, KiB"
        result.promises.append(Promise(text, 64, False, once))
    result.tables.append(
        Table(
            "Memory that a job adds",
            ("", "helpers", "engine, KiB", "everything, KiB"),
            rows,
            (
                "Engine: what its own files allocated and hold, the largest of some snapshots "
                "while the job runs. Everything: the peak of all that Python allocated in that "
                "time, the event loop's and the job's own included.",
            ),
        )
    )


def _job_memory(chunks: int, threads: int) -> tuple[int, int, int]:
    """Bytes: of the engine, of everything at its peak; and the helpers that took part."""
    with asyncio.Runner() as runner:

        def once(look: Callable[[], None]) -> Report[None]:
            job = Job(
                _all_meet(chunks, threads, look),
                chunks,
                chunk=1,
                max_threads=threads,
                undo=nothing,
            )
            return runner.run(run_multithreaded(job))

        once(lambda: None)  # the helpers are there from now on
        tracemalloc.start()
        try:
            once(lambda: None)
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            report = once(lambda: None)
            everything = tracemalloc.get_traced_memory()[1] - before
            # Snapshots take memory themselves, so they have a job of their own.
            own = [tracemalloc.Filter(True, str(Path(aioktask.__file__).parent / "engine" / "*"))]
            held: list[int] = []

            def look() -> None:
                held.append(_total(tracemalloc.take_snapshot().filter_traces(own)))

            look()
            once(look)
        finally:
            tracemalloc.stop()
    return max(held) - held[0], everything, report.peak_threads


def _all_meet(chunks: int, threads: int, look: Callable[[], None]) -> Callable[[int, int], None]:
    """A chunk's function: every helper takes part, and `look` is called at eight places."""
    barrier = threading.Barrier(threads)
    seen = threading.local()
    every = chunks // 8

    def meet(start: int, stop: int) -> None:
        if not hasattr(seen, "met"):
            seen.met = True
            with suppress(threading.BrokenBarrierError):  # fewer came: the table says how many
                barrier.wait(timeout=5)
        if start % every == 0:
            look()

    return meet


def _total(snapshot: tracemalloc.Snapshot) -> int:
    return sum(trace.size for trace in snapshot.traces)


def _times(seconds: Sequence[float], base: float) -> float:
    return statistics.median(seconds) / base
