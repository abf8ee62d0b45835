# SPDX-License-Identifier: MIT
# Why a job waits, in words: which limit keeps a thread from it, which jobs have the threads, or for
# which job a chunk of it waits.
#
# Read from what turns change, without their lock, as all of a snapshot (`snapshots`).
"""Why jobs wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from aioktask.engine.scheduling.caps import within_share
from aioktask.engine.scheduling.reasons import Kept, kept_from_threads
from aioktask.engine.state.group import RunGroup
from aioktask.engine.state.run import SETTLED, Run, Wait
from aioktask.engine.state.stint import Stint
from aioktask.engine.threads.pool import Pool

__all__ = ["Having", "awaited", "waits_for", "waits_of"]


def waits_of(run: Run) -> Iterator[Wait]:
    """The waits for a run, of its waiters and of who leaves its coordinator."""
    for waits in (run.waiters, run.left_by):
        try:
            found = list(waits.values())
        except RuntimeError:  # another thread changed it, without the GIL: the next look tells
            continue
        yield from found


def awaited(runs: Iterable[Run], pause: Callable[[], object] | None = None) -> dict[int, list[Run]]:
    """By number of a run, for which others a chunk of it waits."""
    found: dict[int, list[Run]] = {}
    for run in runs:
        if pause is not None:
            pause()
        if run.over:
            continue
        for wait in waits_of(run):
            if wait.stint is not None and wait.run is not None:
                waited_for = found.setdefault(wait.run.number, [])
                if not waited_for or waited_for[-1] is not run:  # several chunks wait for it
                    waited_for.append(run)
    return found


def waits_for(pool: Pool, run: Run, having: Having, inside: Sequence[Run]) -> str:
    """What a run waits for, in words.

    Args:
        pool: Of the process.
        run: It is not over, or was not a moment ago.
        having: Which jobs have the threads.
        inside: The runs for which chunks of it wait.
    """
    if run.phase is SETTLED:
        return "whoever awaits it to take the result"
    if run.async_undo:
        return "its coroutine undo"
    if inside:
        more = f" and {len(inside) - 1} more" if len(inside) > 1 else ""
        return f"job {_named(inside[0])}{more}, inside a chunk"
    if any(each.live for each in list(run.stints.values())):
        stops = run.stopping or run.cancel_asked
        return "the chunks that run to end" if stops and not run.undoing else ""
    if not run.begun:
        return "" if run.first_claim else "a thread that takes it in"
    if run.awaits:
        return "what earlier runs learned, which is read from disk"
    if not run.claimable:
        if run.growth is not None and not run.stopping:
            return "items"
        return "its end to be noticed"
    kept = kept_from_threads(pool.state.scheduler, run.entry)
    if kept is Kept.BY_GROUP:
        return f"a thread: its coordinator's {having.limit_of(run.group)}"
    if kept is Kept.BY_BACKGROUND:
        return "other processes, to which its nice has it leave the CPUs"
    if lacking := pool.state.scheduler.lacks_memory(run.entry):
        return lacking
    if kept is Kept.BY_PROCESS:
        return f"a thread: the process's {having.limit()}"
    return "a thread that is on its way"


# So many letters of another job's name are told.
_MOST_LETTERS = 60


class Having:
    """Which jobs have the threads that others wait for, in words: looked up once for all of them.

    Args:
        pool: Of the process.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._serving: list[tuple[Stint, Run]] | None = None
        self._limit = ""
        self._groups: dict[RunGroup, str] = {}

    def limit(self) -> str:
        """How many threads the process may have, at which jobs they are, and what decides that."""
        if not self._limit:
            cap = within_share(self._pool.adapter.cap, self._pool.adapter.share)
            blocking = self._pool.state.blocking  # each of those makes room for one more
            runs = [run for stint, run in self._served() if stint not in blocking]
            self._limit = f"{_at_jobs(cap.threads, runs)} ({cap.reason})"
        return self._limit

    def limit_of(self, group: RunGroup) -> str:
        """How many threads a coordinator may have, and at which jobs they are."""
        if group not in self._groups:
            runs = [run for _, run in self._served() if run.group is group]
            self._groups[group] = _at_jobs(group.cap or 0, runs)
        return self._groups[group]

    def _served(self) -> list[tuple[Stint, Run]]:
        if self._serving is None:
            # A stint's run is read once: it is another one once that is over.
            found = [(each, each.run) for each in list(self._pool.state.serving)]
            self._serving = [(stint, run) for stint, run in found if not run.over]
        return self._serving


def _at_jobs(threads: int, runs: Iterable[Run]) -> str:
    """At which jobs so many threads are: the one that has most of them is named."""
    at = Counter(runs)
    are = "is" if threads == 1 else "are"
    if not at:  # they went on meanwhile
        return f"{threads} {are} at other jobs"
    most = min(at, key=lambda run: (-at[run], run.number))
    more = f" and {len(at) - 1} more" if len(at) > 1 else ""
    # Of a part of a job of another process the text is told there, where no job has its number.
    job = f"a part of {_short(most)}" if most.is_part else f"job {_named(most)}"
    return f"{threads} {are} at {job}{more}"


def _named(run: Run) -> str:
    """Another job's number and name, in a text about this one."""
    return f"{run.number} ({_short(run)})"


def _short(run: Run) -> str:
    return run.name if len(run.name) <= _MOST_LETTERS else f"{run.name[:_MOST_LETTERS]}…"
