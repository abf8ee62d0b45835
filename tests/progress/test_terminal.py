# SPDX-License-Identifier: MIT
# Bars as they are seen: in a real pseudo-terminal, in a pipe, beside other output.

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.terminal import Terminal

pytest.importorskip("pyte", reason="the tests of bars read a terminal's screen with pyte")
pytest.importorskip("rich", reason="rich is not installed")
pytest.importorskip("tqdm", reason="tqdm is not installed")

# A job of 100 units whose function waits at the gate before the units in `at`, and one whose undo
# waits before it begins its second piece.
BEFORE = """
import asyncio, logging, sys, threading
from aioktask import Coordinator, Job, JobCancelled, map_ordered, map_ordered_sync
from aioktask.progress import rich_bar, tqdm_bar

# A job may fail before its bar waits for it, and then that is told in an event.
logging.getLogger("aioktask").addHandler(logging.NullHandler())

def stops(*at, fails_at=None):
    def chunk(start, stop):
        if start in at:
            wait_at_gate()
        if start == fails_at:
            raise OSError("planted")
    return chunk

undone = []

def undo(start, stop):
    if undone:
        wait_at_gate()
    undone.append(start)

def job(fn, name="resize", **options):
    return Job(fn, 100, chunk=1, max_threads=1, name=name, **options)
"""

BARS = ["rich_bar", "tqdm_bar"]
both = pytest.mark.parametrize("bar", BARS)


def row(lines: list[str], name: str = "resize") -> str:
    """The last line that begins with this name."""
    return next((each for each in reversed(lines) if each.startswith(name)), "")


def shows(*parts: str, name: str = "resize"):  # type: ignore[no-untyped-def]
    return lambda lines: all(part in row(lines, name) for part in parts)


@both
@pytest.mark.parametrize("form", ["await", "result"])
def test_a_job_that_succeeds_fills_its_bar(bar: str, form: str) -> None:
    awaited = f"""
async def main():
    async with Coordinator() as coordinator:
        report = await {bar}(coordinator.submit(job(stops(25))))
        print("chunks:", report.chunks)
asyncio.run(main())
"""
    called = f"""
with Coordinator() as coordinator:
    report = {bar}(coordinator.submit(job(stops(25)))).result()
    print("chunks:", report.chunks)
"""
    with Terminal(BEFORE + (awaited if form == "await" else called)) as terminal:
        terminal.until(shows(" 25%", "s left"))
        terminal.open_gate()
        lines = terminal.end()
        assert terminal.cursor_is_shown
    assert re.search(r"100%\W+100 done in \d+\.\d s$", row(lines))
    assert lines[-1] == "chunks: 100"
    assert len(lines) == 2  # one row, drawn over and over


@both
def test_a_long_name_leaves_room_for_where_the_job_stands(bar: str) -> None:
    name = "resize of 日本語 " + "x" * 300
    program = f"""
with Coordinator() as coordinator:
    {bar}(coordinator.submit(job(stops(25), {name!r}))).result()
"""
    with Terminal(BEFORE + program) as terminal:
        terminal.until(shows(" 25%", "s left", "…"))
        terminal.open_gate()
        assert re.search(r"100%\W+100 done in", row(terminal.end()))


@both
def test_the_bar_of_a_job_that_is_undone_runs_back(bar: str) -> None:
    program = f"""
with Coordinator() as coordinator:
    try:
        {bar}(coordinator.submit(job(stops(69, fails_at=70), undo=undo))).result()
    except OSError as error:
        print("raised:", error)
"""
    with Terminal(BEFORE + program) as terminal:
        terminal.until(shows(" 69%"))
        terminal.open_gate()
        lines = terminal.until(shows("undoing"))
        percent = int(re.findall(r"(\d+)%", row(lines))[0])
        assert 0 < percent < 69
        terminal.open_gate(200)
        lines = terminal.end()
    assert row(lines).endswith("  0% failed at 70%, undone")
    assert lines[-1] == "raised: planted"
    assert len(lines) == 2


@both
def test_a_bar_says_where_a_job_failed(bar: str) -> None:
    program = f"""
with Coordinator() as coordinator:
    try:
        {bar}(coordinator.submit(job(stops(fails_at=70)))).result()
    except OSError as error:
        print("raised:", error)
"""
    with Terminal(BEFORE + program) as terminal:
        lines = terminal.end()
    assert row(lines).endswith(" 70% failed at 70%")
    assert lines[-1] == "raised: planted"


