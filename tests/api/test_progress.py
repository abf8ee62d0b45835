# SPDX-License-Identifier: MIT
# Where a job stands: its phases, what was undone, how long it will take, and the watch of it.

from __future__ import annotations

import gc
import itertools
import sys
import threading
import weakref
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import anyio
import numpy as np
import pytest

from aioktask import (
    Coordinator,
    DeadlockError,
    Handle,
    Job,
    JobCancelled,
    Progress,
    StreamProgress,
    UndoFailed,
    map_ordered,
    map_ordered_sync,
    priority,
    run_multithreaded,
)
from aioktask.engine import events
from aioktask.engine.events import Event, EventKind
from aioktask.engine.state import record
from aioktask.engine.state.current import local
from aioktask.engine.state.run import Run
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.sweep import Sweep
from aioktask.job import JobPhase
from tests.support.gates import PATIENCE, Gate, eventually, until

pytestmark = pytest.mark.max_threads(2)

everywhere = pytest.mark.anyio

HOURS = 10_000.0  # an interval that a test would not wait for


def nothing(start: int, stop: int) -> None:
    """A chunk, or the undo of one."""


def fails_at(unit: int) -> Callable[[int, int], None]:
    def chunk(start: int, stop: int) -> None:
        if start <= unit < stop:
            raise OSError("planted")

    return chunk


# Phases.


@everywhere
async def test_a_job_waits_and_runs_and_is_finished() -> None:
    ahead, gate = Gate(), Gate()
    async with Coordinator(max_threads=1) as coordinator:
        first = coordinator.submit(Job(ahead.chunk, 1, chunk=1))
        await ahead.entered()
        handle = coordinator.submit(Job(gate.chunk, 2, chunk=1))
        waits = handle.progress()
        assert (waits.phase, waits.eta, waits.over) == ("waiting", None, False)
        ahead.open()
        await gate.entered()
        runs = handle.progress()
        assert (runs.phase, runs.eta, runs.over) == ("running", None, False)
        gate.open()
        await handle
        await first
    ended = handle.progress()
    assert (ended.phase, ended.eta, ended.over) == ("finished", 0.0, True)
    assert (ended.done, ended.undone) == (2, 0)


def test_an_empty_job_is_finished() -> None:
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(nothing, 0))
        handle.result()
    assert handle.progress().phase == "finished"
    assert handle.progress().eta == 0.0


def test_time_left_is_what_is_left_at_the_rate_so_far() -> None:
    gate = Gate()

    def chunk(start: int, stop: int) -> None:
        if start == 75:
            gate.chunk(start, stop)

    with Coordinator(max_threads=1) as coordinator:
        handle = coordinator.submit(Job(chunk, 100, chunk=1))
        gate.wait_entered()
        found = handle.progress()
        assert found.done == 75
        assert found.eta == pytest.approx(25 / found.rate)
        gate.open()


def test_a_job_that_was_cancelled_stops_before_it_is_over() -> None:
    gate = Gate()
    with Coordinator(max_threads=1) as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 4, chunk=1))
        gate.wait_entered()
        handle.cancel()
        stops = handle.progress()
        assert (stops.phase, stops.eta, stops.over) == ("stopping", None, False)
        gate.open()
        with pytest.raises(JobCancelled):
            handle.result()
    ended = handle.progress()
    assert (ended.phase, ended.done, ended.undone, ended.eta) == ("cancelled", 1, 0, 0.0)


def test_a_job_that_was_cancelled_before_it_began_is_cancelled_at_once() -> None:
    ahead = Gate()
    with Coordinator(max_threads=1) as coordinator:
        coordinator.submit(Job(ahead.chunk, 1, chunk=1))
        ahead.wait_entered()
        handle = coordinator.submit(Job(nothing, 4, undo=nothing))
        handle.cancel()
        assert handle.progress().phase == "cancelled"
        ahead.open()
    assert handle.progress().phase == "cancelled"


def test_a_job_that_failed_without_undo_says_how_far_it_came() -> None:
    with Coordinator(max_threads=1) as coordinator:
        handle = coordinator.submit(Job(fails_at(7), 10, chunk=1))
        with pytest.raises(OSError, match="planted"):
            handle.result()
    ended = handle.progress()
    assert (ended.phase, ended.done, ended.undone) == ("failed", 7, 0)


