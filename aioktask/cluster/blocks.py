# SPDX-License-Identifier: MIT
# The blocks of a persisted Dask array as the data of a job: where they are (`homes_of`), and how a
# worker gets at them (`blocks_of`).
#
# A job has numbers and names of blocks alone; the blocks stay where Dask keeps them. A worker that
# has a block reads it in its own memory; one that helps a home that is far behind gets it from a
# worker that has it. None passes through the client. Guarantees that nobody writes into a block by
# mistake, since Dask takes them for unchanged. Relies on whoever runs the job to hold on to the
# array, by which Dask keeps the blocks.
"""Dask arrays as the data of a job on a cluster."""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
import weakref
from bisect import bisect_right
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent import futures
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeVar

import numpy as np

from aioktask.checks import integer
from aioktask.cluster.job import Home, WorkerStatus
from aioktask.cluster.worker import here
from aioktask.extras import missing_package

try:
    from distributed import Client, futures_of
    from distributed.utils_comm import gather_from_workers
except ImportError as error:
    raise missing_package("a Dask array as the data of a job", "distributed", error) from error

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Blocks", "blocks_of", "homes_of"]

T = TypeVar("T")

Units = Literal["rows", "blocks"]

# How long the scheduler may take to say where blocks are, and a block to come, in seconds.
ASK_SECONDS = 60.0


def homes_of(
    array: Any, *, units: Units = "rows"
) -> Callable[[Sequence[WorkerStatus]], tuple[Home, ...]]:
    """Where the blocks of a persisted Dask array are: the ``homes=`` of a job over it.

    The scheduler is asked when the job begins. What no worker has by then has no home, so wait for
    the array first (``await distributed.wait(array)``). Where a row is in several blocks, its home
    is the worker that has most of it.

    Args:
        array: A Dask array that was persisted: ``array = client.persist(array)``. Whoever runs the
            job holds on to it, so that Dask keeps the blocks; the job does so too.
        units: What the units of the job are: "rows", along the first axis, for a job of size
            ``len(array)``; or "blocks", in their order with the last axis fastest, for a job of
            size ``array.npartitions``.

    Returns:
        A function of the workers that there are, as ``ClusterJob(homes=...)`` takes it.

    Raises:
        TypeError: `array` is no Dask array.
        ValueError: It has blocks that were not persisted, or of unknown length; or `units` is
            neither of the two.
    """
    return _BlockHomes(array, _layout(array, units))


def blocks_of(array: Any, *, units: Units = "rows") -> Callable[[], Blocks]:
    """How a worker gets at the blocks of a persisted Dask array: the ``setup=`` of a job over it.

    Args:
        array: As for `homes_of`.
        units: As for `homes_of`.

    Returns:
        What makes `Blocks` in each worker. It is sent with names and lengths, and no block.

    Raises:
        TypeError, ValueError: As `homes_of`.

    >>> def total(start, stop, blocks):
    ...     return float(blocks.rows(start, stop).sum())
    >>> def job(array):  # in the worker of each block, which is moved nowhere
    ...     return ClusterJob(total, len(array), reduce=float.__add__,
    ...                       setup=blocks_of(array), homes=homes_of(array))
    """
    layout = _layout(array, units)
    _persisted(array, layout)
    return layout


class _Layout:
    """How an array is cut into blocks, and what Dask calls them. Makes `Blocks` on a worker."""

    def __init__(self, name: str, chunks: tuple[tuple[int, ...], ...], units: Units) -> None:
        self.name = name
        self.chunks = chunks
        self.units: Units = units

    @property
    def block_units(self) -> Units:
        """What the units of a job are that has this as its `setup`."""
        return self.units

    def __call__(self) -> Blocks:
        return Blocks(self)

    @property
    def numblocks(self) -> tuple[int, ...]:
        return tuple(map(len, self.chunks))

    def key(self, index: Iterable[int]) -> tuple[Any, ...]:
        return (self.name, *map(int, index))

    def rests(self) -> Iterable[tuple[int, ...]]:
        """The places of blocks along all axes but the first one."""
        return itertools.product(*map(range, self.numblocks[1:]))

    def share(self, rest: Sequence[int]) -> int:
        """How many elements of each row are in the blocks at a place."""
        return math.prod(lengths[at] for lengths, at in zip(self.chunks[1:], rest, strict=True))


