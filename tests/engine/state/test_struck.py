# SPDX-License-Identifier: MIT
# An exception in the middle of a turn, at any line of the state and of the scheduling: the run that
# the command was about may fail by it, and nothing else may be amiss.
#
# The pool is the real one, without threads: a play applies commands and walks stretches itself.
# After each strike the world goes on to its end: whoever waited was woken, no count is left up, and
# a job that comes later runs.

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from types import FrameType
from typing import Any

import pytest

from aioktask import Job
from aioktask.engine.api.call import job_of_call
from aioktask.engine.learning.lessons import key_of
from aioktask.engine.machine.available_memory import AvailableMemory, MemoryLimit
from aioktask.engine.machine.load import CpuLoad
from aioktask.engine.machine.topology import read_topology
from aioktask.engine.scheduling import queue
from aioktask.engine.state import (
    admission,
    blocking,
    callers,
    dispatch,
    ending,
    following,
    growing,
    helpers,
    lane_turns,
    recovery,
    waiting,
)
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.group import Leaver, RunGroup
from aioktask.engine.state.growth import Growth
from aioktask.engine.state.run import Decision, Phase, Run
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.terms import Terms
from aioktask.engine.state.workers import Caller, Helper, ThreadWaiter, Waiter
from aioktask.engine.threads.helper import HelperThread
from aioktask.engine.threads.pool import Pool
from aioktask.engine.tunables import Tunables
from tests.support.lines import AT_LINES

STRUCK = tuple(str(Path(str(module.__file__)).parent) for module in (dispatch, queue))

TOPOLOGY = read_topology()

CAP = 8

NOWHERE = "/nowhere"

# Items that nobody takes: the threads here walk units.
MANY = [(1000, "item")] * 1000


