# SPDX-License-Identifier: MIT
# Which calls block: a thread that is not run does, one that computes or waits for the GIL does not.

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.scheduling.blocked import LONG_NS, SHORT_NS, USED, CallThread, ThreadLook
from aioktask.engine.scheduling.queue import Entry, Group, Scheduler

START = st.builds(
    ThreadLook,
    at=st.integers(0, 10**12),
    ran=st.integers(0, 10**12),
    waited=st.integers(0, 10**12),
    times=st.integers(0, 10**9),
)
PAUSES = st.lists(st.integers(SHORT_NS, LONG_NS), min_size=1, max_size=30)


def after(
    look: ThreadLook, pause: int, ran: int = 0, waited: int = 0, times: int = 0
) -> ThreadLook:
    return ThreadLook(look.at + pause, look.ran + ran, look.waited + waited, look.times + times)


@given(START, PAUSES)
def test_a_thread_that_is_never_run_is_blocked_from_the_second_look_on(
    first: ThreadLook, pauses: list[int]
) -> None:
    thread = CallThread(first)
    assert not thread.blocked
    for pause in accumulate(pauses):
        assert thread.look(after(first, pause))


@given(START, PAUSES, st.data())
def test_a_thread_that_runs_or_waits_for_a_cpu_is_not(
    first: ThreadLook, pauses: list[int], data: st.DataObject
) -> None:
    thread, seen = CallThread(first), first
    for pause in pauses:
        used = data.draw(st.integers(int(pause * USED) + 1, pause))
        ran = data.draw(st.integers(0, used))
        seen = after(seen, pause, ran=ran, waited=used - ran, times=1)
        assert not thread.look(seen)


@given(START, PAUSES)
def test_a_thread_that_is_run_seldom_is_blocked_once_it_was_looked_at_for_long(
    first: ThreadLook, pauses: list[int]
) -> None:
    thread, seen = CallThread(first), first
    for pause in pauses:
        seen = after(seen, pause, ran=1000, times=1)
        assert thread.look(seen) == (seen.at - first.at >= LONG_NS)


@given(START, st.integers(0, SHORT_NS - 1))
def test_a_look_that_comes_too_soon_changes_nothing(first: ThreadLook, pause: int) -> None:
    thread = CallThread(first)
    assert not thread.look(after(first, pause))
    assert thread.look(after(first, SHORT_NS))
    assert thread.look(after(first, SHORT_NS + pause, ran=pause, times=1))


@given(st.integers(1, 5), st.integers(0, 5), st.integers(1, 12))
def test_each_blocked_call_makes_room_for_one_thread_more(
    cap: int, blocked: int, jobs: int
) -> None:
    scheduler, group = Scheduler(cap), Group()
    scheduler.blocked = blocked = min(blocked, cap)
    entries = [Entry(None, group, 0, 1) for _ in range(jobs)]
    for entry in entries:
        scheduler.add(entry)
        scheduler.set_ready(entry)
    assert scheduler.wanted(100) == min(jobs, cap + blocked)
    while (entry := scheduler.choose()) is not None:
        scheduler.enter(entry)
        scheduler.set_idle(entry)
    assert scheduler.running == min(jobs, cap + blocked)
    assert scheduler.room == cap + blocked - scheduler.running
