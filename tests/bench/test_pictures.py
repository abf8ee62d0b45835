# SPDX-License-Identifier: MIT
# The pictures of the benchmarks and the pages of the documentation: they show the figures that they
# are made of, say what is promised and what is not kept, and are those of the files in docs/.

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.bench import BENCHMARKS
from aioktask.bench.pictures import pictures
from aioktask.bench.promises import Promise, Result
from aioktask.bench.told import Told, as_interval
from aioktask.figures.measure import Interval, interval
from aioktask.figures.panel import Bars, Dots, Picture, Row, described
from aioktask.figures.table import Table, number
from aioktask.tune.machine import info
from docs.make_pictures import DOCS, PAGES, Figures, filled

FIGURES = Figures(DOCS / "benchmarks")
VALUES = st.floats(0.01, 100)


@st.composite
def intervals(draw: st.DrawFn) -> Interval:
    low, median, high = sorted(draw(st.tuples(VALUES, VALUES, VALUES)))
    return Interval(median, low, high, 15)


def data(result: Result) -> dict[str, Any]:
    """What is written as JSON, and read again."""
    read: dict[str, Any] = json.loads(json.dumps({**result.data(), "machine": info()}))
    return read


def rows(picture: Picture) -> Iterator[Row]:
    for panel in picture.panels:
        if isinstance(panel, Dots | Bars):
            yield from panel.rows


# what is read back


@given(intervals(), st.floats(0.1, 10), st.booleans())
def test_promises_are_read_back_as_they_were(
    reached: Interval, limit: float, at_least: bool
) -> None:
    promise = Promise("speed", limit, at_least, reached)
    told = Told(data(Result("tune", quick=False, promises=[promise])))
    assert told.promises == [promise]
    assert told.promises[0].kept == promise.kept


@given(intervals(), st.none() | VALUES)
def test_cells_are_read_back_as_they_were(value: Interval, other: float | None) -> None:
    table = Table("a title", ("", "a", "b"), [("heading",), ("one", value, other)])
    told = Told(data(Result("tune", quick=True, tables=[table])))
    assert told.titles() == ["a title"]
    cells = told.rows("a title")
    assert cells.keys() == {"one"}
    assert as_interval(cells["one"]["a"]) == value
    found = as_interval(cells["one"]["b"])
    assert found == (None if other is None else Interval(other, other, other, 1))
    assert told.rows("another title") == {}
    assert as_interval("not installed") is None
    assert told.machine.endswith("mean nothing.")


# what is drawn of it


@pytest.mark.parametrize("name", list(BENCHMARKS))
@pytest.mark.parametrize("kept", [True, False])
def test_a_promise_that_is_not_kept_is_said_in_words(name: str, kept: bool) -> None:
    promises = [
        Promise(each.text, each.limit, each.at_least, _reaching(each, kept))
        for each in FIGURES.told[name].promises
    ]
    changed = dict(FIGURES.told[name].data)
    changed["promises"] = Result(name, False, promises=promises).data()["promises"]
    made = pictures(changed)
    assert next(iter(made)) == name
    assert ("not kept" in described(made[name])) is not kept
    limits = {
        limit
        for row in rows(made[name])
        for each in row.readings
        if each
        for limit in each.promised
    }
    assert limits


def _reaching(promise: Promise, kept: bool) -> Interval:
    """A median far on one side of the limit or the other."""
    far = promise.limit * (10 if promise.at_least is kept else 0.1)
    return Interval(far, far, far, 15)


def test_the_rows_of_shares_have_what_was_measured_and_what_is_promised() -> None:
    shares = [interval([0.9, 1.0, 1.1]), interval([0.8, 0.9, 1.3])]
    title = "2 processes that share the machine"
    table = Table(
        title,
        ("", "of an even share"),
        [(f"  process {n + 1} of them", s) for n, s in enumerate(shares)],
    )
    promises = [
        Promise("2 processes: work done in all, of one process alone", 0.95, True, shares[0]),
        Promise(
            "2 processes: work done by the one that does least, of a quarter", 0.9, True, shares[0]
        ),
        Promise(
            "2 processes: work done by the one that does most, of a quarter", 1.1, False, shares[1]
        ),
    ]
    made = pictures(data(Result("share", False, tables=[table], promises=promises)))
    found = list(rows(made["share"]))
    assert [row.label for row in found] == [
        "all together, of one process alone",
        "process 1, of an even share",
        "process 2, of an even share",
    ]
    assert [each.value for row in found for each in row.readings if each] == [shares[0], *shares]
    promised = [each.promised for row in found for each in row.readings if each]
    assert promised == [(0.95,), (0.9, 1.1), (0.9, 1.1)]