class World:
    """A pool without threads, in the middle of everything."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.pool = pool = Pool(TOPOLOGY, Tunables(max_threads=CAP, learn="nothing"))
        self.state = state = pool.state
        state.may_lower = True
        self.started: list[Helper] = []
        patch.setattr(pool, "wake", lambda: None)
        patch.setattr(pool, "_have_started", self.started.append)
        patch.setattr(pool, "_have_memory_looked_at", lambda: None)
        patch.setattr(pool, "_look_by", lambda due: None)
        patch.setattr(pool.archive, "fetch", lambda reading: None)
        patch.setattr(pool.archive, "keep", lambda source, lesson: None)
        patch.setattr(pool.adapter, "_set_nice", lambda helper: True)
        patch.setattr(pool.adapter, "bind", lambda helper: None)
        self.woken: list[Waiter] = []
        self.runs: list[Run] = []
        self.walked: defaultdict[Run, list[int]] = defaultdict(list)  # the units, as they came
        self.waiters: list[Waiter] = []  # who should be woken
        self.helpers: dict[Helper, HelperThread] = {}
        self.group = RunGroup(4)
        self.outer = self.submit("outer", nice=3)
        self.awaited = self.submit("awaited", nice=7, undo=True, group=self.group)
        self.background = self.submit("background", nice=19)
        self.cancelled = self.submit("cancelled", undo=True, group=self.group)
        self.waiting = self.wait(self.outer, -5)
        self.short = self.submit("short", size=1)
        self.wait(self.short, 0)
        self.leaver = Leaver(ThreadWaiter(0), None, detects=False)
        while self.started:
            self.come()
        served = [each.stint for each in state.helpers if each.stint is not None]
        self.chunk = next(each for each in served if each.run is self.outer)
        self.in_chunk = self._waiter(7)
        self.apply(waiting.add_waiter, self.awaited, self.in_chunk, self.chunk, True)
        self.caller = Caller(0, main=True)
        self.caller.present.acquire()
        self.waiters.append(self.caller)
        self.called = self.run("called", undo=True)
        self.apply(admission.admit, self.called, self.caller, self.caller, False, True)
        assert self.caller.serving is not None
        self.stream = self.run("stream", size=0)
        self.growth = self.stream.growth = Growth((), MANY, None)
        self.growth.pacing.at_once = 4
        self.apply(admission.admit, self.stream, None, None, False, False)
        self.wait(self.stream, 0)
        self.guest = Caller(0)
        self.guest.quits = True
        self.guest.present.acquire()
        self.grow(6)
        while self.started:
            self.come()

    def grow(self, units: int, *, closed: bool = False) -> None:
        """Add units to the run that grows, perhaps the last ones."""
        self.growth.stop += units
        self.growth.closed = closed
        self.apply(growing.follow, self.stream)

    def _waiter(self, nice: int) -> ThreadWaiter:
        waiter = ThreadWaiter(nice)
        self.waiters.append(waiter)
        return waiter

    def run(
        self,
        name: str,
        *,
        size: int = 40,
        nice: int = 0,
        undo: bool = False,
        group: RunGroup | None = None,
        call: bool = False,
        memory: int | None = None,
    ) -> Run:
        reverse = (lambda start, stop: None) if undo else None
        job = Job(
            lambda start, stop: None,
            size,
            chunk=1,
            undo=reverse,
            nice=nice,
            name=name,
            memory=memory,
            max_threads=1 if name != "called" else 2,
        )
        if call:
            job = job_of_call(lambda start, stop: None, nice, name)
        context = sys.modules["contextvars"].copy_context()
        made = Run(job, group or self.state.root, nice=nice, context=context)
        self.runs.append(made)
        return made

    def submit(self, name: str, **options: Any) -> Run:
        run = self.run(name, **options)
        self.apply(admission.admit, run, None, None, False, False)
        return run

    def wait(self, run: Run, nice: int) -> ThreadWaiter:
        waiter = self._waiter(nice)
        self.apply(waiting.add_waiter, run, waiter, None, False)
        return waiter

    def come(self) -> None:
        """The helper that was started first comes."""
        thread = HelperThread(self.pool, self.started.pop(0))
        thread._helper.initializer = self.state.tunables.initializer  # it called that
        if thread._come():
            self.helpers[thread._helper] = thread

    def apply(self, *command: Any) -> None:
        """A turn that applies this command."""
        self.pool.inbox.append(command)
        self.turn()

    def turn(self) -> None:
        self.pool.turn()
        self.woken += self.pool._woken
        self.pool._woken.clear()

    def come_back(self, helper: Helper, error: BaseException | None = None) -> None:
        """A helper comes back from its stretch, all of which it walked, if nothing raised."""
        stint = helper.stint
        assert stint is not None
        helper.called = False
        now = stint.claimed_at + 1_000_000
        position = stint.chunk_start if error else stint.stretch_stop
        self.walk(stint, position)
        self.helpers[helper]._come_back(stint, position, now, [error] if error else [])
        self.turn()

    def walk(self, stint: Stint, position: int) -> None:
        """What its thread does with a stretch."""
        if stint.run.over:
            return
        assert stint.stretch_start < stint.stretch_stop, "nothing to walk: fn gets an empty range"
        if not stint.run.undoing:
            self.walked[stint.run] += range(stint.chunk_start, position)

    def serving(self, run: Run) -> Helper:
        return next(each for each in self.helpers if each.stint and each.stint.run is run)

    def _comes_back(self, helper: Helper) -> bool:
        """Whether it serves something, and its chunk does not wait."""
        waits = helper.stint is self.chunk and self.in_chunk not in self.woken
        return helper.stint is not None and not waits

    def finish(self) -> None:
        """Go on until nothing is left to do."""
        for _ in range(10_000):
            self.turn()
            if self.caller.stint is not None:
                stint, self.caller.stint = self.caller.stint, None
                now = stint.claimed_at + 1_000_000
                self.walk(stint, stint.stretch_stop)
                self.apply(callers.caller_walked, stint.run, stint, stint.stretch_stop, now)
                continue
            for helper in self.helpers:
                if self._comes_back(helper):
                    self.come_back(helper)
                    break
            else:
                if not self.started:
                    return
                self.come()
        raise AssertionError(f"it goes on for ever: {self.pool}")

    def counts(self) -> dict[str, object]:
        """All that is counted beside runs and stints."""
        state = self.state
        scheduler, loans = state.scheduler, state.loans
        return {
            "running": scheduler.running,
            "background": scheduler.background,
            "blocked": scheduler.blocked,
            "groups": [(each.threads, len(each.ready)) for each in (self.group, state.root)],
            "entries": [
                (run.name, run.entry.threads, run.entry.owed, run.entry.ready, run.entry.loan)
                for run in self.runs
                if run.begun
            ],
            "queued": [
                len(queue)
                for queue in (
                    scheduler._queues.foreground,
                    scheduler._queues.background,
                    scheduler._queues.served,
                    scheduler._owed,
                )
            ],
            "waits": {a.name: {b.name: n for b, n in bs.items()} for a, bs in _inside(state)},
            "waiting": sum(state.waiting.values()),
            "loans": sorted(
                (entry.run.name, sorted(counts.items()))
                for entry, counts in loans._waiting.items()
                if entry.run is not None
            ),
            "starting": len(state.starting),
            "guests": [(run.name, run.guests) for run in self.runs],
            "memory": (
                scheduler.memory.held,
                scheduler.memory.chunks,
                scheduler.memory.waiting,
                sorted(run.name for run in state.memory_runs),
                sorted(entry.run.name for entry in scheduler._memory_ready),
                len(scheduler._memory_queues.foreground),
                len(scheduler._memory_owed),
            ),
        }


def _inside(state: State) -> Any:
    return state.waits._awaited.items()


class Strike:
    """Raises once, at this line of the state and the scheduling, while turns apply something."""

    def __init__(self, patch: pytest.MonkeyPatch, line: int) -> None:
        self.left = line
        self.struck: str | None = None
        for owner, name in ((Pool, "drain"), (HelperThread, "_next")):
            patch.setattr(owner, name, self._struck_in(getattr(owner, name)))

    def _struck_in(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def struck(*args: Any) -> Any:
            before = sys.gettrace()
            sys.settrace(self._trace)
            try:
                return call(*args)
            finally:
                sys.settrace(before)

        return struck

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if self.struck is not None or not frame.f_code.co_filename.startswith(STRUCK):
            return None
        if frame.f_code.co_name == "__del__":  # of an earlier run: what it raises goes nowhere
            return None
        if event == "line":
            self.left -= 1
            if self.left < 0:
                self.struck = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise MemoryError(f"planted at {self.struck}")
        return self._trace


# The commands, and a helper's return.

Deed = Callable[[World], None]


def admit(world: World) -> None:
    world.submit("new", undo=True, group=world.group)


def admit_awaited(world: World) -> None:
    run = world.run("new", nice=4)
    waiter = world._waiter(4)
    run.parent_stint = world.chunk
    world.apply(admission.admit, run, waiter, None, True, True)


def admit_called(world: World) -> None:
    world.apply(callers.caller_left, world.called, world.caller, None)
    world.caller = caller = Caller(0, main=True)
    caller.present.acquire()
    world.waiters.append(caller)
    world.apply(admission.admit, world.run("new"), caller, caller, False, True)


def admit_unread(world: World) -> Run:
    """One whose function may have left a lesson on disk, so that it waits for that."""
    job = Job(
        *(lambda start, stop: None, 40), max_threads=1, name="new", learn="both", remember=NOWHERE
    )
    run = Run(job, world.state.root, nice=0, context=sys.modules["contextvars"].copy_context())
    world.runs.append(run)
    world.apply(admission.admit, run, world._waiter(0), None, False, False)
    assert run.over or run.awaits
    return run


def lesson_read(world: World) -> None:
    run = admit_unread(world)
    world.apply(admission.lesson_read, None, NOWHERE, key_of(run.job, 1), None)


def wait_no_longer(world: World) -> None:
    run = admit_unread(world)
    run.submitted_at = 0
    world.apply(admission.wait_no_longer, None)


def cancel_unread(world: World) -> None:
    run = admit_unread(world)
    run.cancel()
    world.apply(ending.cancel, run)


def cancel(world: World) -> None:
    assert world.cancelled.cancel()
    world.apply(ending.cancel, world.cancelled)


def cancel_what_is_served(world: World) -> None:
    assert world.awaited.cancel()
    world.apply(ending.cancel, world.awaited)


def remove_waiter(world: World) -> None:
    world.waiters.remove(world.waiting)
    world.apply(waiting.remove_waiter, world.outer, world.waiting)


def find_blocked(world: World, calls: int = 2) -> list[Helper]:
    """Calls are found to block, more of them than there may be."""
    world.state.tunables = Tunables(max_threads=CAP, max_blocked=1)
    runs = [world.submit(f"call {number}", size=1, call=True) for number in range(calls)]
    while world.started:
        world.come()
    served = [each for each in world.helpers if each.stint and each.stint.run in runs]
    for helper in served:
        helper.called = False
    world.submit("waits for a helper")
    blocked = {(each.native, each.stint.entered_at) for each in served if each.stint}
    world.apply(blocking.find_blocked, None, blocked)
    return served


def blocked_ends(world: World) -> None:
    """A call that was found to block returns."""
    for helper in find_blocked(world):
        world.come_back(helper)


def wait_for_call(world: World) -> None:
    """A chunk waits for a call that no helper has taken out of the lane."""
    run = world.run("new", size=1, call=True)
    run.lane_waiter = world._waiter(0)
    world.state.lane.waiting.append(run)
    served = world.serving(world.background)
    world.apply(lane_turns.wait_for_call, run, world._waiter(0), served.stint, True)


def leave(world: World, *, cancels: bool) -> None:
    world.waiters.append(world.leaver.waiter)
    world.apply(ending.leave_group, None, world.group, world.leaver, cancels)


def give_up(world: World) -> None:
    leave(world, cancels=False)
    world.apply(ending.give_up_leaving, None, world.group, world.leaver)


def left_behind(world: World) -> None:
    world.apply(ending.tell_left_behind, None, world.group)


def _on_terms(world: World, run: Run, *, passed: float, timeout: float) -> None:
    """Have the run be one that was submitted so long ago with this time, in seconds."""
    if run.over:  # by a strike before
        return
    run.submitted_at = perf_counter_ns() - int(passed * 1e9)
    run.terms = Terms(run.group.gate, world.pool.deadlines, None, None, timeout)
    due = run.terms.refuse_or_enter(run, CAP, nested=False)
    assert due is not None
    if run.first_claim:
        run.terms.began(run, run.first_claim)
    world.pool.deadlines.add(run.number, (ending.expire, run), due)


def expire(world: World) -> None:
    _on_terms(world, world.awaited, passed=2, timeout=1)
    world.apply(ending.expire, world.awaited)


def look_again(world: World) -> None:
    _on_terms(world, world.awaited, passed=0, timeout=600)
    world.apply(ending.expire, world.awaited)


def expire_waiting(world: World) -> None:
    """No chunk has begun, and none will."""
    run = world.submit("late", nice=19, undo=True, group=world.group)
    world.wait(run, 3)
    _on_terms(world, run, passed=2, timeout=1)
    world.apply(ending.expire, run)


def expire_before_it_came(world: World) -> None:
    run = world.run("late", undo=True)
    _on_terms(world, run, passed=2, timeout=1)
    world.apply(ending.expire, run)
    waiter = world._waiter(0)
    world.apply(admission.admit, run, waiter, None, False, False)


def expire_in_lane(world: World) -> None:
    run = world.run("late", size=1, call=True)
    run.lane_waiter = world._waiter(0)
    world.state.lane.waiting.append(run)
    _on_terms(world, run, passed=2, timeout=1)
    world.apply(ending.expire, run)


def stay(world: World) -> None:
    leave(world, cancels=False)
    world.waiters.remove(world.leaver.waiter)
    world.apply(ending.stay_in_group, None, world.group, world.leaver)


def renice(world: World) -> None:
    world.awaited.nice = -3
    world.apply(following.renice, world.awaited)


def limit(world: World) -> None:
    world.outer.limit = 1
    world.apply(following.set_run_limit, world.outer)


def walked_as_caller(world: World) -> None:
    stint = world.caller.stint
    assert stint is not None
    world.caller.stint = None
    world.walk(stint, stint.stretch_stop)
    world.apply(
        callers.caller_walked, stint.run, stint, stint.stretch_stop, stint.claimed_at + 1000
    )


def raised_as_caller(world: World) -> None:
    stint = world.caller.stint
    assert stint is not None
    world.caller.stint = None
    error = ValueError("planted")
    world.apply(callers.caller_raised, stint.run, stint, error, stint.claimed_at + 1000)


def left_as_caller(world: World) -> None:
    world.waiters.remove(world.caller)
    world.caller.stint = None
    world.apply(callers.caller_left, world.called, world.caller, KeyboardInterrupt())


def went_as_caller(world: World) -> None:
    world.waiters.remove(world.caller)
    world.caller.present.release()
    world.apply(recovery.find_unattended, None)


def goes_on_elsewhere(world: World) -> None:
    """A helper's run ends, and another one waits for a thread."""
    helper = world.serving(world.short)
    world.submit("next")
    world.come_back(helper)


