# SPDX-License-Identifier: MIT
# Why a job has no thread, checked against the choice itself: what is told to keep a job from a
# thread is what does, and where it is taken away the job may be chosen.

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.scheduling.queue import Entry, Group, Scheduler
from aioktask.engine.scheduling.reasons import Kept, kept_from_threads

CAPS = st.integers(1, 4)


class World(NamedTuple):
    """A scheduler in which one job waits, and others are served."""

    scheduler: Scheduler
    entry: Entry


@st.composite
def worlds(draw: st.DrawFn) -> World:
    scheduler = Scheduler(draw(CAPS))
    scheduler.background_cap = draw(st.integers(0, 4))
    groups = [Group(draw(st.none() | CAPS)) for _ in range(2)]
    for _ in range(draw(st.integers(0, 4))):
        other = Entry(None, draw(st.sampled_from(groups)), 0, draw(CAPS))
        other.gives_way = draw(st.booleans())
        scheduler.add(other)
        for _ in range(draw(st.integers(0, other.limit))):
            scheduler.enter(other)
    entry = Entry(None, draw(st.sampled_from(groups)), 0, draw(CAPS))
    entry.gives_way = draw(st.booleans())
    scheduler.add(entry)
    scheduler.set_ready(entry, undoing=draw(st.booleans()))
    if draw(st.booleans()):
        scheduler.owe(entry, 1)
    if draw(st.booleans()):
        scheduler.set_loan(entry, draw(st.integers(-20, -1)))
    scheduler.blocked = draw(st.integers(0, scheduler.running))
    return World(scheduler, entry)


@given(world=worlds())
def test_nothing_keeps_a_job_exactly_where_the_next_helper_is_given_it(world: World) -> None:
    scheduler, entry = world
    chosen = scheduler.choose() is entry
    assert chosen == (kept_from_threads(scheduler, entry) is Kept.BY_NOTHING)


@given(world=worlds())
def test_without_what_is_told_to_keep_it_something_else_does_or_nothing(world: World) -> None:
    scheduler, entry = world
    told = []
    while (kept := kept_from_threads(scheduler, entry)) is not Kept.BY_NOTHING:
        told.append(kept)
        if kept is Kept.BY_GROUP:
            scheduler.set_group_cap(entry.group, None)
        elif kept is Kept.BY_BACKGROUND:
            scheduler.background_cap = scheduler.background + 1
        else:
            scheduler.cap = scheduler.running - scheduler.blocked + 1
    assert len(told) == len(set(told))
    assert scheduler.choose() is entry


@pytest.mark.parametrize(
    ("group_cap", "background_cap", "cap", "kept"),
    [
        (1, 4, 4, Kept.BY_GROUP),
        (None, 0, 4, Kept.BY_BACKGROUND),
        (None, 4, 1, Kept.BY_PROCESS),
        (None, 4, 4, Kept.BY_NOTHING),
    ],
)
def test_each_limit_is_told(
    group_cap: int | None, background_cap: int, cap: int, kept: Kept
) -> None:
    scheduler = Scheduler(cap)
    scheduler.background_cap = background_cap
    group = Group(group_cap)
    other = Entry(None, group, 0, 1)
    scheduler.add(other)
    scheduler.enter(other)
    entry = Entry(None, group, 0, 1)
    entry.gives_way = True
    scheduler.add(entry)
    scheduler.set_ready(entry)
    assert kept_from_threads(scheduler, entry) is kept
