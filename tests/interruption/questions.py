# SPDX-License-Identifier: MIT
# What is asked after every strike, by public behaviour only.
#
# (a) Who called got the exception that struck, or the job's own. (b) All units are done, or what
# was done is undone or named. (c) Later jobs run, in a thread and on a loop; nothing refers to the
# struck jobs, no coordinator counts one, and it can be left. (d) The interpreter ends by itself:
# that one is asked by whoever started this process.
"""The four questions."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from aioktask import Coordinator, UndoFailed, failure, run_multithreaded, run_multithreaded_sync
from tests.interruption.calls import UNITS, Planted, Work, World

LATER_SECONDS = 5.0

# What `UndoFailed` says of a piece whose loop was closed while it was undone.
CLOSED = "the event loop was closed while the undo ran on it"


def related(error: BaseException | None) -> Iterator[BaseException]:
    """The exception, its causes and contexts, and those in groups, once each."""
    seen: set[int] = set()
    left = [error]
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        left += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            left += each.exceptions


def named(error: BaseException | None) -> set[int]:
    """The units that an exception says may be done still."""
    units: set[int] = set()
    for each in related(error):
        if isinstance(each, UndoFailed):
            units.update(*each.ranges)
        with contextlib.suppress(LookupError):
            told = failure(each)
            units.update(*told.done, *told.unknown)
    return units


def is_one_of(error: BaseException, kinds: tuple[type[BaseException], ...]) -> bool:
    return any(isinstance(each, kinds) for each in related(error))


def told_to_waiters(world: World) -> list[BaseException]:
    """What whoever waits for the jobs of the call is told, also where the call did not wait."""
    told: list[BaseException] = []
    for handle in world.handles:
        try:
            handle.result(timeout=LATER_SECONDS)
        except BaseException as error:
            told.append(error)
    return told


def done_or_undone(work: Work, *errors: BaseException | None) -> str:
    """What became of the units: "all", "none", "named", "kept", or what is wrong.

    Args:
        work: Of the job.
        errors: What the caller got, and whoever waits.
    """
    if any(count > 1 for count in work.done):
        return f"wrong: done more than once: {work.done}"
    if any(undone > done for done, undone in zip(work.done, work.undone, strict=True)):
        return f"wrong: undone too often: {work.undone} of {work.done}"
    kept = work.kept
    if len(kept) == UNITS:
        return "all"
    if not kept:
        return "none"
    if kept <= work.named.union(*map(named, errors)):
        return "named"
    if not work.undoes:  # what is done without an undo stays done, and nothing promises to name it
        return "kept"
    return f"wrong: neither done, undone nor named: {sorted(kept)}"


def settled(world: World) -> list[UndoFailed]:
    """Leave what coordinators there are, so that no job of the call is under way.

    Returns:
        What undo could not do since an exception closed the loop that it ran on.
    """
    failed: list[UndoFailed] = []
    for coordinator in world.coordinators:
        try:
            coordinator.__exit__(None, None, None)
        except UndoFailed as error:
            if not all(CLOSED in str(each) for each in error.exceptions):
                raise
            failed.append(error)
    return failed


def counted(world: World) -> str | None:
    for coordinator in world.coordinators:
        found = re.search(r"jobs=(\d+)", repr(coordinator))
        if found and found[1] != "0":
            return f"a coordinator that was left still counts jobs: {coordinator!r}"
    return None


def later_sync() -> str | None:
    work = Work()
    run_multithreaded_sync(work.job(max_threads=3))
    return None if len(work.kept) == UNITS else f"a later job did {sorted(work.kept)}"


def later_on_helpers() -> str | None:
    """A job that only helpers serve."""
    work = Work()
    with Coordinator() as coordinator:
        coordinator.submit(work.job()).result(timeout=LATER_SECONDS)
    return None if len(work.kept) == UNITS else f"a later job did {sorted(work.kept)}"


def later_async() -> str | None:
    work = Work()

    async def main() -> None:
        await asyncio.wait_for(run_multithreaded(work.job(undo="coroutine")), LATER_SECONDS)

    asyncio.run(main())
    return None if len(work.kept) == UNITS else f"a later job did {sorted(work.kept)}"


def later_failure() -> str | None:
    """A later job that fails is undone."""
    work = Work(fails_at=4)
    try:
        run_multithreaded_sync(work.job())
    except Planted:
        return None if not work.kept else f"a later job was not undone: {sorted(work.kept)}"
    return "a later job did not fail"


LATER: tuple[Callable[[], str | None], ...] = (
    later_sync,
    later_on_helpers,
    later_async,
    later_failure,
)


def forgotten(watches: list[weakref.ref[Any]]) -> str | None:
    """Nothing refers to what the struck jobs referred to, once threads that served are parked."""
    deadline = time.monotonic() + LATER_SECONDS
    while True:
        gc.collect()
        left = [watch() for watch in watches if watch() is not None]
        if not left:
            return None
        if time.monotonic() > deadline:
            return f"{len(left)} of the struck jobs' functions are still referred to"
        left.clear()
        time.sleep(0.001)  # a keeper in the middle of many short reads needs the GIL for each
