# SPDX-License-Identifier: MIT
# The fault harness: random jobs over real helpers, with faults injected at random steps.
#
# A Trial makes one job whose function writes down, unit by unit, what it did, and whose undo writes
# down what it undid. Faults are tied to the number of a call, not to a time: "the 7th chunk
# raises", "at the 3rd chunk the job is cancelled". Afterwards `check` compares the ledger with what
# the engine said.
#
# `interrupted` adds what comes at any time: handlers of signals and finalizers that call the
# library, handlers that raise, system calls and threads that are denied.

from __future__ import annotations

import contextlib
import functools
import gc
import os
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import aioktask
from aioktask import (
    ChunkCancelled,
    Coordinator,
    Handle,
    Job,
    JobCancelled,
    Part,
    Report,
    UndoFailed,
    current_chunk,
    failure,
    run_multithreaded_sync,
)
from aioktask.engine.api.process import current_pool
from aioktask.engine.priority import gil_is_on
from aioktask.engine.threads.pool import Pool
from tests.support.gates import LOOK_SECONDS

MOST_THREADS = 6  # four helpers, a calling thread, a helper owed to a nested job

# What interrupts schedules; AIOKTASK_TEST_INTERRUPTIONS names some of these, with blanks.
INTERRUPTIONS = os.environ.get(
    "AIOKTASK_TEST_INTERRUPTIONS", "nothing handler finalizer denial alarm"
).split()

ERRORS: list[Callable[[], BaseException]] = [
    lambda: OSError(12, "planted"),
    lambda: ValueError("planted"),
    lambda: KeyError("planted"),
    lambda: StopIteration("planted"),
    lambda: SystemExit("planted"),
]


class Alarm(Exception):  # noqa: N818 - as a program would call it
    """What a signal handler raises in the middle of a call."""


class Ledger:
    """What was done and undone, counted for each unit."""

    def __init__(self, job_range: range) -> None:
        self.units = job_range
        self.done = [0] * len(job_range)
        self.undone = [0] * len(job_range)
        self.lock = threading.Lock()

    def mark(self, counts: list[int], start: int, stop: int) -> None:
        with self.lock:
            for unit in range(start, stop):
                counts[unit - self.units.start] += 1

    def where(self, wanted: Callable[[int, int], bool]) -> set[int]:
        return {
            unit
            for unit, done, undone in zip(self.units, self.done, self.undone, strict=True)
            if wanted(done, undone)
        }


