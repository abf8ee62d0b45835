# SPDX-License-Identifier: MIT
# Each number of a snapshot, checked against what a test has arranged; and that each job is in it
# once, wherever it is, whatever goes on meanwhile. Gates and events hold what is to be seen.

from __future__ import annotations

import ast
import contextlib
import gc
import inspect
import itertools
import os
import random
import re
import signal
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

import aioktask
from aioktask import (
    Coordinator,
    Job,
    JobCancelled,
    Overloaded,
    Snapshot,
    UndoFailed,
    map_ordered,
    map_ordered_sync,
    run_multithreaded,
    run_multithreaded_sync,
    snapshot,
)
from aioktask.engine.api import why_waiting
from aioktask.engine.api.process import current_pool
from aioktask.engine.machine.os_threads import process_nice
from aioktask.engine.scheduling.memory import MemoryBudget
from aioktask.engine.state.record import Ended
from aioktask.engine.state.run import OVER
from aioktask.job import Progress, StreamProgress
from aioktask.status import JobStatus
from aioktask.streams._exchange import Exchange
from tests.support.alone import sharing_with_nobody
from tests.support.gates import Gate, eventually, until
from tests.support.listening import listening
from tests.support.patience import PATIENCE

HELPERS = 2

pytestmark = pytest.mark.max_threads(HELPERS)


def nothing(start: int, stop: int) -> None:
    """A job's function."""


def named(found: Snapshot, name: str) -> JobStatus:
    """The latest job of this name, under way or over."""
    jobs = [each for each in (*found.jobs, *found.ended) if each.name == name]
    return max(jobs, key=lambda each: each.number)


@contextlib.contextmanager
def all_helpers_held(name: str = "holds all") -> Iterator[Gate]:
    """A job holds every helper until the block ends."""
    gate = Gate()
    with Coordinator() as coordinator:
        coordinator.submit(Job(gate.chunk, HELPERS, chunk=1, name=name))
        gate.wait_entered(HELPERS)
        try:
            yield gate
        finally:
            gate.open()


# A job that is under way.


def test_a_job_that_runs() -> None:
    gate = Gate()
    threads: list[int] = []

    def fn(start: int, stop: int) -> None:
        threads.append(threading.get_native_id())
        if start >= 104:
            gate.chunk(start, stop)

    before = time.time()
    with listening(10) as told, Coordinator() as coordinator:
        job = Job(
            fn, 12, start=100, chunk=2, max_threads=1, name="runs", nice=3, labels={"id": "7f"}
        )
        submitted = time.perf_counter()
        handle = coordinator.submit(job)
        gate.wait_entered()
        found = snapshot()
        age = time.perf_counter() - submitted
        status = named(found, "runs")
        assert status.number == told.wait("job_submitted", "runs")[0]["run"]
        assert (status.kind, status.labels, status.nice) == ("job", {"id": "7f"}, 3)
        assert (status.phase, status.threads, status.loan) == ("running", 1, None)
        assert (status.waits_for, status.ended, status.undone, status.stuck) == ("", None, 0, 0)
        assert isinstance(status.progress, Progress)
        assert (status.progress.done, status.progress.size, status.progress.chunks) == (4, 12, 2)
        assert status.progress.threads == 1
        assert 0 < status.queued < status.age <= age
        assert status.queued + status.elapsed == pytest.approx(status.age, abs=0.1)
        assert status.progress.rate == pytest.approx(4 / status.progress.elapsed)
        (helper,) = (each for each in found.helpers if each.job == status.number)
        assert (helper.kind, helper.state, helper.thread) == ("helper", "working", threads[0])
        assert (helper.chunk, helper.node) == (range(104, 106), None)
        assert helper.since == pytest.approx(status.elapsed, abs=0.1)
        assert found.helpers[0] == helper  # those that work first
        assert found.pid == os.getpid()
        assert before <= found.taken_at <= time.time()
        gate.open()
        report = handle.result()
    over = named(snapshot(), "runs")
    assert over.number == status.number
    assert (over.kind, over.labels, over.nice) == ("job", {"id": "7f"}, 3)
    assert (over.phase, over.threads) == ("finished", report.peak_threads)
    assert isinstance(over.progress, Progress)
    assert (over.progress.done, over.progress.size, over.progress.chunks) == (12, 12, 6)
    assert over.queued == pytest.approx(report.queued)
    assert over.elapsed == pytest.approx(report.elapsed)
    assert over.ended is not None
    assert 0 <= over.ended < over.age


