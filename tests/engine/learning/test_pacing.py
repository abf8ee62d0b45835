# SPDX-License-Identifier: MIT
# The next stretch of a thread and the number of threads, as one run decides them: whatever
# stretches cost, and however many threads there are.

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask import Job
from aioktask.engine.learning.lessons import Lesson
from aioktask.engine.learning.pacing import (
    FIXED,
    EvenPacing,
    FixedPacing,
    LearnedPacing,
    Pacing,
    Stepper,
    pacing_of,
)
from aioktask.engine.learning.scaling import WAITING_SURE_NS, Scaling
from aioktask.engine.learning.scores import Pace
from aioktask.engine.learning.sizing import Sizes
from aioktask.engine.learning.stretch import MOST_CHUNKS
from aioktask.engine.ranges.claims import Claims
from aioktask.engine.ranges.plan import (
    CHUNKS_PER_THREAD,
    most_threads,
    piece_grain,
    undo_grain,
)

MILLISECOND = 1_000_000


def work(start: int, stop: int) -> None: ...


def stretch_of(
    stepper: Stepper, claims: Claims, threads: int, *, most: int = 1, now: int = 0
) -> range:
    start, first, stop = stepper.next(claims, None, threads, most, now)
    assert start < first <= stop
    return range(start, stop)