class Trial:
    """One random job, its faults, and the check of what came of it."""

    def __init__(self, rng: random.Random, *, loop_runs: bool, depth: int = 0) -> None:
        self.rng = random.Random(rng.random())
        rng = self.rng
        self.depth = depth
        self.size = rng.choice([0, 1, 7, rng.randint(1, 60), rng.randint(60, 600)])
        start = rng.choice([0, 0, rng.randint(-50, 1000)])
        align = rng.choice([1, 1, 4, 16])
        min_chunk = rng.choice([1, 1, rng.randint(1, 40)])
        chunk = rng.choice([None, align * rng.randint(1, 8), align])
        if chunk is not None and chunk < min_chunk:
            min_chunk = 1
        self.grain = chunk or -(-max(min_chunk, align) // align) * align
        self.ledger = Ledger(range(start, start + self.size))
        self.undo_kind = rng.choice(["none", "plain", "plain", "coroutine"])
        if self.undo_kind == "coroutine" and not loop_runs:
            self.undo_kind = "plain"
        self.reduces = rng.random() < 0.3
        # A time that is over at any moment, or one that never is.
        self.timeout = rng.choice([None, None, None, 600.0, rng.uniform(1e-5, 2e-3)])
        self.calls = self.undo_calls = 0
        self.count_lock = threading.Lock()
        self.finished = False
        self.controls: list[Callable[[], object]] = []  # what may cancel, renice or move a cap
        self.handles: list[Handle[Any]] = []  # what handlers and finalizers may use
        likely = max(self.size // self.grain, 1)
        self.fail_at = {rng.randint(1, likely + 2)} if rng.random() < 0.35 else set()
        if self.fail_at and rng.random() < 0.3:
            self.fail_at.add(rng.randint(1, likely + 2))
        self.reduce_fails_at = rng.randint(1, likely + 2) if rng.random() < 0.1 else 0
        self.undo_fails_at = {rng.randint(1, 6)} if rng.random() < 0.2 else set()
        self.control_at = rng.randint(1, likely + 2) if rng.random() < 0.6 else 0
        self.nest_at = rng.randint(1, likely + 2) if depth < 2 and rng.random() < 0.2 else 0
        self.nested: Trial | None = None
        self.error = rng.choice(ERRORS)
        parts = None
        self.edges: set[int] = set()
        self.calls_at_cancel: int | None = None
        if self.size > 3 and rng.random() < 0.3:
            edge = start + rng.randint(1, self.size - 1)
            parts = [Part(start, edge, 0), Part(edge, start + self.size)]
            if not self.reduces:  # there, edges move to the leaves
                self.edges = {edge}
        options: dict[str, Any] = {
            "start": start,
            "align": align,
            "min_chunk": min_chunk,
            "chunk": chunk,
            "max_threads": rng.choice([None, None, 1, 2, 3]),
            "nice": rng.choice([0, 0, -5, 10, 19]),
            "parts": parts,
            "name": f"trial-{depth}",
        }
        if self.undo_kind == "plain":
            options["undo"] = self.undo
        elif self.undo_kind == "coroutine":
            options["undo"] = self.undo_async
        if self.reduces:
            options["reduce"] = self.reduce
            options["initial"] = ()
        self.job: Job[Any] = Job(self.chunk, self.size, **options)
        self.watch = weakref.ref(self)

    # What the job does.

    def chunk(self, start: int, stop: int) -> object:
        with self.count_lock:
            self.calls += 1
            call = self.calls
        assert not self.finished, "a chunk began after the job was over"
        assert not any(start < edge < stop for edge in self.edges), "a chunk crosses a part's edge"
        if call == self.control_at:
            for control in self.controls:
                if control() is True:  # cancelled, in time
                    with self.count_lock:
                        self.calls_at_cancel = self.calls
        if call % 5 == 0:
            os.sched_yield()
        if call == self.nest_at:
            self.nest()
        if call in self.fail_at:
            self.fail(start, stop)
        if call % 7 == 0:
            self.look_for_cancel(start)
        self.ledger.mark(self.ledger.done, start, stop)
        return (start, stop) if self.reduces else None

    def fail(self, start: int, stop: int) -> None:
        upto = start
        for _ in range(self.rng.randint(0, 2)):
            if upto < stop:
                reached = self.rng.randint(upto, stop)
                self.ledger.mark(self.ledger.done, upto, reached)
                upto = reached
                current_chunk().advance(upto)
        raise self.error()

    def look_for_cancel(self, start: int) -> None:
        current_chunk().check_cancelled()

    def nest(self) -> None:
        self.nested = Trial(self.rng, loop_runs=False, depth=self.depth + 1)
        self.nested.run_sync()
        self.nested.check()

    def undo(self, start: int, stop: int) -> None:
        with self.count_lock:
            self.undo_calls += 1
            call = self.undo_calls
        assert not self.finished, "undo ran after the job was over"
        if call in self.undo_fails_at:
            raise self.error()
        self.ledger.mark(self.ledger.undone, start, stop)

    async def undo_async(self, start: int, stop: int) -> None:
        import anyio.lowlevel

        await anyio.lowlevel.cancel_shielded_checkpoint()
        self.undo(start, stop)

    def reduce(self, a: Any, b: Any) -> Any:
        """Brackets, so that the result shows the tree."""
        if self.reduce_fails_at:
            self.reduce_fails_at -= 1
            if not self.reduce_fails_at:
                raise self.error()
        return (a, b)

    # How it is run and what came of it.

    outcome: Report[Any] | BaseException | None = None

    def run_sync(self) -> None:
        try:
            self.outcome = run_multithreaded_sync(self.job, timeout=self.timeout)
        except BaseException as error:
            self.outcome = error
        self.finished = True

    def check(self) -> None:
        ledger, outcome = self.ledger, self.outcome
        assert outcome is not None
        more_than_once = ledger.where(lambda done, undone: done > 1 or undone > done)
        assert not more_than_once, f"done twice or undone too often: {sorted(more_than_once)}"
        kept = ledger.where(lambda done, undone: done > undone)
        everything = set(ledger.units)
        if self.calls_at_cancel is not None:
            # Those that were past the look at the signals, one a thread.
            assert self.calls <= self.calls_at_cancel + MOST_THREADS, "chunks began after a cancel"
        if isinstance(outcome, Report):
            assert kept == everything, f"reported as done, but not: {everything - kept}"
            if self.reduces:
                assert list(leaves_of(outcome.value)) == sorted(everything)
            return
        told = self.told(outcome)
        unknown = units_of(told.unknown) if told is not None else set()
        raised = (outcome, outcome.__cause__, *(() if told is None else told.errors))
        if any(isinstance(each, Alarm) for each in raised):
            kept = kept - unknown  # a chunk that an alarm ends may have marked its units already
        if isinstance(outcome, UndoFailed):
            assert units_of(outcome.ranges) == kept
        elif isinstance(outcome, Alarm) and kept == everything:
            return  # it came when all was done, as if right after the call
        elif self.undo_kind != "none" and not (isinstance(outcome, Alarm) and told is not None):
            assert not kept, f"neither done nor undone: {sorted(kept)} after {outcome!r}"
        if told is not None:
            assert units_of(told.done) == kept
            assert units_of(told.undone) == ledger.where(lambda done, undone: undone > 0)
            assert not unknown & (kept | units_of(told.undone))

    def told(self, outcome: BaseException) -> aioktask.Failure | None:
        found: BaseException | None = outcome
        while found is not None:
            try:
                return failure(found)
            except LookupError:  # the loop's own cancellation, or:
                # An alarm struck when the job's exception was on its way out of the call.
                found = found.__context__ if isinstance(found, Alarm) else None
        return None


def leaves_of(value: Any) -> Iterator[int]:
    """The units under a value of `reduce`, in the order in which it was combined."""
    if value == ():
        return
    if isinstance(value[0], int):
        yield from range(*value)
        return
    for each in value:
        yield from leaves_of(each)


def units_of(ranges: tuple[range, ...]) -> set[int]:
    found: set[int] = set()
    for each in ranges:
        assert not found & set(each), f"ranges overlap: {ranges}"
        found |= set(each)
    return found


def control(
    rng: random.Random,
    *,
    handle: Callable[[], Handle[Any] | None],
    coordinator: Coordinator | None,
    cancel_waiter: Callable[[], object] | None = None,
) -> Callable[[], object]:
    """One thing that happens in the middle of a job."""

    def on_handle(act: Callable[[Handle[Any]], object]) -> Callable[[], object]:
        def later() -> object:
            found = handle()
            return None if found is None else act(found)

        return later

    choices: list[Callable[[], object]] = [
        lambda: aioktask.set_max_threads(rng.randint(1, 4)),
        on_handle(lambda found: found.cancel()),
        on_handle(lambda found: found.renice(rng.randint(-20, 19))),
        on_handle(lambda found: setattr(found, "max_threads", rng.randint(1, 4))),
        on_handle(lambda found: found.progress()),
    ]
    if coordinator is not None:
        choices.append(lambda: setattr(coordinator, "max_threads", rng.choice([None, 1, 2])))
    if cancel_waiter is not None:
        choices.append(cancel_waiter)
    return rng.choice(choices)


@contextlib.contextmanager
def interrupted(rng: random.Random, trials: list[Trial], *, may_raise: bool) -> Iterator[None]:
    """Perhaps something interrupts what runs in this block, in the main thread or any other.

    A handler of a real signal, or the finalizers of garbage, call the library, or a handler raises,
    or the system refuses what is asked of it.

    Args:
        rng: What happens, and when.
        trials: Whose handles may be used, beside other calls of the library.
        may_raise: Whether a handler may raise an `Alarm`: not in the loop's own code, which nobody
            could mend.
    """
    ways = [way for way in INTERRUPTIONS if may_raise or way != "alarm"]
    way = rng.choice(["nothing", *ways])
    own = random.Random(rng.random())  # which handlers use in no order
    if way in ("handler", "alarm"):
        during = _timer(own, trials, raises=way == "alarm")
    elif way == "finalizer":
        during = _finalizers(own, trials)
    elif way == "denial":
        during = _denials(own)
    else:
        during = contextlib.nullcontext()
    with during:
        yield


def _intrude(rng: random.Random, trials: list[Trial]) -> None:
    """Call the library, from wherever this thread is."""
    calls: list[Callable[[], object]] = [
        lambda: aioktask.plan(Job(_nothing, 10)),
        lambda: run_multithreaded_sync(Job(_nothing, 4, chunk=1)),
        lambda: aioktask.set_max_threads(rng.randint(1, 4)),
        aioktask.max_threads,
    ]
    for handle in [handle for trial in trials for handle in trial.handles]:
        calls += [
            handle.progress,
            handle.cancel,
            functools.partial(handle.renice, rng.randint(-20, 19)),
            functools.partial(handle.result, timeout=0),
        ]
    refused = (RuntimeError, TimeoutError, JobCancelled, aioktask.Overloaded)
    with contextlib.suppress(*refused, *(type(error()) for error in ERRORS), aioktask.UndoFailed):
        rng.choice(calls)()


def _nothing(start: int, stop: int) -> None:
    pass


@contextlib.contextmanager
def _timer(rng: random.Random, trials: list[Trial], *, raises: bool) -> Iterator[None]:
    inside = over = False

    def on_alarm(number: int, frame: FrameType | None) -> None:
        nonlocal inside
        if raises:
            if _only_in_the_engine(frame):
                raise Alarm
        elif not inside:
            inside = True
            try:
                _intrude(rng, trials)
            finally:
                inside = False
        if not over:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1e-3))

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1e-3))
    try:
        yield
    finally:
        over = True  # a signal that is pending must not set the timer anew
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _only_in_the_engine(frame: FrameType | None) -> bool:
    """Whether a call of the engine is interrupted, and no chunk or undo that keeps the ledger."""
    called = False
    while frame is not None:
        if frame.f_code.co_filename == __file__:
            return called and frame.f_code is Trial.run_sync.__code__
        called = called or "/aioktask/" in frame.f_code.co_filename
        frame = frame.f_back
    return False