def test_a_thread_that_takes_part_is_shown_as_a_caller() -> None:
    found: list[Snapshot] = []

    def fn(start: int, stop: int) -> None:
        found.append(snapshot())

    run_multithreaded_sync(Job(fn, 5, chunk=5, max_threads=1, name="here"))
    status = named(found[0], "here")
    (caller,) = (each for each in found[0].helpers if each.kind == "caller")
    assert (caller.state, caller.job, caller.chunk) == ("working", status.number, range(5))
    native = threading.get_native_id()
    assert (caller.thread, caller.nice, caller.node) == (native, process_nice(), None)
    assert (status.phase, status.threads) == ("running", 1)


@pytest.mark.anyio
async def test_a_call_is_shown_as_one() -> None:
    await aioktask.run(nothing, 0, 1, name="a call", labels={"id": "1"})
    over = named(snapshot(), "a call")
    assert (over.kind, over.phase, over.labels) == ("call", "finished", {"id": "1"})


def test_nested_jobs_are_shown_beside_the_chunk_that_waits_for_them() -> None:
    gate = Gate()

    def outer(start: int, stop: int) -> None:
        run_multithreaded_sync(Job(gate.chunk, 4, chunk=1, max_threads=1, name="inner"))

    with Coordinator() as coordinator:
        coordinator.submit(Job(outer, 1, name="outer"))
        gate.wait_entered()
        found = coordinator.snapshot()
        by_name = {each.name: each for each in found.jobs}
        assert set(by_name) == {"outer", "inner"}
        work = {(each.kind, each.job, each.chunk) for each in found.helpers if each.job is not None}
        assert work == {
            ("helper", by_name["outer"].number, range(1)),
            ("caller", by_name["inner"].number, range(1)),
        }
        assert len({each.thread for each in found.helpers if each.job is not None}) == 1
        assert found.limits.working == 1  # one thread, in two of them
        number = by_name["inner"].number
        assert by_name["outer"].waits_for == f"job {number} (inner), inside a chunk"
        assert by_name["inner"].waits_for == ""
        gate.open()


def test_of_another_job_s_long_name_only_the_beginning_is_told() -> None:
    gate = Gate()
    name = "x" * 10_000

    def outer(start: int, stop: int) -> None:
        run_multithreaded_sync(Job(gate.chunk, 1, name=name))

    with all_helpers_held(name) as held, Coordinator() as coordinator:
        coordinator.submit(Job(nothing, 1, name="waits for a thread"))
        until(lambda: "process" in named(snapshot(), "waits for a thread").waits_for)
        assert len(named(snapshot(), "waits for a thread").waits_for) < 300
        held.open()
        coordinator.submit(Job(outer, 1, name="waits for a job"))
        gate.wait_entered()
        assert 50 < len(named(snapshot(), "waits for a job").waits_for) < 100
        gate.open()


def test_threads_of_a_job_that_ended_meanwhile_are_at_no_job() -> None:
    pool = current_pool()
    having = why_waiting.Having(pool)
    stint = SimpleNamespace(run=OVER)
    fake: Any = SimpleNamespace(
        adapter=pool.adapter, state=SimpleNamespace(serving=[stint], blocking={})
    )
    having._pool = fake
    assert having.limit().startswith(f"{HELPERS} are at other jobs (")


@pytest.mark.max_threads(2 * HELPERS)
def test_a_job_whose_chunks_wait_for_several_others_says_how_many() -> None:
    gate = Gate()
    with Coordinator() as coordinator:
        held = [
            coordinator.submit(Job(gate.chunk, 1, name=f"awaited {number}")) for number in range(2)
        ]
        gate.wait_entered(2)
        waits = Job(lambda start, stop: held[start].result(), 2, chunk=1, name="waits")
        coordinator.submit(waits)
        until(lambda: " and 1 more" in named(snapshot(), "waits").waits_for)
        found = named(snapshot(), "waits").waits_for
        assert re.fullmatch(r"job \d+ \(awaited [01]\) and 1 more, inside a chunk", found)
        gate.open()
    assert named(snapshot(), "waits").waits_for == ""


def test_the_nice_that_a_waiter_lends_is_shown() -> None:
    with all_helpers_held() as gate, Coordinator() as coordinator:
        handle = coordinator.submit(Job(nothing, 1, nice=10, name="lent"))

        def wait() -> None:
            with aioktask.priority(2):
                handle.result()

        waits = threading.Thread(target=wait)
        waits.start()
        until(lambda: named(snapshot(), "lent").loan is not None)
        status = named(snapshot(), "lent")
        assert (status.nice, status.loan, status.lender) == (10, 2, None)
        handle.renice(4)
        until(lambda: named(snapshot(), "lent").nice == 4)
        gate.open()
        waits.join()


def test_the_job_whose_chunk_lends_is_named() -> None:
    gate = Gate()
    with Coordinator() as coordinator:
        lent = coordinator.submit(Job(gate.chunk, 1, nice=10, name="lent"))
        gate.wait_entered()
        coordinator.submit(Job(lambda start, stop: lent.result(), 1, nice=1, name="lender"))
        until(lambda: named(snapshot(), "lent").loan is not None)
        found = snapshot()
        assert named(found, "lent").loan == 1
        assert named(found, "lent").lender == named(found, "lender").number
        assert named(found, "lender").lender is None
        gate.open()