@pytest.mark.parametrize("piece", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_what_is_undone_is_counted_chunk_by_chunk(how: str, piece: int) -> None:
    """Pieces of an undo are claimed several at a time; what is undone of them counts at once."""
    gate, undoing, holder = Gate(), Gate(), Gate()
    undone = 0
    calls = itertools.count()

    def chunk(start: int, stop: int) -> None:
        if start == 70:
            gate.chunk(start, stop)
            if how == "failed":
                raise OSError("planted")

    def undo(start: int, stop: int) -> None:
        nonlocal undone
        if next(calls) == piece:
            undoing.chunk(start, stop)
        undone += stop - start

    with Coordinator() as coordinator:
        # The undo is cut for two threads, of which this job gets one.
        coordinator.submit(Job(holder.chunk, 1))
        holder.wait_entered()
        handle = coordinator.submit(Job(chunk, 100, chunk=1, undo=undo))
        gate.wait_entered()
        if how == "cancelled":
            handle.cancel()
        gate.open()
        undoing.wait_entered()
        done = 70 if how == "failed" else 71
        found = handle.progress()
        assert (found.phase, found.done, found.undone) == ("undoing", done, undone)
        assert 0 < found.undone < done
        assert found.eta is not None
        assert found.eta > 0
        assert found.chunks == done
        undoing.open()
        with pytest.raises((OSError, JobCancelled)):
            handle.result()
        holder.open()
    ended = handle.progress()
    assert (ended.phase, ended.done, ended.undone, ended.eta) == (how, done, done, 0.0)


@everywhere
async def test_a_coroutine_undo_is_counted_piece_by_piece() -> None:
    go_on, second = anyio.Event(), anyio.Event()
    pieces: list[int] = []

    async def undo(start: int, stop: int) -> None:
        if pieces:
            second.set()
            await go_on.wait()
        pieces.append(stop - start)

    async with Coordinator(max_threads=1) as coordinator:
        handle = coordinator.submit(Job(fails_at(90), 100, chunk=1, undo=undo))
        with anyio.fail_after(PATIENCE):
            await second.wait()
        found = handle.progress()
        assert (found.phase, found.done, found.undone) == ("undoing", 90, pieces[0])
        assert found.eta is not None
        go_on.set()
        with pytest.raises(OSError, match="planted"):
            await handle
    assert handle.progress().phase == "failed"
    assert handle.progress().undone == sum(pieces) == 90


def test_what_an_undo_failed_for_is_not_undone() -> None:
    calls = itertools.count()

    def undo(start: int, stop: int) -> None:
        if next(calls) == 1:
            raise ValueError("not undone")

    with Coordinator(max_threads=1) as coordinator:
        handle = coordinator.submit(Job(fails_at(90), 100, chunk=1, undo=undo))
        with pytest.raises(UndoFailed) as caught:
            handle.result()
    ended = handle.progress()
    assert (ended.phase, ended.done) == ("undo failed", 90)
    assert ended.undone == 90 - sum(map(len, caught.value.ranges))
    assert 0 < ended.undone < 90


FORWARD: list[JobPhase] = ["waiting", "running", "stopping", "undoing", "failed"]


def test_whoever_looks_at_any_time_sees_it_go_forward() -> None:
    """Looked at from another thread all the while: no count goes back, nor does the phase."""

    def look(handle: Handle[None], over: threading.Event, seen: list[Progress]) -> None:
        while not over.is_set():
            seen.append(handle.progress())
        seen.append(handle.progress())

    for _ in range(20):
        seen: list[Progress] = []
        over = threading.Event()
        with Coordinator() as coordinator:
            handle = coordinator.submit(Job(fails_at(30_000), 40_000, min_chunk=8, undo=nothing))
            thread = threading.Thread(target=look, args=(handle, over, seen))
            thread.start()
            with pytest.raises(OSError, match="planted"):
                handle.result()
            over.set()
            thread.join()
        for before, after in itertools.pairwise(seen):
            assert before.undone <= after.undone <= after.done <= after.size
            assert before.done <= after.done
            assert FORWARD.index(before.phase) <= FORWARD.index(after.phase)
        assert seen[-1].phase == "failed"
        assert seen[-1].done == seen[-1].undone > 0


def test_a_look_while_a_turn_stands_half_way_counts_nothing_twice_and_nothing_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever looks then, a finalizer in that turn or a thread while that of the turn waits."""
    submitted = threading.Event()
    looks: list[tuple[int, int]] = []  # what was told to be done, and what was
    walked: list[int] = []
    whole = Sweep.give_back

    def look() -> None:
        looks.append((handle.progress().done, sum(walked)))

    def give_back(sweep: Sweep, stint: Stint, free: int) -> None:
        look()
        whole(sweep, stint, free)
        look()

    def chunk(start: int, stop: int) -> None:
        assert submitted.wait(PATIENCE)
        look()
        walked.append(stop - start)

    monkeypatch.setattr(Sweep, "give_back", give_back)
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(chunk, 1000, min_chunk=8, max_threads=1))
        submitted.set()
        handle.result()
    told, done = zip(*looks, strict=True)
    assert sorted(told) == list(told)
    assert all(one <= other for one, other in looks)
    assert max(told) > 0
    assert max(done) == 1000


def test_a_look_that_is_late_puts_nothing_back_that_another_one_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other one comes between any two lines of it, and then a turn stands half-way."""
    go, inside = threading.Semaphore(0), threading.Semaphore(0)

    def chunk(start: int, stop: int) -> None:
        inside.release()  # so the turn before it is over
        assert go.acquire(timeout=PATIENCE)

    def told_between(line: int) -> int | None:
        """What was told as the look came to that line; None where it has fewer."""
        told: list[int] = []
        lines = itertools.count()

        def at(frame: Any, event: str, _: Any) -> Any:
            if frame.f_code.co_filename != record.__file__:
                return None
            if event == "line" and next(lines) == line:
                sys.settrace(None)
                before = handle.progress().done
                go.release()
                assert inside.acquire(timeout=PATIENCE)
                until(lambda: handle.progress().done > before)
                told.append(handle.progress().done)
            return at

        tracing = sys.gettrace()
        sys.settrace(at)
        try:
            handle.progress()
        finally:
            sys.settrace(tracing)
        return told[0] if told else None

    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(chunk, 1000, chunk=1, max_threads=1))
        assert inside.acquire(timeout=PATIENCE)
        run = handle._run
        found = 0
        for line in itertools.count():
            told = told_between(line)
            if told is None:
                break
            found += 1
            with monkeypatch.context() as turn:  # one that has counted nothing yet
                turn.setattr(run, "version", run.version | 1)
                turn.setattr(record, "_read_progress", lambda run, walks=True: (0, 0, 0, 1))
                half_way = handle.progress().done
            assert half_way >= told, f"after line {line}"
        for _ in range(1000):
            go.release()
        handle.result()
    assert found > 10