@both
def test_a_bar_says_that_a_job_was_cancelled(bar: str) -> None:
    program = f"""
with Coordinator() as coordinator:
    handle = coordinator.submit(job(stops(40), undo=undo))
    shown = {bar}(handle)
    def cancel():
        wait_at_gate(1)
        handle.cancel()
        wait_at_gate(1)
    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        shown.result()
    except JobCancelled as error:
        print("raised:", error)
    thread.join()
"""
    with Terminal(BEFORE + program) as terminal:
        terminal.until(shows(" 40%"))
        terminal.open_gate(2, number=1)
        terminal.until(shows("stopping"))
        terminal.open_gate(200)
        lines = terminal.end()
    assert re.search(r"0% cancelled at \d+%, undone$", row(lines))
    assert lines[-1] == "raised: the job 'resize' was cancelled"


@both
def test_a_bar_that_is_cancelled_leaves_the_job_alone(bar: str) -> None:
    program = f"""
async def main():
    async with Coordinator() as coordinator:
        handle = coordinator.submit(job(stops(40)))
        task = asyncio.ensure_future(wait(handle))
        await asyncio.to_thread(wait_at_gate, 1)
        task.cancel()
        await asyncio.wait([task])
        print("cancelled:", task.cancelled(), handle.done())
        print((await handle).chunks)

async def wait(handle):
    await {bar}(handle)

asyncio.run(main())
"""
    with Terminal(BEFORE + program) as terminal:
        terminal.until(shows(" 40%"))
        terminal.open_gate(number=1)
        terminal.until(lambda lines: any(each.startswith("cancelled") for each in lines))
        assert terminal.cursor_is_shown
        terminal.open_gate()
        lines = terminal.end()
    assert "cancelled: True False" in lines
    assert lines[-1] == "100"


@both
def test_several_jobs_have_a_row_each(bar: str) -> None:
    program = f"""
with Coordinator(max_threads=2) as coordinator:
    first = coordinator.submit(job(stops(20), "first"))
    second = coordinator.submit(job(stops(fails_at=50), "second"))
    third = coordinator.submit(job(stops(), "third"))
    try:
        {bar}(first, second, third).result()
    except OSError as error:
        print("raised:", error)
    print([each.chunks for each in {bar}(first, third).result()])
"""
    with Terminal(BEFORE + program) as terminal:
        lines = terminal.until(shows("100%", name="third"))
        rows = [each.split()[0] for each in lines]
        assert rows == ["first", "second", "third"]
        terminal.open_gate()
        lines = terminal.end()
    assert [each.split()[0] for each in lines[:4]] == ["first", "second", "third", "raised:"]
    assert lines[1].endswith("failed at 50%")
    assert lines[3] == "raised: planted"
    assert lines[-1] == "[100, 100]"
    assert len(lines) == 7


def test_bars_of_several_tasks_share_a_display() -> None:
    program = """
async def main():
    async with Coordinator(max_threads=2) as coordinator:
        async def one(name, at):
            await rich_bar(coordinator.submit(job(stops(*at), name)))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(one("waits", [30]))
            tasks.create_task(one("other", []))
asyncio.run(main())
"""
    with Terminal(BEFORE + program) as terminal:
        terminal.until(
            lambda lines: shows("100%", name="other")(lines) and shows(" 30%", name="waits")(lines)
        )
        terminal.open_gate()
        lines = terminal.end()
    assert len(lines) == 2
    assert sorted(each.split()[0] for each in lines) == ["other", "waits"]
    assert all("100 done in" in each for each in lines)


def test_a_job_gets_a_row_in_the_programs_own_display() -> None:
    program = """
from rich.progress import Progress
with Coordinator() as coordinator, Progress() as progress:
    progress.add_task("other", total=10, completed=5)
    try:
        rich_bar(coordinator.submit(job(stops(fails_at=70), "[red]x")), progress=progress).result()
    except OSError:
        pass
    progress.add_task("after", total=1)
"""
    with Terminal(BEFORE + program) as terminal:
        lines = terminal.end()
    assert [each.split()[0] for each in lines] == ["other", "[red]x:", "after"]
    assert row(lines, "[red]x").startswith("[red]x: failed at 70%")
    assert " 70%" in row(lines, "[red]x")


