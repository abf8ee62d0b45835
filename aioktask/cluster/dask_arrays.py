# SPDX-License-Identifier: MIT
# `arrays.apply` over Dask arrays: one lazy array out, whose blocks are jobs of `arrays.apply`.
#
# A block's job is done by the helpers of the process in which Dask computes it, while the thread
# of Dask's waits: so all blocks together keep to the limits of that process, whatever threads Dask
# has there. Where that thread is a helper (of a coordinator's executor) it takes chunks itself.
# Guarantees the values that one machine would have: what would let them depend on where blocks end
# is refused while nothing was computed. Relies on `dask.array.blockwise` for the graph, and needs
# no `distributed`.
"""A function over the blocks of Dask arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, SupportsIndex

import dask.array as da
import numpy as np
from numpy.typing import ArrayLike, NDArray

from aioktask.arrays import apply
from aioktask.checks import check_name, integer, name_of, nice_value
from aioktask.engine.api.coordinator import Coordinator
from aioktask.engine.api.run_job import run_multithreaded_sync
from aioktask.engine.state.current import local
from aioktask.job import Job

__all__ = ["apply_to_blocks"]

Array = NDArray[np.generic]


def apply_to_blocks(
    fn: Callable[..., object],
    inputs: Sequence[Any],
    axis: int,
    meta: ArrayLike | None,
    *,
    nice: SupportsIndex,
    max_threads: SupportsIndex | None,
    name: str | None,
) -> Any:
    """A Dask array of what `fn` makes of the rows of the inputs: see `aioktask.arrays.apply`."""
    most = None if max_threads is None else integer("max_threads", max_threads, least=1)
    options: dict[str, Any] = {
        "nice": nice_value("nice", nice),
        "max_threads": most,
        "name": None if name is None else check_name(name),
    }
    sources = [_source(f"input {i}", each) for i, each in enumerate(inputs)]
    along = [_axis_of(f"input {i}", axis, each) for i, each in enumerate(sources)]
    _check_lengths(axis, [each.shape[at] for each, at in zip(sources, along, strict=True)])
    elementwise = isinstance(fn, np.ufunc) and fn.signature is None and fn.nout == 1
    if not (elementwise and all(each.shape == sources[0].shape for each in sources)):
        elementwise = False
        for i, (each, at) in enumerate(zip(sources, along, strict=True)):
            _refuse_cut_rows(f"input {i}", each, at)
    told = _meta(fn, sources, along, axis) if meta is None else np.asarray(meta)
    if not -told.ndim <= axis < told.ndim:
        raise np.exceptions.AxisError(axis, told.ndim, "the result of fn")
    along_out = axis % told.ndim
    symbols = count(1)
    indices: list[tuple[int, ...]]
    new_axes: dict[int, int] = {}
    if elementwise:
        every = tuple(range(told.ndim))
        indices, out_index, shape = [every] * len(sources), every, None
    else:
        # 0 is that of the rows; the others are whole in each block, of inputs and of the result.
        indices = [
            tuple(0 if axis_ == at else next(symbols) for axis_ in range(each.ndim))
            for each, at in zip(sources, along, strict=True)
        ]
        out_index = tuple(0 if each == along_out else next(symbols) for each in range(told.ndim))
        new_axes = {
            symbol: length
            for symbol, length in zip(out_index, told.shape, strict=True)
            if symbol != 0
        }
        shape = (*told.shape[:along_out], 0, *told.shape[along_out + 1 :])
    arrays = [
        da.from_array(each, chunks=_chunks_like(each, at, sources, along))
        if isinstance(each, np.ndarray)
        else each
        for each, at in zip(sources, along, strict=True)
    ]
    block = _Block(fn, axis, told.dtype, shape, options)
    pairs = [value for pair in zip(arrays, indices, strict=True) for value in pair]
    return da.blockwise(
        block,
        out_index,
        *pairs,
        token=f"apply-{name_of(fn)}",
        new_axes=new_axes,
        concatenate=True,
        meta=np.empty((0,) * told.ndim, told.dtype),
    )


class _Block:
    """Makes a block of the result of those of the inputs, on helpers of the process it is in.

    Args:
        shape: Of the result for no rows; None where that is the shape of the inputs.
    """

    def __init__(
        self,
        fn: Callable[..., object],
        axis: int,
        dtype: np.dtype[Any],
        shape: tuple[int, ...] | None,
        options: dict[str, Any],
    ) -> None:
        self.fn = fn
        self.axis = axis
        self.dtype = dtype
        self.shape = shape
        self.options = options
        self.__name__ = name_of(fn)  # what Dask's pages show

    def __call__(self, *blocks: Array) -> Array:
        if all(each.shape[self.axis] == 0 for each in blocks):  # else their lengths differ
            return np.empty(blocks[0].shape if self.shape is None else self.shape, self.dtype)
        job = apply(self.fn, *blocks, axis=self.axis, **self.options)
        made = _value(job)
        along = self.axis % made.ndim
        expected = self.shape and (*self.shape[:along], made.shape[along], *self.shape[along + 1 :])
        if made.dtype != self.dtype or (expected is not None and made.shape != expected):
            shape = "" if expected is None else f" and shape {expected}"
            raise TypeError(
                f"fn returned a block of {made.dtype} and shape {made.shape}, where one of "
                f"{self.dtype}{shape} was announced: by meta=, or else by what it made of a row of "
                "ones. Pass meta=, and return that type and shape for every row"
            )
        return made


def _value(job: Job[Array]) -> Array:
    """What a job makes, in a thread of Dask's."""
    if local.stint is not None:
        return run_multithreaded_sync(job).value
    with Coordinator() as coordinator:
        return coordinator.submit(job).result().value