def sampled(world: World) -> None:
    world.apply(following.sampled, None, CpuLoad(10**9, 10**9, 10**9, 0), 4)


def cap(world: World) -> None:
    world.pool.adapter.configure(Tunables(max_threads=2))
    world.turn()


def group_cap(world: World) -> None:
    world.group.tunables = {"max_threads": 1}
    world.pool.adapter.set_group(world.group)
    world.turn()


def not_started(world: World) -> None:
    helper = Helper()
    helper.asked_for = True
    world.state.starting[helper] = None
    world.apply(helpers.not_started, None, helper, RuntimeError("no more"))


def initializer_failed(world: World) -> None:
    helper = Helper()
    helper.asked_for = True
    world.state.starting[helper] = None
    error = RuntimeError("no device")
    world.apply(helpers.initializer_failed, None, helper, error, "prepare")


def start_again(world: World) -> None:
    """Some time after an initializer raised."""
    world.state.starts_again_at = 1
    world.apply(helpers.start_again, None)
    world.state.starts_again_at = 0  # where that was struck, the keeper's next look does it


def other_initializer(world: World) -> None:
    """Helpers that were prepared by the last one end, those that serve when they come back."""
    world.pool.adapter.configure(Tunables(max_threads=CAP, initializer=print))
    world.turn()