# Helpers and limits.


def test_idle_helpers_are_shown_and_who_limits_them() -> None:
    with sharing_with_nobody():
        with Coordinator() as coordinator:
            gate = Gate()
            coordinator.submit(Job(gate.chunk, HELPERS, chunk=1))
            gate.wait_entered(HELPERS)
            found = snapshot()
            assert found.limits.working == HELPERS
            assert [each.state for each in found.helpers].count("working") == HELPERS
            gate.open()
        until(lambda: snapshot().limits.working == 0)
        found = snapshot()
        assert {each.state for each in found.helpers} == {"idle"}
        for each in found.helpers:
            assert (each.job, each.chunk, each.since, each.stuck) == (None, None, 0.0, 0.0)
            assert each.thread
        limits = found.limits
        assert limits.threads == HELPERS
        assert f"set_max_threads({HELPERS})" in limits.reason
        assert (limits.share, limits.slots, limits.blocked) == (None, None, 0)
        assert limits.background >= 0


def test_a_coordinator_shows_its_own_jobs_and_what_it_sets() -> None:
    with Coordinator(max_threads=1, nice=5) as one, Coordinator() as other:
        one.submit(Job(nothing, 1, name="of one")).result()
        other.submit(Job(nothing, 1, name="of the other")).result()
        names = {each.name for each in one.snapshot().ended}
        assert names == {"of one"}
        limits = one.snapshot().coordinator_limits
        assert limits == {"max_threads": 1, "nice": 5}
        one.configure(max_threads=2)
        assert one.snapshot().coordinator_limits == {"max_threads": 2, "nice": 5}
        assert limits == {"max_threads": 1, "nice": 5}
    assert snapshot().coordinator_limits is None


def test_a_coordinator_shows_no_job_of_one_that_was_at_its_address() -> None:
    numbers = {Coordinator().scope()[1].number for _ in range(100)}  # at one address, most of them
    assert len(numbers) == 100
    with Coordinator() as coordinator:
        coordinator.submit(Job(nothing, 1)).result()
        (kept,) = (
            each
            for each in map(Ended._make, list(current_pool().state.past))
            if each.number == coordinator.snapshot().ended[0].number
        )
        assert kept.group == coordinator.scope()[1].number


def test_the_last_hundred_that_are_over_are_shown_the_latest_first() -> None:
    with Coordinator() as coordinator:
        for number in range(130):
            coordinator.submit(Job(nothing, 1, name=str(number))).result()
        ended = coordinator.snapshot().ended
    assert [each.name for each in ended] == [str(number) for number in range(129, 29, -1)]
    ages = [each.ended for each in ended]
    assert ages == sorted(ages, key=lambda age: age or 0.0)


# Why a job waits.


def test_what_waits_for_a_thread_of_the_process_names_its_cap() -> None:
    with all_helpers_held() as gate, Coordinator() as coordinator:
        coordinator.submit(Job(nothing, 1, name="waits"))
        until(lambda: "the process's" in named(snapshot(), "waits").waits_for)
        status = named(snapshot(), "waits")
        holds = named(snapshot(), "holds all").number
        assert status.waits_for == (
            f"a thread: the process's {HELPERS} are at job {holds} (holds all) "
            f"({snapshot().limits.reason})"
        )
        assert (status.phase, status.threads, status.elapsed) == ("waiting", 0, 0)
        assert status.queued == status.age > 0
        gate.open()


def test_nobody_knows_how_long_a_job_takes_that_has_no_thread() -> None:
    gate, more = Gate(), Gate()

    def waits_at_1(start: int, stop: int) -> None:
        if start:
            gate.chunk(start, stop)

    with Coordinator(max_threads=1) as coordinator:
        job = Job(waits_at_1, 4, chunk=1, name="gives way")
        coordinator.submit(job)
        gate.wait_entered()
        assert named(snapshot(), "gives way").progress.eta is not None
        # It comes first at the next chunk.
        urgent = coordinator.submit(Job(more.chunk, 1, nice=-20, name="urgent"))
        until(lambda: named(snapshot(), "urgent").waits_for)
        gate.open()
        more.wait_entered()
        until(lambda: named(snapshot(), "gives way").threads == 0)
        waits = named(snapshot(), "gives way")
        assert (waits.phase, waits.progress.eta) == ("running", None)
        more.open()
        urgent.result()


