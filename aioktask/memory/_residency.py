# SPDX-License-Identifier: MIT
# Where memory is: in memory or swapped out, in huge pages, and on which node.
#
# Three questions to the kernel, and each is put only where the one before leaves something open.
# The page tables (`_kernel/page_tables`). Then move_pages(2) for the node of a page, 40 ms for each
# GiB of small pages: only where there are several nodes, and else for pages that may be nothing but
# the page of zeros. And before Linux 6.7 the huge pages of whole mappings, from /proc/self/smaps.
# All of it may change while it is asked, so nothing here assumes that two answers fit together.
"""`residency`: a job that tells where the pages of a buffer are."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, SupportsIndex, TypeAlias

import numpy as np

from aioktask.job import Bound, Job, job_that_makes
from aioktask.memory._buffer import ALIGN_TO_HUGE_PAGES_FROM, Buffer
from aioktask.memory._hugepages import nodes_with_memory, smallest_huge_page
from aioktask.memory._kernel import libc
from aioktask.memory._kernel import page_tables as tables
from aioktask.memory._kernel.libc import HUGE_PAGE, PAGE

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from numpy.typing import NDArray

__all__ = ["Residency", "residency"]

# Half a millisecond of small pages, so what Python adds does not count.
MIN_CHUNK = 128 << 20
_NODE_UNKNOWN = -1

# Of addresses: where a stretch of pages begins and ends, and what the pages are.
Rows: TypeAlias = "NDArray[np.int64]"


@dataclass(frozen=True, slots=True)
class Residency:
    """Where the pages of a buffer are: bytes, all multiples of the small page.

    Attributes:
        nbytes: Of all small pages that the buffer touches. Of a huge page at either end, only the
            part that the buffer touches is counted, here and below.
        resident: Of the pages in memory that this process has in its page tables: an access meets
            no page fault. Memory that was read and never written takes none: it does not count.
        huge: Those of `resident` that are in huge pages, transparent or reserved: for certain.
        maybe_huge: Those of `resident` of which that is not known: 0 from Linux 6.7 on, and before,
            where the mappings that the buffer lies in hold nothing else, or pages of one kind only.
        swapped: Of the pages of private memory that are swapped out.
        nodes: What `resident` has on each NUMA node: by the node's number, those without any left
            out. What the system does not tell is missing from their sum: with several nodes, all of
            it where this process may not ask (containers often do not let it), and on Linux 6.1
            pages that the kernel's NUMA balancing looks at just then. Memory that is bound to nodes
            is not balanced.
    """

    nbytes: int
    resident: int
    huge: int
    maybe_huge: int
    swapped: int
    nodes: Mapping[int, int] = field(hash=False)


def residency(
    buffer: ReadableBuffer,
    *,
    chunk: SupportsIndex | None = None,
    nice: SupportsIndex = 0,
    max_threads: SupportsIndex | None = None,
    name: str | None = None,
) -> Job[Residency]:
    """A job that tells where the pages of `buffer` are at the moment, and changes nothing.

    A page of a file or of shared memory counts when this process has touched it (or populated it):
    not one that is only in the page cache, nor one that only another process has touched. Where a
    page that was swapped out is shared memory, the page tables do not tell.

    The job ranges over addresses: its units are bytes, from the first page's address to the end of
    the last. It holds the buffer for as long as it lives, as `clear` does. Memory that others use
    meanwhile is counted as each of its pages is when its turn comes.

    Args:
        buffer: Contiguous memory, read-only too: an array, mmap, bytes, bytearray, memoryview.
        chunk: Fixes the chunk size in bytes, a multiple of the page.
        nice: See `Job`.
        max_threads: See `Job`.
        name: See `Job`; "memory.residency" by default.

    Raises:
        OSError: ENOSYS elsewhere than on Linux. Out of the job that runs: /proc/self/pagemap
            cannot be opened or read.
        TypeError: `buffer` has no buffer protocol, or holds references to Python objects.
        ValueError: `buffer` is not contiguous; or an argument that `Job` refuses.

    >>> import mmap
    >>> from aioktask import run_multithreaded_sync
    >>> memory = mmap.mmap(-1, 4 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE)
    >>> memory[0] = memory[mmap.PAGESIZE] = 1
    >>> found = run_multithreaded_sync(residency(memory)).value
    >>> found.resident // mmap.PAGESIZE, found.nbytes // mmap.PAGESIZE
    (2, 4)
    """
    held = Buffer(buffer, "residency", writable=False)
    if sys.platform != "linux":
        raise OSError(
            errno.ENOSYS, f"{os.strerror(errno.ENOSYS)}: residency reads the page tables of Linux"
        )
    start = held.address // PAGE * PAGE
    stop = -(-(held.address + held.nbytes) // PAGE) * PAGE if held.nbytes else start
    large = stop - start >= ALIGN_TO_HUGE_PAGES_FROM and chunk is None
    job = Job(
        lambda _start, _stop: None,
        stop - start,
        start=start,
        align=HUGE_PAGE if large else PAGE,
        min_chunk=MIN_CHUNK if chunk is None else 1,
        chunk=chunk,
        nice=nice,
        max_threads=max_threads,
        name="memory.residency" if name is None else name,
    )

    def bind() -> Bound[Residency]:
        walk = _Walk(held, start, stop)
        return Bound(walk.chunk, walk.value)

    return job_that_makes(job, bind)


class _Walk:
    """One run of the job: what its chunks have found so far."""

    def __init__(self, held: Buffer, start: int, stop: int) -> None:
        self._held = held
        self._range = start, stop
        self._all_nodes = nodes_with_memory()
        self._huge_page = smallest_huge_page()
        # Guards the figures. They are sums of integers, which are the same in any order.
        self._lock = threading.Lock()
        self._resident = self._huge = self._swapped = 0
        self._nodes: dict[int, int] = {}
        # Before Linux 6.7: the mappings, and what is resident in each of them within the buffer.
        self._reading = threading.Lock()
        self._mappings: list[tables.Mapping] | None = None
        self._within: list[int] = []

    def chunk(self, start: int, stop: int) -> None:
        file = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for rows in tables.stretches(file, start, stop):
                self._count(rows)
        finally:
            os.close(file)

    def value(self) -> Residency:
        huge, maybe = self._huge, 0
        for mapping, within in zip(self._mappings or (), self._within, strict=True):
            if mapping.page_size > PAGE:
                huge += within
            else:
                # Of what is resident in the rest of the mapping, all may be huge, or nothing.
                most = min(mapping.huge, within)
                least = max(0, min(most, mapping.huge - (mapping.resident - within)))
                huge += least
                maybe += most - least
        start, stop = self._range
        nodes = MappingProxyType(dict(sorted(self._nodes.items())))
        return Residency(stop - start, self._resident, huge, maybe, self._swapped, nodes)

    def _count(self, rows: Rows) -> None:
        swapped = _nbytes(rows[_has(rows, tables.SWAPPED)])
        present = rows[_has(rows, tables.PRESENT) & ~_has(rows, tables.NOTHING)]
        several = len(self._all_nodes) > 1
        # A huge page may be that of zeros: PAGEMAP_SCAN tells that of small ones only.
        by_huge_page = _has(present, tables.HUGE)
        by_page = _has(present, tables.UNSURE) | (several & ~by_huge_page)
        if not several:
            by_huge_page |= _has(present, tables.UNSURE_IF_HUGE)
        sure = present[~by_huge_page & ~by_page]
        found = [
            (sure, np.full(len(sure), self._all_nodes[0], np.int32)),
            self._ask(_cut(present[by_huge_page], self._huge_page)),
            self._ask(_cut(present[by_page], PAGE)),
        ]
        resident = np.concatenate([each for each, _ in found])
        nodes = np.concatenate([each for _, each in found])
        if _has(resident, tables.MAYBE_HUGE).any():
            self._read_mappings()
        with self._lock:
            self._swapped += swapped
            self._resident += _nbytes(resident)
            self._huge += _nbytes(resident[_has(resident, tables.HUGE)])
            for node in np.unique(nodes[nodes != _NODE_UNKNOWN]).tolist():
                self._nodes[node] = self._nodes.get(node, 0) + _nbytes(resident[nodes == node])
            for index, mapping in enumerate(self._mappings or ()):
                within = np.clip(resident[:, :2], mapping.start, mapping.stop)
                self._within[index] += _nbytes(within)

    def _ask(self, rows: Rows) -> tuple[Rows, NDArray[np.int32]]:
        """Of rows of a page each, those that are resident, and on which nodes.

        The page of zeros is EFAULT. But Linux 6.1 says so, or ENOENT, of any page that its NUMA
        balancing has marked to see who uses it next: such a page is resident all the same.
        """
        while len(rows):
            try:
                nodes = libc.nodes_of_pages(rows[:, 0].astype(np.uintp))
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOSYS):
                    raise
                only = self._all_nodes[0] if len(self._all_nodes) == 1 else _NODE_UNKNOWN
                return rows, np.full(len(rows), only, np.int32)
            else:
                unsure = tables.HUGE | tables.UNSURE | tables.UNSURE_IF_HUGE
                resident = (nodes != -errno.EFAULT) | ~_has(rows, unsure)
                return rows[resident], np.maximum(nodes[resident], _NODE_UNKNOWN)
        return rows, np.empty(0, np.int32)

    def _read_mappings(self) -> None:
        with self._reading:
            if self._mappings is None:
                mappings = tables.mappings_between(*self._range)
                with self._lock:
                    self._within = [0] * len(mappings)
                    self._mappings = mappings


def _has(rows: Rows, kind: int) -> NDArray[np.bool_]:
    has: NDArray[np.bool_] = (rows[:, 2] & kind) != 0
    return has


def _nbytes(rows: Rows) -> int:
    return int((rows[:, 1] - rows[:, 0]).sum())


def _cut(rows: Rows, page: int) -> Rows:
    """These rows, cut so that there is one for each page of this size."""
    first = rows[:, 0] // page
    counts = (rows[:, 1] - 1) // page + 1 - first
    cut = np.repeat(rows, counts, axis=0)
    earlier = np.repeat(np.cumsum(counts) - counts, counts)
    number = np.repeat(first, counts) + np.arange(len(cut)) - earlier
    cut[:, 0] = np.maximum(cut[:, 0], number * page)
    cut[:, 1] = np.minimum(cut[:, 1], (number + 1) * page)
    return cut
