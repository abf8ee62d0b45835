# SPDX-License-Identifier: MIT
# The pictures: what is drawn stands where the values are, can be read at a phone's width, on a
# light and on a dark page and without colours, and is the same for the same values.

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from aioktask.figures.measure import Interval
from aioktask.figures.panel import (
    Bars,
    Curves,
    Dots,
    Mark,
    Panel,
    Picture,
    Point,
    Reading,
    Row,
    Series,
    described,
)

pytest.importorskip("matplotlib")

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from aioktask.figures import chart
from aioktask.figures.chart import draw, figure
from aioktask.figures.ticks import binary, even_ticks, log_ticks, plain, power_ticks

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
# A phone's column: 3/4 of the pictures' width on a page.
PHONE = 0.75

# A picture takes a tenth of a second, so a failing one is not made smaller.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)

VALUES = st.floats(1e-3, 1e4)
WORDS = st.text("abcdefghij ^=", min_size=1, max_size=60)


def reading(low: float, median: float, high: float, *promised: float) -> Reading:
    return Reading(Interval(median, low, high, 15), promised)


@st.composite
def readings(draw: st.DrawFn) -> Reading:
    low, median, high = sorted(draw(st.tuples(VALUES, VALUES, VALUES)))
    return reading(low, median, high, *draw(st.lists(VALUES, max_size=2)))


@st.composite
def dots(draw: st.DrawFn) -> Dots:
    series = draw(st.integers(1, 4))
    told = st.text("0123456789,. /", max_size=24)
    row = st.builds(Row, WORDS, st.tuples(*[readings() | st.none()] * series), told)
    rows = draw(st.lists(row, min_size=1, max_size=4))
    assume(any(each for one in rows for each in one.readings))
    names = tuple(f"series {at}" for at in range(series))
    return Dots(draw(WORDS), draw(WORDS), rows, names, "what is promised")


@st.composite
def bars(draw: st.DrawFn) -> Bars:
    row = st.builds(Row, WORDS, st.tuples(readings(), readings() | st.none()))
    return Bars(draw(WORDS), ("it takes, ms", "it waits, ms"), draw(st.lists(row, min_size=1)))


@st.composite
def curves(draw: st.DrawFn) -> Curves:
    def series(at: int) -> Series:
        xs = draw(st.lists(st.integers(0, 40), min_size=1, max_size=9, unique=True))
        points = [Point(2.0**x, each := draw(VALUES), each / 2, each * 3) for x in sorted(xs)]
        return Series(f"{at} threads", points)

    lines = [series(at) for at in range(draw(st.integers(1, 4)))]
    return Curves(draw(WORDS), "units", "speed", lines, [Mark(2.0**9, draw(VALUES), "chosen")])


PICTURES = st.builds(Picture, WORDS, st.lists(dots() | bars() | curves(), min_size=1, max_size=2))


def named(picture: Picture, gid: str) -> list[Any]:
    """Artists of the picture's axes that are marked so, from the first drawn on."""
    axes = figure(picture).axes
    return [each for one in axes for each in one.get_children() if each.get_gid() == gid]


def parsed(picture: Picture) -> ElementTree.Element:
    return ElementTree.fromstring(draw(picture))


# where things stand


@given(dots())
@settings(max_examples=8, phases=PHASES)
def test_dots_whiskers_and_promises_stand_at_their_values(panel: Dots) -> None:
    picture = Picture("", [panel])
    every = [each for row in panel.rows for each in row.readings if each is not None]
    places = [tuple(each.get_xdata()) for each in named(picture, "dot")]
    assert places == [(each.value.median,) for each in every]
    ends = [tuple(each.get_xdata()) for each in named(picture, "whisker")]
    wide = [each.value for each in every if each.value.low < each.value.high]
    assert ends == [(each.low, each.high) for each in wide]
    limits = [tuple(each.get_xdata()) for each in named(picture, "promise")]
    assert limits == [(limit, limit) for each in every for limit in each.promised]
    [axes] = figure(picture).axes
    assert axes.get_xscale() == "log"
    low, high = axes.get_xlim()
    shown = [x for each in (*places, *ends, *limits) for x in each]
    assert low < min(shown) <= max(shown) < high


