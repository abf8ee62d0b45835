# SPDX-License-Identifier: MIT
# Rows: whatever a program names its jobs, a line is text, and takes exactly the width it has.

from __future__ import annotations

import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aioktask.job import JobPhase
from aioktask.observe.processes import Told
from aioktask.status import HelperStatus
from aioktask.top._lines import lines_of
from aioktask.top._rows import (
    SORTS,
    Columns,
    cells_of,
    chosen,
    columns_for,
    detail,
    head,
    line,
    process_line,
    summary,
)
from aioktask.top._text import cells, fit, plain
from aioktask.top._view import JobRow, View, view_of
from tests.top.told import HOSTILE, answer, job

wcwidth = pytest.importorskip("wcwidth")

# Long ones, since what is cut is what goes wrong; and what terminals disagree about.
ODD = "\x1b\n\r\t\x00\x7f\x9b日本語\u0301\u0300\u200d\ufe0f👩🏽\U0001f1e9\u1160각\u202e"
TEXTS = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(ODD)), max_size=60)
WIDTHS = st.integers(1, 200)
PHASES: list[JobPhase] = ["waiting", "running", "stopping", "undoing", "settled"]


def taken(text: str) -> int:
    """How many cells a terminal gives a text; -1 if a character in it moves the cursor."""
    return int(wcwidth.wcswidth(text))


def row(**more: Any) -> JobRow:
    (found,) = view_of([answer(7, job(**more))]).jobs
    return found


@given(TEXTS)
@example(HOSTILE)
@example("\U0001f1e9\U0001f1ea")
@example("\u2630\ufe0f")
def test_plain_text_is_one_line_that_moves_no_cursor_and_is_no_wider_than_counted(
    text: str,
) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert 0 <= taken(shown) <= cells(shown)
    spacing = any(unicodedata.category(each) == "Mc" for each in shown)
    assert spacing or taken(shown) == cells(shown)


@given(TEXTS)
def test_text_in_rich_s_cells_is_no_wider_either(text: str) -> None:
    cell_len = pytest.importorskip("rich.cells").cell_len
    shown = plain(text)
    assert cell_len(shown) <= cells(shown)


def test_marks_cannot_be_piled_up() -> None:
    assert plain("e" + "\u0316" * 1000) == "e" + "\u0316" * 2
    assert plain("\u0316x") == "x"


def test_markup_and_ordinary_text_of_any_script_stay_as_they_are() -> None:
    for text in ("[red]a[/red]", "日本語", "naïve", "Ελληνικά", "🎉 done"):
        assert plain(text) == text


@given(TEXTS, st.integers(-2, 80), st.booleans())
@example("日本語", 4, False)
def test_fitted_text_has_exactly_the_width(text: str, width: int, right: bool) -> None:
    assert cells(fit(plain(text), width, right=right)) == max(width, 0)


@st.composite
def jobs(draw: st.DrawFn) -> Any:
    size = draw(st.one_of(st.none(), st.integers(0, 10**30)))
    done = draw(st.integers(0, 10**30 if size is None else size))
    return job(
        draw(st.integers(1, 10**12)),
        draw(TEXTS),
        phase=draw(st.sampled_from(PHASES)),
        done=done,
        size=size,
        labels=draw(st.dictionaries(TEXTS, TEXTS, max_size=2)),
        nice=draw(st.integers(-20, 19)),
        loan=draw(st.one_of(st.none(), st.integers(-20, 19))),
        threads=draw(st.integers(0, 10**6)),
        elapsed=draw(st.floats(0, 1e12)),
        waits_for=draw(TEXTS),
        stuck=draw(st.one_of(st.just(0.0), st.floats(0, 1e9))),
    )


@given(st.lists(jobs(), max_size=3), st.lists(jobs(), max_size=2), TEXTS, WIDTHS, st.booleans())
def test_every_line_takes_exactly_its_width(
    under_way: list[Any], over: list[Any], command: str, width: int, bar: bool
) -> None:
    ended = tuple(replace(each, phase="failed", ended=1.0) for each in over)
    view = view_of([answer(7, *under_way, ended=ended, command=command), Told(8, None, command)])
    rows = chosen(view, sort="process", words="", ended=True)
    columns = columns_for(width, rows, bar=bar)
    assert len(rows) == len(under_way) + len(over)
    for each in rows:
        assert cells(line(each, columns)) == width
    for sort in SORTS:
        assert cells(head(columns, sort)) == width
    for process in view.processes:
        assert sum(cells(text) for text, _ in process_line(process, width)) == width
    for text in lines_of(view, 1.0, width):
        assert 0 <= taken(text) <= width
    for each in rows:
        for parts in detail(each, view):
            assert "".join(text for text, _ in parts).isprintable()


