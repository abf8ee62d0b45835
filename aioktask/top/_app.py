# SPDX-License-Identifier: MIT
# `top` as a full screen, drawn by textual.
#
# Whatever is asked of processes is asked on threads of its own, so the screen answers keys whatever
# hangs. The threads are daemons that tell what they found in messages, and wait for nothing here.
# A confirmation is about the job that was selected when it was asked for, whatever moves meanwhile.
# Names are text everywhere: nothing goes through markup.
"""The full screen."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.app import App
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.geometry import Region, Size
from textual.message import Message
from textual.screen import ModalScreen
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Input, Static

from aioktask.observe.processes import Told
from aioktask.top._rows import (
    SORTS,
    Cell,
    Tone,
    cells_of,
    chosen,
    columns_for,
    detail,
    head,
    process_line,
    summary,
)
from aioktask.top._source import Processes, Source, SourceError
from aioktask.top._text import cells, fit, plain
from aioktask.top._view import JobRow, View

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.events import Click, Resize

__all__ = ["TopApp"]

# How long the last answer is waited for when the screen is left, in seconds.
LEAVE_SECONDS = 1.0

# How long what was done stands below the table, in seconds.
SAID_SECONDS = 8.0

NOBODY = (
    "No process of this user publishes its jobs. A program does that is started with "
    "AIOKTASK_PUBLISH=1, or that calls aioktask.observe.processes.publish()."
)

KEYS = "c cancel  n renice  p pause  s sort  / filter  e ended  ? help  q quit"

HELP = """\
arrows, page up, ...  choose a job; tab goes to the parts that scroll
c       cancel the job; it asks before
n       renice the job; it asks for the number
p       pause, and go on: nothing is read meanwhile
s       sort by the next column; it has a mark
/       only jobs with these words in name, labels, process or state;
        enter keeps them, escape shows all
e       show, or hide, the jobs that ended lately
q       quit

pid     the process; no is the job's number in it
nice    as asked for; 19>-5 is lent -5 by a more urgent waiter
time    since it began, or has waited where it has not begun
state   where it stands; below the table is what the chosen job waits
        for, and where it is stuck
progress  done and not undone: it runs back while a job is undone
rate    units a second, - for none yet; thr is how many threads work
        on it"""

# In the terminal's own colours, which its user has chosen to be legible.
_STYLES: dict[Tone, str] = {
    "": "",
    "faint": "dim",
    "bar": "ansi_blue",
    "good": "ansi_green",
    "warn": "ansi_yellow",
    "bad": "ansi_red",
    "head": "bold",
}
# rich knows them by other names.
_RICH = {tone: Style.parse(style.removeprefix("ansi_")) for tone, style in _STYLES.items()}


def _content(parts: Sequence[Cell]) -> Any:
    """Pieces of text as textual shows them: never as markup."""
    return Content.assemble(*((text, _STYLES[tone]) for text, tone in parts))


class _Read(Message):  # type: ignore[misc]
    """What was read, or why nothing was."""

    def __init__(self, view: View | None, problem: str) -> None:
        self.view = view
        self.problem = problem
        self.at = time.localtime()
        super().__init__()


class _Changed(Message):  # type: ignore[misc]
    """What came of a change."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__()


