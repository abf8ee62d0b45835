# SPDX-License-Identifier: MIT
# Threads that run one at a time, a line of the pool's code after the other, as a test says.
#
# The code is the real one: the pool, its helpers and its keeper. What they wait on is replaced, so
# that the stage knows who waits: the pool's lock, and parkings. A thread that waits with a timeout
# goes on when it is woken, or when the test says that the time passed.
"""A pool whose threads are stepped."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from types import FrameType
from typing import Any

import pytest

from aioktask import Job
from aioktask.engine.machine.topology import read_topology
from aioktask.engine.state import lane, workers
from aioktask.engine.state.current import local
from aioktask.engine.state.group import RunGroup
from aioktask.engine.state.lending import nice_of
from aioktask.engine.state.run import Run
from aioktask.engine.state.workers import Helper, ThreadWaiter
from aioktask.engine.threads import helper, keeper, pool
from aioktask.engine.threads.pool import Pool
from aioktask.engine.tunables import Tunables

ALL = sys.maxsize  # lines

# Nobody takes so long for a line.
STUCK_SECONDS = 60

TOPOLOGY = read_topology()

STEPPED = {module.__file__ for module in (pool, helper, keeper, lane)}


class Actor:
    """One thread of the stage.

    Attributes:
        until: What it waits for; None while it does not.
        in_time: Whether it waits with a timeout.
        left: How many lines it may run before it stops again.
    """

    def __init__(self, stage: Stage, target: Callable[[], object], name: str) -> None:
        self.stage = stage
        self.name = name
        self.target = target
        self.until: Callable[[], bool] | None = None
        self.in_time = False
        self.left = 0
        self.done = False
        self.raised: BaseException | None = None
        self.go = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def __repr__(self) -> str:
        return self.name

    @property
    def ready(self) -> bool:
        return not self.done and (self.until is None or self.until())

    def _run(self) -> None:
        self.stage.me.actor = self
        self.go.acquire()
        sys.settrace(self._trace)
        try:
            self.target()
        except BaseException as error:
            self.raised = error
        finally:
            sys.settrace(None)
            self.done = True
            self.stage.back.release()

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in STEPPED:
            return None
        if event == "line":
            self.left -= 1
            if self.left < 0:
                self.stop()
        return self._trace

    def stop(self) -> None:
        """Give the stage back; go on when this is stepped again."""
        self.stage.back.release()
        self.go.acquire()

    def wait(self, until: Callable[[], bool], *, in_time: bool) -> None:
        self.until, self.in_time = until, in_time
        self.stop()
        self.until = None


class Stage:
    """The threads of one pool, and whose turn it is to run.

    Attributes:
        pool: The pool.
        actors: All that were ever there.
    """

    def __init__(self, patch: pytest.MonkeyPatch, *, cap: int = 2, gil: bool = True) -> None:
        self.back = threading.Semaphore(0)
        self.me = threading.local()
        self.actors: list[Actor] = []
        patch.setattr(workers, "Parking", lambda: SteppedParking(self))
        patch.setattr(keeper, "Parking", lambda: SteppedParking(self))
        patch.setattr(helper, "start_thread", self.spawn)
        patch.setattr(keeper, "start_thread", self.spawn)
        self.pool = Pool(TOPOLOGY, Tunables(max_threads=cap, learn="nothing"))
        self.pool.lock = SteppedLock(self)  # type: ignore[assignment]
        self.pool._may_skip_wake = gil
        patch.setattr(self.pool, "look_around", lambda: False)
        patch.setattr(self.pool.adapter, "_set_nice", self._set_nice)
        patch.setattr(self.pool.adapter, "bind", lambda helper: None)

    def _set_nice(self, helper: Helper) -> bool:
        helper.nice = nice_of(self.pool.state, helper)
        return True

    def actor(self) -> Actor:
        """Of the calling thread."""
        actor: Actor = self.me.actor
        return actor

    def spawn(self, target: Callable[[], object], name: str) -> Actor:
        actor = Actor(self, target, f"{name} {len(self.actors)}")
        self.actors.append(actor)
        return actor

    def step(self, actor: Actor, lines: int) -> int:
        """Have it run so many lines, or until it waits or ends.

        Returns:
            How many of the lines are left; -1 where it could go on.
        """
        actor.left = lines
        actor.go.release()
        assert self.back.acquire(timeout=STUCK_SECONDS), f"{actor} is stuck"
        return actor.left

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Have the calling thread wait for it."""
        if not done():
            self.actor().wait(done, in_time=False)

    def ready(self) -> list[Actor]:
        return [each for each in self.actors if each.ready]

    def impatient(self) -> list[Actor]:
        """Helpers that wait, whose time could pass; the keeper's never does: nothing needs it."""
        return [
            each
            for each in self.actors
            if not each.done and each.until is not None and each.in_time and not each.until()
        ]

    def run_on(self) -> None:
        """Have everybody run, in turn, until all wait or have ended."""
        while ready := self.ready():
            for actor in ready:
                if actor.ready:
                    self.step(actor, ALL)

    def end(self) -> None:
        """Have the pool's own threads end."""
        self.pool.keeper._stops = True
        self.pool.keeper._parking.unpark()
        for each in list(self.pool.state.helpers):
            each.ends = True
            each.parking.unpark()
        self.run_on()
        assert all(actor.done for actor in self.actors)
        for actor in self.actors:
            actor.thread.join(STUCK_SECONDS)


