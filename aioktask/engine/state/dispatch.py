# SPDX-License-Identifier: MIT
# All state of the engine, and who works on what: from the choice of a run for a thread, through its
# stretches, to the end of the run.
#
# The functions that change anything here, or in the modules beside this one, are called in turns:
# by one thread at a time, under the pool's lock. State in, decisions out: nothing blocks, runs user
# code, starts or wakes a thread. What a change has to say (events, wake-ups, threads to start) is
# put into the outbox, which the pool sends when the lock is free again.
#
# Calls from outside come as commands: functions of those modules whose arguments are the state, the
# run that they are about, or None, and more. The commands of a thread come in the order in which it
# posted them, and one that comes twice, or to a run that is over, does no harm.
#
# Guarantees: a helper that would find work is never left idle. Every change that makes work ends in
# `summon`, which gives it to idle helpers or has some started. And every change that may bring a
# run forward ends in `update`, so none stands still that could be undone, settled or over.
"""Who works on what."""

from __future__ import annotations

import weakref
from collections import deque
from time import perf_counter_ns
from typing import Any

from aioktask.engine.learning.lessons import Lessons
from aioktask.engine.priority import gil_is_on
from aioktask.engine.scheduling.background import BackgroundShare
from aioktask.engine.scheduling.loans import Loans
from aioktask.engine.scheduling.queue import BACKGROUND, LENT, SLICE_NS, Scheduler
from aioktask.engine.scheduling.waits import Waits
from aioktask.engine.state import record
from aioktask.engine.state.callers import ask_caller, enter_caller
from aioktask.engine.state.group import RunGroup
from aioktask.engine.state.history import History
from aioktask.engine.state.lane import Lane
from aioktask.engine.state.lending import (
    can_serve_at,
    helper_beneath,
    lend,
    note_loan,
    urgency_offered,
)
from aioktask.engine.state.nodes import migrates, place
from aioktask.engine.state.outbox import Outbox, Source
from aioktask.engine.state.run import SETTLED, Run
from aioktask.engine.state.stint import Signals, Stint
from aioktask.engine.state.waiting import end_wait, let_leave
from aioktask.engine.state.workers import Caller, Helper, Waiter
from aioktask.engine.tunables import Tunables
from aioktask.errors import ChunkCancelled

# How many helpers are woken at once; each that wakes wakes as many again.
SUMMON_AHEAD = 2

# A background stretch that was kept from its CPU for so much of its time, and so long, may have
# been in another process's way.
CONTENDED = 1 / 3
CONTENDED_NS = 1_000_000

# A stretch of a growing range that has lasted so long, some times as long as is aimed at, is held
# up by one of its units.
LASTING_NS = 2_000_000

# So many runs that are over are remembered, for who looks.
MOST_PAST = 100

# Where a job was seen beside another, the next one is expected within this time.
CROWDED_NS = 1_000_000_000


def _lasts(stint: Stint, now: int) -> bool:
    """Whether the stint holds units that it has not begun, and has been at others for long."""
    if not stint.live or stint.stretch_stop - stint.chunk_start < 2:
        return False
    return now - max(stint.claimed_at, stint.walked_at) > LASTING_NS


