# SPDX-License-Identifier: MIT
"""What is shown of a plan: `python -m aioktask plan`."""

from __future__ import annotations

from aioktask import Plan
from aioktask.engine.ranges.plan import cut

__all__ = ["plan_data", "plan_text"]

# How many boundaries are shown at either end.
SHOWN = 3


def plan_data(made: Plan) -> dict[str, object]:
    """For JSON."""
    first, last = _ends(made)
    return {
        "threads": made.threads,
        "chunk": made.chunk,
        "chunks": made.chunks,
        "limited_by": made.limited_by,
        "notes": list(made.notes),
        "first": [[each.start, each.stop] for each in first],
        "last": [[each.start, each.stop] for each in last],
    }


def plan_text(made: Plan) -> str:
    """For reading."""
    first, last = _ends(made)
    lines = [
        f"threads     {made.threads}, limited by {made.limited_by}",
        f"chunk       {made.chunk:,} units",
        f"chunks      {made.chunks:,}",
        *[f"note        {note}" for note in made.notes],
    ]
    shown = [
        f"{each.start:>20,} to {each.stop:>20,}  {each.stop - each.start:>16,} units"
        for each in first
    ]
    if last:
        shown.append(f"{'...':>20}")
        shown += [
            f"{each.start:>20,} to {each.stop:>20,}  {each.stop - each.start:>16,} units"
            for each in last
        ]
    return "\n".join([*lines, *(["boundaries", *shown] if shown else [])])


def _ends(made: Plan) -> tuple[list[range], list[range]]:
    """The first and the last few chunks; all are among the first if they are few."""
    if made.chunks <= 2 * SHOWN:
        return list(made.boundaries()), []
    [span] = made.spans
    last_few = (span.stop - 1) // made.chunk - (SHOWN - 1)
    chunks = made.boundaries()
    first = [next(chunks) for _ in range(SHOWN)]
    return first, list(cut(last_few * made.chunk, span.stop, made.chunk))
