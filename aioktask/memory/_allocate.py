# SPDX-License-Identifier: MIT
# Memory of a wanted kind, held for a while: in huge pages, on a node, faulted in beforehand.
#
# The kernel promises less than it seems when it maps huge pages: a page that the pool has, but not
# on the node that the memory is bound to, or not for this cgroup, is missed by the first touch, and
# then the process is killed (SIGBUS). So such memory is always populated before anybody sees it:
# MADV_POPULATE_WRITE reports what a touch would be killed for.
#
# Giving back drops the pages in parallel and then unmaps. A view that somebody still holds by then
# would crash the process when it is used. So the addresses stay, with empty ordinary memory behind
# them, until the last view is gone.
"""`allocate`: a region of memory."""

from __future__ import annotations

import errno
import functools
import math
import mmap
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, get_args

import numpy as np

from aioktask.checks import check_flag, check_name, integer, listed
from aioktask.engine.api.coordinator import Coordinator
from aioktask.job import Job
from aioktask.memory import _hugepages
from aioktask.memory._buffer import ALIGN_TO_HUGE_PAGES_FROM
from aioktask.memory._holding import Holding, Steps
from aioktask.memory._kernel import libc
from aioktask.memory._kernel.libc import HUGE_PAGE, PAGE, Advice
from aioktask.memory._populate import MIN_CHUNK as POPULATE_MIN_CHUNK
from aioktask.memory._populate import check_kernel_can_populate, populate_pages
from aioktask.memory._release import MIN_CHUNK as RELEASE_MIN_CHUNK

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

__all__ = ["Pages", "Region", "allocate"]

Pages = Literal["base", "transparent", "2MiB", "1GiB"]
_RESERVED = {"2MiB": 2 << 20, "1GiB": 1 << 30}
_MAP_HUGETLB = 0x40000
_MAP_HUGE_SHIFT = 26


def allocate(
    nbytes: SupportsIndex,
    *,
    pages: Pages = "transparent",
    node: SupportsIndex | None = None,
    interleave: Iterable[SupportsIndex] | None = None,
    populate: bool = False,
    nice: SupportsIndex = 0,
    max_threads: SupportsIndex | None = None,
    name: str | None = None,
    coordinator: Coordinator | None = None,
) -> Region:
    """A region of private memory, zeroed, of pages of a wanted kind, given back when it is left.

    Nothing is taken before the region is entered, awaited or opened.

    Args:
        nbytes: How many bytes, at least 1.
        pages: "transparent": huge pages where the kernel has some, and ordinary ones elsewhere
            (`residency` tells). "base": ordinary pages only, for memory that is used here and
            there. "2MiB", "1GiB": huge pages that the administrator has reserved; these are always
            populated, so that none is missed later.
        node: The NUMA node that all pages must lie on.
        interleave: Nodes over which the pages are spread in turn.
        populate: Whether the pages are made resident on entering, in parallel.
        nice: Of the jobs that populate and give back; see `Job`.
        max_threads: Of the same; see `Job`.
        name: Of the same, with ".populate" and ".release" behind it; "memory.allocate" by default.
        coordinator: Of the job that populates.

    Raises:
        TypeError: An argument of the wrong kind.
        ValueError: A value out of its range; both `node` and `interleave`; a node without memory.
        OSError: ENOSYS: pages are to be populated, and the kernel is older than Linux 5.14. On
            entering: ENOMEM when there is too little memory, or too few reserved pages: the message
            has the pool's figures; nothing is taken then.

    >>> import numpy as np
    >>> with allocate(1 << 20, pages="transparent", populate=True) as region:
    ...     numbers = region.ndarray(np.float64)
    ...     numbers[:] = 1.5
    ...     float(numbers.sum())
    196608.0
    """
    return Region(
        integer("nbytes", nbytes, least=1),
        pages,
        _nodes(node, interleave),
        interleave=interleave is not None,
        populate=check_flag("populate", populate),
        options={"nice": nice, "max_threads": max_threads},
        name="memory.allocate" if name is None else name,
        coordinator=coordinator,
    )


