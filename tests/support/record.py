# SPDX-License-Identifier: MIT
# What ran where: a line for each session of pytest and for each step of .ci/run, in a file to which
# both append, and the table of it.
#
#   AIOKTASK_TEST_RECORD=FILE AIOKTASK_TEST_CHECK=NAME pytest ...
#   python -m tests.support.record FILE
#
# A line is JSON. One of a session says which interpreter ran it and how many tests ended how; one
# of a step says how long it took in all, what it fetched and installed included. Any interpreter
# may append to the file, and any other read it.
"""Write down what a session of tests came to, and tell it as a table of interpreter by check."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

FILE = "AIOKTASK_TEST_RECORD"
CHECK = "AIOKTASK_TEST_CHECK"

# What pytest calls the ways in which tests end, and how the table does.
_ENDS = {
    "passed": "passed",
    "skipped": "skipped",
    "xfailed": "xfailed",
    "failed": "failed",
    "error": "failed",
    "xpassed": "passed",
}
_COLUMNS = ("passed", "skipped", "xfailed", "failed")


@dataclass(frozen=True)
class Entry:
    """What is known of one check on one interpreter.

    Attributes:
        check: Its name.
        seconds: How long it took.
        python: The interpreter that ran it; empty for a step.
        ended: How many tests ended in each way; none for a step.
        note: What else is to be said, such as why nothing ran.
    """

    check: str
    seconds: float
    python: str = ""
    ended: Mapping[str, int] = field(default_factory=dict)
    note: str = ""


def this_python() -> str:
    """The interpreter that runs this, such as `3.13.15 free-threaded`."""
    version = platform.python_version()
    # The mark of the build, and not whether the GIL is on now.
    return f"{version} free-threaded" if "t" in getattr(sys, "abiflags", "") else version


def counted(outcomes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """How many tests ended in each way of the table, from what pytest counts."""
    ended = dict.fromkeys(_COLUMNS, 0)
    for outcome, count in outcomes:
        if outcome in _ENDS:
            ended[_ENDS[outcome]] += count
    return ended


def append(path: Path, entry: Entry) -> None:
    """Append the entry, in one write, so that lines of several processes stay whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(asdict(entry)) + "\n"
    with path.open("ab", buffering=0) as file:
        file.write(line.encode())


def read(path: Path) -> list[Entry]:
    """The entries of the file, in their order; none where there is no file."""
    if not path.exists():
        return []
    return [Entry(**json.loads(line)) for line in path.read_text().splitlines()]


def table(entries: Sequence[Entry]) -> str:
    """What ran where, a line for each session, and for each step that had none of its name."""
    sessions = {each.check for each in entries if each.python}
    rows = [("check", "Python", *_COLUMNS, "seconds", "")]
    for each in entries:
        if each.python or each.check not in sessions:
            counts = (str(each.ended[name]) if each.ended else "-" for name in _COLUMNS)
            seconds = f"{each.seconds:.0f}"
            rows.append((each.check, each.python or "-", *counts, seconds, each.note))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 or column == len(row) - 1 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("python -m tests.support.record FILE", file=sys.stderr)
        return 2
    print(table(read(Path(arguments[0]))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