def test_in_80_columns_all_columns_are_there_and_in_fewer_those_that_matter_most() -> None:
    shown = row(name="fill table", nice=5, loan=-5)
    text = line(shown, columns_for(80, [shown]))
    for part in ("7", "fill table", "5>-5", "2.0 s", "running", "██", "40%", "20/s", "1"):
        assert part in text
    narrow = columns_for(52, [shown])
    assert (narrow.nice, narrow.time) == (0, 0)
    assert "fill tab" in line(shown, narrow)
    assert "running" in line(shown, narrow)


def shown_in(columns: Columns, shown: JobRow) -> str:
    return line(shown, columns).rstrip()


def test_what_a_job_waits_for_stands_in_its_line() -> None:
    waits = row(
        phase="waiting", done=0, waits_for="a thread: the process's 2 are at job 7 (resize)"
    )
    assert shown_in(columns_for(80, [waits]), waits).endswith("waiting: the process's 2 are at j…")
    assert shown_in(columns_for(140, [waits]), waits).endswith(
        "waiting: the process's 2 are at job 7 (resize)"
    )


def test_a_job_that_has_begun_and_waits_keeps_its_bar_and_says_in_a_word_that_it_waits() -> None:
    waits = row(waits_for="a thread: all are at other jobs", threads=0)
    assert " waits " in line(waits, columns_for(80, [waits]))
    assert "40%" in line(waits, columns_for(80, [waits]))
    stuck = row(waits_for="", stuck=45.0)
    assert " stuck " in line(stuck, columns_for(80, [stuck]))


def test_a_job_whose_chunk_waits_for_another_one_is_not_one_without_a_thread() -> None:
    at = row(waits_for="job 2 (inner), inside a chunk", threads=1)
    assert " running " in line(at, columns_for(140, [at]))
    assert "job 2 (inner), inside" in line(at, columns_for(140, [at]))


def test_how_long_a_job_takes_is_told_where_that_is_known() -> None:
    known = job(1)
    eta = replace(known.progress, eta=9.0)  # type: ignore[type-var]
    texts = [each.text for each in view_of([answer(7, replace(known, progress=eta), known)]).jobs]
    assert texts == ["9.0 s left", "for 2.0 s"]


def test_a_rate_is_told_once_there_is_one_however_low() -> None:
    columns = columns_for(80, [])
    assert "0.05" not in line(row(done=0), columns)
    assert " - " in line(row(done=0), columns)
    assert " 3/min " in line(replace(row(), rate=0.05), columns)
    assert " 20/s " in line(row(), columns)


def test_why_a_job_failed_is_told_in_its_line_and_in_the_detail() -> None:
    over = job(
        1, phase="failed", ended=3.0, error="OSError: no\n", error_chunk=range(8, 1016), undone=1
    )
    view = view_of([answer(7, ended=(over,))])
    (shown,) = view.ended
    told = "OSError: no\ufffd (units 8 to 1,016)"
    assert line(shown, columns_for(140, [shown])).rstrip().endswith(f"3.0 s ago: {told}")
    text = ["".join(each for each, _ in parts) for parts in detail(shown, view)]
    assert f"error     {told}" in text


def test_items_that_failed_are_counted() -> None:
    stream = job(1, stream=True)
    failing = replace(stream, progress=replace(stream.progress, failed=3))  # type: ignore[call-arg]
    view = view_of([answer(7, failing, ended=(replace(failing, phase="failed", ended=1.0),))])
    assert view.jobs[0].units == "40 of 100, 3 of them failed"
    assert ", 3 failed, 1.0 s ago" in view.ended[0].note


def test_the_bar_runs_back_while_a_job_is_undone() -> None:
    columns = columns_for(80, [])
    assert "40%" in line(row(phase="undoing", done=40, undone=0), columns)
    assert "10%" in line(row(phase="undoing", done=40, undone=30), columns)


def test_a_stream_whose_end_is_not_known_tells_how_much_is_done() -> None:
    assert "40 done" in line(row(stream=True, size=None), columns_for(80, []))


def test_each_order_has_the_largest_first_and_the_most_urgent() -> None:
    many = [
        job(1, "c", done=10, nice=5, threads=1, elapsed=3.0),
        job(2, "a", done=90, nice=0, threads=3, elapsed=1.0),
        job(3, "b", done=50, nice=9, loan=-3, threads=2, elapsed=2.0),
    ]
    view = view_of([answer(7, *many)])
    orders = {
        "process": [1, 2, 3],
        "name": [2, 3, 1],
        "progress": [2, 3, 1],
        "rate": [2, 3, 1],
        "threads": [2, 3, 1],
        "nice": [3, 2, 1],
        "time": [1, 3, 2],
    }
    assert set(orders) == set(SORTS)
    for sort, numbers in orders.items():
        found = chosen(view, sort=sort, words="", ended=False)
        assert [each.number for each in found] == numbers


