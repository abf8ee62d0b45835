# SPDX-License-Identifier: MIT
# Bars as waits: what they return and raise, what they refuse, and that no display can harm a job.

from __future__ import annotations

import contextlib
import io
import re
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

import anyio
import pytest

from aioktask import Coordinator, Job, JobCancelled, map_ordered, map_ordered_sync, priority
from aioktask.engine.events import Event, EventKind
from tests.support.gates import PATIENCE, Gate, eventually

pytest.importorskip("rich", reason="rich is not installed")
pytest.importorskip("tqdm", reason="tqdm is not installed")

from aioktask.progress import Bar, rich_bar, tqdm_bar

pytestmark = pytest.mark.max_threads(2)

everywhere = pytest.mark.anyio
BARS: list[Callable[..., Bar[Any]]] = [rich_bar, tqdm_bar]
both = pytest.mark.parametrize("bar", BARS, ids=["rich", "tqdm"])


def nothing(start: int, stop: int) -> None:
    """A chunk."""


def fails(start: int, stop: int) -> None:
    raise OSError(f"planted at {start}")


def count(start: int, stop: int) -> int:
    return stop - start


@everywhere
@both
async def test_a_bar_gives_what_the_handle_gives(bar: Callable[..., Bar[Any]]) -> None:
    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(count, 100, reduce=lambda a, b: a + b))
        report = await bar(handle)
        assert report is await handle
        assert report.value == 100
        reports = await bar(handle, handle)
        assert reports == (report, report)


@everywhere
@both
async def test_a_bar_raises_what_the_handle_raises(bar: Callable[..., Bar[Any]]) -> None:
    async with Coordinator() as coordinator:
        good = coordinator.submit(Job(nothing, 1))
        bad = coordinator.submit(Job(fails, 1, start=7))
        worse = coordinator.submit(Job(fails, 1, start=8))
        with pytest.raises(OSError, match="planted at 7") as caught:
            await bar(good, bad, worse)
        with pytest.raises(OSError, match="planted at 7") as again:
            await bad
        assert caught.value is again.value
        with pytest.raises(OSError, match="planted at 8"):
            await worse


@everywhere
@both
async def test_several_jobs_are_waited_for_whatever_becomes_of_one(
    bar: Callable[..., Bar[Any]],
) -> None:
    gate = Gate()
    async with Coordinator() as coordinator:
        bad = coordinator.submit(Job(fails, 1))
        slow = coordinator.submit(Job(gate.chunk, 1))
        await gate.entered()
        raised: list[BaseException] = []

        async def wait() -> None:
            try:
                await bar(bad, slow, interval=0.001)
            except OSError as error:
                raised.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await eventually(bad.done)
            await eventually(lambda: bool(slow._run.waiters))
            assert not raised
            gate.open()
        assert slow.done()
        assert len(raised) == 1


@everywhere
@both
async def test_who_waits_by_a_bar_counts_as_waiting(
    bar: Callable[..., Bar[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure is theirs to hear, and the nice of their block is lent."""
    from aioktask.engine import events

    told: list[Event] = []
    monkeypatch.setattr(events, "_listeners", [told.append])
    gate = Gate()

    def chunk(start: int, stop: int) -> None:
        gate.chunk(start, stop)
        raise OSError("planted")

    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(chunk, 1, nice=10))
        await gate.entered()

        async def wait() -> None:
            with priority(3), pytest.raises(OSError, match="planted"):
                await bar(handle, interval=1000.0)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await eventually(lambda: bool(handle._run.waiters))
            assert handle._run.entry.loan == 3
            gate.open()
    assert [each.awaited for each in told if each.kind is EventKind.FAILED] == [True]


@everywhere
async def test_a_stream_is_waited_for_by_another_task() -> None:
    ended: list[Any] = []
    async with map_ordered(abs, range(-3, 0)) as results, anyio.create_task_group() as tasks:

        async def wait() -> None:
            ended.append(await tqdm_bar(results.handle, file=io.StringIO()))

        tasks.start_soon(wait)
        assert [value async for value in results] == [3, 2, 1]
    assert [(each.phase, each.done) for each in ended] == [("finished", 3)]


def bad(item: int) -> int:
    if item == 5:
        raise OSError("planted")
    return item


def logged(fn: Callable[[int], int], consume: Callable[[Any], object]) -> list[str]:
    """What a bar writes into a file while a stream's values are asked for, line by line."""
    file = io.StringIO()
    with contextlib.suppress(OSError, KeyError):
        with map_ordered_sync(fn, range(10), name="items", window=1) as results:
            with tqdm_bar(results.handle, file=file, interval=0.001):
                consume(results)
    return file.getvalue().splitlines()


def raise_at_2(values: Iterable[int]) -> None:
    for value in values:
        if value == 2:
            raise KeyError(value)


def test_in_a_file_the_bar_of_a_stream_says_how_it_ended() -> None:
    (line,) = logged(abs, list)
    assert re.fullmatch(r"items: 10 done in \d+\.\d s", line)
    (line,) = logged(bad, list)
    assert re.fullmatch(r"items: (ended by OSError|failed) after [56]", line)


def test_in_a_file_the_bar_of_a_stream_that_is_left_says_where() -> None:
    (line,) = logged(abs, next)
    assert re.fullmatch(r"items: left after 1", line)
    (line,) = logged(abs, raise_at_2)
    assert re.fullmatch(r"items: ended by KeyError after [23]", line)


@everywhere
async def test_in_a_file_the_bar_of_a_stream_on_a_loop_says_how_it_ended() -> None:
    file = io.StringIO()
    async with map_ordered(abs, range(10), name="items") as results:
        with rich_bar(results.handle), tqdm_bar(results.handle, file=file):
            assert [value async for value in results] == list(range(10))
    assert re.fullmatch(r"items: 10 done in \d+\.\d s\n", file.getvalue())


def test_in_a_file_the_bar_of_a_job_that_goes_on_says_where_it_was_left() -> None:
    gate, file = Gate(), io.StringIO()
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 2, name="held"))
        with contextlib.suppress(KeyError), tqdm_bar(handle, file=file):
            gate.wait_entered()
            raise KeyError
        gate.open()
    assert file.getvalue() == "held: left by KeyError at 0%\n"


@everywhere
@both
async def test_result_is_refused_on_a_loop(bar: Callable[..., Bar[Any]]) -> None:
    async with Coordinator() as coordinator:
        handle = coordinator.submit(Job(nothing, 1))
        with pytest.raises(RuntimeError, match="await the bar instead"):
            bar(handle).result()


class Broken(io.StringIO):
    """A terminal that is gone after some writes."""

    def __init__(self, after: int, *, terminal: bool) -> None:
        super().__init__()
        self.left = after
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise BrokenPipeError(32, "gone")
        return super().write(text)


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_a_display_that_fails_costs_the_job_nothing(after: int, terminal: bool) -> None:
    gate = Gate()
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 4, chunk=1))
        gate.wait_entered()
        file = Broken(after, terminal=terminal)
        with tqdm_bar(handle, file=file, interval=0.001):
            gate.open()
            handle.result()
        assert tqdm_bar(handle, file=Broken(after, terminal=terminal)).result().chunks == 4
        handle = coordinator.submit(Job(fails, 1))
        with pytest.raises(OSError, match="planted"):
            tqdm_bar(handle, file=Broken(after, terminal=terminal)).result()


