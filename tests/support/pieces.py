# SPDX-License-Identifier: MIT
# A job run without the engine, in pieces of a size that a test chooses.
#
# The functions that return jobs must not care how a range is cut, so their tests cut it much finer
# than `min_chunk` would allow.

from __future__ import annotations

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from aioktask.job import Job

T = TypeVar("T")


def run_in_pieces(job: Job[T], chunk: int, threads: int) -> T:
    """What `Report.value` would be, with chunks that end on absolute multiples of `chunk`."""
    bound = job.bind()
    edges = [
        job.start,
        *range((job.start // chunk + 1) * chunk, job.stop, chunk),
        job.stop,
    ]
    pieces = list(itertools.pairwise(edges)) if job.size else []
    with ThreadPoolExecutor(threads) as pool:
        values: list[Any] = list(pool.map(lambda piece: bound.fn(*piece), pieces))
    if job.reduce is None:
        return bound.value() if bound.value is not None else None  # type: ignore[return-value]
    if job.initial is not ...:
        values.insert(0, copy.deepcopy(job.initial))
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2], strict=False)
        values = [job.reduce(*pair) for pair in pairs] + values[len(values) & ~1 :]
    return values[0]
