# SPDX-License-Identifier: MIT
# Admission against a plain model: a list of jobs, of which each call looks at all. And what several
# threads find that come at the same moment.

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.scheduling import gate as gate_module
from aioktask.engine.scheduling.gate import (
    FEW_EVENTS,
    MOST_EVENTS,
    RETRY_LEAST,
    RETRY_MOST,
    RETRY_SECONDS,
    Flow,
    Gate,
)
from tests.support.meanwhile import Scene, play_at_each_bytecode, struck_at

SECOND = 1_000_000_000


@dataclass
class Model:
    """What a gate should know, by lists that are searched."""

    threads: int
    nices: dict[int, int | None] = field(default_factory=dict)  # of those that are not over
    waiting: set[int] = field(default_factory=set)
    resting: set[int] = field(default_factory=set)  # streams without an item
    begins: list[int] = field(default_factory=list)  # since some waited all the time
    ends: list[int] = field(default_factory=list)  # since all threads had something all the time

    def before(self, nice: int) -> int:
        """How many wait that are as urgent."""
        return sum((self.nices[each] or 0) <= nice for each in self.waiting)

    def seconds(self, times: list[int], count: int, now: int) -> float | None:
        last = times[-MOST_EVENTS:]
        if len(last) < FEW_EVENTS:
            return None
        return count / ((len(last) - 1) * 1e9 / max(now - last[0], 1))

    def refuses(
        self, nice: int | None, most: int | None, patience: float | None, now: int
    ) -> tuple[str, float] | None:
        """Why one more may not come, and when it should come again."""
        too_many = len(self.nices) + 1 - self.threads - (most or 0)
        if most is not None and too_many > 0:
            return "queued", _bounded(self.seconds(self.ends, too_many, now))
        if patience is not None and nice is not None:
            wait = self.seconds(self.begins, self.before(nice), now)
            if wait is not None and wait > patience:
                return "wait", _bounded(wait - patience)
        return None

    def begin(self, number: int, now: int) -> None:
        if number in self.waiting:
            self.waiting.remove(number)
            busy = self.before(self.nices[number] or 0)
            self.begins = [*self.begins, now] if busy else []

    def rest(self, number: int, now: int) -> None:
        if number in self.nices:
            del self.nices[number]
            self.resting.add(number)
            if len(self.nices) < self.threads:
                self.ends = []

    def wake(self, number: int, now: int) -> None:
        if number in self.resting:
            self.resting.remove(number)
            self.nices[number] = None

    def end(self, number: int, now: int) -> None:
        self.resting.discard(number)
        if number in self.nices:
            self.waiting.discard(number)
            del self.nices[number]
            self.ends = [*self.ends, now] if len(self.nices) >= self.threads else []


def _bounded(seconds: float | None) -> float:
    return RETRY_SECONDS if seconds is None else min(max(seconds, RETRY_LEAST), RETRY_MOST)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["enter", "enter", "enter", "begin", "begin", "end", "rest", "wake"]),
        st.integers(0, 30),  # which of those there are
        st.sampled_from([None, 0, 0, 0, 5, -3]),  # nice
        st.sampled_from([None, None, 0, 1, 4]),  # the most that may wait
        st.sampled_from([None, None, 0.001, 0.5, 3.0]),  # patience
        st.sampled_from([0, 1, SECOND // 1000, SECOND // 3, 2 * SECOND]),  # time that passes
    ),
    max_size=60,
)