class _Garbage:
    """What only the collector ends.

    A class of this module, since free-threaded Python 3.13 keeps each class, and what it refers to.
    """

    def __init__(self, ended: Callable[[], None]) -> None:
        self.me = self
        self.ended = ended

    def __del__(self) -> None:
        self.ended()


@contextlib.contextmanager
def _finalizers(rng: random.Random, trials: list[Trial]) -> Iterator[None]:
    over = False

    def intrude_again() -> None:
        if not over:
            _intrude(rng, trials)
            _Garbage(intrude_again)

    before = gc.get_threshold()
    _Garbage(intrude_again)
    # Without the GIL the first threshold alone does not count, unless the second one is 0.
    gc.set_threshold(rng.randint(1, 50), 1000 if gil_is_on() else 0, 1000)
    try:
        yield
    finally:
        over = True
        gc.set_threshold(*before)
        gc.collect()


@contextlib.contextmanager
def _denials(rng: random.Random) -> Iterator[None]:
    """The kernel refuses a system call, always, or a thread, now and then."""
    denied = rng.choice(["setpriority", "sched_setaffinity", "sched_getaffinity", "thread"])
    error = rng.choice([1, 13, 22, 38])  # EPERM, EACCES, EINVAL, ENOSYS
    with pytest.MonkeyPatch.context() as patch:
        if denied != "thread":

            def refuse(*args: object) -> None:
                raise OSError(error, "denied")

            patch.setattr(os, denied, refuse)
        else:

            def start(*args: Any, **kwargs: Any) -> Any:
                thread = getattr(args[0], "__self__", None)
                ours = type(thread).__module__.startswith("aioktask.")  # not one of the test's own
                if ours and rng.random() < 0.5:
                    raise RuntimeError("can't start new thread")
                return started(*args, **kwargs)

            # What threading.Thread.start calls: the latter since Python 3.13.
            name = "_start_new_thread"
            if not hasattr(threading, name):
                name = "_start_joinable_thread"
            started = getattr(threading, name)
            patch.setattr(threading, name, start)
        yield


