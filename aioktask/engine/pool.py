# SPDX-License-Identifier: MIT
# The pool: all runs and all helpers of this process, under one lock.
#
# Guarantees: a helper that would find work is never left idle (every change under the lock that makes work
# ends in `_summon`, which gives it to idle helpers or starts some; those wake the next); events and
# wake-ups are sent outside the lock, after the helper that sends them has declared itself idle or taken
# its next job; nobody's code runs under the lock.
# Relies on locks only, never on the GIL.
"""Runs and the helpers that serve them."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context
from time import perf_counter_ns, thread_time_ns
from types import TracebackType
from typing import Any, NoReturn

from aioktask.engine import events
from aioktask.engine.frame import Frame, Signals, local
from aioktask.engine.helpers import (
    NAME,
    Caller,
    Helper,
    Keeper,
    ThreadWaiter,
    name_this_thread,
    start_blocked,
)
from aioktask.engine.limits import Cap
from aioktask.engine.run import Phase, Run, Waiter
from aioktask.engine.schedule import SLICE_NS, Group, Scheduler
from aioktask.errors import DeadlockError
from aioktask.job import Report

# How many helpers are woken at once; each that arrives wakes as many again.
SUMMON_AHEAD = 2

# A helper with nothing to do ends after this many seconds.
IDLE_SECONDS = 10.0

# A stretch lasts about 0.1 ms. Where an idle helper still sees several chunks of one waiting after this
# time, chunks became slow in the middle of it, and the idle helper asks for a share.
HUNGRY_SECONDS = 0.001
HUNGRY_SECONDS_MOST = 0.016

EXIT_NOTICE_SECONDS = 5.0

EXIT_STATUS_OF_FORK = 70  # EX_SOFTWARE


class RunGroup(Group):
    """The runs of one coordinator.

    Attributes:
        runs: Those that are not over.
        closed: Whether nothing more may be submitted.
        undo_failed: Runs whose undo failed while nobody waited for them.
    """

    __slots__ = ("closed", "runs", "undo_failed")

    def __init__(self, cap: int | None = None) -> None:
        super().__init__(cap)
        self.runs: dict[Run, None] = {}
        self.closed = False
        self.undo_failed: list[Run] = []


class Outbox:
    """What a change under the lock has to say; sent when the lock is free again."""

    __slots__ = ("_events", "_undo", "_waiters")

    def __init__(self) -> None:
        self._events: list[tuple[Context, events.Event]] = []
        self._waiters: list[Waiter] = []
        self._undo: list[Run] = []

    def add(self, run: Run) -> None:
        """Take what the run has to tell: in the context of who submitted it."""
        if run.news:
            context = run.context.copy()
            self._events += ((context, event) for event in run.news)
            run.news.clear()

    def wake(self, run: Run) -> None:
        self._waiters += run.waiters
        self._waiters += run.watchers
        run.waiters.clear()
        run.watchers.clear()

    def start_undo(self, run: Run) -> None:
        self._undo.append(run)

    def send(self) -> None:
        if self._events:
            for context, event in self._events:
                context.run(events.emit, event)
            self._events.clear()
        for waiter in self._waiters:
            waiter.wake()
        for run in self._undo:
            assert run.loop is not None
            run.loop.start_undo(run)


class Pool:
    """All runs and helpers of a process. One exists in a process; a fork's child makes its own."""

    def __init__(self, cap: Cap) -> None:
        self.cap = cap
        # Guards everything below, and all state of runs, frames, groups and the scheduler.
        self.lock = threading.Lock()
        self.signals = Signals()
        self.keeper = Keeper()
        self.dead = False  # whether this is a fork's child, which owns none of it
        self.root = RunGroup()  # of jobs without a coordinator
        self._scheduler = Scheduler(cap.threads)
        self._runs: dict[Run, None] = {}
        self._numbers = 0
        self._serving: dict[Frame, None] = {}
        self._waits: dict[Run, list[Run]] = {}  # in a chunk of the key somebody waits for these
        self._helpers: dict[Helper, None] = {}
        self._idle: deque[Helper] = deque()
        self._starting = 0  # helpers that are being started
        self._closing = False
        self._ended: ThreadWaiter | None = None  # of `close`

    def __repr__(self) -> str:
        return (
            f"<Pool {len(self._helpers)} helpers, {len(self._idle)} idle, "
            f"{self._starting} starting; {self._scheduler}; {list(self._runs)}>"
        )

    # What the coordinator asks for, on any thread.

    def submit(
        self,
        run: Run,
        *,
        waiter: Waiter | None = None,
        caller: Caller | None = None,
        nested: bool = False,
    ) -> None:
        """Take a run in. A `caller` begins to serve it at once, if there is anything to claim.

        Raises:
            RuntimeError: The coordinator, or the process, takes no more jobs.
        """
        outbox = Outbox()
        now = perf_counter_ns()
        with self.lock:
            group = run.entry.group
            assert isinstance(group, RunGroup)
            if not nested:
                self._check_open(group)
            self._numbers += 1
            run.submitted(self._numbers)
            self._runs[run] = None
            group.runs[run] = None
            if waiter is not None:
                run.waiters.append(waiter)
            self._scheduler.add(run.entry)
            if run.claims.left:
                self._scheduler.set_ready(run.entry)
                self.signals.generation += 1
                if caller is not None:
                    self._enter_caller(run, caller, now)
                self._summon(now, outbox)
            else:
                self._update(run, outbox)
            if run.news:
                outbox.add(run)
        outbox.send()

    def _check_open(self, group: RunGroup) -> None:
        if self._closing:
            raise RuntimeError("the interpreter is exiting: no job can be submitted")
        if group.closed:
            raise RuntimeError("the coordinator was left or shut down: it takes no more jobs")

    def cancel(self, run: Run) -> bool:
        """End a run; whether that came in time, also when it was cancelled before."""
        outbox = Outbox()
        with self.lock:
            in_time = self._cancel(run, outbox)
        outbox.send()
        return in_time

    def _cancel(self, run: Run, outbox: Outbox) -> bool:
        if run.cancelled:
            return True
        if run.error is not None or run.phase not in (Phase.WORK, Phase.SETTLED):
            return False
        run.cancelled = True
        self.signals.generation += 1
        self._update(run, outbox)
        self._summon(perf_counter_ns(), outbox)
        return True

    def cancel_soon(self, run: Run) -> None:
        """`cancel` from a finalizer or signal handler."""

        def cancel() -> None:
            self.cancel(run)

        with self.lock:
            self.keeper.start()
        self.keeper.soon(cancel)

    def commit(self, run: Run) -> bool:
        """Take the result of a run that is held; False when it is not there (yet, or any more)."""
        outbox = Outbox()
        with self.lock:
            if run.phase is Phase.SETTLED:
                run.commit()
                self._end(run, outbox)
            over = run.over
        outbox.send()
        return over

    def result(self, run: Run) -> Report[Any]:
        """What a run that is over returns or raises."""
        with self.lock:
            pass  # `over` is read without the lock: wait until whoever set it is done with the rest
        return run.result()

    def add_waiter(self, run: Run, waiter: Waiter, *, watches: bool = False) -> bool:
        """Have `waiter` woken when the run is over, or perhaps sooner; False when it is over.

        One that only watches will not take the result, so does not count as somebody who is told.
        """
        with self.lock:
            if run.over:
                return False
            (run.watchers if watches else run.waiters).append(waiter)
            return True

    def remove_waiter(self, run: Run, waiter: Waiter) -> None:
        with self.lock:
            for waiters in (run.waiters, run.watchers):
                if waiter in waiters:
                    waiters.remove(waiter)

    def renice(self, run: Run, nice: int) -> None:
        with self.lock:
            self._scheduler.set_nice(run.entry, nice)
            self.signals.generation += 1

    def set_run_limit(self, run: Run, limit: int) -> None:
        with self.lock:
            run.entry.limit = limit
        self._limit_moved()

    def set_group_cap(self, group: Group, cap: int | None) -> None:
        with self.lock:
            group.cap = cap
        self._limit_moved()

    def set_cap(self, cap: Cap) -> None:
        with self.lock:
            self.cap = cap
            self._scheduler.cap = cap.threads
        self._limit_moved()

    def _limit_moved(self) -> None:
        outbox = Outbox()
        with self.lock:
            self.signals.generation += 1
            self._summon(perf_counter_ns(), outbox)
        outbox.send()

    def shut(self, group: RunGroup, *, cancel: bool) -> list[Run]:
        """Close a group, cancel its runs if asked to, and name those that are not over."""
        outbox = Outbox()
        with self.lock:
            group.closed = True
            if cancel:
                for run in list(group.runs):
                    self._cancel(run, outbox)
            left = list(group.runs)
        outbox.send()
        return left

    def begin_wait(self, waiting: Run, awaited: Run, *, detect: bool) -> None:
        """A chunk of `waiting` is about to wait until `awaited` ends, so that may have a helper more.

        Raises:
            DeadlockError: With `detect`, `awaited` waits for `waiting` already.
        """
        outbox = Outbox()
        with self.lock:
            if detect:
                cycle = self._path(awaited, waiting)
                if cycle:
                    raise DeadlockError([waiting.job.name, *(run.job.name for run in cycle[:-1])])
                self._waits.setdefault(waiting, []).append(awaited)
            self._scheduler.owe(awaited.entry, 1)
            self._summon(perf_counter_ns(), outbox)
        outbox.send()

    def end_wait(self, waiting: Run, awaited: Run, *, detect: bool) -> None:
        with self.lock:
            if detect:
                waits = self._waits[waiting]
                waits.remove(awaited)
                if not waits:
                    del self._waits[waiting]
            self._scheduler.owe(awaited.entry, -1)

    def _path(self, start: Run, goal: Run) -> list[Run]:
        """A chain of waits from start to goal, both ends included; empty when there is none."""
        came_from: dict[Run, Run | None] = {start: None}
        stack = [start]
        while stack:
            run = stack.pop()
            if run is goal:
                chain: list[Run] = []
                step: Run | None = run
                while step is not None:
                    chain.append(step)
                    step = came_from[step]
                return chain[::-1]
            for awaited in self._waits.get(run, ()):
                if awaited not in came_from:
                    came_from[awaited] = run
                    stack.append(awaited)
        return []

    # A coroutine undo, from the loop it runs on.

    def next_undo(self, run: Run) -> range | None:
        """The next piece for a coroutine undo."""
        with self.lock:
            piece = run.claims.claim(1, 1)
            return None if piece is None else range(*piece)

    def async_undo_raised(self, run: Run, piece: range, error: BaseException) -> None:
        with self.lock:
            run.async_undo_raised(piece, error)

    def async_undo_ended(self, run: Run) -> None:
        outbox = Outbox()
        with self.lock:
            run.async_undo = False
            self._update(run, outbox)
        outbox.send()

    # Under the lock: what follows from a change.

    def _update(self, run: Run, outbox: Outbox) -> None:
        """Bring a run's queueing in line with its state, and its state forward when it may."""
        while True:
            if run.claimable:
                self._scheduler.set_ready(run.entry, undoing=run.undoing)
                if run.caller is not None:
                    run.caller.wake()
                return
            self._scheduler.set_idle(run.entry)
            if run.entry.threads or run.async_undo or run.over:
                return
            if run.phase is Phase.SETTLED and not run.cancelled:
                return
            run.settle()
            if run.over:
                self._end(run, outbox)
                return
            if run.phase is Phase.SETTLED:
                outbox.add(run)
                outbox.wake(run)
                return
            self.signals.generation += 1  # an undo goes before chunks
            if run.async_undo:
                outbox.start_undo(run)
                return

    def _end(self, run: Run, outbox: Outbox) -> None:
        del self._runs[run]
        group = run.entry.group
        assert isinstance(group, RunGroup)
        del group.runs[run]
        if run.undo_failed and not run.waiters:
            group.undo_failed.append(run)
        outbox.add(run)
        outbox.wake(run)
        if self._ended is not None and not self._runs:
            self._ended.wake()

    def _enter(self, frame: Frame, now: int) -> bool:
        run = frame.run
        self._scheduler.enter(run.entry, counted=frame.counted)
        run.enter(frame, now)
        frame.slice_end = now + SLICE_NS
        self._serving[frame] = None
        return self._claim(frame, now)

    def _claim(self, frame: Frame, now: int) -> bool:
        run = frame.run
        claimed = run.claim(frame, now, self.signals.generation)
        if not run.claims.left:
            self._scheduler.set_idle(run.entry)
        return claimed

    def _leave(self, frame: Frame, now: int, outbox: Outbox) -> None:
        del self._serving[frame]
        self._scheduler.leave(frame.run.entry, now - frame.entered_at, counted=frame.counted)
        frame.run.leave(frame, now)
        frame.stack.clear()
        self._update(frame.run, outbox)

    def _find_work(self, helper: Helper, now: int, outbox: Outbox) -> None:
        """Give the helper its next frame, or count it among the idle ones."""
        entry = self._scheduler.choose()
        if entry is None:
            helper.frame = None
            helper.idle = True
            self._idle.append(helper)
            return
        self._assign(helper, entry.run, now, outbox)

    def _assign(self, helper: Helper, run: Run, now: int, outbox: Outbox) -> None:
        helper.frame = run.frame_of(helper, counted=False)
        self._enter(helper.frame, now)
        if run.news:
            outbox.add(run)

    def _enter_caller(self, run: Run, caller: Caller, now: int) -> bool:
        """Let the calling thread take part again: always, but for the job's own limit."""
        if not run.claimable or run.entry.threads >= run.entry.limit:
            return False
        caller.frame = run.frame_of(caller, counted=local.frame is not None)
        return self._enter(caller.frame, now)

    def _summon(self, now: int, outbox: Outbox) -> None:
        """Give idle helpers work, or start helpers, while there is work for them.

        An idle helper finds its first stretch claimed when it wakes. Only a few are woken here:
        waking costs the waker time, perhaps on an event loop, so each that wakes wakes as many more.
        """
        scheduler = self._scheduler
        woken: list[Helper] = []
        while (entry := scheduler.choose()) is not None:
            if len(woken) == SUMMON_AHEAD:
                for helper in woken:
                    helper.relays = True
                break
            if not self._idle:
                self._start_helpers()
                break
            helper = self._idle.popleft()
            helper.idle = False
            self._assign(helper, entry.run, now, outbox)
            woken.append(helper)
        for helper in woken:
            helper.parking.open()

    def _start_helpers(self) -> None:
        """No helper is idle and one would find work: start some."""
        wanted = self._scheduler.wanted(SUMMON_AHEAD)
        while self._starting < wanted:
            self._starting += 1
            self.keeper.start()
            self.keeper.soon(self._start_helper)

    # A frame's turn: on the thread that walks it.

    def serve(self, frame: Frame) -> Frame | None:
        """Walk stretches of the frame's run until its thread should do something else: return that.

        A helper that is idle from now on gets None, although somebody may have given it work since.
        """
        outer = local.frame
        local.frame = frame
        frame.cpu_mark = thread_time_ns()
        signals = self.signals
        raised: list[BaseException] = []
        try:
            while True:
                try:
                    if frame.run.reduces:
                        position = frame.walk_reduce(signals)
                        self._merge(frame)
                    else:
                        position = frame.walk(signals)
                except BaseException as error:
                    raised.append(error)
                if raised:
                    following = self._raised(frame, raised)
                else:
                    following = self._proceed(frame, position)
                if following is not frame:
                    return following
        finally:
            local.frame = outer

    def _proceed(self, frame: Frame, position: int) -> Frame | None:
        now = perf_counter_ns()
        with self.lock:
            if self.dead:
                self._end_child(frame)
            frame.run.walked(frame, position, now)
            if self.signals.generation == frame.generation and now < frame.slice_end:
                if self._claim(frame, now):
                    return frame
            outbox = Outbox()
            following = self._reconsider(frame, now, outbox)
        outbox.send()
        return following

    def _raised(self, frame: Frame, raised: list[BaseException]) -> Frame | None:
        # Taken out of the list, so that nothing on this thread's stack refers to the exception, and
        # by its traceback to the caller's memory, when the waiter wakes.
        error = raised.pop()
        now = perf_counter_ns()
        error.__traceback__ = _beyond_engine(error.__traceback__)
        outbox = Outbox()
        with self.lock:
            if self.dead:
                self._end_child(frame)
            if frame.reducing:
                frame.run.reduce_raised(frame, error, now)
            else:
                frame.run.chunk_raised(frame, error, now)
            del error
            self.signals.generation += 1
            following = self._reconsider(frame, now, outbox)
        outbox.send()
        return following

    def _reconsider(self, frame: Frame, now: int, outbox: Outbox) -> Frame | None:
        """Choose again what the frame's thread serves."""
        thread, run = frame.thread, frame.run
        self._leave(frame, now, outbox)
        if isinstance(thread, Helper):
            self._find_work(thread, now, outbox)
        else:
            assert isinstance(thread, Caller)
            if not self._enter_caller(run, thread, now):
                thread.frame = None
        following = thread.frame
        self._summon(now, outbox)
        return following

    def _merge(self, frame: Frame) -> None:
        """Bring the values of the frame's stretch into the tree; `reduce` runs outside the lock."""
        run = frame.run
        reduce, tree = run.job.reduce, run.tree
        assert reduce is not None and tree is not None
        frame.reducing = True
        while frame.stack:
            level, index, value = frame.stack.pop()
            while True:
                with self.lock:
                    pair = None if run.stopping else tree.offer(level, index, value)
                if pair is None:
                    break
                level, index, left, right = pair
                value = reduce(left, right)
        frame.reducing = False

    def _end_child(self, frame: Frame) -> NoReturn:
        """A chunk forked, and returned in the child: that has no part in the parent's job."""
        os.write(
            2,
            f"aioktask: a chunk of the job {frame.run.job.name!r} forked and returned in the "
            f"child process {os.getpid()}, which ends here\n".encode(),
        )
        os._exit(EXIT_STATUS_OF_FORK)

    # The calling thread of the sync form.

    def take_part(self, run: Run, caller: Caller, *, given_up: Callable[[], bool]) -> None:
        """Serve the run until it is over or settled."""
        pause = HUNGRY_SECONDS
        while not given_up():
            frame = caller.frame
            if frame is not None:
                frame.context.run(self.serve, frame)
                pause = HUNGRY_SECONDS
                continue
            with self.lock:
                if run.over or run.phase is Phase.SETTLED:
                    break
                if self._enter_caller(run, caller, perf_counter_ns()):
                    continue
                run.caller = caller
                slow = self._stretches_of_several()
            if not self.wait_parked(caller, pause if slow else -1):
                pause = min(pause * 2, HUNGRY_SECONDS_MOST)
                with self.lock:
                    if self._stretches_of_several():  # have the rest given back at the next chunk
                        self.signals.generation += 1
        with self.lock:
            run.caller = None

    def wait_parked(self, waiter: Caller | ThreadWaiter, timeout: float) -> bool:
        """Wait until woken. No lock is held here, so a signal handler may raise through it."""
        return waiter.parking.wait(timeout)

    # The helper threads.

    def _start_helper(self) -> None:
        """On the keeper: start one more helper."""
        helper = Helper()
        try:
            helper.thread = start_blocked(lambda: self._help(helper), NAME)
        except RuntimeError as error:  # the system has no more threads for us
            self._not_started(error)

    def _not_started(self, error: RuntimeError) -> None:
        """Without any helper nothing would ever run: end what waits for one."""
        outbox = Outbox()
        with self.lock:
            self._starting -= 1
            if not self._helpers and not self._starting:
                for run in list(self._runs):
                    if run.claimable and not run.entry.threads and run.caller is None:
                        run.no_helper(error)
                        self._update(run, outbox)
        outbox.send()

    def _help(self, helper: Helper) -> None:
        """The life of a helper thread."""
        outbox = Outbox()
        with self.lock:
            self._starting -= 1
            if self._closing and not self._runs:
                return
            self._helpers[helper] = None
            now = perf_counter_ns()
            self._find_work(helper, now, outbox)
            frame = helper.frame
            self._summon(now, outbox)
        outbox.send()
        while True:
            while frame is not None:
                name_this_thread(frame.run.job.name)
                frame = frame.context.run(self.serve, frame)
            if not self._stay(helper):
                return
            frame = helper.frame
            if helper.relays:
                helper.relays = False
                with self.lock:
                    self._summon(perf_counter_ns(), outbox := Outbox())
                outbox.send()

    def _stay(self, helper: Helper) -> bool:
        """Wait, idle, until there is work; False when the helper should end."""
        if helper.parking.wait(HUNGRY_SECONDS):
            return not helper.ends
        name_this_thread(NAME)  # late, since the next job is often of the same name
        pause = HUNGRY_SECONDS
        while True:
            with self.lock:
                hungry = helper.idle and self._stretches_of_several()
                if hungry:
                    self.signals.generation += 1
            if helper.parking.wait(pause if hungry else IDLE_SECONDS):
                return not helper.ends
            pause = min(pause * 2, HUNGRY_SECONDS_MOST)
            if not hungry:
                with self.lock:
                    if helper.idle:  # else it gets work at this very moment, and the parking opens
                        helper.idle = False
                        self._idle.remove(helper)
                        del self._helpers[helper]
                        return False

    def _stretches_of_several(self) -> bool:
        """Whether some thread holds chunks that it has not begun."""
        return any(
            frame.stop - frame.start > frame.run.claims.chunk
            and frame.run.entry.threads < frame.run.entry.limit
            for frame in self._serving
        )

    # Exit and fork.

    def close(self) -> None:
        """Stop every job, undo, and end every helper. For the exit of the interpreter."""
        self._ended = ended = ThreadWaiter(0)
        outbox = Outbox()
        with self.lock:
            self._closing = True
            for run in list(self._runs):
                self._cancel(run, outbox)
            left = bool(self._runs)
        outbox.send()
        if left and not ended.parking.wait(EXIT_NOTICE_SECONDS):
            with self.lock:
                names = ", ".join(repr(run.job.name) for run in self._runs)
            print(f"aioktask: exit waits for the jobs {names}", file=sys.stderr, flush=True)
            ended.parking.wait()
        self.keeper.stop()
        with self.lock:
            helpers = list(self._helpers)
            while self._idle:
                helper = self._idle.popleft()
                helper.idle = False
                helper.ends = True
                helper.parking.open()
        for helper in helpers:
            if helper.thread is not None:
                helper.thread.join()


def _beyond_engine(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without the engine's own frames, which hold what the job should let go of."""
    while trace is not None and trace.tb_frame.f_code.co_filename in _OWN_FILES:
        trace = trace.tb_next
    return trace


_OWN_FILES = frozenset((__file__, sys.modules[Frame.__module__].__file__))
