# SPDX-License-Identifier: MIT
# From a Python object to the addresses that a memory job ranges over.
#
# A `Buffer` holds the export of the object's memory for as long as it lives, so no helper writes to
# memory that was freed: a bytearray cannot be resized and a mmap cannot be closed meanwhile
# (`BufferError`), an array keeps its base alive. A job made by `job_over` holds its `Buffer`.
# It relies on `np.frombuffer` and array views, which hold the object that they look into.
"""The memory of anything with a writable buffer."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from aioktask.job import Job
from aioktask.memory._kernel.libc import HUGE_PAGE, PAGE
from aioktask.memory._kernel.page_size import largest_page

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from numpy.typing import NDArray

__all__ = ["Buffer", "job_over", "job_over_pages"]

_FIELD_NAME = re.compile(":[^:]*:")

# From this size on, chunks end where a huge page may end: a huge page that two helpers share is
# cleared by one of them while the other waits. Below, 2 MiB would be too coarse to share out.
ALIGN_TO_HUGE_PAGES_FROM = 16 * HUGE_PAGE


class Buffer:
    """The memory of an object with a contiguous buffer, held until this object is gone.

    Args:
        exporter: An array, mmap, bytearray, memoryview, `array.array` or anything else with the
            buffer protocol, in C or Fortran order.
        operation: Who asks, for error messages.
        writable: Whether it must be writable.

    Attributes:
        address: Of the first byte.
        nbytes: How many there are, 0 or more.

    Raises:
        TypeError: It has no buffer, or one of references to Python objects.
        ValueError: The memory is not contiguous, or it is read-only and must not be.
    """

    __slots__ = ("_held", "address", "nbytes")

    def __init__(self, exporter: ReadableBuffer, operation: str, *, writable: bool = True) -> None:
        self._held = _bytes_of(exporter, operation, writable=writable)
        self.address: int = self._held.ctypes.data
        self.nbytes: int = self._held.nbytes


def job_over(
    buffer: Buffer,
    function: Callable[[Buffer, int, int], object],
    *,
    whole_pages: bool,
    min_chunk: int,
    chunk: SupportsIndex | None,
    nice: SupportsIndex,
    max_threads: SupportsIndex | None,
    name: str,
) -> Job[None]:
    """A job over the addresses of `buffer` that calls ``function(buffer, start, stop)``.

    Chunks end on multiples of the page, so no two of them touch the same page. With `whole_pages`
    the first one begins on a multiple of the page too, at or below the buffer's start. A fixed
    `chunk` need only be a multiple of the page.
    """
    start = buffer.address - buffer.address % PAGE if whole_pages else buffer.address
    align = PAGE
    if buffer.nbytes >= ALIGN_TO_HUGE_PAGES_FROM and chunk is None:
        # Two helpers that fault in one huge page wait for each other.
        align = max(HUGE_PAGE, largest_page(buffer.address, buffer.nbytes))
    return Job(
        functools.partial(function, buffer),
        buffer.address + buffer.nbytes - start if buffer.nbytes else 0,
        start=start,
        align=align,
        min_chunk=min_chunk if chunk is None else 1,
        chunk=chunk,
        nice=nice,
        max_threads=max_threads,
        name=name,
    )


def job_over_pages(
    buffer: Buffer,
    function: Callable[[Buffer, int, int], object],
    *,
    inside: bool,
    min_chunk: int,
    chunk: SupportsIndex | None,
    nice: SupportsIndex,
    max_threads: SupportsIndex | None,
    name: str,
) -> Job[None]:
    """A job over the whole pages of `buffer`: those that lie `inside` it, or all that it touches.

    Pages are those of the mapping: no chunk has a part of a huge page of hugetlbfs.
    """
    page = largest_page(buffer.address, buffer.nbytes) if buffer.nbytes else PAGE
    start, stop = buffer.address, buffer.address + buffer.nbytes
    if inside:
        start, stop = -(-start // page) * page, stop // page * page
    else:
        start, stop = start // page * page, -(-stop // page) * page
    size = max(0, stop - start) if buffer.nbytes else 0
    align = max(page, HUGE_PAGE) if size >= ALIGN_TO_HUGE_PAGES_FROM and chunk is None else page
    return Job(
        functools.partial(function, buffer),
        size,
        start=start,
        align=align,
        min_chunk=min_chunk if chunk is None else 1,
        chunk=chunk,
        nice=nice,
        max_threads=max_threads,
        name=name,
    )


def _bytes_of(exporter: object, operation: str, *, writable: bool) -> NDArray[np.uint8]:
    """A flat array of the exporter's bytes, which holds the export."""
    kind = type(exporter).__name__
    if isinstance(exporter, np.ndarray):
        # Not by its buffer: arrays of dates export none.
        array = np.asarray(exporter)
        has_objects, readonly = array.dtype.hasobject, not array.flags.writeable
        contiguous = array.flags.forc
    else:
        try:
            view = memoryview(exporter)  # type: ignore[arg-type]
        except TypeError as error:
            raise TypeError(
                f"{operation} needs an object with the buffer protocol (an array, mmap, bytearray, "
                f"memoryview), got {kind}"
            ) from error
        # Field names stand between colons in a format, and may have an O of their own.
        has_objects, readonly = "O" in _FIELD_NAME.sub("", view.format), view.readonly
        contiguous = view.contiguous
    if has_objects:
        raise TypeError(
            f"{operation} works on plain bytes, and this {kind} holds references to Python "
            f"objects: use aioktask.arrays.fill"
        )
    if readonly and writable:
        raise ValueError(
            f"{operation} writes to its buffer, and this {kind} is read-only: pass writable memory"
        )
    if not contiguous:
        raise ValueError(
            f"{operation} needs contiguous memory, and this {kind} has gaps: "
            f"pass contiguous pieces one by one, or use aioktask.arrays"
        )
    if not isinstance(exporter, np.ndarray):
        if view.c_contiguous:
            return np.frombuffer(view, dtype=np.uint8)
        array = np.asarray(view)
    ordered = array if array.flags.c_contiguous else array.T
    return ordered.reshape(-1).view(np.uint8)
