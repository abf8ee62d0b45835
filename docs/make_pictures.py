# SPDX-License-Identifier: MIT
# The pictures of the documentation and the tables beside them, from the figures in benchmarks/:
#
#   NAME.json and NAME.txt in benchmarks/ are what `python -m aioktask bench NAME --json NAME.json`
#   wrote and printed (`python -m aioktask demo` for the demo). To put a new run in, copy both there
#   and run `make pictures`.
#
# A page says where something of it belongs, in a pair of comments, and what stands between them is
# made anew each time:
#
#   <!-- make pictures: KIND NAME -->
#   <!-- end -->
#
# The same files make the same pages and pictures.
"""Make the pictures, and the tables in the pages."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from aioktask.bench import BENCHMARKS, gil_bound, on_dask
from aioktask.bench.cluster import LIMIT
from aioktask.bench.pictures import pictures
from aioktask.bench.promises import Promise
from aioktask.bench.serve import AGAIN, BESIDE, COLUMNS, LEAST
from aioktask.bench.told import Told, as_interval
from aioktask.figures.panel import Picture, described
from aioktask.figures.table import number

DOCS = Path(__file__).parent
PAGES = (DOCS / "benchmarks.md", DOCS / "index.md", DOCS.parent / "README.md")
BLOCK = re.compile(
    r"(?P<begin><!-- make pictures: (?P<kind>[a-z]+) (?P<name>[a-z-]+) -->\n)"
    r".*?(?P<end><!-- end -->)",
    re.DOTALL,
)
# Where benchmarks.md tells of which benchmark.
SECTIONS = {
    "overhead": "overhead",
    "tune": "learned-chunk-sizes-and-threads",
    "latency": "the-event-loop-beside-a-job",
    "ordered": "a-stream-of-items",
    "serve": "a-web-server-under-load",
    "page": "the-live-page",
    "neighbour": "a-neighbour-beside-a-background-job",
    "share": "processes-that-share-a-machine",
    "cluster": "one-job-over-several-processes",
    "arrays": "arrays",
    "memory": "memory",
}

Rows = Iterable[Sequence[str]]


class Figures:
    """What is in a folder of benchmarks: NAME.json, and NAME.txt beside it.

    Attributes:
        told: The figures by name of the file.
        pictures: All pictures that can be made of them, by name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told = {
            path.stem: Told(json.loads(path.read_text(encoding="utf-8")))
            for path in sorted(folder.glob("*.json"))
        }
        self.pictures: dict[str, Picture] = {}
        for stem, told in self.told.items():
            # A run on another interpreter is kept beside the first, as NAME-ANOTHER.
            another = stem.removeprefix(told.name)
            self.pictures |= {f"{name}{another}": p for name, p in pictures(told.data).items()}

    def file(self, name: str, kind: str) -> Path:
        return self.folder / f"{name}.{kind}"


def main() -> int:
    """Write the pictures and the pages, and say which of them are different now."""
    from aioktask.figures.chart import draw

    figures = Figures(DOCS / "benchmarks")
    wanted = {DOCS / "pictures" / f"{name}.svg": draw(p) for name, p in figures.pictures.items()}
    wanted |= {page: filled(page.read_text(encoding="utf-8"), page, figures) for page in PAGES}
    for path, text in wanted.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"new: {os.path.relpath(path)}")
    return 0


def filled(text: str, page: Path, figures: Figures) -> str:
    """A page with all that is made in it made anew.

    Args:
        text: The page.
        page: Its path, to which the paths in it are relative.
        figures: From which it is made.

    Raises:
        ValueError: Something is wanted that no file has.
    """

    def block(found: re.Match[str]) -> str:
        kind, name = found["kind"], found["name"]
        if kind not in KINDS:
            raise ValueError(f"{page.name}: there is no {kind!r} to make, only {', '.join(KINDS)}")
        try:
            made = KINDS[kind](figures, name, page)
        except KeyError as error:
            raise ValueError(f"{page.name}: no figures for {kind} {name}: {error}") from error
        return f"{found['begin']}\n{made}\n\n{found['end']}"

    return BLOCK.sub(block, text)


