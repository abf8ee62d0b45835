# SPDX-License-Identifier: MIT
# What another thread does between two bytecodes of a call: on a free-threaded build it may come
# between any two, with the GIL only between some.
"""Plays of a call that another one comes into, at each of its bytecodes."""

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
    place = 0
    while _play(begin(), place, {module.__file__ for module in modules}):
        place += 1
    assert place, "the call does not come to these modules"


def _play(scene: Scene, place: int, files: set[str | None]) -> bool:
    """Play a scene; whether the call came to that bytecode, counted from 0."""
    came = -1
    raised: list[BaseException] = []

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal came
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
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