@given(STEPS, st.integers(1, 4))
def test_it_admits_and_refuses_as_a_list_of_jobs_says(
    steps: list[tuple[str, int, int | None, int | None, float | None, int]], threads: int
) -> None:
    gate, model = Gate(), Model(threads)
    now, number = 1, 0
    for action, which, nice, most, patience, passes in steps:
        now += passes
        there = [*model.nices, *sorted(model.resting)]
        if action == "enter":
            number += 1
            expected = model.refuses(nice, most, patience, now)
            refusal = gate.enter(number, nice, threads, most, patience, now)
            assert (refusal is None) == (expected is None)
            if refusal is None:
                model.nices[number] = nice
                if nice is not None:
                    model.waiting.add(number)
            elif expected is not None:
                why, retry_after = expected
                assert (refusal.wait is None) == (why == "queued")
                assert refusal.retry_after == pytest.approx(retry_after)
                assert refusal.queued == max(len(model.nices) - threads, 0)
        elif action in ("rest", "wake"):
            streams = [each for each in there if model.nices.get(each) is None]
            if streams:  # the others have always something to do
                chosen = streams[which % len(streams)]
                gate.rest(chosen, now) if action == "rest" else gate.wake(chosen)
                getattr(model, action)(chosen, now)
        elif there:
            chosen = there[which % len(there)]
            getattr(gate, action)(chosen, now)
            getattr(model, action)(chosen, now)
        assert len(gate) == len(model.nices)
        assert gate.queued(threads) == max(len(model.nices) - threads, 0)
        after = model.seconds(model.ends, gate.queued(threads), now)
        assert gate.retry_after(threads, now) == pytest.approx(_bounded(after))
        assert f"{len(model.waiting)} of them not begun" in repr(gate)


def test_as_many_may_wait_as_is_said_beside_those_that_threads_serve() -> None:
    gate = Gate()
    for number in range(5):
        assert gate.enter(number, 0, 2, 3, None, 0) is None
    refusal = gate.enter(5, 0, 2, 3, None, 0)
    assert refusal is not None
    assert (refusal.queued, refusal.retry_after, refusal.wait) == (3, RETRY_SECONDS, None)
    gate.end(0, 1)
    assert gate.enter(6, 0, 2, 3, None, 1) is None


def _crowd(gate: Gate, count: int, *, nice: int = 0, first: int = 0) -> None:
    for number in range(first, first + count):
        assert gate.enter(number, nice, 1, None, None, 0) is None


