# SPDX-License-Identifier: MIT
# Chunks that last: told in events and in snapshots, which agree. Gates hold the chunks; that one is
# told means that the keeper has looked, so what was not told by then it did not find stuck.

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest

import aioktask
from aioktask import (
    Coordinator,
    Job,
    configure,
    current_chunk,
    map_ordered,
    map_ordered_sync,
    run_multithreaded,
    run_multithreaded_sync,
    tunables,
)
from aioktask.engine.api.process import current_pool
from aioktask.engine.priority import gil_is_on
from aioktask.engine.tunables import process_tunables
from aioktask.status import HelperStatus
from tests.support.gates import Gate, until
from tests.support.listening import Told, listening

SOON = 0.05  # seconds, a look or two of the keeper's
LATER = 1.0  # and longer than a short chunk takes, whatever else the machine does

pytestmark = pytest.mark.max_threads(2)

needs_stacks = pytest.mark.skipif(
    not gil_is_on(), reason="without the GIL no stack of a thread that runs can be read"
)


@pytest.fixture
def told() -> Iterator[Told]:
    with listening() as found:
        yield found


@pytest.fixture(autouse=True)
def _soon() -> Iterator[None]:
    before: Any = tunables()["stuck_after"]
    configure(stuck_after=SOON)
    yield
    configure(stuck_after=before)


def _stuck() -> list[HelperStatus]:
    return [each for each in aioktask.snapshot().helpers if each.stuck]


def test_the_event_and_the_snapshot_tell_the_same_of_a_chunk(told: Told) -> None:
    gate = Gate()
    with Coordinator() as coordinator:
        handle = coordinator.submit(
            Job(gate.chunk, 6, start=10, chunk=2, name="held", labels={"request": "7f"})
        )
        gate.wait_entered(2)
        event = told.wait("chunk_stuck", "held")[0]
        snapshot = aioktask.snapshot()
        (job,) = snapshot.jobs
        stuck = {each.thread: each for each in snapshot.helpers if each.stuck}
        assert event["run"] == job.number
        assert event["labels"] == {"request": "7f"}
        assert not event["stopping"]
        assert not event["undoing"]
        assert event["chunk"] == stuck[event["thread"]].chunk
        assert SOON <= event["seconds"] <= stuck[event["thread"]].stuck <= job.stuck <= job.age
        assert stuck[event["thread"]].job == job.number
        if gil_is_on():
            assert stuck[event["thread"]].stack == event["stack"]
        gate.open()
        handle.result()
    assert not _stuck()


@needs_stacks
def test_the_stack_leads_to_the_line_and_has_neither_variables_nor_the_engine(told: Told) -> None:
    gate = Gate()

    def outer(start: int, stop: int) -> None:
        secret = "of the user"
        gate.chunk(start, stop)
        del secret

    with Coordinator() as coordinator:
        coordinator.submit(Job(outer, 1, name="held"))
        gate.wait_entered()
        stack = told.wait("chunk_stuck", "held")[0]["stack"]
        gate.open()
    assert "in test_the_stack_leads_to_" in stack[0]
    assert stack[0].endswith("<locals>.outer")
    assert any(each.endswith("in Gate.chunk") for each in stack)
    assert stack[-1].startswith('File "')
    assert not any("of the user" in each for each in stack)
    assert not any("aioktask/engine" in each for each in stack)


def test_it_is_told_again_after_twice_the_time(told: Told) -> None:
    gate = Gate()
    with Coordinator() as coordinator:
        coordinator.submit(Job(gate.chunk, 1, name="held"))
        seconds = [each["seconds"] for each in told.wait("chunk_stuck", "held", 4)]
        gate.open()
    assert all(later >= 2 * before for before, later in itertools.pairwise(seconds))


def test_none_turns_it_off_and_a_coordinator_has_its_own(told: Told) -> None:
    gate = Gate()
    configure(stuck_after=None)
    with Coordinator() as one, Coordinator(stuck_after=SOON) as other:
        one.submit(Job(gate.chunk, 1, name="not told"))
        other.submit(Job(gate.chunk, 1, name="told"))
        gate.wait_entered(2)
        told.wait("chunk_stuck", "told", 2)
        assert not told.of("chunk_stuck", "not told")
        assert [each.name for each in aioktask.snapshot().jobs if each.stuck] == ["told"]
        other.configure(stuck_after=None)  # as the process, which tells of none
        one.configure(stuck_after=SOON)
        told.wait("chunk_stuck", "not told")
        assert [each.name for each in aioktask.snapshot().jobs if each.stuck] == ["not told"]
        gate.open()


@pytest.mark.parametrize(("text", "seconds"), [("off", None), ("2.5", 2.5)])
def test_the_environment_may_say_so(text: str, seconds: float | None) -> None:
    assert process_tunables({"AIOKTASK_STUCK_AFTER": text}, {}).stuck_after == seconds


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "inf"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="AIOKTASK_STUCK_AFTER"):
        process_tunables({"AIOKTASK_STUCK_AFTER": text}, {})