class _Reader:
    """Reads a source again and again, on a thread of its own."""

    def __init__(self, source: Source, interval: float, post: Callable[[Message], object]) -> None:
        self._source = source
        self._interval = interval
        self._post = post
        self._wake = threading.Event()
        self._stopped = False
        self.paused = False
        self._thread = threading.Thread(target=self._run, name="aioktask top", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Read at once."""
        self._wake.set()

    def stop(self) -> None:
        """Read no more. A reading that goes on is waited for, for a moment."""
        self._stopped = True
        self._wake.set()
        self._thread.join(LEAVE_SECONDS)

    def _run(self) -> None:
        while not self._stopped:
            began = time.monotonic()
            if not self.paused:
                found = self._read()
                if self._stopped:
                    return
                if not self.paused:
                    self._post(found)
            took = time.monotonic() - began
            self._wake.wait(None if self.paused else max(self._interval - took, 0.05))
            self._wake.clear()

    def _read(self) -> _Read:
        try:
            return _Read(self._source.read().view, "")
        except SourceError as error:
            return _Read(None, plain(str(error)))
        except Exception as error:
            # It goes on looking; and at the exit of the interpreter no thread begins any more.
            return _Read(None, plain(f"cannot be read: {type(error).__name__}: {error}"))


class JobTable(ScrollView, can_focus=True):  # type: ignore[misc,call-arg]
    """The jobs, of which only the lines are drawn that are seen."""

    BINDINGS: ClassVar = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home,g", "move(-1000000000)", show=False),
        Binding("end,G", "move(1000000000)", show=False),
    ]

    class Selected(Message):  # type: ignore[misc]
        """Another job was chosen, or others are in view."""

    def __init__(self) -> None:
        super().__init__(id="jobs")
        self._rows: list[JobRow] = []
        self._at = 0
        self._columns = columns_for(80, ())
        self._empty = ""

    @property
    def selected(self) -> JobRow | None:
        """The job that is chosen; None where there is none."""
        return self._rows[self._at] if self._at < len(self._rows) else None

    @property
    def out_of_view(self) -> str:
        """How many jobs are above and below those in view, in words; empty where there are none."""
        above = round(self.scroll_offset.y)
        below = len(self._rows) - above - self.size.height if self.size.height else 0
        found = [f"{above:,} more above"] if above > 0 else []
        if below > 0:
            found.append(f"{below:,} more below")
        return ", ".join(found)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self.post_message(self.Selected())

    def head(self, sort: str) -> str:
        """The line above, as wide as the table."""
        return f" {head(self._columns, sort)}"

    def show(self, rows: list[JobRow], empty: str) -> None:
        """Show these jobs; the chosen one stays chosen, wherever it goes.

        Args:
            rows: The jobs.
            empty: What stands there if there is none.
        """
        before = self.selected
        self._rows, self._empty = rows, empty
        if before is not None:
            keys = {each.key: index for index, each in enumerate(rows)}
            self._at = keys.get(before.key, self._at)
        self._at = max(min(self._at, len(rows) - 1), 0)
        self._lay_out()
        if before is None or self.selected is None or self.selected.key != before.key:
            self._see()

    def on_resize(self, _: Resize) -> None:
        self._lay_out()
        self._see()

    def _lay_out(self) -> None:
        width = max(self.scrollable_content_region.width, 1)
        self._columns = columns_for(width - 1, self._rows)
        self.virtual_size = Size(width, len(self._rows))
        self.refresh()

    def _see(self) -> None:
        region = Region(0, self._at, 1, 1)
        self.scroll_to_region(region, animate=False, force=True, immediate=True)

    def action_move(self, lines: int) -> None:
        self._choose(self._at + lines)

    def action_page(self, pages: int) -> None:
        self._choose(self._at + pages * max(self.size.height - 1, 1))

    def on_click(self, event: Click) -> None:
        self._choose(event.y + round(self.scroll_offset.y))

    def _choose(self, index: int) -> None:
        self._at = max(min(index, len(self._rows) - 1), 0)
        self._see()
        self.refresh()
        self.post_message(self.Selected())

    def render_line(self, y: int) -> Strip:
        index = y + round(self.scroll_offset.y)
        width = self.size.width
        base = self.rich_style
        if not self._rows and y == 0:
            return Strip([Segment(fit(f" {self._empty}", width), base + Style(dim=True))])
        if index >= len(self._rows):
            return Strip.blank(width, base)
        selected = index == self._at
        # The mark says it without reverse video, which a terminal may show as nothing.
        segments = [Segment(">" if selected else " ", base)]
        segments += [
            Segment(text, base if selected else base + _RICH[tone])
            for text, tone in cells_of(self._rows[index], self._columns)
        ]
        strip = Strip(segments).adjust_cell_length(width, base)
        return strip.apply_style(Style(reverse=True)) if selected else strip


class _Ask(ModalScreen[Any]):  # type: ignore[misc]
    """A question over the screen, answered by a key."""

    BINDINGS: ClassVar = [
        Binding("escape,n,N", "answer(False)", show=False),
        Binding("y,Y", "answer(True)", show=False),
    ]

    def __init__(self, title: str, parts: Sequence[Sequence[Cell]], keys: str) -> None:
        super().__init__()
        self._title = title
        self._parts = parts
        self._keys = keys

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title = self._title
            with VerticalScroll(can_focus=False):
                for line in self._parts:
                    yield Static(_content(line))
            yield Static(Content(self._keys), classes="keys")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)


class _Help(_Ask):
    """What the keys and columns are. Any key ends it that ends other questions."""

    BINDINGS: ClassVar = [
        Binding("escape,question_mark,q,enter", "answer(False)", show=False),
    ]

    def __init__(self) -> None:
        super().__init__("help", [[(each, "")] for each in HELP.splitlines()], "escape: back")

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).can_focus = True
        self.query_one(VerticalScroll).focus()


class _AskNice(ModalScreen[Any]):  # type: ignore[misc]
    """Asks for a nice, until it is one or the question is left."""

    BINDINGS: ClassVar = [Binding("escape", "leave", show=False)]

    def __init__(self, job: JobRow) -> None:
        super().__init__()
        self._job = job

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title = f"renice job {self._job.number} of process {self._job.pid}"
            yield Static(Content(fit(self._job.name, 200).rstrip()), classes="name")
            yield Static(Content("its nice, from -20 (the most urgent) to 19:"))
            yield Input(str(self._job.nice), max_length=3, id="nice", select_on_focus=True)
            yield Static(Content("enter: renice it   escape: leave it"), id="hint", classes="keys")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        with contextlib.suppress(ValueError):
            nice = int(event.value)
            if -20 <= nice <= 19:
                self.dismiss(nice)
                return
        hint = self.query_one("#hint", Static)
        hint.update(Content(f"must be from -20 to 19, got {plain(event.value) or 'nothing'}"))

    def action_leave(self) -> None:
        self.dismiss(None)


class TopApp(App[None]):  # type: ignore[misc]
    """The jobs of a source, on the whole screen.

    Args:
        source: What is shown.
        interval: From one reading to the next, in seconds.
    """

    TITLE = "aioktask top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layout: vertical; background: $background; }
    Screen > Static { height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
    #title { text-style: reverse; }
    #processes { height: auto; max-height: 25%; min-height: 1; }
    #processes Static { height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
    #head { text-style: bold underline; }
    #jobs { height: 1fr; min-height: 2; scrollbar-size-vertical: 1; }
    #about { height: 30%; min-height: 3; border-top: solid $foreground; }
    #about:focus { border-top: heavy $foreground; }
    VerticalScroll { scrollbar-size: 0 1; scrollbar-gutter: stable; }
    #filter { height: 1; border: none; padding: 0 1; }
    #keys { text-style: reverse; }
    ModalScreen { align: center middle; }
    .box { width: auto; min-width: 44; max-width: 96%; height: auto; max-height: 96%;
           border: heavy $foreground; padding: 0 1; background: $background; }
    .box VerticalScroll { height: auto; width: auto; max-width: 100%; }
    .box Static { width: auto; max-width: 100%; }
    .box .keys { margin-top: 1; text-style: bold; }
    .box Input { height: 1; border: none; padding: 0; width: 6; text-style: underline; }
    .box .name { max-height: 2; text-style: bold; }
    """
    BINDINGS: ClassVar = [
        Binding("q,ctrl+c,ctrl+q", "quit", priority=False, show=False),
        Binding("c", "cancel_job", show=False),
        Binding("n", "renice_job", show=False),
        Binding("p,space", "pause", show=False),
        Binding("s", "sort", show=False),
        # Before the table has it: what is typed in the same moment belongs to the filter already.
        Binding("slash", "filter", show=False, priority=True),
        Binding("escape", "unfilter", show=False),
        Binding("e", "ended", show=False),
        Binding("question_mark,h,f1", "help", show=False),
    ]

    def __init__(self, source: Source, *, interval: float = 1.0) -> None:
        super().__init__(ansi_color=True)
        self._source = source
        self._interval = interval
        self._reader: _Reader | None = None
        names = ("title", "lines", "head", "detail", "status", "keys")
        self._statics = {name: Static(id=name) for name in names}
        self._jobs = JobTable()
        self._filter = Input(placeholder="only jobs with these words", id="filter")
        self.view = View()
        self._at = ""
        self._problem = ""
        self._read_once = False
        self._said = ""
        self._said_until = 0.0
        self._sort = SORTS[0]
        self._words = ""
        self._ended = True

    def compose(self) -> ComposeResult:
        yield self._statics["title"]
        with VerticalScroll(id="processes"):
            yield self._statics["lines"]
        yield self._statics["head"]
        yield self._jobs
        with VerticalScroll(id="about"):
            yield self._statics["detail"]
        self._filter.display = False
        yield self._filter
        yield self._statics["status"]
        yield self._statics["keys"]

    def on_mount(self) -> None:
        self._jobs.focus()
        self._reader = _Reader(self._source, self._interval, self.post_message)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            # Else the terminal is left as it is. In another thread than the main one none comes.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self.exit)
        self._draw()

    def on_unmount(self) -> None:
        if self._reader is not None:
            self._reader.stop()

    # What comes.

    def on__read(self, message: _Read) -> None:
        self._problem = message.problem
        self._read_once = True
        if message.view is not None:
            self.view = message.view
            self._at = time.strftime("%H:%M:%S", message.at)
        self._draw()

    def on__changed(self, message: _Changed) -> None:
        self._say(message.text)
        if self._reader is not None:
            self._reader.look()

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw)

    def on_job_table_selected(self) -> None:
        self._draw_detail()
        self._draw_status()

    # What is shown.

    def _draw(self) -> None:
        if not self._jobs.is_attached:  # the screen is being left
            return
        width = max(self.size.width, 1)
        paused = self._reader is not None and self._reader.paused
        right = f"PAUSED at {self._at} " if paused else f"{self._at} "
        left = f" aioktask top  {summary(self.view)}"
        if self._problem:
            left = f" ! {self._problem}"
        elif not self._read_once:
            left = f" aioktask top  looking at {self._source.name}"
        left = fit(left, max(width - cells(right), 0))
        self._statics["title"].update(Content(fit(left + right, width)))
        self._draw_processes(width)
        empty = "No job is under way."
        if not self.view.processes:
            empty = "" if not self._read_once else "Nothing publishes its jobs."
        elif self._words:
            empty = f"No job has {plain(self._words)!r} in it: escape shows all."
        rows = chosen(self.view, sort=self._sort, words=self._words, ended=self._ended)
        self._jobs.show(rows, empty)
        self._statics["head"].update(Content(self._jobs.head(self._sort)))
        self._statics["keys"].update(Content(fit(f" {KEYS}", width)))
        self._draw_detail()
        self._draw_status()

    def _draw_processes(self, width: int) -> None:
        lines = [_content(process_line(each, width - 2)) for each in self.view.processes]
        text = Content("\n").join(lines) if lines else Content(" ")
        found = self._statics["lines"]
        found.styles.height = max(len(lines), 1)
        found.update(text)

    def _draw_detail(self) -> None:
        job = self._jobs.selected
        if job is not None:
            lines = [_content(each) for each in detail(job, self.view)]
        elif self._read_once and not self.view.processes and not self._problem:
            local = self._source.name == Processes.name
            lines = [Content(NOBODY if local else "No process is on the page.")]
        else:
            lines = [Content(" ")]
        self._statics["detail"].update(Content("\n").join(lines))

    def _draw_status(self) -> None:
        if time.monotonic() < self._said_until:
            text = self._said
        else:
            ended = "with those that ended" if self._ended else "without those that ended"
            text = f"by {self._sort}, {ended}"
            if more := self._jobs.out_of_view:
                text += f"; {more}"
            if self._words:
                text += f", with {plain(self._words)!r}: escape shows all"
        self._statics["status"].update(Content(f" {text}"))

    def _say(self, text: str) -> None:
        self._said, self._said_until = text, time.monotonic() + SAID_SECONDS
        self._draw_status()

    # Keys.

    def action_pause(self) -> None:
        if self._reader is not None:
            self._reader.paused = not self._reader.paused
            self._reader.look()
        self._draw()

    def action_sort(self) -> None:
        self._sort = SORTS[(SORTS.index(self._sort) + 1) % len(SORTS)]
        self._draw()

    def action_ended(self) -> None:
        self._ended = not self._ended
        self._draw()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        # In a question or a field a slash is a slash.
        if action == "filter":
            return len(self.screen_stack) == 1 and self.screen.focused is not self._filter
        return True

    def action_filter(self) -> None:
        self._filter.value = self._words
        self._filter.display = True
        self.screen.set_focus(self._filter)  # now: what is typed next belongs there

    def on_input_changed(self, event: Input.Changed) -> None:
        if event.input.id == "filter":
            self._words = event.value
            self._draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.input.id == "filter":
            self._leave_filter()

    def action_unfilter(self) -> None:
        self._words = ""
        self._filter.value = ""
        self._leave_filter()
        self._draw()

    def _leave_filter(self) -> None:
        self._filter.display = False
        self.screen.set_focus(self._jobs)

    def action_help(self) -> None:
        self.push_screen(_Help())

    def _selected(self) -> JobRow | None:
        """The chosen job, if anything can be done to it."""
        job = self._jobs.selected
        if job is None:
            self._say("no job is chosen")
        elif job.ended is not None:
            self._say(f"job {job.number} of process {job.pid} is over")
            return None
        return job

    def action_cancel_job(self) -> None:
        job = self._selected()
        if job is None:
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self._change(f"cancel {_which(job)}", lambda: self._cancel(job))

        lines: list[list[Cell]] = [
            [(f"{job.kind} {job.number} of process {job.pid}", "")],
            [(fit(job.name, 200).rstrip(), "head")],
            [("Running chunks end; what was done is undone, if it has an undo.", "")],
            [("This cannot be taken back.", "")],
        ]
        self.push_screen(
            _Ask("cancel this job?", lines, "y: cancel it   n, escape: leave it"), answered
        )

    def action_renice_job(self) -> None:
        job = self._selected()
        if job is None:
            return

        def answered(nice: int | None) -> None:
            if nice is not None:
                self._change(f"renice {_which(job)}", lambda: self._renice(job, nice))

        self.push_screen(_AskNice(job), answered)

    def _cancel(self, job: JobRow) -> str:
        told = self._source.cancel(job.pid, job.number)
        return _outcome(told, f"{_which(job)} is cancelled", f"{_which(job)} was over already")

    def _renice(self, job: JobRow, nice: int) -> str:
        told = self._source.renice(job.pid, job.number, nice)
        return _outcome(told, f"{_which(job)} has nice {nice}", f"{_which(job)} was over already")

    def _change(self, what: str, change: Callable[[], str]) -> None:
        """Do it on a thread of its own, and say what came of it."""

        def do() -> None:
            try:
                text = change()
            except Exception as error:
                text = f"! {what}: {type(error).__name__}: {error}"
            self.post_message(_Changed(plain(text)))

        self._say(f"{what} ...")
        threading.Thread(target=do, name="aioktask top changes", daemon=True).start()


def _which(job: JobRow) -> str:
    return f"job {job.number} of process {job.pid}"


def _outcome(told: Told, done: str, over: str) -> str:
    """What came of a change, in words."""
    if told.problem:
        return f"! process {told.pid}: {told.problem}"
    return done if told.answer else over
