# SPDX-License-Identifier: MIT
# The one await: splits, runs off the loop, reports, and fails well. On asyncio, uvloop and trio.

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import anyio
import pytest

import aioktask
from aioktask import (
    Coordinator,
    Job,
    Part,
    current_chunk,
    failure,
    run_multithreaded,
    run_multithreaded_sync,
)
from tests.support.gates import Gate, units

pytestmark = [pytest.mark.anyio, pytest.mark.max_threads(2)]


async def test_every_unit_is_done_once_and_the_loop_stays_alive() -> None:
    gate = Gate()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_multithreaded, Job(gate.chunk, 103, start=7, chunk=10))
        await gate.entered(2)  # two chunks run, and this loop too
        gate.open()
    assert units(gate.done) == list(range(7, 110))


async def test_no_chunk_runs_on_the_thread_of_the_loop() -> None:
    threads: set[int] = set()
    await run_multithreaded(Job(lambda a, b: threads.add(threading.get_ident()), 50, chunk=1))
    assert threads
    assert threading.get_ident() not in threads


async def test_chunks_end_on_absolute_multiples() -> None:
    seen: list[tuple[int, int]] = []
    await run_multithreaded(Job(lambda a, b: seen.append((a, b)), 25, start=13, chunk=10))
    assert sorted(seen) == [(13, 20), (20, 30), (30, 38)]


async def test_no_chunk_crosses_the_edge_of_a_part() -> None:
    seen: list[tuple[int, int]] = []
    parts = [Part(0, 15, 0), Part(15, 40, 1)]
    await run_multithreaded(Job(lambda a, b: seen.append((a, b)), 40, chunk=10, parts=parts))
    assert sorted(seen) == [(0, 10), (10, 15), (15, 20), (20, 30), (30, 40)]


async def test_the_report_tells_what_happened() -> None:
    barrier = threading.Barrier(2, timeout=60)
    report = await run_multithreaded(Job(lambda a, b: barrier.wait(), 2, chunk=1))
    assert report.value is None
    assert (report.chunks, report.peak_threads, len(report.busy)) == (2, 2, 2)
    assert report.queued > 0
    assert report.elapsed > 0
    assert report.cpu_time > 0
    assert all(wall > 0 for wall in report.busy)


async def test_a_job_of_size_0_is_done() -> None:
    report = await run_multithreaded(Job(lambda a, b: pytest.fail("called"), 0))
    assert (report.value, report.chunks, report.peak_threads) == (None, 0, 0)
    empty = Job(max, 0, reduce=max, initial=5)
    assert (await run_multithreaded(empty)).value == 5


async def test_a_reduce_gives_the_same_bits_on_any_number_of_threads() -> None:
    def add(a: float, b: float) -> float:
        return a + b

    values = [0.1 * unit**0.5 for unit in range(5000)]
    job = Job(lambda a, b: sum(values[a:b]), 5000, reduce=add, min_chunk=7, initial=0.3)
    found = set()
    for threads in (1, 2, 3, 4):
        aioktask.set_max_threads(threads)
        found.add((await run_multithreaded(job)).value)
    assert len(found) == 1
    assert found.pop() == pytest.approx(0.3 + sum(values))


async def test_reduce_keeps_the_order_and_a_job_can_run_again() -> None:
    job = Job(lambda a, b: [(a, b)], 100, chunk=7, reduce=lambda a, b: a + b, initial=["start"])

    def extend(a: list[Any], b: list[Any]) -> list[Any]:
        a.extend(b)  # a reduce may change its first argument
        return a

    changing = Job(lambda a, b: [(a, b)], 100, chunk=7, reduce=extend, initial=["start"])
    expected = ["start", *((a, min(a + 7, 100)) for a in range(0, 100, 7))]
    for each in (job, changing, changing):
        assert (await run_multithreaded(each)).value == expected


async def test_the_exception_of_a_chunk_is_raised_as_it_is() -> None:
    error = OSError(12, "no memory")

    def fail(start: int, stop: int) -> None:
        if start == 40:
            raise error

    job = Job(fail, 100, chunk=10, name="pinning")
    with pytest.raises(OSError, match="no memory") as caught:
        await run_multithreaded(job)
    assert caught.value is error
    assert caught.value.errno == 12
    assert any("pinning" in note and "40 to 50" in note for note in error.__notes__)
    told = failure(error)
    assert (told.job, told.chunk, told.inner) == (job, range(40, 50), None)
    assert told.unknown == (range(40, 50),)
    assert told.undone == ()
    assert all(unit in range(100) for each in told.done for unit in each)


