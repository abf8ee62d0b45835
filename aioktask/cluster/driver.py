# SPDX-License-Identifier: MIT
# The thread that drives the sessions of one coordinator.
#
# Guarantees that sessions are changed by this thread alone: others post a step to its queue, which
# is one call of `SimpleQueue.put`, so that a signal handler or a finalizer may do it too. What they
# read, they read under a lock that is held for as long as a session needs for one message,
# functions of the program apart; the lock can be taken again by the thread that has it. A session
# that raises ends its own job only. Only so many jobs are at the workers at a time; the others wait
# for their turn, and may be cancelled, reniced or expire meanwhile.
"""Driving sessions."""

from __future__ import annotations

import contextlib
import heapq
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from aioktask.cluster.carrier import Carrier
from aioktask.cluster.job import ClusterSnapshot
from aioktask.cluster.messages import Joined, Leaves, Lost, Message
from aioktask.cluster.run import ClusterRun
from aioktask.cluster.session import Orders
from aioktask.errors import CoordinatorClosed, DeadlockError
from aioktask.status import WorkerStatus

__all__ = ["Driver", "block_signals"]

# So many jobs are at the workers at a time, each with a thread and its data in every one of them.
# Further ones wait, the most urgent and then the oldest first; but not one that is more urgent than
# all that are there.
MOST_AT_ONCE = 8
# So long whoever takes a snapshot waits until this thread is through with a message, in seconds;
# and where that was too long, so long nobody waits again.
GLANCE_SECONDS = 0.01
NO_GLANCE_SECONDS = 0.1
# So many deadlines of jobs that are over may be kept.
FEW = 16


# An exception's class may have attributes of its own.
_traceback: Any = BaseException.__dict__["__traceback__"]


