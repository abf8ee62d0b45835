# SPDX-License-Identifier: MIT
# What a coordinator is to the calls that run jobs: a group of runs in the pool of this process.
#
# It stands below `run_job`, so that a coordinator can have a method that runs one.
"""The scope that a job is run in."""

from __future__ import annotations

from typing import Any

from aioktask.engine.api.process import current_pool
from aioktask.engine.lookups import look_up
from aioktask.engine.state.group import RunGroup
from aioktask.engine.state.stint import Stint
from aioktask.engine.threads.pool import Pool


class Scope:
    """A group of runs, and what it sets: the part of a `Coordinator` that the engine asks for.

    Args:
        tunables: By name, its groups' own: changed by `Coordinator.configure`, each value in one
            step, so that of calls in several threads, or in a signal handler, none undoes what
            another one sets.

    Attributes:
        are_parts: Whether its jobs are parts of jobs of another process, which tells of them.
    """

    are_parts = False

    def __init__(self, tunables: dict[str, Any]) -> None:
        self._tunables = tunables
        self._groups: dict[Pool, RunGroup] = {}  # by the process's pool

    @property
    def _cap(self) -> int | None:
        threads: int | None = look_up(self._tunables, "max_threads")
        return threads

    @property
    def _closed(self) -> bool:
        """Whether it was left or shut down in this process; a fork's child may enter it anew."""
        return any(group.closed for pool, group in list(self._groups.items()) if not pool.dead)

    def scope(self) -> tuple[Pool, RunGroup]:
        """The pool of this process and this coordinator's group in it: a new one after a fork."""
        pool = current_pool()
        group: RunGroup | None = look_up(self._groups, pool)
        if group is None:
            for other in list(self._groups):
                if other.dead:  # of the parent of this forked process
                    self._groups.pop(other, None)
            # In one step: several threads may come here at a time.
            group = RunGroup(self._cap, self._tunables, are_parts=self.are_parts)
            group = self._groups.setdefault(pool, group)
        return pool, group


def group_in(pool: Pool, coordinator: object, outer: Stint | None) -> RunGroup:
    """The group of this coordinator; without one, that of the chunk around, or the process's.

    Raises:
        TypeError: `coordinator` is neither a Coordinator nor None.
    """
    if coordinator is None:
        return pool.state.root if outer is None else outer.run.group
    if not isinstance(coordinator, Scope):
        raise TypeError(f"coordinator must be a Coordinator or None, got {coordinator!r}")
    return coordinator.scope()[1]
