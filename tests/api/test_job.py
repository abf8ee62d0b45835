# SPDX-License-Identifier: MIT
# What is asked for and what comes back: every refusal names the value it refuses, what is made
# never changes, and errors keep what they carry through splitting and pickling.

from __future__ import annotations

import asyncio
import copy
import dataclasses
import functools
import itertools
import operator
import pickle
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.errors import ChunkCancelled, DeadlockError, JobCancelled, UndoFailed
from aioktask.job import (
    Bound,
    Chunk,
    Failure,
    Job,
    Learned,
    Part,
    Progress,
    Report,
    failure,
    job_that_makes,
    set_failure,
)


def work(start: int, stop: int, more: int = 0) -> None:
    """A function for jobs that are never run."""


def reverse(start: int, stop: int) -> None:
    """An undo."""


INTEGERS = ["size", "start", "align", "min_chunk", "chunk", "max_threads", "memory", "nice"]


def make(**arguments: Any) -> Job[Any]:
    """A job of 8 units, where nothing else is said."""
    return Job(**{"fn": work, "size": 8, **arguments})


# Numbers.


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize(
    "value",
    [True, False, 1.0, 1.5, float("nan"), "1", b"1", [1], 1j, np.bool_(True), np.float64(1)],
    ids=repr,
)
def test_what_is_no_integer_is_refused_by_name_and_value(name: str, value: object) -> None:
    with pytest.raises(TypeError) as refused:
        make(**{name: value})
    how = ": pass size=len(...)" if name == "size" and isinstance(value, list) else ""
    assert str(refused.value) == f"{name} must be an integer, got {value!r}{how}"


def test_an_error_shows_as_much_of_a_value_as_fits_on_a_line() -> None:
    class Unshown:
        def __repr__(self) -> str:
            raise RuntimeError("it refuses to be shown")

    numbers = r"got array\(\[0\., 0\., [^\n]{60,100}\.\.\. \(ndarray\): pass size=len\(\.\.\.\)$"
    with pytest.raises(TypeError, match=numbers):
        make(size=np.zeros(900))
    with pytest.raises(TypeError, match=r"size must be an integer, got a Unshown$"):
        make(size=Unshown())


