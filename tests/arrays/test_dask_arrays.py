# SPDX-License-Identifier: MIT
# `arrays.apply` on Dask arrays, and that no other array job takes one by mistake.

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("dask.array", reason="dask is not installed")

import dask
import dask.array as da

from aioktask import arrays, snapshot

RNG = np.random.default_rng(7)


def shares(rows: Any) -> Any:
    return rows / rows.sum(axis=1, keepdims=True)


def sums(rows: Any) -> Any:
    return rows.sum(axis=1)


@pytest.fixture
def numbers() -> Any:
    return RNG.random((1000, 6))


@pytest.mark.parametrize("fn", [shares, sums])
def test_the_result_is_that_of_numpy_with_its_type_and_the_blocks_of_the_input(
    numbers: Any, fn: Any
) -> None:
    lazy = arrays.apply(fn, da.from_array(numbers, chunks=(130, 6)))
    assert isinstance(lazy, da.Array)
    expected = fn(numbers)
    assert (lazy.shape, lazy.dtype) == (expected.shape, expected.dtype)
    assert lazy.chunks[0] == (*[130] * 7, 90)
    made = lazy.compute()
    assert made.dtype == expected.dtype
    assert (made == expected).all()


def test_nothing_is_computed_before_it_is_asked_for(numbers: Any) -> None:
    seen: list[int] = []

    def note(rows: Any) -> Any:
        seen.append(len(rows))
        return rows

    lazy = arrays.apply(note, da.from_array(numbers, chunks=(500, 6)), meta=numbers)
    assert seen == []
    lazy[:10].compute()
    assert sum(seen) == 500  # one block


def test_a_block_is_a_job_of_its_own_with_the_options_that_were_given(numbers: Any) -> None:
    seen: set[tuple[str, int]] = set()

    def note(rows: Any) -> Any:
        seen.update((job.name, job.nice) for job in snapshot().jobs)
        return rows

    lazy = arrays.apply(note, da.from_array(numbers, chunks=(500, 6)), meta=numbers, nice=7)
    lazy.compute(scheduler="threads", num_workers=1)
    assert seen == {("arrays.apply", 7)}


@pytest.mark.max_threads(2)
def test_threads_of_dask_do_not_multiply_those_of_the_engine() -> None:
    lock = threading.Lock()
    inside = most = 0

    def note(rows: Any) -> Any:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        end = time.perf_counter() + 0.002
        while time.perf_counter() < end:
            pass
        with lock:
            inside -= 1
        return rows

    lazy = arrays.apply(note, da.ones((64, 50), chunks=(8, 50)), meta=np.ones((0, 50)))
    lazy.compute(scheduler="threads", num_workers=8)
    assert most == 2


def test_a_ufunc_keeps_blocks_of_any_shape(numbers: Any) -> None:
    both = da.from_array(numbers, chunks=(100, 2))
    lazy = arrays.apply(np.hypot, both, da.from_array(numbers, chunks=(130, 6)))
    assert lazy.chunks[1] == (2, 2, 2)
    assert (lazy.compute() == np.hypot(numbers, numbers)).all()


def test_rows_that_are_cut_are_refused_with_what_to_do(numbers: Any) -> None:
    cut = da.from_array(numbers, chunks=(100, 2))
    with pytest.raises(ValueError, match=r"in 3 blocks along axis 1.*rechunk\(\{1: -1\}\)"):
        arrays.apply(shares, cut)
    assert (arrays.apply(shares, cut.rechunk({1: -1})).compute() == shares(numbers)).all()


@pytest.mark.parametrize("axis", [1, -1])
def test_rows_may_lie_along_another_axis(numbers: Any, axis: int) -> None:
    lazy = arrays.apply(
        lambda columns: columns - columns.mean(axis=0),
        da.from_array(numbers, chunks=(1000, 4)),
        axis=axis,
    )
    assert lazy.chunks == ((1000,), (4, 2))
    assert np.allclose(lazy.compute(), numbers - numbers.mean(axis=0))


def test_inputs_with_other_blocks_and_numpy_arrays_fit_together(numbers: Any) -> None:
    weights = np.arange(1000)
    lazy = arrays.apply(
        lambda rows, weight, more: rows * weight[:, None] + more[:, None],
        da.from_array(numbers, chunks=(130, 6)),
        weights,
        da.from_array(weights, chunks=400),
    )
    expected = numbers * weights[:, None] + weights[:, None]
    assert (lazy.compute() == expected).all()


def test_blocks_without_rows_and_of_unknown_length_are_taken(numbers: Any) -> None:
    lazy = da.from_array(numbers, chunks=(500, 6))
    some = lazy[lazy[:, 0] > 2]  # none, which Dask does not know
    made = arrays.apply(sums, some)
    assert np.isnan(made.shape[0])
    assert made.compute().shape == (0,)
    few = arrays.apply(sums, lazy[lazy[:, 0] > 0.5])
    assert (few.compute() == sums(numbers[numbers[:, 0] > 0.5])).all()


