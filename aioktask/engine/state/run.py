# SPDX-License-Identifier: MIT
# One run of a job, from submit to its end.
#
# Only turns change it, but for what is said here. Nothing here blocks, starts a thread or calls the
# user's code, `combine` apart, which helpers call outside the lock.
#
#   WORK -> SETTLED -> DONE      all is done; SETTLED only where a cancel may still undo it (`hold`)
#   WORK -> UNDO -> DONE         an error or a cancel, and something to undo
#   WORK -> DONE                 an error or a cancel, and nothing to undo
#   SETTLED -> UNDO -> DONE      cancelled just after the last chunk
#
# Success, the first failure and a cancel compete for one decision, which any thread makes in one
# step (`decide`), so that `cancel()` can say at once whether it came in time; turns respect it. In
# the same way a run is either admitted by a turn or refused at submit (`decide_entrance`).
"""The life of a job that was submitted."""

from __future__ import annotations

import copy
import itertools
import threading
import weakref
from collections.abc import Mapping
from contextvars import Context
from enum import Enum
from functools import partial
from time import perf_counter_ns
from types import EllipsisType, TracebackType
from typing import Any, Literal, Protocol

from aioktask.checks import check_done
from aioktask.engine import events
from aioktask.engine.events import Beginning, Event, EventKind
from aioktask.engine.inherited import captured
from aioktask.engine.learning.lessons import Key, Lesson, Lessons
from aioktask.engine.learning.pacing import Pacing
from aioktask.engine.priority import gil_is_on
from aioktask.engine.ranges.plan import Split, facts_of
from aioktask.engine.ranges.undo import Failed, merge, outcome, subtract
from aioktask.engine.scheduling.queue import Entry
from aioktask.engine.state import record
from aioktask.engine.state.current import enclosing
from aioktask.engine.state.group import Leaver, RunGroup
from aioktask.engine.state.growth import Growth, Tally
from aioktask.engine.state.stint import Stint
from aioktask.engine.state.sweep import NOTHING, Sweep, undo_sweep, work_sweep
from aioktask.engine.state.terms import Expiry, Terms
from aioktask.engine.state.trace import Trace
from aioktask.engine.state.workers import Caller, Helper, Waiter
from aioktask.errors import ChunkCancelled, JobCancelled, Overloaded, UndoFailed, name_of_class
from aioktask.job import NO_LABELS, Bound, Failure, Job, Labels, Report, set_failure, told_of

# How long a thread serves before it is asked for the first time what it waited for.
LOOK_NS = 5_000_000

_GIL_ADVICE = (
    "more threads get no more done, since they wait for each other: the function holds the GIL (or "
    "one lock of its own). Ways there are: let it call what releases the GIL on larger blocks "
    "(NumPy, or a function compiled by numba with nogil=True); run it on a free-threaded build of "
    "Python; run it in processes (aioktask.cluster.run_in_processes)"
)
_LOCK_ADVICE = (
    "more threads get no more done, since they wait for each other: for a lock of the function's, "
    "or for that of an object which all of them change, as each list, dict and bytearray has where "
    "there is no GIL. Ways there are: let each chunk change an object of its own, and combine them "
    "(reduce=), or write into a NumPy array"
)


def gil_advice() -> str:
    """What to do where threads wait for each other, on this build as it is now."""
    return _GIL_ADVICE if gil_is_on() else _LOCK_ADVICE


class Phase(Enum):
    """Where a run stands."""

    WORK = "work"
    SETTLED = "settled"
    UNDO = "undo"
    DONE = "done"


class Decision(Enum):
    """How a run ends: decided once."""

    SUCCESS = "success"
    FAILURE = "failure"
    CANCEL = "cancel"


class Entrance(Enum):
    """Whether a run is taken in: decided once."""

    ADMITTED = "admitted"
    REFUSED = "refused"


class Start(Enum):
    """Whether a chunk of the run ever begins: decided once."""

    CLAIMED = "claimed"
    NEVER = "never"


# A member of an Enum is looked up by a function of its class (Python 3.11), which takes ten times
# as long as a look at a name of the module; and every job asks for some twenty of them.
WORK, SETTLED, UNDO, DONE = Phase
SUCCESS, FAILURE, CANCEL = Decision
ADMITTED, REFUSED = Entrance
CLAIMED, NEVER = Start


# Of runs and of what else is awaited by a deadline.
numbers = itertools.count()


class UndoLoop(Protocol):
    """The loop that a coroutine undo runs on."""

    def start_undo(self, run: Run) -> None:
        """Begin to undo `Run.undo_pieces` there."""


class UndoOnLoop(Protocol):
    """A coroutine undo on its way."""

    def rescue(self) -> None:
        """Go on in a fresh loop if its own runs no more."""


class Wait:
    """One waiter's wait for a run.

    Attributes:
        stint: The chunk that waits, or on behalf of which something waits; None for neither.
        run: The run of that chunk.
        detects: Whether the chunk itself waits, so that a cycle of waits would never end.
        watches: Whether the waiter only sees that the run is over, and is not told how it ended.
    """

    __slots__ = ("detects", "run", "stint")

    watches = False

    def __init__(self, stint: Stint | None, *, detects: bool) -> None:
        self.stint = stint
        self.run = None if stint is None else stint.run
        self.detects = detects