def share_out(world: World) -> None:
    """One unit of a stretch lasts, and what its thread holds behind it is taken back."""
    stint = world.serving(world.stream).stint
    assert stint is not None
    stint.claimed_at = stint.walked_at = 0
    world.growth.head, world.growth.waits_since = 0, 0
    world.apply(growing.share_out, None)


def guest_goes(world: World) -> None:
    world.apply(callers.enter_guest, world.stream, world.guest)
    world.apply(growing.caller_goes, world.stream, world.guest)


def admit_with_guest(world: World) -> None:
    """A stream comes in that was cancelled while its calling thread is at an item."""
    run = world.run("stream with guest", size=0)
    run.growth = Growth((), MANY, None)
    guest = Caller(0)
    guest.quits = True
    guest.present.acquire()
    world.waiters.append(guest)
    run.stint_of(guest).stretch_stop = 1
    run.may_start()
    run.cancel()
    world.apply(admission.admit, run, guest, guest, False, False)
    run.stint_of(guest).stretch_stop = 0
    world.apply(growing.caller_goes, run, guest)


def stream_is_cancelled(world: World) -> None:
    world.apply(callers.enter_guest, world.stream, world.guest)
    world.stream.cancel()  # in vain where the strike ended it before
    world.apply(ending.cancel, world.stream)


