# SPDX-License-Identifier: MIT
# Lessons as files: what was written is read again, whatever else is in a file is refused whole, and
# code is told apart in the same way by every process.

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import aioktask
from aioktask import Job
from aioktask.engine.learning import kept
from aioktask.engine.learning.kept import (
    MOST_BYTES,
    MOST_NAME,
    MOST_SECONDS,
    Subject,
    UnfitError,
    decode,
    encode,
    entry_of,
    file_name,
    is_file_name,
    others,
    subject_of,
)
from aioktask.engine.learning.lessons import Lesson, code_of, key_of
from aioktask.engine.learning.pacing import LearnedPacing, pacing_of
from aioktask.engine.learning.sizing import Sizes
from aioktask.engine.ranges.claims import Claims

NOW = 1_800_000_000.0


def work(start: int, stop: int) -> None: ...


def the_job(size: int = 100_000, **how: Any) -> Job[None]:
    return Job(work, size, **how)


def the_subject(job: Job[Any], threads: int, machine: str = "a machine") -> Subject:
    subject = subject_of(key_of(job, threads), machine)
    assert subject is not None
    return subject


def a_lesson(job: Job[Any], threads: int, durations: list[int], *, waits: bool) -> Lesson:
    """What a run leaves whose stretches last so long, in turn: as real threads would take them."""
    pacing = pacing_of(job, threads, "both", None)
    claims = Claims([range(job.size)], pacing.grain_of(1))
    steppers = [pacing.stepper(1) for _ in range(threads)]
    now = number = 0
    while claims.left:
        stepper = steppers[number % threads]
        lasts = durations[number % len(durations)]
        start, first, stop = stepper.next(claims, None, threads, threads, now)
        chunks = 1 + -(-(stop - first) // stepper.chunk)
        now += lasts
        stepper.finished(chunks, stop - start, claims.left, threads, lasts, now)
        if waits and pacing.scaling is not None:
            pacing.scaling.served(threads, lasts, lasts // 2, lasts // 3, 0)
        number += 1
    return pacing.lesson(job.size / now)


def facts(lesson: Lesson) -> dict[str, object]:
    """What the next run would begin with."""
    return {
        "speed": lesson.speed,
        "slow_runs": lesson.slow_runs,
        "sizes": None if lesson.sizes is None else _rounded(lesson.sizes.kept()),
        "scaling": None if lesson.scaling is None else lesson.scaling.kept(),
    }


def _rounded(told: dict[str, Any]) -> dict[str, Any]:
    """Without the last digits of what is multiplied and divided again."""
    return {**told, "uneven": round(told["uneven"], 12)}


@given(
    size=st.integers(1000, 200_000),
    min_chunk=st.sampled_from([1, 10, 100]),
    threads=st.integers(1, 4),
    durations=st.lists(st.integers(1_000, 30_000_000), min_size=1, max_size=8),
    waits=st.booleans(),
)
@example(size=8192, min_chunk=1, threads=1, durations=[1000, 5_333_334], waits=False)
@example(size=8192, min_chunk=1, threads=1, durations=[81_148, 6_959_426], waits=False)
def test_what_was_written_is_read_again_and_the_next_run_begins_with_it(
    size: int, min_chunk: int, threads: int, durations: list[int], waits: bool
) -> None:
    job = the_job(size, min_chunk=min_chunk)
    lesson = a_lesson(job, threads, durations, waits=waits)
    subject = the_subject(job, threads)
    data = encode(subject, lesson, NOW)
    assert len(data) <= MOST_BYTES
    read = decode(data, subject, NOW)
    assert facts(read) == facts(lesson)
    before, after = (pacing_of(job, threads, "both", each) for each in (lesson, read))
    if isinstance(before, LearnedPacing):
        assert isinstance(after, LearnedPacing)
        assert after.sizes.chunk == before.sizes.chunk
        assert list(after.sizes.curve()) == list(before.sizes.curve())
        assert after.learned(1, threads).settled == before.learned(1, threads).settled
    assert after.threads_of(threads) == before.threads_of(threads)
    found = entry_of(data)
    assert found.subject == subject
    assert found.when == NOW


JOB = the_job()
SUBJECT = the_subject(JOB, 2)
DATA = encode(SUBJECT, a_lesson(JOB, 2, [900_000, 1_100_000], waits=True), NOW)


def is_harmless(data: bytes) -> None:
    """Refused in one way, or else a lesson with which a run goes through its range, once."""
    try:
        lesson = decode(data, SUBJECT, NOW)
    except UnfitError:
        return
    pacing = pacing_of(JOB, 2, "both", lesson)
    assert 1 <= pacing.threads_of(2) <= 2
    assert 1 <= pacing.chunk_of(1) <= JOB.size
    claims = Claims([range(JOB.size)], pacing.grain_of(1))
    steppers = [pacing.stepper(1) for _ in range(2)]
    now = 0
    for number in range(10 * JOB.size):
        if not claims.left:
            break
        stepper = steppers[number % 2]
        start, first, stop = stepper.next(claims, None, 2, 2, now)
        assert start < first <= stop
        now += 1_000_000
        chunks = 1 + -(-(stop - first) // stepper.chunk)
        stepper.finished(chunks, stop - start, claims.left, 2, 1_000_000, now)
    assert not claims.left
    pacing.lesson(1.0)
    pacing.learned(1, 2)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_bytes_that_are_no_lesson_are_refused(data: bytes) -> None:
    with pytest.raises(UnfitError):
        decode(data, SUBJECT, NOW)
    with pytest.raises(UnfitError):
        entry_of(data)


@given(st.integers(0, len(DATA) - 1), st.integers(0, 255))
def test_a_byte_that_changed_does_no_harm(at: int, value: int) -> None:
    is_harmless(DATA[:at] + bytes([value]) + DATA[at + 1 :])


@given(st.integers(0, len(DATA) - 2))
def test_a_part_of_a_file_is_refused(length: int) -> None:
    with pytest.raises(UnfitError, match="damaged"):
        decode(DATA[:length], SUBJECT, NOW)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * (MOST_BYTES - 1),
        b'{"version":' * 1000,
        b'{"version": ' + b"9" * 10_000 + b"}",
        b'{"version": NaN}',
        DATA + b" " * MOST_BYTES,
        DATA.decode().encode("utf-16"),
        b"\xff\xfe" + DATA,
    ],
    ids=["deep", "deep objects", "long number", "NaN", "long", "UTF-16", "no UTF-8"],
)
def test_what_would_cost_much_to_read_does_no_harm(data: bytes) -> None:
    is_harmless(data)


EXTREME = [
    *(0, 1, -1, 2**31, 2**63, 2**64, 10**300, -(10**300), 0.0, -0.0, 1e-320, 1e308, -1e308, 0.5),
    *(True, False, None, "", "1", [], {}, [[0, 1.0, 1]], [[0, 1e300, 11]], [[1, 1.0, 10**9]]),
    *(1e-12, 1e12, [[0, 1e-12, 1]], [[0, 1e12, 1], [3, 1e-12, 1]]),
]

json_values = st.recursive(
    st.sampled_from(EXTREME) | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def places(told: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values in a text."""
    found = [path] if path else []
    if isinstance(told, dict):
        found += [each for key, value in told.items() for each in places(value, (*path, key))]
    elif isinstance(told, list):
        found += [each for key, value in enumerate(told) for each in places(value, (*path, key))]
    return found


PLACES = places(json.loads(DATA))


def with_value(path: tuple[Any, ...], value: object) -> bytes:
    told = json.loads(DATA)
    inner = told
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(told).encode()


@given(st.sampled_from(PLACES), json_values)
def test_another_value_in_any_place_does_no_harm(path: tuple[Any, ...], value: object) -> None:
    is_harmless(with_value(path, value))


@pytest.mark.parametrize("value", EXTREME, ids=repr)
def test_an_extreme_value_in_any_place_does_no_harm(value: object) -> None:
    for path in PLACES:
        is_harmless(with_value(path, value))


@given(st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(EXTREME)), max_size=6))
def test_several_extreme_values_do_no_harm(changes: list[tuple[tuple[Any, ...], object]]) -> None:
    told = json.loads(DATA)
    for path, value in changes:
        inner = told
        for key in path[:-1]:
            inner = inner[key] if isinstance(inner, (dict, list)) and _has(inner, key) else {}
        if isinstance(inner, (dict, list)) and _has(inner, path[-1]):
            inner[path[-1]] = value
    is_harmless(json.dumps(told).encode())


def _has(inner: Any, key: object) -> bool:
    return key in inner if isinstance(inner, dict) else isinstance(key, int) and key < len(inner)


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (("version",), 2, "another version"),
        (("when",), NOW - MOST_SECONDS - 1, "half a year"),
        (("subject", "code"), "0" * 64, "something else: code differ"),
        (("subject", "machine"), "another", "something else: machine differ"),
        (("subject", "threads"), 3, "something else: threads differ"),
        (("sizes", "rate"), 0, "rate is out of its range"),
        (("sizes", "best"), 99, "best is no integer in its range"),
        (("sizes", "best"), True, "best is no integer in its range"),
        (("scaling", "level"), 3, "level is no integer in its range"),
        (("speed",), math.inf, "damaged"),
        (("slow_runs",), 2, "slow_runs is no integer in its range"),
        (("sizes", "scores"), [[0, 1.0, 1], [0, 1.0, 1]], "two scores"),
    ],
)
def test_why_a_file_is_not_used_is_told(path: tuple[Any, ...], value: object, why: str) -> None:
    with pytest.raises(UnfitError, match=why):
        decode(with_value(path, value), SUBJECT, NOW)


def test_a_number_that_no_file_may_have_is_not_written() -> None:
    with pytest.raises(UnfitError, match="speed is out of its range"):
        encode(SUBJECT, Lesson(None, None, 1e200), NOW)


# What a lesson is about.


def made(source: str, name: str = "work") -> Callable[[int, int], None]:
    namespace: dict[str, Any] = {"functools": functools, "__name__": "a.module"}
    exec(source, namespace)
    found: Callable[[int, int], None] = namespace[name]
    return found


def hash_of(function: Callable[[int, int], object]) -> str:
    return the_subject(Job(function, 1000, name="job"), 2).code


SOURCES = [
    "def work(a, b): return 1",
    "def work(a, b): return 2",
    "def work(a, b): return True",
    "def work(a, b): return 1.0",
    "def work(a, b): return 0.0",
    "def work(a, b): return -0.0",
    "def work(a, b): return '1'",
    "def work(a, b): return b'1'",
    "def work(a, b): return (1,)",
    "def work(a, b): return ((1,),)",
    "def work(a, b): return a in {1, 2}",
    "def work(a, b): return a in {1, 3}",
    "def work(a, b): return len(a)",
    "def work(a, b): return sum(a)",
    "def work(a, b): return lambda: 1",
    "def work(a, b): return lambda: 2",
    "def work(a, b):\n try: return 1\n except OSError: return 2",
    "def work(a, b): return " + hex(10**5000),
]


def test_each_change_of_code_or_constants_is_another_hash() -> None:
    hashes = [hash_of(made(source)) for source in SOURCES]
    assert len(set(hashes)) == len(hashes)


def test_lines_files_and_data_make_no_difference() -> None:
    source = "def work(a, b):\n    return a + b"
    moved = compile("\n\n\n" + source, "elsewhere.py", "exec")
    namespace: dict[str, Any] = {}
    exec(moved, namespace)
    assert hash_of(made(source)) == hash_of(namespace["work"])
    three = made("def work(a, b, c=0):\n    return a + b + c")
    partial = functools.partial(three, c=1)
    assert hash_of(partial) == hash_of(functools.partial(three, c=2)) != hash_of(three)


def test_what_a_function_calls_by_a_global_name_makes_no_difference() -> None:
    sources = [
        f"def helper(): return {number}\ndef work(a, b): return helper()" for number in range(2)
    ]
    first, second = map(made, sources)
    assert (first(0, 0), second(0, 0)) == (0, 1)
    assert hash_of(first) == hash_of(second)


@pytest.mark.parametrize(
    "how",
    [
        {"name": "another"},
        {"align": 8},
        {"min_chunk": 8},
        {"size": 2000},
        {"threads": 3},
        {"machine": "another"},
    ],
    ids=lambda how: next(iter(how)),
)
def test_each_of_what_a_lesson_is_found_by_makes_another_file(how: dict[str, Any]) -> None:
    def named(size: int = 1000, threads: int = 2, machine: str = "a machine", **rest: Any) -> str:
        return file_name(the_subject(the_job(size, **rest), threads, machine))

    assert named(**how) != named() == named(size=1001)


def test_a_file_is_about_a_kibibyte_whatever_was_learned() -> None:
    """Of the largest range that there is: as many sizes have scores as can."""
    job, threads = the_job(1 << 60), 2
    lesson = a_lesson(JOB, threads, [900_000, 1_100_000], waits=True)
    sizes = Sizes((1 << 60) + 1, 1, threads)
    sizes.rate = 1 / 3
    for number in range(sizes._curve.top + 1):
        if number != sizes.best:
            sizes._curve.scores.put(number, 1 / 3, 11)
    full = Lesson(sizes, lesson.scaling, 1 / 3)
    assert len(DATA) <= 2 << 10
    assert len(encode(the_subject(job, threads), full, NOW)) <= 4 << 10


def closing_over(inner: Callable[..., object], number: int) -> Callable[[int, int], object]:
    def outer(start: int, stop: int) -> object:
        return inner(start, number)

    return outer


def test_what_a_function_closes_over_counts_as_far_as_it_is_code() -> None:
    first, second = made("def work(a, b): return 1"), made("def work(a, b): return 2")
    assert hash_of(closing_over(first, 1)) == hash_of(closing_over(first, 2))
    assert hash_of(closing_over(first, 1)) != hash_of(closing_over(second, 1))
    deep = [closing_over(functools.partial(closing_over(each, 1)), 1) for each in (first, second)]
    assert hash_of(deep[0]) != hash_of(deep[1])


def test_functions_that_close_over_themselves_have_a_hash() -> None:
    def work(start: int, stop: int) -> object:
        return work if unset is None else 1  # noqa: F821 - an empty cell

    unset = None
    before = hash_of(work)
    del unset
    assert hash_of(work) == before


@pytest.mark.parametrize("function", [print, np.sin, functools.partial(max, 1), type])
def test_a_callable_without_code_is_not_kept(function: Any) -> None:
    assert subject_of(key_of(Job(function, 1000, name="job"), 2), "a machine") is None


def test_names_and_numbers_that_are_too_long_are_not_kept() -> None:
    def is_kept(size: int = 1000, **how: Any) -> bool:
        return subject_of(key_of(Job(work, size, **how), 2), "a machine") is not None

    assert is_kept(name="x" * MOST_NAME)
    assert not is_kept(name="x" * (MOST_NAME + 1))
    assert not is_kept(size=1 << 300)
    assert not is_kept(align=1 << 300)


def test_every_process_finds_the_same_hash() -> None:
    """The order of sets of strings differs between processes; what is interned does too."""
    program = """
from aioktask import Job
from aioktask.engine.learning.kept import subject_of
from aioktask.engine.learning.lessons import key_of

def work(start, stop):
    return start in {"a", "b", "c", "d", 1, 2.5, None, (1, "x")} or (lambda: "abc")

print(subject_of(key_of(Job(work, 1000), 2), "a machine").code)
"""
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={
                **os.environ,
                "PYTHONHASHSEED": str(seed),
                "PYTHONPATH": str(Path(aioktask.__file__).parents[1]),
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(3)
    }
    assert len(hashes) == 1


def test_the_key_refers_to_code_only() -> None:
    module, *parts = code_of(closing_over(work, 1))
    assert module == __name__
    assert [type(each) for each in parts] == [CodeType, CodeType]


def test_an_old_file_is_known_by_its_name_when_the_function_was_changed() -> None:
    def subject(source: str, machine: str = "a machine", size: int = 1000) -> Subject:
        return the_subject(Job(made(source), size, name="job"), 2, machine)

    own = subject(SOURCES[0])
    changed = file_name(subject(SOURCES[1]))
    strangers = [
        file_name(subject(SOURCES[1], machine="another")),
        file_name(subject(SOURCES[1], size=5000)),
        "notes.txt",
    ]
    assert list(others(own, [*strangers, changed, file_name(own)])) == [changed]
    assert all(map(is_file_name, [changed, file_name(own), *strangers[:2]]))
    assert not any(map(is_file_name, ["notes.txt", ".hidden.json", "../" + changed, ""]))


def test_a_constant_that_is_told_is_told_in_one_way() -> None:
    """What is put together from parts is not told as other parts are."""
    pairs = [(("ab", "c"), ("a", "bc")), ((("a",), "b"), ("a", ("b",))), (("1",), (1,))]
    for one, other in pairs:
        assert b"".join(kept._told(one)) != b"".join(kept._told(other))
