# SPDX-License-Identifier: MIT
# What was learned of a function, for its next run in this process.
#
# Pure. A lesson is found by the function's code (the closures that a request handler makes are new
# ones each time), the job's name and the kind of its range. Guarantees: there are at most
# MOST_LESSONS, and the one that was stored longest ago goes first; a lesson under which a function
# became much slower is forgotten, and the next run begins anew.
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

# A lesson is wrong if so many runs in a row have less than this part of the best speed.
MUCH_SLOWER = 0.7
TOO_OFTEN = 2
# The best speed is forgotten bit by bit, since a machine may become slower for good.
MEMORY = 0.97

Key = tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a run leaves to the next one of its function.

    The objects that the run learned with are kept as they were at its end, and never change again:
    a run that begins with them makes its own by `for_next_run`.

    Attributes:
        sizes: What was learned of the chunk size; None for nothing.
        scaling: What was learned of the number of threads; None for nothing.
        speed: Units a nanosecond of the whole run.
        slow_runs: How many runs in a row were much slower than the best.
    """

    sizes: Sizes | None
    scaling: Scaling | None
    speed: float
    slow_runs: int = 0


def key_of(job: Job[Any], threads: int) -> Key:
    """The key under which alike jobs share a lesson; sizes are alike to within a power of two."""
    return (
        _code_of(job.fn),
        job.name,
        job.align,
        undo_grain(job),
        job.size.bit_length(),
        threads,
    )


def _code_of(function: Callable[..., object]) -> Hashable:
    """What identifies the code of a function, and refers to none of its data.

    It is asked for in turns, so nothing here looks at what a user's class could answer for.
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
    """Lessons by key, the most recently stored last."""

    __slots__ = ("_found", "_told")

    def __init__(self) -> None:
        self._found: OrderedDict[Key, Lesson] = OrderedDict()
        self._told: OrderedDict[Hashable, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: Key) -> Lesson | None:
        return self._found.get(key)

    def tell_once(self, job: Job[Any]) -> bool:
        """Note that something is told of the job's function; whether that is the first time."""
        code = _code_of(job.fn)
        if code in self._told:
            self._told.move_to_end(code)
            return False
        self._told[code] = None
        if len(self._told) > MOST_LESSONS:
            self._told.popitem(last=False)
        return True

    def put(self, key: Key, lesson: Lesson) -> None:
        """Keep what a run learned, or forget what is kept under the key if it has become wrong."""
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