class Region(Holding):
    """Memory that is held from entering to leaving: what `allocate` returns.

    Use it with ``async with`` or ``with``, or by plain calls: ``region = await allocate(...)`` and
    ``await region.aclose()``, or in a thread ``region = allocate(...).open()`` and
    ``region.close()``.

    After it was left, a view of it that somebody still holds reads zeros: the region's memory is
    given back, and the addresses stay until the last view is gone.

    **Cancellation.** Cancelled while it is populated, everything is given back and then the
    cancellation goes on. Leaving is not stopped by a cancel.

    Attributes:
        nbytes: What was asked for.
        page_size: Of its pages, in bytes; that of ordinary pages for transparent huge ones.
    """

    def __init__(
        self,
        nbytes: int,
        pages: Pages,
        nodes: tuple[int, ...],
        *,
        interleave: bool,
        populate: bool,
        options: dict[str, Any],
        name: str,
        coordinator: Coordinator | None,
    ) -> None:
        super().__init__(coordinator)
        if pages not in get_args(Pages):
            known = ", ".join(repr(each) for each in get_args(Pages))
            raise ValueError(f"pages must be one of {known}, got {pages!r}")
        self.nbytes = nbytes
        self.page_size = _RESERVED.get(pages, PAGE)
        self._pages = pages
        self._nodes = nodes
        self._interleave = interleave
        self._populate = populate or pages in _RESERVED
        if self._populate:
            check_kernel_can_populate("allocate")
        self._options = options
        self._name = name
        Job(_drop_pages, 0, name=check_name(name), **options)  # refuses what a Job refuses, now
        self._length = -(-nbytes // self.page_size) * self.page_size
        # Room to begin on a multiple of the huge page, which the kernel does by itself since 6.7.
        self._slack = HUGE_PAGE - PAGE if pages == "transparent" else 0
        self._memory: mmap.mmap | None = None
        self._start = 0  # of the region within the mapping

    def __repr__(self) -> str:
        return f"<Region of {self.nbytes} bytes in {self._pages} pages: {self._state}>"

    @property
    def address(self) -> int:
        """Of the first byte: a multiple of the page, for transparent huge pages of theirs.

        Raises:
            RuntimeError: It is not open.
        """
        self._check_open()
        return self._address()

    @property
    def buffer(self) -> memoryview:
        """The bytes, writable: a new view each time.

        Raises:
            RuntimeError: It is not open.
        """
        self._check_open()
        assert self._memory is not None
        return memoryview(self._memory)[self._start : self._start + self.nbytes]

    def ndarray(
        self, dtype: DTypeLike = np.uint8, shape: SupportsIndex | tuple[SupportsIndex, ...] = -1
    ) -> NDArray[Any]:
        """An array over the bytes, from the first one on.

        Args:
            dtype: Of its items.
            shape: Its shape in C order; -1 for as many items as fit.

        Raises:
            RuntimeError: It is not open.
            TypeError: A dtype with references to Python objects.
            ValueError: The array would need more bytes than there are.
        """
        kind = np.dtype(dtype)
        if kind.hasobject:
            raise TypeError(f"a region holds plain bytes, and {kind} has references to objects")
        if kind.itemsize == 0:
            raise TypeError(f"the items of {kind} have no size: pass another dtype")
        if shape == -1:
            shape = self.nbytes // kind.itemsize
        sizes = shape if isinstance(shape, tuple) else (shape,)
        needed = math.prod(integer("shape", each, least=0) for each in sizes) * kind.itemsize
        if needed > self.nbytes:
            raise ValueError(f"shape {shape} of {kind} needs {needed} bytes, has {self.nbytes}")
        # np.ndarray(buffer=...) would hold the mapping, but not the export that keeps it mapped.
        return np.frombuffer(self.buffer, np.uint8, needed).view(kind).reshape(shape)

    def _taking(self) -> Steps:
        try:
            if self._populate and self.page_size == PAGE:
                _hugepages.check_available(self._length, self._nodes)
            self._map()
            if self._populate:
                populates = functools.partial(populate_pages, None)
                yield self._job("populate", populates, POPULATE_MIN_CHUNK)
        except BaseException as error:
            yield from self._giving_back()
            missing = isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EFAULT)
            if missing and self._pages in _RESERVED:
                raise self._missing_pages(error) from error
            raise

    def _giving_back(self) -> Steps:
        if self._memory is None:
            return
        # Dropping the pages first, in parallel, is most of the work of unmapping them.
        yield self._job("release", _drop_pages, RELEASE_MIN_CHUNK)
        try:
            self._memory.close()
        except BufferError:
            whole = self._address() - self._start
            libc.allocate_empty_over(whole, self._length + self._slack)
        self._memory = None

    def _map(self) -> None:
        flags = 0
        if self._pages in _RESERVED:
            flags = _MAP_HUGETLB | (self.page_size.bit_length() - 1) << _MAP_HUGE_SHIFT
        self._memory = libc.map_anonymous(self._length + self._slack, flags)
        if self._slack:
            self._start = -self._address() % HUGE_PAGE
        if self._pages not in _RESERVED:
            wants = self._pages == "transparent"
            advice = Advice.MADV_HUGEPAGE if wants else Advice.MADV_NOHUGEPAGE
            try:
                libc.madvise(self._address(), self._length, advice)
            except OSError as error:
                if error.errno != errno.EINVAL:  # a kernel that has no transparent huge pages
                    raise
        if self._nodes:
            policy = libc.MPOL_INTERLEAVE if self._interleave else libc.MPOL_BIND
            libc.mbind(self._address(), self._length, policy, self._nodes)

    def _address(self) -> int:
        assert self._memory is not None
        return int(np.frombuffer(self._memory, np.uint8).ctypes.data) + self._start

    def _job(self, what: str, function: Callable[[int, int], None], min_chunk: int) -> Job[None]:
        """A job over the region's addresses, which does not hold it: it may be closed meanwhile."""
        large = self._length >= ALIGN_TO_HUGE_PAGES_FROM
        return Job(
            function,
            self._length,
            start=self._address(),
            align=max(HUGE_PAGE, self.page_size) if large else self.page_size,
            min_chunk=min_chunk,
            name=f"{self._name}.{what}",
            **self._options,
        )

    def _missing_pages(self, error: BaseException) -> OSError:
        wanted = self._length // self.page_size
        told = _hugepages.explain(self.page_size, wanted, self._nodes)
        return OSError(errno.ENOMEM, f"{os.strerror(errno.ENOMEM)}: {told} ({error})")


def _drop_pages(start: int, stop: int) -> None:
    try:
        libc.madvise(start, stop - start, Advice.MADV_DONTNEED)
    except OSError as error:
        # Locked pages, and reserved ones before Linux 5.18, are dropped by the unmapping alone.
        if error.errno != errno.EINVAL:
            raise


def _nodes(
    node: SupportsIndex | None, interleave: Iterable[SupportsIndex] | None
) -> tuple[int, ...]:
    if node is not None and interleave is not None:
        raise ValueError("pass node= for all pages on one node, or interleave=, not both")
    if node is None and interleave is None:
        return ()
    if node is not None:
        nodes: tuple[int, ...] = (integer("node", node, least=0),)
    else:
        assert interleave is not None
        given = listed("interleave", interleave)
        nodes = tuple(sorted({integer("interleave node", each, least=0) for each in given}))
        if not nodes:
            raise ValueError("interleave needs at least one node, got none")
    there = _hugepages.nodes_with_memory()
    for each in nodes:
        if each not in there:
            has = ", ".join(map(str, there))
            raise ValueError(f"node {each} has no memory here; these have: {has}")
    return nodes