def see_memory(world: World) -> None:
    """What the keeper does four times a second: there is room for one chunk of those here."""
    seen = AvailableMemory((MemoryLimit("", 10, 15),), pressed=False)
    world.apply(following.memory_seen, None, seen, 0)


def declare(world: World) -> list[Run]:
    """Runs come that declare memory, of which one alone has room; the first one is served."""
    runs = [
        world.submit(f"declares {number}", memory=6, undo=True, group=group)
        for number, group in enumerate((None, world.group, None))
    ]
    see_memory(world)
    for helper in list(world.helpers):  # all are busy, until this one's run ends
        if helper.stint is not None and helper.stint.run is world.short:
            world.come_back(helper)
    while world.started:
        world.come()
    return runs


def memory_goes_on(world: World) -> None:
    """A thread that holds memory comes back, and another run gets the room."""
    served = [run for run in declare(world) if run.begun and not run.over and run.entry.threads]
    for run in served:
        world.come_back(world.serving(run))


def holder_fails(world: World) -> None:
    served = [run for run in declare(world) if run.begun and not run.over and run.entry.threads]
    for run in served:
        world.come_back(world.serving(run), ValueError("planted"))


def cancel_what_waits_for_memory(world: World) -> None:
    for run in declare(world):
        run.cancel()
        world.apply(ending.cancel, run)


def close(world: World) -> None:
    world.apply(ending.close, None, world._waiter(0))


