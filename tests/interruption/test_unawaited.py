# SPDX-License-Identifier: MIT
# What `fn` or `undo` returns and nobody awaits did nothing: that is an error, not a success.

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from aioktask import Job, UndoFailed, failure, run_multithreaded, run_multithreaded_sync


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    """A coroutine that is closed properly warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


async def work(start: int, stop: int) -> None:
    raise AssertionError("nobody awaits this")


def fails_at_3(start: int, stop: int) -> None:
    if start == 3:
        raise ValueError("planted")


NOT_AWAITED: list[Any] = [
    lambda start, stop: work(start, stop),
    functools.partial(lambda more, start, stop: work(start, stop), None),
]


@pytest.mark.anyio
@pytest.mark.parametrize("fn", NOT_AWAITED)
async def test_a_chunk_that_returns_a_coroutine_is_a_type_error(fn: Any) -> None:
    with pytest.raises(TypeError) as caught:
        await run_multithreaded(Job(fn, 4, chunk=1))
    assert not failure(caught.value).done


def test_a_chunk_that_returns_a_coroutine_is_a_type_error_in_the_sync_form_too() -> None:
    with pytest.raises(TypeError):
        run_multithreaded_sync(Job(NOT_AWAITED[0], 4, chunk=1))


@pytest.mark.anyio
@pytest.mark.parametrize("undo", NOT_AWAITED)
async def test_an_undo_that_returns_a_coroutine_has_failed(undo: Any) -> None:
    job = Job(fails_at_3, 4, chunk=1, max_threads=1, undo=undo)
    with pytest.raises(UndoFailed) as caught:
        await run_multithreaded(job)
    assert caught.value.ranges == (range(3),)
    assert all(isinstance(error, TypeError) for error in caught.value.exceptions)
    assert isinstance(caught.value.__cause__, ValueError)
