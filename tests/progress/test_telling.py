# SPDX-License-Identifier: MIT
# The words and figures for where a job stands, lines for log files, and the markup of notebooks.

from __future__ import annotations

import html.parser
import io
import re
from pathlib import Path
from typing import Any, get_args

import hypothesis
import pytest
from hypothesis import strategies as st

import aioktask
from aioktask.job import OVER_PHASES, JobPhase, Learned, Progress, Report, StreamProgress
from aioktask.markup import card, element, meter, printable, table
from aioktask.progress._display import FIRST_LINE_SECONDS, Lines
from aioktask.status import JobStatus, Limits, Snapshot
from aioktask.telling import MEANINGS, Told, counted, html_of, told

PHASES: tuple[JobPhase, ...] = get_args(JobPhase)


@st.composite
def progresses(draw: st.DrawFn) -> Progress:
    size = draw(st.integers(0, 10**20))
    done = draw(st.integers(0, size))
    return Progress(
        done=done,
        size=size,
        threads=draw(st.integers(0, 64)),
        chunks=draw(st.integers(0, 10**6)),
        elapsed=draw(st.floats(0, 1e7)),
        rate=draw(st.floats(0, 1e12)),
        phase=draw(st.sampled_from(PHASES)),
        undone=draw(st.integers(0, done)),
        eta=draw(st.none() | st.floats(0, 1e9)),
    )


@hypothesis.given(st.text(), progresses())
def test_whatever_is_told_is_one_printable_line(name: str, progress: Progress) -> None:
    line = told(name, progress).line
    assert line.isprintable()
    assert len(line) < len(name) + 120


@hypothesis.given(progresses())
def test_100_percent_is_said_where_all_is_done_and_only_there(progress: Progress) -> None:
    shown = told("job", progress)
    left = progress.size - progress.done + progress.undone
    assert (shown.percent == "100%") == (left == 0)
    assert shown.fraction is not None
    assert 0 <= shown.fraction <= 1
    assert shown.over == (progress.phase in OVER_PHASES)


@pytest.mark.parametrize("phase", [each for each in PHASES if each in OVER_PHASES])
def test_each_way_to_end_is_told_in_its_own_words(phase: JobPhase) -> None:
    text = told("job", Progress(7, 10, 0, 7, 1.0, 7.0, phase, 0, 0.0)).text
    assert {
        "finished": "7 done in 1.0 s",
        "failed": "failed at 70%",
        "cancelled": "cancelled at 70%",
        "overloaded": "overloaded: did not begin in time",
        "timed out": "timed out at 70%",
        "undo failed": "ended at 70%, undo failed: 7 still done",
    }[phase] == text


def test_every_end_means_something_and_the_page_takes_it_for_the_same() -> None:
    assert OVER_PHASES <= MEANINGS.keys() <= set(PHASES)
    script = Path(aioktask.__file__).parent / "web" / "_page" / "static" / "view.js"
    table = script.read_text().partition("const PHASES = {")[2].partition("};")[0]
    of_page = {
        name.strip('"'): tone
        for name, tone in re.findall(r'("[a-z ]+"|[a-z]+): \["[^"]+", "([a-z]+)"\]', table)
    }
    assert of_page.keys() >= set(PHASES)
    for phase in PHASES:
        assert of_page[phase] == MEANINGS.get(phase, of_page[phase])
        assert phase in MEANINGS or of_page[phase] in ("quiet", "accent")


def test_a_stream_of_unknown_length_is_told_by_what_is_done() -> None:
    runs = StreamProgress(7, None, 2, 1.0, 7.0, "running")
    assert told("stream", runs).line == "stream: 7, for 1.0 s"
    assert told("stream", runs).percent == ""
    ended = StreamProgress(7, None, 0, 1.0, 7.0, "failed", 0.0)
    assert told("stream", ended).line == "stream: failed after 7"


@hypothesis.given(st.integers(0, 10**40))
def test_numbers_are_short(number: int) -> None:
    assert len(counted(number)) < 35
    if number < 10**21:
        assert len(counted(number)) <= 7


