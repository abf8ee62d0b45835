# SPDX-License-Identifier: MIT
# Writing one value or another array into an array.
#
# What can be wrong with types, shapes and memory is refused when the job is made, so a chunk fails
# only where an object's own conversion does. Contiguous arrays are cut as one flat range.
"""`fill` and `copy`: jobs that assign to an array."""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsIndex, TypeVar, cast

import numpy as np

from aioktask.arrays._layout import Array, lanes, plain, refuse_overlap, rows_of, writable
from aioktask.job import Bound, Job, job_that_makes

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["copy", "fill"]

A = TypeVar("A", bound=Array)

MIB = 1 << 20
# NumPy's own loops are as fast in small pieces as in large ones, once the call itself is paid.
MIN_BYTES = 1 * MIB
# Zeros are written by memset, which is two to three times as fast in calls for more than the
# last-level cache holds: 24 GB/s in calls of 24 MiB, 55 of 64 MiB, 70 of 128 MiB and more.
MIN_BYTES_OF_ZEROS = 64 * MIB
# memcpy goes around the cache in calls for more than about 3/4 of what it takes for the size of the
# cache (240 MiB on the virtual machine where that was measured), and is a fifth to a third faster
# then. An array that has not four chunks of that size is better shared out finer.
MIN_BYTES_OF_COPY = 64 * MIB
MIN_BYTES_OF_LARGE_COPY = 256 * MIB
LARGE_COPY = 4 * MIN_BYTES_OF_LARGE_COPY


def fill(
    a: A,
    value: object,
    *,
    nice: SupportsIndex = 0,
    max_threads: SupportsIndex | None = None,
    name: str | None = None,
) -> Job[A]:
    """A job that sets every element of `a` to `value`; its value is `a`.

    Args:
        a: Any writable array.
        value: A single value, cast by the rule "same_kind" when the job is made. For arrays of
            records and of objects it is taken as ``a.fill(value)`` takes it.
        nice: See `Job`.
        max_threads: See `Job`.
        name: See `Job`; "arrays.fill" by default.

    Raises:
        TypeError: `a` is no array or a masked one, or `value` cannot be cast to its type.
        ValueError: `a` is read-only or overlaps itself; `value` is not a single value.
        OverflowError: `value` is an int that the type cannot hold.

    >>> import numpy as np
    >>> from aioktask import run_multithreaded_sync
    >>> run_multithreaded_sync(fill(np.empty(3), 7)).value
    array([7., 7., 7.])
    """
    target = writable("a", a)
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError("value must not be masked, since its mask would be lost")
    item: Array = np.empty((), target.dtype)
    if target.dtype.hasobject or (
        target.dtype.names and not isinstance(value, np.generic | np.ndarray)
    ):
        item.fill(value)
    elif np.ndim(cast("ArrayLike", value)) != 0:
        shape = np.shape(cast("ArrayLike", value))
        raise ValueError(f"fill needs a single value, got one of shape {shape}")
    else:
        np.copyto(item, cast("ArrayLike", value), casting="same_kind")
    [lane] = lanes(target)
    size, width, min_bytes = len(lane), 1, MIN_BYTES
    if lane.flags.c_contiguous and lane.ndim == 1 and _is_zero_bytes(item):
        # NumPy uses memset for bytes only.
        width, min_bytes = target.itemsize, MIN_BYTES_OF_ZEROS
        lane, item = lane.view(np.uint8), np.zeros((), np.uint8)

    def fill_chunk(start: int, stop: int) -> None:
        np.copyto(lane[start * width : stop * width], item)

    job = Job(
        fill_chunk,
        size,
        min_chunk=rows_of(min_bytes, target, size),
        nice=nice,
        max_threads=max_threads,
        name="arrays.fill" if name is None else name,
    )
    return job_that_makes(job, lambda: Bound(fill_chunk, lambda: a))


def copy(
    destination: A,
    source: ArrayLike,
    *,
    nice: SupportsIndex = 0,
    max_threads: SupportsIndex | None = None,
    name: str | None = None,
) -> Job[A]:
    """A job that copies `source` to `destination`, as `np.copyto` does; its value is `destination`.

    Args:
        destination: Any writable array.
        source: An array of the same shape, cast by the rule "same_kind". It may be `destination`
            itself, but may not overlap it in any other way.
        nice: See `Job`.
        max_threads: See `Job`.
        name: See `Job`; "arrays.copy" by default.

    Raises:
        TypeError: `destination` is no array, one of them is a masked array, or the types do not
            cast.
        ValueError: The shapes differ; `destination` is read-only, or overlaps `source` or itself.

    >>> import numpy as np
    >>> from aioktask import run_multithreaded_sync
    >>> run_multithreaded_sync(copy(np.empty(3), np.arange(3))).value
    array([0., 1., 2.])
    """
    target, origin = writable("destination", destination), plain("source", source)
    if target.shape != origin.shape:
        raise ValueError(
            f"source must have the shape of destination, {target.shape}, got {origin.shape}"
        )
    # NumPy's own answer to whether the types cast, over nothing.
    np.copyto(np.empty(0, target.dtype), np.empty(0, origin.dtype), casting="same_kind")
    refuse_overlap("destination", target, "source", origin)
    to, of = lanes(target, origin)
    min_bytes = MIN_BYTES
    if to.ndim == 1 and to.flags.c_contiguous and of.flags.c_contiguous:
        min_bytes = MIN_BYTES_OF_LARGE_COPY if to.nbytes >= LARGE_COPY else MIN_BYTES_OF_COPY

    def copy_chunk(start: int, stop: int) -> None:
        np.copyto(to[start:stop], of[start:stop], casting="same_kind")

    job = Job(
        copy_chunk,
        len(to),
        min_chunk=rows_of(min_bytes, target, len(to)),
        nice=nice,
        max_threads=max_threads,
        name="arrays.copy" if name is None else name,
    )
    return job_that_makes(job, lambda: Bound(copy_chunk, lambda: destination))


def _is_zero_bytes(item: Array) -> bool:
    """Whether this is plain memory, without gaps between fields, that is all zeros."""
    plain = not item.dtype.hasobject and item.dtype.names is None and item.itemsize > 0
    return plain and not any(item.tobytes())