def test_what_waits_for_a_thread_of_its_coordinator_says_so() -> None:
    gate = Gate()
    with Coordinator(max_threads=1) as coordinator:
        coordinator.submit(Job(gate.chunk, 1, name="has it"))
        gate.wait_entered()
        coordinator.submit(Job(nothing, 1, name="waits"))
        has_it = f"its coordinator's 1 is at job {named(snapshot(), 'has it').number} (has it)"
        until(lambda: named(snapshot(), "waits").waits_for == f"a thread: {has_it}")
        gate.open()


@pytest.mark.max_threads(3)
def test_of_the_jobs_that_have_the_threads_the_one_with_most_is_named_and_others_counted() -> None:
    gate, other = Gate(), Gate()
    with Coordinator(max_threads=3) as coordinator:
        coordinator.submit(Job(other.chunk, 1, name="has one"))
        other.wait_entered()
        coordinator.submit(Job(gate.chunk, 2, chunk=1, name="b" * 1000))
        gate.wait_entered(2)
        coordinator.submit(Job(nothing, 1, name="waits"))
        number = named(snapshot(), "b" * 1000).number
        told = f"a thread: its coordinator's 3 are at job {number} ({'b' * 60}…) and 1 more"
        until(lambda: named(snapshot(), "waits").waits_for == told)
        gate.open()
        other.open()


@pytest.mark.anyio
async def test_a_job_that_settled_waits_for_whoever_awaits_it(anyio_backend: Any) -> None:
    for size in (1, 64):  # one of them in the lane, once that is open
        for _ in range(5):
            waits: list[JobStatus] = []

            def settle(size: int = size, waits: list[JobStatus] = waits) -> None:
                """On the loop's thread, which does not come to take the result."""
                until(lambda: named(snapshot(), "settles").phase == "settled")
                waits.append(named(snapshot(), "settles"))

            gate = Gate()
            job = Job(gate.chunk, size, chunk=1, undo=nothing, name="settles")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run_multithreaded, job)
                await gate.entered()
                gate.open()
                settle()
            assert waits[0].waits_for == "whoever awaits it to take the result"
            over = snapshot().ended[0]
            assert (over.name, over.phase, over.progress.done) == ("settles", "finished", size)


# How jobs end.


def test_a_job_that_failed_was_not_undone_without_an_undo() -> None:
    def fail_at_4(start: int, stop: int) -> None:
        if start == 4:
            raise OSError(5, "planted")

    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(fail_at_4, 10, chunk=2, max_threads=1, name="fails"))
        with pytest.raises(OSError, match="planted"):
            handle.result()
    over = named(snapshot(), "fails")
    assert (over.phase, over.progress.done, over.undone) == ("failed", 4, 0)
    assert (over.progress.size, over.threads) == (10, 1)
    assert (over.error, over.error_chunk) == ("OSError: [Errno 5] planted", range(4, 6))


def test_a_job_that_failed_and_was_undone() -> None:
    def fail_at_4(start: int, stop: int) -> None:
        if start == 4:
            raise OSError(5, "planted")

    with pytest.raises(OSError, match="planted"):
        run_multithreaded_sync(
            Job(fail_at_4, 10, chunk=2, max_threads=1, undo=nothing, name="undone")
        )
    over = named(snapshot(), "undone")
    assert (over.phase, over.progress.done, over.undone) == ("failed", 4, 4)
    assert (over.error, over.error_chunk) == ("OSError: [Errno 5] planted", range(4, 6))


def test_why_a_job_failed_is_told_while_it_is_undone() -> None:
    gate = Gate()

    def fail_at_4(start: int, stop: int) -> None:
        if start == 4:
            raise OSError(5, "planted")

    job = Job(fail_at_4, 10, chunk=2, max_threads=1, undo=gate.chunk, name="undoing")
    with Coordinator() as coordinator:
        handle = coordinator.submit(job)
        gate.wait_entered()
        now = named(snapshot(), "undoing")
        assert (now.phase, now.error, now.error_chunk) == (
            "undoing",
            "OSError: [Errno 5] planted",
            range(4, 6),
        )
        gate.open()
        with pytest.raises(OSError, match="planted"):
            handle.result()


def test_a_job_whose_undo_failed() -> None:
    def fail_at_4(start: int, stop: int) -> None:
        if start == 4:
            raise OSError(5, "planted")

    def refuse(start: int, stop: int) -> None:
        if start == 0:
            raise ValueError("planted too")

    job = Job(fail_at_4, 10, chunk=2, max_threads=1, undo=refuse, name="not undone")
    with pytest.raises(UndoFailed):
        run_multithreaded_sync(job)
    over = named(snapshot(), "not undone")
    assert (over.phase, over.progress.done, over.undone) == ("undo failed", 4, 2)
    assert (over.error, over.error_chunk) == ("ValueError: planted too", range(2))


