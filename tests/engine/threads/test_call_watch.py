# SPDX-License-Identifier: MIT
# The keeper's look at the threads of calls, where memory is short.

from __future__ import annotations

from collections import deque
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from aioktask.engine.scheduling.blocked import SHORT_NS
from aioktask.engine.threads import call_watch
from aioktask.engine.threads.call_watch import CallWatch

THREAD, SINCE = 7, 1


class ShortOfMemory(deque[Any]):
    """An inbox into which the first command does not go."""

    struck = False

    def append(self, command: Any) -> None:
        if not self.struck:
            self.struck = True
            raise MemoryError
        super().append(command)


def test_what_was_found_and_could_not_be_posted_is_posted_at_the_next_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inbox = ShortOfMemory()
    pool: Any = SimpleNamespace(
        inbox=inbox, state=None, turn=int, take_turn=lambda *_: [(THREAD, SINCE)]
    )
    times = count(0, SHORT_NS)
    monkeypatch.setattr(call_watch, "perf_counter_ns", lambda: next(times))
    monkeypatch.setattr(call_watch, "thread_runs", lambda _: {THREAD: (1, 1, 1)})
    monkeypatch.setattr(call_watch, "sleeping_threads", set)
    watch = CallWatch(pool)
    watch._look_at_threads()
    with pytest.raises(MemoryError):
        watch._look_at_threads()
    watch._look_at_threads()
    assert [command[2] for command in inbox] == [{(THREAD, SINCE)}]
