# SPDX-License-Identifier: MIT
# Whether what a program's functions and exceptions refer to goes with the last reference to them,
# without the cyclic collector.

from __future__ import annotations

import gc
import logging
import time
import weakref
from collections.abc import Iterator
from typing import Any

import anyio.lowlevel
import pytest

from aioktask.engine.api.process import current_pool
from aioktask.engine.priority import gil_is_on
from tests.support.patience import PATIENCE

STEP = 0.001


@pytest.fixture
def no_collector_and_no_records(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # pytest keeps what is logged, and with it the exceptions and what they refer to.
    monkeypatch.setattr(logging.getLogger("aioktask"), "disabled", True)
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


class Data:
    """Something large that a job's functions refer to."""

    def __init__(self, watch: Watch) -> None:
        watch.add(self)


class Watch:
    """Knows how many of its Data are still there."""

    def __init__(self) -> None:
        self._there: dict[int, weakref.ref[Any]] = {}  # by their own ids: arrays have no hash
        self._made = 0

    def add(self, thing: object) -> None:
        self._made += 1
        reference = weakref.ref(thing, self._gone)
        self._there[id(reference)] = reference

    def _gone(self, reference: weakref.ref[Any]) -> None:
        del self._there[id(reference)]

    def data(self) -> Data:
        return Data(self)

    def check(self) -> None:
        """All are gone, or go when a helper that is still on its way out of a chunk lets go."""
        assert self._made, "the scenario made no Data"
        until = time.monotonic() + PATIENCE
        while self._there:
            if time.monotonic() >= until:
                pytest.fail(held([each() for each in self._there.values()]))
            let_threads_let_go()
            time.sleep(STEP)

    async def check_in_task(self) -> None:
        """`check`, after the loop has let go of what it threw into this task."""
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        self.check()


def let_threads_let_go() -> None:
    """Without the GIL, what one thread made and another is the last to drop goes when the former
    runs again: this thread at once, and helpers when they are woken, at the latest after 10 s.
    """
    if not gil_is_on():
        for helper in list(current_pool().state.helpers):
            helper.parking.unpark()


def held(things: list[Any]) -> str:
    """What refers to these, and to that, as deep as it is of use."""
    lines, seen = [], {id(things)}
    level = [each for each in things if each is not None]
    for depth in range(9):
        following = []
        for thing in level:
            for holder in gc.get_referrers(thing):
                if id(holder) in seen or holder is level or holder is following:
                    continue
                seen.add(id(holder))
                lines.append("  " * depth + f"{type(holder).__name__}: {holder!r:.160}")
                following.append(holder)
        level = following[:20]
    return "\n".join(lines[:60])
