# SPDX-License-Identifier: MIT
# The full screen, driven by keys, over real processes. What a screen shows is read off its strips.

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("textual", reason="textual is not installed")

from textual.screen import Screen

from aioktask.observe.processes import Told
from aioktask.top._app import JobTable, TopApp
from aioktask.top._source import Processes, Reading, SourceError
from aioktask.top._view import view_of
from tests.support.gates import LOOK_SECONDS, PATIENCE
from tests.top.told import HOSTILE, Child, answer, job

pytestmark = pytest.mark.asyncio

SIZES = [(80, 24), (140, 40), (40, 10)]


class Scripted:
    """A source that tells what a test sets, and notes what is asked of it."""

    name = "what a test says"

    def __init__(self, *answers: Told) -> None:
        self.answers = answers
        self.problem = ""
        self.asked: list[tuple[Any, ...]] = []
        self.reads = 0
        self.gate = threading.Event()
        self.gate.set()

    def read(self) -> Reading:
        assert self.gate.wait(PATIENCE)
        self.reads += 1
        if self.problem:
            raise SourceError(self.problem)
        return Reading(view_of(self.answers), {})

    def cancel(self, pid: int, number: int) -> Told:
        self.asked.append(("cancel", pid, number))
        return Told(pid, True)

    def renice(self, pid: int, number: int, nice: int) -> Told:
        self.asked.append(("renice", pid, number, nice))
        return Told(pid, False)


def lines(app: TopApp) -> list[str]:
    """What stands on the screen."""
    return [
        "".join(segment.text for segment in strip).rstrip()
        for strip in app.screen._compositor.render_strips()
    ]


def text(app: TopApp) -> str:
    return "\n".join(lines(app))


class Driven:
    """An application and the keys that are pressed."""

    def __init__(self, app: TopApp, pilot: Any) -> None:
        self.app = app
        self._pilot = pilot

    async def press(self, *keys: str) -> None:
        await self._pilot.press(*keys)

    async def until(self, seen: Callable[[str], object]) -> str:
        """Until the screen is like that; what stands there."""
        async with asyncio.timeout(PATIENCE):
            while not seen(text(self.app)):
                await self._pilot.pause(LOOK_SECONDS)
        return text(self.app)

    async def sees(self, part: str) -> str:
        return await self.until(lambda shown: part in shown)

    async def resize(self, width: int, height: int) -> None:
        await self._pilot.resize_terminal(width, height)

    def chosen(self) -> str:
        """The line of the table that has the mark."""
        (found,) = (each for each in lines(self.app) if each.startswith(">"))
        return found


@asynccontextmanager
async def driven(source: Any, size: tuple[int, int] = (80, 24)) -> AsyncIterator[Driven]:
    app = TopApp(source, interval=0.02)
    async with app.run_test(size=size) as pilot:
        yield Driven(app, pilot)


@pytest.mark.parametrize("size", SIZES)
async def test_a_job_of_another_process_is_cancelled_by_a_key_and_a_yes(
    child: Callable[[str], Child], size: tuple[int, int]
) -> None:
    one = child("one")
    async with driven(Processes(), size) as screen:
        await screen.sees("one")
        await screen.press("c")
        await screen.sees("cancel this job?")
        await screen.press("n")
        await screen.until(lambda shown: "cancel this job?" not in shown)
        await screen.sees("one")
        await screen.press("c")
        await screen.sees("cancel this job?")
        await screen.press("y")
        assert await asyncio.to_thread(one.hear) == "cancelled 0"
        await screen.sees("is cancelled")


@pytest.mark.parametrize("size", SIZES)
async def test_a_job_of_another_process_is_reniced_by_a_key_and_a_number(
    child: Callable[[str], Child], size: tuple[int, int]
) -> None:
    one = child("one")
    async with driven(Processes(), size) as screen:
        await screen.sees("one")
        await screen.press("n")
        await screen.sees("its nice")
        await screen.press("4", "2", "enter")
        await screen.sees("must be from -20 to 19, got 42")
        await screen.press("backspace", "backspace", "7", "enter")
        await screen.sees("has nice 7")
        (found,) = (each for each in Processes().read().view.jobs if each.name == "one")
        assert found.nice == 7
        Processes().cancel(*found.key)
        assert await asyncio.to_thread(one.hear) == "cancelled 7"


async def test_a_stopped_process_is_shown_as_not_answering_and_others_go_on(
    child: Callable[[str], Child],
) -> None:
    one, two = child("one"), child("two")
    async with driven(Processes(), (140, 40)) as screen:
        await screen.until(lambda shown: "after one" in shown and "after two" in shown)
        os.kill(one.pid, signal.SIGSTOP)
        try:
            shown = await screen.sees("! no answer: did not answer in 1 s: it hangs, or is stopped")
            (line,) = (each for each in shown.splitlines() if "no answer" in each)
            assert line.startswith(f"{one.pid}  python")
            assert "after two" in shown
            assert "(1 silent)" in shown
        finally:
            os.kill(one.pid, signal.SIGCONT)
        await screen.sees("after one")
        two.process.kill()
        two.process.wait()
        await screen.until(lambda shown: "after two" not in shown)


