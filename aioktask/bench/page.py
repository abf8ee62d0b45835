# SPDX-License-Identifier: MIT
# What the live page costs the process that it shows, while somebody looks at it: how late its loop
# is, and what a chunk costs.
#
# Windows with and without a reader alternate, in one server that goes on all the while (`watched`).
# Its directory of sockets is of this run alone, so that it shows itself only.
"""`bench page`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from aioktask.bench.beside import quantile
from aioktask.bench.processes import Child, started
from aioktask.bench.promises import PAIRS, Promise, Result
from aioktask.figures.measure import Contender, alternate, interval
from aioktask.figures.table import Table

__all__ = ["run"]

MILLI = 1e3
# Jobs of the process: a few, and as many as one message tells.
FEW, MANY = 3, 1000
CLOSED, OPEN = "nobody looks", "somebody looks"
# Beside the few, so many short jobs a second; and until there are some to tell of, in seconds.
SHORT = "1000 short ones a second"
SOME = 2.0
# What is promised: milliseconds more, of the same without a reader.
LATER, CHUNK = 1.0, 1.05
# Until a reader has had its first messages, in seconds.
SOON = 1.2

READER = """
import sys, urllib.request
_, url, token = sys.argv
request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
while True:
    with urllib.request.urlopen(request) as stream:
        while stream.readline():
            pass
"""

Progress = Callable[[str], object]


def run(quick: bool, progress: Progress) -> Result:
    """The lateness of a server's loop, and the cost of a chunk, with and without a reader."""
    result = Result("page", quick)
    for package in ("starlette", "uvicorn", "uvloop"):
        if importlib.util.find_spec(package) is None:
            missing = [("what is shown", f"{package} is not installed")]
            result.tables.append(Table("The live page", ("", ""), missing))
            return result
    seconds, rounds = (0.3, 1) if quick else (1.5, PAIRS)
    rows: list[tuple[object, ...]] = []
    with tempfile.TemporaryDirectory(prefix="aioktask-") as directory:
        variables = {"XDG_RUNTIME_DIR": directory, "AIOKTASK_SHARE": "off"}
        command = [sys.executable, "-m", "aioktask.bench.watched"]
        with started([command], variables) as (server,):
            where = server.answer()
            for jobs, short in ((FEW, False), (FEW, True), (MANY, False)):
                shown = f"{jobs} jobs, {SHORT}" if short else f"{jobs} jobs"
                progress(f"{shown}: how late the loop is")
                late = _compared(server, where, jobs, short, seconds, rounds)
                cost = None
                if not short:
                    progress(f"{shown}: what a chunk costs")
                    cost = _compared(server, where, jobs, short, 0, rounds)
                rows += [
                    (
                        f"{shown}, {name}",
                        interval(MILLI * quantile(each, 0.5) for each in late[name]),
                        interval(MILLI * quantile(each, 0.99) for each in late[name]),
                        "" if cost is None else interval(1e6 * each[0] for each in cost[name]),
                    )
                    for name in (CLOSED, OPEN)
                ]
                more = interval(
                    MILLI * (quantile(a, 0.99) - quantile(b, 0.99))
                    for a, b in zip(late[OPEN], late[CLOSED], strict=True)
                )
                text = f"{shown}: the loop's p99 is later by so many ms"
                result.promises.append(Promise(text, LATER, False, more))
                measured = [("late, s", late)]
                if cost is not None:
                    ratio = interval(
                        a[0] / b[0] for a, b in zip(cost[OPEN], cost[CLOSED], strict=True)
                    )
                    text = f"{shown}: an empty chunk's cost, of that while nobody looks"
                    result.promises.append(Promise(text, CHUNK, False, ratio))
                    measured.append(("a chunk, s", cost))
                for what, found in measured:
                    result.samples[f"{shown}: {what}"] = {
                        name: [quantile(each, 0.99) for each in values]
                        for name, values in found.items()
                    }
    notes = (
        f"A loop's ticker of 1 ms, in windows of {seconds:g} s; and a job of 100,000 calls of an "
        "empty function, by the thread that calls. The jobs stand still: one has all helpers, the "
        "others wait. Short jobs follow each other on a thread of the program.",
        "The reader is a process of its own, that takes the page's stream as a browser does.",
    )
    columns = ("", "loop late: p50, ms", "p99, ms", "an empty chunk, us")
    result.tables.append(Table("The live page", columns, rows, notes))
    return result


def _compared(
    server: Child,
    where: Mapping[str, object],
    jobs: int,
    short: bool,
    seconds: float,
    rounds: int,
) -> dict[str, list[list[float]]]:
    """What the server measured with and without a reader, in turns."""
    found: dict[str, list[list[float]]] = {CLOSED: [], OPEN: []}

    def window(name: str) -> None:
        server.ask(jobs=jobs, short=short, seconds=seconds, before=SOME if short else 0)
        answer = server.answer()
        found[name].append(answer if isinstance(answer, list) else [answer])

    def closed() -> None:
        window(CLOSED)

    def open_() -> None:
        with _reading(where):
            window(OPEN)

    alternate([Contender(CLOSED, closed), Contender(OPEN, open_)], rounds)
    return {name: each[-rounds:] for name, each in found.items()}


@contextmanager
def _reading(where: Mapping[str, object]) -> Iterator[None]:
    url = f"http://127.0.0.1:{where['port']}/events"
    with subprocess.Popen([sys.executable, "-c", READER, url, str(where["token"])]) as reader:
        try:
            time.sleep(SOON)
            yield
        finally:
            reader.kill()
