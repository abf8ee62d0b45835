# SPDX-License-Identifier: MIT
# From where the pages of a buffer are to the parts of a job over it.
#
# The kernel tells the node of each page that it is asked for: move_pages(2) without nodes to move
# to. What comes back may be a node for every page in turn (interleaved memory), so pages are not
# joined into parts one by one: the buffer is cut into grains, and each is given to the node that
# holds at least two thirds of it. Where that makes too many parts the grain is doubled. So memory
# that is spread over the nodes ends as one part that belongs anywhere, which is what it is.
#
# Of large memory one page in a few is asked, at a place in each stretch that follows the golden
# ratio: a fixed stride would see one node only of memory that is interleaved over two.
"""`parts`: which stretches of a buffer are on which NUMA node."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from aioktask.checks import integer
from aioktask.job import Part
from aioktask.memory._buffer import Buffer
from aioktask.memory._hugepages import nodes_with_memory
from aioktask.memory._kernel import libc
from aioktask.memory._kernel.libc import HUGE_PAGE, PAGE
from aioktask.memory._kernel.signals import uninterrupted

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from numpy.typing import NDArray

__all__ = ["parts"]

# So many pages are asked at most, unless there are more grains: every page up to 1 GiB.
MOST_ASKED = 1 << 18
_NOWHERE = -1
_GOLDEN = (5**0.5 - 1) / 2


def parts(
    buffer: ReadableBuffer,
    *,
    unit: SupportsIndex | None = None,
    grain: SupportsIndex = HUGE_PAGE,
    most: SupportsIndex = 256,
) -> tuple[Part, ...]:
    """The parts of a job over `buffer`, found from where its pages are at this moment.

    For an array that already lies somewhere. A plain function, which asks the kernel and takes its
    time for that: about 50 ms for 1 GiB, of which every small page is asked. Of larger memory no
    more pages are asked in all, up to 512 GiB, and from there on one in each grain: 80 to 120 ms
    for 1 TiB. A coroutine calls it with ``asyncio.to_thread``.

    The buffer is cut on absolute multiples of `grain`. A grain belongs to the node that at least
    two thirds of it are on, and anywhere (node None) where there is no such node: its pages are
    spread over several, or not there yet. Neighbouring grains of one node are one part, so a few
    pages elsewhere make no part of their own. Memory that was read and never written is not there.
    Nor, on Linux 6.1, are pages that the kernel's NUMA balancing looks at just then.

    Args:
        buffer: Contiguous memory, read-only too: an array, mmap, bytes, bytearray, memoryview.
        unit: Bytes of a unit of the job: of a row, an item. The parts are then in units, from 0 to
            the number of units, and a unit lies in one part only; units that are larger than
            `grain` are taken as they are. By default parts are in addresses: for a job that begins
            at the buffer's address and has its bytes as units.
        grain: The smallest stretch that is worth a part, in bytes, a multiple of the page. Parts at
            the ends may have half of that.
        most: The largest number of parts. Where there would be more, the grain is doubled until
            there are not.

    Returns:
        Parts that cover the range exactly, ascending; none for a buffer without bytes.

    Raises:
        OSError: ENOSYS elsewhere than on Linux. On a machine of several nodes: the kernel does not
            tell nodes; EPERM where this process may not ask, as in many containers.
        TypeError: `buffer` has no buffer protocol, or holds references to Python objects; or an
            argument is no integer.
        ValueError: `buffer` is not contiguous; or an argument is out of its range; or the bytes are
            no whole number of units.

    >>> import numpy as np
    >>> from aioktask import Job, run_multithreaded_sync
    >>> rows = np.ones((1000, 512))
    >>> def double(start, stop):
    ...     rows[start:stop] *= 2
    >>> found = parts(rows, unit=rows.strides[0])
    >>> report = run_multithreaded_sync(Job(double, len(rows), parts=found))
    >>> float(rows.min())
    2.0
    """
    held = Buffer(buffer, "parts", writable=False)
    size = 1 if unit is None else integer("unit", unit, least=1)
    width = integer("grain", grain, least=1)
    limit = integer("most", most, least=1)
    if held.nbytes % size:
        raise ValueError(f"unit must divide the buffer's {held.nbytes} bytes, got {size}")
    if width % PAGE:
        raise ValueError(f"grain must be a multiple of the page ({PAGE}), got {width}")
    if sys.platform != "linux":
        raise OSError(
            errno.ENOSYS, f"{os.strerror(errno.ENOSYS)}: parts asks the kernel of Linux for nodes"
        )
    if not held.nbytes:
        return ()
    starts, pages = _to_ask(held.address, held.nbytes, width)
    told = _nodes_of(pages)
    changes = _changes(told)
    starts, nodes = starts[changes], told[changes]
    while True:
        edges = _edges(held.address, held.nbytes, size, width)
        found = _joined(edges, _by_majority(edges, starts, nodes))
        if len(found) <= limit:
            break
        width *= 2
    first = held.address if unit is None else 0
    return tuple(
        Part(
            first + (start - held.address) // size,
            first + (stop - held.address) // size,
            None if node == _NOWHERE else node,
        )
        for start, stop, node in found
    )


def _to_ask(
    address: int, nbytes: int, grain: int, most: int = MOST_ASKED
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The addresses that stretches begin at, and that of the page to ask in each of them.

    Stretches divide the grain and begin at absolute multiples of themselves: none is in two grains.
    """
    first, stop = address // PAGE, -(-(address + nbytes) // PAGE)
    whole = grain // PAGE
    wanted = -(-(stop - first) // most)
    step = next((each for each in range(wanted, whole) if whole % each == 0), whole)
    starts = np.arange(first - first % step, stop, step, dtype=np.int64)
    begins = np.maximum(starts, first)
    turns = np.arange(len(starts)) * _GOLDEN % 1
    inside = (turns * (np.minimum(starts + step, stop) - begins)).astype(np.int64)
    return np.maximum(begins * PAGE, address), (begins + inside) * PAGE


def _nodes_of(pages: NDArray[np.int64]) -> NDArray[np.int32]:
    """The node of each page, `_NOWHERE` for those that are on none."""
    try:
        told = uninterrupted(libc.nodes_of_pages, pages.astype(np.uintp))
    except OSError as error:
        there = nodes_with_memory()
        if error.errno not in (errno.EPERM, errno.ENOSYS) or len(there) > 1:
            raise
        return np.full(len(pages), there[0], np.int32)
    nodes: NDArray[np.int32] = np.maximum(told, _NOWHERE)
    return nodes


def _edges(address: int, nbytes: int, unit: int, grain: int) -> NDArray[np.int64]:
    """Where the buffer may be cut, its two ends among it: the boundaries of units that are nearest
    to multiples of the grain. Nothing at an end is shorter than half a grain, for want of a unit.
    """
    half = grain // 2
    first = -(-(address + half) // grain) * grain
    multiples = np.arange(first, address + nbytes - half + 1, grain, dtype=np.int64)
    units = (multiples - address + unit // 2) // unit
    inner = units[_changes(units)] * unit
    inner = inner[(inner > 0) & (inner < nbytes)]
    return address + np.concatenate(([0], inner, [nbytes]))


def _by_majority(
    edges: NDArray[np.int64], starts: NDArray[np.int64], nodes: NDArray[np.int32]
) -> NDArray[np.int64]:
    """For each stretch between two edges the node that two thirds of it are on, or `_NOWHERE`.

    Args:
        edges: From the first byte to the one past the last.
        starts: Where the pages that follow, up to the next of these, count as being on one node.
        nodes: Which node that is.
    """
    cuts = np.sort(np.concatenate((starts, edges[:-1])), kind="stable")
    cuts = cuts[_changes(cuts)]
    nbytes = np.diff(cuts, append=edges[-1])
    node = nodes[np.searchsorted(starts, cuts, "right") - 1]
    stretch = np.searchsorted(edges, cuts, "right") - 1
    found = np.full(len(edges) - 1, _NOWHERE, np.int64)
    for each in np.unique(nodes[nodes != _NOWHERE]).tolist():
        # As floats, which are exact for all that fits into an address space of today.
        there = np.bincount(stretch, np.where(node == each, nbytes, 0), len(found))
        found[3 * there >= 2 * np.diff(edges)] = each
    return found


def _joined(edges: NDArray[np.int64], nodes: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Start, stop and node of each run of stretches that are on the same node."""
    first = _changes(nodes)
    starts = edges[first]
    stops = np.append(starts[1:], edges[-1])
    return list(zip(starts.tolist(), stops.tolist(), nodes[first].tolist(), strict=True))


def _changes(values: NDArray[Any]) -> NDArray[np.intp]:
    """Where a value stands that is not the one before: 0, if there are any, and so on."""
    differs = np.ones(len(values), np.bool_)
    differs[1:] = values[1:] != values[:-1]
    return np.flatnonzero(differs)
