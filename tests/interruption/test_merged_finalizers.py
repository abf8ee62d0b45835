# SPDX-License-Identifier: MIT
# Finalizers and callbacks of weak references that run inside a turn, while the lock is held.
#
# Without the GIL the references that other threads drop are counted apart, and the thread that made
# the object merges the counts, at whichever line it is. So an object that a helper made, and that
# a thread of the program drops, may be finalized inside a drain of that helper. The rule of turns
# covers it: what is called there posts, and what would wait raises.

from __future__ import annotations

import threading
import time
import weakref
from _thread import get_ident
from collections.abc import Callable
from typing import Any

import pytest

from aioktask.engine.api.process import current_pool
from aioktask.engine.priority import gil_is_on
from aioktask.engine.state.dispatch import State
from tests.interruption import questions
from tests.interruption.calls import Work, World
from tests.interruption.intruders import INTRUDERS, Intruder

pytestmark = pytest.mark.skipif(
    gil_is_on(), reason="with the GIL, who drops the last reference finalizes"
)

SECONDS = 20.0


class Plain:
    """What a weak reference can refer to."""


class Finalized:
    """Calls this when it goes."""

    def __init__(self, then: Callable[[], object]) -> None:
        self.then = then

    def __del__(self) -> None:
        self.then()


def finalized(then: Callable[[], object]) -> tuple[object, Any]:
    return Finalized(then), None


def watched(then: Callable[[], object]) -> tuple[object, Any]:
    made = Plain()
    return made, weakref.ref(made, lambda reference: then())


@pytest.mark.parametrize("made_by", [finalized, watched])
@pytest.mark.parametrize("intruder", INTRUDERS)
def test_what_is_merged_in_a_drain_may_call_the_library(
    intruder: str, made_by: Callable[[Callable[[], object]], tuple[object, Any]]
) -> None:
    """Each call comes back or refuses, all jobs end, and later ones run."""
    pool = current_pool()
    world = World()
    world.start_background()
    coordinator = world.coordinator()
    world.submit(coordinator, world.work().job())
    calls = Intruder(intruder, world, most=1)
    ran: list[tuple[int, bool]] = []
    held: list[object] = []
    made, dropped = threading.Event(), threading.Event()
    turner: list[int] = []

    def intrude() -> None:
        ran.append((get_ident(), pool.lock.locked()))
        calls()

    def in_a_turn(state: State, run: None) -> None:
        thing, reference = made_by(intrude)
        held.append(thing)
        del thing
        turner.append(get_ident())
        made.set()
        assert dropped.wait(SECONDS)
        deadline = time.monotonic() + SECONDS
        while not ran and time.monotonic() < deadline:
            pass  # the counts are merged between two of these lines
        del reference

    pool.post(in_a_turn, None)
    assert made.wait(SECONDS)
    held.clear()
    dropped.set()
    world.stop_background()
    questions.settled(world)
    assert ran == [(turner[0], True)], "it ran in the turn, on the turn's thread"
    assert turner[0] != get_ident()
    assert calls.calls == 1
    assert not calls.faults
    for work in world.works:
        assert questions.done_or_undone(work, None, *questions.told_to_waiters(world)) in (
            ("all",) if work.must_finish else ("all", "none")
        )
    for work in world.others:
        assert questions.done_or_undone(work, None) in ("all", "none")
    assert questions.counted(world) is None
    for later in questions.LATER:
        assert later() is None


def test_of_many_objects_that_helpers_made_each_is_finalized_once() -> None:
    """They are dropped by another thread while the helpers work and take turns."""
    from aioktask import Coordinator, Job

    count = 400
    finalized_by: list[int] = []
    work = Work()

    def note() -> None:
        finalized_by.append(get_ident())
        coordinator.submit(Job(lambda start, stop: None, 1))

    with Coordinator(max_threads=2) as coordinator:
        queue: list[object] = []

        def make(start: int, stop: int) -> None:
            queue.append(Finalized(note))

        handle = coordinator.submit(Job(make, count, chunk=1, max_threads=2))
        taken = 0
        while taken < count:
            if queue:
                queue.pop()
                taken += 1
            elif handle.done():
                assert queue or taken == count
        handle.result()
        coordinator.submit(work.job()).result()
        # The threads that made them merge their counts as they go on.
        while len(finalized_by) < count:
            coordinator.submit(Job(lambda start, stop: None, 100, chunk=1)).result()
    assert len(finalized_by) == count