def test_a_chunk_that_waits_for_another_job_is_not_stuck_while_that_is(told: Told) -> None:
    inner, outer = Gate(), Gate()

    def fn(start: int, stop: int) -> None:
        run_multithreaded_sync(Job(inner.chunk, 1, name="inner"))
        outer.chunk(start, stop)

    with Coordinator() as coordinator:
        coordinator.submit(Job(fn, 1, name="outer"))
        seconds = told.wait("chunk_stuck", "inner", 3)[-1]["seconds"]
        assert not told.of("chunk_stuck", "outer")
        assert {each.name: bool(each.stuck) for each in aioktask.snapshot().jobs} == {
            "inner": True,
            "outer": False,
        }
        inner.open()
        outer.wait_entered()
        assert told.wait("chunk_stuck", "outer")[0]["seconds"] < seconds  # counted anew
        outer.open()


def test_a_thread_that_called_the_sync_form_is_told(told: Told) -> None:
    gate = Gate()

    def look() -> None:
        told.wait("chunk_stuck", "here")
        found.extend(_stuck())
        gate.open()

    found: list[HelperStatus] = []
    looking = threading.Thread(target=look)
    looking.start()
    run_multithreaded_sync(Job(gate.chunk, 1, max_threads=1, name="here"))
    looking.join()
    assert [(each.kind, each.chunk) for each in found] == [("caller", range(1))]
    assert told.of("chunk_stuck", "here")[0]["thread"] == threading.get_native_id()
    if gil_is_on():
        assert found[0].stack[-1].startswith('File "')


@pytest.mark.anyio
async def test_a_call_is_told(told: Told) -> None:
    gate = Gate()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(aioktask.run, gate.chunk, 0, 1)
        await anyio.to_thread.run_sync(told.wait, "chunk_stuck", "Gate.chunk")
        (job,) = (each for each in aioktask.snapshot().jobs if each.stuck)
        assert job.kind == "call"
        gate.open()


@pytest.mark.anyio
async def test_an_undo_is_told(told: Told) -> None:
    gate = Gate()

    def fail_at_end(start: int, stop: int) -> None:
        if start == 3:
            raise OSError(5, "planted")

    job = Job(fail_at_end, 4, chunk=1, max_threads=1, undo=gate.chunk, name="undone")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_expect, OSError, job)
        await gate.entered()
        before = len(told.of("chunk_stuck", "undone"))
        await anyio.to_thread.run_sync(told.wait, "chunk_stuck", "undone", before + 1)
        (job_status,) = aioktask.snapshot().jobs
        assert job_status.phase == "undoing"
        assert job_status.stuck >= SOON
        gate.open()
    assert told.of("chunk_stuck", "undone")[-1]["undoing"]


@pytest.mark.anyio
async def test_a_coroutine_undo_is_told_without_a_chunk(told: Told) -> None:
    going_on = anyio.Event()

    async def undo(start: int, stop: int) -> None:
        await going_on.wait()

    def fail_at_end(start: int, stop: int) -> None:
        if start == 1:
            raise OSError(5, "planted")

    job = Job(fail_at_end, 2, chunk=1, max_threads=1, undo=undo, name="undone")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_expect, OSError, job)
        await anyio.to_thread.run_sync(told.wait, "chunk_stuck", "undone")
        (job_status,) = aioktask.snapshot().jobs
        assert job_status.stuck >= SOON
        assert job_status.waits_for == "its coroutine undo"
        assert not _stuck()
        going_on.set()
    (event, *_) = told.of("chunk_stuck", "undone")
    assert (event["chunk"], event["thread"], event["stack"]) == (None, 0, ())
    assert event["undoing"]


async def _expect(error: type[BaseException], job: Job[None]) -> None:
    with pytest.raises(error):
        await run_multithreaded(job)


@needs_stacks
def test_where_values_are_combined_is_told(told: Told) -> None:
    gate = Gate()

    def combine(left: int, right: int) -> int:
        gate.chunk(left, right)
        return left + right

    with Coordinator() as coordinator:
        handle = coordinator.submit(
            Job(lambda start, stop: start, 2, chunk=1, max_threads=1, reduce=combine, name="sums")
        )
        event = told.wait("chunk_stuck", "sums")[0]
        assert event["chunk"] is None
        assert any("combine" in each for each in event["stack"])
        gate.open()
        assert handle.result().value == 1


def test_a_cancelled_chunk_that_does_not_end_is_told_as_one_that_stops(told: Told) -> None:
    gate = Gate()
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 1, name="held"))
        gate.wait_entered()
        handle.cancel()
        assert told.wait("chunk_stuck", "held", 2)[-1]["stopping"]
        (job,) = aioktask.snapshot().jobs
        assert (job.phase, job.waits_for) == ("stopping", "the chunks that run to end")
        gate.open()


# Streams.


