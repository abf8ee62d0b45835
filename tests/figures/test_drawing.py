# SPDX-License-Identifier: MIT
# The pictures, read back as a browser would: what is drawn stands where the values are.

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.figures import svg
from aioktask.figures.drawing import Mark, Panel, Point, Series, draw

SVG = "{http://www.w3.org/2000/svg}"
SPEEDS = st.floats(0.001, 1000)
CHUNKS = st.integers(1, 1 << 50)


def panel(*lines: list[tuple[float, float]], marks: tuple[Mark, ...] = ()) -> Panel:
    series = [
        Series(f"line {at}", [Point(x, y, y, y) for x, y in line]) for at, line in enumerate(lines)
    ]
    return Panel("a panel", "units", series, marks)


def drawn(*panels: Panel, title: str = "", caption: str = "") -> ElementTree.Element:
    text = draw(panels, title=title, caption=caption)
    assert text.isascii()
    return ElementTree.fromstring(text)


def lines(picture: ElementTree.Element) -> list[list[tuple[float, float]]]:
    """The places along each line."""
    return [
        [
            (float(x), float(y))
            for x, y in (place.split(",") for place in each.get("points").split())
        ]
        for each in picture.iter(f"{SVG}polyline")
    ]


def texts(picture: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in picture.iter(f"{SVG}text")]


def rings(picture: ElementTree.Element) -> list[tuple[float, float]]:
    return [
        (float(each.get("cx")), float(each.get("cy")))
        for each in picture.iter(f"{SVG}circle")
        if each.get("fill") == "none"
    ]


def test_x_is_logarithmic_and_y_is_linear_from_zero() -> None:
    [places] = lines(drawn(panel([(1, 0.0), (4, 1.0), (16, 2.0), (64, 3.0)])))
    for (x1, y1), (x2, y2) in pairwise(places):
        assert x2 - x1 == pytest.approx((places[3][0] - places[0][0]) / 3, abs=0.2)
        assert y1 - y2 == pytest.approx((places[0][1] - places[3][1]) / 3, abs=0.2)


def test_ticks_stand_at_what_they_say() -> None:
    picture = drawn(panel([(1024, 0.5), (1 << 20, 2.0)]))
    [[(left, low), (right, high)]] = lines(picture)
    at = {each.text: each for each in picture.iter(f"{SVG}text")}
    assert float(at["1Ki"].get("x")) == pytest.approx(left, abs=0.2)
    assert float(at["1Mi"].get("x")) == pytest.approx(right, abs=0.2)
    # A number stands with its middle, some 4 below the base line, at its height.
    assert float(at["0.5"].get("y")) - 4 == pytest.approx(low, abs=0.2)
    assert float(at["2"].get("y")) - 4 == pytest.approx(high, abs=0.2)


def test_an_interval_is_drawn_from_its_lower_to_its_upper_end() -> None:
    points = [Point(1, 2.0, 1.0, 2.5), Point(2, 0.0, 0.0, 0.0)]
    picture = drawn(Panel("", "", [Series("one", points)]))
    [[(_, middle), (_, zero)]] = lines(picture)
    [whisker] = [
        found
        for each in picture.iter(f"{SVG}path")
        if (found := re.fullmatch(r"M\S+ (\S+)h6m-3 0V(\S+)m-3 0h6", each.get("d")))
    ]
    unit = (zero - middle) / 2
    assert zero - float(whisker[1]) == pytest.approx(unit, abs=0.2)
    assert zero - float(whisker[2]) == pytest.approx(2.5 * unit, abs=0.2)


def test_a_long_interval_is_cut_off_without_an_end() -> None:
    points = [Point(1, 1.0, 0.5, 50.0), Point(2, 2.0, 1.5, 2.1)]
    picture = drawn(Panel("", "", [Series("one", points)]))
    [[(_, low), (_, high)]] = lines(picture)
    top = low - (low - high) * 2  # where 3 is
    [path] = [
        each.get("d")
        for each in picture.iter(f"{SVG}path")
        if re.fullmatch(r"M\S+ \S+h6m-3 0V\S+", each.get("d")) and each.get("d")[-2:] != "h6"
    ]
    assert float(path.rpartition("V")[2]) == pytest.approx(top, abs=0.2)


def test_a_mark_rings_the_place_that_it_names() -> None:
    marks = (Mark(16, "the one chosen", 2.0), Mark(64, "no ring"))
    picture = drawn(panel([(4, 1.0), (16, 2.0), (64, 1.5)], marks=marks))
    [places] = lines(picture)
    [ring] = rings(picture)
    assert ring == pytest.approx(places[1], abs=0.2)
    for label in ("the one chosen", "no ring"):
        assert label in texts(picture)


def test_labels_of_marks_stand_in_lines_of_their_own_above_the_plot() -> None:
    marks = (Mark(16, "a label of some length", 2.0), Mark(16, "another one just there", 1.0))
    picture = drawn(panel([(4, 1.0), (16, 2.0)], marks=marks))
    highest = min(y for places in lines(picture) for _, y in places)
    at = {each.text: float(each.get("y")) for each in picture.iter(f"{SVG}text")}
    heights = [at[mark.label] for mark in marks]
    assert heights[1] - heights[0] >= svg.FONT
    assert heights[1] < highest