class Index:
    """An integer to everybody who asks for ``__index__``, and nothing else."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __index__(self) -> int:
        return self.number


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize(
    "value", [np.int64(3), np.uint8(3), np.array(3), Index(3)], ids=["int64", "uint8", "0-d", "own"]
)
def test_whatever_has_an_index_is_taken_and_kept_as_an_int(name: str, value: Any) -> None:
    kept = getattr(make(**{name: value}), name)
    assert kept == 3
    assert type(kept) is int


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("size", -1, 0),
        ("size", -(2**70), 0),
        ("size", np.int64(-5), 0),
        ("align", 0, 1),
        ("align", -4, 1),
        ("min_chunk", 0, 1),
        ("min_chunk", -1, 1),
        ("chunk", 0, 1),
        ("chunk", -8, 1),
        ("max_threads", 0, 1),
        ("max_threads", -2, 1),
        ("memory", 0, 1),
        ("memory", -(2**40), 1),
    ],
)
def test_a_number_too_small_is_refused_by_name_and_value(name: str, value: Any, least: int) -> None:
    with pytest.raises(ValueError, match=name) as refused:
        make(**{name: value})
    assert str(refused.value) == f"{name} must be at least {least}, got {int(value)}"


@pytest.mark.parametrize("nice", [-21, 20, 100, -(2**40)])
def test_a_nice_outside_the_unix_scale_is_refused(nice: int) -> None:
    with pytest.raises(ValueError, match="nice") as refused:
        make(nice=nice)
    assert str(refused.value) == f"nice must be from -20 to 19, got {nice}"


@pytest.mark.parametrize("nice", range(-20, 20))
def test_every_nice_of_the_unix_scale_is_taken(nice: int) -> None:
    assert make(nice=nice).nice == nice


def test_a_job_may_begin_anywhere_also_below_zero() -> None:
    job = make(start=-5)
    assert (job.start, job.stop) == (-5, 3)


def test_size_zero_is_a_job() -> None:
    job = make(size=0, start=7)
    assert job.start == job.stop == 7


@pytest.mark.parametrize(("chunk", "align"), [(5, 2), (4096 + 1, 4096), (2, 4)])
def test_a_chunk_that_is_no_multiple_of_align_is_refused(chunk: int, align: int) -> None:
    with pytest.raises(ValueError, match="chunk") as refused:
        make(chunk=chunk, align=align)
    assert str(refused.value) == f"chunk must be a multiple of align ({align}), got {chunk}"


def test_a_chunk_below_min_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk") as refused:
        make(chunk=4, min_chunk=6)
    assert str(refused.value) == "chunk must be at least min_chunk (6), got 4"


@given(
    align=st.integers(1, 50),
    min_chunk=st.integers(1, 50),
    chunk=st.integers(1, 200),
)
def test_a_chunk_is_taken_exactly_when_it_fits_align_and_min_chunk(
    align: int, min_chunk: int, chunk: int
) -> None:
    if chunk % align == 0 and chunk >= min_chunk:
        assert make(chunk=chunk, align=align, min_chunk=min_chunk).chunk == chunk
    else:
        with pytest.raises(ValueError, match=str(chunk)):
            make(chunk=chunk, align=align, min_chunk=min_chunk)


# Functions.


async def coroutine_function(start: int, stop: int, more: int = 0) -> None: ...


async def async_generator_function(start: int, stop: int, more: int = 0) -> AsyncIterator[int]:
    yield start


def generator_function(start: int, stop: int, more: int = 0) -> Iterator[int]:
    yield start


@functools.wraps(work)
async def async_wrapper(start: int, stop: int, more: int = 0) -> None:
    work(start, stop)


class AsyncCall:
    async def __call__(self, start: int, stop: int, more: int = 0) -> None: ...

    async def method(self, start: int, stop: int, more: int = 0) -> None: ...

    @classmethod
    async def of_class(cls, start: int, stop: int, more: int = 0) -> None: ...

    @staticmethod
    async def static(start: int, stop: int, more: int = 0) -> None: ...


class AsyncGeneratorCall:
    async def __call__(self, start: int, stop: int, more: int = 0) -> AsyncIterator[int]:
        yield start


class GeneratorCall:
    def __call__(self, start: int, stop: int, more: int = 0) -> Iterator[int]:
        yield start

    def method(self, start: int, stop: int, more: int = 0) -> Iterator[int]:
        yield start


class Call:
    def __call__(self, start: int, stop: int, more: int = 0) -> None: ...

    def method(self, start: int, stop: int, more: int = 0) -> None: ...


ASYNC = {
    "coroutine function": coroutine_function,
    "async generator function": async_generator_function,
    "async function made with wraps": async_wrapper,
    "partial": functools.partial(coroutine_function, more=3),
    "partial of an async generator": functools.partial(async_generator_function, more=3),
    "partial of a partial": functools.partial(
        functools.partial(coroutine_function, more=1), more=2
    ),
    "object with async call": AsyncCall(),
    "partial of an object with async call": functools.partial(AsyncCall(), more=3),
    "object with async generator call": AsyncGeneratorCall(),
    "bound async method": AsyncCall().method,
    "partial of a bound async method": functools.partial(AsyncCall().method, more=3),
    "bound async call": AsyncCall().__call__,
    "async class method": AsyncCall.of_class,
    "async static method": AsyncCall.static,
}

GENERATORS = {
    "function": generator_function,
    "partial": functools.partial(generator_function, more=3),
    "object": GeneratorCall(),
    "partial of an object": functools.partial(GeneratorCall(), more=3),
    "bound method": GeneratorCall().method,
}


@pytest.mark.parametrize("fn", ASYNC.values(), ids=ASYNC)
def test_an_async_fn_is_refused_and_named(fn: Any) -> None:
    with pytest.raises(TypeError, match="must be an ordinary function, got the async") as refused:
        make(fn=fn)
    assert str(refused.value).startswith("fn runs on a helper thread")
    assert str(refused.value).split()[-1] in repr(fn) or "wrapper" in repr(fn)


@pytest.mark.parametrize("reduce", ASYNC.values(), ids=ASYNC)
def test_an_async_reduce_is_refused(reduce: Any) -> None:
    with pytest.raises(TypeError, match=r"^reduce .* must be an ordinary function, got the async"):
        make(reduce=reduce)


@pytest.mark.parametrize("fn", GENERATORS.values(), ids=GENERATORS)
def test_a_generator_function_is_refused_since_calling_it_does_nothing(fn: Any) -> None:
    with pytest.raises(TypeError, match=r"^fn must be an ordinary function: .* would do nothing"):
        make(fn=fn)
    with pytest.raises(TypeError, match=r"^reduce must be an ordinary function"):
        make(reduce=fn)


@pytest.mark.parametrize("undo", GENERATORS.values(), ids=GENERATORS)
def test_a_generator_function_as_undo_is_refused_since_it_would_undo_nothing(undo: Any) -> None:
    with pytest.raises(TypeError, match="undo"):
        make(undo=undo)


@pytest.mark.parametrize(
    "undo",
    [
        async_generator_function,
        functools.partial(async_generator_function, more=3),
        AsyncGeneratorCall(),
    ],
    ids=["function", "partial", "object"],
)
def test_an_async_generator_function_as_undo_is_refused_since_nobody_could_await_it(
    undo: Any,
) -> None:
    with pytest.raises(TypeError, match="undo"):
        make(undo=undo)


@pytest.mark.parametrize("name", ["fn", "undo", "reduce"])
@pytest.mark.parametrize("value", [5, "work", object], ids=repr)
def test_what_cannot_be_called_is_refused_by_name_and_value(name: str, value: object) -> None:
    if value is object:  # a class is a callable, and no business of ours
        make(**{name: value})
        return
    with pytest.raises(TypeError, match=f"^{name} must be callable") as refused:
        make(**{name: value})
    assert f"got {value!r}" in str(refused.value)


@functools.wraps(coroutine_function)
def runs_its_own_loop(start: int, stop: int) -> None:
    asyncio.run(coroutine_function(start, stop))


ORDINARY = {
    "function": work,
    "lambda": lambda start, stop: None,
    "builtin": print,
    "ufunc": np.add,
    "class": Call,
    "object": Call(),
    "bound method": Call().method,
    "partial": functools.partial(work, more=3),
    "partial of an object": functools.partial(Call(), more=3),
    "function that runs its own loop": runs_its_own_loop,
}


@pytest.mark.parametrize("fn", ORDINARY.values(), ids=ORDINARY)
def test_every_ordinary_callable_is_taken_and_kept_as_it_is(fn: Any) -> None:
    job = make(fn=fn, undo=fn, reduce=fn)
    assert job.fn is job.undo is job.reduce is fn
    assert not job.undo_is_async


ASYNC_UNDO = {name: undo for name, undo in ASYNC.items() if "generator" not in name}


@pytest.mark.parametrize("undo", ASYNC_UNDO.values(), ids=ASYNC_UNDO)
def test_a_coroutine_function_of_any_kind_is_an_async_undo(undo: Any) -> None:
    assert make(undo=undo).undo_is_async


def test_no_undo_is_not_async() -> None:
    assert not make().undo_is_async


# Reduce.


def test_reduce_over_nothing_needs_an_initial_value() -> None:
    with pytest.raises(ValueError, match="reduce over size 0 has no value: pass initial="):
        Job(work, 0, reduce=operator.add)


@pytest.mark.parametrize("initial", [0, None, ""])
def test_reduce_over_nothing_with_any_initial_value_is_a_job(initial: object) -> None:
    assert make(size=0, reduce=operator.add, initial=initial).initial == initial


def test_initial_without_reduce_is_refused() -> None:
    with pytest.raises(TypeError, match="pass reduce= as well"):
        make(initial=0)


# Parts.


@pytest.mark.parametrize(
    ("edges", "problem"),
    [
        ([(0, 4), (3, 8)], "they overlap at 3"),
        ([(0, 8), (0, 8)], "they overlap at 0"),
        ([(0, 8), (2, 4)], "they overlap at 2"),
        ([(0, 3), (5, 8)], "they leave a gap at 3"),
        ([(1, 8)], "they leave a gap at 0"),
        ([(0, 7)], "they leave a gap at 7"),
        ([], "they leave a gap at 0"),
        ([(0, 9)], "they go beyond the range at 8"),
        ([(0, 4), (4, 12)], "they go beyond the range at 8"),
        ([(-1, 8)], "they overlap at -1"),
    ],
)
def test_parts_that_are_not_exactly_the_range_are_refused_and_the_place_named(
    edges: list[tuple[int, int]], problem: str
) -> None:
    with pytest.raises(ValueError, match="parts") as refused:
        make(parts=[Part(*edge) for edge in edges])
    assert str(refused.value) == f"parts must cover 0 to 8 exactly: {problem}"


@pytest.mark.parametrize("part", [range(8), (0, 8), None])
def test_what_is_no_part_is_refused(part: Any) -> None:
    with pytest.raises(TypeError, match="parts must be Part objects") as refused:
        make(parts=[part])
    assert str(refused.value).endswith(f"got {part!r}")


@given(cuts=st.sets(st.integers(1, 99)), order=st.randoms(use_true_random=False))
def test_parts_in_any_order_are_kept_ascending(cuts: set[int], order: Any) -> None:
    edges = [0, *sorted(cuts), 100]
    ascending = tuple(Part(a, b, node=a % 2) for a, b in itertools.pairwise(edges))
    given_order = list(ascending)
    order.shuffle(given_order)
    assert make(size=100, parts=iter(given_order)).parts == ascending


@given(start=st.integers(-50, 50), stop=st.integers(-50, 50))
def test_a_part_is_never_empty(start: int, stop: int) -> None:
    if start < stop:
        assert (Part(start, stop).start, Part(start, stop).stop) == (start, stop)
    else:
        with pytest.raises(ValueError, match=f"got {start} to {stop}$"):
            Part(start, stop)


def test_a_part_takes_integers_only() -> None:
    assert Part(np.int64(0), np.int64(8), np.int64(1)) == Part(0, 8, 1)  # type: ignore[arg-type]
    for wrong in [(0.0, 8, 1), (0, True, 1), (0, 8, 1.0), (0, 8, np.bool_(True))]:
        with pytest.raises(TypeError, match="must be an integer, got"):
            Part(*wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="part node must be at least 0, got -1"):
        Part(0, 8, -1)


def test_a_job_of_size_zero_has_no_parts() -> None:
    assert make(size=0, parts=[]).parts == ()
    with pytest.raises(ValueError, match="beyond the range at 0"):
        make(size=0, parts=[Part(0, 1)])


# Names.


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (work, "work"),
        (print, "print"),
        (Call(), "Call"),
        (Call().method, "Call.method"),
        (functools.partial(work, more=3), "work"),
        (functools.partial(functools.partial(Call(), more=1), more=2), "Call"),
        (Call, "Call"),
        (runs_its_own_loop, "coroutine_function"),
        (np.add, "add"),
    ],
)
def test_a_job_is_named_after_the_function_behind_it(fn: Any, name: str) -> None:
    assert make(fn=fn).name == name


def test_a_given_name_wins_and_must_be_a_string() -> None:
    assert make(name="clear").name == "clear"
    with pytest.raises(TypeError, match="name must be a string, got 5"):
        make(name=5)


# What is made never changes.


def example_job() -> Job[Any]:
    return make(start=8, align=2, min_chunk=2, chunk=4, max_threads=3, undo=reverse, nice=5)


def example_failure() -> Failure:
    return Failure(
        job=make(),
        chunk=range(2, 4),
        errors=(KeyError("k"),),
        done=(range(0, 2),),
        undone=(),
        unknown=(range(2, 4),),
    )


VALUES: dict[str, Callable[[], Any]] = {
    "Job": example_job,
    "Part": lambda: Part(0, 8, 1),
    "Report": lambda: Report(None, 2, 4, 0.1, 0.2, 0.3, (0.2, 0.1), Learned(8, 2), "no"),
    "Progress": lambda: Progress(1, 8, 2, 1, 0.5, 2.0),
    "Failure": example_failure,
}


@pytest.mark.parametrize("value", [made() for made in VALUES.values()], ids=VALUES)
def test_no_field_can_be_set_or_deleted(value: Any) -> None:
    for field in dataclasses.fields(value):
        before = getattr(value, field.name)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, before)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(value, field.name)
        assert getattr(value, field.name) is before


@pytest.mark.parametrize("value", [made() for made in VALUES.values()], ids=VALUES)
def test_no_field_can_be_added(value: Any) -> None:
    # Python 3.11 and 3.12 say TypeError here, for a frozen class with slots.
    with pytest.raises((AttributeError, TypeError)):
        value.something_else = 1
    assert not hasattr(value, "something_else")


def test_generic_values_can_be_made_with_their_type_written_out() -> None:
    assert Job[int](lambda start, stop: stop - start, 8, reduce=operator.add).size == 8
    assert Report[int](3, 1, 1, 0.0, 0.0, 0.0, (), Learned(8, 1), "no").value == 3


def test_jobs_are_equal_to_themselves_only() -> None:
    job = example_job()
    assert job == job
    assert job != example_job()
    assert {job: 1}[job] == 1
    assert weakref.ref(job)() is job


def fields_of(job: Job[Any]) -> dict[str, Any]:
    return {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}


@pytest.mark.parametrize(
    "carry",
    [lambda job: pickle.loads(pickle.dumps(job)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deepcopy"],
)
def test_a_job_over_a_function_of_a_module_can_be_carried_elsewhere(carry: Any) -> None:
    job = make(
        size=100,
        start=4,
        align=2,
        min_chunk=4,
        undo=reverse,
        reduce=operator.add,
        initial=(),
        nice=-3,
        parts=[Part(4, 54, 0), Part(54, 104, 1)],
        name="carried",
    )
    carried = carry(job)
    assert carried is not job
    assert fields_of(carried) == fields_of(job)
    assert carried.stop == 104


def test_a_job_without_an_initial_value_is_still_without_one_after_pickling() -> None:
    carried = pickle.loads(pickle.dumps(make(reduce=operator.add)))
    assert carried.initial is ...


def test_a_job_binds_its_function_or_one_for_each_run() -> None:
    assert make().bind().fn is work
    assert make().bind().value is None
    bounds = iter([Bound(work, lambda: "first"), Bound(reverse, lambda: "second")])
    job: Job[str] = job_that_makes(Job(work, 8), lambda: next(bounds))
    first, second = job.bind(), job.bind()
    assert (first.fn, second.fn) == (work, reverse)
    assert (first.value and first.value(), second.value and second.value()) == ("first", "second")


# A chunk, as its function sees it.


class Owner:
    """Takes note of what a chunk passes on."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def advance(self, start: int, stop: int, upto: int) -> None:
        self.told.append((start, stop, upto))

    def check_cancelled(self) -> None:
        self.told.append("check")


