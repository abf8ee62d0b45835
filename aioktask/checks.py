# SPDX-License-Identifier: MIT
# What is refused, and in which words: the value that was given, and what is wanted instead.
"""Checks of arguments."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import numbers
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from types import (
    AsyncGeneratorType,
    BuiltinFunctionType,
    CoroutineType,
    FunctionType,
    GeneratorType,
    MethodType,
)
from typing import SupportsIndex, TypeVar, cast

T = TypeVar("T")

NICE_RANGE = range(-20, 20)

# Characters of a value that an error shows.
MOST_SHOWN = 100

# What a call returns that did no work, but made an object that would do it.
_NOT_DONE = (CoroutineType, GeneratorType, AsyncGeneratorType)


def shown(value: object) -> str:
    """What was given, for an error's message: on one line, which is no longer than it need be."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # it refuses to be shown
        return f"a {type(value).__name__}"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}... ({type(value).__name__})"


def integer(name: str, value: object, *, least: int | None = None) -> int:
    """`value` as an int: anything with ``__index__`` but a bool, and at least `least`.

    Raises:
        TypeError: It is no integer.
        ValueError: It is too small.
    """
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise _no_integer(name, value)
    try:
        number = operator.index(cast("SupportsIndex", value))
    except TypeError as error:
        raise _no_integer(name, value) from error
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def _no_integer(name: str, value: object) -> TypeError:
    has_length = hasattr(value, "__len__") and not isinstance(value, str | bytes)
    how = f": pass {name}=len(...)" if name == "size" and has_length else ""
    return TypeError(f"{name} must be an integer, got {shown(value)}{how}")


def nice_value(name: str, value: object) -> int:
    """`value` as a nice: an integer from -20 to 19."""
    number = integer(name, value)
    if number not in NICE_RANGE:
        raise ValueError(f"{name} must be from -20 to 19, got {number}")
    return number


LEARN = ("both", "chunk", "threads", "nothing")


def check_learn(name: str, value: object) -> str:
    """`value` as one of `LEARN`."""
    if value not in LEARN:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"{name} must be one of {', '.join(map(repr, LEARN))}, got {shown(value)}")
    return value


def check_flag(name: str, value: object) -> bool:
    """`value` as a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return value


# As a value of `remember`: in the directory for the user's caches.
DISK = "disk"


def check_remember(name: str, value: object) -> bool | str:
    """`value` as a bool, `DISK`, or the absolute path of a directory."""
    if isinstance(value, bool):
        return value
    wanted = f"{name} must be True, False, {DISK!r} or the absolute path of a directory"
    try:
        path = os.fspath(cast("str", value))
    except TypeError:
        raise TypeError(f"{wanted}, got {shown(value)}") from None
    if not isinstance(path, str):
        raise TypeError(f"{wanted}, got {shown(value)}")
    if path != DISK and (not os.path.isabs(path) or "\0" in path):
        raise ValueError(f"{wanted}, got {shown(value)}")
    return path


# No time is longer, in seconds, lest it be more ns than a float, or a system call, can have.
LONGEST_SECONDS = 1e9


def seconds(name: str, value: object, *, may_be_zero: bool = True) -> float:
    """`value` as a time in seconds: a number that is finite and not negative, at most 1e9.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative, not finite, or zero where it may not be.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number of seconds, got {shown(value)}")
    number = cast("float", value)
    if not 0 <= number < math.inf or not (number or may_be_zero):
        least = "at least 0" if may_be_zero else "above 0"
        raise ValueError(f"{name} must be {least} seconds and finite, got {shown(value)}")
    return float(min(number, LONGEST_SECONDS))


# Labels are told with every event of a job, and shown in lists of a thousand.
MOST_LABELS = 32
LONGEST_LABEL = 1024


