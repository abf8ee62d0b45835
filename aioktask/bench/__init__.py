# SPDX-License-Identifier: MIT
# The benchmarks by name: a module each, with `run(quick, progress)`, imported when it is asked for.
#
# They hold the library to its promises: contenders alternate within one run (`measure`), what is
# missing on this machine (a peer, a compiler, a kernel's feature) is said in the table.
"""Benchmarks: `python -m aioktask bench NAME`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from aioktask.bench.promises import Result

__all__ = ["BENCHMARKS", "UnknownOperation", "chosen", "run"]

# Name and what it measures, for the command line's help.
BENCHMARKS = {
    "overhead": "what an empty chunk and a short awaited job cost, and the memory a job adds",
    "arrays": "array work against plain NumPy and what one would do by hand",
    "memory": "memory operations, untuned, against the best of C loops, threads and one plain call",
    "tune": "chunk sizes and threads as they are learned, against the best of a sweep over both",
    "latency": "how late the loop is beside a job, against peers, neighbours and nice",
    "ordered": "streams: what an item costs, alone and among many, and packets that are encrypted",
    "serve": "a web server under load: requests beside heavy ones, and more than it can serve",
    "page": "what the live page costs while somebody looks at it",
    "neighbour": "how slow other processes are beside a job, and the job beside them",
    "share": "four processes that each want every CPU, and one that is killed",
    "cluster": "one job over several processes, beside Dask's own ways and pools, and simulated",
}
# The module of a benchmark whose name is taken: `tune` is the command for a function of one's own.
_MODULES = {"tune": "learning"}


class UnknownOperation(ValueError):  # noqa: N818 - said to a user, who names another
    """A benchmark has no operation of that name; the message tells those that it has."""


def chosen(only: str, names: Iterable[str]) -> list[str]:
    """The names that `only` is a part of, or one of its parts between semicolons.

    >>> chosen("fill; hist", ["fill", "copy", "histogram, reduce"])
    ['fill', 'histogram, reduce']

    Raises:
        UnknownOperation: There is none.
    """
    every = list(names)
    parts = [part.strip() for part in only.split(";")]
    found = [name for name in every if any(part in name for part in parts)]
    if not found:
        raise UnknownOperation(f"{only!r} is in none of these names: {'; '.join(every)}")
    return found


def run(
    name: str,
    *,
    quick: bool = False,
    progress: Callable[[str], object] = print,
    **options: object,
) -> Result:
    """Run one of `BENCHMARKS`.

    Args:
        name: Which.
        quick: Some seconds only, to see that it works; the figures are no use.
        progress: Called with a line about what is measured now.
        options: What this one takes beside.

    Raises:
        UnknownOperation: `only` is in the name of none.
    """
    module = importlib.import_module(f"aioktask.bench.{_MODULES.get(name, name)}")
    return cast("Result", module.run(quick, progress, **options))