def test_a_chunk_passes_on_what_its_function_says() -> None:
    owner = Owner()
    chunk = Chunk(4, 8, owner)
    chunk.advance(6)
    chunk.advance(np.int64(7))
    chunk.check_cancelled()
    assert owner.told == [(4, 8, 6), (4, 8, 7), "check"]
    assert repr(chunk) == "Chunk(4, 8)"
    assert (chunk.start, chunk.stop) == (4, 8)


@pytest.mark.parametrize("upto", [True, 6.0, "6", np.bool_(True)])
def test_advance_takes_integers_only(upto: Any) -> None:
    owner = Owner()
    with pytest.raises(TypeError, match="upto must be an integer, got"):
        Chunk(4, 8, owner).advance(upto)
    assert owner.told == []


# What is known beside an exception.


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), JobCancelled("x")])
def test_failure_of_an_exception_that_no_job_raised_is_a_lookup_error(error: BaseException) -> None:
    with pytest.raises(LookupError, match=f"^{type(error).__name__} was not raised by a job"):
        failure(error)


@given(st.lists(st.sampled_from(["__cause__", "__context__"]), max_size=8))
def test_where_the_failure_of_an_earlier_exception_stands_is_said(links: list[str]) -> None:
    errors = [ValueError() for _ in links]
    errors.append(KeyError())  # type: ignore[arg-type]
    for each, link, behind in zip(errors, links, errors[1:], strict=False):
        setattr(each, link, behind)
    for each in errors:
        with pytest.raises(LookupError, match=r"was not raised by a job of aioktask$"):
            failure(each)
    set_failure(errors[-1], example_failure())
    assert failure(errors[-1])
    if links:
        with pytest.raises(LookupError) as caught:
            failure(errors[0])
        path = ".".join(["error", *links])
        assert f", but the KeyError behind it was: failure({path}) tells" in str(caught.value)