def test_a_settled_run_is_all_done() -> None:
    """What its owner may still cancel, as a snapshot shows it."""
    from aioktask.engine.api.process import current_pool
    from aioktask.engine.api.submission import new_run

    with Coordinator() as coordinator:
        pool, group = coordinator.scope()
        assert pool is current_pool()
        job = Job(nothing, 10, chunk=1, undo=nothing)
        run = new_run(pool, group, job, None, parent=None, owned=True)
        assert run.attended is not None
        with run.attended:
            pool.submit(run)
            with Coordinator() as other:  # whose jobs make turns pass
                for _ in range(1000):
                    if run.settled:
                        break
                    other.submit(Job(nothing, 10, chunk=1)).result()
            found = record.progress(run)
            assert (found.phase, found.done, found.over) == ("settled", 10, False)
            assert run.commit()
            assert record.progress(run).phase == "finished"
            from aioktask.engine.state import ending

            pool.post(ending.committed, run)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@everywhere
async def test_a_job_that_passed_the_lane_is_all_done() -> None:
    """Nothing of it is counted, since no turn has to do with it."""
    runs: list[Run] = []

    def chunk(start: int, stop: int) -> None:
        assert local.stint is not None
        runs.append(local.stint.run)

    for _ in range(100):
        await run_multithreaded(Job(chunk, 10, chunk=10))
        if not runs[-1].begun:
            break
    assert not runs[-1].begun, "no job passed the lane"
    found = record.progress(runs[-1])
    assert (found.phase, found.done, found.size, found.eta) == ("finished", 10, 10, 0.0)


# Watching.


@everywhere
async def test_a_watch_begins_with_what_is_and_ends_with_the_end_once() -> None:
    gate = Gate()
    seen: list[Progress] = []
    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 4, chunk=1))
        await gate.entered(2)
        with anyio.fail_after(PATIENCE):
            watch = handle.watch(HOURS)
            async for progress in watch:
                seen.append(progress)
                gate.open()
            seen += [progress async for progress in watch]
    assert [each.phase for each in seen] == ["running", "finished"]
    assert [each.done for each in seen] == [0, 4]


