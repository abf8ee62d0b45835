# SPDX-License-Identifier: MIT
# Calls that are looked at line by line: struck at one of them, or counted.

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any


class Struck(BaseException):
    """What comes in the middle of a call, as the KeyboardInterrupt of a Ctrl-C may."""


def strike(call: Callable[[], object], module: ModuleType, line: int) -> bool:
    """Whether an exception struck the call, before this line of those it runs in the module."""
    left = line

    def at_line() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Struck

    try:
        with _tracing(module, at_line):
            call()
    except Struck:
        return True
    return False


def lines_of(call: Callable[[], object], module: ModuleType) -> int:
    """How many lines of the module the call runs."""
    lines = 0

    def at_line() -> None:
        nonlocal lines
        lines += 1

    with _tracing(module, at_line):
        call()
    return lines


@contextmanager
def _tracing(module: ModuleType, at_line: Callable[[], None]) -> Iterator[None]:
    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != module.__file__:
            return None
        if event == "line":
            at_line()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