class _BlockHomes:
    """Asks the scheduler where blocks are."""

    def __init__(self, array: Any, layout: _Layout) -> None:
        self._array = array
        self._layout = layout
        self._client = _persisted(array, layout)

    @property
    def block_units(self) -> Units:
        """What the units of a job are that has these `homes`."""
        return self._layout.units

    def __call__(self, workers: Sequence[WorkerStatus]) -> tuple[Home, ...]:
        loop = self._client.loop.asyncio_loop

        async def ask() -> Any:
            # Who waits no longer cancels this, but no wait on Dask is to be cancelled.
            return await asyncio.shield(self._client.who_has(self._array))

        told = _wait_for(loop, ask(), f"where the blocks of the array {self._layout.name!r} are")
        where = {key: set(names) for key, names in told.items()}
        layout = self._layout
        homes: list[Home] = []
        start = 0
        if layout.units == "blocks":
            # Blocks beside each other that are in one place are one home.
            every = itertools.product(*map(range, layout.numblocks))
            for names, group in itertools.groupby(
                every, key=lambda index: frozenset(where.get(layout.key(index), ()))
            ):
                stop = start + sum(1 for _ in group)
                homes += [Home(start, stop, names)] if names else []
                start = stop
            return tuple(homes)
        # A home for each block, so that a stretch is in one block and is read where it lies; but
        # for a leaf of a reduce at the edge of two blocks, which is in both.
        rests = [(rest, layout.share(rest)) for rest in layout.rests()]
        for first, length in enumerate(layout.chunks[0]):
            has: dict[str, int] = {}
            for rest, share in rests:
                for name in where.get(layout.key((first, *rest)), ()):
                    has[name] = has.get(name, 0) + share
            most = max(has.values(), default=0)
            if length and has:
                homes.append(
                    Home(start, start + length, [name for name in has if has[name] == most])
                )
            start += length
        return tuple(homes)


class Blocks:
    """The blocks of a Dask array, as a chunk on a worker reads them: what `blocks_of` makes there.

    What the worker has is read where it lies; what others have is got from them. Arrays of NumPy
    come read-only: Dask takes its blocks for unchanged, so a result goes elsewhere.
    """

    def __init__(self, layout: _Layout) -> None:
        worker = here.get(None)
        if worker is None:
            raise RuntimeError(
                "blocks_of() finds blocks on workers of Dask, and this is none: run the job with "
                "run_on_cluster() or a ClusterCoordinator"
            )
        self._worker: Any = worker
        self._loop: asyncio.AbstractEventLoop = worker.loop.asyncio_loop
        self._layout = layout
        self._starts = list(itertools.accumulate(layout.chunks[0], initial=0))
        # What each helper had last, by key: it walks through one block, most often, chunk by chunk.
        self._last = threading.local()
        # On the worker's loop: what is being got from others, and what was, while a helper has it.
        self._coming: dict[Any, asyncio.Task[Any]] = {}
        self._came: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()

    def rows(self, start: SupportsIndex, stop: SupportsIndex) -> NDArray[Any]:
        """The rows from `start` to `stop`, counted from the first row of the array.

        Where they lie in one block they are a view of it, else they are put together.

        Raises:
            IndexError: The array has no such rows.
            LookupError: No worker has a block of them any more.
        """
        first, last = integer("start", start), integer("stop", stop)
        if not 0 <= first <= last <= self._starts[-1]:
            raise IndexError(f"the array has rows 0 to {self._starts[-1]}, got {first} to {last}")
        begin = min(bisect_right(self._starts, first), len(self._starts) - 1) - 1
        end = begin + 1
        while self._starts[end] < last:
            end += 1
        rests = list(self._layout.rests())
        blocks = self._blocks([(i, *rest) for i in range(begin, end) for rest in rests])
        pieces = []
        for i in range(begin, end):
            from_, to = self._starts[i], self._starts[i + 1]
            inside = slice(max(first - from_, 0), min(last, to) - from_)
            pieces.append(self._across(blocks, (i,), inside))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _across(self, blocks: Mapping[Any, Any], index: tuple[int, ...], rows: slice) -> Any:
        """Some rows of all blocks whose place begins so."""
        axis = len(index)
        if axis == len(self._layout.chunks):
            return blocks[self._layout.key(index)][rows]
        every = range(self._layout.numblocks[axis])
        parts = [self._across(blocks, (*index, i), rows) for i in every]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)

    def block(self, number: SupportsIndex) -> Any:
        """The block of a number, in their order with the last axis fastest.

        Raises:
            IndexError: The array has no such block.
            LookupError: No worker has it any more.
        """
        (block,) = self._blocks([self._place(number)]).values()
        return block

    def slices(self, number: SupportsIndex) -> tuple[slice, ...]:
        """Where in the array the block of a number is: ``array[slices]``."""
        found = []
        for lengths, at in zip(self._layout.chunks, self._place(number), strict=True):
            begins = sum(lengths[:at])
            found.append(slice(begins, begins + lengths[at]))
        return tuple(found)

    def _place(self, number: SupportsIndex) -> tuple[int, ...]:
        asked, there = integer("number", number), math.prod(self._layout.numblocks)
        if not 0 <= asked < there:
            raise IndexError(f"the array has blocks 0 to {there}, got {asked}")
        return tuple(int(each) for each in np.unravel_index(asked, self._layout.numblocks))

    def _blocks(self, places: Sequence[tuple[int, ...]]) -> Mapping[Any, Any]:
        """Blocks by key; this helper's last ones are let go of."""
        keys = [self._layout.key(place) for place in places]
        last: Mapping[Any, Any] = getattr(self._last, "blocks", {})
        if not last.keys() >= set(keys):
            found = {key: last[key] for key in keys if key in last}
            lacking = [key for key in keys if key not in last]
            del last
            self._last.blocks = {}
            asked = f"{len(lacking)} blocks of the array {self._layout.name!r}"
            found |= _wait_for(self._loop, self._get_all(lacking), asked)
            self._last.blocks = last = found
        return last

    # On the worker's loop.

    async def _get_all(self, keys: Sequence[Any]) -> dict[Any, Any]:
        blocks = await asyncio.gather(*map(self._get, keys))
        return dict(zip(keys, blocks, strict=True))

    async def _get(self, key: Any) -> Any:
        if key in self._worker.data:
            return _read_only(self._worker.data[key])
        block = self._came.get(key)
        if block is None:
            coming = self._coming.get(key)
            if coming is None:
                coming = self._coming[key] = asyncio.ensure_future(self._fetch(key))
                coming.add_done_callback(lambda _: self._coming.pop(key, None))
            block = await asyncio.shield(coming)
        return block

    async def _fetch(self, key: Any) -> Any:
        worker = self._worker
        where = await worker.scheduler.who_has(keys=[key])
        data, *_ = await gather_from_workers(where, rpc=worker.rpc, who=worker.address)
        if key not in data:
            raise LookupError(
                f"no worker has the block {key[1:]} of the array {key[0]!r}: wait for it before "
                "the job (await distributed.wait(array)), and hold on to the array until it is over"
            )
        block = _read_only(data[key])
        if isinstance(block, np.ndarray):
            self._came[key] = block
        return block


