# SPDX-License-Identifier: MIT
# What belongs to one coordinator: its runs, what it sets, and who waits to leave it.
"""The runs of a coordinator."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aioktask.engine.scheduling.gate import Gate
from aioktask.engine.scheduling.queue import Group
from aioktask.engine.state.workers import Waiter

if TYPE_CHECKING:
    from aioktask.engine.state.run import Run
    from aioktask.engine.state.stint import Stint

_numbers = itertools.count()


class RunGroup(Group):
    """The runs of one coordinator.

    Attributes:
        are_parts: Whether its runs are parts of jobs of another process, which tells of them.
        number: Of this group in the process.
        runs: Those that are not over.
        closed: Whether nothing more may be submitted. Set by the closing thread, before it posts.
        shut: Whether a turn has seen that it is closed.
        undo_failed: Runs whose undo failed, by number, until an owner, a waiter or a leaver has
            been told, on any thread.
        leavers: The waiters for the end of all its runs.
        gate: Counts those of its runs that have terms.
        given_up: Whether a shutdown came back although runs were left, so that nobody waits for
            them any more.
        tunables: What it sets that is otherwise the process's, by name. Any thread may change it,
            then posts; of `max_threads` the group's `cap` follows in a turn.
    """

    __slots__ = (
        "are_parts",
        "closed",
        "gate",
        "given_up",
        "leavers",
        "number",
        "runs",
        "shut",
        "tunables",
        "undo_failed",
    )

    def __init__(
        self,
        cap: int | None = None,
        tunables: Mapping[str, Any] | None = None,
        *,
        are_parts: bool = False,
    ) -> None:
        super().__init__(cap)
        self.are_parts = are_parts
        self.number = next(_numbers)
        self.tunables = {} if tunables is None else tunables
        self.runs: dict[Run, None] = {}
        self.closed = self.shut = self.given_up = False
        self.undo_failed: dict[int, Run] = {}
        self.leavers: list[Leaver] = []
        self.gate = Gate()


class Leaver:
    """A waiter until no run of a group is left, or its time is up.

    Attributes:
        waiter: What is woken then.
        stint: That of the chunk in which, or on behalf of which, it waits; None for no chunk.
        detects: Whether the chunk itself waits, so that a cycle of waits would never end.
        gone: Whether no run is left; set before the waiter is woken.
        gives_up: Whether its time is up; set before the waiter is woken.
        undo_failed: The runs whose undo failed, once it is gone.
    """

    __slots__ = ("detects", "gives_up", "gone", "stint", "undo_failed", "waiter")

    def __init__(self, waiter: Waiter, stint: Stint | None, *, detects: bool) -> None:
        self.waiter = waiter
        self.stint = stint
        self.detects = detects
        self.gone = self.gives_up = False
        self.undo_failed: list[Run] = []

    @property
    def waits_no_more(self) -> bool:
        """Whether no run is left, or its time is up."""
        return self.gone or self.gives_up