async def test_further_exceptions_are_kept() -> None:
    barrier = threading.Barrier(2, timeout=60)

    def fail(start: int, stop: int) -> None:
        barrier.wait()
        raise ValueError(start)

    with pytest.raises(ValueError, match=r"0|1") as caught:
        await run_multithreaded(Job(fail, 2, chunk=1))
    told = failure(caught.value)
    assert told.chunk is not None
    (other,) = told.errors
    assert {caught.value.args[0], other.args[0]} == {0, 1}
    assert told.unknown == (range(2),)


@pytest.mark.parametrize("misread", [StopIteration, StopAsyncIteration, asyncio.CancelledError])
async def test_what_the_waiter_would_misread_becomes_a_runtime_error(
    misread: type[BaseException],
) -> None:
    def fail(start: int, stop: int) -> None:
        raise misread

    with pytest.raises(RuntimeError, match=misread.__name__) as caught:
        await run_multithreaded(Job(fail, 1))
    assert isinstance(caught.value.__cause__, misread)


async def test_a_system_exit_of_a_chunk_reaches_the_waiter_and_no_helper_dies() -> None:
    def leave(start: int, stop: int) -> None:
        raise SystemExit(3)

    for _ in range(3):
        with pytest.raises(SystemExit):
            await run_multithreaded(Job(leave, 1))
    await run_multithreaded(Job(lambda a, b: None, 10, chunk=1))


async def test_an_exception_of_reduce_is_the_job_s() -> None:
    undone: list[tuple[int, int]] = []

    def fail(a: int, b: int) -> int:
        raise ZeroDivisionError("in reduce")

    job = Job(lambda a, b: 1, 4, chunk=1, reduce=fail, undo=lambda a, b: undone.append((a, b)))
    with pytest.raises(ZeroDivisionError) as caught:
        await run_multithreaded(job)
    told = failure(caught.value)
    assert told.chunk is None
    assert units(undone) == [unit for each in told.undone for unit in each]
    assert units(undone)[:2] == [0, 1]


async def test_context_variables_reach_chunks_and_stay_there() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("outside")
    seen: list[str] = []

    def chunk(start: int, stop: int) -> None:
        seen.append(variable.get())
        variable.set("inside")

    await run_multithreaded(Job(chunk, 1))
    await run_multithreaded(Job(chunk, 1))
    assert seen == ["outside", "outside"]
    assert variable.get() == "outside"


async def test_a_chunk_may_run_a_loop_of_its_own() -> None:
    async def inner() -> str:
        await anyio.lowlevel.checkpoint()
        return "ran"

    found: list[str] = []
    await run_multithreaded(Job(lambda a, b: found.append(anyio.run(inner)), 1))
    await run_multithreaded(Job(lambda a, b: found.append(asyncio.run(inner())), 1))
    assert found == ["ran", "ran"]


async def test_in_a_cancelled_scope_nothing_starts() -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await run_multithreaded(Job(lambda a, b: pytest.fail("called"), 10))
    assert scope.cancelled_caught


async def test_it_is_a_checkpoint_even_when_there_is_nothing_to_do() -> None:
    turns: list[str] = []

    async def other() -> None:
        turns.append("other")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        await run_multithreaded(Job(print, 0))
        assert turns == ["other"]


async def test_the_sync_form_is_refused_on_the_thread_of_a_loop() -> None:
    with pytest.raises(RuntimeError, match="await run_multithreaded"):
        run_multithreaded_sync(Job(lambda a, b: pytest.fail("called"), 10))


async def test_what_is_no_job_is_refused() -> None:
    with pytest.raises(TypeError, match="a Job is needed, got 'x'"):
        await run_multithreaded("x")  # type: ignore[arg-type]