DEEDS: dict[str, Deed] = {
    "admit": admit,
    "admit awaited": admit_awaited,
    "admit called": admit_called,
    "cancel": cancel,
    "lesson read": lesson_read,
    "wait no longer": wait_no_longer,
    "cancel unread": cancel_unread,
    "cancel what is served": cancel_what_is_served,
    "add waiter": lambda world: world.wait(world.awaited, -7) and None,
    "remove waiter": remove_waiter,
    "find blocked": lambda world: find_blocked(world) and None,
    "blocked ends": blocked_ends,
    "wait for call": wait_for_call,
    "leave": lambda world: leave(world, cancels=False),
    "leave and cancel": lambda world: leave(world, cancels=True),
    "stay": stay,
    "give up": give_up,
    "left behind": left_behind,
    "expire": expire,
    "look again": look_again,
    "expire waiting": expire_waiting,
    "expire before it came": expire_before_it_came,
    "expire in lane": expire_in_lane,
    "cancel group": lambda world: world.apply(ending.cancel_group, None, world.group),
    "renice": renice,
    "limit": limit,
    "group cap": group_cap,
    "cap": cap,
    "base nice": lambda world: world.apply(following.follow_nice, None, 2, False),
    "sampled": sampled,
    "walked": lambda world: world.come_back(world.serving(world.awaited)),
    "raised": lambda world: world.come_back(world.serving(world.awaited), ValueError("planted")),
    "ends": lambda world: world.come_back(world.serving(world.short)),
    "goes on elsewhere": goes_on_elsewhere,
    "walked as caller": walked_as_caller,
    "raised as caller": raised_as_caller,
    "left as caller": left_as_caller,
    "went as caller": went_as_caller,
    "relay": lambda world: world.apply(helpers.relay, None),
    "not started": not_started,
    "initializer failed": initializer_failed,
    "start again": start_again,
    "other initializer": other_initializer,
    "limit anew": lambda world: world.apply(following.limit_anew, None),
    "grow": lambda world: world.grow(9),
    "grow and close": lambda world: world.grow(9, closed=True),
    "share out": share_out,
    "units are walked": lambda world: world.come_back(world.serving(world.stream)),
    "admit with guest": admit_with_guest,
    "guest comes": lambda world: world.apply(callers.enter_guest, world.stream, world.guest),
    "guest goes": guest_goes,
    "stream is cancelled": stream_is_cancelled,
    "see memory": see_memory,
    "declare memory": lambda world: declare(world) and None,
    "memory goes on": memory_goes_on,
    "who holds memory fails": holder_fails,
    "cancel what waits for memory": cancel_what_waits_for_memory,
    "close": close,
}


def check(world: World) -> None:
    """What must hold after any deed, struck or not."""
    state = world.state
    before = world.counts()
    recovery.rebuild(state)
    assert world.counts() == before, "nothing is counted that does not stand with runs and stints"
    world.apply(recovery.find_unattended, None)  # as the keeper does every 0.1 s
    for run in world.runs:  # and this, some looks later
        run.submitted_at = 0
    world.apply(admission.wait_no_longer, None)
    world.apply(growing.share_out, None)
    see_memory(world)
    world.apply(growing.caller_goes, world.stream, world.guest)
    world.grow(0, closed=True)
    world.finish()
    assert not state.runs
    assert not state.serving
    unwoken = [each for each in world.waiters if each not in world.woken]
    assert not unwoken
    leaver = world.leaver
    assert leaver.waits_no_more or leaver.waiter not in world.waiters
    assert not world.group.leavers
    assert not len(world.pool.deadlines), "nothing is due of what is over"
    assert len(world.group.gate) == len(state.root.gate) == 0
    assert all(run.over or run.phase is Phase.DONE for run in world.runs)
    for run in world.runs:
        if run.decided is Decision.SUCCESS:
            size = run.size if run is not world.stream else world.growth.stop
            assert sorted(world.walked[run]) == list(range(size)), f"{run} left something out"
    assert (state.scheduler.running, state.scheduler.background) == (0, 0)
    assert state.scheduler.blocked == 0
    assert not state.waiting
    assert not state.waits
    assert not state.loans._waiting
    assert not state.starting
    assert not world.started
    assert set(state.idle) == set(state.helpers)
    if state.closing:
        return
    later = world.submit("later")
    world.finish()
    assert later.over
    assert later.error is None
    assert later.done_units == later.size


@AT_LINES
@pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)
def test_a_command_struck_at_any_line_harms_its_run_at_most(
    deed: Deed, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = 0
    failures = []
    while True:
        world = World(monkeypatch)
        with monkeypatch.context() as patch:
            strike = Strike(patch, line)
            deed(world)
        try:
            check(world)
        except AssertionError as error:
            failures.append((strike.struck, str(error).splitlines()[:12]))
        if strike.struck is None:
            break
        line += step
    assert line > 3
    assert not failures, "\n".join(f"{where}: {what}" for where, what in failures)