def check_labels(labels: object) -> dict[str, str]:
    """A copy of `labels`, a mapping of strings to strings.

    Raises:
        TypeError: It is none.
        ValueError: There are too many, or one is too long; a name is empty.
    """
    if not isinstance(labels, Mapping):
        raise TypeError(f"labels must be a mapping of strings to strings, got {shown(labels)}")
    found = dict(labels)
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"labels must be strings, got {name!r}: {value!r}")
        if not name or max(len(name), len(value)) > LONGEST_LABEL:
            raise ValueError(
                f"a label must have a name, and neither may be longer than {LONGEST_LABEL} "
                f"characters, got {name[:40]!r} with {len(value)} characters"
            )
    if len(found) > MOST_LABELS:
        raise ValueError(f"there may be at most {MOST_LABELS} labels, got {len(found)}")
    return found


def optional(name: str, value: object, kind: type[T]) -> T | None:
    """`value` as an object of this class, or None.

    Raises:
        TypeError: It is something else.
    """
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__} or None, got {shown(value)}")
    return value


def listed(name: str, values: Iterable[T]) -> list[T]:
    """What `values`, an iterable, yields.

    Raises:
        TypeError: It cannot be iterated over.
    """
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} must be an iterable, got {shown(values)}")
    return list(values)


def check_undo(name: str, function: object) -> None:
    """A function or a coroutine function.

    Raises:
        TypeError: It is neither: a call of a generator function would do nothing.
    """
    if not callable(function):
        raise TypeError(f"{name} must be callable as {name}(start, stop), got {shown(function)}")
    if is_plain(function):
        return
    for target in _targets(function):
        if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
            raise TypeError(
                f"{name} must be an ordinary or a coroutine function: calling the generator "
                f"function {name_of(function)} would do nothing"
            )


_NOT_ORDINARY = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def unwrapped(function: object) -> object:
    """The function behind partials and a bound method; nothing here asks what others define."""
    while type(function) is functools.partial:
        function = function.func
    return function.__func__ if type(function) is MethodType else function


def is_plain(function: object) -> bool:
    """Whether it is certainly an ordinary function: what most are, told quickly."""
    function = unwrapped(function)
    if type(function) is BuiltinFunctionType:
        return True
    return (
        type(function) is FunctionType
        and not function.__code__.co_flags & _NOT_ORDINARY
        and not function.__dict__  # where decorators mark coroutine functions
    )


def check_function(name: str, function: object) -> None:
    """An ordinary function.

    Raises:
        TypeError: It is not callable, or its call would only make a coroutine or a generator.
    """
    if is_plain(function):
        return
    if not callable(function):
        raise TypeError(
            f"{name} must be callable, got {shown(function)}: pass the function itself, and not "
            "what it returned"
        )
    if is_async(function):
        raise TypeError(
            f"{name} runs on a helper thread and must be an ordinary function, "
            f"got the async {name_of(function)}"
        )
    if any(map(inspect.isgeneratorfunction, _targets(function))):
        raise TypeError(
            f"{name} must be an ordinary function: calling the generator function "
            f"{name_of(function)} would do nothing"
        )


# Stands in a partial for an argument of the call, from 3.14 on.
_PLACEHOLDER = getattr(functools, "Placeholder", object())