@given(dots())
@settings(max_examples=8, phases=PHASES)
def test_a_promise_crosses_the_reading_that_it_is_of_and_no_other(panel: Dots) -> None:
    picture = Picture("", [panel])
    heights = [each.get_ydata()[0] for each in named(picture, "dot")]
    assert heights == sorted(heights)
    assert all(b - a >= chart.STEP for a, b in pairwise(heights))
    every = [each for row in panel.rows for each in row.readings if each is not None]
    promised = [y for each, y in zip(every, heights, strict=True) for _ in each.promised]
    for line, y in zip(named(picture, "promise"), promised, strict=True):
        assert line.get_ydata()[0] < y < line.get_ydata()[1]
        assert line.get_ydata()[1] - line.get_ydata()[0] <= chart.STEP


def test_what_cannot_be_on_a_logarithmic_axis_stands_at_its_end() -> None:
    rows = [Row("early", [reading(-1.0, 0.0, 2.0)]), Row("late", [reading(1.0, 2.0, 3.0)])]
    picture = Picture("", [Dots("", "ms", rows)])
    [axes] = figure(picture).axes
    least = axes.get_xlim()[0]
    early, late = named(picture, "dot")
    assert (early.get_xdata()[0], late.get_xdata()[0]) == (least, 2.0)
    assert tuple(named(picture, "whisker")[0].get_xdata()) == (least, 2.0)
    draw(picture)


def test_bars_begin_at_zero_and_each_column_has_its_axis() -> None:
    rows = [
        Row("one", [reading(250, 300, 320), reading(290, 310, 350)]),
        Row("two", [reading(90, 100, 120), None]),
        Row("three", [reading(0, 0, 0), reading(1, 1.5, 2)]),
    ]
    picture = Picture("", [Bars("work", ("it takes, ms", "it waits, ms"), rows)])
    left, right = figure(picture).axes
    assert [bar.get_width() for bar in left.patches] == [300, 100, 0]
    assert [bar.get_width() for bar in right.patches] == [310, 1.5]
    assert all(bar.get_x() == 0 for bar in (*left.patches, *right.patches))
    assert left.get_xlim()[0] == right.get_xlim()[0] == 0
    heights = [bar.get_y() for bar in left.patches]
    assert [bar.get_y() for bar in right.patches] == [heights[0], heights[2]]


@given(curves())
@settings(max_examples=8, phases=PHASES)
def test_curves_go_through_their_points_and_a_ring_is_where_the_mark_says(panel: Curves) -> None:
    picture = Picture("", [panel])
    lines = [(list(e.get_xdata()), list(e.get_ydata())) for e in named(picture, "curve")]
    assert lines == [([p.x for p in s.points], [p.y for p in s.points]) for s in panel.series]
    [ring] = named(picture, "mark")
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (panel.marks[0].x, panel.marks[0].y)
    [axes] = figure(picture).axes
    assert axes.get_xscale() == "log"
    assert axes.get_ylim()[0] == 0
    low, high = axes.get_xlim()
    assert all(low <= x <= high for xs, _ in lines for x in xs)
    assert all(y <= axes.get_ylim()[1] for _, ys in lines for y in (*ys, panel.marks[0].y))


def test_a_long_interval_does_not_press_the_curves_together() -> None:
    points = [Point(1, 1.0, 0.5, 50.0), Point(2, 2.0, 1.5, 2.1)]
    picture = Picture("", [Curves("", "units", "speed", [Series("one", points)])])
    [axes] = figure(picture).axes
    assert 2.0 < axes.get_ylim()[1] < 4.0


@given(st.floats(1e-3, 1e6), st.floats(1.05, 1e9))
@settings(max_examples=20)
def test_ticks_lie_on_their_axis_at_what_they_say(low: float, ratio: float) -> None:
    high, width = low * ratio, 300.0
    for ticks, text in (
        (log_ticks(low, high, width), plain),
        (power_ticks(low, max(high, 2.5 * low), width), binary),
        (even_ticks(high, width), plain),
    ):
        assert ticks
        assert ticks == sorted(set(ticks))
        labels = [text(each) for each in ticks]
        assert len(set(labels)) == len(labels)
        if text is plain:
            assert [float(each.replace(",", "")) for each in labels] == pytest.approx(ticks)
    assert all(0 <= each <= high * (1 + 1e-9) for each in even_ticks(high, width))
    assert all(low <= each <= high for each in log_ticks(low, high, width))