async def test_keys_are_answered_while_a_process_hangs() -> None:
    source = Scripted(answer(7, job(1, "first"), job(2, "second")))
    async with driven(source) as screen:
        await screen.sees("second")
        source.gate.clear()
        try:
            await screen.press("down")
            await screen.until(lambda _: "second" in screen.chosen())
            await screen.press("question_mark")
            await screen.sees("cancel the job; it asks before")
        finally:
            source.gate.set()


async def test_the_chosen_job_stays_chosen_wherever_it_goes() -> None:
    many = [job(n, f"job-{n}", done=n) for n in range(1, 6)]
    source = Scripted(answer(7, *many))
    async with driven(source) as screen:
        await screen.sees("job-5")
        await screen.press("down", "down")
        assert "job-3" in screen.chosen()
        source.answers = (answer(7, job(9, "job-9"), *reversed(many[2:])),)
        await screen.sees("job-9")
        assert "job-3" in screen.chosen()
        over = job(3, "job-3", phase="failed", ended=1.0)
        source.answers = (answer(7, job(9, "job-9"), ended=(over,)),)
        await screen.sees("failed at 40%")
        assert "job-3" in screen.chosen()
        await screen.press("c")
        await screen.sees("job 3 of process 7 is over")
        source.answers = (answer(7),)
        await screen.sees("No job is under way.")
        await screen.press("c", "n", "up", "pagedown", "end")
        await screen.sees("no job is chosen")
        assert source.asked == []


async def test_a_question_is_about_the_job_for_which_it_was_asked() -> None:
    source = Scripted(answer(7, job(1, "first"), job(2, "second")))
    async with driven(source) as screen:
        await screen.sees("second")
        await screen.press("c")
        await screen.sees("cancel this job?")
        source.answers = (answer(7, job(2, "second")),)
        reads = source.reads
        await screen.until(lambda _: source.reads > reads + 2)
        await screen.press("y")
        await screen.sees("is cancelled")
        assert source.asked == [("cancel", 7, 1)]


async def test_pause_stops_the_reading_and_the_same_key_goes_on() -> None:
    source = Scripted(answer(7, job(1, "first")))
    async with driven(source) as screen:
        await screen.sees("first")
        await screen.press("p")
        await screen.sees("PAUSED at ")
        source.answers = (answer(7, job(2, "second")),)
        reads = source.reads
        for nice in "345":  # after each change it would be read at once
            await screen.press("n")
            await screen.sees("its nice")
            await screen.press(nice, "enter")
            await screen.until(lambda _, nice=int(nice): ("renice", 7, 1, nice) in source.asked)
            await screen.sees("was over already")
        assert source.reads <= reads + 1  # one may have been under way
        assert "second" not in text(screen.app)
        await screen.press("p")
        await screen.sees("second")
        assert "PAUSED" not in text(screen.app)


async def test_the_order_is_changed_and_shown_by_a_mark() -> None:
    source = Scripted(answer(7, job(1, "b-job"), job(2, "a-job")))
    async with driven(source) as screen:
        shown = await screen.sees("pid▾")
        assert shown.splitlines()[1].startswith("7 ")
        assert "pid▾" in shown.splitlines()[2]  # nothing between a process and the table
        assert shown.index("b-job") < shown.index("a-job")
        await screen.press("s")
        shown = await screen.sees("name▾")
        table = [each for each in shown.splitlines() if "-job" in each]
        assert "a-job" in table[0]
        for mark in ("progress▾", "rate▾", "thr▾", "nice▾", "time▾", "pid▾"):
            await screen.press("s")
            await screen.sees(mark)


async def test_a_filter_shows_some_and_escape_all() -> None:
    over = job(3, "over-job", phase="failed", ended=1.0)
    source = Scripted(answer(7, job(1, "b-job"), job(2, "a-job"), ended=(over,)))
    async with driven(source) as screen:
        await screen.sees("over-job")
        await screen.press("slash", *"a-j")
        await screen.until(lambda shown: "b-job" not in shown)
        await screen.press("enter", "s")  # a key is a key again
        await screen.sees("name▾")
        assert "b-job" not in text(screen.app)
        await screen.press("slash", *"[/red]", "enter")
        await screen.sees("No job has '[/red]' in it")
        await screen.press("escape")
        await screen.sees("b-job")
        await screen.press("e")
        await screen.until(lambda shown: "over-job" not in shown)
        await screen.press("e")
        await screen.sees("over-job")


