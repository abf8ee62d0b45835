# SPDX-License-Identifier: MIT
# The short way in of jobs of one chunk: whatever comes, it leaves what the long way leaves.
#
# Two states get the same commands in the same order; one of them has no short way. After each
# command everything is compared that a later turn could look at, the clocks being the test's own.

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioktask import Job
from aioktask.engine.priority import MOST_NICE
from aioktask.engine.ranges.plan import one_chunk, split
from aioktask.engine.scheduling.queue import SLICE_NS
from aioktask.engine.state import admission
from aioktask.engine.state.ending import cancel, committed, leave_group
from aioktask.engine.state.following import renice, set_caps, set_run_limit
from aioktask.engine.state.group import Leaver, RunGroup
from aioktask.engine.state.outbox import Outbox
from aioktask.engine.state.run import Run, Wait
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.waiting import add_waiter
from aioktask.engine.state.workers import Helper, ThreadWaiter
from tests.engine.state.turns import a_state, idle_helper

# The modules of turns that read the clock.
CLOCKED = [
    module
    for name, module in sys.modules.items()
    if name.startswith("aioktask.engine.state.") and hasattr(module, "perf_counter_ns")
]


def _nothing(start: int, stop: int) -> None:
    """What the jobs do."""


def _undo(start: int, stop: int) -> None:
    """And how it is undone."""


def told_in(out: Outbox) -> str:
    """The events that are told, with their figures."""
    return f"events: {[(event.kind, event.subject, event.details) for _, event in out.events]}"


