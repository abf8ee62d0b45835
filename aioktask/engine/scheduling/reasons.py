# SPDX-License-Identifier: MIT
# Why a job that could be worked on has no thread.
#
# Pure: it reads the scheduler as it is, on any thread, and changes nothing. It asks what the choice
# of a job asks (`Scheduler.choose`), in the same order.
"""Which limit keeps a job from a thread."""

from __future__ import annotations

from enum import Enum

from aioktask.engine.scheduling.queue import Entry, Scheduler

__all__ = ["Kept", "kept_from_threads"]


class Kept(Enum):
    """What keeps a job from a thread."""

    BY_GROUP = "the threads of its coordinator"
    BY_BACKGROUND = "other processes"
    BY_PROCESS = "the threads of the process"
    BY_NOTHING = "a thread that comes"


def kept_from_threads(scheduler: Scheduler, entry: Entry) -> Kept:
    """What keeps a job, which no thread serves and which has something to claim, from a thread."""
    group = entry.group
    if entry.owed:  # beyond these caps
        return Kept.BY_NOTHING
    if group.cap is not None and group.threads >= group.cap:
        return Kept.BY_GROUP
    if entry.in_background and scheduler.background >= scheduler.background_cap:
        return Kept.BY_BACKGROUND
    if scheduler.running - scheduler.blocked >= scheduler.cap:
        return Kept.BY_PROCESS
    return Kept.BY_NOTHING
