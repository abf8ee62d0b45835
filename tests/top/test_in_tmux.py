# SPDX-License-Identifier: MIT
# The command in a real terminal emulator: what is seen agrees with what processes tell, follows a
# resize, and nothing is left behind in the terminal.

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import aioktask
from aioktask.observe.processes import ask
from tests.support.gates import until
from tests.support.programs import program
from tests.top.told import HOSTILE, Child

pytest.importorskip("textual", reason="textual is not installed")

ROOT = Path(aioktask.__file__).parents[1]


class Tmux:
    """A server of tmux's own with one terminal, in which a shell runs `top` and goes on."""

    def __init__(self, program: Path, directory: Path, columns: int, rows: int) -> None:
        self._command = [str(program), "-S", str(directory / "tmux"), "-f", os.devnull]
        self._status = directory / "status"
        top = shlex.join([sys.executable, "-W", "error", "-m", "aioktask", "top"])
        # After it the shell says what became of the terminal, and stays for it to be looked at.
        script = (
            f"cd {shlex.quote(str(ROOT))}; echo before; stty -g > {self._status}.before; "
            f"{top} --interval 0.2; echo $? > {self._status}; "
            f"stty -g > {self._status}.after; echo left; cat"
        )
        size = ["-x", str(columns), "-y", str(rows)]
        self("new-session", "-d", *size, "sh", "-c", script)

    def __call__(self, *arguments: str) -> str:
        return subprocess.run(
            [*self._command, *arguments],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C.UTF-8", "TERM": "xterm-256color"},
            timeout=100,
        ).stdout

    def lines(self) -> list[str]:
        """What stands on its screen."""
        return self("capture-pane", "-p").rstrip("\n").split("\n")

    def sees(self, part: str) -> list[str]:
        """Wait until this stands there."""
        until(lambda: any(part in each for each in self.lines()))
        return self.lines()

    def press(self, *keys: str) -> None:
        self("send-keys", *keys)

    @property
    def top(self) -> int:
        """The process of the command."""
        shell = self("display-message", "-p", "#{pane_pid}").strip()
        children = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
        return int(children[0])

    def left(self) -> tuple[str, bool]:
        """Once the command is over: its status, and whether the terminal is as it was."""
        lines = self.sees("left")
        asked = "#{alternate_on} #{mouse_any_flag} #{cursor_flag} #{bracket_paste_flag}"
        state = self("display-message", "-p", asked).split()
        before, after = (
            self._status.with_suffix(each).read_text() for each in (".before", ".after")
        )
        clean = state[:3] == ["0", "0", "1"] and before == after and lines[:2] == ["before", "left"]
        return self._status.read_text().strip(), clean

    def end(self) -> None:
        subprocess.run([*self._command, "kill-server"], capture_output=True, check=False)


@pytest.fixture
def tmux(tmp_path: Path, child: Callable[[str], Child]) -> Iterator[tuple[Tmux, Child, Child]]:
    """A terminal of 80 x 24 with the command in it, and what it shows."""
    one, two = child("one"), child(HOSTILE)
    found = program("tmux", "usr/bin/tmux", everyday=True)
    if isinstance(found, str):
        pytest.skip(found)
    terminal = Tmux(found, tmp_path, 80, 24)
    yield terminal, one, two
    terminal.end()


def test_the_screen_agrees_with_the_snapshot_and_follows_a_resize(
    tmux: tuple[Tmux, Child, Child],
) -> None:
    terminal, one, two = tmux
    lines = terminal.sees("after one")
    assert len(lines) == 24
    assert "2 processes, 4 jobs: 2 running, 2 waiting" in lines[0]
    for each in (one, two):
        told = ask(each.pid, {"do": "snapshot"}).answer
        (shown,) = (line for line in lines if re.match(rf"{each.pid}  python", line))
        assert f"{told['limits']['working']} of {told['limits']['threads']} helpers" in shown
        for job in told["jobs"]:
            (line,) = (
                line for line in lines if re.match(rf"[> ] *{each.pid} +{job['number']} ", line)
            )
            assert job["name"][:10] in line or "[red]a[/re" in line
            assert ("running" if job["phase"] == "running" else "waiting: its coord") in line
    terminal("resize-window", "-x", "140", "-y", "40")
    lines = terminal.sees("its coordinator's 1 is at job 1 (one")
    assert len(lines) == 40
    terminal("resize-window", "-x", "50", "-y", "12")
    until(lambda: len(terminal.lines()) == 12 and "q quit" not in terminal.lines()[-1])
    lines = terminal.sees("after one")
    assert lines[-1].lstrip().startswith("c cancel")
    terminal.press("q")
    assert terminal.left() == ("0", True)


def test_a_job_is_cancelled_from_the_terminal(tmux: tuple[Tmux, Child, Child]) -> None:
    terminal, one, _ = tmux
    terminal.sees("after one")
    terminal.press("/")
    terminal.press("-l", "who=one")
    terminal.press("Enter")
    terminal.sees("with 'who=one': escape shows all")
    # The field of the words is gone too, so a key is a key again.
    until(lambda: not any(line.strip() == "who=one" for line in terminal.lines()))
    terminal.press("c")
    terminal.sees("cancel this job?")
    terminal.press("y")
    assert one.hear() == "cancelled 0"
    terminal.press("q")
    assert terminal.left() == ("0", True)


@pytest.mark.parametrize("by", ["ctrl+c", "SIGTERM"])
def test_the_terminal_is_left_clean_however_it_ends(
    tmux: tuple[Tmux, Child, Child], by: str
) -> None:
    terminal, _, _ = tmux
    terminal.sees("after one")
    if by == "ctrl+c":
        terminal.press("C-c")
    else:
        os.kill(terminal.top, signal.SIGTERM)
    assert terminal.left() == ("0", True)


def test_a_stopped_process_is_shown_in_the_terminal(tmux: tuple[Tmux, Child, Child]) -> None:
    terminal, one, _ = tmux
    terminal.sees("after one")
    os.kill(one.pid, signal.SIGSTOP)
    try:
        lines = terminal.sees("! no answer")
        assert any(line.startswith(f"{one.pid}  python") for line in lines)
    finally:
        os.kill(one.pid, signal.SIGCONT)
    terminal.sees("after one")
    terminal.press("q")
    assert terminal.left() == ("0", True)
