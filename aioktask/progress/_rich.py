# SPDX-License-Identifier: MIT
# Bars drawn by rich.
#
# One live display at a time fits a terminal, and rich refuses or mixes up a second one; so all bars
# of a console share one here, which is there while any of them is. What rich prints meanwhile goes
# above it.
"""rich."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import rich
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column

from aioktask.telling import MEANINGS, Meaning, Told

if TYPE_CHECKING:
    from rich.live import Live
    from rich.progress_bar import ProgressBar

__all__ = ["GivenRows", "OwnRows", "live_console"]

COLOURS: dict[Meaning, str] = {"good": "green", "warn": "yellow", "bad": "red"}


class _BarOfPhase(BarColumn):  # type: ignore[misc]
    """A bar in the colour of the phase."""

    def render(self, task: Task) -> ProgressBar:
        bar = super().render(task)
        meaning = MEANINGS.get(task.fields["phase"])
        style = "bar.complete" if meaning is None else COLOURS[meaning]
        bar.complete_style = bar.finished_style = style
        return bar


def live_console() -> Console | None:
    """The console on which a bar can move, if there is one.

    rich's own where it is a terminal, since what the program prints by rich goes there; else one on
    standard error, as where standard output is piped on.
    """
    for console in (rich.get_console(), Console(stderr=True)):
        if console.is_terminal and not console.is_dumb_terminal and not console.is_jupyter:
            return console
    return None


class _Shared:
    """The live displays of this process, one for each console, and how many bars each has."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: dict[tuple[object, bool], tuple[Progress, int]] = {}

    def enter(self, console: Console) -> Progress:
        key = (console.file, console.stderr)
        with self._lock:
            progress, bars = self._live.get(key, (None, 0))
            if progress is None:
                progress = _new_progress(console)
                try:
                    progress.start()
                except BaseException:  # a signal handler's too: the cursor is hidden by then
                    progress.stop()
                    raise
            self._live[key] = (progress, bars + 1)
            return progress

    def leave(self, progress: Progress, tasks: Sequence[TaskID]) -> None:
        with self._lock:
            for key, (each, bars) in list(self._live.items()):
                if each is not progress:
                    continue
                if bars > 1:
                    self._live[key] = (progress, bars - 1)
                    _move_above(progress, tasks)
                else:
                    del self._live[key]
                    progress.stop()


_shared = _Shared()


def _new_progress(console: Console) -> Progress:
    columns: list[ProgressColumn] = [
        TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis", max_width=32),
        ),
        _BarOfPhase(bar_width=24),
        TextColumn("{task.fields[percent]}", markup=False, table_column=Column(no_wrap=True)),
        TextColumn(
            "{task.fields[text]}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis"),
        ),
    ]
    return Progress(
        *columns,
        console=console,
        auto_refresh=False,
        # What a program writes into a file must not land on the terminal.
        redirect_stdout=_is_terminal(sys.stdout),
        redirect_stderr=_is_terminal(sys.stderr),
    )


def _is_terminal(file: object) -> bool:
    ask = getattr(file, "isatty", None)
    return bool(callable(ask) and ask())


def _move_above(progress: Progress, tasks: Sequence[TaskID]) -> None:
    """Leave rows that are over above the display, which goes on without them."""
    rows = [each for each in progress.tasks if each.id in tasks]
    progress.console.print(progress.make_tasks_table(rows))
    for task in tasks:
        progress.remove_task(task)
    progress.refresh()


class OwnRows:
    """Rows in the display that bars share."""

    def __init__(self, console: Console) -> None:
        self._progress = _shared.enter(console)
        self._tasks: list[TaskID] = []

    def show(self, rows: Sequence[Told]) -> None:
        progress = self._progress
        if not self._tasks:
            for row in rows:
                fields = {"percent": "", "text": "", "phase": row.phase}
                self._tasks.append(progress.add_task(row.name, total=1.0, **fields))
        for task, row in zip(self._tasks, rows, strict=True):
            fraction = row.fraction
            found = progress._tasks[task]
            found.total = None if fraction is None else 1.0  # `update` keeps a total for None
            progress.update(
                task,
                completed=fraction or 0.0,
                percent=row.percent,
                text=row.text,
                phase=row.phase,
            )
        progress.refresh()

    def close(self, rows: Sequence[Told]) -> None:
        try:
            self.show(rows)
        finally:
            _shared.leave(self._progress, self._tasks)


class GivenRows:
    """Rows in a display that the program made: its columns, in the units of the jobs."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: list[TaskID] = []

    def show(self, rows: Sequence[Told]) -> None:
        progress = self._progress
        if not self._tasks:
            self._tasks = [progress.add_task(escape(row.name), total=row.size) for row in rows]
        for task, row in zip(self._tasks, rows, strict=True):
            said = row.name
            if row.phase not in ("waiting", "running", "finished"):
                said = f"{row.name}: {row.text}"
            with contextlib.suppress(KeyError):  # the program has removed the row
                progress.update(
                    task, total=row.size, completed=row.position, description=escape(said)
                )
        if not _refreshes(progress.live):
            progress.refresh()

    def close(self, rows: Sequence[Told]) -> None:
        self.show(rows)
        for task in self._tasks:
            with contextlib.suppress(KeyError):
                self._progress.stop_task(task)  # its time, too, ends here


def _refreshes(live: Live) -> bool:
    """Whether it draws by itself, in a thread of its own."""
    return bool(live.auto_refresh and live.is_started)