def test_the_wait_is_reckoned_from_how_fast_jobs_begin() -> None:
    gate = Gate()
    _crowd(gate, 20)
    for number in range(10):  # one in a tenth of a second
        gate.begin(number, (number + 1) * SECOND // 10)
    refusal = gate.enter(100, 0, 1, None, 0.9, SECOND)
    assert refusal is not None
    assert refusal.wait == pytest.approx(1.0)  # for the ten that wait
    assert refusal.retry_after == pytest.approx(0.1)
    assert gate.enter(101, 0, 1, None, 1.1, SECOND) is None


def test_a_job_that_starves_keeps_none_out_that_is_more_urgent() -> None:
    """One that gives way to other processes waits for hours, beside a few short ones a minute."""
    gate = Gate()
    assert gate.enter(0, 19, 2, None, 3600.0, 0) is None
    for number in range(1, 40):
        now = number * 20 * SECOND
        assert gate.enter(number, 0, 2, None, 0.5, now) is None
        gate.begin(number, now)
        gate.end(number, now)


def test_a_stream_without_an_item_keeps_none_out() -> None:
    gate = Gate()
    assert gate.enter(0, None, 2, None, 0.5, 0) is None
    for number in range(1, 40):
        now = number * 20 * SECOND
        assert gate.enter(number, 0, 2, None, 0.5, now) is None
        gate.begin(number, now)
        gate.end(number, now)


def test_what_ended_while_threads_were_free_says_nothing_of_an_overload() -> None:
    """A long job beside a few short ones, and then a crowd: when to come again is not known."""
    gate = Gate()
    assert gate.enter(0, 0, 2, None, None, 0) is None
    for number in range(1, 20):
        now = number * 60 * SECOND
        gate.enter(number, 0, 2, None, None, now)
        gate.end(number, now)
    _crowd(gate, 6, first=100)
    refusal = gate.enter(200, 0, 2, 1, None, 1200 * SECOND)
    assert refusal is not None
    assert refusal.retry_after == RETRY_SECONDS


def test_what_ended_before_a_stream_had_nothing_to_do_says_nothing_of_later() -> None:
    """Jobs that end beside a stream, which then rests for long: when to come again is not known."""
    gate = Gate()
    assert gate.enter(0, None, 1, None, None, 0) is None
    for number in range(1, 8):
        gate.enter(number, 0, 1, None, None, number)
        gate.end(number, number * SECOND // 100)
    gate.rest(0, SECOND)
    _crowd(gate, 2, first=100)
    refusal = gate.enter(200, 0, 1, 1, None, 600 * SECOND)
    assert refusal is not None
    assert refusal.retry_after == RETRY_SECONDS


def test_a_rate_that_no_event_confirms_falls() -> None:
    flow = Flow()
    for second in range(FEW_EVENTS):
        flow.note(second * SECOND, busy=True)
    assert flow.rate(3 * SECOND) == pytest.approx(1.0)
    assert flow.rate(30 * SECOND) == pytest.approx(0.1)


def test_it_forgets_what_it_is_told_of_twice_or_never_knew() -> None:
    gate = Gate()
    _crowd(gate, 2)
    for _ in range(2):
        gate.begin(0, 1)
        gate.begin(7, 1)
        gate.end(0, 1)
        gate.end(7, 1)
    assert repr(gate) == "<Gate: 1 jobs, 1 of them not begun>"


@pytest.mark.parametrize("most", [None, 0])
def test_what_is_struck_in_any_line_leaves_nothing_that_its_end_does_not_take(
    most: int | None,
) -> None:
    for line in itertools.count():
        gate = Gate()
        _crowd(gate, 1)

        def call(gate: Gate = gate) -> None:
            gate.enter(1, 3, 1, most, 0.1, 5)
            gate.begin(1, 6)
            gate.end(1, 7)

        came = struck_at(line, call, gate_module)
        gate.end(1, 8)
        assert repr(gate) == "<Gate: 1 jobs, 1 of them not begun>"
        if not came:
            break
    assert line > 10


def test_what_comes_between_two_of_its_steps_is_counted_all_the_same() -> None:
    """Another thread's job, which comes, begins and ends before any bytecode of a call."""
    gate = Gate()
    numbers = iter(range(10, 10_000))

    def begin() -> Scene:
        first, other = next(numbers), next(numbers)

        def call() -> None:
            gate.enter(first, 0, 4, 2, 0.5, 1)
            gate.begin(first, 2)
            gate.end(first, 3)

        def meanwhile() -> None:
            gate.enter(other, 0, 4, 2, 0.5, 1)
            gate.begin(other, 2)
            gate.end(other, 3)

        def check() -> None:
            assert repr(gate) == "<Gate: 0 jobs, 0 of them not begun>"

        return Scene(call, meanwhile, check)

    play_at_each_bytecode(begin, gate_module)


@pytest.mark.parametrize("end_at", ["rest", "wake"])
def test_a_stream_that_ends_between_two_steps_of_a_turn_is_counted_no_more(end_at: str) -> None:
    gate = Gate()
    numbers = iter(range(10_000))

    def begin() -> Scene:
        number = next(numbers)
        assert gate.enter(number, None, 4, 2, 0.5, 1) is None
        if end_at == "wake":
            gate.rest(number, 1)

        def check() -> None:
            assert len(gate) == 0
            assert not gate._resting

        def turn() -> None:
            if end_at == "rest":
                gate.rest(number, 1)
            else:
                gate.wake(number)

        return Scene(turn, lambda: gate.end(number, 2), check)

    play_at_each_bytecode(begin, gate_module)


def test_threads_that_come_at_the_same_moment_are_never_too_many() -> None:
    threads, most, comers = 2, 3, 8
    for _ in range(50):
        gate = Gate()
        together = threading.Barrier(comers)
        admitted: list[int] = []

        def come(
            number: int,
            gate: Gate = gate,
            together: threading.Barrier = together,
            admitted: list[int] = admitted,
        ) -> None:
            together.wait(60)
            if gate.enter(number, 0, threads, most, None, 0) is None:
                admitted.append(number)

        them = [threading.Thread(target=come, args=(number,)) for number in range(comers)]
        for thread in them:
            thread.start()
        for thread in them:
            thread.join()
        assert len(gate) == len(admitted) <= threads + most