# reading it


def texts(picture: Picture) -> list[Text]:
    """All that is written, where it stands in pixels."""
    made = figure(picture)
    FigureCanvasAgg(made)
    made.draw_without_rendering()
    return [each for each in made.findobj(Text) if each.get_text() and each.get_visible()]


@given(PICTURES)
@settings(max_examples=12, phases=PHASES)
def test_all_that_is_written_lies_on_the_paper_and_none_of_it_on_other_writing(
    picture: Picture,
) -> None:
    written = texts(picture)
    made = written[0].get_figure()
    assert made is not None
    boxes = [(each.get_text(), each.get_window_extent()) for each in written]
    for text, box in boxes:
        assert -0.5 <= box.x0 <= box.x1 <= made.bbox.width + 0.5, text
        assert -0.5 <= box.y0 <= box.y1 <= made.bbox.height + 0.5, text
    for (one, box), (other, beside) in combinations(boxes, 2):
        # Letters reach a little above and below their line.
        apart_across = box.x1 <= beside.x0 + 0.5 or beside.x1 <= box.x0 + 0.5
        apart_upright = box.y1 <= beside.y0 + 2 or beside.y1 <= box.y0 + 2
        assert apart_across or apart_upright, (one, other)


@given(PICTURES)
@settings(max_examples=10, phases=PHASES)
def test_letters_have_nine_points_on_a_phone(picture: Picture) -> None:
    assert all(each.get_fontsize() * PHONE >= 9 for each in texts(picture))
    assert float(parsed(picture).get("width", "").removesuffix("pt")) == chart.WIDTH


@given(st.text(), st.text(), st.text(), st.text())
@settings(max_examples=10, phases=PHASES)
def test_any_text_makes_a_document(title: str, name: str, label: str, caption: str) -> None:
    rows = [Row(name, [reading(1, 2, 3, 2.5)], label)]
    points = [Point(1, 1, 1, 2)]
    panels: list[Panel] = [
        Dots(title, label, rows, (name,), caption),
        Bars(title, (label,), rows),
        Curves(title, label, name, [Series(name, points)], [Mark(1, 1, label)]),
    ]
    parsed(Picture(title, panels, caption))


def test_text_comes_back_as_it_was_given() -> None:
    name = "f\u00fcr <a & b> \"c\" '\u03bc' $x$"
    picture = parsed(Picture(name, [Dots(name, name, [Row(name, [reading(1, 2, 3)])])], name))
    written = [each.text for each in picture.iter(f"{SVG}text")]
    assert written.count(name) == 5
    assert picture.find(f"{SVG}title").text == name  # type: ignore[union-attr]


def test_a_reader_who_cannot_see_it_is_told_what_it_shows() -> None:
    line = [Point(4, 1.0, 1.0, 1.0), Point(1024, 2.5, 2.0, 3.0)]
    rows = [Row("ours", [reading(1, 2, 3)], "2.00, not kept"), Row("theirs", [reading(4, 5, 6)])]
    picture = Picture(
        "work:fn",
        [
            Curves("", "units", "speed", [Series("one thread", line)], [Mark(64, 1, "chosen")]),
            Dots("A comparison", "ms", rows),
        ],
    )
    root = parsed(picture)
    assert root.get("role") == "img"
    by_id = {each.get("id"): each.text for each in root.iter()}
    titled, told = (by_id[each] for each in (root.get("aria-labelledby") or "").split())
    assert titled == "work:fn"
    assert told == described(picture)
    for words in ("one thread is highest at 1,024: 2.50", "chosen", "ours: 2.00, not kept"):
        assert words in told
    assert "A comparison (ms)" in told
    assert "theirs: 5.00" in told