# what can be made


def _picture(figures: Figures, name: str, page: Path) -> str:
    path = os.path.relpath(DOCS / "pictures" / f"{name}.svg", page.parent)
    return f"![{_plain(described(figures.pictures[name]))}]({path})"


def _output(figures: Figures, name: str, page: Path) -> str:
    """The command and the machine, and what was printed, folded away."""
    told = figures.told[name]
    printed, values = figures.file(name, "txt"), figures.file(name, "json")
    if not printed.is_file():
        raise KeyError(f"there is no {printed.name} beside {values.name}")
    text, data = (os.path.relpath(file, page.parent) for file in (printed, values))
    return "\n".join(
        [
            f"`{told.data['command']}`, {told.data['seconds']:.0f} s on {_plain(told.machine)}",
            "",
            "<details>",
            "<summary>What it printed</summary>",
            "",
            f"[The file]({text}), and [the figures as JSON]({data}).",
            "",
            f"```{{literalinclude}} {text}",
            ":language: text",
            "```",
            "",
            "</details>",
        ]
    )


def _text(figures: Figures, name: str, page: Path) -> str:
    """What was printed, for a page that cannot include a file."""
    printed = figures.file(name, "txt").read_text(encoding="utf-8").rstrip()
    return "\n".join(
        [
            "<details>",
            "<summary>What it printed</summary>",
            "",
            "```text",
            printed,
            "```",
            "",
            "</details>",
        ]
    )


def _table(figures: Figures, name: str, page: Path) -> str:
    if name == "overview":
        return _markdown(*_overview(figures))
    kind = name.removesuffix(FREE_THREADED)
    told = figures.told[SOURCE.get(kind, kind) + name.removeprefix(kind)]
    return "\n\n".join([_markdown(*TABLES[kind](told)), *_broken(told, kind)])


KINDS: Mapping[str, Callable[[Figures, str, Path], str]] = {
    "picture": _picture,
    "table": _table,
    "output": _output,
    "text": _text,
}


# tables

Table = tuple[Sequence[str], Rows]


def _overview(figures: Figures) -> Table:
    rows = []
    for name, section in SECTIONS.items():
        promises = figures.told[name].promises
        kept = sum(promise.kept for promise in promises)
        rows.append((f"[{name}](#{section})", BENCHMARKS[name], f"{kept} of {len(promises)}"))
    return ("", "what is measured", "promises kept"), rows


def _promised(told: Told) -> Table:
    """A row for each promise, where they are few."""
    rows = [
        (
            promise.text,
            _limit(promise),
            str(promise.reached),
            "kept" if promise.kept else "**not kept**",
        )
        for promise in told.promises
    ]
    return ("", "promised", "reached (95% interval)", ""), rows


def _tune(told: Told) -> Table:
    promises = {promise.text: promise for promise in told.promises}
    rows = []
    for name, cells in told.rows("Chunk sizes and threads, learned").items():
        later = promises.get(f"{name}: later runs, of the best of the sweep")
        rows.append(
            (
                name,
                number(cells["plain, ms"]),
                number(cells["best"]),
                number(cells["later/best"]) if later is None else _reached(later),
                number(cells["first/best"]),
                str(cells["chose"]),
            )
        )
    heads = ("", "plain, ms", "speed of the best, plain = 1")
    return (*heads, "later runs, of the best", "a first run, of the best", "chose"), rows


def _latency(told: Told) -> Table:
    loops = {}
    for loop in ("asyncio", "uvloop"):
        title = f"The loop: {loop}"
        loops[loop] = told.rows(title) | told.rows(f"{title}, beside the rival")
    rows = []
    for name, cells in loops["asyncio"].items():
        row = [name]
        for there in (cells, loops["uvloop"].get(name, {})):
            row += [_median(there.get(each)) for each in ("p99, ms", "worst of a window, ms")]
        rows.append([*row, _median(cells.get("million/s"))])
    heads = [f"{loop}: {what}, ms" for loop in loops for what in ("99%", "worst")]
    return ("beside", *heads, "asyncio: million/s"), rows


