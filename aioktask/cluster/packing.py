# SPDX-License-Identifier: MIT
# Bytes for the other side: jobs, values and exceptions; and what is refused before anything is
# sent.
#
# cloudpickle is used where it is installed, since it takes lambdas and functions of scripts; else
# the standard pickle. An error says which attribute of the job cannot be sent or is how large, and
# which variables a function captured. Exceptions that cannot travel arrive as a RuntimeError with
# their text.
"""Pickling what a cluster sends."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pickle
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

from aioktask.checks import name_of
from aioktask.cluster.job import ClusterJob
from aioktask.engine.state.record import raisable
from aioktask.extras import EXTRAS

__all__ = [
    "LARGEST_JOB",
    "Kit",
    "packed",
    "packed_error",
    "packed_job",
    "packed_nodes",
    "unpacked",
    "unpacked_error",
    "unpacked_job",
]

# Bytes. A job is functions and numbers; what it works on is opened where it is.
LARGEST_JOB = 1 << 20

# What a worker needs of a job.
_SENT = ("fn", "setup", "close", "undo", "reduce", "initial")
_NUMBERS = (
    *("name", "start", "size", "align", "min_chunk", "chunk", "max_threads"),
    *("leaf", "grain", "idempotent"),
)
# So many of the captured variables are named.
_MOST_NAMED = 5


class Kit:
    """A job as a worker has it: its functions, and its numbers."""

    fn: Any
    setup: Any
    close: Any
    undo: Any
    reduce: Any
    initial: Any
    name: str
    start: int
    size: int
    align: int
    min_chunk: int
    chunk: int | None
    max_threads: int | None
    leaf: int
    grain: int
    idempotent: bool

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


def _dump(value: object, file: Any) -> None:
    try:
        from cloudpickle import dump
    except ImportError:
        from pickle import dump
    dump(value, file, protocol=pickle.HIGHEST_PROTOCOL)


def _dumps(value: object) -> bytes:
    file = io.BytesIO()
    _dump(value, file)
    return file.getvalue()


class _Counter:
    """A file that keeps nothing: how large a pickle would be, with no copy of what is in it."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.size += size
        return size


def _length(value: object) -> int:
    """How many bytes `value` is as a pickle."""
    counter = _Counter()
    _dump(value, counter)
    return counter.size


def packed(value: object) -> bytes:
    """`value` as bytes for the other side.

    Raises:
        TypeError: It cannot be pickled.
    """
    try:
        return _dumps(value)
    except Exception as error:
        told = f"{_kind(value)} cannot be sent to another process: {_text(error)}"
        raise TypeError(told) from error


def packed_nodes(nodes: Sequence[tuple[int, int, Any]], job: str) -> bytes:
    """What a stretch has of a reduce, as bytes for the other side.

    Args:
        nodes: Places in the tree, each with its value.
        job: The job's name.

    Raises:
        TypeError: A value cannot be pickled.
    """
    try:
        return _dumps(nodes)
    except Exception as error:
        bad = next((value for *_, value in nodes if _size_of(value) is None), nodes)
        raise TypeError(
            f"what fn of the job {job!r} returned, or its reduce made of that, is {_kind(bad)} and "
            f"cannot be sent to another process: {error}. Return what can be pickled"
        ) from error


def unpacked(data: bytes) -> Any:
    """What `packed` was given, in the process that made it or another one of the same program."""
    return pickle.loads(data)


def packed_job(job: ClusterJob[Any]) -> bytes:
    """A job for workers.

    Raises:
        TypeError: A part of it cannot be pickled: the message says which.
        ValueError: It is larger than a job may be: the message says what it captured.
    """
    values: dict[str, Any] = {name: getattr(job, name) for name in (*_SENT, *_NUMBERS)}
    _refuse_of_no_file(job)
    try:
        length = _length(values)
    except Exception as error:
        raise TypeError(_unpicklable(job, error)) from error
    if length > LARGEST_JOB:
        raise ValueError(
            f"the job {job.name!r} is {_size(length)} as bytes, and at most "
            f"{_size(LARGEST_JOB)} are sent to each worker: {_largest(job)}. Open the data in "
            "setup() instead, in each worker, and give fn(start, stop, data) that"
        )
    return _dumps(values)


