# SPDX-License-Identifier: MIT
# How arrays lie in memory: what may be written to by several threads, and how it is cut into rows.
#
# Every check is made when a job is made. What cannot be decided is refused: to go on would mean
# that threads may race on somebody's data.
"""Views and checks that the array jobs share."""

from __future__ import annotations

import sys
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

import aioktask.arrays._errstate  # noqa: F401 - whoever works on arrays has it reach helpers

__all__ = [
    "Array",
    "DaskArray",
    "axis_to_split",
    "checked_axis",
    "is_dask_array",
    "lanes",
    "plain",
    "refuse_overlap",
    "rows",
    "rows_of",
    "writable",
]

Array = NDArray[np.generic]


class DaskArray(Protocol):
    """A ``dask.array.Array``, as far as types tell it from others."""

    @property
    def numblocks(self) -> Any: ...

    def __dask_graph__(self) -> Any: ...


ENOUGH_ROWS = 256
OVERLAP_WORK = 100_000  # candidate solutions that np.shares_memory may try: some milliseconds


def rows(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    """The index of these rows along `axis`."""
    return (*(slice(None),) * axis, slice(start, stop))


def rows_of(nbytes: int, array: Array, rows: int) -> int:
    """How many of so many rows of `array` hold at least `nbytes`."""
    return max(1, -(-nbytes * rows // max(1, array.nbytes)))


def checked_axis(what: str, axis: int, array: Array) -> int:
    """`axis` counted from the first one, if `array` has it."""
    if not -array.ndim <= axis < array.ndim:
        raise np.exceptions.AxisError(axis, array.ndim, what)
    return axis % array.ndim


def is_dask_array(array: object) -> bool:
    """Whether it is a Dask array; who has one has imported Dask, so this need not."""
    kind = getattr(sys.modules.get("dask.array"), "Array", None)
    return kind is not None and isinstance(array, kind)


def plain(what: str, array: ArrayLike) -> Array:
    """`array` as a plain `numpy.ndarray` over the same memory."""
    if is_dask_array(array):
        raise TypeError(
            f"{what} is a Dask array, and this job works on arrays in memory: it would compute the "
            "whole of it here. Pass array.compute(), or use arrays.apply(fn, array), which takes "
            "Dask arrays, or a function of dask.array itself"
        )
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{what} is a masked array, whose mask would be lost: pass its .data")
    return np.asarray(array)


def writable(what: str, array: object) -> Array:
    """`array` as a plain array, if several threads may write to it."""
    if is_dask_array(array):
        raise TypeError(
            f"{what} is a Dask array, and those are never written to: their blocks are shared, and "
            "may be computed again. Make a new one with arrays.apply(fn, array) or a function of "
            "dask.array itself (full_like, where), or write into a NumPy array, into which "
            "dask.array.store(array, target) brings a Dask array"
        )
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{what} must be a NumPy array, got {type(array).__name__}")
    target = plain(what, array)
    if not target.flags.writeable:
        raise ValueError(f"{what} is read-only: pass a writable array or a copy")
    # Each axis, from the smallest stride up, must step over all that the axes below it reach. Every
    # view that slicing and transposing make does so.
    reach = target.itemsize
    for stride, n in sorted(zip(map(abs, target.strides), target.shape, strict=True)):
        if target.size and n > 1 and stride < reach:
            raise ValueError(
                f"{what} may overlap itself, with shape {target.shape} and strides "
                f"{target.strides}: pass an array whose elements lie apart"
            )
        reach += (n - 1) * stride
    return target


def refuse_overlap(what: str, target: Array, other: str, array: Array) -> None:
    """Refuse memory in common, unless both are the same elements of the same memory."""
    layouts = [
        (each.ctypes.data, each.shape, each.strides, each.itemsize) for each in (target, array)
    ]
    if layouts[0] == layouts[1] or not np.may_share_memory(target, array):
        return
    try:
        if not np.shares_memory(target, array, max_work=OVERLAP_WORK):  # type: ignore[arg-type]
            return
        found = f"{what} overlaps {other}"
    except np.exceptions.TooHardError:
        found = f"{what} may overlap {other} (whether it does is too hard to find out)"
    raise ValueError(f"{found}, so the result may depend on timing: pass a copy")


def lanes(*arrays: Array) -> list[Array]:
    """Arrays of one shape as views with their rows along axis 0, flat where all are contiguous."""
    if all(each.flags.c_contiguous for each in arrays):
        return [each.reshape(-1) for each in arrays]
    if all(each.flags.f_contiguous for each in arrays):
        return [each.T.reshape(-1) for each in arrays]
    axis = axis_to_split(arrays[0])
    return [np.moveaxis(each, axis, 0) for each in arrays]


def axis_to_split(array: Array) -> int:
    """The axis whose rows lie farthest apart, of those that have enough of them to share out."""
    return max(
        range(array.ndim),
        key=lambda axis: (min(array.shape[axis], ENOUGH_ROWS), abs(array.strides[axis])),
    )
