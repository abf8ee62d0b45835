# SPDX-License-Identifier: MIT
# An argument of the wrong kind is refused where it is given, before anything is done, in an error
# that names it.

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Callable
from typing import Any

import pytest

from aioktask import (
    Coordinator,
    Job,
    OnDemand,
    failure,
    files,
    memory,
    plan,
    run,
    run_multithreaded,
    run_multithreaded_sync,
)
from aioktask.memory import vfio

NO_COORDINATORS = [5, "coordinator", object(), [], {}, True, Job]


def never(start: int, stop: int) -> None:
    pytest.fail("it ran")


def buffer() -> mmap.mmap:
    return mmap.mmap(-1, mmap.PAGESIZE)


TAKES_A_COORDINATOR: dict[str, Callable[[Any], object]] = {
    "run": lambda it: asyncio.run(run(print, coordinator=it)),
    "run_multithreaded": lambda it: asyncio.run(run_multithreaded(Job(never, 1), coordinator=it)),
    "run_multithreaded_sync": lambda it: run_multithreaded_sync(Job(never, 1), coordinator=it),
    "plan": lambda it: plan(Job(never, 1), coordinator=it),
    "OnDemand": lambda it: OnDemand(Job(never, 1), coordinator=it),
    "memory.allocate": lambda it: memory.allocate(1, coordinator=it),
    "memory.pin": lambda it: memory.pin(buffer(), coordinator=it),
    "vfio.Container": lambda it: vfio.Container(3, coordinator=it),
}


@pytest.mark.parametrize("call", TAKES_A_COORDINATOR.values(), ids=list(TAKES_A_COORDINATOR))
@pytest.mark.parametrize("wrong", NO_COORDINATORS, ids=lambda it: type(it).__name__)
def test_what_is_no_coordinator_is_refused(call: Callable[[Any], object], wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^coordinator must be a Coordinator or None, got "):
        call(wrong)


TAKES_A_JOB: dict[str, Callable[[Any], object]] = {
    "run_multithreaded": lambda it: asyncio.run(run_multithreaded(it)),
    "run_multithreaded_sync": run_multithreaded_sync,
    "submit": lambda it: Coordinator().submit(it),
    "plan": plan,
}


@pytest.mark.parametrize("call", TAKES_A_JOB.values(), ids=list(TAKES_A_JOB))
def test_a_function_in_place_of_a_job_is_refused_with_the_way_to_make_one(
    call: Callable[[Any], object],
) -> None:
    with pytest.raises(TypeError, match=r"^a Job is needed, got .*: make one of it, Job\(never, "):
        call(never)
    with pytest.raises(TypeError, match=r"^a Job is needed, got 5$"):
        call(5)


@pytest.mark.parametrize("wrong", [5, None, "x", ValueError])
def test_what_is_no_exception_has_no_failure(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^exc must be an exception, got "):
        failure(wrong)


WRONG: dict[str, tuple[str, Callable[[Any], object], list[Any]]] = {
    "parts of a job": ("parts", lambda it: Job(never, 1, parts=it), [5, never]),
    "name of a pin": ("name", lambda it: memory.pin(buffer(), name=it), [5, b"x", []]),
    "name of a region": ("name", lambda it: memory.allocate(1, name=it), [5, b"x", []]),
    "populate": ("populate", lambda it: memory.allocate(1, populate=it), [1, "yes", None]),
    "interleave": ("interleave", lambda it: memory.allocate(1, interleave=it), [0, 1.5, True]),
    "paths": ("paths", lambda it: files.evict(it), [1.5, None, never]),
    "write_back": ("write_back", lambda it: files.evict([], write_back=it), [1, "yes", None]),
}


@pytest.mark.parametrize(("name", "call", "values"), WRONG.values(), ids=list(WRONG))
def test_an_argument_of_the_wrong_kind_is_named(
    name: str, call: Callable[[Any], object], values: list[Any]
) -> None:
    for wrong in values:
        with pytest.raises(TypeError, match=rf"^{name} must be .*, got "):
            call(wrong)
