# SPDX-License-Identifier: MIT
# Whose nice counts: priority blocks nest, restore and follow the context; a waiter's nice is that
# of the chunk it waits in, else of its block, else the awaited job's own.

from __future__ import annotations

import asyncio
import threading
from contextvars import Context, copy_context
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.priority import priority, submitted_nice, waiter_nice

NICE = st.integers(-20, 19)


def nice_here() -> int | None:
    """The nice of the block that this code is in."""
    nices = {submitted_nice(own) for own in (-20, 19)}
    return nices.pop() if len(nices) == 1 else None


def test_outside_of_every_block_there_is_none() -> None:
    assert nice_here() is None


@given(nices=st.lists(NICE, max_size=6))
def test_the_innermost_block_wins_and_each_restores_what_was_before(nices: list[int]) -> None:
    def enter(depth: int) -> None:
        before = nices[depth - 1] if depth else None
        assert nice_here() == before
        if depth < len(nices):
            with priority(nices[depth]):
                enter(depth + 1)
        assert nice_here() == before

    enter(0)


@given(nices=st.lists(NICE, min_size=1, max_size=6))
def test_an_exception_restores_all_blocks_that_it_leaves(nices: list[int]) -> None:
    def enter(depth: int) -> None:
        if depth == len(nices):
            raise KeyError(depth)
        with priority(nices[depth]):
            enter(depth + 1)

    with pytest.raises(KeyError):
        enter(0)
    assert nice_here() is None


@pytest.mark.parametrize("nice", [-21, 20, 10**9])
def test_a_nice_outside_the_unix_scale_is_refused_and_changes_nothing(nice: int) -> None:
    with priority(3):
        with pytest.raises(ValueError, match=f"nice must be from -20 to 19, got {nice}"):
            priority(nice).__enter__()
        assert nice_here() == 3


@pytest.mark.parametrize("nice", [True, 1.0, "1", None, np.bool_(True)])
def test_what_is_no_integer_is_refused_and_changes_nothing(nice: Any) -> None:
    with priority(3):
        with pytest.raises(TypeError, match="nice must be an integer, got"):
            priority(nice).__enter__()
        assert nice_here() == 3


def test_whatever_has_an_index_is_taken() -> None:
    with priority(np.int64(5)):
        assert nice_here() == 5
        assert type(submitted_nice(0)) is int


def test_tasks_that_start_in_a_block_inherit_it_and_keep_it_when_it_ends() -> None:
    async def look(go: asyncio.Event) -> int | None:
        await go.wait()
        return nice_here()

    async def main() -> list[int | None]:
        go = asyncio.Event()
        with priority(7):
            inside = asyncio.create_task(look(go))
        outside = asyncio.create_task(look(go))
        go.set()
        return [await inside, await outside]

    assert asyncio.run(main()) == [7, None]


def test_a_task_that_enters_a_block_leaves_its_parent_as_it_was() -> None:
    async def enter() -> int | None:
        with priority(9):
            await asyncio.sleep(0)
            return nice_here()

    async def main() -> tuple[int | None, int | None]:
        with priority(1):
            inner = await asyncio.create_task(enter())
            return inner, nice_here()

    assert asyncio.run(main()) == (9, 1)


def test_a_copied_context_carries_the_block_to_another_thread() -> None:
    found: list[int | None] = []

    def run_in_thread(context: Context) -> None:
        thread = threading.Thread(target=lambda: found.append(context.run(nice_here)))
        thread.start()
        thread.join()

    with priority(-4):
        run_in_thread(copy_context())
        run_in_thread(Context())
    assert found == [-4, None]


@given(block=st.none() | NICE, own=NICE)
def test_a_submitted_job_has_the_nice_of_the_block_else_its_own(
    block: int | None, own: int
) -> None:
    if block is None:
        assert submitted_nice(own) == own
    else:
        with priority(block):
            assert submitted_nice(own) == block


@given(block=st.none() | NICE, enclosing=st.none() | NICE, awaited=NICE)
def test_a_waiter_has_the_nice_of_its_chunk_else_of_its_block_else_of_what_it_awaits(
    block: int | None, enclosing: int | None, awaited: int
) -> None:
    first = next(nice for nice in (enclosing, block, awaited) if nice is not None)
    if block is None:
        assert waiter_nice(enclosing, awaited) == first
    else:
        with priority(block):
            assert waiter_nice(enclosing, awaited) == first