def test_what_is_printed_meanwhile_goes_above_the_bar() -> None:
    program = """
with Coordinator() as coordinator:
    handle = coordinator.submit(job(stops(40)))
    with rich_bar(handle):
        wait_at_gate(1)
        print("a line")
        handle.result()
"""
    with Terminal(BEFORE + program) as terminal:
        terminal.until(shows(" 40%"))
        terminal.open_gate(number=1)
        lines = terminal.until(lambda lines: lines[0] == "a line")
        terminal.open_gate()
        lines = terminal.end()
    assert lines[0] == "a line"
    assert "100%" in row(lines)
    assert len(lines) == 2


def test_data_on_standard_output_stays_there() -> None:
    """The bar moves on standard error, and what is printed goes on to the next program."""
    program = """
with Coordinator() as coordinator:
    with rich_bar(coordinator.submit(job(stops(40)))):
        print("data")
        wait_at_gate(1)
"""
    with Terminal(BEFORE + program, stdout=subprocess.PIPE) as terminal:
        terminal.until(shows(" 40%"))
        terminal.open_gate()
        terminal.open_gate(number=1)
        lines = terminal.end()
        assert terminal.process.stdout is not None
        assert terminal.process.stdout.read() == b"data\n"
    assert not any("data" in each for each in lines)


@both
def test_a_stream_is_shown_while_its_values_are_asked_for(bar: str) -> None:
    program = f"""
def fn(item):
    if item == 5:
        wait_at_gate()
    return item

with Coordinator(max_threads=1) as coordinator:
    with map_ordered_sync(fn, range(10), name="stream", coordinator=coordinator) as results:
        with {bar}(results.handle):
            values = list(results)
        print(sum(values))
"""
    with Terminal(BEFORE + program) as terminal:
        terminal.until(lambda lines: re.search(r"[5-9]\d%", row(lines, "stream")) is not None)
        terminal.open_gate()
        lines = terminal.end()
    assert "100%" in row(lines, "stream")
    assert lines[-1] == "45"


@both
def test_names_cannot_control_the_terminal(bar: str) -> None:
    program = f"""
with Coordinator() as coordinator:
    {bar}(coordinator.submit(job(stops(), "a\\x1b[2J\\nb[bold]"))).result()
"""
    with Terminal(BEFORE + program) as terminal:
        lines = terminal.end()
        assert b"\x1b[2J" not in terminal.raw
    assert lines[0].startswith("a\ufffd[2J\ufffdb[bold] ")
    assert len(lines) == 1


@both
def test_ctrl_c_ends_the_wait_and_leaves_the_terminal_as_it_was(bar: str) -> None:
    program = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it was ignored before
with Coordinator() as coordinator:
    handle = coordinator.submit(job(stops(40)))
    try:
        {bar}(handle).result()
    except KeyboardInterrupt:
        print("interrupted", handle.done())
"""
    with Terminal(BEFORE + program) as terminal:
        terminal.until(shows(" 40%"))
        terminal.process.send_signal(2)
        terminal.until(lambda lines: "interrupted False" in lines)
        assert terminal.cursor_is_shown
        terminal.open_gate()
        terminal.end()


@both
def test_a_pipe_gets_few_plain_lines(bar: str) -> None:
    program = f"""
with Coordinator(max_threads=1) as coordinator:
    try:
        {bar}(
            coordinator.submit(job(stops(), "first")),
            coordinator.submit(job(stops(fails_at=70), "second")),
            interval=0.001,
        ).result()
    except OSError:
        pass
"""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", BEFORE + program],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert ran.stdout == ""
    lines = ran.stderr.splitlines()
    assert re.fullmatch(r"first: 100 done in \d+\.\d s", lines[0])
    assert lines[1:] == ["second: failed at 70%"]


@both
def test_a_dumb_terminal_gets_no_control_codes(bar: str) -> None:
    program = f"""
os.environ["TERM"] = "dumb"
with Coordinator() as coordinator:
    {bar}(coordinator.submit(job(stops()))).result()
"""
    with Terminal(BEFORE + program) as terminal:
        lines = terminal.end()
        assert b"\x1b" not in terminal.raw
    assert lines == [row(lines)]