@everywhere
async def test_a_watch_tells_each_interval() -> None:
    gate = Gate()
    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 2, chunk=1))
        count = 0
        with anyio.fail_after(PATIENCE):
            async for progress in handle.watch(0.001):
                count += 1
                if count == 5:
                    assert not progress.over
                    gate.open()
    assert count >= 6


def test_a_thread_watches_too() -> None:
    gate = Gate()
    seen: list[Progress] = []
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 4, chunk=1))
        gate.wait_entered(2)
        for progress in handle.watch(HOURS):
            seen.append(progress)
            gate.open()
    assert [each.phase for each in seen] == ["running", "finished"]
    assert [each.phase for each in handle.watch()] == ["finished"]  # also later


@everywhere
@pytest.mark.parametrize("undo", [None, nothing], ids=["without undo", "with undo"])
async def test_a_watch_never_raises_how_the_job_ended(undo: Any) -> None:
    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(fails_at(2), 4, chunk=1, undo=undo, max_threads=1))
        last = [progress async for progress in handle.watch()][-1]
        assert (last.phase, last.undone) == ("failed", 0 if undo is None else 2)
        with pytest.raises(OSError, match="planted"):
            await handle


@everywhere
async def test_a_watch_that_is_left_holds_nothing() -> None:
    gate = Gate()
    async with Coordinator() as coordinator:
        job = Job(gate.chunk, 2, chunk=1)
        handle = coordinator.submit(job)
        await gate.entered(2)
        async for _ in handle.watch(HOURS):
            break
        with anyio.move_on_after(0):
            async for _ in handle.watch(HOURS):
                pass
        watch = handle.watch(0.001)
        await anext(watch)
        await anext(watch)
        run = handle._run
        await eventually(lambda: not run.waiters)
        held = weakref.ref(watch)
        del watch
        gc.collect()
        assert held() is None
        gate.open()


@everywhere
async def test_a_cancelled_watch_goes_on_later_and_misses_no_end() -> None:
    gate = Gate()
    seen: list[Progress] = []
    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 2, chunk=1))
        watch = handle.watch(HOURS)
        seen.append(await anext(watch))
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                run = handle._run
                await gate.entered(2)

                async def cancel() -> None:
                    await eventually(lambda: bool(run.waiters))
                    scope.cancel()

                tasks.start_soon(cancel)
                await anext(watch)
        assert scope.cancelled_caught
        assert not handle.done()
        gate.open()
        with anyio.fail_after(PATIENCE):
            seen += [progress async for progress in watch]
    assert [each.phase == "finished" for each in seen] == [False, True]


@everywhere
async def test_two_tasks_share_a_watch_and_one_sees_the_end() -> None:
    gate = Gate()
    seen: list[Progress] = []
    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 2, chunk=1))
        watch = handle.watch(HOURS)
        assert not (await anext(watch)).over

        async def rest() -> None:
            seen.extend([progress async for progress in watch])

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(rest)
                tasks.start_soon(rest)
                await gate.entered(2)
                gate.open()
    assert [each.phase for each in seen] == ["finished"]


@pytest.mark.parametrize("waits", [False, True], ids=["watched", "awaited"])
def test_a_failure_that_is_only_watched_is_told_as_one_that_nobody_awaits(
    waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Event] = []
    monkeypatch.setattr(events, "_listeners", [told.append])
    gate = Gate()

    def chunk(start: int, stop: int) -> None:
        gate.chunk(start, stop)
        raise OSError("planted")

    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(chunk, 1))
        gate.wait_entered()

        def wait() -> None:
            if waits:
                with pytest.raises(OSError, match="planted"):
                    handle.result()
            else:
                list(handle.watch())

        thread = threading.Thread(target=wait)
        thread.start()
        while not handle._run.waiters:
            thread.join(0.001)
        gate.open()
        thread.join()
    assert [each.awaited for each in told if each.kind is EventKind.FAILED] == [waits]


def test_a_watch_lends_no_nice() -> None:
    gate = Gate()
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 1, nice=15))
        gate.wait_entered()

        def watch() -> None:
            with priority(3):
                assert len(list(handle.watch(HOURS))) == 2

        thread = threading.Thread(target=watch)
        thread.start()
        while not handle._run.waiters:
            thread.join(0.001)
        coordinator.submit(Job(nothing, 1)).result()  # so the turn that counts the waiter is over
        assert handle._run.entry.loan is None
        gate.open()
        thread.join()


