# SPDX-License-Identifier: MIT
# What a job that stopped has done, against sets of units.

from __future__ import annotations

import itertools
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.ranges.claims import Claims
from aioktask.engine.ranges.plan import cut
from aioktask.engine.ranges.undo import Failed, Outcome, merge, outcome, subtract
from tests.engine.ranges.claiming import claim

ranges = st.builds(range, st.integers(-30, 30), st.integers(-30, 30))


def units(pieces: Iterable[range]) -> set[int]:
    return {unit for piece in pieces for unit in piece}


def assert_tidy(pieces: tuple[range, ...]) -> None:
    """Ascending, none empty, no two that overlap or touch."""
    assert all(piece.start < piece.stop for piece in pieces)
    assert all(a.stop < b.start for a, b in itertools.pairwise(pieces))


@given(pieces=st.lists(ranges, max_size=8))
def test_merge_keeps_the_units_and_leaves_no_seams(pieces: list[range]) -> None:
    merged = merge(pieces)
    assert_tidy(merged)
    assert units(merged) == units(pieces)


@given(pieces=st.lists(ranges, max_size=8), order=st.randoms(use_true_random=False))
def test_merge_does_not_care_for_the_order_and_changes_nothing_twice(
    pieces: list[range], order: object
) -> None:
    shuffled = list(pieces)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert merge(shuffled) == merge(pieces) == merge(merge(pieces))


@given(whole=ranges, holes=st.lists(ranges, max_size=8))
def test_subtract_leaves_what_is_in_no_hole(whole: range, holes: list[range]) -> None:
    rest = subtract(whole, holes)
    assert_tidy(rest)
    assert units(rest) == set(whole) - units(holes)


@st.composite
def stopped_jobs(draw: st.DrawFn) -> tuple[range, list[range], list[Failed], set[int], set[int]]:
    """A range, its chunks that are free or failed, and the units that are done and unknown."""
    start = draw(st.integers(-40, 40))
    whole = range(start, start + draw(st.integers(0, 80)))
    free: list[range] = []
    failed: list[Failed] = []
    done: set[int] = set()
    unknown: set[int] = set()
    for piece in cut(whole.start, whole.stop, draw(st.integers(1, 12))):
        fate = draw(st.sampled_from(["free", "done", "done", "failed"]))
        if fate == "free":
            free.append(piece)
            continue
        upto = piece.stop
        if fate == "failed":
            upto = draw(st.integers(piece.start, piece.stop))
            failed.append(Failed(piece.start, upto, piece.stop))
        done |= set(range(piece.start, upto))
        unknown |= set(range(upto, piece.stop))
    return whole, free, failed, done, unknown


@given(job=stopped_jobs(), order=st.randoms(use_true_random=False))
def test_the_outcome_is_every_unit_that_was_completed_once(
    job: tuple[range, list[range], list[Failed], set[int], set[int]], order: object
) -> None:
    whole, free, failed, done, unknown = job
    order.shuffle(free)  # type: ignore[attr-defined]
    order.shuffle(failed)  # type: ignore[attr-defined]
    found = outcome(whole, [(piece.start, piece.stop) for piece in free], failed)
    assert_tidy(found.done)
    assert_tidy(found.unknown)
    assert units(found.done) == done
    assert units(found.unknown) == unknown
    assert not units(found.done) & units(found.unknown)


@given(
    size=st.integers(0, 200),
    chunk=st.integers(1, 20),
    steps=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6), st.booleans()), max_size=20),
)
def test_what_is_not_free_was_walked(
    size: int, chunk: int, steps: list[tuple[int, int, bool]]
) -> None:
    whole = range(3, 3 + size)
    claims = Claims([whole], chunk)
    done: set[int] = set()
    unknown: set[int] = set()
    failed: list[Failed] = []
    for chunks, walked, fails in steps:
        stretch = claim(claims, chunks, 1)
        if stretch is None:
            break
        pieces = list(cut(*stretch, chunk))
        done |= units(pieces[:walked])
        position = pieces[walked].start if walked < len(pieces) else stretch[1]
        if fails and walked < len(pieces):
            piece = pieces[walked]
            upto = piece.start + len(piece) // 2
            failed.append(Failed(piece.start, upto, piece.stop))
            done |= set(range(piece.start, upto))
            unknown |= set(range(upto, piece.stop))
            position = piece.stop
        claims.give_back(position, stretch[1])
    found = outcome(whole, claims.free, failed)
    assert units(found.done) == done
    assert units(found.unknown) == unknown


def test_a_job_that_nobody_began_has_done_nothing() -> None:
    assert outcome(range(10), [(0, 10)]) == Outcome((), ())


def test_a_job_that_went_through_has_done_all() -> None:
    assert outcome(range(10), []) == Outcome((range(10),), ())


def test_a_failing_chunk_is_unknown_from_where_it_advanced_to() -> None:
    found = outcome(range(40), [(30, 40)], [Failed(10, 14, 20)])
    assert found.done == (range(14), range(20, 30))
    assert found.unknown == (range(14, 20),)


def test_a_chunk_that_advanced_to_its_end_before_it_failed_is_done() -> None:
    assert outcome(range(20), [], [Failed(10, 20, 20)]) == Outcome((range(20),), ())
