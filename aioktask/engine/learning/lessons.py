# SPDX-License-Identifier: MIT
# What was learned of a function, for its next run in this process.
#
# Pure. A lesson is found by the function's code and that of the functions it closes over (the
# closures that a request handler makes are new ones each time), the job's name and the kind of its
# range. Guarantees: there are at most MOST_LESSONS, and the one that was stored longest ago goes
# first; a lesson under which a function became much slower is forgotten, and the next run begins
# anew. What an earlier process left on disk (`kept`) is asked for once, when a function first runs.
"""The memory across runs."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from enum import Enum
from types import FunctionType
from typing import Any

from aioktask.checks import unwrapped
from aioktask.engine.learning.scaling import Scaling
from aioktask.engine.learning.sizing import Sizes
from aioktask.engine.ranges.plan import undo_grain
from aioktask.job import Job

MOST_LESSONS = 512

# Of a function with what it closes over, so many at most are told apart.
MOST_FUNCTIONS = 16

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
        speed: Units a nanosecond of the whole run; 0 where that says nothing of the function.
        slow_runs: How many runs in a row were much slower than the best.
        unit_ns: What a unit cost where single ones were taken, in ns; 0 where that is not known.
    """

    sizes: Sizes | None
    scaling: Scaling | None
    speed: float
    slow_runs: int = 0
    unit_ns: float = 0.0


def key_of(job: Job[Any], threads: int) -> Key:
    """The key under which alike jobs share a lesson; sizes are alike to within a power of two."""
    return (
        code_of(job.fn),
        job.name,
        job.align,
        undo_grain(job),
        job.size.bit_length(),
        threads,
    )


def code_of(function: Callable[..., object]) -> Key:
    """What identifies the code of a function, and refers to none of its data.

    It is asked for in turns, so nothing here looks at what a user's class could answer for.

    Returns:
        The name of its module; then its code, and that of the functions that it closes over, each
        once. Of a callable that has no code its type instead.
    """
    parts: list[Hashable] = []
    target: object = function
    while type(target) is functools.partial:
        target = target.func
        parts.append("partial")
    target = unwrapped(target)
    call = target if type(target) is FunctionType else vars(type(target)).get("__call__")
    if type(call) is not FunctionType:
        return ("", *parts, type(target))
    functions = [call]
    for each in functions:  # which grows meanwhile
        for cell in each.__closure__ or ():
            try:
                inner = unwrapped(cell.cell_contents)
            except ValueError:  # it is empty
                continue
            room = len(functions) < MOST_FUNCTIONS
            if room and type(inner) is FunctionType and inner not in functions:
                functions.append(inner)
    module = call.__module__
    parts += [each.__code__ for each in functions]
    return (module if type(module) is str else "", *parts)


class Asked(Enum):
    """How a question after what is on disk stands."""

    NOW = "nobody has asked before"
    BEFORE = "it was asked, and the answer is on its way"
    ANSWERED = "it was answered"


class Lessons:
    """Lessons by key, the most recently stored last."""

    __slots__ = ("_asked", "_found", "_told")

    def __init__(self) -> None:
        self._found: OrderedDict[Key, Lesson] = OrderedDict()
        self._told: OrderedDict[Hashable, None] = OrderedDict()
        # By directory and key, whether an answer is on its way of what is on disk.
        self._asked: OrderedDict[tuple[str, Key], bool] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: Key) -> Lesson | None:
        return self._found.get(key)

    def tell_once(self, job: Job[Any]) -> bool:
        """Note that something is told of the job's function; whether that is the first time."""
        code = code_of(job.fn)
        if code in self._told:
            self._told.move_to_end(code)
            return False
        self._told[code] = None
        if len(self._told) > MOST_LESSONS:
            self._told.popitem(last=False)
        return True

    def ask(self, directory: str, key: Key) -> Asked:
        """Note that what a directory has of this key is asked for, unless that was known."""
        question = directory, key
        coming = self._asked.get(question)
        if coming is not None:
            self._asked.move_to_end(question)
            return Asked.BEFORE if coming else Asked.ANSWERED
        self._asked[question] = True
        self._forget_questions()
        return Asked.NOW

    def knows(self, directory: str, key: Key) -> bool:
        """Whether what a directory has of this key was asked for, and the answer came."""
        return self._asked.get((directory, key)) is False

    def answered(self, directory: str, key: Key, lesson: Lesson | None) -> None:
        """Take in what a directory has of this key. What this process learned goes before it.

        An answer that comes twice does no harm.
        """
        if lesson is not None and key not in self._found:
            self._store(key, lesson)
        self._asked[directory, key] = False
        self._forget_questions()

    def _forget_questions(self) -> None:
        if len(self._asked) > MOST_LESSONS:
            self._asked.popitem(last=False)

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
        self._store(key, lesson)

    def _store(self, key: Key, lesson: Lesson) -> None:
        self._found[key] = lesson
        self._found.move_to_end(key)
        if len(self._found) > MOST_LESSONS:
            self._found.popitem(last=False)
