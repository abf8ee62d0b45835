# SPDX-License-Identifier: MIT
# The pool: the threads, around one State and its lock.
#
# Each method changes the state under the lock and then, the lock being free, sends what that has to
# say. A helper that delivers a result has before that declared itself idle, or taken its next work.
# Relies on locks only, never on the GIL.
"""The helper threads of a process and the work they share."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from time import perf_counter_ns, thread_time_ns
from types import TracebackType
from typing import Any, NoReturn

from aioktask.engine import events
from aioktask.engine.helpers import (
    NAME,
    Caller,
    Helper,
    Keeper,
    ThreadWaiter,
    name_this_thread,
    start_blocked,
)
from aioktask.engine.priority import process_nice
from aioktask.engine.state.dispatch import Outbox, RunGroup, State
from aioktask.engine.state.run import Phase, Run, Waiter
from aioktask.engine.state.stint import Frame, local
from aioktask.engine.threads.adapt import Surroundings, cap_of
from aioktask.engine.topology import Topology
from aioktask.engine.tunables import Tunables
from aioktask.job import Report

# A helper with nothing to do ends after this many seconds.
IDLE_SECONDS = 10.0

# A stretch lasts about 0.1 ms. Where an idle thread still sees several chunks of one waiting after
# this time, chunks became slow in the middle of it, and the idle thread asks for a share.
HUNGRY_SECONDS = 0.001
HUNGRY_SECONDS_MOST = 0.016

# The main thread looks this often, while it waits, whether a signal came.
SIGNAL_SECONDS = 1.0

EXIT_NOTICE_SECONDS = 5.0

EXIT_STATUS_OF_FORK = 70  # EX_SOFTWARE


class Pool:
    """All runs and helpers of a process. One exists in a process; a fork's child makes its own."""

    def __init__(self, topology: Topology, tunables: Tunables) -> None:
        self.lock = threading.Lock()  # guards `state`, and all runs, frames and groups
        self.state = State(cap_of(topology, tunables).threads)
        self.signals = self.state.signals
        self.keeper = Keeper()
        self.dead = False  # whether this is a fork's child, which owns none of it
        self.around = Surroundings(self, topology, tunables)

    def __repr__(self) -> str:
        return f"<Pool {self.state}>"

    def send(self, outbox: Outbox) -> None:
        outbox.dropped.clear()
        # Before anybody is woken, who might tell of what comes after.
        if outbox.events:
            for context, event in outbox.events:
                context.run(events.emit, event)
            outbox.events.clear()
        if outbox.renices:
            self.around.set_nices(outbox)
        for parking in outbox.parkings:
            parking.open()
        if outbox.starts and not self.around.watching:
            self.around.watch()
        for _ in range(outbox.starts):
            try:
                self.keeper.soon(self._start_helper)
            except RuntimeError as error:
                self._not_started(error)
        for waiter in outbox.waiters:
            waiter.wake()
        for run in outbox.undos:
            assert run.loop is not None
            run.loop.start_undo(run)
        outbox.waiters.clear()
        outbox.undos.clear()

    # What is asked for, on any thread.

    def submit(
        self,
        run: Run,
        *,
        waiter: Waiter | None = None,
        caller: Caller | None = None,
        nested: bool = False,
    ) -> None:
        """Take a run in; see `State.submit`."""
        outbox = Outbox()
        with self.lock:
            if waiter is not None:
                run.waiters.append(waiter)
            self.state.submit(run, caller, nested=nested, outbox=outbox)
        self.send(outbox)
        if not self.around.watching and not run.over:
            self.around.watch()

    def cancel(self, run: Run) -> bool:
        """End a run; whether that came in time, also when it was cancelled before."""
        outbox = Outbox()
        with self.lock:
            in_time = self.state.cancel(run, outbox)
        self.send(outbox)
        return in_time

    def cancel_soon(self, run: Run) -> None:
        """`cancel` from a finalizer or signal handler."""

        def cancel() -> None:
            self.cancel(run)

        self.keeper.soon(cancel)

    def commit(self, run: Run) -> bool:
        """Take the result of a run that is held; False when it is not there (yet, or any more)."""
        outbox = Outbox()
        with self.lock:
            over = self.state.commit(run, outbox)
        self.send(outbox)
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
        outbox = Outbox()
        with self.lock:
            if run.over:
                return False
            if watches:
                run.watchers.append(waiter)
            else:
                self.state.add_waiter(run, waiter, outbox)
        self.send(outbox)
        return True

    def remove_waiter(self, run: Run, waiter: Waiter) -> None:
        outbox = Outbox()
        with self.lock:
            self.state.remove_waiter(run, waiter, outbox)
        self.send(outbox)

    def begin_wait(self, waiting: Run, awaited: Run, *, detect: bool) -> None:
        """A chunk of `waiting` is about to wait for `awaited`; see `State.begin_wait`."""
        outbox = Outbox()
        with self.lock:
            self.state.begin_wait(waiting, awaited, detect=detect, outbox=outbox)
        self.send(outbox)

    def end_wait(self, waiting: Run, awaited: Run, *, detect: bool) -> None:
        outbox = Outbox()
        with self.lock:
            self.state.end_wait(waiting, awaited, detect=detect, outbox=outbox)
        self.send(outbox)

    def renice(self, run: Run, nice: int) -> None:
        """Another nice for a run, whatever it does now; see `State.renice`."""
        outbox = Outbox()
        with self.lock:
            if not run.over:
                group = run.entry.group
                assert isinstance(group, RunGroup)
                gives_way = self.around.gives_way(nice, group)
                self.state.renice(run, nice, gives_way=gives_way, outbox=outbox)
            run.entry.nice = nice
        self.send(outbox)

    def set_run_limit(self, run: Run, limit: int) -> None:
        with self.lock:
            run.limit = limit
            self.state.scheduler.set_limit(run.entry, min(limit, run.threads_learned))
        self._limit_moved()

    def _limit_moved(self) -> None:
        outbox = Outbox()
        with self.lock:
            self.signals.generation += 1
            self.state.summon(perf_counter_ns(), outbox)
        self.send(outbox)

    def shut(self, group: RunGroup, *, cancel: bool) -> list[Run]:
        """Close a group, cancel its runs if asked to, and name those that are not over."""
        outbox = Outbox()
        with self.lock:
            group.closed = True
            if cancel:
                for run in list(group.runs):
                    self.state.cancel(run, outbox)
            left = list(group.runs)
        self.send(outbox)
        return left

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
            self.state.update(run, outbox)
        self.send(outbox)

    # The turn of a thread that serves a run.

    def serve(self, frame: Frame) -> Frame | None:
        """Walk stretches of the frame's run until its thread should do something else: return that.

        A helper that is idle from now on gets None, although somebody may have given it work since.
        """
        outer = frame.outer = local.frame
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
                following = self._raised(frame, raised) if raised else self._walked(frame, position)
                if following is not frame:
                    return following
        finally:
            local.frame = outer
            frame.outer = None

    def _walked(self, frame: Frame, position: int) -> Frame | None:
        now = perf_counter_ns()
        with self.lock:
            if self.dead:
                _end_child(frame)
            if self.state.walked(frame, position, now):
                return frame
            outbox = Outbox()
            following = self._reconsider(frame, now, outbox)
        self.send(outbox)
        return following

    def _reconsider(self, frame: Frame, now: int, outbox: Outbox) -> Frame | None:
        """Choose again, and where it is the same job go on with it in the way that is wanted now.

        In another job the helper begins anew: see `_begin`.
        """
        following = self.state.reconsider(frame, now, outbox)
        helper = frame.thread
        if following is frame and isinstance(helper, Helper) and not self.around.fit(helper):
            self.state.refused(helper, outbox)
            return None
        return following

    def _raised(self, frame: Frame, raised: list[BaseException]) -> Frame | None:
        # Taken out of the list, so that nothing on this thread's stack refers to the exception, and
        # by its traceback to the caller's memory, when the waiter wakes.
        error = raised.pop()
        now = perf_counter_ns()
        error.with_traceback(_beyond_engine(error.__traceback__))  # an attribute may be refused
        outbox = Outbox()
        with self.lock:
            if self.dead:
                _end_child(frame)
            self.state.raised(frame, error, now)
            del error
            following = self._reconsider(frame, now, outbox)
        self.send(outbox)
        return following

    def _merge(self, frame: Frame) -> None:
        """Bring the values of the frame's stretch into the tree; `reduce` runs outside the lock."""
        run = frame.run
        reduce, tree = run.job.reduce, run.tree
        assert reduce is not None
        assert tree is not None
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

    def take_part(self, run: Run, caller: Caller, *, given_up: Callable[[], bool]) -> None:
        """On the calling thread of the sync form: serve the run until it is over or settled."""
        try:
            self._take_part(run, caller, given_up)
        finally:
            outbox = Outbox()
            with self.lock:
                run.caller = None
                if caller.frame is not None:  # it left before it served what it had claimed
                    self.state.abandon(caller, perf_counter_ns(), outbox)
            self.send(outbox)

    def _take_part(self, run: Run, caller: Caller, given_up: Callable[[], bool]) -> None:
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
                if self.state.enter_caller(run, caller, perf_counter_ns()):
                    continue
                run.caller = caller
                if caller not in run.waiters:  # a run that settled has woken, and forgot, them all
                    run.waiters.append(caller)
                slow = self.state.several_chunks_wait()
            if not self.wait_parked(caller, pause if slow else -1):
                pause = min(pause * 2, HUNGRY_SECONDS_MOST)
                self._ask_for_share()

    def wait_parked(self, waiter: Caller | ThreadWaiter, timeout: float) -> bool:
        """Wait until woken. No lock is held here, so a signal handler may raise through it."""
        if threading.get_ident() == threading.main_thread().ident:
            # A signal between the interpreter's last look for one and the system call that waits
            # interrupts nothing, and its handler would wait as long as we do.
            while timeout < 0 or timeout > SIGNAL_SECONDS:
                if waiter.parking.wait(SIGNAL_SECONDS):
                    return True
                timeout = max(timeout - SIGNAL_SECONDS, 0) if timeout >= 0 else timeout
        return waiter.parking.wait(timeout)

    def _ask_for_share(self) -> bool:
        """Where a stretch outlasted its time, have the rest given back at the next chunk."""
        with self.lock:
            slow = self.state.several_chunks_wait()
            if slow:
                self.signals.generation += 1
        return slow

    # The life of a helper thread.

    def _start_helper(self) -> None:
        """On the keeper."""
        helper, topology = Helper(process_nice()), self.around.topology
        try:
            helper.thread = start_blocked(lambda: self._help(helper, topology), NAME)
        except RuntimeError as error:  # the system has no more threads for us
            self._not_started(error)

    def _not_started(self, error: RuntimeError) -> None:
        outbox = Outbox()
        with self.lock:
            self.state.not_started(error, outbox)
        self.send(outbox)

    def _help(self, helper: Helper, topology: Topology) -> None:
        state = self.state
        helper.native = threading.get_native_id()
        outbox = Outbox()
        with self.lock:
            state.starting -= 1
            if state.closing and not state.runs:
                return
            state.no_more_threads = False
            state.helpers[helper] = None
            if self.around.topology is not topology:  # it changed since the keeper began
                self.around.bind(helper)
            now = perf_counter_ns()
            state.find_work(helper, now, outbox)
            state.summon(now, outbox)
        self.send(outbox)
        while True:
            while (frame := self._begin(helper)) is not None:
                name_this_thread(frame.run.name)
                frame.context.run(self.serve, frame)
            if not self._stay(helper):
                return
            if helper.relays:
                helper.relays = False
                outbox = Outbox()
                with self.lock:
                    state.summon(perf_counter_ns(), outbox)
                self.send(outbox)

    def _begin(self, helper: Helper) -> Frame | None:
        """What the helper serves from this moment on, so that it cannot be recalled any more."""
        outbox = Outbox()
        with self.lock:
            helper.called = False
            if self.around.fit(helper):
                return helper.frame
            self.state.refused(helper, outbox)
        self.send(outbox)
        return None

    def _stay(self, helper: Helper) -> bool:
        """Wait, idle, until there is work; False when the helper should end."""
        if helper.parking.wait(HUNGRY_SECONDS):
            return not helper.ends
        name_this_thread(NAME)  # late, since the next job is often of the same name
        pause = HUNGRY_SECONDS
        while True:
            hungry = helper.idle and self._ask_for_share()
            if helper.parking.wait(pause if hungry else IDLE_SECONDS):
                return not helper.ends
            pause = min(pause * 2, HUNGRY_SECONDS_MOST)
            if not hungry:
                with self.lock:
                    if helper.idle:  # else it gets work at this very moment, and the parking opens
                        helper.idle = False
                        self.state.idle.remove(helper)
                        del self.state.helpers[helper]
                        return False

    def close(self) -> None:
        """Stop every job, undo, and end every helper. For the exit of the interpreter."""
        state = self.state
        ended = ThreadWaiter(0)
        outbox = Outbox()
        with self.lock:
            state.closing = True
            state.all_over = ended
            for run in list(state.runs):
                state.cancel(run, outbox)
            left = list(state.runs)
        self.send(outbox)
        for run in left:
            if run.undo_task is not None:
                run.undo_task.rescue()
        if left and not ended.parking.wait(EXIT_NOTICE_SECONDS):
            with self.lock:
                names = ", ".join(repr(run.name) for run in state.runs)
            print(f"aioktask: exit waits for the jobs {names}", file=sys.stderr, flush=True)
            ended.parking.wait()
        self.keeper.stop()
        self.around.lookout.close()
        with self.lock:
            helpers = list(state.helpers)
            while state.idle:
                helper = state.idle.popleft()
                helper.idle = False
                helper.ends = True
                helper.parking.open()
        for helper in helpers:
            if helper.thread is not None:
                helper.thread.join()


def _end_child(frame: Frame) -> NoReturn:
    """A chunk forked, and returned in the child: that has no part in the parent's job."""
    os.write(
        2,
        f"aioktask: a chunk of the job {frame.run.name!r} forked and returned in the child "
        f"process {os.getpid()}, which ends here\n".encode(),
    )
    os._exit(EXIT_STATUS_OF_FORK)


def _beyond_engine(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without the engine's own frames, which hold what the job should let go of."""
    while trace is not None and trace.tb_frame.f_code.co_filename in _OWN_FILES:
        trace = trace.tb_next
    return trace


_OWN_FILES = frozenset((__file__, sys.modules[Frame.__module__].__file__))