class SteppedLock:
    """A lock of which the stage knows who waits for it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._held = False

    def acquire(self, blocking: bool = True) -> bool:
        while self._held:
            if not blocking:
                return False
            self._stage.actor().wait(lambda: not self._held, in_time=False)
        self._held = True
        return True

    def release(self) -> None:
        assert self._held
        self._held = False

    def locked(self) -> bool:
        return self._held

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


class SteppedParking:
    """A parking of which the stage knows who waits for it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._open = False

    def wait(self, timeout: float = -1) -> bool:
        if not self._open and timeout != 0:
            actor = self._stage.actor()
            member = self._member()
            in_time = timeout > 0 and "keeper" not in threading.current_thread().name
            actor.wait(lambda: self._open, in_time=in_time or member is not None)
            if member is not None and not self._open:  # as if the keeper had looked for long
                member.looks = sys.maxsize
        was_open, self._open = self._open, False
        return was_open

    def _member(self) -> Helper | None:
        """Whose parking this is, if it waits as a member of the lane."""
        helpers = list(self._stage.pool.state.helpers)
        return next((each for each in helpers if each.parking is self and each.in_lane), None)

    def unpark(self) -> None:
        self._open = True


@contextmanager
def staged(*, cap: int = 2, gil: bool = True) -> Iterator[Stage]:
    """A stage for one play, whose threads end with it."""
    with pytest.MonkeyPatch.context() as patch:
        stage = Stage(patch, cap=cap, gil=gil)
        yield stage
        stage.end()


class Play:
    """One job on a stage: what was done of it, and how it ended.

    Attributes:
        done: How often `fn` was called for each unit, and `undo`.
        accepted: Whether it was taken in; None before that is known.
        in_time: What `cancel` said, if it was asked.
        outcome: What its owner got.
    """

    def __init__(
        self,
        stage: Stage,
        size: int = 2,
        *,
        group: RunGroup | None = None,
        fails: bool = False,
        undo: bool = False,
        max_threads: int | None = None,
        before: Callable[[int], object] | None = None,
    ) -> None:
        self.stage = stage
        self.done = [0] * size
        self.undone = [0] * size
        self.accepted: bool | None = None
        self.in_time: bool | None = None
        self.outcome: object = None
        self.has_undo = undo
        self._fails = fails
        self._before = before
        reverse = self._undo if undo else None
        job = Job(self._fn, size, chunk=1, undo=reverse, max_threads=max_threads)
        self.run = Run(
            job,
            group or stage.pool.state.root,
            nice=0,
            context=copy_context(),
            owned=True,
        )

    def _fn(self, start: int, stop: int) -> None:
        if self._before is not None:
            self._before(start)
        if self._fails and stop == len(self.done):
            raise ValueError("planted")
        for unit in range(start, stop):
            self.done[unit] += 1

    def _undo(self, start: int, stop: int) -> None:
        for unit in range(start, stop):
            self.undone[unit] += 1

    def submit(self, waiter: ThreadWaiter | None = None) -> bool:
        assert not local.inside
        try:
            self.stage.pool.submit(self.run, waiter=waiter)
        except RuntimeError:
            self.accepted = False
            return False
        self.accepted = True
        return True

    def own(self) -> None:
        """Submit it and take its result, as a task of a loop does."""
        pool, run = self.stage.pool, self.run
        waiter = ThreadWaiter(0)
        assert run.attended is not None
        with run.attended:
            if not self.submit(waiter):
                return
            waiter.parking.wait()
            while not pool.commit(run):
                if not (run.over or run.settled):
                    waiter.parking.wait()
                # A call asks again and again while a cancel that came in time is on its way.
                self.stage.wait_until(lambda: run.over or not run.cancel_asked or not run.settled)
        try:
            self.outcome = run.result()
        except BaseException as error:
            self.outcome = error

    def cancel(self) -> None:
        self.in_time = self.stage.pool.cancel(self.run)