def _nice(told: Told) -> Table:
    places = [
        told.rows(f"The loop against the job's nice (asyncio), {where}")
        for where in ("alone on the machine", "beside CPU-bound neighbours")
    ]
    columns = ("p99, ms", "worst of a window, ms", "million/s")
    rows = [
        [name, *[_median(place[name].get(column)) for place in places for column in columns]]
        for name in places[0]
    ]
    heads = [
        f"{where}: {what}"
        for where in ("alone", "beside neighbours")
        for what in ("99%, ms", "worst, ms", "million/s")
    ]
    return ("", *heads), rows


def _neighbour(told: Told) -> Table:
    columns = ("alone = 1", "beside, alone = 1", "back after, ms")
    rows = [
        [name, *[_spread(cells.get(column)) for column in columns]]
        for name, cells in told.rows("Neighbours and a job").items()
        if as_interval(cells.get("beside, alone = 1")) is not None
    ]
    heads = ("the neighbour's time, alone = 1", "the job's work, alone = 1")
    return ("", *heads, "the job is back at full speed after, ms"), rows


def _lent(told: Told) -> Table:
    columns = ("until it is done, ms", "longest, ms", "speed, of nice 19")
    rows = [
        [name, *[_spread(cells.get(column)) for column in columns]]
        for name, cells in told.rows("A background job that someone waits for").items()
    ]
    return ("", *columns), rows


def _serve(told: Told) -> Table:
    found = told.rows(BESIDE) | told.rows(AGAIN)
    rows = [
        [name, *[_spread(cells.get(each)) for each in COLUMNS[:-1]]]
        for name, cells in found.items()
    ]
    return ("", *COLUMNS[:-1]), rows


def _least(told: Told) -> Table:
    columns = ("p50, ms", "p99 above service, ms")
    rows = [
        [name, *[_spread(cells.get(each)) for each in columns]]
        for name, cells in told.rows(LEAST).items()
    ]
    return ("", *columns), rows


def _on_dask(told: Told) -> Table:
    return _spreads(told, on_dask.TITLE)


def _gil_bound(told: Told) -> Table:
    return _spreads(told, gil_bound.TITLE)


def _limit_of_messages(told: Told) -> Table:
    return _spreads(told, LIMIT)


def _spreads(told: Told, title: str) -> Table:
    """A table as it was printed, whose cells are all figures."""
    found = told.rows(title)
    heads = list(next(iter(found.values())))
    rows = [[name, *[_spread(cells[head]) for head in heads[1:]]] for name, cells in found.items()]
    return heads, rows


def _arrays(told: Told) -> Table:
    column = "speed, plain NumPy = 1"
    rows = []
    for title in told.titles():
        cells = told.rows(title)
        pool = next((name for name in cells if name.startswith("ThreadPoolExecutor")), "")
        names = ("aioktask, untuned", pool, "asyncio.to_thread")
        speeds = [_spread(cells.get(name, {}).get(column)) for name in names]
        rows.append((title, _median(cells["plain NumPy"]["ms"]), *speeds))
    heads = ("plain NumPy, ms", "aioktask", "a thread pool, in as many slices", "asyncio.to_thread")
    return ("speed, plain NumPy = 1", *heads), rows


def _memory(told: Told) -> Table:
    by_name: dict[str, list[tuple[str, Promise]]] = {}
    for promise in told.promises:
        name, _, rival = promise.text.rpartition(": of ")
        by_name.setdefault(name, []).append((rival, promise))
    rows = []
    best = "the best C loop"
    for name, found in by_name.items():
        loop = [_reached(each) for rival, each in found if rival == best]
        calls = [f"{rival}: {_reached(each)}" for rival, each in found if rival != best]
        rows.append((name, *(loop or ["-"]), "; ".join(calls)))
    heads = ("speed, the best C loop = 1", "speed, the call that one would write = 1")
    return ("", *heads), rows


