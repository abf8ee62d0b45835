# SPDX-License-Identifier: MIT
# How many consecutive chunks of a given size a thread takes at once, learned from what the last
# ones cost. Where the size is learned too, `Sizes.pick` says both.
#
# Pure. The lock, the clock and the choice of a job are paid once a stretch, so a stretch should
# last long against them (2 us) and short against a slice (10 ms).
"""The length of a stretch."""

from __future__ import annotations

TARGET_NS = 100_000

# 256 empty chunks last about 25 us, ten times the price of a claim. A longer stretch saves nothing
# and would be in the way when chunks become slow in the middle of it.
MOST_CHUNKS = 256


def chunks_at_once(chunks: int, wall_ns: int, factor: int = 1) -> int:
    """How many chunks to take next, when `chunks` of them took `wall_ns`.

    A stretch is to last `factor` times as long as usual, where its owner gets the next one later.

    The number at most doubles, since one quick chunk proves nothing; it falls at once as far as
    needed, since a stretch that is too long keeps others waiting.

    >>> chunks_at_once(8, 1_000), chunks_at_once(64, 500_000), chunks_at_once(1, 5_000_000)
    (16, 12, 1)
    """
    target, most = TARGET_NS * factor, MOST_CHUNKS * factor
    if wall_ns * 2 <= target:
        return min(chunks * 2, most)
    return max(min(chunks * target // wall_ns, most), 1)
