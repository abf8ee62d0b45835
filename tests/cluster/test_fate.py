# SPDX-License-Identifier: MIT
# What becomes of the units of a worker that is gone: each cell of the table.

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aioktask.cluster.fate import Fate, Rules, of_cut_short, of_leaving, of_lost

BEGUN, READY, DONE = range(20), range(20, 30), range(30, 60)

# Of a worker that is lost. "doubt": it may have undone its ledger with nobody to hear; "leaves": it
# had said that it goes. What it had in hand and had not begun is free, always.
LOST = """
idempotent runs undo doubt reduce leaves | begun   done
no         *    no   *     *      *      | unknown done
no         *    yes  no    *      *      | unknown done
no         *    yes  yes   *      *      | unknown unknown
yes        no   no   *     *      *      | unknown done
yes        no   yes  no    *      *      | unknown done
yes        no   yes  yes   *      *      | unknown unknown
yes        yes  no   *     *      *      | again   done
yes        yes  yes  no    *      *      | again   done
yes        yes  yes  yes   no     no     | again   again
yes        yes  yes  yes   no     yes    | unknown unknown
yes        yes  yes  yes   yes    *      | unknown unknown
"""
NAMES = LOST.split("|")[0].split()
ROWS = [
    (left.split(), right.split())
    for left, right in (line.split("|") for line in LOST.strip().splitlines()[1:])
]
CELLS = list(itertools.product(("no", "yes"), repeat=len(NAMES)))


def rows_of(cell: tuple[str, ...]) -> list[list[str]]:
    return [
        told
        for given, told in ROWS
        if all(wanted in ("*", found) for wanted, found in zip(given, cell, strict=True))
    ]


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_what_a_lost_worker_had_is_as_the_table_says(cell: tuple[str, ...]) -> None:
    [[begun, done]] = rows_of(cell)  # each cell is in one row
    is_so = dict(zip(NAMES, (each == "yes" for each in cell), strict=True))
    rules = Rules(
        is_so["undo"], is_so["idempotent"], is_so["reduce"], is_so["runs"], fails=not is_so["runs"]
    )
    fate = of_lost(
        rules, [BEGUN], [READY], (DONE,), may_undo=is_so["doubt"], leaves=is_so["leaves"]
    )
    assert where(fate, BEGUN) == begun
    assert where(fate, READY) == "free"
    assert where(fate, DONE) == done
    assert (fate.redone == (DONE,)) == (done == "again")
    assert bool(fate.when) == (begun == "unknown")
    assert not fate.undo_failed


def where(fate: Fate, piece: range) -> str:
    """In which part of a fate a piece is, which is in one part, and as a whole."""

    def within(ranges: tuple[range, ...]) -> bool:
        inside = {unit in each for unit in piece for each in ranges if unit in each}
        units = sum(unit in each for unit in piece for each in ranges)
        assert units in (0, len(piece))
        return bool(inside)

    found = [name for name in ("done", "undone", "unknown", "free") if within(getattr(fate, name))]
    assert len(found) == 1
    if within(fate.doubtful):
        assert found == ["free"]
        return "again"
    return found[0]


@pytest.mark.parametrize("may_undo", [False, True])
def test_what_a_worker_had_that_is_lost_in_its_undo_is_unknown_and_its_undo_failed(
    may_undo: bool,
) -> None:
    rules = Rules(undo=True, idempotent=True, reduce=False, runs=False, fails=True)
    fate = of_lost(rules, [], [], (DONE,), may_undo=may_undo, undoing=True)
    assert (fate.unknown, fate.done) == ((DONE,), ())
    assert fate.undo_failed
    assert fate.when == "while it undid what it had done"


@pytest.mark.parametrize(("closes", "done", "fails"), [(0, 1, 0), (1, 0, 0), (1, 1, 1)])
def test_a_worker_that_is_lost_while_it_closes_fails_the_job_if_it_had_done_anything(
    closes: bool, done: bool, fails: bool
) -> None:
    rules = Rules(undo=False, idempotent=False, reduce=False, runs=False, fails=False)
    had = (DONE,) if done else ()
    fate = of_lost(rules, [], [], had, closes=bool(closes))
    assert (fate.done, fate.unknown) == (had, ())
    assert bool(fate.when) == bool(fails)


