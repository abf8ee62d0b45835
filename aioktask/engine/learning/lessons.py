# SPDX-License-Identifier: MIT
# What was learned of a function, for its next run in this process.
#
# Pure. Functions are told apart by their code, since the closures that a request handler makes are
# new ones each time, by the job's name, and by what kind of range it is. Bounded: what was not
# asked for longest goes first. A lesson under which a function became much slower than it was is
# forgotten: the next run begins anew.
"""The memory across runs."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from types import FunctionType, MethodType
from typing import Any

from aioktask.engine.learning.scaling import Scaling
from aioktask.engine.learning.sizing import Sizes
from aioktask.engine.ranges.plan import undo_grain
from aioktask.job import Job

MOST_LESSONS = 512

# Runs of less than this part of the best speed, one after the other, mean that a lesson is wrong.
MUCH_SLOWER = 0.7
TOO_OFTEN = 2
# The best speed is forgotten bit by bit, since a machine may become slower for good.
MEMORY = 0.97

Key = tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a run leaves to the next one of its function.

    What it learned with is kept as it was at the end, and changed no more: a run that begins with
    it makes its own by `for_next_run`.

    Attributes:
        sizes: Of the chunk size, where that was looked for.
        scaling: Of the number of threads, likewise.
        speed: Units a nanosecond of the whole run.
        slow_runs: How many runs in a row were much slower than the best.
    """

    sizes: Sizes | None
    scaling: Scaling | None
    speed: float
    slow_runs: int = 0


def key_of(job: Job[Any], threads: int) -> Key:
    """What says that two jobs are alike: the size to within a power of two."""
    return (
        _code_of(job.fn),
        job.name,
        job.align,
        undo_grain(job),
        job.size.bit_length(),
        threads,
    )


def _code_of(function: Callable[..., object]) -> Hashable:
    """Something that is the same for a function and for its like, and refers to no data.

    Looks at nothing that a class of the program's could answer for: this is asked in turns.
    """
    parts: list[Hashable] = []
    target: object = function
    while type(target) is functools.partial:
        target = target.func
        parts.append("partial")
    if type(target) is MethodType:
        target = target.__func__
    call = target if type(target) is FunctionType else vars(type(target)).get("__call__")
    return (*parts, call.__code__ if type(call) is FunctionType else type(target))


class Lessons:
    """Lessons by key, the most recently used last."""

    __slots__ = ("_found", "_told")

    def __init__(self) -> None:
        self._found: OrderedDict[Key, Lesson] = OrderedDict()
        self._told: OrderedDict[Hashable, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: Key) -> Lesson | None:
        return self._found.get(key)

    def tell_once(self, job: Job[Any]) -> bool:
        """Whether what is to be told of the job's function was not told before."""
        code = _code_of(job.fn)
        if code in self._told:
            self._told.move_to_end(code)
            return False
        self._told[code] = None
        if len(self._told) > MOST_LESSONS:
            self._told.popitem(last=False)
        return True

    def put(self, key: Key, lesson: Lesson) -> None:
        """Keep what a run learned, or forget all where that has become wrong."""
        before = self._found.get(key)
        if before is not None:
            best = before.speed * MEMORY
            if lesson.speed < MUCH_SLOWER * best:
                if before.slow_runs + 1 == TOO_OFTEN:
                    del self._found[key]
                    return
                lesson = replace(lesson, slow_runs=before.slow_runs + 1)
            lesson = replace(lesson, speed=max(lesson.speed, best))
        self._found[key] = lesson
        self._found.move_to_end(key)
        if len(self._found) > MOST_LESSONS:
            self._found.popitem(last=False)
