# SPDX-License-Identifier: MIT
# NumPy's reductions, in the engine's fixed tree.
#
# Only ufuncs that are associative: for others the leaves' sizes would decide the result. What NumPy
# says to a type or an axis is found out by asking it, over one zero, when the job is made.
"""`reduce`: a job that is a `ufunc.reduce`."""

from __future__ import annotations

from types import EllipsisType
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

import numpy as np

from aioktask.arrays._layout import Array, axis_to_split, checked_axis, lanes, plain, rows, rows_of
from aioktask.checks import integer
from aioktask.job import Bound, Job, job_that_makes

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

__all__ = ["reduce"]

Reduced = Array | np.generic

# Long enough for a NumPy loop that neither its call nor a second thread's wait for the GIL counts.
MIN_BYTES = 4 << 20

ASSOCIATIVE = frozenset(
    {
        *(np.add, np.multiply, np.maximum, np.minimum, np.fmax, np.fmin),
        *(np.logical_and, np.logical_or, np.logical_xor),
        *(np.bitwise_and, np.bitwise_or, np.bitwise_xor),
        *(np.gcd, np.lcm, np.logaddexp, np.logaddexp2, np.hypot),
    }
)


def reduce(
    ufunc: np.ufunc,
    array: ArrayLike,
    *,
    axis: SupportsIndex | None = 0,
    dtype: DTypeLike | None = None,
    initial: object = ...,
    nice: SupportsIndex = 0,
    max_threads: SupportsIndex | None = None,
    name: str | None = None,
) -> Job[Reduced]:
    """A job whose value is ``ufunc.reduce(array, axis=axis, dtype=dtype)``.

    The result is the same bit for bit on any number of threads. A sum or product of floats may
    differ in the last bits from NumPy's, which takes them in another order.

    Args:
        ufunc: `np.add`, `multiply`, `maximum`, `minimum`, `fmax`, `fmin`, `logical_and`, `_or`,
            `_xor`, `bitwise_and`, `_or`, `_xor`, `gcd`, `lcm`, `logaddexp`, `logaddexp2`, `hypot`.
            An `lcm` that overflows depends on the order, here and in NumPy.
        array: What is reduced.
        axis: Along which, or None for all elements.
        dtype: Type of the result and of the calculation, by default as NumPy chooses it.
        initial: A single value to begin with, and the result where there is nothing to reduce. By
            default the ufunc's identity is the result then.
        nice: See `Job`.
        max_threads: See `Job`.
        name: See `Job`; "arrays.reduce" by default.

    Raises:
        TypeError: `ufunc` is none, or has no loop for these types; a masked array.
        ValueError: `ufunc` is not known to be associative; nothing to reduce, and no identity.
        numpy.exceptions.AxisError: `array` has no such axis.

    >>> import numpy as np
    >>> from aioktask import run_multithreaded_sync
    >>> int(run_multithreaded_sync(reduce(np.add, np.arange(5))).value)
    10
    """
    if not isinstance(ufunc, np.ufunc):
        raise TypeError(f"ufunc must be a NumPy ufunc, got {ufunc!r}")
    if ufunc not in ASSOCIATIVE:
        raise ValueError(
            f"{ufunc.__name__} is not known to be associative, so its result would depend on the "
            f"chunks: use Job(reduce=...) if that is wanted"
        )
    whole = plain("array", array)
    over = None
    if axis is not None:
        over = checked_axis("array", integer("axis", axis), np.atleast_1d(whole))
    # What NumPy has to say to these types and this axis, and the type of the result, over one zero.
    trial = ufunc.reduce(np.zeros((1,) * whole.ndim, whole.dtype), axis=over, dtype=dtype)
    kind: np.dtype[np.generic] = getattr(trial, "dtype", np.dtype(object))
    single = over is None or whole.ndim <= 1  # the result is one value and no array
    if single:
        [source], split, over = lanes(whole), 0, None
    else:
        source, split = whole, axis_to_split(whole) if whole.size else cast("int", over)
    size = source.shape[split]

    def reduce_rows(start: int, stop: int, **more: Any) -> Reduced:
        view = source[rows(split, start, stop)]
        return cast("Reduced", ufunc.reduce(view, axis=over, dtype=dtype, **more))

    def combine(a: Reduced, b: Reduced) -> Reduced:
        if not single:
            array = cast("Array", a)
            return cast("Reduced", ufunc(array, b, out=array))
        # By `reduce` again, which takes an object for an object, whatever it is.
        pair: Array = np.empty(2, kind)
        pair[0], pair[1] = a, b
        return cast("Reduced", ufunc.reduce(pair, dtype=dtype))

    given: dict[str, Any] = {} if initial is ... else {"initial": initial}
    if not single and split != over:
        # No row of the result needs more than its own rows: nothing to combine.
        def bind() -> Bound[Reduced]:
            kept = cast("int", over)
            result: Array = np.empty(whole.shape[:kept] + whole.shape[kept + 1 :], kind)
            along = split - (kept < split)

            def reduce_into(start: int, stop: int) -> None:
                out = result[rows(along, start, stop)]
                if stop - start > 1 or size == 1:
                    reduce_rows(start, stop, out=out, **given)
                    return
                # NumPy drops an axis of length 1, and then adds up in another order.
                first = max(start - 1, 0)
                pair = np.asarray(reduce_rows(first, first + 2, **given))
                out[...] = pair[rows(along, start - first, stop - first)]

            return Bound(reduce_into, lambda: result)

        return job_that_makes(
            Job(
                reduce_rows,
                size,
                min_chunk=rows_of(MIN_BYTES, whole, size),
                nice=nice,
                max_threads=max_threads,
                name="arrays.reduce" if name is None else name,
            ),
            bind,
        )
    begin: Reduced | EllipsisType = ...
    if size == 0 or (initial is not ... and initial is not None):  # NumPy's None is "without"
        begin = reduce_rows(0, 0, **given)
    return Job(
        reduce_rows,
        size,
        min_chunk=rows_of(MIN_BYTES, whole, size),
        reduce=combine,
        initial=begin,
        nice=nice,
        max_threads=max_threads,
        name="arrays.reduce" if name is None else name,
    )
