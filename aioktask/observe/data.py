# SPDX-License-Identifier: MIT
# Snapshots as plain data, for JSON: what a page, a terminal and a program in another language read.
"""Snapshots as JSON data."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aioktask.status import JobStatus, Snapshot

__all__ = ["as_data", "cut", "snapshot_data"]

# So many jobs are told one by one: more than anybody looks at, in half a megabyte. And so many of
# the workers that they have in other processes, all together.
MOST_JOBS = 1000
MOST_WORKERS = 2000

# So long may a text be, as the name of a job: a request that has its query for a name must not make
# the process unreadable.
MOST_TEXT = 400

# Attributes of which there may be many.
ROWS = ("jobs", "ended", "helpers")


def as_data(value: object) -> Any:
    """A frozen value as dictionaries, lists, strings and numbers; a range as its two ends.

    >>> as_data((range(3, 5), None))
    [[3, 5], None]
    """
    if dataclasses.is_dataclass(value):
        return {each.name: as_data(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, range):
        return [value.start, value.stop]
    if isinstance(value, Mapping):
        return {str(key): as_data(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_data(each) for each in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def cut(text: str) -> str:
    """A text, or as much of it as is told.

    >>> cut("a" * 1000)[-5:], len(cut("a" * 1000))
    ('aaaa…', 400)
    """
    return text if len(text) <= MOST_TEXT else f"{text[: MOST_TEXT - 1]}…"


def snapshot_data(
    taken: Snapshot,
    most_jobs: int = MOST_JOBS,
    pause: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """A snapshot as plain data.

    Args:
        taken: The snapshot.
        most_jobs: So many jobs are told one by one: those that undo, are stopping or run before
            those that wait, parts of jobs of other processes last, and of these the oldest ones.
        pause: Called between two jobs, by who would not keep others from the GIL.

    Returns:
        Its attributes by name, and `counts`: how many jobs there are in each phase, all counted
        but for parts of jobs of other processes, which are counted there.
        The workers of jobs are no attributes of theirs, but rows of `workers`, each with its `job`;
        `left_out_workers` is how many are not told, of the last jobs.
    """
    jobs = taken.jobs
    if len(jobs) > most_jobs:
        jobs = tuple(sorted(jobs, key=_order)[:most_jobs])
    data: dict[str, Any] = {}
    for each in dataclasses.fields(taken):
        value = jobs if each.name == "jobs" else getattr(taken, each.name)
        data[each.name] = _rows(value, pause) if each.name in ROWS else as_data(value)
    data["workers"] = _workers(jobs, pause)
    data["left_out_workers"] = sum(len(each.workers) for each in jobs) - len(data["workers"])
    data["counts"] = dict(Counter(each.phase for each in taken.jobs if not each.part))
    return data


def _workers(jobs: Iterable[JobStatus], pause: Callable[[], object] | None) -> list[Any]:
    found: list[Any] = []
    for job in jobs:
        for each in job.workers[: MOST_WORKERS - len(found)]:
            found.append({"job": job.number, **as_data(each)})
            if pause is not None:
                pause()
    return found


def _rows(values: Iterable[object], pause: Callable[[], object] | None) -> list[Any]:
    found = []
    for each in values:
        if isinstance(each, JobStatus) and each.workers:  # which are rows of their own
            each = dataclasses.replace(each, workers=())
        row = as_data(each)
        row.pop("workers", None)
        row.update({name: cut(text) for name, text in row.items() if isinstance(text, str)})
        found.append(row)
        if pause is not None:
            pause()
    return found


def _order(job: JobStatus) -> tuple[bool, bool, int]:
    return job.part, job.phase in ("waiting", "settled"), job.number
