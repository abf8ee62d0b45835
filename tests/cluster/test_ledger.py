# SPDX-License-Identifier: MIT
# The ledger that others are judged by: what adds up is let pass, each way not to add up is found.

from __future__ import annotations

from pathlib import Path

import pytest

from aioktask.cluster import ClusterFailure
from aioktask.cluster.job import WorkerPart
from tests.cluster.ledger import Ledger


def check(folder: Path, lines: str, twice: bool = False, **told: range) -> None:
    """Hold what is told of a job of 3 units, that one worker of two lost, against lines."""
    written = [line.strip() for line in lines.split(",") if line.strip()]
    (folder / "ledger").write_text("".join(f"{line}\n" for line in written))
    ledger = Ledger(folder)
    parts = {name: (units,) for name, units in told.items()}
    worker = WorkerPart("w0", "here", **parts, lost="is gone")  # type: ignore[arg-type]
    failure = ClusterFailure(
        job=ledger.job(3),
        chunk=None,
        errors=(),
        done=parts.get("done", ()),
        undone=parts.get("undone", ()),
        unknown=parts.get("unknown", ()),
        workers=(worker, WorkerPart("w1", "there")),
    )
    ledger.check(failure, twice=twice)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("", {}),
        ("done 0 3, undone 0 2, undone 2 3", {"undone": range(3)}),
        ("done 0 3, undone 1 3", {"undone": range(1, 3), "done": range(1)}),
        ("done 0 3, undone 0 1", {"unknown": range(3)}),
        ("done 0 1, undone 0 1, done 0 1, undone 0 1", {"undone": range(1)}),
        ("opened 0 0, done 0 1, undone 0 1, closed 0 0", {}),  # one who left did it, and undid it
    ],
)
def test_what_adds_up_is_let_pass(tmp_path: Path, lines: str, told: dict[str, range]) -> None:
    check(tmp_path, lines, **told)


@pytest.mark.parametrize(
    ("lines", "told", "fault"),
    [
        ("done 0 1, done 0 1", {"unknown": range(3)}, "done twice"),
        ("done 0 1, undone 0 1, undone 0 1", {"unknown": range(3)}, "not done"),
        ("undone 0 1, done 0 1", {"unknown": range(3)}, "not done"),
        ("done 0 3", {"done": range(2)}, "unit 2 is not nothing"),
        ("done 0 2", {"done": range(3)}, "unit 2 is not done"),
        ("done 0 3, undone 0 2", {"undone": range(3)}, "unit 2 is not undone"),
        ("", {"undone": range(3)}, "never done"),
        ("", {"unknown": range(3), "done": range(1)}, "said to be"),
    ],
)
def test_what_does_not_add_up_is_found(
    tmp_path: Path, lines: str, told: dict[str, range], fault: str
) -> None:
    with pytest.raises(AssertionError, match=fault):
        check(tmp_path, lines, **told)


def test_units_may_be_done_twice_where_that_is_allowed(tmp_path: Path) -> None:
    check(tmp_path, "done 0 1, done 0 1", twice=True, unknown=range(3))
    with pytest.raises(AssertionError, match="left out"):
        Ledger(tmp_path).check_done(3, twice=True)


def test_a_worker_that_is_there_has_nothing_unknown(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    worker = WorkerPart("w0", "here", unknown=(range(3),))
    failure = ClusterFailure(ledger.job(3), None, (), (), (), (range(3),), workers=(worker,))
    with pytest.raises(AssertionError, match="w0"):
        ledger.check(failure)
