# SPDX-License-Identifier: MIT
# What was raised, in words, for who looks at jobs. It is told in turns, so no code of the program
# may run.
#
# `str(error)` may be anybody's code, and a class may tell its own name. So only the interpreter's
# own `__str__` is asked, of arguments that are plain values; of all else the class alone is told.
"""`told_of_error`."""

from __future__ import annotations

from typing import Any

from aioktask.errors import name_of_class

__all__ = ["told_of_error"]

# Of what is told, in characters.
MOST_TEXT = 200
# Longer arguments than this, and more of them, are not put into words only to be cut.
MOST_GIVEN = 10_000
MOST_ARGS = 20

PLAIN = (str, int, float, bool, bytes, type(None))
# The interpreter's own ways to tell, and which attributes each of them reads.
READ_BY: dict[object, tuple[Any, ...]] = {
    BaseException.__str__: (),
    KeyError.__str__: (),
    OSError.__str__: (OSError.errno, OSError.strerror, OSError.filename, OSError.filename2),
    ImportError.__str__: (ImportError.msg,),
}
_args = BaseException.__dict__["args"].__get__


def told_of_error(error: BaseException) -> str:
    """The exception's class and text in one line, or the class alone where code tells the text.

    It runs no code of the program and raises no `Exception`, so it may be called in a turn.

    >>> told_of_error(ValueError("row 7 is bad"))
    'ValueError: row 7 is bad'
    >>> told_of_error(StopIteration())
    'StopIteration'
    """
    kind = type(error)
    name: str = name_of_class(kind)[: MOST_TEXT + 1]
    try:
        text = _text(error) if type(kind) is type else ""
    except Exception:  # no memory, say
        text = ""
    return _shortened(f"{name}: {text}" if text else name)


def _text(error: BaseException) -> str:
    """The text; empty where it cannot be had without code of the program."""
    for each in type(error).__mro__:
        if "__str__" in each.__dict__:
            tells = each.__dict__["__str__"]
            break
    else:
        return ""
    if tells is BaseExceptionGroup.__str__:
        given = BaseExceptionGroup.message.__get__(error)
        is_short = type(given) is str and len(given) <= MOST_GIVEN
        return BaseExceptionGroup.__str__(error) if is_short else ""
    if type(tells) is not type(BaseException.__str__) or tells not in READ_BY:
        return ""
    read = [each.__get__(error) for each in READ_BY[tells]]
    args = _args(error)
    if len(args) > MOST_ARGS:
        return ""
    values = [*args, *read]
    if not all(_is_plain(each) for each in values):
        return ""
    if len(values) == 1 and type(values[0]) is str and tells is BaseException.__str__:
        return values[0][:MOST_GIVEN]
    if sum([_length(each) for each in values]) > MOST_GIVEN:
        return ""
    text: str = tells(error)
    return text


def _length(value: object) -> int:
    """About how long a plain value is in words, or longer."""
    if type(value) is int:
        return value.bit_length()
    return len(value) if type(value) in (str, bytes) else 0  # type: ignore[arg-type]


def _is_plain(value: object) -> bool:
    kind = type(value)
    return any(kind is each for each in PLAIN)  # whose class may have an equality of its own


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MOST_TEXT else f"{line[: MOST_TEXT - 1]}…"