def pool_at_rest() -> None:
    """Nothing is left of any job: no run, no serving thread, no count that stayed up.

    At the latest when what was posted last has been applied.
    """
    pool = current_pool()
    deadline = time.monotonic() + 60
    while (left := what_is_left(pool)) is not None:
        assert time.monotonic() < deadline, f"{left}: {pool!r}"
        pool.wake()
        time.sleep(LOOK_SECONDS)


def what_is_left(pool: Pool) -> str | None:
    """What keeps a pool from being at rest."""
    state = pool.state
    with pool.lock:
        scheduler = state.scheduler
        facts = {
            "commands": pool.inbox,
            "runs": state.runs,
            "threads that serve": state.serving,
            "waits": state.waits,
            "calls that block": [*state.blocking, *[None] * scheduler.blocked],
            "chunks that wait": state.waiting,
            "threads that count": scheduler.running,
            "jobs in queues": [*scheduler._queues.foreground, *scheduler._queues.background],
            "jobs owed a helper": scheduler._owed,
            "what is due": pool.deadlines,
            "jobs that count for admission": state.root.gate,
            "helpers that neither serve nor are idle": [
                helper
                for helper in state.helpers
                # A member of the lane that is at no job of it waits for one.
                if not (helper.idle or (helper.in_lane and helper.express is None))
            ],
        }
    return next((name for name, found in facts.items() if found), None)


def nothing_refers_to(watches: list[weakref.ref[Any]]) -> None:
    """Every trial is forgotten, at the latest when the threads that served it are parked again."""
    deadline = time.monotonic() + 60
    while True:
        gc.collect()
        left = sum(watch() is not None for watch in watches)
        if not left:
            return
        assert time.monotonic() < deadline, f"{left} trials are still referred to"
        time.sleep(LOOK_SECONDS)


__all__ = [
    "Alarm",
    "ChunkCancelled",
    "JobCancelled",
    "Ledger",
    "Trial",
    "control",
    "interrupted",
    "nothing_refers_to",
    "pool_at_rest",
]
