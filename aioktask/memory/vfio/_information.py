# SPDX-License-Identifier: MIT
# What VFIO_IOMMU_GET_INFO tells of an IOMMU: struct vfio_iommu_type1_info of <linux/vfio.h> with a
# chain of capabilities behind it. Older kernels leave some of them out, newer ones add some.
"""The answer of a container about its IOMMU, read."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from aioktask.memory._kernel.libc import PAGE

__all__ = ["ALL_ADDRESSES", "SIZE", "Information", "read_information"]

ALL_ADDRESSES = range(1 << 64)

# Its size, flags, a bitmap of page sizes, and where the first capability begins.
_FIXED = struct.Struct("=IIQI4x")
SIZE = _FIXED.size
_HAS_PAGE_SIZES = 1
_HAS_CAPABILITIES = 2
# An id, a version, and where the next one begins, from the beginning of all; 0 for none.
_HEADER = struct.Struct("=HHI")
_IOVA_RANGES = 1
_DMA_AVAILABLE = 3
_COUNT = struct.Struct("=II")
_RANGE = struct.Struct("=QQ")
_AVAILABLE = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class Information:
    """What an IOMMU can do.

    Attributes:
        page_sizes: Of the pages that it has, in bytes, ascending.
        iova_ranges: The iovas that it translates.
        dma_available: How many more mappings may be made; None where the kernel does not tell.
    """

    page_sizes: tuple[int, ...] = (PAGE,)
    iova_ranges: tuple[range, ...] = (ALL_ADDRESSES,)
    dma_available: int | None = None


def read_information(told: bytes) -> Information:
    """Read it.

    Raises:
        ValueError: It is cut off, or its capabilities go in circles.
    """
    page_sizes: tuple[int, ...] = (PAGE,)
    iova_ranges: tuple[range, ...] = (ALL_ADDRESSES,)
    dma_available = None
    _, flags, bitmap, first = _unpack(_FIXED, told, 0)
    if flags & _HAS_PAGE_SIZES and bitmap:
        page_sizes = tuple(1 << bit for bit in range(64) if bitmap >> bit & 1)
    for kind, start in _capabilities(told, first if flags & _HAS_CAPABILITIES else 0):
        if kind == _IOVA_RANGES:
            count, _ = _unpack(_COUNT, told, start)
            start += _COUNT.size
            places = range(start, start + count * _RANGE.size, _RANGE.size)
            pairs = (_unpack(_RANGE, told, place) for place in places)
            iova_ranges = tuple(range(begin, last + 1) for begin, last in pairs)
        elif kind == _DMA_AVAILABLE:
            (dma_available,) = _unpack(_AVAILABLE, told, start)
    return Information(page_sizes, iova_ranges, dma_available)


def _capabilities(told: bytes, place: int) -> Iterator[tuple[int, int]]:
    """The id of each capability and where what follows its header begins."""
    seen = set()
    while place:
        if place in seen:
            raise ValueError(f"the IOMMU's capabilities go in a circle at {place}")
        seen.add(place)
        kind, _, following = _unpack(_HEADER, told, place)
        yield kind, place + _HEADER.size
        place = following


def _unpack(form: struct.Struct, told: bytes, place: int) -> tuple[int, ...]:
    if place + form.size > len(told):
        raise ValueError(f"the IOMMU's description ends at {len(told)}, before {place + form.size}")
    return form.unpack_from(told, place)