def _refuse_of_no_file(job: ClusterJob[Any]) -> None:
    """Refuse functions of a main module that workers cannot import, where they go by name.

    Raises:
        TypeError: One is such.
    """
    main = sys.modules["__main__"]
    if _has_cloudpickle() or getattr(main, "__file__", None) or getattr(main, "__spec__", None):
        return
    for what, value in _parts(job):
        while isinstance(value, functools.partial):
            value = value.func
        if getattr(value, "__module__", None) == "__main__":
            raise TypeError(
                f"{what} of the job {job.name!r} is defined in a program that has no file, as in "
                "python -c or at the prompt, so workers cannot import it: put it into a module, or "
                f"have cloudpickle send it: pip install 'aioktask[{EXTRAS['cloudpickle']}]'"
            )


def unpacked_job(data: bytes) -> Kit:
    """The job that `packed_job` was given."""
    return Kit(**unpacked(data))


def _size_of(value: object) -> int | None:
    try:
        return _length(value)
    except Exception:
        return None


def _captured(function: object) -> Iterator[tuple[str, object]]:
    """What a function brings along, as far as the program's objects tell that."""
    with contextlib.suppress(Exception):
        yield from _brought_along(function)


def _brought_along(function: object) -> Iterator[tuple[str, object]]:
    """The variables of a function, its defaults, arguments, and its object."""
    if isinstance(function, functools.partial):
        for place, value in enumerate(function.args):
            yield f"argument {place} of the partial", value
        yield from ((f"{name}=", value) for name, value in function.keywords.items())
        yield from _brought_along(function.func)
        return
    if isinstance(function, MethodType):
        yield f"the {type(function.__self__).__name__} that the method is of", function.__self__
        for name, value in getattr(function.__self__, "__dict__", {}).items():
            yield f"self.{name}", value
        return
    if not isinstance(function, FunctionType):
        yield from (
            (f"self.{name}", value) for name, value in getattr(function, "__dict__", {}).items()
        )
        return
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f"the variable {name!r}", cell.cell_contents
        except ValueError:
            continue
    for value in function.__defaults__ or ():
        yield "a default argument", value
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f"the global {name!r}", function.__globals__[name]


def _parts(job: ClusterJob[Any]) -> Iterator[tuple[str, object]]:
    for what in _SENT:
        value = getattr(job, what)
        if value is not None and value is not ...:
            yield what, value


def _unpicklable(job: ClusterJob[Any], error: Exception) -> str:
    why = _text(error)
    for what, value in _parts(job):
        if _size_of(value) is not None:
            continue
        for captured, inner in _captured(value):
            if _size_of(inner) is None:
                return (
                    f"{what} of the job {job.name!r} cannot be sent to another process, because of "
                    f"{captured}, {_kind(inner)}: {why}. Make it in setup(), in each worker"
                )
        hint = "" if _has_cloudpickle() else _WITHOUT_CLOUDPICKLE
        return f"{what} of the job {job.name!r} cannot be sent to another process: {why}{hint}"
    return f"the job {job.name!r} cannot be sent to another process: {why}"


_WITHOUT_CLOUDPICKLE = (
    "; functions that are defined in functions, and lambdas, need cloudpickle: "
    f"pip install 'aioktask[{EXTRAS['cloudpickle']}]'"
)


def _has_cloudpickle() -> bool:
    try:
        import cloudpickle  # noqa: F401
    except ImportError:
        return False
    return True