# light, dark, and without colours


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        each / 12.92 if each <= 0.03928 else ((each + 0.055) / 1.055) ** 2.4 for each in parts
    ]
    return sum(share * each for share, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """As WCAG 2 has it."""
    lower, higher = sorted((luminance(one), luminance(other)))
    return (higher + 0.05) / (lower + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_lines_and_letters_stand_out_from_the_paper(dark: bool) -> None:
    shown = {colour: chart.DARK[colour] if dark else colour for colour in chart.DARK}
    paper = shown.pop(chart.PAPER)
    assert all(contrast(shown[each], paper) >= 4.5 for each in (chart.INK, chart.GREY))
    del shown[chart.GRID]
    assert all(contrast(each, paper) >= 3 for each in shown.values())


@given(PICTURES)
@settings(max_examples=10, phases=PHASES)
def test_every_colour_has_another_on_a_dark_page(picture: Picture) -> None:
    root = parsed(picture)
    head = root.find(f"{SVG}style")
    assert head is not None
    assert head.text is not None
    assert head.text.startswith("@media (prefers-color-scheme:dark)")
    drawn = "".join(each.get("style", "") for each in root.iter())
    used = set(re.findall(r"(fill|stroke): (#[0-9a-f]{6})", drawn))
    assert ("fill", chart.PAPER) in used
    for what, colour in used:
        rule = f'[style*="{what}: {colour}"]{{{what}:{chart.DARK[colour]}!important}}'
        assert rule in head.text
    # Black is what has no colour of its own: it would be lost on a dark page.
    assert all("fill: #" in each.get("style", "") for each in root.iter(f"{SVG}text"))


def test_no_two_series_have_the_same_shape() -> None:
    assert len({shape for shape, _ in chart.SHAPES}) == len(chart.SHAPES) == len(chart.COLOURS)
    rows = [Row("one", [reading(1, 2, 3)] * 4)]
    signs = named(Picture("", [Dots("", "", rows, tuple("abcd"))]), "dot")
    assert len({each.get_marker() for each in signs}) == 4


def test_what_is_ours_stands_in_bold_letters() -> None:
    rows = [Row("ours", [reading(1, 2, 3)], ours=True), Row("theirs", [reading(1, 2, 3)])]
    for panel in (Dots("", "", rows), Bars("", ("ms",), rows)):
        weights = {each.get_text(): each.get_weight() for each in texts(Picture("", [panel]))}
        assert (weights["ours"], weights["theirs"]) == ("bold", "normal")


# again and again

PROGRAM = """
from aioktask.figures.chart import draw
from aioktask.figures.measure import Interval
from aioktask.figures.panel import *
rows = [Row("one", [Reading(Interval(2.0, 1.0, 3.0, 15), (2.5,)), None], "2.00")]
line = Series("1 thread", [Point(4, 1.0, 0.5, 1.5), Point(8, 2.0, 1.0, 3.0)])
print(draw(Picture("t", [
    Dots("a", "ms", rows, ("one", "two"), "promised"),
    Bars("b", ("ms", "us"), rows),
    Curves("c", "units", "speed", [line], [Mark(8, 2.0, "here")]),
], "the machine")))
"""


def drawn_elsewhere(**environ: str) -> bytes:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        timeout=100,
        check=True,
    ).stdout


def test_the_same_values_make_the_same_bytes_whatever_the_user_has_set(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text(
        "font.size: 31\nsvg.fonttype: path\naxes.facecolor: red\nlines.linewidth: 9\n"
    )
    one = drawn_elsewhere(PYTHONHASHSEED="1")
    assert one.startswith(b"<?xml")
    assert one == drawn_elsewhere(PYTHONHASHSEED="2", MPLCONFIGDIR=str(tmp_path))


def test_the_settings_of_the_program_stay_as_they_are() -> None:
    with matplotlib.rc_context({"font.size": 31, "svg.hashsalt": "mine"}):
        before = dict(matplotlib.rcParams)
        draw(Picture("", [Dots("", "", [Row("", [reading(1, 2, 3)])])]))
        assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    "panels",
    [
        [],
        [Dots("", "", [])],
        [Dots("", "", [Row("none", [None])])],
        [Bars("", ("ms",), [])],
        [Curves("", "", "", [Series("", [])])],
        [Dots("", "", [Row("", [reading(1, 2, 3)])]), Curves("", "", "", [])],
    ],
)
def test_a_panel_without_a_value_is_refused(panels: list[Panel]) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(Picture("a title", panels))
