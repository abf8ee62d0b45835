# SPDX-License-Identifier: MIT
# On free-threaded CPython, uvloop's call_soon_threadsafe has lost wake-ups (uvloop issue 720).
# There a waiter also looks for itself. The loss is played here, since it takes such a build and
# luck to see one.

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from aioktask import Job, run_multithreaded
from aioktask.engine.loops import asyncio_loop


@pytest.mark.asyncio
async def test_a_waiter_looks_for_itself_where_wakeups_can_be_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    lost: list[Callable[..., object]] = []

    def lose(callback: Callable[..., object], *args: Any, context: Any = None) -> None:
        lost.append(callback)

    monkeypatch.setattr(asyncio_loop, "wakeups_can_be_lost", lambda loop: True)
    monkeypatch.setattr(asyncio_loop, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(loop, "call_soon_threadsafe", lose)
    async with asyncio.timeout(60):
        report = await run_multithreaded(Job(lambda a, b: None, 100, chunk=10))
    assert report.chunks == 10
    assert len(lost) == 1  # one wake-up a job


@pytest.mark.asyncio
async def test_a_job_wakes_its_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    calls: list[object] = []
    post = loop.call_soon_threadsafe

    def count(callback: Callable[..., object], *args: Any, context: Any = None) -> object:
        calls.append(callback)
        return post(callback, *args, context=context)

    monkeypatch.setattr(loop, "call_soon_threadsafe", count)
    for jobs in (1, 2, 3):  # in the turns of the later ones those before are over
        await run_multithreaded(Job(lambda a, b: None, 10_000, chunk=1, undo=lambda a, b: None))
        assert len(calls) == jobs


@pytest.mark.asyncio
async def test_a_wakeup_that_memory_was_too_short_for_is_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop never had it, so it dropped nothing, after which a job would be undone."""
    loop = asyncio.get_running_loop()
    post = loop.call_soon_threadsafe
    refused: list[object] = []

    def refuse_once(callback: Callable[..., object], *args: Any, context: Any = None) -> object:
        if not refused:
            refused.append(None)
            raise MemoryError("planted")
        return post(callback, *args, context=context)

    monkeypatch.setattr(loop, "call_soon_threadsafe", refuse_once)
    report = await run_multithreaded(Job(lambda a, b: None, 8, chunk=1, undo=lambda a, b: None))
    assert report.chunks == 8
    assert refused


def test_wakeups_are_trusted_with_a_gil_and_on_other_loops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uvloop = pytest.importorskip("uvloop")
    for gil, kind, can_be_lost in (
        (True, uvloop, False),
        (False, uvloop, True),
        (False, asyncio, False),
    ):
        monkeypatch.setattr(asyncio_loop, "gil_is_on", lambda gil=gil: gil)
        loop = kind.new_event_loop()
        try:
            assert asyncio_loop.wakeups_can_be_lost(loop) is can_be_lost
        finally:
            loop.close()
