# SPDX-License-Identifier: MIT
# How the sections of an `OnDemand` are done, on which thread, and who waits for which run.
#
# Each section is a run of the engine of its own, of one chunk, which the thread that took the
# section serves at once. So whoever needs a section that is being done waits for exactly that run,
# with all that such a wait brings: any loop or thread, cycles found section by section.
#
# Threads come by three ways. The background is one ordinary run, with as many chunks as there are
# sections; each takes the section that is next, or finds none. A request has a run of its own, at
# its own nice, whose chunks take its sections only: it starts level with the others, whatever the
# background has used, and is over when none of its sections waits. And a chunk that needs a section
# does it in its own thread, so needs no helper. A chunk that finds nothing to take returns: there
# are always as many chunks of the background to come as sections wait, so none is lost.
#
# A section is taken once and never goes back. The lock guards `sections`, `running`, `_failed` and
# the figures; nothing of the engine, and nobody's code, is called while it is held.
"""The doing of sections, and the waiting for them."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from types import TracebackType
from typing import NoReturn

from aioktask.checks import check_done
from aioktask.engine.api.coordinator import Coordinator
from aioktask.engine.api.handle import Handle
from aioktask.engine.api.submission import is_main_thread, new_run, run_here, wait_in_thread
from aioktask.engine.priority import waiter_nice
from aioktask.engine.state.current import enclosing_run, enclosing_stint, local
from aioktask.engine.state.run import Run
from aioktask.engine.state.workers import Caller
from aioktask.errors import JobCancelled
from aioktask.job import (
    OVER_PHASES,
    Bound,
    ChunkFunction,
    Failure,
    Job,
    JobPhase,
    Progress,
    eta_of,
    job_that_makes,
    set_failure,
    told_of,
)
from aioktask.ondemand._sections import Request, Sections

__all__ = ["Work"]

# Sections that need sections, that many deep in one thread: further ones go to a helper, since a
# thread's stack is short.
DEEPEST = 16


class Work:
    """The sections of one job, and the runs that do them."""

    def __init__(
        self, job: Job[None], fn: ChunkFunction[object], sections: Sections, scope: Coordinator
    ) -> None:
        self._job = job
        self._fn = fn
        self._scope = scope
        # A signal handler or a finalizer may call while its thread holds it, between any two lines:
        # so no collection is replaced by another one, and a loop goes over a copy.
        self.lock = threading.RLock()
        self.sections = sections
        self.running: dict[int, Handle[None]] = {}
        self.closed = False  # whether no further section may begin
        self._failed: dict[int, _Raised] = {}
        self._urgent: dict[Handle[None], None] = {}  # the runs of requests
        self._units = self._chunks = 0  # done
        self._began = self._ended = 0.0

    def begin(self) -> None:
        """Have helpers do the sections from now on.

        Raises:
            RuntimeError: The coordinator takes no more jobs.
        """
        self._pool, self._group = self._scope.scope()
        self._began = time.perf_counter()
        self._background = self._run_of_chunks(self._background_chunk, self.sections.count)
        self._submit(self._background)

    # The three ways to a section.

    def _background_chunk(self, start: int, stop: int) -> None:
        self._do_next(None, self._background.nice, self._background)

    def _urgent_chunk(self, request: Request, start: int, stop: int) -> None:
        stint = local.stint
        self._do_next(request, request.nice, None if stint is None else stint.run)

    def ask(self, request: Request, *, takes_part: bool) -> Handle[None] | None:
        """Have the request's sections done next; the run that does them, or None if none waits.

        If the calling thread takes part, it does as many as it can, so that nothing is to be waited
        for but sections that others do.
        """
        self._handle_of(self._background).done()  # refused in a fork's child
        with self.lock:
            waiting = self.sections.waiting(request.sections) if self._may_begin() else 0
            if waiting:
                self.sections.ask(request)
        urgent = None
        if waiting > takes_part:
            chunk = functools.partial(self._urgent_chunk, request)
            run = self._run_of_chunks(chunk, waiting - takes_part)
            run.nice = request.nice
            try:
                self._submit(run)
            except RuntimeError as error:
                if not run.refused:  # the end of the stack
                    raise
                background = self._handle_of(self._background)
                if takes_part or background.done() or not self._may_begin():
                    # The coordinator was left, or the interpreter exits.
                    raise self.cancelled() from error
                return background  # the coordinator takes nothing new: this does them, and first
            urgent = self._handle_of(run)
            with self.lock:
                self._urgent[urgent] = None
                for each in list(self._urgent):
                    if each.done():
                        self._urgent.pop(each, None)
        if not takes_part:
            return urgent
        while self._do_next(request, request.nice, None):
            pass
        return None

    def nice_of_caller(self) -> int:
        """The nice at which the caller waits."""
        outer = enclosing_run()
        return waiter_nice(None if outer is None else outer.urgency, self._background.nice)

    def _run_of_chunks(self, fn: ChunkFunction[object], count: int) -> Run:
        """A run that calls `fn` so many times."""
        job = Job(
            self._fn,
            count,
            chunk=1,
            max_threads=self._job.max_threads,
            nice=self._job.nice,
            name=self._job.name,
        )
        job = _with_call(job, fn)
        return new_run(self._pool, self._group, job, None, parent=None, owned=False)

    def _submit(self, run: Run) -> None:
        self._pool.submit(run, nested=self._is_nested())

    def _is_nested(self) -> bool:
        """Whether a chunk of the coordinator is at work here.

        Who closes the coordinator waits for the chunks in it, and for what they submit.
        """
        stint = local.stint
        return stint is not None and stint.run.group is self._group

    def _handle_of(self, run: Run) -> Handle[None]:
        return Handle(self._pool, run, self._job)

    def _may_begin(self) -> bool:
        """Whether sections may begin: nobody ended it, nor the coordinator."""
        return not (self.closed or self._background.cancel_asked)

    def _do_next(self, request: Request | None, nice: int, by: Run | None) -> bool:
        """Take the next section, of the request if there is one, and do it; whether one was left.

        The section's exception is kept, not raised. Where memory was short before it had a run, who
        asks for the section is told what ends the run `by` whose chunk this is.
        """
        caller = Caller(nice, local.stint, main=is_main_thread())
        with self.lock:
            if not self._may_begin():
                return False
            index = self.sections.take() if request is None else self.sections.take_of(request)
            if index is None:
                return False
            if (terms := self._background.terms) is not None:
                terms.wait_no_more()  # all of it has begun, whoever does this section
            try:
                run = self._run_of(index, nice)
                handle = self.running[index] = self._handle_of(run)
            except BaseException:
                if by is not None:
                    self._failed[index] = _Raised(self._handle_of(by))
                raise
        try:
            if len(caller.stints) > DEEPEST:
                self._submit(run)
                wait_in_thread(self._pool, run, None)
            else:
                run.parent_stint = enclosing_stint()
                run_here(self._pool, run, caller, nested=self._is_nested())
        except BaseException as error:
            if run.refused and isinstance(error, RuntimeError):
                # The coordinator was left, or the interpreter exits: who waits for the run is told.
                raise self.cancelled() from error
            if by is not None:  # who asks for the section is told what struck here
                with self.lock:
                    if not self.sections.is_done(index):
                        self._failed.setdefault(index, _Raised(self._handle_of(by)))
            if not run.over:  # struck before it was submitted; after the above, since waiters wake
                self._pool.cancel(run)
            raise
        finally:
            with self.lock:
                if run.refused or run.cancel_asked:  # before it began, or struck from outside
                    self.running.pop(index, None)
                elif not self.sections.is_done(index):  # the engine failed before its chunk could
                    self.running.pop(index, None)
                    self._failed.setdefault(index, _Raised(handle))
        return True

    def _run_of(self, index: int, nice: int) -> Run:
        start, stop = self.sections.bounds(index)
        job = Job(
            self._fn,
            stop - start,
            start=start,
            chunk=self.sections.section,  # so it is one chunk
            max_threads=1,
            nice=nice,
            name=self._job.name,
        )
        job = _with_call(job, functools.partial(self._chunk, index))
        # In the context of who entered, whoever does the section.
        run = Run(job, self._group, nice=nice, context=self._background.context)
        run.inherited = self._background.inherited
        return run

    def _chunk(self, index: int, start: int, stop: int) -> None:
        """A section, in its run."""
        done = False
        try:
            check_done(self._fn(start, stop), "fn", self._job.name)
            done = True
        finally:
            with self.lock:
                handle = self.running.pop(index)
                if done:
                    self.sections.done(index)
                    self._units += stop - start
                    self._chunks += 1
                else:
                    self._failed[index] = _Raised(handle)
                self._ended = time.perf_counter()

    # What waiters and the end need.

    def under_way(self) -> list[Handle[None]]:
        """All runs that are not over."""
        background = self._handle_of(self._background)
        with self.lock:
            handles = [background, *self._urgent, *self.running.values()]
            handles += [raised.handle for raised in list(self._failed.values())]
        return [handle for handle in handles if not handle.done()]

    def stop(self) -> list[Handle[None]]:
        """Begin no further section, and tell those that run; the runs that are not over."""
        with self.lock:
            self.closed = True
            running = list(self.running.values())
        self._handle_of(self._background).cancel()
        for handle in running:
            handle.cancel()
        return self.under_way()

    def stop_soon(self) -> None:
        """`stop` from a finalizer, which may interrupt who holds the lock."""

        def stop() -> None:
            self.stop()

        self._pool.keeper.soon(stop)

    def left_of(self, index: int, by: Handle[None] | None) -> Handle[None] | None:
        """What is left to wait for until the section is done: the run that does it, or another one
        that tells how it failed. None when it is done.

        Who waits asks again after it.

        Args:
            index: The section's.
            by: The run that was to do it, which is over; None where the caller was to.

        Raises:
            BaseException: What the section raised.
            JobCancelled: It is not going to be done; or what else ended the run that was to do it.
        """
        with self.lock:
            if self.sections.is_done(index):
                return None
            handle = self.running.get(index)
        if handle is not None and not handle.done():
            return handle
        with self.lock:  # again: what became of a section is known before its run is over
            if self.sections.is_done(index):
                return None
            raised = self._failed.get(index)
        if raised is None and handle is not None:  # its thread has not come to say so
            raised = _Raised(handle)
        if raised is not None:
            if not raised.handle.done():
                return raised.handle
            raised.again()
        if by is not None:
            by.result(0)
        raise self.cancelled()

    def left_of_all(self) -> Handle[None] | None:
        """What `left_of` tells of the first failed section of all, or the first not done."""
        with self.lock:
            index = min(self._failed, default=self.sections.first_left())
        return None if index is None else self.left_of(index, self._handle_of(self._background))

    def cancelled(self) -> JobCancelled:
        """What tells of the end."""
        return JobCancelled(f"the job {self._job.name!r} was ended before this section was done")

    def failed(self) -> tuple[range, ...]:
        """The sections that raised."""
        with self.lock:
            return tuple(range(*self.sections.bounds(index)) for index in sorted(self._failed))

    def progress(self) -> Progress:
        """Where it stands."""
        with self.lock:
            units, chunks, threads = self._units, self._chunks, len(self.running)
            phase = self._phase()
            active = threads or (not self.closed and self.sections.first_left() is not None)
            until = time.perf_counter() if active else self._ended
        elapsed = max(until - self._began, 0.0) if self._began else 0.0
        rate = units / elapsed if elapsed else 0.0
        eta: float | None = None
        if phase in OVER_PHASES:
            eta = 0.0
        elif phase == "running":
            eta = eta_of(self._job.size - units, units, elapsed)
        return Progress(units, self._job.size, threads, chunks, elapsed, rate, phase=phase, eta=eta)

    def _phase(self) -> JobPhase:
        """Where it stands, with the lock held."""
        done, failed, count = self._chunks, len(self._failed), self.sections.count
        if done == count:
            return "finished"
        if self.running:
            return "stopping" if self.closed else "running"
        if self.closed or done + failed == count:
            return "failed" if failed else "cancelled"
        return "running" if done or failed else "waiting"


class _Raised:
    """A section's failure, told any number of times: each time as it was the first time.

    Whoever gets the exception may raise it through other jobs, which note it, and each raise adds
    to its traceback: none of that stays for the next.
    """

    __slots__ = ("_first", "_lock", "handle")

    def __init__(self, handle: Handle[None]) -> None:
        self.handle = handle
        self._lock = threading.RLock()  # guards `_first`
        self._first: (
            tuple[BaseException, TracebackType | None, tuple[str, ...], Failure | None] | None
        ) = None

    def again(self) -> NoReturn:
        """Raise it."""
        with self._lock:
            if self._first is None:
                self._first = self._take()
            error, traceback, notes, failure = self._first
            with contextlib.suppress(Exception):  # the user's class may refuse
                if hasattr(error, "__notes__"):
                    error.__notes__[:] = notes
            if failure is not None:
                set_failure(error, failure)
        raise BaseException.with_traceback(error, traceback)

    def _take(
        self,
    ) -> tuple[BaseException, TracebackType | None, tuple[str, ...], Failure | None]:
        try:
            self.handle.result(0)
        except BaseException as error:
            traceback = None if error.__traceback__ is None else error.__traceback__.tb_next
            return error, traceback, tuple(getattr(error, "__notes__", ())), told_of(error)
        raise AssertionError("a section failed whose run did not")


def _with_call(job: Job[None], fn: ChunkFunction[object]) -> Job[None]:
    """The job, whose one run calls `fn` instead of the job's own function.

    What is told of a run refers to its job, and the job does not refer to `fn`, which refers to the
    work and so to the run: what is done on demand goes with the last reference to it.
    """
    calls = [fn]
    return job_that_makes(job, lambda: Bound(calls.pop()))