def test_a_chunk_that_watches_its_own_job_is_refused() -> None:
    handles: list[Handle[None]] = []
    ready = threading.Event()
    raised: list[BaseException] = []

    def chunk(start: int, stop: int) -> None:
        assert ready.wait(PATIENCE)
        try:
            for _ in handles[0].watch(0.001):
                pass
        except DeadlockError as error:
            raised.append(error)

    with Coordinator() as coordinator:
        handles.append(coordinator.submit(Job(chunk, 1)))
        ready.set()
    assert len(raised) == 1


@everywhere
async def test_for_is_refused_on_a_loop_and_async_for_off_one() -> None:
    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(nothing, 1))
        with pytest.raises(RuntimeError, match="use `async for`"):
            list(handle.watch())


@pytest.mark.parametrize(
    ("interval", "kind", "said"),
    [
        (0, ValueError, "interval must be above 0 seconds and finite, got 0"),
        (-1.0, ValueError, "got -1.0"),
        (float("inf"), ValueError, "got inf"),
        (float("nan"), ValueError, "got nan"),
        ("1", TypeError, "interval must be a number of seconds, got '1'"),
        (True, TypeError, "got True"),
    ],
)
def test_a_nonsensical_interval_is_refused(interval: Any, kind: type[Exception], said: str) -> None:
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(nothing, 1))
        with pytest.raises(kind, match=said):
            handle.watch(interval)


@pytest.mark.parametrize("interval", [np.float32(0.1), np.int64(1), Fraction(1, 10)])
def test_an_interval_may_be_any_real_number(interval: Any) -> None:
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(nothing, 1))
        assert [*handle.watch(interval)][-1].over


# Streams.


@everywhere
async def test_a_stream_can_be_watched_to_its_end() -> None:
    gate = Gate()

    def double(item: int) -> int:
        gate.chunk(item, item + 1)
        return 2 * item

    seen: list[StreamProgress] = []
    values: list[int] = []
    with anyio.fail_after(PATIENCE):
        async with map_ordered(double, range(4)) as results, anyio.create_task_group() as tasks:

            async def watch() -> None:
                async for progress in results.handle.watch(HOURS):
                    seen.append(progress)
                    gate.open()

            tasks.start_soon(watch)
            values.extend([value async for value in results])
    assert values == [0, 2, 4, 6]
    assert [each.over for each in seen] == [False, True]
    last = seen[-1]
    assert (last.phase, last.done, last.size, last.eta) == ("finished", 4, 4, 0.0)


@everywhere
async def test_a_stream_says_how_it_ended() -> None:
    async with map_ordered(int, ["1", "x", "3"]) as failing:
        assert failing.handle.progress().phase == "waiting"
        with pytest.raises(ValueError, match="invalid literal"):
            _ = [value async for value in failing]
    assert failing.handle.progress().phase == "failed"
    async with map_ordered(int, ["1"] * 1000, window=2) as left:
        async for _ in left:
            break
    assert left.handle.progress().phase == "cancelled"

    def source() -> Any:
        yield "1"
        raise OSError("no more")

    async with map_ordered(int, source()) as broken:
        with pytest.raises(OSError, match="no more"):
            _ = [value async for value in broken]
    assert broken.handle.progress().phase == "failed"


def test_a_stream_knows_how_long_it_takes_once_its_source_has_ended() -> None:
    gate = Gate()

    def fn(item: int) -> int:
        if item == 3:
            gate.chunk(item, item + 1)
        return item

    with Coordinator(max_threads=1) as coordinator:
        found: list[StreamProgress] = []
        with map_ordered_sync(fn, range(5), coordinator=coordinator) as results:
            thread = threading.Thread(
                target=lambda: (gate.wait_entered(), gate.open()), daemon=True
            )
            thread.start()
            found += [results.handle.progress() for _ in results]
            thread.join()
        assert found[0].phase in ("running", "finished")
        for each in found:
            if each.phase == "running" and each.done and each.size is not None:
                # Nothing is timed while the calling thread is ahead of the turn that takes it in.
                left = each.size - each.done
                assert each.eta == (pytest.approx(left / each.rate) if each.rate else None)
    assert results.handle.progress().phase == "finished"
