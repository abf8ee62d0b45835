# SPDX-License-Identifier: MIT
# The search for the number of threads: it stays within its bounds, lets those go that add nothing,
# keeps those that do, and notices when that changes.

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.learning.scaling import MOST_CLOCK_NS, Scaling
from tests.engine.machines import Cost, Machine, by_size, simulate

SECOND = 1_000_000_000
FLAT = by_size({0: 10.0, 1: 10.0})


@given(
    most=st.integers(1, 300),
    stretches=st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(0, 10**8), st.integers(0, 10**9)), max_size=200
    ),
)
def test_the_level_is_from_one_to_the_most(
    most: int, stretches: list[tuple[int, int, int]]
) -> None:
    scaling = Scaling(most)
    for units, wall, left in stretches:
        before = scaling.level
        moved = scaling.measured(scaling.level, units, wall, left)
        assert moved == (scaling.level != before)
        assert 1 <= scaling.level <= most
    assert 1 <= scaling.for_next_run(most).level <= most
    assert scaling.for_next_run(most + 1).level == most + 1


def limited(by: int) -> Cost:
    """Memory bandwidth that so many threads use up: more get no more done together."""
    return lambda chunk, position, active, thread, now: 10.0 * max(active / by, 1.0)


@pytest.mark.parametrize("threads", [2, 4, 16, 64, 256])
def test_threads_that_add_work_are_kept(threads: int) -> None:
    size = threads * SECOND // 10 // 2
    out = simulate(Machine(FLAT, threads=threads), size, learn_threads=True)
    assert out.scaling is not None
    assert out.scaling.level == threads
    assert not out.scaling.holds_gil
    # And to find that out cost little.
    assert out.ns <= 1.15 * SECOND / 2