class WatchingWait(Wait):
    """The wait of one that watches."""

    __slots__ = ()

    watches = True


class Run:
    """One run of a job.

    What is set here is all that the submitting thread knows; a turn adds the rest, by `begin`.
    """

    # What most runs never change stands on the class: a run is made for every request of a server.
    phase = WORK
    begun = False  # whether a turn took it in
    lane_waiter: Waiter | None = None  # who waits for it while it is in the lane
    caller: Caller | None = None  # a calling thread that would take more chunks
    initial: object | EllipsisType = ...
    labels: Labels = NO_LABELS
    trace: Trace | None = None  # of one that is to be drawn
    terms: Terms | None = None  # on which it is taken in, if on any
    growth: Growth | None = None  # of a run whose range grows while it is worked on
    guests = 0  # calling threads that serve it beyond its limit, taking no units
    entry: Entry
    sweep: Sweep = NOTHING
    key: Key | None = None  # under which what it learns is remembered, if it is
    lesson: Lesson | None = None  # what is remembered: the next run should begin with it
    lessons: Lessons | None = None  # where that is kept, and what was told of functions
    directory = ""  # where on disk it is kept too, if it is
    awaits = ""  # what it will learn, once what is on disk was read; empty where it need not wait
    threads_planned = 0
    # What was done.
    done_units = chunks_done = peak_threads = 0
    first_claim = last_chunk = 0
    version = 0  # odd while a turn changes what `progress` reads
    # When a helper took the priority of a waiter, as the report says it; since when one has it now,
    # 0 for none, and how long others had it before, in ns.
    lent: Literal["no", "at once", "at a chunk boundary"] = "no"
    lent_since = lent_ns = 0
    lent_told: int | None = None  # the nice that was told to be lent
    # What went wrong.
    cancelled = cancel_posted = False
    broken = False  # whether the engine itself failed in a turn for it
    error: BaseException | None = None
    error_chunk: range | None = None
    note: tuple[BaseException, str] | None = None  # to be attached to the error, outside the lock
    errors: tuple[BaseException, ...] = ()
    failed: tuple[Failed, ...] = ()
    # What of it is undone. Of a coroutine undo its task counts the units, piece by piece.
    undone_units = 0
    undo_began = 0
    async_undo = False  # a coroutine undo is on its way
    undo_task: UndoOnLoop | None = None
    undo_pieces: tuple[range, ...] = ()  # for a coroutine undo
    undo_errors: tuple[tuple[range, BaseException], ...] = ()
    to_undo: tuple[range, ...] = ()
    unknown: tuple[range, ...] = ()
    # What is told in the end.
    value: Any = None
    report: Report[Any] | None = None
    verdict: BaseException | None = None
    dropped: list[object] | tuple[()] = ()  # what the run lets go of, until it is finalized
    told = False  # whether a waiter was given the verdict or the report
    told_started = False  # whether that is among the news, or was
    _trace: TracebackType | None = None  # of the verdict, as it was raised
    used: tuple[tuple[int, int], ...] = ()  # wall and CPU time of each thread, in ns
    gone: tuple[int, int] = 0, 0  # the same of threads that are gone, together
    failure: Failure | None = None
    past: tuple[Any, ...] | None = None  # what is kept of it, set before it is over: `record.Ended`
    bound: Bound[Any]
    _plain_value: type | None = None  # of what `reduce` returned last

    def __init__(
        self,
        job: Job[Any],
        group: RunGroup,
        *,
        nice: int,
        context: Context,
        loop: UndoLoop | None = None,
        parent: Stint | None = None,
        owned: bool = False,
    ) -> None:
        """
        Args:
            job: What to run.
            group: Of its coordinator.
            nice: The wanted one; setters publish it here before a turn follows.
            context: For the job's functions.
            loop: Where a coroutine undo runs.
            parent: The stint of the chunk in which, or on behalf of which, this run is awaited.
            owned: Whether one call waits for it and will take the result.
        """
        self.job = job
        self.name = job.name
        self.size = job.size
        if job.binds:
            self.bound = job.bind()
            self.fn = self.bound.fn
        else:
            self.fn = job.fn
        self.reduces = job.reduce is not None
        if self.reduces and job.initial is not ...:
            self.initial = copy.deepcopy(job.initial)
        self.inherited = captured()  # what helpers find in their threads beside the context
        self.group = group
        self.nice = nice
        facts = facts_of(job)
        self.limit = facts.threads
        self.only_chunk = facts.chunk  # its size, if the job is one chunk on every machine, else 0
        self.context = context
        self.loop = loop
        self.parent = None if parent is None else parent.run
        self.parent_stint = parent  # the chunk that waits for it from the beginning
        self.parent_number = 0 if parent is None else parent.run.number
        self.number: int = next(numbers)  # of this run in the process
        self.owned = owned
        self.hold = owned and job.undo is not None  # a cancel may come until `commit`
        # Held by the call that owns it while that is there: whichever way the call goes, the
        # interpreter lets go of it.
        self.attended = threading.Lock() if owned else None
        self.waiters: dict[Waiter, Wait] = {}  # who waits for it
        self.left_by: dict[Leaver, Wait] = {}  # who waits to leave its coordinator
        self.news: list[Event] = []  # to be told outside the lock
        self.stints: dict[object, Stint] = {}
        self.decisions: dict[str, Any] = {}  # once each, on any thread
        self.heard = events.routine_is_heard()
        if job.labels is not NO_LABELS:
            self.labels = job.labels
        self.submitted_at = perf_counter_ns()
        # From its 31st attribute on an object has a dictionary, which is made as that is set.
        # CPython 3.11 crashed there, in a turn, in random schedules with finalizers: so it is made
        # here, where nobody else knows the run yet; and last, since to set an attribute takes four
        # times as long from then on.
        vars(self)

    def __repr__(self) -> str:
        return f"<Run {self.number} of {self.name!r}: {self.phase.value}>"

    def have_traced(self) -> None:
        """Before it is posted: have it be kept which thread is at which part when."""
        self.trace = Trace(self.submitted_at)
        self.only_chunk = 0  # it takes the way of all runs, where turns see each stretch

    # Decided in one step, on any thread.

    def decide(self, how: Decision) -> Decision:
        """Have the run end in this way, unless its end is decided already; returns the decision."""
        decided: Decision = self.decisions.setdefault("end", how)
        return decided

    @property
    def decided(self) -> Decision | None:
        """How the run ends, if that is decided."""
        decided: Decision | None = self.decisions.get("end")
        return decided

    def decide_entrance(self, what: Entrance | Helper) -> object:
        """Have the run be admitted, refused, or taken out of the lane by this helper.

        Returns:
            What was decided, which may be what was asked for before.
        """
        return self.decisions.setdefault("entrance", what)

    def cancel(self, expiry: Expiry | None = None) -> bool:
        """Have the run end by a cancel, unless it is decided otherwise; whether that came in time.

        Where no chunk has begun, none will.

        Args:
            expiry: Why, where a time has passed; of several cancels the first one is told.
        """
        self.decisions.setdefault("expiry", expiry)
        if self.decide(CANCEL) is not CANCEL:
            return False
        self.decisions.setdefault("start", NEVER)
        return True

    @property
    def never_starts(self) -> bool:
        """Whether it was cancelled before a chunk began: it is as good as over."""
        return self.decisions.get("start") is NEVER

    def commit(self) -> bool:
        """For the owner, on its own thread: take the result of a settled run, unless a cancel came.

        From then on nothing can undo the run, and what it held is dropped, without a turn.
        """
        if self.phase is not SETTLED or self.decide(SUCCESS) is not SUCCESS:
            return False
        self._keep_past()
        self.let_go()
        self.drop()
        return True

    def prepare(self) -> None:
        """On the submitting thread: have who hears of the run prepare its context."""
        size = self.size if self.growth is None else None
        kind = record.kind_of(self)
        beginning = Beginning(self.name, self.number, kind, size, self.nice, self.labels)
        self.context = events.prepared(self.context, beginning)

    # What a turn adds.

    def begin(
        self,
        cut: Split,
        pacing: Pacing,
        key: Key | None,
        lessons: Lessons,
        *,
        directory: str = "",
        awaits: str = "",
    ) -> None:
        """In a turn: have the run begin, with its range cut like this.

        Args:
            cut: How.
            pacing: How threads take the range, by what is known in this process.
            key: Under which what it learns is remembered, if it is.
            lessons: Where.
            directory: Where on disk that is kept too; empty for nowhere.
            awaits: What it learns, where no chunk begins before `lesson_came`; else empty.
        """
        job = self.job
        self.key, self.lessons = key, lessons
        self.directory, self.awaits = directory, awaits
        growth = self.growth
        if growth is None:
            self.sweep = work_sweep(job, self.fn, cut, pacing)
        else:
            self.sweep = Sweep(self.fn, growth.claims, pacing)
        self.threads_planned = cut.threads
        self.entry = Entry(self, self.group, self.nice, self.thread_limit)
        self.entry.memory = job.memory or 0
        self.begun = True
        if not awaits:
            self._tell_submitted()

    def lesson_came(self, pacing: Pacing | None) -> None:
        """In a turn: have chunks begin, by this pacing if what is on disk gave one."""
        self.awaits = ""
        if pacing is not None:
            self.sweep.pacing = pacing
        self._tell_submitted()

    def _tell_submitted(self) -> None:
        if self.heard:
            chunk = self.sweep.pacing.chunk_of(self.sweep.claims.chunk)
            self.tell_submitted(chunk, self.threads_planned)

    def tell_submitted(self, chunk: int, threads: int) -> None:
        """Tell that it came in, and how it is going to be run."""
        size = self.size if self.growth is None else None
        told = {"size": size, "chunk": chunk, "threads": threads}
        self._tell_at(self.submitted_at, EventKind.SUBMITTED, told)

    def tell_started(self) -> None:
        """Tell that its first chunk began, when that was."""
        self.told_started = True
        first = self.first_claim
        queued = (first - self.submitted_at) / 1e9
        self._tell_at(first, EventKind.STARTED, {"queued": queued})

    @property
    def may_have_begun(self) -> bool:
        """Whether its first chunk has begun, or nothing can prevent that any more."""
        return self.decisions.get("start") is CLAIMED

    def may_start(self) -> bool:
        """Whether its first chunk may begin; if so, no cancel prevents it from now on."""
        if "end" in self.decisions:
            return False
        return self.decisions.setdefault("start", CLAIMED) is CLAIMED

    @property
    def is_part(self) -> bool:
        """Whether it is a part of a job of another process; what a chunk of one runs is not."""
        return self.group.are_parts and not self.parent_number

    @property
    def urgency(self) -> int:
        """The nice at which a wait inside a chunk of this run counts."""
        if not self.begun:  # or it stands for one that is over
            return self.nice
        return self.entry.nice if self.entry.loan is None else self.entry.loan

    @property
    def thread_limit(self) -> int:
        """The most threads that may serve it, as far as the job itself decides."""
        return self.sweep.pacing.threads_of(self.limit) + self.guests

    def caps_moved(self, cap: int) -> None:
        """Plan anew: process and coordinator allow `cap` threads now, or `limit` is another."""
        self.threads_planned = max(min(self.limit, cap), 1)
        self.sweep.pacing.widen(self.threads_planned)

    # What may happen now.

    @property
    def over(self) -> bool:
        return self.phase is DONE

    @property
    def ended(self) -> bool:
        """Whether its owner has nothing to wait for.

        It is over, or as good as that, or its result was taken.
        """
        phase = self.phase
        if phase is DONE or self.never_starts:
            return True
        return phase is SETTLED and self.decided is SUCCESS

    @property
    def cancel_asked(self) -> bool:
        """Whether a cancel came in time, whether it took effect yet or not."""
        return self.decided is CANCEL

    @property
    def expired(self) -> bool:
        """Whether it was ended since a time had passed."""
        return self.decided is CANCEL and self.decisions.get("expiry") is not None

    @property
    def refused(self) -> bool:
        """Whether it was not taken in, and will not be."""
        return self.decisions.get("entrance") is REFUSED

    @property
    def settled(self) -> bool:
        """Whether all is done, and a cancel may still undo it."""
        return self.phase is SETTLED

    @property
    def working(self) -> bool:
        """Whether there are chunks that have not ended, or not begun."""
        return self.phase is WORK

    @property
    def unfinished(self) -> bool:
        """Whether some unit is neither done nor given up."""
        return bool(self.sweep.claims.left) or any(
            stint.live for stint in list(self.stints.values())
        )

    @property
    def undoing(self) -> bool:
        """Whether what was done is being undone."""
        return self.phase is UNDO

    @property
    def stopping(self) -> bool:
        """Whether no new chunk may begin."""
        return self.error is not None or self.cancelled

    @property
    def claimable(self) -> bool:
        """Whether a thread would find something to do."""
        if not self.sweep.claims.left or self.never_starts:
            return False
        if self.phase is WORK:
            return not self.stopping and not self.awaits
        return self.phase is UNDO and not self.async_undo

    @property
    def awaits_more(self) -> bool:
        """Whether units may be added, so that it is not over when all there are have been done."""
        return self.sweep.claims.open and self.phase is WORK and not self.stopping

    def unwanted(self) -> bool:
        """Whether this run, or one of those whose chunks it was submitted for, wants to end."""
        run: Run | None = self
        while run is not None:
            if run.undoing:
                return False  # an undo is wanted whatever was cancelled around it
            if run.working and (run.stopping or run.cancel_asked):
                return True
            run = run.parent
        return False

    # A thread comes, walks and goes.

    def stint_of(self, thread: object) -> Stint:
        """The thread's stint: one for each thread and run, with a context of its own."""
        stint = self.stints.get(thread)
        if stint is None:
            stint = Stint(self, thread, self.context.copy())
            stint.look_at = LOOK_NS
            stint.context.run(enclosing.set, weakref.ref(stint))
            # The thread itself and a turn may both be the first to ask, in the lane.
            stint = self.stints.setdefault(thread, stint)
        return stint

    def enter(self, stint: Stint, now: int) -> None:
        """Have the stint's thread serve this run from now on."""
        stint.live = True
        stint.failed = False
        stint.entered_at = now
        if self.entry.threads > self.peak_threads:
            self.peak_threads = self.entry.threads
        if not self.first_claim:
            self.first_claim = now
            if self.terms is not None:
                self.terms.began(self, now)
            if self.trace is not None:
                self.trace.mark("the first chunk begins", now)
            if self.heard:
                self.tell_started()

    def leave(self, stint: Stint, now: int, *, began: bool) -> None:
        """Have the stint's thread serve this run no more.

        Args:
            stint: Its clocks were read by the thread itself, where it `began` its stretch.
            now: The time.
            began: Whether it served at all; else its work was taken back before it came to it.
        """
        stint.live = False
        stint.busy += now - stint.entered_at
        if not began:
            return
        stint.cpu += stint.cpu_now - stint.cpu_mark
        stint.cpu_mark = stint.cpu_now
        self.sweep.compare_clocks(stint, self.entry.threads + 1)

    def claim(self, stint: Stint, now: int, generation: object) -> bool:
        """Give the stint a stretch to walk; False when there is none."""
        if not self.claimable:
            return False
        if not self.chunks_done and self.decisions.setdefault("start", CLAIMED) is NEVER:
            return False
        self.version += 1
        self.sweep.claim(stint, self.entry.threads - self.guests, self.threads_planned, now)
        stint.generation = generation
        self.version += 1
        return True

    def walked(self, stint: Stint, position: int, now: int) -> None:
        """Take in that the stint walked its stretch up to `position`; the rest is free again."""
        self._close_stretch(stint, position, position, now)

    def chunk_raised(self, stint: Stint, error: BaseException, now: int) -> None:
        """Take in that the chunk at ``stint.chunk_start`` raised `error`."""
        if self.trace is not None:
            self.trace.mark(f"raised {name_of_class(type(error))}", now, stint.thread)
        chunk = range(stint.chunk_start, stint.chunk_stop())
        upto = stint.advanced_to if stint.advanced_from == chunk.start else chunk.start
        self._close_stretch(stint, chunk.start, chunk.stop, now)
        if self.undoing:
            self.undo_errors += ((chunk, error),)
            return
        if chunk:
            self.failed += (Failed(chunk.start, upto, chunk.stop),)
        self.done_units += upto - chunk.start
        if issubclass(type(error), ChunkCancelled) and self.unwanted():
            if self.error is None:
                self.stop_by_cancel()
        elif chunk:
            self._add_error(error, f"in the chunk {chunk.start} to {chunk.stop}", chunk)
        else:
            self._add_error(error, "between two chunks")

    def reduce_raised(self, stint: Stint, error: BaseException, now: int) -> None:
        """Take in that `reduce` raised.

        The chunks up to ``stint.chunk_start`` are done, without a value.
        """
        stint.reducing = False
        self._close_stretch(stint, stint.chunk_start, stint.chunk_start, now)
        self._add_error(error, "in reduce")

    def _close_stretch(self, stint: Stint, done: int, free: int, now: int) -> None:
        """End the stint's stretch, which is done up to `done`, and free again from `free` on."""
        if done > stint.stretch_stop:  # what it had not begun was taken back: see `take_back`
            done = free = stint.stretch_stop
        if self.trace is not None:
            chunks = stint.chunks_up_to(done)
            self.trace.stretch(stint, done, chunks, now, undoing=self.undoing)
        if self.sweep.learn(stint, done, self.entry.threads - self.guests, now):
            self._tell_of_gil()
        self.version += 1
        if not self.undoing:
            self.done_units += done - stint.stretch_start
            self.chunks_done += stint.chunks_up_to(done)
            self.last_chunk = now
        else:
            self.undone_units += done - stint.stretch_start
        self.sweep.give_back(stint, free)
        self.version += 1

    def follow_growth(self) -> None:
        """Have the range end where its `Growth` says now."""
        growth = self.growth
        if growth is None or self.stopping or self.phase is not WORK:
            return
        closed = growth.closed  # in this order: what is added later is in `pending` before
        self.version += 1
        growth.claims.grow(growth.stop)
        growth.claims.trim(len(growth.pending))
        if closed:
            growth.claims.close()
        self.version += 1
        if self.terms is not None:
            has_something = self.entry.threads > self.guests or growth.claims.left > 0
            if has_something or not closed:  # else it ends now, as what it was counted as
                self.terms.follow(self, has_something=has_something)

    def take_back(self, stint: Stint) -> None:
        """Have the units be free again that the stint holds, and has not begun, of a growing range.

        The walks were told to end at the next chunk before. A thread that was just past its look at
        that begins one unit more, which another one gets too. That does no harm: a unit is leave to
        take the item that is next, and one that finds none does nothing.
        """
        free = max(stint.chunk_start + 1, stint.stretch_start)
        if stint.live and free < stint.stretch_stop:
            self.version += 1
            self.sweep.claims.give_back(free, stint.stretch_stop)
            stint.stretch_stop = free
            self.version += 1

    def forget_thread(self, thread: object) -> None:
        """Drop the stint of a thread that is gone: many may come and go in the time of this run."""
        stint = self.stints.pop(thread, None)
        if stint is not None:
            busy, cpu = self.gone
            self.gone = busy + stint.busy, cpu + stint.cpu

    def _tell_of_gil(self) -> None:
        if self.lessons is None or self.lessons.tell_once(self.job):
            self.tell(EventKind.HOLDS_GIL, threads=self.thread_limit, advice=gil_advice())

    def _add_error(self, error: BaseException, where: str, chunk: range | None = None) -> None:
        if self.stopping:
            if error is not self.error:
                self.errors += (error,)
            return
        if self.decide(FAILURE) is CANCEL:  # it came in time, and was told so
            self.cancelled = True
            self.errors += (error,)
            return
        self.error = record.raisable(error)
        self.error_chunk = chunk
        if not self.job.single_call:  # where the traceback says all that there is to say
            self.note = self.error, f"raised {where} of the job {self.name!r}"

    def stop_by_cancel(self) -> None:
        """Have a cancel take effect, if it came in time."""
        if self.decide(CANCEL) is CANCEL:
            self.cancelled = True

    # The run as a whole.

    def advance(self) -> None:
        """Go on to the next phase, where no thread serves the run and nothing is claimable."""
        if self.phase is WORK and not self.stopping:
            if self.hold:
                if self.decided is not CANCEL:
                    self._make_report()
                    self.phase = SETTLED
                    return
            elif self.decide(SUCCESS) is SUCCESS:
                self._make_report()
                self._end_well()
                return
            self.cancelled = True  # it came in time, and its command is on the way
        if self.phase is UNDO:
            self._finish()
        elif not self.over:
            self._stop()

    def committed(self) -> None:
        """Take in that the owner took the result of a settled run: see `commit`."""
        if self.terms is not None:  # again: the owner may have been struck as it did so
            self.terms.ended(self, perf_counter_ns())
        if self.past is None:  # the owner was struck before it could keep that
            self._keep_past()
        self.phase = DONE
        self._tell_success()

    def undo_ended(self, errors: tuple[tuple[range, BaseException], ...]) -> None:
        """Take in that the coroutine undo is through, and of which pieces it failed."""
        self.async_undo = False
        self.undo_errors += errors

    def do_not_begin(self, error: BaseException | None) -> None:
        """End a run of which nothing was done: by this error, or by the cancel that came first."""
        if not self.cancelled:
            self.error = error
        self._finish()

    def break_down(self, error: BaseException) -> None:
        """End a run that a turn left half-way, so that what was done is not known any more."""
        self.broken = True
        self.version += self.version & 1
        if self.over:
            return
        untouched = [range(*each) for each in self.sweep.claims.free] if not self.undoing else []
        whole = range(self.job.start, self.job.stop)
        unknown = subtract(whole, untouched) if self.first_claim else ()
        self.to_undo, self.unknown, self.undo_errors = (), unknown, ()
        if self.decide(FAILURE) is CANCEL and self.error is None:
            self.cancelled = True
            if self.job.undo is not None:  # who cancelled is told of more than the cancel
                self.undo_errors, self.unknown = tuple((each, error) for each in unknown), ()
        elif self.error is None:
            self.error = error
        else:
            self.errors += (error,)
        self._finish()

    def no_helper(self, error: BaseException) -> None:
        """Have the run, or its undo, fail: no thread could be had for it, and none will be."""
        if self.undoing:
            self.undo_errors += tuple((range(*piece), error) for piece in self.sweep.claims.free)
            self.sweep.claims.clear()
        else:
            self._add_error(error, "for want of a helper")

    @property
    def undo_failed(self) -> bool:
        """Whether the end of this run is an `UndoFailed`."""
        return issubclass(type(self.verdict), UndoFailed)

    def _stop(self) -> None:
        if not self.never_starts and self.growth is None:  # else nothing is known to be done
            found = outcome(
                range(self.job.start, self.job.stop), self.sweep.claims.free, self.failed
            )
            self.to_undo, self.unknown = found.done, found.unknown
        if self.sweep.tree is not None:
            self.sweep.tree.waiting.clear()
        undo = None if self.job.undo is None else self.bound.undo or self.job.undo
        if undo is None or not self.to_undo:
            self.sweep.claims.clear()
            self._finish()
            return
        self.async_undo = self.job.undo_is_async
        self.undo_began = perf_counter_ns()
        pacing = self.sweep.pacing.for_undo()
        sweep = undo_sweep(self.job, undo, self.to_undo, self.threads_planned, pacing)
        self.sweep, self.phase = sweep, UNDO
        if self.trace is not None:
            why = "cancelled" if self.error is None else "failed"
            self.trace.mark(f"{why}: undo begins", perf_counter_ns())
        if self.async_undo:
            claims, pieces = sweep.claims, []
            while claims.left:
                start, _, stop = claims.take(claims.chunk, 1)
                pieces.append(range(start, stop))
            self.undo_pieces = tuple(pieces)

    def _make_report(self) -> None:
        if self.bound.value is not None:
            self.value = self.bound.value()
        elif self.sweep.tree is not None:
            self.value = self.sweep.tree.value() if self.job.size else self.initial
        self.used = tuple([(stint.busy, stint.cpu) for stint in self.stints.values()])
        if self.gone[0]:
            self.used += (self.gone,)
        self.report = record.report(self)
        if self.key is not None:
            elapsed = self.last_chunk - self.first_claim
            speed = self.done_units / elapsed if elapsed > 0 else 0.0
            self.lesson = self.sweep.pacing.lesson(speed)

    def _end_well(self) -> None:
        self._tell_success()
        self._keep_past()
        self.let_go()
        self.phase = DONE

    def _tell_late_start(self) -> None:
        """Tell that it started, where a turn took it over from the lane before that was certain."""
        if self.heard and self.first_claim and not (self.told_started or self.never_starts):
            self.tell_started()

    def _keep_past(self) -> None:
        """Keep what is remembered of the run for a while: it is over, or will be in a moment."""
        now = perf_counter_ns()
        if self.begun:
            self.past = record.ended(self, now)
            if self.growth is not None:
                tally = self.growth.tally()
                self.growth.tally = partial(Tally, *tally)
        elif self.report is not None:
            last_chunk = self.first_claim + int(self.report.elapsed * 1e9)
            self.past = record.ended_in_lane(self, last_chunk, now)
        else:
            self.past = record.ended(self, now)

    def _tell_success(self) -> None:
        if self.heard:
            self._tell_late_start()
            self.tell_of_success()

    def tell_of_success(self) -> None:
        """Tell how it went, by its report."""
        report = self.report
        assert report is not None
        learned = report.learned
        if learned.rate:
            self.tell(
                EventKind.LEARNED,
                chunk=learned.chunk,
                threads=learned.threads,
                rate=learned.rate,
                settled=learned.settled,
                remembered=learned.remembered,
            )
        self.tell(
            EventKind.FINISHED,
            elapsed=report.elapsed,
            queued=report.queued,
            chunks=report.chunks,
            threads=report.peak_threads,
            **record.lent_seconds(self),
        )

    def _finish(self) -> None:
        if self.awaits:
            self.awaits = ""
            self._tell_submitted()
        self.failure = record.failure(self)
        self.verdict = self.error
        if self.error is not None:
            set_failure(self.error, self.failure, self.parent_number)
        self._tell_late_start()
        figures = record.figures_of_failure(self)
        undoing = figures.get("undoing", 0.0)
        if self.undo_errors:
            cause = self.error if self.error is not None else self.cancellation()
            self.verdict = record.undo_failed(self, self.failure, cause)
            ranges = self.failure.done
            self.tell(EventKind.UNDO_FAILED, ranges=ranges, error=self.verdict, undoing=undoing)
        elif self.undoing and not self.broken:
            self.tell(EventKind.UNDONE, ranges=self.failure.undone, undoing=undoing)
        if self.error is not None:
            self.tell(EventKind.FAILED, error=self.error, chunk=self.error_chunk, **figures)
        elif not self.refused:  # which is told already
            failure = self.failure
            expiry: Expiry | None = self.decisions.get("expiry")
            if expiry is not None:
                figures["expired"] = expiry.message
            self.tell(EventKind.CANCELLED, done=failure.done, undone=failure.undone, **figures)
        if self.verdict is not None:
            self._trace = self.verdict.__traceback__
        self._keep_past()
        self.errors, self.failed, self.undo_errors = (), (), ()
        self.undo_task = None
        self.let_go()
        self.phase = DONE

    def let_go(self) -> None:
        """Let go of what only a running job needs.

        In a turn what goes is kept in `dropped` until the lock is free, since it may be the last
        reference, and finalizers may be user code.

        What the engine made is emptied too: without the GIL it goes when the thread that made it
        next runs, which may be a helper that is parked for long.
        """
        sweep = self.sweep
        if self.terms is not None:
            self.terms.ended(self, perf_counter_ns())
        self._drop_later(
            self.fn,
            self.bound,
            sweep,
            sweep.fn,
            sweep.tree,
            self.stints,
            self.loop,
            self.parent,
            self.initial,
            self.job,
        )
        for stint in self.stints.values():
            # Its thread looks at the stint once more after the waiter was woken, who may by then
            # want to close the memory that the job's function holds.
            stint.run = OVER
            if self.growth is None:
                # An exception in an executor's future leads by its traceback to the frames around
                # the chunk, which refer to the stint and to the run.
                self._drop_later(stint.context)
                stint.context = Context()
        if not (self.heard or self.news or self.growth is not None):
            self.drop_context()
        self.stints = {}
        self.trace = None  # what it kept is told by now
        self.sweep = NOTHING
        self.fn = sweep.fn = NOTHING.fn
        sweep.tree = None
        self.bound = _UNBOUND
        self.loop = self.parent = self.parent_stint = self.caller = None
        if self.reduces:
            self.initial = ...
        self.job = OVER.job if not self.job.single_call else _OVER_CALL

    def drop(self) -> None:
        """Have what the run let go of be finalized; outside the lock, since user code may run.

        On any thread, more than once too.
        """
        dropped, self.dropped = self.dropped, ()
        if dropped:
            dropped.clear()  # as this thread may do; the list goes with the thread that made it

    def _drop_later(self, *things: object) -> None:
        dropped = self.dropped or []  # asked once: another thread may drop it meanwhile
        dropped += things
        self.dropped = dropped

    def drop_context(self) -> None:
        """Let go of the context too, in which nothing is left to be told."""
        self._drop_later(self.context)
        self.context = OVER.context

    def check_done(self, result: object) -> type:
        """The type of what the job's function returned, unless that says that nothing was done.

        Raises:
            TypeError: It is an awaitable or a generator; see `checks.check_done`.
        """
        return check_done(result, "undo" if self.undoing else "fn", self.name)

    def combine(self, left: Any, right: Any) -> Any:
        """What the job's `reduce` makes of two values. Called outside the lock."""
        reduce = self.job.reduce
        assert reduce is not None
        value = reduce(left, right)
        if value is not None and type(value) is not self._plain_value:
            self._plain_value = check_done(value, "reduce", self.name)
        return value

    def cancellation(self) -> JobCancelled | Overloaded | TimeoutError:
        """A new exception that tells a waiter of the cancel, or of the time that has passed."""
        expiry: Expiry | None = self.decisions.get("expiry")
        error: JobCancelled | Overloaded | TimeoutError
        if expiry is not None:
            error = expiry.exception()
        else:
            what = "job" if self.growth is None else "stream"
            error = JobCancelled(f"the {what} {self.name!r} was cancelled")
        if self.failure is not None:
            set_failure(error, self.failure, self.parent_number)
        return error

    def _is_told(self) -> None:
        self.told = True
        self.group.undo_failed.pop(self.number, None)

    def result(self) -> Report[Any]:
        """Return the report of a run that is over or committed, or raise how it ended."""
        self._is_told()
        report = self.report
        if report is not None and self.decided is SUCCESS:
            if not self.begun:  # the helper that ended it in the lane may refer to it still
                self.report = self.value = None
            return report
        # An exception may be false, as one with a length of 0 is.
        verdict = self.cancellation() if self.verdict is None else self.verdict
        trace = self._trace
        if self.owned:  # nobody else will ask, and the traceback will lead back to here
            self.verdict = self.error = self._trace = None  # `name_outcome` may need the failure
        try:
            # Each raise would add to the traceback of the one exception that all waiters get.
            raise BaseException.with_traceback(verdict, trace)
        finally:
            del verdict, trace, self

    def raise_failed_undo(self, cause: BaseException) -> None:
        """For the owner: raise the failure of the run's undo, if that failed, with this cause.

        Raises:
            UndoFailed: The undo failed.
        """
        if not (self.over and self.undo_failed):
            return
        self._is_told()
        verdict, self.verdict, self.error = self.verdict, None, None
        self._trace = None
        assert verdict is not None
        verdict.__cause__ = cause
        try:
            raise verdict
        finally:
            del verdict, cause, self

    def name_outcome(self, error: BaseException, job: Job[Any]) -> None:
        """Have `failure` tell of this run for an exception that ends its owner's call.

        Such an exception is not the job's: it is a cancellation, or one that struck from outside.
        """
        found: Failure | Job[Any] | None = self.failure
        if not self.ended or told_of(error) is not None:
            return
        if found is None:  # only for its owner is it over: no chunk began, or all is done
            if self.never_starts:
                found = job
            else:
                found = Failure(job, None, (), merge([range(job.start, job.stop)]), (), ())
        set_failure(error, found, self.parent_number)

    def tell(self, kind: EventKind, **details: object) -> None:
        self._tell_at(perf_counter_ns(), kind, details)

    def _tell_at(self, when: int, kind: EventKind, details: Mapping[str, object]) -> None:
        awaited = self.owned or self.is_part or self._is_awaited()
        what, at = record.kind_of(self), events.at(when)
        self.news.append(
            Event(kind, self.name, self.number, details, awaited, self.labels, what, at)
        )

    def has_loan(self, now: int) -> None:
        """Take in that a thread serves it at the nice of a waiter from now on."""
        if not self.lent_since:
            self.lent_since = now
        if self.heard and self.lent_told != self.entry.loan:
            self.lent_told = self.entry.loan
            self.tell(EventKind.LENT, nice=self.entry.loan)

    def leaves_loan(self, now: int) -> None:
        """Take in that the thread which served it at the nice of a waiter does so no more."""
        if self.lent_since:
            self.lent_ns += now - self.lent_since
            self.lent_since = 0

    def loan_ends(self, now: int) -> None:
        """Take in that no waiter lends it anything now."""
        self.leaves_loan(now)
        if self.lent_told is not None:
            self.lent_told = None
            self.tell(EventKind.LENT_NO_MORE, **record.lent_seconds(self))

    def _is_awaited(self) -> bool:
        """Whether somebody waits for it who is told how it ends."""
        return not all(wait.watches for wait in self.waiters.values())


_UNBOUND: Bound[Any] = Bound(NOTHING.fn)

Run.bound = _UNBOUND  # of a run whose job binds nothing

# What stints of a run that is over refer to: a run that wants nothing any more and holds nothing.
OVER = Run(Job(NOTHING.fn, 0, name="over"), RunGroup(), nice=0, context=Context())
OVER.phase = DONE


class _CallJob(Job[None]):
    """Stands for the job of a call that is over."""

    single_call = True


_OVER_CALL = _CallJob(NOTHING.fn, 0, name="over")
