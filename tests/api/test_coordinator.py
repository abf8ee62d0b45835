# SPDX-License-Identifier: MIT
# Handles and coordinators: many waiters, threads and loops, limits and shares that move, plans.

from __future__ import annotations

import contextlib
import mmap
import threading
from typing import Any

import anyio
import pytest

import aioktask
from aioktask import (
    Coordinator,
    DeadlockError,
    Job,
    Part,
    plan,
    priority,
    run_multithreaded_sync,
)
from aioktask.engine.api import coordinator as coordinator_module
from aioktask.engine.api import scope as scope_module
from aioktask.engine.machine.topology import read_topology
from aioktask.engine.state.group import RunGroup
from aioktask.engine.state.outbox import Outbox
from aioktask.engine.threads.pool import Pool
from aioktask.engine.tunables import Tunables
from tests.support.gates import Gate, turns_pass, units
from tests.support.meanwhile import Scene, play_at_each_bytecode

pytestmark = pytest.mark.max_threads(2)

everywhere = pytest.mark.anyio


@everywhere
async def test_every_waiter_gets_the_same_report() -> None:
    gate = Gate()
    reports: list[Any] = []
    async with Coordinator() as coordinator:
        job = Job(lambda a, b: gate.chunk(a, b) or 1, 4, chunk=1, reduce=lambda a, b: a + b)
        handle = coordinator.submit(job)

        async def wait() -> None:
            reports.append(await handle)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait)
            tasks.start_soon(
                lambda: anyio.to_thread.run_sync(lambda: reports.append(handle.result()))
            )
            tasks.start_soon(
                lambda: anyio.to_thread.run_sync(lambda: anyio.run(wait, backend="asyncio"))
            )
            await gate.entered(2)
            await turns_pass()
            gate.open()
    assert len(reports) == 5
    assert len({report.value for report in reports}) == 1
    assert reports[0].value == 4
    assert await handle == reports[0]  # also later


@everywhere
async def test_result_times_out_and_the_job_goes_on() -> None:
    gate = Gate()
    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 2, chunk=1))
        await gate.entered(2)

        def wait_in_vain() -> None:
            with pytest.raises(TimeoutError, match="is not over after"):
                handle.result(timeout=0.01)
            with pytest.raises(TimeoutError):
                handle.result(timeout=0)

        await anyio.to_thread.run_sync(wait_in_vain)
        with pytest.raises(RuntimeError, match="await the handle instead"):
            handle.result()
        gate.open()
        await handle
    assert handle.result().chunks == 2


@everywhere
async def test_progress_counts_what_is_done() -> None:
    gate = Gate()
    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 100, chunk=10))
        await gate.entered(2)
        now = handle.progress()
        assert (now.done, now.size, now.threads, now.chunks) == (0, 100, 2, 0)
        gate.open()
        await handle
        end = handle.progress()
        assert (end.done, end.size, end.threads, end.chunks) == (100, 100, 0, 10)
        assert end.rate > 0
        assert end.elapsed == handle.result().elapsed


@everywhere
async def test_progress_is_seen_in_the_middle_of_a_stretch() -> None:
    """Quick chunks are claimed many at a time; what is done of them counts at once."""
    gate = Gate()

    def chunk(start: int, stop: int) -> None:
        if start == 9_000:
            gate.chunk(start, stop)

    async with Coordinator(max_threads=1) as coordinator:
        handle = coordinator.submit(Job(chunk, 10_000, chunk=1))
        await gate.entered()
        assert handle.progress().done == 9_000
        assert handle.progress().chunks == 9_000
        gate.open()


