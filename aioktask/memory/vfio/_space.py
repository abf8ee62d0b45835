# SPDX-License-Identifier: MIT
# The device's side of a mapping: where it may lie, and in which pieces it is made. Nothing here
# asks the kernel.
#
# An IOMMU has huge pages as the processor has. It uses one where a huge page of memory meets an
# iova that is as far from a multiple of its size, and where one call maps all of it. So pieces are
# cut at multiples of their size, which is never less than the page.
"""I/O virtual addresses: what is allowed, what is taken, and how a range is cut."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

__all__ = ["Taken", "check_place", "number_of_pieces", "piece_size"]

# Some milliseconds of small pages that are there, for which nobody else maps in the container.
PIECE = 64 << 20
_END = 1 << 64


def check_place(
    iova: int,
    address: int,
    nbytes: int,
    *,
    page: int,
    allowed: Sequence[range],
) -> None:
    """Refuse what no kernel would map.

    Args:
        iova: Where the device is to see the memory.
        address: Where the process sees it.
        nbytes: How much.
        page: The smallest page of the IOMMU.
        allowed: Which iovas it can translate.

    Raises:
        ValueError: It is empty, not in whole pages, or outside of what is allowed.
    """
    if nbytes == 0:
        raise ValueError("a mapping must not be empty, got a buffer of 0 bytes")
    for name, value in (("address", address), ("size", nbytes)):
        if value % page:
            raise ValueError(
                f"the buffer's {name} must be a multiple of the IOMMU's page of {page}, got "
                f"{value:#x}: use memory.allocate or mmap, which begin on pages, and whole pages"
            )
    if iova % page:
        raise ValueError(f"iova must be a multiple of the IOMMU's page of {page}, got {iova:#x}")
    if iova + nbytes > _END:
        raise ValueError(f"{nbytes} bytes from iova {iova:#x} on would end beyond 64 bits")
    if not any(each.start <= iova and iova + nbytes <= each.stop for each in allowed):
        ranges = ", ".join(_text(each) for each in allowed) or "none"
        raise ValueError(
            f"the IOMMU does not translate all of {_text(range(iova, iova + nbytes))}: "
            f"choose an iova within one of {ranges}"
        )


def piece_size(iova: int, address: int, page: int) -> int:
    """How much one call maps, in bytes.

    Args:
        iova: Where the device is to see the memory.
        address: Where the process sees it.
        page: The size of the largest pages that the memory is made of. One such page is mapped by
            one call, if the IOMMU can have a page as large there.

    >>> piece_size(0, 1 << 30, 1 << 30) >> 20
    1024
    >>> piece_size(4096, 1 << 30, 1 << 30) >> 20
    64
    """
    return PIECE if (iova - address) % page else max(PIECE, page)


def number_of_pieces(address: int, nbytes: int, piece: int) -> int:
    """How many pieces there are when they are cut at multiples of `piece`."""
    return -(-(address + nbytes) // piece) - address // piece


class Taken:
    """Ranges of iovas that do not overlap.

    For one thread at a time; a finalizer may change them between any two lines of that thread.
    """

    def __init__(self) -> None:
        self._ranges: list[range] = []  # ascending; replaced and never changed

    def __repr__(self) -> str:
        return f"<Taken: {', '.join(map(_text, self._ranges))}>"

    def add(self, wanted: range) -> range | None:
        """Take a range; the one that it overlaps, if there is one, and then it is not taken."""
        while True:
            before = self._ranges
            at = bisect.bisect_left(before, wanted.start, key=lambda each: each.start)
            for other in before[max(0, at - 1) : at + 1]:
                if wanted.start < other.stop and other.start < wanted.stop:
                    return other
            ranges = [*before[:at], wanted, *before[at:]]
            # In a line without a call, which nothing interrupts.
            self._ranges = ranges if self._ranges is before else self._ranges
            if wanted in self._ranges:
                return None

    def remove(self, taken: range) -> None:
        """Let go of a range that was added."""
        while True:
            before = self._ranges
            at = bisect.bisect_left(before, taken.start, key=lambda each: each.start)
            assert before[at] == taken
            ranges = [*before[:at], *before[at + 1 :]]
            self._ranges = ranges if self._ranges is before else self._ranges  # as in `add`
            if taken not in self._ranges:
                return


def _text(iovas: range) -> str:
    return f"{iovas.start:#x} to {iovas.stop - 1:#x}"