@pytest.mark.parametrize("size", [*SIZES, (20, 5), (3, 3), (1, 1)])
async def test_names_are_text_and_break_no_line_whatever_the_size(size: tuple[int, int]) -> None:
    hostile = job(1, HOSTILE * 5, labels={HOSTILE: HOSTILE}, waits_for=HOSTILE)
    source = Scripted(
        answer(7, hostile, command=HOSTILE, advice=((HOSTILE * 5, HOSTILE),)),
        Told(8, None, HOSTILE),
    )
    async with driven(source, size) as screen:
        await screen.until(lambda _: source.reads > 2)
        for keys in (["c"], ["n"], ["question_mark"]):
            await screen.press(*keys)
            for each in lines(screen.app):
                assert each.isprintable()
            await screen.press("escape")
        if size[0] >= 80:
            shown = await screen.sees("[red]a[/red]�[2J")
            table = [each for each in shown.splitlines() if each.startswith(">")]
            assert len(table) == 1


@pytest.mark.parametrize("size", [(80, 24), (20, 5), (3, 3), (1, 1)])
async def test_a_screen_on_which_nothing_changes_comes_to_rest_whatever_its_size(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    laid_out = 0
    once = Screen._refresh_layout

    def counting(screen: Any, *arguments: Any, **options: Any) -> None:
        nonlocal laid_out
        laid_out += 1
        once(screen, *arguments, **options)

    monkeypatch.setattr(Screen, "_refresh_layout", counting)
    source = Scripted(answer(7, job(1, HOSTILE * 5, waits_for=HOSTILE)))
    app = TopApp(source, interval=PATIENCE * 2)
    async with app.run_test(size=size), asyncio.timeout(PATIENCE):
        while True:
            before = laid_out
            await asyncio.sleep(0.2)  # one that goes round lays it out 30 times a second
            if laid_out == before and source.reads:
                break


async def test_resizing_lays_the_table_out_anew() -> None:
    source = Scripted(answer(7, job(1, "first", waits_for="a thread"), job(2, "second")))
    async with driven(source) as screen:
        await screen.sees("second")
        assert "why" not in text(screen.app).splitlines()[2]
        await screen.resize(140, 40)
        shown = await screen.sees(" why")
        assert any(each.endswith(" a thread") for each in shown.splitlines())
        await screen.resize(50, 12)
        await screen.until(lambda shown: " why" not in shown and " time " not in shown)
        assert ">" in screen.chosen()


async def test_of_many_jobs_only_lines_that_are_seen_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: set[int] = set()
    render = JobTable.render_line

    def noted(table: JobTable, y: int) -> Any:
        drawn.add(y + round(table.scroll_offset.y))
        return render(table, y)

    monkeypatch.setattr(JobTable, "render_line", noted)
    source = Scripted(answer(7, *(job(n, f"job-{n}") for n in range(1, 1001))))
    async with driven(source) as screen:
        await screen.sees("job-5 ")
        assert len(drawn) < 30
        await screen.press("end")
        await screen.until(lambda _: "job-1000" in screen.chosen())
        assert len(drawn) < 60
        await screen.press("pageup", "home")
        await screen.until(lambda _: "job-1 " in screen.chosen())


async def test_a_source_that_cannot_be_read_is_told_and_read_again() -> None:
    source = Scripted(answer(7, job(1, "first")))
    async with driven(source) as screen:
        await screen.sees("first")
        source.problem = "the page [red] is not there"
        shown = await screen.sees("! the page [red] is not there")
        assert "first" in shown  # as it was seen last
        source.problem = ""
        await screen.until(lambda shown: "is not there" not in shown)


async def test_without_any_process_it_says_what_to_do() -> None:
    async with driven(Processes()) as screen:
        await screen.sees("AIOKTASK_PUBLISH=1")


async def test_no_colour_is_used_where_the_user_wants_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over = job(3, "over-job", phase="failed", ended=1.0)
    source = Scripted(answer(7, job(1, "first", stuck=40.0), ended=(over,)))

    def colours(app: TopApp) -> set[str]:
        return {
            segment.style.color.name
            for strip in app.screen._compositor.render_strips()
            for segment in strip
            if segment.style is not None
            and segment.style.color is not None
            and not segment.style.color.is_default
        }

    async with driven(source) as screen:
        await screen.sees("stuck")
        assert {"red", "blue"} & colours(screen.app)
    monkeypatch.setenv("NO_COLOR", "1")
    async with driven(source) as screen:
        await screen.sees("stuck")
        assert not colours(screen.app)


async def test_how_many_jobs_are_out_of_view_is_told() -> None:
    source = Scripted(answer(7, *(job(number, f"job {number}") for number in range(1, 41))))
    async with driven(source, (80, 24)) as screen:
        await screen.sees("job 1 ")
        table = screen.app.query_one(JobTable)
        await screen.until(lambda shown: f"; {40 - table.size.height} more below" in shown)
        await screen.press("end")
        await screen.until(lambda shown: f"; {40 - table.size.height} more above" in shown)
        assert " below" not in text(screen.app)
        await screen.press("up", *["up"] * table.size.height)
        await screen.until(
            lambda shown: f"; {38 - table.size.height} more above, 2 more below" in shown
        )
        await screen.resize(80, 200)
        await screen.until(lambda shown: "more" not in shown)
