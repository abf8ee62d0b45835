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
from contextvars import Context
from time import perf_counter_ns

from aioktask.engine import events
from aioktask.engine.frame import Frame, Signals
from aioktask.engine.helpers import Caller, Helper, Parking
from aioktask.engine.lessons import Lessons
from aioktask.engine.run import Phase, Run, Waiter
from aioktask.engine.schedule import SLICE_NS, Group, Scheduler
from aioktask.engine.waits import Waits
from aioktask.errors import DeadlockError

# How many helpers are woken at once; each that wakes wakes as many again.
SUMMON_AHEAD = 2

# Where a job was seen beside another, the next one is expected within this time.
CROWDED_NS = 1_000_000_000


class RunGroup(Group):
    """The runs of one coordinator.

    Attributes:
        runs: Those that are not over.
        closed: Whether nothing more may be submitted.
        undo_failed: Runs whose undo failed, of which perhaps nobody was told.
        learn: What its jobs learn that do not say so themselves, if it says so.
        remember: Whether they remember that.
    """

    __slots__ = ("closed", "learn", "remember", "runs", "undo_failed")

    def __init__(
        self, cap: int | None = None, learn: str | None = None, remember: bool | None = None
    ) -> None:
        super().__init__(cap)
        self.learn = learn
        self.remember = remember
        self.runs: dict[Run, None] = {}
        self.closed = False
        self.undo_failed: list[Run] = []


class Outbox:
    """What a change has to say, once the lock is free."""

    __slots__ = ("dropped", "events", "parkings", "starts", "undos", "waiters")

    def __init__(self) -> None:
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
        self.lessons = Lessons()
        self.helpers: dict[Helper, None] = {}
        self.idle: deque[Helper] = deque()
        self.starting = 0  # helpers that are being started
        self.closing = False  # whether the interpreter exits
        self.crowded_until = 0  # for how long a job expects another one beside it
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
            most_urgent = min((waiter.nice for waiter in run.waiters), default=run.entry.nice)
            if most_urgent < run.entry.nice:
                self.scheduler.set_nice(run.entry, most_urgent)
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
        self.summon(perf_counter_ns(), outbox)

    def end_wait(self, waiting: Run, awaited: Run, *, detect: bool) -> None:
        if detect:
            self.waits.remove(waiting, awaited)
        self.scheduler.owe(awaited.entry, -1)

    # Threads that serve runs.

    def walked(self, frame: Frame, position: int, now: int) -> bool:
        """The frame walked up to `position`; whether it has a new stretch and may go on at once."""
        run = frame.run
        run.walked(frame, position, now)
        limit = min(run.limit, run.threads_learned)
        if limit != run.entry.limit:
            self.scheduler.set_limit(run.entry, limit)
            self.signals.generation += 1
        if self.signals.generation != frame.generation or now >= frame.slice_end:
            return False
        return self._claim(frame, now)

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
        if entry is None:
            helper.frame = None
            helper.idle = True
            self.idle.append(helper)
            return
        self._assign(helper, entry.run, now, outbox)

    def enter_caller(self, run: Run, caller: Caller, now: int) -> bool:
        """Let the calling thread take part: always, but for the job's own limit."""
        if caller.quits or not run.claimable or run.entry.threads >= run.entry.limit:
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
            if not self.idle:
                wanted = self.scheduler.wanted(SUMMON_AHEAD) - self.starting
                if wanted > 0:
                    self.starting += wanted
                    outbox.starts += wanted
                return
            helper = self.idle.popleft()
            helper.idle = False
            self._assign(helper, entry.run, now, outbox)
            woken.append(helper)
            outbox.parkings.append(helper.parking)

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
        if self.helpers or self.starting:
            return
        for run in list(self.runs):
            if run.claimable and not run.entry.threads and run.caller is None:
                run.no_helper(error)
                self.update(run, outbox)

    def _assign(self, helper: Helper, run: Run, now: int, outbox: Outbox) -> None:
        helper.frame = run.frame_of(helper)
        self._enter(helper.frame, now)
        outbox.tell(run)

    def _enter(self, frame: Frame, now: int) -> bool:
        run = frame.run
        self.scheduler.enter(
            run.entry, counted=frame.counted, counted_in_group=frame.counted_in_group
        )
        run.enter(frame, now)
        frame.slice_end = now + SLICE_NS
        self.serving[frame] = None
        return self._claim(frame, now)

    def _claim(self, frame: Frame, now: int) -> bool:
        run = frame.run
        if len(self.runs) > 1:
            self.crowded_until = now + CROWDED_NS
        if run.sizes is not None:
            run.sizes.be_alone(now >= self.crowded_until)
        claimed = run.claim(frame, now, self.signals.generation)
        if not run.claims.left:
            self.scheduler.set_idle(run.entry)
        return claimed

    def _leave(self, frame: Frame, now: int, outbox: Outbox) -> None:
        del self.serving[frame]
        self.scheduler.leave(
            frame.run.entry,
            now - frame.entered_at,
            counted=frame.counted,
            counted_in_group=frame.counted_in_group,
        )
        frame.run.leave(frame, now)
        frame.stack.clear()
        self.update(frame.run, outbox)
