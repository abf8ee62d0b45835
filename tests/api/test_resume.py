# SPDX-License-Identifier: MIT
# Resume: what a failure says is left, and jobs over that. Whatever failed, was cancelled or was
# undone: done, unknown and remaining are the whole range, and jobs over what remains do that once.

from __future__ import annotations

import itertools
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask import (
    Coordinator,
    Failure,
    Job,
    JobCancelled,
    Part,
    UndoFailed,
    arrays,
    current_chunk,
    failure,
    run_multithreaded,
    run_multithreaded_sync,
)
from aioktask.engine.ranges.plan import facts_of
from tests.support.gates import Gate, units

pytestmark = [pytest.mark.anyio, pytest.mark.max_threads(2)]


def work(start: int, stop: int) -> None:
    """A function for jobs that are never run."""


def covered(*ranges: tuple[range, ...]) -> list[int]:
    return sorted(unit for each in ranges for one in each for unit in one)


class Counted:
    """A function that counts how often each unit is done, and fails once in the chunk at a unit."""

    def __init__(self, size: int, fails_at: int | None = None, advance_by: int = 0) -> None:
        self.counts = [0] * size
        self.lock = threading.Lock()
        self.fails_at = fails_at
        self.advance_by = advance_by

    def add(self, start: int, stop: int, by: int) -> None:
        with self.lock:
            for unit in range(start, stop):
                self.counts[unit] += by

    def chunk(self, start: int, stop: int) -> None:
        if self.fails_at is not None and start <= self.fails_at < stop:
            self.fails_at = None
            upto = start + self.advance_by
            current_chunk().advance(upto)
            self.add(start, upto, 1)
            raise OSError("planted")
        self.add(start, stop, 1)

    def undo(self, start: int, stop: int) -> None:
        self.add(start, stop, -1)


@pytest.mark.parametrize("fails_at", [0, 410, 999])
@pytest.mark.parametrize(("undoes", "advance_by"), [(False, 0), (False, 10), (True, 3)])
async def test_jobs_over_what_remains_and_what_is_unknown_do_the_rest_once(
    fails_at: int, undoes: bool, advance_by: int
) -> None:
    work = Counted(1000, fails_at, advance_by)
    job = Job(work.chunk, 1000, align=10, min_chunk=20, undo=work.undo if undoes else None)
    with pytest.raises(OSError, match="planted") as caught:
        await run_multithreaded(job)
    told = failure(caught.value)
    assert covered(told.done, told.unknown, told.remaining) == list(range(1000))
    # Nothing of the unknown part was done, as the function knows.
    for one in job.over([*told.remaining, *told.unknown]):
        await run_multithreaded(one)
    assert work.counts == [1] * 1000


async def test_what_remains_alone_leaves_the_unknown_part_as_it_is() -> None:
    work = Counted(100, fails_at=50, advance_by=3)
    job = Job(work.chunk, 100, chunk=10, align=5)
    with pytest.raises(OSError, match="planted") as caught:
        await run_multithreaded(job)
    for one in job.over(failure(caught.value).remaining):
        await run_multithreaded(one)
    assert [unit for unit, count in enumerate(work.counts) if count != 1] == list(range(53, 60))


async def test_a_job_that_never_began_has_all_of_it_left() -> None:
    gate = Gate()
    async with Coordinator(max_threads=1) as coordinator:
        coordinator.submit(Job(gate.chunk, 1))
        await gate.entered()
        handle = coordinator.submit(Job(work, 8, start=4))
        handle.cancel()
        gate.open()
        with pytest.raises(JobCancelled) as caught:
            await handle
    assert failure(caught.value).remaining == (range(4, 12),)


async def test_what_an_undo_could_not_undo_does_not_remain() -> None:
    work = Counted(100, fails_at=99)

    def undo(start: int, stop: int) -> None:
        if start == 0:
            raise OSError("cannot")
        work.undo(start, stop)

    job = Job(work.chunk, 100, chunk=10, undo=undo, max_threads=1)
    with pytest.raises(UndoFailed) as caught:
        await run_multithreaded(job)
    told = failure(caught.value)
    assert told.done[0].start == 0
    assert covered(told.done, told.remaining, told.unknown) == list(range(100))
    for one in job.over([*told.remaining, *told.unknown]):
        await run_multithreaded(one)
    assert work.counts == [1] * 100


def test_what_remains_is_known_of_a_failure_from_another_process() -> None:
    told = Failure(Job(work, 10), range(4, 6), (), (range(0, 4),), (), (range(4, 6),))
    assert pickle.loads(pickle.dumps(told)).remaining == (range(6, 10),)


RANGES = st.lists(st.integers(0, 40), max_size=12, unique=True).map(sorted)


