# SPDX-License-Identifier: MIT
# Coroutine undo: on a real loop, its task struck where no undo of the user's runs; and beside the
# keeper, which looks whether it is still on its way, and goes on elsewhere where it is not.

from __future__ import annotations

import asyncio
import gc
import types
from collections import deque
from collections.abc import Generator
from contextvars import copy_context
from typing import Any

import pytest

from aioktask import Job, run_multithreaded
from aioktask.engine.loops import coroutine_undo
from aioktask.engine.loops.asyncio_loop import AsyncioLoop
from aioktask.engine.loops.coroutine_undo import CoroutineUndo
from aioktask.engine.machine.topology import read_topology
from aioktask.engine.state.run import Run
from aioktask.engine.threads.keeper import Keeper
from aioktask.engine.threads.pool import Pool
from aioktask.engine.tunables import Tunables
from tests.support.meanwhile import Scene, play_at_each_bytecode


class Struck(Exception):  # noqa: N818 - it says what it is
    """What a signal handler raises."""


def test_the_loop_tells_at_once_of_what_struck_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the keeper's next look, and without a collection."""
    end = CoroutineUndo._end

    def struck(self: CoroutineUndo) -> None:
        end(self)
        raise Struck

    def fails(start: int, stop: int) -> None:
        if start == 3:
            raise ValueError(start)

    undone: list[int] = []

    async def undo(start: int, stop: int) -> None:
        undone.extend(range(start, stop))

    heard: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: heard.append(context.get("exception")))
        with pytest.raises(ValueError, match="3"):
            await run_multithreaded(Job(fails, 4, chunk=1, max_threads=1, undo=undo))
        for _ in range(5):
            await asyncio.sleep(0)
        assert [type(each) for each in heard] == [Struck]

    monkeypatch.setattr(CoroutineUndo, "_end", struck)
    monkeypatch.setattr(Keeper, "watch", lambda self, look: None)
    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()
    assert sorted(undone) == [0, 1, 2]


# Beside the keeper.


@types.coroutine
def once() -> Generator[None]:
    """Give the loop one turn."""
    yield


class Beside:
    """A coroutine undo of two pieces, whose task the test runs as a loop would.

    Attributes:
        undo: The undo.
        task: What its task does; whoever sends into it is the loop.
        begun: The pieces whose undo began, wherever.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(coroutine_undo, "start_thread", lambda target, name: None)
        self._pool = Pool(read_topology(), Tunables())
        monkeypatch.setattr(self._pool, "wake", lambda: None)
        self.begun: list[int] = []
        job = Job(lambda start, stop: None, 2, chunk=1, undo=self._undo)
        self._run = Run(job, self._pool.state.root, nice=0, context=copy_context())
        loop = asyncio.new_event_loop()
        loop.close()
        pieces = deque([range(0, 1), range(1, 2)])
        self.undo = CoroutineUndo(self._pool, self._run, AsyncioLoop(loop), pieces, ())
        self.task = self.undo.work()

    async def _undo(self, start: int, stop: int) -> None:
        self.begun.append(start)
        await once()

    def go_on(self) -> None:
        """Run the task until it suspends."""
        try:
            self.task.send(None)
        except StopIteration:
            return

    def end(self) -> list[int]:
        """Have the loop's task end, and what goes on elsewhere, if anything does.

        Returns:
            The pieces that are told not to be undone.
        """
        following = self._run.undo_task
        if following is not None:
            assert isinstance(following, CoroutineUndo)
            following._loop.run_fresh(following)
        self.task.close()
        (command,) = self._pool.inbox
        return [piece.start for piece, _ in command[2]]


def test_a_task_that_begins_while_the_keeper_looks_is_not_taken_for_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def begin() -> Scene:
        beside = Beside(monkeypatch)
        found: list[bool] = []

        def check() -> None:
            assert found == [False]
            beside.task.close()

        return Scene(lambda: found.append(beside.undo._has_died()), beside.go_on, check)

    play_at_each_bytecode(begin, coroutine_undo)


@pytest.mark.parametrize("done", [0, 1])
def test_no_piece_is_undone_twice_where_the_task_goes_on_after_all(
    done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each that was begun and not ended is told to be not undone."""

    def begin() -> Scene:
        beside = Beside(monkeypatch)
        for _ in range(done):
            beside.go_on()

        def check() -> None:
            failed = beside.end()
            assert len(set(beside.begun)) == len(beside.begun)
            assert {*beside.begun, *failed} == {0, 1}
            assert failed in ([], [0], [1])

        return Scene(beside.go_on, beside.undo._go_on_elsewhere, check)

    play_at_each_bytecode(begin, coroutine_undo)