@pytest.mark.anyio
async def test_an_item_of_a_stream_is_told_and_its_waiting_consumer_is_not(told: Told) -> None:
    gate = Gate()

    def fn(item: int) -> int:
        gate.chunk(item, item + 1)
        return item

    async with map_ordered(fn, [1], name="stream") as results:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_first, results)
            await anyio.to_thread.run_sync(told.wait, "chunk_stuck", "stream")
            (found,) = _stuck()
            assert found.kind == "helper"
            gate.open()


async def _first(results: Any) -> None:
    async for value in results:
        assert value == 1


@pytest.mark.max_threads(1)  # which is at the first item, so that the other one is done here
def test_a_thread_that_waits_for_its_stream_is_not_stuck_and_at_an_item_it_is(told: Told) -> None:
    here, there = Gate(), Gate()
    mine = threading.get_ident()
    seen: list[list[HelperStatus]] = []

    def fn(item: int) -> int:
        if threading.get_ident() == mine:
            here.chunk(item, item + 1)
        else:
            there.chunk(item, item + 1)
        return item

    def look() -> None:
        told.wait("chunk_stuck", "stream", 2)  # both: the item on a helper, and the one here
        seen.append(_stuck())
        here.open()
        until(lambda: here.done)
        before = len(told.of("chunk_stuck", "stream"))
        told.wait("chunk_stuck", "stream", before + 2)  # so the keeper has looked since
        seen.append(_stuck())
        there.open()

    looking = threading.Thread(target=look)
    looking.start()
    with map_ordered_sync(fn, _after(there, here), name="stream") as results:
        assert list(results) == [0, 1]
    looking.join()
    assert sorted(each.kind for each in seen[0]) == ["caller", "helper"]
    assert {each.kind for each in seen[1]} == {"helper"}


def _after(there: Gate, here: Gate) -> Iterator[int]:
    """Two items: the second comes when a helper is at the first."""
    yield 0
    there.wait_entered()
    yield 1


def test_a_thread_that_goes_on_from_item_to_item_of_its_stream_is_not_stuck(told: Told) -> None:
    """Its place in the run is the same for each item."""
    mine = threading.get_ident()
    gate = Gate()
    enough = threading.Event()

    def fn(item: int) -> int:
        if threading.get_ident() != mine:
            gate.chunk(0, 1)
        elif not enough.is_set():
            threading.Event().wait(0.001)  # what an item takes
        return item

    def look() -> None:
        told.wait("chunk_stuck", "stream")
        enough.set()
        gate.open()

    looking = threading.Thread(target=look)
    looking.start()
    items = iter(range(10**9))
    with (
        Coordinator(stuck_after=LATER) as coordinator,
        map_ordered_sync(
            fn, items, ordered=False, name="stream", coordinator=coordinator
        ) as results,
    ):
        for _ in results:
            if enough.is_set():
                break
    looking.join()
    helpers = {each.thread for each in aioktask.snapshot().helpers}
    assert {event["thread"] for event in told.of("chunk_stuck", "stream")} <= helpers


# What goes on, and what is kept.


def test_chunks_that_go_on_are_not_told(told: Told) -> None:
    """Beside one that is stuck, by which the test knows that the keeper looked."""
    gate = Gate()
    enough = threading.Event()

    def go_on(start: int, stop: int) -> None:
        if not enough.is_set():
            threading.Event().wait(0.001)
        current_chunk().check_cancelled()

    with Coordinator(stuck_after=LATER) as coordinator:
        coordinator.submit(Job(gate.chunk, 1, name="held"))
        going = coordinator.submit(Job(go_on, 10**6, chunk=1, max_threads=1, name="goes on"))
        told.wait("chunk_stuck", "held")
        assert not told.of("chunk_stuck", "goes on")
        enough.set()
        going.cancel()
        gate.open()


def test_nothing_of_a_job_is_kept_once_it_is_over(told: Told) -> None:
    class Big:
        """What a job's function holds."""

    gate = Gate()
    big = Big()
    gone = weakref.ref(big)

    def fn(start: int, stop: int, big: Any = big) -> None:
        gate.chunk(start, stop)

    handle: Any
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(fn, 1, name="held"))
        del fn, big
        told.wait("chunk_stuck", "held")
        snapshot = aioktask.snapshot()
        gate.open()
        handle.result()
        del handle
        gc.collect()
        assert gone() is None
        assert snapshot.jobs[0].stuck
        deadline = threading.Event()
        while current_pool().chunks.places:  # until the keeper has looked
            deadline.wait(0.01)
    assert not aioktask.snapshot().jobs


def test_places_are_kept_by_numbers_and_texts_alone(told: Told) -> None:
    gate = Gate()
    with Coordinator() as coordinator:
        coordinator.submit(Job(gate.chunk, 1, name="held"))
        told.wait("chunk_stuck", "held")
        places = current_pool().chunks.places
        assert places
        for key, at in places.items():
            assert all(type(each) is int for each in key)
            assert all(type(each) is int for each in at[:-1])
            assert all(type(each) is str for each in at.stack)
        gate.open()