def test_words_are_looked_for_in_names_labels_processes_and_states() -> None:
    many = [
        job(1, "Resize", labels={"who": "mary"}),
        job(2, "fill", phase="undoing"),
        job(3, "fill", stuck=40.0),
    ]
    over = job(4, "resize", phase="failed", ended=1.0)
    view = view_of([answer(7, *many, ended=(over,))])

    def numbers(words: str, ended: bool = True) -> list[int]:
        return [each.number for each in chosen(view, sort="process", words=words, ended=ended)]

    assert numbers("resize") == [1, 4]
    assert numbers("resize", ended=False) == [1]
    assert numbers(" WHO=mary ") == [1]
    assert numbers("undoing") == [2]
    assert numbers("stuck") == [3]
    assert numbers("7") == [1, 2, 3, 4]
    assert numbers("nothing") == []


def test_the_detail_tells_labels_helpers_the_stack_of_a_stuck_chunk_and_advice() -> None:
    helper = HelperStatus(
        "helper", 4711, "working", 1, 40.0, 5, None, range(0, 9), 40.0, ("in f", "in g")
    )
    other = replace(helper, thread=4712, job=2)
    shown = job(1, "fill", labels={"who": "mary"}, stuck=40.0, nice=9, loan=-3)
    view = view_of(
        [answer(7, shown, helpers=(helper, other), advice=(("fill", "use fewer"), ("x", "no")))]
    )
    told = ["".join(text for text, _ in each) for each in detail(view.jobs[0], view)]
    text = "\n".join(told)
    for part in ("who=mary", "helper 4711", "0 to 9", "in f", "in g", "use fewer", "lends it -3"):
        assert part in text
    assert "at one chunk for 40 s" in text
    assert "4712" not in text
    assert told.index(next(e for e in told if "in f" in e)) < told.index(
        next(e for e in told if "in g" in e)
    )
    assert not any(each.endswith(" no") for each in told)


def test_a_process_tells_its_helpers_its_loops_and_what_limits_it() -> None:
    view = view_of([answer(7, share=2)])
    text = "".join(part for part, _ in process_line(view.processes[0], 160))
    for part in ("7  python work.py", "1 of 2 helpers", "0.3 ms late, 12 at worst", "its share"):
        assert part in text


def test_a_thread_that_blocks_makes_room_for_one_more() -> None:
    view = view_of([answer(7, blocked=2)])
    assert "1 of 6 helpers" in "".join(part for part, _ in process_line(view.processes[0], 160))


def test_more_helpers_than_are_allowed_now_are_told_as_such() -> None:
    (process,) = view_of([answer(7, share=2)]).processes
    text = "".join(part for part, _ in process_line(replace(process, working=3), 160))
    assert "3 helpers, 2 at most" in text


def test_a_process_that_does_not_answer_keeps_its_command() -> None:
    before = view_of([answer(7, job())])
    view = view_of([Told(7, None, "it did not answer in 1 s: it hangs, or is stopped")], before)
    text = "".join(part for part, _ in process_line(view.processes[0], 100))
    assert text.rstrip() == (
        "7  python work.py  ! no answer: did not answer in 1 s: it hangs, or is stopped"
    )
    assert summary(view) == "1 process (1 silent), 0 jobs"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("limits",), None),
        (("jobs",), 5),
        (("jobs", 0, "name"), ["a"]),
        (("jobs", 0, "nice"), "7"),
        (("jobs", 0, "progress", "phase"), "dancing"),
        (("jobs", 0, "progress", "rate"), float("inf")),
        (("jobs", 0, "elapsed"), float("nan")),
        (("jobs", 0, "labels"), "x"),
        (("counts",), []),
        (("loops",), [1]),
    ],
)
def test_an_answer_of_another_form_is_a_problem_of_that_process(path: Any, value: Any) -> None:
    told = answer(7, job())
    where = told.answer
    for each in path[:-1]:
        where = where[each]
    where[path[-1]] = value
    view = view_of([told, answer(8, job())])
    assert "cannot be read here: another version?" in view.processes[0].problem
    assert [each.pid for each in view.jobs] == [8]


def test_cells_of_a_line_say_the_state_in_words_whatever_their_colour() -> None:
    for phase in PHASES:
        shown = row(phase=phase)
        assert phase in "".join(text for text, _ in cells_of(shown, columns_for(80, [shown])))
    assert View().process(1) is None
