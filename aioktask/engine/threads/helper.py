# SPDX-License-Identifier: MIT
# The life of a helper: it comes, walks stretches, is idle, and goes.
#
# A helper that comes back from a stretch takes a turn, in which it applies what was posted, gives
# back what it did not walk, and claims what is next. Before it delivers a result it has declared
# itself idle, or taken its next work. An idle helper waits on its parking, and takes a turn when a
# command was posted.
"""Helper threads."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from time import perf_counter_ns
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, NoReturn

from aioktask.checks import check_done, name_of
from aioktask.engine.events import show_exception
from aioktask.engine.inherited import entered
from aioktask.engine.machine.os_threads import (
    NAME,
    cpu_time_ns,
    name_this_thread,
    process_nice,
    start_thread,
    thread_nice_now,
)
from aioktask.engine.state import admission, ending, following, growing, helpers, one_chunk
from aioktask.engine.state.current import local
from aioktask.engine.state.helpers import helper_came, helper_goes
from aioktask.engine.state.lane_turns import adopt_late
from aioktask.engine.state.one_chunk import HELPER
from aioktask.engine.state.run import Run
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.workers import Helper
from aioktask.engine.threads.keeper import WATCH_SECONDS
from aioktask.engine.tunables import PROCESS

if TYPE_CHECKING:
    from aioktask.engine.threads.pool import Pool

# A helper with nothing to do ends after this many seconds.
IDLE_SECONDS = 10.0

# A stretch lasts about 0.1 ms, or 1 to 5 ms where the chunk size is learned. Where an idle thread
# still sees several chunks of one waiting after this time, it asks for a share: chunks may have
# become slow in the middle of it.
HUNGRY_SECONDS = 0.001
HUNGRY_SECONDS_MOST = 0.016

# A member of the lane that got no job between so many looks of the keeper goes by its own name.
FEW_LOOKS = 2

# As `natives` of a helper that has not had the process limited, since it has not served yet.
NOT_YET = -1

EXIT_STATUS_OF_FORK = 70  # EX_SOFTWARE


class HelperThread:
    """One helper thread of a pool, from its start to its end."""

    __slots__ = ("_helper", "_limits", "_name", "_pool", "_state", "_topology")

    def __init__(self, pool: Pool, helper: Helper) -> None:
        self._pool = pool
        self._state = pool.state
        self._topology = pool.adapter.topology
        self._helper = helper
        self._name = NAME
        self._limits: dict[tuple[str, str], int] = {}  # see `NativeThreads.limit_thread`

    def start(self) -> None:
        """On the keeper: start the thread."""
        try:
            self._helper.nice = process_nice()
            if self._pool.look_at_natives():
                self._pool.inbox.append((following.limit_anew, None))
            start_thread(self._live, NAME)
        except BaseException as error:  # the system has no more threads for us
            self._pool.post(helpers.not_started, None, self._helper, error)

    def _live(self) -> None:
        helper, pool = self._helper, self._pool
        with helper.present:
            local.inside = True
            try:
                name_this_thread(NAME)
                helper.ident = threading.get_ident()
                helper.native = threading.get_native_id()
                nice = thread_nice_now(helper.native)
                helper.nice = process_nice() if nice is None else nice
                helper.born_nice = helper.nice
                came = self._initialize() and self._come()
            except BaseException as error:
                pool.post(helpers.not_started, None, helper, error)
                return
            while came:
                try:
                    if not self._serve_and_rest():
                        return
                except BaseException as error:
                    self._failed(error)

    def _initialize(self) -> bool:
        """Call the program's initializer, if any; False where it raised, so that this ends here.

        What it loaded is limited with the rest: helpers that start later find that there already.
        """
        helper, pool = self._helper, self._pool
        initializer = helper.initializer = self._state.tunables.initializer
        if initializer is not None:
            raised: BaseException | None = None
            try:
                local.inside = False
                check_done(initializer(), "the call", name_of(initializer), "initializer")
            except BaseException as error:
                raised = error
            local.inside = True
            name = name_of(initializer)
            if pool.dead:  # it forked, and this is the child
                end_forked(f"the initializer {name}")
            if raised is not None:
                BaseException.with_traceback(raised, beyond_engine(raised.__traceback__))
                pool.post(helpers.initializer_failed, None, helper, raised, name)
                raised = None  # no cycle with this frame
                return False
            if pool.look_at_natives():
                pool.inbox.append((following.limit_anew, None))
        self._limit_natives(serves=False)
        return True

    def _limit_natives(self, *, serves: bool = True) -> None:
        """Have the thread's native libraries follow what holds now.

        Args:
            serves: Whether the thread has work, for which the process is limited too.
        """
        helper, natives = self._helper, self._pool.natives
        # In this order: `following.configure` writes them in the other, so what changes from here
        # on is followed the next time.
        number = self._state.natives
        mode = self._state.tunables.limit_native_threads
        helper.natives = number if serves or mode != PROCESS else NOT_YET
        if mode:
            natives.limit_thread(self._limits)
        elif self._limits:
            natives.release_thread(self._limits)
        if serves and mode == PROCESS:
            natives.limit_process()

    def _come(self) -> bool:
        """Be one of the helpers; False if none is wanted any more."""
        return self._pool.take_turn(self._helper, self._has_come)

    def _has_come(self) -> bool:
        pool, helper, state = self._pool, self._helper, self._state
        try:
            came = helper_came(state, helper)
        except BaseException as error:
            pool.recover(None, error)
            came = helper in state.helpers
        if came and pool.adapter.topology is not self._topology:  # it changed since the start
            pool.adapter.bind(helper)
        pool.drain()
        return came

    def _failed(self, error: BaseException) -> None:
        """Post that an exception struck outside of the job's function and of any turn."""
        try:
            self._helper.begun = None
            self._pool.post(helpers.helper_failed, None, self._helper, error)
            self._pool.turn()
        except BaseException:
            show_exception()

    def _serve_and_rest(self) -> bool:
        """Serve while there is something to serve, then be idle; False when it should end."""
        helper, pool = self._helper, self._pool
        while (stint := self._begin()) is not None:
            self._be_named(stint.run.name)
            if helper.relays:  # it was given the work as it woke for another reason
                pool.turn_of(helper)
            elif pool.inbox:  # posted while this helper held the lock, so perhaps to it
                pool.wake()
            stint.context.run(self._serve_with_state, stint)
            del stint
        if helper.in_lane and not self._serve_lane() and self._may_end():
            return False
        if pool.inbox:
            pool.turn_of(helper)
        if helper.ends:
            return False
        if helper.stint is not None or (helper.in_lane and not pool.inbox):
            return True
        if not self._stay():
            return False
        pool.turn_of(helper)
        return True

    def _be_named(self, name: str) -> None:
        if name != self._name:
            self._name = name
            name_this_thread(name)

    def _begin(self) -> Stint | None:
        """Have the helper begin its stint, if any, which cannot be recalled then; returns it."""
        pool, helper = self._pool, self._helper
        if helper.begun is None and helper.stint is not None:  # given to it in another's turn
            pool.take_turn(helper, pool.begin, helper)
        stint, helper.begun = helper.begun, None
        if stint is not None and helper.natives != self._state.natives:
            self._limit_natives()
        return stint

    def _serve_lane(self) -> bool:
        """Serve jobs of the lane until a turn ends the membership, or a command is posted.

        Returns:
            False when no job came for long.
        """
        helper, lane, inbox = self._helper, self._state.lane, self._pool.inbox
        waiting, parked = lane.waiting, lane.parked
        if helper.express is not None:  # struck at that job, and again before that was posted
            error = RuntimeError("a helper was struck at the job that it served")
            self._pool.post(helpers.helper_failed, None, helper, error)
            return True
        while helper.in_lane and not inbox:
            try:
                run = waiting[0]
            except IndexError:
                if helper not in parked and not lane.join(helper):
                    continue
                # Without a timeout, for which the kernel would set a timer each time: the keeper
                # wakes who has waited for long.
                helper.parking.wait()
                if helper.ends:
                    break
                if helper.looks >= FEW_LOOKS:
                    self._be_named(NAME)  # late, since the next job is often of the same name
                    if helper.looks * WATCH_SECONDS >= IDLE_SECONDS:
                        return False
                continue
            if helper in parked:
                lane.step_out(helper)
            if len(waiting) > 1:
                lane.wake_one()
            # In this order: see the module of the lane.
            helper.express = run
            if not helper.in_lane:
                helper.express = None
                break
            if inbox:
                helper.express = None
                break
            if self._state.closing or not lane.may_serve(run.group):
                helper.express = None
                self._leave_to_turns(run)
                break
            claimed = run.decide_entrance(helper) is helper
            try:  # noqa: SIM105 - on the path of every short job
                waiting.remove(run)
            except ValueError:
                pass
            if claimed and not self._serve_one_chunk(run):
                break
            helper.express = None
            del run
        if not helper.in_lane:
            lane.step_out(helper)
        return True

    def _leave_to_turns(self, run: Run) -> None:
        """Have a turn take in a job that waits in the lane, which may not serve it any more."""
        pool = self._pool
        pool.inbox.append((admission.admit, run, run.lane_waiter, None, False, False))
        with contextlib.suppress(ValueError):
            self._state.lane.waiting.remove(run)

    def _serve_one_chunk(self, run: Run) -> bool:
        """Serve a job of the lane; False where that took a turn."""
        helper, pool = self._helper, self._pool
        stint = run.stint_of(helper)
        one_chunk.enter(run, stint, run.only_chunk, perf_counter_ns())
        raised: list[BaseException] = []
        position = run.job.start
        waiter = run.lane_waiter
        helper.looks = 0
        if run.may_start():
            self._be_named(run.name)
            before = cpu_time_ns()
            if run.inherited:
                with entered(run.inherited):
                    stint.context.run(self._walk_one_chunk, stint, run, raised)
            else:
                stint.context.run(self._walk_one_chunk, stint, run, raised)
            now, cpu = perf_counter_ns(), cpu_time_ns()
            if not raised:
                position = stint.stretch_stop
                state = self._state
                if one_chunk.end(run, stint, now, cpu - before, state.cap, state.past):
                    assert waiter is not None
                    lane = state.lane
                    lane.parked.append(helper)
                    history = state.history  # once: whoever looks may stop that meanwhile
                    if history is not None and not run.hold:
                        history.served(stint, run, now)
                    if run.hold:
                        lane.settled.append(run)
                        if state.closing:  # a turn may have looked there just before
                            run.cancel()
                        if run.cancel_asked:  # while it settled, so that a turn left it alone
                            pool.post(ending.cancel, run)
                    pool.wake_waiter(waiter)
                    if run.news:
                        pool.tell_of(run)
                    return True
            stint.cpu_mark, stint.cpu_now = before, cpu
        elif one_chunk.decide_ender(run, HELPER) is HELPER:  # cancelled, which ends it in a turn
            if run.over and waiter is not None:  # one that was before the run came into the lane
                pool.wake_waiter(waiter)
            return True
        self._come_back(stint, position, perf_counter_ns(), raised)
        return False

    def _walk_one_chunk(self, stint: Stint, run: Run, raised: list[BaseException]) -> None:
        local.stint = stint
        local.inside = False
        try:
            result = run.fn(stint.chunk_start, stint.stretch_stop)
            if result is not None:
                run.check_done(result)
            stint.chunk_start = stint.stretch_stop
        except BaseException as error:
            raised.append(error)
        finally:
            local.inside = True
            local.stint = None
        if self._pool.dead:
            end_child(stint)

    def _serve_with_state(self, stint: Stint) -> None:
        """Serve, the thread having what the submitting one had beside its context."""
        if not stint.run.inherited:
            self._serve(stint)
            return
        with entered(stint.run.inherited):
            self._serve(stint)

    def _serve(self, stint: Stint) -> None:
        """Walk stretches of the stint's run until the thread should do something else."""
        pool = self._pool
        outer = stint.outer = local.stint
        local.stint = stint
        stint.start_clock()
        signals = pool.signals
        raised: list[BaseException] = []
        try:
            while True:
                run = stint.run
                try:
                    local.inside = False
                    if run.sweep.tree is not None:
                        position = stint.walk_reduce(signals)
                        pool.merge(stint)
                    else:
                        position = stint.walk(signals)
                except BaseException as error:
                    # In a list, so that nothing on this thread's stack refers to it, and by its
                    # traceback to the caller's memory, when the waiter wakes.
                    raised.append(error)
                local.inside = True
                del run
                if pool.dead:  # before the lock, whose holder may not exist in this child
                    end_child(stint)
                now = perf_counter_ns()
                stint.read_clocks(signals, now)
                if not self._come_back(stint, 0 if raised else position, now, raised):
                    return
                if self._helper.natives != self._state.natives:
                    self._limit_natives()
        finally:
            local.inside = True
            local.stint = outer
            stint.outer = None

    def _come_back(
        self, stint: Stint, position: int, now: int, raised: list[BaseException]
    ) -> bool:
        """Take a turn after a stretch; whether the thread goes on with the stint.

        Args:
            stint: What was walked.
            position: Up to where.
            now: The time.
            raised: What was raised in the walk; it is taken out, so that no variable of the walk
                refers to it.
        """
        pool, helper = self._pool, self._helper
        stays = pool.take_turn(helper, self._after_walk, stint, position, now, raised)
        if pool.inbox:
            pool.turn(helper)
        return stays

    def _after_walk(
        self, stint: Stint, position: int, now: int, raised: list[BaseException]
    ) -> bool:
        pool, state, helper = self._pool, self._state, self._helper
        error = raised.pop() if raised else None
        if error is not None:
            BaseException.with_traceback(error, beyond_engine(error.__traceback__))
            state.out.dropped.append(error)
        if pool.inbox:
            pool.drain()
        run = stint.run
        try:
            return self._next(stint, position, now, error)
        except BaseException as failure:
            pool.recover(run, failure)
            if helper.stint is not None and helper.stint not in state.serving:
                helper.stint = None
                state.find_work(helper, now)
            return False
        finally:
            del run, error

    def _next(self, stint: Stint, position: int, now: int, error: BaseException | None) -> bool:
        pool, state, helper = self._pool, self._state, self._helper
        if helper.express is not None:  # it was in the lane when this turn began
            adopt_late(state, helper, now)
        if stint not in state.serving:  # its run broke down meanwhile
            helper.stint = None
            state.find_work(helper, now)
            return False
        if error is None:
            if state.walked(stint, position, now):
                return True
        else:
            state.raised(stint, error, now)
        state.reconsider(stint, now)
        pool.begin(helper)
        if helper.begun is not stint:
            return False
        helper.begun = None  # it goes on at once
        return True

    def _stay(self) -> bool:
        """Wait, idle, until woken for a command or for work; False when the helper should end."""
        helper, state = self._helper, self._state
        if helper.parking.wait(HUNGRY_SECONDS):
            return not helper.ends
        self._be_named(NAME)  # late, since the next job is often of the same name
        pause = HUNGRY_SECONDS
        while True:
            hungry = helper.idle and state.several_chunks_wait()
            if hungry:
                self._ask_for_a_share()
            if helper.parking.wait(pause if hungry else IDLE_SECONDS):
                return not helper.ends
            pause = min(pause * 2, HUNGRY_SECONDS_MOST)
            if hungry:
                continue
            if self._may_end():
                return False
            if not helper.idle:  # that turn gave it work
                return True

    def _may_end(self) -> bool:
        """Strike out the helper, which was idle for long, if it has no work; whether it may end."""
        pool = self._pool
        goes = pool.take_turn(self._helper, helper_goes, self._state, self._helper)
        # What was posted in that turn was left to this thread; so, perhaps, was what came before.
        if pool.inbox:
            pool.turn()
        return goes

    def _ask_for_a_share(self) -> None:
        """Have stretches given back, of which this idle helper may get a part."""
        pool = self._pool
        if not pool.lock.acquire(blocking=False):
            return  # a turn is at it, and this thread looks again soon
        try:
            pool.signals.change()
        finally:
            pool.lock.release()
        if self._state.growing:  # where one unit lasts, nothing comes back by itself
            pool.inbox.append((growing.share_out, None))
        if pool.inbox:
            pool.turn()


