# SPDX-License-Identifier: MIT
# The pool: one State, its lock, and the inbox of commands for it.
#
# The rule. A call from outside (submit, cancel, renice, a waiter that comes or goes, a limit) only
# posts a command and wakes a thread. The state is changed in turns, by one thread at a time: a
# helper, the keeper, or a calling thread that is neither the main thread nor a loop's. So whatever
# interrupts a caller, in whatever line, finds no lock taken by its own thread and nothing half
# done: signal handlers run in the main thread only, and what a finalizer calls while its thread
# takes a turn is posted, and found by that very turn.
#
# - A thread that finds the lock taken leaves its command to the holder, which looks into the inbox
#   once more after it let go. Helpers wait for the lock where they come, begin and come back from a
#   stretch, the keeper where it looks around, and threads that send renices; a loop's never does.
# - A thread that waits for an answer waits on its own parking, or on its loop, never on the lock.
# - What must be answered at once is decided by one step on the run or its coordinator, after the
#   command was posted; turns respect it (`Run.decide`, `Run.decide_entrance`, `RunGroup.closed`).
# - A helper announces that it is idle, then looks into the inbox, then parks. A thread that posts
#   puts the command into the inbox, then looks for an idle helper. So one of them sees the other.
# - A command is taken out before it is applied. One that fails ends the run that it is about, and
#   the turn goes on (`recovery.recover`).
# - When the lock is free, what the turn has to say is sent: the engine runs no user code while it
#   is taken, and lets go of a user's object afterwards. The interpreter may run finalizers even so,
#   of garbage and, without the GIL, of what this thread made and another one let go of: they post.
#
# Relies on the steps of `deque`, of `dict.setdefault` and of raw locks being atomic, with and
# without the GIL, and never on the GIL itself.
"""Turns, and the commands that are posted for them."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context
from functools import partial
from typing import Any, TypeVar, cast

from aioktask.engine import events
from aioktask.engine.events import EventKind, show_exception
from aioktask.engine.inherited import entered
from aioktask.engine.machine.native_threads import NativeThreads
from aioktask.engine.machine.topology import Topology
from aioktask.engine.priority import gil_is_on
from aioktask.engine.scheduling.deadlines import Deadlines
from aioktask.engine.stack import has_stack, need_stack
from aioktask.engine.state import (
    admission,
    callers,
    ending,
    following,
    growing,
    helpers,
    recovery,
)
from aioktask.engine.state.current import local
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.group import Leaver, RunGroup
from aioktask.engine.state.lane_turns import close_lane, leave_lane, settle_lane
from aioktask.engine.state.outbox import Outbox
from aioktask.engine.state.run import REFUSED, Run
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.terms import Terms
from aioktask.engine.state.workers import Caller, Helper, ThreadWaiter, Waiter
from aioktask.engine.threads.adapt import Adapter, find_cap
from aioktask.engine.threads.archive import Archive, Reading
from aioktask.engine.threads.call_watch import CallWatch
from aioktask.engine.threads.chunk_watch import ChunkWatch
from aioktask.engine.threads.helper import (
    _OWN_FILES,
    HelperThread,
    beyond_engine,
    end_child,
    look_at_member,
)
from aioktask.engine.threads.keeper import Keeper
from aioktask.engine.threads.loop_watch import LoopWatch
from aioktask.engine.tunables import PROCESS, Tunables
from aioktask.errors import CoordinatorClosed, Overloaded

T = TypeVar("T")

# The main thread looks this often, while it waits, whether a signal came.
SIGNAL_SECONDS = 1.0

EXIT_NOTICE_SECONDS = 5.0
# How often exit looks whether the threads that it waits for are gone, and how long it waits for
# threads to end.
EXIT_LOOK_SECONDS = 0.1
EXIT_THREADS_SECONDS = 2.0

# How many commands a turn applies at most: after about a millisecond waiters are woken, and a loop
# that wants the GIL can have it.
COMMANDS_A_TURN = 32

# How many turns a thread takes in a row, at most.
MOST_TURNS = 8

# How many calls deep a turn may go.
TURN_DEPTH = 60

# After so many looks of the keeper at which nothing was to be done, native threads are given back.
QUIET_LOOKS = 2

# How often something is tried again that failed for want of memory.
TRIES = 3


class Pool:
    """All runs and helpers of a process. One exists in a process; a fork's child makes its own.

    Attributes:
        lock: Held by the thread that takes a turn. Helpers, the keeper and threads that send
            renices wait for it; all others only try it.
        inbox: The commands that were posted: a function of `state/`, and its arguments.
        dead: Whether this process is a fork's child, where the pool is the parent's.
        natives: The native libraries, which helpers limit.
    """

    def __init__(self, topology: Topology, tunables: Tunables) -> None:
        self.lock = threading.Lock()
        self.inbox: deque[tuple[Any, ...]] = deque()
        self.state = State(find_cap(topology, tunables).threads, tunables)
        self.signals = self.state.signals
        self.keeper = Keeper(self)
        self.deadlines: Deadlines[tuple[Any, ...]] = Deadlines()  # commands to come
        self.dead = False
        self.adapter = Adapter(self, topology, tunables)
        self.archive = Archive(self)
        self.natives = NativeThreads()
        self._calls = CallWatch(self)  # the keeper's own
        self.chunks = ChunkWatch(self)
        self.loops = LoopWatch()
        self._may_skip_wake = gil_is_on()
        self.news: deque[tuple[Context, events.Event]] = deque()  # to be told, in this order
        self._pending: dict[tuple[Any, ...], tuple[Any, ...]] = {}  # see `post_once`
        self._spare: Outbox | None = None  # one that was sent, for a turn to come
        self._woken: deque[Waiter] = deque()  # those woken since the keeper looked
        self._unsent: deque[Outbox] = deque()  # see `keep`
        self._telling = threading.Lock()  # held by the thread that tells; only tried

    def __repr__(self) -> str:
        return f"<Pool {self.state}>"

    # Posting.

    def post(self, *command: Any) -> None:
        """Have a turn apply this command: a function of `state/`, a run or None, and more.

        May be called from any thread and in any line of it; does not wait.
        """
        self.inbox.append(command)
        self.wake()

    def post_at(self, due: int, number: int, *command: Any) -> None:
        """Have this command be posted at a time, in ns, unless `number` is dropped before.

        Args:
            due: By the clock of `time.perf_counter_ns`.
            number: Of a run, or another one of `run.numbers`.
            command: As for `post`.
        """
        self.deadlines.add(number, command, due)
        self._look_by(due)

    def _look_by(self, due: int) -> None:
        try:
            self.keeper.see_by(due)
        except RecursionError:  # a RuntimeError too, but of the calling code
            raise
        except RuntimeError:  # no thread for it: it looks once it is there, and nobody before
            pass

    def post_once(self, key: tuple[Any, ...], *command: Any) -> None:
        """Post a command that applies what was published before, unless one is on its way.

        So a crowd of calls that ask for the same is one command. The keeper posts the command of a
        call that was struck between the two steps here.
        """
        if self._pending.setdefault(key, command) is command:
            self.inbox.append((Pool._apply_pending, None, self, key))
        self.wake()

    @staticmethod
    def _apply_pending(state: State, run: None, pool: Pool, key: tuple[Any, ...]) -> None:
        command = pool._pending.pop(key, None)
        if command is not None:
            try:
                command[0](state, *command[1:])
            except BaseException as error:
                pool.recover(command[1], error)

    def _post_left_behind(self) -> None:
        """Post commands of `post_once` that were marked as on their way, and are not."""
        if self._pending and not self.inbox:
            for key in list(self._pending):
                self.inbox.append((Pool._apply_pending, None, self, key))

    def wake(self) -> None:
        """See to it that a thread takes a turn soon."""
        if self.state.ended:  # no other thread is left: this is the exit of the interpreter
            self.turn()
            return
        # The holder of the lock looks again after it let go. Without the GIL it may look too early
        # to see the command, although the lock is seen taken here.
        if self._may_skip_wake and self.lock.locked():
            return
        state = self.state
        idle = state.idle or (state.lane.open and state.lane.parked)
        if idle:
            try:
                idle[0].parking.unpark()
            except IndexError:  # it has work by now
                pass
            else:
                return
        try:
            self.keeper.wake()
        except RecursionError:  # a RuntimeError too, but of the calling code
            raise
        except RuntimeError:
            self._without_threads()

    def _without_threads(self) -> None:
        """Take a turn here, if there is no helper, since the system has no thread for the keeper.

        This is the only case, but for the exit, in which the main thread, or a loop's, takes one.

        Raises:
            RecursionError: A turn goes deeper than there is stack for it.
        """
        if not self.state.helpers:
            need_stack(TURN_DEPTH)
            self.turn()

    # Turns.

    def turn(self, helper: Helper | None = None) -> None:
        """Apply what was posted, if no other thread does, and send what follows.

        Called on threads on which the engine may be interrupted by finalizers only.
        """
        # Until all is sent: threads may wait for that, and a finalizer here would wait for them.
        inside, local.inside = local.inside, True
        try:
            for _ in range(MOST_TURNS):
                if not self.inbox or not self._take_a_turn(helper):
                    return
                if self.inbox:
                    time.sleep(0)  # a loop may want the GIL
            # Where turns post more than they apply, another thread goes on, and this one works.
            if self.inbox:
                self.wake()
        finally:
            local.inside = inside

    def _take_a_turn(self, helper: Helper | None) -> bool:
        """Take one turn; False when another thread takes one, or in a fork's child."""
        lock, state = self.lock, self.state
        if not lock.acquire(blocking=False):
            return False
        out: Outbox | None = None
        try:
            try:
                try:
                    self.enter_turn(helper)
                    self.drain()
                    if helper is not None and helper.called:
                        self.begin(helper)
                    out = self.take_outbox()
                finally:
                    state.turner = None
            finally:
                lock.release()
            if self.dead:
                return False
            if out is not None:
                self.send(out)
        except BaseException:
            self.keep(out)
            raise
        return True

    def take_turn(self, helper: Helper | None, action: Callable[..., T], *arguments: Any) -> T:
        """Wait for the lock, and call `action` in a turn, on this helper's thread if on one."""
        out: Outbox | None = None
        try:
            with self.lock:
                try:
                    self.enter_turn(helper)
                    found = action(*arguments)
                    out = self.take_outbox()
                finally:
                    self.state.turner = None
            if out is not None:
                self.send(out)
        except BaseException:
            self.keep(out)
            raise
        return found

    def enter_turn(self, helper: Helper | None) -> None:
        """Begin a turn, on this helper's thread if on one, by closing the lane."""
        state = self.state
        state.turner = helper
        lane = state.lane
        for _ in range(TRIES):
            if not (lane.open or lane.members):
                return
            try:
                now = time.perf_counter_ns()
                close_lane(state, now)
                while lane.members:
                    member = lane.members[0]
                    lane.former.append(member)
                    self._have_leave(member, now)
                    del lane.members[0]
            except BaseException as error:
                self.recover(None, error)

    def _have_leave(self, member: Helper, now: int) -> None:
        try:
            leave_lane(self.state, member, now)
        except BaseException as error:
            run = member.express
            self.recover(run, error, () if run is None else (run.lane_waiter,))

    def keep(self, out: Outbox | None) -> None:
        """Leave a turn's outbox for the keeper to send, since an exception came first."""
        if out is not None:
            self._unsent.append(out)

    def turn_of(self, helper: Helper) -> None:
        """Take a turn on this helper's thread, which may get work by it."""
        if helper.relays:
            helper.relays = False
            self.inbox.append((helpers.relay, None))
        self.turn(helper)

    def begin(self, helper: Helper) -> None:
        """In a turn on this helper's thread: have it begin what it was called for.

        From now on the work cannot be recalled. The helper begins nothing where the work was taken
        back meanwhile, or where its thread may not have the nice for it.
        """
        if helper.stint is None:
            return
        helper.called = False
        if self.adapter.fit(helper):
            helper.begun = helper.stint
        else:
            helper.called = True
            helpers.refused(self.state, helper)

    def drain(self) -> None:
        """Apply commands in a turn, at most those that are there now.

        Else a turn whose commands post more of them would hold the lock for as long as it may.
        """
        inbox, state = self.inbox, self.state
        for _ in range(min(len(inbox), COMMANDS_A_TURN)):
            if not inbox:
                return
            command = inbox[0]
            # Its last references go when the lock is free. Appended before the command is taken
            # out, which would be lost where memory is short.
            state.out.dropped.append(command)
            inbox.popleft()
            try:
                command[0](state, *command[1:])
            except BaseException as error:
                self.recover(command[1], error, waiting=command[2:])
                try:  # once more: a command that comes twice does no harm
                    command[0](state, *command[1:])
                except BaseException as another:
                    self.recover(command[1], another, waiting=command[2:])

    def take_outbox(self) -> Outbox | None:
        """Take out all that the turn has to say, if anything; nothing where memory is short."""
        state = self.state
        out = state.out
        lane = state.lane
        if lane.expected or lane.waiting or lane.former:
            try:
                settle_lane(state, self.inbox)
            except BaseException as error:
                self.recover(None, error)
        if not out:
            return None
        fresh, self._spare = self._spare, None
        if fresh is None:
            fresh = Outbox()
        while out.events:
            self.news.append(out.events[0])
            del out.events[0]
        for helper in out.starts:
            helper.asked_for = True
        state.out = fresh
        return out

    def recover(
        self, run: Run | None, error: BaseException, waiting: Iterable[object] = ()
    ) -> None:
        """Have the state recover from an exception that struck in a turn: see `recovery.recover`.

        Args:
            run: That the turn was about.
            error: What struck.
            waiting: Waiters among these objects are woken, to look for themselves.
        """
        for each in waiting:
            waiter = each.waiter if isinstance(each, Leaver) else each
            if hasattr(waiter, "heard"):
                self.state.out.waiters.append(cast("Waiter", waiter))
        for _ in range(TRIES):
            try:
                recovery.recover(self.state, run, error)
            except BaseException as another:
                error = another
                run = None
                continue
            break
        try:
            self.state.out.events.append(_engine_failed(run, error))
        except BaseException:
            show_exception()

    def send(self, out: Outbox) -> None:
        """Do what a turn left in its outbox, outside the lock; anew where memory was short."""
        for _ in range(TRIES):
            try:
                self._send(out)
            except BaseException:
                show_exception()
                continue
            self._spare = out  # empty by now
            return

    def _send(self, out: Outbox) -> None:
        """Do what is in the outbox, and take each thing out after it: twice done does no harm."""
        # Before a waiter is woken, which might tell of what comes after, or close what a job held.
        while out.ended:
            out.ended[-1].drop()
            out.ended.pop()
        out.dropped.clear()
        while out.notes:
            _attach(*out.notes.pop())
        if self.news:
            self.tell()
        if out.renices:
            renices, out.renices = out.renices, []
            self.adapter.set_nices(renices)
        while out.parkings:
            out.parkings[-1].unpark()
            out.parkings.pop()
        while out.starts:
            self._have_started(out.starts[-1])
            out.starts.pop()
        if out.looks:
            self._have_memory_looked_at()
            out.looks = False
        while out.readings:
            self.archive.fetch(Reading(out.readings[-1]))
            out.readings.pop()
        while out.lessons:
            self.archive.keep(*out.lessons[-1])
            out.lessons.pop()
        if out.look_by:
            self._look_by(out.look_by)
            out.look_by = 0
        # In this order: a leaver asks whether the waiters before it were told.
        while out.waiters:
            self.wake_waiter(out.waiters[0])
            out.waiters.popleft()
        while out.undos:
            run = out.undos[-1]
            if run.loop is not None:
                _insistently(partial(run.loop.start_undo, run))
            out.undos.pop()

    def wake_waiter(self, waiter: Waiter) -> None:
        """Wake a waiter, and have the keeper see whether it heard."""
        _insistently(waiter.wake)
        self._woken.append(waiter)

    def _wake_again(self) -> None:
        """Wake waiters anew whose wake-up got lost on their loop.

        A signal handler that raises in a callback ends the callback; and a loop may lose one.
        """
        woken = self._woken
        for _ in range(len(woken)):
            waiter = woken.popleft()
            if not waiter.heard:
                waiter.wake()
                woken.append(waiter)

    def tell(self) -> None:
        """Tell the events that there are, in the order of the turns, by one thread at a time."""
        news, telling = self.news, self._telling
        inside, local.inside = local.inside, True  # a listener may hold what others want meanwhile
        while news and telling.acquire(blocking=False):
            try:
                while news:
                    context, event = news.popleft()
                    context.run(events.emit, event)
            except BaseException:
                show_exception()
            finally:
                telling.release()
        local.inside = inside

    def tell_of(self, run: Run) -> None:
        """On the helper that ended the run in the lane: tell what there is to tell of it."""
        context, news = run.context.copy(), run.news
        while news:
            self.news.append((context, news[0]))
            del news[0]
        run.drop_context()
        run.drop()
        self.tell()

    def _have_started(self, helper: Helper) -> None:
        try:
            self.keeper.soon(HelperThread(self, helper).start)
        except BaseException as error:
            self.post(helpers.not_started, None, helper, error)

    def _have_memory_looked_at(self) -> None:
        """Have the keeper look how much memory is left; here where there is no thread for it."""
        try:
            self.keeper.soon(self._look_at_memory)
        except RecursionError:  # a RuntimeError too, but of the calling code
            raise
        except RuntimeError:
            self._look_at_memory()

    def _look_at_memory(self) -> None:
        self.adapter.look_at_memory()
        self.wake()

    # What is asked for, on any thread.

    def submit(
        self,
        run: Run,
        *,
        waiter: Waiter | None = None,
        caller: Caller | None = None,
        nested: bool = False,
        detects: bool = False,
    ) -> None:
        """Have a turn take a run in; see `admission.admit`.

        Raises:
            CoordinatorClosed: The coordinator takes no more jobs; never for a `nested` run. The run
                has not begun then, and will not.
            RuntimeError: The same of the process, which exits.
            Overloaded: It could not begin in time, by its terms. It has left nothing behind then.
        """
        if run.heard:
            run.prepare()
        group, state = run.group, self.state
        if run.terms is not None and (nested or not (group.closed or state.closing)):
            self._take_in_on_terms(run, run.terms, nested)
        lane = state.lane
        if waiter is not None and caller is None and lane.takes(run, group, waiter):
            run.lane_waiter = waiter
            lane.used = True
            lane.waiting.append(run)
            stands = lane.open and not (group.closed or state.closing)
            if stands and (lane.wake_one() or lane.full):
                return
        self.inbox.append((admission.admit, run, waiter, caller, nested, detects))
        refuses = (group.closed or state.closing) and (state.ended or not nested)
        if refuses and run.decide_entrance(REFUSED) is REFUSED:
            self._tell_refused(run)
            self.wake()  # a turn lets go of what was posted
            if state.closing:
                raise RuntimeError("the interpreter is exiting: no job can be submitted")
            raise CoordinatorClosed(
                "the coordinator was drained, left or shut down: it takes no more jobs"
            )
        self.wake()

    def _take_in_on_terms(self, run: Run, terms: Terms, nested: bool) -> None:
        """Count the run at its coordinator's gate, and have the keeper look when it is due.

        Raises:
            Overloaded: It may not come.
        """
        threads = self.state.most_threads(run.group)
        try:
            due = terms.refuse_or_enter(run, threads, nested=nested)
        except Overloaded as error:
            run.decide_entrance(REFUSED)
            self._tell_refused(run, queued=error.queued, retry_after=error.retry_after)
            raise
        if due is not None:
            self.post_at(due, run.number, ending.expire_if_there, None, weakref.ref(run))

    def _tell_refused(self, run: Run, **details: object) -> None:
        """Have it be told that the run was refused, if somebody hears of it.

        Args:
            run: The run.
            details: `queued` and `retry_after` where it is overloaded; else the coordinator, or the
                process, takes no more jobs.
        """
        if run.heard:
            run.tell(EventKind.REFUSED, **details)
            self.post(admission.tell_refused, None, run)

    def grow(self, run: Run) -> None:
        """Have turns follow the run's `Growth`, which has moved up or was closed.

        Where no helper could come, none is woken: whoever serves the run finds the command when it
        comes back.
        """
        command = (growing.follow, run)
        if self._pending.setdefault(command, command) is command:
            self.inbox.append((Pool._apply_pending, None, self, command))
        state = self.state
        served = run.begun and run.entry.threads > 0
        all_work = state.scheduler.running >= state.scheduler.cap
        if not (served and all_work) or state.idle or state.lane.parked:
            self.wake()

    def may_grow_later(self, run: Run) -> bool:
        """Whether the run has all the threads that it may have, as far as can be seen.

        They look at its `Growth` themselves when they have nothing left.
        """
        return run.begun and run.entry.threads >= run.entry.limit

    def cancel(self, run: Run) -> bool:
        """End a run; whether that came in time, also when it was cancelled before."""
        if not run.cancel():
            return False
        if run.never_starts and run.terms is not None:
            # It waits no more, from now on: the turn that lets go of it may come later.
            run.terms.gate.end(run.number, time.perf_counter_ns())
        # One command is enough. If struck between the two steps here, it is left to the keeper. One
        # that was refused is none of a turn's business, or comes with its own command.
        if not (run.cancelled or run.over or run.cancel_posted or run.refused):
            run.cancel_posted = True
            self.post(ending.cancel, run)
            self.signals.interrupt()  # after that: who comes back finds the command
        return True

    def renice(self, run: Run, nice: int) -> None:
        """Change the nice of a run; of one that is over only the number changes."""
        run.nice = nice
        self.post_once((following.renice, run), following.renice, run)

    def commit(self, run: Run) -> bool:
        """For the owner: take the result of its run; False when it is not there (yet)."""
        if run.over:
            return True
        if not run.commit():
            return False
        if not run.begun:  # it passed the lane, where nobody else has to know
            run.lane_waiter = None
            if run.past is not None:
                self.state.past.append(run.past)
            return True
        # A turn will only strike out the run, and tell of it if a listener hears that: else this
        # can wait for the next turn.
        self.inbox.append((ending.committed, run))
        if run.heard or run.group.closed or self.state.closing:
            self.wake()
        return True

    def leave(self, group: RunGroup, leaver: Leaver, *, cancels: bool) -> None:
        """Close a group, and have the leaver's waiter woken when no run of it is left."""
        group.closed = True
        self.post(ending.leave_group, None, group, leaver, cancels)
        if cancels:
            self.signals.interrupt()

    def cancel_group(self, group: RunGroup) -> None:
        """Close a group and cancel its runs."""
        group.closed = True
        self.post(ending.cancel_group, None, group)
        self.signals.interrupt()

    # A thread that waits, or takes part.

    def take_part(self, run: Run, caller: Caller) -> None:
        """On the calling thread of the sync form: serve the run until it is over or settled."""
        others = local.takes_part
        try:
            local.takes_part = (*others, run)
            if not caller.main:
                self.turn_on_caller()
            while not caller.quits:
                stint = caller.stint
                if stint is not None:
                    self._walk_as_caller(run, caller, stint)
                    del stint
                elif run.over or (run.settled and not run.cancel_asked):
                    return
                else:
                    self.wait_parked(caller, -1)
        finally:
            local.takes_part = others

    def _walk_as_caller(self, run: Run, caller: Caller, stint: Stint) -> None:
        if stint.claimed_at == stint.entered_at:  # it has just begun to serve
            stint.start_clock()
        caller.stint = None
        walk = self._walk_one_stretch
        if stint.run.inherited:
            with entered(stint.run.inherited):
                raised = stint.context.run(walk, stint)
        else:
            raised = stint.context.run(walk, stint)
        now = time.perf_counter_ns()
        stint.read_clocks(self.signals, now)
        if raised:
            self.post(callers.caller_raised, run, stint, raised.pop(), now)
        else:
            self.post(callers.caller_walked, run, stint, stint.chunk_start, now)
        del stint
        if not caller.main:
            self.turn_on_caller()

    def turn_on_caller(self) -> None:
        """Take a turn on the thread of a caller, so that it need not wait for another thread.

        That must not be the main thread, where signal handlers run at any line. Deep in a recursion
        no turn is taken.
        """
        if self.inbox and has_stack(TURN_DEPTH):
            self.turn()

    def _walk_one_stretch(self, stint: Stint) -> list[BaseException]:
        """Walk the stretch; what was raised, in a list, so that no variable refers to it."""
        outer = stint.outer = local.stint
        inside = local.inside
        local.stint = stint
        local.inside = False
        raised: list[BaseException] = []
        try:
            if stint.run.sweep.tree is not None:
                stint.walk_reduce(self.signals)
                self.merge(stint)
            else:
                stint.walk(self.signals)
        except BaseException as error:
            BaseException.with_traceback(error, beyond_engine(error.__traceback__))
            raised.append(error)
        finally:
            local.stint = outer
            local.inside = inside
            stint.outer = None
        if self.dead:
            end_child(stint)
        return raised

    def merge(self, stint: Stint) -> None:
        """Bring the values of the stint's stretch into the tree; `reduce` runs outside the lock.

        The tree has no lock of its own: its steps are those of a dictionary.
        """
        run = stint.run
        tree = run.sweep.tree
        stint.reducing = True
        while stint.stack:
            level, index, value = stint.stack.pop()
            while tree is not None and not run.stopping:
                pair = tree.offer(level, index, value)
                if pair is None:
                    break
                level, index, left, right = pair
                value = run.combine(left, right)
        stint.reducing = False

    def wait_parked(self, waiter: Caller | ThreadWaiter, timeout: float) -> bool:
        """Wait until woken. No lock is held here, so a signal handler may raise through it."""
        if threading.get_ident() == threading.main_thread().ident:
            # A signal between the interpreter's last look for one and the system call that waits
            # interrupts nothing, and its handler would wait as long as we do.
            while timeout < 0 or timeout > SIGNAL_SECONDS:
                if waiter.parking.wait(SIGNAL_SECONDS):
                    return True
                if self.inbox and not self.keeper.running:  # no memory for its thread to begin
                    self.wake()
                timeout = max(timeout - SIGNAL_SECONDS, 0) if timeout >= 0 else timeout
        return waiter.parking.wait(timeout)

    # What the keeper does.

    def look_around(self) -> bool:
        """On the keeper: follow what changed; False when there is nothing to look after."""
        if self.dead:
            return False
        while self._unsent:
            self.send(self._unsent.popleft())
        self._wake_again()
        self._post_left_behind()
        if self.state.busy or self.state.out:
            self.adapter.look_around()
            if self.look_at_natives(at_once=False):
                self.inbox.append((following.limit_anew, None))
            if self.natives.limits_process:
                self._give_back_natives()
            if self.state.starts_again_at:
                self.inbox.append((helpers.start_again, None))
            self.inbox.append((recovery.find_unattended, None))
            if self.state.reads:
                self.inbox.append((admission.wait_no_longer, None))
            if self.state.memory_runs:
                self.adapter.look_at_memory()
            if self.state.growing:
                self._end_abandoned()
                self.inbox.append((growing.share_out, None))
            self.loops.look()
            self.chunks.look()
            self.turn()
            self._look_at_members()
            self.archive.look(quiet=not self.state.runs)
            return True
        self.loops.rest()
        self.chunks.rest()
        self.adapter.rest()
        if self.natives.limits_process:
            self.natives.give_back(self.natives.services)
        return bool(self.inbox or self._woken or self.archive.look(quiet=True))

    def look_at_natives(self, *, at_once: bool = True) -> bool:
        """Find the native libraries there are, if any are to be limited; whether any are new."""
        limits = self.state.tunables.limit_native_threads
        return bool(limits) and self.natives.look(at_once=at_once)

    def _give_back_natives(self) -> None:
        """Let the process have its native threads back where helpers rest, or need not limit them.

        Not at once: between two jobs that come one after the other they stay as they are.
        """
        services = self.natives.services
        if self.state.tunables.limit_native_threads != PROCESS or (
            self.adapter.quiet_looks >= QUIET_LOOKS
            and self.take_turn(None, following.native_threads_rest, self.state)
        ):
            self.natives.give_back(services)

    def _end_abandoned(self) -> None:
        """Cancel the growing runs that nobody feeds or ends any more."""
        for run in list(self.state.growing):
            if run.growth is not None and run.growth.is_abandoned():
                self.cancel(run)

    def next_deadline(self) -> int | None:
        """On the keeper: have what is due be done; when the next one is due, in ns, if any is."""
        if self.dead:
            return None
        due = self.deadlines.next_due()
        if due is not None and due <= time.perf_counter_ns():
            self.deadlines.hand_over(time.perf_counter_ns(), self.inbox.append)
            self.turn()
            due = self.deadlines.next_due()
        return due

    def look_at_calls(self) -> bool:
        """On the keeper: find calls that block; whether to do so again soon."""
        return not self.dead and self._calls.look()

    def _look_at_members(self) -> None:
        """Wake members of the lane that have waited for a while, and for as long as they may."""
        for helper in list(self.state.helpers):
            if helper.in_lane:
                look_at_member(helper)

    # The end.

    def close(self) -> None:
        """Stop every job, undo, and end every helper. For the exit of the interpreter."""
        state = self.state
        ended = ThreadWaiter(0)
        state.closing = True
        struck: BaseException | None = None
        if self.keeper.running or state.helpers or self.inbox:
            try:
                self.post(ending.close, None, ended)
                self._wait_for_runs(ended)
            except BaseException as error:  # Ctrl-C, or what another handler raised: give up
                struck = error
                print(f"aioktask: exit leaves the jobs {self._names()}", file=sys.stderr)
        # From now on the thread that posts a command applies it, or refuses it.
        state.ended = True
        self.keeper.stop(EXIT_THREADS_SECONDS)
        self._end_helpers()
        self.turn()
        try:
            self.archive.close(EXIT_THREADS_SECONDS)
        finally:
            self.adapter.close()
            self.natives.give_back(self.natives.services)
        if struck is not None:
            raise struck

    def _wait_for_runs(self, ended: ThreadWaiter) -> None:
        """Wait until no run is left, or none that any live thread will ever end."""
        waited = 0.0
        rescued: set[int] = set()
        told = False
        state = self.state
        while not ended.parking.wait(EXIT_LOOK_SECONDS):
            waited += EXIT_LOOK_SECONDS
            for run in list(state.runs):
                task = run.undo_task
                if task is not None and run.number not in rescued:
                    rescued.add(run.number)
                    task.rescue()
            if not self.keeper.alive and not any(
                each.present.locked() for each in list(state.helpers)
            ):
                self.turn()
                if state.runs:
                    print(f"aioktask: exit leaves the jobs {self._names()}", file=sys.stderr)
                    return
            if waited >= EXIT_NOTICE_SECONDS and not told:
                told = True
                names = self._names()
                print(f"aioktask: exit waits for the jobs {names}", file=sys.stderr, flush=True)

    def _names(self) -> str:
        return ", ".join(repr(run.name) for run in list(self.state.runs))

    def _end_helpers(self) -> None:
        until = time.monotonic() + EXIT_THREADS_SECONDS
        helpers = list(self.state.helpers)
        for helper in helpers:
            helper.ends = True
            helper.parking.unpark()
        for helper in helpers:
            if helper.present.acquire(timeout=max(until - time.monotonic(), 0)):
                helper.present.release()


_OWN_FILES.add(__file__)


def _engine_failed(run: Run | None, error: BaseException) -> tuple[Any, events.Event]:
    name, number = ("", 0) if run is None else (run.name, run.number)
    return Context(), events.Event(EventKind.ENGINE_FAILED, name, number, {"error": error}, False)


def _attach(error: BaseException, note: str) -> None:
    """Attach the note, unless it is there, or the exception's class refuses."""
    with contextlib.suppress(Exception):
        if note not in getattr(error, "__notes__", ()):
            BaseException.add_note(error, note)


def _insistently(action: Any) -> None:
    """Do what a waiter depends on: again, where memory was short."""
    for _ in range(TRIES):
        try:
            action()
        except MemoryError:
            continue
        except BaseException:
            show_exception()
        return
