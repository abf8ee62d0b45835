# SPDX-License-Identifier: MIT
# What is left of the stack is what calls can really use.

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from aioktask.engine.stack import has_stack, need_stack


@pytest.fixture(autouse=True)
def _a_usual_limit() -> Iterator[None]:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(limit)


def so_many_frames_before_the_end(frames: int, ask: Callable[[], object]) -> object:
    """What `ask` tells where so many calls more would just fit."""

    def depth() -> int:
        try:
            return 1 + depth()
        except RecursionError:
            return 0

    def deeper(calls: int) -> object:
        return deeper(calls - 1) if calls else ask()

    return deeper(depth() - frames - 1)


@pytest.mark.parametrize("calls", [0, 1, 16, 60])
def test_it_is_there_as_long_as_calls_fit(calls: int) -> None:
    # Beside the calls that are asked for, the call that asks and its own first one.
    assert so_many_frames_before_the_end(calls + 10, lambda: has_stack(calls)) is True
    need_stack(calls)


@pytest.mark.parametrize("calls", [16, 60])
def test_it_is_not_there_where_they_do_not_fit(calls: int) -> None:
    assert so_many_frames_before_the_end(calls - 4, lambda: has_stack(calls)) is False
    with pytest.raises(RecursionError):
        so_many_frames_before_the_end(calls - 4, lambda: need_stack(calls))
