# SPDX-License-Identifier: MIT
# How ranges are cut: every unit once, boundaries where they were promised, padata's rule for
# threads and chunks, the leaves of a reduce from the job alone.

from __future__ import annotations

import itertools
import operator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.ranges.plan import (
    CHUNKS_PER_THREAD,
    MOST_LEAVES,
    PIECES_OF_GRAIN,
    chunk_size,
    count_chunks,
    cut,
    job_chunk,
    leaf_size,
    make_plan,
    most_threads,
    node_of,
    piece_grain,
    round_up,
    spans,
    split,
    undo_grain,
    worthwhile_threads,
)
from aioktask.job import Job, Part


def work(start: int, stop: int) -> int:
    """A function for jobs that are never run."""
    return stop - start


def make(size: int = 1000, **arguments: Any) -> Job[Any]:
    return Job(work, size, **arguments)


def parts_of(start: int, size: int, cuts: set[int]) -> list[Part] | None:
    """Parts with edges at some of the range's units; none for an empty range."""
    if not size:
        return None
    edges = [start, *sorted(start + cut % size for cut in cuts if cut % size), start + size]
    return [Part(a, b) for a, b in itertools.pairwise(dict.fromkeys(edges))]


@st.composite
def jobs(draw: st.DrawFn, *, reduce: bool | None = None, parts: bool | None = None) -> Job[Any]:
    """Jobs of every kind, small enough to look at each chunk."""
    size = draw(st.integers(0, 3000) | st.integers(0, 30))
    start = draw(st.integers(-2000, 2000))
    align = draw(st.integers(1, 40))
    min_chunk = draw(st.integers(1, 100) | st.integers(1, 5000))
    chunk = draw(st.none() | st.integers(1, 20).map(lambda n: round_up(min_chunk, align) * n))
    has_parts = draw(st.booleans()) if parts is None else parts
    cuts = draw(st.sets(st.integers(0, 2999), max_size=4)) if has_parts else set()
    arguments: dict[str, Any] = {}
    if draw(st.booleans()) if reduce is None else reduce:
        arguments = {"reduce": operator.add, "initial": 0}
    return make(
        size,
        start=start,
        align=align,
        min_chunk=min_chunk,
        chunk=chunk,
        max_threads=draw(st.none() | st.integers(1, 20)),
        parts=parts_of(start, size, cuts) if has_parts else None,
        **arguments,
    )


def assert_tiles(ranges: list[range], start: int, stop: int) -> None:
    """The ranges are start to stop, in order, none of them empty."""
    reached = start
    for each in ranges:
        assert each.start == reached < each.stop
        reached = each.stop
    assert reached == stop


# Cutting.


@given(
    align=st.integers(1, 40),
    min_chunk=st.integers(1, 100) | st.integers(1, 5000),
    chunks=st.none() | st.integers(1, 20),
)
def test_pieces_are_cut_finer_than_the_smallest_chunk_where_there_is_no_undo(
    align: int, min_chunk: int, chunks: int | None
) -> None:
    chunk = None if chunks is None else chunks * round_up(min_chunk, align)
    job = make(align=align, min_chunk=min_chunk, chunk=chunk)
    undone = make(align=align, min_chunk=min_chunk, chunk=chunk, undo=work)
    grain, pieces = undo_grain(job), piece_grain(job)
    assert piece_grain(undone) == undo_grain(undone) == grain
    assert grain % pieces == 0
    assert pieces % align == 0
    if chunk is not None:
        assert pieces == grain
    else:  # the grain is halved as long as that leaves it aligned, and not too small
        assert PIECES_OF_GRAIN * pieces == grain or pieces // align % 2 == 1


@given(number=st.integers(-(10**6), 10**6), multiple=st.integers(1, 10**4))
def test_round_up_is_the_smallest_multiple_that_is_enough(number: int, multiple: int) -> None:
    rounded = round_up(number, multiple)
    assert rounded % multiple == 0
    assert number <= rounded < number + multiple