def look_at_member(helper: Helper) -> None:
    """On the keeper, at each look: wake a member of the lane that has waited for a while."""
    helper.looks += 1
    if helper.looks == FEW_LOOKS or helper.looks * WATCH_SECONDS >= IDLE_SECONDS:
        helper.parking.unpark()


def end_child(stint: Stint) -> NoReturn:
    """End a forked child in which a chunk returned: it has no part in the parent's job."""
    end_forked(f"a chunk of the job {stint.run.name!r}")


def end_forked(what: str) -> NoReturn:
    """End a forked child in which `what` returned on a thread that was a helper in the parent."""
    os.write(
        2,
        f"aioktask: {what} forked and returned in the child "
        f"process {os.getpid()}, which ends here\n".encode(),
    )
    os._exit(EXIT_STATUS_OF_FORK)


def beyond_engine(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without the engine's own frames, which hold what the job should let go of.

    The frames that are left refer to those by `f_back`; so those are cleared, unless they run. An
    exception that chunks raise on several threads has frames of all of them in its traceback, and
    without the GIL a frame that two threads clear at the same time ends the process.
    """
    while trace is not None and trace.tb_frame.f_code.co_filename in _OWN_FILES:
        _clear(trace.tb_frame)
        trace = trace.tb_next
    return trace


def _clear(frame: FrameType) -> None:
    """Clear a frame, unless it runs, or is being cleared."""
    mine = object()
    try:
        if _clearing.setdefault(id(frame), mine) is mine:
            with contextlib.suppress(RuntimeError):  # it runs
                frame.clear()
    finally:  # a signal handler may have raised at any line
        if _clearing.get(id(frame)) is mine:
            del _clearing[id(frame)]


# By what a frame is known to be cleared at present. No lock, since what is cleared may call
# anything; and no frame, so that nothing keeps one where the removal is struck.
_clearing: dict[int, object] = {}


def _forget() -> None:
    """In a fork's child. The dictionary may be locked for ever, where there is no GIL."""
    global _clearing
    _clearing = {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

_OWN_FILES = {__file__, sys.modules[Stint.__module__].__file__}
