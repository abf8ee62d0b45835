# SPDX-License-Identifier: MIT
# The choice of a job. A state machine checks every choice against the rule itself: caps, undo
# first, then the smallest virtual runtime. Simulations with a clock of their own check what
# follows from it over time: shares, waits and what a newcomer finds.

from __future__ import annotations

import copy
import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aioktask.engine.scheduling.queue import (
    SLICE_NS,
    Counted,
    Entry,
    Group,
    Scheduler,
    Seat,
    weight,
)

NICE = st.integers(-20, 19)
CAPS = st.integers(1, 6)
WALL_NS = st.integers(0, 3 * SLICE_NS)


# One choice.


def is_eligible(scheduler: Scheduler, entry: Entry) -> bool:
    """Whether one more helper may serve the entry within every cap."""
    group = entry.group
    return (
        entry.ready
        and entry.threads < entry.limit
        and scheduler.running < scheduler.cap
        and (group.cap is None or group.threads < group.cap)
    )


def is_owed(entry: Entry) -> bool:
    """Whether the entry may have a helper beyond the process's and the group's cap."""
    return entry.ready and entry.owed > 0 and not entry.threads


def count_choices(scheduler: Scheduler, most: int) -> int:
    """How many helpers find something to do, one after the other; the scheduler stays as it is."""
    scheduler = copy.deepcopy(scheduler)
    count = 0
    while count < most and (entry := scheduler.choose()) is not None:
        scheduler.enter(entry)
        count += 1
    return count


class Thread:
    """A thread that serves an entry: a helper, or a calling thread, which may be counted already.

    A calling thread inside a chunk counts as running, and perhaps in its coordinator too.
    """

    def __init__(self, entry: Entry, counted: Counted = Counted.NOWHERE) -> None:
        self.entry = entry
        self.seat = Seat(counted=counted)