@pytest.mark.parametrize("swapped", [False, True])
def test_blocks_of_unknown_length_that_do_not_fit_are_refused(*, swapped: bool) -> None:
    three = da.from_array(np.array([-1.0, -1, -1, 1, 2, 3]), chunks=3)
    five = da.from_array(np.array([-1.0, 4, 5, 6, 7, 8]), chunks=3)
    given = [three[three > 0], five[five > 0]]
    lazy = arrays.apply(np.add, *(reversed(given) if swapped else given))
    with pytest.raises(ValueError, match="length"):
        lazy.compute(scheduler="synchronous")


def test_a_function_that_does_not_take_a_row_of_ones_needs_meta() -> None:
    matrices = RNG.random((40, 3, 3)) + np.eye(3)
    lazy = da.from_array(matrices, chunks=(10, 3, 3))
    with pytest.raises(ValueError, match=r"one row of ones.*LinAlgError.*Pass meta="):
        arrays.apply(np.linalg.inv, lazy)
    made = arrays.apply(np.linalg.inv, lazy, meta=np.empty((0, 3, 3)))
    assert np.allclose(made.compute(), np.linalg.inv(matrices))


@pytest.mark.parametrize("meta", [np.empty((0, 6), "f4"), np.empty((0, 5))])
def test_a_block_of_another_type_or_shape_than_announced_is_refused(
    numbers: Any, meta: Any
) -> None:
    lazy = arrays.apply(shares, da.from_array(numbers, chunks=(500, 6)), meta=meta)
    with pytest.raises(TypeError, match=r"where one of float.* was announced"):
        lazy.compute()


def test_what_a_block_raises_comes_out_of_compute(numbers: Any) -> None:
    def fail(rows: Any) -> Any:
        raise OSError(28, "planted")

    lazy = arrays.apply(fail, da.from_array(numbers, chunks=(500, 6)), meta=numbers)
    with pytest.raises(OSError, match="planted"):
        lazy.compute()


def test_what_writes_into_arrays_refuses_dask_arrays(numbers: Any) -> None:
    lazy = da.from_array(numbers, chunks=(500, 6))
    with pytest.raises(TypeError, match=r"out cannot be given with Dask arrays.*store"):
        arrays.apply(shares, lazy, out=numbers)
    with pytest.raises(TypeError, match="out cannot be given with Dask arrays"):
        arrays.apply(shares, lazy, out=lazy)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="out is a Dask array, and those are never written to"):
        arrays.apply(shares, numbers, out=lazy)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="a is a Dask array, and those are never written to"):
        arrays.fill(lazy, 0)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="destination is a Dask array, and those are never"):
        arrays.copy(lazy, numbers)  # type: ignore[type-var]


def test_what_would_compute_the_whole_of_a_dask_array_unasked_refuses_it(numbers: Any) -> None:
    lazy = da.from_array(numbers, chunks=(500, 6))
    with pytest.raises(TypeError, match=r"source is a Dask array.*array.compute\(\)"):
        arrays.copy(numbers, lazy)
    with pytest.raises(TypeError, match="array is a Dask array"):
        arrays.reduce(np.add, lazy)


def test_meta_is_for_dask_arrays_alone(numbers: Any) -> None:
    with pytest.raises(TypeError, match="no input is a Dask array"):
        arrays.apply(shares, numbers, meta=numbers)  # type: ignore[call-overload]


def test_lengths_axes_and_masks_are_checked_before_anything_is_computed(numbers: Any) -> None:
    lazy = da.from_array(numbers, chunks=(500, 6))
    with pytest.raises(ValueError, match=r"same length along axis 0, got \[1000, 3\]"):
        arrays.apply(np.add, lazy, np.ones((3, 6)))
    with pytest.raises(np.exceptions.AxisError):
        arrays.apply(shares, lazy, axis=2)
    with pytest.raises(TypeError, match="masked array"):
        arrays.apply(shares, da.ma.masked_less(lazy, 0.5))
    with pytest.raises(ValueError, match=r"rows of its views along axis 0, got shape \(6,\)"):
        arrays.apply(lambda rows: rows.sum(axis=0), lazy)


def test_the_graph_has_one_task_a_block(numbers: Any) -> None:
    lazy = arrays.apply(shares, da.from_array(numbers, chunks=(130, 6)))
    (optimised,) = dask.optimize(lazy)
    assert len(dict(optimised.__dask_graph__())) <= 2 * 8 + 1


def test_numpy_arrays_need_no_dask() -> None:
    program = """
import sys
sys.modules["dask"] = None
import numpy as np
from aioktask import arrays, run_multithreaded_sync
value = run_multithreaded_sync(arrays.apply(np.sqrt, np.array([4.0]))).value
print(value, "dask.array" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["[2.]", "False"], done.stderr
