# SPDX-License-Identifier: MIT
# One call of a function, as a job: a range of one unit, whose one chunk is the call.
#
# So a call has all that a job of one chunk has (the lane, shares, loans, limits, cancellation,
# events), and the engine knows nothing of it but `Job.single_call`. Such a job is made from a shape
# that was checked once, since one is made for every call.
"""Single calls as jobs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, Generic, NoReturn, SupportsIndex, TypeVar, TypeVarTuple

from aioktask.checks import check_function, check_name, is_plain, name_of, nice_value
from aioktask.engine.ranges.plan import facts_of
from aioktask.engine.threads.helper import _OWN_FILES
from aioktask.job import NO_LABELS, Job, Labels

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class CallJob(Job[None]):
    """A job that is one call of a function: see the module.

    What all of them have in common stands on the class.
    """

    single_call = True


_SHAPE: Job[None] = Job(print, 1, chunk=1)
_FACTS = facts_of(_SHAPE)
for _name, _value in vars(_SHAPE).items():
    setattr(CallJob, _name, _value)


class Call(Generic[T]):
    """The chunk function of a single call, which keeps the value.

    Attributes:
        value: What the function returned; there once the run ended well.
    """

    __slots__ = ("_args", "_fn", "value")

    def __init__(self, fn: Callable[..., T], args: tuple[Any, ...]) -> None:
        self._fn = fn
        self._args = args
        self.value: T

    def __call__(self, start: int, stop: int) -> None:
        fn, args = self._fn, self._args
        del self._fn, self._args  # a failure keeps the job, which should not keep what it was given
        self.value = fn(*args)

    def let_go(self) -> None:
        """Keep neither what it was given nor what it returned, once it is over or never begins."""
        for name in self.__slots__:
            with contextlib.suppress(AttributeError):
                delattr(self, name)


def checked_call(fn: object, nice: SupportsIndex | None, name: str | None) -> tuple[int, str]:
    """The nice and the name of a call of `fn`.

    Raises:
        TypeError, ValueError: One of them is not what it may be: the message names it.
    """
    if nice is None and name is None and type(fn) is FunctionType and is_plain(fn):  # as most are
        return 0, fn.__qualname__
    if isinstance(fn, Job):
        raise TypeError(
            f"fn must be callable, got the job {fn.name!r}: a job is run by "
            "`await run_multithreaded(job)`, `run_multithreaded_sync(job)` or `submit(job)`"
        )
    check_function("fn", fn)
    return (
        0 if nice is None else nice_value("nice", nice),
        name_of(fn) if name is None else check_name(name),
    )


def refuse_keywords(what: str, fn: object, given: Mapping[str, object]) -> NoReturn:
    """Raise for keyword arguments that are not of the call that runs `fn`, but may be of `fn`.

    Raises:
        TypeError: Always.
    """
    name = name_of(fn)
    named = ", ".join(f"{each}=..." for each in given)
    raise TypeError(
        f"{what} takes no argument {', '.join(map(repr, given))}: where it is one of {name}, pass "
        f"functools.partial({name}, {named})"
    )


def job_of_call(
    call: Callable[[int, int], object], nice: int, name: str, labels: Labels = NO_LABELS
) -> Job[None]:
    """The job whose one chunk is this call."""
    job = object.__new__(CallJob)
    # A frozen class would set its fields one by one. The facts stand where `facts_of` looks.
    job.__dict__.update(fn=call, nice=nice, name=name, _facts=_FACTS)
    if labels is not NO_LABELS:
        job.__dict__["labels"] = labels
    return job


_OWN_FILES.add(__file__)
