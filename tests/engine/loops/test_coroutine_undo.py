# SPDX-License-Identifier: MIT
# Coroutine undo on a real loop, its task struck where no undo of the user's runs.

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from aioktask import Job, run_multithreaded
from aioktask.engine.loops.coroutine_undo import CoroutineUndo
from aioktask.engine.threads.keeper import Keeper


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
