# SPDX-License-Identifier: MIT
# What was raised, in words: never longer than a line, and never by code of the program.

from __future__ import annotations

import builtins
import errno
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.raised import MOST_TEXT, told_of_error

BUILTIN = [
    each
    for each in vars(builtins).values()
    if isinstance(each, type) and issubclass(each, BaseException)
]
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()


def _refuse(*args: object) -> NoReturn:
    raise AssertionError("code of the program ran")


# While an exception is told. These classes are there for all who walk the subclasses of
# `BaseException` as long as they live, so at other times they are as any class.
telling = False


class Text(str):
    __slots__ = ()
    __str__ = __repr__ = __len__ = __format__ = _refuse  # type: ignore[assignment]


class Number(int):
    __str__ = __repr__ = __format__ = _refuse


class Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        return _refuse() if telling else super().__getattribute__(name)


class ToldError(Exception):
    __str__ = __repr__ = _refuse


class DerivedError(ToldError):
    pass


class HiddenError(Exception):
    args = property(_refuse)  # type: ignore[assignment]
    __name__ = property(_refuse)
    __getattribute__ = _refuse


class Descriptor:
    __get__ = __call__ = __hash__ = __eq__ = _refuse  # type: ignore[assignment]


class DescribedError(Exception):
    __str__ = Descriptor()  # type: ignore[assignment]


class WithMetaError(Exception, metaclass=Meta):  # type: ignore[metaclass]
    pass


class PlainError(Exception):
    pass


class Hashed(type):
    def __hash__(cls) -> int:
        return _refuse() if telling else super().__hash__()

    def __eq__(cls, other: object) -> bool:
        return _refuse() if telling else cls is other


class Odd(metaclass=Hashed):
    __str__ = __repr__ = __hash__ = __eq__ = _refuse  # type: ignore[assignment]


CASES: list[tuple[BaseException, str]] = [
    (ValueError("row 7 is bad"), "ValueError: row 7 is bad"),
    (ValueError("row 7\n  is\tbad\r\n"), "ValueError: row 7 is bad"),
    (ValueError(), "ValueError"),
    (ValueError(""), "ValueError"),
    (ValueError(1, "two", None), "ValueError: (1, 'two', None)"),
    (KeyError("key"), "KeyError: 'key'"),
    (
        OSError(errno.ENOENT, "no such file", "a"),
        "FileNotFoundError: [Errno 2] no such file: 'a'",
    ),
    (ImportError("no module x", name="x"), "ImportError: no module x"),
    (PlainError("mine"), "PlainError: mine"),
    (KeyboardInterrupt(), "KeyboardInterrupt"),
    (
        ExceptionGroup("several", [ValueError(1), ToldError()]),
        "ExceptionGroup: several (2 sub-exceptions)",
    ),
    # Only code of the program could tell these.
    (ToldError("mine"), "ToldError"),
    (DerivedError("mine"), "DerivedError"),
    (DescribedError("mine"), "DescribedError"),
    (WithMetaError("mine"), "WithMetaError"),
    (ValueError(Text("mine")), "ValueError"),
    (ValueError(Number(3)), "ValueError"),
    (ValueError([Text("mine")]), "ValueError"),
    (ValueError(Odd()), "ValueError"),
    (OSError(errno.EIO, Text("mine")), "OSError"),
    (OSError(errno.EIO, "error", Text("mine")), "OSError"),
    (OSError(errno.EIO, "error", Odd()), "OSError"),
    (ImportError(Text("mine")), "ImportError"),
    # None of it is in the way.
    (HiddenError("mine"), "HiddenError: mine"),
]


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: CASES[case][1])
def test_no_code_of_the_program_runs(case: int) -> None:
    global telling
    error, told = CASES[case]
    telling = True
    try:
        found = told_of_error(error)
    finally:
        telling = False
    assert found == told


@given(st.sampled_from(BUILTIN), st.lists(PLAIN, max_size=5))
def test_it_is_a_line_of_bounded_length(kind: type[BaseException], args: list[Any]) -> None:
    try:
        error = kind(*args)
    except (TypeError, ValueError):  # it wants other arguments
        return
    told = told_of_error(error)
    assert told.startswith(kind.__name__) or issubclass(kind, OSError)  # which names itself
    assert len(told) <= MOST_TEXT
    assert "\n" not in told


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x" * 10**6),
        ValueError("x" * 10**6, 1),
        ValueError(10**5000),
        ValueError(*range(10**6)),
        ExceptionGroup("x" * 10**7, [ValueError()]),
        OSError(errno.EIO, "x" * 10**6),
        type("X" * 10**4, (Exception,), {})(),
    ],
    ids=["long", "long and more", "digits", "many", "group", "system", "name"],
)
def test_what_is_long_is_cut(error: BaseException) -> None:
    told = told_of_error(error)
    assert told.startswith(type(error).__name__[: MOST_TEXT - 1])
    assert len(told) <= MOST_TEXT