@given(start=st.integers(-500, 500), size=st.integers(0, 1000), chunk=st.integers(1, 1200))
def test_a_cut_covers_every_unit_once_and_ends_at_absolute_multiples(
    start: int, size: int, chunk: int
) -> None:
    stop = start + size
    chunks = list(cut(start, stop, chunk))
    assert_tiles(chunks, start, stop)
    assert all(each.stop % chunk == 0 for each in chunks[:-1])
    assert all(each.start % chunk == 0 for each in chunks[1:])
    assert all(len(each) <= chunk for each in chunks)
    assert count_chunks(start, stop, chunk) == len(chunks)


@given(start=st.integers(-50, 50), stop=st.integers(-50, 50), chunk=st.integers(1, 20))
def test_a_range_that_ends_before_it_begins_has_no_chunks(
    start: int, stop: int, chunk: int
) -> None:
    if stop <= start:
        assert count_chunks(start, stop, chunk) == 0
        assert list(cut(start, stop, chunk)) == []


def test_both_edges_of_a_range_may_be_short() -> None:
    assert list(cut(5, 23, 8)) == [range(5, 8), range(8, 16), range(16, 23)]


# padata's rule.


@given(size=st.integers(0, 10**7), min_chunk=st.integers(1, 10**5), align=st.integers(1, 10**5))
def test_the_threads_worth_having_are_the_size_by_the_larger_of_min_chunk_and_align_rounded_down(
    size: int, min_chunk: int, align: int
) -> None:
    worth = worthwhile_threads(make(size, min_chunk=min_chunk, align=align))
    assert worth >= 1
    assert worth == 1 or worth * max(min_chunk, align) <= size
    assert (worth + 1) * max(min_chunk, align) > size


@pytest.mark.parametrize(
    ("size", "min_chunk", "align", "threads"),
    [
        (0, 1, 1, 1),  # nothing to do is worth a thread, not zero or an error
        (1, 1, 1, 1),
        (100, 101, 1, 1),  # min_chunk larger than the range
        (100, 10**12, 1, 1),
        (100, 100, 1, 1),
        (199, 100, 1, 1),  # floor; ktask's ceil would say 2
        (200, 100, 1, 2),
        (299, 100, 1, 2),
        (8192, 1, 4096, 2),  # align above min_chunk: before the fix of 2024, 8192 threads
        (8191, 1, 4096, 1),
        (8192, 4096, 1, 2),
    ],
)
def test_corner_cases_of_the_threads_worth_having(
    size: int, min_chunk: int, align: int, threads: int
) -> None:
    assert worthwhile_threads(make(size, min_chunk=min_chunk, align=align)) == threads


@given(job=jobs())
def test_max_threads_only_ever_lowers_the_number_of_threads(job: Job[Any]) -> None:
    worth = worthwhile_threads(job)
    assert most_threads(job) == min(worth, job.max_threads or worth)
    assert most_threads(job) >= 1