@pytest.mark.parametrize(("threads", "useful"), [(2, 1), (16, 1), (16, 4), (64, 8), (256, 32)])
def test_threads_that_add_nothing_are_let_go(threads: int, useful: int) -> None:
    machine = Machine(limited(useful), threads=threads, spikes=0.0)
    out = simulate(machine, useful * SECOND // 10, learn_threads=True)
    assert out.scaling is not None
    assert useful <= out.scaling.level <= 2 * useful
    assert out.ns <= 1.06 * SECOND


def test_threads_that_help_again_come_back() -> None:
    """In the first half the memory is the limit, in the second it is not."""
    half = SECOND // 10

    def cost(chunk: int, position: int, active: int, thread: int, now: float) -> float:
        return 10.0 * active if position < half else 10.0

    out = simulate(Machine(cost, spikes=0.0), 3 * half, learn_threads=True)
    assert out.scaling is not None
    assert 1 in out.levels
    assert out.scaling.level == 2


def test_a_function_that_holds_the_gil_is_given_one_thread_and_said_to() -> None:
    machine = Machine(FLAT, threads=2, holds_gil=True)
    out = simulate(machine, SECOND // 10, learn_threads=True)
    assert out.scaling is not None
    assert out.scaling.level == 1
    assert out.scaling.holds_gil


def test_the_next_run_begins_where_the_last_one_ended() -> None:
    machine = Machine(FLAT, threads=2, holds_gil=True)
    first = simulate(machine, SECOND // 10, learn_threads=True).scaling
    assert first is not None
    following = first.for_next_run(2)
    assert following.level == 1
    assert following.holds_gil


@pytest.mark.parametrize("seed", range(5))
def test_noise_lets_no_thread_go_that_helps(seed: int) -> None:
    machine = Machine(FLAT, noise=0.25, spikes=0.05)
    out = simulate(machine, 2 * SECOND // 10, seed=seed, learn_threads=True)
    assert out.scaling is not None
    assert out.scaling.level == 2


def windows(scaling: Scaling, done: float, count: int = 1, left: int = 1 << 40) -> None:
    """Windows in which all threads together get so much done, in units a nanosecond."""
    level = scaling.level
    for _ in range(count * level):
        if scaling.level != level:
            return
        wall = 30_000_000
        scaling.measured(level, int(done * wall / level), wall, left)


def test_a_range_that_became_easier_is_no_merit_of_fewer_threads() -> None:
    scaling = Scaling(2)
    windows(scaling, 1000.0)
    assert scaling.level == 1
    windows(scaling, 1500.0, 3)  # twice as easy, so that two threads would get 2000 done
    assert scaling.level == 2
    windows(scaling, 2000.0)
    assert scaling.level == 2
    windows(scaling, 2000.0, 10)
    assert scaling.level == 2


def test_fewer_threads_that_do_as_well_are_kept_when_that_is_confirmed() -> None:
    scaling = Scaling(2)
    windows(scaling, 1000.0)
    windows(scaling, 1000.0, 3)
    windows(scaling, 1000.0)
    windows(scaling, 1000.0, 10)
    assert scaling.level == 1
    assert not scaling.holds_gil


def test_threads_that_take_turns_are_let_go_at_the_first_look() -> None:
    scaling = Scaling(2)
    for _ in range(2):  # half of the time each has a CPU, and waits for none
        scaling.served(2, 40_000_000, 20_000_000, 20_000_000, 0)
    assert scaling.urgent
    windows(scaling, 1000.0)
    assert scaling.level == 1
    windows(scaling, 900.0)
    assert scaling.level == 1
    assert scaling.holds_gil
    assert not scaling.urgent


def test_threads_that_wait_in_the_kernel_do_not_hold_the_gil() -> None:
    scaling = Scaling(2)
    for _ in range(2):
        scaling.served(2, 40_000_000, 20_000_000, 20_000_000, 19_000_000)
    windows(scaling, 1000.0)
    windows(scaling, 1000.0, 3)
    windows(scaling, 1000.0)
    assert scaling.level == 1
    assert not scaling.holds_gil


@given(most=st.integers(1, 64), more=st.integers(1, 256))
def test_more_threads_are_used_when_there_may_be_more(most: int, more: int) -> None:
    scaling = Scaling(most)
    scaling.widen(more)
    assert scaling.level == max(most, more)
    fewer = Scaling(4)
    fewer.level = 2  # it found that two do
    fewer.widen(8)
    assert (fewer.level, fewer.most) == (2, 8)


# What threads waited, and how long that is remembered.

CLOCKS = ("served_ns", "waited_ns", "busy_ns", "system_ns", "elapsed_ns")

# So much of one thread's time at once: a stretch lasts so long where chunks do.
served_at_once = st.integers(0, 10**9) | st.integers(0, 10 * MOST_CLOCK_NS)


@given(
    st.lists(st.tuples(served_at_once, st.floats(0, 1), st.integers(2, 64)), max_size=60),
    st.integers(1, 4),
)
def test_clocks_are_bounded_over_any_number_of_runs(
    served: list[tuple[int, float, int]], runs: int
) -> None:
    scaling = Scaling(64)
    for _ in range(runs):
        for wall, part, threads in served:
            waited = int(wall * part)
            scaling.served(threads, wall, waited, wall - waited, (wall - waited) // 2)
        assert all(0 <= scaling.kept()[name] <= MOST_CLOCK_NS for name in CLOCKS)
        scaling = scaling.for_next_run(64)


@given(
    st.floats(0, 1),
    st.sampled_from([0.0, 0.1, 0.29, 0.31, 0.5, 1.0]),
    st.integers(MOST_CLOCK_NS // 50, MOST_CLOCK_NS),
    st.integers(1, 200),
)
def test_to_bound_the_clocks_changes_no_answer(
    first: float, part: float, wall: int, times: int
) -> None:
    """Where threads always did the same, they wait or not as at the first look."""
    scaling = Scaling(2)
    for _ in range(times):
        scaling.served(2, wall, int(wall * part), int(wall * first), 0)
        assert scaling.waiting == (part > 0.3)


@given(st.integers(1, 50), st.integers(1, 40))
def test_what_threads_waited_long_ago_is_forgotten(before: int, pieces: int) -> None:
    """However long they did, after twice what the clocks hold they are said to wait no more."""
    scaling = Scaling(2)
    for _ in range(before):
        scaling.served(2, MOST_CLOCK_NS, MOST_CLOCK_NS, 0, 0)
    assert scaling.waiting
    for _ in range(pieces + 1):
        scaling.served(2, 2 * MOST_CLOCK_NS // pieces, 0, 2 * MOST_CLOCK_NS // pieces, 0)
    assert not scaling.waiting
