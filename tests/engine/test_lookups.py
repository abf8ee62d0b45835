# SPDX-License-Identifier: MIT
# Without the GIL `dict.get` takes a lock that may never be free in a fork's child. So no job asks
# a dictionary by it that other threads may use at the moment of a fork.

from __future__ import annotations

from typing import Any, NoReturn

from aioktask import Coordinator, Job, run_multithreaded_sync
from aioktask.engine.lookups import look_up
from aioktask.engine.state.group import RunGroup


class Locked(dict[Any, Any]):
    """In a child whose parent had its lock."""

    def get(self, *_: object) -> NoReturn:
        raise AssertionError("this would wait for ever")

    pop = get  # type: ignore[assignment]


class Fleeting(dict[Any, Any]):
    """Of which another thread takes out what was there a moment ago."""

    def __contains__(self, key: object) -> bool:
        return True


def test_what_another_thread_takes_out_meanwhile_is_not_there() -> None:
    assert look_up(Fleeting(), "nice", 3) == 3


def test_no_group_shares_what_it_sets_with_those_of_a_parent_process() -> None:
    assert RunGroup().tunables is not RunGroup().tunables


def test_a_job_asks_no_coordinator_by_what_takes_a_lock() -> None:
    coordinator = Coordinator()
    coordinator._tunables = Locked(max_threads=2, nice=0)
    coordinator._groups = Locked()
    with coordinator:
        assert coordinator.submit(Job(lambda start, stop: None, 10, chunk=1)).result().chunks == 10
        run_multithreaded_sync(Job(lambda start, stop: None, 10), coordinator=coordinator)