def _source(what: str, given: Any) -> Any:
    """A Dask array or a plain NumPy array."""
    kind = given._meta if isinstance(given, da.Array) else given
    if isinstance(kind, np.ma.MaskedArray):
        raise TypeError(f"{what} is a masked array, whose mask would be lost: pass its .data")
    return given if isinstance(given, da.Array) else np.asarray(given)


def _axis_of(what: str, axis: int, array: Any) -> int:
    if not -array.ndim <= axis < array.ndim:
        raise np.exceptions.AxisError(axis, array.ndim, what)
    return int(axis % array.ndim)


def _check_lengths(axis: int, lengths: Sequence[float]) -> None:
    known = {each for each in lengths if not math.isnan(each)}
    if len(known) > 1:
        raise ValueError(f"inputs must have the same length along axis {axis}, got {list(lengths)}")


def _refuse_cut_rows(what: str, array: Any, along: int) -> None:
    """Refuse blocks that have parts of rows, or rows of unknown length."""
    if isinstance(array, np.ndarray):
        return
    for axis, lengths in enumerate(array.chunks):
        if axis == along:
            continue
        if len(lengths) > 1:
            raise ValueError(
                f"{what} has its rows in {len(lengths)} blocks along axis {axis}, and fn may need "
                f"whole rows: pass array.rechunk({{{axis}: -1}}), or a NumPy ufunc, which works on "
                "single elements; a function of yours that does so can have each block by "
                "array.map_blocks(fn)"
            )
        if math.isnan(lengths[0]):
            raise ValueError(
                f"{what} has rows of unknown length along axis {axis}: call "
                "array.compute_chunk_sizes() first"
            )


def _meta(
    fn: Callable[..., object], sources: Sequence[Any], along: Sequence[int], axis: int
) -> Array:
    """What `fn` makes of one row of ones."""
    views = [np.ones(tuple(_of_a_row(each, at)), each.dtype) for each, at in _both(sources, along)]
    try:
        with np.errstate(all="ignore"):
            made = np.asarray(fn(*views))
    except Exception as error:
        raise ValueError(
            "fn was called with one row of ones, to find out what type and shape its result has, "
            f"and raised {type(error).__name__}: {error}. Pass meta=, an array with the type of "
            "the result and its length along each axis but the one of the rows"
        ) from error
    if not -made.ndim <= axis < made.ndim or made.shape[axis] != 1:
        raise ValueError(
            f"fn must return a block with the rows of its views along axis {axis}, got shape "
            f"{made.shape} for one row of ones"
        )
    return made


def _both(sources: Sequence[Any], along: Sequence[int]) -> Iterator[tuple[Any, int]]:
    return zip(sources, along, strict=True)


def _of_a_row(array: Any, along: int) -> Iterator[int]:
    """The shape of one row; an unknown length, which a ufunc does not mind, is 1."""
    for axis, length in enumerate(array.shape):
        yield 1 if axis == along or math.isnan(length) else length


def _chunks_like(array: Array, along: int, sources: Sequence[Any], axes: Sequence[int]) -> Any:
    """How a NumPy array is cut: along its rows as the first Dask array is."""
    rows = next(each.chunks[at] for each, at in _both(sources, axes) if isinstance(each, da.Array))
    if any(math.isnan(each) for each in rows):
        raise ValueError(
            "a NumPy array cannot be cut as a Dask array with blocks of unknown length is: call "
            "compute_chunk_sizes() on that first"
        )
    return tuple(rows if axis == along else (length,) for axis, length in enumerate(array.shape))
