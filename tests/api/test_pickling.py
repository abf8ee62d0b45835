# SPDX-License-Identifier: MIT
# What a job raises can be carried to another process, or copied, as if no job had raised it:
# nothing of what `failure` tells goes along, and nothing of it is in the way.

from __future__ import annotations

import concurrent.futures
import copy
import copyreg
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from aioktask import (
    ChunkCancelled,
    Coordinator,
    DeadlockError,
    Failure,
    Job,
    JobCancelled,
    Part,
    UndoFailed,
    current_chunk,
    failure,
    run_multithreaded_sync,
)

MEGABYTES = 10
SOME_HUNDREDS = 700  # bytes

E = TypeVar("E", bound=BaseException)


@pytest.fixture(autouse=True)
def as_python_pickles_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Dask is imported, tblib pickles the exceptions that there were, with tracebacks."""
    for kind in list(copyreg.dispatch_table):
        if issubclass(kind, BaseException):
            monkeypatch.delitem(copyreg.dispatch_table, kind)


protocols = pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))


class PlainError(Exception):
    pass


class SlottedError(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class StubbornError(Exception):
    """It takes no attribute, as a class may that wants to be a value."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} cannot be set")


class ReducingError(Exception):
    """It says itself how it is pickled, by its attributes."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_reducing, (self.code,), self.__dict__


def _make_reducing(code: int) -> ReducingError:
    return ReducingError(code=code)


class HiddenDictError(Exception):
    """Its `__dict__` is something else."""

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise AttributeError("nothing to see")


class ReluctantError(Exception):
    """It looks at every name that is read."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__aioktask"):
            raise RuntimeError(name)
        return super().__getattribute__(name)


KINDS: list[Callable[[], BaseException]] = [
    lambda: ValueError("bad block 3", 7),
    lambda: OSError(5, "io", "name"),
    lambda: KeyError("k"),
    lambda: UnicodeDecodeError("ascii", b"\xff", 0, 1, "why"),
    lambda: SystemExit(3),
    lambda: PlainError("x"),
    lambda: SlottedError(4),
    lambda: StubbornError("x"),
    lambda: ReducingError(code=4),
    lambda: HiddenDictError("x"),
    lambda: ReluctantError("x"),
    lambda: ExceptionGroup("several", [ValueError("x"), OSError(5, "io")]),
]
NAMES = [type(make()).__name__ for make in KINDS]
kinds = pytest.mark.parametrize("make", KINDS, ids=NAMES)


def raised_by_a_job(make: Callable[[], E], **options: Any) -> E:
    """What a job over some data raises, whose function cannot be pickled."""
    data = b"x" * (MEGABYTES << 20)
    wanted = make()

    def fn(start: int, stop: int) -> None:
        assert data
        if start == 0:  # 3.13 without the GIL may crash where two threads raise one exception
            raise wanted

    with pytest.raises(type(wanted)) as caught:
        run_multithreaded_sync(Job(fn, 10, chunk=1, **options))
    assert caught.value is wanted
    assert failure(wanted).job.fn is fn
    return wanted


def attributes(error: BaseException) -> dict[str, Any]:
    found: dict[str, Any] = vars(BaseException)["__dict__"].__get__(error)
    return found


@protocols
@kinds
def test_an_exception_that_a_job_raised_arrives_as_it_is(
    make: Callable[[], BaseException], protocol: int
) -> None:
    error = raised_by_a_job(make)
    data = pickle.dumps(error, protocol)
    assert len(data) < SOME_HUNDREDS
    assert b"aioktask" not in data
    arrived = pickle.loads(data)
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert attributes(arrived) == attributes(error)
    with pytest.raises(LookupError):
        failure(arrived)


@kinds
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_an_exception_that_a_job_raised_can_be_copied(
    make: Callable[[], BaseException], copied: Callable[[BaseException], BaseException]
) -> None:
    error = raised_by_a_job(make)
    other = copied(error)
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert attributes(other) == attributes(error)
    assert failure(error).chunk is not None  # which the copying left where it was


def test_the_note_stays_and_arrives() -> None:
    error = raised_by_a_job(lambda: PlainError("x"))
    (note,) = error.__notes__
    assert type(note) is str
    assert note.endswith("of the job 'raised_by_a_job.<locals>.fn'")
    assert pickle.loads(pickle.dumps(error)).__notes__ == [note]


