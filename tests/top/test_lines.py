# SPDX-License-Identifier: MIT
# Plain lines: what a pipe and a log get, from real processes, judged by what the command prints.

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aioktask
from aioktask.observe.processes import Told
from aioktask.top._lines import lines_of, show_lines
from aioktask.top._source import Processes, Reading, SourceError
from aioktask.top._view import View, view_of
from tests.top.told import HOSTILE, Child, answer, job

ROOT = Path(aioktask.__file__).parents[1]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "aioktask", "top", *arguments]


def top(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environ},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_snapshot_has_a_header_and_a_line_for_each_process_and_job(
    child: Callable[[str], Child],
) -> None:
    one, two = child("one"), child(HOSTILE)
    ended = top("--once")
    assert (ended.returncode, ended.stderr) == (0, "")
    header, first, second, columns, *jobs = ended.stdout.splitlines()
    assert header.endswith("2 processes, 4 jobs: 2 running, 2 waiting")
    assert {int(each.split()[0]) for each in (first, second)} == {one.pid, two.pid}
    assert columns.split() == ["pid", "no", "name", "nice", "time", "state", "done", "rate",
                               "thr", "why"]  # fmt: skip
    assert len(jobs) == 4
    assert "[red]a[/red]�[2J" in ended.stdout
    assert "\x1b" not in ended.stdout
    assert "waiting: its coordinator's 1 is at job 1 (one" in ended.stdout


def test_jobs_that_ended_and_are_not_listed_are_counted() -> None:
    over = tuple(job(number, phase="finished", ended=float(number)) for number in range(1, 14))
    lines = lines_of(view_of([answer(7, ended=over)]), 1.0, 100)
    assert lines[-1] == "and 3 more that ended before"
    assert not any("more that" in each for each in lines_of(view_of([answer(7)]), 1.0, 100))
    assert not any(
        "more that" in each
        for each in lines_of(view_of([answer(7, ended=over)]), 1.0, 100, told=())
    )


def test_no_line_is_longer_than_the_terminal_is_wide(child: Callable[[str], Child]) -> None:
    child("a name that is longer than the table has room for, by far")
    ended = top("--once", COLUMNS="60")
    assert max(map(len, ended.stdout.splitlines())) <= 60
    assert "waiting: its" in ended.stdout


def test_an_encoding_without_the_characters_gets_others(child: Callable[[str], Child]) -> None:
    child("日本語")
    ended = top("--once", PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "???" in ended.stdout


def test_json_is_an_object_a_line(child: Callable[[str], Child]) -> None:
    one = child(HOSTILE)
    ended = top("--once", "--json")
    (line,) = ended.stdout.splitlines()
    told = json.loads(line)
    (process,) = told["processes"]
    assert process["pid"] == one.pid
    assert HOSTILE in [each["name"] for each in process["answer"]["jobs"]]
    assert told["taken_at"] > 1e9


# `top` where SIGINT counts, also where it was ignored before, as of a shell's background.
INTERRUPTED = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["aioktask", "top", *sys.argv[1:]]
runpy.run_module("aioktask", run_name="__main__", alter_sys=True)
"""


def test_it_goes_on_until_it_is_interrupted_and_tells_a_stopped_process(
    child: Callable[[str], Child],
) -> None:
    one = child("one")
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", INTERRUPTED, "--interval", "0.1"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any("running" in each for each in lines)
        os.kill(one.pid, signal.SIGSTOP)
        try:
            assert any("! no answer: did not answer" in each for each in lines)
        finally:
            os.kill(one.pid, signal.SIGCONT)
        assert any("running" in each for each in lines)
        process.send_signal(signal.SIGINT)
        for _ in lines:
            pass
        assert process.wait(60) == 0


def test_a_reader_that_goes_away_ends_it_quietly(child: Callable[[str], Child]) -> None:
    child("one")
    with subprocess.Popen(
        command("--interval", "0.1"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == b""


def test_nobody_to_show_is_said_with_what_to_do() -> None:
    ended = top("--once")
    assert ended.returncode == 0
    assert "no process" in ended.stdout
    assert "AIOKTASK_PUBLISH=1" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "problem"),
    [
        (["--interval", "0"], 2, "--interval must be at least 0.1, in seconds, got 0"),
        (["--interval", "nan"], 2, "--interval must be at least 0.1"),
        (["localhost"], 2, "URL must be the address of a page"),
        (["--token", "x"], 2, "--token is for a page"),
        (["http://127.0.0.1:1/", "--once"], 1, "cannot be reached"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(
    arguments: list[str], status: int, problem: str
) -> None:
    ended = top(*arguments)
    assert (ended.returncode, ended.stdout) == (status, "")
    assert problem in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_lines_need_no_textual_and_a_screen_says_which_extra_has_it(
    child: Callable[[str], Child],
) -> None:
    child("one")
    program = (
        "import sys; sys.modules['textual'] = None; sys.modules['rich'] = None\n"
        "import aioktask.top._show, aioktask.__main__\n"
        "if sys.argv.pop(1) == 'screen': aioktask.top._show.fits_screen = lambda: True\n"
        "sys.exit(aioktask.__main__.main(['top', *sys.argv[1:]]))"
    )

    def without(*arguments: str) -> subprocess.CompletedProcess[str]:
        given = [sys.executable, "-c", program, *arguments]
        return subprocess.run(given, capture_output=True, text=True, timeout=100, check=False)

    assert without("lines", "--once").returncode == 0
    ended = without("screen")
    assert ended.returncode == 2
    assert "pip install 'aioktask[top]'" in ended.stderr
    assert "--lines" in ended.stderr


def test_jobs_that_ended_are_told_once_while_it_goes_on() -> None:
    over = [job(n, "over", phase="finished", done=100, ended=float(n)) for n in range(1, 20)]
    view = view_of([answer(7, ended=tuple(over))])
    assert sum(" over " in each for each in lines_of(view, 1.0, 100)) == 10
    told = {(7, n) for n in range(3, 20)} | {(8, 1)}
    assert sum(" over " in each for each in lines_of(view, 1.0, 100, told=told)) == 2


class Played:
    """A source that tells one view after the other, or that it cannot, and is then interrupted."""

    name = "played"

    def __init__(self, *views: View | None) -> None:
        self._views = iter(views)

    def read(self) -> Reading:
        view = next(self._views, "over")
        if view == "over":
            raise KeyboardInterrupt
        if view is None:
            raise SourceError("it is away")
        return Reading(view, {})

    def cancel(self, pid: int, number: int) -> Told:
        raise AssertionError

    def renice(self, pid: int, number: int, nice: int) -> Told:
        raise AssertionError


def test_a_job_that_ends_while_nothing_can_be_read_is_told_once() -> None:
    def ended(number: int, seconds: float) -> Any:
        return job(number, f"lost {number}", phase="finished", done=100, ended=seconds)

    running = view_of([answer(7, job(1, "lost 1"))])
    first = view_of([answer(7, ended=(ended(1, 400.0),))])  # long ago, by the answer's clock
    silent = view_of([Told(7, None, "it did not answer")])
    both = view_of([answer(7, ended=(ended(2, 0.1), ended(1, 900.0)))])
    source = Played(running, None, None, first, silent, None, both, both)
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        show_lines(source, out, width=lambda: 100, interval=0.001)
    over = [each.split()[2:4] for each in out.getvalue().splitlines() if " done in " in each]
    assert over == [["lost", "1"], ["lost", "2"]]


def test_lines_go_where_they_are_asked_to() -> None:
    out = io.StringIO()
    show_lines(Processes(), out, width=lambda: 80, once=True)
    assert "no process" in out.getvalue()
