# SPDX-License-Identifier: MIT
# Whose nice counts: priority blocks nest, restore and follow the context; a waiter's nice is that
# of the chunk it waits in, else of its block, else the awaited job's own.

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import Context, copy_context
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine import priority as priority_module
from aioktask.engine.priority import priority, submitted_nice, waiter_nice
from tests.support.meanwhile import Scene, play_at_each_bytecode

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


# Blocks that end elsewhere.


def in_a_copy(function: Callable[[], object]) -> None:
    """Run in another context, as `asyncio.to_thread` and frameworks do."""
    copy_context().run(function)


def leave(block: Any) -> None:
    block.__exit__(None, None, None)


def test_a_block_may_begin_and_end_in_copies_of_the_context() -> None:
    block = priority(3)
    in_a_copy(block.__enter__)
    assert nice_here() is None
    in_a_copy(lambda: leave(block))
    assert nice_here() is None


def test_a_block_may_be_left_in_another_thread() -> None:
    block = priority(3)
    block.__enter__()
    thread = threading.Thread(target=leave, args=(block,))
    thread.start()
    thread.join()
    assert nice_here() is None


@pytest.mark.parametrize("elsewhere", [in_a_copy, lambda leaves: Context().run(leaves)])
def test_a_block_that_is_left_elsewhere_is_over_where_it_began(elsewhere: Any) -> None:
    with priority(1):
        block = priority(3)
        block.__enter__()
        elsewhere(lambda: leave(block))
        assert nice_here() == 1
        with priority(4):
            assert nice_here() == 4
        assert nice_here() == 1
    assert nice_here() is None


def test_blocks_that_are_left_elsewhere_do_not_pile_up() -> None:
    def enter_and_leave_elsewhere() -> None:
        block = priority(3)
        block.__enter__()
        in_a_copy(lambda: leave(block))

    def blocks() -> int:
        return len(copy_context().get(priority_module._blocks, ()))

    for _ in range(20):
        enter_and_leave_elsewhere()
        assert blocks() <= 1
    with priority(1):
        assert blocks() == 1
    assert blocks() == 0


@pytest.mark.parametrize("stop", ["break", "raise"])
def test_an_async_generator_that_is_left_lets_go_of_its_block(stop: str) -> None:
    async def numbers() -> AsyncIterator[int]:
        with priority(3):
            for number in range(3):
                yield number

    async def consume() -> int | None:
        with contextlib.suppress(KeyError):
            async for _ in numbers():
                assert nice_here() == 3  # a generator runs in the context of who asks it
                if stop == "raise":
                    raise KeyError
                break
        for _ in range(5):  # the loop closes the generator in a task of its own
            await asyncio.sleep(0)
        return nice_here()

    with warnings_of_the_loop_are_errors():
        assert asyncio.run(consume()) is None