def test_a_job_that_was_cancelled_before_it_began_and_one_that_ran() -> None:
    with all_helpers_held(), Coordinator() as coordinator:
        handle = coordinator.submit(Job(nothing, 3, name="never began"))
        handle.cancel()
        with pytest.raises(JobCancelled):
            handle.result()
    over = named(snapshot(), "never began")
    assert (over.phase, over.progress.done, over.threads, over.elapsed) == ("cancelled", 0, 0, 0)
    assert over.ended is not None
    assert over.queued == pytest.approx(over.age - over.ended)
    gate = Gate()
    with Coordinator() as coordinator:
        job = Job(gate.chunk, 10, chunk=1, max_threads=1, undo=gate.undo, name="ran")
        handle = coordinator.submit(job)
        gate.wait_entered()
        handle.cancel()
        gate.open()
        with pytest.raises(JobCancelled):
            handle.result()
    over = named(snapshot(), "ran")
    assert (over.phase, over.progress.done, over.undone, over.threads) == ("cancelled", 1, 1, 1)


def test_units_beyond_what_an_index_can_count_are_counted() -> None:
    gate = Gate()
    size = 2**70
    with Coordinator() as coordinator:
        job = Job(gate.chunk, size, chunk=size // 2, max_threads=1, undo=gate.undo, name="huge")
        handle = coordinator.submit(job)
        gate.wait_entered()
        handle.cancel()
        gate.open()
        with pytest.raises(JobCancelled):
            handle.result()
    over = named(snapshot(), "huge")
    assert (over.progress.done, over.undone) == (size // 2, size // 2)


def test_a_job_that_did_not_begin_in_time_and_one_that_was_not_over() -> None:
    gate = Gate()
    with all_helpers_held(), Coordinator() as coordinator:
        handle = coordinator.submit(Job(nothing, 1, name="too late"), timeout=0.05)
        with pytest.raises(Overloaded):
            handle.result()
    assert named(snapshot(), "too late").phase == "overloaded"
    with Coordinator() as coordinator:
        job = Job(gate.chunk, 2, chunk=1, max_threads=1, undo=nothing, name="too long")
        handle = coordinator.submit(job, timeout=0.05)
        gate.wait_entered()
        until(lambda: named(snapshot(), "too long").phase == "stopping")
        gate.open()
        with pytest.raises(TimeoutError):
            handle.result()
    over = named(snapshot(), "too long")
    assert (over.phase, over.undone) == ("timed out", 1)


def test_a_job_that_was_refused_is_shown_nowhere() -> None:
    coordinator = Coordinator()
    with coordinator:
        coordinator.drain()
        with pytest.raises(RuntimeError):
            coordinator.submit(Job(nothing, 1, name="refused"))
        assert not coordinator.snapshot().jobs
    with Coordinator() as another:
        another.submit(Job(nothing, 1)).result()  # a turn that came after that
    assert not [each for each in (*snapshot().jobs, *snapshot().ended) if each.name == "refused"]


ONE_CHUNK: dict[str, dict[str, Any]] = {
    "plain": {},
    "with an undo": {"undo": nothing},
}


@pytest.mark.anyio
@pytest.mark.parametrize("options", list(ONE_CHUNK.values()), ids=list(ONE_CHUNK))
async def test_jobs_of_one_chunk_are_remembered_as_soon_as_they_are_awaited(
    options: dict[str, Any],
) -> None:
    """Most of them pass the lane, where no turn is taken for them."""
    name = f"short {sorted(options)}"
    for number in range(40):
        job = Job(nothing, 7, chunk=7, name=name, labels={"n": str(number)}, **options)
        report = await run_multithreaded(job)
        over = snapshot().ended[0]
        assert over.labels == {"n": str(number)}
        assert (over.kind, over.phase, over.threads, over.undone) == ("job", "finished", 1, 0)
        assert isinstance(over.progress, Progress)
        assert (over.progress.done, over.progress.size, over.progress.chunks) == (7, 7, 1)
        assert over.queued == pytest.approx(report.queued)
        assert over.elapsed == pytest.approx(report.elapsed, abs=1e-6)
    # Also when the engine has let go of the runs.
    until(lambda: not current_pool().state.lane.settled)
    kept = [each.labels.get("n") for each in snapshot().ended if each.name == name]
    assert kept[:40] == [str(number) for number in range(39, -1, -1)]


@pytest.mark.anyio
@pytest.mark.parametrize("options", list(ONE_CHUNK.values()), ids=list(ONE_CHUNK))
async def test_jobs_of_one_chunk_that_fail_are_remembered_too(options: dict[str, Any]) -> None:
    def fail(start: int, stop: int) -> None:
        raise OSError(5, "planted")

    for number in range(40):
        await run_multithreaded(Job(nothing, 7, chunk=7, name="opens the lane"))
        with pytest.raises(OSError, match="planted"):
            await run_multithreaded(
                Job(fail, 7, chunk=7, name="short", labels={"n": str(number)}, **options)
            )
        over = snapshot().ended[0]
        assert (over.labels, over.phase) == ({"n": str(number)}, "failed")
        assert (over.progress.done, over.undone, over.threads) == (0, 0, 1)
        assert (over.error, over.error_chunk) == ("OSError: [Errno 5] planted", range(7))


@pytest.mark.anyio
async def test_jobs_of_one_chunk_that_are_cancelled_when_they_have_settled() -> None:
    cancelled = 0
    for number in range(20):
        await run_multithreaded(Job(nothing, 7, chunk=7, undo=nothing, name="opens the lane"))
        gate = Gate()
        job = Job(gate.chunk, 7, chunk=7, undo=nothing, name="settles", labels={"n": str(number)})
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run_multithreaded, job)
                await gate.entered()
                gate.open()
                until(lambda: any(each.phase == "settled" for each in snapshot().jobs))
                scope.cancel()
        over = snapshot().ended[0]
        assert over.labels == {"n": str(number)}
        assert (over.progress.done, over.progress.size, over.threads) == (7, 7, 1)
        # Where the loop had woken the task before, that has its result.
        assert (over.phase, over.undone) in (("cancelled", 7), ("finished", 0))
        cancelled += over.phase == "cancelled"
    assert cancelled


# Streams.


@pytest.mark.anyio
async def test_the_items_of_a_stream_are_counted_as_its_consumer_counts_them() -> None:
    gate = Gate()

    def fn(item: int) -> int:
        if item == 4:
            gate.chunk(item, item + 1)
        return item

    async with map_ordered(fn, range(6), name="stream", labels={"id": "s"}) as results:
        values = [await results.__anext__() for _ in range(3)]
        await gate.entered()
        until(lambda: named(snapshot(), "stream").progress.done == 5)
        status = named(snapshot(), "stream")
        assert (status.kind, status.labels, status.phase) == ("stream", {"id": "s"}, "running")
        assert isinstance(status.progress, StreamProgress)
        told = results.handle.progress()
        assert (status.progress.done, status.progress.size) == (told.done, told.size) == (5, 6)
        gate.open()
        values += [value async for value in results]
    assert values == list(range(6))
    over = named(snapshot(), "stream")
    assert (over.phase, over.progress.done, over.progress.size) == ("finished", 6, 6)


def test_what_the_thread_of_the_sync_form_does_is_counted() -> None:
    mine = threading.get_ident()
    here: list[int] = []
    found: list[JobStatus] = []

    def fn(item: int) -> int:
        if threading.get_ident() == mine:
            here.append(item)
            found.append(named(snapshot(), "stream"))
        return item

    with (
        all_helpers_held(),
        map_ordered_sync(fn, range(10), name="stream") as results,
    ):
        assert list(results) == list(range(10))
    assert here == list(range(10))
    assert [each.progress.done for each in found] == list(range(10))
    assert {each.kind for each in found} == {"stream"}
    # The main thread may be at its first items before another one has taken the stream in.
    assert {each.phase for each in found[1:]} == {"running"}
    over = named(snapshot(), "stream")
    assert (over.phase, over.progress.done, over.progress.size) == ("finished", 10, 10)
    assert over.elapsed > 0


def test_how_a_stream_ends_that_fails_or_is_left() -> None:
    def fail_at_3(item: int) -> int:
        if item == 3:
            raise OSError(5, "planted")
        return item

    with (
        pytest.raises(OSError, match="planted"),
        map_ordered_sync(fail_at_3, range(10), name="fails") as results,
    ):
        list(results)
    over = named(snapshot(), "fails")
    assert (over.phase, over.error, over.error_chunk) == (
        "failed",
        "OSError: [Errno 5] planted",
        None,
    )
    assert isinstance(over.progress, StreamProgress)
    assert over.progress.failed == 1

    def source() -> Iterator[int]:
        yield 1
        raise OSError(5, "planted in the source")

    with (
        pytest.raises(OSError, match="planted"),
        map_ordered_sync(abs, source(), name="without a source") as results,
    ):
        list(results)
    assert named(snapshot(), "without a source").error == "OSError: [Errno 5] planted in the source"
    with map_ordered_sync(abs, iter(range(10**9)), name="left") as results:
        next(iter(results))
    over = named(snapshot(), "left")
    assert (over.phase, over.progress.size) == ("cancelled", None)
    assert over.progress.done >= 1


def test_a_stream_that_is_left_before_the_item_that_failed_says_of_no_error() -> None:
    failed = threading.Event()

    def fail_at_1(item: int) -> int:
        if item == 1:
            failed.set()
            raise OSError(5, "planted")
        return item

    with map_ordered_sync(fail_at_1, range(9), name="left early") as results:
        next(iter(results))
        until(failed.is_set)
        until(lambda: named(snapshot(), "left early").error)
    over = named(snapshot(), "left early")
    assert (over.phase, over.error, over.error_chunk) == ("cancelled", "", None)


def test_a_stream_tells_of_the_error_that_ends_it_and_not_of_one_that_came_before() -> None:
    later = threading.Event()

    def fail(item: int) -> int:
        if item == 0:
            until(later.is_set)
        try:
            raise OSError(5, f"item {item}")
        finally:
            later.set()

    with map_ordered_sync(fail, range(2), name="two") as results:
        with pytest.raises(OSError, match="item 0"):
            next(iter(results))
        assert named(snapshot(), "two").error == "OSError: [Errno 5] item 0"

    def fail_meanwhile(item: int) -> int:
        if item == 1:
            exchange.pending.append((0, 0))
            exchange.work(0, 1, lingers=False)
        raise OSError(5, f"item {item}")

    exchange: Any = Exchange(
        fail_meanwhile,
        name="two",
        ordered=True,
        ends_at_error=True,
        wake=later.is_set,
        close=later.is_set,
        may_linger=lambda stint: False,
    )
    exchange.pending.append((1, 1))
    exchange.work(0, 1, lingers=False)
    assert exchange.ended_by == "OSError: [Errno 5] item 0"


@pytest.mark.anyio
async def test_a_call_that_raised_tells_of_no_chunk() -> None:
    def fail() -> None:
        raise OSError(5, "planted")

    with pytest.raises(OSError, match="planted"):
        await aioktask.run(fail, name="fails at once")
    over = named(snapshot(), "fails at once")
    assert (over.phase, over.error, over.error_chunk) == (
        "failed",
        "OSError: [Errno 5] planted",
        None,
    )


@pytest.mark.anyio
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("source", [range(2), range(9), "has no end"])
async def test_a_stream_that_fails_while_its_consumer_is_away_has_failed(
    source: Any, ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Or the second item is taken only when it is asked for, where the first was slow to come.
    monkeypatch.setattr("aioktask.streams._consumer.SLOW_SOURCE_NS", 1 << 60)
    first_is_given = threading.Event()

    def fail_at_1(item: int) -> int:
        if item == 1:
            assert first_is_given.wait(PATIENCE)
            raise OSError(5, "planted")
        return item

    items = itertools.count() if source == "has no end" else source
    failing = map_ordered(fail_at_1, items, ordered=ordered, window=2, name="away")
    async with failing as results:
        assert await results.__anext__() == 0
        first_is_given.set()
        await eventually(results.handle.done)
        assert not results.handle.cancel()
        told = results.handle.progress()
        assert (told.phase, told.failed) == ("failed", 1)
        now = named(snapshot(), "away")
        assert (now.phase, now.error) == ("failed", "OSError: [Errno 5] planted")
        with pytest.raises(OSError, match="planted"):
            await results.__anext__()
    assert results.handle.progress().phase == named(snapshot(), "away").phase == "failed"
    assert results.handle.progress().failed == 1


def test_items_that_raise_are_counted_where_the_stream_goes_on() -> None:
    def fail_at_odd(item: int) -> int:
        if item % 2:
            raise OSError(5, "planted")
        return item

    with map_ordered_sync(fail_at_odd, range(9), errors="yield", name="goes on") as results:
        given = list(results)
        told = results.handle.progress()
    assert sum(isinstance(each, OSError) for each in given) == told.failed == 4
    over = named(snapshot(), "goes on")
    assert isinstance(over.progress, StreamProgress)
    assert (over.phase, over.error, over.progress.failed) == ("finished", "", 4)


def test_the_documentation_tells_of_all_that_a_job_may_wait_for() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "how-to.md").read_text()
    table = documented.partition("| `waits_for` begins with |")[2].partition("\n\n")[0]
    beginnings = re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE)
    assert len(beginnings) == len(set(beginnings)) > 5
    told = [
        said
        for function in (why_waiting.waits_for, MemoryBudget.reason)
        for said in phrases(function)
    ]
    assert len(told) > 5
    for each in told:
        assert any(map(each.startswith, beginnings)), each
    for beginning in beginnings:
        assert any(each.startswith(beginning) for each in told), beginning