async def test_loops_in_several_threads_share_the_helpers() -> None:
    before = threading.active_count()
    gate = Gate()
    names: set[str] = set()

    def chunk(start: int, stop: int) -> None:
        names.add(threading.current_thread().name)
        gate.chunk(start, stop)

    async def elsewhere() -> None:
        await run_multithreaded(Job(chunk, 4, chunk=1, name="elsewhere"))

    async with anyio.create_task_group() as tasks:
        for backend in ("asyncio", "trio"):
            tasks.start_soon(
                lambda name=backend: anyio.to_thread.run_sync(
                    lambda: anyio.run(elsewhere, backend=name)
                )
            )
        await gate.entered(2)
        more = threading.active_count() - before
        gate.open()
    assert more < 12  # two loops and what they bring, and no helper for each of them
    assert units(gate.done) == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_the_current_chunk_knows_its_range() -> None:
    seen: list[tuple[int, int]] = []

    def chunk(start: int, stop: int) -> None:
        now = current_chunk()
        assert (now.start, now.stop) == (start, stop)
        seen.append((now.start, now.stop))

    await run_multithreaded(Job(chunk, 100, start=3, chunk=8))
    assert len(seen) == 13
    with pytest.raises(RuntimeError, match="no current chunk"):
        current_chunk()


async def test_a_chunk_that_is_over_takes_no_more_advances() -> None:
    chunks = []
    await run_multithreaded(Job(lambda a, b: chunks.append(current_chunk()), 2, chunk=2))
    with pytest.raises(RuntimeError, match="is over"):
        chunks[0].advance(1)
    chunks[0].check_cancelled()


async def test_advance_refuses_what_goes_back_or_out_of_the_chunk() -> None:
    def chunk(start: int, stop: int) -> None:
        now = current_chunk()
        for _ in range(2):
            now.advance(start)  # nothing yet
            for wrong in (start - 1, stop + 1):
                with pytest.raises(ValueError, match=f"got {wrong}"):
                    now.advance(wrong)
        now.advance(start + 5)
        now.advance(start + 5)
        for wrong in (start, start + 4):
            with pytest.raises(ValueError, match=rf"not below the last one \({start + 5}\)"):
                now.advance(wrong)
        with pytest.raises(TypeError, match=r"2\.5"):
            now.advance(2.5)  # type: ignore[arg-type]
        now.advance(stop)

    await run_multithreaded(Job(chunk, 20, chunk=10))


async def test_the_cap_of_a_coordinator_holds() -> None:
    gate = Gate()
    async with Coordinator(max_threads=1) as coordinator:
        first = coordinator.submit(Job(gate.chunk, 4, chunk=1))
        second = coordinator.submit(Job(gate.chunk, 4, chunk=1))
        await gate.entered()
        assert first.progress().threads + second.progress().threads == 1
        gate.open()
    assert (await first).peak_threads == (await second).peak_threads == 1


async def test_the_cap_of_a_job_holds() -> None:
    report = await run_multithreaded(Job(lambda a, b: None, 200, chunk=1, max_threads=1))
    assert report.peak_threads == 1


async def test_a_limit_can_be_raised_while_a_job_runs() -> None:
    gate = Gate()
    async with Coordinator(max_threads=1) as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 8, chunk=1, max_threads=1))
        await gate.entered()
        coordinator.max_threads = 2
        handle.max_threads = 2
        await gate.entered()
        assert handle.progress().threads == 2
        gate.open()
        assert (await handle).peak_threads == 2


async def test_a_short_job_is_served_beside_a_long_one() -> None:
    gate = Gate()
    started = threading.Event()
    stop = threading.Event()

    def busy(start: int, stop_: int) -> None:
        started.set()
        if not stop.is_set():
            gate._open.wait(0.001)

    async with Coordinator() as coordinator:
        long = coordinator.submit(Job(busy, 100_000, chunk=1, name="long"))
        await anyio.to_thread.run_sync(started.wait)
        await run_multithreaded(Job(lambda a, b: None, 4, chunk=1, name="short"))
        assert not long.done()
        stop.set()
        gate.open()


async def test_idle_threads_share_what_turns_out_slow() -> None:
    """Many free chunks, then slow ones in the same stretch: the other helper gets its part."""
    threads: set[int] = set()
    both = threading.Event()

    def uneven(start: int, stop: int) -> None:
        if start >= 20_000:
            threads.add(threading.get_ident())
            if len(threads) >= 2:
                both.set()
            both.wait(0.05)

    await run_multithreaded(Job(uneven, 20_040, chunk=1))
    assert len(threads) >= 2
