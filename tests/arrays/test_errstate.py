# SPDX-License-Identifier: MIT
# `np.errstate` holds in the chunks of jobs that are submitted in it, on any thread and with any
# NumPy, and nowhere else: since NumPy 2 it is in the context, before that in the thread.

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aioktask import (
    Coordinator,
    Job,
    OnDemand,
    arrays,
    run_multithreaded,
    run_multithreaded_sync,
)
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.max_threads(2)


class Seen:
    """What chunks on several threads see of the error state."""

    def __init__(self) -> None:
        self.states: set[str] = set()
        self.threads: set[int] = set()
        self._both = threading.Barrier(2)

    def chunk(self, start: int, stop: int) -> None:
        if start < 2:
            self._both.wait(PATIENCE)  # so that two threads are seen
        self.threads.add(threading.get_ident())
        self.states.add(np.geterr()["divide"])


FORMS: dict[str, Callable[[Any], object]] = {
    "sync": run_multithreaded_sync,
    "handle": lambda job: Coordinator().submit(job).result(),
    "on demand": lambda job: OnDemand(job, section=1).__enter__().__exit__(None, None, None),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_it_holds_on_all_threads_and_only_for_the_job(form: Callable[[Any], object]) -> None:
    for wanted in ("raise", "ignore", "warn"):
        inside, outside = Seen(), Seen()
        with np.errstate(divide=wanted):  # type: ignore[call-overload]
            form(Job(inside.chunk, 20, chunk=1))
        form(Job(outside.chunk, 20, chunk=1))
        assert inside.states == {wanted}
        assert outside.states == {"warn"}
        assert min(len(inside.threads), len(outside.threads)) >= 2  # at a time there are two


@pytest.mark.anyio
async def test_it_holds_for_what_is_awaited_and_for_its_undo() -> None:
    seen = Seen()

    def fails(start: int, stop: int) -> None:
        seen.chunk(start, stop)
        if start == 2:
            raise ValueError("planted")

    def undo(start: int, stop: int) -> None:
        seen.states.add(np.geterr()["divide"])

    with np.errstate(divide="raise"), pytest.raises(ValueError, match="planted"):
        await run_multithreaded(Job(fails, 20, chunk=1, undo=undo))
    assert seen.states == {"raise"}


@pytest.mark.parametrize(
    "make",
    [
        lambda zeros: arrays.apply(lambda block: 1 / block, zeros),
        lambda zeros: arrays.apply(np.reciprocal, zeros, out=np.empty_like(zeros), out_arg=True),
        lambda zeros: arrays.reduce(np.multiply, np.full(10**6, 1e300)),
    ],
)
def test_what_it_forbids_is_an_error_of_array_jobs(make: Callable[[Any], Job[Any]]) -> None:
    with np.errstate(all="raise"), pytest.raises(FloatingPointError):
        run_multithreaded_sync(make(np.zeros(100)))
    with np.errstate(all="ignore"):
        assert not np.all(np.isfinite(run_multithreaded_sync(make(np.zeros(100))).value))


def test_a_job_within_a_chunk_inherits_from_the_chunk() -> None:
    inner = Seen()

    def outer(start: int, stop: int) -> None:
        with np.errstate(divide="ignore"):
            run_multithreaded_sync(Job(inner.chunk, 20, chunk=1))
        inner.states.add("after: " + np.geterr()["divide"])

    with np.errstate(divide="raise"):
        run_multithreaded_sync(Job(outer, 1))
    assert inner.states == {"ignore", "after: raise"}
