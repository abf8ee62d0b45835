# SPDX-License-Identifier: MIT
# Frames of the engine are cleared once, whatever the finalizers of what they hold call meanwhile.

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType

from aioktask.engine.threads import helper


class Finalized:
    """Calls something as it goes."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def __del__(self) -> None:
        self._call()


def frame_that_holds(held: list[object]) -> FrameType:
    """The frame of a function that has returned, and that alone refers to the object."""
    local = held.pop()
    frame = sys._getframe()
    assert local
    return frame


def test_a_frame_that_is_being_cleared_is_left_alone_on_every_thread() -> None:
    calls: list[dict[int, object]] = []

    def clear_again() -> None:
        helper._clear(frames[0])
        other = threading.Thread(target=helper._clear, args=(frames[0],))
        other.start()
        other.join(60)
        assert not other.is_alive()
        calls.append(dict(helper._clearing))

    frames = [frame_that_holds([Finalized(clear_again)])]
    helper._clear(frames[0])
    assert [list(each) for each in calls] == [[id(frames[0])]]  # it was, and stayed, in the middle
    assert not helper._clearing
    assert not frames[0].f_locals


def test_a_frame_that_runs_is_left_alone() -> None:
    here = "is kept"
    helper._clear(sys._getframe())
    assert here == "is kept"
    assert not helper._clearing