@dataclass
class World:
    """A state, with or without the short way, two helpers, a coordinator, and a clock."""

    short: bool
    cap: int
    nices: tuple[int, int] = (0, 0)  # of the helpers' threads
    now: int = 1000
    runs: list[Run] = field(default_factory=list)
    told: list[tuple[str, ...]] = field(default_factory=list)
    taken: int = 0  # how often the short way was taken

    def __post_init__(self) -> None:
        self.state = a_state(self.cap)
        self.group = RunGroup(1)
        self.helpers = [idle_helper(self.state, nice) for nice in self.nices]
        self.waiters: list[ThreadWaiter | None] = []

    def turn(self, helper: int | None, what: Callable[[], object]) -> None:
        """A turn on a helper's thread, at the world's own time."""
        self.now += 1_000
        with pytest.MonkeyPatch.context() as patch:
            for module in CLOCKED:
                patch.setattr(module, "perf_counter_ns", lambda: self.now)
            patch.setattr(admission, "begin_at_once", self._way(admission.begin_at_once))
            self.state.turner = None if helper is None else self.helpers[helper]
            what()
            self.state.turner = None
        out, self.state.out = self.state.out, type(self.state.out)()
        self.told.append(
            (
                f"woken: {[self.waiters.index(each) for each in out.waiters]}",
                f"parkings: {sorted(self._of(each) for each in out.parkings)}",
                f"starts: {len(out.starts)}",
                told_in(out),
            )
        )

    def _of(self, parking: object) -> int:
        return next(i for i, each in enumerate(self.helpers) if each.parking is parking)

    def _way(self, function: Callable[..., bool]) -> Callable[..., bool]:
        def way(*arguments: Any) -> bool:
            if not self.short:
                return False
            took = function(*arguments)
            self.taken += took
            return took

        return way

    def submit(
        self,
        helper: int | None,
        job: Job[Any],
        waits: int | None,
        grouped: bool,
        how: str = "plain",
    ) -> None:
        state = self.state
        inside = self.helpers[0].stint if how == "nested" else None
        run = Run(
            job,
            self.group if grouped else state.root,
            nice=job.nice,
            context=copy_context(),
            owned=waits is not None,
            parent=inside if inside is not None and inside.live else None,
        )
        run.submitted_at = self.now
        run.heard = how == "heard"
        if how == "cancelled":
            run.cancel()
        elif how == "advised":  # the first job tells what there is to tell of the process
            state.advice = "bind fewer"
        self.runs.append(run)
        if how == "awaited before":
            self.waiters.append(ThreadWaiter(0))
            run.waiters[self.waiters[-1]] = Wait(None, detects=False)  # type: ignore[index]
        waiter = None if waits is None else ThreadWaiter(waits)
        self.waiters.append(waiter)
        before = state.signals.generation
        self.turn(helper, lambda: admission.admit(state, run, waiter, None, False, False))
        if run.begun and not run.over and not run.entry.ready:
            # The long way has others choose anew although nothing is left for them to choose: this
            # is the one difference.
            state.signals.generation = state.signals.count = before
            for stint in state.serving:
                stint.generation = min(stint.generation, before)

    def walk(self, which: int, part: int) -> None:
        """The helper walks its stretch, as a helper thread would, or a part of it."""
        helper = self.helpers[which]
        stint = helper.stint
        if stint is None:
            return
        helper.called = False
        stop = stint.stretch_stop
        position = max(stop - part * stint.chunk, stint.stretch_start) if part else stop
        stint.chunk_start = position
        stint.cpu_now += 7
        self.now += 50 * position

        def come_back() -> None:
            if stint not in self.state.serving:
                helper.stint = None
                self.state.find_work(helper, self.now)
            elif not self.state.walked(stint, position, self.now):
                self.state.reconsider(stint, self.now)

        self.turn(which, come_back)

    def leave(self) -> None:
        """The first helper's chunk, or nobody's, waits until the coordinator has no run left.

        Chunks of the coordinator may still submit some.
        """
        waiter = ThreadWaiter(MOST_NICE)
        self.waiters.append(waiter)
        leaver = Leaver(waiter, self.helpers[0].stint, detects=False)
        self.turn(None, lambda: leave_group(self.state, None, self.group, leaver, False))
        self.group.closed = self.group.shut = False

    def wait_in_chunk(self, run: Run, which: int) -> None:
        """The chunk that the helper is in begins to wait for the run."""
        stint = self.helpers[which].stint
        if stint is None or run.over or not run.begun:
            return
        waiter = ThreadWaiter(MOST_NICE)
        self.waiters.append(waiter)
        self.turn(None, lambda: add_waiter(self.state, run, waiter, stint, True))

    def dump(self) -> dict[str, Any]:
        state = self.state
        scheduler, loans = state.scheduler, state.loans
        number = {run: index for index, run in enumerate(self.runs)}
        entries = {id(run.entry): number[run] for run in self.runs if run.begun}
        return {
            "running": (scheduler.running, scheduler.background, scheduler._floor),
            "queued": [
                [(key[:4], number[key[-1].run]) for key in queue]
                for queue in (scheduler._queues.foreground, scheduler._queues.background)
            ],
            "served": scheduler._queues.served,
            "sequence": scheduler._sequence,
            "groups": [
                (group.threads, [number[run] for run in group.runs], len(group.ready))
                for group in (state.root, self.group)
            ],
            "loans": {entries[id(entry)]: nices for entry, nices in loans._waiting.items()},
            "owed": (len(scheduler._owed), sorted(state.waiting.values())),
            "runs": [number[run] for run in state.runs],
            "crowded": state.crowded_until,
            "helpers": [
                (helper.idle, helper.called, self._stint(helper.stint, number), helper.boost)
                for helper in self.helpers
            ],
            "idle": [self.helpers.index(helper) for helper in state.idle],
            "serving": [self._stint(stint, number) for stint in state.serving],
            "leavers": (len(self.group.leavers), state.advice),
            "each": [self._run(run, number) for run in self.runs],
            "told": self.told,
        }

    def _stint(self, stint: Stint | None, number: dict[Run, int]) -> object:
        if stint is None:
            return None
        assert isinstance(stint.thread, Helper)
        names = (
            "live chunk_start stretch_start stretch_stop first_chunk_stop chunk entered_at "
            "claimed_at slice_end busy cpu cpu_mark seat node off_node counted "
            "kernel_now"
        )
        helper = self.helpers.index(stint.thread)
        return number.get(stint.run), helper, {each: getattr(stint, each) for each in names.split()}

    def _run(self, run: Run, number: dict[Run, int]) -> object:
        names = (
            "begun phase limit threads_planned done_units chunks_done peak_threads first_claim "
            "last_chunk cancelled error undoing lent owned hold nice heard "
            "decided never_starts over ended settled claimable working unfinished"
        )
        found = {each: getattr(run, each) for each in names.split()}
        found |= {
            "entry": run.begun
            and {
                each: getattr(run.entry, each)
                for each in run.entry.__slots__
                if each not in ("run", "group", "key", "queue", "owed_key")
            },
            "claims": (run.sweep.claims.free, run.sweep.claims.left, run.sweep.claims.chunk),
            "waiters": len(run.waiters),
            "report": run.report,
            "stints": [self._stint(each, number) for each in run.stints.values()],
            "even": run.version & 1,
        }
        return found


@st.composite
def _jobs(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "size": draw(st.sampled_from([0, 1, 2, 3, 4])),
        "start": draw(st.integers(0, 3)),
        "chunk": draw(st.sampled_from([None, 1, 8, 8, 8])),
        "undo": draw(st.sampled_from([None, _undo])),
        "nice": draw(st.sampled_from([0, 0, 0, 0, 0, -3, 4])),
        "max_threads": draw(st.sampled_from([None, None, 1])),
        "learn": "nothing",
    }


