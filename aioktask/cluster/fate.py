# SPDX-License-Identifier: MIT
# What becomes of the units of a worker that is gone, or goes: the table of README.md beside this
# file.
#
# Pure. Guarantees that each unit that the worker had is told of once: others do it, it is done,
# undone, or unknown. Relies on the worker's ledger, and on the carrier for saying what may have
# happened unheard.
"""The units of workers that are gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aioktask.engine.ranges.undo import merge

__all__ = ["Fate", "Rules", "of_cut_short", "of_leaving", "of_lost"]

Ranges = tuple[range, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """What of the job decides.

    Attributes:
        undo: Whether it has one.
        idempotent: Whether others may do again what may be done.
        reduce: Whether values of what is done are in the tree already, and would come twice.
        runs: Whether stretches may be sent still.
        fails: Whether it fails, or is cancelled, already.
    """

    undo: bool
    idempotent: bool
    reduce: bool
    runs: bool
    fails: bool


@dataclass(frozen=True, slots=True)
class Fate:
    """Where the units of one worker stand.

    Attributes:
        done: They stay done.
        undone: They were, and their undo has returned.
        unknown: Done or not, nobody can say.
        free: Others do them.
        redone: Those of them that were told as done.
        doubtful: Those of them that may be done, until others have done them again.
        when: Why the job fails, or its undo, in words that follow what became of the worker; empty
            where it does not.
        where: Which units that is about.
        redoable: Whether others would do those again, and the job would not fail, if it were
            idempotent.
        undo_failed: Whether it is the undo that fails.
    """

    done: Ranges = ()
    undone: Ranges = ()
    unknown: Ranges = ()
    free: Ranges = ()
    redone: Ranges = ()
    doubtful: Ranges = ()
    when: str = ""
    where: Ranges = ()
    redoable: bool = False
    undo_failed: bool = False


def of_lost(
    job: Rules,
    begun: Sequence[range],
    ready: Sequence[range],
    done: Ranges,
    *,
    may_undo: bool = False,
    undoing: bool = False,
    leaves: bool = False,
    closes: bool = False,
) -> Fate:
    """Of a worker that is lost.

    Args:
        job: The rules.
        begun: What it had in hand and may have begun.
        ready: What it had in hand and cannot have begun.
        done: Its ledger.
        may_undo: Whether it may have undone that with nobody to hear, or may yet.
        undoing: Whether it was told to.
        leaves: Whether it had said that it goes: so it may be at its undo still.
        closes: Whether it was told to close its data, and did not say that it has.

    >>> rules = Rules(undo=False, idempotent=True, reduce=False, runs=True, fails=False)
    >>> of_lost(rules, [range(5)], [range(5, 9)], ()).free
    (range(0, 9),)
    """
    in_doubt = done if job.undo and (may_undo or undoing) else ()
    where = merge((*begun, *in_doubt))
    kept = () if in_doubt else done
    twice = in_doubt and job.reduce
    # One that may be at its undo still could undo what others do again, also what it had in hand.
    redoable = job.runs and not twice and not (job.undo and may_undo and leaves)
    if job.idempotent and redoable:
        return Fate(done=kept, free=merge((*ready, *where)), redone=in_doubt, doubtful=where)
    free = merge(ready)
    if where:
        when = "while it undid what it had done" if undoing else "with units that nobody knows of"
        return Fate(
            done=kept,
            unknown=where,
            free=free,
            when=when,
            where=where,
            redoable=redoable,
            undo_failed=undoing,
        )
    if closes and kept:
        return Fate(done=kept, free=free, when="before its data was closed", where=kept)
    return Fate(done=kept, free=free)


def of_leaving(
    job: Rules, ready: Sequence[range], kept: Ranges, undone: Ranges, *, undo_raised: bool
) -> Fate:
    """Of a worker that leaves: it has told what it had begun, and undone its ledger by itself.

    Args:
        job: The rules.
        ready: What it had in hand, and will not begin.
        kept: What of its ledger is done still.
        undone: What it has undone.
        undo_raised: Whether a call of the undo did.

    >>> rules = Rules(undo=True, idempotent=False, reduce=False, runs=True, fails=False)
    >>> of_leaving(rules, [range(5, 9)], (), (range(5),), undo_raised=False).free
    (range(0, 9),)
    """
    kept, undone = merge(kept), merge(undone)
    if job.runs and not job.reduce and not undo_raised:
        return Fate(done=kept, free=merge((*ready, *undone)), redone=undone)
    when, where = "and undid what it had done" if undone else "", undone
    if undo_raised:
        when, where = "and its undo raised, so part of what it had done is done still", kept
    if job.fails:  # and undoes: so this is what was to come
        when = ""
    return Fate(done=kept, undone=undone, free=merge(ready), when=when, where=where)


def of_cut_short(job: Rules, unknown: Ranges) -> Fate:
    """Of the part of a chunk that may be done, where the chunk stopped since its worker leaves."""
    redoable = job.runs and not job.reduce  # half a leaf has no value
    if job.idempotent and redoable:
        return Fate(free=unknown, doubtful=unknown)
    when = "with units that nobody knows of"
    return Fate(unknown=unknown, when=when, where=unknown, redoable=redoable)