@contextlib.contextmanager
def warnings_of_the_loop_are_errors() -> Iterator[None]:
    """What a loop cannot raise it logs."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("asyncio").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("asyncio").removeHandler(handler)
    assert [record.getMessage() for record in records] == []


def test_an_exit_stack_may_be_closed_elsewhere() -> None:
    stack = contextlib.ExitStack()
    stack.enter_context(priority(3))
    stack.enter_context(priority(4))
    in_a_copy(stack.close)
    assert nice_here() is None


@given(order=st.permutations(range(5)))
def test_blocks_that_end_in_any_order_leave_the_innermost_of_the_rest(order: list[int]) -> None:
    blocks = [priority(nice) for nice in range(5)]
    for block in blocks:
        block.__enter__()
    still = list(range(5))
    for each in order:
        assert nice_here() == still[-1]
        leave(blocks[each])
        still.remove(each)
    assert nice_here() is None


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.booleans()), max_size=30))
def test_leaving_never_raises_and_nothing_stays(steps: list[tuple[bool, int, bool]]) -> None:
    blocks = [priority(nice) for nice in range(4)]
    here: list[int] = []
    for enters, which, elsewhere in steps:
        if enters:
            blocks[which].__enter__()
            here.append(which)
        elif elsewhere:
            in_a_copy(lambda which=which: leave(blocks[which]))  # type: ignore[misc]
            if which in here:
                del here[len(here) - 1 - here[::-1].index(which)]
        else:
            leave(blocks[which])
            if which in here:
                del here[len(here) - 1 - here[::-1].index(which)]
        assert nice_here() == (here[-1] if here else None)
    for which in here:
        leave(blocks[which])
    assert nice_here() is None


def test_a_block_may_be_used_again_within_itself_and_by_several_tasks() -> None:
    block = priority(3)
    with block:
        with block:
            assert nice_here() == 3
        assert nice_here() == 3
    assert nice_here() is None

    async def enter(turns: int) -> None:
        with block:
            for _ in range(turns):
                await asyncio.sleep(0)
                assert nice_here() == 3
        assert nice_here() is None

    async def main() -> None:
        await asyncio.gather(*(enter(turns) for turns in (3, 1, 2)))

    asyncio.run(main())


@pytest.mark.parametrize("elsewhere", [False, True])
def test_threads_that_share_a_block_may_leave_it_at_the_same_time(elsewhere: bool) -> None:
    """One where it entered it; the other too, or in another context."""

    def begin() -> Scene:
        block = priority(3)
        mine, others = copy_context(), copy_context()
        mine.run(block.__enter__)
        others.run(block.__enter__)

        def check() -> None:
            assert mine.run(nice_here) is None
            assert others.run(nice_here) is None
            assert not block._entered

        leaves_in = Context() if elsewhere else others
        return Scene(lambda: mine.run(leave, block), lambda: leaves_in.run(leave, block), check)

    play_at_each_bytecode(begin, priority_module)


def test_a_block_that_threads_leave_twice_at_the_same_time_is_left_once() -> None:
    def begin() -> Scene:
        block = priority(3)
        entered = copy_context()
        entered.run(block.__enter__)

        def leave_elsewhere() -> None:
            Context().run(leave, block)

        def check() -> None:
            assert entered.run(nice_here) is None
            assert not block._entered

        return Scene(leave_elsewhere, leave_elsewhere, check)

    play_at_each_bytecode(begin, priority_module)


def test_a_decorated_function_is_in_the_block_at_each_call() -> None:
    @priority(6)
    def look(depth: int) -> list[int | None]:
        return [nice_here(), *(look(depth - 1) if depth else [])]

    assert look(2) == [6, 6, 6]
    assert look(0) == [6]
    assert nice_here() is None


def test_a_decorated_async_function_is_in_the_block_until_it_has_been_awaited() -> None:
    @priority(6)
    async def look(depth: int) -> list[int | None]:
        await asyncio.sleep(0)
        return [nice_here(), *(await look(depth - 1) if depth else [])]

    class Looker:
        @priority(-3)
        async def __call__(self) -> int | None:
            await asyncio.sleep(0)
            return nice_here()

    class Of:
        @priority(2)
        @staticmethod
        async def static() -> int | None:
            await asyncio.sleep(0)
            return nice_here()

        @priority(1)
        @classmethod
        def of_class(cls) -> int | None:
            return nice_here()

    look_around = priority(7)(Looker())
    plain = priority(5)(functools.partial(nice_here))

    async def main() -> None:
        at_once = await asyncio.gather(look(1), look_around(), look(0), Looker()())
        assert at_once == [[6, 6], -3, [6], -3]
        assert plain() == 5
        assert (await Of.static(), Of().of_class()) == (2, 1)
        assert nice_here() is None

    asyncio.run(main())
    assert inspect.iscoroutinefunction(look)
    assert look.__name__ == "look"


def test_a_generator_function_is_not_decorated_since_its_body_runs_in_pieces() -> None:
    def pieces() -> Iterator[None]:
        yield

    async def async_pieces() -> AsyncIterator[None]:
        yield

    class Pieces:
        def __call__(self) -> Iterator[None]:
            yield

    class AsyncPieces:
        async def __call__(self) -> AsyncIterator[None]:
            yield

    functions: list[Any] = [pieces, async_pieces, functools.partial(pieces), Pieces()]
    for function in [*functions, AsyncPieces(), staticmethod(pieces)]:
        with pytest.raises(TypeError, match=r"around the generator function .*ieces"):
            priority(3)(function)


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