_helper = st.sampled_from([0, 0, 1, 1, None])
_SUBMIT = st.tuples(
    st.just("submit"),
    _helper,
    _jobs(),
    st.sampled_from([None, 0, 0, 0, 19, -5]),
    st.sampled_from([False, False, True]),
    st.sampled_from(
        ["plain"] * 5 + ["heard"] * 2 + ["nested", "cancelled", "advised", "awaited before"]
    ),
)
_WALK = st.tuples(st.just("walk"), st.integers(0, 1), st.sampled_from([0, 0, 0, 1]))
_STEPS = st.lists(
    st.one_of(
        _SUBMIT,
        _SUBMIT,
        _WALK,
        _WALK,
        _WALK,
        st.tuples(st.just("cancel"), st.integers(0, 9), _helper),
        st.tuples(st.just("ask to cancel"), st.integers(0, 9)),
        st.tuples(st.just("wait in a chunk"), st.integers(0, 9), st.integers(0, 1)),
        st.tuples(st.just("commit"), st.integers(0, 9), _helper),
        st.tuples(st.just("renice"), st.integers(0, 9), st.integers(-4, 4)),
        st.tuples(st.just("limit"), st.integers(0, 9), st.integers(1, 3)),
        st.tuples(st.just("cap"), st.integers(1, 3)),
        st.tuples(st.just("leave")),
        st.tuples(st.just("time"), st.just(SLICE_NS)),
    ),
    min_size=5,
    max_size=40,
)
# What random steps seldom come to: two helpers at the same job to its end; and jobs of one chunk
# that must go the long way.
_SHORT = {"size": 1, "chunk": 1}
_HELD = {**_SHORT, "undo": _undo}
_SELDOM: dict[str, list[tuple[Any, ...]]] = {
    "two helpers": [
        ("submit", 0, {"size": 4, "chunk": 1}, 0, False),
        *[("walk", helper, 0) for helper in (0, 1, 0, 1)],
    ],
    "for a chunk": [
        ("submit", 0, _SHORT, None, False),
        ("submit", 1, _SHORT, 19, False, "nested"),
    ],
    "a chunk leaves": [
        ("submit", 0, _HELD, 0, True),
        ("walk", 0, 0),
        ("submit", 0, _SHORT, 0, False),
        ("leave",),
        ("submit", 1, _SHORT, 0, True),
    ],
    "advice": [("submit", 0, _SHORT, 0, False, "advised")],
    "no room": [("submit", 0, _SHORT, 0, True), ("submit", 1, _SHORT, 0, True)],
}


def _take(world: World, step: tuple[Any, ...]) -> None:
    what, *arguments = step
    state = world.state
    if what == "submit":
        helper, job, *rest = arguments
        world.submit(helper, Job(_nothing, **job), *rest)
    elif what == "walk":
        world.walk(*arguments)
    elif what == "time":
        world.now += arguments[0]
    elif what == "leave":
        world.leave()
    elif what == "cap":
        world.turn(None, lambda: set_caps(state, arguments[0], None))
    elif arguments[0] < len(world.runs):
        run = world.runs[arguments[0]]
        if what == "cancel" and run.cancel():
            world.turn(arguments[1], lambda: cancel(state, run))
        elif what == "wait in a chunk":
            world.wait_in_chunk(run, arguments[1])
        elif what == "ask to cancel":  # whose command is still to come
            run.cancel()
        elif what == "commit" and run.owned and run.commit():
            world.turn(arguments[1], lambda: committed(state, run))
        elif what == "renice":
            run.nice = arguments[1]
            world.turn(None, lambda: renice(state, run))
        elif what == "limit":
            run.limit = arguments[1]
            world.turn(None, lambda: set_run_limit(state, run))


@given(st.sampled_from([1, 2, 2, 3]), st.sampled_from([(0, 0), (0, 3)]), _STEPS)
@settings(max_examples=max(settings().max_examples, 300), deadline=None)
def test_the_short_way_leaves_what_the_long_one_leaves(
    cap: int, nices: tuple[int, int], steps: list[tuple[Any, ...]]
) -> None:
    _compare(cap, nices, steps)


@pytest.mark.parametrize("steps", _SELDOM.values(), ids=list(_SELDOM))
def test_so_it_does_where_it_may_not_be_taken(steps: list[tuple[Any, ...]]) -> None:
    _compare(2, (0, 0), steps)


def _compare(cap: int, nices: tuple[int, int], steps: list[tuple[Any, ...]]) -> None:
    worlds = [World(short, cap, nices) for short in (True, False)]
    for step in steps:
        for world in worlds:
            _take(world, step)
        quick, slow = (world.dump() for world in worlds)
        for what, found in quick.items():
            assert found == slow[what], (what, step)


def test_a_job_of_one_chunk_takes_the_short_way() -> None:
    world = World(True, 2)
    for undo in (None, _undo):
        world.submit(0, Job(_nothing, 5, chunk=8, undo=undo), 0, False)
        world.walk(0, 0)
    assert world.taken == 2
    assert world.runs[0].over
    assert world.runs[1].settled


@given(_jobs(), st.integers(1, 4), st.integers(1, 4), st.integers(1, 64))
def test_a_job_of_one_chunk_is_one_whatever_the_machine(
    job: dict[str, Any], align: int, min_chunk: int, cap: int
) -> None:
    """What is said of the job alone holds of its cut on any machine, and is said where it does."""
    chunk = None if job["chunk"] is None else 12
    made = Job(_nothing, **{**job, "align": align, "min_chunk": min_chunk, "chunk": chunk})
    cut = split(made, cap)
    if one_chunk(made):
        assert (cut.chunks, cut.chunk) == (1, one_chunk(made))
    elif made.size:
        assert any(split(made, threads).chunks > 1 for threads in (1, 64))