def _persisted(array: Any, layout: _Layout) -> Client:
    """The client that has the blocks of an array.

    Raises:
        ValueError: Some of them were not persisted.
    """
    keys = {layout.key(index) for index in itertools.product(*map(range, layout.numblocks))}
    futures = {each.key: each for each in futures_of(array)}
    missing = [key for key in keys if key not in futures]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(keys)} blocks of the array were not persisted, so they "
            "are nowhere yet: array = client.persist(array), then await distributed.wait(array)"
        )
    client: Client = next(iter(futures.values())).client
    return client


# Blocks are put together without it, and it could be written to.
MASKED = "array is a masked array, whose mask would be lost: use da.ma.getdata or da.ma.filled"


def _read_only(block: Any) -> Any:
    if not isinstance(block, np.ndarray):
        return block
    if isinstance(block, np.ma.MaskedArray):  # Dask was told otherwise
        raise TypeError(MASKED)
    view = block.view()
    view.flags.writeable = False
    return view


def _wait_for(loop: asyncio.AbstractEventLoop, asked: Coroutine[Any, Any, T], what: str) -> T:
    """What a coroutine returns that runs on the loop of another thread.

    Args:
        loop: The loop, which is Dask's.
        asked: The coroutine; it is cancelled where it takes too long.
        what: What it gets, for that error.

    Raises:
        TimeoutError: It was not through in time.
        RuntimeError: This runs on that loop.
    """
    try:
        running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if running is loop:
        asked.close()
        raise RuntimeError("this waits for Dask's loop, so it cannot be called on that loop")
    running_there = asyncio.run_coroutine_threadsafe(asked, loop)
    if not futures.wait([running_there], ASK_SECONDS).done and running_there.cancel():
        raise TimeoutError(
            f"Dask did not tell {what} in {ASK_SECONDS:g} s: look whether its scheduler and the "
            "workers that have them can be reached, and are not at their limit of memory"
        )
    return running_there.result()


def _layout(array: Any, units: Units) -> _Layout:
    """The layout of a Dask array.

    Raises:
        TypeError, ValueError: It is none, or cannot be told.
    """
    import dask.array as da

    if not isinstance(array, da.Array):
        raise TypeError(f"array must be a dask.array.Array, got {type(array).__name__}")
    if units not in ("rows", "blocks"):
        raise ValueError(f"units must be 'rows' or 'blocks', got {units!r}")
    if isinstance(array._meta, np.ma.MaskedArray):
        raise TypeError(MASKED)
    if not array.ndim:
        raise ValueError("array must have an axis, got one value")
    if any(math.isnan(length) for lengths in array.chunks for length in lengths):
        raise ValueError(
            "array has blocks of unknown length: call array.compute_chunk_sizes() first"
        )
    chunks = tuple(tuple(map(int, lengths)) for lengths in array.chunks)
    return _Layout(array.name, chunks, units)
