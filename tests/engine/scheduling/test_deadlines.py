# SPDX-License-Identifier: MIT
# Deadlines against a plain dictionary; that nothing is lost, whatever strikes; that what was
# dropped takes no room.

from __future__ import annotations

import itertools
import weakref
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.scheduling import deadlines as deadlines_module
from aioktask.engine.scheduling.deadlines import MOST_DROPPED, Deadlines
from tests.support.meanwhile import Scene, play_at_each_bytecode, struck_at

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "drop", "look", "pass"]),
        st.integers(0, 12),
        st.integers(0, 100),
    ),
    max_size=100,
)


@given(STEPS)
def test_what_is_due_comes_out_once_the_earliest_first(steps: list[tuple[str, int, int]]) -> None:
    deadlines: Deadlines[str] = Deadlines()
    model: dict[int, tuple[int, str]] = {}
    now = 0
    for count, (action, number, time) in enumerate(steps):
        if action == "add":
            deadlines.add(number, f"{count}", now + time)
            model[number] = now + time, f"{count}"
        elif action == "drop":
            deadlines.drop(number)
            model.pop(number, None)
        elif action == "pass":
            now += time
        else:
            taken: list[str] = []
            deadlines.hand_over(now, taken.append)
            due = {each: found for each, found in model.items() if found[0] <= now}
            when = {thing: at for at, thing in due.values()}
            assert sorted(taken) == sorted(when)
            assert [when[each] for each in taken] == sorted(when.values())
            for each in due:
                del model[each]
        assert len(deadlines) == len(model)
        assert deadlines.next_due() == min((at for at, _ in model.values()), default=None)


def test_a_later_time_takes_the_place_of_an_earlier_one() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.add(1, "early", 10)
    deadlines.add(1, "late", 20)
    taken: list[str] = []
    deadlines.hand_over(15, taken.append)
    assert (taken, deadlines.next_due()) == ([], 20)
    deadlines.hand_over(20, taken.append)
    assert (taken, deadlines.next_due()) == (["late"], None)


class _Thing:
    pass


def test_what_was_dropped_is_let_go_of_at_once() -> None:
    deadlines: Deadlines[_Thing] = Deadlines()
    thing = _Thing()
    watch = weakref.ref(thing)
    deadlines.add(1, thing, 10**18)
    deadlines.next_due()
    deadlines.drop(1)
    del thing
    assert watch() is None


def test_what_ends_long_before_it_is_due_takes_no_room() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for number in range(100_000):
        deadlines.add(number, "far", 10**18 + number)
        deadlines.drop(number)
        if number % 1000 == 0:
            deadlines.next_due()
    deadlines.next_due()
    assert len(deadlines._heap) + len(deadlines._new) <= MOST_DROPPED


def test_nothing_is_lost_where_memory_ends_in_any_line() -> None:
    for line in itertools.count():
        deadlines: Deadlines[int] = Deadlines()
        for number in range(4):
            deadlines.add(number, number, number)
        taken: list[int] = []
        call = partial(deadlines.hand_over, 9, taken.append)
        if not struck_at(line, call, deadlines_module):
            break
        deadlines.hand_over(9, taken.append)
        # One may come twice: whoever took it was struck before that was noted.
        assert sorted(set(taken)) == [0, 1, 2, 3]
        assert len(taken) <= 5
        assert deadlines.next_due() is None
    assert line > 10


def test_what_cannot_be_taken_stays_due() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.add(1, "it", 5)

    def refuse(thing: str) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        deadlines.hand_over(7, refuse)
    taken: list[str] = []
    deadlines.hand_over(7, taken.append)
    assert taken == ["it"]


@pytest.mark.parametrize("other", ["adds", "drops", "replaces"])
def test_any_thread_may_add_and_drop_while_another_looks(other: str) -> None:
    def begin() -> Scene:
        deadlines: Deadlines[str] = Deadlines()
        deadlines.add(1, "one", 5)
        taken: list[str] = []

        def meanwhile() -> None:
            if other == "adds":
                deadlines.add(2, "two", 3)
            elif other == "drops":
                deadlines.drop(1)
            else:
                deadlines.add(1, "new", 50)

        def check() -> None:
            deadlines.hand_over(7, taken.append)
            if other == "adds":
                assert sorted(taken) == ["one", "two"]
            elif other == "drops":
                assert taken in ([], ["one"])
            else:
                deadlines.hand_over(50, taken.append)
                assert taken in (["one", "new"], ["new"])
            assert len(deadlines) == 0

        return Scene(lambda: deadlines.hand_over(7, taken.append), meanwhile, check)

    play_at_each_bytecode(begin, deadlines_module)