def test_causes_in_a_circle_are_looked_at_once_or_so() -> None:
    one, other = ValueError(), ValueError()
    one.__cause__, other.__cause__ = other, one
    with pytest.raises(LookupError, match=r"by a job of aioktask$"):
        failure(one)


class StubbornError(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


@pytest.mark.parametrize(
    "error", [ValueError("x"), SystemExit(3), OSError(2, "no"), StubbornError()]
)
def test_failure_gives_what_the_engine_attached(error: BaseException) -> None:
    told = example_failure()
    set_failure(error, told)
    assert failure(error) is told
    assert told.inner is None


# The exceptions.


def test_only_a_cancelled_chunk_passes_by_except_exception() -> None:
    assert issubclass(ChunkCancelled, BaseException)
    assert not issubclass(ChunkCancelled, Exception)
    for error in (JobCancelled, DeadlockError, UndoFailed):
        assert issubclass(error, Exception)


def test_a_deadlock_names_the_jobs_of_the_cycle() -> None:
    error = DeadlockError(["outer", "middle", "inner"])
    assert error.jobs == ("outer", "middle", "inner")
    assert str(error) == (
        "this wait would never end: outer waits for middle waits for inner waits for outer"
    )
    assert str(DeadlockError(["self"])).endswith("self waits for self")
    assert isinstance(error, RuntimeError)


def test_a_deadlock_survives_pickling() -> None:
    carried = pickle.loads(pickle.dumps(DeadlockError(["a", "b"])))
    assert type(carried) is DeadlockError
    assert carried.jobs == ("a", "b")
    assert str(carried) == str(DeadlockError(["a", "b"]))


RANGES = (range(0, 4), range(6, 8))


def undo_failed() -> UndoFailed:
    return UndoFailed("undo failed", [OSError(5, "io"), KeyError("k"), SystemExit(3)], RANGES)


def test_what_is_no_exception_is_wrapped_with_its_cause() -> None:
    interrupt = SystemExit(3)
    error = UndoFailed("m", [interrupt], [range(2)])
    (wrapped,) = error.exceptions
    assert isinstance(wrapped, RuntimeError)
    assert wrapped.__cause__ is interrupt
    assert str(wrapped) == "undo raised SystemExit: 3"


def test_exceptions_are_kept_as_they_are_and_in_order() -> None:
    errors = [OSError(5, "io"), KeyError("k")]
    error = UndoFailed("m", iter(errors), iter(RANGES))
    assert list(error.exceptions) == errors
    assert error.ranges == RANGES
    assert error.message == "m"
    assert str(error).startswith("m (2 sub-exceptions)")


def test_an_undo_that_failed_is_an_exception_group_of_exceptions() -> None:
    assert isinstance(undo_failed(), ExceptionGroup)


def test_splitting_keeps_the_ranges_on_both_sides() -> None:
    error = undo_failed()
    error.__cause__ = TimeoutError()
    error.add_note("a note")
    match, rest = error.split(OSError)
    assert isinstance(match, UndoFailed)
    assert isinstance(rest, UndoFailed)
    assert match.ranges == rest.ranges == RANGES
    assert [type(each) for each in match.exceptions] == [OSError]
    assert [type(each) for each in rest.exceptions] == [KeyError, RuntimeError]
    assert match.__cause__ is rest.__cause__ is error.__cause__
    assert match.__notes__ == rest.__notes__ == ["a note"]
    subgroup = error.subgroup(KeyError)
    assert isinstance(subgroup, UndoFailed)
    assert subgroup.ranges == RANGES


def test_derive_keeps_the_message_and_the_ranges() -> None:
    derived = undo_failed().derive([ValueError("v")])
    assert type(derived) is UndoFailed
    assert derived.ranges == RANGES
    assert derived.message == "undo failed"


def test_except_star_keeps_the_ranges_in_the_handler_and_beyond() -> None:
    handled: list[BaseException] = []

    def handle_some() -> None:
        try:
            raise undo_failed()
        except* OSError as group:
            handled.append(group)

    with pytest.raises(UndoFailed) as beyond:
        handle_some()
    (caught,) = handled
    assert isinstance(caught, UndoFailed)
    assert caught.ranges == beyond.value.ranges == RANGES
    assert [type(each) for each in beyond.value.exceptions] == [KeyError, RuntimeError]


@pytest.mark.parametrize("carry", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
def test_an_undo_that_failed_survives_pickling_and_copying(carry: Any) -> None:
    carried = carry(undo_failed())
    assert type(carried) is UndoFailed
    assert carried.ranges == RANGES
    assert carried.message == "undo failed"
    assert [(type(each), str(each)) for each in carried.exceptions] == [
        (type(each), str(each)) for each in undo_failed().exceptions
    ]
