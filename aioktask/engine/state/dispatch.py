# SPDX-License-Identifier: MIT
# All state of the engine: the runs, the helpers, and what each of them does. Under one lock, the
# pool's, which every caller here holds.
#
# State in, decisions out: nothing here blocks, runs anybody's code, starts or wakes a thread. What
# a change has to say (events, wake-ups, threads to start) is put into an Outbox, which the pool
# sends when the lock is free again.
#
# Guarantees: a helper that would find work is never left idle. Every change that makes work ends in
# `summon`, which gives it to idle helpers or has some started.
"""Who works on what."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextvars import Context
from time import perf_counter_ns, thread_time_ns
from types import MappingProxyType
from typing import Any, Literal

from aioktask.engine import events
from aioktask.engine.claims import PartedClaims
from aioktask.engine.helpers import Caller, Helper, Parking, kernel_and_delay_ns
from aioktask.engine.lending import Lending
from aioktask.engine.lessons import Lessons
from aioktask.engine.priority import MOST_NICE, gil_is_on, thread_nice
from aioktask.engine.scheduling.background import Looked, Yielding
from aioktask.engine.scheduling.queue import SLICE_NS, Entry, Group, Scheduler, Seat
from aioktask.engine.scheduling.waits import Waits
from aioktask.engine.state.run import Phase, Run, Waiter
from aioktask.engine.state.stint import Frame, Signals
from aioktask.errors import DeadlockError

# How many helpers are woken at once; each that wakes wakes as many again.
SUMMON_AHEAD = 2

# A background stretch that was kept from its CPU for so much of its time, and so long, was in
# somebody's way.
CONTENDED = 1 / 3
CONTENDED_NS = 1_000_000

# Where a job was seen beside another, the next one is expected within this time.
CROWDED_NS = 1_000_000_000


NO_TUNABLES: Mapping[str, Any] = MappingProxyType({})


class RunGroup(Group):
    """The runs of one coordinator.

    Attributes:
        runs: Those that are not over.
        closed: Whether nothing more may be submitted.
        undo_failed: Runs whose undo failed, of which perhaps nobody was told.
        tunables: What it sets that is otherwise the process's, by name; its cap apart.
    """

    __slots__ = ("closed", "runs", "tunables", "undo_failed")

    def __init__(self, cap: int | None = None, tunables: Mapping[str, Any] = NO_TUNABLES) -> None:
        super().__init__(cap)
        self.tunables = tunables
        self.runs: dict[Run, None] = {}
        self.closed = False
        self.undo_failed: list[Run] = []


class Outbox:
    """What a change has to say, once the lock is free."""

    __slots__ = ("dropped", "events", "parkings", "renices", "starts", "undos", "waiters")

    def __init__(self) -> None:
        self.renices: list[Helper] = []  # whose threads should perhaps be of another nice
        self.events: list[tuple[Context, events.Event]] = []
        self.waiters: list[Waiter] = []  # of runs that are over
        self.undos: list[Run] = []  # whose coroutine undo should begin
        self.parkings: list[Parking] = []  # of threads that have work now
        self.starts = 0  # helpers that should be started
        self.dropped: list[object] = []  # what may be finalized now, by code that is anybody's

    def tell(self, run: Run) -> None:
        """Take what the run has to tell, in the context of who submitted it."""
        if run.news:
            context = run.context.copy()
            self.events += ((context, event) for event in run.news)
            run.news.clear()

    def wake(self, run: Run) -> None:
        """Take everybody who waits for the run."""
        self.waiters += run.waiters
        self.waiters += run.watchers
        run.waiters.clear()
        run.watchers.clear()


class State:
    """The runs that are not over, and the threads."""

    def __init__(self, cap: int) -> None:
        self.signals = Signals()
        self.scheduler = Scheduler(cap)
        self.root = RunGroup()  # of jobs without a coordinator
        self.runs: dict[Run, None] = {}
        self.serving: dict[Frame, None] = {}
        self.waits: Waits[Run] = Waits()
        self.lending = Lending(self.scheduler)
        self.yielding = Yielding()
        self.scheduler.background_cap = self.yielding.threads
        self.node_cpus: dict[int, frozenset[int]] = {}  # by node, those the process may use
        self.node_limit: int | None = None  # helpers that may be bound to one node
        self.gil = gil_is_on()
        self.base_nice = 0  # of the loop's thread
        self.may_lower = False  # whether a helper may go back to a lower nice
        self.may_lower_again = True  # False once that was refused although it seemed allowed
        self.lessons = Lessons()
        self.helpers: dict[Helper, None] = {}
        self.idle: deque[Helper] = deque()
        self.starting = 0  # helpers that are being started
        self.closing = False  # whether the interpreter exits
        self.crowded_until = 0  # for how long a job expects another one beside it
        self.no_more_threads = False  # whether the system refused the last one
        self.all_over: Waiter | None = None  # who waits until no run is left
        self._numbers = 0

    def __repr__(self) -> str:
        return (
            f"{len(self.helpers)} helpers, {len(self.idle)} idle, {self.starting} starting; "
            f"{self.scheduler}; {list(self.runs)}"
        )

    # Runs.

    def submit(self, run: Run, caller: Caller | None, *, nested: bool, outbox: Outbox) -> None:
        """Take a run in. A `caller` begins to serve it at once, if there is anything to claim.

        Raises:
            RuntimeError: The coordinator, or the process, takes no more jobs; never for a `nested`
                run, whose chunk would otherwise fail while its coordinator waits for it.
        """
        group = run.entry.group
        assert isinstance(group, RunGroup)
        if self.closing and not nested:
            raise RuntimeError("the interpreter is exiting: no job can be submitted")
        if group.closed and not nested:
            raise RuntimeError("the coordinator was left or shut down: it takes no more jobs")
        self._numbers += 1
        run.submitted(self._numbers)
        if self.runs:
            self.crowded_until = run.submitted_at + CROWDED_NS
        self.runs[run] = None
        group.runs[run] = None
        self.scheduler.add(run.entry)
        if run.waiters and run.waiters[0].nice < run.entry.nice:
            self.lending.reckon(run)
        if run.claimable:
            self.scheduler.set_ready(run.entry)
            self.signals.generation += 1
            now = perf_counter_ns()
            if caller is not None:
                self.enter_caller(run, caller, now)
            self.summon(now, outbox)
        else:
            self.update(run, outbox)
        outbox.tell(run)

    def cancel(self, run: Run, outbox: Outbox) -> bool:
        """End a run; whether that came in time, also when it was cancelled before."""
        if run.cancelled:
            return True
        if not run.number:  # a signal came before `submit`, which will find out
            run.cancelled = True
            return True
        if run.error is not None or run.phase not in (Phase.WORK, Phase.SETTLED):
            return False
        run.cancelled = True
        self.signals.generation += 1
        self.update(run, outbox)
        self.summon(perf_counter_ns(), outbox)
        return True

    def commit(self, run: Run, outbox: Outbox) -> bool:
        """Take the result of a run that is held for it; whether the run is over."""
        if run.phase is Phase.SETTLED:
            run.commit()
            self._end(run, outbox)
        return run.over

    def update(self, run: Run, outbox: Outbox) -> None:
        """Bring a run's queueing in line with its state, and its state forward when it may."""
        while not run.claimable:
            self.scheduler.set_idle(run.entry)
            if run.entry.threads or run.async_undo or run.over:
                return
            if run.phase is Phase.SETTLED and not run.cancelled:
                return
            run.settle()
            if run.over:
                self._end(run, outbox)
                return
            if run.phase is Phase.SETTLED:
                outbox.wake(run)
                return
            self.signals.generation += 1  # an undo goes before chunks
            # And at the higher of the job's and the waiters' priority.
            if run.urgency < run.entry.nice:
                self.scheduler.set_nice(run.entry, run.urgency)
            if run.async_undo:
                outbox.undos.append(run)
                return
        self.scheduler.set_ready(run.entry, undoing=run.undoing)
        if run.caller is not None:
            outbox.parkings.append(run.caller.parking)

    def _end(self, run: Run, outbox: Outbox) -> None:
        del self.runs[run]
        group = run.entry.group
        assert isinstance(group, RunGroup)
        del group.runs[run]
        outbox.dropped += (run, run.dropped)
        run.dropped = ()
        if run.key is not None and not run.stopping:
            self.lessons.put(run.key, run.lesson())
        run.entry.run = None  # no cycle: what the job holds goes with the last reference to it
        if run.undo_failed and group is not self.root:
            # Whoever waits may be on a loop that is gone: leaving looks again who was told.
            group.undo_failed = [each for each in group.undo_failed if not each.told]
            group.undo_failed.append(run)
        outbox.tell(run)
        outbox.wake(run)
        if self.all_over is not None and not self.runs:
            outbox.waiters.append(self.all_over)

    def begin_wait(self, waiting: Run, awaited: Run, *, detect: bool, outbox: Outbox) -> None:
        """A chunk of `waiting` will wait until `awaited` ends, so that may have a helper more.

        Raises:
            DeadlockError: With `detect`, `awaited` waits for `waiting` already.
        """
        if detect:
            cycle = self.waits.chain(awaited, waiting)
            if cycle:
                raise DeadlockError([waiting.name, *(run.name for run in cycle[:-1])])
            self.waits.add(waiting, awaited)
        self.scheduler.owe(awaited.entry, 1)
        self._lend(self.lending.begin(waiting, awaited), outbox)
        self.summon(perf_counter_ns(), outbox)

    def end_wait(self, waiting: Run, awaited: Run, *, detect: bool, outbox: Outbox) -> None:
        if detect:
            self.waits.remove(waiting, awaited)
        self.scheduler.owe(awaited.entry, -1)
        self._lend(self.lending.end(waiting, awaited), outbox)

    # Priorities.

    def renice(self, run: Run, nice: int, *, gives_way: bool, outbox: Outbox) -> None:
        """Another nice: for shares at once; threads follow at once or at their next chunk."""
        self.scheduler.set_nice(run.entry, nice)
        self.scheduler.set_gives_way(run.entry, gives_way)
        self._lend(self.lending.reckon(run), outbox)
        outbox.renices += self._helpers_of(run)
        self.signals.generation += 1
        self.summon(perf_counter_ns(), outbox)

    def add_waiter(self, run: Run, waiter: Waiter, outbox: Outbox) -> None:
        run.waiters.append(waiter)
        if waiter.nice < run.urgency:
            self._lend(self.lending.reckon(run), outbox)

    def remove_waiter(self, run: Run, waiter: Waiter, outbox: Outbox) -> None:
        if waiter in run.waiters:
            run.waiters.remove(waiter)
            self._lend(self.lending.reckon(run), outbox)
        if waiter in run.watchers:
            run.watchers.remove(waiter)

    def _lend(self, runs: list[Run], outbox: Outbox) -> None:
        """The loans of these runs changed."""
        now = perf_counter_ns()
        for run in runs:
            outbox.renices += self._helpers_of(run)
            self.signals.generation += 1
            entry = run.entry
            if not entry.loan_offered or run.over:
                continue
            for frame in list(run.frames.values()):
                if frame.live and isinstance(frame.thread, Helper) and frame.thread.called:
                    self._recall(frame.thread, now, outbox)
            for frame in run.frames.values():
                helper = _carrier(frame)
                if frame.live and helper is not None and self._may_be(helper, run.urgency):
                    frame.seat = self.scheduler.take_loan(entry, frame.seat)
                    _lent(run, "at once")
                    if frame.thread is not helper:
                        helper.boost = run.urgency
                    break
            else:
                if entry.threads:
                    _lent(run, "at a chunk boundary")
        if runs:
            self.summon(now, outbox)

    def _recall(self, helper: Helper, now: int, outbox: Outbox) -> None:
        """Take back the work of a helper that was called and has not begun: others are sooner."""
        frame = helper.frame
        assert frame is not None
        frame.run.walked(frame, frame.start, now)
        self._leave(frame, now, outbox)
        self._rest(helper)

    def _helpers_of(self, run: Run) -> list[Helper]:
        carriers = (_carrier(frame) for frame in run.frames.values() if frame.live)
        return [helper for helper in carriers if helper is not None]

    def nice_of(self, helper: Helper) -> int:
        """The nice that the helper's thread should have now; its present one while it is idle."""
        frame = helper.frame
        if frame is None:
            return helper.nice
        run = frame.run
        nice = run.urgency if frame.seat is Seat.LENT else run.entry.nice
        if helper.boost is not None:
            nice = min(nice, helper.boost)
        return thread_nice(nice, self.base_nice, gil=self.gil)

    def _may_be(self, helper: Helper, nice: int) -> bool:
        """Whether the helper's thread can have what a job of this nice wants, or must do."""
        if self.no_more_threads:
            return True
        return self.may_lower or helper.nice <= thread_nice(nice, self.base_nice, gil=self.gil)

    def refused(self, helper: Helper, outbox: Outbox) -> None:
        """Its thread may not have so low a nice, so another one should do what it was to do."""
        self.may_lower = self.may_lower_again = False
        now = perf_counter_ns()
        self._recall(helper, now, outbox)
        self.summon(now, outbox)

    def serves_background(self, helper: Helper) -> bool:
        """Whether the helper serves a job that gives way to other processes."""
        frame = helper.frame
        return frame is not None and frame.seat is Seat.BACKGROUND

    def looked(self, seen: Looked | None, cpus: int, outbox: Outbox) -> None:
        """What was seen of the CPUs since the last look, if that is known."""
        nices = [run.entry.nice for run in self.runs if run.entry.gives_way]
        yielding, scheduler = self.yielding, self.scheduler
        if seen is None:
            self.yielding = yielding = Yielding()
        else:
            yielding.look(seen, cpus, min(nices, default=MOST_NICE))
        cap = scheduler.cap if yielding.threads >= cpus else yielding.threads
        if cap == scheduler.background_cap:
            return
        scheduler.background_cap = cap
        self.signals.generation += 1
        for run in self.runs:
            if run.caller is not None and run.claimable:
                outbox.parkings.append(run.caller.parking)
        self.summon(perf_counter_ns(), outbox)

    # Threads that serve runs.

    def walked(self, frame: Frame, position: int, now: int) -> bool:
        """The frame walked up to `position`; whether it has a new stretch and may go on at once."""
        run = frame.run
        run.walked(frame, position, now)
        limit = min(run.limit, run.threads_learned)
        if limit != run.entry.limit:
            self.scheduler.set_limit(run.entry, limit)
            self.signals.generation += 1
        if frame.seat is Seat.BACKGROUND and self._gives_way(frame, now):
            return False
        if self.signals.generation != frame.generation or now >= frame.slice_end:
            return False
        if frame.node is not None and not frame.helps and self._migrates(frame):
            return False
        return self._claim(frame, now)

    def _migrates(self, frame: Frame) -> bool:
        """Whether the frame's node has nothing left, so that its thread should go where it has."""
        claims = frame.run.claims
        return isinstance(claims, PartedClaims) and not claims.left_at(frame.node)

    def _place(self, frame: Frame, helper: Helper) -> None:
        """Choose the node whose parts the helper serves, and whether it is bound there.

        The one with the fewest helpers for its CPUs, of those that have room. Without room anywhere
        it helps from where it is.
        """
        claims = frame.run.claims
        frame.helps = False
        frame.node = None
        if not isinstance(claims, PartedClaims):
            return
        there = dict.fromkeys(self.node_cpus, 0)
        for other in self.serving:
            if other.node in there and not other.helps and isinstance(other.thread, Helper):
                there[other.node] += 1
        room = {
            node: (there[node] / len(self.node_cpus[node]), node != helper.node, node)
            for node in claims.nodes
            if node in there and there[node] < self._node_limit(frame.run, node)
        }
        if room:
            frame.node = min(room, key=room.__getitem__)
        else:
            frame.node, frame.helps = helper.node, True

    def _node_limit(self, run: Run, node: int) -> int:
        """The most helpers that may be bound to the node for this run."""
        group = run.entry.group
        assert isinstance(group, RunGroup)
        limit = group.tunables.get("max_threads_per_node") or self.node_limit
        return limit or len(self.node_cpus[node])

    def node_of(self, helper: Helper) -> int | None:
        """The node that the helper's thread should be bound to now."""
        frame = helper.frame
        if frame is None or frame.node not in self.node_cpus:
            return None
        return frame.node

    def _gives_way(self, frame: Frame, now: int) -> bool:
        """Pay for the CPU time of a background stretch; whether a pause follows.

        Looks around are a tenth of a second apart. A neighbour that comes between two of them is
        noticed here, by two stretches one after the other that had to wait for a CPU.
        """
        yielding = self.yielding
        cpu = thread_time_ns()
        used = cpu - max(frame.cpu_charged, frame.cpu_mark)
        frame.cpu_charged = cpu
        if yielding.pausing:
            yielding.charge(used)
            self.scheduler.background_cap = yielding.threads
            return not yielding.threads
        wall = now - max(frame.claimed_at, frame.entered_at)
        if wall - used > CONTENDED_NS and wall - used > wall * CONTENDED:
            (before_at, before), delay = frame.contended, kernel_and_delay_ns()[1]
            frame.contended = now, delay
            if now - before_at < 2 * wall + SLICE_NS and delay - before > wall * CONTENDED:
                yielding.stop()
                self.scheduler.background_cap = 0
                self.signals.generation += 1
                return True
        return False

    def raised(self, frame: Frame, error: BaseException, now: int) -> None:
        """`fn`, `undo` or `reduce` raised in the frame."""
        if frame.reducing:
            frame.run.reduce_raised(frame, error, now)
        else:
            frame.run.chunk_raised(frame, error, now)
        self.signals.generation += 1

    def reconsider(self, frame: Frame, now: int, outbox: Outbox) -> Frame | None:
        """Choose again what the frame's thread serves: None to be idle, or for a caller to wait."""
        thread, run = frame.thread, frame.run
        self._leave(frame, now, outbox)
        if isinstance(thread, Helper):
            self.find_work(thread, now, outbox)
        else:
            assert isinstance(thread, Caller)
            if not self.enter_caller(run, thread, now):
                thread.frame = None
        following = thread.frame
        self.summon(now, outbox)
        return following

    def find_work(self, helper: Helper, now: int, outbox: Outbox) -> None:
        """Give the helper its next frame, or count it among the idle ones."""
        entry = self.scheduler.choose()
        if entry is None or not self._may_be(helper, _urgency_offered(entry)):
            self._rest(helper)
            return
        self._assign(helper, entry.run, now, outbox)

    def _rest(self, helper: Helper) -> None:
        helper.frame = None
        helper.called = False
        helper.idle = True
        self.idle.append(helper)

    def _take_idle(self, nice: int) -> Helper | None:
        """An idle helper whose thread can have what a job of this nice wants.

        Of those that may not go back to a lower nice the nearest, which others want least.
        """
        if self.may_lower and self.idle:
            return self.idle.popleft()
        fitting = [helper for helper in self.idle if self._may_be(helper, nice)]
        if not fitting:
            return None
        helper = max(fitting, key=lambda each: each.nice)
        self.idle.remove(helper)
        return helper

    def enter_caller(self, run: Run, caller: Caller, now: int) -> bool:
        """Let the calling thread take part: always, but for the job's own limit."""
        if caller.quits or not run.claimable or run.entry.threads >= run.entry.limit:
            return False
        if not caller.chunks and not self.scheduler.may_enter(run.entry):
            return False
        frame = caller.frame = run.frame_of(caller)
        frame.counted = bool(caller.chunks)
        group = run.entry.group
        frame.counted_in_group = any(chunk.run.entry.group is group for chunk in caller.chunks)
        return self._enter(frame, now)

    def abandon(self, caller: Caller, now: int, outbox: Outbox) -> None:
        """The calling thread goes away with a stretch that it has not begun."""
        frame, caller.frame = caller.frame, None
        if frame is not None and frame.live:
            frame.run.walked(frame, frame.start, now)
            self._leave(frame, now, outbox)
            self.summon(now, outbox)

    def summon(self, now: int, outbox: Outbox) -> None:
        """Give idle helpers work, or have helpers started, while there is work for them.

        An idle helper finds its first stretch claimed when it wakes. Only a few are woken here:
        waking costs the waker time, perhaps on an event loop; each that wakes wakes as many more.
        """
        woken: list[Helper] = []
        while (entry := self.scheduler.choose()) is not None:
            if len(woken) == SUMMON_AHEAD:
                for helper in woken:
                    helper.relays = True
                return
            idle = self._take_idle(_urgency_offered(entry))
            if idle is None:
                wanted = self.scheduler.wanted(SUMMON_AHEAD) - self.starting
                if wanted > 0:
                    self.starting += wanted
                    outbox.starts += wanted
                return
            idle.idle = False
            idle.called = True
            self._assign(idle, entry.run, now, outbox)
            woken.append(idle)
            outbox.parkings.append(idle.parking)

    def several_chunks_wait(self) -> bool:
        """Whether some thread holds chunks that it has not begun, of a run that may have more."""
        return any(
            frame.stop - frame.start > frame.chunk
            and frame.run.entry.threads < frame.run.entry.limit
            for frame in self.serving
        )

    def not_started(self, error: RuntimeError, outbox: Outbox) -> None:
        """A helper could not be started. Without any, nothing would ever run: end what waits."""
        self.starting -= 1
        if self.idle:  # one of too high a nice is better than none
            self.no_more_threads = True
            self.summon(perf_counter_ns(), outbox)
        if self.helpers or self.starting:
            return
        for run in list(self.runs):
            if run.claimable and not run.entry.threads and run.caller is None:
                run.no_helper(error)
                self.update(run, outbox)

    def _assign(self, helper: Helper, run: Run, now: int, outbox: Outbox) -> None:
        helper.frame = run.frame_of(helper)
        self._place(helper.frame, helper)
        self._enter(helper.frame, now)
        outbox.tell(run)

    def _enter(self, frame: Frame, now: int) -> bool:
        run = frame.run
        frame.seat = self.scheduler.enter(
            run.entry, counted=frame.counted, counted_in_group=frame.counted_in_group
        )
        if frame.seat is Seat.LENT:
            _lent(run, "at once")
        elif frame.seat is Seat.BACKGROUND and isinstance(frame.thread, Helper):
            frame.thread.in_background = True
        run.enter(frame, now)
        frame.slice_end = now + SLICE_NS
        self.serving[frame] = None
        return self._claim(frame, now)

    def _claim(self, frame: Frame, now: int) -> bool:
        run = frame.run
        if len(self.runs) > 1:
            self.crowded_until = now + CROWDED_NS
        if run.sizes is not None:
            pauses = frame.seat is Seat.BACKGROUND and self.yielding.pausing
            run.sizes.be_alone(now >= self.crowded_until and not pauses)
        claimed = run.claim(frame, now, self.signals.generation)
        if not run.claims.left:
            self.scheduler.set_idle(run.entry)
        return claimed

    def _leave(self, frame: Frame, now: int, outbox: Outbox) -> None:
        del self.serving[frame]
        self.scheduler.leave(
            frame.run.entry,
            now - frame.entered_at,
            frame.seat,
            counted=frame.counted,
            counted_in_group=frame.counted_in_group,
        )
        if frame.seat is Seat.LENT:
            helper = _carrier(frame)
            if helper is not None and helper is not frame.thread:
                helper.boost = None
                outbox.renices.append(helper)
        frame.run.leave(frame, now)
        frame.stack.clear()
        self.update(frame.run, outbox)


def _carrier(frame: Frame) -> Helper | None:
    """The helper on whose thread the frame's chunks run; None for a thread of the program's own."""
    thread = frame.thread
    if isinstance(thread, Caller) and thread.chunks:
        thread = thread.chunks[-1].thread
    return thread if isinstance(thread, Helper) else None


def _urgency_offered(entry: Entry) -> int:
    """The nice at which the next thread would serve it."""
    return entry.loan if entry.loan is not None and not entry.loan_taken else entry.nice


def _lent(run: Run, when: Literal["at once", "at a chunk boundary"]) -> None:
    if run.lent == "no":
        run.lent = when