@pytest.mark.parametrize("way", ["done", "result"])
def test_the_engine_holds_nothing_of_a_job_that_is_over(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, polled = threading.Event(), threading.Event()
    send = Pool.send

    def late(pool: Pool, out: Outbox) -> None:
        if out.ended:
            over.set()
            assert polled.wait(60)
        send(pool, out)

    monkeypatch.setattr(Pool, "send", late)
    memory = mmap.mmap(-1, 4096)
    with Coordinator() as coordinator:
        handle = coordinator.submit(_filling(memory))
        assert over.wait(60)  # and the outbox of the turn that ended it waits
        if way == "done":
            assert handle.done()
        else:
            handle.result()
        del handle  # which has the job
        memory.close()  # BufferError where something of it is exported
        polled.set()


def _filling(memory: mmap.mmap) -> Job[None]:
    view = memoryview(memory)

    def fill(start: int, stop: int) -> None:
        view[start:stop] = bytes(stop - start)

    return Job(fill, len(view), chunk=1024)


@everywhere
async def test_submit_after_leaving_is_refused() -> None:
    async with Coordinator() as coordinator:
        pass
    with pytest.raises(RuntimeError, match="takes no more jobs"):
        coordinator.submit(Job(print, 1))
    with pytest.raises(RuntimeError, match="takes no more jobs"):
        await aioktask.run_multithreaded(Job(print, 1), coordinator=coordinator)


CLOSED = "left or shut down: it takes no more jobs; make a new one"


@everywhere
@pytest.mark.parametrize("how", ["left", "left by an exception", "shut down", "cancelled"])
async def test_one_that_was_left_is_not_entered_again_and_has_no_executor(how: str) -> None:
    coordinator = Coordinator()
    executor = coordinator.executor()
    assert repr(executor).endswith(": open>")
    with contextlib.suppress(ZeroDivisionError):
        async with coordinator:
            if how == "left by an exception":
                raise ZeroDivisionError
            if how != "left":
                await coordinator.shutdown(cancel=how == "cancelled")
    assert repr(executor).endswith(": shut down>")
    with pytest.raises(RuntimeError, match=CLOSED):
        async with coordinator:
            pytest.fail("it was entered")
    with pytest.raises(RuntimeError, match=CLOSED):
        coordinator.executor()
    await coordinator.shutdown()  # may be called again, as before


@pytest.mark.parametrize("fails", [False, True])
def test_one_that_was_left_is_not_entered_again_by_a_plain_with(fails: bool) -> None:
    coordinator = Coordinator()
    with contextlib.suppress(ZeroDivisionError), coordinator:
        if fails:
            raise ZeroDivisionError
    with pytest.raises(RuntimeError, match=CLOSED), coordinator:
        pytest.fail("it was entered")
    with pytest.raises(RuntimeError, match=CLOSED):
        coordinator.executor()


@everywhere
async def test_shutdown_waits_for_the_jobs_there_are() -> None:
    gate = Gate()
    coordinator = Coordinator()
    handle = coordinator.submit(Job(gate.chunk, 4, chunk=1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(coordinator.shutdown)
        await gate.entered(2)
        assert not handle.done()
        gate.open()
    assert handle.done()
    await coordinator.shutdown(cancel=True)


def test_a_plain_with_waits_for_its_jobs() -> None:
    seen: list[tuple[int, int]] = []
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(lambda a, b: seen.append((a, b)), 20, chunk=3))
    assert handle.done()
    assert units(seen) == list(range(20))


def test_a_plain_with_left_by_an_exception_undoes() -> None:
    gate = Gate()
    with pytest.raises(KeyError):  # noqa: PT012 - what is left by an exception is the subject
        with Coordinator() as coordinator:
            coordinator.submit(Job(gate.chunk, 100, chunk=10, undo=gate.undo))
            gate.wait_entered(2)
            threading.Timer(0.05, gate.open).start()
            raise KeyError("leaving")
    assert units(gate.undone) == units(gate.done)


@everywhere
async def test_a_plain_with_is_refused_on_the_thread_of_a_loop() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        with Coordinator():
            pass


@everywhere
async def test_what_is_not_started_is_reordered_by_renice() -> None:
    gate = Gate()
    order: list[str] = []
    async with Coordinator(max_threads=1) as coordinator:
        coordinator.submit(Job(gate.chunk, 1))
        await gate.entered()
        first = coordinator.submit(Job(lambda a, b: order.append("first"), 1))
        second = coordinator.submit(Job(lambda a, b: order.append("second"), 1))
        third = coordinator.submit(Job(lambda a, b: order.append("third"), 1, nice=-5))
        assert (first.nice, second.nice, third.nice) == (0, 0, -5)
        first.renice(19)
        assert first.nice == 19
        gate.open()
    assert order == ["third", "second", "first"]


@everywhere
async def test_a_handle_refuses_nonsense() -> None:
    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(lambda a, b: None, 1))
        with pytest.raises(ValueError, match="got 20"):
            handle.renice(20)
        with pytest.raises(TypeError, match="True"):
            handle.renice(True)
        with pytest.raises(ValueError, match="max_threads must be at least 1, got 0"):
            handle.max_threads = 0
        await handle
    with pytest.raises(ValueError, match="max_threads must be at least 1, got 0"):
        Coordinator(max_threads=0)
    with pytest.raises(ValueError, match="max_threads must be at least 1, got -1"):
        aioktask.set_max_threads(-1)
    with pytest.raises(TypeError, match=r"1\.5"):
        aioktask.set_max_threads(1.5)  # type: ignore[arg-type]


@everywhere
async def test_the_priority_block_sets_the_nice_of_what_is_submitted_in_it() -> None:
    async with Coordinator() as coordinator:
        with priority(5):
            handle = coordinator.submit(Job(lambda a, b: None, 1, nice=3))
        assert handle.nice == 5
        assert coordinator.submit(Job(lambda a, b: None, 1, nice=3)).nice == 3


@everywhere
async def test_a_waiter_s_nice_belongs_to_the_run_from_the_start() -> None:
    gate = Gate()
    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 2, chunk=1, nice=10))
        await gate.entered(2)

        async def wait(nice: int) -> None:
            with priority(nice):
                await handle

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, -3)
            tasks.start_soon(wait, 4)
            with anyio.fail_after(60):
                while len(handle._run.waiters) < 2:
                    await turns_pass()
            assert sorted(waiter.nice for waiter in handle._run.waiters) == [-3, 4]
            gate.open()


