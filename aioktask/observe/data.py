# SPDX-License-Identifier: MIT
# Snapshots as plain data, for JSON: what a page, a terminal and a program in another language read.
"""Snapshots as JSON data."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from aioktask.status import JobStatus, Snapshot

__all__ = ["as_data", "snapshot_data"]

# So many jobs are told one by one: more than anybody looks at, in half a megabyte.
MOST_JOBS = 1000


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


def snapshot_data(taken: Snapshot, most_jobs: int = MOST_JOBS) -> dict[str, Any]:
    """A snapshot as plain data.

    Args:
        taken: The snapshot.
        most_jobs: So many jobs are told one by one: those that undo, are stopping or run before
            those that wait, and of these the oldest ones.

    Returns:
        Its attributes by name, and `counts`: how many jobs there are in each phase, all counted.
    """
    jobs = taken.jobs
    if len(jobs) > most_jobs:
        jobs = tuple(sorted(jobs, key=_order)[:most_jobs])
    data: dict[str, Any] = as_data(dataclasses.replace(taken, jobs=jobs))
    data["counts"] = dict(Counter(each.phase for each in taken.jobs))
    return data


def _order(job: JobStatus) -> tuple[bool, int]:
    return job.phase in ("waiting", "settled"), job.number