def phrases(function: Callable[..., object]) -> Iterator[str]:
    """What a function may return that is written down in it, each up to the first value in it."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Return):
            for part in ast.walk(node):
                if isinstance(part, ast.JoinedStr):
                    yield ast.literal_eval(part.values[0])
                    break
                if isinstance(part, ast.Constant) and part.value:
                    yield str(part.value)


@pytest.mark.anyio
async def test_a_stream_without_items_waits_for_them() -> None:
    more = anyio.Event()

    async def items() -> Any:
        yield 1
        await more.wait()

    async with map_ordered(abs, items(), name="stream") as results:
        assert await results.__anext__() == 1
        until(lambda: named(snapshot(), "stream").waits_for == "items")
        more.set()
        assert [value async for value in results] == []


# From anywhere, at any time.


def test_a_snapshot_keeps_nothing_of_a_job() -> None:
    class Big:
        """What a job's function holds."""

    gate = Gate()
    big = Big()
    gone = weakref.ref(big)
    kept: list[Snapshot] = []

    def fn(start: int, stop: int, big: Any = big) -> None:
        gate.chunk(start, stop)

    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(fn, 1, name="held"))
        del fn, big
        gate.wait_entered()
        kept += [snapshot(), coordinator.snapshot()]
        gate.open()
        handle.result()
        kept.append(snapshot())
        del handle
        gc.collect()
        assert gone() is None
    assert named(kept[0], "held").phase == "running"
    assert named(kept[2], "held").phase == "finished"