def check_arguments(what: str, function: object, arguments: str) -> None:
    """Refuse a function that cannot be called with so many arguments, as far as that is certain.

    It is of what the call itself would ask: Python functions, methods, partials, objects whose
    class defines ``__call__``, and builtins that tell. What `functools.wraps` or ``__signature__``
    say is of another function, so `inspect.signature` is not asked of those; it takes 25 times as
    long, too. Classes, and what else can be called, are taken.

    Args:
        what: Which function it is, `fn` say.
        function: The function.
        arguments: What it is called with, as in "start, stop".

    Raises:
        TypeError: It cannot.
    """
    given = arguments.count(",") + 1 if arguments else 0
    if type(function) is FunctionType:  # as most are
        code = function.__code__
        if code.co_argcount == given and not code.co_kwonlyargcount:
            return
    named: dict[str, object] = {}
    target = function
    while type(target) not in (FunctionType, BuiltinFunctionType):
        if type(target) is functools.partial:
            if any(each is _PLACEHOLDER for each in target.args):
                return
            given += len(target.args)
            named = {**target.keywords, **named}
            target = target.func
        elif type(target) is MethodType:
            given += 1
            target = target.__func__
        else:
            target = inspect.getattr_static(type(target), "__call__", None)
            given += 1
            if type(target) is not FunctionType:  # a class, say, or a static method
                return
    if type(target) is FunctionType:
        if _can_be_called(target, given, named):
            return
    else:
        try:
            inspect.signature(cast("Callable[..., object]", target)).bind(*range(given), **named)
        except ValueError:  # it does not tell
            return
        except TypeError:
            pass
        else:
            return
    takes = inspect.signature(cast("Callable[..., object]", target), follow_wrapped=False)
    takes = takes.replace(return_annotation=takes.empty)
    gets = " with what its partial gives" if type(function) is functools.partial else ""
    raise TypeError(
        f"{what} is called as {what}({arguments}), which {name_of(function)}{takes}{gets} does not "
        "fit"
    )


def _can_be_called(function: FunctionType, given: int, named: Mapping[str, object]) -> bool:
    """Whether it can be called with so many arguments, and these keywords."""
    code = function.__code__
    most, keyword_only = code.co_argcount, code.co_kwonlyargcount
    needed = most - len(function.__defaults__ or ())
    if given > most and not code.co_flags & inspect.CO_VARARGS:
        return False
    if not (named or keyword_only):
        return given >= needed
    names = code.co_varnames
    by_name = names[code.co_posonlyargcount : most + keyword_only]
    if not (code.co_flags & inspect.CO_VARKEYWORDS or named.keys() <= set(by_name)):
        return False
    if any(each in named for each in names[code.co_posonlyargcount : min(given, most)]):
        return False  # it would have it twice
    by_default = function.__kwdefaults__ or {}
    return all(
        each in named and each in by_name for each in names[min(given, most) : needed]
    ) and all(each in named or each in by_default for each in names[most : most + keyword_only])


def check_done(result: object, what: str, name: str, of: str = "job") -> type:
    """Refuse a result of `what` that means that no work was done; else return its type.

    Args:
        result: What was returned.
        what: Which function returned it, of what is of this name.
        name: Of the job, or of whatever else `of` says.
        of: What it is.

    Raises:
        TypeError: It is an awaitable or a generator: the work would still have to be done. It is
            closed, so that Python does not warn of it too.
    """
    kind = type(result)
    if kind not in _NOT_DONE and not hasattr(kind, "__await__"):
        return kind
    for way in ("close", "cancel"):  # a coroutine or generator; a task or future
        close = getattr(result, way, None)
        if callable(close):
            with contextlib.suppress(Exception):  # it refuses, and is refused anyway
                close()
            break
    raise TypeError(
        f"{what} of the {of} {name!r} returned a {kind.__name__}, so its work was not done: nobody "
        "awaits it here. Pass an ordinary function that does the work before it returns"
    )


def _targets(function: object) -> tuple[object, object]:
    """The function behind partials, and the ``__call__`` of its type."""
    while isinstance(function, functools.partial):
        function = function.func
    return function, getattr(type(function), "__call__", None)  # noqa: B004 - the method itself


def is_async(function: object) -> bool:
    return not is_plain(function) and any(
        inspect.iscoroutinefunction(target) or inspect.isasyncgenfunction(target)
        for target in _targets(function)
    )


def is_generator_function(function: object) -> bool:
    """Whether a call only makes a generator, or an async one, whose body runs in pieces."""
    targets = _targets(function)
    return any(map(inspect.isgeneratorfunction, targets)) or any(
        map(inspect.isasyncgenfunction, targets)
    )


def name_of(function: object) -> str:
    if type(function) is FunctionType:
        return function.__qualname__
    target = _targets(function)[0]
    return str(getattr(target, "__qualname__", type(target).__name__))


def check_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {name!r}")
    return name
