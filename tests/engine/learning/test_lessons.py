# SPDX-License-Identifier: MIT
# What is remembered: by which marks functions are told apart, how much, and when it is forgotten.

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from aioktask import Job
from aioktask.engine.learning.lessons import MOST_LESSONS, Lesson, Lessons, key_of


def work(start: int, stop: int) -> None: ...


def weighted(weight: int, start: int, stop: int) -> None: ...


def other(start: int, stop: int) -> None: ...


def closure(number: int) -> Any:
    def inside(start: int, stop: int) -> int:
        return number

    return inside


class Method:
    def __init__(self, data: object) -> None:
        self.data = data

    def run(self, start: int, stop: int) -> None: ...

    def __call__(self, start: int, stop: int) -> None: ...


def key(fn: Any, size: int = 1000, threads: int = 2, **how: Any) -> object:
    return key_of(Job(fn, size, **how), threads)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (closure(1), closure(2)),
        (functools.partial(weighted, 1), functools.partial(weighted, 2)),
        (Method(1).run, Method(2).run),
        (Method(1), Method(2)),
        (np.sin, np.sin),
    ],
    ids=["closures", "partials", "bound methods", "objects that can be called", "ufuncs"],
)
def test_functions_with_the_same_code_are_the_same(a: Any, b: Any) -> None:
    assert key(a, name="job") == key(b, name="job")


def test_what_makes_a_difference() -> None:
    keys = [
        key(work),
        key(other),
        key(work, name="a name of its own"),
        key(work, size=5000),
        key(work, threads=3),
        key(work, align=8),
        key(work, min_chunk=8),
        key(np.sin),
        key(np.cos),
    ]
    assert len(set(keys)) == len(keys)
    assert key(work, size=1000) == key(work, size=1001)


def test_the_least_recently_used_are_forgotten() -> None:
    lessons = Lessons()
    for number in range(MOST_LESSONS + 10):
        lessons.put((number,), Lesson(None, None, 1.0))
        lessons.put((0,), Lesson(None, None, 1.0))
    assert len(lessons) == MOST_LESSONS
    assert lessons.get((0,)) is not None
    assert lessons.get((1,)) is None


def test_a_lesson_that_made_a_function_slow_twice_is_forgotten() -> None:
    lessons = Lessons()
    lessons.put((0,), Lesson(None, None, 10.0))
    lessons.put((0,), Lesson(None, None, 5.0))
    assert lessons.get((0,)) is not None
    lessons.put((0,), Lesson(None, None, 9.0))
    lessons.put((0,), Lesson(None, None, 5.0))
    assert lessons.get((0,)) is not None
    lessons.put((0,), Lesson(None, None, 5.0))
    assert lessons.get((0,)) is None


def test_a_machine_that_became_slower_for_good_is_got_used_to() -> None:
    lessons = Lessons()
    forgotten = 0
    for _ in range(60):
        lessons.put((0,), Lesson(None, None, 5.0 if forgotten else 10.0))
        lessons.put((0,), Lesson(None, None, 5.0))
        forgotten += lessons.get((0,)) is None
    assert forgotten <= 1


def test_what_is_to_be_told_of_a_function_is_told_once_and_forgotten_at_last() -> None:
    lessons = Lessons()

    def make(number: int) -> Job[None]:
        namespace: dict[str, Any] = {}
        exec(f"def work(start, stop): return {number}", namespace)
        return Job(namespace["work"], 10)

    first = make(0)
    assert lessons.tell_once(first)
    assert not lessons.tell_once(first)
    for number in range(1, MOST_LESSONS + 1):
        assert lessons.tell_once(make(number))
    assert lessons.tell_once(first)