def walk_all(stepper: Stepper, claims: Claims, stretch: range, ns: int, *, threads: int) -> bool:
    """The thread walked its whole stretch in so long, beginning at 0."""
    chunks = -(-len(stretch) // stepper.chunk)
    return stepper.finished(chunks, len(stretch), claims.left, threads, ns, ns)


@given(
    threads=st.integers(1, 5),
    size=st.integers(1, 3000),
    grain=st.integers(1, 9),
    cuts=st.integers(1, 8),
    learns=st.sampled_from(["nothing", "chunk", "threads", "both"]),
    seed=st.integers(0, 2**32),
)
def test_every_unit_is_taken_once_and_no_thread_takes_more_than_its_share(
    threads: int, size: int, grain: int, cuts: int, learns: str, seed: int
) -> None:
    """Several threads that walk, and give back what they do not.

    Where the size is learned, the pieces that end the range are multiples of `grain`, which sizes
    are `cuts` times, and their powers of two.
    """
    rng = random.Random(seed)
    scaling = Scaling(threads) if learns in ("threads", "both") else None
    fixed = learns in ("nothing", "threads")
    pacing: Pacing = (
        FixedPacing(scaling)
        if fixed
        else LearnedPacing(Sizes(size, grain * cuts, threads), scaling, grain)
    )
    assert pacing.grain_of(grain) == grain
    claims = Claims([range(size)], grain)
    steppers = [pacing.stepper(1) for _ in range(threads)]
    held: dict[int, tuple[range, int]] = {}
    taken: set[int] = set()
    now = 0
    while claims.left or held:
        now += rng.choice([1, 1000, MILLISECOND, 10 * MILLISECOND])
        which = rng.randrange(threads)
        stepper = steppers[which]
        if which in held:
            stretch, since = held.pop(which)
            boundary = stretch.start - stretch.start % grain + grain * rng.randint(0, 40)
            stop = min(max(boundary, stretch.start), stretch.stop) if rng.random() < 0.3 else 0
            stop = stop or stretch.stop
            walked = range(stretch.start, stop)
            claims.give_back(stop, stretch.stop)
            assert taken.isdisjoint(walked)
            taken.update(walked)
            chunks = -(-len(walked) // stepper.chunk)
            stepper.finished(chunks, len(walked), claims.left, threads, now - since, now)
        elif claims.left:
            sharers = len(held) + 1
            left = (
                claims.left if fixed else claims.left + sum(len(each) for each, _ in held.values())
            )
            stretch = stretch_of(stepper, claims, sharers, most=threads, now=now)
            held[which] = stretch, now
            share = left // sharers
            assert len(stretch) <= max(share // 2 if fixed else share, stepper.chunk)
        assert 1 <= pacing.threads_of(threads) <= threads
        assert pacing.chunk_of(grain) % grain == 0
    assert taken == set(range(size))


@given(
    start=st.integers(0, 10**9),
    size=st.integers(1, 10**7),
    min_chunk=st.integers(1, 2 * 10**6),
    align=st.sampled_from([1, 2, 512, 4096]),
    cap=st.integers(1, 6),
)
def test_threads_share_a_range_of_a_few_chunks_evenly(
    start: int, size: int, min_chunk: int, align: int, cap: int
) -> None:
    job = Job(work, size, start=start, min_chunk=min_chunk, align=align)
    threads = min(most_threads(job), cap)
    pacing = pacing_of(job, threads, "both", None)
    grain, cut = undo_grain(job), piece_grain(job)
    few = size <= CHUNKS_PER_THREAD * grain
    assert isinstance(pacing, EvenPacing) == (few and threads > 1 and cut < grain)
    if not isinstance(pacing, EvenPacing):
        return
    claims = Claims([range(start, start + size)], pacing.grain_of(grain))
    stepper, taken = pacing.stepper(1), []
    while claims.left:
        taken.append(stretch_of(stepper, claims, threads))
    assert [*itertools.chain.from_iterable([(each.start, each.stop) for each in taken])] == [
        start,
        *[edge for each in taken[:-1] for edge in (each.stop, each.stop)],
        start + size,
    ]
    assert all(each.stop % cut == 0 for each in taken[:-1])
    assert len(taken) % threads == 0 or len(taken[-1]) < len(taken[0])
    lengths = sorted(map(len, taken))
    # A thread whose pieces are all of the longest kind has little more than one of the shortest.
    rounds = -(-len(taken) // threads)
    assert sum(lengths[-rounds:]) <= size / threads + (rounds + 1) * cut
    assert lengths[-1] < 2 * grain + 2 * cut
    assert lengths[0] >= grain - threads * rounds * cut


def test_quick_chunks_are_taken_twice_as_many_at_a_time() -> None:
    claims = Claims([range(10**6)], 1)
    stepper = FIXED.stepper(1)
    lengths = []
    for _ in range(10):
        stretch = stretch_of(stepper, claims, 2)
        lengths.append(len(stretch))
        walk_all(stepper, claims, stretch, 10, threads=2)
    assert lengths == [1, 2, 4, 8, 16, 32, 64, 128, MOST_CHUNKS, MOST_CHUNKS]


def test_each_thread_has_its_own_number_of_chunks_and_the_main_thread_more() -> None:
    claims = Claims([range(10**6)], 1)
    quick, slow, main = FIXED.stepper(1), FIXED.stepper(1), FIXED.stepper(10)
    for stepper, ns in ((quick, 10), (slow, MILLISECOND), (main, 10)):
        for _ in range(14):
            walk_all(stepper, claims, stretch_of(stepper, claims, 3), ns, threads=3)
    lengths = [len(stretch_of(each, claims, 3)) for each in (quick, slow, main)]
    assert lengths == [MOST_CHUNKS, 1, 10 * MOST_CHUNKS]


def test_a_stretch_of_which_nothing_was_done_says_nothing_of_its_cost() -> None:
    claims = Claims([range(1000)], 1)
    stepper = FIXED.stepper(1)
    walk_all(stepper, claims, stretch_of(stepper, claims, 1), 10, threads=1)
    stretch = stretch_of(stepper, claims, 1)
    claims.give_back(stretch.start, stretch.stop)
    assert not stepper.finished(0, 0, claims.left, 1, 10**9, 10**9)
    assert len(stretch_of(stepper, claims, 1)) == 2


def test_the_last_stretches_get_shorter_by_half_of_a_fair_part() -> None:
    claims = Claims([range(100)], 1)
    stepper = FIXED.stepper(1)
    for _ in range(6):
        stretch = stretch_of(stepper, claims, 1)
        walk_all(stepper, claims, stretch, 10, threads=1)
    assert claims.left == 100 - (1 + 2 + 4 + 8 + 16 + 32)
    assert len(stretch_of(stepper, claims, 2)) == 37 // 4
    assert len(stretch_of(stepper, claims, 100)) == 1


def test_what_others_have_claimed_and_not_done_is_shared_too_where_little_is_left() -> None:
    """Two threads that get a unit a nanosecond done; one has claimed most of what there was."""
    size = 4 * MILLISECOND
    sizes = Sizes(size, 1, 2)
    pacing = LearnedPacing(sizes, None, sizes.grain)
    claims = Claims([range(size)], 1)
    one, other = pacing.stepper(1), pacing.stepper(1)
    now = 0
    while claims.left > size // 3:
        stretch = stretch_of(one, claims, 2, most=2, now=now)
        now += len(stretch)
        chunks = -(-len(stretch) // one.chunk)
        one.finished(chunks, len(stretch), claims.left, 2, len(stretch), now)
    ahead = len(stretch_of(one, claims, 2, most=2, now=now))
    assert pacing.ahead(claims.left, 2, now) == ahead
    assert pacing.ahead(claims.left, 2, now + ahead // 2) == pytest.approx(ahead / 2, abs=1)
    assert pacing.ahead(claims.left, 2, now + 2 * ahead) == 0
    assert pacing.ahead(100 * size, 2, now) == 0
    one.finished(0, 0, claims.left, 2, 0, now)
    assert pacing.ahead(claims.left, 2, now) == 0
    stretch_of(other, claims, 2, most=2, now=now)


def gil_bound(scaling: Scaling) -> None:
    scaling.served(2, 4 * WAITING_SURE_NS, 2 * WAITING_SURE_NS, 2 * WAITING_SURE_NS, 0)


def waits_found(pacing: Pacing) -> int:
    """How often it is told that threads wait for each other, whose number does not matter."""
    claims = Claims([range(10**15)], 1 << 20)
    steppers = [pacing.stepper(1), pacing.stepper(1)]
    found = now = 0
    for _ in range(400):
        threads = pacing.threads_of(2)
        for stepper in steppers[:threads]:
            stretch = stretch_of(stepper, claims, threads, most=2, now=now)
            ns = len(stretch) * threads
            now += ns
            chunks = -(-len(stretch) // stepper.chunk)
            found += stepper.finished(chunks, len(stretch), claims.left, threads, ns, now)
    return found


def test_that_threads_wait_for_each_other_is_told_once() -> None:
    scaling = Scaling(2)
    gil_bound(scaling)
    pacing = FixedPacing(scaling)
    assert waits_found(pacing) == 1
    assert pacing.holds_gil
    assert pacing.threads_of(8) == 1
    scaling = Scaling(2)
    gil_bound(scaling)
    learned = LearnedPacing(Sizes(10**15, 1, 2), scaling, 1)
    assert waits_found(learned) == 1
    assert learned.threads_of(8) == 1


def test_a_stretch_that_began_with_another_number_of_threads_says_nothing_of_them() -> None:
    scaling = Scaling(2)
    gil_bound(scaling)
    pacing = FixedPacing(scaling)
    claims = Claims([range(10**12)], 1)
    stepper = pacing.stepper(1)
    for _ in range(400):
        stretch = stretch_of(stepper, claims, 1, most=2)
        walk_all(stepper, claims, stretch, 100 * MILLISECOND, threads=2)
    assert pacing.threads_of(2) == 2


def test_an_undo_has_the_threads_that_the_work_gained_from_and_learns_nothing() -> None:
    scaling = Scaling(4)
    assert FixedPacing(scaling).for_undo().threads_of(1_000) == 1_000
    scaling.level = 2
    undo = LearnedPacing(Sizes(10**6, 1, 4), scaling, 1).for_undo()
    assert undo.threads_of(4) == 2
    assert undo.threads_of(1) == 1
    assert undo.scaling is None
    assert undo.chunk_of(7) == 7
    undo.widen(8)
    assert scaling.most == 4
    assert FIXED.for_undo() is not FIXED
    assert FIXED.for_undo().threads_of(1_000) == 1_000


@pytest.mark.parametrize(
    ("wanted", "how", "learns_size", "learns_threads"),
    [
        ("both", {}, True, True),
        ("chunk", {}, True, False),
        ("threads", {}, False, True),
        ("nothing", {}, False, False),
        ("both", {"reduce": max}, False, True),
        ("chunk", {"reduce": max}, False, False),
        ("both", {"min_chunk": 300}, False, False),  # too few chunks to learn anything
    ],
)
def test_what_is_learned_is_what_is_wanted_and_can_be(
    wanted: str, how: dict[str, object], learns_size: bool, learns_threads: bool
) -> None:
    job = Job(work, 1000, **how)  # type: ignore[call-overload]
    pacing = pacing_of(job, 2, wanted, None)
    assert isinstance(pacing, LearnedPacing) is learns_size
    assert (pacing.scaling is not None) is learns_threads
    assert pacing.learns is (learns_size or learns_threads)


def test_the_next_run_begins_with_what_was_learned_and_shares_nothing_with_it() -> None:
    job = Job(work, 1 << 20)
    first = pacing_of(job, 4, "both", None)
    assert isinstance(first, LearnedPacing)
    assert first.lesson(1.0).sizes is None  # nothing was measured
    first.sizes.rate = 0.5
    assert first.scaling is not None
    first.scaling.level = 2
    lesson = first.lesson(1.0)
    assert lesson == Lesson(first.sizes, first.scaling, 1.0)
    following = pacing_of(job, 4, "both", lesson)
    assert isinstance(following, LearnedPacing)
    assert following.sizes is not first.sizes
    assert following.scaling is not first.scaling
    assert following.sizes.remembered
    assert following.sizes.rate == 0.5
    assert following.threads_of(4) == 2
    assert following.learned(1, 4).remembered


class Picked(Sizes):
    """Sizes that choose what a test says, and keep what they were asked."""

    picked: tuple[int, int, int]
    asked: tuple[int, int, int, int]

    def pick(
        self, pace: Pace, left: int, sharers: int, ahead: int, cut: int
    ) -> tuple[int, int, int]:
        self.asked = left, sharers, ahead, cut
        return self.picked

    def measured(self, pace: Pace, number: int, units: int, wall_ns: int) -> None: ...


def test_a_size_that_is_tried_has_its_full_length_where_it_is_larger_and_boundaries_else() -> None:
    sizes = Picked(10**6, 10, 2)
    stepper = LearnedPacing(sizes, None, sizes.grain).stepper(1)
    claims = Claims([range(10**6)], 10)
    sizes.picked = 10, 3, 0
    assert stepper.next(claims, None, 1, 1, 0) == (0, 10, 30)
    sizes.picked = sizes.size_of(sizes.best + 1), 1, sizes.best + 1
    chunk = sizes.picked[0]
    assert stepper.next(claims, None, 1, 1, 0) == (30, 30 + chunk, 30 + chunk)
    sizes.picked = 70, 1, -1  # a piece of its own length
    assert stepper.next(claims, None, 1, 1, 0) == (30 + chunk, 100 + chunk, 100 + chunk)
    chunk = sizes.size_of(sizes.best)
    sizes.picked = chunk, 2, sizes.best
    start, first, stop = stepper.next(claims, None, 1, 1, 0)
    assert (first % chunk, stop - first) == (0, chunk)
    assert first - start < chunk


def test_threads_that_are_to_come_share_the_range_too() -> None:
    sizes = Picked(10**6, 1, 8)
    scaling = Scaling(8)
    pacing = LearnedPacing(sizes, scaling, sizes.grain)
    stepper = pacing.stepper(1)
    sizes.picked = 1, 1, 0
    for level, threads, most, sharers in ((8, 1, 8, 8), (8, 1, 4, 4), (2, 1, 8, 2), (2, 5, 8, 5)):
        scaling.level = level
        stepper.next(Claims([range(10**6)], 1), None, threads, most, 0)
        assert sizes.asked == (10**6, sharers, 0, 1)


def test_only_stretches_of_the_size_in_use_tell_of_the_number_of_threads() -> None:
    class Told(Scaling):
        stretches = 0

        def measured(self, threads: int, units: int, wall_ns: int, left: int) -> bool:
            self.stretches += 1
            return False

    scaling = Told(2)
    sizes = Picked(10**6, 1, 2)
    pacing = LearnedPacing(sizes, scaling, sizes.grain)
    stepper = pacing.stepper(1)
    claims = Claims([range(10**6)], 1)
    for settled, number, told in ((True, 1, 0), (False, 0, 0), (True, 0, 1), (True, -1, 1)):
        sizes._search.settled = settled
        sizes._curve.best = 0
        sizes.picked = 1, 1, number
        stepper.next(claims, None, 2, 2, 0)
        stepper.finished(1, 1, claims.left, 2, 10, 10)
        assert scaling.stretches == told