class State:
    """The runs that are not over, and the threads.

    Attributes:
        cap: What the machine and the user give the process, before shares with other processes.
        tunables: The process's.
        turner: The helper that takes this turn, which is the first to get work if it is idle.
        blocking: Calls that are served and block without using a CPU: see `blocking`.
        starting: Helpers that are being started.
        closing: Whether the interpreter exits.
        ended: Whether the engine has ended at exit: nothing is taken in any more.
        no_more_threads: Whether the last thread could not be had, or not be prepared.
        refusal: Why, for those whose runs end by it.
        starts_again_at: Until when no helper is started, since one could not be prepared; 0 for no
            such time.
        natives: Another number each time that helpers should limit native libraries anew.
        crowded_until: Until when a job expects another one beside it.
        all_over: The waiter for the end of all runs, at exit.
        history: What threads served of late, where somebody wants to know.
        past: What is kept of the last runs that are over, the items of a `record.Ended` each.
        unasked: Runs whose owners have not been looked for yet, in this round of the keeper's.
        advice: What to tell, once, where the process is bound to one CPU.
        reads: Whether any run may have waited for what is on disk, or does.
    """

    def __init__(self, cap: int, tunables: Tunables) -> None:
        self.signals = Signals()
        self.scheduler = Scheduler(cap)
        self.cap = cap
        self.tunables = tunables
        self.out = Outbox()
        self.root = RunGroup()  # of jobs without a coordinator
        self.runs: dict[Run, None] = {}
        self.growing: dict[Run, None] = {}  # those of them whose range grows
        self.memory_runs: dict[Run, None] = {}  # those of jobs that declare memory
        self.memory_seen_at = 0  # when it was looked at last how much is left
        self.interrupted_at = 0  # when such a run last had walks end, to get a helper
        self.serving: dict[Stint, None] = {}
        self.waits: Waits[Run] = Waits()
        self.waiting: dict[Stint, int] = {}  # chunks that wait for runs: for how many
        self.blocking: dict[Stint, None] = {}
        self.loans = Loans(self.scheduler)
        self.background = BackgroundShare()
        self.scheduler.background_cap = self.background.threads
        self.node_cpus: dict[int, frozenset[int]] = {}  # by node, those the process may use
        self.node_limit: int | None = None  # helpers that may be bound to one node
        self.gil = gil_is_on()
        self.base_nice = 0  # of the loop's thread
        self.may_lower = False  # whether a helper may go back to a lower nice
        self.may_lower_again = True  # False once that was refused although it seemed allowed
        self.may_set_nice = True  # False once no nice at all could be set
        self.lessons = Lessons()
        self.reads = False
        self.helpers: dict[Helper, None] = {}
        self.idle: deque[Helper] = deque()
        self.lane = Lane(self.root)
        self.turner: Helper | None = None
        self.starting: dict[Helper, None] = {}
        self.closing = self.ended = False
        self.crowded_until = 0
        self.no_more_threads = False
        self.refusal = ""
        self.starts_again_at = 0
        self.natives = 0
        self.all_over: Waiter | None = None
        self.advice: str | None = None
        self.unasked: deque[weakref.ref[Run]] = deque()
        self.history: History | None = None
        self.past: deque[tuple[Any, ...]] = deque(maxlen=MOST_PAST)

    def __repr__(self) -> str:
        return (
            f"{len(self.helpers)} helpers, {len(self.idle)} idle, {len(self.starting)} starting; "
            f"{self.scheduler}; {list(self.runs)}"
        )

    @property
    def busy(self) -> bool:
        """Whether there is anything that the keeper should look after."""
        return bool(self.runs or self.helpers or self.starting or self.lane.settled)

    def most_threads(self, group: RunGroup) -> int:
        """The most threads that a job of the group may have, before shares with other processes."""
        return self.cap if group.cap is None else min(self.cap, group.cap)

    def expect_others(self, now: int) -> None:
        """Have jobs expect others beside them for a while, since there are several now."""
        self.crowded_until = now + CROWDED_NS

    # How runs go forward.

    def update(self, run: Run) -> None:
        """Bring a run to its next phase, if it may go on, and queue it as its phase demands."""
        if run.growth is not None:  # what was left to the thread that is just leaving
            run.follow_growth()
        while not run.claimable:
            self.scheduler.set_idle(run.entry)
            if run.entry.threads or run.async_undo or run.over or run.awaits_more:
                if run.growth is not None and run.stopping and not run.over:
                    self._stop_callers(run)
                return
            if run.phase is SETTLED and not run.cancelled:
                return
            if run.awaits and not (run.stopping or run.cancel_asked) and run.sweep.claims.left:
                return
            run.advance()
            if run.over:
                self.end(run)
                return
            if run.phase is SETTLED:
                self.out.waiters += run.waiters
                return
            self.signals.change()  # an undo goes before chunks
            # An undo runs at the nice of the job or of a waiter, whichever is more urgent.
            if run.urgency < run.entry.nice:
                self.scheduler.set_nice(run.entry, run.urgency)
                lend(self, self.loans.reckon(run.entry))
            if run.async_undo:
                self.out.undos.append(run)
                return
        self.scheduler.set_ready(run.entry, undoing=run.undoing)
        ask_caller(self, run)

    def _stop_callers(self, run: Run) -> None:
        """Have calling threads serve a growing run no more, those apart that are at an item now."""
        self.out.waiters += run.waiters  # who is at one should end when that is done
        for stint in list(self.serving):
            at_item = stint.chunk_start < stint.stretch_stop
            if stint.run is run and isinstance(stint.thread, Caller) and not at_item:
                self.let_guest_go(stint)

    def let_guest_go(self, stint: Stint) -> None:
        """Have a calling thread serve a growing run no more; its time counts for nobody's share."""
        run = stint.run
        run.guests -= 1
        self.leave(stint, stint.entered_at, began=False)
        if not run.over:
            self.follow_limit(run)

    def end(self, run: Run) -> None:
        """Take out a run that is over, and have its waiters woken."""
        group = run.group
        out = self.out
        out.ended.append(run)
        self.past.append(run.past or record.ended(run, perf_counter_ns()))
        if run.key is not None and run.lesson is not None and not run.stopping:
            self.lessons.put(run.key, run.lesson)
            if run.directory:
                source = Source(run.directory, run.key, run.number)
                out.lessons.append((source, self.lessons.get(run.key)))
        if run.undo_failed and group is not self.root:
            group.undo_failed[run.number] = run
        out.tell(run)
        for waiter, wait in run.waiters.items():
            end_wait(self, run, wait)
            out.waiters.append(waiter)
        run.waiters = {}
        for wait in run.left_by.values():
            end_wait(self, run, wait)
        run.left_by = {}
        # Not before: after an exception until here the run is still found, and ended anew.
        self.runs.pop(run, None)
        if run.growth is not None:
            self.growing.pop(run, None)
        self.memory_runs.pop(run, None)
        lend(self, self.loans.forget(run.entry))
        self.forget(run)

    def forget(self, run: Run) -> None:
        """Take a run out of its group; wake the group's leavers, or exit, if it was the last."""
        run.group.runs.pop(run, None)
        run.entry.run = None  # no cycle: what the job holds goes with the last reference to it
        let_leave(self, run.group)
        if self.all_over is not None and not self.runs:
            self.out.waiters.append(self.all_over)

    # Threads that serve runs.

    def follow_limit(self, run: Run) -> bool:
        """Have the scheduler keep to the run's own limit of threads; whether that has changed."""
        if run.entry.limit == run.thread_limit:
            return False
        self.scheduler.set_limit(run.entry, run.thread_limit)
        return True

    def walked(self, stint: Stint, position: int, now: int) -> bool:
        """Take in that the stint walked up to `position`; whether it goes on with a new stretch."""
        run = stint.run
        run.walked(stint, position, now)
        if self.follow_limit(run):
            self.signals.change()
        if stint.seat.account is BACKGROUND and self._must_pause(stint, now):
            return False
        if self.signals.generation != stint.generation or now >= stint.slice_end:
            return False
        if stint.node is not None and not stint.off_node and migrates(stint):
            return False
        if not run.sweep.claims.left and not self.free_more(run, now):
            self.scheduler.set_idle(run.entry)
            return False
        return self._claim(stint, now)

    def free_more(self, run: Run, now: int) -> bool:
        """Free what was added to a growing range, or what threads hold and do not come to.

        A stretch was to be short. Where it is not, one of its units lasts, and those behind would
        wait for it.

        Returns:
            Whether anything is free now.
        """
        if run.growth is None:
            return False
        run.follow_growth()
        if run.sweep.claims.left:
            return run.claimable
        held = [stint for stint in list(run.stints.values()) if _lasts(stint, now)]
        if held:
            self.signals.change()  # before it is looked at where the walks stand
            for stint in held:
                run.take_back(stint)
        return run.claimable

    def _must_pause(self, stint: Stint, now: int) -> bool:
        """Pay for the CPU time of a background stretch; whether a pause follows.

        Samples are a tenth of a second apart. A neighbour that comes between two of them is noticed
        here, by two stretches one after the other that had to wait for a CPU.
        """
        background = self.background
        cpu = stint.cpu_now
        used = cpu - max(stint.cpu_charged, stint.cpu_mark)
        stint.cpu_charged = cpu
        if background.pausing:
            background.charge(used)
            self.scheduler.background_cap = background.threads
            return not background.threads
        wall = now - max(stint.claimed_at, stint.entered_at)
        if wall - used > CONTENDED_NS and wall - used > wall * CONTENDED:
            delay = 0 if stint.kernel_now is None else stint.kernel_now[1]
            before_at, before = stint.contended
            stint.contended = now, delay
            if now - before_at < 2 * wall + SLICE_NS and delay - before > wall * CONTENDED:
                background.stop()
                self.scheduler.background_cap = 0
                self.signals.change()
                return True
        return False

    def raised(self, stint: Stint, error: BaseException, now: int) -> None:
        """Take in that `fn`, `undo` or `reduce` raised in the stint."""
        stint.failed = not issubclass(type(error), ChunkCancelled) or not stint.run.unwanted()
        if stint.reducing:
            stint.run.reduce_raised(stint, error, now)
        else:
            stint.run.chunk_raised(stint, error, now)
        self.signals.change()

    def reconsider(self, stint: Stint, now: int) -> Stint | None:
        """Choose anew what the stint's thread serves; returns a helper's next stint, if any."""
        thread, run = stint.thread, stint.run
        if stint in self.serving:
            self.leave(stint, now, began=True)
        if isinstance(thread, Helper):
            if self.find_work(thread, now):
                self.summon(now)
            return thread.stint
        assert isinstance(thread, Caller)
        if run.over or not enter_caller(self, run, thread, now):
            if run.over or run.phase is SETTLED:
                self.out.parkings.append(thread.parking)
            else:
                run.caller = thread
        self.summon(now)
        return None

    def find_work(self, helper: Helper, now: int) -> bool:
        """Give the helper its next stint, or count it among the idle ones.

        Returns:
            Whether more work may be waiting for others.
        """
        if helper.initializer is not self.tunables.initializer:
            self.dismiss(helper)
            return True
        entry = self.scheduler.choose()
        if entry is None:
            self.rest(helper)
            return False
        fits = can_serve_at(self, helper, urgency_offered(entry))
        if not fits or not self._assign(helper, entry.run, now):
            self.rest(helper)
        return True

    def rest(self, helper: Helper) -> None:
        """Count the helper, which has nothing to do, among the idle ones."""
        helper.stint = None
        helper.called = False
        if not helper.idle:
            helper.idle = True
            self.idle.append(helper)

    def dismiss(self, helper: Helper) -> None:
        """Strike out a helper that serves nothing, and whose thread is to end."""
        helper.stint = None
        helper.called = False
        if helper.idle:
            helper.idle = False
            self.idle.remove(helper)
        self.helpers.pop(helper, None)
        helper.ends = True
        for run in self.growing:
            run.forget_thread(helper)

    def _take_idle(self, nice: int) -> Helper | None:
        """Take an idle helper whose thread can have the nice that a job of this nice wants.

        The turner goes first, then the helper that is idle for longest. Where threads may not go
        back to a lower nice, of those that fit the one of the highest, which others can use least.
        """
        if not self.idle:
            return None
        turner = self.turner
        if turner is not None and turner.idle and can_serve_at(self, turner, nice):
            self.idle.remove(turner)
            return turner
        if self.may_lower:
            return self.idle.popleft()
        fitting = [helper for helper in self.idle if can_serve_at(self, helper, nice)]
        if not fitting:
            return None
        helper = max(fitting, key=lambda each: each.nice)
        self.idle.remove(helper)
        return helper

    def summon(self, now: int, *, starts: bool = True) -> None:
        """Give idle helpers work, or have helpers started, while there is work for them.

        An idle helper finds its first stretch claimed when it wakes. Only a few are woken here:
        waking costs the waker time; each that wakes wakes as many more.
        """
        woken: list[Helper] = []
        while (entry := self.scheduler.choose()) is not None:
            if len(woken) == SUMMON_AHEAD:
                for helper in woken:
                    helper.relays = True
                return
            idle = self._take_idle(urgency_offered(entry))
            if idle is None:
                wanted = self.scheduler.wanted(SUMMON_AHEAD) - len(self.starting)
                if wanted > 0 and starts and not self.starts_again_at:
                    fresh = [Helper() for _ in range(wanted)]
                    self.starting |= dict.fromkeys(fresh)
                    self.out.starts += fresh
                return
            idle.idle = False
            idle.called = True
            if not self._assign(idle, entry.run, now):
                self.rest(idle)
                continue
            woken.append(idle)
            if idle is not self.turner:
                self.out.parkings.append(idle.parking)

    def count_blocked(self) -> None:
        """Have the scheduler know how many calls block."""
        self.scheduler.blocked = min(len(self.blocking), self.tunables.max_blocked)

    def count_waiting_for_memory(self) -> None:
        """Have the budget know how many chunks that hold memory wait for runs."""
        self.scheduler.memory.waiting = sum(
            stint in self.serving and stint.run.entry.holds_memory for stint in self.waiting
        )

    def several_chunks_wait(self) -> bool:
        """Whether some thread holds chunks that it has not begun, of a run that may have more.

        May be called on any thread, without the lock.
        """
        for stint in list(self.serving):
            run = stint.run  # once: that of a run that ends meanwhile is one without an entry then
            if run.over or run.entry.threads >= run.entry.limit:
                continue
            if stint.stretch_stop - stint.chunk_start > stint.chunk:
                return True
        return False

    def _assign(self, helper: Helper, run: Run, now: int) -> bool:
        """Have the helper serve the run; False if the run was cancelled at this very moment."""
        stint = helper.stint = run.stint_of(helper)
        place(self, stint, helper)
        entered = self.enter(stint, now)
        if not entered:
            self.leave(stint, now, began=False)
        self.out.tell(run)
        return entered

    def enter(self, stint: Stint, now: int) -> bool:
        """Have the stint's thread serve its run; whether it has a stretch, or has to leave."""
        run = stint.run
        stint.seat = self.scheduler.enter(run.entry, stint.counted)
        self.serving[stint] = None
        account = stint.seat.account
        if account is LENT:
            note_loan(run, now)
        elif account is BACKGROUND and isinstance(stint.thread, Helper):
            stint.thread.in_background = True
        run.enter(stint, now)
        stint.slice_end = now + SLICE_NS
        return self._claim(stint, now)

    def _claim(self, stint: Stint, now: int) -> bool:
        """Claim the next stretch for the stint; False if there is nothing to walk any more."""
        run = stint.run
        if len(self.runs) > 1:
            self.expect_others(now)
        pauses = stint.seat.account is BACKGROUND and self.background.pausing
        run.sweep.pacing.be_alone(now >= self.crowded_until and not pauses)
        claimed = run.claim(stint, now, self.signals.generation)
        if not run.sweep.claims.left:
            self.scheduler.set_idle(run.entry)
        return claimed

    def leave(self, stint: Stint, now: int, *, began: bool) -> None:
        """Have the stint's thread serve its run no more, and the run go forward if it may.

        Args:
            stint: What it walked of the stretch is counted already.
            now: The time.
            began: Whether it took up the stretch that it had.
        """
        del self.serving[stint]
        if stint in self.blocking:
            del self.blocking[stint]
            self.count_blocked()
        run = stint.run
        history = self.history  # once: whoever looks may stop that meanwhile
        if history is not None and began:
            history.served(stint, run, now)
        self.scheduler.leave(run.entry, now - stint.entered_at, stint.seat)
        if stint.seat.account is LENT:
            run.leaves_loan(now)
            helper = helper_beneath(stint)
            if helper is not None and helper is not stint.thread:
                helper.boost = None
                self.out.renices.append(helper)
        if isinstance(stint.thread, Caller):
            stint.thread.serving = None
        run.leave(stint, now, began=began)
        stint.stack.clear()
        self.update(run)
        if self.memory_runs:
            self._pass_memory_on(stint)

    def _pass_memory_on(self, stint: Stint) -> None:
        """Have the calling thread of the run that is next come for the memory that was let go."""
        if stint in self.waiting:
            self.count_waiting_for_memory()
        first = self.scheduler.first_of_memory()
        if first is not None:
            ask_caller(self, first.run)