def test_attributes_that_are_set_later_are_the_exception_s_own() -> None:
    error = raised_by_a_job(lambda: PlainError("x"))
    error.code = 4  # type: ignore[attr-defined]
    error.itself = error  # type: ignore[attr-defined]
    assert vars(error).keys() == {"__notes__", "code", "itself"}
    arrived = pickle.loads(pickle.dumps(error))
    assert arrived.code == 4
    assert arrived.itself is arrived


def test_an_exception_that_passed_two_jobs_arrives_as_it_is() -> None:
    error = ValueError("x")

    def inner(start: int, stop: int) -> None:
        raise error

    def outer(start: int, stop: int) -> None:
        run_multithreaded_sync(Job(inner, 1, name="inner"))

    with pytest.raises(ValueError, match="x"):
        run_multithreaded_sync(Job(outer, 1, name="outer"))
    told = failure(error)
    assert told.job.name == "outer"
    assert told.inner is not None
    assert told.inner.job.name == "inner"
    arrived = pickle.loads(pickle.dumps(error))
    assert vars(arrived) == vars(error)


def test_an_exception_arrives_where_there_is_no_aioktask() -> None:
    data = pickle.dumps(raised_by_a_job(lambda: OSError(5, "io")))
    there = (
        "import pickle, sys\n"
        "sys.modules['aioktask'] = None\n"
        "error = pickle.loads(sys.stdin.buffer.read())\n"
        "print(type(error).__name__, error.errno, error.__notes__[0].partition(' in ')[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", there], input=data, capture_output=True, timeout=100, check=True
    )
    assert done.stdout.decode().split() == ["OSError", "5", "raised"]


# The exceptions of the library.


def cancelled_job() -> JobCancelled:
    def until_cancelled(start: int, stop: int) -> None:
        while True:
            current_chunk().check_cancelled()

    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(until_cancelled, 10))
        assert handle.cancel()
        with pytest.raises(JobCancelled) as caught:
            handle.result()
    assert failure(caught.value).job is handle.job
    return caught.value


def cancelled_chunk() -> ChunkCancelled:
    seen: list[ChunkCancelled] = []

    def fn(start: int, stop: int) -> None:
        handles[0].cancel()
        try:
            current_chunk().check_cancelled()
        except ChunkCancelled as error:
            seen.append(error)

    handles: list[Any] = []
    with Coordinator() as coordinator:
        job = Job(lambda a, b: fn(a, b) if handles else None, 10**9, chunk=1)
        handles.append(coordinator.submit(job))
    return seen[0]


def failed_undo() -> UndoFailed:
    data = b"x" * (MEGABYTES << 20)

    def fn(start: int, stop: int) -> None:
        if start == 3:
            raise ValueError(data[:1])

    def undo(start: int, stop: int) -> None:
        raise OSError(5, "io")

    with pytest.raises(UndoFailed) as caught:
        run_multithreaded_sync(Job(fn, 4, chunk=1, max_threads=1, undo=undo))
    assert failure(caught.value).job.fn is fn
    return caught.value


def deadlock() -> DeadlockError:
    seen: list[DeadlockError] = []

    def fn(start: int, stop: int) -> None:
        while not handles:
            pass
        try:
            handles[0].result()
        except DeadlockError as error:
            seen.append(error)

    handles: list[Any] = []
    with Coordinator() as coordinator:
        handles.append(coordinator.submit(Job(fn, 1, name="itself")))
    return seen[0]


OWN: list[Callable[[], BaseException]] = [cancelled_job, cancelled_chunk, failed_undo, deadlock]


def same(one: BaseException, other: BaseException) -> None:
    assert type(one) is type(other)
    assert str(one) == str(other)
    assert vars(one).keys() == vars(other).keys()
    assert getattr(one, "__notes__", None) == getattr(other, "__notes__", None)
    assert getattr(one, "ranges", None) == getattr(other, "ranges", None)
    assert getattr(one, "jobs", None) == getattr(other, "jobs", None)
    assert getattr(one, "message", None) == getattr(other, "message", None)
    if isinstance(one, BaseExceptionGroup):
        assert isinstance(other, BaseExceptionGroup)
        for mine, its in zip(one.exceptions, other.exceptions, strict=True):
            same(mine, its)


