# SPDX-License-Identifier: MIT
# What comes into the middle of a call. What another thread does may come between any two of its
# bytecodes, without the GIL. What a signal handler or a finalizer does, on the same thread, comes
# between lines: within one, where it calls something.
"""Plays of a call that another comes into at each of its bytecodes or lines, or that is struck."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any, NamedTuple


class Scene(NamedTuple):
    """One play.

    Attributes:
        call: What is called.
        meanwhile: What another thread does meanwhile; its exceptions are raised.
        check: Called when both are over.
    """

    call: Callable[[], object]
    meanwhile: Callable[[], object]
    check: Callable[[], object] = lambda: None


def play_at_each_bytecode(begin: Callable[[], Scene], *modules: ModuleType) -> None:
    """Play a new scene for each bytecode of these modules that its call comes to.

    What happens meanwhile happens before that bytecode, all of it at once, on the same thread; in
    a last scene it happens afterwards.
    """
    _play_at_each("opcode", begin, modules)


def play_at_each_line(begin: Callable[[], Scene], *modules: ModuleType) -> None:
    """`play_at_each_bytecode`, but between lines."""
    _play_at_each("line", begin, modules)


def _play_at_each(where: str, begin: Callable[[], Scene], modules: tuple[ModuleType, ...]) -> None:
    place = 0
    while _play(begin(), where, place, {module.__file__ for module in modules}):
        place += 1
    assert place, "the call does not come to these modules"


def _play(scene: Scene, where: str, place: int, files: set[str | None]) -> bool:
    """Play a scene; whether the call came to that place, counted from 0."""
    came = -1
    raised: list[BaseException] = []

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal came
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = where == "opcode"
        if event == where:
            came += 1
            if came == place:
                try:
                    scene.meanwhile()
                except BaseException as error:
                    raised.append(error)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        scene.call()
    finally:
        sys.settrace(before)
    if raised:
        raise raised[0]
    if came < place:
        scene.meanwhile()
    scene.check()
    return came >= place


class Struck(BaseException):
    """What `struck_at` raises."""


def struck_at(line: int, call: Callable[[], object], *modules: ModuleType) -> bool:
    """Call, and raise at this line of these modules that the call comes to, counted from 0.

    Returns:
        Whether it came so far.
    """
    files = {module.__file__ for module in modules}
    left = line

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            left -= 1
            if left == -1:
                raise Struck
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Struck:
        return True
    finally:
        sys.settrace(before)
    return False