@given(edges=RANGES, kinds=st.lists(st.sampled_from(["done", "unknown", "free"]), min_size=12))
def test_done_unknown_and_remaining_are_the_whole_range(edges: list[int], kinds: list[str]) -> None:
    pieces = [range(a, b) for a, b in itertools.pairwise(edges)]
    done = tuple(each for each, kind in zip(pieces, kinds, strict=False) if kind == "done")
    unknown = tuple(each for each, kind in zip(pieces, kinds, strict=False) if kind == "unknown")
    told = Failure(Job(work, 40), None, (), done, (), unknown)
    assert covered(told.done, told.unknown, told.remaining) == list(range(40))
    assert all(a.stop < b.start for a, b in itertools.pairwise(told.remaining))


# Jobs over ranges.


def test_all_but_the_range_is_kept() -> None:
    job = Job(
        work, 80, start=8, align=4, min_chunk=4, chunk=8, max_threads=3, undo=work, nice=5,
        memory=1 << 20, labels={"id": "7"}, name="all of it",
        parts=[Part(8, 40, 0), Part(40, 88, 1)],
    )  # fmt: skip
    [one] = job.over([range(32, 60)])
    changed = {"start": 32, "size": 28, "parts": (Part(32, 40, 0), Part(40, 60, 1))}
    before = {name: value for name, value in vars(job).items() if not name.startswith("_")}
    after = {name: value for name, value in vars(one).items() if not name.startswith("_")}
    assert after == {**before, **changed}
    assert (job.start, job.size) == (8, 80)


def test_what_follows_from_the_range_of_a_job_is_found_out_anew_for_those_over_it() -> None:
    job = Job(work, 4)
    run_multithreaded_sync(job)
    [one] = job.over([range(1, 2)])
    assert facts_of(one) == facts_of(Job(work, 1, start=1)) != facts_of(job)
    assert run_multithreaded_sync(one).chunks == 1


@given(
    align=st.integers(1, 7),
    start=st.integers(-9, 9),
    data=st.data(),
)
def test_no_chunk_begins_off_align_but_where_the_job_does(
    align: int, start: int, data: Any
) -> None:
    job = Job(work, 60, start=start, align=align)
    edges = data.draw(st.lists(st.integers(start, start + 60), min_size=2, unique=True))
    edges.sort()
    given = [range(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    off = [each for each in given if each.start % align and each.start != start]
    if off:
        with pytest.raises(ValueError, match=f"multiples of align.*got {off[0].start} to"):
            job.over(given)
        return
    jobs = job.over(given)
    assert covered(tuple(range(one.start, one.stop) for one in jobs)) == units(
        [(each.start, each.stop) for each in given]
    )
    assert all(one.start % align == 0 or one.start == start for one in jobs)


def test_ranges_in_any_order_are_jobs_in_ascending_order_and_none_is_none() -> None:
    job = Job(work, 100)
    assert [each.start for each in job.over([range(50, 60), range(0, 5)])] == [0, 50]
    assert job.over(()) == ()


def test_ranges_that_meet_are_two_jobs_where_align_allows_it_and_else_one() -> None:
    job = Job(work, 100, align=10)
    assert [each.size for each in job.over([range(20, 30), range(30, 40)])] == [10, 10]
    assert [each.size for each in job.over([range(20, 33), range(33, 40)])] == [20]


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ([range(5, 5)], "empty, got range(5, 5)"),
        ([range(0, 10, 2)], "step of 1"),
        ([range(-5, 10)], "inside of the job's 0 to 100, got -5 to 10"),
        ([range(90, 101)], "inside of the job's 0 to 100, got 90 to 101"),
        ([range(0, 20), range(10, 30)], "overlap: 0 to 20 and 10 to 30 do"),
        ([range(0, 20), range(0, 20)], "overlap"),
        ([range(7, 20)], "multiples of align (5), or where the job or a part of it does, got 7"),
    ],
)
def test_ranges_that_no_job_can_have_are_refused(ranges: list[range], said: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the words are compared below
        Job(work, 100, align=5).over(ranges)
    assert said in str(refused.value)


@pytest.mark.parametrize("ranges", [5, [(0, 5)], ["0-5"], None])
def test_what_is_no_range_is_refused(ranges: Any) -> None:
    with pytest.raises(TypeError, match="ranges must be"):
        Job(work, 100).over(ranges)


def test_a_job_with_one_value_for_its_range_is_not_cut() -> None:
    with pytest.raises(TypeError, match="reduce combines the whole range"):
        Job(max, 10, reduce=max).over([range(5)])
    with pytest.raises(TypeError, match="made anew for the whole range"):
        arrays.fill(np.zeros(8), 1).over([range(4)])