# Lines.


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def row(phase: JobPhase = "running", done: int = 5, name: str = "job", undone: int = 0) -> Told:
    return told(name, Progress(done, 10, 1, done, 1.0, 1.0, phase, undone, 3.0))


def test_a_log_has_lines_at_doubling_times_and_one_for_the_end() -> None:
    file, clock = io.StringIO(), Clock()
    lines = Lines(file, clock)
    times = []
    for second in range(int(FIRST_LINE_SECONDS * 100)):
        clock.now = float(second)
        before = file.getvalue()
        lines.show([row()])
        if file.getvalue() != before:
            times.append(second)
    first = FIRST_LINE_SECONDS
    assert times == [first, 2 * first, 4 * first, 8 * first, 16 * first, 32 * first, 64 * first]
    lines.show([row("finished", 10)])
    lines.close([row("finished", 10)])
    assert file.getvalue().splitlines()[len(times) :] == ["job: 10 done in 1.0 s"]


def test_a_log_says_once_that_a_job_is_being_undone() -> None:
    file = io.StringIO()
    lines = Lines(file, Clock())
    for undone in range(5):
        lines.show([row("undoing", 5, undone=undone), row(name="other")])
    lines.close([row("failed", 5, undone=5), row("finished", 10, "other")])
    assert file.getvalue().splitlines() == [
        "job: 50%, 5 of 10, undoing, 3.0 s left",
        "job: failed at 50%, undone",
        "other: 10 done in 1.0 s",
    ]


def test_a_log_in_another_encoding_gets_what_it_can_hold() -> None:
    raw = io.BytesIO()
    lines = Lines(io.TextIOWrapper(raw, encoding="ascii"), Clock())
    lines.close([row("finished", 10, "größe")])
    assert raw.getvalue() == b"gr??e: 10 done in 1.0 s\n"


# Markup.


class Reader(html.parser.HTMLParser):
    """Tags and text of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


@hypothesis.given(st.text(), st.text())
def test_nothing_that_a_program_names_is_markup(name: str, value: str) -> None:
    plain = Reader(card("a", figures=[("b", "c")]))
    found = Reader(card(name, figures=[(value, name)]))
    assert found.tags == plain.tags
    assert found.text == printable(name) + printable(value) + printable(name)
    titled = Reader(element("b", name, title=value))
    assert titled.attributes == [("title", printable(value))]


EVIL = "<script>alert('x')</script>\"'&"


def evil_things() -> dict[str, Any]:
    progress = Progress(7, 10, 0, 7, 1.0, 7.0, "failed", 7, 0.0)
    job = JobStatus(
        1, "job", EVIL, {EVIL: EVIL}, 0, -5, "failed", progress, 1, 0.1, 0.2, 0.3, waits_for=EVIL
    )
    limits = Limits(2, EVIL, None, 1, 1, 0, None)
    return {
        "progress": html_of(told(EVIL, progress)),
        "report": Report(EVIL, 1, 2, 0.1, 0.2, 0.3, (), Learned(8, 1), "no")._repr_html_(),
        "snapshot": Snapshot(1, 2.0, (job,), (job,), (), limits, ())._repr_html_(),
        "empty snapshot": Snapshot(1, 2.0, (), (), (), limits, ())._repr_html_(),
    }


@pytest.mark.parametrize("kind", list(evil_things()))
def test_names_and_values_are_shown_as_they_are(kind: str) -> None:
    found = Reader(evil_things()[kind])
    assert "script" not in found.tags
    assert EVIL in found.text or repr(EVIL) in found.text


def test_a_bar_of_unknown_length_claims_no_value() -> None:
    assert "aria-valuenow" not in meter(None, "waiting", "red")
    assert 'aria-valuenow="70"' in meter(0.701, "70%", "red")
    assert 'role="progressbar"' in meter(2.0, "too much", "red")
    assert table([]) == "<table></table>"


def test_a_value_whose_repr_fails_or_is_long_is_shown_in_short() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise ValueError("no repr")

    def shown(value: object) -> str:
        return Report(value, 1, 2, 0.1, 0.2, 0.3, (), Learned(8, 1), "no")._repr_html_()

    assert "Broken object at" in shown(Broken())
    assert len(shown("x" * 10**6)) < 3000