class Driver:
    """The sessions of one coordinator, and the thread that drives them."""

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier
        self.pid = os.getpid()
        # Guards the sessions, for those who read them.
        self.lock = threading.RLock()
        self.ended = threading.Event()
        self.end_waiters: dict[object, Callable[[], object]] = {}
        self.runs: dict[ClusterRun, None] = {}  # at the workers
        self.queued: dict[ClusterRun, int] = {}  # not yet: they wait for their turn at this nice
        self._turns: list[tuple[int, int, ClusterRun]] = []  # a heap of these; those reniced stay
        self._deadlines: list[tuple[float, int, ClusterRun]] = []  # a heap
        self._touched: dict[ClusterRun, None] = {}  # whose session may have changed in this step
        self._turn_comes = False  # perhaps: a job came, ended, or was reniced, so one may begin
        self._no_glance_until = 0.0
        self._ends_when_idle = False
        self._carrier_begun = False
        self.workers: dict[str, Joined] = {}
        self._lost: Lost | None = None  # the last one
        self._steps: queue.SimpleQueue[Callable[[], Orders] | Message | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="aioktask-cluster", daemon=True)

    @property
    def in_child(self) -> bool:
        """Whether this is a forked child of the process that made it, where the thread is not."""
        return self.pid != os.getpid()

    def refuse_in_child(self) -> None:
        """Raise in a forked child.

        Raises:
            RuntimeError: This process is a child of the one that made it.
        """
        if self.in_child:
            raise RuntimeError(
                "this coordinator belongs to the parent of this forked process, which has no part "
                "in it: make one here"
            )

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is the one that drives the sessions, which must not wait."""
        return threading.current_thread() is self._thread

    def refuse_here(self, name: str) -> None:
        """Raise in the thread that drives the sessions.

        Raises:
            DeadlockError: It would wait for a job of this name, for itself.
        """
        if self.is_here:
            error = DeadlockError([name])
            error.add_note(
                "a reduce, the homes of a job, or a listener of events called it, in the thread "
                "that drives the job"
            )
            raise error

    @property
    def begun(self) -> int:
        """How many jobs are at the workers."""
        return len(self.runs)

    @property
    def waiting(self) -> int:
        """How many jobs wait for their turn."""
        return len(self.queued)

    @property
    def may_join(self) -> bool:
        """Whether workers may come that are not there yet."""
        return self.carrier.may_join

    @contextlib.contextmanager
    def glance(self) -> Iterator[bool]:
        """Take the lock, if that takes hardly any time; whether it was taken."""
        soon = time.monotonic() >= self._no_glance_until
        taken = self.lock.acquire(timeout=GLANCE_SECONDS if soon else 0.0)
        if not taken:
            self._no_glance_until = time.monotonic() + NO_GLANCE_SECONDS
        try:
            yield taken
        finally:
            if taken:
                self.lock.release()

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """For functions of the program that this thread calls: let others read meanwhile."""
        self.lock.release()
        try:
            yield
        finally:
            self.lock.acquire()

    def begin(self) -> None:
        """Start the thread and the carrier, or neither.

        Raises:
            BaseException: What the carrier raised.
            RuntimeError: The system has no more threads.
        """
        try:
            self._thread.start()
        except BaseException:
            self.ended.set()
            self.end()  # it may run, where a Ctrl-C came as it had begun
            raise
        try:
            self._carrier_begun = True
            self.carrier.begin(self._steps.put)
        except BaseException:
            self._carrier_begun = False
            self.end()
            raise

    def end(self) -> None:
        """Let go of the workers when what was posted before is done. Does not wait."""
        self._steps.put(None)

    def end_when_idle(self) -> None:
        """Cancel the jobs that were submitted before, and let go of the workers after that.

        For a scope whose owner cannot wait for its jobs. Does not wait.
        """
        self._steps.put(self._end_when_idle)

    def _end_when_idle(self) -> Orders:
        self._ends_when_idle = True
        for run in [*self.runs, *self.queued]:  # here, where no signal comes between two of them
            run.cancel()
        return []

    def post(self, run: ClusterRun, step: Callable[[], Orders]) -> None:
        """Have the thread take a step of a run."""
        self._steps.put(lambda: self._posted(run, step))

    def _posted(self, run: ClusterRun, step: Callable[[], Orders]) -> Orders:
        orders = self._guarded(run, step)
        self._turn_comes = True  # it, or one that is at the workers, may be reniced
        if run in self.queued and self.queued[run] != run.nice:
            self._enqueue(run)
        return orders

    def _enqueue(self, run: ClusterRun) -> None:
        self.queued[run] = run.nice
        heapq.heappush(self._turns, (run.nice, run.number, run))
        self._turn_comes = True

    def submit(self, run: ClusterRun) -> None:
        self.post(run, lambda: self._admit(run))

    def snapshot(self) -> ClusterSnapshot:
        """What there is to see now."""
        self.refuse_in_child()
        now = time.monotonic()
        with self.lock:
            jobs = tuple(
                (run.job.name, run.session.progress(now), run.session.workers())
                for run in list(self.runs) + list(self.queued)
                if not run.over
            )
            known = {status.name: status for _, _, workers in jobs for status in workers}
            workers = tuple(
                WorkerStatus(
                    name=joined.worker,
                    host=joined.host,
                    pid=known[joined.worker].pid if joined.worker in known else None,
                    threads=known[joined.worker].threads if joined.worker in known else 0,
                    state="open",
                )
                for joined in list(self.workers.values())
            )
        return ClusterSnapshot(workers, jobs)

    def _admit(self, run: ClusterRun) -> Orders:
        if run.session.over:  # it was cancelled before
            return []
        with self.outside():
            self._tell(run.tell_submitted)
        self._enqueue(run)
        if run.deadline is not None:
            heapq.heappush(self._deadlines, (run.deadline, run.number, run))
        return []

    def _give_turns(self, now: float) -> Orders:
        """Begin with jobs whose turn it is."""
        orders: Orders = []
        self._turn_comes = False
        while self._turns:
            nice, _, run = self._turns[0]
            if self.queued.get(run) != nice:  # it was reniced, or is over
                heapq.heappop(self._turns)
                continue
            others = [each.nice for each in self.runs]
            if len(others) >= MOST_AT_ONCE and nice >= min(others):
                break
            heapq.heappop(self._turns)
            del self.queued[run]
            self.runs[run] = None
            run.begun = True
            run.looked_at = now

            def start(run: ClusterRun = run) -> Orders:
                there = list(self.workers.values())
                return run.session.start(now, there, self._lost, self.carrier.may_join)

            orders += self._guarded(run, start)
        return orders

    def _serve(self) -> None:
        block_signals()
        try:
            while not self._ends_when_idle or self.runs or self.queued:
                try:
                    step = self._next_step()
                    if step is None:
                        break
                    self._take(step)
                except BaseException as error:
                    self._struck(error)
        finally:  # whatever raises: nobody waits for ever
            if self._carrier_begun:
                self._tell(self.carrier.end)
            self._tell(self._end_leftovers)
            self.ended.set()
            for wake in list(self.end_waiters.values()):
                self._tell(wake)

    def _next_step(self) -> Callable[[], Orders] | Message | None:
        """What to do next; None to end."""
        try:
            return self._steps.get(timeout=self._patience())
        except queue.Empty:
            return list  # only what the time asks for

    def _struck(self, error: BaseException) -> None:
        """End all jobs: what a message or a step was to bring about may be lost."""
        self._report(error)
        for run in [*self.runs, *self.queued]:
            broken = RuntimeError(f"the coordinator of the job {run.job.name!r} failed")
            broken.__cause__ = error
            with self.lock:
                orders = self._ruin(run, broken)
            self._send(orders)
            self._look_at(run)

    def _end_leftovers(self) -> None:
        """End what is left though its owner waits for nothing: nobody waits for ever."""
        with contextlib.suppress(queue.Empty):
            while True:
                step = self._steps.get_nowait()
                if callable(step):
                    self._take(step)
        for run in [*self.runs, *self.queued]:
            closed = CoordinatorClosed(f"the workers of the job {run.job.name!r} were let go of")
            with self.lock:
                self._ruin(run, closed, reached=False)
            self._look_at(run)

    def _patience(self) -> float | None:
        """How long nothing but a message can change anything, in seconds."""
        looks = [run.next_look() for run in self.runs]
        if self._deadlines:
            looks.append(self._deadlines[0][0])
        first = min((each for each in looks if each is not None), default=None)
        return None if first is None else max(first - time.monotonic(), 0.0)

    def _take(self, step: Callable[[], Orders] | Message) -> None:
        orders: Orders = []
        raised: list[BaseException] = []
        now = time.monotonic()
        with self.lock:
            if callable(step):
                try:
                    orders += step()
                except BaseException as error:
                    raised.append(error)
            else:
                if isinstance(step, Joined):
                    self.workers[step.worker] = step
                elif isinstance(step, Leaves):  # jobs that begin later have no part there
                    self.workers.pop(step.worker, None)
                elif isinstance(step, Lost):
                    self.workers.pop(step.worker, None)
                    self._lost = step
                    if not step.worker:
                        self.carrier.may_join = False
                orders += self._hear(step, now)
            while self._deadlines and now >= self._deadlines[0][0]:
                _, _, late = heapq.heappop(self._deadlines)
                if not late.over:
                    orders += self._guarded(late, lambda run=late: run.expire(now))  # type: ignore[misc]
            for run in list(self.runs):
                look = run.next_look()
                if look is not None and now >= look:
                    run.looked_at = now
                    orders += self._guarded(run, lambda run=run: run.session.tick(now))  # type: ignore[misc]
        for each in raised:
            self._report(each)
        self._send(orders)
        self._look_at_touched()
        while self._turn_comes:  # again, where one ended as it began
            with self.lock:
                orders = self._give_turns(now)
            self._send(orders)
            self._look_at_touched()

    def _send(self, orders: Orders) -> None:
        for worker, command in orders:
            try:
                self.carrier.send(worker, command)
            except BaseException as error:  # the carrier tells that the worker is lost
                self._report(error)

    def _look_at_touched(self) -> None:
        while self._touched:
            run = next(iter(self._touched))
            del self._touched[run]
            self._look_at(run)

    def _hear(self, message: Message, now: float) -> Orders:
        orders: Orders = []
        of = getattr(message, "session", None)
        heard = list(self.runs)
        if isinstance(message, Lost) and not message.worker:
            heard += self.queued  # none will ever come
        for run in heard:
            if of is None or of == run.session.name:
                orders += self._guarded(run, lambda run=run: run.session.hear(message, now))  # type: ignore[misc]
        return orders

    def _guarded(self, run: ClusterRun, step: Callable[[], Orders]) -> Orders:
        """A step of one session; where it raises, that job ends with what it raised."""
        self._touched[run] = None
        try:
            return step()
        except BaseException as error:
            return self._ruin(run, error)

    def _ruin(self, run: ClusterRun, error: BaseException, *, reached: bool = True) -> Orders:
        """End a run with an error, whatever of it is done."""
        try:
            return run.session.ruin(error, reached=reached)
        except BaseException as another:  # no memory, say: it is over all the same
            with self.outside():  # the program's own hook is called
                self._report(another)
            return []

    def _look_at(self, run: ClusterRun) -> None:
        session = run.session
        if run.over:
            return
        self._tell(run.tell_submitted)
        self._tell(run.tell_started)
        self._tell(run.tell_unknown_homes)
        if session.over:
            self.runs.pop(run, None)
            self.queued.pop(run, None)
            self._turn_comes = True
            if len(self._deadlines) > 2 * (len(self.runs) + len(self.queued)) + FEW:
                self._deadlines = [each for each in self._deadlines if not each[2].session.over]
                heapq.heapify(self._deadlines)
            self._tell(run.tell_end)
            run.outcome = session.outcome
            run.ended.set()
            self._wake(run)
        elif session.phase == "settled" and not run.settled:
            run.settled = True
            self._wake(run)

    def _wake(self, run: ClusterRun) -> None:
        for wake in run.waiters():
            self._tell(wake)

    def _tell(self, tell: Callable[[], object]) -> None:
        try:
            tell()
        except BaseException as error:  # of a listener, or of a loop: others are told
            self._report(error)

    def _report(self, error: BaseException) -> None:
        with contextlib.suppress(BaseException):  # of methods of its own, say: that ends no job
            told = type(error), error, _traceback.__get__(error), threading.current_thread()
            args = threading.ExceptHookArgs(told)
            try:
                threading.excepthook(args)
            except BaseException:  # the program's own
                threading.__excepthook__(args)


def block_signals() -> None:
    """Have no signal come to this thread, which the program's main thread would not notice."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