def test_bars_of_tqdm_that_fail_leave_it_to_other_threads() -> None:
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(nothing, 1))
        handle.result()
        for after in range(6):
            tqdm_bar(handle, file=Broken(after, terminal=True)).result()
        lock = pytest.importorskip("tqdm").tqdm.get_lock()
        free: list[bool] = []

        def take() -> None:
            free.append(all(each.acquire(timeout=5) for each in lock.locks))
            for each in lock.locks:
                each.release()

        other = threading.Thread(target=take, daemon=True)
        other.start()
        other.join(PATIENCE)
        assert free == [True]


def test_a_program_without_standard_error_waits_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(nothing, 10))
        monkeypatch.setattr(sys, "stderr", None)
        assert tqdm_bar(handle).result() is rich_bar(handle).result()


@both
def test_a_bar_is_shown_once_at_a_time(bar: Callable[..., Bar[Any]]) -> None:
    with Coordinator() as coordinator:
        shown = bar(coordinator.submit(Job(nothing, 1)))
        with shown:
            with pytest.raises(RuntimeError, match="make another one"):
                with shown:
                    pass
        with shown:  # again, later
            pass


@both
def test_what_is_no_handle_is_refused(bar: Callable[..., Bar[Any]]) -> None:
    name = bar.__name__
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(nothing, 1))
        with pytest.raises(TypeError, match=rf"{name}\(\) needs a handle"):
            bar()
        with pytest.raises(TypeError, match=rf"{name}\(\) takes handles of jobs and streams, got"):
            bar(handle, Job(nothing, 1))
        with pytest.raises(ValueError, match="interval must be above 0 seconds and finite, got 0"):
            bar(handle, interval=0)
        with pytest.raises(TypeError, match="interval must be a number of seconds, got None"):
            bar(handle, interval=None)
        with pytest.raises(TypeError, match=r"progress must be a rich\.progress\.Progress or None"):
            rich_bar(handle, progress=3)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="file must be a text file or None, got 3"):
            tqdm_bar(handle, file=3)  # type: ignore[call-overload]


@both
def test_a_cancelled_job_raises_in_its_bar(bar: Callable[..., Bar[Any]]) -> None:
    gate = Gate()
    with Coordinator() as coordinator:
        handle = coordinator.submit(Job(gate.chunk, 4, chunk=1, undo=gate.undo))
        gate.wait_entered()
        handle.cancel()
        gate.open()
        with pytest.raises(JobCancelled):
            bar(handle).result()


@both
def test_a_shown_bar_refuses_both_of_its_ways(bar: Callable[..., Bar[Any]]) -> None:
    with Coordinator() as coordinator:
        shown = bar(coordinator.submit(Job(nothing, 1)))
        with shown:
            with pytest.raises(RuntimeError, match="this bar is shown already: make another one"):
                shown.result()
            with pytest.raises(RuntimeError, match="this bar is shown already: make another one"):
                shown.__enter__()
        shown.result()