@protocols
@pytest.mark.parametrize("raised", OWN)
def test_the_library_s_exceptions_arrive_with_what_they_carry(
    raised: Callable[[], BaseException], protocol: int
) -> None:
    error = raised()
    error.add_note("a note of the program's own")
    data = pickle.dumps(error, protocol)
    assert len(data) < SOME_HUNDREDS
    same(pickle.loads(data), error)
    same(copy.copy(error), error)
    same(copy.deepcopy(error), error)


def raise_what(raised: Callable[[], BaseException]) -> None:
    raise raised()


def raise_bad_block() -> None:
    raise raised_by_a_job(KINDS[0])


def test_what_a_job_raised_comes_out_of_other_processes() -> None:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as workers:
        for raised in OWN:
            expected = raised()
            with pytest.raises(type(expected)) as arrived:
                workers.submit(raise_what, raised).result(60)
            assert str(arrived.value) == str(expected)
        with pytest.raises(ValueError, match="bad block 3") as bad:
            workers.submit(raise_bad_block).result(60)
        assert bad.value.args == ("bad block 3", 7)
    with context.Pool(1) as pool:
        with pytest.raises(ValueError, match="bad block 3"):
            pool.apply_async(raise_bad_block).get(60)


# What `failure` tells, carried by itself.


def example_failure() -> Failure:
    def undo(start: int, stop: int) -> None: ...

    error = raised_by_a_job(
        KINDS[0],
        undo=undo,
        align=1,
        max_threads=2,
        nice=3,
        parts=[Part(0, 4, 0), Part(4, 10)],
        name="the job",
    )
    return failure(error)


@protocols
def test_a_failure_goes_without_functions(protocol: int) -> None:
    told = example_failure()
    data = pickle.dumps(told, protocol)
    assert len(data) < 2 * SOME_HUNDREDS
    arrived = pickle.loads(data)
    assert type(arrived) is Failure
    for name in ("chunk", "done", "undone", "unknown", "inner"):
        assert getattr(arrived, name) == getattr(told, name)
    assert [repr(each) for each in arrived.errors] == [repr(each) for each in told.errors]
    for name in ("size", "start", "align", "chunk", "max_threads", "nice", "parts", "name"):
        assert getattr(arrived.job, name) == getattr(told.job, name)
    assert pickle.loads(pickle.dumps(arrived, protocol)).job.name == "the job"


def test_a_function_that_was_left_behind_says_so() -> None:
    arrived = pickle.loads(pickle.dumps(example_failure()))
    for what in ("fn", "undo"):
        function = getattr(arrived.job, what)
        assert repr(function) == f"<{what} of the job 'the job', left behind>"
        with pytest.raises(RuntimeError, match=f"{what} of the job 'the job' was left behind"):
            function(0, 1)
    assert arrived.job.reduce is None
    with pytest.raises(RuntimeError, match="fn of the job 'the job' was left behind"):
        run_multithreaded_sync(arrived.job)


def test_the_failure_of_a_reduce_leaves_its_values_behind() -> None:
    def fn(start: int, stop: int) -> list[bytes]:
        raise ValueError("x")

    job = Job(fn, 4, reduce=lambda a, b: a + b, initial=[b"x" * (MEGABYTES << 20)])
    with pytest.raises(ValueError, match="x") as caught:
        run_multithreaded_sync(job)
    data = pickle.dumps(failure(caught.value))
    assert len(data) < 2 * SOME_HUNDREDS
    arrived = pickle.loads(data)
    with pytest.raises(RuntimeError, match=r"reduce of the job .* was left behind"):
        arrived.job.reduce([], [])


def test_the_failures_of_nested_jobs_go_along() -> None:
    def inner(start: int, stop: int) -> None:
        raise ValueError("x")

    def outer(start: int, stop: int) -> None:
        run_multithreaded_sync(Job(inner, 1, name="inner"))

    with pytest.raises(ValueError, match="x") as caught:
        run_multithreaded_sync(Job(outer, 1, name="outer"))
    arrived = pickle.loads(pickle.dumps(failure(caught.value)))
    assert arrived.inner.job.name == "inner"


def test_a_copy_of_a_failure_keeps_the_functions() -> None:
    told = example_failure()
    assert copy.copy(told) is told
    assert copy.deepcopy(told) is told