class SchedulerModel(RuleBasedStateMachine):
    """Jobs, groups and threads that come and go, with what must hold of each choice."""

    @initialize(cap=CAPS, caps=st.lists(st.none() | CAPS, min_size=1, max_size=3))
    def begin(self, cap: int, caps: list[int | None]) -> None:
        self.scheduler = Scheduler(cap)
        self.groups = [Group(each) for each in caps]
        self.entries: list[Entry] = []
        self.undoing: set[Entry] = set()
        self.runtimes: dict[Entry, float] = {}
        self.threads: list[Thread] = []

    # Jobs.

    @rule(data=st.data(), nice=NICE, limit=st.integers(1, 5), owed=st.booleans())
    def submit(self, data: Any, nice: int, limit: int, owed: bool) -> None:
        group = data.draw(st.sampled_from(self.groups))
        entry = Entry(f"job {len(self.runtimes)}", group, nice, limit)
        entry.owed = int(owed)
        self.scheduler.add(entry)
        self.scheduler.set_ready(entry)
        self.entries.append(entry)
        self.runtimes[entry] = entry.runtime

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def has_nothing_to_claim(self, data: Any) -> None:
        entry = data.draw(st.sampled_from(self.entries))
        self.scheduler.set_idle(entry)
        self.undoing.discard(entry)

    @precondition(lambda self: self.entries)
    @rule(data=st.data(), undoing=st.booleans())
    def has_something_to_claim(self, data: Any, undoing: bool) -> None:
        entry = data.draw(st.sampled_from(self.entries))
        if undoing and not entry.ready:
            self.undoing.add(entry)
        self.scheduler.set_ready(entry, undoing=undoing)

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def ends(self, data: Any) -> None:
        entry = data.draw(st.sampled_from(self.entries))
        if not entry.threads:
            self.scheduler.set_idle(entry)
            self.entries.remove(entry)
            self.undoing.discard(entry)

    @precondition(lambda self: self.entries)
    @rule(data=st.data(), more=st.booleans())
    def is_waited_for(self, data: Any, more: bool) -> None:
        entry = data.draw(st.sampled_from(self.entries))
        if more or entry.owed:
            self.scheduler.owe(entry, 1 if more else -1)

    @precondition(lambda self: self.entries)
    @rule(data=st.data(), nice=NICE)
    def renice(self, data: Any, nice: int) -> None:
        self.scheduler.set_nice(data.draw(st.sampled_from(self.entries)), nice)

    # Caps.

    @rule(cap=CAPS)
    def set_cap(self, cap: int) -> None:
        self.scheduler.cap = cap

    @rule(data=st.data(), cap=st.none() | CAPS)
    def set_group_cap(self, data: Any, cap: int | None) -> None:
        group = data.draw(st.sampled_from(self.groups))
        self.scheduler.set_group_cap(group, cap)
        assert group.cap == cap
        self.nothing_is_owed_to(entry for entry in self.entries if entry.group is group)

    @precondition(lambda self: self.entries)
    @rule(data=st.data(), limit=st.integers(1, 5))
    def set_limit(self, data: Any, limit: int) -> None:
        entry = data.draw(st.sampled_from(self.entries))
        self.scheduler.set_limit(entry, limit)
        assert entry.limit == limit
        self.nothing_is_owed_to([entry])

    def nothing_is_owed_to(self, entries: Iterable[Entry]) -> None:
        """What they could not use below the old cap may be counted as used."""
        for entry in entries:
            assert entry.runtime >= self.runtimes[entry] or entry.runtime == pytest.approx(
                self.runtimes[entry]
            )
            self.runtimes[entry] = entry.runtime

    # Threads.

    @rule()
    def helper_comes(self) -> None:
        entry = self.scheduler.choose()
        if entry is None:
            return
        within_caps = is_eligible(self.scheduler, entry)
        assert within_caps or is_owed(entry)
        self.scheduler.enter(entry)
        self.threads.append(Thread(entry))
        assert entry.threads <= entry.limit
        if within_caps:
            assert self.scheduler.running <= self.scheduler.cap
            assert entry.group.cap is None or entry.group.threads <= entry.group.cap
        else:
            assert entry.threads == 1

    @precondition(lambda self: self.entries)
    @rule(data=st.data(), counted=st.sampled_from(Counted))
    def caller_comes(self, data: Any, counted: Counted) -> None:
        # A calling thread takes part in its own job, within that job's limit only.
        entry = data.draw(st.sampled_from(self.entries))
        if entry.ready and entry.threads < entry.limit:
            thread = Thread(entry, counted)
            assert self.scheduler.enter(entry, counted) == thread.seat
            self.threads.append(thread)

    @precondition(lambda self: self.threads)
    @rule(data=st.data(), wall_ns=WALL_NS)
    def thread_leaves(self, data: Any, wall_ns: int) -> None:
        thread = data.draw(st.sampled_from(self.threads))
        self.threads.remove(thread)
        self.scheduler.leave(thread.entry, wall_ns, thread.seat)
        self.runtimes[thread.entry] += wall_ns * 1.25**thread.entry.nice

    # What holds at all times.

    @invariant()
    def the_choice_is_undo_first_then_the_job_furthest_behind_then_low_nice(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        chosen = self.scheduler.choose()
        eligible = [entry for entry in self.entries if is_eligible(self.scheduler, entry)]
        if eligible:
            assert chosen is min(
                eligible,
                key=lambda entry: (
                    entry not in self.undoing,
                    entry.runtime,
                    entry.nice,
                    self.entries.index(entry),
                ),
            )
        elif owed := [entry for entry in self.entries if is_owed(entry)]:
            assert chosen in owed
        else:
            assert chosen is None

    @invariant()
    def the_count_of_wanted_helpers_is_what_they_would_find(self) -> None:
        for most in (1, 2, 10):
            assert self.scheduler.wanted(most) == count_choices(self.scheduler, most)

    @invariant()
    def threads_are_counted_right(self) -> None:
        running = [thread for thread in self.threads if thread.seat.counted is Counted.NOWHERE]
        assert self.scheduler.running == len(running)
        for group in self.groups:
            assert group.threads == sum(
                thread.entry.group is group and thread.seat.counted is not Counted.IN_GROUP
                for thread in self.threads
            )
        for entry in self.entries:
            assert entry.threads == sum(thread.entry is entry for thread in self.threads)

    @invariant()
    def an_entry_is_queued_while_a_thread_more_may_serve_it(self) -> None:
        for entry in self.entries:
            assert (entry.key is not None) == (entry.ready and entry.threads < entry.limit)
            assert (entry in entry.group.ready) == entry.ready
            if entry.key is not None:
                assert entry.key == entry.new_key()
                assert entry.key[:2] == (entry not in self.undoing, entry.runtime)
                assert entry.key in entry.queue

    @invariant()
    def runtime_is_wall_time_by_weight(self) -> None:
        for entry in self.entries:
            assert entry.runtime == pytest.approx(self.runtimes[entry])

    @invariant()
    def a_repr_names_who_is_first(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        if any(is_eligible(self.scheduler, entry) for entry in self.entries):
            first = self.scheduler.choose()
            assert first is not None
            assert f"first: {first.run}: nice {first.nice}, " in repr(self.scheduler)


TestSchedulerModel = SchedulerModel.TestCase
TestSchedulerModel.settings = settings(stateful_step_count=40)


@pytest.mark.parametrize("nice", range(-20, 20))
def test_weights_are_the_kernels_within_rounding(nice: int) -> None:
    kernel = [
        *(88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916),
        *(9548, 7620, 6100, 4904, 3906, 3121, 2501, 1991, 1586, 1277),
        *(1024, 820, 655, 526, 423, 335, 272, 215, 172, 137),
        *(110, 87, 70, 56, 45, 36, 29, 23, 18, 15),
    ]
    assert weight(nice) == pytest.approx(kernel[nice + 20], rel=0.05)
    assert weight(0) == 1024


@pytest.mark.parametrize("nice", range(-20, 19))
def test_a_step_of_nice_is_a_quarter_more(nice: int) -> None:
    assert weight(nice) == pytest.approx(1.25 * weight(nice + 1))


def ready(scheduler: Scheduler, group: Group, limit: int = 100, nice: int = 0) -> Entry:
    entry = Entry(object(), group, nice, limit)
    scheduler.add(entry)
    scheduler.set_ready(entry)
    return entry


def test_a_job_that_chunks_wait_for_has_one_helper_beyond_the_caps_and_no_second() -> None:
    scheduler, group = Scheduler(1), Group(1)
    scheduler.enter(ready(scheduler, group))
    nested = ready(scheduler, group)
    assert scheduler.choose() is None
    scheduler.owe(nested, 2)
    assert scheduler.choose() is nested
    scheduler.enter(nested)
    assert scheduler.choose() is None
    assert scheduler.running == 2
    scheduler.leave(nested, SLICE_NS)
    assert scheduler.choose() is nested
    scheduler.owe(nested, -1)
    assert scheduler.choose() is nested
    scheduler.owe(nested, -1)
    assert scheduler.choose() is None


def test_an_undo_goes_before_chunks_however_much_its_job_has_had() -> None:
    scheduler, group = Scheduler(4), Group()
    behind, failed = ready(scheduler, group), ready(scheduler, Group(), nice=19)
    scheduler.enter(failed)
    scheduler.leave(failed, 10**12)
    assert scheduler.choose() is behind
    scheduler.set_idle(failed)
    scheduler.set_ready(failed, undoing=True)
    assert scheduler.choose() is failed
    scheduler.enter(failed)
    scheduler.leave(failed, 10**12)  # still an undo after it was served
    assert scheduler.choose() is failed


def test_wanted_counts_the_helpers_beyond_the_caps_and_those_within() -> None:
    scheduler = Scheduler(2)
    full = Group(1)
    scheduler.enter(ready(scheduler, full))
    scheduler.owe(ready(scheduler, full), 1)
    ready(scheduler, Group())
    assert count_choices(scheduler, 10) == 2
    assert scheduler.wanted(10) == 2


# Over time.


class World:
    """Helpers that serve jobs on a simulated clock, as the pool has them do.

    A helper that ends its slice leaves, and chooses again. `served` is the helper time that each
    job had; `waits` is, for each job, the most choices that were made for other jobs while nobody
    served it.
    """

    def __init__(self, helpers: int, slice_ns: Callable[[Entry], int] = lambda _: SLICE_NS) -> None:
        self.scheduler = Scheduler(helpers)
        self.group = Group()
        self.slice_ns = slice_ns
        self.now = 0
        self.served: dict[Entry, int] = {}
        self.passed_by: dict[Entry, int] = {}
        self.waits: dict[Entry, int] = {}
        self.choices: list[Entry] = []
        self._ends: list[tuple[int, int, Entry, int, bool]] = []
        self._sequence = 0

    def add(self, nice: int = 0, *, limit: int = 100, group: Group | None = None) -> Entry:
        entry = ready(self.scheduler, group or self.group, limit, nice)
        self.served[entry] = self.passed_by[entry] = self.waits[entry] = 0
        return entry

    def end(self, entry: Entry) -> None:
        """The job has nothing more to claim."""
        self.scheduler.set_idle(entry)
        del self.passed_by[entry]

    def call(self, entry: Entry) -> None:
        """A calling thread takes part in its own job from now on, as long as that lasts."""
        self._enter(entry, caller=True)

    def _enter(self, entry: Entry, *, caller: bool = False) -> None:
        self.scheduler.enter(entry)
        wall_ns = self.slice_ns(entry)
        self._sequence += 1
        heapq.heappush(self._ends, (self.now + wall_ns, self._sequence, entry, wall_ns, caller))

    def choose(self) -> None:
        """Let every helper that has nothing to do choose."""
        while (chosen := self.scheduler.choose()) is not None:
            self.choices.append(chosen)
            for entry in self.passed_by:
                if entry is chosen or entry.threads:
                    self.passed_by[entry] = 0
                else:
                    self.passed_by[entry] += 1
                    self.waits[entry] = max(self.waits[entry], self.passed_by[entry])
            self._enter(chosen)

    def run(self, until_ns: int) -> None:
        """Let time pass up to `until_ns`."""
        self.choose()
        while self._ends and self._ends[0][0] <= until_ns:
            self.step()
        self.now = until_ns

    def step(self) -> None:
        """Let the slice that ends first end."""
        self.now, _, entry, wall_ns, caller = heapq.heappop(self._ends)
        self.served[entry] += wall_ns
        self.scheduler.leave(entry, wall_ns)
        if caller and entry.ready:
            self._enter(entry, caller=True)
        self.choose()

    def shares(
        self, entries: Sequence[Entry], since: dict[Entry, int] | None = None
    ) -> list[float]:
        """The part of their common helper time that each of the jobs had."""
        served = [self.served[entry] - (since or {}).get(entry, 0) for entry in entries]
        return [each / sum(served) for each in served]


def fair_shares(nices: Sequence[int]) -> list[float]:
    weights = [1.25**-nice for nice in nices]
    return [each / sum(weights) for each in weights]


MIXES = {
    "equal": [0] * 17,
    "a step apart": [*range(-8, 9)],
    "two kinds": [0] * 9 + [5] * 9,
    "one urgent": [-5] + [0] * 16,
    "one in the background": [0] * 16 + [10],
    "many in the background": [0] + [10] * 16,
    "both ends": [-10, -5] + [0] * 8 + [5, 10] * 4,
}


@pytest.mark.parametrize("helpers", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("nices", MIXES.values(), ids=MIXES)
def test_shares_are_within_a_tenth_of_the_weights(nices: list[int], helpers: int) -> None:
    world = World(helpers)
    entries = [world.add(nice) for nice in nices]
    world.run(20_000 * SLICE_NS // helpers)
    # A share is made of slices, and every helper may serve the same job at once: a job of small
    # weight has them in lumps, and the run may end just before or after one.
    lump = helpers / 20_000
    for share, fair in zip(world.shares(entries), fair_shares(nices), strict=True):
        assert share == pytest.approx(fair, rel=0.1, abs=lump)


@pytest.mark.parametrize("seed", range(6))
def test_shares_hold_whatever_the_helper_time_between_two_choices_is(seed: int) -> None:
    rng = random.Random(seed)
    helpers = rng.randint(1, 16)
    nices = [rng.randint(-6, 6) for _ in range(helpers + rng.randint(1, 10))]
    # Some jobs have long chunks, some end their stretches early, each in its own way.
    typical = {}

    def slice_ns(entry: Entry) -> int:
        return round(typical[entry] * rng.uniform(0.5, 1.5))

    world = World(helpers, slice_ns)
    entries = [world.add(nice) for nice in nices]
    for entry in entries:
        typical[entry] = rng.choice([SLICE_NS // 10, SLICE_NS, 5 * SLICE_NS])
    world.run(15_000 * SLICE_NS // helpers)
    lump = helpers * max(typical.values()) / (15_000 * SLICE_NS)
    assert world.shares(entries) == pytest.approx(fair_shares(nices), rel=0.1, abs=lump)


@pytest.mark.parametrize("helpers", [2, 5])
def test_shares_hold_where_each_job_has_one_thread_at_most(helpers: int) -> None:
    world = World(helpers)
    nices = [0, 1, 2] * helpers  # no share is more than one helper
    entries = [world.add(nice, limit=1) for nice in nices]
    world.run(20_000 * SLICE_NS // helpers)
    assert world.shares(entries) == pytest.approx(fair_shares(nices), rel=0.1)


def test_shares_hold_across_coordinators() -> None:
    world = World(3)
    nices = [0, 3, 0, 3, 0, 3]
    entries = [world.add(nice, group=Group()) for nice in nices]
    world.run(5000 * SLICE_NS)
    assert world.shares(entries) == pytest.approx(fair_shares(nices), rel=0.1)


@pytest.mark.parametrize("cap", [1, 2])
def test_a_group_keeps_its_cap_and_shares_that_by_the_weights(cap: int) -> None:
    world = World(4)
    capped = Group(cap)
    inside = [world.add(nice, group=capped) for nice in (0, 0, 3)]
    outside = [world.add() for _ in range(4)]
    for _ in range(12_000):
        world.choose()
        assert capped.threads <= cap
        assert world.scheduler.running == 4
        world.step()
    assert world.shares(inside) == pytest.approx(fair_shares([0, 0, 3]), rel=0.1)
    # Its jobs would have 3/7 of the helpers by weight, or nearly so; the cap may allow less.
    in_group = sum(world.served[entry] for entry in inside)
    everything = in_group + sum(world.served[entry] for entry in outside)
    assert in_group / everything == pytest.approx(
        min(cap / 4, sum(fair_shares([0, 0, 3, 0, 0, 0, 0])[:3])), rel=0.1
    )


@pytest.mark.parametrize("helpers", [1, 4, 16])
@pytest.mark.parametrize("seed", range(3))
def test_shares_hold_while_jobs_come_and_go(helpers: int, seed: int) -> None:
    rng = random.Random(seed)
    world = World(helpers)
    nices = [rng.randint(-3, 6) for _ in range(helpers + 2)]
    lasting = [world.add(nice) for nice in nices]
    passing: list[Entry] = []
    for _ in range(12_000 // helpers):
        if passing and rng.random() < 0.5:
            entry = passing.pop(rng.randrange(len(passing)))
            world.end(entry)
        else:
            passing.append(world.add(rng.randint(-10, 19)))
        while len(passing) > 5:
            world.end(passing.pop(0))
        world.run(world.now + rng.randint(0, 4) * SLICE_NS)
    assert world.shares(lasting) == pytest.approx(fair_shares(nices), rel=0.1)


@pytest.mark.parametrize("helpers", [1, 2, 7, 16])
@pytest.mark.parametrize("nices", MIXES.values(), ids=MIXES)
def test_no_job_waits_longer_than_its_weight_says(nices: list[int], helpers: int) -> None:
    world = World(helpers)
    entries = [world.add(nice) for nice in nices]
    world.run(20_000 * SLICE_NS // helpers)
    for entry in entries:
        assert world.served[entry]
        # All helpers may have served it at once. Then each other job catches up by its weight, and
        # may have all helpers at once when it has nearly done so.
        assert world.waits[entry] <= sum(
            helpers * (weight(other.nice) / weight(entry.nice) + 1)
            for other in entries
            if other is not entry
        )


def test_with_one_helper_equal_jobs_take_turns() -> None:
    world = World(1)
    entries = [world.add() for _ in range(5)]
    world.run(100 * SLICE_NS)
    assert world.choices[:10] == entries * 2
    assert all(world.waits[entry] == 4 for entry in entries)


@pytest.mark.parametrize("helpers", [1, 2, 16])
@given(slices=st.integers(0, 50), long_nice=NICE, short_nice=NICE)
def test_a_new_job_beside_a_long_one_is_chosen_at_the_next_choice(
    helpers: int, slices: int, long_nice: int, short_nice: int
) -> None:
    rng = random.Random(slices)
    world = World(helpers, lambda _: rng.randint(1, SLICE_NS))
    world.add(long_nice)
    world.run(slices * SLICE_NS)
    short = world.add(short_nice)
    before = len(world.choices)
    world.step()
    assert world.choices[before] is short


@pytest.mark.parametrize("helpers", [1, 4, 16])
@pytest.mark.parametrize("seed", range(5))
def test_a_new_job_beside_many_is_chosen_when_each_helper_chose_once(
    helpers: int, seed: int
) -> None:
    rng = random.Random(seed)
    world = World(helpers, lambda _: rng.randint(SLICE_NS // 2, SLICE_NS))
    for _ in range(helpers + 3):
        world.add(rng.randint(-10, 19))
    world.run(rng.randint(10, 500) * SLICE_NS)
    new = world.add(rng.randint(-10, 19))
    before = len(world.choices)
    for _ in range(helpers):
        world.step()
    assert new in world.choices[before:]


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("helpers", [1, 2])
def test_a_stream_of_short_jobs_leaves_a_long_one_its_share(helpers: int, streams: int) -> None:
    world = World(helpers)
    long = world.add()
    waiting = {world.add() for _ in range(streams)}
    world.choose()
    for _ in range(2000):
        for short in waiting & set(world.choices[-helpers:]):
            waiting.remove(short)
            world.end(short)  # its only chunk is claimed
            waiting.add(world.add())
        world.step()
    assert world.served[long] / sum(world.served.values()) >= 0.9 / (1 + streams)


def test_a_new_job_owes_nothing_for_the_time_before_it_came() -> None:
    world = World(2)
    old = world.add()
    world.run(1000 * SLICE_NS)
    new = world.add()
    since = dict(world.served)
    world.run(1100 * SLICE_NS)
    assert world.shares([old, new], since) == pytest.approx([0.5, 0.5], abs=0.05)


# What one job uses while nobody competes for it is nobody's loss, so it must not count for or
# against a job when there is competition.


def test_beside_a_job_that_its_limit_holds_back_a_new_job_shares_with_the_others() -> None:
    world = World(16)
    held_back, greedy = world.add(limit=1), world.add()
    world.run(1000 * SLICE_NS)
    new = world.add()
    since = dict(world.served)
    world.run(1100 * SLICE_NS)
    assert world.served[held_back] - since[held_back] >= 90 * SLICE_NS
    assert world.shares([greedy, new], since) == pytest.approx([0.5, 0.5], abs=0.05)


def test_a_job_whose_limit_is_lifted_does_not_starve_the_others() -> None:
    world = World(16)
    held_back, other = world.add(limit=1), world.add()
    world.run(1000 * SLICE_NS)
    world.scheduler.set_limit(held_back, 100)
    since = dict(world.served)
    world.run(1100 * SLICE_NS)
    assert world.shares([held_back, other], since) == pytest.approx([0.5, 0.5], abs=0.1)


def test_a_group_whose_cap_is_lifted_does_not_starve_the_others() -> None:
    world = World(16)
    group = Group(1)
    held_back, other = world.add(group=group), world.add()
    world.run(1000 * SLICE_NS)
    world.scheduler.set_group_cap(group, None)
    since = dict(world.served)
    world.run(1100 * SLICE_NS)
    assert world.shares([held_back, other], since) == pytest.approx([0.5, 0.5], abs=0.1)


def test_a_calling_thread_at_a_high_nice_does_not_hold_back_new_jobs() -> None:
    # The calling thread of a sync job serves its own job whatever that has had already.
    world = World(2)
    background, long = world.add(19, limit=1), world.add()
    world.call(background)
    world.run(100 * SLICE_NS)
    new = world.add()
    since = dict(world.served)
    world.run(200 * SLICE_NS)
    assert world.shares([long, new], since) == pytest.approx([0.5, 0.5], abs=0.05)


def test_a_job_goes_past_the_queues_only_where_nothing_else_waits_and_no_cap_is_reached() -> None:
    def free(*, cap: int = 2, group: Group | None = None, waits: bool = False) -> bool:
        scheduler = Scheduler(cap)
        if waits:
            other = Entry("other", Group(), 0, 1)
            scheduler.add(other)
            scheduler.set_ready(other)
        return scheduler.has_room(group or Group())

    full = Group(1)
    full.threads = 1
    assert free()
    assert free(group=Group(1))
    assert not free(cap=0)
    assert not free(waits=True)
    assert not free(group=full)