def test_of_the_loop_the_rounds_beside_the_rival_count_where_there_are_some() -> None:
    told = FIGURES.told["latency"]
    sweep, fresh = told.rows("The loop: asyncio"), told.rows("The loop: asyncio, beside the rival")
    found = {row.label: row for row in rows(pictures(told.data)["latency"])}
    present = [name for name, cells in sweep.items() if as_interval(cells["p99, ms"])]
    assert list(found) == present
    alone = as_interval(fresh["nothing"]["p99, ms"])
    assert alone is not None
    for name, row in found.items():
        p99, worst = row.readings
        cells = fresh.get(name, sweep[name])
        assert p99 is not None
        assert worst is not None
        assert p99.value == as_interval(cells["p99, ms"])
        assert worst.value == as_interval(cells["worst of a window, ms"])
        assert p99.promised in ((), (alone.median + 1,))
        assert bool(p99.promised) is row.ours is (name in fresh and name.startswith("aioktask"))


def test_what_is_missing_has_no_row() -> None:
    changed = json.loads(json.dumps(FIGURES.told["overhead"].data))
    [table] = [each for each in changed["tables"] if each["title"] == "One empty chunk"]
    for row in table["rows"]:
        if row[0].startswith("joblib"):
            row[2:] = ["not installed", None]
    found = [row.label for row in rows(pictures(changed)["overhead-chunk"])]
    assert len(found) == len(table["rows"]) - 1
    assert not any(label.startswith("joblib") for label in found)


def test_the_demo_is_drawn_with_all_its_rounds() -> None:
    told = FIGURES.told["demo"]
    made = pictures(told.data)["demo"]
    assert len(made.panels) == 3
    for panel in made.panels:
        assert isinstance(panel, Bars)
        times = told.samples[panel.title]
        assert [row.label for row in panel.rows] == list(times)
        for row in panel.rows:
            took = row.readings[0]
            assert took is not None
            assert took.value == interval(1e3 * each for each in times[row.label])
            assert row.ours == (row.label == "run_multithreaded")


# the pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_the_figures_of_the_files_beside_it(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    made = filled(text, page, FIGURES)
    assert made == text, "run `make pictures`"
    assert filled(made, page, FIGURES) == made


def test_every_picture_is_there_and_on_a_page() -> None:
    there = {path.stem for path in (DOCS / "pictures").glob("*.svg")}
    assert there == FIGURES.pictures.keys()
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in there:
        assert f"pictures/{name}.svg)" in pages
        drawn = ElementTree.parse(DOCS / "pictures" / f"{name}.svg")
        told = drawn.findtext("{http://www.w3.org/2000/svg}desc")
        assert told == described(FIGURES.pictures[name]), "run `make pictures`"


@pytest.mark.parametrize("name", list(FIGURES.told))
def test_what_was_printed_and_what_was_written_are_of_one_run(name: str) -> None:
    printed = FIGURES.file(name, "txt").read_text(encoding="utf-8")
    told = FIGURES.told[name]
    assert told.machine.rstrip(".") in printed
    assert all(title.strip() in printed for title in told.titles())
    assert all(f"{promise.reached}" in printed for promise in told.promises)


def test_the_page_of_benchmarks_has_every_promise_that_is_not_kept() -> None:
    text = DOCS.joinpath("benchmarks.md").read_text(encoding="utf-8")
    for name in BENCHMARKS:
        for promise in FIGURES.told[name].promises:
            if not promise.kept:
                assert f"{promise.reached}" in text, promise.text
                assert number(promise.reached.median) in text


def test_new_figures_are_put_in_by_copying_files(tmp_path: Path) -> None:
    for file in (DOCS / "benchmarks").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    changed = json.loads((tmp_path / "neighbour.json").read_text())
    changed["promises"][0] |= {"median": 7.77, "low": 6.66, "high": 8.88, "kept": False}
    (tmp_path / "neighbour.json").write_text(json.dumps(changed))
    page = DOCS / "benchmarks.md"
    text = filled(page.read_text(encoding="utf-8"), page, Figures(tmp_path))
    assert "7.77 (6.66 to 8.88), promised at most 1.05" in text


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("picture nothing", "no figures for picture nothing"),
        ("nonsense tune", "there is no 'nonsense' to make, only picture"),
        ("table demo", "no figures for table demo"),
        ("output nothing", "no figures for output nothing"),
    ],
)
def test_what_no_file_has_is_refused(wanted: str, said: str) -> None:
    text = f"<!-- make pictures: {wanted} -->\n<!-- end -->\n"
    with pytest.raises(ValueError, match=said):
        filled(text, DOCS / "page.md", FIGURES)


def test_what_stands_around_is_left_as_it_is() -> None:
    text = (
        "# A page\n\n<!-- make pictures: picture demo -->\nold\n<!-- end -->\n\nand [more] *text*\n"
    )
    made = filled(text, DOCS.parent / "README.md", FIGURES)
    assert made.startswith("# A page\n\n<!-- make pictures: picture demo -->\n\n![The same work,")
    assert made.endswith("](docs/pictures/demo.svg)\n\n<!-- end -->\n\nand [more] *text*\n")
    assert "old" not in made
