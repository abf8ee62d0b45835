# SPDX-License-Identifier: MIT
# The lateness of loops. The watch is asked by the test in place of the keeper: of a loop that
# answers when the test says so, by the rules; of real ones, blocked by events, for what is told.

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import anyio
import pytest

import aioktask
from aioktask import Coordinator
from aioktask.engine.api.process import current_pool
from aioktask.engine.loops.loop import running_loop
from aioktask.engine.threads.loop_watch import AGAIN_NS, WORST_OF_NS, LoopWatch, Watched
from tests.conftest import HAS_UVLOOP
from tests.support.gates import PATIENCE, Gate, eventually

MS = 1_000_000


class LoopOfTheTest:
    """A loop that calls what it was given when the test says so."""

    kind = "of the test"
    identity = "the loop"

    def __init__(self) -> None:
        self.given: list[Callable[[], None]] = []
        self.runs, self.closed = True, False

    def without_task(self) -> LoopOfTheTest:
        return self

    def post(self, callback: Callable[[], None], lost: Callable[[], None] | None) -> None:
        self.given.append(callback)

    def is_running(self) -> bool:
        return self.runs

    def is_closed(self) -> bool:
        return self.closed

    def answer(self) -> None:
        while self.given:
            self.given.pop()()


# The rules.


def test_a_loop_is_late_by_what_it_takes_to_come_to_a_callback() -> None:
    loop = LoopOfTheTest()
    watched = Watched(loop)
    sent = perf_counter_ns() - 300 * MS
    assert watched.late(sent) == (0, 0)
    assert watched.look(sent)
    late, worst = watched.late(sent + 100 * MS)  # by now
    assert late == worst == 100 * MS
    loop.answer()
    late, worst = watched.late(perf_counter_ns())
    assert late == worst >= 300 * MS
    watched.look(perf_counter_ns())
    loop.answer()
    late, later_worst = watched.late(perf_counter_ns())
    assert late < 300 * MS
    assert later_worst == worst


def test_the_worst_is_forgotten_after_a_while() -> None:
    loop = LoopOfTheTest()
    watched = Watched(loop)
    now = perf_counter_ns()
    watched.look(now - 300 * MS)
    loop.answer()
    assert watched.late(now)[1] >= 300 * MS
    assert watched.late(now + 2 * WORST_OF_NS) == (watched.late(now)[0], 0)
    for step in range(1, 300):  # nor is all kept that was ever found
        watched.look(now + step * 100 * MS)
        loop.answer()
    assert len(watched._told) <= WORST_OF_NS // (100 * MS) + 1