def _largest(job: ClusterJob[Any]) -> str:
    found: list[tuple[int, str]] = []
    for what, value in _parts(job):
        inner = [
            (size, f"{what} captures {captured}, {_kind(each)} of {_size(size)}")
            for captured, each in _captured(value)
            if (size := _size_of(each)) is not None and size >= LARGEST_JOB // 64
        ]
        size = _size_of(value) or 0
        found += inner or [(size, f"{what} is {_kind(value)} of {_size(size)}")]
    found.sort(reverse=True)
    large = [text for size, text in found if size >= LARGEST_JOB // 64] or [found[0][1]]
    return "; ".join(large[:_MOST_NAMED])


def _kind(value: object) -> str:
    try:
        return _told_kind(value)
    except Exception:  # of an attribute of its own
        return f"a {_class(value)}"


def _told_kind(value: object) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"an array of shape {shape} and dtype {dtype}"
    if callable(value) and not isinstance(value, type):
        return f"the function {name_of(value)}"
    return f"a {_class(value)}"


def _size(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB" if size >= 1 << 20 else f"{size / 1024:.1f} KiB"


def packed_error(error: BaseException) -> bytes:
    """An exception for the other side, with its notes and its traceback in words; never raises."""
    try:
        text = _traceback(error)
    except BaseException as refused:  # of a method of its own
        text = f"the traceback of {_class(error)} cannot be told: {_class(refused)}"
    notes = _notes(error)
    cause = _cause.__get__(error)
    _cause.__set__(error, None)
    try:
        data = _dumps((error, text, notes))
        again, _, _ = pickle.loads(data)  # some exceptions can be pickled, and not made again
        _refuse_no_exception(again)
    except BaseException as refused:
        replaced = RuntimeError(f"{_class(error)}: {_text(error)}")
        reason = _text(refused)
        replaced.add_note(f"The exception itself cannot be sent to another process: {reason}")
        data = pickle.dumps((replaced, text, notes))
    finally:
        _cause.__set__(error, cause)
    return data


# An exception's class may have attributes of its own, and its metaclass a name.
_cause: Any = BaseException.__dict__["__cause__"]
_name_of_class: Any = type.__dict__["__name__"]


def _class(value: object) -> str:
    name: str = _name_of_class.__get__(type(value))
    return name


def _traceback(error: BaseException) -> str:
    """Its traceback in words, from the first call that is not the library's, without its notes."""
    told = traceback.TracebackException.from_exception(error)
    told.__notes__ = None  # they travel with it
    ours = 0
    while ours < len(told.stack) - 1 and told.stack[ours].filename.startswith(_LIBRARY):
        ours += 1
    del told.stack[:ours]
    return "".join(told.format()).rstrip()


_LIBRARY = f"{Path(__file__).parents[1]}{os.sep}"


def _notes(error: BaseException) -> list[str]:
    """The notes that it has; none where its class does not tell them."""
    try:
        return [str(each) for each in getattr(error, "__notes__", ())]
    except BaseException:
        return []


def _refuse_no_exception(value: object) -> None:
    if not issubclass(type(value), BaseException):
        raise TypeError("what its pickle makes is no exception")


def _text(error: BaseException) -> str:
    """What an exception says, unless saying that raises."""
    try:
        return str(error)
    except BaseException as raised:
        return f"(str() of it raised {_class(raised)})"


def unpacked_error(data: bytes, worker: str) -> BaseException:
    """The exception that `packed_error` was given, with a note of where it was raised.

    Never raises, though it runs code of the exception's class.
    """
    try:
        error, text, notes = pickle.loads(data)
        _refuse_no_exception(error)
    except BaseException as refused:
        what = f"an exception that cannot be unpickled here: {_text(refused)}"
        error, text, notes = RuntimeError(what), "", []
    note = f"raised in the worker {worker!r}"
    told = _notes(error)  # a class may have its pickle leave out some
    for each in (*notes, f"{note}:\n{text}" if text else note):
        if each not in told:
            with contextlib.suppress(BaseException):  # a class may refuse attributes
                BaseException.add_note(error, each)
    return raisable(error, "what ran there")