def test_a_limit_of_the_process_moves_running_helpers() -> None:
    aioktask.set_max_threads(1)
    gate = Gate()
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 8, chunk=1))
        gate.wait_entered()
        assert handle.progress().threads == 1
        aioktask.set_max_threads(3)
        gate.wait_entered(2)
        assert handle.progress().threads == 3
        aioktask.set_max_threads(1)
        gate.open()
    assert handle.result().peak_threads == 3
    assert aioktask.max_threads() == 1


@pytest.mark.parametrize(
    ("mine", "others"),
    [
        ({"nice": 5}, {"give_way": False, "max_threads": 2}),
        ({"nice": 5, "max_threads": 3}, {"max_threads": 2}),
        ({"max_threads": None}, {"max_threads": 2, "nice": None}),
    ],
)
def test_threads_that_configure_at_a_time_do_not_undo_what_the_others_set(
    mine: dict[str, Any], others: dict[str, Any]
) -> None:
    def begin() -> Scene:
        coordinator = Coordinator(max_threads=4, nice=1)

        def check() -> None:
            pool, group = coordinator.scope()
            for name in {*mine, *others}:
                given = [said[name] for said in (mine, others) if name in said]
                assert group.tunables.get(name) in given
            pool.take_turn(None, pool.drain)
            assert group.cap == coordinator.max_threads

        return Scene(
            lambda: coordinator.configure(**mine), lambda: coordinator.configure(**others), check
        )

    play_at_each_bytecode(begin, coordinator_module, scope_module)


def test_threads_of_a_forked_process_use_one_group_of_a_coordinator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def begin() -> Scene:
        parent, child = (Pool(read_topology(), Tunables()) for _ in range(2))
        coordinator = Coordinator(max_threads=3)
        monkeypatch.setattr(scope_module, "current_pool", lambda: parent)
        before = coordinator.scope()
        parent.dead = True
        monkeypatch.setattr(scope_module, "current_pool", lambda: child)
        found: list[tuple[Pool, RunGroup]] = []

        def check() -> None:
            assert found[0] == found[1] == coordinator.scope()
            assert found[0][0] is child
            assert found[0][1] is not before[1]
            assert found[0][1].cap == 3

        return Scene(
            lambda: found.append(coordinator.scope()),
            lambda: found.append(coordinator.scope()),
            check,
        )

    play_at_each_bytecode(begin, scope_module)