def test_a_loop_that_does_not_answer_is_asked_again_ever_less_often() -> None:
    loop = LoopOfTheTest()
    watched = Watched(loop)
    for step in range(3600):
        watched.look(step * AGAIN_NS // 10)
    assert 3 < len(loop.given) < 12
    assert watched.late(360 * AGAIN_NS)[0] == 360 * AGAIN_NS
    loop.answer()  # all at once, and one answer counts
    watched.look(perf_counter_ns())
    assert len(loop.given) == 1


def test_a_loop_that_does_not_run_is_not_late_and_given_nothing_more() -> None:
    loop = LoopOfTheTest()
    watched = Watched(loop)
    now = perf_counter_ns() - WORST_OF_NS // 2
    watched.look(now)
    loop.runs = False
    for step in range(1, 50):
        assert watched.look(now + step * 100 * MS)
    assert len(loop.given) == 1
    assert watched.late(now + 5000 * MS) == (0, 0)
    loop.runs = True
    loop.answer()
    watched.look(perf_counter_ns())
    assert watched.late(perf_counter_ns())[1] < 1000 * MS


def test_a_closed_loop_is_forgotten() -> None:
    loop = LoopOfTheTest()
    watch = LoopWatch()
    watch.add(loop)
    watch.look()
    loop.runs, loop.closed = False, True
    watch.look()
    assert not watch.loops()
    watch.add(loop)  # and where the keeper does not look, by the next one that is added
    other = LoopOfTheTest()
    other.identity = "another"
    watch.add(other)
    assert [each.loop for each in watch.loops()] == [other]


def test_a_loop_is_looked_after_while_a_coordinator_is_entered_in_it() -> None:
    loop = LoopOfTheTest()
    watch = LoopWatch()
    watch.look()
    watch.add(loop)
    watch.add(loop)
    watch.remove(loop)
    watch.look()
    assert len(loop.given) == 1
    watch.remove(loop)
    assert not watch.loops()
    watch.remove(loop)
    watch.look()
    assert len(loop.given) == 1


def test_a_loop_that_raises_is_forgotten_and_shown_and_others_are_asked(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Broken(LoopOfTheTest):
        identity = "broken"

        def post(self, callback: Callable[[], None], lost: Callable[[], None] | None) -> None:
            raise NotImplementedError("this loop takes nothing")

    watch = LoopWatch()
    other = LoopOfTheTest()
    watch.add(Broken())
    watch.add(other)
    watch.look()
    assert other.given
    assert [each.loop for each in watch.loops()] == [other]
    assert "this loop takes nothing" in capfd.readouterr().err


def test_an_answer_that_was_lost_is_not_late_for_ever() -> None:
    loop = LoopOfTheTest()
    watched = Watched(loop)
    watched.look(0)
    watched.rest(100 * MS)
    assert watched.late(10**15) == (0, 0)


# Real loops.


def _watched_here() -> Watched:
    loop = running_loop()
    assert loop is not None
    (found,) = (
        each for each in current_pool().loops.loops() if each.loop.identity is loop.identity
    )
    return found


@pytest.mark.anyio
async def test_a_callback_that_blocks_the_loop_is_seen_in_the_snapshot(
    anyio_backend: tuple[str, dict[str, Any]],
) -> None:
    name, options = anyio_backend
    kind = name if name == "trio" else "uvloop" if options["use_uvloop"] else "asyncio"
    gate = Gate()
    async with Coordinator() as coordinator:
        handle = coordinator.submit(aioktask.Job(gate.chunk, 1, chunk=1))
        await gate.entered()
        watched = _watched_here()
        # On the loop's own thread: it is blocked until the keeper found it late by 0.3 s.
        blocked = threading.Event()
        seen = threading.Thread(target=_set_when_late, args=(watched, blocked, 300 * MS))
        seen.start()
        assert blocked.wait(PATIENCE)
        (found,) = (each for each in aioktask.snapshot().loops if each.kind == kind)
        assert found.worst >= 0.3
        await eventually(lambda: aioktask.snapshot().loops[0].late < 0.3)
        assert aioktask.snapshot().loops[0].worst >= 0.3
        gate.open()
        await handle
        seen.join()
    assert not current_pool().loops.loops()


def _set_when_late(watched: Watched, event: threading.Event, late: int) -> None:
    while watched.late(perf_counter_ns())[0] < late:
        threading.Event().wait(0.01)
    event.set()


def test_loops_of_several_threads_are_told_apart() -> None:
    together = threading.Barrier(3)

    async def enter() -> None:
        async with Coordinator():
            await anyio.to_thread.run_sync(together.wait, PATIENCE)
            await anyio.to_thread.run_sync(together.wait, PATIENCE)

    runs = [
        threading.Thread(target=anyio.run, args=(enter,), kwargs={"backend": backend})
        for backend in ("asyncio", "trio")
    ]
    for each in runs:
        each.start()
    together.wait(PATIENCE)
    assert sorted(each.kind for each in aioktask.snapshot().loops) == ["asyncio", "trio"]
    together.wait(PATIENCE)
    for each in runs:
        each.join()
    assert not aioktask.snapshot().loops


@pytest.mark.parametrize(
    "kind",
    [
        "asyncio",
        pytest.param(
            "uvloop", marks=pytest.mark.skipif(not HAS_UVLOOP, reason="uvloop is not installed")
        ),
    ],
)
def test_a_loop_that_was_closed_under_a_coordinator_is_let_go_of(kind: str) -> None:
    if kind == "uvloop":
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    loop.run_until_complete(Coordinator().__aenter__())
    (watched,) = current_pool().loops.loops()
    assert watched.loop.kind == kind
    loop.close()
    gone = weakref.ref(loop)
    del loop, watched
    with Coordinator() as coordinator:  # a helper, so that the keeper looks
        coordinator.submit(aioktask.Job(lambda start, stop: None, 1)).result()
        while current_pool().loops.loops():
            threading.Event().wait(0.01)
    gc.collect()
    assert gone() is None
