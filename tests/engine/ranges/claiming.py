# SPDX-License-Identifier: MIT
# A claim of chunks of the one size that a range is cut into.

from __future__ import annotations

from aioktask.engine.ranges.claims import Claims, fair_count


def claim(
    claims: Claims, chunks: int, sharers: int, node: int | None = None
) -> tuple[int, int] | None:
    """A fair part of so many chunks, or else a single one; None where nothing is free."""
    if not claims.left:
        return None
    count = fair_count(chunks, claims.chunk, claims.left // sharers) or 1
    start, _, stop = claims.take(claims.chunk, count, node=node)
    return start, stop
