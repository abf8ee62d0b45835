# SPDX-License-Identifier: MIT
# Work of many shapes, each over a range in blocks: what chunk sizes and threads are learned on.
#
# Every workload is one function of a start and a stop, so that the plain call, the sweep over fixed
# sizes and the job that learns do the same. Its arrays live as long as its context.
"""The suite of `bench tune`."""

from __future__ import annotations

import hashlib
import importlib.util
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aioktask.bench.arrays import expression
from aioktask.bench.compiled import Compiled, compiled
from aioktask.bench.operations import address_of, anonymous, fitting
from aioktask.memory._kernel import libc
from aioktask.memory._kernel.libc import PAGE, Advice

__all__ = ["SUITE", "Floats", "Workload", "one_blas_thread"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Work = Callable[[int, int], object]

HUGE_PAGE = 2 << 20
BINS = 256
HASHED = 1 << 16  # bytes in a unit
ROW = 1024


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of work.

    Attributes:
        work: Does units start to stop.
        size: How many there are.
        start: The first.
        align: As in `Job`.
        reduce: As in `Job`.
        before: Called before each run, not timed.
        output: Where the results go, if anywhere: the same, however the range is cut.
        compiled: The same over everything, as compilers do it, where there are such.
        note: What a reader has to know.
    """

    work: Work
    size: int
    start: int = 0
    align: int = 1
    reduce: Callable[[Counts, Counts], Counts] | None = None
    before: Callable[[], object] | None = None
    output: NDArray[Any] | None = None
    compiled: Callable[[], AbstractContextManager[Compiled]] | None = None
    note: str = ""


Make = Callable[[float], AbstractContextManager[Workload]]


@contextmanager
def one_blas_thread() -> Iterator[str]:
    """Hold a BLAS to one thread, for whoever calls it, and say so; or say why it is not held."""
    if importlib.util.find_spec("threadpoolctl") is None:
        yield "BLAS has threads of its own: threadpoolctl, which would hold them, is not installed."
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield "BLAS is held to one thread for all."


def _units(scale: float, most: int) -> int:
    return max(int(most * scale), 64)


@contextmanager
def _expression(scale: float) -> Iterator[Workload]:
    x = np.linspace(0.0, 1.0, _units(scale, 1 << 25))
    out = np.ones_like(x)

    def work(start: int, stop: int) -> None:
        out[start:stop] = expression(x[start:stop])

    yield Workload(work, len(x), output=out, compiled=lambda: compiled(x, out))


@contextmanager
def _ufunc(scale: float) -> Iterator[Workload]:
    x = np.linspace(0.0, 9.0, _units(scale, 1 << 26))
    out = np.ones_like(x)

    def work(start: int, stop: int) -> None:
        np.sin(x[start:stop], out=out[start:stop])

    yield Workload(work, len(x), output=out)


@contextmanager
def _fill(scale: float) -> Iterator[Workload]:
    a = np.ones(_units(scale, fitting(4 << 30) // 8))

    def work(start: int, stop: int) -> None:
        a[start:stop].fill(0.0)

    yield Workload(work, len(a), output=a)


@contextmanager
def _copy(scale: float) -> Iterator[Workload]:
    source = np.ones(_units(scale, fitting(4 << 30) // 16))
    destination = np.ones_like(source)

    def work(start: int, stop: int) -> None:
        np.copyto(destination[start:stop], source[start:stop])

    yield Workload(work, len(source), output=destination)


def _populate(huge: bool, most: int) -> Make:
    @contextmanager
    def make(scale: float) -> Iterator[Workload]:
        page = HUGE_PAGE if huge else PAGE
        nbytes = max(int(fitting(most) * scale) // HUGE_PAGE, 1) * HUGE_PAGE
        with anonymous(nbytes + HUGE_PAGE, huge=huge) as memory:
            address = -(-address_of(memory) // HUGE_PAGE) * HUGE_PAGE

            def work(start: int, stop: int) -> None:
                libc.madvise(start, stop - start, Advice.MADV_POPULATE_WRITE)

            def drop() -> None:
                libc.madvise(address, nbytes, Advice.MADV_DONTNEED)

            yield Workload(work, nbytes, address, align=page, before=drop)

    return make


@contextmanager
def _sort(scale: float) -> Iterator[Workload]:
    rows = np.random.default_rng(1).random((_units(scale, 3 << 14), ROW))
    out = np.ones_like(rows)

    def work(start: int, stop: int) -> None:
        out[start:stop] = rows[start:stop]
        out[start:stop].sort(axis=1)

    yield Workload(work, len(rows), output=out)


@contextmanager
def _product(scale: float) -> Iterator[Workload]:
    a = np.random.default_rng(1).random((_units(scale, 1 << 14), ROW))
    b = np.random.default_rng(2).random((ROW, ROW))
    out = np.ones((len(a), ROW))

    def work(start: int, stop: int) -> None:
        np.matmul(a[start:stop], b, out=out[start:stop])

    with one_blas_thread() as note:
        yield Workload(work, len(a), output=out, note=note)


@contextmanager
def _histogram(scale: float) -> Iterator[Workload]:
    a = np.random.default_rng(1).integers(0, BINS, _units(scale, 1 << 27), np.uint8)

    def work(start: int, stop: int) -> Counts:
        return np.bincount(a[start:stop], minlength=BINS)

    def add(left: Counts, right: Counts) -> Counts:
        left += right
        return left

    yield Workload(work, len(a), reduce=add)


@contextmanager
def _hash(scale: float) -> Iterator[Workload]:
    blocks = np.random.default_rng(1).integers(0, 256, (_units(scale, 1 << 14), HASHED), np.uint8)
    digests = np.zeros((len(blocks), 32), np.uint8)

    def work(start: int, stop: int) -> None:
        for at in range(start, stop):
            digests[at] = np.frombuffer(hashlib.sha256(blocks[at]).digest(), np.uint8)

    yield Workload(work, len(blocks), output=digests)


@contextmanager
def _unique(scale: float) -> Iterator[Workload]:
    blocks = np.random.default_rng(1).integers(0, 500, (_units(scale, 1 << 12), 1 << 13))
    found = np.zeros(len(blocks), np.int64)

    def work(start: int, stop: int) -> None:
        for at in range(start, stop):
            found[at] = len(np.unique(blocks[at]))

    yield Workload(work, len(blocks), output=found)


@contextmanager
def _python(scale: float) -> Iterator[Workload]:
    digits = bytearray(_units(scale, 5 << 21))

    def work(start: int, stop: int) -> None:
        for number in range(start, stop):
            digits[number] = number * number % 10

    yield Workload(work, len(digits), output=np.frombuffer(digits, np.uint8))


def _repeated(repeats: Callable[[int], NDArray[np.int64]], most: int) -> Make:
    """Rows that take a different time each: the sine of a row, so many times over."""

    @contextmanager
    def make(scale: float) -> Iterator[Workload]:
        count = _units(scale, most)
        rows = np.ones((count, 1 << 10))
        times = repeats(count).tolist()

        def work(start: int, stop: int) -> None:
            for at in range(start, stop):
                for _ in range(times[at]):
                    np.sin(rows[at], out=rows[at])

        yield Workload(work, count, output=rows)

    return make


def _heavy_tailed(count: int) -> NDArray[np.int64]:
    """Clusters of rows that take up to a hundred times as long."""
    drawn = np.random.default_rng(7).pareto(1.2, -(-count // 64)) + 1
    return np.repeat(np.minimum(drawn, 100).astype(np.int64), 64)[:count]


def _slower(count: int) -> NDArray[np.int64]:
    return np.where(np.arange(count) < count // 2, 1, 4)


@contextmanager
def _normalise(scale: float) -> Iterator[Workload]:
    rows = np.random.default_rng(1).integers(0, 256, (_units(scale, 6000), 4096), np.uint8)
    out = np.ones(rows.shape, np.float32)

    def work(start: int, stop: int) -> None:
        part = rows[start:stop].astype(np.float32)
        part -= part.mean(axis=1, keepdims=True)
        out[start:stop] = part / part.std(axis=1, keepdims=True)

    yield Workload(work, len(rows), output=out)


@contextmanager
def _transform(scale: float) -> Iterator[Workload]:
    rows = np.random.default_rng(1).random((_units(scale, 3 << 14), ROW))
    out = np.ones((len(rows), ROW // 2 + 1), np.complex128)

    def work(start: int, stop: int) -> None:
        out[start:stop] = np.fft.rfft(rows[start:stop], axis=1)

    yield Workload(work, len(rows), output=out)


@contextmanager
def _deflate(scale: float) -> Iterator[Workload]:
    # Of fewer and fewer different bytes, so that some blocks take longer than others.
    kinds = np.random.default_rng(1).integers(2, 256, (_units(scale, 3 << 8), 1))
    blocks = np.random.default_rng(2).integers(0, kinds, (len(kinds), HASHED), np.uint8)
    sizes = np.zeros(len(blocks), np.int64)

    def work(start: int, stop: int) -> None:
        for at in range(start, stop):
            sizes[at] = len(zlib.compress(blocks[at], 1))

    yield Workload(work, len(blocks), output=sizes)


@contextmanager
def _gather(scale: float) -> Iterator[Workload]:
    index = np.random.default_rng(1).integers(0, 1 << 24, _units(scale, 1 << 25))
    table = np.linspace(0.0, 1.0, 1 << 24)
    out = np.ones(len(index))

    def work(start: int, stop: int) -> None:
        np.take(table, index[start:stop], out=out[start:stop], mode="clip")

    yield Workload(work, len(index), output=out)


@contextmanager
def _nearest(scale: float) -> Iterator[Workload]:
    points = np.random.default_rng(1).random((_units(scale, 3 << 16), 8), np.float32)
    centres = np.random.default_rng(2).random((64, 8), np.float32)
    nearest = np.zeros(len(points), np.float32)

    def work(start: int, stop: int) -> None:
        apart = points[start:stop, None] - centres
        apart *= apart
        nearest[start:stop] = apart.sum(axis=2).min(axis=1)

    yield Workload(work, len(points), output=nearest)


@contextmanager
def _solve(scale: float) -> Iterator[Workload]:
    matrices = np.random.default_rng(1).random((_units(scale, 3 << 18), 8, 8))
    right = np.random.default_rng(2).random((len(matrices), 8, 1))
    out = np.ones_like(right)

    def work(start: int, stop: int) -> None:
        out[start:stop] = np.linalg.solve(matrices[start:stop], right[start:stop])

    with one_blas_thread() as note:
        yield Workload(work, len(matrices), output=out, note=note)


# Name, and how to make it at a scale of 1 or less.
SUITE: dict[str, Make] = {
    "expression": _expression,
    "ufunc with out=": _ufunc,
    "fill": _fill,
    "copy": _copy,
    "populate, 4 KiB pages": _populate(False, 1 << 30),
    "populate, transparent huge pages": _populate(True, 4 << 30),
    "sort rows": _sort,
    "matrix product": _product,
    "histogram, reduce": _histogram,
    "sha256 of blocks": _hash,
    "np.unique of blocks": _unique,
    "pure Python, holds the GIL": _python,
    "uneven cost": _repeated(_heavy_tailed, 3 << 13),
    "four times slower half-way": _repeated(_slower, 1 << 15),
    "rows normalised": _normalise,
    "Fourier transform of rows": _transform,
    "deflate of blocks": _deflate,
    "gather by index": _gather,
    "nearest of 64 centres": _nearest,
    "small systems solved": _solve,
}