def test_panels_stand_side_by_side_with_their_axes_level() -> None:
    marks = (Mark(4, "one"), Mark(4, "two"))
    first = panel(*[[(1, 1.0), (4, 2.0)]] * 9)
    second = panel([(1, 1.0), (4, 2.0)], marks=marks)
    places = lines(drawn(first, second, title="two", caption="the machine"))
    assert max(x for x, _ in places[0]) < min(x for x, _ in places[-1])
    assert [y for _, y in places[0]] == [y for _, y in places[-1]]


@given(
    st.lists(st.dictionaries(CHUNKS, SPEEDS, min_size=1, max_size=9), min_size=1, max_size=12),
    st.lists(st.tuples(CHUNKS, SPEEDS), max_size=3),
)
def test_everything_lies_on_the_paper(
    curves: list[dict[int, float]], marked: list[tuple[int, float]]
) -> None:
    marks = tuple(Mark(x, f"mark {x}", y) for x, y in marked)
    one = panel(*[sorted(curve.items()) for curve in curves], marks=marks)
    picture = drawn(one, one, title="a title", caption="a caption")
    width, height = (float(picture.get(each)) for each in ("width", "height"))
    places = [place for line in lines(picture) for place in line] + rings(picture)
    for each in picture.iter():
        if each.get("x") and each.tag == f"{SVG}text":
            places.append((float(each.get("x")), float(each.get("y"))))
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)


@given(st.text(), st.text(), st.text(), st.text())
def test_any_text_makes_a_document(title: str, name: str, label: str, caption: str) -> None:
    one = Panel(title, label, [Series(name, [Point(1, 1, 1, 1)])], [Mark(1, label)], label)
    drawn(one, title=title, caption=caption)


def test_text_comes_back_as_it_was_given() -> None:
    name = "f\u00fcr <a & b> \"c\" '\u03bc'"
    one = Panel(name, name, [Series(name, [Point(1, 1, 1, 1)])])
    picture = drawn(one, title=name)
    assert texts(picture).count(name) == 4
    assert picture.find(f"{SVG}title").text == name


def test_a_long_title_is_wrapped_into_lines_that_fit() -> None:
    title = "a_name_without_any_space_" * 9 + " and some words" * 20
    picture = drawn(panel([(1, 1.0)]), title=title)
    width = float(picture.get("width"))
    wrapped = [each for each in texts(picture) if "name" in each or "words" in each]
    assert "".join(wrapped).replace(" ", "") == title.replace(" ", "")
    assert all(svg.width(each, svg.FONT + 4) <= width for each in wrapped)


def test_a_reader_who_cannot_see_it_is_told_what_it_shows() -> None:
    picture = drawn(
        panel([(4, 1.0), (1024, 2.5)], marks=(Mark(64, "the engine chose"),)), title="work:fn"
    )
    assert picture.get("role") == "img"
    titled, described = picture.get("aria-labelledby").split()
    by_id = {each.get("id"): each.text for each in picture.iter()}
    assert by_id[titled] == "work:fn"
    assert "line 0: highest 2.5 at 1,024" in by_id[described]
    assert "marked at 64: the engine chose" in by_id[described]


def test_the_paper_is_painted_so_that_it_reads_on_a_dark_page() -> None:
    rectangle = next(drawn(panel([(1, 1.0)])).iter(f"{SVG}rect"))
    assert (rectangle.get("width"), rectangle.get("height")) == ("100%", "100%")
    assert rectangle.get("fill") == svg.PAPER


@pytest.mark.parametrize("colour", [*svg.COLOURS, svg.INK, svg.GREY])
def test_lines_and_letters_stand_out_from_the_paper(colour: str) -> None:
    # The contrast of WCAG 2: at least 3 for what is drawn.
    assert _luminance(svg.PAPER) + 0.05 >= 3 * (_luminance(colour) + 0.05)


def test_no_two_lines_look_the_same() -> None:
    looks = {(each % len(svg.COLOURS), each % len(svg.SHAPES)) for each in range(28)}
    assert len(looks) == 28
    shapes = {re.sub(r"[\d.]+", "", svg.shape(each, 0, 0)) for each in range(len(svg.SHAPES))}
    assert len(shapes) == len(svg.SHAPES)


def test_the_same_values_make_the_same_picture() -> None:
    one = panel([(4, 1.0), (16, 2.0)])
    assert draw([one], title="t") == draw([one], title="t")


@pytest.mark.parametrize("panels", [[], [panel()], [panel([(1, 1.0)]), panel([])]])
def test_a_panel_without_a_point_is_refused(panels: list[Panel]) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(panels)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        each / 12.92 if each <= 0.03928 else ((each + 0.055) / 1.055) ** 2.4 for each in parts
    ]
    return sum(share * each for share, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