def test_it_is_frozen() -> None:
    run_multithreaded_sync(Job(nothing, 1))
    found = snapshot()
    for value in (found, found.ended[0], found.limits):
        with pytest.raises(AttributeError):
            value.__setattr__(next(iter(value.__dataclass_fields__)), None)
    with pytest.raises(TypeError):
        found.ended[0].labels["a"] = "b"  # type: ignore[index]


def test_listeners_and_finalizers_may_take_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from aioktask.engine import events

    found: list[tuple[str, str]] = []

    def listen(event: events.Event) -> None:
        if event.job == "told":
            found.append((event.kind.value, named(snapshot(), "told").phase))

    class Finalized:
        def __del__(self) -> None:
            finalized.append(snapshot())

    finalized: list[Snapshot] = []

    def fn(start: int, stop: int, held: object = Finalized()) -> None:
        """Goes with the job, as the engine lets go of that."""

    monkeypatch.setattr(events, "_listeners", [listen])
    monkeypatch.setattr(events, "_wishes", [lambda: True])
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(fn, 1, name="told"))
        del fn
        handle.result()
        del handle
        gc.collect()
    assert [kind for kind, _ in found] == ["job_submitted", "job_started", "job_finished"]
    assert found[-1][1] == "finished"
    assert len(finalized) == 1


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no timers")
def test_signal_handlers_may_take_one_in_any_line() -> None:
    found: list[int] = []
    going_on = True

    def take(signum: int, frame: object) -> None:
        found.append(len(snapshot().jobs))
        if going_on:
            signal.setitimer(signal.ITIMER_REAL, 0.0005)

    before = signal.signal(signal.SIGALRM, take)
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
    try:
        with Coordinator() as coordinator:
            while len(found) < 100:
                handles = [coordinator.submit(Job(nothing, 3, chunk=1)) for _ in range(5)]
                run_multithreaded_sync(Job(nothing, 3, chunk=1))
                assert all(handle.result().chunks == 3 for handle in handles)
    finally:
        going_on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_each_job_is_shown_once_while_others_come_and_go() -> None:
    """Those of the thread that looks: each was submitted before, and ends at any time."""
    over = threading.Event()

    def come_and_go(seed: int) -> None:
        rng = random.Random(seed)
        with Coordinator() as coordinator:
            while not over.is_set():
                undo = rng.choice([None, nothing])
                job = Job(nothing, rng.choice([0, 1, 9]), chunk=1, undo=undo)
                handles = [coordinator.submit(job) for _ in range(rng.randint(1, 30))]
                for handle in handles:
                    if rng.random() < 0.5:
                        handle.cancel()
                for handle in handles:
                    with contextlib.suppress(JobCancelled):
                        handle.result()

    threads = [threading.Thread(target=come_and_go, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    try:
        with Coordinator() as coordinator:
            for round_ in range(60):
                names = [f"{round_} {number}" for number in range(20)]
                handles = [coordinator.submit(Job(nothing, 3, chunk=1, name=n)) for n in names]
                handles[round_ % 20].cancel()
                for _ in range(3):
                    found = coordinator.snapshot()
                    numbers = [each.number for each in (*found.jobs, *found.ended)]
                    assert len(numbers) == len(set(numbers))
                    here = {each.name for each in (*found.jobs, *found.ended)}
                    for name, handle in zip(names, handles, strict=True):
                        assert name in here or handle.done()
                    everything = snapshot()
                    numbers = [each.number for each in (*everything.jobs, *everything.ended)]
                    assert len(numbers) == len(set(numbers))
                    assert list(everything.jobs) == sorted(
                        everything.jobs, key=lambda each: each.number
                    )
                for handle in handles:
                    with contextlib.suppress(JobCancelled):
                        handle.result()
    finally:
        over.set()
        for thread in threads:
            thread.join()
