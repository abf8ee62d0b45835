# SPDX-License-Identifier: MIT
# A function over the rows of arrays, with the result put together from its blocks.
#
# The result never depends on which block is finished first: its type and shape are those of the
# first block, and a block that differs is refused. Each run has a `_Result` of its own.
"""`apply`: a job that calls a function on some rows at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeVar, cast, overload

import numpy as np

from aioktask.arrays._layout import (
    Array,
    DaskArray,
    checked_axis,
    is_dask_array,
    plain,
    refuse_overlap,
    rows,
    writable,
)
from aioktask.checks import check_arguments, check_done, check_function, integer
from aioktask.job import Bound, Job, job_that_makes
from aioktask.lazy import from_above

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["apply"]

A = TypeVar("A", bound=Array)
S = TypeVar("S", bound=np.generic)


@overload
def apply(
    fn: Callable[..., object],
    *inputs: DaskArray,
    axis: SupportsIndex = 0,
    meta: ArrayLike | None = None,
    nice: SupportsIndex = 0,
    max_threads: SupportsIndex | None = None,
    name: str | None = None,
) -> Any: ...


@overload
def apply(
    fn: Callable[..., NDArray[S]],
    *inputs: ArrayLike,
    out: None = None,
    axis: SupportsIndex = 0,
    out_arg: Literal[False] = False,
    nice: SupportsIndex = 0,
    max_threads: SupportsIndex | None = None,
    name: str | None = None,
) -> Job[NDArray[S]]: ...


@overload
def apply(
    fn: Callable[..., object],
    *inputs: ArrayLike,
    out: A,
    axis: SupportsIndex = 0,
    out_arg: bool = False,
    nice: SupportsIndex = 0,
    max_threads: SupportsIndex | None = None,
    name: str | None = None,
) -> Job[A]: ...


def apply(
    fn: Callable[..., object],
    *inputs: ArrayLike | DaskArray,
    out: A | None = None,
    axis: SupportsIndex = 0,
    out_arg: bool = False,
    meta: ArrayLike | None = None,
    nice: SupportsIndex = 0,
    max_threads: SupportsIndex | None = None,
    name: str | None = None,
) -> Job[NDArray[S]] | Job[A] | Any:
    """A job that calls `fn` on some rows of the inputs at a time; its value is the result array.

    The rows are slices along `axis`, the same ones of every input, and `fn` must make each row of
    its result from that row of its views alone. It runs on several threads at a time.

    **Dask arrays.** Where an input is one, this returns no job but a Dask array, and computes
    nothing: each of its blocks is such a job, which the helpers of the process do in which Dask
    computes the block. They keep to the limits of that process, however many threads Dask has
    there. `fn` travels by pickle. Rows must not be cut into blocks, since `fn` may need whole ones,
    but for a NumPy ufunc on inputs of one shape. NumPy arrays among the inputs go into Dask's
    graph.

    Args:
        fn: Called as ``fn(*views)``, returns the block of the result for these rows: as many rows
            along `axis`, the other axes as it likes. With `out_arg` called as
            ``fn(*views, out_view)``, and writes the block; what it returns is ignored.
        inputs: Arrays of the same length along `axis`.
        out: Where the result goes, cast by the rule "same_kind"; it is the job's value. It may be
            one of the inputs, but may not overlap one in any other way. Without it each run makes
            an array with the type and shape of the blocks, which must be the same for all.
        axis: Along which rows are counted; negative counts from the last axis of each array.
        out_arg: Whether `fn` writes to a view of `out`.
        meta: Of Dask arrays alone: an array with the type of the result, and its length along each
            axis but `axis`. By default `fn` is called with one row of ones to find that out.
        nice: See `Job`.
        max_threads: See `Job`.
        name: See `Job`; "arrays.apply" by default.

    Raises:
        TypeError: No inputs; `out_arg` without `out`; an async `fn`, or one of other arguments; a
            masked array; `out` for Dask arrays, which are not written to; `meta` without them. Out
            of the job: a block whose type differs from another's, or that cannot be cast to
            `out`'s.
        ValueError: Different lengths along `axis`; an `out` that is read-only, of another length,
            or overlaps an input or itself; an empty axis without `out`; a Dask array whose rows are
            cut; an `fn` that one row of ones does not suit. Out of the job: a block of a shape that
            does not fit.
        numpy.exceptions.AxisError: An array has no such axis.

    >>> import numpy as np
    >>> from aioktask import run_multithreaded_sync
    >>> run_multithreaded_sync(apply(np.hypot, np.array([3.0, 5.0]), np.array([4.0, 12.0]))).value
    array([ 5., 13.])
    """
    check_function("fn", fn)
    if not inputs:
        raise TypeError("apply needs at least one input array")
    check_arguments("fn", fn, ", ".join([*["view"] * len(inputs), *["out_view"] * bool(out_arg)]))
    if out is None and out_arg:
        raise TypeError("out_arg=True needs an array to write to: pass out=")
    axis = integer("axis", axis)
    if any(map(is_dask_array, inputs)):
        if out is not None or out_arg:
            raise TypeError(
                "out cannot be given with Dask arrays: apply returns a new Dask array, and blocks "
                "are made when it is computed. Leave out= away, and bring the result into an array "
                "of your own with dask.array.store(result, target)"
            )
        of_dask = from_above("aioktask.cluster.dask_arrays", "apply_to_blocks")
        return of_dask(fn, inputs, axis, meta, nice=nice, max_threads=max_threads, name=name)
    if meta is not None:
        raise TypeError("meta tells of a Dask array's blocks, and no input is a Dask array")
    return _job(
        fn, cast("tuple[ArrayLike, ...]", inputs), out, axis, out_arg, nice, max_threads, name
    )


def _job(
    fn: Callable[..., object],
    inputs: tuple[ArrayLike, ...],
    out: A | None,
    axis: int,
    out_arg: bool,
    nice: SupportsIndex,
    max_threads: SupportsIndex | None,
    name: str | None,
) -> Job[NDArray[S]] | Job[A]:
    """The job over arrays in memory."""
    called = "arrays.apply" if name is None else name
    arrays = [plain(f"input {i}", each) for i, each in enumerate(inputs)]
    axes = [checked_axis(f"input {i}", axis, each) for i, each in enumerate(arrays)]
    lengths = [each.shape[along] for each, along in zip(arrays, axes, strict=True)]
    length = lengths[0]
    if any(other != length for other in lengths):
        raise ValueError(f"inputs must have the same length along axis {axis}, got {lengths}")
    sources = list(zip(arrays, axes, strict=True))
    # Rows of Fortran-ordered arrays are best kept as they lie.
    order: Literal["C", "F"] = "F" if all(each.flags.fnc for each in arrays) else "C"
    target: Array | None = None
    if out is not None:
        target = writable("out", out)
        along_out = checked_axis("out", axis, target)
        if target.shape[along_out] != length:
            raise ValueError(
                f"out must have the length of the inputs along axis {axis}: {length}, "
                f"got {target.shape[along_out]}"
            )
        for i, each in enumerate(arrays):
            refuse_overlap("out", target, f"input {i}", each)
    elif length == 0:
        raise ValueError(
            f"inputs of length 0 along axis {axis} tell nothing of the result: pass out="
        )

    def write(start: int, stop: int) -> None:
        views = [each[rows(along, start, stop)] for each, along in sources]
        views.append(cast("Array", target)[rows(along_out, start, stop)])
        check_done(fn(*views), "fn", called)

    def bind() -> Bound[A]:
        if out_arg:
            return Bound(write, lambda: cast("A", out))
        result = _Result(axis, length, order, target)

        def assign(start: int, stop: int) -> None:
            block = fn(*[each[rows(along, start, stop)] for each, along in sources])
            check_done(block, "fn", called)
            result.put(block, start, stop)

        return Bound(assign, lambda: cast("A", result.array() if out is None else out))

    job = Job(
        lambda start, stop: None,
        length,
        nice=nice,
        max_threads=max_threads,
        name=called,
    )
    return job_that_makes(job, bind, fn)


class _Result:
    """Where the blocks of one run go: `out`, or an array made for the block finished first."""

    def __init__(self, axis: int, length: int, order: Literal["C", "F"], out: Array | None) -> None:
        self._axis = axis
        self._length = length
        self._order = order
        self._made = out is None
        self._lock = threading.Lock()  # guards _array while it may be None
        self._array = out

    def array(self) -> Array:
        return cast("Array", self._array)

    def put(self, returned: object, start: int, stop: int) -> None:
        """Store what `fn` returned for these rows."""
        block = plain("what fn returns", cast("ArrayLike", returned))
        found = block.shape
        along = self._axis + block.ndim if self._axis < 0 else self._axis
        if not 0 <= along < block.ndim or found[along] != stop - start:
            raise ValueError(
                f"fn must return a block with the {stop - start} rows of its views along axis "
                f"{self._axis}, got shape {found}"
            )
        with self._lock:
            if self._array is None:
                shape = (*found[:along], self._length, *found[along + 1 :])
                self._array = np.empty(shape, block.dtype, order=self._order)
            array = self._array
        other = array.shape
        if len(found) != len(other) or any(
            n != m for i, (n, m) in enumerate(zip(found, other, strict=True)) if i != along
        ):
            raise ValueError(
                f"fn returned a block of shape {found} for rows {start} to {stop}, which does not "
                f"fit into a result of shape {other}" + ("; pass out=" if self._made else "")
            )
        if self._made and block.dtype != array.dtype:
            raise TypeError(
                f"fn returned {block.dtype} for rows {start} to {stop} and {array.dtype} for "
                f"others: return one type, or pass out="
            )
        if not self._made and not np.can_cast(block.dtype, array.dtype, "same_kind"):
            raise TypeError(
                f"fn returned {block.dtype} for rows {start} to {stop}, which cannot be cast to "
                f"out's {array.dtype}: pass an out of {block.dtype}, or have fn convert"
            )
        np.copyto(array[rows(along, start, stop)], block, casting="same_kind")