def test_a_handler_that_leaves_the_coordinator_of_a_call_just_submitted_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The call has a stretch by then perhaps, and goes on only when the handler returns."""
    refused: list[BaseException] = []
    submit = Pool.submit

    def submit_and_leave(pool: Pool, *args: Any, **options: Any) -> None:
        submit(pool, *args, **options)
        with pytest.raises(DeadlockError) as caught:
            coordinator.__exit__(None, None, None)
        refused.append(caught.value)

    done: list[tuple[int, int]] = []
    with Coordinator() as coordinator:
        monkeypatch.setattr(Pool, "submit", submit_and_leave)
        job = Job(lambda start, stop: done.append((start, stop)), 8, chunk=1)
        run_multithreaded_sync(job, coordinator=coordinator)
        monkeypatch.undo()
    assert len(refused) == 1
    assert units(done) == list(range(8))


def test_the_calling_thread_takes_part() -> None:
    barrier = threading.Barrier(2, timeout=60)
    threads: set[int] = set()

    def chunk(start: int, stop: int) -> None:
        threads.add(threading.get_ident())
        barrier.wait()

    report = run_multithreaded_sync(Job(chunk, 2, chunk=1))
    assert report.peak_threads == 2  # one helper and the calling thread: the limit counts both
    assert threading.get_ident() in threads


def test_max_threads_of_a_job_counts_the_calling_thread() -> None:
    threads: set[int] = set()
    job = Job(lambda a, b: threads.add(threading.get_ident()), 500, chunk=1, max_threads=1)
    report = run_multithreaded_sync(job)
    assert report.peak_threads == 1
    assert threads == {threading.get_ident()}


def test_a_plan_says_what_decides() -> None:
    assert plan(Job(print, 3, min_chunk=5)).limited_by.startswith("the size")
    assert plan(Job(print, 100, max_threads=1)).limited_by.startswith("the job's max_threads=1")
    assert plan(Job(print, 100)).limited_by.startswith("the process")
    with Coordinator(max_threads=1) as coordinator:
        shown = plan(Job(print, 100), coordinator=coordinator)
    assert shown.limited_by == "the coordinator's max_threads=1"
    assert shown.threads == 1
    [note] = plan(Job(print, 1600, min_chunk=640, max_threads=2, learn="both")).notes[-1:]
    assert note.endswith("share it evenly, in pieces of 800 units")
    assert "evenly" not in str(plan(Job(print, 1600, min_chunk=640, learn="nothing")).notes)
    with pytest.raises(TypeError, match="a Job is needed"):
        plan(print)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "job",
    [
        Job(print, 100, chunk=7, start=3),
        Job(print, 1000, min_chunk=10, align=4),
        Job(print, 100, parts=[Part(0, 33), Part(33, 100, 1)]),
        Job(max, 5000, reduce=max),
        Job(print, 0),
    ],
)
def test_a_plan_shows_the_chunks_that_are_run(job: Job[Any]) -> None:
    seen: list[range] = []

    def chunk(start: int, stop: int) -> int:
        seen.append(range(start, stop))
        return 0

    options: dict[str, Any] = {
        name: getattr(job, name) for name in ("start", "align", "min_chunk", "chunk", "parts")
    }
    if job.reduce is not None:
        options["reduce"] = job.reduce
    # What is learned while the job runs, nobody can show before.
    same = Job(chunk, job.size, learn="nothing", **{**options, "parts": options["parts"] or None})
    shown = plan(same)
    with Coordinator() as coordinator:
        coordinator.submit(same)
    assert sorted(seen, key=lambda each: each.start) == list(shown.boundaries())
    assert shown.chunks == len(seen)