@given(
    size=st.integers(0, 10**9),
    threads=st.integers(1, 300),
    min_chunk=st.integers(1, 10**6),
    align=st.integers(1, 10**6),
)
def test_a_chunk_is_a_quarter_of_a_threads_share_at_least_min_chunk_and_aligned(
    size: int, threads: int, min_chunk: int, align: int
) -> None:
    chunk = chunk_size(size, threads, min_chunk=min_chunk, align=align)
    least = max(min_chunk, size // (threads * CHUNKS_PER_THREAD))
    assert chunk % align == 0
    assert least <= chunk < least + align
    assert chunk >= 1


@pytest.mark.parametrize(
    ("size", "threads", "min_chunk", "align", "chunk"),
    [
        (0, 1, 1, 1, 1),  # padata before 2024 gave 0
        (3, 1, 1, 1, 1),
        (1600, 4, 1, 1, 100),
        (1600, 4, 101, 1, 101),
        (1600, 4, 1, 64, 128),
        (10, 16, 1, 4096, 4096),
        (1000, 1, 500, 300, 600),
    ],
)
def test_corner_cases_of_the_chunk(
    size: int, threads: int, min_chunk: int, align: int, chunk: int
) -> None:
    assert chunk_size(size, threads, min_chunk=min_chunk, align=align) == chunk


@given(job=jobs(), threads=st.integers(1, 40))
def test_the_chunk_of_a_job_is_never_below_min_chunk_nor_off_its_alignment(
    job: Job[Any], threads: int
) -> None:
    chunk = job_chunk(job, threads)
    assert chunk >= job.min_chunk
    assert chunk % job.align == 0
    if job.chunk is not None:
        assert chunk == job.chunk


@given(job=jobs())
def test_undo_is_cut_where_every_chunk_ends_anyway(job: Job[Any]) -> None:
    grain = undo_grain(job)
    if job.chunk is not None:
        assert grain == job.chunk
    else:
        assert grain % job.align == 0
        assert max(job.align, job.min_chunk) <= grain < job.min_chunk + job.align


# The leaves of a reduce.


@given(job=jobs(reduce=True), caps=st.lists(st.integers(1, 500), min_size=2, max_size=2))
def test_leaves_are_the_same_on_every_machine(job: Job[Any], caps: list[int]) -> None:
    few, many = (split(job, cap) for cap in caps)
    assert few.chunk == many.chunk == leaf_size(job)
    assert few.spans == many.spans


@given(job=jobs(reduce=True), max_threads=st.integers(1, 100), nice=st.integers(-20, 19))
def test_leaves_do_not_depend_on_threads_nice_or_parts(
    job: Job[Any], max_threads: int, nice: int
) -> None:
    same = make(
        job.size,
        start=job.start,
        align=job.align,
        min_chunk=job.min_chunk,
        chunk=job.chunk,
        max_threads=max_threads,
        nice=nice,
        reduce=operator.add,
        initial=0,
    )
    assert leaf_size(same) == leaf_size(job)


@given(
    size=st.integers(0, 2**62),
    start=st.integers(-(2**62), 2**62),
    min_chunk=st.integers(1, 2**40),
    align=st.integers(1, 2**30),
)
def test_there_are_about_4096_leaves_at_most_unless_chunk_says_more(
    size: int, start: int, min_chunk: int, align: int
) -> None:
    leaf = leaf_size(make(size, start=start, min_chunk=min_chunk, align=align))
    assert leaf >= min_chunk
    assert leaf % align == 0
    # A range that does not begin at a multiple has one leaf more.
    assert count_chunks(start, start + size, leaf) <= MOST_LEAVES + 1
    if start % leaf == 0:
        assert count_chunks(start, start + size, leaf) <= MOST_LEAVES


def test_a_leaf_is_no_larger_than_it_must_be() -> None:
    assert leaf_size(make(4096)) == 1
    assert leaf_size(make(4097)) == 2
    assert leaf_size(make(4097, min_chunk=5)) == 5
    assert leaf_size(make(4096 * 5, align=4)) == 8
    assert leaf_size(make(10**6, chunk=3)) == 3
    assert leaf_size(make(0)) == 1


# Parts.


@given(job=jobs(parts=True), chunk=st.integers(1, 500))
def test_spans_are_the_range(job: Job[Any], chunk: int) -> None:
    assert_tiles(list(spans(job, chunk)), job.start, job.stop)


@given(job=jobs(reduce=False, parts=True), chunk=st.integers(1, 500))
def test_without_reduce_every_part_keeps_its_edges(job: Job[Any], chunk: int) -> None:
    assert [(each.start, each.stop) for each in spans(job, chunk)] == [
        (part.start, part.stop) for part in job.parts
    ]


@given(job=jobs(reduce=True, parts=True))
def test_with_reduce_part_edges_move_up_to_leaf_edges(job: Job[Any]) -> None:
    leaf = leaf_size(job)
    inner = {each.stop for each in spans(job, leaf)} - {job.stop}
    assert inner == {
        round_up(part.start, leaf)
        for part in job.parts
        if job.start < part.start and round_up(part.start, leaf) < job.stop
    }
    assert all(edge % leaf == 0 for edge in inner)


@given(job=jobs(reduce=True))
def test_with_reduce_parts_do_not_change_the_leaves(job: Job[Any]) -> None:
    leaf = leaf_size(job)
    pieces = [piece for span in spans(job, leaf) for piece in cut(span.start, span.stop, leaf)]
    assert pieces == list(cut(job.start, job.stop, leaf))


def test_a_job_without_parts_is_one_span_and_without_units_none() -> None:
    assert spans(make(10, start=3), 4) == (range(3, 13),)
    assert spans(make(0, start=3), 4) == ()


# The plan.


@given(job=jobs(), cap=st.integers(1, 40))
def test_a_plan_covers_every_unit_once_at_absolute_multiples_and_part_edges(
    job: Job[Any], cap: int
) -> None:
    plan = make_plan(job, [(cap, "the cap")])
    chunks = list(plan.boundaries())
    assert_tiles(chunks, job.start, job.stop)
    assert plan.chunks == len(chunks)
    edges = {span.stop for span in plan.spans}
    assert all(each.stop % plan.chunk == 0 or each.stop in edges for each in chunks)
    assert all(each.stop % job.align == 0 or each.stop in edges for each in chunks)
    if job.reduce is None:
        assert {part.stop for part in job.parts} <= {each.stop for each in chunks}


@given(job=jobs(), cap=st.integers(1, 40))
def test_a_plan_never_has_more_threads_than_any_limit_or_than_chunks(
    job: Job[Any], cap: int
) -> None:
    plan = make_plan(job, [(cap, "the cap")])
    assert plan.threads <= min(cap, worthwhile_threads(job), plan.chunks)
    assert plan.threads <= (job.max_threads or plan.threads)
    assert (plan.threads > 0) == (job.size > 0)
    assert plan.name == "work"


@given(job=jobs(), caps=st.lists(st.integers(1, 40), max_size=4))
def test_a_plan_is_made_of_what_the_engine_splits_by(job: Job[Any], caps: list[int]) -> None:
    plan = make_plan(job, [(cap, str(cap)) for cap in caps])
    numbers = split(job, min([most_threads(job), *caps]))
    assert (plan.chunk, plan.chunks, plan.spans) == (numbers.chunk, numbers.chunks, numbers.spans)
    assert plan.threads == min(numbers.threads, numbers.chunks)


@given(job=jobs(), caps=st.lists(st.integers(1, 40), max_size=4))
def test_a_plan_names_a_limit_that_really_is_the_lowest(job: Job[Any], caps: list[int]) -> None:
    plan = make_plan(job, [(cap, f"cap {number}") for number, cap in enumerate(caps)])
    limits = {
        "the size": worthwhile_threads(job),
        "the number of chunks": plan.chunks,
        **{f"cap {number}": cap for number, cap in enumerate(caps)},
    }
    if job.max_threads is not None:
        limits["the job's max_threads"] = job.max_threads
    named = [limit for limit in limits if plan.limited_by.startswith(limit)]
    assert len(named) == 1
    assert limits[named[0]] == min(limits.values()) == plan.threads


def test_a_plan_says_which_limit_decided() -> None:
    caps = [(8, "the process's cap"), (6, "the coordinator's cap")]
    assert make_plan(make(10**6), caps).limited_by == "the coordinator's cap"
    assert make_plan(make(10**6), caps[:1]).limited_by == "the process's cap"
    assert make_plan(make(10**6, max_threads=3), caps).limited_by == "the job's max_threads=3"
    by_size = make_plan(make(1999, min_chunk=500, max_threads=5), caps)
    assert (by_size.threads, by_size.chunks) == (3, 4)
    assert by_size.limited_by.startswith("the size: 1999 / max(min_chunk, align) is 3")
    by_chunks = make_plan(make(1000, chunk=500), caps)
    assert by_chunks.limited_by == "the number of chunks: 2"
    assert by_chunks.threads == 2


def test_a_plan_of_nothing_has_no_threads_and_says_so() -> None:
    plan = make_plan(make(0), [(8, "the cap")])
    assert (plan.threads, plan.chunks, list(plan.boundaries())) == (0, 0, [])
    assert plan.notes == ("size is 0: the job is done when it is submitted",)


@pytest.mark.parametrize(
    ("arguments", "long"),
    [
        ({"chunk": 250}, True),
        ({"chunk": 249}, False),
        ({"min_chunk": 600}, True),
        ({"align": 2000}, True),
        ({"chunk": 2000}, True),
        ({}, False),
        ({"min_chunk": 100}, False),
    ],
)
def test_a_plan_warns_of_long_chunks(arguments: dict[str, int], long: bool) -> None:
    notes = make_plan(make(1000, **arguments), [(8, "the cap")]).notes
    assert any("cancelling the job and serving other jobs wait" in note for note in notes) == long
    if long:
        (setting,) = arguments
        (note,) = notes
        assert "long" in note
        assert f"of {1000} units" in note
        assert setting in note or arguments[setting] == 250


def test_a_single_unit_is_no_long_chunk() -> None:
    assert make_plan(make(1), [(8, "the cap")]).notes == ()


def test_a_plan_of_a_reduce_says_that_the_leaves_are_fixed() -> None:
    (note,) = make_plan(make(10**6, reduce=operator.add), [(8, "the cap")]).notes
    assert note.startswith(f"reduce: the leaves are {-(-(10**6) // 4096)} units on every machine")


# Huge ranges.


@given(
    size=st.integers(2**59, 2**63),
    start=st.integers(-(2**63), 2**63),
    chunk=st.none() | st.integers(1, 2**20),
    reduce=st.booleans(),
    parts=st.booleans(),
)
def test_a_plan_of_a_huge_range_counts_without_cutting(
    size: int, start: int, chunk: int | None, reduce: bool, parts: bool
) -> None:
    job = make(
        size,
        start=start,
        chunk=chunk,
        parts=[Part(start, start + 2**40), Part(start + 2**40, start + size)] if parts else None,
        **({"reduce": operator.add} if reduce else {}),
    )
    plan = make_plan(job, [(256, "the cap")])
    assert plan.threads == 256
    assert plan.chunks >= size // plan.chunk
    assert next(plan.boundaries()).start == start
    assert plan.spans[-1].stop == start + size


# The nodes of parts.


@given(
    lengths=st.lists(st.tuples(st.integers(1, 5), st.none() | st.integers(0, 3)), min_size=1),
    start=st.integers(-10, 10),
)
def test_a_unit_belongs_to_the_node_of_its_part(
    lengths: list[tuple[int, int | None]], start: int
) -> None:
    edges = list(itertools.accumulate((length for length, _ in lengths), initial=start))
    parts = [
        Part(a, b, node)
        for (a, b), (_, node) in zip(itertools.pairwise(edges), lengths, strict=True)
    ]
    job = Job(print, edges[-1] - start, start=start, parts=parts)
    for part in parts:
        for unit in range(part.start, part.stop):
            assert node_of(job, unit) == part.node
    assert node_of(job, start - 1) is None
    assert node_of(Job(print, 5), 3) is None


def test_finding_the_node_of_a_unit_looks_at_few_of_many_parts() -> None:
    looks = 0

    class CountingPart:
        node = 0

        def __init__(self, start: int) -> None:
            self._start = start

        @property
        def start(self) -> int:
            nonlocal looks
            looks += 1
            return self._start

    many = SimpleNamespace(parts=tuple(CountingPart(start) for start in range(20_000)))
    assert node_of(cast("Any", many), 19_999) == 0
    assert looks < 20
