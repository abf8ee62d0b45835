# SPDX-License-Identifier: MIT
# The expression of the suite as those do it who compile it: numexpr, numba's prange, and the same
# numba loop without the GIL as the function of a job.
#
# Each is set up as its documentation says, with as many threads as the library has, and has run
# once before it is handed out, so nothing is compiled while a clock runs. All write float64, and
# none may reorder arithmetic. What is not installed or cannot be imported says so instead.
"""numexpr and numba beside the library."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aioktask import max_threads
from aioktask.bench.arrays import EXPRESSION

__all__ = ["Compiled", "compiled"]

Floats = NDArray[np.float64]
# How many elements are enough to compile for.
FEW = 64


@dataclass(frozen=True, slots=True)
class Compiled:
    """The expression over all of two arrays, and over a part of them.

    A text instead of a function says why there is none.

    Attributes:
        numexpr: One call over everything.
        prange: The same with numba, on threads of its own.
        chunk: numba's loop over units start to stop, on the thread that calls it.
        layer: What numba runs its threads with.
    """

    numexpr: Callable[[], object] | str
    prange: Callable[[], object] | str
    chunk: Callable[[int, int], object] | str
    layer: str = ""


@contextmanager
def compiled(x: Floats, out: Floats) -> Iterator[Compiled]:
    """The expression of `x` into `out`, compiled; afterwards thread counts are as they were."""
    with _numexpr(x, out) as call, _numba(x, out) as (prange, chunk, layer):
        yield Compiled(call, prange, chunk, layer)


@contextmanager
def _numexpr(x: Floats, out: Floats) -> Iterator[Callable[[], object] | str]:
    try:
        import numexpr
    except ImportError as error:
        yield _missing("numexpr", error)
        return
    before = numexpr.set_num_threads(max_threads())

    def call(x: Floats = x, out: Floats = out) -> None:
        numexpr.evaluate(EXPRESSION, local_dict={"x": x}, out=out)

    try:
        call(x[:FEW], out[:FEW])
        yield call
    finally:
        numexpr.set_num_threads(before)


@contextmanager
def _numba(
    x: Floats, out: Floats
) -> Iterator[tuple[Callable[[], object] | str, Callable[[int, int], object] | str, str]]:
    try:
        import numba
    except ImportError as error:
        text = _missing("numba", error)
        yield text, text, ""
        return
    loop = _loop(numba.prange)
    # Where `parallel` is not asked for, prange is range: the same loop twice.
    parallel = numba.njit(parallel=True, fastmath=False)(loop)
    alone = numba.njit(nogil=True, fastmath=False)(loop)
    before = numba.get_num_threads()
    # numba makes its threads once, by the number of CPUs, and uses some of them.
    numba.set_num_threads(min(max_threads(), numba.config.NUMBA_NUM_THREADS))

    def chunk(start: int, stop: int) -> None:
        alone(x[start:stop], out[start:stop])

    try:
        parallel(x[:FEW], out[:FEW])
        chunk(0, FEW)
        yield lambda: parallel(x, out), chunk, str(numba.threading_layer())
    finally:
        numba.set_num_threads(before)


def _loop(prange: Any) -> Callable[[Floats, Floats], None]:
    def loop(x: Floats, out: Floats) -> None:
        for i in prange(len(x)):
            value = x[i]
            out[i] = math.sqrt(value * value + 1.0) * math.exp(-value) + value

    return loop


def _missing(package: str, error: ImportError) -> str:
    absent = isinstance(error, ModuleNotFoundError) and error.name == package
    return "not installed" if absent else f"cannot be imported: {error}"