# Of one that leaves, and has undone what it did by itself.
LEAVING = [
    # runs, reduce, undo raised, fails already | undone, job fails
    ((True, False, False, False), ("free", False)),
    ((True, False, True, False), ("undone", True)),
    ((True, True, False, False), ("undone", True)),
    ((True, True, True, False), ("undone", True)),
    ((False, False, False, False), ("undone", True)),
    ((False, False, True, False), ("undone", True)),
    ((False, True, False, False), ("undone", True)),
    ((False, True, True, False), ("undone", True)),
    ((False, False, False, True), ("undone", False)),
    ((False, False, True, True), ("undone", False)),
    ((False, True, False, True), ("undone", False)),
    ((False, True, True, True), ("undone", False)),
]


@pytest.mark.parametrize(("given", "told"), LEAVING)
def test_what_a_leaving_worker_undid_is_done_elsewhere_or_fails_the_job(
    given: tuple[bool, bool, bool, bool], told: tuple[str, bool]
) -> None:
    runs, reduce, raised, fails = given
    rules = Rules(undo=True, idempotent=False, reduce=reduce, runs=runs, fails=fails)
    kept = (BEGUN,) if raised else ()
    fate = of_leaving(rules, [READY], kept, (DONE,), undo_raised=raised)
    assert where(fate, READY) == "free"
    assert (where(fate, DONE), bool(fate.when)) == told
    assert fate.done == kept
    assert (fate.redone == (DONE,)) == (told[0] == "free")


def test_a_worker_that_leaves_with_nothing_done_fails_no_job() -> None:
    rules = Rules(undo=True, idempotent=False, reduce=True, runs=True, fails=False)
    assert of_leaving(rules, [READY], (), (), undo_raised=False).when == ""


@pytest.mark.parametrize(
    ("idempotent", "runs", "reduce", "told"),
    [
        (True, True, False, "again"),
        (True, True, True, "unknown"),
        (True, False, False, "unknown"),
        (True, False, True, "unknown"),
        (False, True, False, "unknown"),
        (False, True, True, "unknown"),
        (False, False, False, "unknown"),
        (False, False, True, "unknown"),
    ],
)
def test_a_chunk_that_a_leaving_worker_cut_short_is_done_elsewhere_or_unknown(
    idempotent: bool, runs: bool, reduce: bool, told: str
) -> None:
    rules = Rules(undo=True, idempotent=idempotent, reduce=reduce, runs=runs, fails=not runs)
    assert where(of_cut_short(rules, (BEGUN,)), BEGUN) == told


FLAGS = st.booleans()


@given(st.builds(Rules, FLAGS, FLAGS, FLAGS, FLAGS, FLAGS), FLAGS, FLAGS, FLAGS, FLAGS)
def test_each_unit_of_a_lost_worker_is_told_of_once(
    rules: Rules, may_undo: bool, undoing: bool, leaves: bool, closes: bool
) -> None:
    fate = of_lost(
        rules,
        *([BEGUN], [READY], (DONE,)),
        may_undo=may_undo,
        undoing=undoing,
        leaves=leaves,
        closes=closes,
    )
    for piece in (BEGUN, READY, DONE):
        assert where(fate, piece)
    assert not fate.unknown or fate.when


@given(st.builds(Rules, FLAGS, FLAGS, FLAGS, FLAGS, FLAGS), FLAGS, FLAGS, FLAGS, FLAGS)
def test_others_would_do_units_again_only_where_that_would_keep_the_job_from_failing(
    rules: Rules, may_undo: bool, undoing: bool, leaves: bool, closes: bool
) -> None:
    assume(not (rules.runs and closes))

    def lost(rules: Rules) -> Fate:
        how = {"may_undo": may_undo, "undoing": undoing, "leaves": leaves, "closes": closes}
        return of_lost(rules, [BEGUN], [READY], (DONE,), **how)

    once, again = replace(rules, idempotent=False), replace(rules, idempotent=True)
    assert lost(once).redoable == (lost(again).when == "")
    assert of_cut_short(once, (BEGUN,)).redoable == (of_cut_short(again, (BEGUN,)).when == "")