def _segments(told: Told) -> Table:
    loops: dict[str, list[Sequence[object]]] = {}
    for table in told.data["tables"]:
        loops[table["title"].rpartition(" on ")[2]] = table["rows"]
    rows = []
    for at, (where, what, _) in enumerate(next(iter(loops.values()))):
        taken = [_median(each[at][-1]) for each in loops.values()]
        rows.append([str(what), str(where or ""), *taken])
    return ("", "on", *[f"{loop}, us" for loop in loops]), rows


# What stands behind the name of a run on a free-threaded build.
FREE_THREADED = "-free-threaded"

# Of those that are not about a file of their own name.
SOURCE = {
    "latency-nice": "latency",
    "neighbour-lent": "neighbour",
    "serve-least": "serve",
    "serve-ways": "serve",
    "cluster-dask": "cluster",
    "cluster-gil": "cluster",
    "cluster-limit": "cluster",
}
TABLES: Mapping[str, Callable[[Told], Table]] = {
    "overhead": _promised,
    "overhead-segments": _segments,
    "tune": _tune,
    "latency": _latency,
    "latency-nice": _nice,
    "ordered": _promised,
    "serve": _promised,
    "serve-ways": _serve,
    "serve-least": _least,
    "page": _promised,
    "neighbour": _neighbour,
    "neighbour-lent": _lent,
    "share": _promised,
    "cluster": _promised,
    "cluster-dask": _on_dask,
    "cluster-gil": _gil_bound,
    "cluster-limit": _limit_of_messages,
    "arrays": _arrays,
    "memory": _memory,
}
# Below these all promises of the benchmark are counted: in the tables there are others, or none.
COUNTED = ("tune", "latency", "neighbour", "arrays", "memory")


def _broken(told: Told, name: str) -> Iterator[str]:
    """How many promises are kept, and which are not."""
    if name not in COUNTED:
        return
    promises = told.promises
    broken = [promise for promise in promises if not promise.kept]
    if not broken:
        yield f"All {len(promises)} promises are kept." if len(promises) > 1 else "This is kept."
        return
    yield f"Of {len(promises)} promises {len(promises) - len(broken)} are kept. Not kept:"
    yield "\n".join(
        f"- {_plain(each.text)}: {each.reached}, promised {_limit(each)}" for each in broken
    )


def _limit(promise: Promise) -> str:
    return f"at {'least' if promise.at_least else 'most'} {promise.limit:.4g}"


def _reached(promise: Promise) -> str:
    return str(promise.reached) if promise.kept else f"{promise.reached}, **not kept**"


def _spread(cell: object) -> str:
    found = as_interval(cell)
    return "-" if found is None else str(found)


def _median(cell: object) -> str:
    """The median alone; text as it is: "not installed"."""
    found = as_interval(cell)
    if found is not None:
        return number(found.median)
    return "-" if cell is None else str(cell)


def _markdown(heads: Sequence[str], rows: Rows) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    bare = [[_cell(cell) for cell in row] for row in rows]
    rule = ["---:" if all(map(_figure, column)) else "---" for column in zip(*bare, strict=True)]
    return "\n".join([line(map(_plain, heads)), line(rule), *map(line, bare)])


def _figure(cell: str) -> bool:
    """Whether a cell is a number, or none: those stand to the right."""
    return re.match(r"[\d-]", cell) is not None


def _cell(text: str) -> str:
    """A cell that may be bold at its end, or a link."""
    if text.startswith("["):
        return text
    bold = re.fullmatch(r"(.*)\*\*(.+)\*\*", text)
    return f"{_plain(bold[1])}**{_plain(bold[2])}**" if bold else _plain(text)


def _plain(text: str) -> str:
    """Text that means itself in Markdown."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


if __name__ == "__main__":
    sys.exit(main())
